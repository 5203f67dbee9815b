//! The interface that every backend implements.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use vr_common::names::{Node, PoolName};

use crate::error::BalancerError;

/// What is still open on a node that should be drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReport {
    /// The node.
    pub node: Node,
    /// Requests and tunnels (WebSockets) of this pool that are still open on it.
    pub open: u64,
    /// The node is in the pool, so it still gets requests and was not waited for.
    pub in_pool: bool,
}

impl DrainReport {
    /// Whether the node can be stopped without anybody noticing.
    pub fn is_drained(&self) -> bool {
        self.open == 0 && !self.in_pool
    }
}

/// A load balancer with pools of nodes. Every method may be repeated and may be called from many tasks at once:
/// the changes of one pool are made one after the other and none is lost.
///
/// Every call has a deadline of its own and ends with an error that names the balancer and the pool.
#[async_trait]
pub trait Balancer: Send + Sync {
    /// The name it has in the settings.
    fn name(&self) -> &str;

    /// The pools that exist, sorted.
    async fn list_pools(&self) -> Result<Vec<PoolName>, BalancerError>;

    /// A pool's nodes in the order in which they were added; none for an unknown pool.
    async fn get_nodes(&self, pool: &PoolName) -> Result<Vec<Node>, BalancerError>;

    /// Adds nodes and makes the pool if there is none; a node that is there already is no error.
    /// Returns when the balancer really sends requests to them; in a pool with a [problem](Self::pool_problem), when it
    /// will do so as soon as that is over.
    async fn add_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), BalancerError>;

    /// Takes nodes out: once this returns, they get no new request. What they are answering goes on to its end,
    /// unless `close_after_grace` is given: then whatever is open after that time is cut off.
    /// An unknown pool or node is no error.
    async fn delete_nodes(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        close_after_grace: Option<Duration>,
    ) -> Result<(), BalancerError>;

    /// Takes out all nodes and the pool itself; an unknown pool is no error.
    async fn delete_pool(&self, pool: &PoolName) -> Result<(), BalancerError>;

    /// Deletes the pool if it has no nodes, and says whether there is no such pool now.
    async fn delete_pool_if_empty(&self, pool: &PoolName) -> Result<bool, BalancerError>;

    /// Makes these the pool's nodes: adds the new ones first, then takes out the stale ones and returns those.
    async fn set_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<Vec<Node>, BalancerError> {
        let mut stale = self.get_nodes(pool).await?;
        stale.retain(|node| !nodes.contains(node));
        self.add_nodes(pool, nodes).await?;
        if !stale.is_empty() {
            self.delete_nodes(pool, &stale, None).await?;
        }
        Ok(stale)
    }

    /// Waits until nothing is open any more on nodes that were taken out of the pool, or the grace period is over,
    /// and says how each node stands, in the order given. A node that was never in the pool is drained.
    async fn wait_drained(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        grace: Duration,
    ) -> Result<Vec<DrainReport>, BalancerError>;

    /// The `host:port` at which the pool can be reached, if the backend decides about it.
    async fn pool_address(&self, pool: &PoolName) -> Result<Option<String>, BalancerError>;

    /// What keeps an existing pool from being served, as half a sentence; none if all is well, or if the backend
    /// cannot tell.
    async fn pool_problem(&self, _pool: &PoolName) -> Result<Option<String>, BalancerError> {
        Ok(None)
    }
}
