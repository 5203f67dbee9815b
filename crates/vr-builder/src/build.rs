//! A build from its beginning to its end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, RenameFlags, renameat_with};
use serde::Serialize;
use serde_yaml::Value;
use vr_common::archive::{PackOptions, pack, remove_tree};
use vr_common::build_data::BuildData;
use vr_common::paths::VrRoot;
use vr_common::vcs::{RepoUrl, copy_tree, export, update_checkout};
use vr_common::yaml;
use vr_runner::container::ExitStatus;
use vr_runner::users;

use crate::checkout::{self, Buildpack, Locked};
use crate::output::Output;
use crate::workspace::Workspace;
use crate::{BuildError, Folders};
use vr_runner::image::image_contents;
use vr_runner::job::{Ending, Interrupts, Step, Steps, interruptible, run_live};

/// The build user, unless `build.yaml` names another.
const DEFAULT_USER: &str = "nobody";

/// How to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Where images are, and vbuild's own folders unless `RAPTOR_HOME` says otherwise.
    pub root: VrRoot,
    /// Where the three files are put.
    pub output: PathBuf,
    /// How long the container may run, and each checkout take.
    pub timeout: Duration,
    /// Says nothing but errors, and shows no output of the buildpack.
    pub quiet: bool,
    /// Starts with an empty cache.
    pub no_cache: bool,
    /// Stops when the program that started this one ends.
    pub die_with_parent: bool,
}

/// A build that succeeded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BuildSummary {
    /// The app.
    pub app_name: String,
    /// The version as it was asked for.
    pub version: String,
    /// The full hash that it is.
    pub app_revision: String,
    /// The buildpack that was used, with its revision.
    pub buildpack_url: String,
    /// The buildpack's full revision hash.
    pub buildpack_version: String,
    /// The tarball.
    pub tarball: PathBuf,
    /// Its md5 sum.
    pub build_md5: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// How many files, folders and links are in it.
    pub entries: u64,
    /// What was done, in order.
    pub steps: Vec<Step>,
    /// How long all of it took, in seconds.
    pub seconds: f64,
}

/// Builds an app. The process must have a single thread, and be root; INT, TERM and HUP end the build in order.
///
/// Whatever happens, nothing is left but the output files and the caches; after a failure there is no tarball.
pub fn build(data: &BuildData, options: &BuildOptions) -> Result<BuildSummary, BuildError> {
    let mut steps = Steps::new("vbuild", options.quiet);
    let interrupts = watch(options.die_with_parent)?;
    let mut output = Output::prepare(&options.output)?;
    let result = run(data, options, &interrupts, &mut output, &mut steps);
    if result.is_err() {
        output.take_back();
    }
    result
}

/// Takes hold of what all of the process has in common: signals and the umask.
pub(crate) fn watch(die_with_parent: bool) -> Result<Interrupts, BuildError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BuildError::NotRoot);
    }
    // What is checked out and packed must not depend on who calls.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Interrupts::watch(die_with_parent).map_err(BuildError::io("watch for signals in", "/proc/self"))
}

fn run(
    data: &BuildData,
    options: &BuildOptions,
    interrupts: &Interrupts,
    output: &mut Output,
    steps: &mut Steps,
) -> Result<BuildSummary, BuildError> {
    let folders = Folders::of(&options.root);
    let prepared = prepare(data, options, &folders, interrupts, steps)?;
    let Prepared { workspace, app_url, app_revision, buildpacks, image, app_lock: _app_lock } = &prepared;

    let (used, release_data) = steps.step("compile", "building", |steps| {
        let program = workspace.builder();
        let spec = workspace.container(data, app_revision, buildpacks, image.as_deref(), program);
        let deadline = Instant::now().checked_add(options.timeout);
        let ending = run_live(spec, &mut output.log, !options.quiet, deadline, interrupts)?
            .map_err(BuildError::io("write", output.log.path()))?;
        let status = match ending {
            Ending::Ended(status) => status,
            Ending::TimedOut => return Err(BuildError::Timeout { limit: options.timeout }),
            Ending::Interrupted(interruption) => return Err(interruption.into()),
        };
        judge(status, data, workspace, buildpacks, output, steps)
    })?;

    steps
        .step("slugignore", "leaving out what .slugignore names", |steps| leave_out(&workspace.app, steps))?;
    interrupts.check()?;
    let packed = steps.step("pack", "packing", |_| {
        // In the workspace: a pack that is stopped half-way goes with it.
        let (app, aside) = (workspace.app.clone(), workspace.path("build.tar.gz"));
        let packing = aside.clone();
        let packed = stoppable(interrupts, move || {
            pack(&app, &packing, &PackOptions::build()).map_err(BuildError::Pack)
        })?;
        output.place_tarball(&aside).map(|()| packed)
    })?;
    steps.step("cache", "saving the cache", |_| save_cache(workspace, &folders.cache(&app_url.folder())))?;

    if data.build_md5.as_ref().is_some_and(|expected| !expected.eq_ignore_ascii_case(&packed.md5)) {
        steps.say(
            "note: the tarball is not the one that build_md5 names; it has been replaced by the new sum",
        );
    }
    let pinned = used.url.with_revision(&used.revision)?;
    let mut result = data.clone();
    result.build_md5 = Some(packed.md5.clone());
    result.release_data = Some(release_data);
    result.buildpack_url = Some(pinned.to_full_string());
    result.buildpack_version = Some(used.revision.clone());
    result.unknown.insert("app_revision".into(), app_revision.as_str().into());
    output.write_result(&result)?;

    let (done, seconds) = steps.so_far();
    Ok(BuildSummary {
        app_name: data.app_name.as_str().to_owned(),
        version: data.version.as_str().to_owned(),
        app_revision: app_revision.clone(),
        buildpack_url: pinned.to_string(),
        buildpack_version: used.revision.clone(),
        tarball: output.tarball.clone(),
        build_md5: packed.md5,
        bytes: packed.bytes,
        entries: packed.entries,
        steps: done,
        seconds,
    })
}

