//! How much vbuild keeps: caches that are dropped because nobody used them for the longest time, and those that
//! people want to be dropped.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use vr_common::archive::{bytes_in, remove_tree};
use vr_common::build_data::BuildData;
use vr_common::lock::LockError;
use vr_common::paths::VrRoot;
use vr_common::vcs::RepoUrl;
use vr_runner::job::{Failed, Job, JobError, JobOptions, Scratch, parse_size, size, try_lock};

use crate::cache::read_size;
use crate::choice::Choice;
use crate::{BuildError, Folders};

/// The environment variable that says how large all caches together may be.
const CACHE_MAX: &str = "VBUILD_CACHE_MAX";
/// How large they may be when it says nothing, in bytes.
const USUAL_CACHE_MAX: u64 = 20 << 30;

/// How large all caches together may be, in bytes; `None` when there is no end.
pub(crate) fn cache_max() -> Result<Option<u64>, BuildError> {
    match env::var_os(CACHE_MAX) {
        None => Ok(Some(USUAL_CACHE_MAX)),
        Some(text) if text.is_empty() => Ok(Some(USUAL_CACHE_MAX)),
        Some(text) if text == "none" => Ok(None),
        Some(text) => parse_size(&text.to_string_lossy()).map(Some).map_err(|reason| {
            BuildError::BadCacheMax { variable: CACHE_MAX, reason: format!("{reason}, or none") }
        }),
    }
}

/// A saved cache.
#[derive(Debug)]
struct Entry {
    folder: String,
    bytes: u64,
    used: SystemTime,
}

