//! The life of the proxy's process: lock, state, listeners, control socket, and a graceful end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vr_common::exit::chain;
use vr_common::lock::{FileLock, LockError};
use vr_common::names::PoolName;

use super::access_log::AccessLog;
use super::admission::Admission;
use super::changes::ChangeError;
use super::configuration::{Configuration, ConfigurationError};
use super::forward::DataPlane;
use super::registry::{Registry, Settings};
use super::routes::Router;
use super::state::{RoutesFile, StateError, StateFile};
use super::tls::{Certificates, TlsError};
use super::{Limits, control, metrics};

/// How often connections that nobody uses are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How often pools whose address another program had try to get it, and files that may have changed are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long files are waited for.
const DISK_PATIENCE: Duration = Duration::from_secs(5);
/// How long the last lines of the access log are waited for.
const LOG_PATIENCE: Duration = Duration::from_secs(2);
/// Open files that are no connections.
const OTHER_FILES: u64 = 64;
/// The most connections if nobody says another number, however many files may be open.
const MAX_CONNECTIONS: u64 = 50_000;

/// What a running proxy may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End gracefully.
    Stop,
    /// Read the configuration and the certificates again, and open the access log anew.
    Reload,
    /// Open the access log anew.
    ReopenLog,
}

/// What `vr-balancer serve` is told.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Folder of the state file and the lock; made (0700) when missing.
    pub state_dir: PathBuf,
    /// The control socket's path.
    pub control_socket: PathBuf,
    /// The address that pools listen on whose address is not given in `pools`.
    pub listen_host: IpAddr,
    /// The ports for such pools; none if they shall have no addresses.
    pub ports: Option<RangeInclusive<u16>>,
    /// Pools with an address of their own. It listens from the start and for ever, and outranks what the state
    /// file says.
    pub pools: BTreeMap<PoolName, SocketAddr>,
    /// Time-outs and sizes; those that the configuration file has, too, are from there.
    pub limits: Limits,
    /// The configuration file, read at the start and with every [`Signal::Reload`].
    pub configuration_file: Option<PathBuf>,
    /// What is configured beside the file. It outranks the file.
    pub configuration: Configuration,
}

