//! `cargo xtask dist`: everything that is installed on a machine, in one folder that is laid out like `/usr/local`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;
use comfy_table::Table;
use serde_json::Value;
use sha2::{Digest, Sha256};
use vr_common::process::command;

use crate::steps::{self, cargo, workspace};

/// Packages whose programs nobody installs.
const OWN: [&str; 2] = ["xtask", "vr-dist"];
const SUMS: &str = "SHA256SUMS";

/// What to make, and where.
#[derive(Debug, Args)]
pub struct Dist {
    /// The folder to write to; it is made, and other files in it stay [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write only the manual pages and the completions
    #[arg(long)]
    skip_build: bool,
}

/// Builds the programs and writes their pages.
pub fn run(what: &Dist) -> Result<()> {
    let out = match &what.out {
        Some(out) => std::path::absolute(out).with_context(|| format!("cannot use {}", out.display()))?,
        None => workspace().join("target/dist"),
    };
    let mut files = Vec::new();
    if !what.skip_build {
        for program in build()? {
            files.push(install(&program, &out)?);
        }
    }
    files.extend(write_pages(&out)?);
    files.sort();
    write_sums(&out, &files)?;
    show(&out, &files)
}

/// Builds all programs as users get them, and gives their paths.
fn build() -> Result<Vec<PathBuf>> {
    let mut cargo = cargo();
    cargo.args(["build", "--release", "--workspace", "--bins", "--message-format=json-render-diagnostics"]);
    for package in OWN {
        cargo.args(["--exclude", package]);
    }
    eprintln!("$ cargo build --release --workspace --bins");
    let mut building = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut programs = Vec::new();
    if let Some(messages) = building.stdout.take() {
        for message in BufReader::new(messages).lines() {
            let message = message.context("cannot read what cargo says")?;
            let message: Value = serde_json::from_str(&message).context("cargo did not speak JSON")?;
            if message["reason"] == "compiler-artifact"
                && let Some(program) = message["executable"].as_str()
            {
                programs.push(PathBuf::from(program));
            }
        }
    }
    let ended = building.wait().context("cannot wait for cargo")?;
    if !ended.success() {
        bail!("cargo build failed with {ended}");
    }
    if programs.is_empty() {
        bail!("cargo built no program");
    }
    Ok(programs)
}

/// Puts a program without its symbols into `bin`, over an older one that may be running. Gives its path below `out`.
fn install(program: &Path, out: &Path) -> Result<PathBuf> {
    let name = program.file_name().with_context(|| format!("{} has no name", program.display()))?;
    let folder = out.join("bin");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let aside = folder.join(format!(".{}.new", name.display()));
    fs::copy(program, &aside).with_context(|| format!("cannot write {}", aside.display()))?;
    steps::run(command("strip").arg(&aside)).context("strip is part of the package binutils")?;
    let place = folder.join(name);
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o755))
        .and_then(|()| fs::rename(&aside, &place))
        .with_context(|| format!("cannot write {}", place.display()))?;
    Ok(Path::new("bin").join(name))
}

/// Manual pages and completions. They are made by a program of their own, so that this one does not depend on all
/// others.
fn write_pages(out: &Path) -> Result<Vec<PathBuf>> {
    let done = cargo()
        .args(["run", "--quiet", "--package", "vr-dist", "--"])
        .arg(out)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !done.status.success() {
        bail!("vr-dist failed with {}", done.status);
    }
    Ok(String::from_utf8(done.stdout).context("vr-dist wrote no text")?.lines().map(PathBuf::from).collect())
}

/// Writes what `sha256sum --check` reads.
fn write_sums(out: &Path, files: &[PathBuf]) -> Result<()> {
    let mut text = String::new();
    for file in files {
        let path = out.join(file);
        let mut sum = Sha256::new();
        File::open(&path)
            .and_then(|mut opened| io::copy(&mut opened, &mut sum))
            .with_context(|| format!("cannot read {}", path.display()))?;
        text.push_str(&format!("{}  {}\n", hex::encode(sum.finalize()), file.display()));
    }
    let path = out.join(SUMS);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn show(out: &Path, files: &[PathBuf]) -> Result<()> {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    let mut others = 0;
    for file in files {
        if file.starts_with("bin") {
            let path = out.join(file);
            let bytes = path.metadata().with_context(|| format!("cannot look at {}", path.display()))?.len();
            table.add_row([file.display().to_string(), format!("{:.1} MB", bytes as f64 / 1e6)]);
        } else {
            others += 1;
        }
    }
    if others < files.len() {
        println!("{table}");
    }
    println!("{others} manual pages and completions, and {SUMS}, are in {}", out.display());
    Ok(())
}
