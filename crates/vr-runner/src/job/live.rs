//! Running a container to its end while its output goes to the terminal and to a log as it comes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::container::{Container, ContainerError, ContainerSpec, ExitStatus, Running, Streams};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::disk::DiskWatch;
use super::{DiskLimit, Interruption, Interrupts, JobError};

/// The most that is kept of the output, in bytes. What is beyond it is still shown.
const LOG_LIMIT: u64 = 64 << 20;
/// How much of what is beyond it is kept all the same, in bytes: failures are explained at the end.
const LOG_END: usize = 16 << 10;
/// A pipe that polls as writable takes this much without blocking.
const CHUNK: usize = 4096;
/// How long the last output of a killed container may take to be shown.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Its program ended by itself.
    Ended(ExitStatus),
    /// The time was up; the container was killed.
    TimedOut,
    /// It had written too much; the container was killed.
    OutOfDisk,
    /// Somebody wanted it to stop; the container was killed.
    Interrupted(Interruption),
}

/// What a run may use, beside what its container's own limits say.
#[derive(Debug)]
pub(super) struct Bounds<'a> {
    /// What runs, for messages, such as `the build`.
    pub what: &'static str,
    /// How long it may run.
    pub timeout: Duration,
    /// What it may write.
    pub disk: Option<&'a DiskLimit>,
}

/// A file that takes a run's output while it comes, made with the first of it. It has its final name from the start
/// because a log is of use while it grows, and above all when nobody lived to rename it.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    /// The last of what did not fit.
    end: VecDeque<u8>,
    left_out: bool,
}

impl Log {
    /// A log at `path`; an old file there is removed.
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        super::remove_file(&path)?;
        Ok(Self { path, file: None, written: 0, end: VecDeque::new(), left_out: false })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether anything was written.
    pub fn has_output(&self) -> bool {
        self.written > 0
    }

    /// Makes the file even though nothing was written.
    pub fn ensure(&mut self) -> io::Result<&mut File> {
        match &mut self.file {
            Some(file) => Ok(file),
            // Made anew: nobody else's file or link is written through.
            nothing => Ok(nothing.insert(File::create_new(&self.path)?)),
        }
    }

    /// Adds output, up to the limit; of what is beyond it, the last is kept until [`Log::finish`].
    pub fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = usize::try_from(LOG_LIMIT - self.written).unwrap_or(usize::MAX);
        let (fits, rest) = bytes.split_at(room.min(bytes.len()));
        if !fits.is_empty() {
            self.written += fits.len() as u64;
            self.ensure()?.write_all(fits)?;
        }
        self.end.extend(rest);
        let surplus = self.end.len().saturating_sub(LOG_END);
        self.left_out |= surplus > 0;
        self.end.drain(..surplus);
        Ok(())
    }

    /// Adds the end of an output that did not fit.
    pub fn finish(&mut self) -> io::Result<()> {
        let (end, left_out) = (std::mem::take(&mut self.end), std::mem::take(&mut self.left_out));
        if end.is_empty() {
            return Ok(());
        }
        let file = self.ensure()?;
        if left_out {
            writeln!(file, "\n[of what came after {} MiB, only the end is kept]", LOG_LIMIT >> 20)?;
        }
        let (first, second) = end.as_slices();
        file.write_all(first)?;
        file.write_all(second)
    }
}

/// Starts the container and copies its output, both streams, to `log` and, if `show`, to standard output, until it has
/// ended, and gives how. When it hits one of its bounds, and at an interruption, it is killed with all its processes. A
/// reader of our output that goes away or is slow changes nothing of that.
///
/// `spec.streams` is set here.
pub(super) fn run_live(
    spec: ContainerSpec,
    log: &mut Log,
    show: bool,
    bounds: &Bounds<'_>,
    interrupts: &Interrupts,
) -> Result<ExitStatus, JobError> {
    let what = bounds.what;
    let followed = follow(spec, log, show, bounds, interrupts);
    log.finish().map_err(JobError::io("write", log.path()))?;
    let (ending, running) = followed?;
    let status = match (ending, bounds.disk) {
        // It may have written all of it since the last look.
        (Ending::Ended(_), Some(limit)) if limit.is_exceeded() => {
            return Err(JobError::OutOfDisk { what, limit: limit.bytes });
        }
        (Ending::Ended(status), _) => status,
        (Ending::OutOfDisk, Some(limit)) => return Err(JobError::OutOfDisk { what, limit: limit.bytes }),
        (Ending::OutOfDisk | Ending::TimedOut, _) => {
            return Err(JobError::Timeout { what, limit: bounds.timeout });
        }
        (Ending::Interrupted(interruption), _) => return Err(interruption.into()),
    };
    if status.success() {
        // A program that goes on when a part of it was killed has succeeded all the same.
        return Ok(status);
    }
    match (running.lost_for_memory(), running.out_of_processes()) {
        (Some(reason), _) => Err(JobError::OutOfMemory { what, reason: reason.to_owned() }),
        (None, Some(reason)) => Err(JobError::OutOfProcesses { what, reason: reason.to_owned() }),
        (None, None) => Ok(status),
    }
}

