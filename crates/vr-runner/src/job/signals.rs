//! Being told to stop: by a signal, or by the end of the program that started this one.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, getpgid, getppid, kill_process_group, pidfd_open};

/// The signals that mean "stop".
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
/// How long stopped work may take to notice.
const STOPPING: Duration = Duration::from_secs(5);
/// The same for work that has not started any program, and so has nothing to notice.
const STOPPING_ALONE: Duration = Duration::from_millis(300);

/// Why to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// A signal came.
    Signal(Signal),
    /// The program that started this one is gone.
    Orphaned,
}

impl fmt::Display for Interruption {
    /// `SIGTERM`, or what happened.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => f.write_str(signal.as_str()),
            Self::Orphaned => f.write_str("the end of the program that started it"),
        }
    }
}

/// While this lives, INT, TERM and HUP do not end the process but wait here to be seen.
#[derive(Debug)]
pub struct Interrupts {
    signals: SignalFd,
    parent: Option<OwnedFd>,
    before: SigSet,
}

impl Interrupts {
    /// Starts to watch. With `die_with_parent`, the end of the process that started this one counts as well. (It is
    /// the process that is watched, not the one of its threads that happened to start us, as a death signal would.)
    pub fn watch(die_with_parent: bool) -> io::Result<Self> {
        let parent = match getppid() {
            Some(parent) if die_with_parent => {
                let handle = pidfd_open(parent, PidfdFlags::empty())?;
                // It may have ended, and its number may have been given to another, before the handle was there.
                if getppid() != Some(parent) {
                    return Err(io::Error::other("the program that started this one is gone"));
                }
                Some(handle)
            }
            _ => None,
        };
        let wanted = SigSet::from_iter(SIGNALS);
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&wanted), Some(&mut before))?;
        let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { signals, parent, before })
    }

    /// What polls as readable when there may be an interruption.
    pub fn handles(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.signals.as_fd()).chain(self.parent.iter().map(AsFd::as_fd))
    }

    /// The interruption that came, if one did; does not wait.
    pub fn seen(&self) -> Option<Interruption> {
        if let Ok(Some(info)) = self.signals.read_signal() {
            let signal = Signal::try_from(info.ssi_signo as i32).unwrap_or(Signal::SIGTERM);
            return Some(Interruption::Signal(signal));
        }
        let parent = self.parent.as_ref()?;
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut [PollFd::new(parent, PollFlags::IN)], Some(&at_once)) {
            Ok(1..) => Some(Interruption::Orphaned),
            _ => None,
        }
    }

    /// Waits for a while; `Err` with the interruption that came meanwhile, if one did.
    pub fn pause(&self, pause: Duration) -> Result<(), Interruption> {
        let timeout = Timespec {
            tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        let mut waits: Vec<_> =
            self.handles().map(|handle| PollFd::from_borrowed_fd(handle, PollFlags::IN)).collect();
        match poll(&mut waits, Some(&timeout)) {
            Ok(0) => Ok(()),
            // Interrupted by a signal that is not one of ours, the pause is shorter.
            _ => self.check(),
        }
    }

    /// `Err` with the interruption that came, if one did.
    pub fn check(&self) -> Result<(), Interruption> {
        self.seen().map_or(Ok(()), Err)
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // One that came when there was nothing left to stop must not end the process before it has said what it did.
        while let Ok(Some(_)) = self.signals.read_signal() {}
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

/// Does `work` on a thread while this one watches for interruptions. When one comes, the programs that the work
/// started (git, hg) are killed and the work is given a few seconds to end.
///
/// Afterwards the process has as few threads as before, as a container's start demands.
pub fn interruptible<T: Send + 'static>(
    interrupts: &Interrupts,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Result<T, Interruption>> {
    let threads_before = thread_count();
    let (ended, ending) = pipe_with(PipeFlags::CLOEXEC)?;
    let worker = thread::Builder::new().spawn(move || {
        // Closed when the work ends, by a panic too.
        let _ending = ending;
        work()
    })?;
    let interruption = loop {
        let mut waits = vec![PollFd::new(&ended, PollFlags::IN)];
        waits.extend(interrupts.handles().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut waits, None) {
            Ok(_) if !waits[0].revents().is_empty() => break None,
            Ok(_) => {
                if let Some(interruption) = interrupts.seen() {
                    break Some(interruption);
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if let Some(interruption) = interruption {
        stop_programs(&ended);
        return Ok(Err(interruption));
    }
    let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    settle(threads_before);
    Ok(Ok(result))
}

/// Kills the process groups of this process's children, again and again for work that starts new ones,
/// until the work has ended.
fn stop_programs(ended: &OwnedFd) {
    let begun = Instant::now();
    let mut deadline = begun + STOPPING_ALONE;
    let pause = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    while Instant::now() < deadline {
        for child in children() {
            // Only those that lead a group of their own; never the group of whoever started us.
            if getpgid(Some(child)) == Ok(child) {
                let _ = kill_process_group(child, rustix::process::Signal::KILL);
                deadline = deadline.max(begun + STOPPING);
            }
        }
        if let Ok(1..) = poll(&mut [PollFd::new(ended, PollFlags::IN)], Some(&pause)) {
            return;
        }
    }
}

fn children() -> Vec<Pid> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|line| line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .filter_map(Pid::from_raw)
        .collect()
}

fn thread_count() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// A joined thread can still be seen for a moment.
fn settle(threads: usize) {
    let deadline = Instant::now() + STOPPING;
    while thread_count() > threads && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}
