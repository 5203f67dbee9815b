//! One proc under supervision: a task that serialises everything that happens to it.
//!
//! The rules are [`crate::machine`]'s; this module carries them out: it starts, signals, adopts and reaps the
//! waiting vrun, has vrun set the proc up and tear it down, and remembers on disk what a later agent has to
//! know. It must not know of other procs, so that one that hangs holds up nobody.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::Signal;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};
use vr_common::host_api::{ProcState, RunStatus};
use vr_common::paths::VrRoot;
use vr_common::proc_data::ProcData;

use crate::document::Snapshot;
use crate::error::AgentError;
use crate::machine::{Action, Event, Machine, START_RETRIES};
use crate::process::Watched;
use crate::record::{Desired, Phase, Record};
use crate::vrun::{self, CallError, Messages, ProcFiles};
use crate::{files, log_tail};

/// How long `vrun setup` may take, downloads included.
pub const SETUP_DEADLINE: Duration = Duration::from_secs(600);
/// How long `vrun teardown` may take.
const TEARDOWN_DEADLINE: Duration = Duration::from_secs(120);
/// How long an app may take to end, unless its `proc.yaml` has a `grace_period`, in seconds.
const DEFAULT_GRACE_SECONDS: u32 = 10;
/// How much longer than the app vrun itself may take before it is killed, in seconds.
const VRUN_GRACE_SECONDS: u32 = 10;
/// How long a vrun that holds the proc may take until it says who it is.
const ADOPTION_DEADLINE: Duration = Duration::from_secs(5);
/// How often a lock or a status file that is waited for is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often a lock that may be held for minutes is looked at.
const LOOK_AGAIN_SLOWLY: Duration = Duration::from_millis(200);
/// How much of the log goes with a failed start, in bytes.
const LOG_TAIL_BYTES: u64 = 8 * 1024;

/// What all procs of a host share.
#[derive(Debug)]
pub struct Surroundings {
    /// Where the procs are.
    pub root: VrRoot,
    /// Where it is noted that a proc is being deleted: not in the folder that goes away.
    pub deleting: PathBuf,
    /// Permits for `vrun setup`.
    pub setups: Semaphore,
}

/// Gets the result of a command once it is known. Dropped without one when the proc is gone.
pub type Reply = oneshot::Sender<Result<(), AgentError>>;

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
    Start(Reply),
    /// Have it down.
    Stop(Reply),
    /// Have it ended and started again.
    Restart(Reply),
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
    fn why(self) -> Option<&'static str> {
        match self {
            Self { deletes: 1.., .. } => Some("was deleted meanwhile"),
            Self { stops: 1.., .. } => Some("was stopped meanwhile"),
            _ => None,
        }
    }
}

/// A proc's supervision, seen from outside.
#[derive(Debug, Clone)]
pub struct Handle {
    /// What it is asked.
    pub commands: mpsc::Sender<Command>,
    /// What is known of it.
    pub shown: watch::Receiver<Snapshot>,
    /// Counted up before a stop or delete is sent, so that a setup in progress is given up; counted down when
    /// it arrives.
    pub give_up: watch::Sender<GiveUps>,
    /// Whether the supervision ended because its proc is gone, and not because of a defect. Also tells one
    /// supervision from another of the same name.
    pub ended: Arc<AtomicBool>,
}

/// A running vrun and what is known of it.
#[derive(Debug)]
struct Run {
    process: Watched,
    /// Only of those that this agent started.
    messages: Option<Messages>,
    app_pid: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// For RUNNING; `deploy`: a proc that fails its first start is not tried again.
    Up { deploy: bool },
    /// For the end.
    Down,
}

/// The task's own state.
#[derive(Debug)]
pub struct Supervision {
    name: String,
    files: ProcFiles,
    around: Arc<Surroundings>,
    /// None when there is no readable `proc.yaml`.
    data: Option<ProcData>,
    record: Record,
    machine: Machine,
    run: Option<Run>,
    waiting: Vec<(Waiting, Reply)>,
    /// Whether the proc has to go.
    doomed: bool,
    /// Deletes, answered with how the removal went.
    deleters: Vec<Reply>,
    /// The deploy whose half-made proc has to go, and why.
    undone: Option<(Reply, AgentError)>,
    /// What was asked while the proc goes away; dropped afterwards, so that the askers try again.
    parked: Vec<Command>,
    started_at: Option<i64>,
    ended_at: Option<i64>,
    exit_status: i32,
    shown: watch::Sender<Snapshot>,
    give_up: watch::Sender<GiveUps>,
    /// Whether a wish in `record` is not on disk.
    unwritten: bool,
    epoch: Instant,
}

