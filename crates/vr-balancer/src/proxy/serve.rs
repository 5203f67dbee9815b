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
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vr_common::lock::{FileLock, LockError};
use vr_common::names::PoolName;

use super::forward::DataPlane;
use super::registry::{ChangeError, Registry, Settings};
use super::state::{StateError, StateFile};
use super::{Limits, control};

/// How often connections that nobody uses are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How often pools whose address another program had try to get it.
const LISTEN_AGAIN_EVERY: Duration = Duration::from_secs(1);

/// What `vr-balancer serve` is told.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Folder of the state file and the lock; made (0700) when missing.
    pub state_dir: PathBuf,
    /// The control socket's path.
    pub control_socket: PathBuf,
    /// The address that pools listen on whose address is not given in `pools`.
    pub listen_host: IpAddr,
    /// The ports for such pools.
    pub ports: RangeInclusive<u16>,
    /// Pools with an address of their own. It listens from the start and for ever, and outranks what the state
    /// file says.
    pub pools: BTreeMap<PoolName, SocketAddr>,
    /// Proxies in front of this one: what they say about their clients in `X-Forwarded-…` and `Forwarded` is
    /// passed on and continued, what anybody else says is not.
    pub trusted_proxies: Vec<IpAddr>,
    /// Time-outs and sizes.
    pub limits: Limits,
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
    /// Somebody serves that control socket.
    #[error("another program serves the control socket {}", path.display())]
    ControlInUse {
        /// The socket.
        path: PathBuf,
    },
}

/// Runs the proxy until `stop` is ready, and ends gracefully: addresses and control socket are given back at once,
/// open requests and tunnels have [`Limits::stop`] to end.
pub async fn serve(options: ServeOptions, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
    let ServeOptions { state_dir, control_socket, listen_host, ports, pools, trusted_proxies, limits } =
        options;
    allow_many_connections();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&state_dir)
        .map_err(|source| ServeError::StateDir { path: state_dir.clone(), source })?;
    let lock = FileLock::create(&state_dir.join("lock"))?;
    let state = StateFile::load(&state_dir)?;

    let patience = limits.stop;
    let trusted_proxies = trusted_proxies.iter().map(IpAddr::to_canonical).collect();
    let plane = Arc::new(DataPlane { limits, trusted_proxies, tasks: TaskTracker::new() });
    let settings = Settings { state_dir, listen_host, ports, fixed: pools };
    let registry = Arc::new(Registry::start(settings, Arc::clone(&plane), state).await?);
    let (listener, socket_file) = control::bind(&control_socket)?;
    tracing::info!(control_socket = %control_socket.display(), "the proxy is ready");

    let stop_control = CancellationToken::new();
    let controlling = tokio::spawn(control::serve(listener, Arc::clone(&registry), stop_control.clone()));
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut listen_again = tokio::time::interval(LISTEN_AGAIN_EVERY);
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = stop.as_mut() => break,
            _ = sweep.tick() => registry.sweep().await,
            _ = listen_again.tick() => registry.listen_where_possible().await,
        }
    }

    tracing::info!("stopping: no new connections");
    // The change that is being made is waited for; then the folder is free for the next process,
    // while this one still answers what it has begun.
    registry.stop().await;
    stop_control.cancel();
    if let Err(error) = controlling.await {
        tracing::error!(%error, "the task of the control socket died");
    }
    drop(socket_file);
    drop(lock);
    plane.tasks.close();
    if tokio::time::timeout(patience, plane.tasks.wait()).await.is_err() {
        tracing::warn!(open = plane.tasks.len(), "stopped with connections still open");
    }
    Ok(())
}

/// Every request needs two sockets; the usual limit of 1024 files is soon reached.
fn allow_many_connections() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
