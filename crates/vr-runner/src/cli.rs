//! The command line that `vrun` and `vrun_precise` share.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use vr_common::exit;
use vr_common::lock::{FileLock, LockError};
use vr_common::log;
use vr_common::paths::VrRoot;

use crate::container::Engine;
use crate::proc::{self, LogFile, Proc, ProcError, RunOptions, Variant};

const EXAMPLES: &str = "\
Examples:
  vrun setup proc.yaml       fetch the build and the image, and make the container's files
  vrun run proc.yaml         run the app in the foreground; ends with the app's exit status
  vrun uptest proc.yaml      run the app's uptests; prints one line of JSON
  vrun shell proc.yaml       look around in a container like the app's
  vrun teardown proc.yaml    remove everything of the proc

VR_ROOT is the folder that everything is kept in (default: /apps).
Exit status: 0 done, 1 failed, 2 wrong usage or a bad file; run and shell end with their program's
(128 and the signal's number after a signal).";

#[derive(Debug, Parser)]
#[command(about = "Runs procs in containers", version, after_help = EXAMPLES)]
struct CommandLine {
    /// Say only what went wrong
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// What makes the containers: own, or lxc for LXC 4 or later
    #[arg(long, global = true, env = "VR_ENGINE", value_name = "ENGINE", default_value_t = Engine::Own)]
    engine: Engine,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch what the proc needs and make its files; may be repeated
    Setup(File),
    /// Run the proc in the foreground
    Run {
        #[command(flatten)]
        file: File,
        /// Write the app's output to this file instead of passing it on
        #[arg(long, value_name = "FILE")]
        log: Option<PathBuf>,
        /// Move the log to FILE.1 before it grows over this size, in bytes; 0 for never
        #[arg(long, value_name = "N", default_value_t = 10_000_000, requires = "log")]
        log_max_bytes: u64,
        /// How many older logs to keep
        #[arg(long, value_name = "N", default_value_t = 1, requires = "log")]
        log_backups: u32,
        /// Keep a JSON document about the run's begin and end in this file
        #[arg(long, value_name = "FILE")]
        status_file: Option<PathBuf>,
    },
    /// Run the proc's uptests and print their results as one line of JSON
    Uptest {
        #[command(flatten)]
        file: File,
        /// Stop a test after this time
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        test_timeout: u64,
    },
    /// Start a shell in a container like the proc's
    Shell(File),
    /// Remove the proc's files; may be repeated
    Teardown(File),
}

#[derive(Debug, Args)]
struct File {
    /// The proc's YAML file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Parses the arguments, carries them out, and says what went wrong on standard error.
pub fn main(name: &'static str, variant: Variant) -> ExitCode {
    let command = CommandLine::command().name(name).bin_name(name);
    let parsed = CommandLine::from_arg_matches(&command.get_matches()).unwrap_or_else(|e| e.exit());
    let level = match (parsed.quiet, parsed.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "trace",
    };
    log::init_tool(level);
    match carry_out(&parsed.command, variant, parsed.engine) {
        Ok(code) => code,
        Err(error) => exit::report(&error, error.hint(), error.exit_code()),
    }
}

fn carry_out(command: &Command, variant: Variant, engine: Engine) -> Result<ExitCode, ProcError> {
    let load =
        |file: &Path| Proc::load(file, VrRoot::from_env(), variant).map(|proc| proc.with_engine(engine));
    match command {
        Command::Setup(File { file }) => {
            let _lock = lock(file)?;
            proc::setup(&load(file)?)?;
        }
        Command::Run { file: File { file }, log, log_max_bytes, log_backups, status_file } => {
            let _lock = lock(file)?;
            let log =
                log.clone().map(|path| LogFile { path, max_bytes: *log_max_bytes, backups: *log_backups });
            let options = RunOptions { log, status_file: status_file.clone() };
            let end = proc::run(&load(file)?, &options)?;
            return Ok(ExitCode::from(end.as_exit_code()));
        }
        Command::Uptest { file: File { file }, test_timeout } => {
            let results = proc::uptest(&load(file)?, Duration::from_secs(*test_timeout))?;
            let error = |source: io::Error| ProcError::Io {
                step: "write to",
                path: "standard output".into(),
                source,
            };
            let line = serde_json::to_string(&results).map_err(|e| error(e.into()))?;
            writeln!(io::stdout(), "{line}").map_err(error)?;
        }
        Command::Shell(File { file }) => {
            return Ok(ExitCode::from(proc::shell(&load(file)?)?.as_exit_code()));
        }
        Command::Teardown(File { file }) => {
            let _lock = lock(file)?;
            proc::teardown_file(file, &VrRoot::from_env())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn lock(file: &Path) -> Result<FileLock, LockError> {
    FileLock::existing(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
