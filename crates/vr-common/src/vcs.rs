//! The files of revisions of git and hg repositories, fetched and written by running `git` and `hg`.
//!
//! Must not know what is built from them or where the mirrors are kept.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::archive::{remove_tree, remove_unfinished};
use crate::fetch::aside::{folder_of, unfinished_sibling};

mod below;
mod copy;
mod git;
mod hg;
mod run;
mod url;

pub use copy::copy_tree;
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

/// Why a revision's files are not there. URLs are shown without their credentials.
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
    /// What is in the repository cannot be used, whoever tries.
    #[error("cannot use the repository {url}: {said}")]
    BadContent {
        /// The repository.
        url: String,
        /// What is wrong with it.
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
}

/// Writes the files of a repository's revision into the empty folder `into`, and gives the revision's full hash.
///
/// `revision` is a branch, tag (for hg also a bookmark) or a short or full hash; without one the fragment of `url`
/// counts, and without that the repository's default branch. Branches and tags are those of the repository as it is
/// now, also when it was rewritten. A full hash that is already here needs no network.
///
/// `into` is made when it is missing. Afterwards it has exactly the revision's files, those of submodules and
/// subrepositories included, and nothing that git or hg keep for themselves. Symbolic links stay such, files can be
/// executed when the revision says so, and the process's umask (which should be 022) decides on the rest of their
/// modes. After an error anything may be in it.
///
/// Submodules and subrepositories of a repository from elsewhere must be from elsewhere too, and their folders must not
/// be behind symbolic links: nothing is written outside of `into`, whatever is in the repository.
///
/// `mirror` is the folder in which the repository's data is kept for the next time, without a working copy and
/// without passwords. A missing one is made aside and renamed into place; a broken one, or one that is a working
/// copy, is made anew. **Nobody else may use it meanwhile**: the caller holds a lock.
///
/// Nothing is ever asked: a repository that wants a password fails. `timeout` is for everything together.
pub fn check_out(
    repo_type: RepoType,
    url: &RepoUrl,
    revision: Option<&str>,
    mirror: &Path,
    into: &Path,
    timeout: Duration,
) -> Result<String, VcsError> {
    // More than a hundred years is for ever, and does not fit into what counts the time.
    let deadline = Instant::now() + timeout.min(Duration::from_secs(1 << 32));
    let revision = revision.or_else(|| url.revision());
    if let Some(revision) = revision {
        url::check_revision(revision)?;
    }
    // git and hg are started in other folders than this program was.
    let mirror = std::path::absolute(mirror).map_err(io_error("find", mirror))?;
    let into = std::path::absolute(into).map_err(io_error("find", into))?;
    fs::create_dir_all(&into).map_err(io_error("make", &into))?;
    if fs::read_dir(&into).map_err(io_error("read", &into))?.next().is_some() {
        let not_empty = io::Error::from(io::ErrorKind::DirectoryNotEmpty);
        return Err(io_error("write a revision's files to", &into)(not_empty));
    }
    make_parent(&mirror)?;
    match repo_type {
        RepoType::Git => git::check_out(url, revision, &mirror, &into, deadline),
        RepoType::Hg => hg::check_out(url, revision, &mirror, &into, deadline),
    }
}

/// Makes the folder that a mirror will be in.
fn make_parent(mirror: &Path) -> Result<(), VcsError> {
    fs::create_dir_all(folder_of(mirror)).map_err(io_error("make the folder of", mirror))
}

/// For `map_err`: what was tried with which file or folder.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VcsError {
    let path = path.to_owned();
    move |source| VcsError::Io { action, path, source }
}

/// Which mirror some work is done in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mirror {
    /// It was there.
    Kept,
    /// It was just made, and has nothing yet.
    New,
}

/// Why some work with a mirror failed.
enum Trouble {
    /// The mirror is broken: with a new one it may succeed.
    Broken(VcsError),
    /// It would with a new mirror too.
    Other(VcsError),
}

impl From<VcsError> for Trouble {
    fn from(error: VcsError) -> Self {
        Self::Other(error)
    }
}

/// Does `work`, which fills `into`, with the mirror that is there. When there is none, or it is broken, a new one is
/// made beside it by `make`, and gets its place when the work has succeeded.
fn with_mirror(
    mirror: &Path,
    into: &Path,
    make: impl FnOnce(&Path) -> Result<(), VcsError>,
    work: impl Fn(&Path, Mirror) -> Result<String, Trouble>,
) -> Result<String, VcsError> {
    if let Err(error) = remove_unfinished(mirror) {
        tracing::warn!(mirror = %mirror.display(), %error, "what is left of an older mirror cannot be removed");
    }
    if fs::symlink_metadata(mirror).is_ok() {
        match work(mirror, Mirror::Kept) {
            Err(Trouble::Broken(error)) => {
                tracing::warn!(mirror = %mirror.display(), %error, "the mirror is broken, making it anew");
                clear(into)?;
            }
            Err(Trouble::Other(error)) => return Err(error),
            Ok(hash) => return Ok(hash),
        }
    }
    let work_aside = |aside: &Path| {
        work(aside, Mirror::New).map_err(|(Trouble::Broken(error) | Trouble::Other(error))| error)
    };
    let beside = || unfinished_sibling(mirror).map_err(io_error("name", mirror));
    let (aside, old) = (beside()?, beside()?);
    let done = make(&aside).and_then(|()| work_aside(&aside)).and_then(|hash| {
        // Moved before it is removed: half of a working copy could pass for a mirror.
        match fs::rename(mirror, &old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("replace", mirror)(error));
            }
            _ => {}
        }
        fs::rename(&aside, mirror).map_err(io_error("make", mirror))?;
        Ok(hash)
    });
    // What cannot be removed now is tried again, and told, by the next one for this mirror.
    let _ = remove_tree(&old);
    if done.is_err() {
        let _ = remove_tree(&aside);
    }
    done
}

/// Empties a folder.
fn clear(folder: &Path) -> Result<(), VcsError> {
    for entry in fs::read_dir(folder).map_err(io_error("read", folder))? {
        let path = entry.map_err(io_error("read", folder))?.path();
        remove_tree(&path).map_err(io_error("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
