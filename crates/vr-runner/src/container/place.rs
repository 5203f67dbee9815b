//! Paths inside a root that an app may have filled with whatever links it likes.
//!
//! Every path here is resolved by the kernel with the root as its `/` (`openat2`, `RESOLVE_IN_ROOT`): links are
//! followed as the container would follow them, and nothing outside is ever reached.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat, unlinkat,
};
use rustix::io::Errno;

use super::ContainerError;

/// What a mount is put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// Where links in a root lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// To places in it, as in the container.
    Inside,
    /// To the caller's own places. Only for tests that show why this must not be.
    Anywhere,
}

fn resolve(root: impl AsFd, path: &Path, flags: OFlags, links: Links) -> rustix::io::Result<OwnedFd> {
    let inside = match links {
        Links::Inside => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        Links::Anywhere => ResolveFlags::empty(),
    };
    let mut tries = 0;
    loop {
        // The kernel gives up with EAGAIN when something was renamed meanwhile, as it then cannot be sure.
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), inside) {
            Err(Errno::AGAIN) if tries < 100 => tries += 1,
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Opens a file or folder inside `root` for reading. A path or a link may lead anywhere inside the root, and
/// nowhere else; a leading `/` means the root.
pub fn open_beneath(root: &Path, path: &Path) -> Result<File, ContainerError> {
    let error =
        |source: io::Error| ContainerError::Open { root: root.to_owned(), path: path.to_owned(), source };
    let root_fd = open_directory(root).map_err(error)?;
    // Without NONBLOCK, opening a named pipe that an app left there would wait for ever.
    let fd = resolve(&root_fd, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Links::Inside)
        .map_err(|e| error(e.into()))?;
    Ok(File::from(fd))
}

/// Reads a regular file inside `root` as [`open_beneath`] opens it; `None` when there is none.
/// A file longer than `limit` bytes is an error.
pub fn read_beneath(root: &Path, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, ContainerError> {
    let file = match open_beneath(root, path) {
        Err(ContainerError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        opened => opened?,
    };
    let error =
        |source: io::Error| ContainerError::Open { root: root.to_owned(), path: path.to_owned(), source };
    if !file.metadata().map_err(error)?.is_file() {
        return Err(error(io::Error::other("it is not a regular file")));
    }
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(error)?;
    if content.len() as u64 > limit {
        return Err(error(io::Error::other(format!("it is longer than {limit} bytes"))));
    }
    Ok(Some(content))
}

/// A handle on an existing folder of the host, whose last component is not a link.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Device and inode of a file or folder.
pub(super) type Id = (u64, u64);

/// A handle on a file or folder of the host, given by an absolute path. Links are followed, but not in or below one of the
/// folders `theirs`: those are a container's own, which could have put the links there.
pub(super) fn open_of_host(path: &Path, theirs: &[Id]) -> io::Result<OwnedFd> {
    /// The kernel's own limit.
    const MOST_LINKS: usize = 40;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = || rustix::fs::open("/", flags, Mode::empty());
    let parts = |path: &Path| -> Vec<OsString> {
        let names = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        });
        names.collect()
    };
    let mut left: Vec<OsString> = parts(path);
    left.reverse();
    let (mut here, mut in_theirs, mut links) = (top()?, false, 0);
    while let Some(name) = left.pop() {
        let found = openat(&here, &name, flags, Mode::empty())?;
        let stat = fstat(&found)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            in_theirs |= theirs.contains(&(stat.st_dev, stat.st_ino));
            here = found;
            continue;
        }
        if in_theirs {
            return Err(io::Error::other(format!(
                "{} is a link in a folder that the container itself may write to",
                name.display()
            )));
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = PathBuf::from(OsString::from_vec(readlinkat(&found, "", Vec::new())?.into_bytes()));
        if target.is_absolute() {
            here = top()?;
        }
        left.extend(parts(&target).into_iter().rev());
    }
    Ok(here)
}

/// A handle on the folder or file at `path` inside `root`, made together with its parents when missing.
pub(super) fn make_place(root: impl AsFd, path: &Path, kind: Kind, links: Links) -> io::Result<OwnedFd> {
    let parts: Vec<_> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(Ok(name)),
            Component::RootDir | Component::CurDir => None,
            Component::ParentDir | Component::Prefix(_) => Some(Err(io::Error::other("it holds '..'"))),
        })
        .collect::<Result<_, _>>()?;
    let last_flags = match kind {
        Kind::File => OFlags::PATH,
        Kind::Directory => OFlags::PATH | OFlags::DIRECTORY,
    };
    let relative: PathBuf = parts.iter().collect();
    // Most are there already.
    match resolve(&root, &relative, last_flags, links) {
        Err(Errno::NOENT) => {}
        found => return right_kind(found?, kind),
    }
    let mut here = resolve(&root, Path::new("."), OFlags::PATH | OFlags::DIRECTORY, links)?;
    let mut so_far = PathBuf::new();
    for (index, part) in parts.iter().enumerate() {
        so_far.push(part);
        let last = index + 1 == parts.len();
        let flags = if last { last_flags } else { OFlags::PATH | OFlags::DIRECTORY };
        let found = match resolve(&root, &so_far, flags, links) {
            Err(Errno::NOENT) => {
                match kind {
                    Kind::File if last => make_file(&here, Path::new(part))?,
                    _ => match mkdirat(&here, *part, Mode::from_raw_mode(0o755)) {
                        Err(Errno::EXIST) | Ok(()) => {}
                        Err(error) => return Err(error.into()),
                    },
                }
                // A link that leads nowhere is still there, and still leads nowhere.
                resolve(&root, &so_far, flags, links)?
            }
            found => found?,
        };
        here = found;
    }
    right_kind(here, kind)
}

