//! Git repositories: a bare one is kept as the mirror, and a revision's files are written straight from it.
//!
//! A mirror has as little of the history as will do, which mostly is the commits that were wanted. The repository's URL
//! is passed with each command and never written into the mirror, for it may hold a password.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path};
use std::process::Command;
use std::time::Instant;

use super::run::Runner;
use super::{RepoUrl, VcsError, io_error, with_mirror};
use crate::archive::remove_tree;
use crate::process::command;

/// Variables that would point git at another repository, or at other files, than it is told to use.
const MISLEADING_VARIABLES: [&str; 16] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_ATTR_SOURCE",
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

/// Where the commit of the repository's HEAD is kept, when it was fetched with everything else.
const DEFAULT_BRANCH: &str = "refs/velociraptor/default";
/// Where the commit is kept that was fetched last.
const LATEST: &str = "refs/velociraptor/latest";
/// The file in a mirror which says that it has the history of all branches and tags, up to some moment.
const COMPLETE: &str = "velociraptor-complete";
/// `--depth` for all of the history, the number that `git fetch` documents for it.
const ALL_HISTORY: &str = "--depth=2147483647";
/// The largest `.gitmodules` that is read, in bytes: a few thousand submodules.
const LARGEST_LIST: u64 = 512 * 1024;

/// As [`super::check_out`].
pub(super) fn check_out(
    url: &RepoUrl,
    revision: Option<&str>,
    mirror: &Path,
    into: &Path,
    deadline: Instant,
) -> Result<String, VcsError> {
    Git {
        runner: Runner { url, address: url.address(), program: "git", deadline },
        revision,
        file_protocol: None,
    }
    .check_out(mirror, into)
}

struct Git<'a> {
    runner: Runner<'a>,
    revision: Option<&'a str>,
    /// For a submodule, whether it may be on this machine: `always` or `never`.
    file_protocol: Option<&'static str>,
}

/// What has to be fetched for a revision.
enum Wanted {
    /// A branch, a tag, HEAD, or a commit named by its full hash.
    One {
        /// What to ask the repository for: the ref's full name, or the hash.
        source: String,
        /// The hash of the commit (or of a tag on it).
        hash: String,
    },
    /// A short hash, or an expression such as `main~2`: only the whole history tells which commit that is.
    History,
}

