//! `cargo xtask bench builder`: what builds cost around the buildpack's own work, and images, against git, tar, gzip
//! and pigz doing the same by hand.

mod cached;
mod packing;
mod report;
mod repositories;
mod small;
mod unpacking;
mod vbuild;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::disk::Disk;
use super::machine::Machine;
use super::world::World;
use report::Report;
use vbuild::Vbuild;

/// What the image can run: what a build's own script and a plain buildpack may call.
const IMAGE: [&str; 26] = [
    "bash", "cat", "chmod", "cp", "cut", "dirname", "env", "find", "grep", "head", "id", "ln", "ls", "mkdir",
    "mv", "readlink", "rm", "rmdir", "sed", "sh", "sleep", "sort", "tail", "tee", "touch", "true",
];
/// What the numbers depend on besides vbuild and vrun.
const PROGRAMS: [&str; 5] = ["git", "hg", "tar", "gzip", "pigz"];

/// How it is measured.
#[derive(Debug, Args)]
pub struct Options {
    /// How often each small app is built.
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// How often 200 MB are packed and unpacked, and an app with a large cache is built; it takes some seconds each.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    large_rounds: u32,
    /// Put the tables into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// Measure this vbuild instead of building the release.
    #[arg(long, value_name = "FILE")]
    vbuild: Option<PathBuf>,
    /// The same for the vrun that unpacks the image.
    #[arg(long, value_name = "FILE")]
    vrun: Option<PathBuf>,
}

/// Measures.
pub fn run(options: &Options) -> Result<()> {
    let vbuild = super::program(options.vbuild.as_deref(), "vr-builder", "vbuild")?;
    let vrun = super::program(options.vrun.as_deref(), "vr-runner", "vrun")?;
    super::enter_private_mounts()?;
    let world = World::make(&super::folder()?, &IMAGE, vrun.clone())?;
    let mut machine = Machine::look(world.path(), &[&vbuild, &vrun], &PROGRAMS)?;
    let disk = Disk::make(world.path())?;
    let with_journal = World::make(disk.path(), &IMAGE, vrun)?;
    let small_vbuild = Vbuild::new(&with_journal, vbuild.clone());
    let vbuild = Vbuild::new(&world, vbuild);
    // The first one removes nothing, so that no file is made slowly because of it: see `World::set_aside`.
    let (large, unpacking) = unpacking::measure(&world, options.large_rounds)?;
    let small = small::measure(&small_vbuild, options.rounds)?;
    let packing = packing::measure(&vbuild, &large, options.large_rounds)?;
    let cached = cached::measure(&vbuild, options.large_rounds)?;
    machine.look_again()?;

    let report = Report { machine, small, packing, unpacking, cached }.markdown();
    super::publish("builder", &report, options.write)
}
