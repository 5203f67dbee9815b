//! `shell`: a look into a container like the proc's own.

use super::root::{View, root};
use super::{Proc, ProcError};
use crate::container::{ExitStatus, run_in_the_foreground};

/// The best shell that the root has.
const SHELL: [&str; 3] = ["/bin/sh", "-c", "if [ -x /bin/bash ]; then exec /bin/bash; else exec /bin/sh; fi"];

/// Runs a shell with the proc's environment until it ends, and returns how it ended.
pub fn shell(proc: &Proc) -> Result<ExitStatus, ProcError> {
    let record = proc.record()?;
    let (root, _held) = root(proc, &record, View::Beside)?;
    let mut spec = proc.container("-shell", root, &record, &SHELL)?;
    if let Some(terminal) = std::env::var_os("TERM") {
        spec.program = spec.program.env("TERM", terminal);
    }
    Ok(run_in_the_foreground(spec)?)
}