/// All that the container needs.
pub(crate) struct Prepared {
    pub workspace: Workspace,
    pub app_url: RepoUrl,
    pub app_revision: String,
    pub buildpacks: Vec<Buildpack>,
    pub image: Option<PathBuf>,
    /// Two builds of an app share its checkout and its cache, so they come one after the other.
    pub app_lock: Locked,
}

/// Fetches, checks out and copies.
pub(crate) fn prepare(
    data: &BuildData,
    options: &BuildOptions,
    folders: &Folders,
    interrupts: &Interrupts,
    steps: &mut Steps,
) -> Result<Prepared, BuildError> {
    let app_url = RepoUrl::parse(&data.app_repo_url)?;
    let urls = buildpack_urls(data)?;
    let image = match (&data.image_url, &data.image_name) {
        (Some(url), Some(name)) => {
            let (root, url, name, md5) =
                (options.root.clone(), url.clone(), name.clone(), data.image_md5.clone());
            Some(steps.step("image", &format!("image {name}"), |_| {
                stoppable(interrupts, move || Ok(image_contents(&root, &name, &url, md5.as_deref())?))
            })?)
        }
        _ => None,
    };
    let user = data.user.as_ref().map_or(DEFAULT_USER, |user| user.0.as_str());
    let roots: Vec<&Path> = image.as_deref().into_iter().collect();
    let user = users::find(&roots, user, None)?;

    let folder = app_url.folder();
    let app_lock = waiting(interrupts, steps, folders.app_lock(&folder))?;
    let workspace = Workspace::create(&folders.scratch(), &folder, user)?;
    let checkout_text = format!("checking out {app_url} at {}", data.version);
    let app_revision = steps.step("checkout", &checkout_text, |_| {
        let (repo_type, url, version) = (data.app_repo_type, app_url.clone(), data.version.clone());
        let (dir, copy, limit) = (folders.app(&folder), workspace.app.clone(), options.timeout);
        stoppable(interrupts, move || {
            let hash = update_checkout(repo_type, &url, Some(version.as_str()), &dir, limit)?;
            export(&dir, &copy)?;
            Ok(hash)
        })
    })?;
    let buildpacks = steps.step("buildpacks", "checking out the buildpacks", |steps| {
        urls.into_iter()
            .enumerate()
            .map(|(index, url)| {
                check_out_buildpack(index, url, options, folders, &workspace, interrupts, steps)
            })
            .collect::<Result<Vec<_>, _>>()
    })?;
    let cache = folders.cache(&folder);
    if !options.no_cache && cache.is_dir() {
        steps.step("restore", "restoring the cache", |_| {
            let copy = workspace.cache.clone();
            stoppable(interrupts, move || Ok(copy_tree(&cache, &copy)?))
        })?;
    }
    workspace.hand_over(&buildpacks)?;
    interrupts.check()?;
    Ok(Prepared { workspace, app_url, app_revision, buildpacks, image, app_lock })
}

/// Runs work that must be stoppable while it lasts.
fn stoppable<T: Send + 'static>(
    interrupts: &Interrupts,
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    interruptible(interrupts, work).map_err(BuildError::io("start a thread in", "/proc/self"))??
}

/// Waits for a lock, and says so.
fn waiting(interrupts: &Interrupts, steps: &Steps, path: PathBuf) -> Result<Locked, BuildError> {
    let quiet = steps.is_quiet();
    stoppable(interrupts, move || {
        checkout::lock(&path, |text| {
            if !quiet {
                eprintln!("vbuild: {text}");
            }
        })
    })
}

fn buildpack_urls(data: &BuildData) -> Result<Vec<RepoUrl>, BuildError> {
    let texts = match (&data.buildpack_url, &data.buildpack_urls) {
        (Some(url), _) => std::slice::from_ref(url),
        (None, Some(urls)) => urls.as_slice(),
        (None, None) => &[],
    };
    Ok(texts.iter().map(|text| RepoUrl::parse(text)).collect::<Result<_, _>>()?)
}

