//! Builds that procs share: each is unpacked once for a host and an owner, and lies as a layer under the root of every
//! proc that uses it, so that a further proc costs neither time nor room.
//!
//! `builds/unpacked/<key>/` is one of them; the files are in `layer/app/` there. Everybody who uses it holds a shared
//! lock on that folder, and whoever makes or removes it holds the lock alone. Its modification time says when it was
//! last used. This module must not know what is in a build or which proc uses it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens, syncfs};
use vr_common::archive::{self, UnpackOptions};
use vr_common::fetch::{Fetched, known_md5};
use vr_common::lock::{FileLock, LockError};
use vr_common::log::DOING;
use vr_common::paths::VrRoot;
use vr_common::proc_data::is_file_name;

use super::ProcError;
use super::files::make_folder;
use crate::tarballs::{self, Work};

/// The finished layer.
const LAYER: &str = "layer";
/// A layer in the making, or what a killed setup left of it.
const UNFINISHED: &str = "unfinished";

/// Where all of them are.
pub(super) fn folder_of_all(root: &VrRoot) -> PathBuf {
    root.builds().join("unpacked")
}

/// The folder of a layer, with `app` in it.
pub(super) fn path(root: &VrRoot, key: &str) -> PathBuf {
    folder_of_all(root).join(key).join(LAYER)
}

/// Whom a build's files belong to, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// An unpacked build that nobody removes for as long as this lives.
#[derive(Debug)]
pub(super) struct HeldLayer {
    key: String,
    folder: PathBuf,
    work: Work,
    _lock: FileLock,
}

impl HeldLayer {
    /// Holds the one with the given key; `None` when there is none.
    pub fn find(root: &VrRoot, key: &str) -> Result<Option<Self>, ProcError> {
        if !is_file_name(key) {
            return Ok(None);
        }
        let folder = folder_of_all(root).join(key);
        let lock = loop {
            let lock = match FileLock::shared(&folder, || {
                tracing::info!(target: DOING, "waiting for another command that unpacks or removes the same build");
            }) {
                Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    return Ok(None);
                }
                taken => taken?,
            };
            // It may have been removed, and made again, while we waited.
            if lock.is_on(&folder) {
                break lock;
            }
        };
        if !folder.join(LAYER).is_dir() {
            return Ok(None);
        }
        touch(lock.file(), &folder)?;
        Ok(Some(Self { key: key.to_owned(), folder, work: Work::default(), _lock: lock }))
    }

    /// Its name among all of them.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What had to be done to bring it into place.
    pub fn work(&self) -> Work {
        self.work
    }

    /// The folder with `app` in it.
    pub fn path(&self) -> PathBuf {
        self.folder.join(LAYER)
    }
}

/// Says that the build of this folder is used now.
fn touch(opened: &File, folder: &Path) -> Result<(), ProcError> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    futimens(opened, &Timestamps { last_access: now, last_modification: now }).map_err(|error| {
        ProcError::Io { step: "set the time of", path: folder.to_owned(), source: error.into() }
    })
}

/// Brings a build into place unless it is there, and holds it. Two setups of the same build wait for each other.
pub(super) fn bring(
    root: &VrRoot,
    url: &str,
    md5: Option<&str>,
    owner: Owner,
) -> Result<HeldLayer, ProcError> {
    let tarball = root.builds().join(tarballs::file_name(url)?);
    let key = |md5: &str| format!("{}-{}-{}", md5.to_ascii_lowercase(), owner.uid, owner.gid);
    let known = md5.map(str::to_owned).or_else(|| known_md5(url, &tarball));
    if let Some(md5) = &known
        && let Some(held) = HeldLayer::find(root, &key(md5))?
    {
        return Ok(held);
    }
    let _only_one = keep_others_from(root, url)?;
    make_folder(&folder_of_all(root), 0o700)?;
    // Whoever was waited for may have done all the work.
    if let Some(md5) = md5
        && let Some(held) = HeldLayer::find(root, &key(md5))?
    {
        return Ok(held);
    }
    let fetched = tarballs::fetch_checked(url, &tarball, md5)?;
    let mut work = Work { fetched: bytes_of(&fetched), unpacked: false };
    let key = key(&fetched.md5);
    loop {
        if let Some(held) = HeldLayer::find(root, &key)? {
            return Ok(HeldLayer { work, ..held });
        }
        work.unpacked |= unpack(root, &key, &tarball, owner)?;
    }
}

