//! `cargo xtask bench runner`: what starting a container, setting a build up and waiting for an app cost.

mod builds;
pub mod memory;
mod overlay;
mod peers;
mod report;
mod starts;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::machine::Machine;
use super::world::World;
use report::Report;

/// What the image can run. With bash, as nearly every image has one.
const IMAGE: [&str; 4] = ["bash", "sh", "sleep", "true"];
/// What the numbers depend on besides vrun.
const PROGRAMS: [&str; 6] = ["crun", "runc", "lxc-start", "bwrap", "unshare", "tar"];

/// How it is measured.
#[derive(Debug, Args)]
pub struct Options {
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
pub fn run(options: &Options) -> Result<()> {
    let vrun = super::program(options.vrun.as_deref(), "vr-runner", "vrun")?;
    super::enter_private_mounts()?;
    let folder = super::folder()?;
    overlay::check_path(&folder)?;
    let world = World::make(&folder, &IMAGE, vrun.clone())?;
    let mut machine = Machine::look(world.path(), &[&vrun], &PROGRAMS)?;

    let starts = starts::measure(&world, options.rounds)?;
    let memory = memory::measure(&world)?;
    let builds = builds::measure(&world, options.build_rounds)?;
    machine.look_again()?;

    let report = Report { machine, starts, builds, memory }.markdown();
    super::publish("runner", &report, options.write)
}
