//! Running a container in the foreground of whatever the caller is: a person's terminal or a pipe.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::Signal;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::signals::WatchedSignals;
use super::{Container, ContainerError, ContainerSpec, ExitStatus, Running, Streams, sys};

/// Runs a container to its end. When the caller's standard input is a terminal the program gets a terminal of its own
/// inside, relayed both ways, else the caller's three streams. Signals that ask the caller to end or that
/// interrupt it are passed on; an end that the memory limit brought is said on the log. `spec.streams` is set here.
pub fn run_in_the_foreground(mut spec: ContainerSpec) -> Result<ExitStatus, ContainerError> {
    let stdin = io::stdin();
    let on_terminal = nix::unistd::isatty(stdin.as_fd()).unwrap_or(false);
    spec.streams = if on_terminal { Streams::Terminal } else { Streams::Inherit };
    let name = spec.name.clone();
    let error = |step, source: io::Error| ContainerError::System { name: name.clone(), step, source };
    // Before the start: a signal that comes meanwhile must neither be lost nor end us before the container.
    let signals = WatchedSignals::take().map_err(|e| error("watch for signals", e))?;
    let mut running = Container::start(spec)?;
    let end = match running.take_terminal() {
        Some(master) => {
            let _ = copy_window_size(&master);
            let raw = RawMode::enter().map_err(|e| error("set up the terminal", e))?;
            let end = relay(&mut running, &signals, &master);
            drop(raw);
            end
        }
        None => watch(&mut running, &signals),
    };
    signals.give_back();
    if let Some(words) = running.out_of_memory() {
        tracing::error!("{words}");
    }
    end
}

/// The person's terminal without line editing and signals of its own, which the inner terminal does instead.
struct RawMode {
    before: Termios,
}

impl RawMode {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin().as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}

fn copy_window_size(master: &OwnedFd) -> io::Result<()> {
    sys::set_window_size(master, &sys::window_size(io::stdin().as_fd())?)
}

fn watch(running: &mut Running, signals: &WatchedSignals) -> Result<ExitStatus, ContainerError> {
    loop {
        if let Some(end) = running.try_wait()? {
            return Ok(end);
        }
        let pidfd = running.pidfd();
        let mut waits = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        if poll(&mut waits, None).is_ok() && !waits[1].revents().is_empty() {
            while let Some(signal) = signals.next() {
                running.signal(signal)?;
            }
        }
    }
}

fn relay(
    running: &mut Running,
    signals: &WatchedSignals,
    master: &OwnedFd,
) -> Result<ExitStatus, ContainerError> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let (stdin, stdout) = (stdin.as_fd(), stdout.as_fd());
    // A program that does not read now must not keep us from showing what it writes.
    let _ = rustix::io::ioctl_fionbio(master, true);
    let mut typed = Vec::new();
    let mut typed_on = true;
    let mut buffer = vec![0; 16 * 1024];
    let mut open = true;
    loop {
        let pidfd = running.pidfd();
        let master_events = if typed.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        // With a terminal that its programs have closed, only the end is left to wait for.
        let talks: BorrowedFd<'_> = if open { master.as_fd() } else { pidfd };
        let mut waits = vec![
            PollFd::from_borrowed_fd(talks, if open { master_events } else { PollFlags::IN }),
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        if typed_on && typed.is_empty() {
            waits.push(PollFd::new(&stdin, PollFlags::IN));
        }
        if poll(&mut waits, None).is_err() {
            continue;
        }
        let ready: Vec<PollFlags> = waits.iter().map(PollFd::revents).collect();
        if ready[0].contains(PollFlags::OUT)
            && let Ok(length) = rustix::io::write(master, &typed)
        {
            typed.drain(..length);
        }
        if open && ready[0].intersects(PollFlags::IN | PollFlags::HUP) {
            match rustix::io::read(master, &mut buffer) {
                Ok(length @ 1..) => {
                    write_all(stdout, &buffer[..length]);
                    continue;
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                // The program's side is closed.
                Ok(_) | Err(_) => open = false,
            }
        }
        if !ready[1].is_empty() {
            return running.wait();
        }
        if !ready[2].is_empty() {
            while let Some(signal) = signals.next() {
                match signal {
                    Signal::SIGWINCH => drop(copy_window_size(master)),
                    other => running.signal(other)?,
                }
            }
        }
        if ready.get(3).is_some_and(|ready| !ready.is_empty()) {
            match rustix::io::read(stdin, &mut buffer) {
                Ok(length @ 1..) => typed.extend_from_slice(&buffer[..length]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Ok(_) | Err(_) => {
                    typed_on = false;
                    // The person's terminal is gone; to the program that is the end of its own.
                    running.signal(Signal::SIGHUP)?;
                }
            }
        }
    }
}

/// Writes all of it, or gives up when the other side is gone.
fn write_all(to: impl AsFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
            }
            Err(_) => return,
        }
    }
}
