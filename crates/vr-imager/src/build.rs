//! Making an image from its beginning to its end.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use serde::Serialize;
use vr_common::archive::{PackOptions, PackSummary, pack_open};
use vr_common::fetch::{FetchOptions, fetch, without_credentials};
use vr_common::image_data::ImageData;
use vr_common::paths::VrRoot;
use vr_runner::container::{ContainerError, ExitStatus, overlay_view, run_in_the_foreground};
use vr_runner::image::held_image;
use vr_runner::job::{Failed, Job, JobError, JobOptions, Step};

use crate::ImagerError;
use crate::output::Output;
use crate::script::Script;
use crate::workspace::Workspace;

/// The largest script, in bytes.
const LARGEST_SCRIPT: u64 = 16 << 20;

/// How a new image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `.tar.gz`.
    #[default]
    Gzip,
    /// `.tar.zst`.
    Zstd,
}

impl Format {
    pub(crate) const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    /// The end of the tarball's name.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Gzip => "tar.gz",
            Self::Zstd => "tar.zst",
        }
    }
}

/// How to make an image.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// Where images are.
    pub root: VrRoot,
    /// Where the tarball, the log and the new YAML file are put.
    pub output: PathBuf,
    /// The file that the data came from, if they came from one. It stays even where the new YAML file will be.
    pub source: Option<PathBuf>,
    /// How the tarball is compressed.
    pub format: Format,
    /// What every job can be told.
    pub job: JobOptions,
}

/// An image that was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageSummary {
    /// Its name.
    pub image_name: String,
    /// Its tarball.
    pub tarball: PathBuf,
    /// The tarball's md5 sum.
    pub image_md5: String,
    /// The tarball's size, in bytes.
    pub bytes: u64,
    /// The size of all files in it, in bytes.
    pub unpacked_bytes: u64,
    /// How many files, folders and links are in it.
    pub entries: u64,
    /// What was done, in order.
    pub steps: Vec<Step>,
    /// How long all of it took, in seconds.
    pub seconds: f64,
}

/// Makes an image. The process must have a single thread, and be root; INT, TERM and HUP end the work in order.
///
/// Whatever happens, nothing is left but the output files and the unpacked base; after a failure there is no tarball.
pub fn build(data: &ImageData, options: &ImageOptions) -> Result<ImageSummary, Failed<ImagerError>> {
    let mut job = Job::begin("vimage", &options.job).map_err(Failed::early)?;
    let prepared = Output::prepare(data, options, &job);
    let mut output = prepared.map_err(|error| job.failed(error.into(), None))?;
    run(data, options, &mut output, &mut job).map_err(|error| {
        output.take_back();
        job.failed(error, Some(&output.log))
    })
}

fn run(
    data: &ImageData,
    options: &ImageOptions,
    output: &mut Output,
    job: &mut Job,
) -> Result<ImageSummary, ImagerError> {
    let (workspace, script) = prepare(data, options, job)?;
    let program = workspace.program(&script, data)?;
    job.step("script", &format!("running {}", without_credentials(&data.script_url)), |job| {
        let spec = workspace.container(data, program)?;
        let ended = job.run(spec, &mut output.log, "the script", workspace.folder());
        if !matches!(ended, Err(JobError::Container(_))) {
            // It ran, so that there is a log, even of a script that said nothing.
            let path = output.log.path().to_owned();
            output.log.ensure().map_err(JobError::io("write", path))?;
        }
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(ImagerError::ScriptFailed { status }),
            Err(JobError::Container(error)) => {
                Err(not_started(error, data, |source| match script.interpreter() {
                    Some(program) => ImagerError::InterpreterNotRun {
                        image: data.base_image_name.clone(),
                        program: program.to_owned(),
                        source,
                    },
                    None => ImagerError::ProgramNotRun(source),
                }))
            }
            Err(error) => Err(error.into()),
        }
    })?;
    workspace.tidy()?;
    job.check()?;
    let packed = job.step("pack", "packing", |job| pack(&workspace, options.format, output, job))?;
    let result = ImageData { new_image_md5: Some(packed.md5.clone()), ..data.clone() };
    output.write_result(&result)?;
    let (steps, seconds) = job.so_far();
    Ok(ImageSummary {
        image_name: data.new_image_name.clone(),
        tarball: output.tarball.clone(),
        image_md5: packed.md5,
        bytes: packed.bytes,
        unpacked_bytes: packed.unpacked_bytes,
        entries: packed.entries,
        steps,
        seconds,
    })
}

