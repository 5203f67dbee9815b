//! How a proc goes: noted first, so that a later agent goes on with it, then torn down by vrun.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use vr_common::proc_data::ProcData;

use super::{LOOK_AGAIN_SLOWLY, Supervision, blocking, failed};
use crate::error::AgentError;
use crate::files;
use crate::kept::Moved;
use crate::record::Desired;
use crate::vrun::{self, CallError};

/// How long `vrun teardown` may take.
const TEARDOWN_DEADLINE: Duration = Duration::from_secs(120);

impl Supervision {
    /// Notes on disk that the proc has to go, so that it goes even if the agent is killed on the way.
    pub(super) async fn doom(&mut self) -> Result<(), AgentError> {
        let path = self.tombstone();
        let written = path.clone();
        blocking(move || files::write_atomically(&written, b"")).await.map_err(failed("write", &path))?;
        self.doomed = true;
        Ok(())
    }

    pub(super) fn tombstone(&self) -> PathBuf {
        self.around.deleting.join(&*self.name)
    }

    /// Removes the proc, which is down; whether it is gone.
    pub(super) async fn remove(&mut self) -> bool {
        let moved = self.keep_logs().await;
        match self.tear_down().await {
            Ok(()) => {
                info!(proc = &*self.name, "deleted");
                true
            }
            Err(e) => {
                warn!(proc = &*self.name, "{}", vr_common::exit::chain(&e));
                self.give_logs_back(moved).await;
                if let Some((reply, why)) = self.undone.take() {
                    let _ = reply.send(Err(why));
                }
                // The note stays: the next delete, or the next agent, tries again.
                self.doomed = false;
                self.record.desired = Desired::Stopped;
                self.save_record().await;
                let text = e.to_string();
                for reply in self.deleters.drain(..) {
                    let _ = reply.send(Err(AgentError::Vrun {
                        subcommand: "teardown",
                        name: self.name.to_string(),
                        reason: text.clone(),
                    }));
                }
                self.parked.clear();
                false
            }
        }
    }

    async fn keep_logs(&self) -> Moved {
        let (around, name, dir) = (self.around.clone(), self.name.clone(), self.files.dir.clone());
        blocking(move || around.kept_logs.keep(&name, &dir)).await.unwrap_or_else(|e| {
            warn!(proc = &*self.name, "its log cannot be kept: {e}");
            Moved::default()
        })
    }

    async fn give_logs_back(&self, moved: Moved) {
        let (around, name, dir) = (self.around.clone(), self.name.clone(), self.files.dir.clone());
        if let Err(e) = blocking(move || around.kept_logs.give_back(&name, &dir, &moved)).await {
            warn!(proc = &*self.name, "its log cannot be moved back: {e}");
        }
    }

    async fn tear_down(&mut self) -> Result<(), AgentError> {
        let deadline = Instant::now() + TEARDOWN_DEADLINE;
        let failed_with =
            |reason| AgentError::Vrun { subcommand: "teardown", name: self.name.to_string(), reason };
        while self.files.proc_yaml().exists() {
            let left = deadline.saturating_duration_since(Instant::now());
            match vrun::call(&self.around.root, "teardown", &self.files, left, 1 << 20).await {
                Ok(_) => break,
                // A proc.yaml that nobody can read (any more) must not make a proc undeletable.
                Err(CallError::Failed(reason))
                    if ProcData::load(&self.files.proc_yaml()).is_err()
                        && matches!(vrun::is_free(&self.files.proc_yaml()), Ok(true)) =>
                {
                    warn!(
                        proc = &*self.name,
                        "vrun cannot tear it down, so only its folder is removed: {reason}"
                    );
                    break;
                }
                Err(CallError::Failed(reason)) => return Err(failed_with(reason)),
                Err(CallError::Locked) => {
                    while Instant::now() < deadline
                        && matches!(vrun::is_free(&self.files.proc_yaml()), Ok(false))
                    {
                        sleep(LOOK_AGAIN_SLOWLY).await;
                    }
                    if Instant::now() >= deadline {
                        return Err(failed_with("another vrun works on it and does not end".into()));
                    }
                }
            }
        }
        let (dir, tombstone) = (self.files.dir.clone(), self.tombstone());
        blocking(move || {
            // What vrun does not know of, and what an interrupted removal left.
            vr_common::archive::remove_tree(&dir)?;
            files::remove_if_there(&tombstone)
        })
        .await
        .map_err(failed("remove", &self.files.dir))
    }
}
