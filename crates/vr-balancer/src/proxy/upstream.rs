//! One node of one pool: its connections, what is open on it, and how it has behaved.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use vr_common::names::Node;

use super::Limits;
use super::body::RequestBody;
use super::warnings::Warnings;
use super::wire::NodeStats;

/// Idle connections kept for each node.
const MAX_IDLE_CONNECTIONS: usize = 256;
/// How long an idle connection is kept. Nodes that close earlier are noticed at once.
const IDLE_CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// How long a node that refused a connection is left out; doubled with each further one, up to the longest.
const FIRST_TIME_ASIDE: Duration = Duration::from_secs(1);
const LONGEST_TIME_ASIDE: Duration = Duration::from_secs(16);

/// Times as milliseconds since the first look at the clock, so that they fit into atomics.
pub(super) fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}

/// A node that is or was in a pool. A node that comes back after it was taken out is a new one.
pub(super) struct Upstream {
    pub(super) node: Node,
    /// Where complaints about it go: its pool's.
    pub(super) warnings: Arc<Warnings>,
    in_flight: AtomicU64,
    total: AtomicU64,
    failures: AtomicU64,
    retired: AtomicBool,
    /// Woken when nothing is open any more on a retired node.
    drained: Notify,
    /// Cancelled when what is still open shall be cut off.
    pub(super) closing: CancellationToken,
    idle: Mutex<Vec<IdleConnection>>,
    refused_in_a_row: AtomicU32,
    aside_until_ms: AtomicU64,
}

struct IdleConnection {
    sender: SendRequest<RequestBody>,
    since: Instant,
}

/// Counts one request or tunnel as open on its node until it is dropped.
pub(super) struct InFlight {
    upstream: Arc<Upstream>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let open_before = self.upstream.in_flight.fetch_sub(1, Ordering::SeqCst);
        if open_before == 1 && self.upstream.retired.load(Ordering::SeqCst) {
            self.upstream.drained.notify_waiters();
        }
    }
}

impl Upstream {
    pub(super) fn new(node: Node, warnings: Arc<Warnings>) -> Self {
        Self {
            node,
            warnings,
            in_flight: AtomicU64::new(0),
            total: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            drained: Notify::new(),
            closing: CancellationToken::new(),
            idle: Mutex::default(),
            refused_in_a_row: AtomicU32::new(0),
            aside_until_ms: AtomicU64::new(0),
        }
    }

    /// Reserves a place for a request; none when the node has been retired, even a moment ago.
    ///
    /// The count goes up before the flag is read, and [`retire`](Self::retire) sets the flag before anybody reads
    /// the count: so either this sees the flag, or whoever waits for the node to drain sees the request.
    pub(super) fn enter(self: &Arc<Self>) -> Option<InFlight> {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let place = InFlight { upstream: Arc::clone(self) };
        (!self.retired.load(Ordering::SeqCst)).then_some(place)
    }

