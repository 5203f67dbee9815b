//! Routes, listeners, and what the operator says about pools.

use super::*;
use crate::proxy::changes::MAX_ROUTES;
use crate::proxy::wire::RouteView;

impl Registry {
    /// Listens at the addresses of the configuration; none of them may be missing.
    pub(super) async fn bind_listeners(
        &self,
        taken: &BTreeMap<SocketAddr, PoolName>,
    ) -> Result<Vec<(ListenerOptions, TcpListener)>, ChangeError> {
        let mut sockets: Vec<(ListenerOptions, TcpListener)> = Vec::new();
        for options in &self.settings.listeners {
            let address = options.address;
            let other = match taken.get(&address) {
                Some(pool) if self.settings.fixed.contains_key(pool) => Some(format!("pool {pool}")),
                _ if sockets.iter().any(|(other, _)| other.address == address) => {
                    Some("another one".to_owned())
                }
                _ => None,
            };
            if let Some(other) = other {
                return Err(ChangeError::ListenerTwice { address, other });
            }
            let bound = TcpListener::bind(address).await;
            let socket = bound.map_err(|source| ChangeError::Listener { address, source })?;
            tracing::info!(%address, tls = options.tls, "listening for all pools with a route");
            sockets.push((options.clone(), socket));
        }
        Ok(sockets)
    }

    /// What connections to a listener have in common. Its pool is there, even if it does not exist: see
    /// [`Self::reroute`].
    pub(super) fn front(&self, inner: &Inner, options: ListenerOptions) -> Front {
        let pool = options.pool.and_then(|name| inner.live.get(&name));
        Front {
            target: pool.map_or(Target::Routes, |live| Target::Pool(Arc::clone(&live.pool))),
            tls: self.settings.tls.clone().filter(|_| options.tls),
            introduced_by: options.proxy_protocol_from,
            redirect_to_https: options.redirect_to_https,
        }
    }

    /// The pools that something leads to, whether they exist or not.
    pub(super) fn named(&self, inner: &Inner) -> BTreeSet<PoolName> {
        let listeners = self.settings.listeners.iter().filter_map(|listener| listener.pool.as_ref());
        let routes = inner.configured_routes.values().chain(inner.routes.values());
        self.settings.fixed.keys().chain(listeners).chain(routes).cloned().collect()
    }

    /// Puts the routes into effect: makes places for the pools that they lead to, and forgets those that nothing leads
    /// to any more.
    pub(super) async fn reroute(&self, inner: &mut Inner) {
        let named = self.named(inner);
        for name in &named {
            if !inner.live.contains_key(name) {
                let pool = self.new_pool(inner, name);
                let live = LivePool { pool, address: None, listener: None, exists: false };
                inner.live.insert(name.clone(), live);
            }
        }
        let mut routes = inner.routes.clone();
        routes.extend(inner.configured_routes.clone());
        self.plane.router.replace(&routes, |name| inner.live.get(name).map(|live| Arc::clone(&live.pool)));
        inner.live.retain(|name, live| live.exists || named.contains(name));
    }

    /// Takes what the operator says about pools and routes now.
    pub(in crate::proxy) async fn reconfigure(&self, configuration: &Configuration) {
        let mut inner = self.inner.lock().await;
        inner.options = configuration.pools.clone();
        inner.configured_routes = configuration.routes.clone();
        for (name, live) in &inner.live {
            let options = inner.options.get(name).cloned().unwrap_or_default();
            let pool = Arc::clone(&live.pool);
            // It reads the maintenance page.
            if let Err(died) = tokio::task::spawn_blocking(move || pool.set_options(options)).await {
                std::panic::resume_unwind(died.into_panic());
            }
        }
        self.reroute(&mut inner).await;
    }

    /// The pools whose maintenance page is a file.
    pub(in crate::proxy) async fn pools_with_pages(&self) -> Vec<Arc<Pool>> {
        let inner = self.inner.lock().await;
        let has_page = |pool: &&Arc<Pool>| pool.options.load().maintenance_page.is_some();
        inner.live.values().map(|live| &live.pool).filter(has_page).cloned().collect()
    }

    /// All routes, sorted by host.
    pub(in crate::proxy) async fn list_routes(&self) -> Vec<RouteView> {
        let inner = self.inner.lock().await;
        let mut all = inner.routes.clone();
        all.extend(inner.configured_routes.clone());
        all.into_iter()
            .map(|(host, pool)| {
                let configured = inner.configured_routes.contains_key(&host);
                RouteView { host, pool, configured }
            })
            .collect()
    }

    /// Sends a host's requests to a pool, or to none. Runs to its end even when nobody waits for it any more.
    pub(in crate::proxy) async fn change_route(
        self: &Arc<Self>,
        host: HostPattern,
        pool: Option<PoolName>,
    ) -> Result<(), ChangeError> {
        let registry = Arc::clone(self);
        let inner = Arc::clone(&self.inner).lock_owned().await;
        let changed = tokio::spawn(async move { registry.change_route_locked(inner, host, pool).await });
        match changed.await {
            Ok(changed) => changed,
            Err(died) => std::panic::resume_unwind(died.into_panic()),
        }
    }

    async fn change_route_locked(
        &self,
        mut inner: OwnedMutexGuard<Inner>,
        host: HostPattern,
        pool: Option<PoolName>,
    ) -> Result<(), ChangeError> {
        if inner.configured_routes.contains_key(&host) {
            return Err(ChangeError::ConfiguredRoute { host });
        }
        if inner.routes.get(&host) == pool.as_ref() {
            return Ok(());
        }
        let mut routes = inner.routes.clone();
        match &pool {
            Some(pool) => drop(routes.insert(host.clone(), pool.clone())),
            None => drop(routes.remove(&host)),
        }
        if routes.len() > MAX_ROUTES && pool.is_some() {
            return Err(ChangeError::TooManyRoutes);
        }
        let (state_dir, file) = (self.settings.state_dir.clone(), RoutesFile::new(routes.clone()));
        match tokio::task::spawn_blocking(move || file.save(&state_dir)).await {
            Ok(saved) => saved.map_err(ChangeError::RouteState)?,
            Err(died) => std::panic::resume_unwind(died.into_panic()),
        }
        inner.routes = routes;
        self.reroute(&mut inner).await;
        match pool {
            Some(pool) => tracing::info!(%host, %pool, "a route was made"),
            None => tracing::info!(%host, "a route was deleted"),
        }
        Ok(())
    }
}
