//! A build from its beginning to its end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_yaml::{Mapping, Value};
use vr_common::archive::{PackOptions, pack};
use vr_common::build_data::BuildData;
use vr_common::exit::chain;
use vr_common::paths::VrRoot;
use vr_common::vcs::RepoUrl;
use vr_common::yaml::{self, YamlError};
use vr_runner::container::{ContainerSpec, ExitStatus, Program};
use vr_runner::image::image_contents;
use vr_runner::job::{Failed, Job, JobOptions, Locked, Step};
use vr_runner::users;

use crate::cache::Cache;
use crate::choice::{self, Choice};
use crate::output::Output;
use crate::repositories::{Buildpack, Wanted, bring, buildpack_type};
use crate::workspace::{Inside, Workspace};
use crate::{BuildError, Folders, kept};

/// The build user, unless `build.yaml` names another.
const DEFAULT_USER: &str = "nobody";
/// The key of `build_result.yaml` that says which revisions the versions were: a mapping, so that somebody who writes
/// another version into the file does not get the old revision.
const REVISIONS: &str = "app_revisions";

/// How to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Where images are, and vbuild's own folders unless `RAPTOR_HOME` says otherwise.
    pub root: VrRoot,
    /// Where the three files are put.
    pub output: PathBuf,
    /// The file that the data came from, if they came from one. It stays even where `build_result.yaml` will be.
    pub source: Option<PathBuf>,
    /// Starts with an empty cache.
    pub no_cache: bool,
    /// What all jobs can be told.
    pub job: JobOptions,
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
    /// The buildpack that was used, with its revision; of several, the last one.
    pub buildpack_url: String,
    /// That buildpack's full revision hash.
    pub buildpack_version: String,
    /// All buildpacks that were used, with their revisions.
    pub buildpacks: Vec<String>,
    /// The tarball.
    pub tarball: PathBuf,
    /// Its md5 sum.
    pub build_md5: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// How many files, folders and links are in it.
    pub entries: u64,
    /// The size of the saved cache on disk, in bytes.
    pub cache_bytes: u64,
    /// The output of `bin/compile`.
    pub log: PathBuf,
    /// What was done, in order.
    pub steps: Vec<Step>,
    /// How long all of it took, in seconds.
    pub seconds: f64,
}

/// Builds an app. The process must have a single thread, and be root; INT, TERM and HUP end the build in order.
///
/// Whatever happens, nothing is left but the output files and the caches; after a failure there is no tarball.
pub fn build(data: &BuildData, options: &BuildOptions) -> Result<BuildSummary, Failed<BuildError>> {
    let mut job = Job::begin("vbuild", &options.job).map_err(Failed::early)?;
    let mut output =
        Output::prepare(&job, &options.output, options.source.as_deref()).map_err(Failed::early)?;
    let result = run(&mut job, data, options, &mut output);
    if result.is_err() {
        output.take_back();
    }
    result.map_err(|error| job.failed(error, Some(&output.log)))
}

