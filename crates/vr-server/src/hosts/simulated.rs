//! A host that lives in memory, for the server's tests: the same trait, with failures on demand.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use vr_common::host_api::{CleanUpReport, HostInfo, ProcDocument, ProcState, UptestResult};
use vr_common::names::{ContainerName, ParsedProcName};

use super::{Action, DriverKind, HostDriver, HostError, LogStream, NewsStream};

/// A proc document as an agent would give it.
pub fn document(host: &str, name: &str, state: ProcState) -> ProcDocument {
    ProcDocument {
        description: String::new(),
        exitstatus: 0,
        group: name.into(),
        logfile: String::new(),
        name: name.into(),
        now: None,
        pid: 1,
        spawnerr: String::new(),
        start_time: None,
        state: state.code(),
        statename: state,
        stderr_logfile: String::new(),
        stdout_logfile: String::new(),
        stop_time: None,
        parsed: ParsedProcName::parse(name),
        host: host.into(),
        jsname: name.replace('.', "dot"),
        id: format!("{host}-{name}"),
        usage: None,
    }
}

#[derive(Debug, Default)]
struct State {
    procs: BTreeMap<String, (ProcState, String)>,
    /// How often each call was made, such as `deploy app-v1-…`.
    calls: HashMap<String, usize>,
    /// Calls that fail, by the first word, with the reason.
    failing: HashMap<&'static str, String>,
    uptests: Vec<UptestResult>,
    unreachable: bool,
}

/// A host in memory; clones are the same host.
#[derive(Debug, Clone)]
pub struct SimulatedHost {
    name: String,
    state: Arc<Mutex<State>>,
}

impl SimulatedHost {
    /// An empty host.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), state: Arc::default() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets all calls of a kind (`deploy`, `act`, `uptest`, `delete`) fail, or work again.
    pub fn fail(&self, call: &'static str, reason: Option<&str>) {
        self.with(|s| match reason {
            Some(reason) => drop(s.failing.insert(call, reason.into())),
            None => drop(s.failing.remove(call)),
        });
    }

    /// Lets the host not answer, or answer again.
    pub fn cut_off(&self, unreachable: bool) {
        self.with(|s| s.unreachable = unreachable);
    }

    /// What uptests give from now on.
    pub fn set_uptests(&self, results: Vec<UptestResult>) {
        self.with(|s| s.uptests = results);
    }

    /// The names of all procs.
    pub fn names(&self) -> Vec<String> {
        self.with(|s| s.procs.keys().cloned().collect())
    }

    /// The proc.yaml of a proc.
    pub fn proc_yaml(&self, proc: &str) -> String {
        self.with(|s| s.procs[proc].1.clone())
    }

    /// How many different procs were ever set up.
    pub fn set_up(&self) -> usize {
        self.with(|s| s.calls.keys().filter(|call| call.starts_with("deploy ")).count())
    }

    fn call(&self, kind: &'static str, proc: &str) -> Result<(), HostError> {
        self.with(|s| {
            *s.calls.entry(format!("{kind} {proc}")).or_default() += 1;
            if s.unreachable {
                return Err(HostError::Unreachable { host: self.name.clone(), source: "cut off".into() });
            }
            match s.failing.get(kind) {
                Some(reason) => Err(HostError::Refused {
                    host: self.name.clone(),
                    message: reason.clone(),
                    log_tail: Some("last words".into()),
                }),
                None => Ok(()),
            }
        })
    }
}

#[async_trait]
impl HostDriver for SimulatedHost {
    fn kind(&self) -> Option<DriverKind> {
        Some(DriverKind::Agent)
    }

    async fn procs(&self) -> Result<Vec<ProcDocument>, HostError> {
        self.call("procs", "")?;
        Ok(self.with(|s| s.procs.iter().map(|(n, (state, _))| document(&self.name, n, *state)).collect()))
    }

    async fn deploy(&self, proc: &str, proc_yaml: &str) -> Result<ProcDocument, HostError> {
        self.call("deploy", proc)?;
        self.with(|s| s.procs.insert(proc.into(), (ProcState::Running, proc_yaml.into())));
        Ok(document(&self.name, proc, ProcState::Running))
    }

    async fn act(&self, proc: &str, action: Action) -> Result<ProcDocument, HostError> {
        self.call("act", proc)?;
        let state = if action == Action::Stop { ProcState::Stopped } else { ProcState::Running };
        let known = self.with(|s| s.procs.get_mut(proc).map(|entry| entry.0 = state).is_some());
        if known {
            Ok(document(&self.name, proc, state))
        } else {
            Err(HostError::NoSuchProc { host: self.name.clone(), proc: proc.into() })
        }
    }

    async fn uptest(&self, proc: &str) -> Result<Vec<UptestResult>, HostError> {
        self.call("uptest", proc)?;
        Ok(self.with(|s| s.uptests.clone()))
    }

    async fn delete(&self, proc: &str) -> Result<(), HostError> {
        self.call("delete", proc)?;
        if proc.parse::<ContainerName>().is_err() {
            return Err(HostError::NotOurs { host: self.name.clone(), proc: proc.into() });
        }
        self.with(|s| s.procs.remove(proc));
        Ok(())
    }

    async fn log_tail(&self, proc: &str, _: u64) -> Result<String, HostError> {
        self.call("log_tail", proc)?;
        Ok("last words".into())
    }

    async fn log_follow(&self, proc: &str, _: u64) -> Result<LogStream, HostError> {
        self.call("log_follow", proc)?;
        let pieces = ["first\nsec", "ond\n", "last words"].map(|piece| Ok(Bytes::from(piece)));
        Ok(Box::pin(futures_util::stream::iter(pieces)))
    }

    async fn clean_up(&self) -> Result<CleanUpReport, HostError> {
        self.call("clean_up", "")?;
        Ok(CleanUpReport::default())
    }

    async fn facts(&self) -> Result<HostInfo, HostError> {
        self.call("facts", "")?;
        Err(HostError::refused(&self.name, "it is not real"))
    }

    async fn changes(&self, _: Option<&str>) -> Result<Option<NewsStream>, HostError> {
        self.call("changes", "")?;
        Ok(None)
    }
}
