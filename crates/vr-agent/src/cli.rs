//! The command line of `vr-agent`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use vr_common::exit;

use crate::check::check;
use crate::error::ServeError;
use crate::serve::serve;
use crate::settings::{Flags, Settings};

/// Supervises the procs of a host and answers the server.
#[derive(Parser)]
#[command(name = "vr-agent", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT; the procs outlive it.
    Serve(Serve),
    /// Find out what this host lacks; with the flags of `serve`, also whether that would work.
    Check {
        #[command(flatten)]
        serve: Serve,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct Serve {
    /// A YAML file with any of the other options, by their names: `token-file: /etc/velociraptor/agent.token`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

impl Serve {
    fn flags(self) -> Result<Flags, ServeError> {
        match &self.config {
            Some(file) => self.flags.or_file(file),
            None => Ok(self.flags),
        }
    }

    fn settings(self) -> Result<Settings, ServeError> {
        self.flags()?.settings()
    }
}

/// The arguments, for their parser, completions and manual pages.
pub fn command() -> clap::Command {
    CommandLine::command()
}

/// Parses the arguments, carries them out, and says why it ended.
pub fn main() -> ExitCode {
    match CommandLine::parse().command {
        Command::Serve(flags) => {
            vr_common::log::init_service("info");
            // Two threads do for hundreds of procs; the other ones wait for disks.
            run(2, async { serve(flags.settings()?).await.map(|()| ExitCode::SUCCESS) })
        }
        Command::Check { serve, json } => {
            vr_common::log::init_tool("error");
            run(1, async move {
                let done = check(serve.flags()?, json).await;
                match done.map_err(|source| ServeError::System { what: "print what was found", source })? {
                    true => Ok(ExitCode::SUCCESS),
                    false => Ok(ExitCode::from(exit::FAILED)),
                }
            })
        }
    }
}

fn run(threads: usize, work: impl Future<Output = Result<ExitCode, ServeError>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(16)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => return exit::report(&e, Some("the agent needs threads and epoll"), exit::FAILED),
    };
    let done = runtime.block_on(work);
    // A disk that hangs must not keep the agent from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match done {
        Ok(code) => code,
        Err(e) if e.is_bad_input() => exit::report(&e, None, exit::BAD_INPUT),
        Err(e) => exit::report(&e, None, exit::FAILED),
    }
}