impl Git<'_> {
    fn check_out(&self, mirror: &Path, into: &Path) -> Result<String, VcsError> {
        let (wanted, object_format) = self.look_up()?;
        with_mirror(
            mirror,
            into,
            |aside| {
                let mut init = self.command();
                init.args(["-c", "init.defaultRefFormat=files", "init", "--quiet", "--bare", "--template="]);
                init.arg(format!("--object-format={object_format}")).arg("--").arg(aside);
                self.runner.must("init", init).map(drop)
            },
            |mirror, _| self.write_from(mirror, &wanted, into),
        )
    }

    /// git with everything set that no command may go without.
    fn command(&self) -> Command {
        let mut git = command("git");
        for name in MISLEADING_VARIABLES {
            git.env_remove(name);
        }
        git.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
        if std::env::var_os("GIT_SSH_COMMAND").is_none() && std::env::var_os("GIT_SSH").is_none() {
            git.env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes");
        }
        let settings = [
            "safe.directory=*",
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            // Would write the URL down.
            "core.logAllRefUpdates=false",
            "protocol.ext.allow=never",
            // Ended when git has ended; otherwise something would still write to the mirror.
            "gc.autoDetach=false",
        ];
        for setting in settings {
            git.args(["-c", setting]);
        }
        if let Some(allow) = self.file_protocol {
            git.env("GIT_PROTOCOL_FROM_USER", "0").arg("-c").arg(format!("protocol.file.allow={allow}"));
        }
        git.current_dir("/");
        git
    }

    /// git for a mirror. Named outright: a broken one must not make git use a repository in a folder above.
    fn command_in(&self, mirror: &Path) -> Command {
        let mut git = self.command();
        git.current_dir(mirror).env("GIT_DIR", mirror);
        git
    }

    /// A repository on this machine may belong to somebody else. git hands `-c safe.directory` on to everything
    /// but the program that reads such a repository.
    fn upload_pack(&self, git: &mut Command) {
        if self.runner.url.is_local() {
            git.arg("--upload-pack=git -c safe.directory='*' upload-pack");
        }
    }

    /// What follows `HEAD` when the revision begins with it: nothing, or the rest of an expression.
    fn after_head(&self) -> Option<&str> {
        let Some(revision) = self.revision else { return Some("") };
        let rest = revision.strip_prefix("HEAD").or_else(|| revision.strip_prefix('@'))?;
        (rest.is_empty() || rest.starts_with(['~', '^'])).then_some(rest)
    }

    /// What to fetch, as the repository's branches and tags are now, and the format of its hashes.
    fn look_up(&self) -> Result<(Wanted, &'static str), VcsError> {
        let format_of = |hash: &str| if hash.len() == 64 { "sha256" } else { "sha1" };
        if let Some(hash) = self.revision.filter(|revision| is_full_hash(revision)) {
            return Ok((Wanted::One { source: hash.to_owned(), hash: hash.to_owned() }, format_of(hash)));
        }
        let names: Vec<String> = match (self.after_head(), self.revision) {
            (None, Some(name)) => {
                let full = name.starts_with("refs/").then_some("");
                ["refs/heads/", "refs/tags/", "refs/"]
                    .into_iter()
                    .chain(full)
                    .map(|folder| format!("{folder}{name}"))
                    .collect()
            }
            (Some(rest), _) if !rest.is_empty() => Vec::new(),
            _ => vec!["HEAD".to_owned()],
        };
        let mut patterns = vec!["HEAD".to_owned()];
        for name in &names {
            patterns.extend([name.clone(), format!("{name}^{{}}")]);
        }
        let answer = self.ls_remote(&patterns)?;
        let refs: Vec<(&str, &str)> = answer.lines().filter_map(|line| line.split_once('\t')).collect();
        // git's patterns also match the ends of longer names.
        let find = |name: &str| refs.iter().find(|(_, found)| *found == name).map(|(hash, _)| *hash);
        let object_format = format_of(refs.first().map_or("", |(hash, _)| hash));
        for name in names {
            // What a tag is on, when it is one with a message.
            if let Some(hash) = find(&format!("{name}^{{}}")).or_else(|| find(&name)) {
                return Ok((Wanted::One { hash: hash.to_owned(), source: name }, object_format));
            }
        }
        match self.revision {
            Some(revision) if needs_history(revision) => Ok((Wanted::History, object_format)),
            revision => Err(self.runner.unknown_revision(revision.unwrap_or("HEAD"))),
        }
    }

    /// The repository's refs that match, or that it cannot be read.
    fn ls_remote(&self, patterns: &[String]) -> Result<String, VcsError> {
        let mut git = self.command();
        git.args(["ls-remote", "--quiet"]);
        self.upload_pack(&mut git);
        git.arg("--").arg(&self.runner.address).args(patterns);
        let answer = self.runner.run("ls-remote", git)?;
        if answer.success { Ok(answer.stdout) } else { Err(self.runner.unreachable(answer.said)) }
    }

    /// [`VcsError::Failed`] means that the mirror is broken.
    fn write_from(&self, mirror: &Path, wanted: &Wanted, into: &Path) -> Result<String, VcsError> {
        let is_there = |name: &str| fs::symlink_metadata(mirror.join(name)).is_ok();
        // The second: a working copy whose files look like a mirror.
        if !is_there("HEAD") || is_there(".git") || is_there(".hg") {
            return Err(self.runner.failed("status", "the folder is not a bare git repository".to_owned()));
        }
        remove_leftovers(mirror);
        let kept = match wanted {
            Wanted::One { hash, .. } => self.commit(mirror, hash)?,
            Wanted::History => None,
        };
        let fetched = kept.is_none();
        let hash = match kept {
            Some(hash) => hash,
            None => self.fetch(mirror, wanted)?,
        };
        self.write_files(mirror, &hash, into)?;
        self.write_submodules(mirror, &hash, into)?;
        if fetched {
            self.tidy(mirror);
        }
        Ok(hash)
    }

    /// Fetches the revision, and gives its commit.
    fn fetch(&self, mirror: &Path, wanted: &Wanted) -> Result<String, VcsError> {
        if let Wanted::One { source, .. } = wanted {
            // Without the depth, what is complete stays so.
            let depth = if mirror.join(COMPLETE).exists() { "--update-shallow" } else { "--depth=1" };
            let refspec = format!("+{source}:{LATEST}");
            match self.fetch_refspecs(mirror, &[depth], &[&refspec])? {
                None => {
                    if let Some(hash) = self.commit(mirror, LATEST)? {
                        return Ok(hash);
                    }
                }
                // It has no such object, whatever its branches lead to.
                Some(said) if said.contains("not our ref") => {
                    return Err(self.runner.unknown_revision(self.revision.unwrap_or("HEAD")));
                }
                Some(said) => {
                    tracing::debug!(url = %self.runner.url, said, "git cannot fetch one commit alone");
                    // Nobody has asked the repository for anything yet when a hash is wanted.
                    self.ls_remote(&["HEAD".to_owned()])?;
                }
            }
        }
        self.fetch_everything(mirror)?;
        let revision = self.revision.unwrap_or("HEAD");
        let names = match self.after_head() {
            Some(rest) => vec![format!("{DEFAULT_BRANCH}{rest}")],
            None if is_full_hash(revision) => vec![revision.to_owned()],
            None => ["refs/heads/", "refs/tags/", ""].map(|folder| format!("{folder}{revision}")).into(),
        };
        for name in names {
            if let Some(hash) = self.commit(mirror, &name)? {
                return Ok(hash);
            }
        }
        Err(self.runner.unknown_revision(revision))
    }

    /// Fetches all branches and tags with their history, and forgets those that are gone. For what cannot be had alone,
    /// which is all there is with servers that only give out files.
    fn fetch_everything(&self, mirror: &Path) -> Result<(), VcsError> {
        let mut options = vec!["--prune", "--update-shallow"];
        if mirror.join("shallow").exists() {
            options.push(ALL_HISTORY);
        }
        let mut refspecs = vec!["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
        let default_branch = format!("+HEAD:{DEFAULT_BRANCH}");
        // Only on demand: a repository without a valid HEAD can still have the branch that is wanted.
        if self.after_head().is_some() {
            refspecs.push(&default_branch);
        }
        match self.fetch_refspecs(mirror, &options, &refspecs)? {
            None => {
                let marker = mirror.join(COMPLETE);
                fs::write(&marker, "").map_err(io_error("write", &marker))
            }
            Some(said) => Err(self.runner.failed("fetch", said)),
        }
    }

    /// Nothing, or what git said when it failed.
    fn fetch_refspecs(
        &self,
        mirror: &Path,
        options: &[&str],
        refspecs: &[&str],
    ) -> Result<Option<String>, VcsError> {
        let mut git = self.command_in(mirror);
        git.args(["fetch", "--quiet", "--force", "--no-tags", "--no-recurse-submodules"]);
        git.args(["--no-write-fetch-head", "--no-auto-maintenance"]).args(options);
        self.upload_pack(&mut git);
        git.arg("--").arg(&self.runner.address).args(refspecs);
        let ended = self.runner.run("fetch", git)?;
        Ok((!ended.success).then_some(ended.said))
    }

    /// The full hash of a commit that the mirror has.
    fn commit(&self, mirror: &Path, name: &str) -> Result<Option<String>, VcsError> {
        let mut git = self.command_in(mirror);
        git.args(["rev-parse", "--verify", "--quiet", "--end-of-options"]).arg(format!("{name}^{{commit}}"));
        let ended = self.runner.run("rev-parse", git)?;
        let hash = ended.stdout.trim();
        Ok((ended.success && is_full_hash(hash)).then(|| hash.to_owned()))
    }

    fn write_files(&self, mirror: &Path, hash: &str, into: &Path) -> Result<(), VcsError> {
        let index = mirror.join("index");
        // One that was left would be about other files.
        remove_tree(&index).map_err(io_error("remove", &index))?;
        let mut git = self.command_in(mirror);
        git.current_dir(into).env("GIT_WORK_TREE", into).env("GIT_INDEX_FILE", &index);
        // Filters such as that of large file storage ask for it.
        git.arg("-c").arg(format!("remote.origin.url={}", self.runner.address));
        git.args(["read-tree", "--reset", "-u", "--no-recurse-submodules", hash]);
        self.runner.must("read-tree", git).map(drop)
    }

    /// Writes the files of submodules, each from a mirror of its own inside of this one.
    ///
    /// `git submodule` would leave a `.git` in each, write down their URLs, and ask the network for what is known.
    fn write_submodules(&self, mirror: &Path, hash: &str, into: &Path) -> Result<(), VcsError> {
        let list = into.join(".gitmodules");
        let Ok(metadata) = fs::symlink_metadata(&list) else { return Ok(()) };
        if !metadata.is_file() {
            return Ok(());
        }
        // What is wrong with the list is so in every mirror.
        let bad_list = |said: String| self.runner.unreachable(format!("its .gitmodules: {said}"));
        if metadata.len() > LARGEST_LIST {
            return Err(bad_list(format!("expected at most {LARGEST_LIST} bytes")));
        }
        let mut git = self.command();
        git.args(["config", "--null", "--list", "--file"]).arg(&list);
        let listed = self.runner.run("config", git)?;
        if !listed.success {
            return Err(bad_list(listed.said));
        }
        let urls = urls_by_path(&listed.stdout);
        if urls.is_empty() {
            return Ok(());
        }
        let mut git = self.command_in(mirror);
        git.env("GIT_LITERAL_PATHSPECS", "1");
        git.args(["ls-tree", "-z", "--full-tree", hash, "--"]).args(urls.keys());
        let entries = self.runner.run("ls-tree", git)?;
        if !entries.success {
            return Err(self.runner.failed("ls-tree", entries.said));
        }
        for entry in entries.stdout.split_terminator('\0') {
            if let Some((kind, path)) = entry.split_once('\t')
                && let Some(commit) = kind.strip_prefix("160000 commit ")
                && let Some(url) = urls.get(path)
            {
                let url = self.submodule_url(url)?;
                let mirrors = mirror.join("modules");
                fs::create_dir_all(&mirrors).map_err(io_error("make", &mirrors))?;
                let folder = into.join(path);
                fs::create_dir_all(&folder).map_err(io_error("make", &folder))?;
                let submodule = Git {
                    runner: Runner {
                        url: &url,
                        address: url.address(),
                        program: self.runner.program,
                        deadline: self.runner.deadline,
                    },
                    revision: Some(commit),
                    file_protocol: Some(if url.is_local() { "always" } else { "never" }),
                };
                submodule.check_out(&mirrors.join(url.folder()), &folder)?;
            }
        }
        Ok(())
    }

    /// The URL of a submodule, which may be relative to that of this repository.
    fn submodule_url(&self, text: &str) -> Result<RepoUrl, VcsError> {
        let url = if text.starts_with("./") || text.starts_with("../") {
            let absolute = relative_to(&self.runner.address, text).ok_or_else(|| {
                self.runner
                    .unreachable(format!("the URL of its submodule, {text}, leads to above all folders"))
            })?;
            RepoUrl::parse(&absolute)?
        } else {
            RepoUrl::parse(text)?
        };
        if url.is_local() && !self.runner.url.is_local() {
            let said =
                format!("its submodule {url} may not be on this machine, as the repository itself is not");
            return Err(self.runner.unreachable(said));
        }
        Ok(url)
    }

    /// Packs the mirror when a lot has been fetched since the last time, and drops what has long been of no use.
    fn tidy(&self, mirror: &Path) {
        let mut git = self.command_in(mirror);
        git.args(["gc", "--auto", "--quiet"]);
        let said = match self.runner.run("gc", git) {
            Ok(ended) if ended.success => return,
            Ok(ended) => ended.said,
            Err(error) => error.to_string(),
        };
        tracing::warn!(mirror = %mirror.display(), said, "the mirror of the repository cannot be packed");
    }
}

