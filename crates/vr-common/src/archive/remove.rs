//! Removing whole folders.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, chmod, openat2, renameat, unlinkat};
use rustix::io::Errno;

use crate::fetch::aside::{file_name, folder_of, unfinished_prefix};

/// How deep folders are entered one inside the other, each with an open file; deeper ones are first moved up.
const DEEPEST: usize = 64;

/// Removes a file, or a folder with everything in it; one that is missing is fine.
///
/// Symbolic links are removed, never followed. Folders without the right to read or write are given it.
/// Other file systems and bind mounts inside are not entered: they stay, with the folders they are in, and are
/// reported. Everything that can be removed is, also after a failure; the first failure is the error.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let name = CString::new(file_name(path)?.as_bytes())?;
    let parent = match rustix::fs::open(
        folder_of(path),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let Some(root) = remove_or_open(&parent, &name)? else { return Ok(()) };
    let mut first_error = None;
    let mut moved_up = 0;
    loop {
        let before = moved_up;
        let mut removal = Removal { root: &root, moved_up: &mut moved_up, first_error: &mut first_error };
        removal.empty(&root, 0);
        // What was moved up may have been put where the reading had already passed.
        if moved_up == before || first_error.is_some() {
            break;
        }
    }
    if let Some(error) = first_error {
        return Err(error);
    }
    match unlinkat(&parent, &name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What a file or a folder takes on disk, in bytes, about: what cannot be looked at is left out. For people who are
/// to be told what a removal brings.
pub fn bytes_in(path: &Path) -> u64 {
    bytes_in_while(path, |_| true)
}

/// As [`bytes_in`], for as long as `goes_on` says so of what was counted so far.
pub fn bytes_in_while(path: &Path, goes_on: impl Fn(u64) -> bool) -> u64 {
    let mut bytes = 0;
    let mut seen = BTreeSet::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        if found.nlink() > 1 && !found.is_dir() && !seen.insert((found.dev(), found.ino())) {
            continue;
        }
        bytes += found.blocks() * 512;
        if !goes_on(bytes) {
            break;
        }
        if found.is_dir()
            && let Ok(entries) = std::fs::read_dir(&path)
        {
            left.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        }
    }
    bytes
}

/// Removes what killed processes left unfinished beside `target`. The caller holds the lock that keeps others
/// from making anything there.
pub(crate) fn remove_unfinished(target: &Path) -> io::Result<()> {
    let prefix = unfinished_prefix(file_name(target)?);
    for entry in std::fs::read_dir(folder_of(target))? {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

struct Removal<'a> {
    root: &'a OwnedFd,
    moved_up: &'a mut u64,
    first_error: &'a mut Option<io::Error>,
}

impl Removal<'_> {
    fn note(&mut self, name: &CStr, error: io::Error) {
        let shown = OsStr::from_bytes(name.to_bytes()).to_string_lossy().into_owned();
        self.first_error.get_or_insert_with(|| io::Error::new(error.kind(), format!("{shown}: {error}")));
    }

    /// Removes everything inside of an open folder.
    fn empty(&mut self, folder: &OwnedFd, depth: usize) {
        let entries = match Dir::read_from(folder) {
            Ok(entries) => entries,
            Err(error) => return self.note(c".", error.into()),
        };
        for entry in entries {
            let name = match entry {
                Ok(entry) => entry.file_name().to_owned(),
                Err(error) => return self.note(c".", error.into()),
            };
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if let Err(error) = self.entry(folder, &name, depth) {
                self.note(&name, error);
            }
        }
    }

    fn entry(&mut self, folder: &OwnedFd, name: &CStr, depth: usize) -> io::Result<()> {
        let Some(inner) = remove_or_open(folder, name)? else { return Ok(()) };
        if depth >= DEEPEST {
            *self.moved_up += 1;
            let upper_name = format!(".deep-{:016x}-{}", rand::random::<u64>(), self.moved_up);
            return Ok(renameat(folder, name, self.root, upper_name)?);
        }
        self.empty(&inner, depth + 1);
        drop(inner);
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // The reason is already noted.
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.first_error.is_some() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Removes anything but a folder; opens a folder, and makes it accessible where it is not.
fn remove_or_open(parent: &OwnedFd, name: &CStr) -> io::Result<Option<OwnedFd>> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(None),
        Err(Errno::ISDIR | Errno::PERM | Errno::ACCESS) => {}
        Err(error) => return Err(error.into()),
    }
    // XDEV: mounts, bind mounts included, are not entered.
    let open = |flags: OFlags| {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        openat2(parent, name, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
    };
    let not_entered = |error: Errno| match error {
        Errno::XDEV => io::Error::new(io::ErrorKind::CrossesDevices, "something is mounted there"),
        // What is no folder could not be unlinked, for want of rights.
        Errno::NOTDIR | Errno::LOOP => Errno::ACCESS.into(),
        error => error.into(),
    };
    let place = match open(OFlags::PATH) {
        Err(Errno::NOENT) => return Ok(None),
        done => done.map_err(not_entered)?,
    };
    match open(OFlags::RDONLY) {
        Ok(folder) => {
            make_writable(&folder, &place)?;
            Ok(Some(folder))
        }
        Err(Errno::ACCESS) => {
            make_accessible(&place)?;
            Ok(Some(open(OFlags::RDONLY).map_err(not_entered)?))
        }
        Err(error) => Err(not_entered(error)),
    }
}

/// Only the superuser removes entries of a folder that has no write and search bits for its owner.
fn make_writable(folder: impl AsFd, place: &OwnedFd) -> io::Result<()> {
    let mode = rustix::fs::fstat(folder)?.st_mode;
    if mode & 0o700 == 0o700 || rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        make_accessible(place)
    }
}

/// The file descriptor is one for the place only, with which nothing but this detour changes modes.
fn make_accessible(place: &OwnedFd) -> io::Result<()> {
    Ok(chmod(format!("/proc/self/fd/{}", place.as_raw_fd()), Mode::RWXU)?)
}
