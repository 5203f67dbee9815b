//! Signals that a process waiting for a container reads instead of suffering them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

const WATCHED: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// The signals that ask a process to end, interrupt it or tell it something. From [`WatchedSignals::take`] to
/// [`WatchedSignals::give_back`] they do not act by themselves; without the latter, never again.
pub(crate) struct WatchedSignals {
    fd: SignalFd,
    before: SigSet,
}

impl WatchedSignals {
    /// Begins to hold them back. Call it before the container is started, so that none is lost.
    pub fn take() -> io::Result<Self> {
        let watched: SigSet = WATCHED.into_iter().collect();
        let fd = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&watched), Some(&mut before))?;
        Ok(Self { fd, before })
    }

    /// The next one that came, if any.
    pub fn next(&self) -> Option<Signal> {
        let info = self.fd.read_signal().ok().flatten()?;
        Signal::try_from(info.ssi_signo.cast_signed()).ok()
    }

    /// Lets them act again; those that came meanwhile were meant for the container and are forgotten.
    pub fn give_back(self) {
        while self.next().is_some() {}
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

impl AsFd for WatchedSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
