//! Result files, which are there whole or not at all.

use std::ffi::OsString;
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

/// The name of the file aside is always the same, so that one that a killed run left goes with the next. Nobody else may
/// be writing the same file.
fn place(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let aside = path.with_file_name(name);
    remove_file(&aside)?;
    let written = || -> io::Result<()> {
        let mut file = File::create_new(&aside)?;
        write(&mut file)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    written().inspect_err(|_| drop(remove_file(&aside)))
}

/// Whether both paths lead to one file, through links or not. Not when either leads nowhere.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    let ends = (fs::canonicalize(one), fs::canonicalize(other));
    matches!(ends, (Ok(one), Ok(other)) if one == other)
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
    fn a_file_is_the_same_by_any_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "").unwrap();
        fs::write(path("other"), "").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        for (one, other, expected) in [
            ("file", "./file", true),
            ("file", "link", true),
            ("file", "other", false),
            ("none", "none", false),
        ] {
            assert_eq!(is_same_file(&path(one), &path(other)), expected, "{one} and {other}");
        }
    }

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