/// Why the proxy does not run.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The state folder cannot be made.
    #[error("cannot make {}", path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another proxy uses the folder.
    #[error("another proxy may be using this state folder")]
    Locked(#[from] LockError),
    /// The state file is unreadable.
    #[error("the pools are not known")]
    State(#[from] StateError),
    /// A pool cannot listen.
    #[error(transparent)]
    Pool(#[from] ChangeError),
    /// The control socket cannot be made.
    #[error("cannot make the control socket {}", path.display())]
    Control {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration file is of no use.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// A certificate cannot be used.
    #[error("cannot serve TLS")]
    Tls(#[from] TlsError),
    /// The access log cannot be opened.
    #[error("cannot open the access log {}", path.display())]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The address for metrics cannot be had.
    #[error("cannot listen for metrics at {address}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A pool is given an address twice.
    #[error("pool {0} is given an address twice")]
    RepeatedPool(PoolName),
    /// The process cannot be told of signals.
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
    /// Somebody serves that control socket.
    #[error("another program serves the control socket {}", path.display())]
    ControlInUse {
        /// The socket.
        path: PathBuf,
    },
}

impl ServeError {
    /// Whether what the proxy was told can never work.
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::RepeatedPool(_)
                | Self::Configuration(_)
                | Self::Pool(ChangeError::SharedAddress { .. } | ChangeError::ListenerTwice { .. })
        )
    }
}

impl ServeOptions {
    /// What the file and the command line say together.
    fn read_configuration(&self) -> Result<Configuration, ConfigurationError> {
        let mut read = match &self.configuration_file {
            Some(path) => Configuration::read(path)?,
            None => Configuration::default(),
        };
        let given = self.configuration.clone();
        read.listeners.extend(given.listeners);
        read.routes.extend(given.routes);
        read.pools.extend(given.pools);
        read.trusted_proxies.extend(given.trusted_proxies);
        read.access_log = given.access_log.or(read.access_log);
        read.metrics = given.metrics.or(read.metrics);
        Ok(read)
    }
}

/// A proxy as its process sees it.
struct Proxy {
    options: ServeOptions,
    /// What was read at the start, or last.
    configuration: Configuration,
    plane: Arc<DataPlane>,
    registry: Arc<Registry>,
    certificates: Option<Arc<Certificates>>,
}

/// Runs the proxy until `next_signal` says to stop, and ends gracefully: addresses and control socket are given back at
/// once, open requests and tunnels have [`Limits::stop`] to end. `next_signal` may be dropped and asked again.
pub async fn serve(
    options: ServeOptions,
    mut next_signal: impl AsyncFnMut() -> Signal,
) -> Result<(), ServeError> {
    let files = allow_many_connections();
    let configuration = options.read_configuration()?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&options.state_dir)
        .map_err(|source| ServeError::StateDir { path: options.state_dir.clone(), source })?;
    let lock = FileLock::create(&options.state_dir.join("lock"))?;
    let (socket_file, mut proxy, stop_serving, serving) = {
        let proxy = Proxy::start(options, configuration, files).await?;
        let (listener, socket_file) = control::bind(&proxy.options.control_socket)?;
        let stop = CancellationToken::new();
        let mut serving =
            vec![tokio::spawn(control::serve(listener, Arc::clone(&proxy.registry), stop.clone()))];
        serving.extend(proxy.serve_metrics(&stop).await?);
        (socket_file, proxy, stop, serving)
    };
    tracing::info!(control_socket = %proxy.options.control_socket.display(), "the proxy is ready");

    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            signal = next_signal() => match signal {
                Signal::Stop => break,
                Signal::Reload => proxy.reload().await,
                Signal::ReopenLog => proxy.reopen_log(),
            },
            _ = sweep.tick() => proxy.registry.sweep().await,
            _ = look.tick() => {
                proxy.registry.listen_where_possible().await;
                proxy.look_at_files(false).await;
            }
        }
    }

    tracing::info!("stopping: no new connections");
    // The change that is being made is waited for; then the folder is free for the next process,
    // while this one still answers what it has begun.
    proxy.registry.stop().await;
    stop_serving.cancel();
    for task in serving {
        if let Err(error) = task.await {
            tracing::error!(%error, "the task of the control socket or of metrics died");
        }
    }
    drop(socket_file);
    drop(lock);
    let plane = proxy.plane;
    plane.tasks.close();
    if tokio::time::timeout(plane.limits.stop, plane.tasks.wait()).await.is_err() {
        tracing::warn!(open = plane.tasks.len(), "stopped with connections still open");
    }
    if let Some(log) = plane.access_log.clone() {
        // It may wait for the disk, but not for long.
        let _ = tokio::task::spawn_blocking(move || log.finish(LOG_PATIENCE)).await;
    }
    Ok(())
}

impl Proxy {
    async fn start(
        options: ServeOptions,
        configuration: Configuration,
        files: u64,
    ) -> Result<Self, ServeError> {
        let state = StateFile::load(&options.state_dir)?;
        let routes = RoutesFile::load(&options.state_dir)?;
        let certificates = match configuration.certificates.as_slice() {
            [] => None,
            files => Some(Arc::new(Certificates::open(files)?)),
        };
        let tls = certificates.as_ref().map(|certificates| certificates.acceptor(configuration.min_tls));
        let access_log = configuration.access_log.as_ref().map(|log| {
            AccessLog::start(log).map_err(|source| ServeError::AccessLog { path: log.file.clone(), source })
        });
        let limits = options.limits.clone();
        let room = usize::try_from((files.saturating_sub(OTHER_FILES) / 2).clamp(1, MAX_CONNECTIONS));
        let limits = Limits {
            min_body_rate: limits.min_body_rate.or(configuration.min_body_rate.filter(|rate| *rate > 0)),
            max_connections: limits.max_connections.or(configuration.max_connections),
            max_connections_per_client: limits
                .max_connections_per_client
                .or(configuration.max_connections_per_client),
            max_streams: configuration.max_streams.unwrap_or(limits.max_streams),
            ..limits
        };
        let most = limits.max_connections.or(room.ok()).unwrap_or(1);
        let plane = Arc::new(DataPlane {
            admission: Arc::new(Admission::new(most, limits.max_connections_per_client)),
            limits,
            trusted_proxies: configuration.trusted_proxies.clone(),
            tasks: TaskTracker::new(),
            router: Router::default(),
            access_log: access_log.transpose()?.map(Arc::new),
        });
        // What the command line says about an address outranks the file.
        let mut fixed = options.pools.clone();
        for (name, pool) in &configuration.pools {
            if let Some(address) = pool.address {
                fixed.entry(name.clone()).or_insert(address);
            }
        }
        let settings = Settings {
            state_dir: options.state_dir.clone(),
            listen_host: options.listen_host,
            ports: options.ports.clone(),
            fixed,
            listeners: configuration.listeners.clone(),
            tls: tls.transpose()?,
        };
        let registry = Registry::start(settings, Arc::clone(&plane), &configuration, state, routes).await?;
        Ok(Self { options, configuration, plane, registry: Arc::new(registry), certificates })
    }