/// Another proc's build may have the same file name and another sum. Until this one is unpacked, it must not take the
/// tarball's place.
fn keep_others_from(root: &VrRoot, url: &str) -> Result<FileLock, ProcError> {
    let name = tarballs::file_name(url)?;
    let io_error = |source| ProcError::Io { step: "make the folder", path: root.builds(), source };
    fs::create_dir_all(root.path()).map_err(io_error)?;
    // Builds may hold what is nobody else's business on this host.
    make_folder(&root.builds(), 0o700)?;
    Ok(FileLock::wait(&root.builds().join(format!(".{name}.setup.lock")), || {
        tracing::info!(target: DOING, "waiting for another setup with a tarball called {name}");
    })?)
}

fn bytes_of(fetched: &Fetched) -> u64 {
    if fetched.downloaded { fetched.bytes } else { 0 }
}

/// Unpacks a build for one proc alone, into a folder that is not there yet.
pub(super) fn copy(
    root: &VrRoot,
    url: &str,
    md5: Option<&str>,
    owner: Owner,
    into: &Path,
) -> Result<Work, ProcError> {
    let _only_one = keep_others_from(root, url)?;
    let tarball = root.builds().join(tarballs::file_name(url)?);
    let fetched = tarballs::fetch_checked(url, &tarball, md5)?;
    tarballs::unpack(&tarball, into, UnpackOptions::build(owner.uid, owner.gid))?;
    let io_error = |source| ProcError::Io { step: "write to disk", path: into.to_owned(), source };
    syncfs(File::open(into).map_err(io_error)?).map_err(|error| io_error(error.into()))?;
    Ok(Work { fetched: bytes_of(&fetched), unpacked: true })
}

