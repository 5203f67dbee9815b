//! Commands and files on other machines, over SSH.
//!
//! [`SshHost`] is a host. It connects when there is something to do, keeps the connection for a while, and runs
//! [`Command`]s over it, as many at once as are wanted. Every call has a deadline: a host that is gone, frozen or cut
//! off costs no more than that.
//!
//! The host's key is always checked (`known_hosts`), secrets are in no message and in no list of processes, and a
//! command that nobody waits for any more is ended.

mod authentication;
mod command;
mod connection;
mod error;
mod files;
mod host;
mod known_hosts;
mod lock;
mod process;
mod settings;

pub use command::{Command, OUTPUT_LIMIT, Output, Status, TIMEOUT};
pub use error::{SshError, UnknownHostKey};
pub use files::As;
pub use host::{Running, SshHost};
pub use lock::Lock;
pub use process::Chunk;
pub use settings::{HostKeyCheck, SshSettings, Sudo};
