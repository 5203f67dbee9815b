//! The repositories of a build: which kind each is, where its mirror is kept, and bringing the files of all of them to
//! where the build wants them, at the same time.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use vr_common::vcs::{RepoType, RepoUrl, VcsError, check_out};

/// The kind of a buildpack's repository, of which `build.yaml` has only the URL. A local folder with a `.hg` is
/// Mercurial, and so is a URL whose host begins with `hg.` or whose path begins with `hg/`; all else is git.
pub fn buildpack_type(url: &RepoUrl) -> RepoType {
    let text = url.url();
    let local = text.strip_prefix("file://").unwrap_or(text);
    if Path::new(local).join(".hg").is_dir() {
        return RepoType::Hg;
    }
    let after_scheme = text.split_once("://").map_or("", |(_, rest)| rest);
    let (authority, path) = after_scheme.split_once('/').unwrap_or((after_scheme, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if !path.ends_with(".git") && (host.starts_with("hg.") || path.starts_with("hg/")) {
        return RepoType::Hg;
    }
    RepoType::Git
}

/// The files of one revision, which a build wants in a folder of its own.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub repo_type: RepoType,
    pub url: RepoUrl,
    /// Unless the URL says it.
    pub revision: Option<String>,
    /// Where the repository's data is kept. The caller holds its lock.
    pub mirror: PathBuf,
    /// Where the files go.
    pub into: PathBuf,
}

/// Fetches all of them at once, but one after the other what is of the same repository, and gives their full
/// revision hashes in the same order. Each repository may take as long as `timeout`.
pub(crate) fn bring(wanted: &[Wanted], timeout: Duration) -> Result<Vec<String>, VcsError> {
    let mut mirrors: Vec<&Path> = wanted.iter().map(|wanted| wanted.mirror.as_path()).collect();
    mirrors.sort();
    mirrors.dedup();
    let of_mirror = |mirror: &Path| -> Vec<(usize, Result<String, VcsError>)> {
        let of_it = wanted.iter().enumerate().filter(|(_, wanted)| wanted.mirror == mirror);
        let one = |wanted: &Wanted| {
            let Wanted { repo_type, url, revision, mirror, into } = wanted;
            check_out(*repo_type, url, revision.as_deref(), mirror, into, timeout)
        };
        of_it.map(|(index, wanted)| (index, one(wanted))).collect()
    };
    let mut brought = thread::scope(|scope| {
        let threads: Vec<_> = mirrors.iter().map(|mirror| scope.spawn(move || of_mirror(mirror))).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended
            .flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    brought.sort_by_key(|(index, _)| *index);
    brought.into_iter().map(|(_, hash)| hash).collect()
}

/// A buildpack that a build may use.
#[derive(Debug, Clone)]
pub(crate) struct Buildpack {
    /// Its URL.
    pub url: RepoUrl,
    /// The full hash of the revision in the copy.
    pub revision: String,
    /// Its folder in the container, an absolute path.
    pub mounted_at: PathBuf,
    /// The build's own copy of it.
    pub copy: PathBuf,
}

impl Buildpack {
    /// What people call it: the last part of its URL.
    pub fn name(&self) -> &str {
        self.url.basename()
    }

    /// Its URL with the exact revision.
    pub fn pinned(&self) -> Result<RepoUrl, VcsError> {
        self.url.with_revision(&self.revision)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_kind_of_a_buildpack_is_read_from_its_url() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".hg")).unwrap();
        let local = dir.path().display().to_string();
        for (url, expected) in [
            ("https://example.com/heroku/buildpack.git", RepoType::Git),
            ("https://example.com/heroku/buildpack", RepoType::Git),
            ("https://hg.example.com/buildpack#abc", RepoType::Hg),
            ("https://hg.example.com/buildpack.git", RepoType::Git),
            ("ssh://me@example.com/hg/buildpack", RepoType::Hg),
            ("git@example.com:hg/buildpack", RepoType::Git),
            (local.as_str(), RepoType::Hg),
            (&format!("file://{local}#tip"), RepoType::Hg),
        ] {
            assert_eq!(buildpack_type(&RepoUrl::parse(url).unwrap()), expected, "{url}");
        }
    }
}
