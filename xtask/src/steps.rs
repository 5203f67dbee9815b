//! Running programs, and saying how long each step took.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vr_common::process::command;

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// Runs a program to its end with our own output; an exit code other than 0 is an error.
pub fn run(program: &mut Command) -> Result<()> {
    let name = format!("{program:?}").replace('"', "");
    eprintln!("$ {name}");
    let status = program.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed with {status}");
    }
    Ok(())
}

/// Does a step and tells how long it took.
pub fn timed<T>(doing: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let start = Instant::now();
    let done = doing()?;
    Ok((done, start.elapsed()))
}
