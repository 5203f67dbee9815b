//! The control socket: JSON over HTTP/1.1 on a unix socket that only its owner may open.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use vr_common::exit::chain;
use vr_common::names::PoolName;

use super::changes::{Change, ChangeError};
use super::options::HostPattern;
use super::registry::Registry;
use super::serve::ServeError;
use super::wire::{
    DeleteBody, DeletePoolAnswer, DrainAnswer, DrainBody, ErrorBody, MAX_BODY_BYTES, NodesBody, PoolList,
    RouteBody, RouteList, SetAnswer,
};

/// How long a caller may take to send its request.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause after an `accept` that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A request that is answered with an error.
struct Refusal {
    status: StatusCode,
    reason: String,
}

fn bad(reason: impl Into<String>) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, reason: reason.into() }
}

impl From<ChangeError> for Refusal {
    fn from(error: ChangeError) -> Self {
        let status =
            if error.is_bad_input() { StatusCode::BAD_REQUEST } else { StatusCode::SERVICE_UNAVAILABLE };
        Self { status, reason: chain(&error) }
    }
}

/// The socket's file; taken away when this is dropped.
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove the control socket");
        }
    }
}

/// Puts the socket in place, over one that a dead process left behind but not over one that somebody serves.
/// It gets its permissions before it has its name.
pub(super) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), ServeError> {
    let failed = |source| ServeError::Control { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(_) if StdUnixStream::connect(path).is_ok() => {
            return Err(ServeError::ControlInUse { path: path.to_owned() });
        }
        Ok(meta) if !std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            return Err(failed(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket",
            )));
        }
        _ => {}
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&aside).map_err(failed)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&aside, path).map_err(failed)?;
    Ok((listener, SocketFile(path.to_owned())))
}

/// Serves the socket until `stop`.
pub(super) async fn serve(listener: UnixListener, registry: Arc<Registry>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (registry, stop) = (Arc::clone(&registry), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let registry = Arc::clone(&registry);
                async move { Ok::<_, std::convert::Infallible>(answer(&registry, request).await) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                ended = served => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to the control socket ended early");
                },
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn answer(registry: &Arc<Registry>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, text) = match dispatch(registry, request).await {
        Ok(text) => (StatusCode::OK, text),
        Err(Refusal { status, reason }) => {
            tracing::warn!(%status, reason, "a control request was refused");
            (status, to_json(&ErrorBody { error: reason }).unwrap_or_default())
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(value)
        .map_err(|error| Refusal { status: StatusCode::INTERNAL_SERVER_ERROR, reason: error.to_string() })
}

async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T, Refusal> {
    let whole = tokio::time::timeout(PATIENCE, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    let bytes = match whole {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) => return Err(bad(format!("the body cannot be read: {error}"))),
        Err(_) => return Err(bad("the body did not arrive in time")),
    };
    serde_json::from_slice(&bytes).map_err(|error| bad(format!("the body is not as expected: {error}")))
}

async fn dispatch(registry: &Arc<Registry>, request: Request<Incoming>) -> Result<Vec<u8>, Refusal> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let Some(rest) = path.strip_prefix("/v1/") else {
        return Err(unknown(&head.method, path));
    };
    let parts: Vec<&str> = rest.split('/').collect();
    match (&head.method, parts.as_slice()) {
        (&Method::GET, ["pools"]) => to_json(&PoolList { pools: registry.list().await }),
        (&Method::GET, ["stats"]) => to_json(&registry.stats().await),
        (&Method::GET, ["pools", pool]) => to_json(&registry.get(&pool_name(pool)?).await),
        (&Method::DELETE, ["pools", pool]) => {
            let only_if_empty = match head.uri.query() {
                None => false,
                Some("if_empty=true") => true,
                Some(other) => return Err(bad(format!("unknown query {other:?}, expected if_empty=true"))),
            };
            let changed = registry.change(pool_name(pool)?, Change::DeletePool { only_if_empty }).await?;
            to_json(&DeletePoolAnswer { gone: !changed.exists })
        }
        (&Method::POST, ["pools", pool, "add"]) => {
            let pool = pool_name(pool)?;
            let NodesBody { nodes } = read_json(body).await?;
            to_json(&registry.change(pool, Change::Add(nodes)).await?.view)
        }
        (&Method::POST, ["pools", pool, "set"]) => {
            let pool = pool_name(pool)?;
            let NodesBody { nodes } = read_json(body).await?;
            let changed = registry.change(pool, Change::Set(nodes)).await?;
            to_json(&SetAnswer { pool: changed.view, removed: changed.removed })
        }
        (&Method::POST, ["pools", pool, "delete"]) => {
            let pool = pool_name(pool)?;
            let DeleteBody { nodes, close_after_ms } = read_json(body).await?;
            let close_after = close_after_ms.map(Duration::from_millis);
            to_json(&registry.change(pool, Change::Delete { nodes, close_after }).await?.view)
        }
        (&Method::POST, ["pools", pool, "drain"]) => {
            let pool = pool_name(pool)?;
            let DrainBody { nodes, grace_ms } = read_json(body).await?;
            let reports = registry.wait_drained(&pool, &nodes, Duration::from_millis(grace_ms)).await;
            to_json(&DrainAnswer { reports })
        }
        (&Method::GET, ["routes"]) => to_json(&RouteList { routes: registry.list_routes().await }),
        (&Method::PUT, ["routes", host]) => {
            let host = host_pattern(host)?;
            let RouteBody { pool } = read_json(body).await?;
            registry.change_route(host, Some(pool)).await?;
            to_json(&RouteList { routes: registry.list_routes().await })
        }
        (&Method::DELETE, ["routes", host]) => {
            registry.change_route(host_pattern(host)?, None).await?;
            to_json(&RouteList { routes: registry.list_routes().await })
        }
        _ => Err(unknown(&head.method, path)),
    }
}

fn unknown(method: &Method, path: &str) -> Refusal {
    Refusal { status: StatusCode::NOT_FOUND, reason: format!("there is no {method} {path}") }
}

fn pool_name(text: &str) -> Result<PoolName, Refusal> {
    text.parse().map_err(|error: vr_common::names::NameError| bad(error.to_string()))
}

fn host_pattern(text: &str) -> Result<HostPattern, Refusal> {
    text.replace("%5B", "[").replace("%5D", "]").parse().map_err(|error: String| bad(error))
}
