//! `proc.lxc`: the proc's container in LXC's words, for people and tools that start it with `lxc-start` themselves. What
//! the engine `lxc` tells LXC is the same, anew at each start.

use std::fs;
use std::io;

use rustix::process::geteuid;
use vr_common::exit;

use super::record::Record;
use super::root::{View, root};
use super::{Proc, ProcError};
use crate::container::write_lxc_config;

/// LXC's configuration, and the system call policy that it names.
const CONFIG: &str = "proc.lxc";
const POLICY: &str = "proc.seccomp";

/// Writes both. Nothing depends on them; with a root that LXC cannot use as it is, they are missing.
pub(super) fn write(proc: &Proc, record: &Record) -> Result<(), ProcError> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let folder = proc.folder();
    let (config, policy) = (folder.join(CONFIG), folder.join(POLICY));
    let (root, _held) = root(proc, record, View::Own)?;
    let spec = proc.container("", root, record, &["run"])?;
    if let Err(error) = write_lxc_config(&spec, &config, &policy) {
        tracing::info!(error = exit::chain(&error), "there is no {CONFIG}");
        match fs::remove_file(&config) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(ProcError::Io { step: "remove", path: config, source });
            }
            _ => {}
        }
    }
    Ok(())
}
