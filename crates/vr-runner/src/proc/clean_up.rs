//! The clean-up of a host: what nobody uses any more, and what killed commands left.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use vr_common::exit;
use vr_common::paths::VrRoot;

use super::record::Record;
use super::{ProcError, layer, scratch};
use crate::{image, tarballs};

/// What a clean-up removed.
#[derive(Debug, Default)]
pub struct CleanedUp {
    /// In the order in which it went.
    pub removed: Vec<Removed>,
    /// What could not be removed, or not be looked at, and why. The rest was done all the same.
    pub failures: Vec<ProcError>,
}

impl CleanedUp {
    /// How much room that made, in bytes.
    pub fn bytes(&self) -> u64 {
        self.removed.iter().map(|removed| removed.bytes).sum()
    }
}

/// Something that a clean-up removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// What it was.
    pub kind: RemovedKind,
    /// Where it was.
    pub path: PathBuf,
    /// What it took on disk, in bytes.
    pub bytes: u64,
}

/// The kinds of things that a clean-up removes. Displayed for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RemovedKind {
    /// A build that no proc uses, or that was never unpacked to its end.
    UnpackedBuild,
    /// An image that another one has replaced, or that was never unpacked to its end.
    ReplacedImage,
    /// A tarball of which a part was fetched.
    UnfinishedDownload,
    /// What an uptest or a shell wrote that was killed.
    ScratchFolder,
}

impl fmt::Display for RemovedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnpackedBuild => "unpacked build",
            Self::ReplacedImage => "replaced image",
            Self::UnfinishedDownload => "unfinished download",
            Self::ScratchFolder => "scratch folder",
        })
    }
}

/// Removes unpacked builds that no proc uses and that were last used longer ago than `unused_for`, and what killed
/// commands left: unfinished builds, images and downloads, replaced images, and scratch folders. What a container or
/// another command uses stays, and nobody has to wait for it to be done.
///
/// Errors: only when the host's folders cannot be listed; anything else is among the failures.
pub fn clean_up(root: &VrRoot, unused_for: Duration) -> Result<CleanedUp, ProcError> {
    let mut done = CleanedUp::default();
    clean_builds(root, unused_for, &mut done)?;
    for folder in folders_in(&root.images())? {
        match image::remove_left(&folder) {
            Ok(removed) => done.add(RemovedKind::ReplacedImage, removed),
            Err(error) => done.failures.push(error.into()),
        }
        clean_downloads(&folder, &mut done);
    }
    clean_downloads(&root.builds(), &mut done);
    for folder in folders_in(&root.procs())? {
        match scratch::remove_left(&folder) {
            Ok(removed) => done.add(RemovedKind::ScratchFolder, removed),
            Err(error) => done.failures.push(error),
        }
    }
    Ok(done)
}

impl CleanedUp {
    fn add(&mut self, kind: RemovedKind, removed: Vec<(PathBuf, u64)>) {
        self.removed.extend(removed.into_iter().map(|(path, bytes)| Removed { kind, path, bytes }));
    }
}

fn clean_downloads(folder: &Path, done: &mut CleanedUp) {
    match tarballs::remove_unfinished(folder) {
        Ok(removed) => done.add(RemovedKind::UnfinishedDownload, removed),
        Err(error) => done.failures.push(error.into()),
    }
}

fn clean_builds(root: &VrRoot, unused_for: Duration, done: &mut CleanedUp) -> Result<(), ProcError> {
    // What keeps one build from being judged does so for all; once is enough.
    let mut said = BTreeSet::new();
    for folder in folders_in(&layer::folder_of_all(root))? {
        let Some(key) = folder.file_name().and_then(|name| name.to_str()) else { continue };
        match layer::remove_if_unused(root, key, unused_for, || Ok(keys_in_use(root)?.contains(key))) {
            Ok(Some(bytes)) => done.add(RemovedKind::UnpackedBuild, vec![(folder, bytes)]),
            Ok(None) => {}
            Err(error) => {
                if said.insert(exit::chain(&error)) {
                    done.failures.push(error);
                }
            }
        }
    }
    Ok(())
}

/// The builds that procs refer to. When one proc cannot be read, it might refer to any, so that is an error.
fn keys_in_use(root: &VrRoot) -> Result<BTreeSet<String>, ProcError> {
    let mut keys = BTreeSet::new();
    for folder in folders_in(&root.procs())? {
        keys.extend(Record::read_layer(&folder)?);
    }
    Ok(keys)
}

/// The folders in a folder, sorted; none when it is missing itself.
fn folders_in(folder: &Path) -> Result<Vec<PathBuf>, ProcError> {
    let error = |source| ProcError::Io { step: "list", path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(error)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(error)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
