//! What buildpacks keep from one build of an app to the next.
//!
//! A build sees the saved cache through an overlay, so nothing is copied, however large it is, and a build that fails
//! changes nothing. After a success the changes are put into the saved cache: they are first moved beside it in one
//! step, and then carried out one by one. Each of them can be carried out twice, so whoever finds changes beside a
//! cache, because somebody died in between, just carries out what is left of them.
//!
//! Whoever is at work here holds the app's lock.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, RenameFlags, Timespec, Timestamps, lgetxattr, renameat_with, syncfs, utimensat,
};
use rustix::io::Errno;
use vr_common::archive::{bytes_in, remove_tree};
use vr_common::vcs::copy_tree;
use vr_runner::container::{
    BindMount, ContainerSpec, Credentials, OverlayMount, Upper, can_be_upper, overlay_view,
};
use walkdir::WalkDir;

use crate::{BuildError, Folders};

/// Where the container sees the folder that the cache is in. It belongs to the build, so that a buildpack can remove the
/// cache and make it anew.
const PARENT_INSIDE: &str = "/cache";
/// The cache's name in it.
const NAME: &str = "buildpack_cache";
/// Where the container sees the cache.
pub(crate) const INSIDE: &str = "/cache/buildpack_cache";
/// How many files are waited for one by one.
const MOST_SYNCED_ALONE: usize = 64;
/// An overlay's notes about a folder, in extended attributes; <https://docs.kernel.org/filesystems/overlayfs.html>.
const OPAQUE: &str = "trusted.overlay.opaque";
const NOTES_OF_MOVES: [&str; 2] = ["trusted.overlay.redirect", "trusted.overlay.metacopy"];

/// What a build sees below what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    /// The saved cache.
    Saved,
    /// An empty folder. Overlays refuse files that they would take for notes of their own, so there is always one.
    Nothing,
    /// There is none, as the file system takes no changes of an overlay: what is saved was copied.
    NoOverlay,
}

/// The cache of an app, as one build sees it.
#[derive(Debug)]
pub(crate) struct Cache {
    saved: PathBuf,
    changes: PathBuf,
    size_note: PathBuf,
    left_by_python: PathBuf,
    below: Below,
    /// The folder of what the build writes, beside it one that an overlay needs, and an empty one.
    upper: PathBuf,
    work: PathBuf,
    nothing: PathBuf,
    /// Where a folder can be put aside until it is removed.
    aside: PathBuf,
}

impl Cache {
    /// Opens the cache of the app whose repository folder is `folder`. What is written goes below `scratch`, a folder on
    /// the same file system. With `from_nothing` the build begins with an empty cache.
    pub(crate) fn open(
        folders: &Folders,
        folder: &str,
        scratch: &Path,
        from_nothing: bool,
        user: &Credentials,
    ) -> Result<Self, BuildError> {
        let saved = folders.cache(folder);
        let parent = folders.caches();
        folders.make_private(&parent)?;
        let layers = scratch.join("cache");
        let [upper, work, nothing] = ["upper", "work", "nothing"].map(|name| layers.join(name));
        for made in [&layers, &upper, &work, &nothing] {
            fs::create_dir(made).map_err(BuildError::io("make", made))?;
        }
        let mut cache = Self {
            changes: folders.cache_changes(folder),
            size_note: folders.cache_size(folder),
            left_by_python: parent.join(format!(".{folder}.python")),
            below: Below::Nothing,
            aside: scratch.join("old-cache"),
            saved,
            upper,
            work,
            nothing,
        };
        if cache.finish_what_was_begun() {
            cache.make_inner().map_err(BuildError::io("repair", &cache.saved))?;
        }
        let inner = cache.saved.join(NAME);
        cache.adopt(&inner).map_err(BuildError::io("take over the cache", &cache.saved))?;
        let is_wanted = !from_nothing && cache.saved.is_dir();
        if is_wanted {
            cache.give(user).map_err(BuildError::io("give to the build user", &cache.saved))?;
        }
        cache.below = match can_be_upper(&cache.upper).map_err(BuildError::io("look at", &cache.upper))? {
            Upper::Possible if is_wanted => Below::Saved,
            Upper::Possible => Below::Nothing,
            Upper::Doubtful(file_system) | Upper::Impossible(file_system) => {
                if is_wanted {
                    tracing::info!("copying the cache, as {file_system} takes no changes of an overlay");
                    copy_tree(&cache.saved, &cache.upper)?;
                }
                Below::NoOverlay
            }
        };
        // The root of an overlay has the owner and the mode of the folder for its changes.
        let mut theirs = vec![cache.upper.clone()];
        if cache.below != Below::Saved || !inner.is_dir() {
            let new = cache.upper.join(NAME);
            fs::create_dir_all(&new).map_err(BuildError::io("make", &new))?;
            theirs.push(new);
        }
        for folder in theirs {
            lchown(&folder, Some(user.uid), Some(user.gid))
                .map_err(BuildError::io("give to the build user", &folder))?;
        }
        Ok(cache)
    }

