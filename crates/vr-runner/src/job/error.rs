//! What every job can fail with, whatever it is for.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use vr_common::archive::ArchiveError;
use vr_common::exit;
use vr_common::lock::LockError;
use vr_common::yaml::YamlError;

use super::{Interruption, size};
use crate::container::ContainerError;
use crate::image::ImageError;

/// Exit code of a job that hit one of its limits.
pub const LIMIT_HIT: u8 = 5;

/// What every job can fail with.
#[derive(Debug, Error)]
pub enum JobError {
    /// The caller is not root.
    #[error("only root can do this: it runs untrusted programs in containers")]
    NotRoot,
    /// The YAML file is wrong, or the new one cannot be written.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// An OS image cannot be brought into place.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The container took too long.
    #[error("{what} took longer than {} and was stopped", humantime::format_duration(*limit))]
    Timeout {
        /// What ran, such as `the build`.
        what: &'static str,
        /// What it was allowed.
        limit: Duration,
    },
    /// A program in the container was ended, or failed, for want of memory.
    #[error("{what} was {reason}")]
    OutOfMemory {
        /// What ran.
        what: &'static str,
        /// What the kernel did, with the limit.
        reason: String,
    },
    /// A program in the container failed for want of processes.
    #[error("{what} ran {reason}")]
    OutOfProcesses {
        /// What ran.
        what: &'static str,
        /// What the kernel did, with the limit.
        reason: String,
    },
    /// The container wrote too much.
    #[error("{what} took more than {} on disk", size(*limit))]
    OutOfDisk {
        /// What ran.
        what: &'static str,
        /// What it was allowed, in bytes.
        limit: u64,
    },
    /// Somebody else held a lock for too long.
    #[error("gave up after {} of waiting for {holder}", humantime::format_duration(*waited))]
    LockTimeout {
        /// Who holds it, since when.
        holder: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Somebody stopped it.
    #[error("stopped by {0}")]
    Interrupted(Interruption),
    /// The container cannot be made.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The tarball cannot be made.
    #[error("cannot make the tarball")]
    Pack(#[source] ArchiveError),
    /// A lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file or folder cannot be made, read or removed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, such as `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl JobError {
    /// For `map_err`: what was tried on which path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// What the program exits with: 2 bad input, 5 a limit was hit, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Yaml(_) => exit::BAD_INPUT,
            Self::Image(error) if error.is_bad_input() => exit::BAD_INPUT,
            Self::Timeout { .. }
            | Self::OutOfMemory { .. }
            | Self::OutOfProcesses { .. }
            | Self::OutOfDisk { .. }
            | Self::LockTimeout { .. }
            | Self::Pack(ArchiveError::TooLarge { .. } | ArchiveError::TooMany { .. }) => LIMIT_HIT,
            _ => exit::FAILED,
        }
    }

    /// What may help, if anything is known to.
    pub fn hint(&self) -> Option<String> {
        let option = match self {
            Self::Timeout { .. } => "--timeout allows more, such as --timeout 4h",
            Self::OutOfMemory { .. } => "--memory allows more, such as --memory 4G",
            Self::OutOfProcesses { .. } => "--processes allows more, such as --processes 20000",
            Self::OutOfDisk { .. } => "--disk allows more, such as --disk 40G",
            Self::LockTimeout { .. } => "--lock-timeout waits longer; without it there is no end",
            _ => return None,
        };
        Some(option.to_owned())
    }
}

impl From<Interruption> for JobError {
    fn from(interruption: Interruption) -> Self {
        Self::Interrupted(interruption)
    }
}
