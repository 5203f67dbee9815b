//! The processes of a world: who is there, what they need, and their end.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use tokio::signal::unix::{SignalKind, signal};

pub use crate::bench::runner::memory::Memory;
use crate::bench::world::World;

/// Held while a program is started, and for ever once the benchmark is being ended: nothing is started then.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts a program that will be found by its command line, see [`end_all`].
pub fn start(program: &mut Command) -> Result<Child> {
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    program.spawn().with_context(|| format!("cannot start {}", Path::new(program.get_program()).display()))
}

/// Ends everything in the folder, and the program, when somebody asks it to end; removes the world.
pub fn end_on_signal(folder: PathBuf, world: PathBuf) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot wait for signals")?;
    let _inside = runtime.enter();
    // By handlers: what is blocked instead would be blocked in all programs that are measured, too.
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
        .map(|kind| signal(kind).context("cannot wait for a signal"))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let ended = move || {
        let any = async {
            let waits = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
            futures_util::future::select_all(waits).await;
        };
        runtime.block_on(any);
        let _never_again = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = end_all(&folder).and_then(|()| Ok(vr_common::archive::remove_tree(&world)?)) {
            eprintln!("{error:#}");
        }
        eprintln!("ended before the end");
        std::process::exit(1);
    };
    std::thread::Builder::new().spawn(ended).context("cannot start a thread")?;
    Ok(())
}

/// All processes that have something of a folder on their command lines, but this one.
fn all_of(folder: &Path) -> Result<Vec<(u32, Vec<String>)>> {
    let folder = folder.display().to_string();
    let entries = fs::read_dir("/proc").context("cannot read /proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let words = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect::<Vec<_>>()
    };
    let all = pids.filter(|pid| *pid != std::process::id()).map(|pid| (pid, words(pid)));
    Ok(all.filter(|(_, words)| words.iter().any(|word| word.contains(&folder))).collect())
}

/// Kills all processes of a folder, and waits for their end.
pub fn end_all(folder: &Path) -> Result<()> {
    super::until("the end of all processes", || {
        let left = all_of(folder)?;
        for (pid, _) in &left {
            // It may have ended by itself.
            let _gone = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        Ok(left.is_empty())
    })
}

/// What waits beside the apps: vruns, and the first processes of their containers.
#[derive(Debug, Default)]
pub struct Beside {
    vruns: Vec<u32>,
    inits: Vec<u32>,
}

/// The memory of what waits beside the apps, all of each kind together.
#[derive(Debug, Default)]
pub struct BesideMemory {
    /// How many vruns there are.
    pub count: usize,
    /// What they need.
    pub vruns: Memory,
    /// What the first processes of their containers need.
    pub inits: Memory,
}

impl Beside {
    /// Finds them.
    pub fn look(world: &World) -> Result<Self> {
        let is_vrun = |words: &[String]| {
            words.first().is_some_and(|program| program.ends_with("vrun"))
                && words.get(1).is_some_and(|word| word == "run")
        };
        let all = all_of(world.path())?.into_iter().filter(|(_, words)| is_vrun(words));
        let all: BTreeSet<u32> = all.map(|(pid, _)| pid).collect();
        // The container's first process is vrun's child, and has its command line.
        let (inits, vruns) =
            all.iter().partition(|pid| parent(**pid).is_some_and(|parent| all.contains(&parent)));
        Ok(Self { vruns, inits })
    }

    /// What they need now.
    pub fn memory(&self) -> Result<BesideMemory> {
        let sum = |pids: &[u32]| {
            pids.iter()
                .try_fold(Memory::default(), |sum, pid| Ok::<_, anyhow::Error>(sum.plus(Memory::of(*pid)?)))
        };
        Ok(BesideMemory { count: self.vruns.len(), vruns: sum(&self.vruns)?, inits: sum(&self.inits)? })
    }
}

/// Processor time that was used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Idle {
    /// By whoever looks after the procs.
    pub supervisor: Duration,
    /// By what waits beside the apps, all together.
    pub beside: Duration,
}

impl Idle {
    /// Until now.
    pub fn look(supervisor: u32, beside: &Beside) -> Result<Self> {
        let all = beside.vruns.iter().chain(&beside.inits);
        let beside = all.map(|pid| used(*pid)).sum::<Result<Duration>>()?;
        Ok(Self { supervisor: used(supervisor)?, beside })
    }

    /// In between.
    pub fn since(self, before: &Self) -> Self {
        let since = |now: Duration, before: Duration| now.saturating_sub(before);
        Self {
            supervisor: since(self.supervisor, before.supervisor),
            beside: since(self.beside, before.beside),
        }
    }
}

/// The fields of `/proc/PID/stat` after the program's name, which can hold anything: the first is the third, the state.
fn stat(pid: u32) -> Result<Vec<String>> {
    let text = super::read(&PathBuf::from(format!("/proc/{pid}/stat")))?;
    let (_, rest) = text.rsplit_once(") ").context("a process without a name")?;
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid).ok()?.get(1)?.parse().ok()
}

/// The processor time of a process so far, of all its threads, also of those that have ended.
pub fn used(pid: u32) -> Result<Duration> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    let stat = stat(pid)?;
    let field = |number: usize| stat.get(number - 3).and_then(|text| text.parse::<u64>().ok());
    let ticks = field(14).zip(field(15)).map(|(user, system)| user + system).context("no processor time")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}