/// Whether a text is a whole SHA-1 or SHA-256 name.
fn is_full_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && is_hexadecimal(text)
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a revision that is no ref can be a commit all the same: a short hash, what `git describe` says
/// (`v1-2-gabcdef`), or an expression.
fn needs_history(revision: &str) -> bool {
    let hash = revision.rsplit_once("-g").map_or(revision, |(_, hash)| hash);
    (hash.len() >= 4 && is_hexadecimal(hash)) || revision.contains(['~', '^'])
}

/// The URLs of the submodules in a listing of `.gitmodules`, by the submodules' paths. Without those that are not to be
/// written at all, and without paths that no file in a revision can have.
fn urls_by_path<'a>(listing: &'a str) -> BTreeMap<&'a str, &'a str> {
    let mut modules: BTreeMap<&'a str, BTreeMap<&'a str, &'a str>> = BTreeMap::new();
    for entry in listing.split_terminator('\0') {
        if let Some((key, value)) = entry.split_once('\n')
            && let Some((name, setting)) = key.strip_prefix("submodule.").and_then(|key| key.rsplit_once('.'))
        {
            modules.entry(name).or_default().insert(setting, value);
        }
    }
    let usable = |settings: BTreeMap<&str, &'a str>| {
        let path = settings.get("path")?.trim_end_matches('/');
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        let wanted = !path.is_empty() && inside && settings.get("update") != Some(&"none");
        wanted.then_some((path, *settings.get("url")?))
    };
    modules.into_values().filter_map(usable).collect()
}

