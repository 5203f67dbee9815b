//! The rules as Supervisor's documentation has them, in examples and in properties.

use proptest::prelude::*;

use super::*;

const START_MS: u64 = 1_000;
const STOP_MS: u64 = 20_000;
const UP: Event = Event::Up { age_ms: 0 };

fn ended(exit_status: i32) -> Event {
    Event::Ended { exit_status }
}

fn rules(yaml: &str) -> Arc<Rules> {
    Arc::new(Rules::of(&ProcData::parse("proc.yaml", &format!("cmd: x\n{yaml}\n")).unwrap()))
}

fn usual() -> Arc<Rules> {
    rules("")
}

/// Steps a machine, and checks what it wants done.
fn step(machine: &mut Machine, event: Event, now: u64, expected: Option<Action>) -> ProcState {
    let (next, outcome) = machine.clone().step(event, now);
    assert_eq!(outcome.action, expected, "{event:?} at {now} in {machine:?}");
    *machine = next;
    machine.state()
}

/// Steps a machine, and gives all states that it went through, the present one last.
fn trace(machine: &mut Machine, event: Event, now: u64) -> Vec<ProcState> {
    let (next, outcome) = machine.clone().step(event, now);
    *machine = next;
    outcome.passed.into_iter().chain([machine.state()]).collect()
}

fn starting(rules: Arc<Rules>, now: u64) -> Machine {
    let mut m = Machine::stopped(rules);
    step(&mut m, Event::Start, now, Some(Action::Spawn));
    step(&mut m, Event::Spawned, now, None);
    step(&mut m, UP, now, None);
    m
}

fn running(rules: Arc<Rules>) -> Machine {
    let start_ms = rules.start_ms;
    let mut m = starting(rules, 0);
    if start_ms > 0 {
        step(&mut m, Event::Tick, start_ms, None);
    }
    assert_eq!(m.state(), ProcState::Running);
    m
}

#[test]
fn the_defaults_are_supervisors() {
    assert_eq!(*usual(), Rules::default());
    assert_eq!(usual().start_ms, START_MS);
    assert_eq!((usual().start_retries, usual().auto_restart), (3, AutoRestart::Always));
    assert_eq!((usual().exit_codes.clone(), usual().stop_ms), (vec![0], STOP_MS));
    let other = rules("startsecs: 5\nstartretries: 0\nautorestart: off\nexitcodes: [1]\ngrace_period: 0");
    let expected = Rules {
        start_ms: 5_000,
        start_retries: 0,
        auto_restart: AutoRestart::Never,
        exit_codes: vec![1],
        stop_ms: 10_000,
    };
    assert_eq!(*other, expected);
}

#[test]
fn a_proc_runs_once_its_app_stayed_up_for_a_second() {
    let mut m = Machine::stopped(usual());
    assert_eq!(step(&mut m, Event::Start, 50, Some(Action::Spawn)), ProcState::Starting);
    assert_eq!(m.deadline(), None);
    step(&mut m, Event::Spawned, 100, None);
    // However long its container takes.
    assert!(m.is_launching());
    assert_eq!(step(&mut m, Event::Tick, 5_000, None), ProcState::Starting);
    step(&mut m, UP, 5_100, None);
    assert!(!m.is_launching());
    assert_eq!(m.deadline(), Some(6_100));
    assert_eq!(step(&mut m, Event::Tick, 6_099, None), ProcState::Starting);
    assert_eq!(step(&mut m, Event::Tick, 6_100, None), ProcState::Running);
    assert_eq!(m.deadline(), None);
}

#[test]
fn one_whose_app_never_runs_is_killed_and_tried_again() {
    let mut m = Machine::stopped(usual());
    step(&mut m, Event::Start, 0, Some(Action::Spawn));
    step(&mut m, Event::Spawned, 0, None);
    step(&mut m, Event::Tick, LAUNCH_MS - 1, None);
    assert_eq!(step(&mut m, Event::Tick, LAUNCH_MS, Some(Action::Kill)), ProcState::Starting);
    step(&mut m, Event::Tick, LAUNCH_MS + KILL_AGAIN_MS, Some(Action::Kill));
    assert_eq!(step(&mut m, ended(137), LAUNCH_MS + 6_000, None), ProcState::Backoff);
}

