//! OS images: a base tarball, changed by a script that runs as root in a container, becomes a new tarball.
//!
//! [`build`](build()) makes one, [`shell`] opens a shell where the script would run. The base is unpacked once and
//! shared with vrun; what a script changes goes to an overlay's upper folder, and the two are packed as the overlay shows
//! them.
//!
//! This crate must not know of stacks, of the server, or of how a container is made.

mod build;
pub mod cli;
mod error;
mod output;
mod script;
mod workspace;

pub use build::{Format, ImageOptions, ImageSummary, build, shell};
pub use error::ImagerError;
