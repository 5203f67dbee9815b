//! What is known of a fetched file, kept beside it, so that nobody has to read all of it again to know its sum.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::aside::hidden_sibling;
use crate::hash::md5_hex;

/// What was found out about one state of a file. Any change of the file makes it worthless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// The md5 sum of the file.
    pub md5: String,
    /// The md5 sum of where it came from: a URL may hold secrets.
    pub source: String,
}

impl Record {
    pub fn new(md5: String, source: &str) -> Self {
        Self { md5, source: md5_hex(source.as_bytes()) }
    }

    pub fn is_from(&self, source: &str) -> bool {
        self.source == md5_hex(source.as_bytes())
    }

    /// The record of a file that is still as `found` says.
    pub fn read(target: &Path, found: &Metadata) -> Option<Self> {
        let text = fs::read_to_string(hidden_sibling(target, "sum").ok()?).ok()?;
        let (words, state) = text.strip_suffix('\n')?.split_once(" of ")?;
        let (md5, source) = words.split_once(' ')?;
        (state == self::state(found)).then(|| Self { md5: md5.to_owned(), source: source.to_owned() })
    }

    /// Writes it down for a file that is as `found` says. The caller holds the lock that keeps others away.
    /// One that is lost in a power cut costs a look at the whole file, so nothing waits for the disk here.
    pub fn write(&self, target: &Path, found: &Metadata) -> io::Result<()> {
        let aside = hidden_sibling(target, "sum.new")?;
        fs::write(&aside, format!("{} {} of {}\n", self.md5, self.source, state(found)))?;
        fs::rename(aside, hidden_sibling(target, "sum")?)
    }
}

/// Every write and every other file of this name changes this.
fn state(found: &Metadata) -> String {
    format!(
        "{} bytes, inode {}, written {}.{:09}, changed {}.{:09}",
        found.len(),
        found.ino(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec()
    )
}
