//! A throw-away upper folder for a container beside the running one: two overlays may not write to the same one,
//! so an uptest or a shell writes to its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vr_common::archive::{bytes_in, remove_tree};
use vr_common::lock::{FileLock, LockError};

use super::{Proc, ProcError};

const PREFIX: &str = "scratch-";
/// Held while scratch folders are made and cleared away, so that a new one is never taken for a left one.
const LOCK: &str = ".scratch.lock";

/// Removes itself when dropped; what a killed command left is removed by the next one, once its container is gone as well:
/// that one's first process holds the lock, too.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    _lock: FileLock,
}

impl Scratch {
    pub fn create(proc_folder: &Path) -> Result<Self, ProcError> {
        let io_error =
            |source| ProcError::Io { step: "make a scratch folder in", path: proc_folder.to_owned(), source };
        let _only_one = FileLock::wait(&proc_folder.join(LOCK), || {})?;
        clear_left(proc_folder, false)?;
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

    /// Takes what the container writes.
    pub fn upper(&self) -> PathBuf {
        self.folder.join("upper")
    }

    /// On the same file system, for the kernel's own use.
    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot remove a scratch folder");
        }
    }
}

/// Removes what nobody uses, but with `dry_run`; gives what it was and its size. The caller holds the lock.
fn clear_left(proc_folder: &Path, dry_run: bool) -> Result<Vec<(PathBuf, u64)>, ProcError> {
    let io_error =
        |source| ProcError::Io { step: "clear scratch folders of", path: proc_folder.to_owned(), source };
    let mut cleared = Vec::new();
    for folder in folders(proc_folder).map_err(io_error)? {
        match FileLock::existing(&folder) {
            Ok(_nobody_uses_it) => {
                let bytes = bytes_in(&folder);
                if !dry_run {
                    remove_tree(&folder).map_err(io_error)?;
                }
                cleared.push((folder, bytes));
            }
            Err(LockError::Held(_)) => {}
            // Its user has just removed it.
            Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(cleared)
}

fn folders(proc_folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(proc_folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes what killed commands left.
pub(super) fn clear(proc: &Proc) -> Result<(), ProcError> {
    remove_left(&proc.folder(), false).map(drop)
}

/// The same for a folder in which there may be no proc any more. Nothing is made there: somebody may be removing it.
pub(super) fn remove_left(proc_folder: &Path, dry_run: bool) -> Result<Vec<(PathBuf, u64)>, ProcError> {
    let is_gone = |source: &io::Error| source.kind() == io::ErrorKind::NotFound;
    match folders(proc_folder) {
        Ok(found) if found.is_empty() => return Ok(Vec::new()),
        Err(source) if is_gone(&source) => return Ok(Vec::new()),
        Err(source) => {
            return Err(ProcError::Io { step: "list", path: proc_folder.to_owned(), source });
        }
        Ok(_) => {}
    }
    match FileLock::wait_for_existing(&proc_folder.join(LOCK), || {}) {
        Ok(_only_one) => clear_left(proc_folder, dry_run),
        Err(LockError::Io { source, .. }) if is_gone(&source) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
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
        assert_eq!(remove_left(dir.path(), false).unwrap(), []);
        fs::create_dir_all(&left).unwrap();
        assert_eq!(remove_left(dir.path(), true).unwrap().len(), 1);
        assert!(left.exists());
        let removed = remove_left(dir.path(), false).unwrap();
        assert_eq!(removed.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>(), [left]);
        assert!(two.folder.exists());
        assert_eq!(remove_left(&dir.path().join("missing"), false).unwrap(), []);
    }
}
