//! The project's own commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask bench` and `cargo xtask dist`.

mod bench;
mod debian;
mod demo;
mod dist;
mod steps;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Velociraptor's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a deploy and an upgrade under load on this machine, from a git repository to routed procs.
    Demo {
        /// Leave everything running, and print where it is.
        #[arg(long)]
        keep: bool,
    },
    /// Install what the tests need, then check formatting, lints and every test.
    Test,
    /// Measure, and say which marks were reached.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Build what is installed: the programs, their manual pages and completions, and the sums of all.
    Dist(dist::Dist),
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Demo { keep } => demo::run(keep),
        Command::Test => test::run(),
        Command::Bench(what) => bench::run(&what),
        Command::Dist(what) => dist::run(&what),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ERROR: {error:#}");
            ExitCode::FAILURE
        }
    }
}
