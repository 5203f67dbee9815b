//! What is open on one client's HTTP/2 connection, and whether that client behaves.
//!
//! A client may begin requests and take them back as fast as it likes ("rapid reset", CVE-2023-44487), or begin
//! answers and never take them; both cost it nothing and a node a lot.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::body::RevocableBody;
use super::upstream::now_ms;

/// Requests that a client may take back before it matters whether they are most of all.
const PARDONED_RESETS: u64 = 100;
/// Bodies that are remembered before those that have ended are looked for.
const PRUNE_FROM: usize = 256;

/// The requests of one connection.
#[derive(Default)]
pub(super) struct Streams {
    open: AtomicUsize,
    begun: AtomicU64,
    taken_back: AtomicU64,
    /// When the last one ended, or the connection began.
    quiet_since_ms: AtomicU64,
    bodies: Mutex<Vec<Weak<RevocableBody>>>,
}

impl Streams {
    pub(super) fn new() -> Arc<Self> {
        let streams = Self::default();
        streams.quiet_since_ms.store(now_ms(), Ordering::Relaxed);
        Arc::new(streams)
    }

    pub(super) fn begin(self: &Arc<Self>) -> StreamPlace {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        StreamPlace { streams: Arc::clone(self), is_complete: false }
    }

    /// For how long nothing has been open.
    pub(super) fn quiet_for(&self) -> Duration {
        if self.open.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        Duration::from_millis(now_ms().saturating_sub(self.quiet_since_ms.load(Ordering::Relaxed)))
    }

    /// Whether most of many requests were taken back.
    pub(super) fn is_hostile(&self) -> bool {
        let taken_back = self.taken_back.load(Ordering::Relaxed);
        taken_back > PARDONED_RESETS && taken_back.saturating_mul(2) > self.begun.load(Ordering::Relaxed)
    }

    /// Takes answers away that the client does not take, or that are to be cut off.
    pub(super) fn revoke_stalled(&self, idle: Duration) {
        let live: Vec<Arc<RevocableBody>> = {
            let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
            bodies.retain(|body| body.strong_count() > 0);
            bodies.iter().filter_map(Weak::upgrade).collect()
        };
        live.iter().for_each(|body| body.revoke_if_stalled(idle));
    }
}

/// One request's place on the connection, until its answer has ended or is not wanted any more.
pub(super) struct StreamPlace {
    streams: Arc<Streams>,
    is_complete: bool,
}

impl StreamPlace {
    /// The answer is whole, so that its end is nobody's fault.
    pub(super) fn complete(&mut self) {
        self.is_complete = true;
    }

    pub(super) fn watch(&mut self, body: &Arc<RevocableBody>) {
        let mut bodies = self.streams.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        if bodies.len() >= PRUNE_FROM {
            bodies.retain(|body| body.strong_count() > 0);
        }
        bodies.push(Arc::downgrade(body));
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        if !self.is_complete {
            self.streams.taken_back.fetch_add(1, Ordering::Relaxed);
        }
        self.streams.quiet_since_ms.store(now_ms(), Ordering::Relaxed);
        self.streams.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_most_requests_back_is_hostile_and_who_takes_some_is_not() {
        let streams = Streams::new();
        for _ in 0..PARDONED_RESETS {
            drop(streams.begin());
        }
        assert!(!streams.is_hostile());
        for _ in 0..2 * PARDONED_RESETS {
            streams.begin().complete();
        }
        drop(streams.begin());
        assert!(!streams.is_hostile(), "most of its requests were meant");
        for _ in 0..2 * PARDONED_RESETS {
            drop(streams.begin());
        }
        assert!(streams.is_hostile());
        assert!(streams.quiet_for() < Duration::from_secs(60));
        let open = streams.begin();
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(streams.quiet_for(), Duration::ZERO);
        drop(open);
    }
}
