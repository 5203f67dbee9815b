//! Supervisor's rules as a pure function: what a proc's state becomes when something happens to it, and what
//! has to be done then.
//!
//! Knows no process, no clock and no disk. Times are milliseconds of any clock that never goes back.

use std::sync::Arc;

use vr_common::host_api::ProcState;
use vr_common::proc_data::ProcData;
use vr_common::proc_data::rules::{AutoRestart, ExitCodes};

/// Seconds that a proc has to stay up before it counts as started, unless its `proc.yaml` has `startsecs`.
const START_SECONDS: u32 = 1;
/// How many more times a proc that ends too soon is tried, unless its `proc.yaml` has `startretries`.
const START_RETRIES: u32 = 3;
/// How long an app may take to end, unless its `proc.yaml` has a `grace_period`, in seconds.
pub const GRACE_SECONDS: u32 = 10;
/// How much longer than the app vrun itself may take before it is killed, in seconds.
const VRUN_GRACE_SECONDS: u32 = 10;
/// How much longer the wait gets with each failed start.
pub const BACKOFF_STEP_MS: u64 = 1_000;
/// How often KILL is sent again to a process that does not go away.
pub const KILL_AGAIN_MS: u64 = 5_000;
/// How long it may take from the start of the process until the app itself runs. vrun gives up long before.
pub const LAUNCH_MS: u64 = 180_000;

/// What a proc's `proc.yaml` says of its supervision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// How long it has to stay up before it counts as started, in milliseconds.
    pub start_ms: u64,
    /// How many more times it is tried when it ends before that, until it is [`ProcState::Fatal`].
    pub start_retries: u32,
    /// Whether it is started again when it ends by itself after that.
    pub auto_restart: AutoRestart,
    /// The exit statuses that [`AutoRestart::Unexpected`] takes for expected; 128 and more for signals.
    pub exit_codes: Vec<u8>,
    /// How long it may take to end before it is killed, in milliseconds.
    pub stop_ms: u64,
}

impl Rules {
    /// Of a `proc.yaml`; the defaults are Supervisor's.
    pub fn of(data: &ProcData) -> Self {
        let ms = |seconds: u32| u64::from(seconds) * 1_000;
        Self {
            start_ms: ms(data.startsecs.unwrap_or(START_SECONDS)),
            start_retries: data.startretries.unwrap_or(START_RETRIES),
            auto_restart: data.autorestart.unwrap_or_default(),
            exit_codes: data.exitcodes.clone().unwrap_or_default().0,
            stop_ms: ms(data.grace_period.unwrap_or(GRACE_SECONDS)) + ms(VRUN_GRACE_SECONDS),
        }
    }

    /// Whether a proc that was up and ended by itself is left alone.
    pub fn leave_alone(&self, exit_status: i32) -> bool {
        match self.auto_restart {
            AutoRestart::Always => false,
            AutoRestart::Never => true,
            AutoRestart::Unexpected => self.is_expected(exit_status),
        }
    }

    /// Whether an exit status is one of `exitcodes`.
    pub fn is_expected(&self, exit_status: i32) -> bool {
        u8::try_from(exit_status).is_ok_and(|code| self.exit_codes.contains(&code))
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            start_ms: u64::from(START_SECONDS) * 1_000,
            start_retries: START_RETRIES,
            auto_restart: AutoRestart::default(),
            exit_codes: ExitCodes::default().0,
            stop_ms: u64::from(GRACE_SECONDS + VRUN_GRACE_SECONDS) * 1_000,
        }
    }
}

/// What can happen to a proc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it up.
    Start,
    /// Somebody wants it down.
    Stop,
    /// Somebody wants it ended and started again.
    Restart,
    /// [`Action::Spawn`] worked: there is a process that will run the app.
    Spawned,
    /// [`Action::Spawn`] failed, or there is nothing to end.
    SpawnFailed,
    /// The app runs, and has done so for so long.
    Up {
        /// How long, in milliseconds.
        age_ms: u64,
    },
    /// A process that somebody else started is this proc, and its app has been up for so long.
    Adopted {
        /// How long, in milliseconds.
        age_ms: u64,
    },
    /// The process ended.
    Ended {
        /// The exit status, 128 and the signal's number after a signal, or -1 when nobody knows.
        exit_status: i32,
    },
    /// Time passed; only [`Machine::deadline`] makes it matter.
    Tick,
}

