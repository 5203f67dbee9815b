//! Starting a container and watching it: the parent's side.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::time::{Duration, Instant};

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, pidfd_open, pidfd_send_signal, waitid,
};

use super::cgroup::Group;
use super::channel::{self, Message};
use super::identities::{Identities, namespaces};
use super::init::{Lines, Plan, be_init, decode, is_usable_path};
use super::overlay::MOST_LOWERS;
use super::seccomp::Filter;
use super::sys::{self, Cloned};
use super::{ContainerError, ContainerSpec, Engine, OverlayMount, RootFs, Streams, lxc};

/// How long a container's mounts may take, in seconds. A network file system that does not answer can block a
/// mount for ever.
pub(super) const START_SECONDS: u64 = 60;

/// How a container's program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Code(u8),
    /// This signal killed it.
    Signal(i32),
}

impl ExitStatus {
    /// The code to pass on: the program's own, or 128 and the signal's number.
    pub fn as_exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_u8.wrapping_add((signal & 0x7f) as u8),
        }
    }

    /// Whether it returned 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl std::fmt::Display for ExitStatus {
    /// `exit code 3` or `signal 9 (SIGKILL)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "signal {number} ({})", signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
        }
    }
}

/// The way to make a container.
#[derive(Debug)]
pub struct Container;

impl Container {
    /// Makes the container and runs its program. Returns once the program runs; every failure before that, down to
    /// a program that does not exist, is an error here and leaves nothing behind.
    ///
    /// The caller must have a single thread. Without root's privileges, everything inside is the caller.
    pub fn start(mut spec: ContainerSpec) -> Result<Running, ContainerError> {
        check(&spec)?;
        let name = spec.name.clone();
        let output = prepare_streams(&mut spec).map_err(|source| ContainerError::System {
            name,
            step: "prepare its standard streams",
            source,
        })?;
        if spec.engine == Engine::Lxc {
            let mut running = lxc::start(&spec, output.is_some())?;
            running.output = output;
            return Ok(running);
        }
        let filter = match spec.hardening.seccomp {
            true => Some(Filter::usual().map_err(|error| ContainerError::Spec {
                name: spec.name.clone(),
                reason: format!("the system call filter cannot be made: {error}"),
            })?),
            false => None,
        };
        let mut identities = Identities::preferred(&spec);
        let mut running = loop {
            match attempt(&spec, &identities, filter.as_ref(), output.is_some())? {
                Attempt::Runs(running) => break *running,
                Attempt::NoIdentities(reason) => {
                    let Some(next) = identities.next_best() else {
                        return Err(ContainerError::Setup { name: spec.name, message: reason });
                    };
                    tracing::info!(container = spec.name, reason, "trying another user namespace");
                    if spec.is_volatile {
                        free_work_folders(&spec)?;
                    }
                    identities = next;
                }
            }
        };
        match &identities {
            Identities::OfHost if spec.hardening.user_namespace => {
                tracing::warn!(container = spec.name, "it runs {}", identities.describe());
            }
            _ => tracing::info!(container = spec.name, "it runs {}", identities.describe()),
        }
        running.output = output;
        Ok(running)
    }
}

/// What became of a start.
enum Attempt {
    /// The program runs.
    Runs(Box<Running>),
    /// The user namespace cannot be had for this container; why not. Nothing is left.
    NoIdentities(String),
}