    /// Shows it to a container.
    pub(crate) fn mount(&self, spec: &mut ContainerSpec) {
        let target = PathBuf::from(PARENT_INSIDE);
        let lower = match self.below {
            Below::Saved => &self.saved,
            Below::Nothing => &self.nothing,
            Below::NoOverlay => {
                spec.mounts.push(BindMount { source: self.upper.clone(), target, read_only: false });
                return;
            }
        };
        let (upper, work) = (self.upper.clone(), self.work.clone());
        spec.overlays.push(OverlayMount { lowers: vec![lower.clone()], upper, work, target });
    }

    /// Saves what the build made of it, and gives its size in bytes. When that fails, the cache is gone, but nothing
    /// stands in the way of the next build.
    pub(crate) fn save(&self) -> Result<u64, BuildError> {
        let save = || -> io::Result<bool> {
            let changed = match self.below {
                Below::Saved => self.save_changes()?,
                Below::Nothing | Below::NoOverlay => {
                    sync(&self.upper)?;
                    self.replace_with(&self.upper)?;
                    true
                }
            };
            self.make_inner()?;
            Ok(changed)
        };
        let changed = save().map_err(|error| {
            self.forget();
            BuildError::io("save the cache in", &self.saved)(error)
        })?;
        match read_size(&self.size_note) {
            Some(bytes) if !changed => Ok(bytes),
            _ => note_size(&self.saved, &self.size_note),
        }
    }

    /// Makes the folder inside, should the build have left none: it is what tells a cache of ours.
    fn make_inner(&self) -> io::Result<()> {
        let inner = self.saved.join(NAME);
        if fs::symlink_metadata(&inner).is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        remove_tree(&inner)?;
        fs::create_dir(&inner)?;
        let owner = fs::metadata(&self.saved)?;
        lchown(&inner, Some(owner.uid()), Some(owner.gid()))
    }