/// Drops the caches that nobody used for the longest time until the others have room, and gives whether the one of
/// `own`, whose lock the caller has, was among them. Caches in use are left alone. `aside` is where they can be put until
/// they are removed.
pub(crate) fn make_room(
    folders: &Folders,
    most: Option<u64>,
    own: &str,
    aside: &Path,
    job: &Job,
) -> Result<bool, BuildError> {
    let Some(most) = most else { return Ok(false) };
    let mut entries = entries(folders)?;
    let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    // The build's own is the last one.
    entries.sort_by_key(|entry| (entry.folder == own, entry.used));
    for entry in entries {
        if total <= most {
            break;
        }
        let lock = match entry.folder == own {
            true => None,
            false => match try_lock(&folders.app_lock(&entry.folder)) {
                Ok(lock) => Some(lock),
                Err(JobError::Lock(LockError::Held(_))) => continue,
                Err(error) => return Err(error.into()),
            },
        };
        drop_cache(folders, &entry.folder, aside)?;
        drop(lock);
        remove_tree(aside).map_err(BuildError::io("remove", aside))?;
        total = total.saturating_sub(entry.bytes);
        job.say(&format!(
            "dropped the cache of {} ({}): all caches together may have {}",
            entry.folder,
            size(entry.bytes),
            size(most)
        ));
        if entry.folder == own {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All caches, with what is noted of their sizes.
fn entries(folders: &Folders) -> Result<Vec<Entry>, BuildError> {
    let mut found = Vec::new();
    for (folder, path) in repository_folders(&folders.caches())? {
        let bytes = read_size(&folders.cache_size(&folder)).unwrap_or_else(|| bytes_in(&path));
        let changed = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
        let used = changed(&folders.app_lock(&folder)).or_else(|| changed(&path));
        found.push(Entry { folder, bytes, used: used.unwrap_or(SystemTime::UNIX_EPOCH) });
    }
    Ok(found)
}

/// The folders in a folder, which may be missing, that have the name of a repository's.
fn repository_folders(parent: &Path) -> Result<Vec<(String, PathBuf)>, BuildError> {
    let list = || {
        let entries = match fs::read_dir(parent) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && is_of_repository(&name)
                && entry.file_type()?.is_dir()
            {
                found.push((name, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    };
    list().map_err(BuildError::io("read", parent))
}

/// Whether it ends as the names of repositories' folders do: with a dash and an md5 sum. Notes and what is unfinished do not.
fn is_of_repository(name: &str) -> bool {
    name.rsplit_once('-')
        .is_some_and(|(_, md5)| md5.len() == 32 && md5.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Takes a cache away in one step; the caller has the app's lock.
fn drop_cache(folders: &Folders, folder: &str, aside: &Path) -> Result<(), BuildError> {
    let (cache, note) = (folders.cache(folder), folders.cache_size(folder));
    match fs::remove_file(&note) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(BuildError::io("remove", note)(error));
        }
        _ => {}
    }
    match fs::rename(&cache, aside) {
        // Somebody else has dropped it meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        moved => moved.map_err(BuildError::io("move away", &cache)),
    }
}

/// What was removed, and what was not because a build uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cleaned {
    /// What was removed.
    pub removed: Vec<Removed>,
    /// The folders that are in use.
    pub in_use: Vec<PathBuf>,
}

/// A folder that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Its path.
    pub path: PathBuf,
    /// What it took on disk, in bytes.
    pub bytes: u64,
}

/// Drops the caches of apps; with no app given, those of all apps. With `repositories` what was fetched of the apps' and
/// the buildpacks' repositories goes too. For apps that are given it waits until no build uses them; otherwise what is
/// in use is left alone.
pub fn clean(
    root: &VrRoot,
    apps: &[BuildData],
    repositories: bool,
    options: &JobOptions,
) -> Result<Cleaned, Failed<BuildError>> {
    let mut job = Job::begin("vbuild", options).map_err(Failed::early)?;
    let folders = Folders::of(root);
    let cleaned = job.step("clean", "", |job| {
        let parent = folders.scratch();
        let scratch = Scratch::create(&parent).map_err(BuildError::io("make a folder in", &parent))?;
        let cleaning =
            Cleaning { folders: &folders, repositories, scratch, job, cleaned: Cleaned::default() };
        match apps {
            [] => cleaning.all(),
            apps => cleaning.some(apps),
        }
    });
    cleaned.map_err(|error| job.failed(error, None))
}

/// Caches and repositories on their way out.
struct Cleaning<'a> {
    folders: &'a Folders,
    repositories: bool,
    /// What is removed is moved here first: what a killed run has begun to remove is of no use to anybody.
    scratch: Scratch,
    job: &'a Job,
    cleaned: Cleaned,
}

impl Cleaning<'_> {
    fn some(mut self, apps: &[BuildData]) -> Result<Cleaned, BuildError> {
        let named = apps.iter().map(|data| Ok((RepoUrl::parse(&data.app_repo_url)?, Choice::of(data)?.1)));
        // All of them are right before the first is removed.
        let named = named.collect::<Result<Vec<_>, BuildError>>()?;
        for (app, buildpacks) in named {
            let folder = app.folder();
            let _lock = self.job.lock(&self.folders.app_lock(&folder))?;
            self.remove_app(&folder)?;
            let repositories = self.repositories;
            for url in buildpacks.iter().filter(|_| repositories) {
                let folder = url.folder();
                let _lock = self.job.lock(&self.folders.buildpack_lock(&folder))?;
                self.remove(&self.folders.buildpack(&folder))?;
            }
        }
        Ok(self.cleaned)
    }

    fn all(mut self) -> Result<Cleaned, BuildError> {
        let names = |folder: &Path| -> Result<Vec<String>, BuildError> {
            Ok(repository_folders(folder)?.into_iter().map(|(name, _)| name).collect())
        };
        let mut apps = names(&self.folders.caches())?;
        if self.repositories {
            apps.extend(names(&self.folders.apps())?);
            apps.sort();
            apps.dedup();
        }
        for folder in apps {
            match try_lock(&self.folders.app_lock(&folder)) {
                Ok(_lock) => self.remove_app(&folder)?,
                Err(JobError::Lock(LockError::Held(_))) => {
                    self.cleaned.in_use.push(self.folders.cache(&folder));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if self.repositories {
            for (folder, path) in repository_folders(&self.folders.buildpacks())? {
                match try_lock(&self.folders.buildpack_lock(&folder)) {
                    Ok(_lock) => self.remove(&path)?,
                    Err(JobError::Lock(LockError::Held(_))) => self.cleaned.in_use.push(path),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(self.cleaned)
    }

    /// The caller has the app's lock.
    fn remove_app(&mut self, folder: &str) -> Result<(), BuildError> {
        for note in [self.folders.cache_size(folder), self.folders.cache_changes(folder)] {
            remove_tree(&note).map_err(BuildError::io("remove", &note))?;
        }
        self.remove(&self.folders.cache(folder))?;
        if self.repositories {
            self.remove(&self.folders.app(folder))?;
        }
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> Result<(), BuildError> {
        self.job.check()?;
        if fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        let bytes = bytes_in(path);
        let aside = self.scratch.path().join("dropped");
        fs::rename(path, &aside).map_err(BuildError::io("move away", path))?;
        remove_tree(&aside).map_err(BuildError::io("remove", &aside))?;
        self.cleaned.removed.push(Removed { path: path.to_owned(), bytes });
        Ok(())
    }
}
