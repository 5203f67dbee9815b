//! Starting a container by way of LXC, and what there is to do about `lxc-start` afterwards: the parent's side.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, pidfd_open, pidfd_send_signal, waitid,
};

use super::super::cgroup::Group;
use super::super::channel::{self, Message};
use super::super::identities::Identities;
use super::super::mounts::{Flags, Step, explain, new_file_system};
use super::super::running::{START_SECONDS, give_output, timespec};
use super::super::sys::{self, Cloned};
use super::super::{ContainerError, ContainerSpec, Hardening, Program, Running, Streams, seccomp};
use super::config::{self, Hierarchy};
use super::groups::Groups;
use super::init::{Lines as InitLines, be_init};
use super::launcher::{self, Home, Launch, Lines, be_launcher, make_home_place};
use super::prepare::{Prepared, prepare};

/// A running `lxc-start` and the program that it started.
#[derive(Debug)]
pub(in super::super) struct Supervisor {
    lxc: OwnedFd,
    program: Option<OwnedFd>,
}

impl Supervisor {
    /// Sends the program a signal; one that is gone is no error.
    pub fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        let Some(program) = &self.program else { return Ok(()) };
        match pidfd_send_signal(program, signal) {
            Err(Errno::SRCH) => Ok(()),
            done => done,
        }
    }

    /// Ends `lxc-start`, which has nothing to do any more. It has to be gone before process 1 can be, if it was not to
    /// collect the program's end.
    pub fn end(&self) {
        let _ = pidfd_send_signal(&self.lxc, Signal::KILL);
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.end();
        while matches!(waitid(WaitId::PidFd(self.lxc.as_fd()), WaitIdOptions::EXITED), Err(Errno::INTR)) {}
    }
}

/// Writes the text for LXC, and the system call policy, for people who start the container with `lxc-start` themselves.
/// Makes the places in the root that LXC mounts on.
pub fn write_config(spec: &ContainerSpec, config: &Path, policy: &Path) -> Result<(), ContainerError> {
    refuse_overlays(spec)?;
    let failed = |message: String| ContainerError::Setup { name: spec.name.clone(), message };
    let prepared = prepare(spec).map_err(failed)?;
    let root = config::root_for_lxc(&spec.root).map_err(failed)?;
    let mut layout = prepared.layout(root, policy.to_owned(), |_, bind| bind.source.clone());
    layout.limits = Some(match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => Hierarchy::Two,
        false => Hierarchy::One,
    });
    let text = config::text(spec, &layout).map_err(failed)?;
    for (path, content) in [(policy, seccomp::policy().as_bytes()), (config, &*text)] {
        replace(path, content).map_err(explain(format_args!("write {}", path.display()))).map_err(failed)?;
    }
    Ok(())
}

/// What LXC mounts is told to it by paths, of files that anybody who starts LXC can see.
fn refuse_overlays(spec: &ContainerSpec) -> Result<(), ContainerError> {
    if spec.overlays.is_empty() {
        return Ok(());
    }
    let reason = "the engine lxc mounts no overlays in the root; the engine own does".to_owned();
    Err(ContainerError::Spec { name: spec.name.clone(), reason })
}

/// Replaces a file as a whole. It is written anew by the next setup, so it may well be lost in a crash.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut aside = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut aside, content)?;
    aside.as_file().set_permissions(std::fs::Permissions::from_mode(0o600))?;
    aside.persist(path)?;
    Ok(())
}

