//! What an earlier agent left: procs that run, and work that is not done.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};
use vr_common::host_api::{ProcState, RunStatus};
use vr_common::proc_data::ProcData;
use vr_common::proc_data::rules::AutoRestart;

use super::running::exit_status;
use super::{ADOPTION_DEADLINE, LOOK_AGAIN, LOOK_AGAIN_SLOWLY, Run, Supervision};
use crate::error::AgentError;
use crate::files::Stamp;
use crate::machine::{Action, Event, Machine, Rules};
use crate::process::Watched;
use crate::record::{self, Desired, Phase, Record};
use crate::vrun;

impl Supervision {
    /// Learns what an earlier agent left.
    pub(super) fn load(&mut self) {
        self.doomed = self.tombstone().exists();
        let exists = self.files.proc_yaml().exists();
        let mut rules = Rules::default();
        if exists {
            self.note_loaded(Stamp::of(&self.files.proc_yaml()));
            match ProcData::load(&self.files.proc_yaml()) {
                Ok(data) => rules = Rules::of(&data),
                Err(e) => warn!(proc = &*self.name, "{}", vr_common::exit::chain(&e)),
            }
        }
        let recorded = match Record::load(&self.files.dir) {
            Ok(record) => {
                self.record = record;
                true
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => {
                warn!(proc = &*self.name, "cannot read {}: {e}", record::FILE_NAME);
                false
            }
        };
        self.machine = Machine::after_failures(Arc::new(rules), self.record.failures);
        if let Ok(Some(status)) = self.files.run_status() {
            self.started_at = Some(status.started_at);
            self.ended_at = status.ended_at;
            self.exit_status = exit_status(&status).unwrap_or(0);
        }
        if exists && self.adopt() && !recorded {
            // Nobody said that it should not run.
            self.record.desired = Desired::Running;
        }
        if exists && self.is_known {
            // Whatever it is: it may have been something else before.
            self.told = Some(ProcState::Unknown);
        } else if exists {
            self.announce();
        }
    }

    /// Takes up what an earlier agent was doing.
    pub(super) async fn resume(&mut self) {
        if !self.files.proc_yaml().exists() {
            return;
        }
        if self.run.is_none() {
            // The earlier agent may have been killed right after it started vrun.
            self.adopt_within(ADOPTION_DEADLINE).await;
        }
        if self.doomed {
            self.step(Event::Stop).await;
        } else if self.run.is_some() {
            if self.record.phase == Phase::SettingUp {
                self.record.phase = Phase::Ready;
                self.save_record().await;
            }
            if self.record.desired == Desired::Stopped {
                self.step(Event::Stop).await;
            }
        } else if self.record.desired == Desired::Running && self.machine.state() != ProcState::Fatal {
            if self.has_exited() {
                self.machine = Machine::exited(Arc::clone(self.machine.rules()));
                return;
            }
            if self.machine.rules().auto_restart != AutoRestart::Always {
                // So that a later agent can tell its end from that of a run before.
                self.record.want(Desired::Running);
                self.save_record().await;
            }
            match self.set_up_if_needed().await {
                Ok(()) => self.step(Event::Start).await,
                Err(e @ AgentError::Overtaken { .. }) => info!(proc = &*self.name, "{e}"),
                Err(e) => self.fail_for_good(&e.to_string()).await,
            }
        }
    }

    /// Whether it ended by itself while no agent was there, and its rules leave it alone then.
    fn has_exited(&self) -> bool {
        let Ok(Some(status)) = self.files.run_status() else { return false };
        let (Some(wanted), Some(ended_at)) = (self.record.wanted_at_ticks, status.ended_at) else {
            return false;
        };
        let rules = self.machine.rules();
        // By the wall clock, as nobody with another one was there.
        let stayed_up = u64::try_from(ended_at - status.started_at).is_ok_and(|ms| ms >= rules.start_ms);
        status.start_ticks >= wanted
            && status.app_pid.is_some()
            && stayed_up
            && exit_status(&status).is_some_and(|exit_status| rules.leave_alone(exit_status))
    }

    /// Adopts the vrun that the status file names, if it is alive and holds the proc.
    fn adopt(&mut self) -> bool {
        let Ok(Some(status)) = self.files.run_status() else { return false };
        if status.ended_at.is_some() || !matches!(vrun::is_free(&self.files.proc_yaml()), Ok(false)) {
            return false;
        }
        match Watched::adopt(status.pid, status.start_ticks) {
            Ok(Some(process)) => {
                self.take_over(process, &status);
                true
            }
            Ok(None) => false,
            Err(e) => {
                error!(proc = &*self.name, pid = status.pid, "cannot watch: {e}");
                false
            }
        }
    }

    fn take_over(&mut self, process: Watched, status: &RunStatus) {
        info!(proc = &*self.name, pid = status.pid, "found running");
        let age_ms = process.age_ms().unwrap_or_else(|e| {
            warn!(proc = &*self.name, "its age is not known: {e}");
            0
        });
        self.started_at = Some(status.started_at);
        let app_pid = status.app_pid;
        self.run = Some(Run { process, messages: None, app_pid, looked_at: Instant::now(), turn: None });
        // Not through `step`: adoption never asks for anything but a TERM.
        let (next, outcome) = self.machine.clone().step(Event::Adopted { age_ms }, self.now());
        self.machine = next;
        if outcome.action == Some(Action::Terminate) {
            self.signal(Signal::TERM);
        }
    }

    /// Adopts a vrun that holds the proc as soon as it says who it is. False when nobody holds the proc, or
    /// whoever does (a `vrun setup`, perhaps) has not said so in time.
    pub(super) async fn adopt_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while let Ok(false) = vrun::is_free(&self.files.proc_yaml()) {
            if self.adopt() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            debug!(proc = &*self.name, "waits for another vrun");
            let pace = if limit > ADOPTION_DEADLINE { LOOK_AGAIN_SLOWLY } else { LOOK_AGAIN };
            sleep(pace).await;
        }
        false
    }
}
