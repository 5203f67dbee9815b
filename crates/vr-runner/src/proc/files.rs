//! Writing the few files of a proc: whole or not at all, and never through a link, as the folder that they go
//! to is the container's root and its app may have left anything there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchmod, fchown, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::ProcError;

/// Who may do what with a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    /// The permission bits.
    pub mode: u32,
    /// Its group; the owner is root.
    pub group: u32,
}

/// Makes `folder` with the given mode if it is missing; something else in its place is an error.
pub(super) fn make_folder(folder: &Path, mode: u32) -> Result<(), ProcError> {
    let error = |source| ProcError::Io { step: "make the folder", path: folder.to_owned(), source };
    match fs::create_dir(folder) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(error(e)),
    }
    let opened = open_folder(folder).map_err(error)?;
    fchmod(&opened, Mode::from_raw_mode(mode)).map_err(|e| error(e.into()))
}

/// Opens a folder that is not a link.
pub(super) fn open_folder(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::empty())?)
}

/// Puts a file into a folder under its final name, once it is whole and on disk.
pub(super) fn write_file(folder: &Path, name: &str, content: &[u8], access: Access) -> Result<(), ProcError> {
    let write = || -> io::Result<()> {
        let folder = open_folder(folder)?;
        let aside = format!(".{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Whoever was killed while writing left this behind; the proc's lock keeps everybody else out.
        remove_name(&folder, &aside)?;
        let mut file = File::from(openat(&folder, &aside, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(content)?;
        fchown(&file, Some(Uid::ROOT), Some(Gid::from_raw(access.group)))?;
        fchmod(&file, Mode::from_raw_mode(access.mode))?;
        file.sync_all()?;
        renameat(&folder, &aside, &folder, name)?;
        Ok(())
    };
    write().map_err(|source| ProcError::Io { step: "write", path: folder.join(name), source })
}

fn remove_name(folder: impl AsFd, name: &str) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_replaces_a_link_and_not_what_the_link_points_to() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        let folder = dir.path().join("rootfs");
        make_folder(&folder, 0o755).unwrap();
        symlink(&victim, folder.join("env.sh")).unwrap();
        symlink(&victim, folder.join(".env.sh.new")).unwrap();
        write_file(&folder, "env.sh", b"new", Access { mode: 0o640, group: 65534 }).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        let made = fs::symlink_metadata(folder.join("env.sh")).unwrap();
        assert!(made.is_file());
        assert_eq!(made.permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_link_in_place_of_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/", dir.path().join("rootfs")).unwrap();
        assert!(make_folder(&dir.path().join("rootfs"), 0o755).is_err());
        let access = Access { mode: 0o644, group: 0 };
        assert!(write_file(&dir.path().join("rootfs"), "proc.sh", b"", access).is_err());
    }
}
