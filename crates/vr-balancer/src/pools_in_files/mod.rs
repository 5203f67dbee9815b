//! Balancers whose pools are files of a folder, on one or several hosts, and whose program is told to load them.
//!
//! [`FileBalancer`] is all that such backends share: hosts side by side, locks, journals, reading, writing, taking back,
//! draining and repairing. A backend is a [`Program`]: the language of its files, and how it is told. `nginx.rs` and
//! `varnish.rs` are two; a new one needs a `Program`, an entry in the table of `config.rs`, and a fixture for the common
//! suite in `tests/balancer/suite.rs`.
//!
//! `place` is one host: what may be done there, one change at a time. `plan` says, without doing it, which files have to
//! become what. `journal` is what is remembered on the host. `sync` compares hosts. `drain` waits for connections.

mod drain;
mod journal;
mod place;
mod plan;
mod program;
mod sync;
pub(crate) mod text;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};

pub use place::{PlaceError, Restored};
pub use plan::UnreadableFile;
pub(crate) use program::reload_and_wait;
pub use program::{Change, PoolEdit, Program, Refusal};

use crate::balancer::{Balancer, DrainReport, Edit, FileDiff, PoolChange, SiteReport, SyncReport, unique};
use crate::error::{BalancerError, HostFailure, Subject};
use crate::site::Site;
use place::Place;

/// What all balancers of this kind have in their settings, beside what their program needs.
#[derive(Debug, Clone, Default)]
pub struct FileBalancerSettings {
    /// The folder of the pools' files, the same on all hosts.
    pub include_dir: String,
    /// How long nodes are waited for that are being drained.
    pub grace_period: Option<Duration>,
    /// The same, for these pools.
    pub grace_periods: BTreeMap<PoolName, Duration>,
}

/// A balancer whose pools are files.
pub struct FileBalancer {
    name: String,
    settings: FileBalancerSettings,
    places: Vec<Arc<Place>>,
}

/// What came of something that every host was asked for.
struct Answers<T> {
    done: Vec<(String, T)>,
    failed: Vec<HostFailure>,
}

impl FileBalancer {
    /// A balancer with this program on these sites. Connects to nothing yet.
    pub fn new(
        name: impl Into<String>,
        settings: FileBalancerSettings,
        sites: Vec<Site>,
        program: Arc<dyn Program>,
    ) -> Self {
        let place = |site| Arc::new(Place::new(site, &settings.include_dir, Arc::clone(&program)));
        Self { name: name.into(), places: sites.into_iter().map(place).collect(), settings }
    }

    fn subject(&self, pool: Option<&PoolName>) -> Subject {
        Subject { balancer: self.name.clone(), pool: pool.cloned() }
    }

    /// Asks all hosts at once. Each is asked in a task of its own, so that a change goes on to its end even when nobody
    /// waits for it any more.
    async fn ask<T, F>(&self, ask: impl Fn(Arc<Place>) -> F) -> Answers<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, PlaceError>> + Send + 'static,
    {
        let asked = self.places.iter().map(|place| {
            let task = tokio::spawn(ask(Arc::clone(place)));
            async move {
                match task.await {
                    Ok(Ok(done)) => Ok((place.site.name().to_owned(), done)),
                    Ok(Err(error)) => Err(place.failure(chain(&error))),
                    Err(ended) => Err(place.failure(ended.to_string())),
                }
            }
        });
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for answer in join_all(asked).await {
            match answer {
                Ok(answer) => done.push(answer),
                Err(failure) => failed.push(failure),
            }
        }
        Answers { done, failed }
    }

    /// What could be read from the hosts that answer: one that is down does not keep people from looking.
    fn readable<T>(&self, pool: Option<&PoolName>, answers: Answers<T>) -> Result<Vec<T>, BalancerError> {
        let Answers { done, failed } = answers;
        if done.is_empty() {
            return Err(BalancerError::Failed { subject: self.subject(pool), failed });
        }
        for HostFailure { host, reason } in failed {
            tracing::warn!(balancer = self.name, host, reason, "a balancer's host cannot be read");
        }
        Ok(done.into_iter().map(|(_, answer)| answer).collect())
    }

    /// Makes a change on all hosts; gives the nodes that the pool had on each.
    async fn change(&self, pool: &PoolName, edit: Edit) -> Result<Vec<Option<Vec<Node>>>, BalancerError> {
        let change = Arc::new(PoolChange { pool: pool.clone(), edit });
        let answers = self
            .ask(|place| {
                let change = Arc::clone(&change);
                async move { place.change(&change).await }
            })
            .await;
        self.complete(Some(pool), answers)
    }