impl Supervision {
    /// Of the proc `name`, which may exist or not.
    pub fn new(name: &str, around: Arc<Surroundings>) -> (Self, Handle, mpsc::Receiver<Command>) {
        let (commands, received) = mpsc::channel(64);
        let (shown, watched) = watch::channel(Snapshot::unknown());
        let (give_up, _) = watch::channel(GiveUps::default());
        let supervision = Self {
            name: name.to_owned(),
            files: ProcFiles { dir: around.root.procs().join(name) },
            around,
            data: None,
            record: Record::new(Desired::Stopped),
            machine: Machine::stopped(stop_ms(None)),
            run: None,
            waiting: Vec::new(),
            doomed: false,
            deleters: Vec::new(),
            undone: None,
            parked: Vec::new(),
            started_at: None,
            ended_at: None,
            exit_status: 0,
            shown,
            give_up: give_up.clone(),
            unwritten: false,
            epoch: Instant::now(),
        };
        let handle = Handle { commands, shown: watched, give_up, ended: Arc::default() };
        (supervision, handle, received)
    }

    /// Supervises until the proc is gone; then gives back what has to be dropped once nobody can find this
    /// supervision any more.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> impl Send {
        self.load().await;
        self.publish();
        self.resume().await;
        loop {
            self.answer().await;
            self.publish();
            if self.doomed && self.run.is_none() {
                if self.remove().await {
                    break;
                }
                continue;
            }
            let deadline = self.machine.deadline();
            let due = self.epoch + Duration::from_millis(deadline.unwrap_or(0));
            tokio::select! {
                // An end that came before a deadline counts before it.
                biased;
                () = ended(self.run.as_ref()) => self.on_end().await,
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command).await,
                    None => break,
                },
                () = sleep_until(due), if deadline.is_some() => self.step(Event::Tick).await,
                () = sleep(LOOK_AGAIN), if self.app_pid_is_awaited() => self.look_for_app_pid(),
            }
        }
        (commands, self.parked, self.waiting)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    // ---- what is there already -----------------------------------------------------------------------------

    /// Learns what an earlier agent left.
    async fn load(&mut self) {
        self.doomed = self.tombstone().exists();
        let exists = self.files.proc_yaml().exists();
        if exists {
            match ProcData::load(&self.files.proc_yaml()) {
                Ok(data) => self.data = Some(data),
                Err(e) => warn!(proc = self.name, "{}", vr_common::exit::chain(&e)),
            }
        }
        let recorded = match Record::load(&self.files.dir) {
            Ok(record) => {
                self.record = record;
                true
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => {
                warn!(proc = self.name, "cannot read {}: {e}", crate::record::FILE_NAME);
                false
            }
        };
        self.machine = Machine::after_failures(stop_ms(self.data.as_ref()), self.record.failures);
        if let Ok(Some(status)) = self.files.run_status() {
            self.started_at = Some(status.started_at);
            self.ended_at = status.ended_at;
            self.exit_status = exit_status(&status).unwrap_or(0);
        }
        if exists && self.adopt().await && !recorded {
            // Nobody said that it should not run.
            self.record.desired = Desired::Running;
        }
    }

    /// Takes up what an earlier agent was doing.
    async fn resume(&mut self) {
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
            match self.set_up_if_needed().await {
                Ok(()) => self.step(Event::Start).await,
                Err(e @ AgentError::Overtaken { .. }) => info!(proc = self.name, "{e}"),
                Err(e) => self.fail_for_good(&e.to_string()).await,
            }
        }
    }

    /// Adopts the vrun that the status file names, if it is alive and holds the proc.
    async fn adopt(&mut self) -> bool {
        let Ok(Some(status)) = self.files.run_status() else { return false };
        if status.ended_at.is_some() || !matches!(vrun::is_free(&self.files.proc_yaml()), Ok(false)) {
            return false;
        }
        match Watched::adopt(status.pid, status.start_ticks) {
            Ok(Some(process)) => {
                info!(proc = self.name, pid = status.pid, "found running");
                let age_ms = process.age_ms().unwrap_or_else(|e| {
                    warn!(proc = self.name, "its age is not known: {e}");
                    0
                });
                self.started_at = Some(status.started_at);
                self.run = Some(Run { process, messages: None, app_pid: status.app_pid });
                // Not through `step`: adoption never asks for anything but a TERM.
                let (next, action) = self.machine.clone().step(Event::Adopted { age_ms }, self.now());
                self.machine = next;
                if action == Some(Action::Terminate) {
                    self.signal(Signal::TERM);
                }
                true
            }
            Ok(None) => false,
            Err(e) => {
                error!(proc = self.name, pid = status.pid, "cannot watch: {e}");
                false
            }
        }
    }

    /// Adopts a vrun that holds the proc as soon as it says who it is. False when nobody holds the proc, or
    /// whoever does (a `vrun setup`, perhaps) has not said so in time.
    async fn adopt_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while let Ok(false) = vrun::is_free(&self.files.proc_yaml()) {
            if self.adopt().await {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            let pace = if limit > ADOPTION_DEADLINE { LOOK_AGAIN_SLOWLY } else { LOOK_AGAIN };
            sleep(pace).await;
        }
        false
    }

    // ---- what is asked -------------------------------------------------------------------------------------

    async fn on_command(&mut self, command: Command) {
        self.give_up.send_modify(|give_ups| match command {
            Command::Stop(_) => give_ups.stops = give_ups.stops.saturating_sub(1),
            Command::Delete(_) => give_ups.deletes = give_ups.deletes.saturating_sub(1),
            _ => {}
        });
        if self.doomed {
            match command {
                Command::Delete(reply) => self.deleters.push(reply),
                Command::Stop(reply) => self.waiting.push((Waiting::Down, reply)),
                other => self.parked.push(other),
            }
            return;
        }
        match command {
            Command::Deploy { data, text, reply } => self.deploy(*data, &text, reply).await,
            Command::Start(reply) => self.bring_up(Event::Start, reply).await,
            Command::Restart(reply) => self.bring_up(Event::Restart, reply).await,
            Command::Stop(reply) => {
                self.overtake(Waiting::Down, "was stopped meanwhile");
                // Stopped also when that cannot be noted, as on a full disk; the answer says so.
                self.want_stopped().await;
                self.waiting.push((Waiting::Down, reply));
                self.step(Event::Stop).await;
            }
            #[cfg(test)]
            Command::Break(_) => panic!("told to break"),
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
        }
    }

    async fn deploy(&mut self, data: ProcData, text: &str, reply: Reply) {
        if self.files.proc_yaml().exists() {
            if self.data.as_ref() != Some(&data) {
                let _ = reply.send(Err(AgentError::Different(self.name.clone())));
                return;
            }
        } else {
            self.machine = Machine::stopped(stop_ms(Some(&data)));
            self.record = Record::new(Desired::Running);
            if let Err(e) = self.write_new(text).await {
                self.undo(reply, e).await;
                return;
            }
            self.data = Some(data);
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

    async fn bring_up(&mut self, event: Event, reply: Reply) {
        if !self.files.proc_yaml().exists() {
            let _ = reply.send(Err(AgentError::NoSuchProc(self.name.clone())));
            return;
        }
        self.overtake(Waiting::Up { deploy: false }, "was started again meanwhile");
        if let Err(e) = self.want_running().await {
            let _ = reply.send(Err(e));
            return;
        }
        if self.run.is_none()
            && let Err(e) = self.set_up_if_needed().await
        {
            if !matches!(e, AgentError::Overtaken { .. }) {
                self.fail_for_good(&e.to_string()).await;
            }
            let _ = reply.send(Err(e));
            return;
        }
        self.waiting.push((Waiting::Up { deploy: false }, reply));
        self.step(event).await;
    }

    /// Tells those who wait for the opposite of what is asked now.
    fn overtake(&mut self, now_asked: Waiting, what: &'static str) {
        let up = |waiting| matches!(waiting, Waiting::Up { .. });
        let (kept, overtaken) =
            self.waiting.drain(..).partition::<Vec<_>, _>(|(waiting, _)| up(*waiting) == up(now_asked));
        self.waiting = kept;
        for (_, reply) in overtaken {
            let _ = reply.send(Err(AgentError::Overtaken { name: self.name.clone(), what }));
        }
    }

    /// Answers those whose outcome is known.
    async fn answer(&mut self) {
        let state = self.machine.state();
        let up = match state {
            ProcState::Running => Some(true),
            ProcState::Starting | ProcState::Stopping => None,
            _ => Some(false),
        };
        let Some(up) = up else { return };
        let (known, waiting) = self
            .waiting
            .drain(..)
            .partition::<Vec<_>, _>(|(waiting, _)| matches!(waiting, Waiting::Up { .. }) || !up);
        self.waiting = waiting;
        if known.is_empty() {
            return;
        }
        let log_tail = if up { String::new() } else { self.log_tail().await };
        if !up && known.iter().any(|(waiting, _)| *waiting == (Waiting::Up { deploy: true })) {
            // It never worked: trying it again and again helps nobody.
            self.want_stopped().await;
            self.step(Event::Stop).await;
        }
        self.publish();
        for (waiting, reply) in known {
            if waiting == Waiting::Down && self.unwritten {
                // There may be room by now, such as what the app itself had taken.
                let noted = self.want(Desired::Stopped).await;
                let _ = reply.send(
                    noted.map_err(|e| AgentError::NotNoted { name: self.name.clone(), source: Box::new(e) }),
                );
                continue;
            }
            let _ = reply.send(match waiting {
                Waiting::Up { .. } if !up => Err(AgentError::Start {
                    name: self.name.clone(),
                    reason: self.record.spawn_error.clone(),
                    log_tail: log_tail.clone(),
                }),
                _ => Ok(()),
            });
        }
    }

    async fn log_tail(&self) -> String {
        let log = self.files.log();
        let read = blocking(move || log_tail::read(&log, LOG_TAIL_BYTES)).await;
        String::from_utf8_lossy(&read.unwrap_or_default()).into_owned()
    }

    // ---- setting up and removing ---------------------------------------------------------------------------

    async fn write_new(&self, text: &str) -> Result<(), AgentError> {
        let (dir, record, text) = (self.files.dir.clone(), self.record.clone(), text.to_owned());
        let path = self.files.proc_yaml();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| AgentError::File { what: "write", path, source }
        };
        blocking(move || {
            std::fs::create_dir_all(&dir)?;
            record.save(&dir)?;
            files::write_atomically(&dir.join("proc.yaml"), text.as_bytes())
        })
        .await
        .map_err(failed(&path))
    }

    async fn set_up_if_needed(&mut self) -> Result<(), AgentError> {
        if self.record.phase == Phase::Ready { Ok(()) } else { self.set_up().await }
    }

    async fn set_up(&mut self) -> Result<(), AgentError> {
        let name = self.name.clone();
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
            info!(proc = self.name, "setting up");
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

    /// Notes on disk that the proc has to go, so that it goes even if the agent is killed on the way.
    async fn doom(&mut self) -> Result<(), AgentError> {
        let path = self.tombstone();
        let written = path.clone();
        blocking(move || files::write_atomically(&written, b""))
            .await
            .map_err(|source| AgentError::File { what: "write", path, source })?;
        self.doomed = true;
        Ok(())
    }

    fn tombstone(&self) -> PathBuf {
        self.around.deleting.join(&self.name)
    }

    /// Has a half-made proc removed, and then tells why it could not be made.
    async fn undo(&mut self, reply: Reply, why: AgentError) {
        if let Err(e) = self.doom().await {
            warn!(proc = self.name, "{}", vr_common::exit::chain(&e));
            // Removed all the same, only not by a later agent.
            self.doomed = true;
        }
        self.undone = Some((reply, why));
    }

    /// Removes the proc, which is down; whether it is gone.
    async fn remove(&mut self) -> bool {
        let removed = self.tear_down().await;
        if let Some((reply, why)) = self.undone.take() {
            let _ = reply.send(Err(why));
        }
        match removed {
            Ok(()) => {
                info!(proc = self.name, "deleted");
                for reply in self.deleters.drain(..) {
                    let _ = reply.send(Ok(()));
                }
                true
            }
            Err(e) => {
                warn!(proc = self.name, "{}", vr_common::exit::chain(&e));
                // The note stays: the next delete, or the next agent, tries again.
                self.doomed = false;
                self.record.desired = Desired::Stopped;
                self.save_record().await;
                let text = e.to_string();
                for reply in self.deleters.drain(..) {
                    let _ = reply.send(Err(AgentError::Vrun {
                        subcommand: "teardown",
                        name: self.name.clone(),
                        reason: text.clone(),
                    }));
                }
                self.parked.clear();
                false
            }
        }
    }

    async fn tear_down(&mut self) -> Result<(), AgentError> {
        let deadline = Instant::now() + TEARDOWN_DEADLINE;
        let failed = |reason| AgentError::Vrun { subcommand: "teardown", name: self.name.clone(), reason };
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
                        proc = self.name,
                        "vrun cannot tear it down, so only its folder is removed: {reason}"
                    );
                    break;
                }
                Err(CallError::Failed(reason)) => return Err(failed(reason)),
                Err(CallError::Locked) => {
                    while Instant::now() < deadline
                        && matches!(vrun::is_free(&self.files.proc_yaml()), Ok(false))
                    {
                        sleep(LOOK_AGAIN_SLOWLY).await;
                    }
                    if Instant::now() >= deadline {
                        return Err(failed("another vrun works on it and does not end".into()));
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
        .map_err(|source| AgentError::File { what: "remove", path: self.files.dir.clone(), source })
    }

    // ---- the machine and its world -------------------------------------------------------------------------

    /// Tells the machine, does what it asks for, and remembers the outcome.
    async fn step(&mut self, event: Event) {
        let mut next_event = Some(event);
        while let Some(event) = next_event.take() {
            let state = self.machine.state();
            let (next, action) = self.machine.clone().step(event, self.now());
            self.machine = next;
            if self.machine.state() != state {
                info!(proc = self.name, from = state.name(), to = self.machine.state().name(), "state");
            }
            match action {
                Some(Action::Spawn) => {
                    self.publish();
                    next_event = Some(self.spawn().await);
                }
                Some(Action::Terminate) => self.signal(Signal::TERM),
                Some(Action::Kill) => {
                    warn!(proc = self.name, "did not end in time and is killed");
                    self.signal(Signal::KILL);
                }
                None => {}
            }
        }
        let state = self.machine.state();
        if state == ProcState::Running {
            self.record.spawn_error.clear();
            self.look_for_app_pid();
        }
        if self.record.failures != self.machine.failures() {
            self.record.failures = self.machine.failures();
            self.save_record().await;
        }
        self.publish();
    }

    /// Starts the waiting vrun, unless one is there already.
    async fn spawn(&mut self) -> Event {
        if self.adopt_within(ADOPTION_DEADLINE).await {
            return Event::Tick;
        }
        let launched = match vrun::is_free(&self.files.proc_yaml()) {
            Ok(true) => vrun::launch(&self.around.root, &self.files),
            Ok(false) => Err("another vrun works on it".to_owned()),
            Err(e) => Err(format!("cannot lock {}: {e}", self.files.proc_yaml().display())),
        };
        let watched = launched.and_then(|(child, messages)| {
            let pid = child.id();
            Watched::child(child)
                .map(|process| Run { process, messages: Some(messages), app_pid: None })
                .map_err(|e| format!("cannot watch process {pid}: {e}"))
        });
        match watched {
            Ok(run) => {
                info!(proc = self.name, pid = run.process.pid(), "started");
                self.run = Some(run);
                self.started_at = Some(Timestamp::now().as_millisecond());
                Event::Spawned
            }
            Err(reason) => {
                warn!(proc = self.name, "cannot be started: {reason}");
                self.record.spawn_error = reason;
                Event::SpawnFailed
            }
        }
    }

    /// The waiting vrun ended.
    async fn on_end(&mut self) {
        let Some(run) = self.run.take() else { return };
        let (pid, start_ticks) = (run.process.pid(), run.process.start_ticks());
        let code = run.process.reap();
        if run.messages.as_ref().is_some_and(Messages::say_locked) {
            info!(proc = self.name, "another vrun was faster");
            if self.adopt_within(ADOPTION_DEADLINE).await {
                self.publish();
                return;
            }
        }
        let status = match self.files.run_status() {
            Ok(status) => status.filter(|s| (s.pid, s.start_ticks) == (pid, start_ticks)),
            Err(e) => {
                warn!(proc = self.name, "cannot read {}: {e}", self.files.status().display());
                None
            }
        };
        self.ended_at = status.as_ref().and_then(|s| s.ended_at).or(Some(Timestamp::now().as_millisecond()));
        self.exit_status = status.as_ref().and_then(exit_status).or(code).unwrap_or(-1);
        let reason = status
            .and_then(|s| s.message)
            .filter(|message| !message.is_empty())
            .or_else(|| run.messages.and_then(|messages| messages.last()));
        let how = format!("exit status {}", self.exit_status);
        self.record.spawn_error = match reason {
            Some(reason) if !reason.contains(&how) => format!("exited too quickly ({how}): {reason}"),
            _ => format!("exited too quickly ({how})"),
        };
        info!(proc = self.name, exit_status = self.exit_status, "ended");
        self.step(Event::Ended).await;
        if !matches!(self.machine.state(), ProcState::Backoff | ProcState::Fatal) {
            self.record.spawn_error.clear();
        }
    }

    fn app_pid_is_awaited(&self) -> bool {
        self.machine.state() == ProcState::Starting
            && self.run.as_ref().is_some_and(|run| run.app_pid.is_none())
    }

    fn look_for_app_pid(&mut self) {
        let Some(run) = self.run.as_mut() else { return };
        if let Ok(Some(status)) = self.files.run_status()
            && (status.pid, status.start_ticks) == (run.process.pid(), run.process.start_ticks())
        {
            run.app_pid = status.app_pid;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(run) = &self.run
            && let Err(e) = run.process.signal(signal)
        {
            error!(proc = self.name, pid = run.process.pid(), "cannot signal: {e}");
        }
    }

    /// What cannot be set up is shown as given up.
    async fn fail_for_good(&mut self, why: &str) {
        warn!(proc = self.name, "{why}");
        self.machine = Machine::after_failures(stop_ms(self.data.as_ref()), START_RETRIES + 1);
        self.record.failures = self.machine.failures();
        self.record.spawn_error = why.to_owned();
        self.save_record().await;
    }

    // ---- what is remembered and shown ----------------------------------------------------------------------

    /// Remembers that the proc has to run, also when it was to be deleted and could not be.
    async fn want_running(&mut self) -> Result<(), AgentError> {
        let path = self.tombstone();
        let note = path.clone();
        blocking(move || files::remove_if_there(&note)).await.map_err(|source| AgentError::File {
            what: "remove",
            path,
            source,
        })?;
        self.want(Desired::Running).await
    }

    /// Remembers that the proc has to be down, if only until the agent ends.
    async fn want_stopped(&mut self) {
        if let Err(e) = self.want(Desired::Stopped).await {
            warn!(proc = self.name, "{}", vr_common::exit::chain(&e));
            self.record.desired = Desired::Stopped;
            self.unwritten = true;
        }
    }

    /// Remembers what is wanted, before anything is done about it.
    async fn want(&mut self, desired: Desired) -> Result<(), AgentError> {
        if self.record.desired == desired && !self.unwritten {
            return Ok(());
        }
        let record = Record { desired, ..self.record.clone() };
        let (written, dir) = (record.clone(), self.files.dir.clone());
        blocking(move || written.save(&dir)).await.map_err(|source| AgentError::File {
            what: "write",
            path: self.files.dir.join(crate::record::FILE_NAME),
            source,
        })?;
        self.record = record;
        self.unwritten = false;
        Ok(())
    }

    /// Remembers what would be found out again anyhow, so that a full disk stops no supervision.
    async fn save_record(&self) {
        let (record, dir) = (self.record.clone(), self.files.dir.clone());
        if let Err(e) = blocking(move || record.save(&dir)).await {
            warn!(proc = self.name, "cannot write {}: {e}", crate::record::FILE_NAME);
        }
    }

    fn snapshot(&self) -> Snapshot {
        let state = self.machine.state();
        Snapshot {
            state,
            pid: self.run.as_ref().map_or(0, |run| run.app_pid.unwrap_or(run.process.pid())),
            started_at: self.started_at,
            ended_at: self.ended_at,
            exit_status: self.exit_status,
            spawn_error: match state {
                ProcState::Backoff | ProcState::Fatal => self.record.spawn_error.clone(),
                _ => String::new(),
            },
            setting_up: self.record.phase == Phase::SettingUp
                && self.record.desired == Desired::Running
                && self.run.is_none(),
        }
    }

    fn publish(&self) {
        self.show(self.snapshot());
    }

    fn show_setting_up(&self) {
        self.show(Snapshot { setting_up: true, ..self.snapshot() });
    }

    fn show(&self, snapshot: Snapshot) {
        self.shown.send_if_modified(|shown| {
            let changed = *shown != snapshot;
            *shown = snapshot;
            changed
        });
    }
}

async fn ended(run: Option<&Run>) {
    match run {
        Some(run) => run.process.ended().await,
        None => std::future::pending().await,
    }
}

fn stop_ms(data: Option<&ProcData>) -> u64 {
    let grace = data.and_then(|data| data.grace_period).unwrap_or(DEFAULT_GRACE_SECONDS);
    (u64::from(grace) + u64::from(VRUN_GRACE_SECONDS)) * 1_000
}

fn exit_status(status: &RunStatus) -> Option<i32> {
    status.exit_code.or(status.signal.map(|signal| 128 + signal))
}

/// Runs what waits for a disk where it holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}
