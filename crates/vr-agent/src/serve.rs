//! The daemon: becomes the root's only agent, listens, and serves until it is told to end. Its end touches no
//! proc.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::future::join_all;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};
use vr_common::lock::{FileLock, LockError};
use vr_common::paths::VrRoot;

use crate::address::{AgentAddress, ListenAddress};
use crate::clean_up::{self, CleanUps};
use crate::error::ServeError;
use crate::host::{Host, Options};
use crate::listener::{Folder, Listener};
use crate::places::Places;
use crate::service_manager::{self, READY, STOPPING};
use crate::settings::{self, Settings};
use crate::tls::Tls;
use crate::{api, connection, files, own_names, publisher, rpc, streams};

/// How many connections of one address are served at once.
const CONNECTIONS: usize = 256;
/// How long requests in progress may take when the agent ends.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);
/// How long an agent waits for the end of the one before it.
const SUCCESSION_DEADLINE: Duration = Duration::from_secs(10);
/// How often it looks whether that has come.
const SUCCESSION_LOOK: Duration = Duration::from_millis(20);

/// Somewhere that requests come from, and who answers them.
struct Entrance {
    listener: Listener,
    tls: Option<Arc<Tls>>,
    router: Router,
}

/// The signals that mean something to the agent. From their making on none is lost.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> Result<Self, ServeError> {
        let listen_for = |kind, what| signal(kind).map_err(|source| ServeError::System { what, source });
        Ok(Self {
            terminate: listen_for(SignalKind::terminate(), "listen for SIGTERM")?,
            interrupt: listen_for(SignalKind::interrupt(), "listen for SIGINT")?,
            hang_up: listen_for(SignalKind::hangup(), "listen for SIGHUP")?,
        })
    }

    /// Waits until the agent has to end; until then, `renew` is called for each SIGHUP.
    async fn end(&mut self, renew: impl Fn()) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => renew(),
            }
        }
    }
}

/// Serves until SIGTERM or SIGINT. SIGHUP has certificates and the token read again.
pub async fn serve(settings: Settings) -> Result<(), ServeError> {
    let mut signals = Signals::listen()?;
    let token = settings.token_file.as_deref().map(settings::read_token).transpose()?;
    let supervisor_login = settings.supervisor_login.as_ref().map(|login| {
        rpc::Login::new(&login.username, &login.password)
            .map_err(|e| ServeError::BadSetting(format!("--supervisor-password-file: {e}")))
    });
    let supervisor_login = supervisor_login.transpose()?;
    let tls = settings.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
    let redis = settings.redis_url.as_ref().map(|url| {
        publisher::redis_at(url)
            .map_err(|e| ServeError::BadSetting(format!("--redis-url: {}", vr_common::exit::chain(&e))))
    });
    let redis = redis.transpose()?;
    let root = make_folder(&settings.root)?;
    let state_dir = make_folder(settings.state_dir.as_deref().unwrap_or(&root.join("agent")))?;
    let _only_agent = tokio::select! {
        lock = succeed(&root) => lock?,
        signal = signals.end(|| {}) => {
            info!("{signal}: ending before the other agent did");
            return Ok(());
        }
    };

    let listeners = bind_all(&settings.listen, Folder::Private(&state_dir)).await?;
    let supervisor_listeners = bind_all(&settings.supervisor_listen, Folder::Ours).await?;
    let addresses = |listeners: &[Listener]| -> Result<Vec<ListenAddress>, ServeError> {
        let address = |listener: &Listener| {
            listener
                .address()
                .map_err(|source| ServeError::System { what: "learn where the agent listens", source })
        };
        listeners.iter().map(address).collect()
    };
    let (mut api_at, supervisor_at) = (addresses(&listeners)?, addresses(&supervisor_listeners)?);
    say_who_may_call(&settings, &api_at);

    let options = Options { keep_logs_days: settings.keep_logs };
    let host = Host::open_with(settings.host.as_str(), VrRoot::new(&root), &state_dir, options)
        .await
        .map_err(|source| ServeError::File { what: "read or make", path: root.join("procs"), source })?;
    let said = AgentAddress {
        address: api_at.remove(0),
        pid: std::process::id(),
        more: api_at,
        supervisor: supervisor_at,
    };
    if let Some(path) = &settings.address_file {
        said.save(path).map_err(|source| ServeError::File { what: "write", path: path.clone(), source })?;
    }

    let publishing = redis.map(|redis| publisher::own::start(&host, redis)).transpose();
    let publishing = publishing.map_err(|source| ServeError::System { what: "start to publish", source })?;

    let (ending, ends) = watch::channel(false);
    let clean_ups = Arc::new(CleanUps::default());
    let cleaning = tokio::spawn(clean_up::now_and_then(Arc::downgrade(&host), Arc::clone(&clean_ups)));
    let service = Arc::new(api::Service::new(Arc::clone(&host), token, clean_ups));
    let mut entrances = Vec::new();
    for listener in listeners {
        // A unix socket is in a folder that only we and root can enter; what it says needs no other proof.
        let (is_socket, tls) = match &listener {
            Listener::Unix(..) => (true, None),
            Listener::Tcp(_) => (false, tls.clone()),
        };
        let is_open = is_socket || !settings.tls.as_ref().is_some_and(|tls| tls.only_certificates);
        let router = api::router(Arc::clone(&service), is_open);
        let router = match is_open && !is_socket && settings.token_file.is_none() {
            true => own_names::only_for(router, settings.host.as_str()),
            false => router,
        };
        let router = streams::ending_with(router, ends.clone());
        entrances.push(Entrance { listener, tls, router });
    }
    let is_guarded = supervisor_login.is_some();
    let supervisor = streams::ending_with(rpc::router(host, supervisor_login), ends);
    for listener in supervisor_listeners {
        let router = match &listener {
            Listener::Tcp(_) if !is_guarded => {
                own_names::only_for(supervisor.clone(), settings.host.as_str())
            }
            _ => supervisor.clone(),
        };
        entrances.push(Entrance { listener, tls: None, router });
    }
    info!(address = %said.address, root = %root.display(), host = %settings.host, "serving");
    service_manager::tell(READY);

    let graceful = GracefulShutdown::new();
    let renew = || {
        info!("SIGHUP: reading token and certificates again");
        if let Some(path) = &settings.token_file {
            match settings::read_token(path) {
                Ok(token) => service.change_token(token),
                Err(e) => warn!("the token from before stays valid: {}", vr_common::exit::chain(&e)),
            }
        }
        if let Some(tls) = &tls {
            tls.look(true);
        }
    };
    tokio::select! {
        _ = join_all(entrances.iter().map(|entrance| accept(entrance, &graceful))) => {}
        signal = signals.end(renew) => info!("{signal}: ending; the procs go on"),
    }
    service_manager::tell(STOPPING);
    cleaning.abort();
    if let Some(path) = &settings.address_file
        && AgentAddress::load(path).is_ok_and(|there| there == said)
        && let Err(e) = files::remove_if_there(path)
    {
        warn!("cannot remove {}: {e}", path.display());
    }
    drop(entrances);
    // Streams end here and now, other requests in a moment.
    ending.send_replace(true);
    let last_words = async {
        if let Some(publishing) = publishing {
            publishing.end().await;
        }
    };
    let (requests, ()) = tokio::join!(timeout(GOODBYE_DEADLINE, graceful.shutdown()), last_words);
    if requests.is_err() {
        info!("some requests are cut off");
    }
    Ok(())
}

