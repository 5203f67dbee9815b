//! Repositories of apps and buildpacks, on this machine's disk.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use vr_common::process::command;
use vr_tests::Repository;

use crate::bench::programs::checked;

/// What a repository is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Git.
    Git,
    /// Mercurial.
    Hg,
}

impl fmt::Display for Kind {
    /// As in `build.yaml`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Git => "git",
            Self::Hg => "hg",
        })
    }
}

/// A repository with one commit that has the tag `v1`.
#[derive(Debug, Clone)]
pub struct Repo {
    /// What it is of.
    pub kind: Kind,
    /// Its folder, which is also its URL.
    pub path: PathBuf,
}

impl Repo {
    /// All files of a folder, in a repository in the same folder.
    pub fn of_folder(kind: Kind, folder: &Path) -> Result<Self> {
        match kind {
            Kind::Git => Repository::new(folder).tag("v1"),
            Kind::Hg => {
                let hg = |arguments: &[&str]| {
                    let mut hg = command("hg");
                    // Nothing of the user's settings.
                    hg.env("HGRCPATH", "").env("HGPLAIN", "1").current_dir(folder).args(arguments);
                    checked(&mut hg).map(drop)
                };
                hg(&["init"])?;
                hg(&["commit", "--quiet", "--addremove", "--user", "bench", "--message", "first"])?;
                hg(&["tag", "--user", "bench", "v1"])?;
            }
        }
        Ok(Self { kind, path: folder.to_owned() })
    }

    /// A buildpack that says yes to every app, in a new folder.
    pub fn buildpack(folder: &Path, compile: &str) -> Self {
        let repository = Repository::new(folder);
        repository.write("bin/detect", "#!/bin/sh\necho Benchmark\n");
        repository.write("bin/compile", compile);
        repository.tag("v1");
        Self { kind: Kind::Git, path: folder.to_owned() }
    }
}
