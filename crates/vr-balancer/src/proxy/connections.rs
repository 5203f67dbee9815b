//! Connections to one node: how they are made, kept and given out again.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use vr_common::names::Node;

use super::body::RequestBody;
use super::options::{NodeProtocol, ProxyVersion};
use super::socket::Socket;
use super::{Limits, proxy_protocol};

/// Idle connections kept for each node.
const MAX_IDLE: usize = 256;
/// How long an idle connection is kept. Nodes that close earlier are noticed at once.
const IDLE_LIFE: Duration = Duration::from_secs(30);
/// Requests that share a connection of HTTP/2 before there is another one; servers' usual limit.
const SHARED_REQUESTS: usize = 100;
/// How much of an answer a node of HTTP/2 may send before somebody takes it, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// A connection, or a place on one, that takes a request.
pub(super) enum Sender {
    Http1(OwnSender),
    Http2(SharedSender),
}

/// A connection of HTTP/1.1, which ends at once when this is dropped: a node that neither reads nor writes, and a
/// client that does neither, would hold it for ever otherwise.
pub(super) struct OwnSender {
    sender: http1::SendRequest<RequestBody>,
    _until_dropped: DropGuard,
}

/// A place on a connection of HTTP/2; given back when this is dropped.
pub(super) struct SharedSender {
    sender: http2::SendRequest<RequestBody>,
    open: Arc<AtomicUsize>,
}

impl SharedSender {
    fn new(sender: http2::SendRequest<RequestBody>, open: Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self { sender, open }
    }
}

impl Drop for SharedSender {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sender {
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::Http1(own) => own.sender.try_send_request(request).await,
            Self::Http2(shared) => shared.sender.try_send_request(request).await,
        }
    }
}

/// The address that a node is told for its client, and the one that the client connected to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Introduction {
    pub(super) version: ProxyVersion,
    /// None if the proxy speaks for itself.
    pub(super) client: Option<SocketAddr>,
    /// None if that is the node's own.
    pub(super) server: Option<SocketAddr>,
}

/// How a connection is to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dial {
    pub(super) protocol: NodeProtocol,
    pub(super) introduction: Option<Introduction>,
}

/// Makes a connection; [`Limits::connect`] bounds it.
pub(super) async fn reach(node: &Node, dial: Dial, limits: &Limits) -> io::Result<TcpStream> {
    let connect = async {
        let mut stream = TcpStream::connect((node.host.as_str(), node.port)).await?;
        stream.set_nodelay(true)?;
        if let Some(Introduction { version, client, server }) = dial.introduction {
            let server = match server {
                Some(server) => server,
                None => stream.peer_addr()?,
            };
            stream.write_all(&proxy_protocol::header(version, client, server)).await?;
        }
        Ok(stream)
    };
    match tokio::time::timeout(limits.connect, connect).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no connection in time")),
    }
}

/// Begins HTTP on a connection, which lives in a task of its own from then on, and no longer than until `closing`.
pub(super) async fn begin(
    stream: TcpStream,
    node: &Node,
    protocol: NodeProtocol,
    closing: &CancellationToken,
    limits: &Limits,
) -> io::Result<Sender> {
    let node = node.clone();
    let io = TokioIo::new(Socket::new(stream));
    match protocol {
        NodeProtocol::Http1 => {
            let (mut sender, connection) = http1::Builder::new()
                .max_buf_size(limits.head_bytes)
                .max_header_size(limits.head_bytes)
                .handshake(io)
                .await
                .map_err(io::Error::other)?;
            // Cancelled with `closing`, and with the sender.
            let unused = closing.child_token();
            let until_dropped = unused.clone().drop_guard();
            tokio::spawn(drive(connection.with_upgrades(), unused, node));
            sender.ready().await.map_err(io::Error::other)?;
            Ok(Sender::Http1(OwnSender { sender, _until_dropped: until_dropped }))
        }
        NodeProtocol::Http2 => {
            let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
                .handshake(io)
                .await
                .map_err(io::Error::other)?;
            tokio::spawn(drive(connection, closing.clone(), node));
            sender.ready().await.map_err(io::Error::other)?;
            Ok(Sender::Http2(SharedSender::new(sender, Arc::default())))
        }
    }
}