#[test]
fn one_that_ends_too_soon_is_tried_three_more_times_with_longer_waits() {
    let mut m = Machine::stopped(usual());
    step(&mut m, Event::Start, 0, Some(Action::Spawn));
    let mut now = 0;
    for wait in [1_000, 2_000, 3_000] {
        step(&mut m, Event::Spawned, now, None);
        step(&mut m, UP, now, None);
        now += 999;
        assert_eq!(step(&mut m, ended(0), now, None), ProcState::Backoff, "an expected status, too");
        assert_eq!(m.deadline(), Some(now + wait));
        step(&mut m, Event::Tick, now + wait - 1, None);
        now += wait;
        step(&mut m, Event::Tick, now, Some(Action::Spawn));
    }
    step(&mut m, Event::Spawned, now, None);
    step(&mut m, UP, now, None);
    assert_eq!(trace(&mut m, ended(1), now + 10), [ProcState::Backoff, ProcState::Fatal]);
    assert_eq!((m.deadline(), m.failures()), (None, 4));
    // Only somebody gets it out of there, and then it has all its tries again.
    step(&mut m, Event::Tick, now + 1_000_000, None);
    assert_eq!(step(&mut m, Event::Start, now + 1_000_000, Some(Action::Spawn)), ProcState::Starting);
    assert_eq!(m.failures(), 0);
}

#[test]
fn without_retries_one_that_ends_too_soon_is_given_up_at_once() {
    let mut m = starting(rules("startretries: 0"), 0);
    assert_eq!(step(&mut m, ended(1), 10, None), ProcState::Fatal);
}

#[test]
fn one_that_cannot_be_spawned_backs_off_too() {
    let mut m = Machine::stopped(usual());
    step(&mut m, Event::Start, 0, Some(Action::Spawn));
    assert_eq!(step(&mut m, Event::SpawnFailed, 10, None), ProcState::Backoff);
    assert_eq!(m.deadline(), Some(1_010));
}

#[test]
fn one_that_needs_not_stay_up_runs_at_once() {
    let mut m = starting(rules("startsecs: 0"), 0);
    assert_eq!((m.state(), m.deadline()), (ProcState::Running, None));
    assert_eq!(trace(&mut m, ended(1), 1), [ProcState::Exited, ProcState::Starting]);
    // But an app that never ran at all did not start.
    step(&mut m, Event::Spawned, 2, None);
    assert_eq!(step(&mut m, ended(1), 3, None), ProcState::Backoff);
}

#[test]
fn one_that_ran_is_started_again_at_once() {
    let mut m = running(usual());
    assert_eq!(trace(&mut m, ended(0), 5_000), [ProcState::Exited, ProcState::Starting]);
    // Also when the end was seen before the tick that would have made it RUNNING.
    let mut m = starting(usual(), 0);
    let expected = [ProcState::Running, ProcState::Exited, ProcState::Starting];
    assert_eq!(trace(&mut m, ended(0), START_MS), expected);
}

#[test]
fn one_that_ran_stays_down_if_the_rules_say_so() {
    for (yaml, exit_status, stays) in [
        ("autorestart: false", 0, true),
        ("autorestart: false", 1, true),
        ("autorestart: unexpected", 0, true),
        ("autorestart: unexpected", 1, false),
        ("autorestart: unexpected", 143, false),
        ("autorestart: unexpected", -1, false),
        ("autorestart: unexpected\nexitcodes: [0, 2]", 2, true),
        ("autorestart: unexpected\nexitcodes: []", 0, false),
        ("autorestart: true\nexitcodes: [1]", 1, false),
    ] {
        let mut m = running(rules(yaml));
        let end = if stays { ProcState::Exited } else { ProcState::Starting };
        assert_eq!(trace(&mut m, ended(exit_status), 5_000).last(), Some(&end), "{yaml} {exit_status}");
        assert_eq!(m.deadline(), None);
        if stays {
            step(&mut m, Event::Tick, 1_000_000, None);
            step(&mut m, Event::Stop, 1_000_000, None);
            assert_eq!(m.state(), ProcState::Exited, "there is nothing to stop");
            step(&mut m, Event::Start, 1_000_001, Some(Action::Spawn));
        }
    }
}

