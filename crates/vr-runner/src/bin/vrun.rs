//! `vrun`: runs procs, in the OS image that their file names or in the host's own system folders.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = vr_runner::container::run_from_a_copy() {
        // Where the kernel refuses such programs as a whole (`vm.memfd_noexec` of 2), one defence of several is missing.
        eprintln!("WARN: cannot start from a copy in memory that no container can change: {error}");
    }
    vr_runner::cli::main("vrun", vr_runner::proc::Variant::AsTheFileSays)
}
