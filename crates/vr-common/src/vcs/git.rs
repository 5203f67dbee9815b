//! Git repositories: a bare one is kept as the mirror, and a revision's files are written straight from it.
//!
//! A mirror has as little of the history as will do, which mostly is the commits that were wanted. The repository's URL
//! is passed with each command and never written into the mirror. A name and a password in it are passed on in
//! variables, for everybody on the machine can see arguments.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::process::Command;
use std::time::Instant;

use super::below::make_empty_below;
use super::run::{Runner, is_about_the_machine};
use super::url::Account;
use super::{RepoUrl, Trouble, VcsError, io_error, with_mirror};
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

/// Flaws that old versions of git and of other programs left in many repositories, or that this module looks at itself.
/// All others, such as a name twice in one folder, could lead git astray.
const HARMLESS_FLAWS: [&str; 18] = [
    "badDate",
    "badDateOverflow",
    "badEmail",
    "badFilemode",
    "badName",
    "badTimezone",
    "gitmodulesName",
    "gitmodulesParse",
    "gitmodulesUpdate",
    "gitmodulesUrl",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "multipleAuthors",
    "nullSha1",
    "zeroPaddedDate",
    "zeroPaddedFilemode",
];
/// What git says of a repository that no mirror can hold, or whose files cannot be written anywhere.
const ABOUT_CONTENT: [&str; 2] = ["fsck error", "invalid path '"];
/// What git says when data that is there cannot be read, or is of another format than the repository's.
const ABOUT_DAMAGE: [&str; 6] =
    ["inflate:", "corrupt", "unable to unpack", "unable to read", "bad config", "mismatched algorithms"];
/// Gives git the name and the password, from variables that only this user and root can see.
const CREDENTIAL_HELPER: &str = "!f() { test \"$1\" = get && \
    printf 'username=%s\\npassword=%s\\n' \"$VELOCIRAPTOR_VCS_NAME\" \"$VELOCIRAPTOR_VCS_PASSWORD\"; }; f";

/// As [`super::check_out`].
pub(super) fn check_out(
    url: &RepoUrl,
    revision: Option<&str>,
    mirror: &Path,
    into: &Path,
    deadline: Instant,
) -> Result<String, VcsError> {
    Git::new(url, revision, deadline, None)?.check_out(mirror, into)
}

/// As [`check_out`], for a repository that another one names.
pub(super) fn check_out_part(
    url: &RepoUrl,
    commit: &str,
    mirror: &Path,
    into: &Path,
    deadline: Instant,
) -> Result<String, VcsError> {
    let file_protocol = Some(if url.is_local() { "always" } else { "never" });
    Git::new(url, Some(commit), deadline, file_protocol)?.check_out(mirror, into)
}

struct Git<'a> {
    runner: Runner<'a>,
    revision: Option<&'a str>,
    /// For a submodule, whether it may be on this machine: `always` or `never`.
    file_protocol: Option<&'static str>,
    account: Option<Account>,
    /// Whether the user's own settings say how ssh is started.
    own_ssh: bool,
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

impl<'a> Git<'a> {
    fn new(
        url: &'a RepoUrl,
        revision: Option<&'a str>,
        deadline: Instant,
        file_protocol: Option<&'static str>,
    ) -> Result<Self, VcsError> {
        let account = url.account();
        let address = account.as_ref().map_or_else(|| url.address(), |account| account.address.clone());
        let runner = Runner { url, address, program: "git", deadline };
        let is_set = |name| std::env::var_os(name).is_some();
        let own_ssh = is_set("GIT_SSH_COMMAND") || is_set("GIT_SSH");
        let mut git = Self { runner, revision, file_protocol, account, own_ssh };
        if !own_ssh && url.is_ssh() {
            let mut config = git.command();
            config.args(["config", "--get", "core.sshCommand"]);
            git.own_ssh = !git.runner.run("config", config)?.text().is_empty();
        }
        Ok(git)
    }

    fn check_out(&self, mirror: &Path, into: &Path) -> Result<String, VcsError> {
        let (wanted, object_format) = self.look_up()?;
        let hash = with_mirror(
            mirror,
            into,
            |aside| {
                let mut init = self.command();
                init.args(["-c", "init.defaultRefFormat=files", "init", "--quiet", "--bare", "--template="]);
                init.arg(format!("--object-format={object_format}")).arg("--").arg(aside);
                self.runner.must("init", init).map(drop)
            },
            |mirror, _| self.write_from(mirror, &wanted, into),
        )?;
        // Afterwards: what is wrong with one of them says nothing about this mirror.
        self.write_submodules(mirror, into)?;
        Ok(hash)
    }

