//! Containers: what one is ([`ContainerSpec`]) and how it is made and watched ([`Container`], [`Running`]).
//!
//! A container is a process tree with its own mounts, process numbers, System V IPC and host name. Its first
//! process is a small init of ours, which lives as long as the program does and dies with its parent, so that
//! nothing is ever left over. This module owns every namespace, mount, capability and control group call of the project and all
//! of its `unsafe`; it must not know what a proc, a build or an image is.
//!
//! The caller has to be single-threaded when it starts a container (it is copied with `fork`'s semantics);
//! [`Container::start`] checks it.

mod capabilities;
mod cgroup;
mod channel;
mod error;
mod identities;
mod init;
mod limits;
mod lxc;
mod mounts;
mod overlay;
mod own_program;
mod place;
mod root;
mod running;
mod seccomp;
mod signals;
mod spec;
#[allow(unsafe_code, reason = "the system calls that neither std, nix nor rustix offers as safe functions")]
mod sys;
mod terminal;
mod upper;

pub use cgroup::{clear_left_groups, counts_swap, why_no_limits};
pub use error::ContainerError;
pub use limits::{BadSize, Limits, Size};
pub use lxc::write_config as write_lxc_config;
pub use overlay::overlay_view;
pub use own_program::run_from_a_copy;
pub use place::{empty_file_instead_of_link, open_beneath, read_beneath};
pub(crate) use running::read_rest;
pub use running::{Container, ExitStatus, Running};
pub(crate) use signals::WatchedSignals;
pub use spec::{
    BadEngine, BindMount, Capabilities, ContainerSpec, Credentials, Engine, Hardening, Network, OverlayMount,
    Program, RootFs, Streams, System,
};
pub(crate) use sys::forget_code;
pub use terminal::run_in_the_foreground;
pub use upper::{Upper, can_be_upper};
