//! Why a container could not be made or watched.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a container could not be made or watched.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// The caller has more than one thread, so it cannot be copied safely.
    #[error("container {name}: it must be started by a process with a single thread, this one has {threads}")]
    Threads {
        /// The container.
        name: String,
        /// How many threads there are.
        threads: usize,
    },
    /// An ordinary user makes containers by way of a user namespace, and may not have one.
    #[error(
        "container {name}: this user may not make user namespaces, which containers need without root (see the kernel's \
         user.max_user_namespaces and kernel.unprivileged_userns_clone, and AppArmor)"
    )]
    NoUserNamespace {
        /// The container.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The description cannot be carried out.
    #[error("container {name}: {reason}")]
    Spec {
        /// The container.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A system call of the parent failed.
    #[error("container {name}: cannot {step}")]
    System {
        /// The container.
        name: String,
        /// What was to be done.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A limit was asked for that this host cannot keep.
    #[error("container {name}: cannot set its limits: this host has no cgroup controller {controller}")]
    NoController {
        /// The container.
        name: String,
        /// The kernel's name for it.
        controller: &'static str,
    },
    /// A limit was asked for, and the control groups cannot be used.
    #[error("container {name}: cannot set its limits: cannot {step} {}", path.display())]
    Cgroup {
        /// The container.
        name: String,
        /// What was to be done.
        step: &'static str,
        /// With which group or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A step inside the new container failed; the text names the step, the path and the reason.
    #[error("container {name}: {message}")]
    Setup {
        /// The container.
        name: String,
        /// What failed, on which path, and why.
        message: String,
    },
    /// It was made, but its program cannot be run.
    #[error("container {name}: {message}")]
    Program {
        /// The container.
        name: String,
        /// Which program, and why.
        message: String,
    },
    /// Its root was not ready in time.
    #[error("container {name}: its mounts were not ready within {seconds} s")]
    Slow {
        /// The container.
        name: String,
        /// The deadline.
        seconds: u64,
    },
    /// Folders cannot be shown as an overlay of them.
    #[error("cannot show {} and what is below it as one folder: {reason}", folder.display())]
    View {
        /// The topmost folder.
        folder: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A path inside a root cannot be opened.
    #[error("cannot open {} in {}", path.display(), root.display())]
    Open {
        /// The root.
        root: PathBuf,
        /// The path in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
