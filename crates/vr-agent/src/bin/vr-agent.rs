//! `vr-agent`: the daemon of a host.

use std::process::ExitCode;

fn main() -> ExitCode {
    vr_agent::cli::main()
}
