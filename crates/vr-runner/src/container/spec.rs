//! The description of a container. Plain data: nothing here touches the system.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Everything a container is made of.
#[derive(Debug)]
pub struct ContainerSpec {
    /// Its name, for messages.
    pub name: String,
    /// The host name inside; cut to the 64 bytes that the kernel allows.
    pub hostname: String,
    /// What `/` is.
    pub root: RootFs,
    /// More folders and files of the host, mounted in this order after everything else.
    pub mounts: Vec<BindMount>,
    /// Whom the program runs as.
    pub user: Credentials,
    /// The program's first working directory, an absolute path inside.
    pub workdir: PathBuf,
    /// What runs.
    pub program: Program,
    /// What a program that runs as root may still do. Other users get no capability at all.
    pub capabilities: Capabilities,
    /// Which network it sees.
    pub network: Network,
    /// Where its standard streams lead.
    pub streams: Streams,
}

/// What a container's `/` is. Every kind also gets fresh `/proc`, `/sys` (read-only), `/dev`, and a `/tmp`
/// of mode 1777 that is part of the root itself, on disk.
#[derive(Debug, Clone)]
pub enum RootFs {
    /// An overlay: what is written goes to `upper`. The host's `/etc/hostname`, `/etc/hosts` and
    /// `/etc/resolv.conf` are seen read-only. No two running containers may share `upper` or `work`.
    Overlay {
        /// Read-only folders, the topmost first; at least one.
        lowers: Vec<PathBuf>,
        /// The folder that takes the changes.
        upper: PathBuf,
        /// An empty folder on the same file system as `upper`.
        work: PathBuf,
    },
    /// `rootfs` itself, writable, with the host's `/bin /etc /lib /lib32 /lib64 /libx32 /opt /sbin /usr` read-only.
    /// Several containers may share one.
    HostBinds {
        /// The folder.
        rootfs: PathBuf,
    },
    /// A folder that holds a whole system, writable; network files as for [`RootFs::Overlay`].
    Directory(PathBuf),
}

/// A folder or file of the host that a container sees, with everything mounted below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// An absolute path on the host; it must exist.
    pub source: PathBuf,
    /// An absolute path inside; made when missing, and never outside the root whatever links are there.
    pub target: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// Numbers of a user, its group and its further groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub uid: u32,
    /// The user's group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// The superuser, without further groups.
    pub const ROOT: Self = Self { uid: 0, gid: 0, groups: Vec::new() };
}

/// A program, its arguments and its whole environment.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Absolute paths inside to try in turn; the next is tried only when one does not exist.
    pub candidates: Vec<PathBuf>,
    /// The arguments after the program's own name.
    pub arguments: Vec<OsString>,
    /// The environment. Nothing of the caller's environment is added.
    pub environment: BTreeMap<OsString, OsString>,
}

impl Program {
    /// The search path that programs start with.
    pub const PATH: &'static str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

    /// A program with its arguments, and `PATH` as its environment.
    pub fn new<A: Into<OsString>>(path: impl Into<PathBuf>, arguments: impl IntoIterator<Item = A>) -> Self {
        Self {
            candidates: vec![path.into()],
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: BTreeMap::from([("PATH".into(), Self::PATH.into())]),
        }
    }

    /// Adds or replaces one variable.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.insert(key.into(), value.into());
        self
    }
}

/// The privileges that root keeps inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capabilities {
    /// What installing packages and serving on low ports needs: chown, dac_override, fowner, fsetid, kill,
    /// setgid, setuid, setfcap, net_bind_service, net_raw, sys_chroot, audit_write.
    Usual,
    /// None, even for root.
    None,
}

/// The network that a container sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// Its own, with nothing but a loopback interface.
    None,
}

/// Where a program's standard streams lead.
#[derive(Debug)]
pub enum Streams {
    /// To the caller's own three.
    Inherit,
    /// Output to the caller's own; the input is empty.
    InheritOutput,
    /// Output and errors together into one pipe, see [`super::Running::take_output`]; the input is empty.
    Captured,
    /// To the given three.
    Given {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// To a new terminal of the container, which controls the program; see [`super::Running::take_terminal`].
    Terminal,
}
