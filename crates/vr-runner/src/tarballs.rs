//! Tarballs of builds and images: fetched once, and marked so that it is known later what was unpacked from which.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vr_common::archive::{self, ArchiveError, UnpackOptions};
use vr_common::fetch::{FetchError, FetchOptions, Progress, fetch_cached, without_credentials};
use vr_common::proc_data::is_file_name;

/// Why a tarball is not there, or not unpacked.
#[derive(Debug, Error)]
pub enum TarballError {
    /// The URL does not say what to call it.
    #[error("{url:?} does not end in a file name")]
    NoFileName {
        /// The URL, without credentials.
        url: String,
    },
    /// It cannot be fetched, or has another md5 sum.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It cannot be unpacked.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// It cannot be looked at.
    #[error("cannot look at {}", path.display())]
    Io {
        /// The tarball.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a URL's tarball is called: its last part.
pub(crate) fn file_name(url: &str) -> Result<&str, TarballError> {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    if is_file_name(name) {
        Ok(name)
    } else {
        Err(TarballError::NoFileName { url: without_credentials(url) })
    }
}

/// Fetches a tarball unless the right one is there; gives a text that stands for this tarball and no other.
pub(crate) fn fetch_marked(url: &str, tarball: &Path, md5: Option<&str>) -> Result<String, TarballError> {
    let options = FetchOptions { progress: Progress::Bar, ..FetchOptions::with_md5(md5) };
    fetch_cached(url, tarball, &options)?;
    let error = |source| TarballError::Io { path: tarball.to_owned(), source };
    let found = fs::metadata(tarball).map_err(error)?;
    // With a sum, a tarball that was deleted and fetched again is the same one.
    Ok(match md5 {
        Some(md5) => format!("md5 {md5}\n"),
        None => {
            let (inode, seconds, nanoseconds) = (found.ino(), found.ctime(), found.ctime_nsec());
            format!("{} inode {inode} of {seconds}.{nanoseconds:09}\n", without_credentials(url))
        }
    })
}

/// Unpacks a tarball. One that is none is removed, so that it is fetched again the next time.
pub(crate) fn unpack_or_discard(
    tarball: &Path,
    into: &Path,
    options: &UnpackOptions,
) -> Result<(), TarballError> {
    let Err(error) = archive::unpack_atomically(tarball, into, options) else { return Ok(()) };
    if matches!(error, ArchiveError::Corrupt { .. } | ArchiveError::UnknownCompression(_))
        && let Err(error) = fs::remove_file(tarball)
    {
        tracing::warn!(tarball = %tarball.display(), %error, "cannot remove a broken tarball");
    }
    Err(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tarball_is_named_after_the_url() {
        for (url, expected) in [
            ("https://u:p@h/files/build-1.tar.gz?sig=1#x", "build-1.tar.gz"),
            ("file:///a/b.tar.bz2", "b.tar.bz2"),
            ("/a/b.tar.xz", "b.tar.xz"),
            ("b.tar.zst", "b.tar.zst"),
        ] {
            assert_eq!(file_name(url).unwrap(), expected);
        }
        for url in ["https://h/", "", "/a/..", "https://u:secret@h/.hidden"] {
            let error = file_name(url).unwrap_err().to_string();
            assert!(error.ends_with("does not end in a file name") && !error.contains("secret"), "{error}");
        }
    }
}
