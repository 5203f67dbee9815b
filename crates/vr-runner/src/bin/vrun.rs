//! `vrun`: runs procs, in the OS image that their file names or in the host's own system folders.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = vr_runner::container::run_from_a_copy() {
        eprintln!("ERROR: cannot start from a copy in memory that no container can change: {error}");
        return ExitCode::FAILURE;
    }
    vr_runner::cli::main("vrun", vr_runner::proc::Variant::AsTheFileSays)
}
