//! Git checkouts.
//!
//! The repository's URL is passed with each command and never written into the checkout: checkouts are shown to
//! build scripts, and a URL may hold a password.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::run::Runner;
use super::{RepoUrl, VcsError, place_new};
use crate::process::command;

/// Variables that would point git at another repository than the one it is started in.
const MISLEADING_VARIABLES: [&str; 15] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_PARAMETERS",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];

/// Where the commit of the remote's HEAD is kept.
const DEFAULT_BRANCH: &str = "refs/velociraptor/default";

pub(super) fn update(
    url: &RepoUrl,
    revision: Option<&str>,
    dir: &Path,
    deadline: Instant,
) -> Result<String, VcsError> {
    let git = Git { runner: Runner { url, address: url.address(), program: "git", deadline }, revision };
    if fs::symlink_metadata(dir).is_ok() {
        match git.update_in(dir) {
            Ok(hash) => return Ok(hash),
            // A checkout that works can fail for these reasons only; all others mean that it is broken.
            Err(
                error @ (VcsError::UnknownRevision { .. }
                | VcsError::Unreachable { .. }
                | VcsError::TimedOut { .. }
                | VcsError::Start { .. }),
            ) => return Err(error),
            Err(error) => {
                tracing::warn!(checkout = %dir.display(), %error, "the checkout is broken, making it anew");
            }
        }
    }
    place_new(dir, |aside| {
        git.runner.must("init", {
            let mut init = git.command(None);
            init.args(["init", "--quiet", "--template=", "--"]).arg(aside);
            init
        })?;
        git.update_in(aside)
    })
}

struct Git<'a> {
    runner: Runner<'a>,
    revision: Option<&'a str>,
}