/// Starts a container. The caller has made sure that the description makes sense and that there is one thread.
pub(in super::super) fn start(spec: &ContainerSpec, captured: bool) -> Result<Running, ContainerError> {
    let name = &spec.name;
    refuse_overlays(spec)?;
    if !rustix::process::geteuid().is_root() {
        let reason =
            "the engine lxc works for root only; the engine own works for other users, too".to_owned();
        return Err(ContainerError::Spec { name: name.clone(), reason });
    }
    let Some(lxc_start) = find_lxc() else {
        let reason =
            "there is no lxc-start on this host, which the engine lxc needs; it is in the package lxc"
                .to_owned();
        return Err(ContainerError::Spec { name: name.clone(), reason });
    };
    if spec.hardening != Hardening::default() {
        tracing::debug!(container = name, "not every protection can be switched off with the engine lxc");
    }
    tracing::info!(container = name, "LXC makes it, without a user namespace: root inside is root");
    let mut group = match spec.limits.is_empty() {
        true => None,
        false => Some(Group::create(name, &spec.limits)?),
    };
    let groups = Groups::of(group.as_mut());
    let failed = |message: String| ContainerError::Setup { name: name.clone(), message };
    if captured {
        give_output(spec, &Identities::OfHost)
            .map_err(explain("give it its standard streams"))
            .map_err(failed)?;
    }
    let mut attempt = Attempt::begin(spec, &groups, &lxc_start).map_err(failed)?;
    let end = attempt.until_started(spec, &groups);
    let Attempt { init, init_pid, supervisor, status, program_pid, master, home, .. } = attempt;
    let pids = (init_pid, program_pid);
    let mut running = Running::of_lxc(name.clone(), pids, init, status, group, supervisor);
    running.set_terminal(master);
    match end {
        Ok(()) => Ok(running),
        Err(Trouble::Slow) => Err(ContainerError::Slow { name: name.clone(), seconds: START_SECONDS }),
        Err(Trouble::Failed(words)) => {
            let log = home.read(launcher::LOG);
            // First of all it has to have ended: it may be writing.
            running.kill()?;
            let _ = running.wait();
            let message = match running.out_of_memory() {
                Some(memory) => format!("it ended before its program ran, {memory}"),
                None if words.is_empty() => in_words(&log, &lxc_start),
                None => words,
            };
            Err(ContainerError::Setup { name: name.clone(), message })
        }
    }
}

