//! Why there is no build.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vr_common::archive::ArchiveError;
use vr_common::exit;
use vr_common::vcs::VcsError;
use vr_common::yaml::YamlError;
use vr_runner::container::ContainerError;
use vr_runner::image::ImageError;
use vr_runner::job::{Explained, JobError, LIMIT_HIT};
use vr_runner::users::UserError;

/// Exit code of a build that no buildpack wants.
const NO_BUILDPACK: u8 = 3;
/// Exit code of a build whose buildpack failed.
const BUILDPACK_FAILED: u8 = 4;

/// Why there is no build.
#[derive(Debug, Error)]
pub enum BuildError {
    /// What every job can fail with.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The build user does not exist.
    #[error("user")]
    User(#[from] UserError),
    /// A checkout cannot be made.
    #[error(transparent)]
    Vcs(#[from] VcsError),
    /// The setting of how large caches may be is no size.
    #[error("{variable}: {reason}")]
    BadCacheMax {
        /// The environment variable.
        variable: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// No `bin/detect` said yes.
    #[error("no buildpack matched: tried {}", .tried.join(", "))]
    NoBuildpack {
        /// The buildpacks' names, in the order in which they were asked.
        tried: Vec<String>,
        /// What they said.
        said: String,
    },
    /// One of several buildpacks, which all have to, does not want the app.
    #[error("no buildpack matched: bin/detect of {buildpack}, which is one of buildpacks, says no")]
    Refused {
        /// Its name.
        buildpack: String,
        /// What it said.
        said: String,
    },
    /// `bin/compile` failed.
    #[error("compile failed: bin/compile of {buildpack} ended with {status}")]
    Compile {
        /// The buildpack's name.
        buildpack: String,
        /// How it ended.
        status: String,
    },
    /// `bin/release` failed.
    #[error("release failed: bin/release of {buildpack} {reason}")]
    Release {
        /// The buildpack's name.
        buildpack: String,
        /// How.
        reason: String,
    },
    /// The file `export` of a buildpack ended the whole build.
    #[error("compile failed: the file export of {buildpack} ended the build")]
    Export {
        /// The buildpack's name.
        buildpack: String,
    },
}

impl BuildError {
    /// For `map_err`: what was tried on which path.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let explained = JobError::io(action, path);
        move |source| Self::Job(explained(source))
    }

    /// For `map_err` of packing.
    pub(crate) fn pack(source: ArchiveError) -> Self {
        Self::Job(JobError::Pack(source))
    }
}

impl Explained for BuildError {
    /// What vbuild exits with: 2 bad input, 3 no buildpack matched, 4 compile or release failed, 5 a limit was hit,
    /// 1 anything else.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Job(error) => error.exit_code(),
            Self::User(UserError::UnknownUser(_) | UserError::UnknownGroup(_))
            | Self::BadCacheMax { .. }
            | Self::Vcs(
                VcsError::BadUrl { .. }
                | VcsError::BadRevision { .. }
                | VcsError::BadContent { .. }
                | VcsError::UnknownRevision { .. },
            ) => exit::BAD_INPUT,
            Self::NoBuildpack { .. } | Self::Refused { .. } => NO_BUILDPACK,
            Self::Compile { .. } | Self::Release { .. } | Self::Export { .. } => BUILDPACK_FAILED,
            Self::Vcs(VcsError::TimedOut { .. }) => LIMIT_HIT,
            Self::User(_) | Self::Vcs(_) => exit::FAILED,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Job(JobError::Pack(ArchiveError::TooLarge { .. } | ArchiveError::TooMany { .. })) => {
                "what the app does not need at run time can be named in .slugignore"
            }
            Self::Job(error) => return error.hint(),
            Self::NoBuildpack { .. } => "set buildpack_url to use a buildpack without asking its bin/detect",
            Self::Refused { .. } => "take it out of buildpacks, or give it what its bin/detect looks for",
            Self::Compile { .. } | Self::Release { .. } | Self::Export { .. } => {
                "vbuild shell opens a shell where this can be looked into; --no-cache builds with an empty cache"
            }
            Self::Vcs(VcsError::TimedOut { .. }) => "--timeout allows more, such as --timeout 1h",
            Self::Vcs(VcsError::Unreachable { said, .. }) if is_about_passwords(said) => {
                "passwords are never asked for: git and Mercurial have to find them in their own settings"
            }
            Self::Vcs(_) | Self::User(_) | Self::BadCacheMax { .. } => return None,
        };
        Some(text.to_owned())
    }

    fn said(&self) -> Option<&str> {
        match self {
            Self::NoBuildpack { said, .. } | Self::Refused { said, .. } => Some(said),
            _ => None,
        }
    }
}

/// Whether git or hg say that they were not let in.
fn is_about_passwords(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    ["password", "username", "authentication", "authorization", "permission denied"]
        .iter()
        .any(|word| said.contains(word))
}

impl From<YamlError> for BuildError {
    fn from(error: YamlError) -> Self {
        Self::Job(error.into())
    }
}

impl From<ImageError> for BuildError {
    fn from(error: ImageError) -> Self {
        Self::Job(error.into())
    }
}

impl From<ContainerError> for BuildError {
    fn from(error: ContainerError) -> Self {
        Self::Job(error.into())
    }
}
