//! What is asked of a proc, and who waits for what.

use rustix::process::Signal;
use tokio::sync::oneshot;
use tracing::warn;
use vr_common::host_api::ProcState;
use vr_common::proc_data::ProcData;

use super::{Supervision, blocking};
use crate::error::AgentError;
use crate::logs;
use crate::machine::Event;
use crate::record::{Desired, Phase};

/// How much of the log goes with a failed start, in bytes.
const LOG_TAIL_BYTES: u64 = 8 * 1024;

/// Gets the result of a command once it is known. Dropped without one when the proc is gone.
pub type Reply = oneshot::Sender<Result<(), AgentError>>;

/// When a command is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// When it is known what came of it.
    Outcome,
    /// As soon as the supervision has taken it over.
    Asked,
}

/// What can be asked of a proc.
#[derive(Debug)]
pub enum Command {
    /// Have it, set up and running.
    Deploy {
        /// Its `proc.yaml`, parsed.
        data: Box<ProcData>,
        /// Its `proc.yaml` as it came.
        text: String,
        /// Answered when it runs or failed to.
        reply: Reply,
    },
    /// Have it running.
    Start(Wait, Reply),
    /// Have it down.
    Stop(Wait, Reply),
    /// Have it ended and started again.
    Restart(Reply),
    /// Have it set up (again) and running; answered as soon as that is noted.
    Add(Reply),
    /// Have it forgotten, with its files as they are, if it is down.
    LetGo(Reply),
    /// Have its app told something.
    Signal(Signal, Reply),
    /// Have it gone.
    Delete(Reply),
    /// Have the task panic.
    #[cfg(test)]
    Break(Reply),
}

/// How many commands are on their way that give up a setup in progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct GiveUps {
    /// Stops.
    pub stops: usize,
    /// Deletes.
    pub deletes: usize,
}

impl GiveUps {
    /// What a setup that is given up is told, or `None` when it may go on.
    pub(super) fn why(self) -> Option<&'static str> {
        match self {
            Self { deletes: 1.., .. } => Some("was deleted meanwhile"),
            Self { stops: 1.., .. } => Some("was stopped meanwhile"),
            _ => None,
        }
    }
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// For RUNNING; `deploy`: a proc that fails its first start is not tried again.
    Up { deploy: bool },
    /// For the end.
    Down,
}

impl Supervision {
    pub(super) async fn on_command(&mut self, command: Command) {
        self.give_up.send_modify(|give_ups| match command {
            Command::Stop(..) => give_ups.stops = give_ups.stops.saturating_sub(1),
            Command::Delete(_) => give_ups.deletes = give_ups.deletes.saturating_sub(1),
            _ => {}
        });
        if self.doomed {
            match command {
                Command::Delete(reply) => self.deleters.push(reply),
                Command::Stop(_, reply) => self.waiting.push((Waiting::Down, reply)),
                other => self.parked.push(other),
            }
            return;
        }
        match command {
            Command::Deploy { data, text, reply } => self.deploy(&data, &text, reply).await,
            Command::Start(wait, reply) => self.bring_up(Event::Start, wait, reply).await,
            Command::Restart(reply) => self.bring_up(Event::Restart, Wait::Outcome, reply).await,
            Command::Add(reply) => {
                // It may have changed since it was set up.
                if self.run.is_none() {
                    self.record.phase = Phase::SettingUp;
                    self.unwritten = true;
                }
                self.bring_up(Event::Start, Wait::Asked, reply).await;
            }
            Command::Stop(wait, reply) => self.bring_down(wait, reply).await,
            Command::LetGo(reply) => {
                let down = matches!(
                    self.machine.state(),
                    ProcState::Stopped | ProcState::Exited | ProcState::Fatal | ProcState::Unknown
                );
                if down && self.run.is_none() {
                    self.let_go = Some(reply);
                } else {
                    let _ = reply.send(Err(AgentError::StillRunning(self.name.to_string())));
                }
            }
            Command::Signal(signal, reply) => {
                let _ = reply.send(self.signal_app(signal));
            }
            Command::Delete(reply) => {
                self.overtake(Waiting::Down, "was deleted meanwhile");
                match self.doom().await {
                    Ok(()) => {
                        self.deleters.push(reply);
                        self.step(Event::Stop).await;
                    }
                    Err(e) => {
                        let _ = reply.send(Err(e));
                    }
                }
            }
            #[cfg(test)]
            Command::Break(_) => panic!("told to break"),
        }
    }