#[test]
fn starts_are_tried_again_whatever_autorestart_says() {
    let mut m = starting(rules("autorestart: false"), 0);
    assert_eq!(step(&mut m, ended(1), 10, None), ProcState::Backoff);
    step(&mut m, Event::Tick, 1_010, Some(Action::Spawn));
}

#[test]
fn a_stop_asks_then_kills_and_then_kills_again() {
    let mut m = running(usual());
    assert_eq!(step(&mut m, Event::Stop, 2_000, Some(Action::Terminate)), ProcState::Stopping);
    step(&mut m, Event::Tick, 2_000 + STOP_MS - 1, None);
    step(&mut m, Event::Tick, 2_000 + STOP_MS, Some(Action::Kill));
    step(&mut m, Event::Tick, 2_000 + STOP_MS + 10, None);
    step(&mut m, Event::Tick, 2_000 + STOP_MS + KILL_AGAIN_MS, Some(Action::Kill));
    assert_eq!(step(&mut m, ended(137), 90_000, None), ProcState::Stopped);
    assert_eq!(m.deadline(), None);
}

#[test]
fn a_restart_is_a_stop_and_a_start() {
    let mut m = running(usual());
    step(&mut m, Event::Restart, 2_000, Some(Action::Terminate));
    assert_eq!(trace(&mut m, ended(143), 2_100), [ProcState::Stopped, ProcState::Starting]);
    let mut m = running(usual());
    step(&mut m, Event::Stop, 2_000, Some(Action::Terminate));
    step(&mut m, Event::Start, 2_001, None);
    step(&mut m, ended(143), 2_100, Some(Action::Spawn));
    let mut m = running(usual());
    step(&mut m, Event::Restart, 2_000, Some(Action::Terminate));
    step(&mut m, Event::Stop, 2_001, None);
    assert_eq!(step(&mut m, ended(143), 2_100, None), ProcState::Stopped);
    // Also of one that would stay down by itself.
    let mut m = running(rules("autorestart: false"));
    step(&mut m, Event::Restart, 2_000, Some(Action::Terminate));
    step(&mut m, ended(0), 2_100, Some(Action::Spawn));
}

#[test]
fn an_adopted_proc_keeps_its_age() {
    let mut m = Machine::stopped(usual());
    assert_eq!(step(&mut m, Event::Adopted { age_ms: START_MS }, 7, None), ProcState::Running);
    let mut m = Machine::stopped(usual());
    assert_eq!(step(&mut m, Event::Adopted { age_ms: 400 }, 5_000, None), ProcState::Starting);
    assert_eq!(m.deadline(), Some(5_600));
    assert_eq!(step(&mut m, ended(0), 5_300, None), ProcState::Backoff);
}

#[test]
fn failures_of_an_earlier_agent_count() {
    assert_eq!(Machine::after_failures(usual(), 4).state(), ProcState::Fatal);
    assert_eq!(Machine::given_up(rules("startretries: 9")).state(), ProcState::Fatal);
    let mut m = Machine::after_failures(usual(), 3);
    step(&mut m, Event::Start, 0, Some(Action::Spawn));
    step(&mut m, Event::Spawned, 0, None);
    assert_eq!(step(&mut m, ended(1), 1, None), ProcState::Fatal);
}

