//! What the data plane complains about, said so seldom that nobody can fill the disk with it by asking often.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use vr_common::names::{Node, PoolName};

use super::upstream::now_ms;

/// The shortest time between two lines of one kind about one pool.
const PERIOD_MS: u64 = 10_000;

/// What there is to complain about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Warning {
    NoNode,
    CannotConnect,
    BodyMissing,
    NodeBrokeOff,
    NodeTooLate,
    ProtocolChanged,
    AnswerBroken,
    TunnelIdle,
}

impl Warning {
    const ALL: [Self; 8] = [
        Self::NoNode,
        Self::CannotConnect,
        Self::BodyMissing,
        Self::NodeBrokeOff,
        Self::NodeTooLate,
        Self::ProtocolChanged,
        Self::AnswerBroken,
        Self::TunnelIdle,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::NoNode => "no node takes the request",
            Self::CannotConnect => "cannot connect to a node",
            Self::BodyMissing => "a client did not send its body",
            Self::NodeBrokeOff => "a node broke off",
            Self::NodeTooLate => "a node did not answer in time",
            Self::ProtocolChanged => "a node changed the protocol, which nobody asked for",
            Self::AnswerBroken => "an answer was broken off",
            Self::TunnelIdle => "a tunnel was closed because nothing moved in it",
        }
    }
}

/// How often one kind has come up.
#[derive(Default)]
struct Seldom {
    /// When it was said last; 0 for never, else a millisecond more than the clock showed.
    said: AtomicU64,
    left_out: AtomicU64,
}

impl Seldom {
    /// Whether it is time for a line; of those who ask at that time, one is told so.
    fn begin_line(&self, now: u64) -> bool {
        let said = self.said.load(Ordering::Relaxed);
        let is_due = said == 0 || (now + 1).saturating_sub(said) >= PERIOD_MS;
        is_due && self.said.compare_exchange(said, now + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// How many were left out since the last line, if it is time for another.
    fn admit(&self, now: u64) -> Option<u64> {
        if self.begin_line(now) {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// How many were left out after the last line, if they have waited long enough.
    fn admit_rest(&self, now: u64) -> Option<u64> {
        if self.left_out.load(Ordering::Relaxed) == 0 || !self.begin_line(now) {
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed)).filter(|count| *count > 0)
    }
}

/// Complaints of one kind that are about no pool.
pub(super) struct Complaint {
    text: &'static str,
    seldom: Seldom,
}

impl Complaint {
    pub(super) fn new(text: &'static str) -> Self {
        Self { text, seldom: Seldom::default() }
    }

    pub(super) fn make(&self, client: Option<IpAddr>, reason: Option<&dyn fmt::Display>) {
        if let Some(left_out) = self.seldom.admit(now_ms()) {
            let left_out = (left_out > 0).then_some(left_out);
            let client = client.map(tracing::field::display);
            let reason = reason.map(tracing::field::display);
            tracing::warn!(client, reason, left_out, "{}", self.text);
        }
    }

    /// As [`Warnings::say_what_was_left_out`].
    pub(super) fn say_what_was_left_out(&self) {
        if let Some(left_out) = self.seldom.admit_rest(now_ms()) {
            tracing::warn!(left_out, "{}", self.text);
        }
    }
}

/// The complaints about one pool: of each kind the first at once, then at most one line in ten seconds.
pub(super) struct Warnings {
    pool: PoolName,
    kinds: [Seldom; Warning::ALL.len()],
}

impl Warnings {
    pub(super) fn new(pool: PoolName) -> Self {
        Self { pool, kinds: Default::default() }
    }

    pub(super) fn warn(&self, warning: Warning, node: Option<&Node>, reason: Option<&dyn fmt::Display>) {
        if let Some(left_out) = self.kinds[warning as usize].admit(now_ms()) {
            let left_out = (left_out > 0).then_some(left_out);
            let node = node.map(tracing::field::display);
            let reason = reason.map(tracing::field::display);
            tracing::warn!(pool = %self.pool, node, reason, left_out, "{}", warning.text());
        }
    }

    /// Says how many were left out of what has not come up again. To be called every few seconds.
    pub(super) fn say_what_was_left_out(&self) {
        for warning in Warning::ALL {
            if let Some(left_out) = self.kinds[warning as usize].admit_rest(now_ms()) {
                tracing::warn!(pool = %self.pool, left_out, "{}", warning.text());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_then_one_in_each_period() {
        let seldom = Seldom::default();
        assert_eq!(seldom.admit(0), Some(0));
        assert_eq!((1..5000).filter_map(|now| seldom.admit(now)).count(), 0);
        assert_eq!(seldom.admit(PERIOD_MS - 1), None);
        assert_eq!(seldom.admit(PERIOD_MS), Some(5000));
        assert_eq!(seldom.admit(PERIOD_MS + 1), None);
        assert_eq!(seldom.admit(3 * PERIOD_MS), Some(1));
    }

    #[test]
    fn what_was_left_out_is_said_even_if_it_never_comes_up_again() {
        let seldom = Seldom::default();
        assert_eq!(seldom.admit_rest(0), None);
        assert_eq!((0..4).filter_map(|now| seldom.admit(now)).collect::<Vec<_>>(), [0]);
        assert_eq!(seldom.admit_rest(PERIOD_MS - 1), None);
        assert_eq!(seldom.admit_rest(PERIOD_MS), Some(3));
        assert_eq!(seldom.admit_rest(2 * PERIOD_MS), None);
        assert_eq!(seldom.admit(2 * PERIOD_MS), Some(0));
    }

    #[test]
    fn every_kind_has_a_place_of_its_own() {
        for (place, warning) in Warning::ALL.into_iter().enumerate() {
            assert_eq!(warning as usize, place, "{warning:?}");
        }
    }
}
