//! The host API over HTTP: routes, the token, limits, and errors as JSON. The calls and types are described in
//! [`vr_common::host_api`].
//!
//! Changes go on when the caller hangs up; every call has a deadline.

mod access;
mod changes;
mod facts;
mod list;
mod logs;
mod refusal;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vr_common::host_api::{
    CleanUpReport, CleanUpRequest, Deleted, DeployRequest, ProcDocument, UptestReport,
};
use vr_common::names::ContainerName;
use vr_common::secret::Secret;

use self::access::Access;
use self::refusal::refuse;
use crate::clean_up::CleanUps;
use crate::deadline::to_the_end;
use crate::error::AgentError;
use crate::host::Host;
use crate::supervision::SETUP_DEADLINE;

/// The longest request, in bytes.
const BODY_LIMIT: usize = 4 << 20;
/// How long a request's body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// How many answers without an end are given at once.
const STREAMS: usize = 128;
/// How long a look at the disk may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);
/// How long a stop, start, restart or delete may take before the caller is told that it goes on.
const CHANGE_DEADLINE: Duration = Duration::from_secs(300);
/// The same for a deploy: a setup, the wait for its turn, and the start.
const DEPLOY_DEADLINE: Duration = SETUP_DEADLINE.saturating_mul(2);

/// What all addresses of an agent share.
#[derive(Debug)]
pub struct Service {
    host: Arc<Host>,
    access: Arc<Access>,
    clean_ups: Arc<CleanUps>,
    streams: Arc<Semaphore>,
    vrun: facts::VrunVersion,
}

type Api = Arc<Service>;

impl Service {
    /// The API of a host. With a token, callers need it or have to show a certificate.
    pub fn new(host: Arc<Host>, token: Option<Secret>, clean_ups: Arc<CleanUps>) -> Self {
        Self {
            host,
            access: Arc::new(Access::new(token)),
            clean_ups,
            streams: Arc::new(Semaphore::new(STREAMS)),
            vrun: facts::VrunVersion::default(),
        }
    }

    /// Has another token from now on; what is under way goes on.
    pub fn change_token(&self, token: Secret) {
        self.access.change(token);
    }
}

/// The API for one address. Without a token, `is_open` says whether everybody may call who can reach it.
pub fn router(service: Arc<Service>, is_open: bool) -> Router {
    let door = service.access.door(is_open);
    Router::new()
        .route("/v1/info", get(facts::info))
        .route("/v1/procs", get(list::list))
        .route("/v1/procs/{name}", get(document).put(deploy).delete(delete))
        .route("/v1/procs/{name}/start", post(start))
        .route("/v1/procs/{name}/stop", post(stop))
        .route("/v1/procs/{name}/restart", post(restart))
        .route("/v1/procs/{name}/uptest", post(uptest))
        .route("/v1/procs/{name}/log", get(logs::log))
        .route("/v1/procs/{name}/log/follow", get(logs::follow))
        .route("/v1/logs", get(logs::kept))
        .route("/v1/changes", get(changes::changes))
        .route("/v1/clean-up", post(clean_up))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "there is no such address; see GET /v1/procs"))
        .method_not_allowed_fallback(async || {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "this address does not take this method")
        })
        .layer(middleware::from_fn_with_state(door, access::check))
        .with_state(service)
}

async fn document(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<ProcDocument>, AgentError> {
    api.host.document_with_usage(&parse(&name)?.to_string()).await.map(Json)
}

async fn deploy(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<ProcDocument>, Response> {
    let name = parse(&name).map_err(IntoResponse::into_response)?;
    let request: DeployRequest = read_json(body, r#"{"proc_yaml": "…"}"#).await?;
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

async fn clean_up(State(api): State<Api>, body: Body) -> Result<Json<CleanUpReport>, Response> {
    let request: CleanUpRequest = read_json(body, r#"{"dry_run": true}, or nothing"#).await?;
    let work = async move { api.clean_ups.run(&api.host, &request).await };
    to_the_end("the clean-up".to_owned(), CHANGE_DEADLINE, work)
        .await
        .map(Json)
        .map_err(IntoResponse::into_response)
}

/// One of the answers that may be given at once without an end, if there is one left.
fn one_more_stream(streams: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(streams).try_acquire_owned().ok()
}

fn too_many_streams() -> Response {
    let text = format!("{STREAMS} streams are open, and there can be no more; close some, or try again");
    refuse(StatusCode::SERVICE_UNAVAILABLE, &text)
}

fn parse(name: &str) -> Result<ContainerName, AgentError> {
    name.parse().map_err(|e: vr_common::names::NameError| AgentError::BadRequest(e.to_string()))
}

/// Reads a request, which may be empty where all of it has defaults.
async fn read_json<T: DeserializeOwned>(body: Body, example: &str) -> Result<T, Response> {
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
    let bytes = if bytes.is_empty() { &b"{}"[..] } else { &bytes[..] };
    serde_json::from_slice(bytes)
        .map_err(|e| refuse(StatusCode::BAD_REQUEST, &format!("expected JSON such as {example}: {e}")))
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
