//! `run`: the app in its container, in the foreground, with its log and the news of its end.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vr_common::exit;
use vr_common::host_api::RunStatus;
use vr_common::lock::LockError;

use super::log::RotatingLog;
use super::record::Record;
use super::root::{Held, View, root};
use super::{Proc, ProcError, predecessor, scratch, status};
use crate::container::{
    Container, ContainerError, ExitStatus, Running, Streams, WatchedSignals, forget_code, read_rest,
};

/// Seconds between the signal to stop and KILL, unless `grace_period` says otherwise.
const GRACE_PERIOD: u32 = 10;

/// Where an app's output goes.
#[derive(Debug, Clone)]
pub struct LogFile {
    /// The file.
    pub path: PathBuf,
    /// The size at which it is moved to `path.1`, in bytes; 0 for no limit.
    pub max_bytes: u64,
    /// How many older ones are kept.
    pub backups: u32,
}

/// How to run a proc.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Takes both streams of the app instead of vrun's own.
    pub log: Option<LogFile>,
    /// Where to keep a [`RunStatus`].
    pub status_file: Option<PathBuf>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEnd {
    /// How the app's program ended.
    pub status: ExitStatus,
    /// When the kernel killed a process of the app for want of memory: what to say of it, such as
    /// `killed: out of memory (limit 64M)`.
    pub out_of_memory: Option<String>,
}

/// Runs a proc to its end and returns how it ended. TERM and INT ask the app to end, with the `stopsignal` of its file
/// where that has one; the second one, or the end of the grace period, kills the container.
pub fn run(proc: &Proc, options: &RunOptions) -> Result<RunEnd, ProcError> {
    let _lock = match proc.lock_folder() {
        Err(ProcError::Lock(LockError::Io { source, .. })) if source.kind() == io::ErrorKind::NotFound => {
            return Err(ProcError::NotSetUp { name: proc.name.clone() });
        }
        taken => taken?,
    };
    let record = proc.record()?;
    let io_error = |step, path: &Path| {
        let path = path.to_owned();
        move |source| ProcError::Io { step, path, source }
    };
    let mut log = match &options.log {
        Some(log) => Some(
            RotatingLog::open(log.path.clone(), log.max_bytes, log.backups)
                .map_err(io_error("open the log", &log.path))?,
        ),
        None => None,
    };
    let write_status = |status: &RunStatus| match &options.status_file {
        Some(path) => status::write(path, status).map_err(io_error("write the status file", path)),
        None => Ok(()),
    };
    let mut news = status::beginning().map_err(io_error("read", Path::new("/proc/self")))?;
    let started = start(proc, &record, log.is_some());
    // It may be large, and this process stays for long.
    drop(record);
    match started {
        Ok(Started { mut running, signals, _held }) => {
            news.app_pid = u32::try_from(running.program_pid()).ok();
            if let Err(error) = predecessor::remember(proc, running.pid()) {
                tracing::warn!(
                    error = exit::chain(&error),
                    "should this process be killed, nobody waits for its app"
                );
            }
            write_status(&news)?;
            let stopping = Stopping {
                signal: proc.data.stopsignal.and_then(|signal| Signal::try_from(signal.number()).ok()),
                grace: Duration::from_secs(proc.data.grace_period.unwrap_or(GRACE_PERIOD).into()),
                deadline: None,
            };
            let end = watch(&mut running, &signals, log.as_mut(), stopping)?;
            if let Some(words) = running.out_of_memory() {
                match &mut log {
                    Some(log) => log.write(format!("vrun: {words}\n").as_bytes()),
                    None => tracing::error!("{words}"),
                }
            }
            // The app's exit status is worth more than a complaint about a full disk.
            if let Err(error) = write_status(&status::ended(news, end, &running)) {
                tracing::error!(error = exit::chain(&error), "the end of the run is not in the status file");
            }
            Ok(RunEnd { status: end, out_of_memory: running.out_of_memory().map(str::to_owned) })
        }
        Err(error) => {
            // Whoever looks for the reason looks in the log, too.
            let message = exit::chain(&error);
            if let Some(log) = &mut log {
                log.write(format!("vrun: ERROR: {message}\n").as_bytes());
            }
            if let Err(error) = write_status(&status::failed(news, message)) {
                tracing::error!(error = exit::chain(&error), "the failure is not in the status file");
            }
            Err(error)
        }
    }
}

