//! One running process that is watched, whoever's child it is: named for good by its pid and its start time,
//! held by a pidfd.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::files;

/// A process that is being watched.
#[derive(Debug)]
pub struct Watched {
    pid: u32,
    start_ticks: u64,
    pidfd: AsyncFd<OwnedFd>,
    /// Ours to reap, unless it was adopted.
    child: Option<Child>,
}

impl Watched {
    /// Watches a child of ours. Needs a tokio runtime.
    pub fn child(child: Child) -> io::Result<Self> {
        let pid = child.id();
        // Nobody but us can reap it, so the pid is its own until we do.
        let pidfd = open(pid)?;
        let start_ticks = stat(pid)?.start_ticks;
        Ok(Self { pid, start_ticks, pidfd, child: Some(child) })
    }

    /// Watches somebody else's process; `None` when no such process is alive. Needs a tokio runtime.
    pub fn adopt(pid: u32, start_ticks: u64) -> io::Result<Option<Self>> {
        let pidfd = match open(pid) {
            Ok(pidfd) => pidfd,
            Err(e) if is_gone(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        // Looked at after the pidfd was opened: if it is still the one that was meant, so is the pidfd's.
        match stat(pid) {
            Ok(stat) if stat.start_ticks == start_ticks && !stat.dead => {
                Ok(Some(Self { pid, start_ticks, pidfd, child: None }))
            }
            Ok(_) => Ok(None),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it was started, in clock ticks since boot.
    pub fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// How long it has been there, in milliseconds, to a hundredth of a second. By the clock that its start time
    /// is told in, so that a change of the wall clock makes no proc younger.
    pub fn age_ms(&self) -> io::Result<u64> {
        Ok(ticks_since_boot()?.saturating_sub(self.start_ticks) * (1_000 / TICKS_PER_SECOND))
    }

    /// Waits for its end; safe to cancel and to call again.
    pub async fn ended(&self) {
        // A pidfd becomes readable when its process ends, and stays so. Without a working pidfd nothing is
        // known, which must not look like an end.
        if self.pidfd.ready(Interest::READABLE).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Sends a signal; a process that has ended already is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// After [`Self::ended`]: reaps a child, and gives its exit status as a shell would (128 + signal).
    /// `None` for an adopted process, whose status only its parent learns.
    pub fn reap(mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.as_mut()?.wait().ok()?;
        status.code().or(status.signal().map(|signal| 128 + signal))
    }
}

/// Signals a process if it descends from another, which must be alive; whether it was. A pid alone may have gone to
/// another process.
pub fn signal_descendant(pid: u32, ancestor: u32, signal: Signal) -> io::Result<bool> {
    /// The app is a child of its container's init, and that is one of vrun's; an engine may put more between.
    const FURTHEST: usize = 6;
    let pidfd = match pidfd(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(e) if is_gone(&e) => return Ok(false),
        Err(e) => return Err(e),
    };
    // Looked at after the pidfd was opened: if it is still the one that was meant, so is the pidfd's.
    let mut parent = pid;
    for _ in 0..FURTHEST {
        parent = match stat(parent) {
            Ok(stat) if stat.dead => return Ok(false),
            Ok(stat) => stat.parent,
            Err(e) if is_gone(&e) => return Ok(false),
            Err(e) => return Err(e),
        };
        if parent == ancestor {
            return match rustix::process::pidfd_send_signal(&pidfd, signal) {
                Ok(()) => Ok(true),
                Err(rustix::io::Errno::SRCH) => Ok(false),
                Err(e) => Err(e.into()),
            };
        }
        if parent <= 1 {
            break;
        }
    }
    Ok(false)
}

/// When a process was started, in clock ticks since boot; none when there is no such process.
pub fn start_ticks(pid: u32) -> Option<u64> {
    stat(pid).ok().map(|stat| stat.start_ticks)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// How long the machine has been up, in the ticks that processes' start times are told in.
pub fn ticks_since_boot() -> io::Result<u64> {
    let uptime = files::read_text(Path::new("/proc/uptime"), 4096)?;
    parse_uptime(&uptime).ok_or_else(|| io::Error::other("/proc/uptime is not understood"))
}

fn pidfd(pid: u32, flags: PidfdFlags) -> io::Result<OwnedFd> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = raw.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is no pid")))?;
    Ok(rustix::process::pidfd_open(pid, flags)?)
}

#[expect(
    deprecated,
    reason = "deprecated for types whose descriptor may change or close early, which an OwnedFd's cannot; the \
              newer constructor is unsafe, and this crate forbids unsafe"
)]
fn open(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd(pid, PidfdFlags::NONBLOCK)?, Interest::READABLE)
}

/// The kernel's `USER_HZ`, the unit of times in `/proc`, on every architecture that we run on.
const TICKS_PER_SECOND: u64 = 100;

/// The first number, `seconds.hundredths`, in ticks.
fn parse_uptime(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_ascii_whitespace().next()?.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * TICKS_PER_SECOND + hundredths.parse::<u64>().ok()?)
}

struct Stat {
    parent: u32,
    start_ticks: u64,
    dead: bool,
}

fn stat(pid: u32) -> io::Result<Stat> {
    let text = files::read_text(Path::new(&format!("/proc/{pid}/stat")), 4096)?;
    parse_stat(&text).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood")))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name, which may hold anything, also spaces and brackets.
    let mut rest = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = rest.next()?;
    // The state is field 3, the parent field 4, the start time field 22.
    let parent = rest.next()?.parse().ok()?;
    let start_ticks = rest.nth(17)?.parse().ok()?;
    Some(Stat { parent, start_ticks, dead: matches!(state, "Z" | "X" | "x") })
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::time::Duration;

    use vr_common::process::command;

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = parse_stat("7 (a) b) S 1 7 7 0 -1 4 5 6 7 8 9 10 11 12 13 14 15 16 4242 0 0").unwrap();
        assert_eq!((stat.parent, stat.start_ticks, stat.dead), (1, 4242, false));
        assert!(parse_stat("7 (x").is_none());
    }