/// A relative URL made absolute as git does it: each leading `../` takes the last part of `base` off. Nothing when
/// there are more of them than parts.
pub(super) fn relative_to(base: &str, url: &str) -> Option<String> {
    let (mut base, mut rest, mut separator) = (base.trim_end_matches('/'), url, '/');
    loop {
        if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("../") {
            rest = after;
            // Of `host:path` the host stays.
            let end = base.rfind('/').or_else(|| base.rfind(':'))?;
            separator = char::from(base.as_bytes()[end]);
            base = &base[..end];
        } else {
            return Some(format!("{base}{separator}{rest}").trim_end_matches('/').to_owned());
        }
    }
}

/// A git that was killed leaves lock files, which would stop every later one, and what it had fetched. Nobody else is
/// at work here.
fn remove_leftovers(mirror: &Path) {
    let names = [
        "index.lock",
        "HEAD.lock",
        "config.lock",
        "packed-refs.lock",
        "shallow.lock",
        "gc.pid",
        "objects/maintenance.lock",
    ];
    for name in names {
        let _ = fs::remove_file(mirror.join(name));
    }
    let mut folders = vec![mirror.join("refs"), mirror.join("objects/pack")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) if name.ends_with(b".lock") || name.starts_with(b"tmp_") => {
                    let _ = fs::remove_file(entry.path());
                }
                _ => {}
            }
        }
    }
}
