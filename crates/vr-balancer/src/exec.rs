//! The backend that is a program of the operator's: it gets a request as JSON on its standard input and answers with
//! JSON on its standard output. docs/balancers.md, *Writing a backend*, is the contract.
//!
//! Each request is a process of its own, started without a shell, in a process group that is killed at the deadline.
//! Changes of a pool are made one at a time, by all processes of this machine, under a lock in a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};

use crate::balancer::{Balancer, DrainReport, SiteReport, unique};
use crate::error::{BalancerError, HostFailure, Subject};
use crate::site::{Command, Lock, Site, SiteError};

/// The version of requests. A program that does not know it should say so.
const VERSION: u32 = 1;
/// How long a request may take, unless the settings say something else.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a change waits for those that others make.
const LOCK_WAIT: Duration = Duration::from_secs(120);
/// The longest answer, in bytes.
const LONGEST: usize = 1 << 20;
/// The most that a message holds of what a program says beside its answer, in characters.
const LONGEST_WORDS: usize = 2000;

/// What there is to know about a program.
#[derive(Clone)]
pub struct ExecSettings {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// How long a request may take.
    pub timeout: Duration,
    /// Handed over with every request.
    pub config: Value,
    /// Where the locks are. The folder above it has to be there.
    pub lock_dir: PathBuf,
    /// How long nodes are waited for that are being drained.
    pub grace_period: Option<Duration>,
}

impl fmt::Debug for ExecSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not what is handed over: that is where logins are.
        f.debug_tuple("ExecSettings").field(&self.command).finish()
    }
}

/// What is asked of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    ListPools,
    GetNodes,
    AddNodes,
    DeleteNodes,
    DeletePool,
    WaitDrained,
    Check,
}

/// What the program reads.
#[derive(Debug, Serialize)]
struct Request<'a> {
    version: u32,
    balancer: &'a str,
    action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<&'a PoolName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<&'a [Node]>,
    /// With `wait_drained`: how long to wait; with `delete_nodes`: after what time to cut off what is still open.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    config: &'a Value,
}

/// What the program writes: an object with some of these.
#[derive(Debug, Default, Deserialize)]
struct Answer {
    error: Option<String>,
    #[serde(default)]
    unsupported: bool,
    nodes: Option<Vec<Node>>,
    pools: Option<Vec<String>>,
    #[serde(default)]
    open: BTreeMap<Node, u64>,
    #[serde(default)]
    problems: Vec<String>,
}

/// Why a request came to nothing.
#[derive(Debug, Error)]
enum ExecError {
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error("{0}")]
    Refused(String),
    #[error("it ended with {status}{}", said(.words))]
    Failed { status: String, words: String },
    #[error("its answer to {action} cannot be read: {reason}{}", said(.words))]
    Unreadable { action: String, reason: String, words: String },
    #[error("it does not support {0}")]
    Unsupported(String),
    #[error("{action} was done, but then get_nodes {reason}")]
    NotSo { action: String, reason: String },
}

fn said(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!("; it said: {words}") }
}

impl Action {
    fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// A balancer that a program of the operator's steers.
#[derive(Debug)]
pub struct ExecBalancer {
    name: String,
    settings: ExecSettings,
    /// This machine.
    site: Site,
}

impl ExecBalancer {
    /// Starts nothing yet.
    pub fn new(name: impl Into<String>, settings: ExecSettings) -> Self {
        Self { name: name.into(), settings, site: Site::local("localhost", false) }
    }

    fn request<'a>(&'a self, action: Action, pool: Option<&'a PoolName>) -> Request<'a> {
        let Self { name, settings, .. } = self;
        let (balancer, config) = (name.as_str(), &settings.config);
        Request { version: VERSION, balancer, action, pool, nodes: None, seconds: None, config }
    }

    async fn ask(&self, request: &Request<'_>) -> Result<Answer, ExecError> {
        let action = request.action.name();
        let unreadable =
            |reason: String, words| ExecError::Unreadable { action: action.clone(), reason, words };
        let mut input =
            serde_json::to_vec(request).map_err(|error| unreadable(error.to_string(), String::new()))?;
        input.push(b'\n');
        let waits = match request.action {
            Action::WaitDrained => request.seconds.unwrap_or_default(),
            _ => 0.0,
        };
        let waits = Duration::try_from_secs_f64(waits).unwrap_or_default();
        let deadline = self.settings.timeout.saturating_add(waits);
        let command = Command::new(&self.settings.command).stdin(input).deadline(deadline).marked();
        let output = self.site.run(&command).await?;
        let words = shorten(&output.last_words());
        let answer = if output.cut || output.stdout.len() > LONGEST {
            Err(unreadable(format!("it is longer than {LONGEST} bytes"), words.clone()))
        } else {
            serde_json::from_slice::<Answer>(&output.stdout)
                .map_err(|error| unreadable(error.to_string(), words.clone()))
        };
        match answer {
            Ok(Answer { error: Some(error), .. }) => Err(ExecError::Refused(error)),
            _ if !output.is_success() => Err(ExecError::Failed { status: output.status.to_string(), words }),
            Ok(Answer { unsupported: true, .. }) => Err(ExecError::Unsupported(action)),
            answer => answer,
        }
    }

