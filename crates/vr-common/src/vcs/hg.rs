//! Mercurial repositories: one without a working copy is kept as the mirror, and a changeset's files are written
//! straight from it.
//!
//! Revisions are looked up in the repository itself, so that its branches, tags and bookmarks of the moment count;
//! the mirror then only needs the changeset. Passwords are given apart from the URL, which hg writes into its journal.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::fs::{MemfdFlags, memfd_create};

use super::below::make_empty_below;
use super::run::{Ended, Runner, is_about_the_machine};
use super::url::Account;
use super::{Mirror, RepoType, RepoUrl, Trouble, VcsError, clear, git, io_error, make_parent, with_mirror};
use crate::process::command;

/// How long the note of a working copy's revisions is when it has none, in bytes.
const EMPTY_DIRSTATE: u64 = 40;
/// The largest `.hgsub` and `.hgsubstate` that are read, in bytes: a few thousand subrepositories.
const LARGEST_LIST: u64 = 512 * 1024;
/// What hg says of a changeset whose files cannot be written anywhere.
const ABOUT_CONTENT: [&str; 2] = ["path contains illegal component", "traverses symbolic link"];

/// As [`super::check_out`].
pub(super) fn check_out(
    url: &RepoUrl,
    revision: Option<&str>,
    mirror: &Path,
    into: &Path,
    deadline: Instant,
) -> Result<String, VcsError> {
    let hg = Hg::new(url, deadline)?;
    let hash = hg.check_out(revision, mirror, into)?;
    hg.write_subrepositories(mirror, into)?;
    Ok(hash)
}

struct Hg<'a> {
    runner: Runner<'a>,
    /// A file of settings with the name and password for the repository's host: everybody on the machine can see
    /// arguments. It is in memory, so it is gone with this process, however that ends. With the value of `HGRCPATH` that
    /// names it beside the usual ones.
    account: Option<(File, OsString)>,
    /// Whether ssh has to be told not to ask.
    plain_ssh: bool,
}

impl<'a> Hg<'a> {
    fn new(url: &'a RepoUrl, deadline: Instant) -> Result<Self, VcsError> {
        // Of a name alone hg finds the password in the user's settings.
        let account = url.account().and_then(|account| Some((account.password.clone()?, account)));
        let (address, account) = match account {
            Some((password, account)) => {
                let file = settings_file(&account, &password)
                    .map_err(io_error("write a file of settings in", Path::new("memory")))?;
                let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
                let path = settings_path(Path::new(&path));
                (account.address, Some((file, path)))
            }
            None => (url.address(), None),
        };
        let runner = Runner { url, address, program: "hg", deadline };
        let mut hg = Self { runner, account, plain_ssh: false };
        if url.is_ssh() {
            let mut config = hg.command();
            config.args(["config", "ui.ssh"]);
            hg.plain_ssh = matches!(hg.runner.run("config", config)?.text().as_str(), "" | "ssh");
        }
        Ok(hg)
    }

    fn check_out(&self, revision: Option<&str>, mirror: &Path, into: &Path) -> Result<String, VcsError> {
        // Each start of hg takes a good part of a second, so the usual case, a changeset that is here, is simply tried.
        let mut missing = false;
        if let Some(hash) = revision.filter(|revision| is_full_hash(revision))
            && is_mirror(mirror)
        {
            if self.archive(mirror, hash, into)?.success {
                return Ok(hash.to_ascii_lowercase());
            }
            clear(into)?;
            missing = true;
        }
        let hash = self.look_up(revision)?;
        with_mirror(
            mirror,
            into,
            |aside| {
                let mut init = self.command();
                // In this format one can see whether there is a working copy.
                init.args(["--config", "format.use-dirstate-v2=no", "init", "--"]).arg(aside);
                self.runner.must("init", init).map(drop)
            },
            |mirror, kind| self.write_from(mirror, &hash, into, missing || kind == Mirror::New),
        )
    }

    /// hg with everything set that no command may go without.
    fn command(&self) -> Command {
        let mut hg = command("hg");
        // The settings inside the mirror, where hooks could be, are not read.
        hg.env("HGPLAIN", "1").env("LC_ALL", "C.UTF-8").env("HGRCSKIPREPO", "1").env_remove("HG_PENDING");
        hg.args(["--noninteractive", "--config", "ui.timeout=30"]);
        if let Some((_, path)) = &self.account {
            hg.env("HGRCPATH", path);
        }
        if self.plain_ssh {
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
            // Elsewhere only names are looked up. Here `all()` would be an expression, but not in quotes.
            let name = match self.runner.url.is_local() {
                true => format!("\"{}\"", candidate.replace('\\', "\\\\").replace('"', "\\\"")),
                false => (*candidate).to_owned(),
            };
            hg.args(["identify", "--template", "{node}", "--rev", &name, "--"]).arg(&self.runner.address);
            let ended = self.runner.run("identify", hg)?;
            let hash = ended.text();
            if ended.success && is_full_hash(&hash) {
                // All zeros is the parent of the first commit: the repository is empty.
                if hash.bytes().all(|b| b == b'0') {
                    return Err(self.runner.unknown_revision(candidate));
                }
                return Ok(hash);
            }
            if !ended.said.contains("unknown revision") && !ended.said.contains("unknown branch") {
                return Err(self.runner.unreachable(ended.said));
            }
        }
        Err(self.runner.unknown_revision(revision.unwrap_or("default")))
    }

