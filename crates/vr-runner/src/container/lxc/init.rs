//! Process 1 of a container that LXC makes: reaps the dead, and ends when LXC says that the program did. The kernel then
//! kills whatever is left.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, setsid, wait};

use super::super::init::{
    NOT_READY, block_signals, close_all_but, die_with, encode, enter_groups, leave_keyring,
};
use super::super::mounts::{Flags, Step, attach, enter, explain, make_private, new_file_system};
use super::super::place::open_directory;
use super::super::{ContainerSpec, ExitStatus, capabilities, channel, sys};
use super::messages::{self, News};

/// The descriptors that the parent made for init.
pub(super) struct Lines {
    /// Where it says that it is ready, and then how the start went: by closing it, or with words.
    pub channel: OwnedFd,
    /// Where the program's end is written.
    pub status: OwnedFd,
    /// Readable once the parent is dead.
    pub parent: OwnedFd,
    /// LXC's messages. Never at its end, as this is a writer, too.
    pub news: OwnedFd,
    /// Readable once `lxc-start` is gone.
    pub lxc: OwnedFd,
}

/// Never returns.
pub(super) fn be_init(spec: &ContainerSpec, groups: &[(PathBuf, File)], lines: Lines) -> ! {
    match prepare(spec, groups, &lines) {
        Ok(dead) => watch(lines, &dead),
        Err(words) => {
            channel::send_failure(&lines.channel, &words);
            sys::exit_now(NOT_READY)
        }
    }
}

fn prepare(spec: &ContainerSpec, groups: &[(PathBuf, File)], lines: &Lines) -> Step<SignalFd> {
    die_with(&lines.parent)?;
    enter_groups(groups, spec.hardening.cgroup_namespace)?;
    sys::reset_signal_handlers();
    block_signals().map_err(explain("block signals"))?;
    setsid().map_err(explain("start a session"))?;
    leave_keyring()?;
    empty_root()?;
    let _ = rustix::thread::set_name(c"vr-init");
    nix::sys::prctl::set_dumpable(false).map_err(explain("protect the memory of init"))?;
    let dead = SignalFd::with_flags(&SigSet::from_iter([Signal::SIGCHLD]), SfdFlags::SFD_CLOEXEC)
        .map_err(explain("watch for the dead"))?;
    rustix::io::ioctl_fionbio(&lines.news, true).map_err(explain("listen to LXC"))?;
    let kept = [&lines.channel, &lines.status, &lines.news, &lines.lxc].map(AsRawFd::as_raw_fd);
    close_all_but(&[&kept[..], &[dead.as_raw_fd()]].concat()).map_err(explain("close the host's files"))?;
    capabilities::keep_only_kill()?;
    channel::send_ready(&lines.channel).map_err(explain("report to the parent"))?;
    Ok(dead)
}

/// Nothing instead of the host's files: `/proc/1/root` is this.
fn empty_root() -> Step<()> {
    make_private()?;
    let nothing = new_file_system("tmpfs", &[("size", "4k"), ("mode", "555")], Flags::DATA.read_only())?;
    let place = open_directory(std::path::Path::new("/")).map_err(explain("open /"))?;
    attach(&nothing, place, "nothing", "/")?;
    enter(&nothing)
}

fn watch(lines: Lines, dead: &SignalFd) -> ! {
    let Lines { channel, status, news, lxc, .. } = lines;
    let mut channel = Some(channel);
    loop {
        let mut waits = [
            PollFd::new(&news, PollFlags::IN),
            PollFd::new(&lxc, PollFlags::IN),
            PollFd::new(dead, PollFlags::IN),
        ];
        match poll(&mut waits, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => sys::exit_now(NOT_READY),
        }
        let lxc_is_gone = !waits[1].revents().is_empty();
        // Also what it said last.
        while let Some(next) = next(&news) {
            match next {
                News::Runs => channel = None,
                News::Ended(_) if channel.is_some() => {}
                News::Ended(end) => finish(end, &status),
                News::Other => {}
            }
        }
        if lxc_is_gone {
            if let Some(channel) = channel {
                channel::send_failure(&channel, "");
            }
            sys::exit_now(NOT_READY)
        }
        if !waits[2].revents().is_empty() {
            let _ = dead.read_signal();
            while matches!(wait(WaitOptions::NOHANG), Ok(Some(_)) | Err(Errno::INTR)) {}
        }
    }
}

fn next(news: &OwnedFd) -> Option<News> {
    let mut message = [0; messages::SIZE];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(news.as_fd(), &mut message)).ok()?;
    (length == messages::SIZE).then(|| messages::read(&message))
}

fn finish(end: ExitStatus, status: &OwnedFd) -> ! {
    let _: io::Result<usize> = rustix::io::write(status, &encode(end)).map_err(Into::into);
    sys::exit_now(i32::from(end.as_exit_code()))
}
