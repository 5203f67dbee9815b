//! The backend for Stingray traffic managers, once called ZXTM: pools are changed through their SOAP interface.
//!
//! The interface adds and removes nodes atomically, so that changes of several processes cannot undo each other. What
//! takes several calls (taking a node out, deleting a pool that is empty) is done for one pool at a time in this
//! process.
//!
//! Sources: the requests of the published client as they were recorded (`tests/data/stingray.json`), and the
//! description of the Pool interface (WSDL) that comes with that client.

mod envelope;
mod http;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ::http::StatusCode;
use async_trait::async_trait;
use thiserror::Error;
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};
use vr_common::secret::Secret;

pub use self::http::{EndpointError, HttpError};

use self::envelope::{Answer, Call, Item};
use self::http::Endpoint;
use crate::balancer::{Balancer, DrainReport, FileDiff, PoolChange, unique};
use crate::error::{BalancerError, HostFailure, Subject};
use crate::pool_locks::PoolLocks;

/// How long a node is disabled before it is removed, unless the settings say something else.
pub const GRACE_PERIOD: Duration = Duration::from_secs(2);
/// How long a call may take, unless the settings say something else.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// What the interface says of a pool that it does not have; the name follows.
const UNKNOWN_POOL: &str = "Unknown pool";

/// What there is to know about a traffic manager.
#[derive(Debug, Clone)]
pub struct StingraySettings {
    /// The address of its SOAP interface, `http://…` or `https://…`.
    pub url: String,
    /// Who logs in.
    pub user: String,
    /// With which password.
    pub password: Secret,
    /// What pools' names begin with there.
    pub pool_prefix: String,
    /// How long a node is disabled before it is removed, which cuts off what is still open on it.
    pub grace_period: Duration,
    /// Certificates (PEM) of the authorities that its certificate may be of; those of this machine if there is none.
    pub ca_file: Option<PathBuf>,
    /// How long a call may take.
    pub timeout: Duration,
}

