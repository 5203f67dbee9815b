//! The pools that there are, and every change to them: one after the other, on disk before it is in effect,
//! in effect before it is acknowledged.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, OwnedMutexGuard};
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};

use super::forward::DataPlane;
use super::listener::Listener;
use super::pool::Pool;
use super::state::{PoolState, StateError, StateFile};
use super::upstream::Upstream;
use super::wire::{DrainingStats, PoolStats, PoolView, Stats};
use crate::balancer::DrainReport;

/// The most nodes that a pool can have.
const MAX_NODES: usize = 10_000;

/// Why a pool was not changed, or does not listen.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// Somebody else listens at the address that the pool has.
    #[error("pool {pool}: {address} is in use by another program")]
    AddressInUse {
        /// The pool.
        pool: PoolName,
        /// Its address.
        address: SocketAddr,
    },
    /// The pool's address cannot be listened at.
    #[error("pool {pool}: cannot listen at {address}")]
    Listen {
        /// The pool.
        pool: PoolName,
        /// Its address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Every port of the range belongs to another pool or program.
    #[error("pool {pool}: no port from {} to {} is free on {host}", ports.start(), ports.end())]
    NoFreePort {
        /// The pool.
        pool: PoolName,
        /// The address that pools listen on.
        host: IpAddr,
        /// The range.
        ports: RangeInclusive<u16>,
    },
    /// The pool would become too large.
    #[error("pool {pool}: {count} nodes are too many, the most is {MAX_NODES}")]
    TooManyNodes {
        /// The pool.
        pool: PoolName,
        /// How many there would be.
        count: usize,
    },
    /// Two pools with one address.
    #[error("pools {first} and {second} have the same address {address}")]
    SharedAddress {
        /// One pool.
        first: PoolName,
        /// The other.
        second: PoolName,
        /// Their address.
        address: SocketAddr,
    },
    /// The change could not be written down, so it was not made.
    #[error("pool {pool}: the change was not made")]
    State {
        /// The pool.
        pool: PoolName,
        /// Why.
        source: StateError,
    },
}

/// A change to one pool.
#[derive(Debug)]
pub(super) enum Change {
    Add(Vec<Node>),
    Delete { nodes: Vec<Node>, close_after: Option<Duration> },
    Set(Vec<Node>),
    DeletePool { only_if_empty: bool },
}

/// A pool after a change.
pub(super) struct Changed {
    pub(super) view: PoolView,
    pub(super) exists: bool,
    pub(super) removed: Vec<Node>,
}

/// What does not change while the process runs.
pub(super) struct Settings {
    pub(super) state_dir: PathBuf,
    pub(super) listen_host: IpAddr,
    pub(super) ports: RangeInclusive<u16>,
    /// Pools whose address the operator has chosen. They listen even when they do not exist, and answer 503 then.
    pub(super) fixed: BTreeMap<PoolName, SocketAddr>,
}

pub(super) struct Registry {
    settings: Settings,
    plane: Arc<DataPlane>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Pools that listen, or wait for their address.
    live: BTreeMap<PoolName, LivePool>,
    /// Nodes that left a pool with something still open, until it has ended.
    draining: BTreeMap<(PoolName, Node), Vec<Arc<Upstream>>>,
}

struct LivePool {
    pool: Arc<Pool>,
    address: SocketAddr,
    /// None as long as somebody else has the address.
    listener: Option<Listener>,
    /// False for a fixed address without a pool.
    exists: bool,
}

impl LivePool {
    async fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.stop().await;
        }
    }

    fn view(&self) -> PoolView {
        PoolView {
            pool: self.pool.name.clone(),
            address: self.exists.then(|| self.address.to_string()),
            nodes: self.pool.nodes(),
            listening: self.exists && self.listener.is_some(),
        }
    }
}

impl Inner {
    fn state(&self) -> BTreeMap<PoolName, PoolState> {
        let existing = self.live.iter().filter(|(_, live)| live.exists);
        existing
            .map(|(name, live)| (name.clone(), PoolState { address: live.address, nodes: live.pool.nodes() }))
            .collect()
    }

    fn view(&self, name: &PoolName) -> PoolView {
        self.live.get(name).map_or_else(
            || PoolView { pool: name.clone(), address: None, nodes: Vec::new(), listening: false },
            LivePool::view,
        )
    }
}

async fn bind(pool: &PoolName, address: SocketAddr) -> Result<TcpListener, ChangeError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ChangeError::AddressInUse { pool: pool.clone(), address },
        _ => ChangeError::Listen { pool: pool.clone(), address, source },
    })
}

