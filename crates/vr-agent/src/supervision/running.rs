//! The machine and its world: what it asks for is done, and what comes of it is told to it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::Signal;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::{error, info, warn};
use vr_common::host_api::{ProcState, RunStatus};

use super::{ADOPTION_DEADLINE, Run, Supervision, TURN_LIMIT};
use crate::error::AgentError;
use crate::machine::{Action, Event, Machine};
use crate::process::{self, Watched};
use crate::vrun::{self, Messages};

impl Supervision {
    /// Tells the machine, does what it asks for, and remembers the outcome.
    pub(super) async fn step(&mut self, event: Event) {
        let mut next_event = Some(event);
        while let Some(event) = next_event.take() {
            let before = self.machine.state();
            let (next, outcome) = self.machine.clone().step(event, self.now());
            self.machine = next;
            for state in outcome.passed {
                self.pass(state);
            }
            let state = self.machine.state();
            if state != before {
                info!(proc = &*self.name, from = before.name(), to = state.name(), "state");
            }
            match outcome.action {
                Some(Action::Spawn) => {
                    let crashed = matches!(event, Event::Ended { .. }) && before != ProcState::Stopping;
                    if crashed || event == Event::Tick {
                        self.record.restarts = self.record.restarts.saturating_add(1);
                        self.uncounted = true;
                    }
                    self.publish();
                    next_event = self.take_turn().await;
                }
                Some(Action::Terminate) if self.queued => {
                    self.queued = false;
                    next_event = Some(Event::SpawnFailed);
                }
                Some(Action::Terminate) => self.signal(Signal::TERM),
                Some(Action::Kill) => {
                    warn!(proc = &*self.name, "did not end in time and is killed");
                    self.signal(Signal::KILL);
                }
                None => {}
            }
        }
        if self.machine.state() == ProcState::Running {
            self.record.spawn_error.clear();
            self.look_for_app_pid();
        }
        if self.record.failures != self.machine.failures() {
            self.record.failures = self.machine.failures();
            self.uncounted = true;
        }
        self.publish();
        if self.uncounted {
            self.save_record().await;
        }
    }

    /// Starts vrun at once if not too many others are being started; else later, when it is our turn.
    async fn take_turn(&mut self) -> Option<Event> {
        match Arc::clone(&self.around.starts).try_acquire_owned() {
            Ok(turn) => Some(self.spawn(turn).await),
            Err(_) => {
                self.queued = true;
                None
            }
        }
    }

    pub(super) async fn on_turn(&mut self, turn: OwnedSemaphorePermit) {
        self.queued = false;
        let event = self.spawn(turn).await;
        self.step(event).await;
    }

    /// Starts the waiting vrun, unless one is there already.
    async fn spawn(&mut self, turn: OwnedSemaphorePermit) -> Event {
        if self.adopt_within(ADOPTION_DEADLINE).await {
            return Event::Tick;
        }
        let launched = match vrun::is_free(&self.files.proc_yaml()) {
            Ok(true) => vrun::launch(&self.around.root, &self.files),
            Ok(false) => Err("another vrun works on it".to_owned()),
            Err(e) => Err(format!("cannot lock {}: {e}", self.files.proc_yaml().display())),
        };
        let now = Instant::now();
        let watched = launched.and_then(|(child, messages)| {
            let pid = child.id();
            let turn = Some((turn, now + TURN_LIMIT));
            Watched::child(child)
                .map(|process| Run { process, messages: Some(messages), app_pid: None, looked_at: now, turn })
                .map_err(|e| format!("cannot watch process {pid}: {e}"))
        });
        match watched {
            Ok(run) => {
                info!(proc = &*self.name, pid = run.process.pid(), "started");
                self.run = Some(run);
                self.started_at = Some(Timestamp::now().as_millisecond());
                Event::Spawned
            }
            Err(reason) => {
                warn!(proc = &*self.name, "cannot be started: {reason}");
                self.record.spawn_error = reason;
                Event::SpawnFailed
            }
        }
    }

