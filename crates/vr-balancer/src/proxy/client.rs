//! The balancer that steers the built-in proxy through its control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use vr_common::names::{Node, PoolName};

use super::options::HostPattern;
use super::wire::{
    DeleteBody, DeletePoolAnswer, DrainAnswer, DrainBody, ErrorBody, MAX_BODY_BYTES, NodesBody, PoolList,
    PoolView, RouteBody, RouteList, RouteView, SetAnswer, Stats,
};
use crate::balancer::{Balancer, DrainReport};
use crate::error::{BalancerError, Subject};

/// How long a call may take, beside the time that the proxy was asked to wait.
const DEADLINE: Duration = Duration::from_secs(10);

/// The built-in proxy, somewhere behind a control socket.
#[derive(Debug, Clone)]
pub struct ProxyBalancer {
    name: String,
    control_socket: PathBuf,
}

/// What went wrong with a call, before it is known what the call was about.
enum CallError {
    Io(io::Error),
    Refused(StatusCode, String),
    Unreadable(String),
}

impl ProxyBalancer {
    /// A proxy by its control socket. Connects to nothing yet.
    pub fn new(name: impl Into<String>, control_socket: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), control_socket: control_socket.into() }
    }

    /// Where the proxy is steered.
    pub fn control_socket(&self) -> &Path {
        &self.control_socket
    }

    /// Counters of every node.
    pub async fn stats(&self) -> Result<Stats, BalancerError> {
        self.get(None, "/v1/stats").await
    }

    /// Every pool with its address and nodes, sorted by name.
    pub async fn pools(&self) -> Result<Vec<PoolView>, BalancerError> {
        self.get::<PoolList>(None, "/v1/pools").await.map(|list| list.pools)
    }

    /// One pool; without an address if there is none of that name.
    pub async fn pool(&self, pool: &PoolName) -> Result<PoolView, BalancerError> {
        self.get(Some(pool), &format!("/v1/pools/{pool}")).await
    }

    /// Every route, sorted by host.
    pub async fn routes(&self) -> Result<Vec<RouteView>, BalancerError> {
        self.get::<RouteList>(None, "/v1/routes").await.map(|list| list.routes)
    }

    /// Sends the requests for a host to a pool, on the listeners that all pools share.
    pub async fn set_route(&self, host: &HostPattern, pool: &PoolName) -> Result<(), BalancerError> {
        let body = RouteBody { pool: pool.clone() };
        let path = format!("/v1/routes/{}", in_path(host));
        self.call::<RouteList>(None, Method::PUT, &path, &body, DEADLINE).await.map(drop)
    }

    /// Takes a route away; one that is not there is no error.
    pub async fn delete_route(&self, host: &HostPattern) -> Result<(), BalancerError> {
        let path = format!("/v1/routes/{}", in_path(host));
        self.call::<RouteList>(None, Method::DELETE, &path, &(), DEADLINE).await.map(drop)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        pool: Option<&PoolName>,
        path: &str,
    ) -> Result<T, BalancerError> {
        self.call(pool, Method::GET, path, &(), DEADLINE).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        pool: &PoolName,
        verb: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> Result<T, BalancerError> {
        self.call(Some(pool), Method::POST, &format!("/v1/pools/{pool}/{verb}"), body, deadline).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        pool: Option<&PoolName>,
        method: Method,
        path: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> Result<T, BalancerError> {
        let subject = Subject { balancer: self.name.clone(), pool: pool.cloned() };
        let socket = self.control_socket.clone();
        let exchange = async {
            let body = serde_json::to_vec(body).map_err(|e| CallError::Io(e.into()))?;
            exchange(&self.control_socket, method, path, body).await
        };
        match tokio::time::timeout(deadline, exchange).await {
            Err(_) => Err(BalancerError::TimedOut { subject, socket, after: deadline }),
            Ok(Err(CallError::Io(source))) => Err(BalancerError::Unreachable { subject, socket, source }),
            Ok(Err(CallError::Unreadable(reason))) => {
                Err(BalancerError::BadAnswer { subject, socket, reason })
            }
            Ok(Err(CallError::Refused(status, reason))) => {
                // The subject names the pool already.
                let known = pool.map(|pool| format!("pool {pool}: ")).unwrap_or_default();
                let reason = reason.strip_prefix(&known).unwrap_or(&reason).to_owned();
                Err(BalancerError::Refused { subject, bad_input: status == StatusCode::BAD_REQUEST, reason })
            }
            Ok(Ok(answer)) => serde_json::from_slice(&answer).map_err(|error| BalancerError::BadAnswer {
                subject,
                socket,
                reason: error.to_string(),
            }),
        }
    }
}

/// One request on a connection of its own.
async fn exchange(socket: &Path, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, CallError> {
    let broken = |error: hyper::Error| CallError::Io(io::Error::other(error));
    let stream = UnixStream::connect(socket).await.map_err(CallError::Io)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let body = if [Method::POST, Method::PUT].contains(&method) {
        Full::new(Bytes::from(body))
    } else {
        Full::default()
    };
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse::<Uri>().map_err(|e| CallError::Io(io::Error::other(e)))?;
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    let answered = async {
        let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
        let body = body.map_err(|error| CallError::Unreadable(error.to_string()))?.to_bytes();
        Ok((head.status, body))
    };
    // The connection is driven here and not in a task, so that it ends with this call.
    let mut answered = std::pin::pin!(answered);
    let (status, body) = tokio::select! {
        biased;
        answered = answered.as_mut() => answered?,
        ended = connection => {
            ended.map_err(broken)?;
            answered.await?
        }
    };
    if status == StatusCode::OK {
        return Ok(body);
    }
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(ErrorBody { error }) => Err(CallError::Refused(status, error)),
        Err(_) => Err(CallError::Unreadable(format!("status {status}"))),
    }
}

#[async_trait]
impl Balancer for ProxyBalancer {
    fn name(&self) -> &str {
        &self.name
    }

    async fn list_pools(&self) -> Result<Vec<PoolName>, BalancerError> {
        Ok(self.pools().await?.into_iter().map(|view| view.pool).collect())
    }

    async fn get_nodes(&self, pool: &PoolName) -> Result<Vec<Node>, BalancerError> {
        Ok(self.pool(pool).await?.nodes)
    }

    async fn add_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), BalancerError> {
        let body = NodesBody { nodes: nodes.to_vec() };
        self.post::<PoolView>(pool, "add", &body, DEADLINE).await.map(drop)
    }

    async fn delete_nodes(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        close_after_grace: Option<Duration>,
    ) -> Result<(), BalancerError> {
        let close_after_ms = close_after_grace.map(milliseconds);
        let body = DeleteBody { nodes: nodes.to_vec(), close_after_ms };
        self.post::<PoolView>(pool, "delete", &body, DEADLINE).await.map(drop)
    }

    async fn delete_pool(&self, pool: &PoolName) -> Result<(), BalancerError> {
        let path = format!("/v1/pools/{pool}");
        self.call::<DeletePoolAnswer>(Some(pool), Method::DELETE, &path, &(), DEADLINE).await.map(drop)
    }

    async fn delete_pool_if_empty(&self, pool: &PoolName) -> Result<bool, BalancerError> {
        let path = format!("/v1/pools/{pool}?if_empty=true");
        let answer: DeletePoolAnswer = self.call(Some(pool), Method::DELETE, &path, &(), DEADLINE).await?;
        Ok(answer.gone)
    }

    /// One change for the proxy: there is no moment at which both or neither of the sets are in the pool.
    async fn set_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<Vec<Node>, BalancerError> {
        let body = NodesBody { nodes: nodes.to_vec() };
        self.post::<SetAnswer>(pool, "set", &body, DEADLINE).await.map(|answer| answer.removed)
    }

    async fn wait_drained(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        grace: Duration,
    ) -> Result<Vec<DrainReport>, BalancerError> {
        let body = DrainBody { nodes: nodes.to_vec(), grace_ms: milliseconds(grace) };
        let deadline = grace.saturating_add(DEADLINE);
        self.post::<DrainAnswer>(pool, "drain", &body, deadline).await.map(|answer| answer.reports)
    }

    /// Where the pool listens. A proxy that listens on all addresses is given by the loopback one, as it cannot
    /// know by which other its host is reached.
    async fn pool_address(&self, pool: &PoolName) -> Result<Option<String>, BalancerError> {
        let address = self.pool(pool).await?.address;
        Ok(address.map(|address| match address.parse::<std::net::SocketAddr>() {
            Ok(all) if all.ip().is_unspecified() && all.is_ipv4() => format!("127.0.0.1:{}", all.port()),
            Ok(all) if all.ip().is_unspecified() => format!("[::1]:{}", all.port()),
            _ => address,
        }))
    }

    async fn pool_problem(&self, pool: &PoolName) -> Result<Option<String>, BalancerError> {
        let view = self.pool(pool).await?;
        let address = view.address.filter(|_| !view.listening);
        Ok(address
            .map(|address| format!("the proxy cannot listen at {address} yet and tries again every second")))
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A host as a part of a path: the brackets of an IPv6 address may not stand there.
fn in_path(host: &HostPattern) -> String {
    host.as_str().replace('[', "%5B").replace(']', "%5D")
}
