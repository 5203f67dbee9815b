//! The container's first process: builds the root, starts the program, and from then on only reaps the dead and
//! passes signals on until the program ends. When it ends itself, the kernel kills whatever is left.
//!
//! Everything here runs in a copy of the caller's process, so nothing may return, and no lock or buffer of the
//! caller may be relied on.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, execve, setsid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitOptions, chdir, ioctl_tiocsctty, set_parent_process_death_signal, umask, wait};

use super::channel::Message;
use super::identities::{Identities, number_in_proc};
use super::mounts::{Step, Trouble, explain};
use super::seccomp::Filter;
use super::sys::Cloned;
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
pub(super) const NOT_READY: i32 = 125;

/// What the parent made for its new container.
pub(super) struct Lines {
    /// Where messages about the start go; closed once the program runs.
    pub channel: OwnedFd,
    /// Where the program's end is written, as [`encode`] does.
    pub status: OwnedFd,
    /// Readable once the parent is dead.
    pub parent: OwnedFd,
}

/// What a new container is made from, all of it the parent's.
pub(super) struct Plan<'a> {
    pub spec: &'a ContainerSpec,
    /// Who its users are outside.
    pub identities: &'a Identities,
    /// Which system calls its program may make.
    pub filter: Option<&'a Filter>,
    /// The control groups to enter, by name and by the file that a process enters with.
    pub groups: &'a [(PathBuf, File)],
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
pub(super) fn be_init(plan: Plan<'_>, lines: Lines) -> ! {
    match prepare(&plan, &lines).and_then(|()| start_program(&plan, &lines)) {
        Ok(program) => {
            // The parent reads an end of messages as "it runs", so init's own copy has to go.
            drop(lines.channel);
            watch(program, &lines.status)
        }
        Err(trouble) => {
            match trouble {
                Trouble::Failed(words) => channel::send_failure(&lines.channel, &words),
                Trouble::NoIdentities(words) => channel::send_no_identities(&lines.channel, &words),
            }
            sys::exit_now(NOT_READY)
        }
    }
}

fn prepare(plan: &Plan<'_>, lines: &Lines) -> Result<(), Trouble> {
    let spec = plan.spec;
    die_with(&lines.parent)?;
    enter_groups(plan.groups, spec.hardening.cgroup_namespace)?;
    be_as_killable_as_others(Path::new("/proc/self/oom_score_adj"));
    sys::reset_signal_handlers();
    block_signals().map_err(explain("block signals"))?;
    setsid().map_err(explain("start a session"))?;
    if spec.hardening.new_keyring {
        leave_keyring()?;
    }
    umask(Mode::from_raw_mode(0o022));
    if plan.identities.is_one_user() {
        plan.identities.write("/proc/self").map_err(explain("set up the user namespace"))?;
    }
    if spec.hardening.host_name_namespace {
        nix::unistd::sethostname(short_host_name(&spec.hostname)).map_err(explain("set the host name"))?;
    }
    chdir("/").map_err(explain("leave the caller's folder"))?;
    Ok(connect_streams(spec)?)
}

/// Switches the loopback interface of this process's network on.
fn loopback_up() -> Step<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
        .map_err(explain("make a socket"))?;
    sys::loopback_up(socket).map_err(explain("switch the loopback interface on"))
}

pub(super) fn die_with(parent: &OwnedFd) -> Step<()> {
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(explain("die with the parent"))?;
    // It may have died before that call, and then no signal would ever come.
    if is_readable(parent) {
        sys::exit_now(NOT_READY);
    }
    Ok(())
}

/// Whoever started us may be one of those that the kernel spares when memory runs out; that is not for the container.
/// `score` is the kernel's file about this process.
fn be_as_killable_as_others(score: &Path) {
    let is_spared = |text: String| text.trim().parse::<i32>().is_ok_and(|score| score < 0);
    if std::fs::read_to_string(score).is_ok_and(is_spared) {
        // Anybody may raise it. Should it fail, the container is only spared.
        let _raised = std::fs::write(score, "0");
    }
}

/// Before anything of the container is made, so that all of it counts.
pub(super) fn enter_groups(groups: &[(PathBuf, File)], own_namespace: bool) -> Step<()> {
    for (path, entry) in groups {
        // To the kernel, 0 is the writer.
        rustix::io::write(entry, b"0")
            .map_err(explain(format_args!("enter the control group {}", path.display())))?;
    }
    if !own_namespace {
        return Ok(());
    }
    // Not along with this process, which began in the caller's groups. A kernel without cgroups has no namespaces for
    // them either.
    match unshare(CloneFlags::CLONE_NEWCGROUP) {
        Err(Errno::EINVAL) => Ok(()),
        done => done.map_err(explain("hide the host's control groups")),
    }
}

