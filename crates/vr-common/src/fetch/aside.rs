//! A file that is written beside its final place and gets its final name only when it is whole.
//!
//! Must not know where the bytes come from.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::lock::FileLock;

/// How often a free name is looked for before giving up; two random names never meet in practice.
const NAME_ATTEMPTS: usize = 16;

/// The start of the names of everything unfinished that will become `name`: `.{name}.part-`.
pub(crate) fn unfinished_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".part-");
    prefix
}

/// Whether a file's name is that of an unfinished one, for whatever target: `.{name}.part-` and 16 hexadecimal digits.
pub(crate) fn is_unfinished(name: &OsStr) -> bool {
    let Some((front, number)) = name.as_encoded_bytes().split_last_chunk::<16>() else { return false };
    front.starts_with(b".") && front.ends_with(b".part-") && number.iter().all(u8::is_ascii_hexdigit)
}

/// The sibling of `target` with the name `.{name}.{suffix}`.
pub(crate) fn hidden_sibling(target: &Path, suffix: &str) -> io::Result<PathBuf> {
    let mut name = OsString::from(".");
    name.push(file_name(target)?);
    name.push(".");
    name.push(suffix);
    Ok(folder_of(target).join(name))
}

/// A new random name for something unfinished beside `target`.
pub(crate) fn unfinished_sibling(target: &Path) -> io::Result<PathBuf> {
    hidden_sibling(target, &format!("part-{:016x}", rand::random::<u64>()))
}

/// The folder a path is in; `.` for a bare name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The last component of a path, or an error for `/` and paths that end in `..`.
pub(crate) fn file_name(path: &Path) -> io::Result<&OsStr> {
    path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))
}

/// Makes a rename in `folder` last through a power cut.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// An unfinished file. Dropped before [`AsideFile::place`], it disappears.
#[derive(Debug)]
pub(crate) struct AsideFile {
    file: File,
    path: PathBuf,
    target: PathBuf,
    placed: bool,
    /// Held so that [`remove_abandoned`] of other processes sees that somebody is at work here.
    _alive: FileLock,
}

impl AsideFile {
    /// Makes an empty file beside `target`, and the folder for it when that is missing.
    /// What killed processes left there for the same target is removed.
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder_of(target))?;
        remove_abandoned(target)?;
        for _ in 0..NAME_ATTEMPTS {
            let path = unfinished_sibling(target)?;
            let file = match OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            // Between the two calls somebody who tidies up may have taken the file for an abandoned one.
            if let Ok(alive) = FileLock::existing(&path)
                && path.exists()
            {
                return Ok(Self { file, path, target: target.to_owned(), placed: false, _alive: alive });
            }
        }
        Err(io::Error::other("no free name for an unfinished file"))
    }

    /// The file to write to.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Where the unfinished file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes everything to disk and gives the file its final name, over whatever had it.
    pub(crate) fn place(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, &self.target)?;
        self.placed = true;
        sync_folder(folder_of(&self.target))
    }
}

impl Drop for AsideFile {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes unfinished files for `target` that nobody is writing any more.
fn remove_abandoned(target: &Path) -> io::Result<()> {
    let prefix = unfinished_prefix(file_name(target)?);
    for entry in fs::read_dir(folder_of(target))? {
        let entry = entry?;
        let name = entry.file_name();
        // Other files have names that begin like that, such as the lock for a target called `{name}.part-1`.
        if !name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes())
            || !is_unfinished(&name)
            || !entry.file_type().is_ok_and(|kind| kind.is_file())
        {
            continue;
        }
        if let Ok(_abandoned) = FileLock::existing(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}
