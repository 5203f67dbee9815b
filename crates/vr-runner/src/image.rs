//! An OS image on a host: fetched, checked and unpacked once, and shared by procs, builds and further images.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};
use rustix::io::Errno;
use thiserror::Error;
use vr_common::archive::{self, ArchiveError, UnpackOptions, bytes_in};
use vr_common::lock::{FileLock, LockError};
use vr_common::log::DOING;
use vr_common::paths::VrRoot;

use crate::container::{ContainerError, empty_file_instead_of_link};
use crate::tarballs::{self, TarballError, Work};

/// Says which tarball an image's `contents` were unpacked from, and which folder they are: see [`mark_of`].
const MARK: &str = "contents.mark";
/// Held by whoever brings the image into place, or tidies up.
const SETUP_LOCK: &str = ".setup.lock";
/// Begins the names of folders with former contents, or unfinished ones. Containers that use what is in there hold a lock
/// on it.
const LEFT: &str = "contents-left-";
/// What was never whole, of the time when images were unpacked in another way.
const LEFT_PARTS: &str = ".contents.part-";
/// The same as [`LEFT`], of the time when containers held no locks, or with contents of that time.
const LEFT_WITHOUT_LOCKS: &str = "contents-old-";

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
        let Self::Tarball { source, .. } = self else { return false };
        match source {
            TarballError::NoFileName { .. } => true,
            TarballError::Archive(error) => matches!(
                error,
                ArchiveError::UnknownCompression(_)
                    | ArchiveError::Corrupt { .. }
                    | ArchiveError::EntryRefused { .. }
                    | ArchiveError::TooMuch { .. }
            ),
            TarballError::Fetch(_) | TarballError::Io { .. } => false,
        }
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

    /// The contents' path.
    pub fn contents(&self) -> &Path {
        &self.contents
    }

    /// A path of the very contents that are held, whatever takes their place. It is good in this process only, for as long
    /// as this lives; made canonical, it is the one that they have at the moment.
    pub fn lasting_path(&self) -> PathBuf {
        // With the dot, it is that of a folder, and not of a link to one.
        PathBuf::from(format!("/proc/self/fd/{}/.", self.lock.file().as_raw_fd()))
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

/// Brings an image into place, as [`image_contents`] does, and holds its contents.
pub fn held_image(root: &VrRoot, name: &str, url: &str, md5: Option<&str>) -> Result<HeldImage, ImageError> {
    bring_and_hold(root, name, url, md5).map(|(held, _)| held)
}

/// As [`image_contents`]; says also what had to be done.
pub(crate) fn bring(
    root: &VrRoot,
    name: &str,
    url: &str,
    md5: Option<&str>,
) -> Result<(PathBuf, Work), ImageError> {
    let (held, work) = bring_and_hold(root, name, url, md5)?;
    let contents = held.contents.clone();
    // Never let go of: whoever asked is about to use them, and gets only a path.
    Box::leak(Box::new(held));
    Ok((contents, work))
}

fn bring_and_hold(
    root: &VrRoot,
    name: &str,
    url: &str,
    md5: Option<&str>,
) -> Result<(HeldImage, Work), ImageError> {
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
    let only_one = FileLock::wait(&folder.join(SETUP_LOCK), || {
        tracing::info!(target: DOING, "waiting for another setup of the image {name}");
    })?;
    // Says when it was last asked for. That a file system keeps no times is no reason to have no image.
    let _noted = only_one.file().set_modified(SystemTime::now());
    let tarball = folder.join(tarballs::file_name(url).map_err(tarball_error)?);
    let fetched = tarballs::fetch_checked(url, &tarball, md5).map_err(tarball_error)?;
    let mut work = Work { fetched: if fetched.downloaded { fetched.bytes } else { 0 }, unpacked: false };
    // Without a mark, nobody knows what they are and whether they are whole.
    let is_right = match marked(&folder) {
        Some(Marked { md5, .. }) => md5 == fetched.md5,
        None => false,
    };
    // Also when all is right: the last setup may have been killed just after it was.
    remove_left_in(&folder, false)?;
    if !is_right {
        replace(&folder, &tarball, &fetched.md5).map_err(|error| match error {
            Failure::Image(error) => error,
            Failure::Tarball(error) => tarball_error(error),
        })?;
        work.unpacked = true;
    }
    match HeldImage::find(&contents)? {
        Some(held) => Ok((held, work)),
        None => Err(io_error("find", &contents)(io::ErrorKind::NotFound.into())),
    }
}

/// What is known of an image's contents.
struct Marked {
    /// The sum of their tarball.
    md5: String,
    /// Whether every container that uses them holds a lock on them. Not so when they were unpacked before there were
    /// such locks: containers of that time may still run.
    with_locks: bool,
}

/// What is written down of contents. The folder's own number is part of it, so that it can be said before they are put
/// into place, and says nothing of any others.
fn mark_of(md5: &str, contents: &Path) -> io::Result<String> {
    Ok(format!("md5 {md5}\ninode {}\n", fs::symlink_metadata(contents)?.ino()))
}

fn marked(folder: &Path) -> Option<Marked> {
    let contents = folder.join("contents");
    let text = fs::read_to_string(folder.join(MARK)).ok()?;
    let md5 = text.lines().next()?.strip_prefix("md5 ")?.to_owned();
    if !contents.is_dir() {
        return None;
    }
    if text == mark_of(&md5, &contents).ok()? {
        return Some(Marked { md5, with_locks: true });
    }
    (text == format!("md5 {md5}\n")).then_some(Marked { md5, with_locks: false })
}

enum Failure {
    Image(ImageError),
    Tarball(TarballError),
}

/// Unpacks a tarball beside the contents and puts it in their place. Running containers still use the old ones, so
/// those are only moved away. The caller holds the image's lock.
fn replace(folder: &Path, tarball: &Path, md5: &str) -> Result<(), Failure> {
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
    let make = || {
        let mut new = aside.join("contents");
        tarballs::unpack(tarball, &new, UnpackOptions::image()).map_err(Failure::Tarball)?;
        // A link there would lead to a file of a running system, such as systemd's, that no container has.
        empty_file_instead_of_link(&new, Path::new("etc/resolv.conf"))
            .map_err(|error| Failure::Image(error.into()))?;
        let opened = File::open(folder).map_err(io_error("open", folder))?;
        syncfs(&opened).map_err(|error| io_error("write to disk", &new)(error.into()))?;
        // Before the exchange, so that nothing without locks is ever where it would be taken for something with them.
        if contents.exists() && !marked(folder).is_some_and(|old| old.with_locks) {
            let renamed = name_without_locks(&aside);
            fs::rename(&aside, &renamed).map_err(io_error("rename", &aside))?;
            new = renamed.join("contents");
        }
        let mark_file = folder.join(MARK);
        let mark = mark_of(md5, &new).map_err(io_error("look at", &new))?;
        fs::write(&mark_file, mark).map_err(io_error("write", &mark_file))?;
        exchange(&new, &contents).map_err(io_error("put into place", &contents))?;
        opened.sync_all().map_err(io_error("write to disk", folder))
    };
    let made = make();
    // What is there now did not get finished, or was there before and may be in use.
    remove_left_in(folder, false).map_err(Failure::Image)?;
    made
}

fn name_without_locks(aside: &Path) -> PathBuf {
    let name = aside.file_name().unwrap_or_default().to_string_lossy();
    aside.with_file_name(name.replacen(LEFT, LEFT_WITHOUT_LOCKS, 1))
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
pub(crate) fn remove_left(folder: &Path, dry_run: bool) -> Result<Vec<(PathBuf, u64)>, ImageError> {
    match FileLock::existing(&folder.join(SETUP_LOCK)) {
        Ok(_only_one) => remove_left_in(folder, dry_run),
        Err(LockError::Held(_)) => Ok(Vec::new()),
        // Not made by a setup.
        Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn remove_left_in(folder: &Path, dry_run: bool) -> Result<Vec<(PathBuf, u64)>, ImageError> {
    remove_left_before(folder, last_start(), dry_run)
}

/// Removes an image that no container uses and that was last asked for longer ago than `unused_for`; gives what it took, in
/// bytes. Its folder stays, with its locks. With `dry_run`, nothing is removed. The caller knows whether a proc refers to it,
/// and is asked once no setup can bring it any more.
pub(crate) fn remove_if_unused(
    folder: &Path,
    unused_for: Duration,
    dry_run: bool,
    is_referred_to: impl FnOnce() -> bool,
) -> Result<Option<u64>, ImageError> {
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ImageError::Io { action, path, source }
    };
    let lock = folder.join(SETUP_LOCK);
    let only_one = match FileLock::existing(&lock) {
        Ok(only_one) => only_one,
        Err(LockError::Held(_)) => return Ok(None),
        // Not made by a setup.
        Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let asked_for = only_one.file().metadata().and_then(|found| found.modified());
    // A time to come is that of a clock that was set back.
    let is_old = asked_for.map_err(io_error("look at", &lock))?.elapsed().is_ok_and(|age| age >= unused_for);
    // Of contents that were unpacked before containers held locks, nobody knows whether they are used.
    if !is_old || !marked(folder).is_some_and(|marked| marked.with_locks) {
        return Ok(None);
    }
    let contents = folder.join("contents");
    let Ok(nobody) = FileLock::existing(&contents) else { return Ok(None) };
    if is_referred_to() {
        return Ok(None);
    }
    let bytes = bytes_in(folder);
    if dry_run {
        return Ok(Some(bytes));
    }
    // In one step, so that half an image is never taken for a whole one.
    let aside = tempfile::Builder::new().prefix(LEFT).tempdir_in(folder);
    let aside = aside.map_err(io_error("make a folder in", folder))?.keep();
    fs::rename(&contents, aside.join("contents")).map_err(io_error("move away", &contents))?;
    drop(nobody);
    for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
        let entry = entry.map_err(io_error("list", folder))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && !entry.file_name().as_encoded_bytes().ends_with(b".lock") {
            let path = entry.path();
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    remove_left_in(folder, false)?;
    Ok(Some(bytes))
}

/// `start` is when the machine was started: no container is older.
fn remove_left_before(
    folder: &Path,
    start: Option<i64>,
    dry_run: bool,
) -> Result<Vec<(PathBuf, u64)>, ImageError> {
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
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let is_left = match &*name {
            name if name.starts_with(LEFT) || name.starts_with(LEFT_PARTS) => true,
            // Since it was moved away, no container has begun to use it.
            name if name.starts_with(LEFT_WITHOUT_LOCKS) => {
                let changed = entry.metadata().map_err(io_error("look at", &path))?.ctime();
                start.is_some_and(|start| changed < start)
            }
            _ => false,
        };
        if !is_left {
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
            if !dry_run {
                archive::remove_tree(&path).map_err(io_error("remove", &path))?;
            }
            removed.push((path, bytes));
        }
    }
    Ok(removed)
}

/// When this machine was started, in seconds of the clock that files have, if that is known.
fn last_start() -> Option<i64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
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
            assert!(replace(&folder, &folder.join("image.tar"), sum).is_ok());
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
        assert!(remove_left(&folder, false).unwrap().is_empty());
        drop(held);
        // Half of one, of the time when they were unpacked in another way.
        fs::create_dir_all(folder.join(".contents.part-0/half")).unwrap();
        let removed = remove_left(&folder, false).unwrap();
        assert!(removed.len() == 3 && removed.iter().all(|(_, bytes)| *bytes > 0), "{removed:?}");
        assert_eq!(left(), 0);
        assert_eq!(fs::read_to_string(contents.join("mark")).unwrap(), "three");
        // Nobody removes from under a setup.
        fs::create_dir(folder.join("contents-left-x")).unwrap();
        let setup = FileLock::existing(&folder.join(SETUP_LOCK)).unwrap();
        assert!(remove_left(&folder, false).unwrap().is_empty());
        drop(setup);
        assert_eq!(remove_left(&folder, false).unwrap().len(), 1);
        // What is held has a path, wherever it was moved.
        let sum = pack("held");
        let url = tarball.to_str().unwrap();
        let held = held_image(&root, "tiny", url, Some(&sum)).unwrap();
        let path = held.lasting_path();
        bring(&pack("other"));
        assert_eq!(fs::read_to_string(path.join("mark")).unwrap(), "held");
        assert_eq!(fs::read_to_string(held.contents().join("mark")).unwrap(), "other");
        drop(held);
        assert_eq!(remove_left(&folder, false).unwrap().len(), 1);
        // What was brought is held until this process ends.
        let sum = pack("four");
        let url = tarball.to_str().unwrap();
        assert_eq!(image_contents(&root, "tiny", url, Some(&sum)).unwrap(), contents);
        bring(&pack("five"));
        assert_eq!(left(), 1);
    }

    #[test]
    fn an_image_that_a_proc_refers_to_by_now_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("images/tiny");
        let (files, tarball) = (dir.path().join("files"), dir.path().join("image.tar"));
        fs::create_dir_all(&files).unwrap();
        fs::create_dir_all(&folder).unwrap();
        let mut tar = vr_common::process::command("tar");
        assert!(tar.arg("-C").arg(&files).arg("-cf").arg(&tarball).arg(".").status().unwrap().success());
        let sum = vr_common::fetch::md5_file(&tarball).unwrap();
        let only_one = FileLock::wait(&folder.join(SETUP_LOCK), || {}).unwrap();
        tarballs::fetch_checked(tarball.to_str().unwrap(), &folder.join("image.tar"), Some(&sum)).unwrap();
        assert!(replace(&folder, &folder.join("image.tar"), &sum).is_ok());
        let remove =
            |is_referred_to| remove_if_unused(&folder, Duration::ZERO, false, || is_referred_to).unwrap();
        assert_eq!(remove(false), None, "a setup works on it");
        drop(only_one);
        assert_eq!(remove(true), None);
        assert!(folder.join("contents").is_dir());
        assert!(remove(false).is_some());
        assert!(!folder.join("contents").exists());
    }

    #[test]
    fn contents_that_containers_may_use_without_a_lock_stay_until_the_machine_is_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = VrRoot::new(dir.path().join("apps"));
        let folder = root.image("tiny");
        // As the first version left it: with contents that it moved away, and those that its containers use now.
        let moved = folder.join("contents-old-x/contents");
        fs::create_dir_all(&moved).unwrap();
        fs::create_dir(folder.join("contents")).unwrap();
        let used = fs::metadata(folder.join("contents")).unwrap().ino();
        let sum = "0123456789abcdef0123456789abcdef";
        fs::write(folder.join(MARK), format!("md5 {sum}\n")).unwrap();
        assert!(marked(&folder).is_some_and(|there| there.md5 == sum && !there.with_locks), "unpacked again");
        let files = dir.path().join("files");
        fs::create_dir(&files).unwrap();
        fs::write(files.join("mark"), "new").unwrap();
        let tarball = dir.path().join("image.tar");
        let mut tar = vr_common::process::command("tar");
        assert!(tar.arg("-C").arg(&files).arg("-cf").arg(&tarball).arg(".").status().unwrap().success());
        let url = tarball.to_str().unwrap();
        assert!(bring(&root, "tiny", url, None).unwrap().1.unpacked);
        assert!(!bring(&root, "tiny", url, None).unwrap().1.unpacked);
        assert_eq!(fs::read_to_string(folder.join("contents/mark")).unwrap(), "new");
        assert!(marked(&folder).is_some_and(|there| there.with_locks));
        let is_there = || {
            fs::read_dir(&folder).unwrap().any(|entry| {
                let contents = entry.unwrap().path().join("contents");
                fs::metadata(contents).is_ok_and(|found| found.ino() == used)
            })
        };
        assert!(remove_left(&folder, false).unwrap().is_empty() && moved.exists() && is_there());
        assert!(remove_left_before(&folder, None, false).unwrap().is_empty());
        // Once the machine was started again, nobody uses them.
        let now = fs::metadata(&moved).unwrap().ctime();
        assert!(last_start().is_some_and(|start| start > 0 && start <= now));
        assert_eq!(remove_left_before(&folder, Some(now + 1000), false).unwrap().len(), 2);
        assert!(!moved.exists() && !is_there() && folder.join("contents/mark").exists());
        // A mark that was written for contents that did not come is none.
        fs::write(folder.join(MARK), format!("md5 {sum}\ninode 1\n")).unwrap();
        assert!(marked(&folder).is_none());
    }
}
