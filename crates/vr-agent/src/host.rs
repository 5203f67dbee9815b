//! All procs of this host: finds or makes the supervision of each, and asks it.
//!
//! Knows no HTTP. A lookup never waits for a proc: lists are made from what supervisions last showed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{error, info, warn};
use vr_common::host_api::{Deleted, HostInfo, ProcDocument, ProcList, ProcState, UptestReport, UptestResult};
use vr_common::names::ContainerName;
use vr_common::paths::VrRoot;
use vr_common::proc_data::ProcData;

use crate::error::AgentError;
use crate::supervision::{Command, GiveUps, Handle, Reply, Supervision, Surroundings};
use crate::vrun::{self, CallError, ProcFiles};
use crate::{host_info, log_tail};

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
/// The most of a log that is given at once, in bytes.
pub const LOG_LIMIT: u64 = 1 << 20;

/// A host and its procs.
#[derive(Debug)]
pub struct Host {
    name: String,
    around: Arc<Surroundings>,
    uptests: Semaphore,
    procs: Mutex<BTreeMap<String, Handle>>,
}

impl Host {
    /// Finds the procs that are there, adopts those that run, and goes on with what an earlier agent left
    /// undone. `state_dir` holds the notes of deletes in progress.
    pub async fn open(name: &str, root: VrRoot, state_dir: &Path) -> io::Result<Arc<Self>> {
        let deleting = state_dir.join("deleting");
        std::fs::create_dir_all(root.procs())?;
        std::fs::create_dir_all(&deleting)?;
        let mut names = names_in(&root.procs())?;
        names.extend(names_in(&deleting)?);
        let around = Surroundings { root, deleting, setups: Semaphore::new(SETUPS_AT_ONCE) };
        let host = Arc::new(Self {
            name: name.to_owned(),
            around: Arc::new(around),
            uptests: Semaphore::new(UPTESTS_AT_ONCE),
            procs: Mutex::default(),
        });
        let mut found: Vec<Handle> = Vec::new();
        for name in names {
            let proc_yaml = host.files(&name).proc_yaml();
            if proc_yaml.exists() || host.around.deleting.join(&name).exists() {
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

    /// All procs, sorted by name.
    pub fn list(&self) -> ProcList {
        let handles = self.lock().clone();
        let procs = handles.iter().map(|(name, handle)| self.show(name, handle)).collect();
        ProcList { host: self.name.clone(), procs }
    }

    /// One proc.
    pub fn document(&self, name: &str) -> Result<ProcDocument, AgentError> {
        let handle = self.lock().get(name).cloned();
        handle.map(|handle| self.show(name, &handle)).ok_or_else(|| AgentError::NoSuchProc(name.to_owned()))
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

    /// Has a proc running; answered when it has been up for a second, or ended before that.
    pub async fn start(self: &Arc<Self>, name: &str) -> Result<ProcDocument, AgentError> {
        self.ask(name, false, Command::Start).await?;
        self.document(name)
    }

    /// Has a proc down.
    pub async fn stop(self: &Arc<Self>, name: &str) -> Result<ProcDocument, AgentError> {
        self.ask(name, false, Command::Stop).await?;
        self.document(name)
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
        if !something_left && self.lock().get(name).is_none() {
            return Ok(done);
        }
        match self.ask(name, something_left, Command::Delete).await {
            // It went away while we asked.
            Ok(()) | Err(AgentError::NoSuchProc(_)) => Ok(done),
            Err(e) => Err(e),
        }
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
        let files = self.files(name);
        if !files.dir.exists() {
            return Err(AgentError::NoSuchProc(name.to_owned()));
        }
        let path = files.log();
        log_tail::read(&path, bytes.min(LOG_LIMIT)).map_err(|source| AgentError::File {
            what: "read",
            path,
            source,
        })
    }

    fn show(&self, name: &str, handle: &Handle) -> ProcDocument {
        let log = self.files(name).log();
        handle.shown.borrow().document(&self.name, name, &log.display().to_string(), Timestamp::now())
    }

    fn files(&self, name: &str) -> ProcFiles {
        ProcFiles { dir: self.around.root.proc_dir(name) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        // Nothing is left half-changed under this lock.
        self.procs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a proc's supervision and waits for its answer. With `make`, one is made for a name that has none;
    /// without, it has to have a `proc.yaml`.
    async fn ask(
        self: &Arc<Self>,
        name: &str,
        make: bool,
        command: impl Fn(Reply) -> Command,
    ) -> Result<(), AgentError> {
        let mut broken = 0;
        for _ in 0..TRIES {
            let known = self.lock().get(name).cloned();
            let handle = match known {
                Some(handle) => handle,
                None if make || self.files(name).proc_yaml().exists() => self.find_or_make(name),
                None => return Err(AgentError::NoSuchProc(name.to_owned())),
            };
            let (reply, answer) = oneshot::channel();
            let command = command(reply);
            handle.give_up.send_modify(|GiveUps { stops, deletes }| match command {
                Command::Stop(_) => *stops += 1,
                Command::Delete(_) => *deletes += 1,
                _ => {}
            });
            if handle.commands.send(command).await.is_ok()
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
            self.forget(name, &handle.ended);
            tokio::task::yield_now().await;
        }
        Err(AgentError::Broken(name.to_owned()))
    }

    fn find_or_make(self: &Arc<Self>, name: &str) -> Handle {
        let mut procs = self.lock();
        if let Some(handle) = procs.get(name) {
            return handle.clone();
        }
        let (supervision, handle, commands) = Supervision::new(name, Arc::clone(&self.around));
        procs.insert(name.to_owned(), handle.clone());
        drop(procs);
        let task = tokio::spawn(supervision.run(commands));
        tokio::spawn(see_off(Arc::downgrade(self), name.to_owned(), handle.ended.clone(), task));
        handle
    }

    /// Takes a supervision from the list, unless another one has taken its place.
    fn forget(&self, name: &str, ended: &Arc<AtomicBool>) {
        let mut procs = self.lock();
        if procs.get(name).is_some_and(|handle| Arc::ptr_eq(&handle.ended, ended)) {
            procs.remove(name);
        }
    }
}

/// Waits for the end of a supervision and has it forgotten. One that broke is replaced after a while, so that
/// its proc does not stay alone.
async fn see_off<T: Send>(host: Weak<Host>, name: String, ended: Arc<AtomicBool>, task: JoinHandle<T>) {
    match task.await {
        Ok(unanswered) => {
            ended.store(true, Ordering::Release);
            // Forgotten before those who are still waiting hear of it, so that they find the next one.
            if let Some(host) = host.upgrade() {
                host.forget(&name, &ended);
            }
            drop(unanswered);
        }
        Err(e) if e.is_panic() => {
            error!(proc = name, "its supervision broke and is started again");
            sleep(BROKEN_PAUSE).await;
            if let Some(host) = host.upgrade() {
                host.forget(&name, &ended);
                if host.files(&name).proc_yaml().exists() || host.around.deleting.join(&name).exists() {
                    host.find_or_make(&name);
                }
            }
        }
        // The agent ends.
        Err(_) => {}
    }
}

/// The container names among a folder's entries.
fn names_in(folder: &Path) -> io::Result<std::collections::BTreeSet<String>> {
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
}
