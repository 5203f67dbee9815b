//! The description of a container. Plain data: nothing here touches the system.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::Limits;

/// Everything a container is made of.
#[derive(Debug)]
pub struct ContainerSpec {
    /// Its name, for messages.
    pub name: String,
    /// The host name inside; cut to the 64 bytes that the kernel allows.
    pub hostname: String,
    /// What `/` is.
    pub root: RootFs,
    /// Whose programs and libraries it has.
    pub system: System,
    /// Whether the root is protected from being written to. `/run`, `/tmp` and `/var/tmp` are then small file systems in
    /// memory; what is mounted is written to as ever.
    pub read_only: bool,
    /// Folders of the host under overlays, mounted in this order, after everything but `mounts`. The engine [`Engine::Lxc`]
    /// refuses them.
    pub overlays: Vec<OverlayMount>,
    /// Whether what is written to its overlays, the root's among them, need not outlive a failure of the machine's power. The
    /// kernel then does not wait for the disk when they are unmounted, and files that are removed soon afterwards never
    /// get there. Their `work` folders can be used for no other container. The engine [`Engine::Lxc`] waits all the same.
    pub is_volatile: bool,
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
    /// What it may use of the host; from before its first mount on. A limit that this host cannot keep is an error.
    pub limits: Limits,
    /// What keeps it from the host.
    pub hardening: Hardening,
    /// Who makes it.
    pub engine: Engine,
}

impl ContainerSpec {
    /// A container that has a whole system as its root, runs `program` as root with few privileges, in `/`, hands its
    /// output on to the caller's own, and has every protection and no limit.
    pub fn new(name: impl Into<String>, root: RootFs, program: Program) -> Self {
        let name = name.into();
        Self {
            hostname: name.clone(),
            name,
            root,
            system: System::Own,
            read_only: false,
            overlays: Vec::new(),
            is_volatile: false,
            mounts: Vec::new(),
            user: Credentials::ROOT,
            workdir: "/".into(),
            program,
            capabilities: Capabilities::Usual,
            network: Network::Host,
            streams: Streams::InheritOutput,
            limits: Limits::default(),
            hardening: Hardening::default(),
            engine: Engine::Own,
        }
    }
}

/// What a container's `/` is. Every kind also gets fresh `/proc`, `/sys` (read-only), `/dev`, and a `/tmp`
/// of mode 1777 that is part of the root itself, on disk.
#[derive(Debug, Clone)]
pub enum RootFs {
    /// An overlay: what is written goes to `upper`. No two running containers may share `upper` or `work`.
    Overlay {
        /// Read-only folders, the topmost first; from 1 to 12.
        lowers: Vec<PathBuf>,
        /// The folder that takes the changes.
        upper: PathBuf,
        /// An empty folder on the same file system as `upper`.
        work: PathBuf,
    },
    /// A folder, written to as it is. Several containers may share one.
    Directory(PathBuf),
}

/// Whose programs, libraries and configuration a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// Those in its root. It sees the host's `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`, read-only.
    Own,
    /// The host's: its `/bin /etc /lib /lib32 /lib64 /libx32 /opt /sbin /usr` are in the root, read-only.
    OfHost,
}

/// Who makes a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// This program itself.
    #[default]
    Own,
    /// LXC's `lxc-start`.
    Lxc,
}

impl fmt::Display for Engine {
    /// `own` or `lxc`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "own",
            Self::Lxc => "lxc",
        })
    }
}

/// A text that names no engine.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not an engine: expected own or lxc")]
pub struct BadEngine(String);

impl FromStr for Engine {
    type Err = BadEngine;

    fn from_str(text: &str) -> Result<Self, BadEngine> {
        match text {
            "own" => Ok(Self::Own),
            "lxc" => Ok(Self::Lxc),
            other => Err(BadEngine(other.chars().take(60).collect())),
        }
    }
}

/// What keeps a container from the host. Everything is on; each can be switched off only so that a test can show
/// that it is this one that stops an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardening {
    /// Root inside is not root on the host, as far as the kernel has user namespaces.
    pub user_namespace: bool,
    /// System calls that no app needs are refused.
    pub seccomp: bool,
    /// Nothing that is run can give more privileges than there are, such as a set-user-id program.
    pub no_new_privileges: bool,
    /// All capabilities but those of [`Capabilities`] are given up.
    pub drop_capabilities: bool,
    /// Parts of `/proc` and `/sys` are empty or cannot be written to.
    pub mask_kernel_files: bool,
    /// The keys of the caller's session stay outside.
    pub new_keyring: bool,
    /// Files that the caller has open stay outside.
    pub close_descriptors: bool,
    /// Device nodes and set-user-id bits in the root and in what is mounted mean nothing.
    pub no_devices_or_setuid: bool,
    /// Links in the root lead to places in the root, and not to the host's, while it is made.
    pub links_stay_inside: bool,
    /// A program that turns out to be the one that makes the container is not run in it.
    pub own_program_stays_outside: bool,
    /// It has its own process numbers, and sees no other process.
    pub process_namespace: bool,
    /// It has its own System V and POSIX message queues and shared memory.
    pub ipc_namespace: bool,
    /// It has its own host name.
    pub host_name_namespace: bool,
    /// It sees control groups as if its own were the topmost.
    pub cgroup_namespace: bool,
}

impl Default for Hardening {
    fn default() -> Self {
        Self {
            user_namespace: true,
            seccomp: true,
            no_new_privileges: true,
            drop_capabilities: true,
            mask_kernel_files: true,
            new_keyring: true,
            close_descriptors: true,
            no_devices_or_setuid: true,
            links_stay_inside: true,
            own_program_stays_outside: true,
            process_namespace: true,
            ipc_namespace: true,
            host_name_namespace: true,
            cgroup_namespace: true,
        }
    }
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

/// Folders of the host that a container sees as one, and may change without changing any of them but `upper`. All paths are
/// absolute.
///
/// The folder itself has the owner and the mode that `upper` has on disk, everything in it those that it has in its
/// folder. Afterwards `upper` holds what was written, and the kernel's notes of what was removed, replaced or renamed:
/// [`super::overlay_view`] understands them. What is mounted below one of the folders is not seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayMount {
    /// Folders that stay as they are, the topmost first; from 1 to 12. Nobody may write to them meanwhile.
    pub lowers: Vec<PathBuf>,
    /// The folder that takes the changes. No two overlays of running containers may share it, or `work`.
    pub upper: PathBuf,
    /// An empty folder beside `upper`.
    pub work: PathBuf,
    /// A path inside; made when missing, and never outside the root whatever links are there.
    pub target: PathBuf,
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
