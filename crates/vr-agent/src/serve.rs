//! The daemon: becomes the root's only agent, listens, and serves until it is told to end. Its end touches no
//! proc.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};
use vr_common::lock::{FileLock, LockError};
use vr_common::names::HostName;
use vr_common::paths::VrRoot;
use vr_common::secret::Secret;

use crate::address::{AgentAddress, ListenAddress};
use crate::error::ServeError;
use crate::host::Host;
use crate::listener::{Connection, Listener};
use crate::{api, files};

/// How many connections are served at once; more wait to be accepted.
const CONNECTIONS: usize = 256;
/// How long a request's head may take to arrive, and a connection may be idle.
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
/// How long a connection may last, so that one that nobody reads does not last for ever.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(3600);
/// How long requests in progress may take when the agent ends.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);
/// The longest token, in bytes.
const TOKEN_LIMIT: u64 = 4096;
/// The shortest token that may be used, in bytes.
const TOKEN_LEAST: usize = 16;

/// What an agent is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The host's files.
    pub root: PathBuf,
    /// Where to listen.
    pub listen: ListenAddress,
    /// The host's name, shown with every proc.
    pub host: HostName,
    /// Holds the token that every request needs; white space around it does not count.
    pub token_file: PathBuf,
    /// Where the agent keeps what does not belong into a proc's folder; `agent` below the root by default.
    pub state_dir: Option<PathBuf>,
    /// Where to write an [`AgentAddress`] once requests are taken.
    pub address_file: Option<PathBuf>,
}

/// Serves until SIGTERM or SIGINT.
pub async fn serve(settings: Settings) -> Result<(), ServeError> {
    // From here on a signal is not lost.
    let listen_for = |kind, what| signal(kind).map_err(|source| ServeError::System { what, source });
    let mut terminate = listen_for(SignalKind::terminate(), "listen for SIGTERM")?;
    let mut interrupt = listen_for(SignalKind::interrupt(), "listen for SIGINT")?;

    let token = read_token(&settings.token_file)?;
    let root = make_folder(&settings.root)?;
    let state_dir = make_folder(settings.state_dir.as_deref().unwrap_or(&root.join("agent")))?;
    let _only_agent = FileLock::create(&root.join("agent.lock")).map_err(|e| match e {
        LockError::Held(_) => ServeError::AlreadyServed { root: root.clone() },
        source => ServeError::Lock { root: root.clone(), source },
    })?;
    let failed = |source| ServeError::Listen { address: settings.listen.clone(), source };
    let listener = Listener::bind(&settings.listen, &state_dir).await.map_err(failed)?;
    let address = listener.address().map_err(failed)?;

    let host = Host::open(settings.host.as_str(), VrRoot::new(&root), &state_dir)
        .await
        .map_err(|source| ServeError::File { what: "read or make", path: root.join("procs"), source })?;
    let said = AgentAddress { address: address.clone(), pid: std::process::id() };
    if let Some(path) = &settings.address_file {
        said.save(path).map_err(|source| ServeError::File { what: "write", path: path.clone(), source })?;
    }
    info!(%address, root = %root.display(), host = %settings.host, "serving");

    let router = api::router(host, token);
    let graceful = GracefulShutdown::new();
    tokio::select! {
        () = accept(&listener, &router, &graceful) => {}
        _ = terminate.recv() => info!("SIGTERM: ending; the procs go on"),
        _ = interrupt.recv() => info!("SIGINT: ending; the procs go on"),
    }
    if let Some(path) = &settings.address_file
        && AgentAddress::load(path).is_ok_and(|there| there == said)
        && let Err(e) = files::remove_if_there(path)
    {
        warn!("cannot remove {}: {e}", path.display());
    }
    drop(listener);
    if tokio::time::timeout(GOODBYE_DEADLINE, graceful.shutdown()).await.is_err() {
        info!("some requests are cut off");
    }
    Ok(())
}

/// Takes connections, and never ends.
async fn accept(listener: &Listener, router: &Router, graceful: &GracefulShutdown) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(e) => {
                // Out of file descriptors, or the caller went away already; the first takes a while to pass.
                warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let connection = serve_connection(stream, router.clone(), graceful.watcher());
        tokio::spawn(async move {
            connection.await;
            drop(permit);
        });
    }
}

async fn serve_connection(
    stream: Box<dyn Connection>,
    router: Router,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_DEADLINE, watcher.watch(connection)).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => debug!("a connection broke: {e}"),
        Err(_) => debug!("a connection lasted too long"),
    }
}

fn read_token(path: &Path) -> Result<Secret, ServeError> {
    let text = files::read_text(path, TOKEN_LIMIT)
        .map_err(|source| ServeError::Token { path: path.to_owned(), source })?;
    let token = text.trim();
    if token.len() < TOKEN_LEAST || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ServeError::BadSetting(format!(
            "{} holds no token: expected at least {TOKEN_LEAST} printable ASCII characters without spaces",
            path.display()
        )));
    }
    Ok(Secret::new(token))
}

/// Makes a folder if it is missing, and gives the path that stays the same whoever asks.
fn make_folder(path: &Path) -> Result<PathBuf, ServeError> {
    let failed = |source| ServeError::File { what: "make", path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(failed)?;
    path.canonicalize().map_err(failed)
}
