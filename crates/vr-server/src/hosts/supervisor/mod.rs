//! A host whose procs are programs of Supervisor: state and actions over XML-RPC, files over SSH.
//!
//! A deploy writes `proc.yaml`, sets up, writes `proc.conf`, and has Supervisor read and add it; a delete takes that
//! back in the reverse order. Each step may be repeated, so that one that was killed is finished, or undone, by the next.
//! Two changes of one proc wait for each other by a lock on the host, whichever server makes them.

mod conf;
mod files;
mod rpc;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use http::StatusCode;
use vr_common::exit::chain;
use vr_common::host_api::{CleanUpReport, HostInfo, ProcDocument, ProcState, UptestResult};
use vr_common::names::ContainerName;
use vr_common::proc_data::ProcData;
use vr_common::proc_data::rules::AutoRestart;
use vr_common::supervisor::ProcessInfo;
use vr_common::xmlrpc::Fault;
use vr_ssh::Lock;

use self::conf::Program;
use self::files::Files;
use self::rpc::{Rpc, RpcError, fault};
use super::http::{Endpoint, HttpError};
use super::settings::HostSettings;
use super::{Action, DriverKind, HostDriver, HostError, LogStream, NewsStream, check_proc_yaml};

/// How long a process may take to be up, with all that Supervisor tries.
const UP: Duration = Duration::from_secs(120);
/// How long a process may take to be down.
const DOWN: Duration = Duration::from_secs(90);
/// How long Supervisor may take to begin with a program that was added just now.
const BEGIN: Duration = Duration::from_secs(10);
/// How long a group may seem to run after its process has ended.
const SETTLE: Duration = Duration::from_secs(10);
/// How often somebody who waits looks.
const LOOK: Duration = Duration::from_millis(200);
/// How much of a log is told with a failure, in bytes.
const LAST_WORDS: u64 = 4096;
/// What vr-agent has in the version that it gives as Supervisor's.
const AGENT: &str = "+vr-agent.";
/// How long an app may take to end, unless its proc.yaml says.
const GRACE: u32 = 10;

/// The Supervisor of one host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SupervisorDriver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: String,
    vrun: String,
    poll: Duration,
    rpc: Rpc,
    files: Files,
    /// Whether what answers in Supervisor's place said that it is vr-agent.
    is_agent: AtomicBool,
}

/// What happened to a process after all.
enum Outcome {
    Up(ProcessInfo),
    Down(ProcessInfo),
}

impl SupervisorDriver {
    /// The Supervisor of the host that the server calls `host`; nothing is connected yet.
    pub fn new(host: &str, settings: &HostSettings) -> Self {
        let name = host.trim_matches(['[', ']']);
        let endpoint = Endpoint::plain(name, settings.supervisor.port);
        let login = settings.supervisor.username.as_deref().zip(settings.supervisor.password.as_ref());
        Self(Arc::new(Inner {
            host: host.to_owned(),
            vrun: settings.vrun.clone(),
            poll: Duration::from_secs(settings.supervisor.poll_seconds),
            rpc: Rpc::new(host, endpoint, login),
            files: Files::new(host, settings),
            is_agent: AtomicBool::new(false),
        }))
    }

    /// Whether Supervisor is there; nothing secret is sent to find out.
    pub(super) async fn see(&self) -> Result<bool, HttpError> {
        self.0.rpc.see().await
    }

    /// Whether what answers in Supervisor's place was vr-agent when it was last asked.
    pub(super) fn is_agent(&self) -> bool {
        self.0.is_agent.load(Ordering::Relaxed)
    }

    /// Where Supervisor is.
    pub(super) fn shown(&self) -> String {
        self.0.rpc.endpoint.shown()
    }

    fn refused(&self, message: impl Into<String>) -> HostError {
        HostError::refused(&self.0.host, message)
    }

    fn faulty(&self, proc: &str, doing: &str, error: RpcError) -> HostError {
        match error {
            RpcError::Host(error) => error,
            RpcError::Fault(Fault { code: fault::BAD_NAME, .. }) => {
                HostError::no_such_proc(&self.0.host, proc)
            }
            RpcError::Fault(Fault { code: fault::SHUTDOWN_STATE, .. }) => {
                self.refused("Supervisor is going down or starting anew")
            }
            RpcError::Fault(Fault { code, message }) => {
                self.refused(format!("Supervisor did not {doing} {proc}: {message} (fault {code})"))
            }
        }
    }

