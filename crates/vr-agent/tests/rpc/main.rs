//! The agent as a Supervisor: Debian's `supervisorctl` and the published Python client, both as they are, and callers who
//! mean no good.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../harness/mod.rs"]
mod harness;

mod hostile;
mod methods;
mod parts;
mod python_client;
mod supervisorctl;
mod tail;
