//! What a proc is on a host, and the container that it runs in.
//!
//! [`container`] knows namespaces, mounts and capabilities and nothing of procs; [`users`] finds out who a
//! container's program is; [`proc`] knows what `proc.yaml` asks for and nothing of system calls.
//! `vr-builder` and `vr-imager` make their containers with [`container`] too.
//!
//! This crate must not know of swarms, of the store, or of who asked.

pub mod check;
pub mod cli;
pub mod container;
pub mod image;
pub mod job;
pub mod proc;
pub mod tarballs;
pub mod users;
