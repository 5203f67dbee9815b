//! Copies of folders, made without following symbolic links and, where the file system can, without copying data.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timestamps, Uid, chownat, fchmod, fchown,
    fstat, futimens, ioctl_ficlone, mkdirat, openat, openat2, readlinkat, statat, symlinkat, utimensat,
};

use super::VcsError;

/// Copies the folder `from` to `to`, which is made when it is missing and must not have any of the files.
///
/// Kept are modes, modification times, symbolic links as such and, for root, owners. Sockets, pipes and devices are
/// left out. Nothing is written through a symbolic link, neither here nor there. The copy is not atomic.
pub fn copy_tree(from: &Path, to: &Path) -> Result<(), VcsError> {
    let fail =
        |action, path: &Path, source: io::Error| VcsError::Io { action, path: path.to_owned(), source };
    let open = |path: &Path| rustix::fs::open(path, FOLDER, Mode::empty());
    let from_root = open(from).map_err(|error| fail("read", from, error.into()))?;
    fs::create_dir_all(to).map_err(|error| fail("make", to, error))?;
    let to_root = open(to).map_err(|error| fail("write", to, error.into()))?;
    let copier = Copier { from_root, to_root, keep_owner: rustix::process::geteuid().is_root() };

    // Folders get their modes and times last, and the deepest first: a read-only one must still be filled.
    let mut folders = vec![PathBuf::new()];
    let mut next = 0;
    while let Some(folder) = folders.get(next).cloned() {
        next += 1;
        copier.folder(&folder, &mut folders).map_err(|(name, error)| {
            fail("copy", &from.join(&folder).join(OsStr::from_bytes(&name)), error)
        })?;
    }
    for folder in folders.iter().rev() {
        copier.finish_folder(folder).map_err(|error| fail("copy", &from.join(folder), error))?;
    }
    Ok(())
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

struct Copier {
    from_root: OwnedFd,
    to_root: OwnedFd,
    keep_owner: bool,
}

/// The name of the entry that failed, and why.
type EntryError = (Vec<u8>, io::Error);

impl Copier {
    fn folder(&self, folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), EntryError> {
        let at_folder = |error: io::Error| (Vec::new(), error);
        let from = open_below(&self.from_root, folder).map_err(at_folder)?;
        let to = open_below(&self.to_root, folder).map_err(at_folder)?;
        for entry in Dir::read_from(&from).map_err(|error| at_folder(error.into()))? {
            let entry = entry.map_err(|error| at_folder(error.into()))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let is_folder = self.entry(&from, &to, name).map_err(|error| (name.to_vec(), error))?;
            if is_folder {
                found.push(folder.join(OsStr::from_bytes(name)));
            }
        }
        Ok(())
    }

    /// Copies one entry; a folder is only made, and reported with `true`.
    fn entry(&self, from: &OwnedFd, to: &OwnedFd, name: &[u8]) -> io::Result<bool> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let target = fstat(&self.to_root)?;
                if (stat.st_dev, stat.st_ino) == (target.st_dev, target.st_ino) {
                    return Err(io::Error::other("the copy would be inside of what is copied"));
                }
                match mkdirat(to, name, Mode::RWXU) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                return Ok(true);
            }
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new())?;
                symlinkat(target.as_c_str(), to, name)?;
                if self.keep_owner {
                    let (uid, gid) = owner(&stat);
                    chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                }
                utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            FileType::RegularFile => {
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let source = File::from(openat(from, name, read, Mode::empty())?);
                let write =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let target = File::from(openat(to, name, write, Mode::RUSR | Mode::WUSR)?);
                // From the open file: the name may stand for another one by now.
                let stat = fstat(&source)?;
                if ioctl_ficlone(&target, &source).is_err() {
                    io::copy(&mut &source, &mut &target)?;
                }
                self.finish(&target, &stat)?;
            }
            _ => {}
        }
        Ok(false)
    }

    fn finish_folder(&self, folder: &Path) -> io::Result<()> {
        let stat = fstat(open_below(&self.from_root, folder)?)?;
        self.finish(&open_below(&self.to_root, folder)?, &stat)
    }

    fn finish(&self, target: impl AsFd, stat: &Stat) -> io::Result<()> {
        if self.keep_owner {
            let (uid, gid) = owner(stat);
            fchown(&target, uid, gid)?;
        }
        fchmod(&target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        futimens(&target, &times(stat))?;
        Ok(())
    }
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn times(stat: &Stat) -> Timestamps {
    let at = |seconds, nanoseconds: u64| rustix::fs::Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
    };
    Timestamps {
        last_access: at(stat.st_atime, stat.st_atime_nsec),
        last_modification: at(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn open_below(root: &OwnedFd, folder: &Path) -> io::Result<OwnedFd> {
    let path = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root, path, FOLDER, Mode::empty(), resolve)?)
}