fn attempt(
    spec: &ContainerSpec,
    identities: &Identities,
    filter: Option<&Filter>,
    captured: bool,
) -> Result<Attempt, ContainerError> {
    let cannot = |step: &'static str| {
        let name = spec.name.clone();
        move |source: io::Error| ContainerError::System { name, step, source }
    };
    let mut group = match spec.limits.is_empty() {
        true => None,
        false => Some(Group::create(&spec.name, &spec.limits)?),
    };
    let groups = group.as_mut().map(Group::take_entries).unwrap_or_default();
    if captured {
        give_output(spec, identities).map_err(cannot("give it its standard streams"))?;
    }
    let (ours, theirs) = channel::pair().map_err(cannot("make a socket pair"))?;
    let (status, status_writer) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| cannot("make a pipe")(e.into()))?;
    let parent = pidfd_open(getpid(), PidfdFlags::empty())
        .map_err(|e| cannot("open a handle on this process")(e.into()))?;
    let cloned = sys::clone_process(namespaces(spec, identities).bits());
    let (pid, pidfd) = match cloned {
        Ok(Cloned::Child) => {
            drop((ours, status));
            let lines = Lines { channel: theirs, status: status_writer, parent };
            be_init(Plan { spec, identities, filter, groups: &groups }, lines)
        }
        Ok(Cloned::Parent(pid, pidfd)) => (pid, pidfd),
        Err(source) if identities.is_one_user() => {
            return Err(ContainerError::NoUserNamespace { name: spec.name.clone(), source });
        }
        Err(source) => return Err(cannot("make its namespaces")(source)),
    };
    // Their end is how the container shows that it runs, and that it is gone.
    drop((theirs, status_writer));
    let mut running = Running {
        name: spec.name.clone(),
        init_pid: pid.as_raw(),
        program_pid: pid.as_raw(),
        pidfd,
        status: File::from(status),
        output: None,
        terminal: None,
        end: None,
        group,
        out_of_memory: None,
        lost_for_memory: None,
        oom_kills: 0,
        out_of_processes: None,
        supervisor: None,
    };
    match running.until_started(&ours)? {
        Some(reason) => Ok(Attempt::NoIdentities(reason)),
        None => Ok(Attempt::Runs(Box::new(running))),
    }
}

