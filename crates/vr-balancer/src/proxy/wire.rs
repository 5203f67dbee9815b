//! The JSON that the control socket speaks. Every answer that is not 200 is an [`ErrorBody`].

use serde::{Deserialize, Serialize};
use vr_common::names::{Node, PoolName};

use super::options::HostPattern;
use crate::balancer::DrainReport;

/// The largest request or answer, in bytes.
pub const MAX_BODY_BYTES: usize = 4 << 20;

/// `GET /v1/pools`.
#[derive(Debug, Serialize, Deserialize)]
pub struct PoolList {
    /// All pools, sorted by name.
    pub pools: Vec<PoolView>,
}

/// `GET /v1/pools/{pool}`, and the answer to `add` and `delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// The pool.
    pub pool: PoolName,
    /// The `ip:port` it listens on; null if there is no such pool, or if pools have no addresses of their own.
    pub address: Option<String>,
    /// Its nodes in the order in which they were added.
    pub nodes: Vec<Node>,
    /// Whether it is served. False if there is no such pool, and as long as another program has its address: then
    /// it can be changed as ever, and its nodes get requests as soon as the address is free.
    #[serde(default = "yes")]
    pub listening: bool,
}

/// What a proxy that does not say so means: it would not run, or not send requests there, otherwise.
fn yes() -> bool {
    true
}

/// Body of `POST /v1/pools/{pool}/add` and `…/set`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodesBody {
    /// The nodes to add, or those that shall be the pool's only ones.
    pub nodes: Vec<Node>,
}

/// Body of `POST /v1/pools/{pool}/delete`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteBody {
    /// The nodes to take out.
    pub nodes: Vec<Node>,
    /// After this many milliseconds, cut off what is still open on them; null or missing: never.
    #[serde(default)]
    pub close_after_ms: Option<u64>,
}

/// Answer to `POST /v1/pools/{pool}/set`.
#[derive(Debug, Serialize, Deserialize)]
pub struct SetAnswer {
    /// The pool as it is now.
    pub pool: PoolView,
    /// The nodes that were taken out.
    pub removed: Vec<Node>,
}

/// Answer to `DELETE /v1/pools/{pool}` and `DELETE /v1/pools/{pool}?if_empty=true`.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeletePoolAnswer {
    /// There is no such pool now.
    pub gone: bool,
}

/// Body of `POST /v1/pools/{pool}/drain`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainBody {
    /// The nodes to wait for.
    pub nodes: Vec<Node>,
    /// How long to wait, in milliseconds.
    pub grace_ms: u64,
}

/// Answer to `POST /v1/pools/{pool}/drain`.
#[derive(Debug, Serialize, Deserialize)]
pub struct DrainAnswer {
    /// One for each node asked for, in that order.
    pub reports: Vec<DrainReport>,
}

/// `GET /v1/stats`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stats {
    /// All pools, sorted by name.
    pub pools: Vec<PoolStats>,
    /// Nodes that were taken out and still have something open.
    pub draining: Vec<DrainingStats>,
}

/// A pool's counters.
#[derive(Debug, Serialize, Deserialize)]
pub struct PoolStats {
    /// The pool.
    pub pool: PoolName,
    /// Its nodes.
    pub nodes: Vec<NodeStats>,
}

/// The counters of a node that was taken out of its pool.
#[derive(Debug, Serialize, Deserialize)]
pub struct DrainingStats {
    /// The pool it was in; it may be gone.
    pub pool: PoolName,
    /// The node.
    #[serde(flatten)]
    pub stats: NodeStats,
}

/// A node's counters in one pool, since it was added.
#[derive(Debug, Serialize, Deserialize)]
pub struct NodeStats {
    /// The node.
    pub node: Node,
    /// Requests and tunnels that are open now.
    pub in_flight: u64,
    /// Requests given to it.
    pub total: u64,
    /// Connections that could not be made, and requests that it broke off or did not answer in time.
    pub failures: u64,
    /// It refused connections a moment ago and is left out while others are there.
    pub put_aside: bool,
    /// False if the pool's checks say that it is down, and it is left out while others are up.
    #[serde(default = "yes")]
    pub up: bool,
}

/// `GET /v1/routes`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RouteList {
    /// All routes, sorted by host.
    pub routes: Vec<RouteView>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteView {
    /// The host, as in `shop.example.org`, `*.example.org`, or `*` for all others.
    pub host: HostPattern,
    /// The pool that gets its requests. It answers 503 as long as there is no such pool.
    pub pool: PoolName,
    /// It stands in the configuration and cannot be changed here.
    pub configured: bool,
}

/// Body of `PUT /v1/routes/{host}`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteBody {
    /// The pool that gets the host's requests.
    pub pool: PoolName,
}

/// Any answer that is not 200.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One sentence for people.
    pub error: String,
}