    async fn deploy(&mut self, data: &ProcData, text: &str, reply: Reply) {
        if self.files.proc_yaml().exists() {
            if !ProcData::load(&self.files.proc_yaml()).is_ok_and(|there| there == *data) {
                let _ = reply.send(Err(AgentError::Different(self.name.to_string())));
                return;
            }
            self.go_by(data);
        } else if let Err(e) = self.make(data, text).await {
            self.undo(reply, e).await;
            return;
        }
        self.overtake(Waiting::Up { deploy: true }, "was started again meanwhile");
        if let Err(e) = self.want_running().await {
            let _ = reply.send(Err(e));
            return;
        }
        if self.run.is_none() {
            // No timer may start it while it is being set up.
            self.step(Event::Stop).await;
            let was_ready = self.record.phase == Phase::Ready;
            // Also when it was ready once: setup repairs what was damaged since, and costs little.
            if let Err(e) = self.set_up().await {
                if matches!(e, AgentError::Overtaken { .. }) {
                    // What overtook it is the next to be done.
                    let _ = reply.send(Err(e));
                } else if was_ready {
                    self.fail_for_good(&e.to_string()).await;
                    let _ = reply.send(Err(e));
                } else {
                    self.undo(reply, e).await;
                }
                return;
            }
        }
        self.waiting.push((Waiting::Up { deploy: true }, reply));
        self.step(Event::Start).await;
    }

    async fn bring_up(&mut self, event: Event, wait: Wait, reply: Reply) {
        if !self.files.proc_yaml().exists() {
            let _ = reply.send(Err(AgentError::NoSuchProc(self.name.to_string())));
            return;
        }
        self.overtake(Waiting::Up { deploy: false }, "was started again meanwhile");
        if let Err(e) = self.want_running().await {
            let _ = reply.send(Err(e));
            return;
        }
        let reply = match wait {
            Wait::Outcome => Some(reply),
            Wait::Asked => {
                let _ = reply.send(Ok(()));
                None
            }
        };
        if self.run.is_none()
            && let Err(e) = self.set_up_if_needed().await
        {
            if !matches!(e, AgentError::Overtaken { .. }) {
                self.fail_for_good(&e.to_string()).await;
            }
            if let Some(reply) = reply {
                let _ = reply.send(Err(e));
            }
            return;
        }
        self.waiting.extend(reply.map(|reply| (Waiting::Up { deploy: false }, reply)));
        self.step(event).await;
    }

    async fn bring_down(&mut self, wait: Wait, reply: Reply) {
        self.overtake(Waiting::Down, "was stopped meanwhile");
        // Stopped also when that cannot be noted, as on a full disk; the answer says so.
        self.want_stopped().await;
        match wait {
            Wait::Outcome => self.waiting.push((Waiting::Down, reply)),
            Wait::Asked => {
                let _ = reply.send(Ok(()));
            }
        }
        self.step(Event::Stop).await;
    }

    /// Tells those who wait for the opposite of what is asked now.
    fn overtake(&mut self, now_asked: Waiting, what: &'static str) {
        let up = |waiting| matches!(waiting, Waiting::Up { .. });
        let (kept, overtaken) =
            self.waiting.drain(..).partition::<Vec<_>, _>(|(waiting, _)| up(*waiting) == up(now_asked));
        self.waiting = kept;
        for (_, reply) in overtaken {
            let _ = reply.send(Err(AgentError::Overtaken { name: self.name.to_string(), what }));
        }
    }

    /// Answers those whose outcome is known.
    pub(super) async fn answer(&mut self) {
        let state = self.machine.state();
        let (up, started) = match state {
            // EXITED comes after RUNNING, however soon.
            ProcState::Running => (true, true),
            ProcState::Exited => (false, true),
            ProcState::Starting | ProcState::Stopping => return,
            _ => (false, false),
        };
        let (known, waiting) = self
            .waiting
            .drain(..)
            .partition::<Vec<_>, _>(|(waiting, _)| matches!(waiting, Waiting::Up { .. }) || !up);
        self.waiting = waiting;
        if known.is_empty() {
            return;
        }
        let log_tail = if started { String::new() } else { self.log_tail().await };
        if !started && known.iter().any(|(waiting, _)| *waiting == (Waiting::Up { deploy: true })) {
            // It never worked: trying it again and again helps nobody.
            self.want_stopped().await;
            self.step(Event::Stop).await;
        }
        self.publish();
        for (waiting, reply) in known {
            if waiting == Waiting::Down && self.unwritten {
                // There may be room by now, such as what the app itself had taken.
                let noted = self.want(Desired::Stopped).await;
                let _ =
                    reply.send(noted.map_err(|e| AgentError::NotNoted {
                        name: self.name.to_string(),
                        source: Box::new(e),
                    }));
                continue;
            }
            let _ = reply.send(match waiting {
                Waiting::Up { .. } if !started => Err(AgentError::Start {
                    name: self.name.to_string(),
                    reason: self.record.spawn_error.clone(),
                    log_tail: log_tail.clone(),
                }),
                _ => Ok(()),
            });
        }
    }

    async fn log_tail(&self) -> String {
        let log = self.files.log();
        let read = blocking(move || logs::read(&log, LOG_TAIL_BYTES)).await;
        String::from_utf8_lossy(&read.unwrap_or_default()).into_owned()
    }

    /// What cannot be set up is shown as given up.
    pub(super) async fn fail_for_good(&mut self, why: &str) {
        warn!(proc = &*self.name, "{why}");
        self.give_up_for_now();
        self.record.failures = self.machine.failures();
        why.clone_into(&mut self.record.spawn_error);
        self.save_record().await;
    }
}