async fn drive(connection: impl Future<Output = hyper::Result<()>>, end: CancellationToken, node: Node) {
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%node, %error, "a connection to a node ended early");
        },
        () = end.cancelled() => {}
    }
}

/// The connections that one node has.
#[derive(Default)]
pub(super) struct Connections(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// HTTP/1.1, without a request.
    idle: Vec<Idle>,
    /// HTTP/2, with any number of requests.
    shared: Vec<Shared>,
    /// None is kept any more.
    closed: bool,
}

struct Idle {
    own: OwnSender,
    since: Instant,
}

struct Shared {
    sender: http2::SendRequest<RequestBody>,
    open: Arc<AtomicUsize>,
    /// When it was last given out.
    used: Instant,
}

impl Shared {
    fn is_worth_keeping(&self) -> bool {
        let busy = self.open.load(Ordering::Relaxed) > 0;
        !self.sender.is_closed() && (busy || self.used.elapsed() < IDLE_LIFE)
    }
}

impl Connections {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that, as far as is known, is still open: of the idle ones, the one used last.
    pub(super) fn take(&self, protocol: NodeProtocol) -> Option<Sender> {
        let mut kept = self.kept();
        match protocol {
            NodeProtocol::Http1 => {
                while let Some(connection) = kept.idle.pop() {
                    if connection.own.sender.is_ready() && connection.since.elapsed() < IDLE_LIFE {
                        return Some(Sender::Http1(connection.own));
                    }
                }
                None
            }
            NodeProtocol::Http2 => {
                kept.shared.retain(Shared::is_worth_keeping);
                let has_room = |shared: &&mut Shared| {
                    shared.sender.is_ready() && shared.open.load(Ordering::Relaxed) < SHARED_REQUESTS
                };
                let shared = kept.shared.iter_mut().find(has_room)?;
                shared.used = Instant::now();
                let sender = SharedSender::new(shared.sender.clone(), Arc::clone(&shared.open));
                Some(Sender::Http2(sender))
            }
        }
    }

    /// Lets others have a place on a connection of HTTP/2 as well.
    pub(super) fn share(&self, sender: &Sender) {
        if let Sender::Http2(SharedSender { sender, open }) = sender {
            let mut kept = self.kept();
            if !kept.closed {
                let (sender, open) = (sender.clone(), Arc::clone(open));
                kept.shared.push(Shared { sender, open, used: Instant::now() });
            }
        }
    }

    /// Keeps a connection for the next request once it is ready for one.
    pub(super) fn give_back(self: &Arc<Self>, sender: Sender) {
        let Sender::Http1(mut own) = sender else {
            return;
        };
        if own.sender.is_ready() {
            self.put_idle(own);
        } else if !own.sender.is_closed() {
            // The rest of an upload may still be on its way.
            let connections = Arc::clone(self);
            tokio::spawn(async move {
                if own.sender.ready().await.is_ok() {
                    connections.put_idle(own);
                }
            });
        }
    }

    fn put_idle(&self, own: OwnSender) {
        let mut kept = self.kept();
        if kept.idle.len() < MAX_IDLE && !kept.closed {
            kept.idle.push(Idle { own, since: Instant::now() });
        }
    }

    /// Closes connections without a request that have not been used for a while.
    pub(super) fn sweep(&self) {
        let mut kept = self.kept();
        kept.idle.retain(|idle| !idle.own.sender.is_closed() && idle.since.elapsed() < IDLE_LIFE);
        kept.shared.retain(Shared::is_worth_keeping);
    }

    /// Closes all connections without a request; those with requests end with these.
    pub(super) fn clear(&self) {
        let mut kept = self.kept();
        kept.idle.clear();
        kept.shared.clear();
    }

    /// As [`clear`](Self::clear), for ever.
    pub(super) fn close(&self) {
        self.kept().closed = true;
        self.clear();
    }
}
