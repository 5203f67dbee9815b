//! Whether a file has changed since it was read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file as it was when it was looked at: device, inode, size, and when it was written, with nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64, u64, u64, i64, i64);

impl Stamp {
    /// None if there is no such file.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self(found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    }
}