/// Where `lxc-start` is.
fn find_lxc() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(std::env::split_paths(Program::PATH))
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("lxc-start"))
        .find(|file| {
            file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

/// What LXC's log says went wrong.
fn in_words(log: &str, lxc_start: &Path) -> String {
    const OLDEST: u32 = 4;
    // It tells this by itself in no way: it complains of some key.
    if let Some(version) = version(lxc_start)
        && version
            .split('.')
            .next()
            .and_then(|number| number.parse().ok())
            .is_some_and(|number: u32| number < OLDEST)
    {
        return format!("LXC {version} is too old: the engine lxc needs LXC {OLDEST} or later");
    }
    match first_error(log) {
        Some(words) => format!("LXC says: {words}"),
        None => "LXC ended before its program ran and does not say why".to_owned(),
    }
}

/// The first complaint, such as `No such file or directory - Failed to exec "/x"`: what follows are consequences.
fn first_error(log: &str) -> Option<&str> {
    let line = log.lines().find(|line| line.contains(" ERROR "))?;
    // `lxc-start NAME TIME ERROR conf - ../src/lxc/conf.c:run_buffer:322 - Script exited with status 1`
    let (_, rest) = line.split_once(" ERROR ")?;
    Some(rest.splitn(3, " - ").last().unwrap_or(rest).trim())
}

fn version(lxc_start: &Path) -> Option<String> {
    let out = vr_common::process::command(lxc_start).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned()).filter(|text| !text.is_empty())
}

enum Trouble {
    Slow,
    /// In words; without any, LXC's log has them.
    Failed(String),
}

impl From<String> for Trouble {
    fn from(words: String) -> Self {
        Self::Failed(words)
    }
}

/// A container that may become one.
struct Attempt {
    channel: OwnedFd,
    gate: Option<OwnedFd>,
    status: OwnedFd,
    init: OwnedFd,
    init_pid: i32,
    program_pid: i32,
    lxc_pid: Pid,
    supervisor: Supervisor,
    master: Option<OwnedFd>,
    home: Home,
    here: OwnedFd,
    go: OwnedFd,
    /// Told to LXC once init, whose process number it holds, is ready.
    layout: config::Layout,
}

impl Attempt {
    /// Starts the two processes, which wait.
    fn begin(spec: &ContainerSpec, groups: &Groups, lxc_start: &Path) -> Step<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        // Part of the name of LXC's command socket, which has to be the only one on the host.
        let lxc_path = launcher::path(&format!("{}-{number}", std::process::id()));
        make_home_place()?;
        let prepared = prepare(spec)?;
        let home = Home::make(&prepared, &lxc_path)?;
        if spec.hardening.seccomp {
            home.write(launcher::POLICY, seccomp::policy().as_bytes())?;
        }
        let (news, here, go) = (home.news(&lxc_path)?, home.open(launcher::HERE)?, home.open(launcher::GO)?);
        let terminal = match spec.streams {
            Streams::Terminal => Some(Terminal::make(spec.user.uid)?),
            _ => None,
        };
        let (ours, theirs) = channel::pair().map_err(explain("make a socket pair"))?;
        let (gate, inner_gate) = channel::pair().map_err(explain("make a socket pair"))?;
        let myself =
            || pidfd_open(getpid(), PidfdFlags::empty()).map_err(explain("open a handle on this process"));
        let (parent, parent_of_init) = (myself()?, myself()?);
        let launch = Launch {
            arguments: arguments(spec, &prepared, &lxc_path),
            prepared: &prepared,
            home: &home,
            terminal: terminal.as_ref().map(|terminal| (&terminal.devpts, &terminal.slave)),
            streams: &spec.streams,
            program: lxc_start,
        };
        let (lxc_pid, lxc) = match sys::clone_process(nix::sched::CloneFlags::CLONE_NEWNS.bits()) {
            Ok(Cloned::Child) => {
                drop((ours, gate));
                be_launcher(&launch, &Lines { channel: theirs, gate: inner_gate, parent });
            }
            Ok(Cloned::Parent(pid, lxc)) => (pid, lxc),
            Err(error) => return Err(explain("start another process")(error)),
        };
        drop((inner_gate, parent));
        let lxc_pid = Pid::from_raw(lxc_pid.as_raw()).ok_or("a process without a number")?;
        let supervisor = Supervisor { lxc, program: None };
        let (status, status_writer) = pipe_with(PipeFlags::CLOEXEC).map_err(explain("make a pipe"))?;
        let lxc = supervisor.lxc.try_clone().map_err(explain("copy a handle"))?;
        let namespaces = nix::sched::CloneFlags::CLONE_NEWPID | nix::sched::CloneFlags::CLONE_NEWNS;
        let (init_pid, init) = match sys::clone_process(namespaces.bits()) {
            Ok(Cloned::Child) => {
                drop((ours, gate, status));
                let lines =
                    InitLines { channel: theirs, status: status_writer, parent: parent_of_init, news, lxc };
                be_init(spec, &groups.entries, lines);
            }
            Ok(Cloned::Parent(pid, init)) => (pid.as_raw(), init),
            Err(error) => return Err(explain("make its namespaces")(error)),
        };
        drop((theirs, status_writer));
        let mut layout = prepared.layout(
            format!("dir:{}", launcher::path(launcher::ROOT).display()).into(),
            launcher::path(launcher::POLICY),
            |number, _| launcher::path(&launcher::mount_name(number)),
        );
        layout.further = further(groups, init_pid);
        if terminal.is_some() {
            layout.binds.extend(Terminal::binds());
        }
        Ok(Self {
            channel: ours,
            gate: Some(gate),
            status,
            init,
            init_pid,
            program_pid: init_pid,
            lxc_pid,
            supervisor,
            master: terminal.map(|terminal| terminal.master),
            home,
            here,
            go,
            layout,
        })
    }

    /// Listens to both until the program runs.
    fn until_started(&mut self, spec: &ContainerSpec, groups: &Groups) -> Result<(), Trouble> {
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS);
        loop {
            let timeout = timespec(deadline.saturating_duration_since(Instant::now()));
            let mut waits =
                [PollFd::new(&self.channel, PollFlags::IN), PollFd::new(&self.here, PollFlags::IN)];
            match poll(&mut waits, Some(&timeout)) {
                Ok(0) => return Err(Trouble::Slow),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(explain("listen to it")(error).into()),
            }
            let [said, here] = waits.map(|wait| !wait.revents().is_empty());
            if here {
                self.let_lxc_go_on(groups)?;
            }
            if !said {
                continue;
            }
            match channel::receive(&self.channel).map_err(explain("listen to it"))? {
                // Init is ready. Without a gate, it is so for the second time.
                Message::Ready(_) => {
                    self.home.write(launcher::CONFIG, &config::text(spec, &self.layout)?)?;
                    if let Some(gate) = self.gate.take() {
                        channel::send_ready(&gate).map_err(explain("let LXC start"))?;
                    }
                }
                Message::Closed if self.supervisor.program.is_some() => return Ok(()),
                Message::Closed => return Err(Trouble::Failed(String::new())),
                Message::Failed(words) | Message::NoIdentities(words) => return Err(Trouble::Failed(words)),
                Message::Terminal(_) => {}
            }
        }
    }

    /// LXC waits for us twice: before it starts any process, if there are groups, and with the process that is about to
    /// become the program, which we then take hold of.
    fn let_lxc_go_on(&mut self, groups: &Groups) -> Step<()> {
        let mut text = [0; 32];
        let length = rustix::io::read(&self.here, &mut text).map_err(explain("listen to LXC"))?;
        let text = String::from_utf8_lossy(&text[..length]);
        if text.trim().is_empty() {
            groups.let_in(self.lxc_pid)?;
        } else {
            let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else {
                return Err("LXC does not say which process the program is".to_owned());
            };
            let handle =
                pidfd_open(pid, PidfdFlags::empty()).map_err(explain("open a handle on the program"))?;
            groups.send_home(self.lxc_pid)?;
            self.program_pid = pid.as_raw_nonzero().get();
            self.supervisor.program = Some(handle);
        }
        rustix::io::write(&self.go, b"go\n").map_err(explain("let LXC go on"))?;
        Ok(())
    }
}

