//! `vr-balancer`: pools of balancers from the command line, and the built-in proxy.

use std::process::ExitCode;

fn main() -> ExitCode {
    vr_balancer::cli::main()
}
