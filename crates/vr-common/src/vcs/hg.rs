//! Mercurial repositories: one without a working copy is kept as the mirror, and a changeset's files are written
//! straight from it.
//!
//! Revisions are looked up in the repository itself, so that its branches, tags and bookmarks of the moment count;
//! the mirror then only needs the changeset. Passwords are given apart from the URL, which hg writes into its journal.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use url::{Url, form_urlencoded};

use super::run::{Ended, Runner};
use super::{Mirror, RepoUrl, VcsError, clear, with_mirror};
use crate::process::command;

/// How long the note of a working copy's revisions is when it has none, in bytes.
const EMPTY_DIRSTATE: u64 = 40;

/// As [`super::check_out`].
pub(super) fn check_out(
    url: &RepoUrl,
    revision: Option<&str>,
    mirror: &Path,
    into: &Path,
    deadline: Instant,
) -> Result<String, VcsError> {
    let (address, account) = apart(url.address());
    let hg = Hg { runner: Runner { url, address, program: "hg", deadline }, account };
    // Each start of hg takes a good part of a second, so the usual case, a changeset that is here, is simply tried.
    let mut missing = false;
    if let Some(hash) = revision.filter(|revision| is_full_hash(revision))
        && is_mirror(mirror)
    {
        if hg.archive(mirror, hash, into)?.success {
            return Ok(hash.to_ascii_lowercase());
        }
        clear(into)?;
        missing = true;
    }
    let hash = hg.look_up(revision)?;
    with_mirror(
        mirror,
        into,
        |aside| {
            let mut init = hg.command();
            // In this format one can see whether there is a working copy.
            init.args(["--config", "format.use-dirstate-v2=no", "init", "--"]).arg(aside);
            hg.runner.must("init", init).map(drop)
        },
        |mirror, kind| hg.write_from(mirror, &hash, into, missing || kind == Mirror::New),
    )
}

struct Hg<'a> {
    runner: Runner<'a>,
    /// Settings with the user's name and password for the repository's host.
    account: Vec<String>,
}

impl Hg<'_> {
    /// hg with everything set that no command may go without.
    fn command(&self) -> Command {
        let mut hg = command("hg");
        // The settings inside the mirror, where hooks could be, are not read.
        hg.env("HGPLAIN", "1").env("LC_ALL", "C.UTF-8").env("HGRCSKIPREPO", "1").env_remove("HG_PENDING");
        hg.args(["--noninteractive", "--config", "ui.timeout=30"]);
        for setting in &self.account {
            hg.arg("--config").arg(setting);
        }
        if self.runner.address.starts_with("ssh://") && std::env::var_os("HGRCPATH").is_none() {
            hg.args(["--config", "ui.ssh=ssh -oBatchMode=yes"]);
        }
        hg.current_dir("/");
        hg
    }

    /// hg for a mirror. Named outright: a broken one must not make hg use a repository in a folder above.
    fn command_in(&self, mirror: &Path) -> Command {
        let mut hg = self.command();
        hg.current_dir(mirror).args(["--repository", "."]);
        hg
    }

    /// The full hash of a revision, asked of the repository; without one that of what a clone would show.
    fn look_up(&self, revision: Option<&str>) -> Result<String, VcsError> {
        let candidates = match revision {
            Some(revision) => vec![revision],
            None => vec!["@", "default", "tip"],
        };
        for candidate in &candidates {
            let mut hg = self.command();
            hg.args(["identify", "--template", "{node}", "--rev", candidate, "--"]).arg(&self.runner.address);
            let ended = self.runner.run("identify", hg)?;
            let hash = ended.stdout.trim();
            if ended.success && is_full_hash(hash) {
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

    /// Writes the files, after fetching the changeset when it is known to be `missing` or turns out to be.
    fn write_from(&self, mirror: &Path, hash: &str, into: &Path, missing: bool) -> Result<String, VcsError> {
        if !is_mirror(mirror) {
            let said = "the folder is not an hg repository without a working copy".to_owned();
            return Err(self.runner.failed("status", said));
        }
        if !missing {
            if self.archive(mirror, hash, into)?.success {
                return Ok(hash.to_owned());
            }
            clear(into)?;
        }
        let mut pull = self.command_in(mirror);
        pull.args(["pull", "--quiet", "--rev", hash, "--"]).arg(&self.runner.address);
        self.runner.must("pull", pull)?;
        let written = self.archive(mirror, hash, into)?;
        if written.success { Ok(hash.to_owned()) } else { Err(self.runner.failed("archive", written.said)) }
    }

    fn archive(&self, mirror: &Path, hash: &str, into: &Path) -> Result<Ended, VcsError> {
        let mut hg = self.command_in(mirror);
        // What relative names of subrepositories start from.
        hg.arg("--config").arg(format!("paths.default={}", self.runner.address));
        hg.args(["--config", "ui.archivemeta=false"]);
        hg.args(["archive", "--quiet", "--subrepos", "--type", "files", "--rev", hash, "--"]);
        // hg would fill in what follows a percent sign.
        let into = into.as_os_str().as_bytes();
        hg.arg(OsStr::from_bytes(&into.split(|&byte| byte == b'%').collect::<Vec<_>>().join(&b"%%"[..])));
        self.runner.run("archive", hg)
    }
}

fn is_full_hash(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a folder is an hg repository without a working copy.
fn is_mirror(folder: &Path) -> bool {
    let data = folder.join(".hg");
    data.is_dir() && fs::metadata(data.join("dirstate")).map_or(0, |file| file.len()) <= EMPTY_DIRSTATE
}

/// The URL without the name and password in it, and the settings that give hg both: it writes URLs into its journal and
/// into the settings of subrepositories.
fn apart(address: String) -> (String, Vec<String>) {
    let parsed = Url::parse(&address).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let Some((mut url, password)) = parsed.and_then(|url| Some((url.clone(), decoded(url.password()?))))
    else {
        return (address, Vec::new());
    };
    let name = decoded(url.username());
    // Only URLs without a host refuse this.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    let scheme = url.scheme();
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    let account = [
        ("prefix", format!("{}{port}/", url.host_str().unwrap_or_default())),
        ("schemes", scheme.to_owned()),
        ("username", name),
        ("password", password),
    ]
    .map(|(name, value)| format!("auth.velociraptor.{name}={value}"));
    (url.to_string(), account.into())
}

/// A part of a URL without its percent signs.
fn decoded(text: &str) -> String {
    // In forms these two mean something else.
    let escaped = text.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    form_urlencoded::parse(escaped.as_bytes()).next().map_or_else(String::new, |(text, _)| text.into_owned())
}
