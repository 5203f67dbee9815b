//! Which extended attributes travel in tarballs, and how.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

use super::TarballKind;

/// What the field of a PAX header is called, in front of the attribute's own name.
pub(super) const PAX_PREFIX: &str = "SCHILY.xattr.";
/// The largest list of names and the largest value that Linux knows.
const LARGEST: usize = 64 * 1024;

/// Users' own attributes always; file capabilities are rights, so they come with images only.
pub(super) fn travels(name: &[u8], kind: TarballKind) -> bool {
    name.starts_with(b"user.") || (kind == TarballKind::Image && name == b"security.capability")
}

/// The attributes of an open file that travel, sorted by name. None where there is no support for them.
pub(super) fn read(file: impl AsFd, kind: TarballKind) -> io::Result<Vec<(String, Vec<u8>)>> {
    // Nearly every file has none or few, so the large list is the exception.
    let mut few = [0; 256];
    let mut many = Vec::new();
    let names = match flistxattr(&file, &mut few[..]) {
        Ok(length) => &few[..length],
        Err(Errno::RANGE) => {
            many.resize(LARGEST, 0);
            let length = flistxattr(&file, &mut many[..])?;
            &many[..length]
        }
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names.split(|b| *b == 0).filter(|name| travels(name, kind)) {
        // PAX fields are named in UTF-8.
        let Ok(name) = std::str::from_utf8(name) else { continue };
        // In a PAX field the name ends at the first of these.
        if name.contains('=') {
            continue;
        }
        let mut value = vec![0; LARGEST];
        let length = fgetxattr(&file, name, &mut value[..])?;
        value.truncate(length);
        found.push((name.to_owned(), value));
    }
    found.sort();
    Ok(found)
}

/// Sets an attribute; gives `false` where that is not possible, for file systems differ in what they keep.
pub(super) fn set(file: impl AsFd, name: &str, value: &[u8]) -> bool {
    fsetxattr(file, name, value, XattrFlags::empty()).is_ok()
}