    /// What Supervisor knows of a process; none when it does not know it.
    async fn known(&self, name: &str) -> Result<Option<ProcessInfo>, HostError> {
        match self.0.rpc.info(name).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.is(fault::BAD_NAME) => Ok(None),
            Err(error) => Err(self.faulty(name, "describe", error)),
        }
    }

    /// What Supervisor calls a process: `group:name` unless both are the same.
    async fn full_name(&self, proc: &str) -> Result<String, HostError> {
        if proc.parse::<ContainerName>().is_ok() || proc.contains(':') {
            return Ok(proc.to_owned());
        }
        let all = self.0.rpc.all().await.map_err(|e| self.faulty(proc, "list", e))?;
        let mut same = all.iter().filter(|info| info.name == proc);
        match (same.next(), same.next()) {
            (Some(info), None) if info.group == info.name => Ok(info.name.clone()),
            (Some(info), None) => Ok(format!("{}:{}", info.group, info.name)),
            (Some(info), Some(other)) => Err(self.refused(format!(
                "{proc} is in more than one group: say {}:{proc} or {}:{proc}",
                info.group, other.group
            ))),
            (None, _) => Err(HostError::no_such_proc(&self.0.host, proc)),
        }
    }

    async fn start(&self, proc: &str, name: &str) -> Result<(), HostError> {
        // Supervisor says yes to a start of what is about to end, and does not start it.
        if self.known(name).await?.is_some_and(|info| info.proc_state() == ProcState::Stopping) {
            self.stop(proc, name).await?;
        }
        let params = [name.into(), false.into()];
        match self.0.rpc.call("supervisor.startProcess", &params).await {
            Err(error) if !error.is(fault::ALREADY_STARTED) => Err(self.faulty(proc, "start", error)),
            _ => Ok(()),
        }
    }

    /// Has a process down; none when Supervisor does not know it.
    async fn stop(&self, proc: &str, name: &str) -> Result<Option<ProcessInfo>, HostError> {
        let deadline = Instant::now() + DOWN;
        let mut taken = false;
        loop {
            if !taken {
                let params = [name.into(), false.into()];
                taken = match self.0.rpc.call("supervisor.stopProcess", &params).await {
                    Ok(_) => true,
                    Err(error) if error.is(fault::BAD_NAME) => return Ok(None),
                    // It may just have ended by itself, and be started again in a moment.
                    Err(error) if error.is(fault::NOT_RUNNING) => false,
                    Err(error) => return Err(self.faulty(proc, "stop", error)),
                };
            }
            match self.known(name).await? {
                None => return Ok(None),
                Some(info) if is_down(info.proc_state()) => return Ok(Some(info)),
                Some(info) if taken && is_up(info.proc_state()) => {
                    let state = info.statename;
                    return Err(
                        self.refused(format!("{proc} is {state} again: somebody else has started it"))
                    );
                }
                Some(info) if Instant::now() > deadline => {
                    return Err(self.refused(format!(
                        "{proc} is {} and did not end within {} s",
                        info.statename,
                        DOWN.as_secs()
                    )));
                }
                Some(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Waits until a process that was begun is up, or given up.
    async fn settle(&self, proc: &str, name: &str) -> Result<Outcome, HostError> {
        let begun = Instant::now();
        loop {
            let info = self.known(name).await?.ok_or_else(|| HostError::no_such_proc(&self.0.host, proc))?;
            match info.proc_state() {
                ProcState::Running => return Ok(Outcome::Up(info)),
                // Supervisor begins at its next look around, and a new one ends in between.
                ProcState::Stopped if begun.elapsed() < BEGIN => {}
                ProcState::Starting | ProcState::Backoff if begun.elapsed() < UP => {}
                _ => return Ok(Outcome::Down(info)),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A process that should be up, or why it is not.
    async fn up(&self, proc: &str, name: &str) -> Result<ProcDocument, HostError> {
        match self.settle(proc, name).await? {
            Outcome::Up(info) => Ok(info.document(&self.0.host)),
            // A program that had nothing more to do.
            Outcome::Down(info) if info.proc_state() == ProcState::Exited && info.exitstatus == 0 => {
                Ok(info.document(&self.0.host))
            }
            Outcome::Down(info) => {
                let log_tail =
                    self.log_tail(proc, LAST_WORDS).await.ok().filter(|tail| !tail.trim().is_empty());
                let why = if info.spawnerr.is_empty() { &info.description } else { &info.spawnerr };
                Err(HostError::Refused {
                    host: self.0.host.clone(),
                    message: format!("{proc} did not stay up: it is {} ({why})", info.statename),
                    log_tail,
                })
            }
        }
    }

    /// Has Supervisor read its configuration and take up a program of it.
    async fn add(&self, proc: &str) -> Result<(), HostError> {
        match self.0.rpc.call("supervisor.reloadConfig", &[]).await {
            Ok(_) => {}
            Err(RpcError::Fault(Fault { code: fault::CANT_REREAD, message })) => {
                return Err(self.refused(format!("Supervisor cannot read its configuration: {message}")));
            }
            Err(error) => return Err(self.faulty(proc, "read the configuration of", error)),
        }
        match self.0.rpc.call("supervisor.addProcessGroup", &[proc.into()]).await {
            Ok(_) => Ok(()),
            Err(error) if error.is(fault::ALREADY_ADDED) => Ok(()),
            Err(error) if error.is(fault::BAD_NAME) => Err(self.refused(format!(
                "Supervisor does not find {proc} in its configuration: supervisord.conf has to include {}",
                self.0.files.include()
            ))),
            Err(error) => Err(self.faulty(proc, "add", error)),
        }
    }

    /// Has Supervisor forget a process that is down.
    async fn remove(&self, proc: &str) -> Result<(), HostError> {
        let deadline = Instant::now() + SETTLE;
        loop {
            match self.0.rpc.call("supervisor.removeProcessGroup", &[proc.into()]).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is(fault::BAD_NAME) => return Ok(()),
                // It is down, but Supervisor has yet to see that.
                Err(error) if error.is(fault::STILL_RUNNING) && Instant::now() < deadline => {
                    tokio::time::sleep(LOOK).await;
                    self.stop(proc, proc).await?;
                }
                Err(error) => return Err(self.faulty(proc, "remove", error)),
            }
        }
    }

    /// Takes back what a first deploy has written, after it failed.
    async fn undo(&self, proc: &str) {
        let undone = async {
            self.stop(proc, proc).await?;
            self.remove(proc).await?;
            self.0.files.remove(proc).await
        };
        if let Err(error) = undone.await {
            tracing::warn!("{proc} was half-made and is left so; a delete removes it: {}", chain(&error));
        }
    }

    /// Does something for as long as a lock is held: somebody else may have it after that.
    async fn under<T>(
        &self,
        lock: &Lock,
        work: impl Future<Output = Result<T, HostError>> + Send,
    ) -> Result<T, HostError> {
        tokio::select! {
            done = work => done,
            () = lock.lost() => {
                let source = "the connection that held the proc's lock was lost".to_owned();
                Err(HostError::unreachable(&self.0.host, source))
            }
        }
    }

    async fn delete_locked(&self, proc: &str) -> Result<(), HostError> {
        match (self.known(proc).await?, self.0.files.exists(proc).await?) {
            (None, false) => Ok(()),
            (Some(_), false) => Err(HostError::NotOurs { host: self.0.host.clone(), proc: proc.to_owned() }),
            (_, true) => {
                self.stop(proc, proc).await?;
                self.remove(proc).await?;
                self.0.files.remove(proc).await
            }
        }
    }

    async fn deploy_locked(&self, proc: &str, proc_yaml: &str, data: &ProcData) -> Result<(), HostError> {
        let conf = self.program(proc, data)?;
        let known = self.known(proc).await?;
        let there = self.0.files.proc_yaml(proc).await?;
        match (&there, &known) {
            (Some(text), _) if !is_same(text, proc_yaml) => {
                return Err(self.refused(format!("{proc} exists already with a different proc.yaml")));
            }
            (None, Some(_)) => {
                return Err(self.refused(format!(
                    "Supervisor has a program {proc} that Velociraptor did not deploy: {} is missing",
                    self.0.files.path(proc, "proc.yaml")
                )));
            }
            (Some(_), Some(info)) if is_up(info.proc_state()) => return Ok(()),
            // vrun sets up nothing that is in use.
            (Some(_), Some(info)) if !is_down(info.proc_state()) => drop(self.stop(proc, proc).await?),
            _ => {}
        }
        let made = async {
            self.0.files.write_proc_yaml(proc, proc_yaml).await?;
            self.0.files.set_up(proc).await?;
            self.0.files.write_conf(proc, &conf).await?;
            self.add(proc).await
        };
        match (made.await, &known) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(_)) => self.start(proc, proc).await,
            (Err(error), None) if !error.is_unreachable() => {
                self.undo(proc).await;
                Err(error)
            }
            (Err(error), _) => Err(error),
        }
    }

    fn program(&self, proc: &str, data: &ProcData) -> Result<String, HostError> {
        let mut rules = Vec::new();
        if let Some(seconds) = data.startsecs {
            rules.push(("startsecs", seconds.to_string()));
        }
        if let Some(retries) = data.startretries {
            rules.push(("startretries", retries.to_string()));
        }
        if let Some(autorestart) = data.autorestart {
            let word = match autorestart {
                AutoRestart::Always => "true",
                AutoRestart::Never => "false",
                AutoRestart::Unexpected => "unexpected",
            };
            rules.push(("autorestart", word.to_owned()));
        }
        // Not `stopsignal`: Supervisor would send it to vrun, which takes only TERM and INT for the wish to end, and passes
        // on the signal of proc.yaml by itself.
        if let Some(codes) = &data.exitcodes {
            let codes: Vec<_> = codes.0.iter().map(u8::to_string).collect();
            rules.push(("exitcodes", codes.join(",")));
        }
        let program = Program {
            name: proc,
            vrun: &self.0.vrun,
            root: self.0.files.root(),
            grace: Duration::from_secs(data.grace_period.unwrap_or(GRACE).into()),
            rules: &rules,
        };
        program.text().map_err(|reason| self.refused(reason))
    }
}

/// Whether a process is up, or Supervisor is about to have it up.
fn is_up(state: ProcState) -> bool {
    matches!(state, ProcState::Starting | ProcState::Running | ProcState::Backoff)
}

/// Whether a process is down for good, unless somebody starts it.
fn is_down(state: ProcState) -> bool {
    matches!(state, ProcState::Stopped | ProcState::Exited | ProcState::Fatal | ProcState::Unknown)
}

/// Whether two texts are the same proc.yaml.
fn is_same(text: &str, other: &str) -> bool {
    let parse = |text| ProcData::parse("proc.yaml", text).ok();
    text == other || parse(text).is_some_and(|data| Some(data) == parse(other))
}

#[async_trait]
impl HostDriver for SupervisorDriver {
    fn kind(&self) -> Option<DriverKind> {
        Some(DriverKind::Supervisor)
    }

    fn poll_every(&self) -> Duration {
        self.0.poll
    }

    async fn procs(&self) -> Result<Vec<ProcDocument>, HostError> {
        let all = self.0.rpc.all().await.map_err(|e| self.faulty("its processes", "list", e))?;
        let mut procs: Vec<_> = all.iter().map(|info| info.document(&self.0.host)).collect();
        procs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(procs)
    }

    async fn deploy(&self, proc: &str, proc_yaml: &str) -> Result<ProcDocument, HostError> {
        let (_, data) = check_proc_yaml(proc, proc_yaml).map_err(|reason| self.refused(reason))?;
        self.program(proc, &data)?;
        // Nothing is written where Supervisor does not answer.
        self.known(proc).await?;
        {
            let lock = self.0.files.lock(proc).await?;
            self.under(&lock, self.deploy_locked(proc, proc_yaml, &data)).await?;
        }
        self.up(proc, proc).await
    }

    async fn act(&self, proc: &str, action: Action) -> Result<ProcDocument, HostError> {
        let name = self.full_name(proc).await?;
        let gone = || HostError::no_such_proc(&self.0.host, proc);
        if action != Action::Start {
            let stopped = self.stop(proc, &name).await?.ok_or_else(gone)?;
            if action == Action::Stop {
                return Ok(stopped.document(&self.0.host));
            }
        }
        self.start(proc, &name).await?;
        self.up(proc, &name).await
    }

    async fn uptest(&self, proc: &str) -> Result<Vec<UptestResult>, HostError> {
        match proc.parse::<ContainerName>() {
            Ok(_) => self.0.files.uptest(proc).await,
            Err(_) => Err(HostError::NotOurs { host: self.0.host.clone(), proc: proc.to_owned() }),
        }
    }

    async fn delete(&self, proc: &str) -> Result<(), HostError> {
        if proc.parse::<ContainerName>().is_err() {
            return match self.full_name(proc).await {
                Err(HostError::NoSuchProc { .. }) => Ok(()),
                Err(error) => Err(error),
                Ok(_) => Err(HostError::NotOurs { host: self.0.host.clone(), proc: proc.to_owned() }),
            };
        }
        // Nothing is touched where Supervisor does not answer. While the lock is waited for, somebody else may delete it.
        self.known(proc).await?;
        let lock = self.0.files.lock(proc).await?;
        self.under(&lock, self.delete_locked(proc)).await
    }

    async fn log_tail(&self, proc: &str, bytes: u64) -> Result<String, HostError> {
        let name = self.full_name(proc).await?;
        let length = i32::try_from(bytes.min(1 << 20)).unwrap_or(i32::MAX);
        match self.0.rpc.tail(&name, length).await {
            Ok(text) => Ok(text),
            // Nothing was written yet.
            Err(error) if error.is(fault::NO_FILE) => Ok(String::new()),
            // Supervisor cannot send every byte that a log may have.
            Err(RpcError::Host(HostError::Refused { .. })) if proc.parse::<ContainerName>().is_ok() => {
                self.0.files.log_tail(proc, bytes.min(1 << 20)).await
            }
            Err(error) => Err(self.faulty(proc, "show the log of", error)),
        }
    }

    async fn log_follow(&self, proc: &str, _: u64) -> Result<LogStream, HostError> {
        let name = self.full_name(proc).await?;
        let flow = self.0.rpc.follow(&name).await?;
        match flow.status {
            StatusCode::OK => {
                let host = self.0.host.clone();
                let pieces = flow.body.map(move |piece| piece.map_err(|e| HostError::unreachable(&host, e)));
                Ok(Box::pin(pieces))
            }
            StatusCode::NOT_FOUND => Err(HostError::no_such_proc(&self.0.host, proc)),
            StatusCode::GONE => Err(self.refused(format!("{proc} has no log yet"))),
            status => Err(self.0.rpc.refusal(status)),
        }
    }

    async fn clean_up(&self) -> Result<CleanUpReport, HostError> {
        let mut report = self.0.files.clean_up().await?;
        for proc in self.0.files.old_procs().await? {
            let _lock = match self.0.files.lock(&proc).await {
                Ok(lock) => lock,
                Err(error) => {
                    report.errors.push(chain(&error));
                    continue;
                }
            };
            // A deploy writes first and has it added then.
            if self.known(&proc).await?.is_none() {
                match self.0.files.remove(&proc).await {
                    Ok(()) => report.procs.push(proc),
                    Err(error) => report.errors.push(chain(&error)),
                }
            }
        }
        Ok(report)
    }

    async fn facts(&self) -> Result<HostInfo, HostError> {
        let version = self.0.rpc.call("supervisor.getSupervisorVersion", &[]).await;
        let version = version.map_err(|e| self.faulty("itself", "describe", e))?.into_json();
        let version = version.as_str().unwrap_or_default();
        self.0.is_agent.store(version.contains(AGENT), Ordering::Relaxed);
        self.0.files.facts(version).await
    }

    async fn changes(&self, _: Option<&str>) -> Result<Option<NewsStream>, HostError> {
        Ok(None)
    }
}