    async fn nodes(&self, pool: &PoolName) -> Result<Vec<Node>, ExecError> {
        let answer = self.ask(&self.request(Action::GetNodes, Some(pool))).await?;
        Ok(unique(self.given(Action::GetNodes, "nodes", answer.nodes)?.iter()))
    }

    async fn pools(&self) -> Result<Vec<PoolName>, ExecError> {
        let answer = self.ask(&self.request(Action::ListPools, None)).await?;
        let names = self.given(Action::ListPools, "pools", answer.pools)?;
        // What is not a name of ours is somebody else's pool.
        let ours: BTreeSet<PoolName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        Ok(ours.into_iter().collect())
    }

    fn given<T>(&self, action: Action, key: &str, value: Option<T>) -> Result<T, ExecError> {
        value.ok_or_else(|| ExecError::Unreadable {
            action: action.name(),
            reason: format!("expected an object with {key:?} or \"error\""),
            words: String::new(),
        })
    }

    /// Adds nodes and looks whether they are there.
    async fn add(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), ExecError> {
        let nodes = unique(nodes.iter());
        self.ask(&Request { nodes: Some(&nodes), ..self.request(Action::AddNodes, Some(pool)) }).await?;
        let there = self.nodes(pool).await?;
        let missing: Vec<String> =
            nodes.iter().filter(|node| !there.contains(node)).map(Node::to_string).collect();
        self.is_so(Action::AddNodes, "does not have", &missing)
    }

    /// Takes nodes out and looks whether they are gone.
    async fn delete(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        close_after_grace: Option<Duration>,
    ) -> Result<(), ExecError> {
        let there = self.nodes(pool).await?;
        let leaving: Vec<Node> = there.into_iter().filter(|node| nodes.contains(node)).collect();
        if leaving.is_empty() {
            return Ok(());
        }
        let seconds = close_after_grace.map(|grace| grace.as_secs_f64());
        let request = self.request(Action::DeleteNodes, Some(pool));
        self.ask(&Request { nodes: Some(&leaving), seconds, ..request }).await?;
        let there = self.nodes(pool).await?;
        let left: Vec<String> =
            leaving.iter().filter(|node| there.contains(node)).map(Node::to_string).collect();
        self.is_so(Action::DeleteNodes, "still has", &left)
    }

    fn is_so(&self, action: Action, verb: &str, wrong: &[String]) -> Result<(), ExecError> {
        if wrong.is_empty() {
            return Ok(());
        }
        Err(ExecError::NotSo { action: action.name(), reason: format!("{verb} {}", wrong.join(" ")) })
    }

    /// Makes a change while nobody else on this machine changes the pool.
    async fn alone<T>(
        &self,
        pool: &PoolName,
        change: impl Future<Output = Result<T, ExecError>>,
    ) -> Result<T, BalancerError> {
        let work = async {
            let path = self.settings.lock_dir.join(format!("{}-{pool}.lock", file_name(&self.name)));
            let lock: Lock = self.site.lock(&path.display().to_string(), LOCK_WAIT).await?;
            // The lock died with its last holder, who may have been killed; the program that it ran did not.
            let _ended = tokio::task::spawn_blocking(vr_common::process::end_left_behind).await;
            let result = change.await;
            lock.release().await;
            result
        };
        work.await.map_err(self.about(Some(pool)))
    }

    /// Says of an error what it was about.
    fn about<'a>(&'a self, pool: Option<&'a PoolName>) -> impl Fn(ExecError) -> BalancerError + 'a {
        move |error| {
            let program = self.settings.command.first().cloned().unwrap_or_default();
            BalancerError::Failed {
                subject: Subject { balancer: self.name.clone(), pool: pool.cloned() },
                failed: vec![HostFailure { host: program, reason: chain(&error) }],
            }
        }
    }
}

/// The end of a text, which is where programs say what was wrong.
fn shorten(words: &str) -> String {
    let start = words.char_indices().rev().nth(LONGEST_WORDS - 1).map_or(0, |(at, _)| at);
    words[start..].to_owned()
}

/// A balancer's name, which can be anything, as a part of a file's name; different ones stay different.
fn file_name(name: &str) -> String {
    let mut safe = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.".contains(&byte) {
            safe.push(char::from(byte));
        } else {
            safe += &format!("%{byte:02X}");
        }
    }
    safe
}

