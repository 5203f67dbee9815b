//! The process that becomes `lxc-start`, in a mount namespace of its own where [`HOME`] holds all that LXC reads and
//! writes: what we prepared for it, its locks, and the pipes between it and us. It is gone with `lxc-start`.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, execve, setsid};
use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};
use rustix::process::{chdir, umask};

use super::super::channel::{self, Message};
use super::super::init::{NOT_READY, close_all_but, die_with};
use super::super::mounts::{Flags, Step, attach, explain, make_private, new_file_system};
use super::super::place::{Kind, open_directory};
use super::super::{Program, Streams, sys};
use super::prepare::Prepared;

/// Where LXC of any distribution has its locks when root runs it.
pub(super) const HOME: &str = "/run/lxc";
/// Below [`HOME`]: the root as we prepared it.
pub(super) const ROOT: &str = "source";
/// Where LXC puts the root together.
pub(super) const TARGET: &str = "root";
/// The text for LXC, and the system call policy.
pub(super) const CONFIG: &str = "config";
pub(super) const POLICY: &str = "policy";
/// What goes wrong, in LXC's words.
pub(super) const LOG: &str = "log";
/// Where LXC says which process is about to become the program, once it knows; and where it waits for us.
pub(super) const HERE: &str = "here";
pub(super) const GO: &str = "go";
/// Run by LXC before it starts a process and just before the program; and after its end, as LXC would start a program
/// that HUP killed again.
pub(super) const BEFORE: &str = "before";
pub(super) const AFTER: &str = "after";
/// The terminals of a container with one of ours.
pub(super) const TERMINALS: &str = "terminals";

/// The path of something below [`HOME`].
pub(super) fn path(name: &str) -> PathBuf {
    Path::new(HOME).join(name)
}

/// The place of the mount with a number.
pub(super) fn mount_name(number: usize) -> String {
    format!("mount-{number}")
}

/// [`HOME`] before it is in its place.
pub(super) struct Home(OwnedFd);

impl Home {
    /// Makes it, with all places and pipes. LXC looks for the pipe to its monitors by the path that it is given as its
    /// own, `lxc_path`, once more below [`HOME`].
    pub fn make(prepared: &Prepared, lxc_path: &Path) -> Step<Self> {
        let home = Self(new_file_system("tmpfs", &[("size", "4m"), ("mode", "700")], Flags::DATA)?);
        for name in [ROOT, TARGET, TERMINALS] {
            home.folder(Path::new(name))?;
        }
        for (number, tree) in prepared.binds.iter().enumerate() {
            let name = mount_name(number);
            match tree.kind {
                Kind::Directory => home.folder(Path::new(&name))?,
                Kind::File => home.write(&name, b"")?,
            }
        }
        let own = lxc_path.strip_prefix(HOME).unwrap_or(lxc_path);
        home.folder(own)?;
        let mut folder = PathBuf::new();
        for part in lxc_path.strip_prefix("/").unwrap_or(lxc_path).components() {
            folder.push(part);
            home.folder(&folder)?;
        }
        for pipe in [Path::new(HERE), Path::new(GO), &folder.join("monitor-fifo")] {
            mknodat(&home.0, pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                .map_err(explain(format_args!("make the pipe {}", pipe.display())))?;
        }
        home.write(
            BEFORE,
            format!("echo \"$LXC_PID\" > {HOME}/{HERE} && read -r answer < {HOME}/{GO}\n").as_bytes(),
        )?;
        home.write(AFTER, b"kill -KILL \"$PPID\"\n")?;
        Ok(home)
    }

    /// The pipe through which LXC informs its monitors.
    pub fn news(&self, lxc_path: &Path) -> Step<OwnedFd> {
        let folder = lxc_path.strip_prefix("/").unwrap_or(lxc_path);
        self.open(folder.join("monitor-fifo"))
    }

    /// Opens a pipe, as a reader and as a writer.
    pub fn open(&self, name: impl AsRef<Path>) -> Step<OwnedFd> {
        let name = name.as_ref();
        openat(&self.0, name, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            .map_err(explain(format_args!("open the pipe {}", name.display())))
    }

    fn folder(&self, name: &Path) -> Step<()> {
        match mkdirat(&self.0, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(explain(format_args!("make the folder {}", name.display()))(error)),
        }
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: &[u8]) -> Step<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        openat(&self.0, name, flags, Mode::from_raw_mode(0o600))
            .map_err(io::Error::from)
            .and_then(|file| io::Write::write_all(&mut std::fs::File::from(file), content))
            .map_err(explain(format_args!("write {name} for LXC")))
    }

    /// The beginning of a file; nothing when it is missing.
    pub fn read(&self, name: &str) -> String {
        let mut content = Vec::new();
        if let Ok(file) = openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            let _ =
                io::Read::read_to_end(&mut io::Read::take(std::fs::File::from(file), 64 << 10), &mut content);
        }
        String::from_utf8_lossy(&content).into_owned()
    }
}