    /// No new requests from now on; idle connections are closed.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        self.idle().clear();
    }

    pub(super) fn open(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Returns when nothing is open; only to be waited for on a retired node.
    pub(super) async fn wait_drained(&self) {
        loop {
            let mut notified = std::pin::pin!(self.drained.notified());
            notified.as_mut().enable();
            if self.open() == 0 {
                return;
            }
            notified.await;
        }
    }

    pub(super) fn stats(&self) -> NodeStats {
        NodeStats {
            node: self.node.clone(),
            in_flight: self.open(),
            total: self.total.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            put_aside: self.is_aside(),
        }
    }

    pub(super) fn count_request(&self) {
        self.total.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the node refused connections so lately that others should be preferred.
    pub(super) fn is_aside(&self) -> bool {
        self.aside_until_ms.load(Ordering::Relaxed) > now_ms()
    }

    fn put_aside(&self) {
        let refused = self.refused_in_a_row.fetch_add(1, Ordering::Relaxed).min(10);
        let time = (FIRST_TIME_ASIDE * 2u32.pow(refused)).min(LONGEST_TIME_ASIDE);
        self.aside_until_ms.store(now_ms() + time.as_millis() as u64, Ordering::Relaxed);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<IdleConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle connection that, as far as is known, is still open: the one used last.
    pub(super) fn take_idle(&self) -> Option<SendRequest<RequestBody>> {
        let mut idle = self.idle();
        while let Some(connection) = idle.pop() {
            if connection.sender.is_ready() && connection.since.elapsed() < IDLE_CONNECTION_LIFE {
                return Some(connection.sender);
            }
        }
        None
    }

    /// Keeps a connection for the next request once it is ready for one.
    pub(super) fn give_back(self: &Arc<Self>, mut sender: SendRequest<RequestBody>) {
        if sender.is_ready() {
            self.put_idle(sender);
        } else if !sender.is_closed() {
            let upstream = Arc::clone(self);
            tokio::spawn(async move {
                if sender.ready().await.is_ok() {
                    upstream.put_idle(sender);
                }
            });
        }
    }

    fn put_idle(&self, sender: SendRequest<RequestBody>) {
        let mut idle = self.idle();
        // Under the same lock that `retire` clears the list with, so none slips in afterwards.
        if idle.len() < MAX_IDLE_CONNECTIONS && !self.retired.load(Ordering::SeqCst) {
            idle.push(IdleConnection { sender, since: Instant::now() });
        }
    }

    /// Closes idle connections that have not been used for a while.
    pub(super) fn sweep(&self) {
        self.idle().retain(|connection| {
            !connection.sender.is_closed() && connection.since.elapsed() < IDLE_CONNECTION_LIFE
        });
    }

    /// A fresh connection. A node that does not give one is put aside for a short while.
    pub(super) async fn connect(&self, limits: &Limits) -> io::Result<SendRequest<RequestBody>> {
        let address = (self.node.host.as_str(), self.node.port);
        let connected = match tokio::time::timeout(limits.connect, TcpStream::connect(address)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no connection in time")),
        };
        let stream = match connected {
            Ok(stream) => stream,
            Err(error) => {
                self.count_failure();
                if !is_our_own_fault(&error) {
                    self.put_aside();
                }
                return Err(error);
            }
        };
        self.refused_in_a_row.store(0, Ordering::Relaxed);
        self.aside_until_ms.store(0, Ordering::Relaxed);
        stream.set_nodelay(true)?;
        let (mut sender, connection) = Builder::new()
            .max_buf_size(limits.head_bytes)
            .max_header_size(limits.head_bytes)
            .max_headers(limits.head_lines)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let node = self.node.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%node, %error, "a connection to a node ended early");
            }
        });
        sender.ready().await.map_err(io::Error::other)?;
        Ok(sender)
    }
}

/// Whether this process, and not the node, is the reason that there is no connection.
fn is_our_own_fault(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::ADDRNOTAVAIL | Errno::NOBUFS)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream_at(address: &str) -> Upstream {
        Upstream::new(address.parse().unwrap(), Arc::new(Warnings::new("web".parse().unwrap())))
    }

    #[tokio::test]
    async fn a_retired_node_is_drained_when_the_last_place_is_left() {
        let upstream = Arc::new(upstream_at("127.0.0.1:1"));
        let first = upstream.enter().unwrap();
        let second = upstream.enter().unwrap();
        upstream.retire();
        assert!(upstream.enter().is_none(), "a retired node takes nothing new");
        assert_eq!(upstream.open(), 2);
        let waiting = tokio::spawn({
            let upstream = Arc::clone(&upstream);
            async move { upstream.wait_drained().await }
        });
        drop(first);
        assert_eq!(upstream.open(), 1);
        drop(second);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_node_that_refuses_is_put_aside_and_one_that_answers_comes_back() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = upstream_at(&address.to_string());
        upstream.put_aside();
        assert!(upstream.is_aside());
        upstream.connect(&Limits::default()).await.unwrap();
        assert!(!upstream.is_aside());
        assert_eq!(upstream.stats().failures, 0);
        drop(listener);
        assert!(upstream.connect(&Limits::default()).await.is_err());
        assert!(upstream.is_aside());
        assert_eq!(upstream.stats().failures, 1);
    }
}
