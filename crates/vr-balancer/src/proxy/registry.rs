//! The pools that there are, and every change to them: one after the other, on disk before it is in effect,
//! in effect before it is acknowledged.

mod routing;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_rustls::TlsAcceptor;
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};

use super::changes::{Change, ChangeError, Changed, check_size, desired};
use super::configuration::Configuration;
use super::forward::DataPlane;
use super::health;
use super::listener::{Front, Listener, Target};
use super::options::{HostPattern, ListenerOptions, PoolOptions};
use super::pool::Pool;
use super::state::{PoolState, RoutesFile, StateFile};
use super::upstream::Upstream;
use super::wire::{DrainingStats, PoolStats, PoolView, Stats};
use crate::balancer::DrainReport;

/// What does not change while the process runs.
pub(super) struct Settings {
    pub(super) state_dir: PathBuf,
    pub(super) listen_host: IpAddr,
    /// For pools without an address of their own; none if they shall have none, and be reached by routes only.
    pub(super) ports: Option<RangeInclusive<u16>>,
    /// Pools whose address the operator has chosen. They listen even when they do not exist, and answer 503 then.
    pub(super) fixed: BTreeMap<PoolName, SocketAddr>,
    /// Addresses beside the pools' own ones.
    pub(super) listeners: Vec<ListenerOptions>,
    /// For those with TLS.
    pub(super) tls: Option<TlsAcceptor>,
}

pub(super) struct Registry {
    settings: Settings,
    plane: Arc<DataPlane>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Pools that exist, and those that something leads to although they do not.
    live: BTreeMap<PoolName, LivePool>,
    /// Nodes that left a pool with something still open, until it has ended.
    draining: BTreeMap<(PoolName, Node), Vec<Arc<Upstream>>>,
    /// What the operator says about pools.
    options: BTreeMap<PoolName, PoolOptions>,
    /// The routes of the configuration. They outrank the others.
    configured_routes: BTreeMap<HostPattern, PoolName>,
    /// The routes that were made through the control socket.
    routes: BTreeMap<HostPattern, PoolName>,
    /// The listeners beside the pools' own ones.
    listeners: Vec<Listener>,
}

struct LivePool {
    pool: Arc<Pool>,
    /// None if it has no address of its own.
    address: Option<SocketAddr>,
    /// None as long as somebody else has the address.
    listener: Option<Listener>,
    /// False for a pool that something leads to and that is not there.
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
            address: self.address.filter(|_| self.exists).map(|address| address.to_string()),
            nodes: self.pool.nodes(),
            listening: self.exists && self.listener.is_some() == self.address.is_some(),
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
    /// Listens for every pool of the state file, for every fixed address and for every listener, and writes down which
    /// of the addresses in the state file are others now.
    ///
    /// A fixed address that cannot be had is an error. A remembered one is not, as all other pools would be down with
    /// it: its pool waits, see [`Self::listen_where_possible`].
    pub(super) async fn start(
        settings: Settings,
        plane: Arc<DataPlane>,
        configuration: &Configuration,
        state: StateFile,
        routes: RoutesFile,
    ) -> Result<Self, ChangeError> {
        let mut wanted: BTreeMap<PoolName, (Option<SocketAddr>, Option<Vec<Node>>)> =
            settings.fixed.iter().map(|(name, address)| (name.clone(), (Some(*address), None))).collect();
        for (name, PoolState { address, nodes }) in &state.pools {
            wanted.entry(name.clone()).or_insert((*address, None)).1 = Some(nodes.clone());
        }
        let mut taken: BTreeMap<SocketAddr, PoolName> = BTreeMap::new();
        for (name, (address, _)) in &wanted {
            let Some(address) = address else {
                continue;
            };
            if let Some(first) = taken.insert(*address, name.clone()) {
                return Err(ChangeError::SharedAddress { first, second: name.clone(), address: *address });
            }
        }
        let fixed = settings.fixed.clone();
        let registry = Self { settings, plane, inner: Arc::default() };
        {
            let mut inner = registry.inner.lock().await;
            inner.options = configuration.pools.clone();
            inner.configured_routes = configuration.routes.clone();
            inner.routes = routes.routes;
            // The fixed ones first, so that none of them loses its address to a remembered one.
            let sockets = registry.bind_listeners(&taken).await?;
            let (fixed, remembered): (Vec<_>, Vec<_>) =
                wanted.into_iter().partition(|(name, _)| fixed.contains_key(name));
            for (name, (address, nodes)) in fixed.into_iter().chain(remembered) {
                let pool = registry.new_pool(&inner, &name);
                pool.replace_nodes(nodes.as_deref().unwrap_or_default());
                let listener = registry.first_listener(&pool, address).await?;
                inner.live.insert(name, LivePool { pool, address, listener, exists: nodes.is_some() });
            }
            registry.reroute(&mut inner).await;
            for (options, socket) in sockets {
                let front = registry.front(&inner, options);
                inner.listeners.push(Listener::start(socket, front, Arc::clone(&registry.plane)));
            }
            let pools = inner.state();
            let moved = pools.iter().find(|(name, pool)| state.pools.get(*name) != Some(*pool));
            if let Some(name) = moved.map(|(name, _)| name.clone()) {
                registry.save(&name, pools).await?;
            }
        }
        Ok(registry)
    }

    /// Listens at a pool's address; none if it has none, or if it is a remembered one that somebody else has.
    async fn first_listener(
        &self,
        pool: &Arc<Pool>,
        address: Option<SocketAddr>,
    ) -> Result<Option<Listener>, ChangeError> {
        let name = &pool.name;
        let Some(address) = address else {
            return Ok(None);
        };
        match bind(name, address).await {
            Ok(socket) => {
                tracing::info!(pool = %name, %address, nodes = pool.nodes().len(), "listening");
                Ok(Some(self.listen(socket, pool)))
            }
            Err(error) if self.settings.fixed.contains_key(name) => Err(error),
            Err(error) => {
                let error = chain(&error);
                tracing::error!(pool = %name, %address, error, "the pool is not served until its address is free");
                Ok(None)
            }
        }
    }

