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

/// The steps of one job.
#[derive(Debug)]
pub struct Steps {
    program: &'static str,
    quiet: bool,
    done: Vec<Step>,
    started: Instant,
}

impl Steps {
    /// None so far, of the program `program`. A quiet one says nothing.
    pub fn new(program: &'static str, quiet: bool) -> Self {
        Self { program, quiet, done: Vec::new(), started: Instant::now() }
    }

    /// Whether to say nothing.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Says something, unless told to be quiet.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("{}: {text}", self.program);
        }
    }

    /// Prints steps with their seconds, for people.
    pub fn table(steps: &[Step], seconds: f64) {
        for step in steps {
            eprintln!("{:>10.3} s  {}", step.seconds, step.name);
        }
        eprintln!("{seconds:>10.3} s  in all");
    }

    /// Says what is next, does it, and notes how long it took when it succeeded.
    pub fn step<T, E>(
        &mut self,
        name: &'static str,
        text: &str,
        work: impl FnOnce(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        self.say(text);
        let started = Instant::now();
        let result = work(self)?;
        self.done.push(Step { name, seconds: rounded(started) });
        Ok(result)
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
