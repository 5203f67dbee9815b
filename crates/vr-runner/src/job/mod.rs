//! A job: work of minutes in a container, whose output people watch and whose traces must go away whatever happens.
//!
//! A [`Job`] has the signals and the steps of one; it runs work that must be stoppable, waits for locks, and runs a
//! container with its output going to the terminal and to a log as it comes, within bounds. [`Scratch`] is a folder that
//! never outlives its owner for long, [`JobArgs`] are the options that all jobs have, and [`report`] says how one
//! ended. Nothing here knows of buildpacks or of images.

mod args;
mod disk;
mod error;
mod live;
mod lock;
mod place;
mod report;
mod scratch;
mod signals;
mod steps;

use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;

pub use args::{JobArgs, parse_size};
pub use disk::DiskLimit;
pub use error::{JobError, LIMIT_HIT};
pub use live::Log;
pub use lock::{Locked, try_lock};
pub use place::{is_same_file, move_file, remove_file, write_whole};
pub use report::{Explained, Failed, report};
pub use scratch::Scratch;
pub use signals::{Interruption, Interrupts};
pub use steps::{Step, Steps, size};

use crate::container::{ContainerSpec, ExitStatus, Limits, why_no_limits};

/// So many processes nothing needs that ends; without any limit, one wrong line of a script stops the whole host.
pub const USUAL_PROCESSES: u32 = 8192;

/// What all jobs can be told.
#[derive(Debug, Clone, Default)]
pub struct JobOptions {
    /// How long the container may run, and each checkout take.
    pub timeout: Duration,
    /// How long to wait for somebody else's lock; for ever when absent.
    pub lock_timeout: Option<Duration>,
    /// What the container may use. Without a limit of processes it is [`USUAL_PROCESSES`], where the host can have one.
    pub limits: Limits,
    /// How many bytes the job may have on disk while it lasts.
    pub disk: Option<u64>,
    /// Says nothing but errors, and shows no output of the container.
    pub quiet: bool,
    /// Stops when the program that started this one ends.
    pub die_with_parent: bool,
}

/// A job that goes on.
#[derive(Debug)]
pub struct Job {
    steps: Steps,
    interrupts: Interrupts,
    options: JobOptions,
}

impl Job {
    /// Begins one of the program `program`, and takes hold of what all of the process has in common: signals and the
    /// umask. The process must have a single thread, and be root; from now on INT, TERM and HUP end the job in order.
    pub fn begin(program: &'static str, options: &JobOptions) -> Result<Self, JobError> {
        if !rustix::process::geteuid().is_root() {
            return Err(JobError::NotRoot);
        }
        // What is checked out, unpacked and packed must not depend on who calls.
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let interrupts = Interrupts::watch(options.die_with_parent)
            .map_err(JobError::io("watch for signals in", "/proc/self"))?;
        Ok(Self { steps: Steps::new(program, options.quiet), interrupts, options: options.clone() })
    }

    /// Says something, unless told to be quiet.
    pub fn say(&self, text: &str) {
        self.steps.say(text);
    }

    /// Says what is next, unless there is nothing to say, does it, and notes how long it took, or that it failed.
    pub fn step<T, E>(
        &mut self,
        name: &'static str,
        text: &str,
        work: impl FnOnce(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        if !text.is_empty() {
            self.say(text);
        }
        let begun = Steps::begin(name);
        let result = work(self);
        self.steps.end(begun, result.is_ok());
        result
    }

    /// The steps so far, and the seconds since the first began.
    pub fn so_far(&self) -> (Vec<Step>, f64) {
        self.steps.so_far()
    }

    /// `Err` when somebody wants it to stop.
    pub fn check(&self) -> Result<(), JobError> {
        Ok(self.interrupts.check()?)
    }

    /// Runs work on another thread that can be stopped meanwhile.
    pub fn stoppable<T: Send + 'static, E: From<JobError> + Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let started = signals::interruptible(&self.interrupts, work);
        started
            .map_err(JobError::io("start a thread in", "/proc/self"))
            .and_then(|ended| ended.map_err(JobError::from))?
    }

    /// Takes the lock on the file `path`, which is made when it is missing, or on a folder that is there. Waits for whoever has it, and says so.
    pub fn lock(&self, path: &Path) -> Result<Locked, JobError> {
        lock::wait(path, self.options.lock_timeout, &self.interrupts, |text| self.say(text))
    }

    /// Runs a container to its end, with its output, both streams, going to `log` and the screen as it comes. `what` is
    /// what it is called in messages, such as `the build`, and `folder` where all that it writes is.
    pub fn run(
        &self,
        mut spec: ContainerSpec,
        log: &mut Log,
        what: &'static str,
        folder: &Path,
    ) -> Result<ExitStatus, JobError> {
        spec.limits = self.limits();
        let disk = self.options.disk.map(|bytes| DiskLimit { folder: folder.to_owned(), bytes });
        let bounds = live::Bounds { what, timeout: self.options.timeout, disk: disk.as_ref() };
        live::run_live(spec, log, !self.options.quiet, &bounds, &self.interrupts)
    }

    /// What a container may use; what nobody asked for is left out where the host cannot have it.
    pub fn limits(&self) -> Limits {
        let mut limits = self.options.limits.clone();
        if limits.processes.is_none() && why_no_limits().is_none() {
            limits.processes = Some(USUAL_PROCESSES);
        }
        limits
    }

    /// The failure that ended it; `log` is where its container's output is, if there is any.
    pub fn failed<E>(&self, error: E, log: Option<&Log>) -> Failed<E> {
        let log = log.filter(|log| log.has_output()).map(|log| log.path().to_owned());
        Failed { error: Box::new(error), step: self.steps.failed(), log }
    }
}