/// Whoever is in a session can read the keys of its keyring, and this one is the caller's, such as root's login.
pub(super) fn leave_keyring() -> Step<()> {
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

pub(super) fn block_signals() -> io::Result<()> {
    let mut signals: SigSet = PASSED_ON.into_iter().collect();
    signals.add(Signal::SIGCHLD);
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None)?)
}

/// The part of a name that fits into a host name of 64 bytes.
pub(super) fn short_host_name(name: &str) -> &OsStr {
    let mut end = name.len().min(64);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    OsStr::new(&name[..end])
}

fn connect_streams(spec: &ContainerSpec) -> Step<()> {
    // The parent has turned the others into `Given`, or they are the caller's own, or come later.
    if let Streams::Given { stdin, stdout, stderr } = &spec.streams {
        dup2_stdin(stdin).map_err(explain("connect standard input"))?;
        dup2_stdout(stdout).map_err(explain("connect standard output"))?;
        dup2_stderr(stderr).map_err(explain("connect standard error"))?;
    }
    Ok(())
}

/// A terminal from the container's own devpts, so that it has a name there: our end and the program's.
fn open_terminal(plan: &Plan<'_>) -> Step<(OwnedFd, OwnedFd)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .map_err(explain("open a terminal"))?;
    grantpt(&master).and_then(|()| unlockpt(&master)).map_err(explain("unlock the terminal"))?;
    let name = ptsname_r(&master).map_err(explain("find the terminal's name"))?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name.as_str(), flags, Mode::empty())
        .map_err(explain(format_args!("open {name}")))?;
    if !plan.identities.is_one_user() {
        let owner = plan.identities.outside(plan.spec.user.uid);
        let _ = rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(owner)), None);
    }
    Ok((OwnedFd::from(master), slave))
}

/// Starts the program's process, which makes the user namespace, builds the root with that namespace's owners, and lets
/// the program go on.
fn start_program(plan: &Plan<'_>, lines: &Lines) -> Result<Pid, Trouble> {
    let (gate, inner_gate) = channel::pair().map_err(explain("make a socket pair"))?;
    let no_network = plan.spec.network == Network::None;
    let mut namespaces = CloneFlags::empty();
    if plan.identities.of_program() {
        namespaces.insert(CloneFlags::CLONE_NEWUSER);
        // Root inside has a say in it, such as to listen on its first ports.
        namespaces.set(CloneFlags::CLONE_NEWNET, no_network);
    }
    let (program, handle) = match sys::clone_process(namespaces.bits()) {
        Ok(Cloned::Child) => {
            drop(gate);
            let message = match wait_at(&inner_gate).and_then(|terminal| be_program(plan, lines, terminal)) {
                Ok(never) => match never {},
                Err(message) => message,
            };
            channel::send_failure(&lines.channel, &message);
            sys::exit_now(NOT_READY)
        }
        Ok(Cloned::Parent(program, handle)) => (program, handle),
        Err(error) if plan.identities.of_program() => {
            return Err(Trouble::NoIdentities(explain("make a user namespace")(error)));
        }
        Err(error) => return Err(explain("start another process")(error).into()),
    };
    drop(inner_gate);
    let owners = match plan.identities.of_program() {
        true => {
            let number = number_in_proc(&handle).map_err(explain("find the new process in /proc"))?;
            if no_network {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let network = rustix::fs::open(format!("/proc/{number}/ns/net"), flags, Mode::empty())
                    .map_err(explain("open the program's network"))?;
                setns(network, CloneFlags::CLONE_NEWNET).map_err(explain("enter the program's network"))?;
            }
            let map = plan.identities.write(&format!("/proc/{number}"));
            Some(map.map_err(|error| Trouble::NoIdentities(explain("set up the user namespace")(error)))?)
        }
        false => None,
    };
    if no_network {
        loopback_up()?;
    }
    plan.identities.create_as_root_inside()?;
    // The kernel takes that signal back from whoever changes its user.
    die_with(&lines.parent)?;
    let shifted = owners.as_ref().filter(|_| plan.identities.is_shifted());
    root::build(plan.spec, plan.identities, shifted.map(AsFd::as_fd))?;
    if let Streams::Terminal = plan.spec.streams {
        let (master, slave) = open_terminal(plan)?;
        channel::send_terminal(&lines.channel, &master).map_err(explain("hand the terminal over"))?;
        channel::send_terminal(&gate, &slave).map_err(explain("hand the terminal to the program"))?;
    }
    let _ = rustix::thread::set_name(c"vr-init");
    // Init keeps a copy of the caller's memory and environment, which even root inside must not read.
    nix::sys::prctl::set_dumpable(false).map_err(explain("protect the memory of init"))?;
    channel::send_ready(&gate).map_err(explain("let the program go on"))?;
    // What is owned here has to be closed by its owners.
    drop((gate, owners, handle));
    close_all_but(&[lines.channel.as_raw_fd(), lines.status.as_raw_fd()])
        .map_err(explain("close the host's files"))?;
    capabilities::keep_only_kill()?;
    Ok(program)
}

