//! The command line of `vr-agent`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use vr_common::exit;
use vr_common::names::HostName;

use crate::address::ListenAddress;
use crate::serve::{Settings, serve};

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
}

#[derive(Args)]
struct Serve {
    /// The folder of this host's builds, images and procs.
    #[arg(long, env = "VR_ROOT", default_value = "/apps", value_name = "DIR")]
    root: PathBuf,
    /// Where to listen: ADDRESS:PORT, with port 0 for a free one, or unix:/absolute/path.sock.
    #[arg(long, default_value = "127.0.0.1:9002", value_name = "ADDRESS")]
    listen: ListenAddress,
    /// The host's name, shown with every proc.
    #[arg(long, value_name = "NAME")]
    host: HostName,
    /// A file with the token that every request needs.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Where the agent keeps notes of its own; `agent` below the root by default.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where to write {"address": "ADDRESS", "pid": N} once requests are taken.
    #[arg(long, value_name = "FILE")]
    address_file: Option<PathBuf>,
}

/// The arguments, for their parser, completions and manual pages.
pub fn command() -> clap::Command {
    CommandLine::command()
}

/// Parses the arguments, serves, and says why it ended.
pub fn main() -> ExitCode {
    let Command::Serve(serve_args) = CommandLine::parse().command;
    vr_common::log::init_service("info");

    // Two threads do for hundreds of procs; the other ones wait for disks.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => return exit::report(&e, Some("the agent needs threads and epoll"), exit::FAILED),
    };
    let Serve { root, listen, host, token_file, state_dir, address_file } = serve_args;
    let served =
        runtime.block_on(serve(Settings { root, listen, host, token_file, state_dir, address_file }));
    // A disk that hangs must not keep the agent from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.is_bad_input() => exit::report(&e, None, exit::BAD_INPUT),
        Err(e) => exit::report(&e, None, exit::FAILED),
    }
}
