//! What is remembered of a proc on disk, and what is shown of it.

use std::sync::PoisonError;

use tracing::warn;
use vr_common::host_api::ProcState;

use super::{Supervision, blocking, failed};
use crate::changes::ChangeKind;
use crate::document::Snapshot;
use crate::error::AgentError;
use crate::files::{self, Stamp};
use crate::record::{self, Desired, Phase};

impl Supervision {
    /// Remembers that the proc has to run, also when it was to be deleted and could not be.
    pub(super) async fn want_running(&mut self) -> Result<(), AgentError> {
        let path = self.tombstone();
        let note = path.clone();
        blocking(move || files::remove_if_there(&note)).await.map_err(failed("remove", &path))?;
        // Whoever starts what has exited wants another run than the one that is known to have ended.
        self.unwritten |= self.machine.state() == ProcState::Exited;
        self.want(Desired::Running).await
    }

    /// Remembers that the proc has to be down, if only until the agent ends.
    pub(super) async fn want_stopped(&mut self) {
        if let Err(e) = self.want(Desired::Stopped).await {
            warn!(proc = &*self.name, "{}", vr_common::exit::chain(&e));
            self.record.want(Desired::Stopped);
            self.unwritten = true;
        }
    }

    /// Remembers what is wanted, before anything is done about it.
    pub(super) async fn want(&mut self, desired: Desired) -> Result<(), AgentError> {
        if self.record.desired == desired && !self.unwritten {
            return Ok(());
        }
        let mut record = self.record.clone();
        record.want(desired);
        let (written, dir) = (record.clone(), self.files.dir.clone());
        blocking(move || written.save(&dir))
            .await
            .map_err(failed("write", &self.files.dir.join(record::FILE_NAME)))?;
        self.record = record;
        self.unwritten = false;
        self.uncounted = false;
        Ok(())
    }

    /// Remembers what would be found out again anyhow, so that a full disk stops no supervision.
    pub(super) async fn save_record(&mut self) {
        let (record, dir) = (self.record.clone(), self.files.dir.clone());
        self.uncounted = false;
        if let Err(e) = blocking(move || record.save(&dir)).await {
            warn!(proc = &*self.name, "cannot write {}: {e}", record::FILE_NAME);
        }
    }

    /// Remembers which `proc.yaml` it goes by.
    pub(super) fn note_loaded(&self, stamp: Option<Stamp>) {
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.snapshot_in(self.machine.state())
    }

    fn snapshot_in(&self, state: ProcState) -> Snapshot {
        Snapshot {
            state,
            pid: self.run.as_ref().map_or(0, |run| run.app_pid.unwrap_or(run.process.pid())),
            vrun_pid: self.run.as_ref().map_or(0, |run| run.process.pid()),
            vrun_ticks: self.run.as_ref().map_or(0, |run| run.process.start_ticks()),
            started_at: self.started_at,
            ended_at: self.ended_at,
            exit_status: self.exit_status,
            spawn_error: match state {
                ProcState::Backoff | ProcState::Fatal => self.record.spawn_error.clone(),
                ProcState::Exited => self.end_error.clone(),
                _ => String::new(),
            },
            setting_up: self.record.phase == Phase::SettingUp
                && self.record.desired == Desired::Running
                && self.run.is_none(),
            restarts: self.record.restarts,
            ooms: self.record.ooms,
        }
    }

    pub(super) fn publish(&mut self) {
        let snapshot = self.snapshot();
        self.show(snapshot);
    }

    pub(super) fn show_setting_up(&mut self) {
        let snapshot = Snapshot { setting_up: true, ..self.snapshot() };
        self.show(snapshot);
    }

    /// Tells that there is a new proc.
    pub(super) fn announce(&mut self) {
        let snapshot = self.snapshot();
        self.told = Some(snapshot.state);
        self.show(snapshot.clone());
        self.around.changes.publish(ChangeKind::Added, &self.name, snapshot);
    }

    /// Tells of a state that the proc is no longer in.
    pub(super) fn pass(&mut self, state: ProcState) {
        let snapshot = self.snapshot_in(state);
        self.tell(snapshot);
    }

    fn show(&mut self, snapshot: Snapshot) {
        self.shown.send_if_modified(|shown| {
            let changed = *shown != snapshot;
            if changed {
                shown.clone_from(&snapshot);
            }
            changed
        });
        self.tell(snapshot);
    }

    fn tell(&mut self, snapshot: Snapshot) {
        if self.told.is_some_and(|told| told != snapshot.state) {
            self.told = Some(snapshot.state);
            self.around.changes.publish(ChangeKind::State, &self.name, snapshot);
        }
    }
}