impl Git<'_> {
    /// git with everything set that no command may go without.
    fn command(&self, dir: Option<&Path>) -> Command {
        let mut git = command("git");
        for name in MISLEADING_VARIABLES {
            git.env_remove(name);
        }
        git.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
        if std::env::var_os("GIT_SSH_COMMAND").is_none() && std::env::var_os("GIT_SSH").is_none() {
            git.env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes");
        }
        if let Some(dir) = dir {
            // Named outright: a broken checkout must not make git use a repository in a folder above.
            git.current_dir(dir).env("GIT_DIR", ".git").env("GIT_WORK_TREE", ".");
        } else {
            git.current_dir("/");
        }
        let settings = [
            "safe.directory=*",
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "protocol.ext.allow=never",
            // Ended when git has ended; otherwise something would still write to the checkout.
            "gc.autoDetach=false",
            "maintenance.autoDetach=false",
            "advice.detachedHead=false",
        ];
        for setting in settings {
            git.args(["-c", setting]);
        }
        git
    }

    /// `git <step> <args>` in the checkout.
    fn step(&self, dir: &Path, step: &str, args: &[&str]) -> Result<String, VcsError> {
        let mut git = self.command(Some(dir));
        git.arg(step).args(args);
        self.runner.must(step, git)
    }

    fn update_in(&self, dir: &Path) -> Result<String, VcsError> {
        if !dir.join(".git").is_dir() {
            return Err(self.runner.failed("status", "the folder is not a git checkout".to_owned()));
        }
        remove_stale_locks(&dir.join(".git"));
        self.fetch(dir)?;
        let hash = self.resolve(dir)?;
        self.step(dir, "checkout", &["--quiet", "--detach", "--force", &hash])?;
        self.step(dir, "reset", &["--quiet", "--hard", &hash])?;
        // Twice forced: untracked folders that are repositories themselves go too.
        self.step(dir, "clean", &["-ffdx", "--quiet"])?;
        self.submodules(dir)?;
        self.step(dir, "rev-parse", &["--verify", "HEAD^{commit}"])
    }

    fn fetch(&self, dir: &Path) -> Result<(), VcsError> {
        let mut refspecs = vec!["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
        let default_branch = format!("+HEAD:{DEFAULT_BRANCH}");
        // Only on demand: a repository without a valid HEAD can still have the branch that is wanted.
        if self.wants_default() {
            refspecs.push(&default_branch);
        }
        if self.fetch_refspecs(dir, &refspecs)? {
            return Ok(());
        }
        // Is it the other side, or this checkout?
        let mut ls_remote = self.command(None);
        ls_remote.arg("ls-remote").arg("--quiet");
        self.upload_pack(&mut ls_remote);
        ls_remote.arg("--").arg(&self.runner.address).arg("HEAD");
        let answer = self.runner.run("ls-remote", ls_remote)?;
        if !answer.success {
            return Err(self.runner.unreachable(answer.said));
        }
        if self.wants_default() && answer.stdout.trim().is_empty() {
            return Err(self.runner.unknown_revision("HEAD"));
        }
        Err(self.runner.failed("fetch", "the repository answers but cannot be fetched".to_owned()))
    }

    fn fetch_refspecs(&self, dir: &Path, refspecs: &[&str]) -> Result<bool, VcsError> {
        let mut git = self.command(Some(dir));
        git.args(["fetch", "--quiet", "--force", "--prune", "--no-tags", "--no-recurse-submodules"]);
        self.upload_pack(&mut git);
        git.arg("--").arg(&self.runner.address).args(refspecs);
        let ended = self.runner.run("fetch", git)?;
        if !ended.success {
            tracing::debug!(url = %self.runner.url, said = %ended.said, "git fetch failed");
        }
        Ok(ended.success)
    }

    /// A repository on this machine may belong to somebody else. git hands `-c safe.directory` on to everything
    /// but the program that reads such a repository.
    fn upload_pack(&self, git: &mut Command) {
        if self.runner.url.is_local() {
            git.arg("--upload-pack=git -c safe.directory='*' upload-pack");
        }
    }

    fn wants_default(&self) -> bool {
        self.revision.is_none_or(|revision| revision == "HEAD")
    }

    /// The commit that the wanted revision is now: a branch, a tag, a hash, or anything else git understands.
    fn resolve(&self, dir: &Path) -> Result<String, VcsError> {
        let revision = match self.revision {
            Some(revision) if !self.wants_default() => revision,
            _ => return self.step(dir, "rev-parse", &["--verify", &format!("{DEFAULT_BRANCH}^{{commit}}")]),
        };
        if is_full_hash(revision) {
            if let Some(hash) = self.commit(dir, revision)? {
                return Ok(hash);
            }
            // Perhaps a commit that no branch or tag leads to; many servers give it out by its hash.
            let refspec = format!("+{revision}:refs/velociraptor/wanted");
            self.fetch_refspecs(dir, &[&refspec])?;
            return self.commit(dir, revision)?.ok_or_else(|| self.runner.unknown_revision(revision));
        }
        for prefix in ["refs/remotes/origin/", "refs/tags/", ""] {
            if let Some(hash) = self.commit(dir, &format!("{prefix}{revision}"))? {
                return Ok(hash);
            }
        }
        Err(self.runner.unknown_revision(revision))
    }

    fn commit(&self, dir: &Path, name: &str) -> Result<Option<String>, VcsError> {
        let mut git = self.command(Some(dir));
        git.args(["rev-parse", "--verify", "--quiet", "--end-of-options"]).arg(format!("{name}^{{commit}}"));
        let ended = self.runner.run("rev-parse", git)?;
        let hash = ended.stdout.trim();
        Ok((ended.success && is_full_hash(hash)).then(|| hash.to_owned()))
    }

    fn submodules(&self, dir: &Path) -> Result<(), VcsError> {
        if !dir.join(".gitmodules").is_file() {
            return Ok(());
        }
        let submodule = || {
            let mut git = self.command(Some(dir));
            // Repositories on this machine may be named by others on this machine only.
            let local = if self.runner.url.is_local() { "always" } else { "never" };
            git.arg("-c").arg(format!("protocol.file.allow={local}"));
            git
        };
        // What `../lib.git` in .gitmodules is relative to. Not for `update`, which would hand it on to the submodules.
        let origin = format!("remote.origin.url={}", self.runner.address);
        for step in ["init", "sync"] {
            let mut git = submodule();
            git.args(["-c", &origin, "submodule", "--quiet", step]);
            self.runner.must(&format!("submodule {step}"), git)?;
        }
        let mut update = submodule();
        update.args(["submodule", "--quiet", "update", "--init", "--recursive", "--force"]);
        self.runner.must("submodule update", update)?;
        let mut clean = submodule();
        clean.args(["submodule", "--quiet", "foreach", "--recursive", "git clean -ffdx --quiet"]);
        self.runner.must("submodule foreach", clean)?;
        Ok(())
    }
}

/// Whether a text is a whole SHA-1 or SHA-256 name.
fn is_full_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A git that was killed leaves lock files, which would stop every later one. Nobody else is at work here:
/// the lock beside the checkout is held.
fn remove_stale_locks(git_dir: &Path) {
    for name in ["index.lock", "HEAD.lock", "config.lock", "packed-refs.lock", "shallow.lock", "gc.pid"] {
        let _ = fs::remove_file(git_dir.join(name));
    }
    let mut folders = vec![git_dir.join("refs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) if entry.file_name().as_encoded_bytes().ends_with(b".lock") => {
                    let _ = fs::remove_file(entry.path());
                }
                _ => {}
            }
        }
    }
}
