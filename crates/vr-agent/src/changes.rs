//! What changes on this host, for whoever wants to follow it: a bounded ring that each reader goes through at its own
//! pace.
//!
//! Publishing never waits for anybody: a reader that is too slow finds that the ring has gone past it, and has to look
//! at everything again. This module must not know who reads.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use thiserror::Error;
use tokio::sync::watch;
use vr_common::host_api::{ProcDocument, ProcState};
use vr_common::paths::VrRoot;
use vr_common::supervisor::ProcessInfo;

use crate::document::Snapshot;
use crate::files;

/// How many changes can be read again.
pub const CAPACITY: usize = 1024;

/// What happened to a proc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is in another state now.
    State,
    /// It is new.
    Added,
    /// It is gone.
    Removed,
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Counts up from 1, without gaps, in one [`Changes::epoch`].
    pub id: u64,
    /// When it happened, in Unix milliseconds.
    pub at: i64,
    /// What happened.
    pub kind: ChangeKind,
    /// The proc just after that; for one that is gone, just before.
    pub proc: ProcDocument,
    /// The same, as Supervisor tells it.
    pub info: ProcessInfo,
}

impl Change {
    /// Supervisor's name of the event, such as `PROCESS_STATE_RUNNING`.
    pub fn event(&self) -> &'static str {
        match self.kind {
            ChangeKind::Added => "PROCESS_GROUP_ADDED",
            ChangeKind::Removed => "PROCESS_GROUP_REMOVED",
            ChangeKind::State => match self.proc.statename {
                ProcState::Stopped => "PROCESS_STATE_STOPPED",
                ProcState::Starting => "PROCESS_STATE_STARTING",
                ProcState::Running => "PROCESS_STATE_RUNNING",
                ProcState::Backoff => "PROCESS_STATE_BACKOFF",
                ProcState::Stopping => "PROCESS_STATE_STOPPING",
                ProcState::Exited => "PROCESS_STATE_EXITED",
                ProcState::Fatal => "PROCESS_STATE_FATAL",
                ProcState::Unknown => "PROCESS_STATE_UNKNOWN",
            },
        }
    }
}

/// The reader fell behind, or never saw what it claims to have seen: it has to look at everything again. What it reads
/// next comes after that look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the reader fell behind the changes and has to list all procs again")]
pub struct Lagged;

/// All changes of this host since the agent was started.
#[derive(Debug, Clone)]
pub struct Changes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    epoch: String,
    host: String,
    root: VrRoot,
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Ring {
    /// The newest last. Small: documents are made when somebody reads them.
    entries: VecDeque<Entry>,
    newest: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    at: Timestamp,
    kind: ChangeKind,
    name: Arc<str>,
    snapshot: Snapshot,
}

impl Changes {
    /// None yet, of a host of that name whose files are below `root`.
    pub fn new(host: &str, root: VrRoot) -> Self {
        let ring = Mutex::new(Ring { entries: VecDeque::new(), newest: 0 });
        let newest = watch::Sender::new(0);
        Self { inner: Arc::new(Inner { epoch: random(), host: host.to_owned(), root, ring, newest }) }
    }

    /// Another text after each start of the agent: ids of two epochs have nothing to do with each other.
    pub fn epoch(&self) -> &str {
        &self.inner.epoch
    }

    /// The id of the last change, 0 when there was none. A list that is made after this call shows all changes up to
    /// this one.
    pub fn newest(&self) -> u64 {
        self.inner.ring().newest
    }

    /// Reads on after the change of that id, or else after the newest.
    pub fn subscribe(&self, after: Option<u64>) -> Subscription {
        let wake = self.inner.newest.subscribe();
        let last = after.unwrap_or_else(|| self.newest());
        Subscription { inner: Arc::clone(&self.inner), last, wake }
    }

    /// Tells of a change. The proc must be listed that way already.
    pub fn publish(&self, kind: ChangeKind, name: &Arc<str>, snapshot: Snapshot) {
        let mut ring = self.inner.ring();
        if ring.entries.len() >= CAPACITY {
            ring.entries.pop_front();
        }
        ring.entries.push_back(Entry { at: Timestamp::now(), kind, name: Arc::clone(name), snapshot });
        ring.newest += 1;
        self.inner.newest.send_replace(ring.newest);
    }
}

