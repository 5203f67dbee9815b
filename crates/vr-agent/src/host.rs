//! All procs of this host: finds or makes the supervision of each, and asks it.
//!
//! Knows no HTTP. A lookup never waits for a proc: lists are made from what supervisions last showed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::Signal;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{error, info, warn};
use vr_common::host_api::{
    Deleted, HostInfo, KeptLog, ProcDocument, ProcList, ProcState, UptestReport, UptestResult, Usage,
};
use vr_common::names::ContainerName;
use vr_common::paths::VrRoot;
use vr_common::proc_data::ProcData;
use vr_common::supervisor::ProcessInfo;

use crate::changes::{ChangeKind, Changes};
use crate::document::Snapshot;
use crate::error::AgentError;
use crate::files::{self, Stamp};
use crate::kept::{self, KeptLogs};
use crate::supervision::{Command, GiveUps, Handle, Left, Reply, Supervision, Surroundings, Wait};
use crate::usage::Meter;
use crate::vrun::{self, CallError, ProcFiles};
use crate::{host_info, logs};

/// How many procs are set up at once.
const SETUPS_AT_ONCE: usize = 2;
/// How many procs are uptested at once.
const UPTESTS_AT_ONCE: usize = 4;
/// How long all uptests of a proc may take together.
const UPTEST_DEADLINE: Duration = Duration::from_secs(300);
/// The longest answer of `vrun uptest`, in bytes.
const UPTEST_LIMIT: usize = 16 << 20;
/// How long the start waits for procs to be looked at before it serves all the same.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);
/// How often a command is given to yet another supervision, because the last one's proc went away meanwhile.
const TRIES: u32 = 20;
/// How often a command is given to a supervision that then breaks.
const BROKEN_TRIES: u32 = 2;
/// How long a supervision that broke is left alone, unless something is asked of its proc.
const BROKEN_PAUSE: Duration = Duration::from_secs(5);
/// How often kept logs are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3600);
/// The most of a log that is given at once, in bytes.
pub const LOG_LIMIT: u64 = 1 << 20;
/// How many procs are being started at once for each processor: from the start of vrun until the app runs. More would
/// only make each take longer.
const STARTS_PER_CPU: usize = 4;

/// How a host is looked after.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the logs of procs that are gone are kept, in days; 0 for not at all.
    pub keep_logs_days: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { keep_logs_days: kept::KEEP_DAYS }
    }
}

/// What differs between the procs that are supervised and those on disk, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// On disk, but not supervised.
    pub added: Vec<String>,
    /// With another `proc.yaml` than the one that the supervision goes by.
    pub changed: Vec<String>,
    /// Supervised, but no longer on disk.
    pub removed: Vec<String>,
}

/// A host and its procs.
#[derive(Debug)]
pub struct Host {
    name: String,
    around: Arc<Surroundings>,
    uptests: Semaphore,
    procs: Mutex<Procs>,
    meter: Meter,
}

#[derive(Debug, Default)]
struct Procs {
    supervised: BTreeMap<String, Handle>,
    /// Those that are on disk, but not to be supervised until somebody asks for it.
    let_go: BTreeSet<String>,
    /// Those that nobody supervises and that others know of all the same: there before the first reader, or their
    /// supervisions broke.
    known: BTreeSet<String>,
}

impl Host {
    /// Finds the procs that are there, adopts those that run, and goes on with what an earlier agent left
    /// undone. `state_dir` holds the notes of deletes in progress.
    pub async fn open(name: &str, root: VrRoot, state_dir: &Path) -> io::Result<Arc<Self>> {
        Self::open_with(name, root, state_dir, Options::default()).await
    }

