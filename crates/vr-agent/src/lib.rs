//! A host's agent: supervises procs by Supervisor's rules and answers the host API
//! ([`vr_common::host_api`]).
//!
//! A proc's parent is its own `vrun run`, which outlives the agent; what the agent knows of a proc is on
//! disk beside it, so that an agent that starts finds everything again.
//!
//! This crate must not know of containers, images or builds (that is vrun's work, called as a program),
//! nor of swarms, releases or the server's store.

pub mod address;
pub mod api;
pub mod changes;
pub mod check;
pub mod clean_up;
pub mod cli;
pub mod connection;
pub mod deadline;
pub mod document;
pub mod error;
pub mod files;
pub mod host;
pub mod host_info;
pub mod kept;
pub mod listener;
pub mod logs;
pub mod machine;
pub mod own_names;
pub mod places;
pub mod process;
pub mod publisher;
pub mod record;
pub mod rpc;
pub mod serve;
pub mod service_manager;
pub mod settings;
pub mod streams;
pub mod supervision;
pub mod tls;
pub mod usage;
pub mod vrun;
