//! Metrics in the text format of Prometheus, on an address of their own.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::counters::{BOUNDS, CLASSES, Counted};
use super::forward::DataPlane;
use super::registry::Registry;

/// How long a caller may take to send its request, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most callers at a time.
const CALLERS: usize = 16;
/// The pause after an `accept` that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers `GET /metrics` until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    plane: Arc<DataPlane>,
    stop: CancellationToken,
) {
    let callers = Arc::new(Semaphore::new(CALLERS));
    loop {
        let accepted = async {
            let place = Arc::clone(&callers).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (stream, place) = tokio::select! {
            (accepted, place) = accepted => match accepted {
                Ok((stream, _)) => (stream, place),
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection for metrics");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = stop.cancelled() => return,
        };
        let (registry, plane, stop) = (Arc::clone(&registry), Arc::clone(&plane), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (registry, plane) = (Arc::clone(&registry), Arc::clone(&plane));
                async move { Ok::<_, Infallible>(answer(&registry, &plane, &request).await) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = tokio::time::timeout(2 * PATIENCE, served) => {}
                () = stop.cancelled() => {}
            }
            drop(place);
        });
    }
}

async fn answer(
    registry: &Registry,
    plane: &DataPlane,
    request: &Request<Incoming>,
) -> Response<Full<Bytes>> {
    let is_known =
        request.uri().path() == "/metrics" && [Method::GET, Method::HEAD].contains(request.method());
    let (status, text) = if is_known {
        (StatusCode::OK, text(registry, plane).await)
    } else {
        (StatusCode::NOT_FOUND, "there is only GET /metrics\n".to_owned())
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// The families of metrics, written one after the other. Names of pools and nodes need no escapes.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = if labels.is_empty() {
            writeln!(self.0, "{name} {value}")
        } else {
            writeln!(self.0, "{name}{{{labels}}} {value}")
        };
    }

    /// What is counted about pools or nodes alike; `prefix` says which.
    fn counted(&mut self, prefix: &str, what: &str, all: &[(String, Counted)]) {
        let name = format!("{prefix}_requests_total");
        self.family(&name, "counter", &format!("Answered requests of {what}, by class of status code."));
        for (labels, counted) in all {
            for (class, count) in CLASSES.iter().zip(counted.classes) {
                self.value(&name, &format!("{labels},code=\"{class}\""), count);
            }
        }
        let name = format!("{prefix}_request_duration_seconds");
        let help = format!("Time from the head of a request to the last byte of its answer, of {what}.");
        self.family(&name, "histogram", &help);
        for (labels, counted) in all {
            for (bound, count) in BOUNDS.iter().chain(&["+Inf"]).zip(counted.durations) {
                self.value(&format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), count);
            }
            self.value(&format!("{name}_sum"), labels, counted.seconds);
            self.value(&format!("{name}_count"), labels, counted.durations[BOUNDS.len()]);
        }
        type Read = fn(&Counted) -> u64;
        let bytes: [(&str, &str, Read); 2] = [
            ("sent", "to clients", |counted| counted.sent),
            ("received", "from clients", |counted| counted.received),
        ];
        for (direction, whom, read) in bytes {
            let name = format!("{prefix}_{direction}_bytes_total");
            self.family(&name, "counter", &format!("Bytes of bodies and tunnels {whom}, of {what}."));
            for (labels, counted) in all {
                self.value(&name, labels, read(counted));
            }
        }
    }
}

async fn text(registry: &Registry, plane: &DataPlane) -> String {
    let (pools, draining) = registry.everything().await;
    let mut text = Text::default();

    let [open, accepted, refused] = plane.admission.counts();
    text.family("vr_proxy_connections", "gauge", "Open connections of clients.");
    text.value("vr_proxy_connections", "", open);
    text.family("vr_proxy_connections_total", "counter", "Connections that clients have made.");
    text.value("vr_proxy_connections_total", "", accepted);
    text.family(
        "vr_proxy_refused_connections_total",
        "counter",
        "Connections that were closed at once, as their client had too many.",
    );
    text.value("vr_proxy_refused_connections_total", "", refused);
    text.family("vr_proxy_unrouted_requests_total", "counter", "Requests for hosts without a route.");
    text.value("vr_proxy_unrouted_requests_total", "", plane.router.unrouted());
    if let Some(log) = &plane.access_log {
        let name = "vr_proxy_access_log_dropped_total";
        text.family(name, "counter", "Lines of the access log that could not be written.");
        text.value(name, "", log.dropped());
    }

    text.family("vr_proxy_pool_nodes", "gauge", "Nodes of a pool.");
    for pool in &pools {
        let nodes = pool.upstreams().len();
        text.value("vr_proxy_pool_nodes", &format!("pool=\"{}\"", pool.name), nodes);
    }
    text.family("vr_proxy_pool_up", "gauge", "Whether a pool has a node that, as far as is known, answers.");
    for pool in &pools {
        text.value("vr_proxy_pool_up", &format!("pool=\"{}\"", pool.name), u8::from(pool.is_up()));
    }
    let of_pools: Vec<_> =
        pools.iter().map(|pool| (format!("pool=\"{}\"", pool.name), pool.counters.read())).collect();
    text.counted("vr_proxy", "a pool, with those that no node answered", &of_pools);

    let present = pools.iter().flat_map(|pool| {
        let nodes: Vec<_> = pool.upstreams().iter().cloned().collect();
        nodes.into_iter().map(|upstream| (pool.name.clone(), upstream))
    });
    let nodes: Vec<_> = present
        .map(|(pool, upstream)| (format!("pool=\"{pool}\",node=\"{}\"", upstream.node), upstream))
        .collect();
    text.family("vr_proxy_node_in_flight_requests", "gauge", "Requests and tunnels that are open on a node.");
    for (labels, upstream) in &nodes {
        text.value("vr_proxy_node_in_flight_requests", labels, upstream.open());
    }
    text.family(
        "vr_proxy_draining_requests",
        "gauge",
        "Requests and tunnels that are open on nodes that have left a pool.",
    );
    for pool in &pools {
        let left = draining.iter().filter(|(name, _)| *name == pool.name);
        let open: u64 = left.map(|(_, upstream)| upstream.open()).sum();
        text.value("vr_proxy_draining_requests", &format!("pool=\"{}\"", pool.name), open);
    }
    text.family(
        "vr_proxy_node_up",
        "gauge",
        "0 if checks say that a node is down, or if it refuses connections.",
    );
    for (labels, upstream) in &nodes {
        let is_up = !upstream.is_down() && !upstream.is_aside();
        text.value("vr_proxy_node_up", labels, u8::from(is_up));
    }
    text.family(
        "vr_proxy_node_failures_total",
        "counter",
        "Connections that a node did not take, and answers that it broke off or did not begin in time.",
    );
    for (labels, upstream) in &nodes {
        text.value("vr_proxy_node_failures_total", labels, upstream.failures());
    }
    let of_nodes: Vec<_> =
        nodes.iter().map(|(labels, upstream)| (labels.clone(), upstream.counters.read())).collect();
    text.counted("vr_proxy_node", "a node, since it was added to its pool", &of_nodes);
    text.0
}
