//! Tarballs of builds and images: fetched once, and known by their md5 sums.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

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

/// Removes the parts of tarballs that killed fetches left in a folder; gives their names and sizes. With `dry_run`,
/// nothing is removed.
pub(crate) fn remove_unfinished(folder: &Path, dry_run: bool) -> Result<Vec<(PathBuf, u64)>, TarballError> {
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
            if !dry_run {
                fs::remove_file(&path).map_err(|source| TarballError::Io { path: path.clone(), source })?;
            }
            removed.push((path, found.blocks() * 512));
        }
    }
    Ok(removed)
}

/// Removes the tarballs of builds in a folder that were fetched, that nobody read for `unused_for` and that are not in
/// `used`; gives their names and sizes. One that a setup works on is left alone. With `dry_run`, nothing is removed.
pub(crate) fn remove_unused(
    folder: &Path,
    unused_for: Duration,
    used: &BTreeSet<String>,
    dry_run: bool,
) -> Result<Vec<(PathBuf, u64)>, TarballError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| TarballError::Io { path, source }
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(error(folder))?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let path = entry.map_err(error(folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let sum = folder.join(format!(".{name}.sum"));
        // What somebody put there by hand and nobody used yet is theirs: it might not be had again.
        if name.starts_with('.') || used.contains(name) || !sum.exists() {
            continue;
        }
        // Setups hold these, the first until what they fetched is unpacked.
        let locks = [format!(".{name}.setup.lock"), format!(".{name}.lock")];
        let held: Result<Vec<_>, _> = locks.iter().map(|lock| FileLock::create(&folder.join(lock))).collect();
        let Ok(_only_one) = held else { continue };
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if !found.is_file() || !is_older(&found, unused_for) {
            continue;
        }
        if !dry_run {
            for path in [&path, &sum] {
                fs::remove_file(path).map_err(error(path))?;
            }
        }
        removed.push((path, found.blocks() * 512));
    }
    Ok(removed)
}

/// Whether nobody has read or written a file for so long. File systems note reads once a day, unless they are mounted
/// `noatime`; then what was written long ago is old.
fn is_older(found: &fs::Metadata, age: Duration) -> bool {
    // A time to come is that of a clock that was set back.
    let is_older =
        |time: io::Result<SystemTime>| time.is_ok_and(|time| time.elapsed().is_ok_and(|since| since >= age));
    is_older(found.accessed()) && is_older(found.modified())
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
        assert_eq!(remove_unfinished(dir.path(), true).unwrap().len(), 1);
        let removed = remove_unfinished(dir.path(), false).unwrap();
        assert_eq!(removed.len(), 1);
        assert_eq!(removed[0].0, dir.path().join(dead));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
        drop(live);
        assert_eq!(remove_unfinished(dir.path(), false).unwrap().len(), 1);
        assert!(remove_unfinished(&dir.path().join("missing"), false).unwrap().is_empty());
    }

    #[test]
    fn only_fetched_tarballs_that_nobody_needs_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let names = ["used.tar", "unused.tar", "busy.tar", "by-hand.tar"];
        for name in names {
            fs::write(folder.join(name), "content").unwrap();
            if name != "by-hand.tar" {
                fs::write(folder.join(format!(".{name}.sum")), "sum").unwrap();
            }
        }
        let _busy = FileLock::create(&folder.join(".busy.tar.setup.lock")).unwrap();
        let used = BTreeSet::from(["used.tar".to_owned()]);
        let remove = |age, dry_run| remove_unused(folder, age, &used, dry_run).unwrap();
        assert!(remove(Duration::from_secs(60), false).is_empty(), "all were read within the minute");
        for dry_run in [true, false] {
            let removed = remove(Duration::ZERO, dry_run);
            assert_eq!(removed.len(), 1);
            assert_eq!(removed[0].0, folder.join("unused.tar"));
            assert_eq!(folder.join("unused.tar").exists(), dry_run);
        }
        assert!(!folder.join(".unused.tar.sum").exists());
        assert!(names.iter().filter(|name| folder.join(name).exists()).count() == 3);
        assert!(remove_unused(&folder.join("missing"), Duration::ZERO, &used, false).unwrap().is_empty());
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
