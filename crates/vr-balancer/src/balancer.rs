//! The interface that every backend implements.

use std::collections::{BTreeMap, HashSet};
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

/// How long nodes are waited for that are being drained, unless something else is said.
pub const GRACE_PERIOD: Duration = Duration::from_secs(30);

/// A change of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolChange {
    /// The pool.
    pub pool: PoolName,
    /// What is done with it.
    pub edit: Edit,
}

impl PoolChange {
    /// What it would do to a pool of a balancer without files that has these nodes; none stands for no pool.
    pub(crate) fn diff(&self, balancer: &str, nodes: Option<&[Node]>) -> Option<FileDiff> {
        let pool = &self.pool;
        let text = |nodes: Option<&[Node]>| {
            let nodes = nodes.map(|nodes| nodes.iter().map(|node| format!("{node}\n")).collect::<String>());
            nodes.map_or_else(String::new, |nodes| format!("pool {pool}\n{nodes}"))
        };
        let new = self.edit.apply(nodes);
        FileDiff::new(balancer, &format!("pool {pool}"), &text(nodes), &text(new.as_deref()))
    }
}

/// What is done with a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// These nodes are added; the pool is made if there is none.
    Add(Vec<Node>),
    /// These nodes are taken out.
    Delete(Vec<Node>),
    /// These become the only nodes; the pool is made if there is none.
    Set(Vec<Node>),
    /// The pool goes away.
    DeletePool,
    /// The pool goes away if it has no nodes.
    DeletePoolIfEmpty,
}

impl Edit {
    /// What becomes of a pool with these nodes; none stands for no pool. Nodes that stay keep their order.
    pub fn apply(&self, nodes: Option<&[Node]>) -> Option<Vec<Node>> {
        let there = || nodes.unwrap_or_default().iter();
        match self {
            Self::Add(new) => Some(unique(there().chain(new))),
            Self::Delete(gone) => nodes.map(|_| unique(there().filter(|node| !gone.contains(node)))),
            Self::Set(new) => Some(unique(there().filter(|node| new.contains(node)).chain(new))),
            Self::DeletePool => None,
            Self::DeletePoolIfEmpty => nodes.filter(|nodes| !nodes.is_empty()).map(<[Node]>::to_vec),
        }
    }
}

/// Each node once, where it came first.
pub(crate) fn unique<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<Node> {
    let mut seen = HashSet::new();
    nodes.filter(|node| seen.insert(*node)).cloned().collect()
}

/// What a change would do to one file of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileDiff {
    /// The host; the balancer itself if it has no hosts.
    pub host: String,
    /// The file; the pool if the balancer has no files.
    pub file: String,
    /// A unified diff, with the names of the host and the file in its head.
    pub diff: String,
}

impl FileDiff {
    /// The difference between two versions of a file; none if there is none.
    pub fn new(host: &str, file: &str, old: &str, new: &str) -> Option<Self> {
        if old == new {
            return None;
        }
        let title = format!("{host}:{file}");
        let diff = similar::TextDiff::from_lines(old, new).unified_diff().header(&title, &title).to_string();
        Some(Self { host: host.to_owned(), file: file.to_owned(), diff })
    }
}

/// How one host of a balancer stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SiteReport {
    /// The host; the balancer itself if it has no hosts.
    pub host: String,
    /// What is wrong with it, one clause each.
    pub problems: Vec<String>,
    /// What was done about it, one clause each.
    pub done: Vec<String>,
}

/// What came of [`Balancer::sync`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SyncReport {
    /// Every host.
    pub hosts: Vec<SiteReport>,
    /// What would be changed; only of a dry run.
    pub diffs: Vec<FileDiff>,
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

    /// All pools, each with its nodes.
    async fn pools_with_nodes(&self) -> Result<BTreeMap<PoolName, Vec<Node>>, BalancerError> {
        let mut pools = BTreeMap::new();
        for pool in self.list_pools().await? {
            let nodes = self.get_nodes(&pool).await?;
            pools.insert(pool, nodes);
        }
        Ok(pools)
    }

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

    /// How long nodes of this pool are waited for, as its settings say; none if they say nothing.
    fn grace_period(&self, _pool: &PoolName) -> Option<Duration> {
        None
    }

    /// What a change would do, without doing it.
    async fn preview(&self, change: &PoolChange) -> Result<Vec<FileDiff>, BalancerError> {
        let pool = &change.pool;
        let old =
            if self.list_pools().await?.contains(pool) { Some(self.get_nodes(pool).await?) } else { None };
        Ok(change.diff(self.name(), old.as_deref()).into_iter().collect())
    }

    /// Asks every host whether it can do its work, and whether all have the same. A host with problems is no error.
    async fn check(&self) -> Result<Vec<SiteReport>, BalancerError> {
        let mut problems = Vec::new();
        match self.list_pools().await {
            Ok(pools) => {
                for pool in pools {
                    if let Some(problem) = self.pool_problem(&pool).await? {
                        problems.push(format!("pool {pool} is not served: {problem}"));
                    }
                }
            }
            Err(error) => problems.push(vr_common::exit::chain(&error)),
        }
        Ok(vec![SiteReport { host: self.name().to_owned(), problems, done: Vec::new() }])
    }

    /// Makes all hosts serve the same: of each pool what `from` has, or else what most of them have. Repairs what was
    /// left behind by a change whose maker died. With `dry_run` it says only what it would do.
    async fn sync(&self, from: Option<&str>, dry_run: bool) -> Result<SyncReport, BalancerError> {
        let (_, _) = (from, dry_run);
        Ok(SyncReport { hosts: self.check().await?, diffs: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ports: &[u16]) -> Vec<Node> {
        ports.iter().map(|port| format!("h:{port}").parse().unwrap()).collect()
    }

    #[test]
    fn edits_keep_the_order_of_what_stays() {
        let there = nodes(&[2, 1, 3]);
        let apply = |edit: Edit| edit.apply(Some(&there));
        assert_eq!(apply(Edit::Add(nodes(&[4, 1, 4]))), Some(nodes(&[2, 1, 3, 4])));
        assert_eq!(apply(Edit::Delete(nodes(&[1, 9]))), Some(nodes(&[2, 3])));
        assert_eq!(apply(Edit::Set(nodes(&[4, 3, 2]))), Some(nodes(&[2, 3, 4])));
        assert_eq!((apply(Edit::DeletePool), apply(Edit::DeletePoolIfEmpty)), (None, Some(there.clone())));
        assert_eq!(Edit::Delete(nodes(&[1])).apply(None), None);
        assert_eq!(Edit::Add(Vec::new()).apply(None), Some(Vec::new()));
        assert_eq!(Edit::DeletePoolIfEmpty.apply(Some(&[])), None);
    }

    #[test]
    fn a_diff_names_host_and_file() {
        assert_eq!(FileDiff::new("h", "f", "a\n", "a\n"), None);
        let diff = FileDiff::new("h", "/f", "a\nb\n", "a\nc\n").unwrap();
        assert_eq!(diff.diff, "--- h:/f\n+++ h:/f\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n");
    }
}
