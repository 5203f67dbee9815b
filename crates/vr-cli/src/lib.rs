//! Operators' commands: what `vr-cli` does, without its process.
//!
//! This crate knows the HTTP API and nothing else: no host, no container, no store. Data goes to standard
//! output, talk to standard error, so that every command can stand in a pipe.

pub mod args;
pub mod builds;
pub mod dispatches;
pub mod error;
pub mod events;
pub mod login;
pub mod output;
pub mod patience;
pub mod procs;
pub mod select;
pub mod swarms;

use args::{Arguments, Command};
use error::CliError;
use output::Output;

/// How a command that could do its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it worked.
    Done,
    /// Some of it failed, and the reasons were printed.
    Failed,
}

/// Runs one command.
pub fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    let output = Output::new(arguments.json);
    // Bad patterns and names are refused before anybody is asked for a password.
    match &arguments.command {
        Command::ListSwarms(args) => swarms::list(&args.pattern.parse()?, &output, login::client(arguments)?),
        Command::Swarm(args) => swarms::Request::new(args)?.run(&output, login::client(arguments)?),
        Command::Build(args) => builds::Request::new(args)?.run(&output, login::client(arguments)?),
        Command::Procs(args) => procs::Request::new(args)?.run(&output, login::client(arguments)?),
        Command::Events(args) => events::run(args, &output, login::client(arguments)?),
    }
}
