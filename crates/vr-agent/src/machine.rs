//! Supervisor's rules as a pure function: what a proc's state becomes when something happens to it, and what
//! has to be done then.
//!
//! Knows no process, no clock and no disk. Times are milliseconds of any clock that never goes back.

use vr_common::host_api::ProcState;

/// How long a proc has to stay up before it counts as started.
pub const START_MS: u64 = 1_000;
/// How many more times a proc that ends too soon is tried before it is [`ProcState::Fatal`].
pub const START_RETRIES: u32 = 3;
/// How much longer the wait gets with each failed start.
pub const BACKOFF_STEP_MS: u64 = 1_000;
/// How often KILL is sent again to a process that does not go away.
pub const KILL_AGAIN_MS: u64 = 5_000;

/// What can happen to a proc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it up.
    Start,
    /// Somebody wants it down.
    Stop,
    /// Somebody wants it ended and started again.
    Restart,
    /// [`Action::Spawn`] worked.
    Spawned,
    /// [`Action::Spawn`] failed.
    SpawnFailed,
    /// A process that somebody else started is this proc, and has been up for so long.
    Adopted {
        /// How long it has been up, in milliseconds.
        age_ms: u64,
    },
    /// The process ended.
    Ended,
    /// Time passed; only [`Machine::deadline`] makes it matter.
    Tick,
}

/// What the caller has to do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the process, then tell [`Event::Spawned`], [`Event::Adopted`] or [`Event::SpawnFailed`].
    Spawn,
    /// Ask the process to end (TERM).
    Terminate,
    /// End it (KILL).
    Kill,
}

/// A proc's state and all that decides what comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    state: ProcState,
    wanted: bool,
    failures: u32,
    started_at: u64,
    deadline: Option<u64>,
    stop_ms: u64,
}

impl Machine {
    /// A proc that is down. `stop_ms` is how long it may take to end before it is killed.
    pub fn stopped(stop_ms: u64) -> Self {
        Self { state: ProcState::Stopped, wanted: false, failures: 0, started_at: 0, deadline: None, stop_ms }
    }

