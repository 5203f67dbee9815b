//! Result files, which are there whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes a file, mode 0644, aside and renames it into place.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    place(path, |aside| aside.write_all(bytes))
}

/// Moves a finished file, mode 0644, to where it is wanted, over an older one; from another file system it is copied aside
/// and renamed.
pub fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            place(to, |aside| io::copy(&mut File::open(from)?, aside).map(drop))?;
            fs::remove_file(from)
        }
        done => done,
    }
}

fn place(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut aside = tempfile::NamedTempFile::new_in(folder)?;
    write(aside.as_file_mut())?;
    aside.as_file().set_permissions(Permissions::from_mode(0o644))?;
    aside.as_file().sync_all()?;
    aside.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Removes a file; one that is missing is fine.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn files_are_moved_within_and_between_file_systems() {
        let here = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
        for folder in [&here, &elsewhere] {
            let (from, to) = (here.path().join("from"), folder.path().join("to"));
            write_whole(&from, b"new").unwrap();
            fs::write(&to, "old, and longer").unwrap();
            move_file(&from, &to).unwrap();
            assert_eq!(fs::read(&to).unwrap(), b"new");
            assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o644);
            assert!(!from.exists());
        }
    }
}