    /// Writes the files, after fetching the changeset when it is known to be `missing` or turns out to be.
    fn write_from(&self, mirror: &Path, hash: &str, into: &Path, missing: bool) -> Result<String, Trouble> {
        if !is_mirror(mirror) {
            let said = "the folder is not an hg repository without a working copy".to_owned();
            return Err(Trouble::Broken(self.runner.failed("status", said)));
        }
        if !missing {
            let written = self.archive(mirror, hash, into)?;
            if written.success {
                return Ok(hash.to_owned());
            }
            if let trouble @ Trouble::Other(_) = self.trouble("archive", written.said) {
                return Err(trouble);
            }
            clear(into)?;
        }
        let mut pull = self.command_in(mirror);
        pull.args(["pull", "--quiet", "--rev", hash, "--"]).arg(&self.runner.address);
        let pulled = self.runner.run("pull", pull)?;
        if !pulled.success {
            return Err(self.trouble("pull", pulled.said));
        }
        let written = self.archive(mirror, hash, into)?;
        if written.success { Ok(hash.to_owned()) } else { Err(self.trouble("archive", written.said)) }
    }

    /// What it means that a step failed for a changeset that the repository does have.
    fn trouble(&self, step: &str, said: String) -> Trouble {
        if ABOUT_CONTENT.iter().any(|words| said.contains(words)) {
            return Trouble::Other(self.runner.bad_content(said));
        }
        let is_about_the_machine = is_about_the_machine(&said);
        let failed = self.runner.failed(step, said);
        if is_about_the_machine { Trouble::Other(failed) } else { Trouble::Broken(failed) }
    }

    fn archive(&self, mirror: &Path, hash: &str, into: &Path) -> Result<Ended, VcsError> {
        let mut hg = self.command_in(mirror);
        // hg would read subrepositories wherever they are, and write them with less care.
        hg.args(["--config", "subrepos.allowed=false", "--config", "ui.archivemeta=false"]);
        hg.args(["archive", "--quiet", "--type", "files", "--rev", hash, "--"]);
        // hg would fill in what follows a percent sign.
        let into = into.as_os_str().as_bytes();
        hg.arg(OsStr::from_bytes(&into.split(|&byte| byte == b'%').collect::<Vec<_>>().join(&b"%%"[..])));
        self.runner.run("archive", hg)
    }

    /// Writes the files of subrepositories, each from a mirror of its own inside of this one.
    fn write_subrepositories(&self, mirror: &Path, into: &Path) -> Result<(), VcsError> {
        let list = self.read_list(into, ".hgsub")?;
        if list.is_empty() {
            return Ok(());
        }
        let parts = parts(&list).map_err(|said| self.runner.bad_content(format!("its .hgsub: {said}")))?;
        let state = self.read_list(into, ".hgsubstate")?;
        for (path, source) in parts {
            // As for hg, one without a state is not there.
            let mut commits = state.lines().filter_map(|line| line.split_once(' '));
            let Some((commit, _)) = commits.rfind(|(_, of)| *of == path) else { continue };
            if commit.bytes().all(|byte| byte == b'0') {
                continue;
            }
            if !is_full_hash(commit) {
                let said = format!("its .hgsubstate: {path} is at {commit:?}, expected a whole hash");
                return Err(self.runner.bad_content(said));
            }
            if Path::new(path)
                .iter()
                .any(|name| name.eq_ignore_ascii_case(".hg") || name.eq_ignore_ascii_case(".git"))
            {
                let said = format!("its .hgsub: {path} is a name that hg and git keep for themselves");
                return Err(self.runner.bad_content(said));
            }
            let (kind, url) = self.subrepository(path, source)?;
            let folder = make_empty_below(&self.runner, "subrepository", into, path.as_bytes())?;
            let mirror = mirror.join("subrepositories").join(url.folder());
            make_parent(&mirror)?;
            match kind {
                RepoType::Git => git::check_out_part(&url, commit, &mirror, &folder, self.runner.deadline)?,
                RepoType::Hg => check_out(&url, Some(commit), &mirror, &folder, self.runner.deadline)?,
            };
        }
        Ok(())
    }

    /// One of the two files about subrepositories; nothing when there is none.
    fn read_list(&self, into: &Path, name: &str) -> Result<String, VcsError> {
        let file = into.join(name);
        let Some(metadata) = fs::symlink_metadata(&file).ok().filter(fs::Metadata::is_file) else {
            return Ok(String::new());
        };
        if metadata.len() > LARGEST_LIST {
            let said = format!("its {name}: expected at most {LARGEST_LIST} bytes");
            return Err(self.runner.bad_content(said));
        }
        let bytes = fs::read(&file).map_err(io_error("read", &file))?;
        String::from_utf8(bytes).map_err(|_| self.runner.bad_content(format!("its {name} is not UTF-8")))
    }