    /// A proc that is down after so many failed starts in a row: [`ProcState::Fatal`] if they were too many.
    pub fn after_failures(stop_ms: u64, failures: u32) -> Self {
        let state = if failures > START_RETRIES { ProcState::Fatal } else { ProcState::Stopped };
        Self { state, failures, ..Self::stopped(stop_ms) }
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

    /// The state after an event, and what has to be done.
    #[must_use]
    pub fn step(mut self, event: Event, now: u64) -> (Self, Option<Action>) {
        let action = self.apply(event, now);
        (self, action)
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
                self.started_at = now;
                self.deadline = Some(now + START_MS);
                None
            }
            (Event::Adopted { age_ms }, Starting | Stopped | Exited | Fatal | Backoff | Unknown) => {
                self.wanted = true;
                self.started_at = now.saturating_sub(age_ms);
                if age_ms >= START_MS {
                    self.run();
                } else {
                    self.state = Starting;
                    self.deadline = Some(now + START_MS - age_ms);
                }
                None
            }
            // It was told to stop while it was being started.
            (Event::Spawned | Event::Adopted { .. }, _) => self.terminate(now),

            (Event::SpawnFailed, Starting) => self.fail(now),
            (Event::SpawnFailed, Stopping) => self.ended_on_request(),
            (Event::SpawnFailed, _) => None,

            (Event::Ended, Starting) if now.saturating_sub(self.started_at) < START_MS => self.fail(now),
            (Event::Ended, Starting | Running) => {
                self.failures = 0;
                self.spawn()
            }
            (Event::Ended, Stopping) => self.ended_on_request(),
            (Event::Ended, Stopped | Exited | Fatal | Backoff | Unknown) => None,

            (Event::Tick, state) => {
                if self.deadline.is_none_or(|due| now < due) {
                    return None;
                }
                match state {
                    Starting => {
                        self.run();
                        None
                    }
                    Backoff => self.spawn(),
                    Stopping => {
                        self.deadline = Some(now + KILL_AGAIN_MS);
                        Some(Action::Kill)
                    }
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
        // No deadline until there is a process whose age can be told.
        self.deadline = None;
        Some(Action::Spawn)
    }

    fn run(&mut self) {
        self.failures = 0;
        self.rest(ProcState::Running);
    }

    fn terminate(&mut self, now: u64) -> Option<Action> {
        self.state = ProcState::Stopping;
        self.deadline = Some(now.saturating_add(self.stop_ms));
        Some(Action::Terminate)
    }

    fn ended_on_request(&mut self) -> Option<Action> {
        self.failures = 0;
        if self.wanted { self.spawn() } else { self.rest(ProcState::Stopped) }
    }

    fn fail(&mut self, now: u64) -> Option<Action> {
        self.failures += 1;
        if self.failures > START_RETRIES {
            self.wanted = false;
            return self.rest(ProcState::Fatal);
        }
        self.state = ProcState::Backoff;
        self.deadline = Some(now + u64::from(self.failures) * BACKOFF_STEP_MS);
        None
    }

    fn rest(&mut self, state: ProcState) -> Option<Action> {
        self.state = state;
        self.deadline = None;
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STOP_MS: u64 = 20_000;

    /// Steps a machine, and checks what it wants done.
    fn step(machine: &mut Machine, event: Event, now: u64, expected: Option<Action>) -> ProcState {
        let (next, action) = machine.clone().step(event, now);
        assert_eq!(action, expected, "{event:?} at {now} in {machine:?}");
        *machine = next;
        machine.state()
    }

    fn running() -> Machine {
        let mut m = Machine::stopped(STOP_MS);
        step(&mut m, Event::Start, 0, Some(Action::Spawn));
        step(&mut m, Event::Spawned, 0, None);
        assert_eq!(step(&mut m, Event::Tick, START_MS, None), ProcState::Running);
        m
    }

    #[test]
    fn a_proc_runs_once_it_stayed_up_for_a_second() {
        let mut m = Machine::stopped(STOP_MS);
        assert_eq!(step(&mut m, Event::Start, 50, Some(Action::Spawn)), ProcState::Starting);
        assert_eq!(m.deadline(), None);
        step(&mut m, Event::Spawned, 100, None);
        assert_eq!(m.deadline(), Some(1_100));
        assert_eq!(step(&mut m, Event::Tick, 1_099, None), ProcState::Starting);
        assert_eq!(step(&mut m, Event::Tick, 1_100, None), ProcState::Running);
        assert_eq!(m.deadline(), None);
    }

    #[test]
    fn one_that_ends_too_soon_is_tried_three_more_times_with_longer_waits() {
        let mut m = Machine::stopped(STOP_MS);
        step(&mut m, Event::Start, 0, Some(Action::Spawn));
        let mut now = 0;
        for wait in [1_000, 2_000, 3_000] {
            step(&mut m, Event::Spawned, now, None);
            now += 999;
            assert_eq!(step(&mut m, Event::Ended, now, None), ProcState::Backoff);
            assert_eq!(m.deadline(), Some(now + wait));
            step(&mut m, Event::Tick, now + wait - 1, None);
            now += wait;
            step(&mut m, Event::Tick, now, Some(Action::Spawn));
        }
        step(&mut m, Event::Spawned, now, None);
        assert_eq!(step(&mut m, Event::Ended, now + 10, None), ProcState::Fatal);
        assert_eq!((m.deadline(), m.failures()), (None, 4));
        // Only somebody gets it out of there, and then it has all its tries again.
        step(&mut m, Event::Tick, now + 1_000_000, None);
        assert_eq!(step(&mut m, Event::Start, now + 1_000_000, Some(Action::Spawn)), ProcState::Starting);
        assert_eq!(m.failures(), 0);
    }

    #[test]
    fn one_that_cannot_be_spawned_backs_off_too() {
        let mut m = Machine::stopped(STOP_MS);
        step(&mut m, Event::Start, 0, Some(Action::Spawn));
        assert_eq!(step(&mut m, Event::SpawnFailed, 10, None), ProcState::Backoff);
        assert_eq!(m.deadline(), Some(1_010));
    }

    #[test]
    fn one_that_ran_is_started_again_at_once() {
        let mut m = running();
        assert_eq!(step(&mut m, Event::Ended, 5_000, Some(Action::Spawn)), ProcState::Starting);
        // Also when the end was seen before the tick that would have made it RUNNING.
        let mut m = Machine::stopped(STOP_MS);
        step(&mut m, Event::Start, 0, Some(Action::Spawn));
        step(&mut m, Event::Spawned, 0, None);
        step(&mut m, Event::Ended, START_MS, Some(Action::Spawn));
    }

    #[test]
    fn a_stop_asks_then_kills_and_then_kills_again() {
        let mut m = running();
        assert_eq!(step(&mut m, Event::Stop, 2_000, Some(Action::Terminate)), ProcState::Stopping);
        step(&mut m, Event::Tick, 2_000 + STOP_MS - 1, None);
        step(&mut m, Event::Tick, 2_000 + STOP_MS, Some(Action::Kill));
        step(&mut m, Event::Tick, 2_000 + STOP_MS + 10, None);
        step(&mut m, Event::Tick, 2_000 + STOP_MS + KILL_AGAIN_MS, Some(Action::Kill));
        assert_eq!(step(&mut m, Event::Ended, 90_000, None), ProcState::Stopped);
        assert_eq!(m.deadline(), None);
    }

    #[test]
    fn a_restart_is_a_stop_and_a_start() {
        let mut m = running();
        step(&mut m, Event::Restart, 2_000, Some(Action::Terminate));
        assert_eq!(step(&mut m, Event::Ended, 2_100, Some(Action::Spawn)), ProcState::Starting);
        let mut m = running();
        step(&mut m, Event::Stop, 2_000, Some(Action::Terminate));
        step(&mut m, Event::Start, 2_001, None);
        step(&mut m, Event::Ended, 2_100, Some(Action::Spawn));
        let mut m = running();
        step(&mut m, Event::Restart, 2_000, Some(Action::Terminate));
        step(&mut m, Event::Stop, 2_001, None);
        assert_eq!(step(&mut m, Event::Ended, 2_100, None), ProcState::Stopped);
    }

    #[test]
    fn an_adopted_proc_keeps_its_age() {
        let mut m = Machine::stopped(STOP_MS);
        assert_eq!(step(&mut m, Event::Adopted { age_ms: START_MS }, 7, None), ProcState::Running);
        let mut m = Machine::stopped(STOP_MS);
        assert_eq!(step(&mut m, Event::Adopted { age_ms: 400 }, 5_000, None), ProcState::Starting);
        assert_eq!(m.deadline(), Some(5_600));
        assert_eq!(step(&mut m, Event::Ended, 5_300, None), ProcState::Backoff);
    }

    #[test]
    fn failures_of_an_earlier_agent_count() {
        assert_eq!(Machine::after_failures(STOP_MS, 4).state(), ProcState::Fatal);
        let mut m = Machine::after_failures(STOP_MS, 3);
        step(&mut m, Event::Start, 0, Some(Action::Spawn));
        step(&mut m, Event::Spawned, 0, None);
        assert_eq!(step(&mut m, Event::Ended, 1, None), ProcState::Fatal);
    }

    #[derive(Debug, Clone, Copy)]
    enum Outside {
        Start,
        Stop,
        Restart,
        Dies,
        Waits(u64),
    }

    fn outside() -> impl Strategy<Value = Outside> {
        prop_oneof![
            Just(Outside::Start),
            Just(Outside::Stop),
            Just(Outside::Restart),
            Just(Outside::Dies),
            (1..6_000u64).prop_map(Outside::Waits),
        ]
    }

    proptest! {
        /// A world that does what the machine asks for, with spawns that may fail and processes that may
        /// ignore TERM: there is never a second process, never a signal to none, never a state that lies,
        /// and what was wanted last is what comes out.
        #[test]
        fn the_machine_and_its_world_agree(
            script in prop::collection::vec((outside(), any::<bool>(), any::<bool>()), 1..60)
        ) {
            let mut m = Machine::stopped(STOP_MS);
            let (mut alive, mut now) = (false, 0u64);
            let mut wanted_last = None;
            for (happening, spawn_works, heeds_term) in script {
                let mut events = Vec::new();
                match happening {
                    Outside::Start => { wanted_last = Some(true); events.push(Event::Start) }
                    Outside::Restart => { wanted_last = Some(true); events.push(Event::Restart) }
                    Outside::Stop => { wanted_last = Some(false); events.push(Event::Stop) }
                    Outside::Dies if alive => { alive = false; events.push(Event::Ended) }
                    Outside::Dies => {}
                    Outside::Waits(ms) => { now += ms; events.push(Event::Tick) }
                }
                while let Some(event) = events.pop() {
                    let (next, action) = m.clone().step(event, now);
                    m = next;
                    match action {
                        Some(Action::Spawn) => {
                            prop_assert!(!alive, "a second process");
                            alive = spawn_works;
                            events.push(if spawn_works { Event::Spawned } else { Event::SpawnFailed });
                        }
                        Some(Action::Terminate) => {
                            prop_assert!(alive, "TERM for no process");
                            if heeds_term { alive = false; events.push(Event::Ended) }
                        }
                        Some(Action::Kill) => {
                            prop_assert!(alive, "KILL for no process");
                            alive = false;
                            events.push(Event::Ended);
                        }
                        None => {}
                    }
                }
                let state = m.state();
                let up = matches!(state, ProcState::Starting | ProcState::Running | ProcState::Stopping);
                prop_assert_eq!(up, alive, "{:?}", state);
                let timed = matches!(state, ProcState::Starting | ProcState::Backoff | ProcState::Stopping);
                prop_assert_eq!(m.deadline().is_some(), timed, "{:?}", state);
                if wanted_last == Some(false) {
                    prop_assert!(!matches!(state, ProcState::Starting | ProcState::Running | ProcState::Backoff));
                }
            }
            // Left alone, every proc comes to rest: up, down, or given up.
            for _ in 0..12 {
                now += STOP_MS;
                let (mut next, mut action) = m.clone().step(Event::Tick, now);
                while let Some(wish) = action {
                    alive = wish == Action::Spawn;
                    (next, action) = next.step(if alive { Event::Spawned } else { Event::Ended }, now);
                }
                m = next;
            }
            prop_assert!(matches!(m.state(), ProcState::Running | ProcState::Stopped | ProcState::Fatal));
            if wanted_last == Some(true) {
                prop_assert_ne!(m.state(), ProcState::Stopped);
            }
        }
    }
}