fn run(
    job: &mut Job,
    data: &BuildData,
    options: &BuildOptions,
    output: &mut Output,
) -> Result<BuildSummary, BuildError> {
    // Known to be right before anything takes its time.
    let cache_max = kept::cache_max()?;
    let prepared = prepare(job, data, options)?;
    let Prepared { workspace, app_revision, .. } = &prepared;

    let (used, release_data) = job.step("compile", "building", |job| {
        let spec = prepared.container(data, workspace.builder());
        let status = job.run(spec, &mut output.log, "the build", workspace.folder())?;
        prepared.judge(status, output)
    })?;
    let names: Vec<String> =
        used.iter().map(|buildpack| format!("{} at {}", buildpack.name(), buildpack.revision)).collect();
    job.say(&format!("built by {}", names.join(", ")));
    job.check()?;

    job.step("slugignore", "", |job| leave_out(&workspace.app, job))?;
    let packed = job.step("pack", "packing", |job| {
        // In the workspace: a pack that is stopped half-way goes with it.
        let (app, aside) = (workspace.app.clone(), workspace.path("build.tar.gz"));
        job.stoppable(move || pack(&app, &aside, &PackOptions::build()).map_err(BuildError::pack))
    })?;
    let folders = Folders::of(&options.root);
    let cache_bytes = job.step("cache", "saving the cache", |job| -> Result<u64, BuildError> {
        Ok(prepared.save_cache(&folders, cache_max, job))
    })?;
    job.check()?;
    output.place_tarball(&workspace.path("build.tar.gz"))?;

    if data.build_md5.as_ref().is_some_and(|expected| !expected.eq_ignore_ascii_case(&packed.md5)) {
        job.say("note: the tarball is not the one that build_md5 names; it has been replaced by the new sum");
    }
    let pinned = used.iter().map(|buildpack| buildpack.pinned()).collect::<Result<Vec<_>, _>>()?;
    // There is at least one: a build that used none has failed.
    let last = pinned.last().map(RepoUrl::to_full_string).unwrap_or_default();
    let last_shown = pinned.last().map(RepoUrl::to_string).unwrap_or_default();
    let last_revision = used.last().map(|buildpack| buildpack.revision.clone()).unwrap_or_default();
    let mut result = data.clone();
    result.build_md5 = Some(packed.md5.clone());
    result.release_data = Some(Value::Mapping(release_data));
    result.buildpack_url = Some(last);
    result.buildpack_version = Some(last_revision.clone());
    if prepared.choice == Choice::All {
        result.buildpacks = Some(pinned.iter().map(RepoUrl::to_full_string).collect());
    }
    let revisions: Mapping = BTreeMap::from([(data.version.as_str(), app_revision)])
        .into_iter()
        .map(|(version, revision)| (Value::from(version), Value::from(revision.as_str())))
        .collect();
    result.unknown.insert(REVISIONS.into(), Value::Mapping(revisions));
    output.write_result(&result)?;

    let (steps, seconds) = job.so_far();
    Ok(BuildSummary {
        app_name: data.app_name.as_str().to_owned(),
        version: data.version.as_str().to_owned(),
        app_revision: app_revision.clone(),
        buildpack_url: last_shown,
        buildpack_version: last_revision,
        buildpacks: pinned.iter().map(RepoUrl::to_string).collect(),
        tarball: output.tarball.clone(),
        build_md5: packed.md5,
        bytes: packed.bytes,
        entries: packed.entries,
        cache_bytes,
        log: output.log.path().to_owned(),
        steps,
        seconds,
    })
}

/// All that the container needs.
pub(crate) struct Prepared {
    workspace: Workspace,
    app_folder: String,
    app_revision: String,
    choice: Choice,
    buildpacks: Vec<Buildpack>,
    cache: Cache,
    image: Option<PathBuf>,
    request_id: String,
    /// Two builds of an app share its cache, so they come one after the other.
    _app_lock: Locked,
}