impl Registry {
    /// Listens for every pool of the state file and for every fixed address, and writes down which of the addresses
    /// in the state file are others now.
    ///
    /// A fixed address that cannot be had is an error. A remembered one is not, as all other pools would be down with
    /// it: its pool waits, see [`Self::listen_where_possible`].
    pub(super) async fn start(
        settings: Settings,
        plane: Arc<DataPlane>,
        state: StateFile,
    ) -> Result<Self, ChangeError> {
        let mut wanted: BTreeMap<PoolName, (SocketAddr, Option<Vec<Node>>)> =
            settings.fixed.iter().map(|(name, address)| (name.clone(), (*address, None))).collect();
        for (name, PoolState { address, nodes }) in &state.pools {
            wanted.entry(name.clone()).or_insert((*address, None)).1 = Some(nodes.clone());
        }
        let mut taken: BTreeMap<SocketAddr, PoolName> = BTreeMap::new();
        for (name, (address, _)) in &wanted {
            if let Some(first) = taken.insert(*address, name.clone()) {
                return Err(ChangeError::SharedAddress { first, second: name.clone(), address: *address });
            }
        }
        let mut inner = Inner::default();
        // The fixed ones first, so that none of them loses its address to a remembered one.
        let (fixed, remembered): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|(name, _)| settings.fixed.contains_key(name));
        for (name, (address, nodes)) in fixed.into_iter().chain(remembered) {
            let pool = Arc::new(Pool::new(name.clone()));
            pool.replace_nodes(nodes.as_deref().unwrap_or_default());
            let listener = match bind(&name, address).await {
                Ok(socket) => {
                    tracing::info!(pool = %name, %address, nodes = pool.nodes().len(), "listening");
                    Some(Listener::start(socket, Arc::clone(&pool), Arc::clone(&plane)))
                }
                Err(error) if settings.fixed.contains_key(&name) => return Err(error),
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(pool = %name, %address, error, "the pool is not served until its address is free");
                    None
                }
            };
            inner.live.insert(name, LivePool { pool, address, listener, exists: nodes.is_some() });
        }
        let pools = inner.state();
        let moved = pools.iter().find(|(name, pool)| state.pools.get(*name) != Some(*pool));
        let moved = moved.map(|(name, _)| name.clone());
        let registry = Self { settings, plane, inner: Arc::new(Mutex::new(inner)) };
        if let Some(name) = moved {
            registry.save(&name, pools).await?;
        }
        Ok(registry)
    }

    /// Gives the pools that wait for their address another chance. To be called every now and then.
    pub(super) async fn listen_where_possible(&self) {
        let mut inner = self.inner.lock().await;
        for (name, live) in inner.live.iter_mut().filter(|(_, live)| live.listener.is_none()) {
            match bind(name, live.address).await {
                Ok(socket) => {
                    tracing::info!(pool = %name, address = %live.address, "listening at last");
                    live.listener =
                        Some(Listener::start(socket, Arc::clone(&live.pool), Arc::clone(&self.plane)));
                }
                Err(error) => tracing::debug!(error = chain(&error), "still not listening"),
            }
        }
    }

    /// Makes a change. Runs to its end even when nobody waits for it any more.
    pub(super) async fn change(
        self: &Arc<Self>,
        name: PoolName,
        change: Change,
    ) -> Result<Changed, ChangeError> {
        let registry = Arc::clone(self);
        let inner = Arc::clone(&self.inner).lock_owned().await;
        match tokio::spawn(async move { registry.change_locked(inner, name, change).await }).await {
            Ok(changed) => changed,
            Err(died) => std::panic::resume_unwind(died.into_panic()),
        }
    }

    async fn change_locked(
        &self,
        mut inner: OwnedMutexGuard<Inner>,
        name: PoolName,
        change: Change,
    ) -> Result<Changed, ChangeError> {
        let current = inner.live.get(&name).filter(|live| live.exists).map(|live| live.pool.nodes());
        let next = desired(current.as_deref(), &change);
        if next == current {
            return Ok(Changed { view: inner.view(&name), exists: next.is_some(), removed: Vec::new() });
        }
        if let Some(count) = next.as_ref().map(Vec::len).filter(|count| *count > MAX_NODES) {
            return Err(ChangeError::TooManyNodes { pool: name, count });
        }

        let mut new_socket = None;
        let mut state = inner.state();
        match &next {
            None => {
                state.remove(&name);
            }
            Some(nodes) => {
                let address = match inner.live.get(&name) {
                    Some(live) => live.address,
                    None => {
                        let (socket, address) = self.find_address(&inner, &name).await?;
                        new_socket = Some(socket);
                        address
                    }
                };
                state.insert(name.clone(), PoolState { address, nodes: nodes.clone() });
            }
        }
        self.save(&name, state).await?;

        if let Some((socket, nodes)) = new_socket.zip(next.as_ref()) {
            let address = socket.local_addr().map_err(|source| ChangeError::Listen {
                pool: name.clone(),
                address: SocketAddr::new(self.settings.listen_host, 0),
                source,
            })?;
            let pool = Arc::new(Pool::new(name.clone()));
            pool.replace_nodes(nodes);
            let listener = Listener::start(socket, Arc::clone(&pool), Arc::clone(&self.plane));
            tracing::info!(pool = %name, %address, "a pool was made");
            inner
                .live
                .insert(name.clone(), LivePool { pool, address, listener: Some(listener), exists: true });
            return Ok(Changed { view: inner.view(&name), exists: true, removed: Vec::new() });
        }
        let removed = match inner.live.get_mut(&name) {
            Some(live) => {
                live.exists = next.is_some();
                live.pool.replace_nodes(next.as_deref().unwrap_or_default())
            }
            None => Vec::new(),
        };
        if next.is_none()
            && !self.settings.fixed.contains_key(&name)
            && let Some(mut live) = inner.live.remove(&name)
        {
            live.stop().await;
            tracing::info!(pool = %name, address = %live.address, "a pool was deleted");
        }
        let removed_nodes: Vec<Node> = removed.iter().map(|upstream| upstream.node.clone()).collect();
        tracing::info!(pool = %name, nodes = next.as_ref().map_or(0, Vec::len), removed = removed.len(), "a pool was changed");
        let close_after = match change {
            Change::Delete { close_after, .. } => close_after,
            _ => None,
        };
        drain(&mut inner, &name, removed, close_after);
        Ok(Changed { view: inner.view(&name), exists: next.is_some(), removed: removed_nodes })
    }

    /// The first free port of the range, already listened at.
    async fn find_address(
        &self,
        inner: &Inner,
        name: &PoolName,
    ) -> Result<(TcpListener, SocketAddr), ChangeError> {
        for port in self.settings.ports.clone() {
            let address = SocketAddr::new(self.settings.listen_host, port);
            let reserved = self.settings.fixed.values().chain(inner.live.values().map(|live| &live.address));
            if reserved.into_iter().any(|other| other.port() == port) {
                continue;
            }
            match bind(name, address).await {
                Ok(socket) => return Ok((socket, address)),
                Err(ChangeError::AddressInUse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ChangeError::NoFreePort {
            pool: name.clone(),
            host: self.settings.listen_host,
            ports: self.settings.ports.clone(),
        })
    }

    async fn save(&self, name: &PoolName, pools: BTreeMap<PoolName, PoolState>) -> Result<(), ChangeError> {
        let state_dir = self.settings.state_dir.clone();
        let saved = tokio::task::spawn_blocking(move || StateFile::new(pools).save(&state_dir)).await;
        match saved {
            Ok(saved) => saved.map_err(|source| ChangeError::State { pool: name.clone(), source }),
            Err(died) => std::panic::resume_unwind(died.into_panic()),
        }
    }

    pub(super) async fn list(&self) -> Vec<PoolView> {
        let inner = self.inner.lock().await;
        inner.live.values().filter(|live| live.exists).map(LivePool::view).collect()
    }

    pub(super) async fn get(&self, name: &PoolName) -> PoolView {
        self.inner.lock().await.view(name)
    }

    pub(super) async fn stats(&self) -> Stats {
        let inner = self.inner.lock().await;
        let existing = inner.live.values().filter(|live| live.exists);
        let pools = existing.map(|live| PoolStats {
            pool: live.pool.name.clone(),
            nodes: live.pool.upstreams().iter().map(|upstream| upstream.stats()).collect(),
        });
        let left = inner.draining.iter().flat_map(|((pool, _), left)| left.iter().map(move |up| (pool, up)));
        let open = left.filter(|(_, upstream)| upstream.open() > 0);
        let draining =
            open.map(|(pool, upstream)| DrainingStats { pool: pool.clone(), stats: upstream.stats() });
        Stats { pools: pools.collect(), draining: draining.collect() }
    }

    /// Waits until nothing is open on the nodes that left the pool, or the grace period is over.
    pub(super) async fn wait_drained(
        &self,
        name: &PoolName,
        nodes: &[Node],
        grace: Duration,
    ) -> Vec<DrainReport> {
        let find = |inner: &Inner, node: &Node| {
            let live = inner.live.get(name).map(|live| live.pool.upstreams());
            let present = live.and_then(|live| live.iter().find(|up| up.node == *node).cloned());
            let left = inner.draining.get(&(name.clone(), node.clone())).cloned().unwrap_or_default();
            (node.clone(), present, left)
        };
        let found: Vec<_> = {
            let inner = self.inner.lock().await;
            nodes.iter().map(|node| find(&inner, node)).collect()
        };
        let all_drained = async {
            for (_, _, left) in &found {
                for upstream in left {
                    upstream.wait_drained().await;
                }
            }
        };
        // Either way, what is open is counted below.
        let _ = tokio::time::timeout(grace, all_drained).await;
        found
            .into_iter()
            .map(|(node, present, left)| DrainReport {
                open: left.iter().chain(&present).map(|upstream| upstream.open()).sum(),
                in_pool: present.is_some(),
                node,
            })
            .collect()
    }

    /// Closes idle connections to nodes that have not been used for a while, says what was left out of the log, and
    /// forgets nodes that have drained.
    pub(super) async fn sweep(&self) {
        let mut inner = self.inner.lock().await;
        for live in inner.live.values() {
            live.pool.upstreams().iter().for_each(|upstream| upstream.sweep());
            live.pool.warnings.say_what_was_left_out();
        }
        forget_drained(&mut inner);
    }

    /// Gives all addresses back and holds every further change up for ever.
    pub(super) async fn stop(&self) {
        let mut inner = Arc::clone(&self.inner).lock_owned().await;
        for mut live in std::mem::take(&mut inner.live).into_values() {
            live.stop().await;
        }
        std::mem::forget(inner);
    }
}

/// The nodes that the pool has after a change; none if there is no pool then.
fn desired(current: Option<&[Node]>, change: &Change) -> Option<Vec<Node>> {
    let without_repeats = |start: &[Node], more: &[Node]| {
        let mut known: std::collections::HashSet<&Node> = start.iter().collect();
        let new = more.iter().filter(|node| known.insert(node));
        start.iter().chain(new).cloned().collect::<Vec<_>>()
    };
    match change {
        Change::Add(nodes) => Some(without_repeats(current.unwrap_or_default(), nodes)),
        Change::Set(nodes) => {
            let kept: Vec<Node> =
                current.unwrap_or_default().iter().filter(|node| nodes.contains(node)).cloned().collect();
            Some(without_repeats(&kept, nodes))
        }
        Change::Delete { nodes, .. } => {
            current.map(|current| current.iter().filter(|node| !nodes.contains(node)).cloned().collect())
        }
        Change::DeletePool { only_if_empty: true } => {
            current.filter(|current| !current.is_empty()).map(<[Node]>::to_vec)
        }
        Change::DeletePool { only_if_empty: false } => None,
    }
}

fn drain(inner: &mut Inner, name: &PoolName, removed: Vec<Arc<Upstream>>, close_after: Option<Duration>) {
    forget_drained(inner);
    for upstream in removed {
        if upstream.open() == 0 {
            continue;
        }
        if let Some(grace) = close_after {
            let upstream = Arc::clone(&upstream);
            tokio::spawn(async move {
                if tokio::time::timeout(grace, upstream.wait_drained()).await.is_err() {
                    upstream.closing.cancel();
                }
            });
        }
        inner.draining.entry((name.clone(), upstream.node.clone())).or_default().push(upstream);
    }
}

fn forget_drained(inner: &mut Inner) {
    inner.draining.retain(|_, left| {
        left.retain(|upstream| upstream.open() > 0);
        !left.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ports: &[u16]) -> Vec<Node> {
        ports.iter().map(|port| format!("h:{port}").parse().unwrap()).collect()
    }

    #[test]
    fn changes_keep_the_order_and_drop_repeats() {
        let current = nodes(&[3, 1]);
        let after = |change: Change| desired(Some(&current), &change);
        assert_eq!(after(Change::Add(nodes(&[2, 3, 2]))), Some(nodes(&[3, 1, 2])));
        assert_eq!(after(Change::Set(nodes(&[1, 2, 2]))), Some(nodes(&[1, 2])));
        assert_eq!(after(Change::Set(nodes(&[1, 3]))), Some(nodes(&[3, 1])));
        assert_eq!(after(Change::Delete { nodes: nodes(&[3, 9]), close_after: None }), Some(nodes(&[1])));
        assert_eq!(after(Change::DeletePool { only_if_empty: true }), Some(nodes(&[3, 1])));
        assert_eq!(after(Change::DeletePool { only_if_empty: false }), None);
    }

    #[test]
    fn a_pool_is_made_by_adding_but_not_by_deleting() {
        assert_eq!(desired(None, &Change::Add(Vec::new())), Some(Vec::new()));
        assert_eq!(desired(None, &Change::Delete { nodes: nodes(&[1]), close_after: None }), None);
        assert_eq!(desired(Some(&[]), &Change::DeletePool { only_if_empty: true }), None);
        assert_eq!(desired(None, &Change::DeletePool { only_if_empty: true }), None);
    }
}