/// Makes the work folders usable for another overlay: the kernel refuses those with the note that a volatile one was not
/// synced, which nothing was written to yet.
fn free_work_folders(spec: &ContainerSpec) -> Result<(), ContainerError> {
    let of_root = match &spec.root {
        RootFs::Overlay { work, .. } => Some(work),
        RootFs::Directory(_) => None,
    };
    for work in spec.overlays.iter().map(|overlay| &overlay.work).chain(of_root) {
        match std::fs::remove_dir_all(work.join("work/incompat")) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                let step = "clear the work folder of an overlay";
                return Err(ContainerError::System { name: spec.name.clone(), step, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn check(spec: &ContainerSpec) -> Result<(), ContainerError> {
    let name = || spec.name.clone();
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(|source| ContainerError::System { name: name(), step: "count the threads", source })?
        .count();
    if threads != 1 {
        return Err(ContainerError::Threads { name: name(), threads });
    }
    let bad = |reason: String| Err(ContainerError::Spec { name: name(), reason });
    if let Some(path) = spec.program.candidates.iter().find(|path| !is_usable_path(path)) {
        return bad(format!("the program {} is not an absolute path", path.display()));
    }
    if let Some(mount) = spec.mounts.iter().find(|m| !m.source.is_absolute() || !is_usable_path(&m.target)) {
        let (source, target) = (mount.source.display(), mount.target.display());
        return bad(format!("cannot mount {source} on {target}: expected absolute paths"));
    }
    if let Some(reason) = spec.limits.problem() {
        return bad(reason);
    }
    let names_something = |path: &Path| path.components().any(|part| matches!(part, Component::Normal(_)));
    if let Some(mount) = spec.mounts.iter().find(|mount| !names_something(&mount.target)) {
        return bad(format!("cannot mount {} on the root itself", mount.source.display()));
    }
    for OverlayMount { lowers, upper, work, target } in &spec.overlays {
        let mut folders = lowers.iter().chain([upper, work]);
        if folders.any(|path| !path.is_absolute()) || !is_usable_path(target) {
            return bad(format!("cannot mount an overlay on {}: expected absolute paths", target.display()));
        }
        if !names_something(target) {
            return bad("cannot mount an overlay on the root itself".to_owned());
        }
    }
    problem_of_overlays(spec).map_or(Ok(()), bad)
}

/// The first thing that is wrong with the folders of its overlays, the root's among them.
fn problem_of_overlays(spec: &ContainerSpec) -> Option<String> {
    let root = match &spec.root {
        RootFs::Overlay { lowers, upper, work } => Some((Path::new("/"), lowers, upper, work)),
        RootFs::Directory(_) => None,
    };
    let mounted = spec.overlays.iter().map(|m| (m.target.as_path(), &m.lowers, &m.upper, &m.work));
    let mut taken: Vec<&Path> = Vec::new();
    for (target, lowers, upper, work) in root.into_iter().chain(mounted) {
        let problem = if lowers.is_empty() {
            "has no lower folder".to_owned()
        } else if lowers.len() > MOST_LOWERS {
            format!("has more than {MOST_LOWERS} lower folders")
        } else if upper.parent() != work.parent() || upper.file_name().is_none() || work.file_name().is_none()
        {
            "has an upper and a work folder that are not in one folder".to_owned()
        } else if upper == work || taken.iter().any(|path| path == upper || path == work) {
            format!("has {} or {} for two things", upper.display(), work.display())
        } else {
            taken.extend([upper.as_path(), work]);
            continue;
        };
        return Some(format!("its overlay on {} {problem}", target.display()));
    }
    None
}

/// Turns all but inherited streams and terminals into given ones, and returns our end of the output.
fn prepare_streams(spec: &mut ContainerSpec) -> io::Result<Option<OwnedFd>> {
    let nothing = || rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    match spec.streams {
        Streams::InheritOutput => {
            let (stdout, stderr) = (only_to_write(io::stdout())?, only_to_write(io::stderr())?);
            spec.streams = Streams::Given { stdin: nothing()?, stdout, stderr };
            Ok(None)
        }
        Streams::Inherit => {
            let stdin = io::stdin().as_fd().try_clone_to_owned()?;
            let (stdout, stderr) = (only_to_write(io::stdout())?, only_to_write(io::stderr())?);
            spec.streams = Streams::Given { stdin, stdout, stderr };
            Ok(None)
        }
        Streams::Captured => {
            let (ours, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
            let stderr = stdout.try_clone()?;
            spec.streams = Streams::Given { stdin: nothing()?, stdout, stderr };
            Ok(Some(ours))
        }
        Streams::Given { .. } | Streams::Terminal => Ok(None),
    }
}

/// A copy of one of our own streams. A terminal is one thing for input and output: whoever has it could also read what a
/// person types there.
fn only_to_write(stream: impl AsFd) -> io::Result<OwnedFd> {
    let copy = stream.as_fd().try_clone_to_owned()?;
    if !nix::unistd::isatty(&copy).unwrap_or(false) {
        return Ok(copy);
    }
    let again = format!("/proc/self/fd/{}", copy.as_raw_fd());
    match rustix::fs::open(again, OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(opened) => Ok(opened),
        // Another user's terminal, as after `su`.
        Err(_) => Ok(copy),
    }
}

/// Opening `/dev/stdout` anew asks for the rights of a file's owner; so the program's user owns a pipe of ours.
pub(super) fn give_output(spec: &ContainerSpec, identities: &Identities) -> io::Result<()> {
    if let Streams::Given { stdout, .. } = &spec.streams
        && !identities.is_one_user()
    {
        let owner = rustix::fs::Uid::from_raw(identities.outside(spec.user.uid));
        let group = rustix::fs::Gid::from_raw(identities.outside(spec.user.gid));
        rustix::fs::fchown(stdout, Some(owner), Some(group))?;
    }
    Ok(())
}

/// A container whose program runs, or ran. Dropping it kills what is left of it.
#[derive(Debug)]
pub struct Running {
    name: String,
    init_pid: i32,
    program_pid: i32,
    pidfd: OwnedFd,
    status: File,
    output: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    end: Option<ExitStatus>,
    group: Option<Group>,
    out_of_memory: Option<String>,
    lost_for_memory: Option<String>,
    oom_kills: u64,
    out_of_processes: Option<String>,
    /// Boxed, as most have none.
    supervisor: Option<Box<lxc::Supervisor>>,
}

impl Running {
    /// A container that another engine made; `pids` are of its init and of its program.
    pub(super) fn of_lxc(
        name: String,
        pids: (i32, i32),
        init: OwnedFd,
        status: OwnedFd,
        group: Option<Group>,
        supervisor: lxc::Supervisor,
    ) -> Self {
        Self {
            name,
            init_pid: pids.0,
            program_pid: pids.1,
            pidfd: init,
            status: File::from(status),
            output: None,
            terminal: None,
            end: None,
            group,
            out_of_memory: None,
            lost_for_memory: None,
            oom_kills: 0,
            out_of_processes: None,
            supervisor: Some(Box::new(supervisor)),
        }
    }

    /// Gives it the user's end of its terminal.
    pub(super) fn set_terminal(&mut self, terminal: Option<OwnedFd>) {
        self.terminal = terminal;
    }

    /// The host's process number of the container's init. It is reserved until the end was waited for.
    pub fn pid(&self) -> i32 {
        self.init_pid
    }

    /// The host's process number of the program.
    pub fn program_pid(&self) -> i32 {
        self.program_pid
    }

    /// A handle that polls as readable once the container is gone, down to its last process.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The reading end of the output, once; only of [`Streams::Captured`].
    pub fn take_output(&mut self) -> Option<OwnedFd> {
        self.output.take()
    }

    /// The user's end of the terminal, once; only of [`Streams::Terminal`].
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Sends a signal to the program, by way of init. TERM, INT, HUP, QUIT, USR1, USR2, WINCH and CONT are passed on;
    /// KILL ends the whole container. A container that is gone already is no error.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<(), ContainerError> {
        let Some(signal) = Signal::from_named_raw(signal as i32) else { return Ok(()) };
        let sent = match &self.supervisor {
            // There, init knows nothing of the program.
            Some(supervisor) if signal != Signal::KILL => supervisor.signal(signal),
            _ => pidfd_send_signal(&self.pidfd, signal),
        };
        if let (Some(supervisor), Signal::KILL) = (&self.supervisor, signal) {
            supervisor.end();
        }
        match sent {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(self.error("send it a signal", error)),
        }
    }

    /// Kills every process of the container at once.
    pub fn kill(&self) -> Result<(), ContainerError> {
        self.signal(nix::sys::signal::Signal::SIGKILL)
    }

    /// Once its end was waited for: what to say when that end was the kernel's doing because the memory limit was
    /// reached, such as `killed: out of memory (limit 64M)`.
    pub fn out_of_memory(&self) -> Option<&str> {
        self.out_of_memory.as_deref()
    }

    /// Once its end was waited for: the same when the kernel killed any of its processes, whatever it ended with.
    pub fn lost_for_memory(&self) -> Option<&str> {
        self.lost_for_memory.as_deref()
    }

    /// Once its end was waited for: how many of its processes the kernel killed because the memory limit was reached.
    pub fn oom_kills(&self) -> u64 {
        self.oom_kills
    }

    /// Once its end was waited for: what to say when it was refused a process or a thread because of the limit of those,
    /// such as `out of processes (limit 50)`. Programs often do not say so themselves, and may well have gone on.
    pub fn out_of_processes(&self) -> Option<&str> {
        self.out_of_processes.as_deref()
    }

    /// Waits until the container is gone.
    pub fn wait(&mut self) -> Result<ExitStatus, ContainerError> {
        loop {
            if let Some(end) = self.wait_once(WaitIdOptions::EXITED)? {
                return Ok(end);
            }
        }
    }

    /// How it ended, if it did.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, ContainerError> {
        self.wait_once(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Waits until the container is gone and meanwhile gives its captured output, as it comes, to `on_output`.
    /// After `limit` the container is killed; the second value says that this happened.
    pub fn wait_with_output(
        &mut self,
        limit: Option<Duration>,
        on_output: &mut dyn FnMut(&[u8]),
    ) -> Result<(ExitStatus, bool), ContainerError> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut output = self.take_output();
        let mut timed_out = false;
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let timeout = match deadline {
                Some(deadline) if !timed_out => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    // Also while there always is more output.
                    if left.is_zero() {
                        timed_out = true;
                        self.kill()?;
                        continue;
                    }
                    Some(timespec(left))
                }
                _ => None,
            };
            let mut waits = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
            if let Some(output) = &output {
                waits.push(PollFd::new(output, PollFlags::IN));
            }
            match poll(&mut waits, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(self.error("wait for it", error)),
            }
            let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
            if ready[0] {
                if let Some(pipe) = &output {
                    read_rest(pipe, &mut buffer, on_output);
                }
                return Ok((self.wait()?, timed_out));
            }
            if let (Some(true), Some(pipe)) = (ready.get(1), &output) {
                match rustix::io::read(pipe, &mut buffer) {
                    Ok(0) => output = None,
                    Ok(length) => on_output(&buffer[..length]),
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    Err(error) => return Err(self.error("read its output", error)),
                }
            }
        }
    }

    fn error(&self, step: &'static str, source: Errno) -> ContainerError {
        ContainerError::System { name: self.name.clone(), step, source: source.into() }
    }

    fn wait_once(&mut self, options: WaitIdOptions) -> Result<Option<ExitStatus>, ContainerError> {
        if self.end.is_some() {
            return Ok(self.end);
        }
        let status = match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) => status,
            Ok(None) | Err(Errno::INTR) => return Ok(None),
            Err(error) => return Err(self.error("wait for it", error)),
        };
        // What init wrote down is exact. It says nothing when it was killed itself.
        let mut words = Vec::new();
        let _ = (&self.status).take(5).read_to_end(&mut words);
        let of_init = match status.exit_status() {
            Some(code) => ExitStatus::Code((code & 0xff) as u8),
            None => ExitStatus::Signal(status.terminating_signal().unwrap_or(libc::SIGKILL)),
        };
        let end = decode(&words).unwrap_or(of_init);
        self.end = Some(end);
        self.supervisor = None;
        if let Some(group) = self.group.take() {
            self.out_of_processes = group.out_of_processes().map(str::to_owned);
            self.lost_for_memory = group.out_of_memory().map(str::to_owned);
            self.oom_kills = group.oom_kills();
            match group.out_of_memory() {
                // An app may well live on without one of its processes, and end for another reason.
                Some(words) if end.as_exit_code() != ExitStatus::Signal(libc::SIGKILL).as_exit_code() => {
                    tracing::warn!("a process of the container was {words}");
                }
                words => self.out_of_memory = words.map(str::to_owned),
            }
        }
        Ok(self.end)
    }

    /// Listens to the new container until its program runs; gives a reason when it needs another user namespace.
    fn until_started(&mut self, channel: &OwnedFd) -> Result<Option<String>, ContainerError> {
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS);
        let mut ready = false;
        loop {
            let timeout = timespec(deadline.saturating_duration_since(Instant::now()));
            match poll(&mut [PollFd::new(channel, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => {
                    return Err(ContainerError::Slow { name: self.name.clone(), seconds: START_SECONDS });
                }
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(self.error("listen to it", error)),
            }
            let message = channel::receive(channel).map_err(|source| ContainerError::System {
                name: self.name.clone(),
                step: "listen to it",
                source,
            })?;
            match message {
                Message::Terminal(terminal) => self.terminal = Some(terminal),
                Message::Ready(pid) => {
                    ready = true;
                    self.program_pid = pid;
                }
                Message::Closed if ready => return Ok(None),
                Message::Closed => {
                    let end = self.wait()?;
                    let message = match self.out_of_memory() {
                        Some(words) => format!("it ended before its program ran, {words}"),
                        None => format!("it ended before its program ran, with {end}"),
                    };
                    return Err(ContainerError::Setup { name: self.name.clone(), message });
                }
                Message::NoIdentities(reason) => {
                    self.kill()?;
                    self.wait()?;
                    return Ok(Some(reason));
                }
                Message::Failed(message) => {
                    self.kill()?;
                    self.wait()?;
                    let name = self.name.clone();
                    return Err(match ready {
                        true => ContainerError::Program { name, message },
                        false => ContainerError::Setup { name, message },
                    });
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.end.is_none() {
            let _ = self.kill();
            // Bounded by the kernel: a killed namespace always ends, and later than this nothing is left of it.
            let _ = self.wait();
        }
    }
}

/// Reads what a container that is gone left in its output. No end of it is waited for: a process elsewhere may have been
/// given the other end, over a socket, and may even go on writing to it.
pub(crate) fn read_rest(output: impl AsFd, buffer: &mut [u8], on_output: &mut dyn FnMut(&[u8])) {
    let mut left = rustix::io::ioctl_fionread(&output).unwrap_or(0);
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match rustix::io::read(&output, &mut buffer[..most]) {
            Ok(length @ 1..) => {
                on_output(&buffer[..length]);
                left = left.saturating_sub(length as u64);
            }
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}
