//! The backend that routes nothing: pools in memory, for trying things and for tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use vr_common::names::{Node, PoolName};

use crate::balancer::{Balancer, DrainReport};
use crate::error::BalancerError;

/// Pools that live as long as this value.
#[derive(Debug)]
pub struct DummyBalancer {
    name: String,
    pools: Mutex<BTreeMap<PoolName, Vec<Node>>>,
}

impl DummyBalancer {
    /// A balancer without pools.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), pools: Mutex::default() }
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<PoolName, Vec<Node>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Balancer for DummyBalancer {
    fn name(&self) -> &str {
        &self.name
    }

    async fn list_pools(&self) -> Result<Vec<PoolName>, BalancerError> {
        Ok(self.pools().keys().cloned().collect())
    }

    async fn get_nodes(&self, pool: &PoolName) -> Result<Vec<Node>, BalancerError> {
        Ok(self.pools().get(pool).cloned().unwrap_or_default())
    }

    async fn add_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), BalancerError> {
        let mut pools = self.pools();
        let present = pools.entry(pool.clone()).or_default();
        for node in nodes {
            if !present.contains(node) {
                present.push(node.clone());
            }
        }
        Ok(())
    }

    async fn delete_nodes(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        _close_after_grace: Option<Duration>,
    ) -> Result<(), BalancerError> {
        if let Some(present) = self.pools().get_mut(pool) {
            present.retain(|node| !nodes.contains(node));
        }
        Ok(())
    }

    async fn delete_pool(&self, pool: &PoolName) -> Result<(), BalancerError> {
        self.pools().remove(pool);
        Ok(())
    }

    async fn delete_pool_if_empty(&self, pool: &PoolName) -> Result<bool, BalancerError> {
        let mut pools = self.pools();
        if pools.get(pool).is_some_and(Vec::is_empty) {
            pools.remove(pool);
        }
        Ok(!pools.contains_key(pool))
    }

    async fn wait_drained(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        _grace: Duration,
    ) -> Result<Vec<DrainReport>, BalancerError> {
        // No request ever passes through here, so nothing can be open.
        let present = self.get_nodes(pool).await?;
        let report =
            |node: &Node| DrainReport { node: node.clone(), open: 0, in_pool: present.contains(node) };
        Ok(nodes.iter().map(report).collect())
    }

    async fn pool_address(&self, _pool: &PoolName) -> Result<Option<String>, BalancerError> {
        Ok(None)
    }
}
