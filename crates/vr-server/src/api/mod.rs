//! The HTTP API v1, the streams, `/files/` and the page at `/`.
//!
//! A request reads what the store wants and what hosts were last seen to have; it changes what is wanted, or asks
//! for work and wakes the conductor. It must not deploy, build or route anything itself, and knows no SQL.
//! Serve it with `into_make_service_with_connect_info::<SocketAddr>()`, so that wrong passwords are held against
//! the address that they come from.

mod actions;
mod addresses;
mod auth;
mod body;
mod dispatches;
mod documents;
mod error;
mod feed;
mod files;
mod input;
mod objects;
mod page;
mod paging;
mod procs;
mod streams;
#[cfg(test)]
mod tests;
mod yaml_fields;

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Router};
use http::{HeaderValue, StatusCode, Uri, header};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

pub use auth::{Auth, hash_password};

use crate::conductor::Balancers;
use crate::events::EventLog;
use crate::hosts::Fleet;
use crate::store::Store;
use crate::store::resources::Resource;
use addresses::PoolAddresses;
use error::Failure;

/// What the API works with.
#[derive(Clone)]
pub struct ApiState {
    /// What is wanted, and who may want it.
    pub store: Store,
    /// What happened and happens.
    pub events: EventLog,
    /// The hosts.
    pub fleet: Fleet,
    /// The balancers, by the names of the settings.
    pub balancers: Balancers,
    /// Woken when there is work for the conductor.
    pub wake: Arc<Notify>,
    /// The root of `/files/`.
    pub files: PathBuf,
    /// The check of users.
    pub auth: Auth,
    /// Ends streams when the server is to end.
    pub stop: CancellationToken,
}

impl fmt::Debug for ApiState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiState").field("files", &self.files).finish_non_exhaustive()
    }
}

struct Shared {
    state: ApiState,
    addresses: PoolAddresses,
    /// How many more logs may be followed.
    logs: Arc<Semaphore>,
}

/// The state of all handlers.
#[derive(Clone)]
struct Api(Arc<Shared>);

impl Deref for Api {
    type Target = ApiState;

    fn deref(&self) -> &ApiState {
        &self.0.state
    }
}

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long one may take that waits for a proc to stop in its own time.
const HOST_DEADLINE: Duration = Duration::from_secs(150);

/// How long one may take that removes what a host no longer needs.
const CLEAN_UP_DEADLINE: Duration = Duration::from_secs(11 * 60);
/// How many logs may be followed at once: each holds a connection here and one to a host.
const LOGS: usize = 200;

struct Route {
    path: String,
    methods: MethodRouter<Api>,
    /// None for what may flow for as long as it wants.
    deadline: Option<Duration>,
}

/// All routes that need a user; each is there with and without its final slash.
fn routes() -> Vec<Route> {
    let mut routes = Vec::new();
    let mut add = |path: &str, deadline, methods| {
        routes.push(Route { path: path.to_owned(), methods, deadline });
    };
    let quick = Some(DEADLINE);
    for resource in Resource::ALL {
        let base = format!("/api/v1/{resource}/");
        let of = Extension(resource);
        add(&base, quick, get(objects::list).post(objects::create).layer(of));
        let methods = get(objects::show).put(objects::replace).patch(objects::amend).delete(objects::delete);
        add(&format!("{base}{{key}}/"), quick, methods.layer(of));
        add(&format!("{base}{{key}}/versions/"), quick, get(objects::versions).layer(of));
    }
    add("/api/v1/swarms/{key}/swarm/", quick, post(actions::dispatch_swarm));
    add("/api/v1/swarms/{key}/procs/", quick, get(procs::of_swarm));
    add("/api/v1/builds/{key}/build/", quick, post(actions::build));
    add("/api/v1/hosts/{key}/procs/", quick, get(procs::of_host));
    let of_proc = get(procs::show).post(procs::act).delete(procs::delete);
    add("/api/v1/hosts/{key}/procs/{proc}/", Some(HOST_DEADLINE), of_proc);
    add("/api/v1/hosts/{key}/clean-up/", Some(CLEAN_UP_DEADLINE), post(procs::clean_up));
    add("/api/v1/dispatches/", quick, get(dispatches::list));
    add("/api/v1/dispatches/{id}/", quick, get(dispatches::show));
    add("/api/v1/events/", quick, get(feed::list));
    add("/api/streams/events/", None, get(feed::stream));
    add("/api/streams/proc_changes/", None, get(streams::proc_changes));
    add("/api/streams/proc_log/{key}/{proc}/", None, get(streams::proc_log));
    add("/", quick, get(page::show));
    routes
}

/// The routes that everybody may use: hosts fetch builds, and somebody asks whether the server is there.
fn open_routes() -> Vec<Route> {
    vec![
        Route { path: "/files/{*path}".into(), methods: get(files::serve), deadline: None },
        Route { path: "/healthz".into(), methods: get(|| async { "ok\n" }), deadline: Some(DEADLINE) },
    ]
}

/// The whole service.
pub fn router(state: ApiState) -> Router {
    let addresses = PoolAddresses::new(Arc::clone(&state.balancers));
    let logs = Arc::new(Semaphore::new(LOGS));
    let api = Api(Arc::new(Shared { state, addresses, logs }));
    let guarded = assemble(routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(api.clone(), auth::require))
        .layer(middleware::from_fn(auth::same_site));
    let open = assemble(open_routes()).method_not_allowed_fallback(wrong_method);
    open.merge(guarded)
        .layer(DefaultBodyLimit::max(body::MAX_BODY))
        .layer(middleware::from_fn(strict_headers))
        .with_state(api)
}

fn assemble(routes: Vec<Route>) -> Router<Api> {
    let mut router = Router::new();
    for Route { path, methods, deadline } in routes {
        let methods = match deadline {
            Some(deadline) => methods.layer(middleware::from_fn_with_state(deadline, in_time)),
            None => methods,
        };
        if let Some(bare) = path.strip_suffix('/').filter(|bare| !bare.is_empty()) {
            router = router.route(bare, methods.clone());
        }
        router = router.route(&path, methods);
    }
    router
}

async fn no_such_path(uri: Uri) -> Failure {
    Failure::not_found(format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(method: http::Method, uri: Uri) -> Failure {
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}

async fn in_time(State(deadline): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("the request was not done within {} s", deadline.as_secs());
            Failure::new(StatusCode::GATEWAY_TIMEOUT, message).into_response()
        }
    }
}

/// Whatever is sent, a browser shall neither run, embed nor guess at it.
async fn strict_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if !response.headers().contains_key(header::CACHE_CONTROL) {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}
