//! `teardown`: everything of a proc removed from the host, but for tarballs and images that others may share.

use std::io;

use vr_common::archive::remove_tree;
use vr_common::lock::LockError;

use super::{Proc, ProcError};
use crate::container::clear_left_groups;

/// Removes a proc's folder; one that is gone already is no error. The proc must not be running.
pub fn teardown(proc: &Proc) -> Result<(), ProcError> {
    let folder = proc.folder();
    let _lock = match proc.lock_folder() {
        Err(ProcError::Lock(LockError::Io { source, .. })) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(());
        }
        taken => taken?,
    };
    clear_left_groups();
    remove_tree(&folder).map_err(|source| ProcError::Io { step: "remove", path: folder, source })
}