/// Brings the base and the script into place.
fn prepare(
    data: &ImageData,
    options: &ImageOptions,
    job: &mut Job,
) -> Result<(Workspace, Script), ImagerError> {
    let base = job.step("base", &format!("base image {}", data.base_image_name), |job| {
        let (root, data) = (options.root.clone(), data.clone());
        job.stoppable(move || -> Result<_, ImagerError> {
            let md5 = data.base_image_md5.as_deref();
            Ok(held_image(&root, &data.base_image_name, &data.base_image_url, md5)?)
        })
    })?;
    let workspace = Workspace::create(&options.root, base)?;
    let script = job.step("fetch", &format!("script {}", without_credentials(&data.script_url)), |job| {
        let (url, fetched) = (data.script_url.clone(), workspace.path("script"));
        let limits = FetchOptions { max_bytes: LARGEST_SCRIPT, ..FetchOptions::default() };
        let into = fetched.clone();
        job.stoppable(move || fetch(&url, &into, &limits).map_err(ImagerError::Script))?;
        workspace.place_script(&fetched, data)
    })?;
    job.check()?;
    Ok((workspace, script))
}

/// Says that it is the base of which a container cannot be made. `not_run` is for one whose program does not run: one for
/// another machine, or whose loader is missing, is found out by no one but the kernel.
fn not_started(
    error: ContainerError,
    data: &ImageData,
    not_run: impl FnOnce(ContainerError) -> ImagerError,
) -> ImagerError {
    match error {
        ContainerError::Program { .. } => not_run(error),
        ContainerError::Setup { .. } => {
            ImagerError::NoContainer { image: data.base_image_name.clone(), source: error }
        }
        error => error.into(),
    }
}

/// Packs the base as the script changed it.
fn pack(
    workspace: &Workspace,
    format: Format,
    output: &Output,
    job: &Job,
) -> Result<PackSummary, ImagerError> {
    // In the workspace: a pack that is stopped half-way goes with it.
    let aside = workspace.path(&format!("packed.{}", format.extension()));
    let (layers, packing) = (workspace.layers(), aside.clone());
    let packed = job.stoppable(move || -> Result<_, ImagerError> {
        let root = Path::new("/");
        // The view itself cannot be read, only what is opened in it.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(overlay_view(&layers)?, ".", flags, Mode::empty());
        let opened = opened.map_err(|error| JobError::io("open", root)(error.into()))?;
        Ok(pack_open(opened, root, &packing, &PackOptions::image()).map_err(JobError::Pack)?)
    })?;
    output.place_tarball(&aside)?;
    Ok(packed)
}

/// Opens a shell in the container, with the script in its place, and gives how the shell ended. Nothing that is done
/// in it is kept.
pub fn shell(data: &ImageData, options: &ImageOptions) -> Result<ExitStatus, Failed<ImagerError>> {
    let mut job = Job::begin("vimage", &options.job).map_err(Failed::early)?;
    let opened = open_shell(data, options, &mut job);
    opened.map_err(|error| job.failed(error, None))
}

fn open_shell(data: &ImageData, options: &ImageOptions, job: &mut Job) -> Result<ExitStatus, ImagerError> {
    let (workspace, script) = prepare(data, options, job)?;
    let mut spec = workspace.container(data, workspace.shell(data)?)?;
    spec.limits = job.limits();
    let shown = workspace.script();
    match script {
        Script::ForShell => job.say(&format!("sh {} does what a build does", shown.display())),
        Script::For(_) | Script::Program => job.say(&format!("{} does what a build does", shown.display())),
    }
    run_in_the_foreground(spec).map_err(|error| {
        let image = data.base_image_name.clone();
        not_started(error, data, |source| ImagerError::ShellNotRun { image, source })
    })
}
