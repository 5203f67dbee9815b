//! Hosts as the server sees them: a driver for each, and the last known state with its age.
//!
//! The host is the truth about its procs. Pages and the API read the cached state; a host that does not answer
//! costs nobody more than its own deadline.

mod agent;
#[cfg(test)]
pub mod simulated;
mod unknown;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use thiserror::Error;
use vr_common::host_api::{ProcDocument, UptestResult};

pub use agent::AgentDriver;
pub use unknown::UnknownHost;

use crate::store::{HostRow, Store};
use crate::time::{self, Millis};

/// What may be done to a proc that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start it; a running one stays as it is.
    Start,
    /// Stop it.
    Stop,
    /// Stop and start it.
    Restart,
}

impl Action {
    /// The action's name in both APIs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Start, Self::Stop, Self::Restart]
            .into_iter()
            .find(|action| action.name() == text)
            .ok_or_else(|| format!("{text:?} is not an action: expected start, stop or restart"))
    }
}

/// Why a host did not do something.
#[derive(Debug, Error)]
pub enum HostError {
    /// It did not answer in time, or not at all.
    #[error("host {host} does not answer")]
    Unreachable {
        /// The host.
        host: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It answered that it cannot.
    #[error("host {host}: {message}")]
    Refused {
        /// The host.
        host: String,
        /// Its reason.
        message: String,
        /// The last lines of the proc's log, where they help.
        log_tail: Option<String>,
    },
    /// It does not have the proc.
    #[error("host {host} has no proc {proc}")]
    NoSuchProc {
        /// The host.
        host: String,
        /// The proc.
        proc: String,
    },
}

/// How the server talks to one host. Every call has a deadline and may be repeated.
#[async_trait]
pub trait HostDriver: Send + Sync + fmt::Debug {
    /// All procs, sorted by name.
    async fn procs(&self) -> Result<Vec<ProcDocument>, HostError>;
    /// Sets a proc up and starts it; gives it back once it runs. The same again changes nothing.
    async fn deploy(&self, proc: &str, proc_yaml: &str) -> Result<ProcDocument, HostError>;
    /// Starts, stops or restarts a proc.
    async fn act(&self, proc: &str, action: Action) -> Result<ProcDocument, HostError>;
    /// Runs a proc's uptests; an empty list when it has none.
    async fn uptest(&self, proc: &str) -> Result<Vec<UptestResult>, HostError>;
    /// Stops a proc and removes it; an unknown one is no error.
    async fn delete(&self, proc: &str) -> Result<(), HostError>;
    /// The last `bytes` bytes of a proc's log.
    async fn log_tail(&self, proc: &str, bytes: u64) -> Result<String, HostError>;
}

/// What is known of a host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostView {
    /// Its procs when it last answered, sorted by name.
    pub procs: Vec<ProcDocument>,
    /// When it last answered.
    pub seen: Option<Millis>,
    /// Since when it does not answer, if so.
    pub unreachable_since: Option<Millis>,
}

type MakeDriver = dyn Fn(&HostRow) -> Arc<dyn HostDriver> + Send + Sync;

/// All hosts. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    store: Store,
    make: Arc<MakeDriver>,
    views: Arc<RwLock<HashMap<String, HostView>>>,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").finish_non_exhaustive()
    }
}

/// How long a host may take to say which procs it has.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

impl Fleet {
    /// The hosts of the store; `make` gives the driver of one.
    pub fn new(store: Store, make: impl Fn(&HostRow) -> Arc<dyn HostDriver> + Send + Sync + 'static) -> Self {
        Self { store, make: Arc::new(make), views: Arc::default() }
    }

    /// The driver of a host.
    pub fn driver(&self, host: &HostRow) -> Arc<dyn HostDriver> {
        (self.make)(host)
    }

    /// What was last known of a host; empty for one that was never looked at.
    pub fn view(&self, host: &str) -> HostView {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        views.get(host).cloned().unwrap_or_default()
    }

    /// Asks a host for its procs now, and keeps the answer.
    pub async fn look(&self, host: &HostRow) -> Result<Vec<ProcDocument>, HostError> {
        let driver = self.driver(host);
        let answer = match tokio::time::timeout(LOOK_DEADLINE, driver.procs()).await {
            Ok(answer) => answer,
            Err(late) => Err(HostError::Unreachable { host: host.name.clone(), source: late.into() }),
        };
        let now = time::now();
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        let view = views.entry(host.name.clone()).or_default();
        match &answer {
            Ok(procs) => *view = HostView { procs: procs.clone(), seen: Some(now), unreachable_since: None },
            Err(_) => view.unreachable_since = view.unreachable_since.or(Some(now)),
        }
        drop(views);
        answer
    }

    /// Adds a proc that was deployed just now to what is known of its host.
    pub fn note(&self, proc: ProcDocument) {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        let procs = &mut views.entry(proc.host.clone()).or_default().procs;
        procs.retain(|known| known.name != proc.name);
        procs.push(proc);
        procs.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// Looks at all hosts at once, and forgets those that the store no longer has.
    pub async fn look_at_all(&self) {
        let hosts = match self.store.hosts().await {
            Ok(hosts) => hosts,
            Err(error) => {
                tracing::warn!(error = %vr_common::exit::chain(&error), "hosts were not looked at");
                return;
            }
        };
        join_all(hosts.iter().map(|host| self.look(host))).await;
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        views.retain(|name, _| hosts.iter().any(|host| &host.name == name));
    }

    /// Looks at all hosts again and again.
    pub async fn keep_looking(&self, every: Duration) {
        loop {
            self.look_at_all().await;
            tokio::time::sleep(every).await;
        }
    }
}
