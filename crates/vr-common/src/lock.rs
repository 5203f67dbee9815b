//! Locks on files and folders (`flock`), which the kernel releases when their holder dies.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a lock was not taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error("{} is locked by another process.", .0.display())]
    Held(PathBuf),
    /// The file cannot be opened or locked.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A lock; dropping it, or dying, gives it back.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

impl FileLock {
    /// Locks an existing file without waiting.
    pub fn existing(path: &Path) -> Result<Self, LockError> {
        Self::lock(path, OpenOptions::new().read(true))
    }

    /// Locks a file without waiting, and makes it when it is missing.
    pub fn create(path: &Path) -> Result<Self, LockError> {
        Self::lock(path, OpenOptions::new().read(true).append(true).create(true))
    }

    /// Locks a file, made when missing, and waits for as long as another process holds it.
    /// `on_wait` is called once, before the wait.
    pub fn wait(path: &Path, on_wait: impl FnOnce()) -> Result<Self, LockError> {
        match Self::create(path) {
            Err(LockError::Held(_)) => {}
            done => return done,
        }
        on_wait();
        let io_error = |source| LockError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io_error)?;
        file.lock().map_err(io_error)?;
        Ok(Self { file })
    }

    /// Locks an existing file or folder, and waits for as long as anybody else holds it, shared or not.
    /// `on_wait` is called once, before the wait.
    pub fn wait_for_existing(path: &Path, on_wait: impl FnOnce()) -> Result<Self, LockError> {
        match Self::existing(path) {
            Err(LockError::Held(_)) => {}
            done => return done,
        }
        on_wait();
        let io_error = |source| LockError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io_error)?;
        file.lock().map_err(io_error)?;
        Ok(Self { file })
    }

    /// Locks an existing file or folder together with others who do the same, and waits for as long as somebody has
    /// it alone. `on_wait` is called once, before the wait.
    pub fn shared(path: &Path, on_wait: impl FnOnce()) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io_error)?;
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                on_wait();
                file.lock_shared().map_err(io_error)?;
            }
            Err(TryLockError::Error(source)) => return Err(io_error(source)),
        }
        Ok(Self { file })
    }

    /// Whether `path` still names what is locked. Where holders remove or replace what they hold, a lock may have
    /// been waited for that is now one on something without a name.
    pub fn is_on(&self, path: &Path) -> bool {
        let name = |found: fs::Metadata| (found.dev(), found.ino());
        match (self.file.metadata(), fs::metadata(path)) {
            (Ok(locked), Ok(there)) => name(locked) == name(there),
            _ => false,
        }
    }

    fn lock(path: &Path, how: &OpenOptions) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io { path: path.to_owned(), source };
        let file = how.open(path).map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(io_error(source)),
        }
    }

    /// The locked file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proc.yaml");
        let first = FileLock::create(&path).unwrap();
        let error = FileLock::existing(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("{} is locked by another process.", path.display()));
        drop(first);
        FileLock::existing(&path).unwrap();
    }

    #[test]
    fn many_share_a_folder_and_nobody_has_it_alone_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder");
        fs::create_dir(&path).unwrap();
        let never = || panic!("nobody has it alone");
        let one = FileLock::shared(&path, never).unwrap();
        let two = FileLock::shared(&path, never).unwrap();
        drop(one);
        assert!(matches!(FileLock::existing(&path), Err(LockError::Held(_))));
        assert!(two.is_on(&path));
        fs::rename(&path, dir.path().join("moved")).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(!two.is_on(&path) && two.is_on(&dir.path().join("moved")));
        drop(two);
        let alone = FileLock::wait_for_existing(&path, never).unwrap();
        let mut waited = false;
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let waiting = scope.spawn(|| FileLock::shared(&path, move || tell.send(()).unwrap()).unwrap());
            waited = told.recv().is_ok();
            drop(alone);
            waiting.join().unwrap();
        });
        assert!(waited);
    }
}
