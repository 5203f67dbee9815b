//! One node of one pool: what is open on it, how it has behaved, and whether it is well.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use vr_common::names::Node;

use super::Limits;
use super::connections::{self, Connections, Dial, Sender};
use super::counters::Counters;
use super::options::{HealthCheck, NodeProtocol};
use super::warnings::Warnings;
use super::wire::NodeStats;

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
    /// Of this node alone.
    pub(super) counters: Counters,
    pool_counters: Arc<Counters>,
    in_flight: AtomicU64,
    total: AtomicU64,
    failures: AtomicU64,
    retired: AtomicBool,
    /// Woken when nothing is open any more on a retired node.
    drained: Notify,
    /// Cancelled when what is still open shall be cut off.
    pub(super) closing: CancellationToken,
    connections: Arc<Connections>,
    refused_in_a_row: AtomicU32,
    /// 0 if the node is not left out.
    aside_until_ms: AtomicU64,
    /// What checks have found: false as long as there are none.
    down: AtomicBool,
    /// Checks in a row that speak against what `down` says.
    contradictions: AtomicU32,
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
    pub(super) fn new(node: Node, warnings: Arc<Warnings>, pool_counters: Arc<Counters>) -> Self {
        Self {
            node,
            warnings,
            counters: Counters::default(),
            pool_counters,
            in_flight: AtomicU64::new(0),
            total: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            drained: Notify::new(),
            closing: CancellationToken::new(),
            connections: Arc::default(),
            refused_in_a_row: AtomicU32::new(0),
            aside_until_ms: AtomicU64::new(0),
            down: AtomicBool::new(false),
            contradictions: AtomicU32::new(0),
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

    /// No new requests from now on; connections without one are closed.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        self.connections.close();
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
            failures: self.failures(),
            put_aside: self.is_aside(),
            up: !self.is_down(),
        }
    }

    pub(super) fn count_request(&self) {
        self.total.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        self.counters.sent(bytes as u64);
        self.pool_counters.sent(bytes as u64);
    }

    pub(super) fn count_received(&self, bytes: usize) {
        self.counters.received(bytes as u64);
        self.pool_counters.received(bytes as u64);
    }

    /// Whether the node refused connections so lately that others should be preferred.
    pub(super) fn is_aside(&self) -> bool {
        let until = self.aside_until_ms.load(Ordering::Relaxed);
        until != 0 && until > now_ms()
    }

    fn put_aside(&self) {
        let refused = self.refused_in_a_row.fetch_add(1, Ordering::Relaxed).min(10);
        let time = (FIRST_TIME_ASIDE * 2u32.pow(refused)).min(LONGEST_TIME_ASIDE);
        self.aside_until_ms.store(now_ms() + time.as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether the checks say that it is down.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Takes a check's result, and says whether it has made the node go up (true) or down (false). Only for the one
    /// task that checks the pool.
    pub(super) fn checked(&self, is_well: bool, check: &HealthCheck) -> Option<bool> {
        let is_down = self.is_down();
        if is_well != is_down {
            self.contradictions.store(0, Ordering::Relaxed);
            return None;
        }
        let enough = if is_down { check.rise } else { check.fall };
        if self.contradictions.fetch_add(1, Ordering::Relaxed) + 1 < enough {
            return None;
        }
        self.contradictions.store(0, Ordering::Relaxed);
        self.down.store(!is_down, Ordering::Relaxed);
        if is_well {
            // It may have refused connections while it was down; it does not now.
            self.is_reachable();
        }
        Some(is_well)
    }

    /// There are no checks any more, so nothing is known against the node.
    pub(super) fn forget_checks(&self) {
        self.down.store(false, Ordering::Relaxed);
        self.contradictions.store(0, Ordering::Relaxed);
    }

    fn is_reachable(&self) {
        self.refused_in_a_row.store(0, Ordering::Relaxed);
        self.aside_until_ms.store(0, Ordering::Relaxed);
    }

    /// A kept connection; see [`Connections::take`].
    pub(super) fn take_connection(&self, protocol: NodeProtocol) -> Option<Sender> {
        self.connections.take(protocol)
    }

    /// Keeps a connection for the next request.
    pub(super) fn give_back(&self, sender: Sender) {
        self.connections.give_back(sender);
    }

    /// Closes connections that have not been used for a while.
    pub(super) fn sweep(&self) {
        self.connections.sweep();
    }

    /// Closes connections without a request, as the next ones shall be made in another way.
    pub(super) fn forget_connections(&self) {
        self.connections.clear();
    }

    /// A fresh connection. A node that does not give one is put aside for a short while.
    pub(super) async fn connect(&self, dial: Dial, limits: &Limits) -> io::Result<Sender> {
        let stream = match connections::reach(&self.node, dial, limits).await {
            Ok(stream) => stream,
            Err(error) => {
                self.count_failure();
                if !is_our_own_fault(&error) {
                    self.put_aside();
                }
                return Err(error);
            }
        };
        self.is_reachable();
        let sender = connections::begin(stream, &self.node, dial.protocol, &self.closing, limits).await?;
        self.connections.share(&sender);
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

    const PLAIN: Dial = Dial { protocol: NodeProtocol::Http1, introduction: None };

    fn upstream_at(address: &str) -> Upstream {
        let warnings = Arc::new(Warnings::new("web".parse().unwrap()));
        Upstream::new(address.parse().unwrap(), warnings, Arc::default())
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
        upstream.connect(PLAIN, &Limits::default()).await.unwrap();
        assert!(!upstream.is_aside());
        assert_eq!(upstream.stats().failures, 0);
        drop(listener);
        assert!(upstream.connect(PLAIN, &Limits::default()).await.is_err());
        assert!(upstream.is_aside());
        assert_eq!(upstream.stats().failures, 1);
    }

    #[test]
    fn so_many_checks_in_a_row_make_a_node_go_down_and_up() {
        let upstream = upstream_at("127.0.0.1:1");
        let check: HealthCheck = vr_common::yaml::parse("check", "{path: /, rise: 2, fall: 3}").unwrap();
        let results = [false, false, true, false, false, false, false, true, false, true, true, true];
        let changes: Vec<_> = results.map(|is_well| upstream.checked(is_well, &check)).to_vec();
        let mut expected = vec![None; results.len()];
        expected[5] = Some(false);
        expected[10] = Some(true);
        assert_eq!(changes, expected);
        assert!(upstream.stats().up);
    }
}