/// Makes a layer, unless somebody else does meanwhile; says whether it did.
fn unpack(root: &VrRoot, key: &str, tarball: &Path, owner: Owner) -> Result<bool, ProcError> {
    let folder = folder_of_all(root).join(key);
    make_folder(&folder, 0o700)?;
    let _alone = match FileLock::wait_for_existing(&folder, || {
        tracing::info!(target: DOING, "waiting for another command that unpacks or removes the same build");
    }) {
        Ok(lock) if lock.is_on(&folder) => lock,
        Ok(_) => return Ok(false),
        Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let layer = folder.join(LAYER);
    if layer.is_dir() {
        return Ok(false);
    }
    let unfinished = folder.join(UNFINISHED);
    let io_error = |step, path: &Path| {
        let path = path.to_owned();
        move |source| ProcError::Io { step, path, source }
    };
    archive::remove_tree(&unfinished).map_err(io_error("remove", &unfinished))?;
    let make = || -> Result<(), ProcError> {
        make_folder(&unfinished, 0o755)?;
        let options = UnpackOptions::build(owner.uid, owner.gid);
        tarballs::unpack(tarball, &unfinished.join("app"), options)?;
        let opened = File::open(&folder).map_err(io_error("open", &folder))?;
        syncfs(&opened).map_err(|e| io_error("write to disk", &folder)(e.into()))?;
        fs::rename(&unfinished, &layer).map_err(io_error("put into place", &layer))?;
        opened.sync_all().map_err(io_error("write to disk", &folder))
    };
    let made = make();
    if made.is_err() {
        for (path, removed) in
            [(&unfinished, archive::remove_tree(&unfinished)), (&folder, fs::remove_dir(&folder))]
        {
            if let Err(error) = removed {
                tracing::warn!(folder = %path.display(), %error, "cannot remove what was unpacked");
            }
        }
    }
    made.map(|()| true)
}

/// Says that a build was used until now, though it is not any more.
pub(super) fn was_used_until_now(root: &VrRoot, key: &str) {
    if let Err(error) = HeldLayer::find(root, key) {
        tracing::warn!(error = vr_common::exit::chain(&error), "the use of a build is not written down");
    }
}

/// Removes a build's folder if nobody uses or makes it, nothing refers to it, and it is unfinished or was last used
/// longer ago than `unused_for`. Gives what it took, in bytes. With `dry_run`, nothing is removed.
pub(super) fn remove_if_unused(
    root: &VrRoot,
    key: &str,
    unused_for: std::time::Duration,
    dry_run: bool,
    is_referred_to: impl FnOnce() -> Result<bool, ProcError>,
) -> Result<Option<u64>, ProcError> {
    let folder = folder_of_all(root).join(key);
    let alone = match FileLock::existing(&folder) {
        Ok(alone) if alone.is_on(&folder) => alone,
        Ok(_) | Err(LockError::Held(_)) => return Ok(None),
        Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let io_error = |step, path: &Path| {
        let path = path.to_owned();
        move |source| ProcError::Io { step, path, source }
    };
    let layer = folder.join(LAYER);
    if layer.exists() {
        let used = alone
            .file()
            .metadata()
            .and_then(|found| found.modified())
            .map_err(io_error("look at", &folder))?;
        // A time to come is that of a clock that was set back.
        let is_old = used.elapsed().is_ok_and(|age| age >= unused_for);
        // With the lock held alone: who refers to it says so before it lets go of its own lock.
        if !is_old || is_referred_to()? {
            return Ok(None);
        }
        if dry_run {
            return Ok(Some(archive::bytes_in(&folder)));
        }
        // In one step, so that half a layer is never taken for a whole one.
        let gone = folder.join(UNFINISHED);
        archive::remove_tree(&gone).map_err(io_error("remove", &gone))?;
        fs::rename(&layer, &gone).map_err(io_error("move away", &layer))?;
    }
    let bytes = archive::bytes_in(&folder);
    if dry_run {
        return Ok(Some(bytes));
    }
    archive::remove_tree(&folder).map_err(io_error("remove", &folder))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn build(folder: &Path) -> PathBuf {
        let tarball = folder.join("build.tar");
        let files = folder.join("files");
        fs::create_dir_all(&files).unwrap();
        fs::write(files.join("file"), "content").unwrap();
        let mut tar = vr_common::process::command("tar");
        assert!(tar.arg("-C").arg(&files).arg("-cf").arg(&tarball).arg(".").status().unwrap().success());
        tarball
    }

    #[test]
    fn a_held_layer_is_not_removed_and_a_removed_one_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = VrRoot::new(dir.path().join("apps"));
        let tarball = build(dir.path());
        let url = tarball.to_str().unwrap();
        let owner = Owner { uid: 1, gid: 2 };
        // As in a setup that has not written down yet that its proc uses it.
        let held = bring(&root, url, None, owner).unwrap();
        let key = held.key().to_owned();
        assert!(key.ends_with("-1-2") && held.path().join("app/file").is_file());
        let remove = |is_referred_to| {
            remove_if_unused(&root, &key, Duration::ZERO, false, || Ok(is_referred_to)).unwrap()
        };
        assert_eq!(remove(false), None);
        drop(held);
        assert_eq!(remove(true), None);
        assert!(remove(false).is_some_and(|bytes| bytes > 0));
        assert!(HeldLayer::find(&root, &key).unwrap().is_none());
        assert_eq!(remove(false), None);
        // The tarball is still there.
        fs::remove_file(&tarball).unwrap();
        let again = bring(&root, url, None, owner).unwrap();
        assert_eq!((again.key(), again.path()), (key.as_str(), path(&root, &key)));
        assert!(HeldLayer::find(&root, "../builds").unwrap().is_none());
    }

    #[test]
    fn a_build_that_cannot_be_unpacked_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = VrRoot::new(dir.path().join("apps"));
        let tarball = dir.path().join("build.tar.gz");
        fs::write(&tarball, "no tarball").unwrap();
        let owner = Owner { uid: 1, gid: 2 };
        assert!(bring(&root, tarball.to_str().unwrap(), None, owner).is_err());
        assert_eq!(fs::read_dir(folder_of_all(&root)).unwrap().count(), 0);
    }
}
