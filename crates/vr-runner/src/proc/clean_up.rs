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
use vr_common::yaml::{self, YamlError};

use super::record::Record;
use super::{ProcError, layer, scratch};
use crate::{image, tarballs};

/// What a clean-up has to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanUp {
    /// How long ago an unpacked build must have been used last.
    pub unused_for: Duration,
    /// How long ago tarballs of builds must have been read last, and images asked for; without it, they all stay.
    pub tarballs_unused_for: Option<Duration>,
    /// Only to look what would go.
    pub dry_run: bool,
}

impl CleanUp {
    /// Unpacked builds, and what killed commands left.
    pub fn builds(unused_for: Duration) -> Self {
        Self { unused_for, tarballs_unused_for: None, dry_run: false }
    }
}

/// What a clean-up removed, or would remove.
#[derive(Debug, Default)]
pub struct CleanedUp {
    /// Whether everything is still there.
    pub dry_run: bool,
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
    /// A build's tarball that no proc refers to.
    UnusedTarball,
    /// An image that no proc refers to.
    UnusedImage,
}

impl fmt::Display for RemovedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnpackedBuild => "unpacked build",
            Self::ReplacedImage => "replaced image",
            Self::UnfinishedDownload => "unfinished download",
            Self::ScratchFolder => "scratch folder",
            Self::UnusedTarball => "unused tarball",
            Self::UnusedImage => "unused image",
        })
    }
}

/// Removes unpacked builds that no proc uses and that were last used long enough ago, and what killed
/// commands left: unfinished builds, images and downloads, replaced images, and scratch folders; if asked for, also
/// tarballs and images that no proc refers to. What a container or another command uses stays, and nobody has to wait for
/// it to be done.
///
/// Errors: only when the host's folders cannot be listed; anything else is among the failures.
pub fn clean_up(root: &VrRoot, what: &CleanUp) -> Result<CleanedUp, ProcError> {
    let dry_run = what.dry_run;
    let mut done = CleanedUp { dry_run, ..CleanedUp::default() };
    clean_builds(root, what, &mut done)?;
    for folder in folders_in(&root.images())? {
        match image::remove_left(&folder, dry_run) {
            Ok(removed) => done.add(RemovedKind::ReplacedImage, removed),
            Err(error) => done.failures.push(error.into()),
        }
        clean_downloads(&folder, dry_run, &mut done);
    }
    clean_downloads(&root.builds(), dry_run, &mut done);
    for folder in folders_in(&root.procs())? {
        match scratch::remove_left(&folder, dry_run) {
            Ok(removed) => done.add(RemovedKind::ScratchFolder, removed),
            Err(error) => done.failures.push(error),
        }
    }
    if let Some(unused_for) = what.tarballs_unused_for
        && let Err(error) = clean_tarballs_and_images(root, unused_for, &mut done)
    {
        done.failures.push(error);
    }
    Ok(done)
}

impl CleanedUp {
    fn add(&mut self, kind: RemovedKind, removed: Vec<(PathBuf, u64)>) {
        self.removed.extend(removed.into_iter().map(|(path, bytes)| Removed { kind, path, bytes }));
    }
}

fn clean_downloads(folder: &Path, dry_run: bool, done: &mut CleanedUp) {
    match tarballs::remove_unfinished(folder, dry_run) {
        Ok(removed) => done.add(RemovedKind::UnfinishedDownload, removed),
        Err(error) => done.failures.push(error.into()),
    }
}

fn clean_builds(root: &VrRoot, what: &CleanUp, done: &mut CleanedUp) -> Result<(), ProcError> {
    // What keeps one build from being judged does so for all; once is enough.
    let mut said = BTreeSet::new();
    for folder in folders_in(&layer::folder_of_all(root))? {
        let Some(key) = folder.file_name().and_then(|name| name.to_str()) else { continue };
        let is_referred_to = || Ok(keys_in_use(root)?.contains(key));
        match layer::remove_if_unused(root, key, what.unused_for, what.dry_run, is_referred_to) {
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

/// What the files of the host's procs refer to.
#[derive(Default)]
struct References {
    /// File names of builds' tarballs.
    tarballs: BTreeSet<String>,
    /// Names of images.
    images: BTreeSet<String>,
    /// Whether there are procs whose files are elsewhere, as of those that people run by hand.
    is_partial: bool,
}

impl References {
    /// Whether a proc may use an image.
    fn may_use(&self, image: &str) -> bool {
        self.is_partial || self.images.contains(image)
    }

    fn find(root: &VrRoot) -> Result<Self, ProcError> {
        let mut found = Self::default();
        for folder in folders_in(&root.procs())? {
            let file = folder.join("proc.yaml");
            let text = match yaml::read_file(&file) {
                Err(YamlError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    found.is_partial = true;
                    continue;
                }
                read => read?,
            };
            let data = yaml::parse_mapping(&file.display().to_string(), &text)?;
            let text = |key: &str| data.get(key).and_then(|value| value.as_str());
            if let Some(name) = text("build_url").and_then(|url| tarballs::file_name(url).ok()) {
                found.tarballs.insert(name.to_owned());
            }
            found.images.extend(text("image_name").map(str::to_owned));
        }
        Ok(found)
    }
}

fn clean_tarballs_and_images(
    root: &VrRoot,
    unused_for: Duration,
    done: &mut CleanedUp,
) -> Result<(), ProcError> {
    let dry_run = done.dry_run;
    let used = References::find(root)?;
    // A tarball that is missed can be fetched again, and what was unpacked of it is still there.
    done.add(
        RemovedKind::UnusedTarball,
        tarballs::remove_unused(&root.builds(), unused_for, &used.tarballs, dry_run)?,
    );
    if used.is_partial {
        tracing::info!("images stay, as there are procs whose files are not in their folders");
        return Ok(());
    }
    for folder in folders_in(&root.images())? {
        let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { continue };
        if used.images.contains(name) {
            continue;
        }
        // A proc may have been deployed since. Where that cannot be told, the image stays.
        let is_referred_to = || References::find(root).map_or(true, |used| used.may_use(name));
        match image::remove_if_unused(&folder, unused_for, dry_run, is_referred_to) {
            Ok(bytes) => {
                done.add(RemovedKind::UnusedImage, bytes.map(|bytes| (folder, bytes)).into_iter().collect());
            }
            Err(error) => done.failures.push(error.into()),
        }
    }
    Ok(())
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