    #[test]
    fn ages_are_told_in_the_kernels_ticks() {
        assert_eq!(parse_uptime("350735.47 234388.90\n"), Some(35_073_547));
        assert_eq!(parse_uptime("soon"), None);
    }

    #[tokio::test]
    async fn a_process_is_adopted_by_pid_and_start_time_and_its_end_is_noticed() {
        let child = Watched::child(command("sleep").arg("60").spawn().unwrap()).unwrap();
        let (pid, ticks) = (child.pid(), child.start_ticks());
        assert!(Watched::adopt(pid, ticks + 1).unwrap().is_none());
        let adopted = Watched::adopt(pid, ticks).unwrap().unwrap();
        assert!(adopted.age_ms().unwrap() < 60_000);
        assert!(tokio::time::timeout(Duration::ZERO, adopted.ended()).await.is_err());
        child.signal(Signal::TERM).unwrap();
        adopted.ended().await;
        child.ended().await;
        assert!(Watched::adopt(pid, ticks).unwrap().is_none(), "a zombie is not alive");
        assert_eq!((child.reap(), adopted.reap()), (Some(128 + 15), None));
        assert!(Watched::adopt(pid, ticks).unwrap().is_none());
    }

    #[test]
    fn only_a_descendant_is_signalled() {
        let mut parent = command("sh");
        parent.args(["-c", "sleep 60 & echo $!; wait"]);
        let mut parent = parent.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        io::BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid: u32 = line.trim().parse().unwrap();
        let mut stranger = command("sleep").arg("60").spawn().unwrap();
        assert!(!signal_descendant(stranger.id(), parent.id(), Signal::KILL).unwrap());
        assert!(stranger.try_wait().unwrap().is_none());
        assert!(signal_descendant(pid, std::process::id(), Signal::KILL).unwrap(), "a grandchild");
        assert!(parent.wait().unwrap().success());
        assert!(!signal_descendant(pid, std::process::id(), Signal::KILL).unwrap(), "it is gone");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