    fn listen(&self, socket: TcpListener, pool: &Arc<Pool>) -> Listener {
        Listener::start(socket, Front::of(Arc::clone(pool)), Arc::clone(&self.plane))
    }

    /// A pool without nodes, as the operator wants it to be.
    fn new_pool(&self, inner: &Inner, name: &PoolName) -> Arc<Pool> {
        let options = inner.options.get(name).cloned().unwrap_or_default();
        let pool = Arc::new(Pool::new(name.clone(), options));
        health::watch(&pool, &self.plane.limits);
        pool
    }

    /// Gives the pools that wait for their address another chance. To be called every now and then.
    pub(super) async fn listen_where_possible(&self) {
        let mut inner = self.inner.lock().await;
        for (name, live) in inner.live.iter_mut().filter(|(_, live)| live.listener.is_none()) {
            let Some(address) = live.address else {
                continue;
            };
            match bind(name, address).await {
                Ok(socket) => {
                    tracing::info!(pool = %name, %address, "listening at last");
                    live.listener = Some(self.listen(socket, &live.pool));
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
        check_size(&name, next.as_deref())?;

        let mut new_socket = None;
        let mut state = inner.state();
        match &next {
            None => {
                state.remove(&name);
            }
            Some(nodes) => {
                let address = match inner.live.get(&name).filter(|live| live.exists || live.address.is_some())
                {
                    Some(live) => live.address,
                    None => {
                        new_socket = self.find_address(&inner, &name).await?;
                        new_socket.as_ref().map(|(_, address)| *address)
                    }
                };
                state.insert(name.clone(), PoolState { address, nodes: nodes.clone() });
            }
        }
        self.save(&name, state).await?;

        if next.is_some() && !inner.live.contains_key(&name) {
            let pool = self.new_pool(&inner, &name);
            let live = LivePool { pool, address: None, listener: None, exists: false };
            inner.live.insert(name.clone(), live);
        }
        let removed = match inner.live.get_mut(&name) {
            Some(live) => {
                let removed = live.pool.replace_nodes(next.as_deref().unwrap_or_default());
                if let Some((socket, address)) = new_socket {
                    live.listener = Some(self.listen(socket, &live.pool));
                    live.address = Some(address);
                }
                if current.is_none() {
                    let address = live.address.map(tracing::field::display);
                    tracing::info!(pool = %name, address, "a pool was made");
                }
                live.exists = next.is_some();
                removed
            }
            None => Vec::new(),
        };
        if next.is_none() {
            self.let_go(&mut inner, &name).await;
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

    /// Gives the address of a pool that is not there any more back, and forgets the pool if nothing leads to it.
    async fn let_go(&self, inner: &mut Inner, name: &PoolName) {
        let is_named = self.named(inner).contains(name);
        let Some(live) = inner.live.get_mut(name).filter(|live| !live.exists) else {
            return;
        };
        if !self.settings.fixed.contains_key(name) {
            live.stop().await;
            let address = live.address.take().map(tracing::field::display);
            tracing::info!(pool = %name, address, "a pool was deleted");
            if !is_named {
                inner.live.remove(name);
            }
        }
    }

    /// The first free port of the range, already listened at; none if pools have no addresses of their own.
    async fn find_address(
        &self,
        inner: &Inner,
        name: &PoolName,
    ) -> Result<Option<(TcpListener, SocketAddr)>, ChangeError> {
        let Some(ports) = &self.settings.ports else {
            return Ok(None);
        };
        let listeners = self.settings.listeners.iter().map(|listener| listener.address);
        let fixed = self.settings.fixed.values().copied();
        let live = inner.live.values().filter_map(|live| live.address);
        let reserved: BTreeSet<u16> =
            listeners.chain(fixed).chain(live).map(|address| address.port()).collect();
        for port in ports.clone().filter(|port| !reserved.contains(port)) {
            let address = SocketAddr::new(self.settings.listen_host, port);
            match bind(name, address).await {
                Ok(socket) => return Ok(Some((socket, address))),
                Err(ChangeError::AddressInUse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ChangeError::NoFreePort {
            pool: name.clone(),
            host: self.settings.listen_host,
            ports: ports.clone(),
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

    /// Every pool that requests may be sent to, and what is still open on nodes that left theirs.
    pub(super) async fn everything(&self) -> (Vec<Arc<Pool>>, Vec<(PoolName, Arc<Upstream>)>) {
        let inner = self.inner.lock().await;
        let pools = inner.live.values().map(|live| Arc::clone(&live.pool)).collect();
        let left = inner.draining.iter().flat_map(|((pool, _), left)| left.iter().map(move |up| (pool, up)));
        let left = left.filter(|(_, upstream)| upstream.open() > 0);
        (pools, left.map(|(pool, upstream)| (pool.clone(), Arc::clone(upstream))).collect())
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
        self.plane.admission.say_what_was_left_out();
        forget_drained(&mut inner);
    }

    /// Gives all addresses back and holds every further change up for ever.
    pub(super) async fn stop(&self) {
        let mut inner = Arc::clone(&self.inner).lock_owned().await;
        for listener in std::mem::take(&mut inner.listeners) {
            listener.stop().await;
        }
        for mut live in std::mem::take(&mut inner.live).into_values() {
            live.stop().await;
        }
        std::mem::forget(inner);
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
