//! `vimage`: makes OS images.

use std::process::ExitCode;

fn main() -> ExitCode {
    vr_imager::cli::main()
}