/// Becomes the only agent of a root. Another one may be about to end: that is waited for.
async fn succeed(root: &Path) -> Result<FileLock, ServeError> {
    let deadline = Instant::now() + SUCCESSION_DEADLINE;
    let mut waits = false;
    loop {
        match FileLock::create(&root.join("agent.lock")) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held(_)) if Instant::now() < deadline => {
                if !waits {
                    info!(root = %root.display(), "another agent serves; waiting for its end");
                    waits = true;
                }
                sleep(SUCCESSION_LOOK).await;
            }
            Err(LockError::Held(_)) => return Err(ServeError::AlreadyServed { root: root.to_owned() }),
            Err(source) => return Err(ServeError::Lock { root: root.to_owned(), source }),
        }
    }
}

async fn bind_all(addresses: &[ListenAddress], folder: Folder<'_>) -> Result<Vec<Listener>, ServeError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = Listener::bind(address, folder).await;
        listeners.push(listener.map_err(|source| ServeError::Listen { address: address.clone(), source })?);
    }
    Ok(listeners)
}

/// Warns of what is allowed and yet seldom meant.
fn say_who_may_call(settings: &Settings, addresses: &[ListenAddress]) {
    let tcp = || addresses.iter().filter(|address| matches!(address, ListenAddress::Tcp(_)));
    let only_certificates = settings.tls.as_ref().is_some_and(|tls| tls.only_certificates);
    if settings.token_file.is_none() && !only_certificates {
        for address in tcp() {
            warn!(%address, "no token: every user and every app of this machine may call, and is root then");
        }
    }
    if settings.tls.is_none() {
        for address in tcp().filter(|address| !address.is_local()) {
            warn!(%address, "no TLS: the token can be read on its way");
        }
    }
    if settings.supervisor_login.is_none() {
        for address in
            settings.supervisor_listen.iter().filter(|address| matches!(address, ListenAddress::Tcp(_)))
        {
            warn!(%address, "no password: every user and every app of this machine may start and stop procs");
        }
    }
}

/// Takes connections, and never ends.
async fn accept(entrance: &Entrance, graceful: &GracefulShutdown) {
    let places = Places::new(CONNECTIONS);
    loop {
        let stream = match entrance.listener.accept().await {
            Ok(stream) => stream,
            Err(e) => {
                // Out of file descriptors, or the caller went away already; the first takes a while to pass.
                warn!("cannot accept a connection: {e}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = places.take().await else { return };
        let (tls, router) = (entrance.tls.clone(), entrance.router.clone());
        let connection = connection::serve(stream, place.caller(), tls, router, graceful.watcher());
        tokio::spawn(place.serve(connection));
    }
}

/// Makes a folder if it is missing, and gives the path that stays the same whoever asks.
fn make_folder(path: &Path) -> Result<PathBuf, ServeError> {
    let failed = |source| ServeError::File { what: "make", path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(failed)?;
    path.canonicalize().map_err(failed)
}
