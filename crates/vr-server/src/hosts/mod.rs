//! Hosts as the server sees them: a driver for each, and the last known state with its age.
//!
//! The host is the truth about its procs. Pages and the API read the cached state; a host that does not answer
//! costs nobody more than its own deadline.

mod agent;
mod connect;
mod fleet;
mod http;
mod pubsub;
mod settings;
#[cfg(test)]
pub mod simulated;
mod supervisor;
mod tls;

use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use thiserror::Error;
use vr_common::host_api::{CleanUpReport, HostInfo, ProcChange, ProcDocument, UptestResult};
use vr_common::names::ContainerName;
use vr_common::proc_data::ProcData;

pub use agent::{AgentDriver, Lines};
pub use connect::{Connector, check_agent_url};
pub use fleet::{Fleet, FleetChange, HostView, REMOVED};
pub use pubsub::PubSub;
pub use settings::{AgentSettings, HostSettings, HostsSettings, SupervisorSettings};
pub use supervisor::SupervisorDriver;

/// How a host is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverKind {
    /// By vr-agent's JSON API.
    Agent,
    /// By Supervisor's XML-RPC, and SSH.
    Supervisor,
}

impl DriverKind {
    /// As the store and the API write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Supervisor => "supervisor",
        }
    }
}

impl FromStr for DriverKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Agent, Self::Supervisor].into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            format!("{text:?} is not a driver: expected agent, supervisor, or null to find out")
        })
    }
}

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
    /// One of the two does not trust the other: a wrong token or password, an unknown certificate or host key.
    #[error("host {host}: {message}")]
    Denied {
        /// The host.
        host: String,
        /// Who does not trust whom, and what to do about it.
        message: String,
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
    /// The proc was not deployed by Velociraptor, so it may be started and stopped, but no more.
    #[error(
        "{proc} on host {host} was not deployed by Velociraptor: it can be started and stopped, but not removed"
    )]
    NotOurs {
        /// The host.
        host: String,
        /// The proc.
        proc: String,
    },
}

impl HostError {
    fn unreachable(host: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unreachable { host: host.to_owned(), source: source.into() }
    }

    fn denied(host: &str, message: impl Into<String>) -> Self {
        Self::Denied { host: host.to_owned(), message: message.into() }
    }

    fn refused(host: &str, message: impl Into<String>) -> Self {
        Self::Refused { host: host.to_owned(), message: message.into(), log_tail: None }
    }

    fn no_such_proc(host: &str, proc: &str) -> Self {
        Self::NoSuchProc { host: host.to_owned(), proc: proc.to_owned() }
    }

    /// Whether the host gave no answer at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// A log as it is written, in pieces of any size.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<Bytes, HostError>> + Send>>;

/// What a host says by itself.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// These are all its procs, sorted by name.
    List(Vec<ProcDocument>),
    /// A proc changed.
    Change(Box<ProcChange>),
    /// It is there.
    Alive,
}

/// News with the id after which to go on when the stream breaks.
pub type NewsStream = Pin<Box<dyn Stream<Item = Result<(Option<String>, News), HostError>> + Send>>;

/// How the server talks to one host. Every call has a deadline and may be repeated.
#[async_trait]
pub trait HostDriver: Send + Sync + fmt::Debug {
    /// Which one it is; none while that is not known.
    fn kind(&self) -> Option<DriverKind>;
    /// How often to ask for its procs when it does not say by itself what happens.
    fn poll_every(&self) -> Duration {
        Duration::from_secs(5)
    }
    /// How often the server has it cleaned up; none when it does that by itself.
    fn clean_up_every(&self) -> Option<Duration> {
        None
    }
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
    /// About the last `bytes` bytes of a proc's log, and what is written from now on until the proc is gone.
    async fn log_follow(&self, proc: &str, bytes: u64) -> Result<LogStream, HostError>;
    /// Removes what no proc uses any more.
    async fn clean_up(&self) -> Result<CleanUpReport, HostError>;
    /// What the host is.
    async fn facts(&self) -> Result<HostInfo, HostError>;
    /// What the host says by itself from now on, beginning with its list unless nothing was missed since `after`. None
    /// when it says nothing and has to be asked.
    async fn changes(&self, after: Option<&str>) -> Result<Option<NewsStream>, HostError>;
}

/// Checks that a `proc.yaml` is of the proc of that name.
///
/// # Errors
/// One sentence.
fn check_proc_yaml(proc: &str, text: &str) -> Result<(ContainerName, ProcData), String> {
    let name: ContainerName = proc.parse().map_err(|e| format!("{e}"))?;
    let data = ProcData::parse("proc.yaml", text).map_err(|e| vr_common::exit::chain(&e))?;
    match data.container_name() {
        Some(inside) if inside == name => Ok((name, data)),
        Some(inside) => Err(format!("proc.yaml is of {inside}, but was sent for {proc}")),
        None => {
            Err("proc.yaml needs all of app_name, version, config_name, release_hash and proc_name"
                .to_owned())
        }
    }
}
