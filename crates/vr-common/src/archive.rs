//! Tarballs: unpacking ones that nobody vouches for, and packing the same folder to the same bytes every time;
//! and removing whole folders.
//!
//! Must not know what the files are for. Nothing in here follows a symbolic link below the folder it works in:
//! every step goes through open folders, never through a path made of strings from an archive.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

mod ahead;
mod compression;
mod encoder;
mod pack;
mod parallel_gzip;
mod reader;
mod remove;
mod unpack;
mod xattrs;

pub use compression::{Compression, open_tarball};
pub use pack::{PackOptions, PackSummary, pack, pack_open};
pub(crate) use remove::remove_unfinished;
pub use remove::{bytes_in, bytes_in_while, remove_tree};
pub use unpack::{Owner, UnpackOptions, UnpackSummary, unpack};

/// What a tarball holds at most, unless the caller says otherwise: so many bytes in all files together, holes included, and so
/// many entries. Packing has the same bounds as unpacking: nobody could use what is packed beyond them.
const MOST_BYTES: u64 = 20 << 30;
const MOST_ENTRIES: u64 = 2_000_000;
/// The longest path of an entry, in bytes.
const LONGEST_PATH: usize = 4096;

/// What a tarball holds, which decides about modes, extended attributes and device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarballKind {
    /// An app's files, which need no rights but those of the app's user.
    Build,
    /// A whole operating system, with its set-user-id programs and file capabilities.
    Image,
}

/// Why a tarball was not packed or unpacked, or a folder not removed.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// A file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The tarball.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither the name nor the first bytes tell what it is.
    #[error(
        "{} is not an archive this program knows: expected .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz or .tar.zst",
        .0.display()
    )]
    UnknownCompression(PathBuf),
    /// It ends too early or its bytes make no sense.
    #[error("{} is truncated or not a {expected} archive", path.display())]
    Corrupt {
        /// The tarball.
        path: PathBuf,
        /// What it should be, such as `gzip-compressed tar`.
        expected: &'static str,
        /// What the decoder said.
        source: io::Error,
    },
    /// An entry that would be written elsewhere, or that cannot be written at all.
    #[error("{} is refused: its entry \"{entry}\" {reason}", path.display())]
    EntryRefused {
        /// The tarball.
        path: PathBuf,
        /// The entry's name, with everything unprintable escaped.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It holds more than allowed.
    #[error("{} is refused: it holds more than {limit} {what}", path.display())]
    TooMuch {
        /// The tarball.
        path: PathBuf,
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// An entry cannot be written.
    #[error("cannot unpack \"{entry}\" to {}", into.display())]
    Write {
        /// The folder.
        into: PathBuf,
        /// The entry's name, with everything unprintable escaped.
        entry: String,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be put into a tarball.
    #[error("cannot pack {}", path.display())]
    Pack {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file would make a tarball hold more bytes than allowed.
    #[error("{} has {bytes} bytes, holes included: with it, the tarball would hold more than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, in bytes.
        bytes: u64,
        /// What all files together may have, in bytes.
        limit: u64,
    },
    /// A file, folder or link is one more than a tarball may hold.
    #[error("with {} the tarball would hold more than {limit} files, folders and links", path.display())]
    TooMany {
        /// The first that is too many.
        path: PathBuf,
        /// How many there may be.
        limit: u64,
    },
    /// A file or folder cannot be made, moved or removed.
    #[error("cannot {action} {}", path.display())]
    Place {
        /// What was tried, such as `make`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
