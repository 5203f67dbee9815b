//! The command line that `vrun` and `vrun_precise` share: what may be asked for, and who is asked to do it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use vr_common::lock::{FileLock, LockError};
use vr_common::log;
use vr_common::paths::VrRoot;

use crate::check;
use crate::container::Engine;
use crate::proc::{self, CleanUp, LogFile, Proc, ProcError, RunOptions, Variant};

mod help;
mod outcome;

use outcome::{Outcome, Report};

/// What may be said with every command.
const GENERAL: &str = "General options";

#[derive(Debug, Parser)]
#[command(version)]
struct CommandLine {
    /// Say only what went wrong
    #[arg(short, long, global = true, help_heading = GENERAL, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more, also in pipes; twice for everything
    #[arg(short, long, global = true, help_heading = GENERAL, action = ArgAction::Count)]
    verbose: u8,
    /// End standard output with one line of JSON that tells what was done, or why not
    #[arg(long, global = true, help_heading = GENERAL)]
    json: bool,
    /// What makes the containers: own, or lxc for LXC 4 or later
    #[arg(long, global = true, help_heading = GENERAL, env = "VR_ENGINE", value_name = "ENGINE", default_value_t = Engine::Own)]
    engine: Engine,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch what a proc needs and make its files; may be repeated
    Setup(File),
    /// Run a proc in the foreground
    Run {
        #[command(flatten)]
        file: File,
        /// Write the app's output to this file instead of passing it on
        #[arg(long, value_name = "FILE")]
        log: Option<PathBuf>,
        /// Move the log to FILE.1 before it grows over this size; 0 for never
        #[arg(long, value_name = "BYTES", default_value_t = 10_000_000, requires = "log")]
        log_max_bytes: u64,
        /// How many older logs to keep
        #[arg(long, value_name = "NUMBER", default_value_t = 1, requires = "log")]
        log_backups: u32,
        /// Keep a JSON document about the run's begin and end in this file
        #[arg(long, value_name = "FILE")]
        status_file: Option<PathBuf>,
    },
    /// Run a proc's uptests and print their results as one line of JSON
    Uptest {
        #[command(flatten)]
        file: File,
        /// Stop a test after this time
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        test_timeout: u64,
    },
    /// Start a shell in a container like the proc's
    Shell(File),
    /// Remove a proc's files; may be repeated
    Teardown(File),
    /// Find out whether procs can run on this host, by making containers
    Check,
    /// Remove what no proc of this host uses any more
    Cleanup {
        /// Keep unpacked builds that were in use less than this ago, such as 90m, 12h or 7d
        #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = parse_duration)]
        unused_for: Duration,
        /// Remove also tarballs of builds, and images, that no proc refers to and nobody used for this long
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        tarballs_unused_for: Option<Duration>,
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Setup(_) => "setup",
            Self::Run { .. } => "run",
            Self::Uptest { .. } => "uptest",
            Self::Shell(_) => "shell",
            Self::Teardown(_) => "teardown",
            Self::Check => "check",
            Self::Cleanup { .. } => "cleanup",
        }
    }
}

#[derive(Debug, Args)]
struct File {
    /// The proc's YAML file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// The arguments of the program `name`, for its parser, its completions and its manual pages.
pub fn command(name: &'static str, variant: Variant) -> clap::Command {
    help::add(CommandLine::command().name(name).bin_name(name), name, variant)
}

/// Parses the arguments, carries them out, and says what came of it.
pub fn main(name: &'static str, variant: Variant) -> ExitCode {
    let started = Instant::now();
    let matches = command(name, variant).try_get_matches();
    let parsed = match matches.and_then(|matches| CommandLine::from_arg_matches(&matches)) {
        Ok(parsed) => parsed,
        Err(error) => return outcome::refuse(&error),
    };
    log::init_tool(&log::tool_default(parsed.quiet, parsed.verbose));
    let mut call = Call { variant, engine: parsed.engine, proc: None };
    let result = call.carry_out(&parsed.command);
    let report = Report {
        command: parsed.command.name(),
        proc: call.proc.as_deref(),
        took: started.elapsed(),
        json: parsed.json,
        quiet: parsed.quiet,
    };
    report.give(&result)
}

/// One command that is carried out.
struct Call {
    variant: Variant,
    engine: Engine,
    /// The name of the proc that it is about, once that is known.
    proc: Option<String>,
}

impl Call {
    fn load(&mut self, file: &Path) -> Result<Proc, ProcError> {
        let proc = Proc::load(file, VrRoot::from_env(), self.variant)?.with_engine(self.engine);
        self.proc = Some(proc.name().to_owned());
        Ok(proc)
    }

    fn carry_out(&mut self, command: &Command) -> Result<Outcome, ProcError> {
        match command {
            Command::Setup(File { file }) => {
                let _lock = lock(file)?;
                let proc = self.load(file)?;
                Ok(Outcome::SetUp { done: proc::setup(&proc)?, build_url: proc.data().build_url.clone() })
            }
            Command::Run { file: File { file }, log, log_max_bytes, log_backups, status_file } => {
                let _lock = lock(file)?;
                let log = log.clone().map(|path| LogFile {
                    path,
                    max_bytes: *log_max_bytes,
                    backups: *log_backups,
                });
                let shares_output = log.is_none();
                let options = RunOptions { log, status_file: status_file.clone() };
                Ok(Outcome::Ran { end: proc::run(&self.load(file)?, &options)?, shares_output })
            }
            Command::Uptest { file: File { file }, test_timeout } => {
                let limit = Duration::from_secs(*test_timeout);
                Ok(Outcome::Tested(proc::uptest(&self.load(file)?, limit)?))
            }
            Command::Shell(File { file }) => Ok(Outcome::Looked(proc::shell(&self.load(file)?)?)),
            Command::Teardown(File { file }) => {
                let _lock = lock(file)?;
                let done = proc::teardown_file(file, &VrRoot::from_env())?;
                self.proc = Some(done.name.clone());
                Ok(Outcome::TornDown(done))
            }
            Command::Check => Ok(Outcome::Checked(check::check(&VrRoot::from_env(), self.engine))),
            &Command::Cleanup { unused_for, tarballs_unused_for, dry_run } => {
                let what = CleanUp { unused_for, tarballs_unused_for, dry_run };
                Ok(Outcome::CleanedUp(proc::clean_up(&VrRoot::from_env(), &what)?))
            }
        }
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "expected a number and a unit, such as 90m, 12h or 7d".to_owned())
}

fn lock(file: &Path) -> Result<FileLock, LockError> {
    FileLock::existing(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        for (name, variant) in [("vrun", Variant::AsTheFileSays), ("vrun_precise", Variant::HostFolders)] {
            command(name, variant).debug_assert();
        }
    }
}
