//! What a vrun that waits for its app keeps in memory, and the first process of the container with it.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::world::World;

/// Procs looked at, one after the other.
const STARTS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(20);
/// vrun and its init give back what they do not need after a second of waiting.
const LONG: Duration = Duration::from_secs(3);
/// What the app is called.
const APP: &str = "sleep";

/// The memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// The most it ever had resident.
    pub peak: u64,
    /// Resident now, with everything that others have too.
    pub resident: u64,
    /// Resident now, what n processes share counted as one nth.
    pub share: u64,
    /// Resident now, and not of a file: what the kernel could not take back without swapping.
    pub anonymous: u64,
}

impl Memory {
    /// Looks at a process.
    pub fn of(process: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{process}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let (status, rollup) = (read("status")?, read("smaps_rollup")?);
        Ok(Self {
            peak: bytes(&status, "VmHWM:")?,
            resident: bytes(&status, "VmRSS:")?,
            share: bytes(&rollup, "Pss:")?,
            anonymous: bytes(&status, "RssAnon:")?,
        })
    }

    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            peak: self.peak.max(other.peak),
            resident: self.resident.max(other.resident),
            share: self.share.max(other.share),
            anonymous: self.anonymous.max(other.anonymous),
        }
    }

    /// Of two processes together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            peak: self.peak + other.peak,
            resident: self.resident + other.resident,
            share: self.share + other.share,
            anonymous: self.anonymous + other.anonymous,
        }
    }
}

/// What waits beside the app.
#[derive(Debug, Default)]
pub struct Waiting {
    /// The vrun itself.
    pub vrun: Memory,
    /// The container's first process.
    pub init: Memory,
}

/// Starts an app that does nothing and looks at what waits for it.
pub fn measure(world: &World) -> Result<Waiting> {
    eprintln!("looking at the memory of a waiting vrun");
    let file = world.small_proc(3, "/bin/sleep 600")?;
    let mut waiting = Waiting::default();
    for _ in 0..STARTS {
        let mut vrun = Stopped(
            world
                .vrun("run", &file)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("cannot start vrun")?,
        );
        let init = init_of(&mut vrun.0)?;
        std::thread::sleep(LONG);
        waiting.vrun = waiting.vrun.max(settled(vrun.0.id())?);
        waiting.init = waiting.init.max(settled(init)?);
    }
    Ok(waiting)
}

/// Told to end, and waited for, when dropped.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// The parent of the app, once that runs.
fn init_of(vrun: &mut Child) -> Result<u32> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = vrun.try_wait()? {
            bail!("vrun ended with {status} instead of waiting for its app");
        }
        for init in children(vrun.id()) {
            if children(init).into_iter().any(|child| is_called(child, APP)) {
                return Ok(init);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("no app was running below vrun after {} s", PATIENCE.as_secs())
}

/// The memory of a process that has done all it does before it waits.
fn settled(process: u32) -> Result<Memory> {
    let deadline = Instant::now() + PATIENCE;
    let mut before = Memory::of(process)?;
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        let now = Memory::of(process)?;
        if (now.peak, now.resident, now.anonymous) == (before.peak, before.resident, before.anonymous) {
            return Ok(now);
        }
        before = now;
    }
    bail!("the memory of process {process} was never the same twice")
}

fn children(process: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

fn is_called(process: u32, name: &str) -> bool {
    fs::read_to_string(Path::new("/proc").join(process.to_string()).join("comm"))
        .is_ok_and(|comm| comm.trim_end() == name)
}

fn bytes(text: &str, key: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)).and_then(|rest| {
        // The kernel's kB are of 1024 bytes.
        rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    });
    value.with_context(|| format!("the kernel says nothing of {key}"))
}
