//! Writing the few files of a proc: whole or not at all, and never through a link, as the folder that they go
//! to is the container's root and its app may have left anything there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchmod, fchown, fsync, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use vr_common::archive::remove_tree;

use super::ProcError;

/// Who may do what with a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    /// The permission bits.
    pub mode: u32,
    /// Its group; the owner is root. Without root's rights, both are the caller's.
    pub group: u32,
}

impl Access {
    fn owner(self) -> (u32, u32) {
        match geteuid().is_root() {
            true => (0, self.group),
            false => (geteuid().as_raw(), getegid().as_raw()),
        }
    }
}

/// Whether a file has to be on disk before anybody goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durable {
    /// It has: after a power cut it is there as a whole.
    Yes,
    /// It is written anew when a power cut took it.
    No,
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

/// Puts a file into a folder under its final name, once it is whole.
pub(super) fn write_file(
    folder: &Path,
    name: &str,
    content: &[u8],
    access: Access,
    durable: Durable,
) -> Result<(), ProcError> {
    let write = || -> io::Result<()> {
        let folder = open_folder(folder)?;
        let aside = format!(".{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Whoever was killed while writing left this behind; the proc's lock keeps everybody else out.
        remove_name(&folder, &aside)?;
        let mut file = File::from(openat(&folder, &aside, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(content)?;
        let (uid, gid) = access.owner();
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        fchmod(&file, Mode::from_raw_mode(access.mode))?;
        if durable == Durable::Yes {
            file.sync_all()?;
        }
        match renameat(&folder, &aside, &folder, name) {
            Err(Errno::ISDIR) => {
                remove_name(&folder, name)?;
                renameat(&folder, &aside, &folder, name)?;
            }
            done => done?,
        }
        if durable == Durable::Yes {
            fsync(&folder)?;
        }
        Ok(())
    };
    write().map_err(|source| ProcError::Io { step: "write", path: folder.join(name), source })
}

/// Whether a folder has a file of this name that is exactly as [`write_file`] would write it.
pub(super) fn holds(folder: &Path, name: &str, content: &[u8], access: Access) -> bool {
    let look = || -> io::Result<bool> {
        // Opening a named pipe would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(openat(open_folder(folder)?, name, flags, Mode::empty())?);
        let found = file.metadata()?;
        if !found.is_file()
            || found.len() != content.len() as u64
            || found.mode() & 0o7777 != access.mode
            || (found.uid(), found.gid()) != access.owner()
        {
            return Ok(false);
        }
        let mut there = Vec::with_capacity(content.len() + 1);
        file.take(found.len() + 1).read_to_end(&mut there)?;
        Ok(there == content)
    };
    look().unwrap_or(false)
}

/// Gives a folder or file to somebody; without root's rights it stays the caller's.
pub(super) fn give_away(path: &Path, uid: u32, gid: u32) -> Result<(), ProcError> {
    if !geteuid().is_root() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(|source| ProcError::Io {
        step: "give away",
        path: path.to_owned(),
        source,
    })
}

/// Removes whatever has the name: an app with root's rights may have left a whole folder there.
fn remove_name(folder: &OwnedFd, name: &str) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // By the open folder, which is none that a link leads to.
        Err(Errno::ISDIR) => {
            remove_tree(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
        }
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
        let access = Access { mode: 0o640, group: 65534 };
        assert!(!holds(&folder, "env.sh", b"untouched", access));
        write_file(&folder, "env.sh", b"new", access, Durable::Yes).unwrap();
        assert!(holds(&folder, "env.sh", b"new", access));
        for (content, mode, group) in [("old", 0o640, 65534), ("new", 0o644, 65534), ("new", 0o640, 0)] {
            assert!(!holds(&folder, "env.sh", content.as_bytes(), Access { mode, group }));
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        let made = fs::symlink_metadata(folder.join("env.sh")).unwrap();
        assert!(made.is_file());
        assert_eq!(made.permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_file_replaces_a_folder_with_all_that_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("file"), "untouched").unwrap();
        let folder = dir.path().join("rootfs");
        for name in ["env.sh/inner", ".env.sh.new/inner"] {
            fs::create_dir_all(folder.join(name)).unwrap();
            symlink(&victim, folder.join(name).join("link")).unwrap();
        }
        let access = Access { mode: 0o640, group: 0 };
        assert!(!holds(&folder, "env.sh", b"new", access));
        write_file(&folder, "env.sh", b"new", access, Durable::Yes).unwrap();
        assert!(holds(&folder, "env.sh", b"new", access));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "untouched");
    }

    #[test]
    fn a_link_in_place_of_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/", dir.path().join("rootfs")).unwrap();
        assert!(make_folder(&dir.path().join("rootfs"), 0o755).is_err());
        let access = Access { mode: 0o644, group: 0 };
        assert!(write_file(&dir.path().join("rootfs"), "proc.sh", b"", access, Durable::No).is_err());
    }
}
