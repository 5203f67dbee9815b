//! What is counted about requests, for pools and for each of their nodes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the histogram's buckets, in microseconds.
pub(super) const BOUNDS_US: [u64; 13] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
    60_000_000,
];
/// The bounds as Prometheus writes them, in seconds.
pub(super) const BOUNDS: [&str; BOUNDS_US.len()] =
    ["0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "10", "60"];
/// Classes of status codes, 1xx to 5xx.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Counters that only grow.
#[derive(Debug, Default)]
pub(super) struct Counters {
    classes: [AtomicU64; CLASSES.len()],
    /// Of each bucket alone; the last is for what took longer than all bounds.
    durations: [AtomicU64; BOUNDS_US.len() + 1],
    duration_us: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug)]
pub(super) struct Counted {
    /// Answers by class of status code.
    pub(super) classes: [u64; CLASSES.len()],
    /// Answers that took at most so long as the bound says, of each bound and at last of all.
    pub(super) durations: [u64; BOUNDS_US.len() + 1],
    /// The time that all answers took together, in seconds.
    pub(super) seconds: f64,
    /// Bytes of bodies to clients.
    pub(super) sent: u64,
    /// Bytes of bodies from clients.
    pub(super) received: u64,
}

impl Counters {
    /// Counts an answer that has been sent, wholly or not.
    pub(super) fn answered(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS_US.len());
        self.durations[bucket].fetch_add(1, Ordering::Relaxed);
        self.duration_us.fetch_add(took, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Counted {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut durations = self.durations.each_ref().map(read);
        for bucket in 1..durations.len() {
            durations[bucket] += durations[bucket - 1];
        }
        Counted {
            classes: self.classes.each_ref().map(read),
            durations,
            seconds: read(&self.duration_us) as f64 / 1e6,
            sent: read(&self.sent),
            received: read(&self.received),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_all_that_was_faster() {
        let counters = Counters::default();
        counters.answered(200, Duration::from_micros(1000));
        counters.answered(404, Duration::from_millis(30));
        counters.answered(999, Duration::from_secs(100));
        let counted = counters.read();
        assert_eq!(counted.classes, [0, 1, 0, 1, 1]);
        assert_eq!(counted.durations, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3]);
        assert!((counted.seconds - 100.031).abs() < 1e-9);
        for (text, bound) in BOUNDS.iter().zip(BOUNDS_US) {
            assert_eq!(text.parse::<f64>().unwrap() * 1e6, bound as f64);
        }
    }
}