    /// The waiting vrun ended.
    pub(super) async fn on_end(&mut self) {
        let Some(run) = self.run.take() else { return };
        let Run { process, messages, looked_at, .. } = run;
        let (pid, start_ticks) = (process.pid(), process.start_ticks());
        let code = process.reap();
        if messages.as_ref().is_some_and(Messages::say_locked) {
            info!(proc = &*self.name, "another vrun was faster");
            if self.adopt_within(ADOPTION_DEADLINE).await {
                self.publish();
                return;
            }
        }
        let status = match self.files.run_status() {
            Ok(status) => status.filter(|s| (s.pid, s.start_ticks) == (pid, start_ticks)),
            Err(e) => {
                warn!(proc = &*self.name, "cannot read {}: {e}", self.files.status().display());
                None
            }
        };
        self.ended_at = status.as_ref().and_then(|s| s.ended_at).or(Some(Timestamp::now().as_millisecond()));
        self.exit_status = status.as_ref().and_then(exit_status).or(code).unwrap_or(-1);
        let unseen_ms = status.as_ref().filter(|s| s.app_pid.is_some()).map(|s| unseen_ms(s, looked_at));
        self.count_oom_kills(status.as_ref());
        let reason = status
            .and_then(|s| s.message)
            .filter(|message| !message.is_empty())
            .or_else(|| messages.and_then(|messages| messages.last()));
        let how = format!("exit status {}", self.exit_status);
        let why = match reason {
            Some(reason) if !reason.contains(&how) => Some(reason),
            _ => None,
        };
        self.record.spawn_error = match &why {
            Some(reason) => format!("exited too quickly ({how}): {reason}"),
            None => format!("exited too quickly ({how})"),
        };
        self.end_error = match why {
            _ if self.machine.rules().is_expected(self.exit_status) => String::new(),
            Some(reason) => format!("{how}: {reason}"),
            None => how,
        };
        info!(proc = &*self.name, exit_status = self.exit_status, "ended");
        if let Some(age_ms) = unseen_ms.filter(|_| self.machine.is_launching()) {
            self.step(Event::Up { age_ms }).await;
        }
        self.step(Event::Ended { exit_status: self.exit_status }).await;
        if !matches!(self.machine.state(), ProcState::Backoff | ProcState::Fatal) {
            self.record.spawn_error.clear();
        }
    }

    fn count_oom_kills(&mut self, status: Option<&RunStatus>) {
        let Some(kills) = status.and_then(|status| status.oom_kills).filter(|kills| *kills > 0) else {
            return;
        };
        self.record.ooms = self.record.ooms.saturating_add(kills);
        self.uncounted = true;
        let message = status.and_then(|status| status.message.as_deref()).unwrap_or_default();
        warn!(
            proc = &*self.name,
            processes = kills,
            "the kernel killed processes for want of memory: {message}"
        );
    }

    /// Whether the app runs by now.
    pub(super) async fn look_for_app(&mut self) {
        if let Some(run) = &mut self.run {
            run.looked_at = Instant::now();
        }
        self.look_for_app_pid();
        if let Some(run) = &mut self.run
            && run.app_pid.is_some()
        {
            run.turn = None;
            self.step(Event::Up { age_ms: 0 }).await;
        }
    }

    fn look_for_app_pid(&mut self) {
        let Some(run) = self.run.as_mut().filter(|run| run.app_pid.is_none()) else { return };
        if let Ok(Some(status)) = self.files.run_status()
            && (status.pid, status.start_ticks) == (run.process.pid(), run.process.start_ticks())
        {
            run.app_pid = status.app_pid;
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(run) = &self.run
            && let Err(e) = run.process.signal(signal)
        {
            error!(proc = &*self.name, pid = run.process.pid(), "cannot signal: {e}");
        }
    }

    /// Tells the app, not the vrun that waits for it: vrun takes some signals for a wish that the app ends.
    pub(super) fn signal_app(&self, signal: Signal) -> Result<(), AgentError> {
        let failed = |source| AgentError::Signal { name: self.name.to_string(), source };
        let not_running = || AgentError::NotRunning(self.name.to_string());
        let run = self.run.as_ref().ok_or_else(not_running)?;
        let app_pid = run.app_pid.ok_or_else(not_running)?;
        if process::signal_descendant(app_pid, run.process.pid(), signal).map_err(failed)? {
            return Ok(());
        }
        // It is on its way out, or its container was made by another program, which is no child of vrun.
        run.process.signal(signal).map_err(failed)
    }

    /// Leaves the proc down as if it had failed too often.
    pub(super) fn give_up_for_now(&mut self) {
        self.machine = Machine::given_up(Arc::clone(self.machine.rules()));
    }
}

/// How long an app can have run that was not seen running, in milliseconds: since the last look at it, and no longer
/// than its vrun says. Only an agent that was held up itself finds more than an instant.
fn unseen_ms(status: &RunStatus, looked_at: Instant) -> u64 {
    let said = status.ended_at.map_or(0, |ended_at| ended_at - status.started_at);
    let said = Duration::from_millis(u64::try_from(said).unwrap_or(0));
    u64::try_from(looked_at.elapsed().min(said).as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn exit_status(status: &RunStatus) -> Option<i32> {
    status.exit_code.or(status.signal.map(|signal| 128 + signal))
}