fn follow(
    mut spec: ContainerSpec,
    log: &mut Log,
    show: bool,
    bounds: &Bounds<'_>,
    interrupts: &Interrupts,
) -> Result<(Ending, Running), JobError> {
    let name = spec.name.clone();
    spec.streams = Streams::Captured;
    let deadline = Instant::now().checked_add(bounds.timeout);
    let mut running = Container::start(spec)?;
    let disk = match bounds.disk {
        Some(limit) => Some(DiskWatch::start(limit).map_err(JobError::io("watch", &limit.folder))?),
        None => None,
    };
    let mut output = running.take_output();
    let mut screen = Screen { on: show, waiting: Vec::new(), is_at_start: true };
    let mut killed: Option<(Ending, Instant)> = None;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let until = killed.map(|(_, until)| until).or(deadline);
        let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        let stdout = io::stdout();
        let mut waits = Vec::with_capacity(4);
        // First what is written, so that a program that talks faster than its reader reads has to wait.
        waits.push(match (&output, screen.waiting.is_empty()) {
            (_, false) => PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::OUT),
            (Some(output), true) => PollFd::new(output, PollFlags::IN),
            // Its end shows last, after the last process that holds the output.
            (None, true) => PollFd::from_borrowed_fd(running.pidfd(), PollFlags::IN),
        });
        if killed.is_none() {
            let handles = interrupts.handles().chain(disk.as_ref().map(DiskWatch::handle));
            waits.extend(handles.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        let (first, others) = match poll(&mut waits, timeout.as_ref()) {
            Ok(_) => {
                (!waits[0].revents().is_empty(), waits[1..].iter().any(|wait| !wait.revents().is_empty()))
            }
            Err(Errno::INTR) => continue,
            Err(source) => {
                let source = source.into();
                return Err(ContainerError::System { name, step: "wait for it", source }.into());
            }
        };
        let reason = match others {
            // One of them can be seen only once; what fills the disk goes on doing so.
            true => interrupts
                .seen()
                .map(Ending::Interrupted)
                .or_else(|| disk.as_ref().filter(|disk| disk.is_exceeded()).map(|_| Ending::OutOfDisk)),
            false => None,
        };
        let late = until.is_some_and(|until| Instant::now() >= until);
        match (reason, killed) {
            (Some(ending), None) => {
                running.kill()?;
                killed = Some((ending, Instant::now() + LAST_WORDS));
            }
            (None, None) if late => {
                running.kill()?;
                killed = Some((Ending::TimedOut, Instant::now() + LAST_WORDS));
            }
            (_, Some((ending, _))) if late => {
                running.wait()?;
                return Ok((ending, running));
            }
            _ => {}
        }
        if !first {
            continue;
        }
        if !screen.waiting.is_empty() {
            screen.write();
        } else if let Some(pipe) = &output {
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => {
                    output = None;
                    screen.end_line();
                }
                Ok(length) => {
                    if let Err(error) = log.add(&buffer[..length]) {
                        running.kill()?;
                        running.wait()?;
                        return Err(JobError::io("write", log.path())(error));
                    }
                    screen.take(&buffer[..length]);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(source) => {
                    let source = source.into();
                    return Err(ContainerError::System { name, step: "read its output", source }.into());
                }
            }
        } else {
            let status = running.wait()?;
            return Ok((killed.map_or(Ending::Ended(status), |(ending, _)| ending), running));
        }
    }
}

/// Standard output, for as long as somebody reads it.
struct Screen {
    on: bool,
    waiting: Vec<u8>,
    /// Of a line.
    is_at_start: bool,
}

impl Screen {
    fn take(&mut self, bytes: &[u8]) {
        if self.on {
            self.waiting.extend_from_slice(bytes);
            self.is_at_start = bytes.ends_with(b"\n");
        }
    }

    /// Ends the last line: what comes next is a line of its own.
    fn end_line(&mut self) {
        if !self.is_at_start {
            self.take(b"\n");
        }
    }

    fn write(&mut self) {
        let length = self.waiting.len().min(CHUNK);
        match rustix::io::write(io::stdout(), &self.waiting[..length]) {
            Ok(written) => drop(self.waiting.drain(..written)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => {
                self.on = false;
                self.waiting.clear();
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}
