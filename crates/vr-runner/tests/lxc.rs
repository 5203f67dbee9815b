//! The suite of real procs once more, with the engine `lxc`: each module here is a test binary of its own with the
//! engine `own`, see `support::engine`. Needs root, LXC 4 or later, and what those need.

#![allow(clippy::duplicate_mod, reason = "each of the binaries has the shared part for itself")]

#[path = "limits.rs"]
mod limits;
#[path = "run.rs"]
mod run;
#[path = "setup.rs"]
mod setup;
#[path = "uptest.rs"]
mod uptest;