fn right_kind(found: OwnedFd, kind: Kind) -> io::Result<OwnedFd> {
    match kind {
        Kind::File if FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Directory => {
            Err(io::Error::from(Errno::ISDIR))
        }
        _ => Ok(found),
    }
}

fn make_file(folder: impl AsFd, name: &Path) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(folder, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// As [`make_place`] for a file, but a link in its place is replaced by an empty file.
pub(super) fn make_file_place_instead_of_link(
    root: impl AsFd,
    path: &Path,
    links: Links,
) -> io::Result<OwnedFd> {
    if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
        && is_link(&root, path, links)?
    {
        let folder = make_place(&root, parent, Kind::Directory, links)?;
        unlinkat(&folder, name, AtFlags::empty())?;
    }
    make_place(root, path, Kind::File, links)
}

/// Replaces a link at `path` inside `root`, if there is one, by an empty file.
pub fn empty_file_instead_of_link(root: &Path, path: &Path) -> Result<(), ContainerError> {
    open_directory(root)
        .and_then(|fd| match is_link(&fd, path, Links::Inside)? {
            true => make_file_place_instead_of_link(&fd, path, Links::Inside).map(drop),
            false => Ok(()),
        })
        .map_err(|source| ContainerError::Open { root: root.to_owned(), path: path.to_owned(), source })
}

/// Whether the last component of a path is a link; its parents are followed.
fn is_link(root: impl AsFd, path: &Path, links: Links) -> io::Result<bool> {
    match resolve(root, path, OFlags::PATH | OFlags::NOFOLLOW, links) {
        Ok(found) => Ok(FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Symlink),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn links_never_lead_out_of_the_root() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("absolute")).unwrap();
        symlink(format!("../../../../../..{}", outside.path().display()), root.path().join("relative"))
            .unwrap();
        for name in ["absolute/secret", "relative/secret", "../../../../etc/passwd"] {
            assert_eq!(read_beneath(root.path(), Path::new(name), 100).unwrap(), None, "{name}");
        }
        let fd = open_directory(root.path()).unwrap();
        for name in ["absolute/made", "relative/made"] {
            assert!(make_place(&fd, Path::new(name), Kind::Directory, Links::Inside).is_err(), "{name}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_inside_the_root_are_followed_as_the_container_would() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run")).unwrap();
        std::fs::create_dir_all(root.path().join("var")).unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        let fd = open_directory(root.path()).unwrap();
        make_place(&fd, Path::new("/var/run/app/data"), Kind::Directory, Links::Inside).unwrap();
        make_place(&fd, Path::new("/var/run/app/file"), Kind::File, Links::Inside).unwrap();
        assert!(root.path().join("run/app/data").is_dir());
        assert!(root.path().join("run/app/file").is_file());
        make_place(&fd, Path::new("/var/run/app/data"), Kind::Directory, Links::Inside).unwrap();
        assert!(make_place(&fd, Path::new("/var/run/app/data"), Kind::File, Links::Inside).is_err());
        assert!(make_place(&fd, Path::new("/var/run/app/file"), Kind::Directory, Links::Inside).is_err());
        assert!(make_place(&fd, Path::new("/var/../x"), Kind::Directory, Links::Inside).is_err());
    }

    #[test]
    fn a_link_is_replaced_by_a_file_where_that_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", root.path().join("etc/resolv.conf")).unwrap();
        let fd = open_directory(root.path()).unwrap();
        make_file_place_instead_of_link(&fd, Path::new("/etc/resolv.conf"), Links::Inside).unwrap();
        assert!(root.path().join("etc/resolv.conf").symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn links_of_the_host_are_followed_and_those_of_a_container_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let id = |path: &Path| {
            let found = std::fs::metadata(path).unwrap();
            (found.dev(), found.ino())
        };
        std::fs::create_dir_all(dir.join("theirs/deep")).unwrap();
        std::fs::create_dir(dir.join("secret")).unwrap();
        symlink(dir.join("theirs"), dir.join("absolute")).unwrap();
        symlink("absolute/../theirs/deep", dir.join("relative")).unwrap();
        symlink(dir.join("secret"), dir.join("theirs/link")).unwrap();
        symlink("../../secret", dir.join("theirs/deep/link")).unwrap();
        let theirs = [id(&dir.join("theirs"))];
        for (name, end) in
            [("theirs", "theirs"), ("absolute/deep", "theirs/deep"), ("relative", "theirs/deep")]
        {
            let found = fstat(open_of_host(&dir.join(name), &theirs).unwrap()).unwrap();
            assert_eq!((found.st_dev, found.st_ino), id(&dir.join(end)), "{name}");
        }
        for name in ["theirs/link", "absolute/link", "relative/link", "theirs/deep/../link"] {
            let error = open_of_host(&dir.join(name), &theirs).unwrap_err().to_string();
            assert!(error.starts_with("link is a link in a folder that the container"), "{name}: {error}");
            let found = fstat(open_of_host(&dir.join(name), &[]).unwrap()).unwrap();
            assert_eq!((found.st_dev, found.st_ino), id(&dir.join("secret")), "{name}");
        }
        symlink("round", dir.join("round")).unwrap();
        assert!(open_of_host(&dir.join("round"), &[]).is_err());
        assert!(open_of_host(&dir.join("missing"), &[]).is_err());
    }

    #[test]
    fn what_is_not_a_short_regular_file_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("long"), "12345").unwrap();
        nix::unistd::mkfifo(&root.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read_beneath(root.path(), Path::new("long"), 4).is_err());
        assert_eq!(read_beneath(root.path(), Path::new("long"), 5).unwrap().unwrap(), b"12345");
        assert!(read_beneath(root.path(), Path::new("fifo"), 100).is_err());
        assert!(read_beneath(root.path(), Path::new("."), 100).is_err());
    }
}
