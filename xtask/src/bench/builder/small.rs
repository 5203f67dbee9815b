//! Builds of small apps by a buildpack that does nothing: all that is left is vbuild's own work.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use vr_common::process::command;

use super::repositories::{Kind, Repo};
use super::vbuild::{App, Builds, Vbuild};
use crate::bench::files::Tree;
use crate::bench::programs::{clocked, is_installed};
use crate::bench::stats::Samples;

const TREE: Tree = Tree { small: 1_000, small_size: 4 << 10, in_a_folder: 12, large: 0, large_size: 0 };
/// Builds on a machine that has built nothing yet.
const FIRST: u32 = 3;
/// Builds before the clock counts.
const WARM_UPS: u32 = 2;
const COMPILE: &str = "#!/bin/sh\nexit 0\n";
/// The same files in a tarball without vbuild: `sh -c … sh REPOSITORY FOLDER`.
const GIT_BY_HAND: &str = "git clone --quiet --depth 1 --branch v1 \"file://$1\" \"$2\" 2>/dev/null \
     && tar -C \"$2\" --exclude=./.git -czf \"$2.tar.gz\" .";
const HG_BY_HAND: &str = "hg -R \"$1\" archive -r v1 \"$2\" && tar -C \"$2\" -czf \"$2.tar.gz\" .";

/// What was measured.
#[derive(Debug)]
pub struct Small {
    /// How many files the app has.
    pub files: usize,
    /// Their size, in bytes.
    pub size: u64,
    /// How often each was built.
    pub rounds: u32,
    /// The app in git, first of all.
    pub apps: Vec<Row>,
    /// The same by hand.
    pub by_hand: Vec<(&'static str, Samples)>,
    /// What is not in the table, and why.
    pub left_out: Vec<&'static str>,
}

/// Builds of one app.
#[derive(Debug)]
pub struct Row {
    /// What kind of app.
    pub name: &'static str,
    /// On a machine that has built nothing yet.
    pub first: Samples,
    /// The others.
    pub builds: Builds,
}

/// Builds all apps in turn.
pub fn measure(vbuild: &Vbuild<'_>, rounds: u32) -> Result<Small> {
    eprintln!("making apps of {} files", TREE.files());
    let folder = vbuild.world.path().join("small");
    let buildpack = Repo::buildpack(&folder.join("buildpack"), COMPILE);
    let (git, hg) = (folder.join("git"), folder.join("hg"));
    let size = TREE.make(&git)?;
    let git = Repo::of_folder(Kind::Git, &git)?;
    let mut apps: Vec<(&'static str, App)> = vec![
        ("git", vbuild.app("git_app", &git, &buildpack, None)?),
        ("git, in an image", vbuild.app("image_app", &git, &buildpack, Some(vbuild.world.image()))?),
    ];
    let mut hands = vec![("`git clone --depth 1`, `tar czf`", GIT_BY_HAND, git)];
    let mut left_out = Vec::new();
    if is_installed("hg") {
        TREE.make(&hg)?;
        let hg = Repo::of_folder(Kind::Hg, &hg)?;
        apps.push(("hg", vbuild.app("hg_app", &hg, &buildpack, None)?));
        hands.push(("`hg archive`, `tar czf`", HG_BY_HAND, hg));
    } else {
        left_out.push("hg (not installed)");
    }

    let mut rows: Vec<Row> = apps
        .iter()
        .map(|(name, _)| Row { name, first: Samples::default(), builds: Builds::default() })
        .collect();
    let mut by_hand: Vec<_> = hands.iter().map(|(name, _, _)| (*name, Samples::default())).collect();
    let failed = |name: &str| format!("{name} failed");
    eprintln!("building each of them for the first time");
    for (index, (row, (name, app))) in (0..).zip(rows.iter_mut().zip(&apps)) {
        for round in 0..FIRST {
            let built = vbuild.build_first(app, index * FIRST + round).with_context(|| failed(name))?;
            row.first.push(built.wall);
        }
        for _ in 0..WARM_UPS {
            vbuild.build(app).with_context(|| failed(name))?;
        }
    }
    eprintln!("building each of them {rounds} times, in turn");
    let results = folder.join("by-hand");
    fs::create_dir(&results)?;
    for round in 0..rounds {
        for (row, (name, app)) in rows.iter_mut().zip(&apps) {
            row.builds.push(&vbuild.build(app).with_context(|| failed(name))?);
        }
        for (index, ((name, script, repo), (_, samples))) in hands.iter().zip(&mut by_hand).enumerate() {
            let result = results.join(format!("{index}-{round}"));
            let (took, _) =
                clocked(&mut shell(script, &[&repo.path, &result])).with_context(|| failed(name))?;
            samples.push(took);
        }
    }
    Ok(Small { files: TREE.files(), size, rounds, apps: rows, by_hand, left_out })
}

/// A shell that runs a script with these arguments.
fn shell(script: &str, arguments: &[&Path]) -> Command {
    let mut shell = command("sh");
    shell.arg("-c").arg(script).arg("sh").args(arguments);
    shell
}