fn check_out_buildpack(
    index: usize,
    url: RepoUrl,
    options: &BuildOptions,
    folders: &Folders,
    workspace: &Workspace,
    interrupts: &Interrupts,
    steps: &Steps,
) -> Result<Buildpack, BuildError> {
    let folder = url.folder();
    let _lock = waiting(interrupts, steps, folders.buildpack_lock(&folder))?;
    let copy = workspace.path(&format!("buildpack-{index}"));
    let (dir, limit) = (folders.buildpack(&folder), options.timeout);
    let revision = {
        let (url, copy) = (url.clone(), copy.clone());
        stoppable(interrupts, move || {
            let hash = update_checkout(checkout::buildpack_type(&url), &url, None, &dir, limit)?;
            export(&dir, &copy)?;
            Ok(hash)
        })?
    };
    // The script takes the folders apart at colons. One repository at two revisions is two buildpacks.
    let name = folder.replace(':', "_");
    let mounted_at = match index {
        0 => format!("/{name}"),
        index => format!("/{name}.{index}"),
    };
    Ok(Buildpack { url, revision, mounted_at: mounted_at.into(), copy })
}

/// What the end of the container's program means: the buildpack that was used and its release data, or a failure.
fn judge<'a>(
    status: ExitStatus,
    data: &BuildData,
    workspace: &Workspace,
    buildpacks: &'a [Buildpack],
    output: &mut Output,
    steps: &Steps,
) -> Result<(&'a Buildpack, Value), BuildError> {
    if status == ExitStatus::Code(3) && data.buildpack_url.is_none() {
        return Err(BuildError::NoBuildpack {
            tried: buildpacks.iter().map(|buildpack| buildpack.name().to_owned()).collect(),
        });
    }
    let log = output.log.path().to_owned();
    output.log.ensure().map_err(BuildError::io("write", &log))?;
    let used = workspace.note("buildpack")?;
    let used = buildpacks
        .iter()
        .find(|buildpack| used.as_deref().map(str::trim) == buildpack.mounted_at.to_str())
        .or_else(|| buildpacks.first().filter(|_| buildpacks.len() == 1));
    let name = used.map_or("the buildpack", Buildpack::name).to_owned();
    let failed_with = || -> Result<String, BuildError> {
        let note = workspace.note("status")?;
        let code = note.and_then(|note| note.trim().parse::<u8>().ok());
        Ok(code.map_or_else(|| status.to_string(), describe))
    };
    match (status, used) {
        (ExitStatus::Code(0), Some(used)) => {
            let text = workspace.note("release.yaml")?.unwrap_or_default();
            let release = yaml::parse_mapping("its output", &text).map_err(|error| BuildError::Release {
                buildpack: name,
                reason: format!("gave no release data: {error}"),
                log,
            })?;
            steps.say(&format!("built by {} at {}", used.name(), used.revision));
            Ok((used, Value::Mapping(release)))
        }
        (ExitStatus::Code(6), _) => {
            let reason = format!("ended with {}", failed_with()?);
            Err(BuildError::Release { buildpack: name, reason, log })
        }
        _ => Err(BuildError::Compile { buildpack: name, status: failed_with()?, log }),
    }
}

/// What a shell's `$?` means.
fn describe(code: u8) -> String {
    match code {
        126 => "exit code 126 (it cannot be executed)".to_owned(),
        127 => "exit code 127 (it, or a program that it calls, does not exist)".to_owned(),
        129..=192 => ExitStatus::Signal(i32::from(code - 128)).to_string(),
        code => ExitStatus::Code(code).to_string(),
    }
}

fn leave_out(app: &Path, steps: &Steps) -> Result<(), BuildError> {
    const LARGEST: u64 = 1 << 20;
    let Some(bytes) = vr_runner::container::read_beneath(app, Path::new(".slugignore"), LARGEST)? else {
        return Ok(());
    };
    let ignore = crate::slugignore::Slugignore::parse(&String::from_utf8_lossy(&bytes));
    for refused in &ignore.refused {
        steps.say(&format!(".slugignore: {refused}; passed over"));
    }
    let removed = ignore.apply(app).map_err(BuildError::io("leave out files of", app))?;
    steps.say(&format!("left out {} files or folders", removed.len()));
    Ok(())
}

/// Puts the run's cache in the place of the saved one, in one step.
fn save_cache(workspace: &Workspace, saved: &Path) -> Result<(), BuildError> {
    let save = || -> io::Result<()> {
        if let Some(folder) = saved.parent() {
            fs::create_dir_all(folder)?;
        }
        match renameat_with(CWD, &workspace.cache, CWD, saved, RenameFlags::EXCHANGE) {
            // The old one is now in the workspace, and goes with it.
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::NOENT) => fs::rename(&workspace.cache, saved),
            // Not every file system can exchange two folders.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                remove_tree(saved)?;
                fs::rename(&workspace.cache, saved)
            }
            Err(error) => Err(error.into()),
        }
    };
    save().map_err(BuildError::io("save the cache in", saved))
}
