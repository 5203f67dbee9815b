//! One proc under supervision: a task that serialises everything that happens to it.
//!
//! The rules are [`crate::machine`]'s; this module carries them out: it starts, signals, adopts and reaps the
//! waiting vrun, has vrun set the proc up and tear it down, and remembers on disk what a later agent has to
//! know. It must not know of other procs, so that one that hangs holds up nobody.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{io, mem};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use vr_common::host_api::ProcState;
use vr_common::paths::VrRoot;

use crate::changes::Changes;
use crate::document::Snapshot;
use crate::error::AgentError;
use crate::files::Stamp;
use crate::kept::KeptLogs;
use crate::machine::{Event, Machine, Rules};
use crate::process::Watched;
use crate::record::{Desired, Record};
use crate::vrun::{Messages, ProcFiles};

mod adoption;
mod command;
mod notes;
mod removal;
mod running;
mod setup;

pub use command::{Command, GiveUps, Reply, Wait};
pub use setup::SETUP_DEADLINE;

use command::Waiting;

/// How long a vrun that holds the proc may take until it says who it is.
const ADOPTION_DEADLINE: Duration = Duration::from_secs(5);
/// How often a lock or a status file that is waited for is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often a lock that may be held for minutes is looked at.
const LOOK_AGAIN_SLOWLY: Duration = Duration::from_millis(200);
/// How often it is looked whether the app runs by now. Only so many procs are started at once.
const LOOK_FOR_APP: Duration = Duration::from_millis(20);
/// How long a proc that is being started may hold up others that are to be started, too.
const TURN_LIMIT: Duration = Duration::from_secs(10);
/// How many commands of a proc wait; who asks more waits before.
const COMMANDS: usize = 16;

/// What all procs of a host share.
#[derive(Debug)]
pub struct Surroundings {
    /// Where the procs are.
    pub root: VrRoot,
    /// Where it is noted that a proc is being deleted: not in the folder that goes away.
    pub deleting: PathBuf,
    /// Permits for `vrun setup`.
    pub setups: Semaphore,
    /// Permits for the time from the start of vrun until the app runs.
    pub starts: Arc<Semaphore>,
    /// Where changes are told.
    pub changes: Changes,
    /// Where the logs of procs that are gone are kept.
    pub kept_logs: KeptLogs,
}

/// A proc's supervision, seen from outside.
#[derive(Debug, Clone)]
pub struct Handle {
    /// What it is asked. Boxed, as the channel has room for dozens from the start.
    pub commands: mpsc::Sender<Box<Command>>,
    /// What is known of it.
    pub shown: watch::Receiver<Snapshot>,
    /// Counted up before a stop or delete is sent, so that a setup in progress is given up; counted down when
    /// it arrives.
    pub give_up: watch::Sender<GiveUps>,
    /// Whether the supervision ended because its proc is gone, and not because of a defect. Also tells one
    /// supervision from another of the same name.
    pub ended: Arc<AtomicBool>,
    /// The `proc.yaml` that the supervision goes by; none if there is none.
    pub loaded: Arc<Mutex<Option<Stamp>>>,
}

/// What a supervision that ends leaves behind. To be dropped once nobody can find it any more, so that those whose
/// questions it still holds find the next one.
#[derive(Debug)]
pub struct Left {
    /// The proc, if others know of it.
    pub announced: Option<(Arc<str>, Snapshot)>,
    /// Whether only the supervision ends, and the proc's files stay.
    pub let_go: bool,
    /// Those who asked for the end.
    pub answers: Vec<(Reply, Result<(), AgentError>)>,
    /// Those who asked for something else.
    pub unanswered: (mpsc::Receiver<Box<Command>>, Vec<Command>),
}

/// A running vrun and what is known of it.
#[derive(Debug)]
struct Run {
    process: Watched,
    /// Only of those that this agent started.
    messages: Option<Messages>,
    app_pid: Option<u32>,
    /// When it was last looked at to see whether the app runs.
    looked_at: Instant,
    /// Held until the app runs, but not longer than [`TURN_LIMIT`].
    turn: Option<(OwnedSemaphorePermit, Instant)>,
}

