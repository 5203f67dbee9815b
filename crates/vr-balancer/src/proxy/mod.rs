//! The built-in proxy: a process of its own that spreads HTTP requests over the nodes of pools.
//!
//! The way a request travels: `listener` (an address) → `connection` (PROXY protocol, `tls`, HTTP/1.1 or HTTP/2) →
//! `request` (which pool, by `routes`) → `forward` (its attempts) → `pool` (which node) → `upstream` and `connections`
//! (a node and the connections to it) → `body` or `tunnel` (what flows afterwards) → `exchange` (counted and logged).
//! The way a change travels: `control` (JSON over HTTP on a unix socket; its types are in [`wire`]) → `registry`
//! (one change after the other) → `state` (on disk first) → `pool` (then in effect for the very next request).
//! [`client`] is the other end of the control socket. What the operator says comes in through `arguments` and
//! `configuration` and is read again by `serve`, which also sees to files that change.
//!
//! The data plane takes no lock that a change holds, and knows nothing of files or of the control socket.

mod access_log;
mod admission;
pub(crate) mod arguments;
mod body;
mod changes;
pub mod client;
mod client_stream;
mod configuration;
mod connection;
mod connections;
mod control;
mod counters;
mod exchange;
mod files;
mod forward;
mod headers;
mod health;
mod listener;
mod metrics;
pub mod options;
mod page;
mod pool;
mod proxy_protocol;
mod registry;
mod request;
mod routes;
mod serve;
mod socket;
mod state;
mod streams;
mod tls;
mod tunnel;
mod upstream;
mod warnings;
pub mod wire;

pub use changes::ChangeError;
pub use configuration::{Configuration, ConfigurationError};
pub use serve::{ServeError, ServeOptions, Signal, serve};
pub use state::{PoolState, RoutesFile, StateError, StateFile};
pub use tls::TlsError;

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
    /// The largest head of a request or an answer, in bytes. Its lines are at most 100, as other proxies have it: hyper
    /// makes room for more of them for every head that is read, which takes a tenth of a small request's time.
    pub head_bytes: usize,
    /// For open requests and tunnels to end after the process was asked to stop.
    pub stop: Duration,
    /// The slowest that a client may send a body once it has used up `body_idle` in pauses, in bytes a second.
    pub min_body_rate: Option<u64>,
    /// The most connections of clients; further ones wait until there is room. As many as there can be open files for,
    /// if there is no number.
    pub max_connections: Option<usize>,
    /// The most of them from one address that is not a trusted proxy; further ones are closed at once.
    pub max_connections_per_client: Option<u32>,
    /// The most requests that one HTTP/2 connection may have open.
    pub max_streams: u32,
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
            stop: Duration::from_secs(30),
            min_body_rate: None,
            max_connections: None,
            max_connections_per_client: None,
            max_streams: 100,
        }
    }
}
