//! `cargo xtask bench …`: what the tools cost, measured against what else a host could use for the same. Nothing here
//! passes or fails: it measures, and says which of the marks were reached.

mod agent;
mod balancer;
mod builder;
mod disk;
mod files;
mod machine;
mod markdown;
mod programs;
mod runner;
mod stats;
mod tar;
mod world;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::steps::{cargo, run as run_program, workspace};

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// vrun against crun, runc, lxc-start, bwrap and bare unshare; setup against tar; the memory of a waiting vrun.
    Runner(runner::Options),
    /// vbuild of small apps, of large ones against tar with gzip and pigz, with a large cache; an image against tar.
    Builder(builder::Options),
    /// vr-agent with 500 procs against Debian's supervisord: starts, memory, idle CPU, and how soon changes are known.
    Agent(agent::Options),
    /// The built-in proxy against nginx and haproxy, and how soon changes of pools are in effect: here, and over SSH.
    Balancer(balancer::Options),
}

/// Measures.
pub fn run(what: &Bench) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmark makes containers and must be run as root");
    }
    match what {
        Bench::Runner(options) => runner::run(options),
        Bench::Builder(options) => builder::run(options),
        Bench::Agent(options) => agent::run(options),
        Bench::Balancer(options) => balancer::run(options),
    }
}

/// The program to measure: the one that was given, or else the release that users get, built first.
fn program(given: Option<&Path>, package: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = given {
        return path.canonicalize().with_context(|| format!("cannot find {}", path.display()));
    }
    run_program(cargo().args(["build", "--release", "--package", package]))?;
    // This program is in `debug` of the same folder.
    let own = std::env::current_exe().context("cannot find this program")?;
    let target = own.ancestors().nth(2).unwrap_or(&own);
    Ok(target.join("release").join(name))
}

/// The folder that all worlds are made in.
fn folder() -> Result<PathBuf> {
    let folder = workspace().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// From here on, nobody but the benchmark and its children sees what they mount, and it is gone with them.
fn enter_private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot get a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)
        .context("cannot make the mounts private")
}

/// Prints a report and, if wanted, puts it into the docs.
fn publish(bench: &str, report: &str, write: bool) -> Result<()> {
    println!("\n{report}");
    if write {
        markdown::write(&workspace().join("docs/benchmarks.md"), bench, report)?;
    }
    Ok(())
}
