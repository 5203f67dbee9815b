//! `proc.lxc`: the proc's container in LXC's words, for people and tools that start it with `lxc-start` themselves. What
//! the engine `lxc` tells LXC is the same, anew at each start.

use rustix::process::geteuid;
use vr_common::exit;

use super::record::Record;
use super::root::{View, root};
use super::{Proc, ProcError};
use crate::container::{Engine, write_lxc_config};

/// LXC's configuration, and the system call policy that it names.
const CONFIG: &str = "proc.lxc";
const POLICY: &str = "proc.seccomp";

/// Writes both. With another engine, nothing depends on them.
pub(super) fn write(proc: &Proc, record: &Record) -> Result<(), ProcError> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let folder = proc.folder();
    let (root, _held) = root(proc, record, View::Own)?;
    let spec = proc.container("", root, record, &["run"])?;
    match write_lxc_config(&spec, &folder.join(CONFIG), &folder.join(POLICY)) {
        Err(error) if proc.engine != Engine::Lxc => {
            tracing::info!(error = exit::chain(&error), "there is no {CONFIG}");
            Ok(())
        }
        done => Ok(done?),
    }
}
