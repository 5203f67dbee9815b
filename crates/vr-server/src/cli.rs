//! The command line of `vr-server`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use vr_common::exit::{self, BAD_INPUT, FAILED};

use crate::settings::UpFlags;
use crate::up::{self, UpError};

/// Velociraptor's server: store, API, pages and workers.
#[derive(Debug, Parser)]
#[command(
    name = "vr-server",
    version,
    after_help = "Example:\n  vr-server up --data-dir /var/lib/velociraptor"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything on this machine: the server, an agent for its procs, and a proxy for their traffic.
    ///
    /// Ends with SIGTERM or Ctrl-C; apps and their traffic go on, and the next `up` finds them again.
    Up(UpFlags),
    /// End a server and everything that it has started. The next `up` starts the procs again.
    Down {
        /// The server's data folder.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
}

/// The arguments, for their parser, completions and manual pages.
pub fn command() -> clap::Command {
    Args::command()
}

/// Parses the arguments, carries them out, and says what came of it.
pub fn main() -> ExitCode {
    let args = Args::parse();
    vr_common::log::init_service("info");
    let done = match args.command {
        Command::Up(flags) => run(flags),
        Command::Down { data_dir } => up::down(&data_dir),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let (code, hint) = match &error {
                UpError::Settings(_) | UpError::NoServer(_) => (BAD_INPUT, None),
                UpError::Running(_) => (FAILED, Some("stop it with: vr-server down --data-dir DIR")),
                _ => (FAILED, None),
            };
            exit::report(&error, hint, code)
        }
    }
}

fn run(flags: UpFlags) -> Result<(), UpError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| UpError::System { doing: "start the runtime", source: e.into() })?
        .block_on(up::up(flags))
}
