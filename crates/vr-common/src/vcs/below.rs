//! Folders for the repositories inside of a repository, made without following symbolic links.
//!
//! The names of such folders and everything that is already there come from repositories, which may be made to lead
//! elsewhere.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use super::VcsError;
use super::run::Runner;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Makes the folder `path`, which must be empty when it is there, below `root`, and gives its name.
///
/// [`VcsError::BadContent`] when it has files or is behind a symbolic link. As nobody else is at work below `root`, the
/// name stays what was checked here. `what` is what the folder is for, such as `submodule`.
pub(super) fn make_empty_below(
    runner: &Runner<'_>,
    what: &str,
    root: &Path,
    path: &[u8],
) -> Result<PathBuf, VcsError> {
    let path = Path::new(OsStr::from_bytes(path));
    make(root, path).map_err(|error| {
        let reason = match error {
            Errno::LOOP => "its folder is behind a symbolic link",
            Errno::NOTDIR => "there is a file in its place",
            Errno::NOTEMPTY => "its folder already has files",
            Errno::INVAL => "it is not the name of a folder inside",
            error => {
                let source = io::Error::from(error);
                return VcsError::Io { action: "make", path: root.join(path), source };
            }
        };
        runner.bad_content(format!("its {what} {} cannot be written: {reason}", path.display()))
    })
}

fn make(root: &Path, path: &Path) -> Result<PathBuf, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut folder = rustix::fs::open(root, FOLDER, Mode::empty())?;
    let mut made = root.to_owned();
    for part in path.components() {
        let Component::Normal(name) = part else { return Err(Errno::INVAL) };
        // The process's umask takes away what others may not.
        match mkdirat(&folder, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        folder = openat2(&folder, name, FOLDER, Mode::empty(), resolve)?;
        made.push(name);
    }
    if made == root {
        return Err(Errno::INVAL);
    }
    for entry in Dir::read_from(&folder)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Err(Errno::NOTEMPTY);
        }
    }
    Ok(made)
}
