//! Making an image from its beginning to its end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use serde::Serialize;
use vr_common::archive::{PackOptions, pack};
use vr_common::fetch::{FetchOptions, fetch};
use vr_common::image_data::ImageData;
use vr_common::paths::VrRoot;
use vr_common::yaml;
use vr_runner::container::{ExitStatus, Program, run_in_the_foreground};
use vr_runner::image::image_contents;
use vr_runner::job::{
    Ending, Interrupts, Log, Step, Steps, interruptible, move_file, remove_file, run_live, write_whole,
};

use crate::ImagerError;
use crate::merge::merge;
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
    const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    /// The end of the tarball's name.
    fn extension(self) -> &'static str {
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
    /// How the tarball is compressed.
    pub format: Format,
    /// How long the script may run.
    pub timeout: Duration,
    /// Says nothing but errors, and shows no output of the script.
    pub quiet: bool,
    /// Stops when the program that started this one ends.
    pub die_with_parent: bool,
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
pub fn build(data: &ImageData, options: &ImageOptions) -> Result<ImageSummary, ImagerError> {
    let mut steps = Steps::new("vimage", options.quiet);
    let interrupts = watch(options)?;
    let folder = &options.output;
    fs::create_dir_all(folder).map_err(ImagerError::io("make", folder))?;
    let folder = folder.canonicalize().map_err(ImagerError::io("find", folder))?;
    let file = |extension: &str| folder.join(format!("{}.{extension}", data.new_image_name));
    // Those of an earlier run must not be taken for this one's.
    for format in Format::ALL {
        let old = file(format.extension());
        remove_file(&old).map_err(ImagerError::io("remove", &old))?;
    }
    let mut log = Log::new(file("log")).map_err(ImagerError::io("remove", file("log")))?;
    let tarball = file(options.format.extension());
    let result = run(data, options, &interrupts, &mut log, &tarball, &file("yaml"), &mut steps);
    if result.is_err()
        && let Err(error) = remove_file(&tarball)
    {
        tracing::warn!(tarball = %tarball.display(), %error, "a tarball of an image that failed stays");
    }
    result
}

/// Takes hold of what all of the process has in common: signals and the umask.
fn watch(options: &ImageOptions) -> Result<Interrupts, ImagerError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ImagerError::NotRoot);
    }
    // What is unpacked and packed must not depend on who calls.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Interrupts::watch(options.die_with_parent).map_err(ImagerError::io("watch for signals in", "/proc/self"))
}

fn run(
    data: &ImageData,
    options: &ImageOptions,
    interrupts: &Interrupts,
    log: &mut Log,
    tarball: &Path,
    result_file: &Path,
    steps: &mut Steps,
) -> Result<ImageSummary, ImagerError> {
    let (base, workspace, program) = prepare(data, options, interrupts, steps)?;
    steps.step("script", &format!("running {}", data.script_url), |_| {
        let spec = workspace.container(data, &base, program);
        let deadline = Instant::now().checked_add(options.timeout);
        let path = log.path().to_owned();
        log.ensure().map_err(ImagerError::io("write", path))?;
        let ending = run_live(spec, log, !options.quiet, deadline, interrupts)?
            .map_err(ImagerError::io("write", log.path()))?;
        match ending {
            Ending::Ended(status) if status.success() => Ok(()),
            Ending::Ended(status) => Err(ImagerError::ScriptFailed { status, log: log.path().to_owned() }),
            Ending::TimedOut => Err(ImagerError::Timeout { limit: options.timeout }),
            Ending::Interrupted(interruption) => Err(interruption.into()),
        }
    })?;
    workspace.remove_script()?;
    let merged = workspace.path("merged");
    steps.step("merge", "putting base and changes together", |_| {
        merge(&base, &workspace.upper, &merged).map_err(ImagerError::io("merge into", &merged))
    })?;
    interrupts.check()?;
    let packed = steps.step("pack", "packing", |_| {
        // In the workspace: a pack that is stopped half-way goes with it.
        let aside = workspace.path(&format!("packed.{}", options.format.extension()));
        let packing = aside.clone();
        let packed = stoppable(interrupts, move || {
            pack(&merged, &packing, &PackOptions::image()).map_err(ImagerError::Pack)
        })?;
        move_file(&aside, tarball).map_err(ImagerError::io("write", tarball)).map(|()| packed)
    })?;
    let mut result = data.clone();
    result.new_image_md5 = Some(packed.md5.clone());
    write_whole(result_file, yaml::to_string(&result)?.as_bytes())
        .map_err(ImagerError::io("write", result_file))?;
    let (done, seconds) = steps.so_far();
    Ok(ImageSummary {
        image_name: data.new_image_name.clone(),
        tarball: tarball.to_owned(),
        image_md5: packed.md5,
        bytes: packed.bytes,
        entries: packed.entries,
        steps: done,
        seconds,
    })
}

/// Brings the base and the script into place; gives the base's folder and the program that runs the script.
fn prepare(
    data: &ImageData,
    options: &ImageOptions,
    interrupts: &Interrupts,
    steps: &mut Steps,
) -> Result<(PathBuf, Workspace, Program), ImagerError> {
    let base = steps.step("base", &format!("base image {}", data.base_image_name), |_| {
        let (root, data) = (options.root.clone(), data.clone());
        let md5 = data.base_image_md5.clone();
        stoppable(interrupts, move || {
            Ok(image_contents(&root, &data.base_image_name, &data.base_image_url, md5.as_deref())?)
        })
    })?;
    let workspace = Workspace::create(&options.root)?;
    let script = workspace.path("script");
    {
        let (url, script) = (data.script_url.clone(), script.clone());
        let limits = FetchOptions { max_bytes: LARGEST_SCRIPT, ..FetchOptions::default() };
        stoppable(interrupts, move || fetch(&url, &script, &limits).map_err(ImagerError::Script))?;
    }
    let program = workspace.place_script(&script)?;
    interrupts.check()?;
    Ok((base, workspace, program))
}

/// Runs work that must be stoppable while it lasts.
fn stoppable<T: Send + 'static>(
    interrupts: &Interrupts,
    work: impl FnOnce() -> Result<T, ImagerError> + Send + 'static,
) -> Result<T, ImagerError> {
    let started: io::Result<_> = interruptible(interrupts, work);
    started.map_err(ImagerError::io("start a thread in", "/proc/self"))??
}

/// Opens a shell in the container, with the script in its place, and gives how the shell ended. Nothing that is done
/// in it is kept.
pub fn shell(data: &ImageData, options: &ImageOptions) -> Result<ExitStatus, ImagerError> {
    let mut steps = Steps::new("vimage", options.quiet);
    let interrupts = watch(options)?;
    let (base, workspace, _) = prepare(data, options, &interrupts, &mut steps)?;
    let mut program = Program::new("/bin/bash", [] as [&str; 0]);
    program.candidates.push("/bin/sh".into());
    steps.say(&format!("the script is {}", workspace.script().display()));
    Ok(run_in_the_foreground(workspace.container(data, &base, program))?)
}
