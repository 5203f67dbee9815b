//! `vr-cli`: operators' commands against a Velociraptor server.

use std::process::ExitCode;

use clap::Parser;
use vr_cli::Outcome;
use vr_cli::args::Arguments;
use vr_common::exit;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match vr_cli::run(&arguments) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(exit::FAILED),
        // The reader has seen enough (`| head`): nothing went wrong.
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => exit::report(&error, error.hint().as_deref(), error.exit_code()),
    }
}