    async fn serve_metrics(&self, stop: &CancellationToken) -> Result<Option<JoinHandle<()>>, ServeError> {
        let Some(address) = self.configuration.metrics else {
            return Ok(None);
        };
        let bound = TcpListener::bind(address).await;
        let listener = bound.map_err(|source| ServeError::Metrics { address, source })?;
        let (registry, plane) = (Arc::clone(&self.registry), Arc::clone(&self.plane));
        Ok(Some(tokio::spawn(metrics::serve(listener, registry, plane, stop.clone()))))
    }

    fn reopen_log(&self) {
        if let Some(log) = &self.plane.access_log {
            tracing::info!("the access log is opened anew");
            log.reopen();
        }
    }

    /// Reads everything again that may have changed, whether it looks so or not.
    async fn reload(&mut self) {
        self.reopen_log();
        let options = self.options.clone();
        match in_background(move || options.read_configuration()).await {
            Some(Ok(read)) => self.reconfigure(read).await,
            Some(Err(error)) => {
                let error = chain(&error);
                tracing::error!(error, "the configuration cannot be used, the old one stays in use");
            }
            None => {}
        }
        self.look_at_files(true).await;
    }

    async fn reconfigure(&mut self, read: Configuration) {
        let without = |configuration: &Configuration| {
            let mut rest = configuration.clone();
            rest.routes.clear();
            rest.certificates.clear();
            let addresses = std::mem::take(&mut rest.pools).into_iter();
            let addresses: Vec<_> =
                addresses.filter_map(|(name, pool)| Some((name, pool.address?))).collect();
            (rest, addresses)
        };
        if without(&read) != without(&self.configuration) {
            tracing::warn!(
                "listeners, addresses, logs and limits of the configuration have changed, which needs a restart"
            );
        }
        if let Some(certificates) = self.certificates.clone() {
            let files = read.certificates.clone();
            in_background(move || certificates.replace(&files, false)).await;
        }
        self.registry.reconfigure(&read).await;
        tracing::info!("the configuration was read again");
        // What has not been taken over is compared with what is in use the next time, too.
        self.configuration = Configuration {
            routes: read.routes,
            certificates: read.certificates,
            ..self.configuration.clone()
        };
    }

    /// Reads files again that have changed, or all of them if it is asked for.
    async fn look_at_files(&self, all_the_same: bool) {
        let certificates = self.certificates.clone();
        let pools = self.registry.pools_with_pages().await;
        if certificates.is_none() && pools.is_empty() {
            return;
        }
        in_background(move || {
            if let Some(certificates) = certificates {
                certificates.look(all_the_same);
            }
            pools.iter().for_each(|pool| pool.look_at_page());
        })
        .await;
    }
}

/// Runs what waits for the disk, and is waited for only so long: signals have to be heard.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::time::timeout(DISK_PATIENCE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => Some(done),
        Ok(Err(died)) => std::panic::resume_unwind(died.into_panic()),
        Err(_) => {
            tracing::error!("files are not read, as the disk does not answer");
            None
        }
    }
}

/// Every request needs two sockets; the usual limit of 1024 files is soon reached. Returns the limit.
fn allow_many_connections() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