    /// As [`Self::open`], with options.
    pub async fn open_with(
        name: &str,
        root: VrRoot,
        state_dir: &Path,
        options: Options,
    ) -> io::Result<Arc<Self>> {
        let deleting = state_dir.join("deleting");
        std::fs::create_dir_all(root.procs())?;
        std::fs::create_dir_all(&deleting)?;
        let mut names = names_in(&root.procs())?;
        names.extend(names_in(&deleting)?);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let around = Surroundings {
            deleting,
            setups: Semaphore::new(SETUPS_AT_ONCE),
            starts: Arc::new(Semaphore::new(cpus * STARTS_PER_CPU)),
            changes: Changes::new(name, root.clone()),
            kept_logs: KeptLogs::new(root.path().join("logs"), options.keep_logs_days),
            root,
        };
        let host = Arc::new(Self {
            name: name.to_owned(),
            around: Arc::new(around),
            uptests: Semaphore::new(UPTESTS_AT_ONCE),
            procs: Mutex::default(),
            meter: Meter::default(),
        });
        tokio::spawn(sweep_now_and_then(Arc::downgrade(&host.around)));
        let mut found: Vec<Handle> = Vec::new();
        for name in names {
            let proc_yaml = host.files(&name).proc_yaml();
            if proc_yaml.exists() || host.around.deleting.join(&name).exists() {
                host.lock().known.insert(name.clone());
                found.push(host.find_or_make(&name));
            } else {
                warn!(proc = name, "has no proc.yaml and is left alone; a delete removes it");
            }
        }
        let deadline = Instant::now() + LOOK_DEADLINE;
        for handle in &mut found {
            let looked = handle.shown.wait_for(|shown| shown.state != ProcState::Unknown);
            // One that takes longer is shown as UNKNOWN until then.
            let _ = timeout_at(deadline, looked).await;
        }
        info!(procs = found.len(), "looked at all procs");
        Ok(host)
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the host's files are.
    pub fn root(&self) -> &VrRoot {
        &self.around.root
    }

    /// What happens to the procs, as it happens.
    pub fn changes(&self) -> &Changes {
        &self.around.changes
    }

    /// The procs' names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.handles().into_iter().filter(|(_, handle)| handle.has_proc()).map(|(name, _)| name).collect()
    }

    /// What is known of a proc, if it is supervised.
    pub fn snapshot(&self, name: &str) -> Option<Snapshot> {
        self.lock().supervised.get(name).map(|handle| handle.shown.borrow().clone())
    }

    /// A proc as Supervisor tells of it, if it is supervised.
    pub fn info_of(&self, name: &str) -> Option<ProcessInfo> {
        let log = self.files(name).log().display().to_string();
        self.snapshot(name).map(|shown| shown.info(name, &log, Timestamp::now()))
    }

    /// All procs, sorted by name.
    pub fn list(&self) -> ProcList {
        let handles = self.handles();
        let procs = handles.iter().filter(|(_, handle)| handle.has_proc());
        ProcList {
            host: self.name.clone(),
            procs: procs.map(|(name, handle)| self.show(name, handle)).collect(),
        }
    }

    /// One proc.
    pub fn document(&self, name: &str) -> Result<ProcDocument, AgentError> {
        let handle = self.lock().supervised.get(name).cloned();
        handle.map(|handle| self.show(name, &handle)).ok_or_else(|| AgentError::NoSuchProc(name.to_owned()))
    }

    /// The same, with what it uses of the host.
    pub async fn document_with_usage(&self, name: &str) -> Result<ProcDocument, AgentError> {
        let mut proc = self.document(name)?;
        proc.usage = self.usage().await.get(name).cloned();
        Ok(proc)
    }

    /// What the procs use of the host, by name; of one that was just added there may be nothing yet.
    pub async fn usage(&self) -> Arc<BTreeMap<String, Usage>> {
        let procs = self.handles().into_iter().map(|(name, handle)| (name, handle.shown.borrow().clone()));
        self.meter.usage(procs.collect()).await
    }

    /// What the host has.
    pub fn info(&self) -> HostInfo {
        host_info::collect(&self.name, &self.around.root)
    }

    /// Has a proc set up and running. The same again changes nothing; another `proc.yaml` under the same name
    /// is refused.
    pub async fn deploy(
        self: &Arc<Self>,
        name: &ContainerName,
        text: &str,
    ) -> Result<ProcDocument, AgentError> {
        let data = ProcData::parse("proc.yaml", text)
            .map_err(|e| AgentError::BadRequest(vr_common::exit::chain(&e)))?;
        let inside = data.container_name().ok_or_else(|| {
            AgentError::BadRequest(
                "proc.yaml needs all of app_name, version, config_name, release_hash and proc_name".into(),
            )
        })?;
        if inside != *name {
            return Err(AgentError::BadRequest(format!("proc.yaml is of {inside}, but was sent for {name}")));
        }
        let name = name.to_string();
        self.ask(&name, true, |reply| Command::Deploy {
            data: Box::new(data.clone()),
            text: text.to_owned(),
            reply,
        })
        .await?;
        self.document(&name)
    }

