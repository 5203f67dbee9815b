//! `vr-server`: the control plane.

use std::process::ExitCode;

fn main() -> ExitCode {
    vr_server::cli::main()
}
