//! The command line of `proc_publisher`.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use vr_common::{exit, log};

use super::{PublisherError, Settings, run};

/// Publishes the state changes of a host's procs to Redis. Supervisor starts it, as an event listener.
#[derive(Parser)]
#[command(
    name = "proc_publisher",
    version,
    after_help = "Environment:
  REDIS_URL               where to publish, such as redis://localhost:6379/0
  HOSTNAME                the host's name in messages; its fully qualified name by default
  SUPERVISOR_SERVER_URL   set by Supervisor itself
  SUPERVISOR_USERNAME, SUPERVISOR_PASSWORD
                          if Supervisor's server asks for them
  RUST_LOG                how much to log on standard error; info by default"
)]
struct CommandLine {}

/// The arguments, for their parser, completions and manual pages.
pub fn command() -> clap::Command {
    CommandLine::command()
}

/// Reads the settings, publishes, and says why it ended.
pub fn main() -> ExitCode {
    let CommandLine {} = CommandLine::parse();
    // Standard output belongs to the protocol; standard error becomes a log file.
    log::init_service("info");

    let settings = match Settings::read(|name| std::env::var_os(name)) {
        Ok(settings) => settings,
        Err(e) => {
            let hint = "run it from an [eventlistener:proc_publisher] section of supervisord.conf";
            return exit::report(&e, Some(hint), exit::BAD_INPUT);
        }
    };
    match run(settings, std::io::stdin().lock(), std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e @ PublisherError::Protocol(_)) => {
            exit::report(&e, Some("Supervisor starts the listener again"), exit::FAILED)
        }
        Err(e) => exit::report(&e, None, exit::FAILED),
    }
}
