//! `vbuild`: builds an app with a buildpack.

use std::process::ExitCode;

fn main() -> ExitCode {
    vr_builder::cli::main()
}
