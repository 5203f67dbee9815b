//! What every part of Velociraptor shares: names, file formats, files and archives, checkouts,
//! hashes, events and the types of both HTTP APIs.
//!
//! This crate must not know of containers, of SQL, or of balancers, and starts no process but git and hg
//! (the one place that builds a [`std::process::Command`] for other crates is [`process`]).

pub mod api;
pub mod archive;
pub mod build_data;
pub mod credentials;
pub mod events;
pub mod exit;
pub mod fetch;
pub mod hash;
pub mod host_api;
pub mod image_data;
pub mod lock;
pub mod log;
pub mod memory;
pub mod names;
pub mod paths;
pub mod proc_data;
pub mod process;
pub mod progress;
pub mod secret;
pub mod state_file;
pub mod supervisor;
pub mod vcs;
mod web_proxy;
pub mod xmlrpc;
pub mod yaml;
