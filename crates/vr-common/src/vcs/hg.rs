//! Mercurial checkouts.
//!
//! Revisions are looked up in the repository itself, so that its branches, tags and bookmarks of the moment count;
//! the checkout then only needs the changeset. The URL is never written into the checkout.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::run::Runner;
use super::{RepoUrl, VcsError, place_new};
use crate::process::command;

pub(super) fn update(
    url: &RepoUrl,
    revision: Option<&str>,
    dir: &Path,
    deadline: Instant,
) -> Result<String, VcsError> {
    let hg = Hg { runner: Runner { url, address: url.address(), program: "hg", deadline } };
    let hash = hg.look_up(revision)?;
    if fs::symlink_metadata(dir).is_ok() {
        match hg.update_in(dir, &hash) {
            Ok(()) => return Ok(hash),
            Err(error @ (VcsError::TimedOut { .. } | VcsError::Start { .. })) => return Err(error),
            // The repository has just answered, so what does not work is the checkout.
            Err(error) => {
                tracing::warn!(checkout = %dir.display(), %error, "the checkout is broken, making it anew");
            }
        }
    }
    place_new(dir, |aside| {
        let mut init = hg.command(None);
        init.args(["init", "--"]).arg(aside);
        hg.runner.must("init", init)?;
        hg.update_in(aside, &hash)
    })?;
    Ok(hash)
}

struct Hg<'a> {
    runner: Runner<'a>,
}

impl Hg<'_> {
    /// hg with everything set that no command may go without.
    fn command(&self, dir: Option<&Path>) -> Command {
        let mut hg = command("hg");
        // A broken checkout must not make hg use a repository in a folder above, hence `--repository`;
        // the settings inside the checkout, where hooks could be, are not read.
        hg.env("HGPLAIN", "1").env("LC_ALL", "C.UTF-8").env("HGRCSKIPREPO", "1").env_remove("HG_PENDING");
        hg.args(["--noninteractive", "--config", "extensions.purge=", "--config", "ui.timeout=30"]);
        if self.runner.address.starts_with("ssh://") && std::env::var_os("HGRCPATH").is_none() {
            hg.args(["--config", "ui.ssh=ssh -oBatchMode=yes"]);
        }
        if let Some(dir) = dir {
            hg.current_dir(dir).args(["--repository", "."]);
        } else {
            hg.current_dir("/");
        }
        hg
    }

    /// The full hash of a revision, asked of the repository; without one that of what a clone would show.
    fn look_up(&self, revision: Option<&str>) -> Result<String, VcsError> {
        let candidates = match revision {
            Some(revision) => vec![revision],
            None => vec!["@", "default", "tip"],
        };
        for candidate in &candidates {
            let mut hg = self.command(None);
            hg.args(["identify", "--debug", "--id", "--rev", candidate, "--"]).arg(&self.runner.address);
            let ended = self.runner.run("identify", hg)?;
            let hash = ended.stdout.trim();
            if ended.success && hash.len() == 40 && hash.bytes().all(|b| b.is_ascii_hexdigit()) {
                // All zeros is the parent of the first commit: the repository is empty.
                if hash.bytes().all(|b| b == b'0') {
                    return Err(self.runner.unknown_revision(candidate));
                }
                return Ok(hash.to_owned());
            }
            if !ended.said.contains("unknown revision") && !ended.said.contains("unknown branch") {
                return Err(self.runner.unreachable(ended.said));
            }
        }
        Err(self.runner.unknown_revision(revision.unwrap_or("default")))
    }

    fn update_in(&self, dir: &Path, hash: &str) -> Result<(), VcsError> {
        if !dir.join(".hg").is_dir() {
            return Err(self.runner.failed("status", "the folder is not an hg checkout".to_owned()));
        }
        let step = |step: &str, args: &[&str]| {
            let mut hg = self.command(Some(dir));
            // What relative names of subrepositories start from.
            hg.arg("--config").arg(format!("paths.default={}", &self.runner.address));
            hg.arg(step).args(args);
            self.runner.run(step, hg)
        };
        let must = |name: &str, args: &[&str]| {
            let ended = step(name, args)?;
            if ended.success { Ok(()) } else { Err(self.runner.failed(name, ended.said)) }
        };
        // Each start of hg takes a good part of a second, so the usual case, a changeset that is already here,
        // is simply tried.
        let to_hash = ["--quiet", "--clean", "--rev", hash];
        if !step("update", &to_hash)?.success {
            must("pull", &["--quiet", "--rev", hash, "--", &self.runner.address])?;
            must("update", &to_hash)?;
        }
        must("purge", &["--all"])
    }
}