/// Fetches, checks out and copies.
pub(crate) fn prepare(
    job: &mut Job,
    data: &BuildData,
    options: &BuildOptions,
) -> Result<Prepared, BuildError> {
    let folders = Folders::of(&options.root);
    let app_url = RepoUrl::parse(&data.app_repo_url)?;
    let (choice, urls) = Choice::of(data)?;
    let image = bring_image(job, data, options)?;
    let user = data.user.as_ref().map_or(DEFAULT_USER, |user| user.0.as_str());
    let roots: Vec<&Path> = image.as_deref().into_iter().collect();
    let user = users::find(&roots, user, None)?;

    let app_folder = app_url.folder();
    let app_lock = job.step("wait", "", |job| job.lock(&folders.app_lock(&app_folder)))?;
    let workspace = Workspace::create(&folders.scratch(), &app_folder, user)?;
    let text = format!("checking out {app_url} at {}", data.version);
    let (app_revision, buildpacks) = job.step("checkout", &text, |job| -> Result<_, BuildError> {
        for url in &urls {
            job.say(&format!("checking out the buildpack {url}"));
        }
        let mut wanted = vec![wanted_app(data, app_url, &folders, &workspace)?];
        wanted.extend(urls.into_iter().enumerate().map(|(index, url)| {
            let (mirror, into) =
                (folders.buildpack(&url.folder()), workspace.path(&format!("buildpack-{index}")));
            Wanted { repo_type: buildpack_type(&url), url, revision: None, mirror, into }
        }));
        // In one order, so that two builds never wait for each other.
        let mut locks: Vec<PathBuf> =
            wanted[1..].iter().map(|wanted| folders.buildpack_lock(&wanted.url.folder())).collect();
        locks.sort();
        locks.dedup();
        let _locks = locks.iter().map(|path| job.lock(path)).collect::<Result<Vec<_>, _>>()?;
        let (timeout, to_bring) = (options.job.timeout, wanted.clone());
        let mut hashes =
            job.stoppable(move || bring(&to_bring, timeout).map_err(BuildError::from))?.into_iter();
        let app_revision = hashes.next().unwrap_or_default();
        let buildpacks = wanted.into_iter().skip(1).zip(hashes).enumerate();
        let buildpacks = buildpacks.map(|(index, (wanted, revision))| Buildpack {
            mounted_at: inside(index, &wanted.url),
            url: wanted.url,
            revision,
            copy: wanted.into,
        });
        Ok((app_revision, buildpacks.collect::<Vec<_>>()))
    })?;
    let cache = Cache::open(&folders, &app_folder, workspace.folder(), options.no_cache, &workspace.user)?;
    workspace.hand_over(data, &buildpacks)?;
    job.check()?;
    // Until the workspace is gone, nobody else has its name.
    let request_id = format!("{app_folder}-{}", workspace.folder().file_name().unwrap_or_default().display());
    Ok(Prepared {
        workspace,
        app_folder,
        app_revision,
        choice,
        buildpacks,
        cache,
        image,
        request_id,
        _app_lock: app_lock,
    })
}

fn bring_image(
    job: &mut Job,
    data: &BuildData,
    options: &BuildOptions,
) -> Result<Option<PathBuf>, BuildError> {
    let (Some(url), Some(name)) = (&data.image_url, &data.image_name) else { return Ok(None) };
    let (root, url, md5) = (options.root.clone(), url.clone(), data.image_md5.clone());
    job.step("image", &format!("image {name}"), |job| {
        let name = name.clone();
        job.stoppable(move || Ok(Some(image_contents(&root, &name, &url, md5.as_deref())?)))
    })
}

/// What is to be checked out of the app's repository. A `build_result.yaml` says which revision its version was.
fn wanted_app(
    data: &BuildData,
    url: RepoUrl,
    folders: &Folders,
    workspace: &Workspace,
) -> Result<Wanted, YamlError> {
    let version = data.version.as_str();
    let revision = match data.unknown.get(REVISIONS).map(|revisions| revisions.get(version)) {
        None | Some(None) => version,
        Some(Some(Value::String(revision))) => revision,
        Some(Some(other)) => {
            let found = yaml::kind(other);
            let message = format!("{REVISIONS}: {version}: expected a revision, found {found}");
            return Err(YamlError::Invalid { name: "the build's file".to_owned(), message });
        }
    };
    Ok(Wanted {
        repo_type: data.app_repo_type,
        mirror: folders.app(&url.folder()),
        url,
        revision: Some(revision.to_owned()),
        into: workspace.app.clone(),
    })
}

/// Where a buildpack is in the container.
fn inside(index: usize, url: &RepoUrl) -> PathBuf {
    // The script takes the folders apart at colons. One repository at two revisions is two buildpacks.
    let name = url.folder().replace(':', "_");
    match index {
        0 => format!("/{name}").into(),
        index => format!("/{name}.{index}").into(),
    }
}

impl Prepared {
    /// The container, with `program` in it.
    pub(crate) fn container(&self, data: &BuildData, program: Program) -> ContainerSpec {
        let inside = Inside {
            data,
            app_revision: &self.app_revision,
            choice: self.choice,
            buildpacks: &self.buildpacks,
            cache: &self.cache,
            image: self.image.as_deref(),
            request_id: &self.request_id,
        };
        self.workspace.container(&inside, program)
    }

