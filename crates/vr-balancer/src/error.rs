//! Why a balancer did not do what it was asked for.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;
use vr_common::names::PoolName;

/// What an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The balancer's name in the settings.
    pub balancer: String,
    /// The pool; none when all of them were asked for.
    pub pool: Option<PoolName>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pool {
            Some(pool) => write!(f, "balancer {}, pool {pool}", self.balancer),
            None => write!(f, "balancer {}", self.balancer),
        }
    }
}

/// A call to a balancer that failed.
#[derive(Debug, Error)]
pub enum BalancerError {
    /// Nobody answers there.
    #[error("{subject}: cannot talk to {}", socket.display())]
    Unreachable {
        /// What was asked about.
        subject: Subject,
        /// Where the balancer was expected.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer did not come in time; the change may or may not have been made.
    #[error("{subject}: no answer from {} within {} s", socket.display(), after.as_secs_f64())]
    TimedOut {
        /// What was asked about.
        subject: Subject,
        /// Where the balancer is.
        socket: PathBuf,
        /// How long was waited.
        after: Duration,
    },
    /// The balancer answered that it cannot or will not; nothing was changed.
    #[error("{subject}: {reason}")]
    Refused {
        /// What was asked about.
        subject: Subject,
        /// Whether the request itself is to blame, and not the balancer's state.
        bad_input: bool,
        /// The balancer's own words.
        reason: String,
    },
    /// The answer is not one that this version understands.
    #[error("{subject}: {} gave an answer that cannot be read: {reason}", socket.display())]
    BadAnswer {
        /// What was asked about.
        subject: Subject,
        /// Where the balancer is.
        socket: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No host did what was asked for; none was changed.
    #[error("{subject}: {}", list(failed))]
    Failed {
        /// What was asked about.
        subject: Subject,
        /// Every host, and why.
        failed: Vec<HostFailure>,
    },
    /// Some hosts have the change and others do not.
    #[error("{subject}, is out of step: done on {}; failed on {}", done.join(", "), list(failed))]
    OutOfStep {
        /// What was asked about.
        subject: Subject,
        /// The hosts that have the change.
        done: Vec<String>,
        /// Those that have not, and why.
        failed: Vec<HostFailure>,
    },
}

/// A host that did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostFailure {
    /// The host.
    pub host: String,
    /// Why, one sentence.
    pub reason: String,
}

fn list(failures: &[HostFailure]) -> String {
    let each = failures.iter().map(|HostFailure { host, reason }| format!("{host}: {reason}"));
    each.collect::<Vec<_>>().join("; ")
}

impl BalancerError {
    /// The balancer and the pool that the call was about.
    pub fn subject(&self) -> &Subject {
        match self {
            Self::Unreachable { subject, .. }
            | Self::TimedOut { subject, .. }
            | Self::Refused { subject, .. }
            | Self::BadAnswer { subject, .. }
            | Self::Failed { subject, .. }
            | Self::OutOfStep { subject, .. } => subject,
        }
    }

    /// Whether asking again for the same can never work.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Refused { bad_input: true, .. })
    }
}