/// The task's own state.
#[derive(Debug)]
pub struct Supervision {
    name: Arc<str>,
    files: ProcFiles,
    around: Arc<Surroundings>,
    record: Record,
    machine: Machine,
    run: Option<Run>,
    /// Whether it waits for its turn to be started.
    queued: bool,
    waiting: Vec<(Waiting, Reply)>,
    /// Whether the proc has to go.
    doomed: bool,
    /// Deletes, answered with how the removal went.
    deleters: Vec<Reply>,
    /// The deploy whose half-made proc has to go, and why.
    undone: Option<(Reply, AgentError)>,
    /// Who asked that this supervision ends, while the proc stays.
    let_go: Option<Reply>,
    /// What was asked while the proc goes away; dropped afterwards, so that the askers try again.
    parked: Vec<Command>,
    started_at: Option<i64>,
    ended_at: Option<i64>,
    exit_status: i32,
    /// Why it ended by itself, when that was not expected.
    end_error: String,
    shown: watch::Sender<Snapshot>,
    /// The state that was told last; none as long as nobody was told of the proc.
    told: Option<ProcState>,
    /// Whether somebody may know of the proc already: it was there before the first reader, or before a supervision
    /// that broke.
    is_known: bool,
    give_up: watch::Sender<GiveUps>,
    loaded: Arc<Mutex<Option<Stamp>>>,
    /// Whether a wish in `record` is not on disk.
    unwritten: bool,
    /// Whether a count in `record` is not on disk.
    uncounted: bool,
    epoch: Instant,
}

/// What a supervision waits for.
enum Happening {
    Ended,
    Asked(Option<Box<Command>>),
    OwnTurn(OwnedSemaphorePermit),
    /// The machine's deadline.
    TimePassed,
    LookForApp,
    TurnOver,
}

impl Supervision {
    /// Of the proc `name`, which may exist or not. If it does and nobody knows of it, it is told that there is a new one.
    pub fn new(
        name: &str,
        is_known: bool,
        around: Arc<Surroundings>,
    ) -> (Box<Self>, Handle, mpsc::Receiver<Box<Command>>) {
        let (commands, received) = mpsc::channel(COMMANDS);
        let (shown, watched) = watch::channel(Snapshot::unknown());
        let (give_up, _) = watch::channel(GiveUps::default());
        let loaded = Arc::default();
        let supervision = Self {
            name: Arc::from(name),
            files: ProcFiles { dir: around.root.procs().join(name) },
            around,
            record: Record::new(Desired::Stopped),
            machine: Machine::stopped(Arc::new(Rules::default())),
            run: None,
            queued: false,
            waiting: Vec::new(),
            doomed: false,
            deleters: Vec::new(),
            undone: None,
            let_go: None,
            parked: Vec::new(),
            started_at: None,
            ended_at: None,
            exit_status: 0,
            end_error: String::new(),
            shown,
            told: None,
            is_known,
            give_up: give_up.clone(),
            loaded: Arc::clone(&loaded),
            unwritten: false,
            uncounted: false,
            epoch: Instant::now(),
        };
        let handle = Handle { commands, shown: watched, give_up, ended: Arc::default(), loaded };
        (Box::new(supervision), handle, received)
    }

    /// Supervises until the proc is gone.
    ///
    /// What is rarely needed is boxed: there are hundreds of these, and each takes as much memory as the largest thing
    /// that it could be doing.
    pub async fn run(mut self: Box<Self>, mut commands: mpsc::Receiver<Box<Command>>) -> Left {
        Box::pin(self.begin()).await;
        loop {
            if !self.waiting.is_empty() {
                Box::pin(self.answer()).await;
            }
            self.publish();
            if self.let_go.is_some() {
                break;
            }
            if self.doomed && self.run.is_none() {
                if Box::pin(self.remove()).await {
                    break;
                }
                continue;
            }
            let happening = self.wait(&mut commands).await;
            if matches!(happening, Happening::Asked(None)) {
                break;
            }
            Box::pin(self.on(happening)).await;
        }
        self.leave(commands)
    }