    fn complete<T>(&self, pool: Option<&PoolName>, answers: Answers<T>) -> Result<Vec<T>, BalancerError> {
        let Answers { done, failed } = answers;
        let subject = self.subject(pool);
        match (done.is_empty(), failed.is_empty()) {
            (_, true) => Ok(done.into_iter().map(|(_, answer)| answer).collect()),
            (true, false) => Err(BalancerError::Failed { subject, failed }),
            (false, false) => {
                let done = done.into_iter().map(|(host, _)| host).collect();
                Err(BalancerError::OutOfStep { subject, done, failed })
            }
        }
    }
}

impl Place {
    fn failure(&self, reason: String) -> HostFailure {
        HostFailure { host: self.site.name().to_owned(), reason }
    }
}

#[async_trait]
impl Balancer for FileBalancer {
    fn name(&self) -> &str {
        &self.name
    }

    async fn list_pools(&self) -> Result<Vec<PoolName>, BalancerError> {
        Ok(self.pools_with_nodes().await?.into_keys().collect())
    }

    /// One look at every host, however many pools there are.
    async fn pools_with_nodes(&self) -> Result<BTreeMap<PoolName, Vec<Node>>, BalancerError> {
        let answers = self.ask(|place| async move { place.pools().await }).await;
        let mut all: BTreeMap<PoolName, Vec<Node>> = BTreeMap::new();
        for (pool, nodes) in self.readable(None, answers)?.into_iter().flatten() {
            all.entry(pool).or_default().extend(nodes);
        }
        Ok(all.into_iter().map(|(pool, nodes)| (pool, unique(nodes.iter()))).collect())
    }

    /// What any of the hosts has, so that nobody stops a node that one of them still uses.
    async fn get_nodes(&self, pool: &PoolName) -> Result<Vec<Node>, BalancerError> {
        let answers = self
            .ask(|place| {
                let pool = pool.clone();
                async move { place.nodes(&pool).await }
            })
            .await;
        let nodes = self.readable(Some(pool), answers)?;
        Ok(unique(nodes.iter().flatten().flatten()))
    }

    async fn add_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), BalancerError> {
        self.change(pool, Edit::Add(nodes.to_vec())).await.map(drop)
    }

    /// These programs cannot cut anything off, so `close_after_grace` means nothing to them: what is still open then ends
    /// with the node.
    async fn delete_nodes(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        _close_after_grace: Option<Duration>,
    ) -> Result<(), BalancerError> {
        self.change(pool, Edit::Delete(nodes.to_vec())).await.map(drop)
    }

    async fn delete_pool(&self, pool: &PoolName) -> Result<(), BalancerError> {
        self.change(pool, Edit::DeletePool).await.map(drop)
    }

    /// A pool that has nodes on any host stays on all: a deletion would be the newest that `sync` finds.
    async fn delete_pool_if_empty(&self, pool: &PoolName) -> Result<bool, BalancerError> {
        if !self.get_nodes(pool).await?.is_empty() {
            return Ok(false);
        }
        let before = self.change(pool, Edit::DeletePoolIfEmpty).await?;
        Ok(before.iter().flatten().all(Vec::is_empty))
    }

    /// One change: there is no moment at which both or neither of the sets are in the pool.
    async fn set_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<Vec<Node>, BalancerError> {
        let before = self.change(pool, Edit::Set(nodes.to_vec())).await?;
        Ok(unique(before.iter().flatten().flatten().filter(|node| !nodes.contains(node))))
    }

    async fn wait_drained(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        grace: Duration,
    ) -> Result<Vec<DrainReport>, BalancerError> {
        self.drain(pool, nodes, grace).await
    }

    async fn pool_address(&self, _pool: &PoolName) -> Result<Option<String>, BalancerError> {
        Ok(None)
    }

    fn grace_period(&self, pool: &PoolName) -> Option<Duration> {
        let own = self.settings.grace_periods.get(pool).copied();
        own.or(self.settings.grace_period)
    }

    async fn preview(&self, change: &PoolChange) -> Result<Vec<FileDiff>, BalancerError> {
        let change = Arc::new(change.clone());
        let answers = self
            .ask(|place| {
                let change = Arc::clone(&change);
                async move { place.preview(&change).await }
            })
            .await;
        Ok(self.complete(Some(&change.pool), answers)?.into_iter().flatten().collect())
    }

    async fn check(&self) -> Result<Vec<SiteReport>, BalancerError> {
        Ok(self.check_all().await)
    }

    async fn sync(&self, from: Option<&str>, dry_run: bool) -> Result<SyncReport, BalancerError> {
        self.sync_all(from, dry_run).await
    }
}
