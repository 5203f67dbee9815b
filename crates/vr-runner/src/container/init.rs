//! The container's first process: builds the root, starts the program, and from then on only reaps the dead and
//! passes signals on until the program ends. When it ends itself, the kernel kills whatever is left.
//!
//! Everything here runs in a copy of the caller's process, so nothing may return, and no lock or buffer of the
//! caller may be relied on.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, execve, setsid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitOptions, chdir, ioctl_tiocsctty, set_parent_process_death_signal, umask, wait};

use super::mounts::{Step, explain};
use super::{ContainerSpec, ExitStatus, Network, Streams, capabilities, channel, root, sys};

/// The signals that init passes on to the program.
pub(super) const PASSED_ON: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// The exit code of a container that was never ready.
const NOT_READY: i32 = 125;

/// The descriptors that the parent made for its new container.
pub(super) struct Lines {
    /// Where messages about the start go; closed once the program runs.
    pub channel: OwnedFd,
    /// Where the program's end is written, as [`encode`] does.
    pub status: OwnedFd,
    /// Readable once the parent is dead.
    pub parent: OwnedFd,
    /// The control groups to enter, by name and by the file that a process enters with.
    pub groups: Vec<(PathBuf, File)>,
}

/// The program's end in five bytes.
pub(super) fn encode(status: ExitStatus) -> [u8; 5] {
    let (kind, number) = match status {
        ExitStatus::Code(code) => (b'C', i32::from(code)),
        ExitStatus::Signal(signal) => (b'S', signal),
    };
    let [a, b, c, d] = number.to_ne_bytes();
    [kind, a, b, c, d]
}

/// The reverse of [`encode`].
pub(super) fn decode(bytes: &[u8]) -> Option<ExitStatus> {
    let [kind, number @ ..] = <[u8; 5]>::try_from(bytes).ok()?;
    let number = i32::from_ne_bytes(number);
    match kind {
        b'C' => u8::try_from(number).ok().map(ExitStatus::Code),
        b'S' => Some(ExitStatus::Signal(number)),
        _ => None,
    }
}

/// Process 1 of a new container. Never returns.
pub(super) fn be_init(spec: ContainerSpec, lines: Lines) -> ! {
    match prepare(&spec, &lines).and_then(|terminal| start_program(&spec, &lines, terminal)) {
        Ok(program) => {
            // The parent reads an end of messages as "it runs", so init's own copy has to go.
            drop(lines.channel);
            watch(program, &lines.status)
        }
        Err(message) => {
            channel::send_failure(&lines.channel, &message);
            sys::exit_now(NOT_READY)
        }
    }
}

/// The program's end of its terminal, if it is to have one.
type Terminal = Option<OwnedFd>;

fn prepare(spec: &ContainerSpec, lines: &Lines) -> Step<Terminal> {
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(explain("die with the parent"))?;
    // It may have died before that call, and then no signal would ever come.
    if is_readable(&lines.parent) {
        sys::exit_now(NOT_READY);
    }
    enter_groups(&lines.groups)?;
    sys::reset_signal_handlers();
    block_signals().map_err(explain("block signals"))?;
    setsid().map_err(explain("start a session"))?;
    leave_keyring()?;
    umask(Mode::from_raw_mode(0o022));
    nix::unistd::sethostname(short_host_name(&spec.hostname)).map_err(explain("set the host name"))?;
    if spec.network == Network::None {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
                .map_err(explain("make a socket"))?;
        sys::loopback_up(socket).map_err(explain("switch the loopback interface on"))?;
    }
    root::build(spec)?;
    let terminal = connect_streams(spec, lines)?;
    let _ = rustix::thread::set_name(c"vr-init");
    // Init keeps a copy of the caller's memory and environment, which even root inside must not read.
    nix::sys::prctl::set_dumpable(false).map_err(explain("protect the memory of init"))?;
    Ok(terminal)
}

/// Before anything of the container is made, so that all of it counts.
fn enter_groups(groups: &[(PathBuf, File)]) -> Step<()> {
    for (path, entry) in groups {
        // To the kernel, 0 is the writer.
        rustix::io::write(entry, b"0")
            .map_err(explain(format_args!("enter the control group {}", path.display())))?;
    }
    if groups.is_empty() {
        return Ok(());
    }
    // Anew: what was made along with this process begins at the caller's groups.
    match unshare(CloneFlags::CLONE_NEWCGROUP) {
        Err(Errno::EINVAL) => Ok(()),
        done => done.map_err(explain("hide the host's control groups")),
    }
}

/// Whoever is in a session can read the keys of its keyring, and this one is the caller's, such as root's login.
fn leave_keyring() -> Step<()> {
    match sys::new_session_keyring() {
        // A kernel without keyrings has nothing to leak.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOSYS) => Ok(()),
        done => done.map_err(explain("get a keyring of its own")),
    }
}

fn is_readable(fd: impl AsFd) -> bool {
    let fd = fd.as_fd();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

fn block_signals() -> io::Result<()> {
    let mut signals: SigSet = PASSED_ON.into_iter().collect();
    signals.add(Signal::SIGCHLD);
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None)?)
}

/// The part of a name that fits into a host name of 64 bytes.
fn short_host_name(name: &str) -> &OsStr {
    let mut end = name.len().min(64);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    OsStr::new(&name[..end])
}

