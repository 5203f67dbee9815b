//! An OS image on a host: fetched, checked and unpacked once, and shared by procs, builds and further images.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};
use rustix::io::Errno;
use thiserror::Error;
use vr_common::archive::{self, UnpackOptions, bytes_in};
use vr_common::lock::{FileLock, LockError};
use vr_common::log::DOING;
use vr_common::paths::VrRoot;

use crate::container::{ContainerError, empty_file_instead_of_link};
use crate::tarballs::{self, TarballError, Work};

/// Says which tarball an image's `contents` were unpacked from.
const MARK: &str = "contents.mark";
/// Held by whoever brings the image into place, or tidies up.
const SETUP_LOCK: &str = ".setup.lock";
/// Begins the names of folders with former contents, or unfinished ones.
const LEFT: &str = "contents-old-";
/// The same, with what was called otherwise before.
const LEFT_PREFIXES: [&str; 2] = [LEFT, ".contents.part-"];

/// Why there is no image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Its tarball cannot be fetched or unpacked.
    #[error("image {name}")]
    Tarball {
        /// The image.
        name: String,
        /// Why.
        source: TarballError,
    },
    /// A file of it cannot be changed.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The lock on it cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file or folder cannot be made or read.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ImageError {
    /// Whether what was asked for cannot be, rather than not now.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Tarball { source: TarballError::NoFileName { .. }, .. })
    }
}

/// An image's contents that nobody removes for as long as this lives, even when another image takes its place.
#[derive(Debug)]
pub struct HeldImage {
    contents: PathBuf,
    lock: FileLock,
    /// Held as well, should it be this one that was used.
    _replaced: Option<FileLock>,
}

impl HeldImage {
    /// Holds the contents of an image by their path; `None` when there are none.
    pub fn find(contents: &Path) -> Result<Option<Self>, ImageError> {
        loop {
            let lock = match FileLock::shared(contents, || {}) {
                Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    return Ok(None);
                }
                taken => taken?,
            };
            // They may have been replaced in between, and removed.
            if lock.is_on(contents) {
                return Ok(Some(Self { contents: contents.to_owned(), lock, _replaced: None }));
            }
        }
    }

    /// To be called once the contents are mounted: if they were replaced after they were held, the new ones are
    /// held too.
    pub fn renew(&mut self) -> Result<(), ImageError> {
        if !self.lock.is_on(&self.contents)
            && let Some(new) = Self::find(&self.contents)?
        {
            self._replaced = Some(std::mem::replace(&mut self.lock, new.lock));
        }
        Ok(())
    }
}

/// Brings an image into place and gives the folder of its contents, which nobody may change. Nobody removes them for as
/// long as this process lives, even when another image takes their place.
///
/// It may be killed anywhere and be repeated any number of times; several callers wait for each other.
pub fn image_contents(
    root: &VrRoot,
    name: &str,
    url: &str,
    md5: Option<&str>,
) -> Result<PathBuf, ImageError> {
    bring(root, name, url, md5).map(|(contents, _)| contents)
}

/// The same; says also what had to be done.
pub(crate) fn bring(
    root: &VrRoot,
    name: &str,
    url: &str,
    md5: Option<&str>,
) -> Result<(PathBuf, Work), ImageError> {
    let folder = root.image(name);
    let contents = folder.join("contents");
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ImageError::Io { action, path, source }
    };
    let tarball_error = |source| ImageError::Tarball { name: name.to_owned(), source };
    fs::create_dir_all(&folder).map_err(io_error("make the folder", &folder))?;
    // Only root may enter: an image's set-user-id programs are not for the host's users.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
        .map_err(io_error("close to others", &folder))?;
    let _only_one = FileLock::wait(&folder.join(SETUP_LOCK), || {
        tracing::info!(target: DOING, "waiting for another setup of the image {name}");
    })?;
    let tarball = folder.join(tarballs::file_name(url).map_err(tarball_error)?);
    let fetched = tarballs::fetch_checked(url, &tarball, md5).map_err(tarball_error)?;
    let mut work = Work { fetched: if fetched.downloaded { fetched.bytes } else { 0 }, unpacked: false };
    let mark = format!("md5 {}\n", fetched.md5);
    let mark_file = folder.join(MARK);
    // Without a mark, whoever unpacked it was killed before saying from what.
    if !contents.is_dir() || !fs::read_to_string(&mark_file).is_ok_and(|old| old == mark) {
        remove_left_in(&folder)?;
        replace(&folder, &tarball).map_err(|error| match error {
            Failure::Image(error) => error,
            Failure::Tarball(error) => tarball_error(error),
        })?;
        fs::write(&mark_file, mark).map_err(io_error("write", &mark_file))?;
        work.unpacked = true;
    }
    if let Some(held) = HeldImage::find(&contents)? {
        // Never let go of: whoever asked is about to use them, and gets only a path.
        Box::leak(Box::new(held));
    }
    Ok((contents, work))
}

enum Failure {
    Image(ImageError),
    Tarball(TarballError),
}

