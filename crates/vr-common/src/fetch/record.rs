//! What is known of a fetched file, kept beside it, so that nobody has to read all of it again to know its sum.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::aside::hidden_sibling;
use crate::hash::md5_hex;

/// What follows the target's name in the file that says where the next one comes from.
const ANNOUNCEMENT: &str = "sum.next";

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
        fs::rename(aside, hidden_sibling(target, "sum")?)?;
        match fs::remove_file(hidden_sibling(target, ANNOUNCEMENT)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Says where a file comes from that is about to be renamed to `target`, `found` being what it is like. The record
    /// of what is there now stays: whether it is replaced is not sure yet.
    pub fn announce(source: &str, target: &Path, found: &Metadata) -> io::Result<()> {
        let source = md5_hex(source.as_bytes());
        fs::write(hidden_sibling(target, ANNOUNCEMENT)?, format!("{source} of {}\n", lasting_state(found)))
    }

    /// The record of a file that was announced and put into place, if nobody came to write one; `md5` is its sum.
    pub fn announced(target: &Path, found: &Metadata, md5: &str) -> Option<Self> {
        let text = fs::read_to_string(hidden_sibling(target, ANNOUNCEMENT).ok()?).ok()?;
        let (source, state) = text.strip_suffix('\n')?.split_once(" of ")?;
        (state == lasting_state(found)).then(|| Self { md5: md5.to_owned(), source: source.to_owned() })
    }
}

/// Every write and every other file of this name changes this.
fn state(found: &Metadata) -> String {
    format!("{}, changed {}.{:09}", lasting_state(found), found.ctime(), found.ctime_nsec())
}

/// The part that is the same under another name.
fn lasting_state(found: &Metadata) -> String {
    format!(
        "{} bytes, inode {}, written {}.{:09}",
        found.len(),
        found.ino(),
        found.mtime(),
        found.mtime_nsec()
    )
}
