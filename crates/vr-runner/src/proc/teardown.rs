//! `teardown`: everything of a proc removed from the host, but for tarballs, builds and images that others may share.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vr_common::archive::remove_tree;
use vr_common::exit;
use vr_common::lock::LockError;
use vr_common::paths::VrRoot;

use super::record::Record;
use super::{CleanUp, ProcError, clean_up, layer, lock_folder, name};
use crate::container::clear_left_groups;

/// How long an unpacked build is kept for a proc to come, such as the next release of the same version.
const KEEP_BUILDS_FOR: Duration = Duration::from_secs(24 * 3600);

/// What a teardown did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornDown {
    /// The proc's name.
    pub name: String,
    /// The folder that it had.
    pub folder: PathBuf,
    /// Whether there was anything to remove.
    pub removed: bool,
}

/// Removes the folder of a file's proc; one that is gone already is no error. The proc must not be running. Only the keys
/// that its name is made of have to make sense.
pub fn teardown_file(file: &Path, root: &VrRoot) -> Result<TornDown, ProcError> {
    let name = name::read(file)?;
    let folder = root.proc_dir(&name);
    let lock = match lock_folder(&folder) {
        Err(ProcError::Lock(LockError::Io { source, .. })) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(TornDown { name, folder, removed: false });
        }
        taken => taken?,
    };
    clear_left_groups();
    if let Ok(Some(key)) = Record::read_layer(&folder) {
        layer::was_used_until_now(root, &key);
    }
    remove_tree(&folder).map_err(|source| ProcError::Io { step: "remove", path: folder.clone(), source })?;
    drop(lock);
    tidy(root);
    Ok(TornDown { name, folder, removed: true })
}

/// Now and then somebody has to; that it cannot be done is no reason for a teardown to fail.
fn tidy(root: &VrRoot) {
    let failures = match clean_up(root, &CleanUp::builds(KEEP_BUILDS_FOR)) {
        Ok(done) => done.failures,
        Err(error) => vec![error],
    };
    for error in failures {
        tracing::warn!(error = exit::chain(&error), "not everything unused was removed");
    }
}