/// Why a call did not do what it should.
#[derive(Debug, Error)]
enum CallError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("it does not let {0} in: wrong USER or PASSWORD")]
    Login(String),
    #[error("it answered with status {0}, expected 200 or 500")]
    Status(StatusCode),
    #[error("{operation}: its answer cannot be read: {reason}")]
    Unreadable { operation: &'static str, reason: String },
    #[error("{operation} was refused: {words}")]
    Fault { operation: &'static str, words: String },
    #[error("{operation} was done, but then {}", .reason)]
    NotSo { operation: &'static str, reason: String },
}

impl CallError {
    fn is_unknown_pool(&self) -> bool {
        matches!(self, Self::Fault { words, .. } if words.contains(UNKNOWN_POOL))
    }
}

/// A traffic manager, or a cluster of them, behind its SOAP interface.
#[derive(Debug)]
pub struct StingrayBalancer {
    name: String,
    endpoint: Endpoint,
    settings: StingraySettings,
    locks: PoolLocks,
}

impl StingrayBalancer {
    /// Connects to nothing yet, but reads the certificates.
    pub fn new(name: impl Into<String>, settings: StingraySettings) -> Result<Self, EndpointError> {
        let StingraySettings { url, user, password, ca_file, .. } = &settings;
        let endpoint = Endpoint::new(url, user, password, ca_file.as_deref())?;
        Ok(Self { name: name.into(), endpoint, settings, locks: PoolLocks::default() })
    }

    async fn call(&self, call: Call) -> Result<Vec<Item>, CallError> {
        let operation = call.operation;
        let action = format!("{}{operation}", envelope::POOL);
        let answer = self.endpoint.post(&action, call.to_xml(), envelope::LONGEST, self.settings.timeout);
        let (status, body) = answer.await?;
        match status {
            // Faults come with 500.
            StatusCode::OK | StatusCode::INTERNAL_SERVER_ERROR => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(CallError::Login(self.settings.user.clone()));
            }
            other => return Err(CallError::Status(other)),
        }
        match envelope::read_answer(operation, &body) {
            Ok(Answer::Fault(words)) => Err(CallError::Fault { operation, words }),
            Ok(Answer::Done(items)) if status == StatusCode::OK => Ok(items),
            Ok(Answer::Done(_)) => Err(CallError::Status(status)),
            Err(_) if status != StatusCode::OK => Err(CallError::Status(status)),
            Err(reason) => Err(CallError::Unreadable { operation, reason }),
        }
    }

    /// The pool's name there.
    fn full_name(&self, pool: &PoolName) -> String {
        format!("{}{pool}", self.settings.pool_prefix)
    }

    /// A call that takes nodes of one pool.
    async fn change(
        &self,
        operation: &'static str,
        argument: &'static str,
        pool: &PoolName,
        nodes: &[Node],
    ) -> Result<(), CallError> {
        let nodes = nodes.iter().map(Node::to_string).collect();
        let call = Call::on_pool(operation, &self.full_name(pool)).with_nodes(argument, nodes);
        self.call(call).await.map(drop)
    }

    /// A call that gives nodes of one pool; none for an unknown pool.
    async fn ask(&self, operation: &'static str, pool: &PoolName) -> Result<Option<Vec<Node>>, CallError> {
        let unreadable = |reason: String| CallError::Unreadable { operation, reason };
        let lists = match self.call(Call::on_pool(operation, &self.full_name(pool))).await {
            Ok(lists) => lists,
            Err(error) if error.is_unknown_pool() => return Ok(None),
            Err(error) => return Err(error),
        };
        let [Item::List(items)] = lists.as_slice() else {
            return Err(unreadable(format!("expected the nodes of one pool, found {} lists", lists.len())));
        };
        let node = |item: &Item| match item {
            Item::Text(text) => text.parse::<Node>().map_err(|error| unreadable(error.to_string())),
            Item::List(_) => Err(unreadable("expected a node, found a list".to_owned())),
        };
        let nodes: Vec<Node> = items.iter().map(node).collect::<Result<_, _>>()?;
        Ok(Some(unique(nodes.iter())))
    }

    async fn nodes(&self, pool: &PoolName) -> Result<Option<Vec<Node>>, CallError> {
        self.ask("getNodes", pool).await
    }

    async fn add(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), CallError> {
        let nodes = unique(nodes.iter());
        if nodes.is_empty() {
            // There is nothing to add; only the pool may be missing.
            if self.nodes(pool).await?.is_some() {
                return Ok(());
            }
            return match self.change("addPool", "nodes", pool, &[]).await {
                // Somebody was faster, which is as good.
                Err(CallError::Fault { .. }) if self.nodes(pool).await?.is_some() => Ok(()),
                made => made,
            };
        }
        match self.change("addNodes", "values", pool, &nodes).await {
            Err(unknown) if unknown.is_unknown_pool() => {
                match self.change("addPool", "nodes", pool, &nodes).await {
                    // Somebody was faster; then it is no longer unknown.
                    Err(refused @ CallError::Fault { .. }) => {
                        let again = self.change("addNodes", "values", pool, &nodes).await;
                        again.map_err(|error| if error.is_unknown_pool() { refused } else { error })?;
                    }
                    made => made?,
                }
            }
            added => added?,
        }
        self.enable(pool, &nodes).await?;
        let there = self.nodes(pool).await?.unwrap_or_default();
        let missing: Vec<&Node> = nodes.iter().filter(|node| !there.contains(node)).collect();
        self.is_so("addNodes", missing.is_empty(), || format!("the pool does not have {}", list(&missing)))
    }

    /// A node whose removal was cut short is still in the pool, but disabled; adding it does not change that.
    async fn enable(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), CallError> {
        let disabled = match self.ask("getDisabledNodes", pool).await {
            Ok(disabled) => disabled.unwrap_or_default(),
            // A server that does not know this cannot be asked whether they get requests.
            Err(CallError::Fault { words, .. }) => {
                tracing::debug!(balancer = self.name, words, "cannot see which nodes are disabled");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let ours: Vec<Node> = nodes.iter().filter(|node| disabled.contains(node)).cloned().collect();
        if ours.is_empty() { Ok(()) } else { self.change("enableNodes", "nodes", pool, &ours).await }
    }

    async fn delete(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), CallError> {
        let there = self.nodes(pool).await?.unwrap_or_default();
        let leaving: Vec<Node> = there.into_iter().filter(|node| nodes.contains(node)).collect();
        if leaving.is_empty() {
            return Ok(());
        }
        let remove = async {
            self.change("disableNodes", "nodes", pool, &leaving).await?;
            tokio::time::sleep(self.settings.grace_period).await;
            self.change("removeNodes", "values", pool, &leaving).await
        };
        match remove.await {
            Err(error) if error.is_unknown_pool() => return Ok(()),
            removed => removed?,
        }
        let there = self.nodes(pool).await?.unwrap_or_default();
        let left: Vec<&Node> = leaving.iter().filter(|node| there.contains(node)).collect();
        self.is_so("removeNodes", left.is_empty(), || format!("the pool still has {}", list(&left)))
    }

    async fn delete_whole(&self, pool: &PoolName) -> Result<(), CallError> {
        if let Some(there) = self.nodes(pool).await? {
            self.delete(pool, &there).await?;
            match self.call(Call::on_pool("deletePool", &self.full_name(pool))).await {
                Err(error) if error.is_unknown_pool() => {}
                deleted => drop(deleted?),
            }
        }
        Ok(())
    }

    fn is_so(
        &self,
        operation: &'static str,
        is_so: bool,
        reason: impl FnOnce() -> String,
    ) -> Result<(), CallError> {
        if is_so { Ok(()) } else { Err(CallError::NotSo { operation, reason: reason() }) }
    }

    /// Says of an error what it was about.
    fn about<'a>(&'a self, pool: Option<&'a PoolName>) -> impl Fn(CallError) -> BalancerError + 'a {
        move |error| BalancerError::Failed {
            subject: Subject { balancer: self.name.clone(), pool: pool.cloned() },
            failed: vec![HostFailure { host: self.endpoint.shown(), reason: chain(&error) }],
        }
    }
}

fn list(nodes: &[&Node]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[async_trait]
impl Balancer for StingrayBalancer {
    fn name(&self) -> &str {
        &self.name
    }

    /// Those whose names begin with the prefix. What follows has to be a pool's name: others are not ours.
    async fn list_pools(&self) -> Result<Vec<PoolName>, BalancerError> {
        let names = self.call(Call::new("getPoolNames")).await.map_err(self.about(None))?;
        let ours = names.iter().filter_map(|name| match name {
            Item::Text(name) => name.strip_prefix(&self.settings.pool_prefix)?.parse::<PoolName>().ok(),
            Item::List(_) => None,
        });
        Ok(ours.collect::<BTreeSet<_>>().into_iter().collect())
    }

    async fn get_nodes(&self, pool: &PoolName) -> Result<Vec<Node>, BalancerError> {
        self.nodes(pool).await.map(Option::unwrap_or_default).map_err(self.about(Some(pool)))
    }

    async fn add_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), BalancerError> {
        let _alone = self.locks.lock(pool).await;
        self.add(pool, nodes).await.map_err(self.about(Some(pool)))
    }

    /// Removing cuts off whatever is open after the grace period of the settings, so `close_after_grace` means nothing.
    async fn delete_nodes(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        _close_after_grace: Option<Duration>,
    ) -> Result<(), BalancerError> {
        let _alone = self.locks.lock(pool).await;
        self.delete(pool, nodes).await.map_err(self.about(Some(pool)))
    }

    async fn delete_pool(&self, pool: &PoolName) -> Result<(), BalancerError> {
        let _alone = self.locks.lock(pool).await;
        self.delete_whole(pool).await.map_err(self.about(Some(pool)))
    }

    async fn delete_pool_if_empty(&self, pool: &PoolName) -> Result<bool, BalancerError> {
        let _alone = self.locks.lock(pool).await;
        let about = self.about(Some(pool));
        match self.nodes(pool).await.map_err(&about)? {
            Some(nodes) if !nodes.is_empty() => Ok(false),
            Some(_) => self.delete_whole(pool).await.map(|()| true).map_err(about),
            None => Ok(true),
        }
    }

    async fn set_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<Vec<Node>, BalancerError> {
        let _alone = self.locks.lock(pool).await;
        let set = async {
            let mut stale = self.nodes(pool).await?.unwrap_or_default();
            stale.retain(|node| !nodes.contains(node));
            self.add(pool, nodes).await?;
            self.delete(pool, &stale).await?;
            Ok(stale)
        };
        set.await.map_err(self.about(Some(pool)))
    }

    /// The interface cannot tell what is open on a node by way of this pool. A node that has left the pool has been
    /// disabled for the grace period of the settings before, and removing it has cut off the rest.
    async fn wait_drained(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        _grace: Duration,
    ) -> Result<Vec<DrainReport>, BalancerError> {
        let there = self.get_nodes(pool).await?;
        let report = |node: &Node| DrainReport { node: node.clone(), open: 0, in_pool: there.contains(node) };
        Ok(nodes.iter().map(report).collect())
    }

    /// Which address leads to a pool is decided by virtual servers, which are the operator's.
    async fn pool_address(&self, _pool: &PoolName) -> Result<Option<String>, BalancerError> {
        Ok(None)
    }

    fn grace_period(&self, _pool: &PoolName) -> Option<Duration> {
        Some(self.settings.grace_period)
    }

    async fn preview(&self, change: &PoolChange) -> Result<Vec<FileDiff>, BalancerError> {
        let nodes = self.nodes(&change.pool).await.map_err(self.about(Some(&change.pool)))?;
        Ok(change.diff(&self.name, nodes.as_deref()).into_iter().collect())
    }
}
