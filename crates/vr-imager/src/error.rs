//! Why there is no new image.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use vr_common::archive::ArchiveError;
use vr_common::exit;
use vr_common::fetch::FetchError;
use vr_common::yaml::YamlError;
use vr_runner::container::{ContainerError, ExitStatus};
use vr_runner::image::ImageError;
use vr_runner::job::Interruption;

/// Why there is no new image.
#[derive(Debug, Error)]
pub enum ImagerError {
    /// The caller is not root.
    #[error("only root can make images: scripts run in containers")]
    NotRoot,
    /// `image.yaml` is wrong, or the new one cannot be written.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// The base cannot be brought into place.
    #[error(transparent)]
    Base(#[from] ImageError),
    /// The script cannot be fetched.
    #[error("script_url")]
    Script(#[source] FetchError),
    /// The script failed.
    #[error("the script ended with {status}")]
    ScriptFailed {
        /// How it ended.
        status: ExitStatus,
        /// Its output.
        log: PathBuf,
    },
    /// The script took too long.
    #[error("the script took longer than {} and was stopped", humantime::format_duration(*limit))]
    Timeout {
        /// What it was allowed.
        limit: Duration,
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

impl ImagerError {
    /// For `map_err`: what was tried on which path.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// What vimage exits with: 2 bad input, 4 the script failed, 5 a limit was hit, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Yaml(_) => exit::BAD_INPUT,
            Self::Base(error) if error.is_bad_input() => exit::BAD_INPUT,
            Self::ScriptFailed { .. } => 4,
            Self::Timeout { .. } => 5,
            _ => exit::FAILED,
        }
    }

    /// What may help, if anything is known to.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::ScriptFailed { log, .. } => Some(format!("the whole output is in {}", log.display())),
            Self::Timeout { .. } => Some("--timeout allows more, such as --timeout 4h".to_owned()),
            _ => None,
        }
    }
}

impl From<Interruption> for ImagerError {
    fn from(interruption: Interruption) -> Self {
        Self::Interrupted(interruption)
    }
}