    /// git with everything set that no command may go without.
    fn command(&self) -> Command {
        let mut git = command("git");
        for name in MISLEADING_VARIABLES {
            git.env_remove(name);
        }
        git.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
        if !self.own_ssh {
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
        if let Some(account) = &self.account {
            authorize(&mut git, account);
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
        if answer.success { Ok(answer.text()) } else { Err(self.runner.unreachable(answer.said)) }
    }

    fn write_from(&self, mirror: &Path, wanted: &Wanted, into: &Path) -> Result<String, Trouble> {
        let is_there = |name: &str| fs::symlink_metadata(mirror.join(name)).is_ok();
        // The second: a working copy whose files look like a mirror.
        if !is_there("HEAD") || is_there(".git") || is_there(".hg") {
            let said = "the folder is not a bare git repository".to_owned();
            return Err(Trouble::Broken(self.runner.failed("status", said)));
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
        if fetched {
            self.tidy(mirror);
        }
        Ok(hash)
    }

    /// What it means that a step failed which needs the mirror.
    fn trouble(&self, mirror: &Path, step: &str, said: String) -> Trouble {
        let says_one_of = |words: &[&str]| words.iter().any(|words| said.contains(words));
        if says_one_of(&ABOUT_CONTENT) {
            return Trouble::Other(self.runner.bad_content(said));
        }
        let is_damaged = says_one_of(&ABOUT_DAMAGE);
        let is_about_the_machine = is_about_the_machine(&said);
        let failed = self.runner.failed(step, said);
        if is_about_the_machine {
            return Trouble::Other(failed);
        }
        let mut fsck = self.command_in(mirror);
        fsck.args(["fsck", "--connectivity-only", "--no-dangling", "--no-progress"]);
        match self.runner.run("fsck", fsck) {
            Ok(ended) if ended.success && !is_damaged => Trouble::Other(failed),
            Ok(_) => Trouble::Broken(failed),
            Err(error) => Trouble::Other(error),
        }
    }

    /// Fetches the revision, and gives its commit.
    fn fetch(&self, mirror: &Path, wanted: &Wanted) -> Result<String, Trouble> {
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
                    return Err(self.runner.unknown_revision(self.revision.unwrap_or("HEAD")).into());
                }
                Some(said)
                    if is_about_the_machine(&said)
                        || ABOUT_CONTENT.iter().any(|words| said.contains(words)) =>
                {
                    return Err(self.trouble(mirror, "fetch", said));
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
        Err(self.runner.unknown_revision(revision).into())
    }

    /// Fetches all branches and tags with their history, and forgets those that are gone. For what cannot be had alone,
    /// which is all there is with servers that only give out files.
    fn fetch_everything(&self, mirror: &Path) -> Result<(), Trouble> {
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
                Ok(fs::write(&marker, "").map_err(io_error("write", &marker))?)
            }
            Some(said) => Err(self.trouble(mirror, "fetch", said)),
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
        git.args(["-c", "fetch.fsckObjects=true"]);
        for flaw in HARMLESS_FLAWS {
            git.arg("-c").arg(format!("fetch.fsck.{flaw}=ignore"));
        }
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
        Ok(Some(ended.text()).filter(|hash| ended.success && is_full_hash(hash)))
    }

    /// git for the mirror's index and the files that are, or will be, in `into`.
    fn command_for_files(&self, mirror: &Path, into: &Path) -> Command {
        let mut git = self.command_in(mirror);
        git.current_dir(into).env("GIT_WORK_TREE", into).env("GIT_INDEX_FILE", mirror.join("index"));
        git
    }

    fn write_files(&self, mirror: &Path, hash: &str, into: &Path) -> Result<(), Trouble> {
        let index = mirror.join("index");
        // One that was left would be about other files.
        remove_tree(&index).map_err(io_error("remove", &index))?;
        let mut git = self.command_for_files(mirror, into);
        // Filters such as that of large file storage ask for it.
        git.arg("-c").arg(format!("remote.origin.url={}", self.runner.address));
        git.args(["read-tree", "--reset", "-u", "--no-recurse-submodules", hash]);
        let ended = self.runner.run("read-tree", git)?;
        if ended.success { Ok(()) } else { Err(self.trouble(mirror, "read-tree", ended.said)) }
    }

    /// Writes the files of submodules, each from a mirror of its own inside of this one.
    ///
    /// `git submodule` would leave a `.git` in each, write down their URLs, and ask the network for what is known.
    fn write_submodules(&self, mirror: &Path, into: &Path) -> Result<(), VcsError> {
        let list = into.join(".gitmodules");
        let Ok(metadata) = fs::symlink_metadata(&list) else { return Ok(()) };
        if !metadata.is_file() {
            return Ok(());
        }
        let bad_list = |said: String| self.runner.bad_content(format!("its .gitmodules: {said}"));
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
        // What was written, which is not all that a tree with a name twice says.
        let mut git = self.command_for_files(mirror, into);
        git.env("GIT_LITERAL_PATHSPECS", "1");
        git.args(["ls-files", "--stage", "-z", "--"]).args(urls.keys().map(|path| OsStr::from_bytes(path)));
        let entries = self.runner.run("ls-files", git)?;
        if !entries.success {
            return Err(self.runner.failed("ls-files", entries.said));
        }
        for entry in entries.stdout.split(|&byte| byte == 0) {
            if let Some((kind, path)) = cut(entry, b'\t')
                && let Some(commit) = gitlink(kind)
                && let Some(url) = urls.get(path)
            {
                let url = self.submodule_url(url)?;
                let folder = make_empty_below(&self.runner, "submodule", into, path)?;
                let mirror = mirror.join("modules").join(url.folder());
                super::make_parent(&mirror)?;
                check_out_part(&url, commit, &mirror, &folder, self.runner.deadline)?;
            }
        }
        Ok(())
    }

    /// The URL of a submodule, which may be relative to that of this repository.
    fn submodule_url(&self, text: &[u8]) -> Result<RepoUrl, VcsError> {
        let Ok(text) = std::str::from_utf8(text) else {
            let said = format!("the URL of its submodule, {:?}, is not UTF-8", String::from_utf8_lossy(text));
            return Err(self.runner.bad_content(said));
        };
        let url = if text.starts_with("./") || text.starts_with("../") {
            // With the name and password, which count for it too.
            let absolute = relative_to(&self.runner.url.address(), text).ok_or_else(|| {
                self.runner
                    .bad_content(format!("the URL of its submodule, {text}, leads to above all folders"))
            })?;
            RepoUrl::parse(&absolute)?
        } else {
            RepoUrl::parse(text)?
        };
        self.runner.must_be_as_far(&url, "submodule")?;
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

/// What is before and after the first of a byte.
fn cut(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = bytes.iter().position(|&byte| byte == at)?;
    Some((&bytes[..position], &bytes[position + 1..]))
}

/// The commit of an entry of the index, `mode hash stage`, that is a submodule.
fn gitlink(kind: &[u8]) -> Option<&str> {
    let (commit, _stage) = std::str::from_utf8(kind).ok()?.strip_prefix("160000 ")?.split_once(' ')?;
    Some(commit)
}

/// The URLs of the submodules in a listing of `.gitmodules`, by the submodules' paths. Without those that are not to be
/// written at all, and without paths that no file in a revision can have.
fn urls_by_path(listing: &[u8]) -> BTreeMap<&[u8], &[u8]> {
    let mut modules: BTreeMap<&[u8], BTreeMap<&[u8], &[u8]>> = BTreeMap::new();
    for entry in listing.split(|&byte| byte == 0) {
        if let Some((key, value)) = cut(entry, b'\n')
            && let Some(key) = key.strip_prefix(b"submodule.")
            && let Some(dot) = key.iter().rposition(|&byte| byte == b'.')
        {
            modules.entry(&key[..dot]).or_default().insert(&key[dot + 1..], value);
        }
    }
    modules.into_values().filter_map(|settings| usable(&settings)).collect()
}

/// The path and the URL of one submodule.
fn usable<'a>(settings: &BTreeMap<&[u8], &'a [u8]>) -> Option<(&'a [u8], &'a [u8])> {
    let mut path = *settings.get(&b"path"[..])?;
    while let Some(shorter) = path.strip_suffix(b"/") {
        path = shorter;
    }
    let mut parts = Path::new(OsStr::from_bytes(path)).components();
    let inside = parts.all(|part| matches!(part, Component::Normal(_)));
    let wanted = !path.is_empty() && inside && settings.get(&b"update"[..]) != Some(&&b"none"[..]);
    wanted.then_some((path, *settings.get(&b"url"[..])?))
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

/// Lets git use a name and password for the host they were given for, and no others.
fn authorize(git: &mut Command, account: &Account) {
    let setting = |name| format!("credential.{}.{name}", account.origin);
    let settings = match &account.password {
        Some(password) => {
            git.env("VELOCIRAPTOR_VCS_NAME", &account.name).env("VELOCIRAPTOR_VCS_PASSWORD", password);
            // The empty one stands for: none of the user's own, which would be asked first and told everything.
            vec![(setting("helper"), ""), (setting("helper"), CREDENTIAL_HELPER)]
        }
        // The user's settings may know the password.
        None => vec![(setting("username"), account.name.as_str())],
    };
    git.env("GIT_CONFIG_COUNT", settings.len().to_string());
    for (number, (key, value)) in settings.into_iter().enumerate() {
        git.env(format!("GIT_CONFIG_KEY_{number}"), key).env(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
}

/// A git that was killed leaves lock files, which would stop every later one, and what it had fetched. Nobody else is
/// at work here.
fn remove_leftovers(mirror: &Path) {
    let deep = ["refs", "objects/pack", "objects/info"].map(|name| (mirror.join(name), true));
    let mut folders = vec![(mirror.to_owned(), false), (mirror.join("objects"), false)];
    folders.extend(deep);
    let objects = mirror.join("objects");
    while let Some((folder, deep)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            let is_left = name.ends_with(b".lock")
                || matches!(name, b"gc.pid" | b"packed-refs.new")
                // A branch can be called like that.
                || (name.starts_with(b"tmp_") && folder.starts_with(&objects));
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && deep => folders.push((entry.path(), true)),
                Ok(kind) if !kind.is_dir() && is_left => {
                    let _ = fs::remove_file(entry.path());
                }
                _ => {}
            }
        }
    }
}
