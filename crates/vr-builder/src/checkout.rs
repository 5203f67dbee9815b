//! Cached working copies: which repository, which kind, at which revision, and who may use it at the moment.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use vr_common::lock::FileLock;
use vr_common::vcs::{RepoType, RepoUrl};

use crate::BuildError;

/// A lock on a repository's checkout, with a note in it of who has it since when.
#[derive(Debug)]
pub struct Locked {
    // Given back when this is dropped, and by the kernel when we die.
    _lock: FileLock,
}

/// Takes a lock, and waits for whoever has it. `on_wait` gets what to tell people, once.
pub fn lock(path: &Path, on_wait: impl FnOnce(&str)) -> Result<Locked, BuildError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(BuildError::io("make", folder))?;
    }
    let lock = FileLock::wait(path, || on_wait(&format!("waiting for {}", holder(path))))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let note = || {
        lock.file().set_len(0)?;
        lock.file().write_all(format!("{} {now}\n", std::process::id()).as_bytes())
    };
    // The note is for people only; without it the lock is as good.
    if let Err(error) = note() {
        tracing::debug!(lock = %path.display(), %error, "cannot note who holds the lock");
    }
    Ok(Locked { _lock: lock })
}

/// `process 123, which has held LOCK for 12 s`, as far as the lock's note tells.
fn holder(path: &Path) -> String {
    let mut note = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(64).read_to_string(&mut note));
    let mut numbers = note.split_whitespace().map(str::parse::<u64>);
    match (read, numbers.next(), numbers.next()) {
        (Ok(_), Some(Ok(pid)), Some(Ok(since))) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let seconds = now.saturating_sub(since);
            format!("process {pid}, which has held {} for {seconds} s", path.display())
        }
        _ => format!("another process, which holds {}", path.display()),
    }
}

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

/// A buildpack that a build may use.
#[derive(Debug, Clone)]
pub struct Buildpack {
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
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    #[test]
    fn a_waiter_is_told_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks/app.lock");
        let first = lock(&path, |_| panic!("nobody else has it")).unwrap();
        let (told, tell) = std::sync::mpsc::channel();
        let waiter = {
            let path = path.clone();
            std::thread::spawn(move || lock(&path, |text| told.send(text.to_owned()).unwrap()).map(drop))
        };
        let text = tell.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(
            text.starts_with(&format!("waiting for process {}, which has held", std::process::id())),
            "{text}"
        );
        drop(first);
        waiter.join().unwrap().unwrap();
    }
}
