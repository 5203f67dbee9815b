//! The command line of `vbuild`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::json;
use vr_common::build_data::BuildData;
use vr_common::paths::VrRoot;
use vr_common::{exit, log};
use vr_runner::job::{Steps, size};

use crate::{BuildError, BuildOptions, BuildSummary, build, shell};

/// Builds an app with a Heroku-style buildpack, in a container.
#[derive(Debug, Parser)]
#[command(
    name = "vbuild",
    version,
    after_help = "Examples:
  vbuild build my_app.yaml
  vbuild build my_app.yaml --output /tmp/result --timeout 30m
  vbuild shell my_app.yaml

Exit codes: 0 done, 2 bad input, 3 no buildpack matched, 4 compile or release failed, 5 a limit was hit, 1 other failures"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build: leaves build.tar.gz, build_result.yaml and compile.log in the output folder
    Build {
        #[command(flatten)]
        common: Common,
        /// The folder for the three files, made when it is missing
        #[arg(long, value_name = "DIR", default_value = ".")]
        output: PathBuf,
        /// Print the result, or the failure, as one line of JSON at the end of standard output
        #[arg(long)]
        json: bool,
    },
    /// Open a shell in the container of a build, with everything in its place
    Shell {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// The build.yaml, or an earlier build's build_result.yaml
    file: PathBuf,
    /// How long the buildpack may run, and each checkout take
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Start with an empty cache
    #[arg(long)]
    no_cache: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Stop when the program that started this one ends
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

impl Common {
    fn options(&self, output: &Path) -> BuildOptions {
        BuildOptions {
            root: VrRoot::from_env(),
            output: output.to_owned(),
            timeout: self.timeout,
            quiet: self.quiet,
            no_cache: self.no_cache,
            die_with_parent: self.die_with_parent,
        }
    }
}

/// The arguments, for their parser, completions and manual pages.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses the arguments, carries them out, and says what came of it.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (Command::Build { common, .. } | Command::Shell { common }) = &arguments.command;
    log::init_tool(&log::tool_default(common.quiet, 0));
    match &arguments.command {
        Command::Build { common, output, json } => {
            let options = common.options(output);
            let result = load(&common.file).and_then(|data| build(&data, &options));
            if *json {
                print_json(&result);
            }
            match result {
                Ok(summary) => {
                    if !common.quiet {
                        summarise(&summary);
                    }
                    ExitCode::SUCCESS
                }
                Err(error) => fail(&error),
            }
        }
        Command::Shell { common } => {
            let options = common.options(Path::new("."));
            match load(&common.file).and_then(|data| shell(&data, &options)) {
                Ok(status) => ExitCode::from(status.as_exit_code()),
                Err(error) => fail(&error),
            }
        }
    }
}

fn load(file: &Path) -> Result<BuildData, BuildError> {
    Ok(BuildData::load(file)?)
}

fn fail(error: &BuildError) -> ExitCode {
    exit::report(error, error.hint().as_deref(), error.exit_code())
}

fn print_json(result: &Result<BuildSummary, BuildError>) {
    let line = match result {
        Ok(summary) => json!({ "ok": true, "build": summary }),
        Err(error) => json!({ "ok": false, "exit_code": error.exit_code(), "error": exit::chain(error) }),
    };
    // Nobody may be reading any more, which changes nothing of the result.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The steps with their seconds, and what came out.
fn summarise(summary: &BuildSummary) {
    Steps::table(&summary.steps, summary.seconds);
    eprintln!(
        "vbuild: {} {} is built: {} ({}, {} entries, md5 {})",
        summary.app_name,
        summary.version,
        summary.tarball.display(),
        size(summary.bytes),
        summary.entries,
        summary.build_md5,
    );
}
