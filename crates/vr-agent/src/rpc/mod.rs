//! Supervisor's XML-RPC, and its log tails, for the procs of this host: `supervisorctl` and other clients of Supervisor
//! take the agent for one. `docs/supervisor.md` says what is the same and what is not.
//!
//! A call that waits holds up nobody else, and what it began goes on when its caller hangs up. This module must not know
//! how a proc is started or stopped, only [`crate::host::Host`].

mod answer;
mod arguments;
mod blank_line;
mod calls;
mod configuration;
mod faults;
mod http;
mod login;
mod logs;
mod methods;
mod procs;
mod velociraptor;

pub use blank_line::WithoutBlankLine;
pub use http::router;
pub use login::{BadPassword, Login};