/// Unpacks a tarball beside the contents and puts it in their place. Running containers still use the old ones, so
/// those are only moved away. The caller holds the image's lock.
fn replace(folder: &Path, tarball: &Path) -> Result<(), Failure> {
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Failure::Image(ImageError::Io { action, path, source })
    };
    let contents = folder.join("contents");
    let aside = tempfile::Builder::new()
        .prefix(LEFT)
        .tempdir_in(folder)
        .map_err(io_error("make a folder in", folder))?
        .keep();
    let new = aside.join("contents");
    let make = || {
        tarballs::unpack(tarball, &new, UnpackOptions::image()).map_err(Failure::Tarball)?;
        // A link there would lead to a file of a running system, such as systemd's, that no container has.
        empty_file_instead_of_link(&new, Path::new("etc/resolv.conf"))
            .map_err(|error| Failure::Image(error.into()))?;
        let opened = File::open(folder).map_err(io_error("open", folder))?;
        syncfs(&opened).map_err(|error| io_error("write to disk", &new)(error.into()))?;
        exchange(&new, &contents).map_err(io_error("put into place", &contents))?;
        opened.sync_all().map_err(io_error("write to disk", folder))
    };
    let made = make();
    // What is there now did not get finished, or was there before and may be in use.
    remove_left_in(folder).map_err(Failure::Image)?;
    made
}

/// Swaps a folder with another one, which may be missing, so that there is one at any moment.
fn exchange(new: &Path, place: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, place, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => fs::rename(new, place),
        // Some file systems cannot.
        Err(Errno::INVAL | Errno::NOSYS) => {
            if place.exists() {
                fs::rename(place, new.with_extension("old"))?;
            }
            fs::rename(new, place)
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes what is left of an image's former and unfinished contents, except what containers still use; gives what went
/// and its size. An image that is being set up is left alone.
pub(crate) fn remove_left(folder: &Path) -> Result<Vec<(PathBuf, u64)>, ImageError> {
    match FileLock::existing(&folder.join(SETUP_LOCK)) {
        Ok(_only_one) => remove_left_in(folder),
        Err(LockError::Held(_)) => Ok(Vec::new()),
        // Not made by a setup.
        Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn remove_left_in(folder: &Path) -> Result<Vec<(PathBuf, u64)>, ImageError> {
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ImageError::Io { action, path, source }
    };
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
        let entry = entry.map_err(io_error("list", folder))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = entry.path();
        if !LEFT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || !entry.file_type().is_ok_and(|kind| kind.is_dir())
        {
            continue;
        }
        // Containers hold the contents themselves, wherever they were moved.
        let mut is_used = false;
        for inner in fs::read_dir(&path).map_err(io_error("list", &path))? {
            let inner = inner.map_err(io_error("list", &path))?;
            is_used |= matches!(FileLock::existing(&inner.path()), Err(LockError::Held(_)));
        }
        if !is_used {
            let bytes = bytes_in(&path);
            archive::remove_tree(&path).map_err(io_error("remove", &path))?;
            removed.push((path, bytes));
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_swapped_and_kept_for_as_long_as_they_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("apps/images/tiny");
        let contents = folder.join("contents");
        let tarball = dir.path().join("image.tar");
        let root = VrRoot::new(dir.path().join("apps"));
        let pack = |text: &str| {
            let files = dir.path().join("files");
            fs::create_dir_all(&files).unwrap();
            fs::write(files.join("mark"), text).unwrap();
            let mut tar = vr_common::process::command("tar");
            assert!(tar.arg("-C").arg(&files).arg("-cf").arg(&tarball).arg(".").status().unwrap().success());
            vr_common::fetch::md5_file(&tarball).unwrap()
        };
        let bring = |sum: &str| {
            // As another process would, without holding what it gets until the end of this one.
            let _only_one = FileLock::wait(&folder.join(SETUP_LOCK), || {}).unwrap();
            tarballs::fetch_checked(tarball.to_str().unwrap(), &folder.join("image.tar"), Some(sum)).unwrap();
            assert!(replace(&folder, &folder.join("image.tar")).is_ok());
        };
        fs::create_dir_all(&folder).unwrap();
        let left = || {
            let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name.to_string_lossy().starts_with(LEFT)).count()
        };
        assert!(HeldImage::find(&contents).unwrap().is_none());
        bring(&pack("one"));
        let mut held = HeldImage::find(&contents).unwrap().unwrap();
        bring(&pack("two"));
        assert_eq!(fs::read_to_string(contents.join("mark")).unwrap(), "two");
        assert_eq!(left(), 1, "contents in use were removed");
        held.renew().unwrap();
        bring(&pack("three"));
        assert_eq!(left(), 2);
        assert!(remove_left(&folder).unwrap().is_empty());
        drop(held);
        // Half of one, of the time when they were unpacked in another way.
        fs::create_dir_all(folder.join(".contents.part-0/half")).unwrap();
        let removed = remove_left(&folder).unwrap();
        assert!(removed.len() == 3 && removed.iter().all(|(_, bytes)| *bytes > 0), "{removed:?}");
        assert_eq!(left(), 0);
        assert_eq!(fs::read_to_string(contents.join("mark")).unwrap(), "three");
        // Nobody removes from under a setup.
        fs::create_dir(folder.join("contents-old-x")).unwrap();
        let setup = FileLock::existing(&folder.join(SETUP_LOCK)).unwrap();
        assert!(remove_left(&folder).unwrap().is_empty());
        drop(setup);
        assert_eq!(remove_left(&folder).unwrap().len(), 1);
        // What was brought is held until this process ends.
        let sum = pack("four");
        let url = tarball.to_str().unwrap();
        assert_eq!(image_contents(&root, "tiny", url, Some(&sum)).unwrap(), contents);
        bring(&pack("five"));
        assert_eq!(left(), 1);
    }
}
