//! Why there is no new image.

use std::path::PathBuf;

use thiserror::Error;
use vr_common::exit;
use vr_common::fetch::FetchError;
use vr_common::yaml::YamlError;
use vr_runner::container::{ContainerError, ExitStatus};
use vr_runner::image::ImageError;
use vr_runner::job::{Explained, JobError};

/// Exit code of a script that failed.
const SCRIPT_FAILED: u8 = 4;

/// Why there is no new image.
#[derive(Debug, Error)]
pub enum ImagerError {
    /// What every job can fail with.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The script cannot be fetched.
    #[error("script_url")]
    Script(#[source] FetchError),
    /// There is nothing in the script.
    #[error("script_url: {url} is empty")]
    EmptyScript {
        /// Where it is from, without credentials.
        url: String,
    },
    /// The base has no program to run the script with.
    #[error("the script is for {}, which the image {image} does not have", program.display().to_string().escape_debug())]
    NoInterpreter {
        /// The base.
        image: String,
        /// The program.
        program: PathBuf,
    },
    /// The base has no shell.
    #[error("the image {image} has neither /bin/bash nor /bin/sh")]
    NoShell {
        /// The base.
        image: String,
    },
    /// The script is a program that cannot be run.
    #[error("the script is a program that does not run here")]
    ProgramNotRun(#[source] ContainerError),
    /// The base has the program to run the script with, but it cannot be run.
    #[error("the script is for {}, which does not run in the image {image}", program.display().to_string().escape_debug())]
    InterpreterNotRun {
        /// The base.
        image: String,
        /// The program.
        program: PathBuf,
        /// Why not.
        source: ContainerError,
    },
    /// The base has a shell, but it cannot be run.
    #[error("the shell of the image {image} does not run")]
    ShellNotRun {
        /// The base.
        image: String,
        /// Why not.
        source: ContainerError,
    },
    /// The container could not be made with the base as its root.
    #[error("no container can be made of the image {image}")]
    NoContainer {
        /// The base.
        image: String,
        /// Why not.
        source: ContainerError,
    },
    /// The script failed.
    #[error("the script ended with {status}")]
    ScriptFailed {
        /// How it ended.
        status: ExitStatus,
    },
}

impl Explained for ImagerError {
    /// What vimage exits with: 2 bad input, 4 the script failed, 5 a limit was hit, 1 anything else.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Job(error) => error.exit_code(),
            Self::ScriptFailed { .. } => SCRIPT_FAILED,
            Self::Script(FetchError::BadSource { .. } | FetchError::TooLarge { .. })
            | Self::EmptyScript { .. }
            | Self::NoInterpreter { .. }
            | Self::NoShell { .. }
            | Self::ProgramNotRun(_)
            | Self::InterpreterNotRun { .. }
            | Self::ShellNotRun { .. } => exit::BAD_INPUT,
            // The base may be to blame, or the host.
            Self::Script(_) | Self::NoContainer { .. } => exit::FAILED,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Job(error) => return error.hint(),
            Self::NoInterpreter { program, .. }
                if program.as_os_str().as_encoded_bytes().ends_with(b"\r") =>
            {
                "the lines of the script end in CR LF, as on Windows, and the program's name in CR; they should end in LF"
            }
            Self::NoInterpreter { .. } => {
                "the base has to have it before the script runs: install it in an image of its own, or write the script for /bin/sh"
            }
            Self::ProgramNotRun(_) => {
                "it has to be for this kind of machine, and find its loader and libraries in the image"
            }
            Self::InterpreterNotRun { .. } | Self::ShellNotRun { .. } => {
                "the image has to have its loader and libraries, too, and for this kind of machine"
            }
            Self::NoContainer { .. } => {
                "dev, etc, proc, run, sys and tmp of an image have to be folders, or not to be there at all"
            }
            Self::ScriptFailed { status: ExitStatus::Code(127) } => {
                "exit code 127 is what shells say when there is no such program"
            }
            Self::ScriptFailed { .. } => "vimage shell shows the container as it was before the script ran",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

impl From<YamlError> for ImagerError {
    fn from(error: YamlError) -> Self {
        Self::Job(error.into())
    }
}

impl From<ImageError> for ImagerError {
    fn from(error: ImageError) -> Self {
        Self::Job(error.into())
    }
}

impl From<ContainerError> for ImagerError {
    fn from(error: ContainerError) -> Self {
        Self::Job(error.into())
    }
}