/// The arrows of the picture in Supervisor's documentation ("Process States"), and those that it has in words only:
/// a proc may also be stopped in BACKOFF.
fn may_follow(from: ProcState, to: ProcState) -> bool {
    use ProcState::{Backoff, Exited, Fatal, Running, Starting, Stopped, Stopping};
    match from {
        Stopped | Exited | Fatal => to == Starting,
        Starting => matches!(to, Running | Backoff | Stopping),
        Running => matches!(to, Stopping | Exited),
        Backoff => matches!(to, Starting | Fatal | Stopped),
        Stopping => to == Stopped,
        ProcState::Unknown => false,
    }
}

#[derive(Debug, Clone, Copy)]
enum Outside {
    Start,
    Stop,
    Restart,
    /// The app ends by itself.
    Dies(u8),
    Waits(u64),
}

fn outside() -> impl Strategy<Value = Outside> {
    prop_oneof![
        Just(Outside::Start),
        Just(Outside::Stop),
        Just(Outside::Restart),
        (0..4u8).prop_map(Outside::Dies),
        (1..6_000u64).prop_map(Outside::Waits),
    ]
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let restart =
        prop_oneof![Just(AutoRestart::Always), Just(AutoRestart::Never), Just(AutoRestart::Unexpected)];
    let codes = prop::collection::vec(0..4u8, 0..3);
    (0..4u64, 0..5u32, restart, codes).prop_map(|(seconds, start_retries, auto_restart, exit_codes)| Rules {
        start_ms: seconds * 1_000,
        start_retries,
        auto_restart,
        exit_codes,
        stop_ms: STOP_MS,
    })
}

/// What Supervisor's documentation says must be true, kept apart from how the machine does it.
struct World {
    m: Machine,
    now: u64,
    /// Whether there is a process, and since when its app runs.
    alive: bool,
    up_since: Option<u64>,
    /// Ends in a row before `startsecs` were over, and the moment of the last.
    quick_ends: u32,
    quick_end_at: u64,
    asked_to_end_at: Option<u64>,
    spawn_works: bool,
    launch_works: bool,
    heeds_term: bool,
}

impl World {
    fn tell(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let before = self.m.state();
            let (next, outcome) = self.m.clone().step(event, self.now);
            self.m = next;
            self.check_path(before, event, &outcome);
            match outcome.action {
                Some(Action::Spawn) => {
                    assert!(!self.alive, "a second process");
                    if before == ProcState::Backoff && event == Event::Tick {
                        let waited = self.now - self.quick_end_at;
                        assert!(waited >= u64::from(self.quick_ends) * 1_000, "waited {waited} only");
                    }
                    self.alive = self.spawn_works;
                    if !self.spawn_works {
                        self.ends_quickly();
                        events.push(Event::SpawnFailed);
                    } else {
                        if self.launch_works {
                            events.push(UP);
                            self.up_since = Some(self.now);
                        }
                        events.push(Event::Spawned);
                    }
                }
                Some(Action::Terminate) => {
                    assert!(self.alive, "TERM for no process");
                    self.asked_to_end_at = Some(self.now);
                    if self.heeds_term {
                        events.push(self.ends(143));
                    }
                }
                Some(Action::Kill) => {
                    assert!(self.alive, "KILL for no process");
                    match self.asked_to_end_at {
                        Some(at) => assert!(self.now - at >= STOP_MS, "killed too early"),
                        None => assert_eq!(self.up_since, None, "killed without being asked"),
                    }
                    events.push(self.ends(137));
                }
                None => {}
            }
        }
    }

    fn ends_quickly(&mut self) {
        if self.asked_to_end_at.is_none() {
            self.quick_ends += 1;
            self.quick_end_at = self.now;
        }
    }

    fn ends(&mut self, exit_status: i32) -> Event {
        self.alive = false;
        let was_up = self.up_since.take().is_some_and(|at| self.now - at >= self.m.rules().start_ms);
        if was_up || self.asked_to_end_at.is_some() {
            self.quick_ends = 0;
        } else {
            self.ends_quickly();
        }
        ended(exit_status)
    }

    fn check_path(&mut self, before: ProcState, event: Event, outcome: &Outcome) {
        let rules = Arc::clone(self.m.rules());
        let mut from = before;
        for to in outcome.passed.iter().copied().chain([self.m.state()]) {
            if from == to {
                continue;
            }
            assert!(may_follow(from, to), "{from:?} to {to:?} by {event:?}");
            match to {
                ProcState::Running => {
                    // At the end of a process that is counted already, there is nothing to compare with.
                    if let Some(since) = self.up_since {
                        assert!(self.now - since >= rules.start_ms, "RUNNING too early");
                    }
                    self.quick_ends = 0;
                }
                ProcState::Fatal => assert_eq!(self.quick_ends, rules.start_retries + 1),
                ProcState::Backoff => assert!(self.quick_ends > 0),
                ProcState::Exited => {
                    let Event::Ended { exit_status } = event else { panic!("EXITED by {event:?}") };
                    let stays = self.m.state() == ProcState::Exited;
                    let listed = rules.exit_codes.iter().any(|code| i32::from(*code) == exit_status);
                    let expected = match rules.auto_restart {
                        AutoRestart::Always => false,
                        AutoRestart::Never => true,
                        AutoRestart::Unexpected => listed,
                    };
                    assert_eq!(stays, expected, "{exit_status} in {rules:?}");
                }
                ProcState::Stopped => self.asked_to_end_at = None,
                _ => {}
            }
            from = to;
        }
        if matches!(event, Event::Start | Event::Restart) && self.m.failures() == 0 {
            self.quick_ends = 0;
        }
    }
}

