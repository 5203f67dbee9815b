//! `cargo xtask bench agent`: what looking after five hundred procs costs, by vr-agent and by Debian's supervisord.

mod news;
mod ours;
pub mod processes;
mod report;
mod supervisord;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::machine::Machine;
use super::stats::Samples;
use super::world::World;
use ours::Agent;
use processes::{Beside, Idle, Memory, end_all};
use report::{Report, Row};
use supervisord::Supervisord;

/// What the image can run.
const IMAGE: [&str; 4] = ["bash", "sh", "sleep", "true"];
/// What the numbers depend on besides our own programs.
const PROGRAMS: [&str; 1] = ["supervisord"];
/// What every proc does.
const COMMAND: &str = "/bin/sleep 98765";
/// The port of the first proc.
const FIRST_PORT: u16 = 5001;
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(300);
/// After the last start, until memory is looked at: a waiting vrun gives back what it does not need after a second.
const SETTLE: Duration = Duration::from_secs(5);

/// How it is measured.
#[derive(Debug, Args)]
pub struct Options {
    /// How many procs.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=2000))]
    procs: u16,
    /// How often all of them are started.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// For how long processor time is counted while nothing happens, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    idle: u64,
    /// How many apps are killed to see how soon the news of it is there.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// Put the tables into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// Measure this vr-agent instead of building the release.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// The same for vrun.
    #[arg(long, value_name = "FILE")]
    vrun: Option<PathBuf>,
    /// The same for vr-server, which passes the news on.
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
}

/// Measures.
pub fn run(options: &Options) -> Result<()> {
    let agent = super::program(options.agent.as_deref(), "vr-agent", "vr-agent")?;
    let vrun = super::program(options.vrun.as_deref(), "vr-runner", "vrun")?;
    let server = super::program(options.server.as_deref(), "vr-server", "vr-server")?;
    if options.server.is_none() {
        // The server starts it.
        super::program(None, "vr-balancer", "vr-balancer")?;
    }
    super::enter_private_mounts()?;
    let folder = super::folder()?;
    let world = World::make(&folder, &IMAGE, vrun.clone())?;
    // Nobody else measures now, as the world says: what runs in any world was left by somebody who was killed.
    end_all(&folder)?;
    let everything = Everything(folder.clone());
    processes::end_on_signal(folder, world.path().to_owned())?;
    let mut machine = Machine::look(world.path(), &[&agent, &vrun, &server], &PROGRAMS)?;

    let ports: Vec<u16> = (0..options.procs).map(|number| FIRST_PORT + number).collect();
    let mut rows = Vec::new();
    let mut ours = Agent::start(&world, &agent, &vrun)?;
    let deployed = ours.deploy_all(&world, &ports)?;
    let mut starts = Samples::default();
    for _ in 0..options.rounds {
        drop(ours);
        end_all(world.path())?;
        let begin = Instant::now();
        ours = Agent::start(&world, &agent, &vrun)?;
        ours.until_running(ports.len())?;
        starts.push(begin.elapsed());
        eprintln!("started {} procs in {:?}", ports.len(), begin.elapsed());
    }
    rows.push(rest(&world, "**vr-agent**", starts, ours.pid(), options)?);
    let news = news::measure(&world, &ours, &server, &ports, options.kills)?;
    drop(ours);
    end_all(world.path())?;

    let mut left_out = Vec::new();
    if super::programs::is_installed("supervisord") {
        for (name, with_vrun) in [("supervisord", false), ("supervisord with `vrun run`", true)] {
            let mut starts = Samples::default();
            let mut running = None;
            for _ in 0..options.rounds {
                drop(running.take());
                end_all(world.path())?;
                let begin = Instant::now();
                let supervisord = Supervisord::start(&world, &ports, with_vrun.then_some(vrun.as_path()))?;
                supervisord.until_running(ports.len())?;
                starts.push(begin.elapsed());
                running = Some(supervisord);
            }
            let pid = running.as_ref().context("no round")?.pid();
            rows.push(rest(&world, name, starts, pid, options)?);
            drop(running);
            end_all(world.path())?;
        }
    } else {
        left_out.push("supervisord (Debian's package supervisor)");
    }
    machine.look_again()?;
    drop(everything);

    let procs = ports.len();
    let report = Report { machine, procs, deployed, rows, news, left_out, idle: options.idle }.markdown();
    super::publish("agent", &report, options.write)
}

/// What somebody costs who has nothing to do but to wait for the procs that it started.
fn rest(world: &World, name: &'static str, starts: Samples, pid: u32, options: &Options) -> Result<Row> {
    eprintln!("looking at {name} for {} s", options.idle);
    std::thread::sleep(SETTLE);
    let beside = Beside::look(world)?;
    let before = Idle::look(pid, &beside)?;
    std::thread::sleep(Duration::from_secs(options.idle));
    let idle = Idle::look(pid, &beside)?.since(&before);
    // After the wait: whoever looks at it now and then would be seen.
    let memory = Memory::of(pid)?;
    let beside = beside.memory()?;
    Ok(Row { name, starts, memory, idle, beside })
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > deadline {
            bail!("{what} was not to be seen within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The name of a proc of the world.
fn name(port: u16) -> String {
    format!("bench-v1-prod-abcd1234-web-{port}")
}

/// All processes of all worlds, which end with it.
struct Everything(PathBuf);

impl Drop for Everything {
    fn drop(&mut self) {
        if let Err(error) = end_all(&self.0) {
            eprintln!("{error:#}");
        }
    }
}

/// Reads a file that must be there.
fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