    /// Has a proc running; answered when it has been up for `startsecs`, or ended before that.
    pub async fn start(self: &Arc<Self>, name: &str) -> Result<ProcDocument, AgentError> {
        self.start_with(name, Wait::Outcome).await
    }

    /// Has a proc running, and waits for the outcome or not.
    pub async fn start_with(self: &Arc<Self>, name: &str, wait: Wait) -> Result<ProcDocument, AgentError> {
        self.ask(name, false, |reply| Command::Start(wait, reply)).await?;
        self.document(name)
    }

    /// Has a proc down.
    pub async fn stop(self: &Arc<Self>, name: &str) -> Result<ProcDocument, AgentError> {
        self.stop_with(name, Wait::Outcome).await
    }

    /// Has a proc down, and waits for its end or not.
    pub async fn stop_with(self: &Arc<Self>, name: &str, wait: Wait) -> Result<ProcDocument, AgentError> {
        self.ask(name, false, |reply| Command::Stop(wait, reply)).await?;
        self.document(name)
    }

    /// Sends a signal to a proc's app.
    pub async fn signal(self: &Arc<Self>, name: &str, signal: Signal) -> Result<(), AgentError> {
        self.ask(name, false, |reply| Command::Signal(signal, reply)).await
    }

    /// Takes up a proc that is on disk and not supervised, and has it set up and started.
    pub async fn add(self: &Arc<Self>, name: &str) -> Result<(), AgentError> {
        // Names become paths.
        if name.parse::<ContainerName>().is_err() || !self.files(name).proc_yaml().exists() {
            return Err(AgentError::NoSuchProc(name.to_owned()));
        }
        if self.lock().supervised.contains_key(name) {
            return Err(AgentError::AlreadyAdded(name.to_owned()));
        }
        self.ask(name, true, Command::Add).await
    }

    /// Forgets a proc that is down, and leaves its files as they are, until it is added again or the agent is started
    /// again.
    pub async fn let_go(self: &Arc<Self>, name: &str) -> Result<(), AgentError> {
        if self.snapshot(name).is_none() {
            return Err(AgentError::NoSuchProc(name.to_owned()));
        }
        match self.ask(name, false, Command::LetGo).await {
            // Somebody else was faster.
            Err(AgentError::NoSuchProc(_)) => Ok(()),
            done => done,
        }
    }

    /// Compares the procs that are supervised with those on disk. Reads files; call it where that is fine.
    pub fn compare(&self) -> Result<Differences, AgentError> {
        let procs = self.around.root.procs();
        let on_disk =
            names_in(&procs).map_err(|source| AgentError::File { what: "read", path: procs, source })?;
        let handles = self.handles();
        let mut differences = Differences::default();
        for name in on_disk.iter().filter(|name| !handles.contains_key(*name)) {
            if self.files(name).proc_yaml().exists() {
                differences.added.push(name.clone());
            }
        }
        for (name, handle) in handles {
            let loaded = *handle.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            match Stamp::of(&self.files(&name).proc_yaml()) {
                None => differences.removed.push(name),
                Some(there) if loaded.is_some_and(|loaded| loaded != there) => differences.changed.push(name),
                Some(_) => {}
            }
        }
        Ok(differences)
    }

    /// Has a proc ended and started again.
    pub async fn restart(self: &Arc<Self>, name: &str) -> Result<ProcDocument, AgentError> {
        self.ask(name, false, Command::Restart).await?;
        self.document(name)
    }

    /// Has a proc gone; one that never was is gone already.
    pub async fn delete(self: &Arc<Self>, name: &str) -> Result<Deleted, AgentError> {
        let done = Deleted { name: name.to_owned(), deleted: true };
        let something_left =
            self.files(name).dir.symlink_metadata().is_ok() || self.around.deleting.join(name).exists();
        if !something_left && self.snapshot(name).is_none() {
            return Ok(done);
        }
        match self.ask(name, something_left, Command::Delete).await {
            // It went away while we asked.
            Ok(()) | Err(AgentError::NoSuchProc(_)) => Ok(done),
            Err(e) => Err(e),
        }
    }

    /// Has what is left of a proc gone; whether it did. Does nothing when somebody has taken it up again.
    pub(crate) async fn delete_left(self: &Arc<Self>, name: &str) -> Result<bool, AgentError> {
        let (reply, answer) = oneshot::channel();
        {
            let mut procs = self.lock();
            if procs.supervised.contains_key(name) || self.files(name).proc_yaml().exists() {
                return Ok(false);
            }
            self.make(name, &mut procs, Some(Command::Delete(reply)));
        }
        answer.await.unwrap_or_else(|_| Err(AgentError::Broken(name.to_owned()))).map(|()| true)
    }

