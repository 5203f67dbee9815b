//! The host API over HTTP: routes, the token, limits, and errors as JSON. The calls and types are described in
//! [`vr_common::host_api`].
//!
//! Changes go on when the caller hangs up; every call has a deadline.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use vr_common::host_api::{
    Deleted, DeployRequest, ErrorBody, HostInfo, ProcDocument, ProcList, UptestReport,
};
use vr_common::names::ContainerName;
use vr_common::secret::Secret;

use crate::error::AgentError;
use crate::host::Host;
use crate::supervision::SETUP_DEADLINE;

/// The longest request, in bytes.
const BODY_LIMIT: usize = 4 << 20;
/// How long a request's body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// How much of a log is given when nothing is said, in bytes.
const LOG_DEFAULT: u64 = 16 * 1024;
/// How long a look at the disk may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);
/// How long a stop, start, restart or delete may take before the caller is told that it goes on.
const CHANGE_DEADLINE: Duration = Duration::from_secs(300);
/// The same for a deploy: a setup, the wait for its turn, and the start.
const DEPLOY_DEADLINE: Duration = SETUP_DEADLINE.saturating_mul(2);

#[derive(Clone)]
struct Api {
    host: Arc<Host>,
    token: Arc<Secret>,
}

/// The API of a host, open to those who know the token.
pub fn router(host: Arc<Host>, token: Secret) -> Router {
    let api = Api { host, token: Arc::new(token) };
    Router::new()
        .route("/v1/info", get(info))
        .route("/v1/procs", get(list))
        .route("/v1/procs/{name}", get(document).put(deploy).delete(delete))
        .route("/v1/procs/{name}/start", post(start))
        .route("/v1/procs/{name}/stop", post(stop))
        .route("/v1/procs/{name}/restart", post(restart))
        .route("/v1/procs/{name}/uptest", post(uptest))
        .route("/v1/procs/{name}/log", get(log))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "there is no such address; see GET /v1/procs"))
        .method_not_allowed_fallback(async || {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "this address does not take this method")
        })
        .layer(middleware::from_fn_with_state(api.clone(), require_token))
        .with_state(api)
}

async fn info(State(api): State<Api>) -> Result<Json<HostInfo>, AgentError> {
    let host = Arc::clone(&api.host);
    off_thread("info", move || Ok(host.info())).await.map(Json)
}

async fn list(State(api): State<Api>) -> Json<ProcList> {
    Json(api.host.list())
}