/// In the program's process: waits until the root is built; gives the program's end of its terminal, if it has one.
fn wait_at(gate: &OwnedFd) -> Step<Option<OwnedFd>> {
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(explain("die with init"))?;
    let mut terminal = None;
    loop {
        match channel::receive(gate).map_err(explain("wait for the root"))? {
            Message::Terminal(given) => terminal = Some(given),
            Message::Ready(_) => return Ok(terminal),
            // Init failed and has said why.
            Message::Closed | Message::Failed(_) | Message::NoIdentities(_) => sys::exit_now(NOT_READY),
        }
    }
}

pub(super) fn close_all_but(kept: &[i32]) -> io::Result<()> {
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

fn be_program(plan: &Plan<'_>, lines: &Lines, terminal: Option<OwnedFd>) -> Step<std::convert::Infallible> {
    let Plan { spec, identities, .. } = plan;
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
    if spec.hardening.own_program_stays_outside {
        // Now, as what the user may run he may not be able to read.
        spec.program.candidates.iter().try_for_each(|candidate| refuse_ourselves(candidate))?;
    }
    capabilities::become_user(spec, identities)?;
    chdir(&spec.workdir).map_err(explain(format_args!("enter {}", spec.workdir.display())))?;
    // The channel closes by itself when the program runs.
    if spec.hardening.close_descriptors {
        close_all_but(&[lines.channel.as_raw_fd()]).map_err(explain("close the host's files"))?;
    }
    channel::send_ready(&lines.channel).map_err(explain("report to the parent"))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(explain("unblock signals"))?;
    if let Some(filter) = plan.filter {
        filter.apply()?;
    }
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

/// An image whose shell is, or is run by, `/proc/self/exe` would run this very program of the host, and root inside might
/// then write to its file (as in CVE-2019-5736).
fn refuse_ourselves(candidate: &Path) -> Step<()> {
    /// As deep as the kernel follows interpreters of interpreters.
    const DEEPEST: usize = 6;
    const LONGEST_LINE: u64 = 256;
    let cannot = |path: &Path, error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(()),
        _ => Err(format!("cannot look at {} before it is run: {error}", path.display())),
    };
    let own = std::fs::metadata("/proc/self/exe").map_err(explain("look at this program"))?;
    let mut path = candidate.to_owned();
    for _ in 0..DEEPEST {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let mut file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(opened) => File::from(opened),
            Err(error) => return cannot(&path, error.into()),
        };
        let found = file.metadata().map_err(explain(format_args!("look at {}", path.display())))?;
        if (found.dev(), found.ino()) == (own.dev(), own.ino()) {
            return Err(format!("cannot run {}: it leads to the host's own program", candidate.display()));
        }
        let mut line = Vec::new();
        if !found.is_file() {
            return Ok(());
        }
        if let Err(error) = file.by_ref().take(LONGEST_LINE).read_to_end(&mut line) {
            return cannot(&path, error);
        }
        let Some(line) = line.strip_prefix(b"#!") else { return Ok(()) };
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii_start();
        let end = line.iter().position(|byte| b" \t\0".contains(byte)).unwrap_or(line.len());
        path = PathBuf::from(OsStr::from_bytes(&line[..end]));
    }
    Err(format!("cannot run {}: it has interpreters upon interpreters", candidate.display()))
}

/// Waits for the program's end, writes it down, and ends with it.
fn watch(program: Pid, status: &OwnedFd) -> ! {
    let mut signals: SigSet = PASSED_ON.into_iter().collect();
    signals.add(Signal::SIGCHLD);
    let Ok(signals) = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC) else {
        sys::exit_now(NOT_READY);
    };
    // Most programs that run longer than this run for days.
    let soon = Timespec { tv_sec: 1, tv_nsec: 0 };
    if poll(&mut [PollFd::new(&signals, PollFlags::IN)], Some(&soon)) == Ok(0) {
        let _ = sys::forget_code();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_would_be_spared_loses_that() {
        let dir = tempfile::tempdir().unwrap();
        let score = dir.path().join("oom_score_adj");
        for (before, after) in [("-500\n", "0"), ("-1000\n", "0"), ("0\n", "0\n"), ("300\n", "300\n")] {
            std::fs::write(&score, before).unwrap();
            be_as_killable_as_others(&score);
            assert_eq!(std::fs::read_to_string(&score).unwrap(), after);
        }
        be_as_killable_as_others(&dir.path().join("missing"));
    }
}
