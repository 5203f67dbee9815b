//! The interface over HTTP, as Supervisor's own server has it: `/RPC2`, and logs that are followed below `/logtail`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use http_body_util::{BodyExt, Limited};
use tracing::{debug, info};
use vr_common::supervisor::fault;
use vr_common::xmlrpc::{self, MAX_DOCUMENT};

use super::Login;
use super::answer::{Budget, Reserved};
use super::calls::Rpc;
use super::faults::about;
use super::logs;
use super::procs::find_process;
use crate::host::Host;
use crate::logs::Follower;
use crate::places::Caller;

/// How long a request's body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// How far before its end a log is followed from, in bytes; Supervisor's number.
const TAIL_BYTES: u64 = 1024;
/// Requests up to that length need not wait for room, in bytes.
const SHORT: usize = 64 * 1024;
/// How much of an answer is handed on at once, in bytes.
const PIECE: usize = 64 * 1024;

#[derive(Debug, Clone)]
struct Server {
    rpc: Arc<Rpc>,
    login: Option<Arc<Login>>,
    budget: Budget,
}

/// Supervisor's interface to a host; without a `login` it is open to everybody who can connect.
pub fn router(host: Arc<Host>, login: Option<Login>) -> Router {
    let budget = Budget::new();
    let rpc = Arc::new(Rpc::new(host, budget.clone()));
    let server = Server { rpc, login: login.map(Arc::new), budget };
    Router::new()
        .route("/RPC2", post(call))
        .route("/RPC2/", post(call))
        .route("/logtail/{name}", get(log_tail))
        .route("/logtail/{name}/{channel}", get(log_tail_of_channel))
        .route("/mainlogtail", get(main_log_tail))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "there is no such address; calls go to /RPC2"))
        .layer(middleware::from_fn_with_state(server.clone(), check))
        .with_state(server)
}

/// Lets only those in who may call.
async fn check(State(server): State<Server>, request: Request, next: Next) -> Response {
    if let Some(login) = &server.login
        && !login.is_shown_by(request.headers().get(header::AUTHORIZATION))
    {
        let mut response = refuse(StatusCode::UNAUTHORIZED, "a user name and a password are needed");
        let headers = response.headers_mut();
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"default\""));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    // A browser says where a page that calls us comes from; none of ours does. So no page that somebody happens to open
    // on this host can stop procs, also where no password is needed.
    if request.headers().contains_key(header::ORIGIN) {
        return refuse(StatusCode::FORBIDDEN, "web pages may not call this interface");
    }
    if let Some(caller) = request.extensions().get::<Caller>() {
        caller.keep_place();
    }
    next.run(request).await
}

async fn call(State(server): State<Server>, request: Request) -> Response {
    let (call, read) = match read_call(&server.budget, request).await {
        Ok(read) => read,
        Err(response) => return response,
    };
    let method = call.method.clone();
    let (done, reserved) = server.rpc.call(call).await;
    drop(read);
    match &done {
        Ok(_) => debug!(method, "called"),
        // As fields, so that nothing that a caller made up looks like a line of its own.
        Err(fault) => info!(method, fault = fault.message, "refused"),
    }
    let text = match done {
        Ok(value) => {
            xmlrpc::write_response(&value).unwrap_or_else(|e| xmlrpc::write_fault(&about(fault::FAILED, e)))
        }
        Err(fault) => xmlrpc::write_fault(&fault),
    };
    answer(text, reserved)
}

async fn read_call(budget: &Budget, request: Request) -> Result<(xmlrpc::Call, Option<Reserved>), Response> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let Some(length) = length.and_then(|text| text.parse::<usize>().ok()) else {
        return Err(refuse(StatusCode::LENGTH_REQUIRED, "a Content-Length is needed"));
    };
    if length > MAX_DOCUMENT {
        let text = format!("the request is longer than {MAX_DOCUMENT} bytes");
        return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, &text));
    }
    let mut reserved = None;
    if length > SHORT {
        reserved = budget.reserve(length).await;
        if reserved.is_none() {
            let text = "there are too many long requests; try again later";
            return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, text));
        }
    }
    let whole = Limited::new(request.into_body(), length).collect();
    let bytes = match tokio::time::timeout(BODY_DEADLINE, whole).await {
        Ok(Ok(whole)) => whole.to_bytes(),
        Ok(Err(e)) => return Err(refuse(StatusCode::BAD_REQUEST, &format!("cannot read the request: {e}"))),
        Err(_) => return Err(refuse(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")),
    };
    match xmlrpc::read_call(&bytes) {
        Ok(call) if !call.method.is_empty() => Ok((call, reserved)),
        Ok(_) => Err(refuse(StatusCode::BAD_REQUEST, "the call names no method")),
        Err(e) => Err(refuse(StatusCode::BAD_REQUEST, &e.to_string())),
    }
}

/// The answer in pieces, so that what was reserved for it is kept until nearly all of it is with the caller.
fn answer(text: String, reserved: Option<Reserved>) -> Response {
    let length = text.len();
    let left = (Bytes::from(text), reserved);
    let pieces = stream::unfold(left, async |(mut left, reserved)| {
        if left.is_empty() {
            return None;
        }
        let piece = left.split_to(left.len().min(PIECE));
        Some((Ok::<_, std::convert::Infallible>(piece), (left, reserved)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/xml")),
        (header::CONTENT_LENGTH, HeaderValue::from(length)),
    ];
    (headers, Body::from_stream(pieces)).into_response()
}

async fn log_tail(State(server): State<Server>, Path(name): Path<String>) -> Response {
    follow(&server, &name).await
}

async fn log_tail_of_channel(
    State(server): State<Server>,
    Path((name, channel)): Path<(String, String)>,
) -> Response {
    match channel.as_str() {
        "stdout" => follow(&server, &name).await,
        "stderr" => refuse(StatusCode::NOT_FOUND, "there is no error log; errors go to the one log"),
        _ => refuse(StatusCode::NOT_FOUND, "there is no such log: expected stdout"),
    }
}

async fn main_log_tail() -> Response {
    refuse(StatusCode::NOT_FOUND, "the agent's own log has no file of its own; it goes to standard error")
}

/// A log that goes on until its proc does not, or its reader does not.
async fn follow(server: &Server, name: &str) -> Response {
    let host = server.rpc.host();
    let found = find_process(host, name);
    let (Ok(document), Ok(log)) = (found, logs::path(host, name).await) else {
        return refuse(StatusCode::NOT_FOUND, "there is no such process");
    };
    if !log.exists() {
        return refuse(StatusCode::NOT_FOUND, "the process has no log yet");
    }
    let (host, name) = (Arc::clone(host), document.name);
    let follower = Follower::new(log, TAIL_BYTES, move || host.snapshot(&name).is_some());
    let pieces = stream::unfold(follower, async |mut follower| match follower.next().await {
        Ok(Some(piece)) => Some((Ok(Bytes::from(piece)), follower)),
        Ok(None) => None,
        Err(e) => Some((Err(e), follower)),
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain;charset=utf-8")),
        // supervisorctl reads until the connection is closed.
        (header::CONNECTION, HeaderValue::from_static("close")),
        // Says to proxies that nothing is to be held back.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(pieces)).into_response()
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, format!("{why}\n")).into_response()
}