    /// Saves the cache, and drops others that have no room beside it; gives its size in bytes. A build is as good when that
    /// does not work.
    fn save_cache(&self, folders: &Folders, most: Option<u64>, job: &Job) -> u64 {
        // Not stoppable: the workspace must not go away under a save that goes on.
        let bytes = self.cache.save().unwrap_or_else(|error| {
            job.say(&format!("note: the next build begins with an empty cache: {}", chain(&error)));
            0
        });
        let aside = self.workspace.path("dropped");
        match kept::make_room(folders, most, &self.app_folder, &aside, job) {
            Ok(true) => 0,
            Ok(false) => bytes,
            Err(error) => {
                job.say(&format!("note: caches may have more than they should: {}", chain(&error)));
                bytes
            }
        }
    }

    /// What the end of the script means: the buildpacks that were used and their release data, or a failure.
    fn judge(
        &self,
        status: ExitStatus,
        output: &mut Output,
    ) -> Result<(Vec<&Buildpack>, Mapping), BuildError> {
        let note = |name: &str| self.workspace.note(name);
        let find = |place: &str| {
            self.buildpacks.iter().find(|buildpack| buildpack.mounted_at.to_str() == Some(place))
        };
        if status == ExitStatus::Code(3) && self.choice != Choice::Given && note("export")?.is_none() {
            // The latter is whatever they printed, which need not be text.
            let (refused, said) = (note("refused")?, note("said").ok().flatten().unwrap_or_default());
            return Err(match refused.as_deref().and_then(|place| find(place.trim())) {
                Some(buildpack) => BuildError::Refused { buildpack: buildpack.name().to_owned(), said },
                None => {
                    let names = self.buildpacks.iter().map(|buildpack| buildpack.name().to_owned());
                    BuildError::NoBuildpack { tried: names.collect(), said }
                }
            });
        }
        let log = output.log.path().to_owned();
        output.log.ensure().map_err(BuildError::io("write", log))?;
        let used = note("used")?.unwrap_or_default();
        let used: Vec<&Buildpack> = used.lines().filter_map(find).collect();
        let buildpack = used.last().map_or("the buildpack", |buildpack| buildpack.name()).to_owned();
        let failed_with = || -> Result<String, BuildError> {
            let code = note("status")?.and_then(|note| note.trim().parse::<u8>().ok());
            Ok(code.map_or_else(|| status.to_string(), describe))
        };
        match status {
            _ if note("export")?.is_some() => Err(BuildError::Export { buildpack }),
            ExitStatus::Code(0) if note("done")?.is_none() || used.is_empty() => {
                let status = format!("{status}, but took away what the build noted in /out");
                Err(BuildError::Compile { buildpack, status })
            }
            ExitStatus::Code(0) if !self.workspace.has_app() => {
                let status = format!("{status}, but left no folder of the app");
                Err(BuildError::Compile { buildpack, status })
            }
            ExitStatus::Code(0) => {
                let releases = used.iter().enumerate().map(|(index, buildpack)| {
                    let text = note(&format!("release.{}", index + 1))?.unwrap_or_default();
                    yaml::parse_mapping("its output", &text).map_err(|error| BuildError::Release {
                        buildpack: buildpack.name().to_owned(),
                        reason: format!("gave no release data: {error}"),
                    })
                });
                let releases = releases.collect::<Result<Vec<_>, _>>()?;
                Ok((used, choice::merge(releases)))
            }
            ExitStatus::Code(6) => {
                Err(BuildError::Release { buildpack, reason: format!("ended with {}", failed_with()?) })
            }
            _ => Err(BuildError::Compile { buildpack, status: failed_with()? }),
        }
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

fn leave_out(app: &Path, job: &Job) -> Result<(), BuildError> {
    const LARGEST: u64 = 1 << 20;
    let Some(bytes) = vr_runner::container::read_beneath(app, Path::new(".slugignore"), LARGEST)? else {
        return Ok(());
    };
    job.say("leaving out what .slugignore names");
    let ignore = crate::slugignore::Slugignore::parse(&String::from_utf8_lossy(&bytes));
    for refused in &ignore.refused {
        job.say(&format!(".slugignore: {refused}; passed over"));
    }
    let app = app.to_owned();
    let removed =
        job.stoppable(move || ignore.apply(&app).map_err(BuildError::io("leave out files of", app)))?;
    job.say(&format!("left out {} files or folders", removed.len()));
    Ok(())
}
