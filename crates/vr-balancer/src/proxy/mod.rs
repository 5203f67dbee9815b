//! The built-in proxy: a process of its own that spreads HTTP/1.1 requests over the nodes of pools.
//!
//! The way a request travels: `listener` (clients' connections) → `forward` (one request, its retries) → `pool`
//! (which node) → `upstream` (a node's connections and counters) → `body` or `tunnel` (what flows afterwards).
//! The way a change travels: `control` (JSON over HTTP on a unix socket; its types are in [`wire`]) → `registry`
//! (one change after the other) → `state` (on disk first) → `pool` (then in effect for the very next request).
//! [`client`] is the other end of the control socket.
//!
//! The data plane takes no lock that a change holds, and knows nothing of files or of the control socket.

mod body;
pub mod client;
mod control;
mod forward;
mod headers;
mod listener;
mod page;
mod pool;
mod registry;
mod serve;
mod state;
mod tunnel;
mod upstream;
mod warnings;
pub mod wire;

pub use registry::ChangeError;
pub use serve::{ServeError, ServeOptions, serve};
pub use state::{StateError, StateFile};

use std::time::Duration;

/// How long the data plane waits for whom, and how much it takes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For a connection to a node; after that the next node is tried.
    pub connect: Duration,
    /// For all attempts of one request to reach some node.
    pub connect_total: Duration,
    /// For the first byte of a node's answer, counted from the last byte of the request that moved.
    pub answer: Duration,
    /// For the next piece of a body in either direction, and for a client to take what is sent to it.
    pub body_idle: Duration,
    /// For the next byte in a tunnel (WebSocket), in any direction.
    pub tunnel_idle: Duration,
    /// For the head of a request to arrive whole, counted from the end of the last one on the connection.
    pub head: Duration,
    /// The largest head of a request or an answer, in bytes.
    pub head_bytes: usize,
    /// The most header lines in a head; so many that only strange heads meet this limit before the one in bytes.
    pub head_lines: usize,
    /// For open requests and tunnels to end after the process was asked to stop.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            connect_total: Duration::from_secs(15),
            answer: Duration::from_secs(300),
            body_idle: Duration::from_secs(300),
            tunnel_idle: Duration::from_secs(3600),
            head: Duration::from_secs(60),
            head_bytes: 64 << 10,
            head_lines: 1000,
            stop: Duration::from_secs(30),
        }
    }
}