async fn document(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<ProcDocument>, AgentError> {
    api.host.document(&parse(&name)?.to_string()).map(Json)
}

async fn deploy(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<ProcDocument>, Response> {
    let name = parse(&name).map_err(IntoResponse::into_response)?;
    let request = read_deploy(body).await?;
    let known_as = name.to_string();
    let work = async move { api.host.deploy(&name, &request.proc_yaml).await };
    to_the_end(known_as, DEPLOY_DEADLINE, work).await.map(Json).map_err(IntoResponse::into_response)
}

async fn start(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<ProcDocument>, AgentError> {
    let name = parse(&name)?.to_string();
    to_the_end(name.clone(), DEPLOY_DEADLINE, async move { api.host.start(&name).await }).await.map(Json)
}

async fn stop(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<ProcDocument>, AgentError> {
    let name = parse(&name)?.to_string();
    to_the_end(name.clone(), CHANGE_DEADLINE, async move { api.host.stop(&name).await }).await.map(Json)
}

async fn restart(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<ProcDocument>, AgentError> {
    let name = parse(&name)?.to_string();
    to_the_end(name.clone(), CHANGE_DEADLINE, async move { api.host.restart(&name).await }).await.map(Json)
}

async fn delete(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Deleted>, AgentError> {
    let name = parse(&name)?.to_string();
    to_the_end(name.clone(), CHANGE_DEADLINE, async move { api.host.delete(&name).await }).await.map(Json)
}

/// Unlike a change, it ends with the connection: nobody else wants the answer. Its deadline is the host's.
async fn uptest(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<UptestReport>, AgentError> {
    api.host.uptest(&parse(&name)?.to_string()).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    bytes: Option<u64>,
}

async fn log(
    State(api): State<Api>,
    Path(name): Path<String>,
    query: Result<Query<LogQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, AgentError> {
    let name = parse(&name)?.to_string();
    let Query(query) = query.map_err(|e| AgentError::BadRequest(e.body_text()))?;
    let text = off_thread("log", move || api.host.log(&name, query.bytes.unwrap_or(LOG_DEFAULT))).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

fn parse(name: &str) -> Result<ContainerName, AgentError> {
    name.parse().map_err(|e: vr_common::names::NameError| AgentError::BadRequest(e.to_string()))
}

async fn read_deploy(body: Body) -> Result<DeployRequest, Response> {
    let whole = Limited::new(body, BODY_LIMIT).collect();
    let bytes = match tokio::time::timeout(BODY_DEADLINE, whole).await {
        Ok(Ok(whole)) => whole.to_bytes(),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            let text = format!("the request is longer than {BODY_LIMIT} bytes");
            return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, &text));
        }
        Ok(Err(e)) => return Err(refuse(StatusCode::BAD_REQUEST, &format!("cannot read the request: {e}"))),
        Err(_) => return Err(refuse(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")),
    };
    serde_json::from_slice(&bytes).map_err(|e| {
        refuse(StatusCode::BAD_REQUEST, &format!("expected JSON such as {{\"proc_yaml\": \"…\"}}: {e}"))
    })
}

/// Carries a change through even if the caller hangs up or has waited long enough.
async fn to_the_end<T: Send + 'static>(
    name: String,
    deadline: Duration,
    work: impl Future<Output = Result<T, AgentError>> + Send + 'static,
) -> Result<T, AgentError> {
    match tokio::time::timeout(deadline, tokio::spawn(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(e)) if e.is_panic() => Err(AgentError::Broken(name)),
        Ok(Err(_)) => Err(AgentError::ShuttingDown),
        Err(_) => Err(AgentError::Slow { name, seconds: deadline.as_secs() }),
    }
}

/// Reads files where that holds up nobody.
async fn off_thread<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    match tokio::time::timeout(LOOK_DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Err(AgentError::ShuttingDown),
        Err(_) => Err(AgentError::Slow { name: what.to_owned(), seconds: LOOK_DEADLINE.as_secs() }),
    }
}

async fn require_token(State(api): State<Api>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_first_chunk::<7>())
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, token)| token);
    if given.is_some_and(|given| same(given, api.token.expose().as_bytes())) {
        return next.run(request).await;
    }
    let text = match given {
        Some(_) => "the token is wrong",
        None => "a token is needed: Authorization: Bearer <token>",
    };
    let mut response = refuse(StatusCode::UNAUTHORIZED, text);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Compares without telling by the time it takes how much of the token was right.
fn same(given: &[u8], token: &[u8]) -> bool {
    let mut difference = given.len() ^ token.len();
    for (at, byte) in token.iter().enumerate() {
        let other = given.get(at).copied().unwrap_or(0);
        difference |= usize::from(std::hint::black_box(byte ^ other));
    }
    std::hint::black_box(difference) == 0
}

fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(ErrorBody { error: error.to_owned(), log_tail: None })).into_response()
}

impl IntoResponse for AgentError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NoSuchProc(_) => StatusCode::NOT_FOUND,
            Self::Different(_) | Self::Overtaken { .. } => StatusCode::CONFLICT,
            Self::Setup { .. } | Self::Start { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Vrun { .. } | Self::File { .. } | Self::NotNoted { .. } | Self::Broken(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Slow { .. } => StatusCode::GATEWAY_TIMEOUT,
        };
        let error = vr_common::exit::chain(&self);
        let log_tail = match self {
            Self::Start { log_tail, .. } => Some(log_tail),
            _ => None,
        };
        (status, Json(ErrorBody { error, log_tail })).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_the_token() {
        assert!(same(b"secret", b"secret"));
        for wrong in [&b"secre"[..], b"secrets", b"", b"Secret", b"secret\0"] {
            assert!(!same(wrong, b"secret"), "{wrong:?}");
        }
        assert!(!same(b"\0\0", b""));
    }
}