    /// Puts a folder in the place of the saved one, in one step.
    fn replace_with(&self, new: &Path) -> io::Result<()> {
        match renameat_with(CWD, new, CWD, &self.saved, RenameFlags::EXCHANGE) {
            // The old one is now in the scratch folder, and goes with it.
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => fs::rename(new, &self.saved),
            // Not every file system can exchange two folders.
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::rename(&self.saved, &self.aside)?;
                fs::rename(new, &self.saved)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives whether there were any.
    fn save_changes(&self) -> io::Result<bool> {
        if fs::read_dir(&self.upper)?.next().is_none() {
            return Ok(false);
        }
        if has_moves(&self.upper)? {
            // Where a folder was moved from is noted only as a path, and may have changed meanwhile: better let the
            // kernel say what it all means.
            let view = overlay_view(&[self.upper.clone(), self.saved.clone()]).map_err(io::Error::other)?;
            let whole = self.upper.with_file_name("whole");
            let shown = PathBuf::from(format!("/proc/self/fd/{}", view.as_raw_fd()));
            copy_tree(&shown, &whole).map_err(io::Error::other)?;
            sync(&whole)?;
            self.replace_with(&whole)?;
            return Ok(true);
        }
        sync(&self.upper)?;
        fs::rename(&self.upper, &self.changes)?;
        carry_out(&self.changes, &self.saved)?;
        remove_tree(&self.changes)?;
        Ok(true)
    }

    /// Carries out what somebody who died left undone, and gives whether there now is a cache of which that is so.
    fn finish_what_was_begun(&self) -> bool {
        if fs::symlink_metadata(&self.changes).is_err() {
            return false;
        }
        tracing::info!(cache = %self.saved.display(), "putting changes of a killed build into the cache");
        // It is about the cache as it was before. Without one, the size is found out again.
        let _gone = fs::remove_file(&self.size_note);
        let finish = || -> io::Result<()> {
            carry_out(&self.changes, &self.saved)?;
            remove_tree(&self.changes)
        };
        if let Err(error) = finish() {
            tracing::warn!(cache = %self.saved.display(), %error, "the cache is broken, beginning with an empty one");
            self.forget();
            return false;
        }
        true
    }

    /// A cache that the Python suite saved has no folder inside; it becomes that folder. Whoever comes after somebody who
    /// died in between ends it.
    fn adopt(&self, inner: &Path) -> io::Result<()> {
        let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
        if self.saved.is_dir() && !is_there(inner) && !is_there(&self.left_by_python) {
            fs::rename(&self.saved, &self.left_by_python)?;
        }
        if is_there(&self.left_by_python) {
            fs::create_dir_all(&self.saved)?;
            remove_tree(inner)?;
            fs::rename(&self.left_by_python, inner)?;
            let _gone = fs::remove_file(&self.size_note);
        }
        Ok(())
    }

    /// Takes everything away.
    fn forget(&self) {
        for path in [&self.changes, &self.size_note, &self.saved] {
            if let Err(error) = remove_tree(path) {
                tracing::warn!(path = %path.display(), %error, "a broken cache stays");
            }
        }
    }

    /// Gives all files to the build user, should they be another's.
    fn give(&self, user: &Credentials) -> io::Result<()> {
        let found = fs::metadata(&self.saved)?;
        if (found.uid(), found.gid()) == (user.uid, user.gid) {
            return Ok(());
        }
        // Those inside first, so that what was begun and not ended is begun again.
        for entry in WalkDir::new(&self.saved).follow_links(false).contents_first(true) {
            lchown(entry?.path(), Some(user.uid), Some(user.gid))?;
        }
        Ok(())
    }
}

/// Reads a note of a cache's size, in bytes.
pub(crate) fn read_size(note: &Path) -> Option<u64> {
    fs::read_to_string(note).ok()?.trim().parse().ok()
}

/// Finds out how large a cache is, in bytes, and writes it to its note.
fn note_size(cache: &Path, note: &Path) -> Result<u64, BuildError> {
    let bytes = bytes_in(cache);
    fs::write(note, format!("{bytes}\n")).map_err(BuildError::io("write", note))?;
    Ok(bytes)
}

/// Whether an overlay's upper folder tells of folders that were moved.
fn has_moves(upper: &Path) -> io::Result<bool> {
    for entry in WalkDir::new(upper).follow_links(false) {
        let entry = entry?;
        for note in NOTES_OF_MOVES {
            if attribute(entry.path(), note)?.is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Puts the changes of an overlay's upper folder into the folder that it was over. Nobody else may be at work in either.
fn carry_out(changes: &Path, saved: &Path) -> io::Result<()> {
    let explained =
        |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    for entry in fs::read_dir(changes)? {
        let entry = entry?;
        let (from, to) = (entry.path(), saved.join(entry.file_name()));
        one_change(&from, &to, &entry.metadata()?).map_err(|error| explained(&from, error))?;
    }
    // Last, because making entries changes the time.
    dress(saved, &fs::symlink_metadata(changes)?).map_err(|error| explained(saved, error))
}

fn one_change(from: &Path, to: &Path, change: &Metadata) -> io::Result<()> {
    if change.file_type().is_char_device() && change.rdev() == 0 {
        // It was removed.
        return remove_tree(to).and_then(|()| fs::remove_file(from));
    }
    let there = fs::symlink_metadata(to).ok();
    let replaces = attribute(from, OPAQUE)?.is_some_and(|value| value == b"y");
    match there {
        Some(there) if there.is_dir() && change.is_dir() && !replaces => {
            carry_out(from, to)?;
            fs::remove_dir(from)
        }
        Some(there) if there.is_dir() || change.is_dir() => {
            remove_tree(to)?;
            fs::rename(from, to)
        }
        _ => fs::rename(from, to),
    }
}

/// Waits until the files in a folder are on the disk: a file of the cache may have its new content or its old one after
/// a failure of the machine's power, but not none. A few are waited for one by one, as their file system also has all
/// that the build wrote, and most of that is about to be removed.
fn sync(folder: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in WalkDir::new(folder).follow_links(false) {
        let entry = entry?;
        if entry.file_type().is_file() {
            files.push(entry.into_path());
        }
        if files.len() > MOST_SYNCED_ALONE {
            return Ok(syncfs(fs::File::open(folder)?)?);
        }
    }
    files.iter().try_for_each(|path| fs::File::open(path)?.sync_data())
}

/// Gives a folder the owner, mode and time of another.
fn dress(folder: &Path, like: &Metadata) -> io::Result<()> {
    chown(folder, Some(like.uid()), Some(like.gid()))?;
    fs::set_permissions(folder, Permissions::from_mode(like.mode() & 0o7777))?;
    let time = Timespec { tv_sec: like.mtime(), tv_nsec: like.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, folder, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// An extended attribute of the path itself, links included; its first bytes.
fn attribute(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = [0; 8];
    match lgetxattr(path, name, &mut value[..]) {
        Ok(length) => Ok(Some(value[..length].to_vec())),
        // It is there, and longer.
        Err(Errno::RANGE) => Ok(Some(value.to_vec())),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};

    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn whiteout(path: &Path) {
        mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(0, 0)).unwrap();
    }

    fn listing(root: &Path) -> Vec<String> {
        let mut found: Vec<String> = WalkDir::new(root)
            .min_depth(1)
            .into_iter()
            .map(|entry| {
                let entry = entry.unwrap();
                let shown = entry.path().strip_prefix(root).unwrap().display().to_string();
                match entry.file_type() {
                    kind if kind.is_dir() => shown + "/",
                    kind if kind.is_file() => {
                        format!("{shown}: {}", fs::read_to_string(entry.path()).unwrap())
                    }
                    _ => format!("{shown} -> {}", fs::read_link(entry.path()).unwrap().display()),
                }
            })
            .collect();
        found.sort();
        found
    }

    /// A cache and what an overlay over it could have as its upper folder.
    fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (saved, changes) = (dir.path().join("saved"), dir.path().join("changes"));
        for (path, text) in [
            ("kept/a", "a"),
            ("kept/changed", "old"),
            ("removed", "r"),
            ("gone/deep/x", "x"),
            ("replaced/old", "o"),
            ("folder/x", "x"),
            ("file", "f"),
        ] {
            write(&saved.join(path), text);
        }
        write(&dir.path().join("outside/precious"), "p");
        symlink("../outside", saved.join("link")).unwrap();
        for (path, text) in [
            ("kept/changed", "new"),
            ("new/deep/file", "n"),
            ("replaced/new", "n"),
            ("folder", "now a file"),
            ("file/x", "now a folder"),
            ("link/x", "now a folder"),
        ] {
            write(&changes.join(path), text);
        }
        for path in ["removed", "gone"] {
            whiteout(&changes.join(path));
        }
        lsetxattr(changes.join("replaced"), OPAQUE, b"y", XattrFlags::empty()).unwrap();
        fs::set_permissions(changes.join("kept"), Permissions::from_mode(0o711)).unwrap();
        (dir, saved, changes)
    }

    const AFTERWARDS: [&str; 13] = [
        "file/",
        "file/x: now a folder",
        "folder: now a file",
        "kept/",
        "kept/a: a",
        "kept/changed: new",
        "link/",
        "link/x: now a folder",
        "new/",
        "new/deep/",
        "new/deep/file: n",
        "replaced/",
        "replaced/new: n",
    ];

    #[test]
    fn changes_removals_and_replacements_are_carried_out() {
        let (dir, saved, changes) = folders();
        carry_out(&changes, &saved).unwrap();
        assert_eq!(listing(&saved), AFTERWARDS);
        assert_eq!(fs::metadata(saved.join("kept")).unwrap().mode() & 0o7777, 0o711);
        assert_eq!(listing(&changes), Vec::<String>::new());
        assert!(dir.path().join("outside/precious").exists());
    }

    #[test]
    fn what_was_cut_off_anywhere_is_carried_out_by_the_next() {
        // As if the first had died after each of its changes in turn, in the order of its own.
        let (_dir, saved, changes) = folders();
        let count = fs::read_dir(&changes).unwrap().count();
        for done in 0..count {
            let (_dir, saved, changes) = folders();
            for entry in fs::read_dir(&changes).unwrap().take(done) {
                let entry = entry.unwrap();
                let to = saved.join(entry.file_name());
                one_change(&entry.path(), &to, &entry.metadata().unwrap()).unwrap();
            }
            // And in the middle of a removal.
            let _gone = fs::remove_file(saved.join("gone/deep/x"));
            carry_out(&changes, &saved).unwrap();
            assert_eq!(listing(&saved), AFTERWARDS, "after {done}");
        }
        carry_out(&changes, &saved).unwrap();
        carry_out(&changes, &saved).unwrap();
        assert_eq!(listing(&saved), AFTERWARDS);
    }
}