    async fn begin(&mut self) {
        self.load();
        self.publish();
        self.resume().await;
    }

    async fn wait(&self, commands: &mut mpsc::Receiver<Box<Command>>) -> Happening {
        let (due, happening) = match self.next_date() {
            Some((due, happening)) => (Some(due), happening),
            None => (None, Happening::TimePassed),
        };
        tokio::select! {
            // An end that came before a deadline counts before it.
            biased;
            () = ended(self.run.as_ref()) => Happening::Ended,
            command = commands.recv() => Happening::Asked(command),
            // The semaphore is never closed.
            Ok(turn) = Arc::clone(&self.around.starts).acquire_owned(), if self.queued => Happening::OwnTurn(turn),
            () = sleep_until(due.unwrap_or(self.epoch)), if due.is_some() => happening,
        }
    }

    /// What is due next, and when.
    fn next_date(&self) -> Option<(Instant, Happening)> {
        let deadline = self.machine.deadline().map(|ms| self.epoch + Duration::from_millis(ms));
        let turn_over = self.run.as_ref().and_then(|run| run.turn.as_ref()).map(|(_, until)| *until);
        let pace = if turn_over.is_some() { LOOK_FOR_APP } else { LOOK_AGAIN_SLOWLY };
        let is_launching = self.run.is_some() && self.machine.is_launching();
        let look = is_launching.then(|| Instant::now() + pace);
        let dates = [
            deadline.map(|at| (at, Happening::TimePassed)),
            turn_over.map(|at| (at, Happening::TurnOver)),
            look.map(|at| (at, Happening::LookForApp)),
        ];
        dates.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    async fn on(&mut self, happening: Happening) {
        match happening {
            Happening::Ended => self.on_end().await,
            Happening::Asked(Some(command)) => self.on_command(*command).await,
            Happening::Asked(None) => {}
            Happening::TimePassed => self.step(Event::Tick).await,
            Happening::OwnTurn(turn) => self.on_turn(turn).await,
            Happening::LookForApp => self.look_for_app().await,
            Happening::TurnOver => {
                if let Some(run) = &mut self.run {
                    run.turn = None;
                }
            }
        }
    }

    fn leave(mut self, commands: mpsc::Receiver<Box<Command>>) -> Left {
        let let_go = self.let_go.take();
        let is_let_go = let_go.is_some();
        let done = let_go.into_iter().chain(self.deleters.drain(..)).map(|reply| (reply, Ok(())));
        let undone = self.undone.take().map(|(reply, why)| (reply, Err(why)));
        let answers = done.chain(undone).collect();
        let announced = self.told.is_some().then(|| (Arc::clone(&self.name), self.snapshot()));
        Left { announced, let_go: is_let_go, answers, unanswered: (commands, mem::take(&mut self.parked)) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

async fn ended(run: Option<&Run>) {
    match run {
        Some(run) => run.process.ended().await,
        None => std::future::pending().await,
    }
}

/// Runs what waits for a disk where it holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// An error of a file, for [`Result::map_err`].
fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AgentError {
    let path = path.to_owned();
    move |source| AgentError::File { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proc_that_is_left_alone_takes_little_memory() {
        let around = Surroundings {
            root: VrRoot::new("/nowhere"),
            deleting: PathBuf::new(),
            setups: Semaphore::new(1),
            starts: Arc::new(Semaphore::new(1)),
            changes: Changes::new("h", VrRoot::new("/nowhere")),
            kept_logs: KeptLogs::new(PathBuf::new(), 0),
        };
        let (supervision, _, commands) =
            Supervision::new("demo-v1-prod-abcd1234-web-5001", false, Arc::new(around));
        // Hundreds of these are there at once, for as long as the agent.
        let size = size_of::<Supervision>() + size_of_val(&supervision.run(commands));
        assert!(size < 2048, "{size} bytes");
    }
}
