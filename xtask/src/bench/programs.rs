//! Running the programs that are measured, and those that the benchmark itself needs.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vr_common::process::command;

/// Whether a program is installed.
pub fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// What a program says of its version.
pub fn version(program: &Path) -> String {
    let ask = |option: &str| {
        let output = command(program).arg(option).output().ok()?;
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    };
    let answer = ask("--version").filter(|(knows, _)| *knows).or_else(|| ask("-v"));
    let text = answer.map(|(_, text)| text).unwrap_or_default();
    let line = text.lines().next().unwrap_or("unknown").trim();
    match program.file_name() {
        Some(name) if line.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("{} {line}", name.to_string_lossy())
        }
        _ => line.to_owned(),
    }
}

/// Runs a program to its end and gives its output; what it says is in the error when it fails.
pub fn checked(program: &mut Command) -> Result<String> {
    let name = program.get_program().to_string_lossy().into_owned();
    let output = program.output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} ended with {}: {}", output.status, said.trim().lines().last().unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The same; gives also how long it took. Before, everything is written to the disk: none must pay for what this machine has
/// still to write of another.
pub fn clocked(program: &mut Command) -> Result<(Duration, String)> {
    nix::unistd::sync();
    let begin = Instant::now();
    let output = checked(program)?;
    Ok((begin.elapsed(), output))
}