    /// Runs a proc's uptests in a container of their own.
    pub async fn uptest(&self, name: &str) -> Result<UptestReport, AgentError> {
        let files = self.files(name);
        if !files.proc_yaml().exists() {
            return Err(AgentError::NoSuchProc(name.to_owned()));
        }
        let failed = |reason| AgentError::Vrun { subcommand: "uptest", name: name.to_owned(), reason };
        let deadline = Instant::now() + UPTEST_DEADLINE;
        let _permit = timeout_at(deadline, self.uptests.acquire())
            .await
            .map_err(|_| failed("too many others are being uptested".into()))?
            .map_err(|_| AgentError::ShuttingDown)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let output = vrun::call(&self.around.root, "uptest", &files, left, UPTEST_LIMIT).await.map_err(
            |e| match e {
                CallError::Failed(reason) => failed(reason),
                CallError::Locked => failed("another vrun works on it".into()),
            },
        )?;
        let results: Vec<UptestResult> = serde_json::from_slice(&output)
            .map_err(|e| failed(format!("its output is not a list of test results: {e}")))?;
        Ok(UptestReport { results })
    }

    /// The last `bytes` bytes of a proc's log, at most [`LOG_LIMIT`]. Reads files; call it where that is fine.
    pub fn log(&self, name: &str, bytes: u64) -> Result<Vec<u8>, AgentError> {
        let path = self.log_file(name)?;
        logs::read(&path, bytes.min(LOG_LIMIT)).map_err(|source| AgentError::File {
            what: "read",
            path,
            source,
        })
    }

    /// A proc's log, or the one that was kept of a proc that is gone. The file itself may be missing, when the proc never
    /// was started. Looks at files; call it where that is fine.
    pub fn log_file(&self, name: &str) -> Result<PathBuf, AgentError> {
        let no_such_proc = || AgentError::NoSuchProc(name.to_owned());
        // Names become paths.
        let name = name.parse::<ContainerName>().map_err(|_| no_such_proc())?.to_string();
        let files = self.files(&name);
        // While a proc is torn down, its log has been moved already.
        let is_going = || self.around.deleting.join(&name).exists() && !files.log().exists();
        if files.proc_yaml().exists() && !is_going() {
            return Ok(files.log());
        }
        let left = || files.dir.exists().then(|| files.log());
        self.around.kept_logs.find(&name).or_else(left).ok_or_else(no_such_proc)
    }

    /// Where a proc's `proc.yaml` is, if it has one. The name becomes a path as it is.
    pub fn proc_yaml(&self, name: &ContainerName) -> PathBuf {
        self.files(&name.to_string()).proc_yaml()
    }

    /// The logs of procs that are gone, sorted by name. Looks at files; call it where that is fine.
    pub fn kept_logs(&self) -> Result<Vec<KeptLog>, AgentError> {
        self.around.kept_logs.list().map_err(|source| AgentError::File {
            what: "read",
            path: self.around.root.path().join("logs"),
            source,
        })
    }

    /// Empties a supervised proc's log, which vrun goes on to write, and removes the rotated one.
    pub async fn clear_log(&self, name: &str) -> Result<(), AgentError> {
        if self.snapshot(name).is_none() {
            return Err(AgentError::NoSuchProc(name.to_owned()));
        }
        let path = self.files(name).log();
        let log = path.clone();
        let cleared = tokio::task::spawn_blocking(move || {
            files::remove_if_there(&log.with_file_name("log.1"))?;
            let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
            match OpenOptions::new().write(true).custom_flags(no_follow).open(&log) {
                Ok(file) => file.set_len(0),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(e),
            }
        });
        let cleared = cleared.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        cleared.map_err(|source| AgentError::File { what: "empty", path, source })
    }

    fn show(&self, name: &str, handle: &Handle) -> ProcDocument {
        let log = self.files(name).log();
        handle.shown.borrow().document(&self.name, name, &log.display().to_string(), Timestamp::now())
    }

    fn files(&self, name: &str) -> ProcFiles {
        ProcFiles { dir: self.around.root.proc_dir(name) }
    }