#[async_trait]
impl Balancer for ExecBalancer {
    fn name(&self) -> &str {
        &self.name
    }

    async fn list_pools(&self) -> Result<Vec<PoolName>, BalancerError> {
        self.pools().await.map_err(self.about(None))
    }

    async fn get_nodes(&self, pool: &PoolName) -> Result<Vec<Node>, BalancerError> {
        self.nodes(pool).await.map_err(self.about(Some(pool)))
    }

    async fn add_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), BalancerError> {
        self.alone(pool, self.add(pool, nodes)).await
    }

    async fn delete_nodes(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        close_after_grace: Option<Duration>,
    ) -> Result<(), BalancerError> {
        self.alone(pool, self.delete(pool, nodes, close_after_grace)).await
    }

    async fn delete_pool(&self, pool: &PoolName) -> Result<(), BalancerError> {
        self.alone(pool, async { self.ask(&self.request(Action::DeletePool, Some(pool))).await.map(drop) })
            .await
    }

    async fn delete_pool_if_empty(&self, pool: &PoolName) -> Result<bool, BalancerError> {
        let delete = async {
            if !self.nodes(pool).await?.is_empty() {
                return Ok(false);
            }
            self.ask(&self.request(Action::DeletePool, Some(pool))).await?;
            Ok(true)
        };
        self.alone(pool, delete).await
    }

    async fn set_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<Vec<Node>, BalancerError> {
        let set = async {
            let mut stale = self.nodes(pool).await?;
            stale.retain(|node| !nodes.contains(node));
            self.add(pool, nodes).await?;
            self.delete(pool, &stale, None).await?;
            Ok(stale)
        };
        self.alone(pool, set).await
    }

    /// A program that cannot tell leaves only the grace period to be waited for.
    async fn wait_drained(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        grace: Duration,
    ) -> Result<Vec<DrainReport>, BalancerError> {
        let began = Instant::now();
        let there = self.get_nodes(pool).await?;
        let leaving: Vec<Node> = nodes.iter().filter(|node| !there.contains(node)).cloned().collect();
        let open = if leaving.is_empty() {
            BTreeMap::new()
        } else {
            let seconds = Some(grace.as_secs_f64());
            let request = self.request(Action::WaitDrained, Some(pool));
            match self.ask(&Request { nodes: Some(&leaving), seconds, ..request }).await {
                Ok(answer) => answer.open,
                Err(ExecError::Unsupported(_)) => {
                    tokio::time::sleep(grace.saturating_sub(began.elapsed())).await;
                    BTreeMap::new()
                }
                Err(error) => return Err(self.about(Some(pool))(error)),
            }
        };
        let report = |node: &Node| DrainReport {
            node: node.clone(),
            open: open.get(node).copied().unwrap_or(0),
            in_pool: there.contains(node),
        };
        Ok(nodes.iter().map(report).collect())
    }

    async fn pool_address(&self, _pool: &PoolName) -> Result<Option<String>, BalancerError> {
        Ok(None)
    }

    fn grace_period(&self, _pool: &PoolName) -> Option<Duration> {
        self.settings.grace_period
    }

    /// What the program says of itself, and whether it can list its pools.
    async fn check(&self) -> Result<Vec<SiteReport>, BalancerError> {
        let about = self.about(None);
        let mut problems = match self.ask(&self.request(Action::Check, None)).await {
            Ok(answer) => answer.problems,
            Err(ExecError::Unsupported(_)) => Vec::new(),
            Err(error) => vec![chain(&about(error))],
        };
        if problems.is_empty() {
            problems.extend(self.pools().await.err().map(|error| chain(&about(error))));
        }
        Ok(vec![SiteReport { host: self.name.clone(), problems, done: Vec::new() }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_long_words_is_kept() {
        assert_eq!(shorten("é"), "é");
        let long = "é".repeat(LONGEST_WORDS) + "!";
        assert_eq!(shorten(&long), long[2..]);
    }

    #[test]
    fn nothing_prints_what_is_handed_over() {
        let settings = ExecSettings {
            command: vec!["/bin/x".to_owned()],
            timeout: TIMEOUT,
            config: serde_json::json!({ "password": "4711" }),
            lock_dir: PathBuf::from("/run/x"),
            grace_period: None,
        };
        let balancer = ExecBalancer::new("front", settings);
        assert!(!format!("{balancer:?}").contains("4711"));
        let command = Command::new(["/bin/x"]).stdin(b"4711".to_vec());
        assert_eq!(format!("{command:?}"), "Command(\"/bin/x\")");
    }

    #[test]
    fn names_of_lock_files_are_safe_and_differ() {
        assert_eq!(file_name("front"), "front");
        assert_eq!(file_name("../a b-é"), "..%2Fa%20b%2D%C3%A9");
        assert_ne!(file_name("a-b"), file_name("a%2Db"));
    }
}
