//! Builds: an app's checkout, run through a buildpack in a container, becomes a tarball.
//!
//! [`build`](build()) does a whole build, [`shell`] opens a shell where one would run. The steps are apart:
//! [`checkout`] has the cached working copies and their locks, `workspace` the copies of one run and its container,
//! [`slugignore`] what an app wants left out, `output` what a build leaves behind.
//!
//! This crate must not know of releases, of the server, or of how a container is made.

mod build;
pub mod checkout;
pub mod cli;
mod error;
mod folders;
mod output;
mod shell;
pub mod slugignore;
mod workspace;

pub use build::{BuildOptions, BuildSummary, build};
pub use error::BuildError;
pub use folders::Folders;
pub use shell::shell;