    fn handles(&self) -> BTreeMap<String, Handle> {
        self.lock().supervised.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Procs> {
        // Nothing is left half-changed under this lock.
        self.procs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a proc's supervision and waits for its answer. With `make`, one is made for a name that has none;
    /// without, it has to have a `proc.yaml` and not to be let go.
    async fn ask(
        self: &Arc<Self>,
        name: &str,
        make: bool,
        command: impl Fn(Reply) -> Command,
    ) -> Result<(), AgentError> {
        let mut broken = 0;
        for _ in 0..TRIES {
            let (known, is_let_go) = {
                let procs = self.lock();
                (procs.supervised.get(name).cloned(), procs.let_go.contains(name))
            };
            let handle = match known {
                Some(handle) => handle,
                None if make || (!is_let_go && self.files(name).proc_yaml().exists()) => {
                    self.find_or_make(name)
                }
                None => return Err(AgentError::NoSuchProc(name.to_owned())),
            };
            let (reply, answer) = oneshot::channel();
            let command = command(reply);
            handle.count(&command);
            if handle.commands.send(Box::new(command)).await.is_ok()
                && let Ok(answer) = answer.await
            {
                return answer;
            }
            if !handle.ended.load(Ordering::Acquire) {
                broken += 1;
                if broken == BROKEN_TRIES {
                    break;
                }
            }
            // Its proc is gone, or it broke: there is another one now, or none.
            self.forget(name, &handle.ended, false, None);
            tokio::task::yield_now().await;
        }
        Err(AgentError::Broken(name.to_owned()))
    }

    fn find_or_make(self: &Arc<Self>, name: &str) -> Handle {
        let mut procs = self.lock();
        match procs.supervised.get(name) {
            Some(handle) => handle.clone(),
            None => self.make(name, &mut procs, None),
        }
    }

    /// Makes the supervision of a proc that has none. The first command comes before those of others who find it.
    fn make(self: &Arc<Self>, name: &str, procs: &mut Procs, first: Option<Command>) -> Handle {
        let is_known = procs.known.remove(name);
        let (supervision, handle, commands) = Supervision::new(name, is_known, Arc::clone(&self.around));
        if let Some(command) = first {
            // There is room for some.
            handle.count(&command);
            let _ = handle.commands.try_send(Box::new(command));
        }
        procs.supervised.insert(name.to_owned(), handle.clone());
        procs.let_go.remove(name);
        let task = tokio::spawn(supervision.run(commands));
        tokio::spawn(see_off(Arc::downgrade(self), name.to_owned(), handle.ended.clone(), task));
        handle
    }

    /// Takes a supervision from the list, unless another one has taken its place. Whoever knows of the proc is told that it
    /// is gone.
    fn forget(
        &self,
        name: &str,
        ended: &Arc<AtomicBool>,
        let_go: bool,
        announced: Option<(Arc<str>, Snapshot)>,
    ) {
        let mut procs = self.lock();
        if procs.supervised.get(name).is_some_and(|handle| Arc::ptr_eq(&handle.ended, ended)) {
            let handle = procs.supervised.remove(name);
            if let_go {
                procs.let_go.insert(name.to_owned());
            }
            if announced.is_none() && handle.is_some_and(|handle| handle.has_proc()) {
                procs.known.insert(name.to_owned());
            }
        }
        // Under the lock: a proc that takes its place must not be told of before.
        if let Some((name, snapshot)) = announced {
            self.changes().publish(ChangeKind::Removed, &name, snapshot);
        }
    }
}

impl Handle {
    /// Tells a setup in progress of a command that is about to be sent, in case that it has to be given up.
    fn count(&self, command: &Command) {
        self.give_up.send_modify(|GiveUps { stops, deletes }| match command {
            Command::Stop(..) => *stops += 1,
            Command::Delete(_) => *deletes += 1,
            _ => {}
        });
    }

    /// Whether there is a proc, and not only somebody who asked for one that is not made yet or never was there.
    fn has_proc(&self) -> bool {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Waits for the end of a supervision and has it forgotten. One that broke is replaced after a while, so that
/// its proc does not stay alone.
async fn see_off(host: Weak<Host>, name: String, ended: Arc<AtomicBool>, task: JoinHandle<Left>) {
    match task.await {
        Ok(Left { announced, let_go, answers, unanswered }) => {
            ended.store(true, Ordering::Release);
            // Forgotten before anybody hears of it, so that those who ask again find the next one.
            if let Some(host) = host.upgrade() {
                host.forget(&name, &ended, let_go, announced);
            }
            for (reply, answer) in answers {
                let _ = reply.send(answer);
            }
            drop(unanswered);
        }
        Err(e) if e.is_panic() => {
            error!(proc = name, "its supervision broke and is started again");
            sleep(BROKEN_PAUSE).await;
            if let Some(host) = host.upgrade() {
                host.forget(&name, &ended, false, None);
                if host.files(&name).proc_yaml().exists() || host.around.deleting.join(&name).exists() {
                    host.find_or_make(&name);
                }
            }
        }
        // The agent ends.
        Err(_) => {}
    }
}

/// Removes kept logs whose time is over, at once and then every day.
async fn sweep_now_and_then(around: Weak<Surroundings>) {
    while let Some(around) = around.upgrade() {
        let swept = tokio::task::spawn_blocking(move || around.kept_logs.sweep()).await;
        if let Err(e) = swept.unwrap_or_else(|e| Err(io::Error::other(e))) {
            warn!("the logs of procs that are gone cannot be looked through: {e}");
        }
        sleep(SWEEP_EVERY).await;
    }
}

/// The container names among a folder's entries.
fn names_in(folder: &Path) -> io::Result<BTreeSet<String>> {
    let entries: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<_>>()?;
    Ok(entries
        .iter()
        .filter_map(|path| path.file_name()?.to_str())
        .filter(|name| name.parse::<ContainerName>().is_ok())
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_supervision_that_breaks_is_replaced_and_asked_only_so_often() {
        let dir = tempfile::tempdir().unwrap();
        let name = "demo-v1-prod-abcd1234-web-5001";
        let proc_dir = dir.path().join("procs").join(name);
        std::fs::create_dir_all(&proc_dir).unwrap();
        std::fs::write(proc_dir.join("proc.yaml"), "cmd: [").unwrap();
        let host = Host::open("h", VrRoot::new(dir.path()), &dir.path().join("agent")).await.unwrap();
        let first = host.find_or_make(name);
        let broken = host.ask(name, false, Command::Break).await;
        assert!(matches!(broken, Err(AgentError::Broken(of)) if of == name));
        assert_eq!(host.list().procs.len(), 1, "it stays in the list");
        let stopped = host.stop(name).await.unwrap();
        assert_eq!(stopped.statename, ProcState::Stopped);
        assert!(!Arc::ptr_eq(&host.find_or_make(name).ended, &first.ended));
    }

    #[tokio::test]
    async fn what_is_left_goes_unless_somebody_has_taken_it_up() {
        let dir = tempfile::tempdir().unwrap();
        let name = "demo-v1-prod-abcd1234-web-5001";
        let proc_dir = dir.path().join("procs").join(name);
        let host = Host::open("h", VrRoot::new(dir.path()), &dir.path().join("agent")).await.unwrap();
        std::fs::create_dir_all(proc_dir.join("rootfs")).unwrap();
        let taken = host.find_or_make(name);
        assert!(
            host.list().procs.is_empty() && host.names().is_empty(),
            "there is no proc, and nobody is told of one"
        );
        assert!(!host.delete_left(name).await.unwrap());
        host.forget(name, &taken.ended, false, None);
        std::fs::write(proc_dir.join("proc.yaml"), "cmd: x").unwrap();
        assert!(!host.delete_left(name).await.unwrap());
        std::fs::remove_file(proc_dir.join("proc.yaml")).unwrap();
        assert!(host.delete_left(name).await.unwrap());
        assert!(!proc_dir.exists() && host.list().procs.is_empty());
        assert_eq!(std::fs::read_dir(dir.path().join("agent/deleting")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_log_can_be_read_while_its_proc_is_torn_down() {
        let dir = tempfile::tempdir().unwrap();
        let name = "demo-v1-prod-abcd1234-web-5001";
        let host = Host::open("h", VrRoot::new(dir.path()), &dir.path().join("agent")).await.unwrap();
        let proc_dir = dir.path().join("procs").join(name);
        std::fs::create_dir_all(&proc_dir).unwrap();
        for file in ["proc.yaml", "log"] {
            std::fs::write(proc_dir.join(file), file).unwrap();
        }
        assert_eq!(host.log(name, 100).unwrap(), b"log");
        std::fs::write(dir.path().join("agent/deleting").join(name), "").unwrap();
        assert_eq!(host.log(name, 100).unwrap(), b"log", "it is being stopped");
        host.around.kept_logs.keep(name, &proc_dir).unwrap();
        assert_eq!(host.log(name, 100).unwrap(), b"log", "it is being torn down");
    }
}
