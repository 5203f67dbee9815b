//! How a proc is made: its files, and `vrun setup`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use vr_common::proc_data::ProcData;

use super::{LOOK_AGAIN, Reply, Supervision, blocking, failed};
use crate::error::AgentError;
use crate::files::{self, Stamp};
use crate::machine::{Machine, Rules};
use crate::record::{Desired, Phase, Record};
use crate::vrun::{self, CallError};

/// How long `vrun setup` may take, downloads included.
pub const SETUP_DEADLINE: Duration = Duration::from_secs(600);

impl Supervision {
    /// Makes a proc that is not there yet.
    pub(super) async fn make(&mut self, data: &ProcData, text: &str) -> Result<(), AgentError> {
        self.machine = Machine::stopped(Arc::new(Rules::of(data)));
        self.record = Record::new(Desired::Running);
        let (dir, record, text) = (self.files.dir.clone(), self.record.clone(), text.to_owned());
        let path = self.files.proc_yaml();
        let stamp = blocking(move || {
            std::fs::create_dir_all(&dir)?;
            record.save(&dir)?;
            let path = dir.join("proc.yaml");
            files::write_atomically(&path, text.as_bytes())?;
            Ok(Stamp::of(&path))
        })
        .await
        .map_err(failed("write", &path))?;
        self.note_loaded(stamp);
        if self.told.is_none() {
            self.announce();
        }
        Ok(())
    }

    /// Goes by the rules of a `proc.yaml` that is on disk.
    pub(super) fn go_by(&mut self, data: &ProcData) {
        self.machine.go_by(Arc::new(Rules::of(data)));
        self.note_loaded(Stamp::of(&self.files.proc_yaml()));
    }

    pub(super) async fn set_up_if_needed(&mut self) -> Result<(), AgentError> {
        if self.record.phase == Phase::Ready { Ok(()) } else { self.set_up().await }
    }

    pub(super) async fn set_up(&mut self) -> Result<(), AgentError> {
        let name = self.name.to_string();
        let failed = |reason: String| AgentError::Setup { name: name.clone(), reason };
        let around = Arc::clone(&self.around);
        let mut give_ups = self.give_up.subscribe();
        // Ready stays on disk: what is set up already stays good while setup runs again.
        self.show_setting_up();
        let mut given_up = std::pin::pin!(async {
            let why = give_ups.wait_for(|give_ups| give_ups.why().is_some()).await.ok();
            let what = why.and_then(|why| why.why()).unwrap_or("was stopped meanwhile");
            AgentError::Overtaken { name: name.clone(), what }
        });
        let lock_deadline = Instant::now() + SETUP_DEADLINE;
        loop {
            // A vrun of an earlier agent may hold it: it runs the proc, or still sets it up.
            tokio::select! {
                adopted = self.adopt_within(lock_deadline.saturating_duration_since(Instant::now())) => {
                    if adopted { break }
                }
                overtaken = &mut given_up => return Err(overtaken),
            }
            if Instant::now() >= lock_deadline {
                return Err(failed("another vrun works on it and does not end".into()));
            }
            let _permit = tokio::select! {
                permit = around.setups.acquire() => permit.map_err(|_| AgentError::ShuttingDown)?,
                overtaken = &mut given_up => return Err(overtaken),
            };
            info!(proc = &*self.name, "setting up");
            let called = tokio::select! {
                called = vrun::call(&around.root, "setup", &self.files, SETUP_DEADLINE, 1 << 20) => called,
                overtaken = &mut given_up => return Err(overtaken),
            };
            match called {
                Ok(_) => break,
                Err(CallError::Failed(reason)) => return Err(failed(reason)),
                // Another vrun was faster.
                Err(CallError::Locked) => sleep(LOOK_AGAIN).await,
            }
        }
        self.record.phase = Phase::Ready;
        self.save_record().await;
        Ok(())
    }

    /// Has a half-made proc removed, and then tells why it could not be made.
    pub(super) async fn undo(&mut self, reply: Reply, why: AgentError) {
        if let Err(e) = self.doom().await {
            warn!(proc = &*self.name, "{}", vr_common::exit::chain(&e));
            // Removed all the same, only not by a later agent.
            self.doomed = true;
        }
        self.undone = Some((reply, why));
    }
}