proptest! {
    /// A world that does what the machine asks for, with spawns that may fail, apps that may never run and processes
    /// that may ignore TERM: there is never a second process, never a signal to none, never a state that lies or that
    /// Supervisor's documentation does not allow, and what was wanted last is what comes out.
    #[test]
    fn the_machine_and_its_world_agree(
        rules in any_rules(),
        script in prop::collection::vec((outside(), any::<[bool; 3]>()), 1..80)
    ) {
        let mut world = World {
            m: Machine::stopped(Arc::new(rules)),
            now: 0,
            alive: false,
            up_since: None,
            quick_ends: 0,
            quick_end_at: 0,
            asked_to_end_at: None,
            spawn_works: true,
            launch_works: true,
            heeds_term: true,
        };
        let mut wanted_last = None;
        for (happening, [spawn_works, launch_works, heeds_term]) in script {
            world.spawn_works = spawn_works;
            world.launch_works = launch_works;
            world.heeds_term = heeds_term;
            match happening {
                Outside::Start => { wanted_last = Some(true); world.tell(Event::Start) }
                Outside::Restart => { wanted_last = Some(true); world.tell(Event::Restart) }
                Outside::Stop => { wanted_last = Some(false); world.tell(Event::Stop) }
                Outside::Dies(code) if world.alive => {
                    let event = world.ends(i32::from(code));
                    world.tell(event);
                }
                Outside::Dies(_) => {}
                Outside::Waits(ms) => { world.now += ms; world.tell(Event::Tick) }
            }
            let state = world.m.state();
            let up = matches!(state, ProcState::Starting | ProcState::Running | ProcState::Stopping);
            prop_assert_eq!(up, world.alive, "{:?}", state);
            let timed = matches!(state, ProcState::Starting | ProcState::Backoff | ProcState::Stopping);
            prop_assert_eq!(world.m.deadline().is_some(), timed, "{:?}", state);
            if wanted_last == Some(false) {
                prop_assert!(!matches!(state, ProcState::Starting | ProcState::Running | ProcState::Backoff));
            }
        }
        // Left alone, every proc comes to rest: up, down, or given up.
        (world.spawn_works, world.launch_works) = (true, true);
        for _ in 0..20 {
            world.now += LAUNCH_MS;
            world.tell(Event::Tick);
        }
        let state = world.m.state();
        let rest = [ProcState::Running, ProcState::Stopped, ProcState::Fatal, ProcState::Exited];
        prop_assert!(rest.contains(&state), "{:?}", state);
        if wanted_last == Some(true) {
            prop_assert_ne!(state, ProcState::Stopped);
        }
    }
}