/// A container that runs.
struct Started {
    running: Running,
    /// What it is to be told.
    signals: WatchedSignals,
    /// To be kept until it is gone.
    _held: Held,
}

fn start(proc: &Proc, record: &Record, capture: bool) -> Result<Started, ProcError> {
    scratch::clear(proc)?;
    let (root, mut held) = root(proc, record, View::Own)?;
    let mut spec = proc.container("", root, record, &["run"])?;
    spec.streams = if capture { Streams::Captured } else { Streams::InheritOutput };
    // Not before: what came so far may have waited for others, and a signal ends that.
    let signals = WatchedSignals::take().map_err(|source| ProcError::Io {
        step: "watch for signals of",
        path: "/proc/self".into(),
        source,
    })?;
    let running = Container::start(spec)?;
    held.renew()?;
    Ok(Started { running, signals, _held: held })
}

/// How a container is asked to end, and when one that was asked will be killed.
struct Stopping {
    /// What the app is sent; that which came, if none.
    signal: Option<Signal>,
    grace: Duration,
    deadline: Option<Instant>,
}

impl Stopping {
    fn handle(&mut self, signal: Signal, running: &Running) -> Result<(), ContainerError> {
        if !matches!(signal, Signal::SIGTERM | Signal::SIGINT) {
            return running.signal(signal);
        }
        if self.deadline.is_some() {
            return running.kill();
        }
        self.deadline = Instant::now().checked_add(self.grace);
        running.signal(self.signal.unwrap_or(signal))
    }

    /// How long to wait for news; kills when that time is over.
    fn remaining(&self, running: &Running) -> Result<Option<Timespec>, ContainerError> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            running.kill()?;
            return Ok(None);
        }
        Ok(Timespec::try_from(left).ok())
    }
}

/// One loop, no thread, no growing buffer: this process stays as long as the app does.
fn watch(
    running: &mut Running,
    signals: &WatchedSignals,
    mut log: Option<&mut RotatingLog>,
    mut stopping: Stopping,
) -> Result<ExitStatus, ProcError> {
    // Most apps that run longer than this run for days.
    let mut settled = false;
    let mut output = running.take_output();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let timeout = match stopping.remaining(running)? {
            None if !settled => Some(Timespec { tv_sec: 1, tv_nsec: 0 }),
            timeout => timeout,
        };
        let pidfd = running.pidfd();
        let mut waits = vec![PollFd::new(signals, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        if let Some(output) = &output {
            waits.push(PollFd::new(output, PollFlags::IN));
        }
        match poll(&mut waits, timeout.as_ref()) {
            Ok(0) if !settled => {
                settled = true;
                let _ = forget_code();
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(ProcError::Io {
                    step: "wait for",
                    path: "/proc/self".into(),
                    source: io::Error::from(error),
                });
            }
        }
        let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
        if ready[0] {
            while let Some(signal) = signals.next() {
                stopping.handle(signal, running)?;
            }
        }
        if ready[1] {
            if let (Some(output), Some(log)) = (&output, &mut log) {
                read_rest(output, &mut buffer, &mut |bytes| log.write(bytes));
            }
            return Ok(running.wait()?);
        }
        if ready.get(2) == Some(&true) {
            copy(&mut output, &mut buffer, &mut log);
        }
    }
}

fn copy(output: &mut Option<OwnedFd>, buffer: &mut [u8], log: &mut Option<&mut RotatingLog>) {
    let Some(pipe) = &output else { return };
    match rustix::io::read(pipe, &mut *buffer) {
        Err(Errno::INTR | Errno::AGAIN) => {}
        Ok(length @ 1..) => {
            if let Some(log) = log {
                log.write(&buffer[..length]);
            }
        }
        Ok(_) | Err(_) => *output = None,
    }
}
