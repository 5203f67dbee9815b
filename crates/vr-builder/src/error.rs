//! Why there is no build.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use vr_common::archive::ArchiveError;
use vr_common::exit;
use vr_common::lock::LockError;
use vr_common::vcs::VcsError;
use vr_common::yaml::YamlError;
use vr_runner::container::ContainerError;
use vr_runner::users::UserError;

use vr_runner::image::ImageError;
use vr_runner::job::Interruption;

/// Why there is no build.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The caller is not root.
    #[error("only root can build: builds run in containers")]
    NotRoot,
    /// `build.yaml` is wrong, or `build_result.yaml` cannot be written.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// The build user does not exist.
    #[error("user")]
    User(#[from] UserError),
    /// A checkout cannot be made.
    #[error(transparent)]
    Vcs(#[from] VcsError),
    /// The OS image cannot be brought into place.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No `bin/detect` said yes.
    #[error("no buildpack matched: tried {}", .tried.join(", "))]
    NoBuildpack {
        /// The buildpacks' names, in the order in which they were asked.
        tried: Vec<String>,
    },
    /// `bin/compile` failed.
    #[error("compile failed: bin/compile of {buildpack} ended with {status}")]
    Compile {
        /// The buildpack's name.
        buildpack: String,
        /// How it ended.
        status: String,
        /// Its output.
        log: PathBuf,
    },
    /// `bin/release` failed.
    #[error("release failed: bin/release of {buildpack} {reason}")]
    Release {
        /// The buildpack's name.
        buildpack: String,
        /// How.
        reason: String,
        /// The output of the compile step before it.
        log: PathBuf,
    },
    /// The build took too long.
    #[error("the build took longer than {} and was stopped", humantime::format_duration(*limit))]
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

impl BuildError {
    /// For `map_err`: what was tried on which path.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// What vbuild exits with: 2 bad input, 3 no buildpack matched, 4 compile or release failed, 5 a limit was hit,
    /// 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Yaml(_)
            | Self::User(UserError::UnknownUser(_) | UserError::UnknownGroup(_))
            | Self::Vcs(
                VcsError::BadUrl { .. } | VcsError::BadRevision { .. } | VcsError::UnknownRevision { .. },
            ) => exit::BAD_INPUT,
            Self::NoBuildpack { .. } => 3,
            Self::Compile { .. } | Self::Release { .. } => 4,
            Self::Timeout { .. } | Self::Vcs(VcsError::TimedOut { .. }) => 5,
            _ => exit::FAILED,
        }
    }

    /// What may help, if anything is known to.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Compile { log, .. } | Self::Release { log, .. } => {
                Some(format!("the whole output is in {}", log.display()))
            }
            Self::NoBuildpack { .. } => {
                Some("set buildpack_url to use a buildpack without asking its bin/detect".to_owned())
            }
            Self::Timeout { .. } => Some("--timeout allows more, such as --timeout 1h".to_owned()),
            _ => None,
        }
    }
}

impl From<Interruption> for BuildError {
    fn from(interruption: Interruption) -> Self {
        Self::Interrupted(interruption)
    }
}
