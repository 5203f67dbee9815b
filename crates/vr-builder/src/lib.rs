//! Builds: an app's files, run through one or more buildpacks in a container, become a tarball.
//!
//! [`build`](build()) does a whole build, [`shell`] opens a shell where one would run, [`clean`] drops caches. The parts
//! are apart: [`repositories`] has the mirrors that files are checked out of, `choice` which buildpacks are used,
//! `cache` what buildpacks keep between builds and `kept` how much that may be, `workspace` the files of one run and
//! its container, [`slugignore`] what an app wants left out, `output` what a build leaves behind.
//!
//! This crate must not know of releases, of the server, or of how a container is made.

mod build;
mod cache;
mod choice;
pub mod cli;
mod error;
mod folders;
mod kept;
mod output;
pub mod repositories;
mod shell;
pub mod slugignore;
mod workspace;

pub use build::{BuildOptions, BuildSummary, build};
pub use error::BuildError;
pub use folders::Folders;
pub use kept::{Cleaned, Removed, clean};
pub use shell::shell;
