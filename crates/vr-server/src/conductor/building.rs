//! Builds: vbuild run as a child that dies with the server, and its output put where hosts fetch it.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use thiserror::Error;
use uuid::Uuid;
use vr_common::build_data::BuildData;
use vr_common::exit::chain;
use vr_common::hash::build_hash;
use vr_common::proc_data::Network;
use vr_common::process::{command, sibling};
use vr_common::vcs::RepoUrl;
use vr_common::yaml;

use super::Conductor;
use crate::events::News;
use crate::store::{BuildOutcome, BuildRow, Lease};

/// Makes a build. Dropping the future ends it.
#[async_trait]
pub trait BuildRunner: Send + Sync {
    /// Builds an app; `buildpacks` are tried in order unless the app names its own.
    async fn run(&self, build: &BuildRow, buildpacks: Vec<String>) -> BuildOutcome;
}

impl Conductor {
    /// Builds what was leased, and wakes those who wait for it.
    pub(super) async fn build(&self, build: BuildRow, lease: Lease) {
        let title = format!("{} {}", build.app_name, build.tag);
        let uri = format!("/api/v1/builds/{}/", build.id);
        let news = |message: String, tags: &[&'static str]| {
            News::new(title.clone(), message, tags).with("resource_uri", uri.clone())
        };
        let buildpacks = match self.store.buildpack_urls().await {
            Ok(urls) => urls,
            Err(error) => {
                tracing::error!(error = %chain(&error), "a build was not begun");
                return;
            }
        };
        self.events.tell(news(format!("building {title}"), &["build"])).await;
        let run = AssertUnwindSafe(self.builder.run(&build, buildpacks)).catch_unwind();
        let outcome = tokio::select! {
            outcome = run => match outcome {
                Ok(outcome) => outcome,
                Err(_) => {
                    tracing::error!(build = build.id, "the builder panicked; the build will be begun again");
                    drop(self.store.give_back_build(build.id, &lease, self.pause()).await);
                    return;
                }
            },
            error = self.keep(|| self.store.renew_build(build.id, &lease, self.settings.lease)) => {
                tracing::warn!(build = build.id, error = %chain(&error), "stopped a build");
                return;
            }
        };
        if let Err(error) = self.store.finish_build(build.id, &lease, &outcome).await {
            tracing::error!(build = build.id, error = %chain(&error), "a build's end was not written");
            return;
        }
        match outcome {
            BuildOutcome::Success { file_md5, buildpack_url, .. } => {
                // Shown without the password that its address may hold.
                let buildpack = buildpack_url.and_then(|url| RepoUrl::parse(&url).ok());
                let buildpack = buildpack.map_or_else(|| "a buildpack".to_owned(), |url| url.to_string());
                let message = format!("built {title} with {buildpack}, md5 {file_md5}");
                self.events.tell(news(message, &["build", "success"])).await;
            }
            BuildOutcome::Failed { error, .. } => {
                self.events.tell(news(format!("build of {title}: {error}"), &["build", "failed"])).await;
            }
        }
        self.wake.notify_one();
    }
}

/// Runs the `vbuild` binary.
#[derive(Debug, Clone)]
pub struct Vbuild {
    /// Where builds are made, a folder each.
    pub work: PathBuf,
    /// The root of `/files/`.
    pub files: PathBuf,
    /// vbuild's checkouts and caches.
    pub home: PathBuf,
    /// The host's root, for OS images.
    pub root: PathBuf,
}

#[derive(Debug, Error)]
enum BuildError {
    #[error("cannot {doing} {}", path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{0}")]
    Input(String),
    #[error("cannot start {}", .0.display())]
    Start(PathBuf, #[source] io::Error),
    #[error("the build did not end within {} minutes", LONGEST.as_secs() / 60)]
    TooLong,
    #[error("{reason}")]
    Refused { reason: String },
}

/// The longest that a build may take, whatever vbuild says.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// How much of the end of vbuild's messages is looked at for the reason of a failure, in bytes.
const LAST_WORDS: u64 = 64 << 10;

/// Ends a process group when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            // It may have ended by itself.
            let _gone = killpg(group, Signal::SIGTERM);
        }
    }
}

fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::File { doing, path, source }
}

impl Vbuild {
    /// Removes what killed builds have left. Call it while no build runs.
    pub fn remove_leftovers(&self) -> io::Result<()> {
        vr_common::archive::remove_tree(&self.work)?;
        fs::create_dir_all(&self.work)
    }

    fn input(build: &BuildRow, buildpacks: Vec<String>) -> Result<BuildData, BuildError> {
        let bad = |what: &str, e: &dyn std::error::Error| BuildError::Input(format!("{what}: {}", chain(e)));
        if build.app_buildpack.is_none() && buildpacks.is_empty() {
            return Err(BuildError::Input("no buildpack is registered".into()));
        }
        Ok(BuildData {
            app_name: build.app_name.parse().map_err(|e| bad("app", &e))?,
            app_repo_url: build.repo_url.clone(),
            app_repo_type: build.repo_type.parse().map_err(|e| bad("repo_type", &e))?,
            version: build.tag.parse().map_err(|e| bad("tag", &e))?,
            buildpack_url: build.app_buildpack.clone(),
            buildpack_urls: Some(buildpacks),
            buildpacks: None,
            buildpack_version: None,
            image_url: None,
            image_name: None,
            image_md5: None,
            build_md5: None,
            release_data: None,
            user: None,
            stack: None,
            env: None,
            network: Network::Host,
            unknown: serde_yaml::Mapping::new(),
        })
    }