/// What the launcher does.
pub(super) struct Launch<'a> {
    pub prepared: &'a Prepared,
    pub home: &'a Home,
    /// The devpts of the program's terminal, and the program's end of that.
    pub terminal: Option<(&'a OwnedFd, &'a OwnedFd)>,
    pub streams: &'a Streams,
    /// The file of `lxc-start`, and its arguments.
    pub program: &'a Path,
    pub arguments: Vec<OsString>,
}

/// The launcher's descriptors.
pub(super) struct Lines {
    /// Where it says what failed.
    pub channel: OwnedFd,
    /// Tells it to go on.
    pub gate: OwnedFd,
    /// Readable once the parent is dead.
    pub parent: OwnedFd,
}

/// Becomes `lxc-start`. Never returns.
pub(super) fn be_launcher(launch: &Launch<'_>, lines: &Lines) -> ! {
    let message = match launch_it(launch, lines) {
        Ok(never) => match never {},
        Err(message) => message,
    };
    channel::send_failure(&lines.channel, &message);
    sys::exit_now(NOT_READY)
}

fn launch_it(launch: &Launch<'_>, lines: &Lines) -> Step<Infallible> {
    die_with(&lines.parent)?;
    match channel::receive(&lines.gate).map_err(explain("wait for the parent"))? {
        Message::Ready(_) => {}
        _ => sys::exit_now(NOT_READY),
    }
    make_private()?;
    hide_groups()?;
    let Home(home) = launch.home;
    let place = open_directory(Path::new(HOME)).map_err(explain(format_args!("open {HOME}")))?;
    attach(home, place, "a new tmpfs", HOME)?;
    let put = |mount: &OwnedFd, name: &str| {
        let place = openat(home, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(explain(format_args!("open {name}")))?;
        attach(mount, place, "a copy", name)
    };
    put(&launch.prepared.root, ROOT)?;
    for (number, tree) in launch.prepared.binds.iter().enumerate() {
        put(&tree.mount, &mount_name(number))?;
    }
    if let Some((devpts, _)) = launch.terminal {
        put(devpts, TERMINALS)?;
    }
    sys::reset_signal_handlers();
    setsid().map_err(explain("start a session"))?;
    umask(Mode::from_raw_mode(0o022));
    chdir("/").map_err(explain("leave the caller's folder"))?;
    connect(launch)?;
    let text = |text: &OsStr| {
        CString::new(text.as_bytes()).map_err(|_| format!("cannot pass on {text:?}: it holds a zero byte"))
    };
    let program = text(launch.program.as_os_str())?;
    let arguments = launch.arguments.iter().map(|argument| text(argument)).collect::<Step<Vec<_>>>()?;
    let environment = [text(OsStr::new(&format!("PATH={}", Program::PATH)))?];
    // The channel closes by itself. LXC hands all others down to the program.
    close_all_but(&[lines.channel.as_raw_fd()]).map_err(explain("close the host's files"))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(explain("unblock signals"))?;
    let Err(error) = execve(&program, &arguments, &environment);
    Err(format!("cannot run {}: {}", launch.program.display(), io::Error::from(error)))
}

/// LXC makes groups in each hierarchy that it finds, and leaves some. The container's are ours.
fn hide_groups() -> Step<()> {
    let Ok(place) = open_directory(Path::new("/sys/fs/cgroup")) else { return Ok(()) };
    let nothing = new_file_system("tmpfs", &[("size", "4k"), ("mode", "555")], Flags::DATA.read_only())?;
    attach(nothing, place, "nothing", "/sys/fs/cgroup")
}

/// The program inherits them from `lxc-start`.
fn connect(launch: &Launch<'_>) -> Step<()> {
    let (stdin, stdout, stderr) = match (launch.streams, launch.terminal) {
        (_, Some((_, terminal))) => (terminal, terminal, terminal),
        (Streams::Given { stdin, stdout, stderr }, _) => (stdin, stdout, stderr),
        _ => return Ok(()),
    };
    dup2_stdin(stdin.as_fd()).map_err(explain("connect standard input"))?;
    dup2_stdout(stdout.as_fd()).map_err(explain("connect standard output"))?;
    dup2_stderr(stderr.as_fd()).map_err(explain("connect standard error"))
}

/// Makes [`HOME`], where LXC has not been used yet.
pub(super) fn make_home_place() -> Step<()> {
    match mkdirat(CWD, HOME, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(explain(format_args!("make the folder {HOME}"))(error)),
    }
}
