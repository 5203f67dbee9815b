//! The command line of `vbuild`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use vr_common::build_data::BuildData;
use vr_common::log;
use vr_common::paths::VrRoot;
use vr_runner::job::{Failed, JobArgs, JobOptions, Steps, parse_size, report, size};

use crate::{BuildError, BuildOptions, BuildSummary, Cleaned, build, clean, shell};

/// Builds an app with Heroku-style buildpacks, in a container.
#[derive(Debug, Parser)]
#[command(
    name = "vbuild",
    version,
    after_help = "Examples:
  vbuild build my_app.yaml
  vbuild build my_app.yaml --output /tmp/result --timeout 30m --memory 4G
  vbuild shell my_app.yaml
  vbuild clean my_app.yaml

Environment: RAPTOR_HOME is the folder of repositories and caches, /apps/builder unless set; VBUILD_CACHE_MAX is what
all caches together may take on disk, such as 50G or none, 20G unless set.

Exit codes: 0 done, 2 bad input, 3 no buildpack matched, 4 compile or release failed, 5 a limit was hit, 1 other failures"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build: leaves build.tar.gz, build_result.yaml and compile.log in the output folder
    Build {
        #[command(flatten)]
        common: Common,
        /// What all files of the build may take on disk while it runs, such as 10G
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        disk: Option<u64>,
        /// The folder for the three files, made when it is missing
        #[arg(long, value_name = "DIR", default_value = ".")]
        output: PathBuf,
        /// Print the result, or the failure, as one line of JSON at the end of standard output
        #[arg(long)]
        json: bool,
    },
    /// Open a shell in the container of a build, with everything in its place
    Shell {
        #[command(flatten)]
        common: Common,
    },
    /// Drop what buildpacks keep between builds
    Clean {
        /// The build.yaml of apps; without any, the caches of all apps are dropped that no build uses
        files: Vec<PathBuf>,
        /// Drop what was fetched of the apps' and the buildpacks' repositories, too
        #[arg(long)]
        repositories: bool,
        /// Print what was removed as one line of JSON
        #[arg(long)]
        json: bool,
        /// How long to wait for builds of these apps; without it, until they end
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        lock_timeout: Option<Duration>,
        /// Say nothing but errors
        #[arg(short, long)]
        quiet: bool,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// The build.yaml, or an earlier build's build_result.yaml
    file: PathBuf,
    /// How long each checkout may take, and the buildpacks of a build run
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How long to wait for other builds that use the same files; without it, until they end
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    lock_timeout: Option<Duration>,
    /// Start with an empty cache
    #[arg(long)]
    no_cache: bool,
    #[command(flatten)]
    job: JobArgs,
}

impl Common {
    fn options(&self, output: &Path) -> BuildOptions {
        BuildOptions {
            root: VrRoot::from_env(),
            output: output.to_owned(),
            source: Some(self.file.clone()),
            no_cache: self.no_cache,
            job: JobOptions { timeout: self.timeout, lock_timeout: self.lock_timeout, ..self.job.options() },
        }
    }

    fn load(&self) -> Result<BuildData, Failed<BuildError>> {
        let mut data = load(&self.file)?;
        data.network = self.job.network.unwrap_or(data.network);
        Ok(data)
    }
}

/// The arguments, for their parser, completions and manual pages.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses the arguments, carries them out, and says what came of it.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (Command::Build { common: Common { job: JobArgs { quiet, .. }, .. }, .. }
    | Command::Shell { common: Common { job: JobArgs { quiet, .. }, .. } }
    | Command::Clean { quiet, .. }) = &arguments.command;
    let quiet = *quiet;
    log::init_tool(&log::tool_default(quiet, 0));
    match &arguments.command {
        Command::Build { common, disk, output, json } => {
            let mut options = common.options(output);
            options.job.disk = *disk;
            let result = common.load().and_then(|data| build(&data, &options));
            report("build", &result, *json, |summary| {
                if !quiet {
                    summarise(summary);
                }
            })
        }
        Command::Shell { common } => {
            let result = common.load().and_then(|data| shell(&data, &common.options(Path::new("."))));
            match result {
                Ok(status) => ExitCode::from(status.as_exit_code()),
                Err(failed) => report::<(), _>("shell", &Err(failed), false, |()| ()),
            }
        }
        Command::Clean { files, repositories, json, lock_timeout, quiet } => {
            let apps = files.iter().map(|file| load(file)).collect::<Result<Vec<_>, _>>();
            let options = JobOptions { lock_timeout: *lock_timeout, quiet: *quiet, ..JobOptions::default() };
            let result = apps.and_then(|apps| clean(&VrRoot::from_env(), &apps, *repositories, &options));
            report("clean", &result, *json, |cleaned| {
                if !*quiet {
                    show(cleaned);
                }
            })
        }
    }
}

fn load(file: &Path) -> Result<BuildData, Failed<BuildError>> {
    BuildData::load(file).map_err(Failed::early)
}

/// The steps with their seconds, and what came out.
fn summarise(summary: &BuildSummary) {
    Steps::table(&summary.steps, summary.seconds);
    eprintln!(
        "vbuild: {} {} is built: {} ({}, {} entries, md5 {}); its cache has {}",
        summary.app_name,
        summary.version,
        summary.tarball.display(),
        size(summary.bytes),
        summary.entries,
        summary.build_md5,
        size(summary.cache_bytes),
    );
}

fn show(cleaned: &Cleaned) {
    for removed in &cleaned.removed {
        eprintln!("vbuild: removed {} ({})", removed.path.display(), size(removed.bytes));
    }
    for path in &cleaned.in_use {
        eprintln!("vbuild: a build uses {}; it stays", path.display());
    }
    let bytes = cleaned.removed.iter().map(|removed| removed.bytes).sum();
    eprintln!("vbuild: freed {}", size(bytes));
}