    async fn make(
        &self,
        build: &BuildRow,
        buildpacks: Vec<String>,
        dir: &Path,
    ) -> Result<BuildData, BuildError> {
        let text = Self::input(build, buildpacks)?.to_yaml().map_err(|e| BuildError::Input(chain(&e)))?;
        fs::create_dir_all(dir).map_err(file_error("make", dir))?;
        let app_yaml = dir.join("app.yaml");
        fs::write(&app_yaml, text).map_err(file_error("write", &app_yaml))?;
        let (program, log) = (sibling("vbuild"), dir.join("vbuild.log"));
        let output = fs::File::create(&log).map_err(file_error("make", &log))?;
        let mut vbuild = command(&program);
        vbuild
            .args(["build", "--quiet", "--die-with-parent", "app.yaml"])
            .current_dir(dir)
            .env("RAPTOR_HOME", &self.home)
            .env("VR_ROOT", &self.root)
            .process_group(0)
            .stdout(Stdio::from(output.try_clone().map_err(file_error("use", &log))?))
            .stderr(Stdio::from(output));

        let mut child = tokio::process::Command::from(vbuild)
            .spawn()
            .map_err(|source| BuildError::Start(program.clone(), source))?;
        let mut group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw));
        // vbuild keeps to its own limit; this one is for a vbuild that does not.
        let status = tokio::time::timeout(LONGEST, child.wait())
            .await
            .map_err(|_| BuildError::TooLong)?
            .map_err(|source| BuildError::Start(program, source))?;
        group.0 = None;
        if !status.success() {
            let said = last_words(&log);
            let reason = match (said, status.signal()) {
                (Some(said), _) => said,
                (None, Some(signal)) => format!("vbuild was ended by signal {signal}"),
                (None, None) => format!("vbuild failed with {status}"),
            };
            return Err(BuildError::Refused { reason });
        }
        BuildData::load(&dir.join("build_result.yaml")).map_err(|e| BuildError::Input(chain(&e)))
    }

    /// Moves a file of a build to `/files/`, if there is one.
    fn publish(&self, from: &Path, name: &str) -> Result<Option<String>, BuildError> {
        let below = format!("builds/{name}");
        let to = self.files.join(&below);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(file_error("make", parent))?;
        }
        match fs::rename(from, &to) {
            Ok(()) => Ok(Some(below)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(file_error("move a build's file to", &to)(e)),
        }
    }
}

/// Whether a character means something in a URL or a shell.
fn is_awkward(c: char) -> bool {
    !c.is_ascii_alphanumeric() && !"._-".contains(c)
}

/// What vbuild said last, without its heading: the reason of a failure.
fn last_words(log: &Path) -> Option<String> {
    let mut file = fs::File::open(log).ok()?;
    let end = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(end.saturating_sub(LAST_WORDS))).ok()?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let at = text.rfind("ERROR: ")?;
    let words = text[at + "ERROR: ".len()..].trim();
    Some(words.chars().take(4_000).collect())
}

#[async_trait]
impl BuildRunner for Vbuild {
    async fn run(&self, build: &BuildRow, buildpacks: Vec<String>) -> BuildOutcome {
        // A name that cannot be guessed: whoever knows it may fetch the build.
        let id = Uuid::new_v4().simple().to_string();
        let dir = self.work.join(&id);
        let stem = format!("{}-{}-{id}", build.app_name, build.tag).replace(is_awkward, "_");
        let made = self.make(build, buildpacks, &dir).await;
        let compile_log =
            self.publish(&dir.join("compile.log"), &format!("{stem}.log")).unwrap_or_else(|error| {
                tracing::warn!(error = %chain(&error), "a build's log was not kept");
                None
            });
        let outcome = made.and_then(|result| {
            let missing = || BuildError::Input("vbuild left no build.tar.gz and md5".into());
            let file = self.publish(&dir.join("build.tar.gz"), &format!("{stem}.tar.gz"))?;
            let (file, md5) = (file.ok_or_else(missing)?, result.build_md5.clone().ok_or_else(missing)?);
            let env_yaml = match result.release_data.as_ref().and_then(|data| data.get("config_vars")) {
                Some(vars) if vars.is_mapping() => {
                    yaml::to_string(vars).map_err(|e| BuildError::Input(chain(&e)))?
                }
                _ => String::new(),
            };
            Ok(BuildOutcome::Success {
                file,
                hash: build_hash(&md5, build.os_image.as_ref().and(result.image_md5.as_deref())),
                file_md5: md5,
                compile_log: compile_log.clone(),
                env_yaml,
                buildpack_url: result.buildpack_url,
                buildpack_version: result.buildpack_version,
            })
        });
        if let Err(error) = vr_common::archive::remove_tree(&dir) {
            tracing::warn!(%error, "a build's folder was left at {}", dir.display());
        }
        outcome.unwrap_or_else(|error| BuildOutcome::Failed { error: chain(&error), compile_log })
    }
}
