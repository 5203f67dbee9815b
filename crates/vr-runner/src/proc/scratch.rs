//! A throw-away upper folder for a container beside the running one: two overlays may not write to the same one,
//! so an uptest or a shell writes to its own, over everything that the proc's own has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vr_common::archive::remove_tree;
use vr_common::lock::{FileLock, LockError};

use super::{Proc, ProcError};
use crate::container::RootFs;

const PREFIX: &str = "scratch-";
/// Held while scratch folders are made and cleared away, so that a new one is never taken for a left one.
const LOCK: &str = ".scratch.lock";

/// Removes itself when dropped; what a killed command left is removed by the next one.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    _lock: FileLock,
}

impl Scratch {
    fn create(proc_folder: &Path) -> Result<Self, ProcError> {
        let io_error =
            |source| ProcError::Io { step: "make a scratch folder in", path: proc_folder.to_owned(), source };
        let _only_one = FileLock::wait(&proc_folder.join(LOCK), || {})?;
        clear_left(proc_folder)?;
        let folder =
            tempfile::Builder::new().prefix(PREFIX).tempdir_in(proc_folder).map_err(io_error)?.keep();
        let lock = FileLock::existing(&folder)?;
        for part in ["upper", "work"] {
            fs::create_dir(folder.join(part)).map_err(io_error)?;
        }
        // The upper folder's mode becomes that of the container's `/`.
        super::files::make_folder(&folder.join("upper"), 0o755)?;
        Ok(Self { folder, _lock: lock })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot remove a scratch folder");
        }
    }
}

fn clear_left(proc_folder: &Path) -> Result<(), ProcError> {
    let io_error =
        |source| ProcError::Io { step: "clear scratch folders of", path: proc_folder.to_owned(), source };
    for entry in fs::read_dir(proc_folder).map_err(io_error)? {
        let entry = entry.map_err(io_error)?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        match FileLock::existing(&entry.path()) {
            Ok(_nobody_uses_it) => remove_tree(&entry.path()).map_err(io_error)?,
            Err(LockError::Held(_)) => {}
            // Its user has just removed it.
            Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes what killed commands left.
pub(super) fn clear(proc: &Proc) -> Result<(), ProcError> {
    let _only_one = FileLock::wait(&proc.folder().join(LOCK), || {})?;
    clear_left(&proc.folder())
}

/// A root for a container beside the proc's own; keep the second value for as long as it runs.
pub(super) fn root_beside(proc: &Proc) -> Result<(RootFs, Option<Scratch>), ProcError> {
    let Some(image) = &proc.image else {
        return Ok((RootFs::HostBinds { rootfs: proc.rootfs() }, None));
    };
    let scratch = Scratch::create(&proc.folder())?;
    let root = RootFs::Overlay {
        lowers: vec![proc.rootfs(), image.clone()],
        upper: scratch.folder.join("upper"),
        work: scratch.folder.join("work"),
    };
    Ok((root, Some(scratch)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_command_left_goes_and_what_is_in_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("scratch-left");
        fs::create_dir_all(left.join("upper/deep")).unwrap();
        let one = Scratch::create(dir.path()).unwrap();
        assert!(!left.exists());
        let two = Scratch::create(dir.path()).unwrap();
        assert!(one.folder.join("upper").is_dir() && two.folder.join("work").is_dir());
        let folder = one.folder.clone();
        drop(one);
        assert!(!folder.exists() && two.folder.exists());
    }
}
