//! A folder for one run. It is removed when its owner is done with it; what an owner that was killed left behind is
//! removed by the next one.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use vr_common::archive::remove_tree;
use vr_common::lock::FileLock;
use vr_common::process::end_left_behind;

/// How often to try another name.
const ATTEMPTS: usize = 100;

/// The folder. Dropping it removes it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    // Held for as long as the folder is in use; the kernel lets go of it when we die.
    _lock: FileLock,
}

impl Scratch {
    /// Makes a new folder in `parent`, for root alone, and removes those whose owners are gone.
    pub fn create(parent: &Path) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        remove_leftovers(parent)?;
        for _ in 0..ATTEMPTS {
            let path = parent.join(random_name());
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            // Between the two steps another process may have taken the new folder for a leftover. It can do so only
            // with the lock, so either the lock is refused, or the folder is gone from its name.
            let Ok(lock) = FileLock::existing(&path) else { continue };
            if lock.file().metadata().ok().map(|m| m.ino())
                == fs::symlink_metadata(&path).ok().map(|m| m.ino())
            {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(io::Error::other("no new folder could be made"))
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a folder in it, mode 0755, and gives its path.
    pub fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        DirBuilder::new().mode(0o755).create(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "cannot remove the scratch folder");
        }
    }
}

/// Eight hexadecimal digits.
fn random_name() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    format!("{:08x}", RandomState::new().build_hasher().finish() as u32)
}

fn remove_leftovers(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            continue;
        }
        if let Ok(_lock) = FileLock::existing(&path) {
            // The owner was killed. What it had started would go on with what others use from now on.
            end_left_behind();
            // A folder that cannot be removed must not stop the next run.
            if let Err(error) = remove_tree(&path) {
                tracing::warn!(folder = %path.display(), %error, "cannot remove what a killed run left");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_folder_stays_and_a_dead_one_goes() {
        let parent = tempfile::tempdir().unwrap();
        let dead = parent.path().join("dead");
        fs::create_dir_all(dead.join("sub/folder")).unwrap();
        fs::write(dead.join("sub/file"), "x").unwrap();
        let first = Scratch::create(parent.path()).unwrap();
        assert!(!dead.exists());
        fs::write(first.path().join("mine"), "x").unwrap();
        let second = Scratch::create(parent.path()).unwrap();
        assert!(first.path().join("mine").exists() && second.path() != first.path());
        drop((first, second));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
