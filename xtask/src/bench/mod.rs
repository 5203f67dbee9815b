//! `cargo xtask bench runner`: what starting a container, setting a build up and waiting for an app cost, measured
//! against what else a host could use for it. Nothing here passes or fails: it measures, and says which of the
//! marks were reached.

mod builds;
mod memory;
mod peers;
mod private_mounts;
mod report;
mod starts;
mod stats;
mod world;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::steps::{cargo, run as run_program, workspace};
use report::{Machine, Report};
use world::World;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// vrun against crun, runc, lxc-start, bwrap and bare unshare; setup against tar; the memory of a waiting vrun.
    Runner(RunnerOptions),
}

/// How it is measured.
#[derive(Debug, Args)]
pub struct RunnerOptions {
    /// How often each is started; all of them in turn.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// How often the large build is unpacked; it takes some seconds each.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    build_rounds: u32,
    /// Put the table into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// Measure this vrun instead of building the release.
    #[arg(long, value_name = "FILE")]
    vrun: Option<PathBuf>,
}

/// Measures.
pub fn run(what: &Bench) -> Result<()> {
    match what {
        Bench::Runner(options) => runner(options),
    }
}

fn runner(options: &RunnerOptions) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmark makes containers and must be run as root");
    }
    let vrun = match &options.vrun {
        Some(path) => path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?,
        None => build()?,
    };
    private_mounts::enter()?;
    let folder = workspace().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let world = World::make(&folder, vrun)?;
    let mut machine = Machine::look(&world)?;

    let starts = starts::measure(&world, options.rounds)?;
    let memory = memory::measure(&world)?;
    let builds = builds::measure(&world, options.build_rounds)?;
    machine.look_again()?;

    let report = Report { machine, starts, builds, memory }.markdown();
    println!("\n{report}");
    if options.write {
        report::write(&workspace().join("docs/benchmarks.md"), &report)?;
    }
    Ok(())
}

/// The release that users get.
fn build() -> Result<PathBuf> {
    run_program(cargo().args(["build", "--release", "--package", "vr-runner"]))?;
    // This program is in `debug` of the same folder.
    let own = std::env::current_exe().context("cannot find this program")?;
    let target = own.ancestors().nth(2).unwrap_or(&own);
    Ok(target.join("release/vrun"))
}