/// What the caller has to do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the process, then tell [`Event::Spawned`], [`Event::Adopted`] or [`Event::SpawnFailed`].
    Spawn,
    /// Ask the process to end (TERM); tell [`Event::SpawnFailed`] if it was not started yet.
    Terminate,
    /// End it (KILL).
    Kill,
}

/// What came of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// States that the proc went through on its way to the present one, as Supervisor tells them, too.
    pub passed: Vec<ProcState>,
    /// What has to be done.
    pub action: Option<Action>,
}

/// A proc's state and all that decides what comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    state: ProcState,
    wanted: bool,
    failures: u32,
    /// Since when the app is up, if it is.
    up_since: Option<u64>,
    deadline: Option<u64>,
    rules: Arc<Rules>,
    passed: Vec<ProcState>,
}

impl Machine {
    /// A proc that is down.
    pub fn stopped(rules: Arc<Rules>) -> Self {
        Self {
            state: ProcState::Stopped,
            wanted: false,
            failures: 0,
            up_since: None,
            deadline: None,
            rules,
            passed: Vec::new(),
        }
    }

    /// A proc that is down after so many failed starts in a row: [`ProcState::Fatal`] if they were too many.
    pub fn after_failures(rules: Arc<Rules>, failures: u32) -> Self {
        let state = if failures > rules.start_retries { ProcState::Fatal } else { ProcState::Stopped };
        Self { state, failures, ..Self::stopped(rules) }
    }

    /// A proc that nobody will try again by itself.
    pub fn given_up(rules: Arc<Rules>) -> Self {
        let failures = rules.start_retries.saturating_add(1);
        Self { state: ProcState::Fatal, failures, ..Self::stopped(rules) }
    }

    /// A proc that ended by itself and is left alone.
    pub fn exited(rules: Arc<Rules>) -> Self {
        Self { state: ProcState::Exited, ..Self::stopped(rules) }
    }

    /// The state.
    pub fn state(&self) -> ProcState {
        self.state
    }

    /// Failed starts in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Goes by other rules from now on; a wait that has begun ends as it was to end.
    pub fn go_by(&mut self, rules: Arc<Rules>) {
        self.rules = rules;
    }

    /// What it goes by.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Whether there is a process whose app does not run yet.
    pub fn is_launching(&self) -> bool {
        self.state == ProcState::Starting && self.up_since.is_none()
    }

    /// The state after an event, and what has to be done.
    #[must_use]
    pub fn step(mut self, event: Event, now: u64) -> (Self, Outcome) {
        let action = self.apply(event, now);
        let passed = std::mem::take(&mut self.passed);
        (self, Outcome { passed, action })
    }