/// The keys that only a start by us has.
fn further(groups: &Groups, init: i32) -> Vec<(&'static str, PathBuf)> {
    let script = |name| PathBuf::from(format!("/bin/sh {}", launcher::path(name).display()));
    let mut further = vec![
        ("lxc.rootfs.mount", launcher::path(launcher::TARGET)),
        ("lxc.namespace.share.pid", init.to_string().into()),
        ("lxc.hook.start-host", script(launcher::BEFORE)),
        ("lxc.hook.post-stop", script(launcher::AFTER)),
    ];
    if !groups.entries.is_empty() {
        further.push(("lxc.hook.pre-start", script(launcher::BEFORE)));
    }
    further
}

fn arguments(spec: &ContainerSpec, prepared: &Prepared, lxc_path: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["lxc-start", "--foreground", "--quiet", "--name", &spec.name, "--rcfile"]
            .map(OsString::from)
            .to_vec();
    arguments.push(launcher::path(launcher::CONFIG).into());
    arguments.extend(["--lxcpath".into(), lxc_path.into(), "--logpriority".into(), "ERROR".into()]);
    arguments.extend(["--logfile".into(), launcher::path(launcher::LOG).into(), "--".into()]);
    if matches!(spec.streams, Streams::Terminal) {
        // LXC does not make it the terminal that controls the session; opening it does.
        let script = "exec \"$0\" \"$@\" <>/dev/pts/0 >&0 2>&0";
        arguments.extend(["/bin/sh", "-c", script].map(OsString::from));
    }
    arguments.push(prepared.program.clone().into());
    arguments.extend(spec.program.arguments.iter().cloned());
    arguments
}

/// A terminal in a devpts of its own, which becomes the container's.
struct Terminal {
    devpts: OwnedFd,
    master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    fn make(user: u32) -> Step<Self> {
        let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
        let devpts = new_file_system("devpts", &options, Flags::DEVICE)?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |name: &str| openat(&devpts, name, flags, Mode::empty());
        let master = open("ptmx").map_err(explain("open a terminal"))?;
        sys::unlock_terminal(&master).map_err(explain("unlock the terminal"))?;
        // The first one.
        let slave = open("0").map_err(explain("open the terminal's other end"))?;
        rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(user)), None)
            .map_err(explain("give the terminal away"))?;
        Ok(Self { devpts, master, slave })
    }

    /// LXC takes away what it finds on `/dev/pts`, before it looks whether it is to put its own there; but once only.
    fn binds() -> [config::Bind; 3] {
        use super::super::place::Kind;
        let bind = |source: &str, target: &str, kind| config::Bind {
            source: launcher::path(launcher::TERMINALS).join(source),
            target: target.into(),
            make: Some(kind),
            flags: "",
        };
        let pts = || bind("", "dev/pts", Kind::Directory);
        [pts(), pts(), bind("ptmx", "dev/ptmx", Kind::File)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_complaint_is_what_people_are_told() {
        let log = "lxc-start demo 20261121024521.895 WARN     start - ../src/lxc/start.c:f:1 - Inherited fd 10\n\
                   lxc-start demo 20261121024521.895 ERROR    conf - ../src/lxc/conf.c:run_buffer:322 - No such file - Failed to x - y\n\
                   lxc-start demo 20261121024521.895 ERROR    start - ../src/lxc/start.c:lxc_end:985 - Failed to run";
        assert_eq!(first_error(log), Some("No such file - Failed to x - y"));
        assert_eq!(first_error(""), None);
        assert_eq!(first_error("a b ERROR short"), Some("short"));
    }
}
