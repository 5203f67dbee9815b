//! `vr-dist`: writes the manual pages and shell completions of all programs, and lists them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use vr_common::exit;

/// Writes the manual pages and shell completions of all programs, and lists them.
#[derive(Debug, Parser)]
#[command(name = "vr-dist", version)]
struct Arguments {
    /// The folder to write to, laid out like /usr/local
    #[arg(value_name = "DIR")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match vr_dist::write(&Arguments::parse().out) {
        Ok(files) => {
            for file in files {
                println!("{}", file.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => exit::report(&error, None, exit::FAILED),
    }
}
