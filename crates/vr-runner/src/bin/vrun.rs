//! `vrun`: runs procs, in the OS image that their file names or in the host's own system folders.

use std::process::ExitCode;

fn main() -> ExitCode {
    vr_runner::cli::main("vrun", vr_runner::proc::Variant::AsTheFileSays)
}
