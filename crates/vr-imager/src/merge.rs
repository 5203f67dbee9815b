//! What a container saw as its root, as one folder: an overlay's lower folder with the changes of its upper one.
//!
//! Nothing is copied: files of the lower folder become hard links and those of the upper one are moved, so all three
//! folders must be on one file system. Nobody else may be at work in any of them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{CWD, Timespec, Timestamps, XattrFlags, lgetxattr, llistxattr, lsetxattr, utimensat};
use rustix::io::Errno;

/// The longest attribute, or list of their names, that Linux has.
const LONGEST_ATTRIBUTE: usize = 64 * 1024;

/// Makes `merged`, which must not exist, of `lower` and `upper`. Afterwards `upper` is used up, and a file in
/// `merged` may be the same as one in `lower`: it may be read and removed, not changed.
pub(crate) fn merge(lower: &Path, upper: &Path, merged: &Path) -> io::Result<()> {
    folder(Some(lower), Some(upper), merged)
        .map_err(|(path, error)| io::Error::new(error.kind(), format!("{path}: {error}")))
}

type Failure = (String, io::Error);

fn at(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.display().to_string();
    move |error| (path, error)
}

/// Merges one folder; at least one of the two must be given.
fn folder(lower: Option<&Path>, upper: Option<&Path>, merged: &Path) -> Result<(), Failure> {
    let Some(decides) = upper.or(lower) else { return Ok(()) };
    let metadata = fs::symlink_metadata(decides).map_err(at(decides))?;
    DirBuilder::new().mode(0o700).create(merged).map_err(at(merged))?;
    let mut seen = HashSet::new();
    if let Some(upper) = upper {
        for (name, found) in entries(upper)? {
            from_upper(lower, &upper.join(&name), &found, &merged.join(&name))?;
            seen.insert(name);
        }
    }
    if let Some(lower) = lower {
        for (name, found) in entries(lower)? {
            if seen.contains(&name) {
                continue;
            }
            let (from, to) = (lower.join(&name), merged.join(&name));
            if found.is_dir() {
                folder(Some(&from), None, &to)?;
            } else {
                fs::hard_link(&from, &to).map_err(at(&from))?;
            }
        }
    }
    // Last, because making entries changes the time and needs the right to.
    dress(decides, &metadata, merged).map_err(at(merged))
}

/// One entry of the upper folder, whose siblings below are in `lower`.
fn from_upper(lower: Option<&Path>, from: &Path, found: &Metadata, to: &Path) -> Result<(), Failure> {
    if found.file_type().is_char_device() && found.rdev() == 0 {
        // What is below was removed.
        return Ok(());
    }
    for attribute in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
        if has(from, attribute).map_err(at(from))?.is_some() {
            let text = format!("the kernel's overlay uses {attribute}, which is not understood");
            return Err(at(from)(io::Error::other(text)));
        }
    }
    if !found.is_dir() {
        return fs::rename(from, to).map_err(at(from));
    }
    let replaces = has(from, "trusted.overlay.opaque").map_err(at(from))?.is_some_and(|value| value == b"y");
    let below = lower
        .zip(from.file_name())
        .map(|(lower, name)| lower.join(name))
        .filter(|below| !replaces && fs::symlink_metadata(below).is_ok_and(|below| below.is_dir()));
    folder(below.as_deref(), Some(from), to)
}

fn entries(folder: &Path) -> Result<Vec<(OsString, Metadata)>, Failure> {
    let list = || -> io::Result<Vec<_>> {
        fs::read_dir(folder)?
            .map(|entry| {
                let entry = entry?;
                Ok((entry.file_name(), entry.metadata()?))
            })
            .collect()
    };
    list().map_err(at(folder))
}

/// Gives a new folder the owner, mode, time and users' attributes of the one it stands for.
fn dress(from: &Path, metadata: &Metadata, to: &Path) -> io::Result<()> {
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    let mut names = vec![0; LONGEST_ATTRIBUTE];
    let length = match llistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        listed => listed?,
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        if let Some(value) = has(from, name)? {
            lsetxattr(to, name, &value, XattrFlags::empty())?;
        }
    }
    fs::set_permissions(to, Permissions::from_mode(metadata.mode() & 0o7777))?;
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, to, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
}

/// An extended attribute of the path itself, links included.
fn has(path: &Path, name: impl rustix::path::Arg) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; LONGEST_ATTRIBUTE];
    match lgetxattr(path, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{FileType, Mode, makedev, mknodat};

    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn listing(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for (name, metadata) in entries(&folder).unwrap() {
                let path = folder.join(name);
                let shown = path.strip_prefix(root).unwrap().display().to_string();
                if metadata.is_dir() {
                    folders.push(path);
                    found.push(shown + "/");
                } else if metadata.is_symlink() {
                    found.push(format!("{shown} -> {}", fs::read_link(&path).unwrap().display()));
                } else {
                    found.push(format!("{shown}: {}", fs::read_to_string(&path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    fn whiteout(path: &Path) {
        mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(0, 0)).unwrap();
    }

    #[test]
    fn changes_removals_and_replacements_are_merged() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper, merged) = (dir.path().join("l"), dir.path().join("u"), dir.path().join("m"));
        for (path, text) in [
            ("etc/kept", "k"),
            ("etc/changed", "old"),
            ("etc/removed", "r"),
            ("opt/gone/x", "x"),
            ("srv/replaced/old", "o"),
            ("var/folder/x", "x"),
            ("var/file", "f"),
        ] {
            write(&lower.join(path), text);
        }
        symlink("../outside", lower.join("etc/link")).unwrap();
        for (path, text) in [
            ("etc/changed", "new"),
            ("new/deep/file", "n"),
            ("srv/replaced/new", "n"),
            ("var/folder", "now a file"),
        ] {
            write(&upper.join(path), text);
        }
        write(&upper.join("var/file/x"), "now a folder");
        fs::create_dir(upper.join("opt")).unwrap();
        whiteout(&upper.join("etc/removed"));
        whiteout(&upper.join("opt/gone"));
        lsetxattr(upper.join("srv/replaced"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        fs::set_permissions(upper.join("etc"), Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(lower.join("var/folder"), Permissions::from_mode(0o500)).unwrap();
        merge(&lower, &upper, &merged).unwrap();
        assert_eq!(
            listing(&merged),
            [
                "etc/",
                "etc/changed: new",
                "etc/kept: k",
                "etc/link -> ../outside",
                "new/",
                "new/deep/",
                "new/deep/file: n",
                "opt/",
                "srv/",
                "srv/replaced/",
                "srv/replaced/new: n",
                "var/",
                "var/file/",
                "var/file/x: now a folder",
                "var/folder: now a file",
            ]
        );
        assert_eq!(fs::metadata(merged.join("etc")).unwrap().mode() & 0o7777, 0o711);
        assert_eq!(fs::read_to_string(lower.join("etc/changed")).unwrap(), "old");
        assert!(lower.join("etc/removed").exists());
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper) = (dir.path().join("l"), dir.path().join("u"));
        fs::create_dir_all(&lower).unwrap();
        fs::create_dir_all(upper.join("moved")).unwrap();
        lsetxattr(upper.join("moved"), "trusted.overlay.redirect", b"/x", XattrFlags::empty()).unwrap();
        let error = merge(&lower, &upper, &dir.path().join("m")).unwrap_err().to_string();
        assert!(error.contains("/u/moved: the kernel's overlay uses trusted.overlay.redirect"), "{error}");
    }
}