impl Inner {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing is left half-changed under this lock.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, id: u64, entry: &Entry) -> Change {
        let log = self.root.proc_dir(&entry.name).join("log").display().to_string();
        let info = entry.snapshot.info(&entry.name, &log, entry.at);
        let proc = info.document(&self.host);
        Change { id, at: entry.at.as_millisecond(), kind: entry.kind, proc, info }
    }
}

/// One reader of the changes.
#[derive(Debug)]
pub struct Subscription {
    inner: Arc<Inner>,
    last: u64,
    wake: watch::Receiver<u64>,
}

impl Subscription {
    /// The id of the change that was read last.
    pub fn position(&self) -> u64 {
        self.last
    }

    /// Waits for the next change. Safe to cancel.
    ///
    /// # Errors
    /// [`Lagged`] when the ring no longer has it; the next call waits for what happens after this one.
    pub async fn next(&mut self) -> Result<Arc<Change>, Lagged> {
        loop {
            self.wake.borrow_and_update();
            if let Some(next) = self.read() {
                return next;
            }
            // The sender lives as long as we do.
            let _ = self.wake.changed().await;
        }
    }

    fn read(&mut self) -> Option<Result<Arc<Change>, Lagged>> {
        let entry = {
            let ring = self.inner.ring();
            let behind = ring.newest.checked_sub(self.last);
            match behind.and_then(|behind| usize::try_from(behind).ok()) {
                Some(0) => return None,
                Some(behind) if behind <= ring.entries.len() => {
                    ring.entries.get(ring.entries.len() - behind).cloned()
                }
                _ => {
                    self.last = ring.newest;
                    return Some(Err(Lagged));
                }
            }
        };
        self.last += 1;
        entry.map(|entry| Ok(Arc::new(self.inner.change(self.last, &entry))))
    }
}

/// A text that nobody had before.
fn random() -> String {
    let uuid = files::read_text(Path::new("/proc/sys/kernel/random/uuid"), 100).unwrap_or_default();
    match uuid.trim() {
        // Without /proc nothing works anyway; this at least differs from start to start.
        "" => format!("{:x}", Timestamp::now().as_nanosecond()),
        uuid => uuid.replace('-', ""),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn changes() -> Changes {
        Changes::new("h", VrRoot::new("/apps"))
    }

    fn publish(changes: &Changes, state: ProcState) {
        let snapshot = Snapshot { state, ..Snapshot::unknown() };
        changes.publish(ChangeKind::State, &Arc::from("demo-v1-prod-abcd1234-web-5001"), snapshot);
    }

    #[tokio::test]
    async fn every_reader_gets_every_change_in_order() {
        let changes = changes();
        publish(&changes, ProcState::Stopped);
        let (mut late, mut all) = (changes.subscribe(None), changes.subscribe(Some(0)));
        let waiting = tokio::spawn(async move { late.next().await });
        publish(&changes, ProcState::Starting);
        let first = waiting.await.unwrap().unwrap();
        assert_eq!((first.id, first.event(), first.proc.state), (2, "PROCESS_STATE_STARTING", 10));
        assert_eq!(first.proc.id, "h-demo-v1-prod-abcd1234-web-5001");
        assert_eq!(first.proc.logfile, "/apps/procs/demo-v1-prod-abcd1234-web-5001/log");
        for expected in ["PROCESS_STATE_STOPPED", "PROCESS_STATE_STARTING"] {
            assert_eq!(all.next().await.unwrap().event(), expected);
        }
        let nothing = tokio::time::timeout(Duration::ZERO, all.next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
        assert_eq!((all.position(), changes.newest()), (2, 2));
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_is_told_once_and_goes_on() {
        let changes = changes();
        let mut slow = changes.subscribe(None);
        for _ in 0..=CAPACITY {
            publish(&changes, ProcState::Running);
        }
        assert_eq!(slow.next().await, Err(Lagged));
        publish(&changes, ProcState::Stopping);
        let next = slow.next().await.unwrap();
        assert_eq!((next.id, next.event()), (CAPACITY as u64 + 2, "PROCESS_STATE_STOPPING"));
        // Whoever is not further behind than the ring is long misses nothing.
        let mut exact = changes.subscribe(Some(2));
        assert_eq!(exact.next().await.unwrap().id, 3);
        assert_eq!(changes.subscribe(Some(1)).next().await, Err(Lagged));
        // An id of another epoch.
        assert_eq!(changes.subscribe(Some(1 << 40)).next().await, Err(Lagged));
    }

    #[test]
    fn epochs_differ() {
        assert_ne!(changes().epoch(), changes().epoch());
        assert_eq!(changes().epoch().len(), 32);
    }
}
