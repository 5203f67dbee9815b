//! Why a proc could not be set up, run, tested or taken down.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vr_common::archive::ArchiveError;
use vr_common::exit;
use vr_common::lock::LockError;
use vr_common::yaml::YamlError;

use crate::container::{BadSize, ContainerError};
use crate::image::ImageError;
use crate::tarballs::TarballError;
use crate::users::UserError;

/// Why a proc could not be set up, run, tested or taken down.
#[derive(Debug, Error)]
pub enum ProcError {
    /// Another command has the proc.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A YAML file is bad.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// The build cannot be fetched or unpacked.
    #[error(transparent)]
    Build(#[from] TarballError),
    /// The OS image cannot be brought into place.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The build's folder cannot be changed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The user or group does not exist.
    #[error(transparent)]
    User(#[from] UserError),
    /// The container could not be made.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A file of the proc cannot be read or written.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// What was to be done.
        step: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `app_folder` is not a folder.
    #[error("{}: app_folder {} is not a folder of this host", file.display(), folder.display())]
    NoAppFolder {
        /// The `proc.yaml`.
        file: PathBuf,
        /// The value.
        folder: PathBuf,
    },
    /// The names together make too long a file name.
    #[error("{}: the container name {name:?} is longer than 200 bytes", file.display())]
    LongName {
        /// The `proc.yaml`.
        file: PathBuf,
        /// The name.
        name: String,
    },
    /// There is no Procfile to find the command in.
    #[error("the build of {name} has no Procfile, and there is no cmd")]
    NoProcfile {
        /// The proc.
        name: String,
    },
    /// The Procfile has no such entry.
    #[error("the Procfile of {name} has no entry {proc_name:?}; it has {entries}")]
    NoProcfileEntry {
        /// The proc.
        name: String,
        /// The entry that was looked for.
        proc_name: String,
        /// The entries that are there.
        entries: String,
    },
    /// The Procfile cannot be used.
    #[error("the Procfile of {name} is not usable: {reason}")]
    BadProcfile {
        /// The proc.
        name: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// Neither a build nor a folder, so there is no Procfile.
    #[error("{name} has neither build_url nor app_folder, so it needs cmd")]
    NoCommand {
        /// The proc.
        name: String,
    },
    /// The command is there and says nothing.
    #[error("the cmd of {name} is empty")]
    EmptyCommand {
        /// The proc.
        name: String,
    },
    /// A text cannot be written into a shell script.
    #[error("{what} of {name} holds a zero byte")]
    ZeroByte {
        /// The proc.
        name: String,
        /// Which text.
        what: String,
    },
    /// A memory limit is not an amount of memory.
    #[error("{key} of {name}")]
    BadLimit {
        /// The proc.
        name: String,
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        source: BadSize,
    },
    /// The memory limits contradict each other.
    #[error(
        "memsw_limit of {name}: {both} of memory and swap is less than mem_limit, {memory} of memory alone"
    )]
    SmallSwapLimit {
        /// The proc.
        name: String,
        /// `mem_limit`.
        memory: String,
        /// `memsw_limit`.
        both: String,
    },
    /// A volume's folder is missing.
    #[error("volume {}: there is no such folder or file on this host", host_dir.display())]
    NoVolume {
        /// The folder.
        host_dir: PathBuf,
    },
    /// There is no `proc_name`, so it is not known which uptests to run.
    #[error("{name} has no proc_name, which says where its uptests are")]
    NoProcName {
        /// The proc.
        name: String,
    },
    /// A killed run's container does not end.
    #[error("the last container of {} (process {process}) is still ending", folder.display())]
    StillEnding {
        /// The proc's folder.
        folder: PathBuf,
        /// Its first process's number.
        process: String,
    },
    /// What setup wrote down makes no sense.
    #[error("{} is not what setup writes", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Nor does it say which build the app had.
    #[error("{} is not what setup writes, so it is not known which files are the app's own", path.display())]
    LostRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The proc's folder cannot lie over its image.
    #[error("{} is on {file_system}, over which no image can be used", folder.display())]
    NoOverlay {
        /// The proc's folder.
        folder: PathBuf,
        /// What it is on, with its article.
        file_system: &'static str,
    },
    /// Setup was not done.
    #[error("{name} is not set up")]
    NotSetUp {
        /// The proc.
        name: String,
    },
}

impl ProcError {
    /// The exit code: [`exit::BAD_INPUT`] when the proc's files ask for something that cannot be, else
    /// [`exit::FAILED`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Yaml(_)
            | Self::User(UserError::UnknownUser(_) | UserError::UnknownGroup(_))
            | Self::NoAppFolder { .. }
            | Self::LongName { .. }
            | Self::Build(TarballError::NoFileName { .. })
            | Self::NoProcfile { .. }
            | Self::NoProcfileEntry { .. }
            | Self::BadProcfile { .. }
            | Self::NoCommand { .. }
            | Self::EmptyCommand { .. }
            | Self::ZeroByte { .. }
            | Self::BadLimit { .. }
            | Self::SmallSwapLimit { .. }
            | Self::NoVolume { .. }
            | Self::NoProcName { .. } => exit::BAD_INPUT,
            Self::Image(error) if error.is_bad_input() => exit::BAD_INPUT,
            Self::Lock(LockError::Io { .. }) => exit::BAD_INPUT,
            _ => exit::FAILED,
        }
    }

    /// What would help, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotSetUp { .. } | Self::BadRecord { .. } => Some("run `vrun setup FILE` first"),
            Self::LostRecord { .. } => {
                Some("`vrun teardown FILE` removes all files of the proc; then run `vrun setup FILE`")
            }
            Self::NoOverlay { .. } => Some(
                "set VR_ROOT to a folder of a local file system such as ext4, xfs or btrfs, or mount one there",
            ),
            Self::Container(ContainerError::NoUserNamespace { .. }) => Some("run it as root"),
            Self::Container(ContainerError::NoController { .. } | ContainerError::Cgroup { .. }) => Some(
                "limits need control groups mounted and writable; without limits in its file the proc runs",
            ),
            Self::Io { source, .. } | Self::Image(ImageError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied
                    && !rustix::process::geteuid().is_root() =>
            {
                Some("without root, set VR_ROOT to a folder of yours, such as ~/apps")
            }
            _ => None,
        }
    }
}
