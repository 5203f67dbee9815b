//! Tarballs of builds and images: fetched once, and known by their md5 sums.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vr_common::archive::{self, ArchiveError, UnpackOptions};
use vr_common::fetch::{FetchError, FetchOptions, Fetched, fetch_cached, is_unfinished, without_credentials};
use vr_common::lock::FileLock;
use vr_common::log::DOING;
use vr_common::proc_data::is_file_name;
use vr_common::progress::Progress;

use crate::job::size;

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

/// What had to be done for what a tarball holds to be in place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Bytes that were fetched; 0 when the tarball was there already.
    pub fetched: u64,
    /// Whether it was unpacked.
    pub unpacked: bool,
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

/// Fetches a tarball unless the right one is there.
///
/// With `md5`, the right one has that sum, whatever its URL. Without, it is the one that was fetched from this URL, or
/// that somebody put there by hand: its name alone does not say enough.
pub(crate) fn fetch_checked(url: &str, tarball: &Path, md5: Option<&str>) -> Result<Fetched, TarballError> {
    let options = FetchOptions { progress: Progress::Bar, ..FetchOptions::with_md5(md5) };
    Ok(fetch_cached(url, tarball, &options)?)
}

/// Unpacks a tarball, and says so. One that is none is removed, so that it is fetched again the next time.
pub(crate) fn unpack(tarball: &Path, into: &Path, options: UnpackOptions) -> Result<(), TarballError> {
    let bytes = fs::metadata(tarball).map_or(0, |found| found.len());
    tracing::info!(target: DOING, "unpacking {} ({})", tarball.display(), size(bytes));
    let unpacked = archive::unpack(tarball, into, &UnpackOptions { progress: Progress::Bar, ..options });
    if matches!(unpacked, Err(ArchiveError::Corrupt { .. } | ArchiveError::UnknownCompression(_)))
        && let Err(error) = fs::remove_file(tarball)
    {
        tracing::warn!(tarball = %tarball.display(), %error, "cannot remove a broken tarball");
    }
    unpacked?;
    Ok(())
}

/// Removes the parts of tarballs that killed fetches left in a folder; gives their names and sizes.
pub(crate) fn remove_unfinished(folder: &Path) -> Result<Vec<(PathBuf, u64)>, TarballError> {
    let error = |source| TarballError::Io { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(error)?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry.map_err(error)?;
        if !is_unfinished(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        // Whoever fetches it has it locked.
        if found.is_file()
            && let Ok(_nobody) = FileLock::existing(&path)
        {
            fs::remove_file(&path).map_err(|source| TarballError::Io { path: path.clone(), source })?;
            removed.push((path, found.blocks() * 512));
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_fetches_any_more_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (dead, live) = (".dead.tar.part-0123456789abcdef", ".live.tar.part-00000000deadbeef");
        // Of tarballs that somebody gave such a name, these are locks and sums.
        let others =
            ["build.tar.gz", ".build.tar.gz.lock", ".app.part-1.tar.gz.lock", ".app.part-1.tar.gz.sum"];
        for name in others.into_iter().chain([dead, live]) {
            fs::write(dir.path().join(name), "content").unwrap();
        }
        let live = FileLock::existing(&dir.path().join(live)).unwrap();
        let removed = remove_unfinished(dir.path()).unwrap();
        assert_eq!(removed.len(), 1);
        assert_eq!(removed[0].0, dir.path().join(dead));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
        drop(live);
        assert_eq!(remove_unfinished(dir.path()).unwrap().len(), 1);
        assert!(remove_unfinished(&dir.path().join("missing")).unwrap().is_empty());
    }

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
