//! Starting a container and watching it: the parent's side.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
use super::init::{Lines, be_init, decode, is_usable_path};
use super::sys::{self, Cloned};
use super::{ContainerError, ContainerSpec, Limits, Network, RootFs, Streams};

/// How long a container's mounts may take, in seconds. A network file system that does not answer can block a
/// mount for ever.
const START_SECONDS: u64 = 60;

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
    /// The caller must be root and have a single thread.
    pub fn start(spec: ContainerSpec) -> Result<Running, ContainerError> {
        Self::start_within(spec, &Limits::default())
    }

    /// As [`Self::start`], with limits that hold from before the container's first mount. A limit that this host
    /// cannot keep is an error.
    pub fn start_within(mut spec: ContainerSpec, limits: &Limits) -> Result<Running, ContainerError> {
        check(&spec)?;
        let name = spec.name.clone();
        if let Some(reason) = limits.problem() {
            return Err(ContainerError::Spec { name, reason });
        }
        let mut group = match limits.is_empty() {
            true => None,
            false => Some(Group::create(&name, limits)?),
        };
        let groups = group.as_mut().map(Group::take_entries).unwrap_or_default();
        let cannot = |step: &'static str| {
            let name = name.clone();
            move |source: io::Error| ContainerError::System { name, step, source }
        };
        let output = prepare_streams(&mut spec).map_err(cannot("prepare its standard streams"))?;
        let (ours, theirs) = channel::pair().map_err(cannot("make a socket pair"))?;
        let (status, status_writer) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|e| cannot("make a pipe")(e.into()))?;
        let parent = pidfd_open(getpid(), PidfdFlags::empty())
            .map_err(|e| cannot("open a handle on this process")(e.into()))?;
        let cloned = clone_with_namespaces(&spec).map_err(cannot("make its namespaces"))?;
        match cloned {
            Cloned::Child => {
                be_init(spec, Lines { channel: theirs, status: status_writer, parent, groups });
            }
            Cloned::Parent(pid, pidfd) => {
                // These and the program's ends of its streams, which `spec` owns, must be the container's alone:
                // their end is how it shows that it is gone.
                drop((theirs, status_writer, spec, groups));
                let mut running = Running {
                    name,
                    init_pid: pid.as_raw(),
                    program_pid: pid.as_raw(),
                    pidfd,
                    status: File::from(status),
                    output,
                    terminal: None,
                    end: None,
                    group,
                    out_of_memory: None,
                };
                running.until_started(&ours)?;
                Ok(running)
            }
        }
    }
}

fn check(spec: &ContainerSpec) -> Result<(), ContainerError> {
    let name = || spec.name.clone();
    if !rustix::process::geteuid().is_root() {
        return Err(ContainerError::NotRoot { name: name() });
    }
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
    let names_something = |path: &Path| path.components().any(|part| matches!(part, Component::Normal(_)));
    if let Some(mount) = spec.mounts.iter().find(|mount| !names_something(&mount.target)) {
        return bad(format!("cannot mount {} on the root itself", mount.source.display()));
    }
    match &spec.root {
        RootFs::Overlay { lowers, .. } if lowers.is_empty() => {
            bad("its overlay has no lower folder".to_owned())
        }
        _ => Ok(()),
    }
}

/// Turns all but inherited streams and terminals into given ones, and returns our end of the output.
fn prepare_streams(spec: &mut ContainerSpec) -> io::Result<Option<OwnedFd>> {
    let nothing = || rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    match spec.streams {
        Streams::InheritOutput => {
            let stdout = io::stdout().as_fd().try_clone_to_owned()?;
            let stderr = io::stderr().as_fd().try_clone_to_owned()?;
            spec.streams = Streams::Given { stdin: nothing()?, stdout, stderr };
            Ok(None)
        }
        Streams::Captured => {
            let (ours, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
            // Opening `/dev/stdout` anew asks for the rights of a file's owner.
            rustix::fs::fchown(
                &stdout,
                Some(rustix::fs::Uid::from_raw(spec.user.uid)),
                Some(rustix::fs::Gid::from_raw(spec.user.gid)),
            )?;
            let stderr = stdout.try_clone()?;
            spec.streams = Streams::Given { stdin: nothing()?, stdout, stderr };
            Ok(Some(ours))
        }
        Streams::Inherit | Streams::Given { .. } | Streams::Terminal => Ok(None),
    }
}

fn clone_with_namespaces(spec: &ContainerSpec) -> io::Result<Cloned> {
    let mut namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if spec.network == Network::None {
        namespaces |= libc::CLONE_NEWNET;
    }
    match sys::clone_process(namespaces | libc::CLONE_NEWCGROUP) {
        // A kernel without cgroups has no namespaces for them either.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => sys::clone_process(namespaces),
        done => done,
    }
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
}

impl Running {
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
        match pidfd_send_signal(&self.pidfd, signal) {
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
        if let Some(group) = self.group.take()
            && let Some(words) = group.out_of_memory()
        {
            // An app may well live on without one of its processes, and end for another reason.
            if end.as_exit_code() == ExitStatus::Signal(libc::SIGKILL).as_exit_code() {
                self.out_of_memory = Some(words.to_owned());
            } else {
                tracing::warn!("a process of the container was {words}");
            }
        }
        Ok(self.end)
    }

    /// Listens to the new container until its program runs.
    fn until_started(&mut self, channel: &OwnedFd) -> Result<(), ContainerError> {
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
                Message::Closed if ready => return Ok(()),
                Message::Closed => {
                    let end = self.wait()?;
                    let message = match self.out_of_memory() {
                        Some(words) => format!("it ended before its program ran, {words}"),
                        None => format!("it ended before its program ran, with {end}"),
                    };
                    return Err(ContainerError::Setup { name: self.name.clone(), message });
                }
                Message::Failed(message) => {
                    self.kill()?;
                    self.wait()?;
                    return Err(ContainerError::Setup { name: self.name.clone(), message });
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

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}
