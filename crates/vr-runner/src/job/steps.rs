//! What a job is doing, said to people while it happens and summed up at the end. All of it on standard error.

use std::time::Instant;

use serde::Serialize;

/// A step that is over.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// What it did, such as `checkout`.
    pub name: &'static str,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// A step that goes on.
#[derive(Debug)]
pub(super) struct Begun {
    name: &'static str,
    at: Instant,
}

/// The steps of one job.
#[derive(Debug)]
pub struct Steps {
    program: &'static str,
    quiet: bool,
    done: Vec<Step>,
    failed: Option<&'static str>,
    started: Instant,
}

impl Steps {
    /// None so far, of the program `program`. A quiet one says nothing.
    pub fn new(program: &'static str, quiet: bool) -> Self {
        Self { program, quiet, done: Vec::new(), failed: None, started: Instant::now() }
    }

    /// Says something, unless told to be quiet.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("{}: {text}", self.program);
        }
    }

    /// Prints steps with their seconds, for people; without those that took no time.
    pub fn table(steps: &[Step], seconds: f64) {
        for step in steps.iter().filter(|step| step.seconds > 0.0) {
            eprintln!("{:>10.3} s  {}", step.seconds, step.name);
        }
        eprintln!("{seconds:>10.3} s  in all");
    }

    /// Begins a step.
    pub(super) fn begin(name: &'static str) -> Begun {
        Begun { name, at: Instant::now() }
    }

    /// Notes how long a step took, or that it failed.
    pub(super) fn end(&mut self, step: Begun, succeeded: bool) {
        match succeeded {
            true => self.done.push(Step { name: step.name, seconds: rounded(step.at) }),
            false => self.failed = Some(step.name),
        }
    }

    /// The step that failed, if one did.
    pub fn failed(&self) -> Option<&'static str> {
        self.failed
    }

    /// The steps so far, and the seconds since the first began.
    pub fn so_far(&self) -> (Vec<Step>, f64) {
        (self.done.clone(), rounded(self.started))
    }
}

/// A number of bytes for people: `12 bytes`, `1.5 MB`.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Seconds since `start`, to the millisecond.
fn rounded(start: Instant) -> f64 {
    start.elapsed().as_millis() as f64 / 1000.0
}