    /// Of what kind a subrepository is, and where: `URL` or `[kind]URL`.
    fn subrepository(&self, path: &str, source: &str) -> Result<(RepoType, RepoUrl), VcsError> {
        let (kind, source) = match source.strip_prefix('[').and_then(|source| source.split_once(']')) {
            Some((kind, source)) => (kind, source.trim_start()),
            None => ("hg", source),
        };
        let kind = kind.parse::<RepoType>().map_err(|_| {
            let said = format!("its subrepository {path} is of the kind {kind:?}, expected hg or git");
            self.runner.bad_content(said)
        })?;
        let with_host = |source: &str| source.split('/').next().is_some_and(|start| start.contains(':'));
        let is_absolute =
            source.starts_with('/') || source.contains("://") || (kind == RepoType::Git && with_host(source));
        let url = if is_absolute {
            RepoUrl::parse(source)?
        } else {
            // With the name and password, which count for it too.
            let absolute = joined(&self.runner.url.address(), source).ok_or_else(|| {
                let said = format!("the URL of its subrepository, {source}, leads to above all folders");
                self.runner.bad_content(said)
            })?;
            RepoUrl::parse(&absolute)?
        };
        self.runner.must_be_as_far(&url, "subrepository")?;
        Ok((kind, url))
    }
}

/// The paths and sources in a `.hgsub`. In it are settings as in hg's own files, those before all sections being
/// subrepositories.
fn parts(list: &str) -> Result<Vec<(&str, &str)>, String> {
    let mut parts: Vec<(&str, &str)> = Vec::new();
    let mut section = "";
    for (number, line) in list.lines().enumerate() {
        let text = line.trim();
        if text.is_empty() || text.starts_with(['#', ';']) {
            continue;
        }
        let not_understood = || format!("line {}, {text:?}, is not understood", number + 1);
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            section = name.0;
            if section == "subpaths" {
                return Err("subpaths are not supported".to_owned());
            }
            continue;
        }
        // An indented line goes on with the one before.
        if line.starts_with(char::is_whitespace) || line.starts_with('%') {
            return Err(not_understood());
        }
        let (path, source) = text.split_once('=').ok_or_else(not_understood)?;
        if section.is_empty() {
            let path = path.trim().trim_end_matches('/');
            // Of two for one folder the latter counts.
            parts.retain(|(other, _)| *other != path);
            parts.push((path, source.trim()));
        }
    }
    Ok(parts)
}

/// A relative source of a subrepository made absolute as hg does it: `base` is a folder. Nothing when it leads to above
/// all folders.
pub(super) fn joined(base: &str, source: &str) -> Option<String> {
    let start = base.find("://").map_or(0, |at| at + "://".len());
    let (root, path) = base.split_at(base[start..].find('/').map_or(base.len(), |at| start + at));
    let path = if start == 0 { path } else { path.split('?').next()? };
    let mut parts = Vec::new();
    for part in path.split('/').chain(source.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    // Two of them mean the root of all folders for ssh.
    let slashes = if path.starts_with("//") { "//" } else { "/" };
    Some(format!("{root}{slashes}{}", parts.join("/")))
}

fn is_full_hash(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a folder is an hg repository without a working copy.
fn is_mirror(folder: &Path) -> bool {
    let data = folder.join(".hg");
    data.is_dir() && fs::metadata(data.join("dirstate")).map_or(0, |file| file.len()) <= EMPTY_DIRSTATE
}

/// Settings with the name and password for a host, in a file that only this user can read.
fn settings_file(account: &Account, password: &str) -> io::Result<File> {
    let (scheme, host) = account.origin.split_once("://").unwrap_or_default();
    let mut file = File::from(memfd_create("hgrc", MemfdFlags::CLOEXEC)?);
    writeln!(file, "[auth]\nvelociraptor.prefix = {host}/\nvelociraptor.schemes = {scheme}")?;
    writeln!(file, "velociraptor.username = {}\nvelociraptor.password = {password}", account.name)?;
    Ok(file)
}

/// A value for `HGRCPATH` with the files of settings that count now and one more. hg reads those that are there.
fn settings_path(more: &Path) -> OsString {
    let mut path = env::var_os("HGRCPATH").unwrap_or_else(|| {
        let programs = env::var_os("PATH").unwrap_or_default();
        let hg =
            env::split_paths(&programs).map(|folder| folder.join("hg")).find(|program| program.is_file());
        let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let own = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|own| own.is_absolute());
        // As `hg help config.files` lists them, the last being the strongest.
        let mut usual = Vec::new();
        for root in hg.iter().filter_map(|hg| hg.parent()?.parent()).chain([Path::new("/")]) {
            usual.extend([root.join("etc/mercurial/hgrc"), root.join("etc/mercurial/hgrc.d")]);
        }
        usual.extend([home.join(".hgrc"), own.unwrap_or_else(|| home.join(".config")).join("hg/hgrc")]);
        usual.into_iter().map(PathBuf::into_os_string).collect::<Vec<_>>().join(OsStr::new(":"))
    });
    path.push(":");
    path.push(more);
    path
}
