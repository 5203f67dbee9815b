//! A large app packed: vbuild's own step against `tar` with `gzip` and with `pigz`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vr_common::process::command;

use super::repositories::{Kind, Repo};
use super::unpacking::Large;
use super::vbuild::{App, Vbuild};
use crate::bench::programs::{clocked, is_installed};
use crate::bench::stats::Samples;

/// Nothing of what was checked out is left to be written when vbuild packs, as for the others.
const COMPILE: &str = "#!/bin/sh\nexec sync\n";
/// vbuild's name for packing.
const STEP: &str = "pack";
/// Who else packs, and how.
const PEERS: [(&str, &str); 2] = [("gzip", "gzip -n"), ("pigz", "pigz -n")];

/// What was measured.
#[derive(Debug)]
pub struct Packing {
    /// How many files.
    pub files: usize,
    /// Their size, in bytes.
    pub size: u64,
    /// How often.
    pub rounds: u32,
    /// vbuild's step.
    pub vbuild: Row,
    /// The others.
    pub peers: Vec<(&'static str, Row)>,
    /// What is not in the table, and why.
    pub left_out: Vec<String>,
}

/// One way of packing.
#[derive(Debug, Default)]
pub struct Row {
    /// How long it took.
    pub samples: Samples,
    /// The same until the tarball is on the disk.
    pub on_disk: Samples,
    /// Size of the tarball, in bytes.
    pub bytes: u64,
}

impl Packing {
    /// A peer's row.
    pub fn peer(&self, name: &str) -> Option<&Row> {
        self.peers.iter().find(|(known, _)| *known == name).map(|(_, row)| row)
    }
}

/// Packs in turn.
pub fn measure(vbuild: &Vbuild<'_>, large: &Large, rounds: u32) -> Result<Packing> {
    eprintln!("making an app of {} files", large.files);
    let folder = vbuild.world.path().join("packing");
    let buildpack = Repo::buildpack(&folder.join("buildpack"), COMPILE);
    let repo = Repo::of_folder(Kind::Git, &large.folder)?;
    let app = vbuild.app("large_app", &repo, &buildpack, None)?;
    let tarballs = folder.join("tarballs");
    fs::create_dir(&tarballs)?;

    let (there, missing): (Vec<_>, Vec<_>) = PEERS.iter().partition(|(name, _)| is_installed(name));
    let mut packing = Packing {
        files: large.files,
        size: large.size,
        rounds,
        vbuild: Row::default(),
        peers: there.iter().map(|(name, _)| (*name, Row::default())).collect(),
        left_out: missing.iter().map(|(name, _)| format!("{name} (not installed)")).collect(),
    };
    // The first build fetches all of it.
    vbuild.build(&app)?;
    for round in 0..rounds {
        eprintln!("packing, round {} of {rounds}", round + 1);
        // Each comes after the others as often as before them.
        if round % 2 == 0 {
            packing.vbuild.build(vbuild, &app)?;
        }
        for ((name, compress), (_, row)) in there.iter().zip(&mut packing.peers) {
            let tarball = tarballs.join(format!("{name}-{round}.tar.gz"));
            row.pack(compress, &large.folder, tarball).with_context(|| format!("{name} failed"))?;
        }
        if round % 2 == 1 {
            packing.vbuild.build(vbuild, &app)?;
        }
    }
    Ok(packing)
}

impl Row {
    fn build(&mut self, vbuild: &Vbuild<'_>, app: &App) -> Result<()> {
        let built = vbuild.build(app)?;
        let Some((_, took)) = built.steps.iter().find(|(name, _)| name == STEP) else {
            bail!("vbuild did not say how long its step {STEP} took");
        };
        self.push(*took, &built.tarball)
    }

    fn pack(&mut self, compress: &str, folder: &Path, tarball: PathBuf) -> Result<()> {
        let script = format!("tar -C \"$1\" --exclude=./.git -cf - . | {compress} >\"$2\"");
        let mut shell = command("bash");
        shell.args(["-o", "pipefail", "-c"]).arg(script).arg("bash").arg(folder).arg(&tarball);
        let (took, _) = clocked(&mut shell)?;
        self.push(took, &tarball)
    }

    fn push(&mut self, took: Duration, tarball: &Path) -> Result<()> {
        let begin = Instant::now();
        let file = File::open(tarball).with_context(|| format!("cannot open {}", tarball.display()))?;
        file.sync_all()?;
        self.samples.push(took);
        self.on_disk.push(took + begin.elapsed());
        self.bytes = file.metadata()?.len();
        Ok(())
    }
}
