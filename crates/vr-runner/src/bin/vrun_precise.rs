//! `vrun_precise`: runs procs in the host's own system folders, whatever image their file names.

use std::process::ExitCode;

fn main() -> ExitCode {
    vr_runner::cli::main("vrun_precise", vr_runner::proc::Variant::HostFolders)
}