fn connect_streams(spec: &ContainerSpec, lines: &Lines) -> Step<Terminal> {
    match &spec.streams {
        Streams::Given { stdin, stdout, stderr } => {
            dup2_stdin(stdin).map_err(explain("connect standard input"))?;
            dup2_stdout(stdout).map_err(explain("connect standard output"))?;
            dup2_stderr(stderr).map_err(explain("connect standard error"))?;
            Ok(None)
        }
        Streams::Terminal => {
            // From the container's own devpts, so that it has a name there.
            let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
                .map_err(explain("open a terminal"))?;
            grantpt(&master).and_then(|()| unlockpt(&master)).map_err(explain("unlock the terminal"))?;
            let name = ptsname_r(&master).map_err(explain("find the terminal's name"))?;
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let slave = rustix::fs::open(name.as_str(), flags, Mode::empty())
                .map_err(explain(format_args!("open {name}")))?;
            let _ = rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(spec.user.uid)), None);
            channel::send_terminal(&lines.channel, &master).map_err(explain("hand the terminal over"))?;
            Ok(Some(slave))
        }
        // The parent has turned the others into `Given`, or they are the caller's own.
        Streams::Inherit | Streams::InheritOutput | Streams::Captured => Ok(None),
    }
}

fn start_program(spec: &ContainerSpec, lines: &Lines, terminal: Terminal) -> Step<Pid> {
    let program = sys::fork_process().map_err(explain("start another process"))?;
    let Some(program) = program else {
        let message = match be_program(spec, &lines.channel, terminal) {
            Ok(never) => match never {},
            Err(message) => message,
        };
        channel::send_failure(&lines.channel, &message);
        sys::exit_now(NOT_READY)
    };
    drop(terminal);
    close_all_but(&[lines.channel.as_raw_fd(), lines.status.as_raw_fd()])
        .map_err(explain("close the host's files"))?;
    capabilities::keep_only_kill()?;
    Ok(program)
}

fn close_all_but(kept: &[i32]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut next = 3;
    for fd in kept {
        if fd >= next {
            sys::close_range(next, fd - 1)?;
            next = fd + 1;
        }
    }
    sys::close_range(next, u32::MAX)
}

fn be_program(spec: &ContainerSpec, channel: &OwnedFd, terminal: Terminal) -> Step<std::convert::Infallible> {
    setsid().map_err(explain("start a session"))?;
    if let Some(terminal) = terminal {
        ioctl_tiocsctty(&terminal).map_err(explain("take the terminal"))?;
        dup2_stdin(&terminal).map_err(explain("connect standard input"))?;
        dup2_stdout(&terminal).map_err(explain("connect standard output"))?;
        dup2_stderr(&terminal).map_err(explain("connect standard error"))?;
    }
    let text = |text: &OsStr| {
        CString::new(text.as_bytes()).map_err(|_| format!("cannot pass on {text:?}: it holds a zero byte"))
    };
    let mut arguments = vec![CString::default()];
    for argument in &spec.program.arguments {
        arguments.push(text(argument)?);
    }
    let mut environment = Vec::new();
    for (key, value) in &spec.program.environment {
        let mut pair = key.clone();
        pair.push("=");
        pair.push(value);
        environment.push(text(&pair)?);
    }
    capabilities::become_user(&spec.user, spec.capabilities)?;
    chdir(&spec.workdir).map_err(explain(format_args!("enter {}", spec.workdir.display())))?;
    // The channel closes by itself when the program runs.
    close_all_but(&[channel.as_raw_fd()]).map_err(explain("close the host's files"))?;
    channel::send_ready(channel).map_err(explain("report to the parent"))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(explain("unblock signals"))?;
    let mut failed = "there is no program to run".to_owned();
    for candidate in &spec.program.candidates {
        let path = text(candidate.as_os_str())?;
        arguments[0] = path.clone();
        let Err(error) = execve(&path, &arguments, &environment);
        failed = format!("cannot run {}: {}", candidate.display(), io::Error::from(error));
        if error != Errno::ENOENT {
            break;
        }
    }
    Err(failed)
}

/// Waits for the program's end, writes it down, and ends with it.
fn watch(program: Pid, status: &OwnedFd) -> ! {
    let mut signals: SigSet = PASSED_ON.into_iter().collect();
    signals.add(Signal::SIGCHLD);
    let Ok(signals) = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC) else {
        sys::exit_now(NOT_READY);
    };
    loop {
        match signals.read_signal() {
            Ok(Some(signal)) if signal.ssi_signo == Signal::SIGCHLD as u32 => {
                if let Some(end) = reap(program) {
                    finish(end, status);
                }
            }
            Ok(Some(signal)) => {
                if let Ok(signal) = Signal::try_from(signal.ssi_signo.cast_signed()) {
                    let _ = kill(program, signal);
                }
            }
            Ok(None) | Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => sys::exit_now(NOT_READY),
        }
    }
}

/// Collects every process that ended; the program's end if it was among them.
fn reap(program: Pid) -> Option<ExitStatus> {
    let mut end = None;
    loop {
        // Not nix's, which fails on a real-time signal after it has taken the status away.
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == program.as_raw() => {
                end = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Some(ExitStatus::Code((code & 0xff) as u8)),
                    (None, Some(signal)) => Some(ExitStatus::Signal(signal)),
                    (None, None) => end,
                };
            }
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(_) => return end,
        }
    }
}

fn finish(end: ExitStatus, status: &OwnedFd) -> ! {
    let _ = rustix::io::write(status, &encode(end));
    sys::exit_now(i32::from(end.as_exit_code()))
}

/// Whether a path names a program's place: absolute, without a zero byte.
pub(super) fn is_usable_path(path: &Path) -> bool {
    path.is_absolute() && !path.as_os_str().as_bytes().contains(&0)
}
