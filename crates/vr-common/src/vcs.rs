//! Checkouts of git and hg repositories, made and updated by running `git` and `hg`.
//!
//! Must not know what is built from a checkout or where the checkouts are kept.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::archive::{remove_tree, remove_unfinished};
use crate::fetch::aside::{hidden_sibling, unfinished_sibling};
use crate::lock::{FileLock, LockError};

mod copy;
mod git;
mod hg;
mod run;
mod url;

pub use copy::{copy_tree, export};
pub use url::RepoUrl;

/// The two kinds of repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepoType {
    /// A git repository.
    Git,
    /// A Mercurial repository.
    Hg,
}

impl RepoType {
    /// `git` or `hg`, which is the name of the program too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Git => "git",
            Self::Hg => "hg",
        }
    }
}

impl fmt::Display for RepoType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no kind of repository.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown repository type {0:?}: expected \"git\" or \"hg\"")]
pub struct UnknownRepoType(String);

impl FromStr for RepoType {
    type Err = UnknownRepoType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "git" => Ok(Self::Git),
            "hg" => Ok(Self::Hg),
            other => Err(UnknownRepoType(other.to_owned())),
        }
    }
}

/// Why there is no checkout. URLs are shown without their credentials.
#[derive(Debug, Error)]
pub enum VcsError {
    /// The text is not the URL of a repository.
    #[error("bad repository URL {url:?}: {reason}")]
    BadUrl {
        /// The text, without credentials.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The text cannot be a revision.
    #[error("bad revision {revision:?}: {reason}")]
    BadRevision {
        /// The text.
        revision: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The repository answered and does not know the revision.
    #[error("{url} has no revision {revision:?}")]
    UnknownRevision {
        /// The repository.
        url: String,
        /// What was asked for.
        revision: String,
    },
    /// The repository cannot be read.
    #[error("cannot read the repository {url}: {said}")]
    Unreachable {
        /// The repository.
        url: String,
        /// The last lines of what git or hg said.
        said: String,
    },
    /// A step on this machine failed.
    #[error("{program} {step} failed for {url}: {said}")]
    Failed {
        /// The repository.
        url: String,
        /// `git` or `hg`.
        program: &'static str,
        /// The program's subcommand.
        step: String,
        /// The last lines of what it said.
        said: String,
    },
    /// The time was up.
    #[error("{program} {step} for {url} did not end in time and was stopped")]
    TimedOut {
        /// The repository.
        url: String,
        /// `git` or `hg`.
        program: &'static str,
        /// The program's subcommand.
        step: String,
    },
    /// git or hg cannot be started.
    #[error("cannot start {program}")]
    Start {
        /// `git` or `hg`.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file or folder cannot be made, read or removed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, such as `remove`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The lock beside the checkout cannot be taken.
    #[error("cannot wait for others who use the same checkout")]
    Lock(#[from] LockError),
}

/// Brings the checkout at `dir` to a revision of the repository, and gives that revision's full hash.
///
/// `revision` is a branch, tag (for hg also a bookmark) or a short or full hash; without one the fragment of `url`
/// counts, and without that the repository's default branch. Branches and tags are those of the repository as it is
/// now, also when it was rewritten. Afterwards the working tree holds exactly the revision's files, submodules
/// included. A missing checkout is made aside and renamed into place; one that is broken is made anew.
/// Callers for the same `dir` wait for each other (a lock file `.{name}.lock` stays beside it).
/// Nothing is ever asked: a repository that wants a password fails. `timeout` is for everything together.
pub fn update_checkout(
    repo_type: RepoType,
    url: &RepoUrl,
    revision: Option<&str>,
    dir: &Path,
    timeout: Duration,
) -> Result<String, VcsError> {
    let deadline = Instant::now() + timeout;
    let revision = revision.or_else(|| url.revision());
    if let Some(revision) = revision {
        url::check_revision(revision)?;
    }
    let io_error = |action, source| VcsError::Io { action, path: dir.to_owned(), source };
    // git and hg are started in other folders than this program was.
    let absolute_dir = std::path::absolute(dir).map_err(|e| io_error("find", e))?;
    let dir = absolute_dir.as_path();
    std::fs::create_dir_all(crate::fetch::aside::folder_of(dir))
        .map_err(|e| io_error("make the folder of", e))?;
    let lock_path = hidden_sibling(dir, "lock").map_err(|e| io_error("lock", e))?;
    let _only_one = FileLock::wait(&lock_path, || {
        tracing::info!(checkout = %dir.display(), "waiting for another process that uses the same checkout");
    })?;
    match repo_type {
        RepoType::Git => git::update(url, revision, dir, deadline),
        RepoType::Hg => hg::update(url, revision, dir, deadline),
    }
}

/// Makes a checkout beside `dir` and puts it in its place, over a broken one if there is one.
fn place_new<T>(dir: &Path, make: impl FnOnce(&Path) -> Result<T, VcsError>) -> Result<T, VcsError> {
    let io_error = |action, path: &Path, source| VcsError::Io { action, path: path.to_owned(), source };
    remove_unfinished(dir).map_err(|source| io_error("remove what is left of", dir, source))?;
    let aside = unfinished_sibling(dir).map_err(|source| io_error("name", dir, source))?;
    let made = make(&aside).and_then(|result| {
        remove_tree(dir).map_err(|source| io_error("remove", dir, source))?;
        std::fs::rename(&aside, dir).map_err(|source| io_error("make", dir, source))?;
        Ok(result)
    });
    if made.is_err() {
        let _ = remove_tree(&aside);
    }
    made
}

#[cfg(test)]
mod tests;
