//! Requests by wrk: as many as 64 connections can have answered.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vr_common::process::command;

use super::server::Server;
use crate::bench::agent::processes::{Memory, start};
use crate::bench::stats::Samples;

/// How many requests are open at once.
pub const CONNECTIONS: u32 = 64;
/// A load that nobody ended would end after so many seconds.
const LONGEST: u32 = 3600;
/// wrk's own threads.
const THREADS: &str = "2";
/// What wrk says at its end, as numbers instead of rounded for people: microseconds and bytes.
const SCRIPT: &str = r#"
done = function(summary, latency)
    local wrong = summary.errors
    io.stderr:write(string.format(
        '{"requests": %d, "wrong": %d, "microseconds": %d, "bytes": %d, "p50": %d, "p99": %d}\n',
        summary.requests, wrong.connect + wrong.read + wrong.write + wrong.status + wrong.timeout,
        summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99)))
end
"#;

/// wrk, and what it is told.
#[derive(Debug)]
pub struct Load {
    script: PathBuf,
}

/// One run.
#[derive(Debug)]
pub struct Run {
    requests: u64,
    took: Duration,
    bytes: u64,
    p50: Duration,
    /// One request in a hundred took longer.
    pub p99: Duration,
    /// What the server used of the processors.
    cpu: Duration,
    /// What it has in memory at the end.
    memory: Memory,
}

impl Run {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.took.as_secs_f64()
    }
}

/// All runs against one server.
#[derive(Debug, Default)]
pub struct Runs(Vec<Run>);

impl Runs {
    /// Adds one.
    pub fn push(&mut self, run: Run) {
        self.0.push(run);
    }

    /// Requests a second: half of the runs had fewer.
    pub fn rate(&self) -> f64 {
        middle(self.0.iter().map(Run::rate).collect())
    }

    /// The lowest and the highest of these.
    pub fn rates(&self) -> (f64, f64) {
        let rates = || self.0.iter().map(Run::rate);
        (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max))
    }

    /// Bytes of answers a second, heads and all.
    pub fn bytes(&self) -> f64 {
        middle(self.0.iter().map(|run| run.bytes as f64 / run.took.as_secs_f64()).collect())
    }

    /// The median of the runs' medians.
    pub fn p50(&self) -> Duration {
        self.median(|run| run.p50)
    }

    /// The median of what one request in a hundred took longer than.
    pub fn p99(&self) -> Duration {
        self.median(|run| run.p99)
    }

    /// The server's processor time for each request, all runs together.
    pub fn cpu(&self) -> Duration {
        let requests: u64 = self.0.iter().map(|run| run.requests).sum();
        let cpu: Duration = self.0.iter().map(|run| run.cpu).sum();
        Duration::from_secs_f64(cpu.as_secs_f64() / requests.max(1) as f64)
    }

    /// What the server had in memory at the end of a run, at most.
    pub fn memory(&self) -> Memory {
        self.0.iter().fold(Memory::default(), |most, run| most.max(run.memory))
    }

    fn median(&self, of: impl Fn(&Run) -> Duration) -> Duration {
        let mut samples = Samples::default();
        self.0.iter().for_each(|run| samples.push(of(run)));
        samples.median()
    }
}

fn middle(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}

impl Load {
    /// Writes down what wrk needs.
    pub fn prepare(folder: &Path) -> Result<Self> {
        let script = folder.join("wrk.lua");
        fs::write(&script, SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
        Ok(Self { script })
    }

    /// Asks a server for so many seconds. A request that is not answered as it should be is an error.
    pub fn run(&self, server: &Server, path: &str, seconds: u32) -> Result<Run> {
        let before = server.cpu()?;
        let ran = finish(self.start(server, path, seconds)?)?;
        Ok(Run { cpu: server.cpu()?.saturating_sub(before), memory: server.memory()?, ..ran })
    }

    /// Asks a server until that is [over](Background::end).
    pub fn begin(&self, server: &Server) -> Result<Background> {
        Ok(Background(self.start(server, "/", LONGEST)?))
    }

    fn start(&self, server: &Server, path: &str, seconds: u32) -> Result<Child> {
        let mut wrk = command("wrk");
        wrk.args(["--threads", THREADS, "--connections", &CONNECTIONS.to_string()]);
        wrk.args(["--duration", &format!("{seconds}s"), "--timeout", "20s", "--script"]).arg(&self.script);
        wrk.arg(format!("http://{}{path}", server.address()));
        start(wrk.stdout(Stdio::null()).stderr(Stdio::piped()))
    }
}

/// A load that goes on until somebody ends it.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// Ends it: how many requests there were. One that was not answered as it should be is an error.
    pub fn end(self) -> Result<u64> {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT).context("wrk is gone")?;
        Ok(finish(self.0)?.requests)
    }
}

/// Waits for the end of wrk; what the server needed is the caller's business.
fn finish(wrk: Child) -> Result<Run> {
    let output = wrk.wait_with_output().context("wrk is gone")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let Some(line) = text.lines().find(|line| line.starts_with('{')) else {
        bail!("wrk ended with {}: {}", output.status, text.trim());
    };
    let said: Value = serde_json::from_str(line).with_context(|| format!("wrk said {line}"))?;
    let number = |key: &str| said[key].as_u64().with_context(|| format!("no {key} in what wrk said: {line}"));
    let (requests, wrong) = (number("requests")?, number("wrong")?);
    if wrong > 0 || requests == 0 {
        bail!("{wrong} of {requests} requests were not answered as they should be");
    }
    Ok(Run {
        requests,
        took: Duration::from_micros(number("microseconds")?),
        bytes: number("bytes")?,
        p50: Duration::from_micros(number("p50")?),
        p99: Duration::from_micros(number("p99")?),
        cpu: Duration::ZERO,
        memory: Memory::default(),
    })
}
