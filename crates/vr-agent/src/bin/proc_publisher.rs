//! `proc_publisher`: Supervisor's event listener that tells Redis what procs do.

use std::process::ExitCode;

fn main() -> ExitCode {
    vr_agent::publisher::cli::main()
}