    fn apply(&mut self, event: Event, now: u64) -> Option<Action> {
        use ProcState::{Backoff, Exited, Fatal, Running, Starting, Stopped, Stopping, Unknown};
        match (event, self.state) {
            (Event::Start | Event::Restart, Stopped | Exited | Fatal | Unknown) => {
                // A proc that an earlier agent was still trying keeps its count.
                if self.state != Stopped {
                    self.failures = 0;
                }
                self.wanted = true;
                self.spawn()
            }
            (Event::Start, Starting | Running | Backoff | Stopping) | (Event::Restart, Stopping) => {
                self.wanted = true;
                None
            }
            (Event::Restart, Backoff) => {
                self.wanted = true;
                self.failures = 0;
                self.spawn()
            }
            (Event::Restart, Starting | Running) => {
                self.wanted = true;
                self.terminate(now)
            }

            (Event::Stop, Starting | Running) => {
                self.wanted = false;
                self.terminate(now)
            }
            (Event::Stop, Backoff) => {
                self.wanted = false;
                self.failures = 0;
                self.rest(Stopped)
            }
            (Event::Stop, Stopping | Stopped | Exited | Fatal | Unknown) => {
                self.wanted = false;
                None
            }

            (Event::Spawned, Starting) => {
                self.deadline = Some(now.saturating_add(LAUNCH_MS));
                None
            }
            (Event::Up { age_ms }, Starting) => self.up(age_ms, now),
            (Event::Up { .. }, _) => None,
            (Event::Adopted { age_ms }, Starting | Stopped | Exited | Fatal | Backoff | Unknown) => {
                self.wanted = true;
                self.state = Starting;
                self.up(age_ms, now)
            }
            // It was told to stop while it was being started.
            (Event::Spawned | Event::Adopted { .. }, _) => self.terminate(now),

            (Event::SpawnFailed, Starting) => self.fail(now),
            (Event::SpawnFailed, Stopping) => self.ended_on_request(),
            (Event::SpawnFailed, _) => None,

            (Event::Ended { exit_status }, Starting) => {
                match self.up_since {
                    // The end was seen before the tick that would have made it RUNNING.
                    Some(since) if now.saturating_sub(since) >= self.rules.start_ms => {
                        self.passed.push(Running);
                        self.ended_by_itself(exit_status)
                    }
                    _ => self.fail(now),
                }
            }
            (Event::Ended { exit_status }, Running) => self.ended_by_itself(exit_status),
            (Event::Ended { .. }, Stopping) => self.ended_on_request(),
            (Event::Ended { .. }, Stopped | Exited | Fatal | Backoff | Unknown) => None,

            (Event::Tick, state) => {
                if self.deadline.is_none_or(|due| now < due) {
                    return None;
                }
                match state {
                    Starting if self.up_since.is_some() => {
                        self.run();
                        None
                    }
                    Starting | Stopping => {
                        self.deadline = Some(now.saturating_add(KILL_AGAIN_MS));
                        Some(Action::Kill)
                    }
                    Backoff => self.spawn(),
                    Running | Stopped | Exited | Fatal | Unknown => {
                        self.deadline = None;
                        None
                    }
                }
            }
        }
    }

    fn spawn(&mut self) -> Option<Action> {
        self.state = ProcState::Starting;
        self.up_since = None;
        // No deadline until there is a process.
        self.deadline = None;
        Some(Action::Spawn)
    }

    fn up(&mut self, age_ms: u64, now: u64) -> Option<Action> {
        self.up_since = Some(now.saturating_sub(age_ms));
        if age_ms >= self.rules.start_ms {
            self.run();
        } else {
            self.deadline = Some(now.saturating_add(self.rules.start_ms - age_ms));
        }
        None
    }

    fn run(&mut self) {
        self.failures = 0;
        self.rest(ProcState::Running);
    }

    fn terminate(&mut self, now: u64) -> Option<Action> {
        self.state = ProcState::Stopping;
        self.deadline = Some(now.saturating_add(self.rules.stop_ms));
        Some(Action::Terminate)
    }

    fn ended_on_request(&mut self) -> Option<Action> {
        self.failures = 0;
        if self.wanted {
            self.passed.push(ProcState::Stopped);
            self.spawn()
        } else {
            self.rest(ProcState::Stopped)
        }
    }

    fn ended_by_itself(&mut self, exit_status: i32) -> Option<Action> {
        self.failures = 0;
        if self.rules.leave_alone(exit_status) {
            return self.rest(ProcState::Exited);
        }
        self.passed.push(ProcState::Exited);
        self.spawn()
    }

    fn fail(&mut self, now: u64) -> Option<Action> {
        self.failures = self.failures.saturating_add(1);
        if self.failures > self.rules.start_retries {
            self.wanted = false;
            self.passed.push(ProcState::Backoff);
            return self.rest(ProcState::Fatal);
        }
        self.state = ProcState::Backoff;
        self.deadline = Some(now.saturating_add(u64::from(self.failures) * BACKOFF_STEP_MS));
        None
    }

    fn rest(&mut self, state: ProcState) -> Option<Action> {
        self.state = state;
        self.deadline = None;
        None
    }
}

#[cfg(test)]
mod tests;
