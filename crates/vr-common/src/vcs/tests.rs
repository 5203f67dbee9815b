//! Tests of [`super`].

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::process::command;

const MINUTE: Duration = Duration::from_secs(60);

/// A repository `repo` that tests change, and a checkout of it.
struct Place {
    dir: TempDir,
    kind: RepoType,
}

impl Place {
    fn new(kind: RepoType) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap(), kind };
        fs::create_dir(place.repo()).unwrap();
        match kind {
            RepoType::Git => place.run(&["init", "--quiet", "--initial-branch=main"]),
            RepoType::Hg => place.run(&["init"]),
        };
        place
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    fn checkout(&self) -> PathBuf {
        self.dir.path().join("checkouts/app")
    }

    fn url(&self) -> RepoUrl {
        RepoUrl::parse(self.repo().to_str().unwrap()).unwrap()
    }

    /// Runs git or hg in the repository and gives its output.
    fn run(&self, args: &[&str]) -> String {
        run_in(self.kind, &self.repo(), args)
    }

    /// Writes a file and commits it; gives the hash.
    fn commit(&self, name: &str, text: &str) -> String {
        fs::write(self.repo().join(name), text).unwrap();
        match self.kind {
            RepoType::Git => {
                self.run(&["add", "--all", "--force"]);
                self.run(&["commit", "--quiet", "-m", text]);
                self.run(&["rev-parse", "HEAD"])
            }
            RepoType::Hg => {
                self.run(&["commit", "--addremove", "-m", text]);
                self.run(&["identify", "--debug", "--id"])
            }
        }
    }

    fn update(&self, revision: Option<&str>) -> Result<String, VcsError> {
        update_checkout(self.kind, &self.url(), revision, &self.checkout(), MINUTE)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.checkout().join(name)).unwrap()
    }
}

fn run_in(kind: RepoType, dir: &Path, args: &[&str]) -> String {
    let mut program: Command = command(kind.as_str());
    program
        .current_dir(dir)
        .args(args)
        .env("HGPLAIN", "1")
        .env("HGUSER", "t")
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    for who in ["AUTHOR", "COMMITTER"] {
        program.env(format!("GIT_{who}_NAME"), "t").env(format!("GIT_{who}_EMAIL"), "t@example.com");
    }
    let output = program.output().unwrap();
    assert!(output.status.success(), "{kind} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn folders_are_those_of_the_published_implementation() {
    let vectors: Value = serde_json::from_str(include_str!("../../tests/data/vectors.json")).unwrap();
    let cases = vectors["repo_folder"].as_array().unwrap();
    assert!(cases.len() >= 6);
    for case in cases {
        let url = RepoUrl::parse(case["url"].as_str().unwrap()).unwrap();
        assert_eq!(url.basename(), case["basename"].as_str().unwrap());
        assert_eq!(url.folder(), case["folder"].as_str().unwrap());
    }
}

#[test]
fn urls_keep_their_revision_and_hide_their_password() {
    let url = RepoUrl::parse("https://user:secret@example.com/app.git#v5").unwrap();
    assert_eq!(url.url(), "https://user:secret@example.com/app.git");
    assert_eq!(url.revision(), Some("v5"));
    assert_eq!(url.to_string(), "https://user:***@example.com/app.git#v5");
    assert_eq!(format!("{url:?}"), "RepoUrl(https://user:***@example.com/app.git#v5)");
    assert_eq!(
        url.with_revision("v6").unwrap().to_full_string(),
        "https://user:secret@example.com/app.git#v6"
    );
    assert_eq!(serde_json::to_string(&url).unwrap(), "\"https://user:secret@example.com/app.git#v5\"");
    let again: RepoUrl = serde_json::from_str("\"https://user:secret@example.com/app.git#v5\"").unwrap();
    assert_eq!(again, url);
}

#[test]
fn what_git_or_hg_would_misunderstand_is_refused() {
    for (text, reason) in [
        ("", "it is empty"),
        ("  #v1", "it is empty"),
        ("--upload-pack=touch x", "neither it nor its host may begin with \"-\""),
        ("ssh://-oProxyCommand=touch/x", "neither it nor its host may begin with \"-\""),
        ("ssh://git@-oProxyCommand=touch/x", "neither it nor its host may begin with \"-\""),
        ("ext::sh -c touch", "expected a URL or a path, not a remote helper"),
        ("https://host/a\nb", "it contains control characters"),
        ("/", "it names no repository"),
    ] {
        let error = RepoUrl::parse(text).unwrap_err();
        assert!(matches!(&error, VcsError::BadUrl { reason: r, .. } if *r == reason), "{text:?}: {error}");
    }
    for (revision, reason) in [
        ("-f", "it may not begin with \"-\""),
        ("a\u{7}b", "it contains control characters"),
        ("", "it is empty"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let url = RepoUrl::parse("/srv/repo").unwrap();
        let error =
            update_checkout(RepoType::Git, &url, Some(revision), &dir.path().join("x"), MINUTE).unwrap_err();
        assert_eq!(error.to_string(), format!("bad revision {revision:?}: {reason}"));
    }
}

#[test]
fn kinds_are_named_in_lower_case() {
    assert_eq!("git".parse(), Ok(RepoType::Git));
    assert_eq!(serde_json::to_string(&RepoType::Hg).unwrap(), "\"hg\"");
    assert_eq!(
        "svn".parse::<RepoType>().unwrap_err().to_string(),
        "unknown repository type \"svn\": expected \"git\" or \"hg\""
    );
}

/// What both kinds must do alike.
fn follows_the_repository(kind: RepoType) {
    let place = Place::new(kind);
    let first = place.commit("file", "one");
    match kind {
        RepoType::Git => place.run(&["tag", "v1"]),
        RepoType::Hg => place.run(&["tag", "--local", "unused"]),
    };
    assert_eq!(place.update(None).unwrap(), first);
    assert_eq!(place.read("file"), "one");

    // Left-over files of a build go, ignored ones too; changed and removed ones come back.
    fs::write(place.checkout().join("left"), "x").unwrap();
    fs::create_dir_all(place.checkout().join("sub/dir")).unwrap();
    fs::write(place.checkout().join("sub/dir/ignored.pyc"), "x").unwrap();
    fs::write(place.checkout().join("file"), "changed").unwrap();
    fs::write(place.repo().join(".gitignore"), "*.pyc\n").unwrap();
    fs::write(place.repo().join(".hgignore"), "syntax: glob\n*.pyc\n").unwrap();
    let second = place.commit("new", "two");
    assert_eq!(place.update(None).unwrap(), second);
    let data = format!(".{kind}");
    let mut expected = [data.as_str(), ".gitignore", ".hgignore", "file", "new"];
    expected.sort_unstable();
    assert_eq!(names(&place.checkout()), expected);
    assert_eq!(place.read("file"), "one");

    // Back to an older one, by its whole and by a short hash.
    assert_eq!(place.update(Some(&first)).unwrap(), first);
    assert!(!place.checkout().join("new").exists());
    assert_eq!(place.update(Some(&second[..10])).unwrap(), second);

    // Nothing but the lock beside the checkout; no address of the repository in the checkout.
    assert_eq!(names(place.checkout().parent().unwrap()), [".app.lock", "app"]);
    for settings in [".git/config", ".hg/hgrc"] {
        let text = fs::read_to_string(place.checkout().join(settings)).unwrap_or_default();
        assert!(!text.contains("repo\n"), "{text}");
    }

    let error = place.update(Some("v9")).unwrap_err();
    assert_eq!(error.to_string(), format!("{} has no revision \"v9\"", place.repo().display()));
    assert!(matches!(error, VcsError::UnknownRevision { .. }));
    let unknown_hash = "0123456789012345678901234567890123456789";
    assert!(matches!(place.update(Some(unknown_hash)), Err(VcsError::UnknownRevision { .. })));
    // The checkout is as good as before.
    assert_eq!(place.update(None).unwrap(), second);
}

#[test]
fn a_git_checkout_follows_the_repository() {
    follows_the_repository(RepoType::Git);
}

#[test]
fn an_hg_checkout_follows_the_repository() {
    follows_the_repository(RepoType::Hg);
}

fn is_repaired(kind: RepoType) {
    let place = Place::new(kind);
    let first = place.commit("file", "one");
    place.update(None).unwrap();
    let (data, store) = match kind {
        RepoType::Git => (".git", "objects"),
        RepoType::Hg => (".hg", "store"),
    };
    let second = place.commit("file", "two");
    let breakages: [&dyn Fn(&Path); 5] = [
        &|dir| fs::remove_dir_all(dir.join(data)).unwrap(),
        &|dir| fs::remove_dir_all(dir.join(data).join(store)).unwrap(),
        &|dir| {
            fs::remove_dir_all(dir).unwrap();
            fs::write(dir, "a file").unwrap();
        },
        &|dir| {
            fs::remove_dir_all(dir).unwrap();
            fs::create_dir(dir).unwrap();
        },
        &|dir| {
            let file = if kind == RepoType::Git { "HEAD" } else { "requires" };
            fs::write(dir.join(data).join(file), "nonsense\0").unwrap();
        },
    ];
    for (number, break_it) in breakages.iter().enumerate() {
        break_it(&place.checkout());
        let (revision, expected) =
            if number % 2 == 0 { (None, &second) } else { (Some(first.as_str()), &first) };
        assert_eq!(&place.update(revision).unwrap(), expected, "breakage {number}");
        assert_eq!(place.read("file"), if number % 2 == 0 { "two" } else { "one" });
    }
}

#[test]
fn a_broken_git_checkout_is_made_anew() {
    is_repaired(RepoType::Git);
}

#[test]
fn a_broken_hg_checkout_is_made_anew() {
    is_repaired(RepoType::Hg);
}

fn cannot_be_read(kind: RepoType) {
    let dir = tempfile::tempdir().unwrap();
    let checkout = dir.path().join("app");
    let missing = dir.path().join("missing");
    let url = RepoUrl::parse(missing.to_str().unwrap()).unwrap();
    let error = update_checkout(kind, &url, None, &checkout, MINUTE).unwrap_err();
    assert!(matches!(error, VcsError::Unreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("cannot read the repository {}: ", missing.display())), "{text}");
    assert!(!checkout.exists());
    assert_eq!(names(dir.path()), [".app.lock"]);
}

#[test]
fn a_missing_git_repository_is_an_error_in_gits_words() {
    cannot_be_read(RepoType::Git);
}

#[test]
fn a_missing_hg_repository_is_an_error_in_hgs_words() {
    cannot_be_read(RepoType::Hg);
}

/// A server that takes connections and never says a word.
fn silent_server() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn stops_in_time(kind: RepoType) {
    let (_listener, address) = silent_server();
    let dir = tempfile::tempdir().unwrap();
    let url = RepoUrl::parse(&format!("http://user:secret@{address}/app")).unwrap();
    let started = Instant::now();
    let timeout = Duration::from_secs(2);
    let error = update_checkout(kind, &url, None, &dir.path().join("app"), timeout).unwrap_err();
    assert!(matches!(error, VcsError::TimedOut { .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    assert!(started.elapsed() < MINUTE);
    assert_eq!(names(dir.path()), [".app.lock"]);
    // The helpers that git starts are gone with it: soon nobody has our address in their arguments any more.
    while !processes_with(&address).is_empty() {
        assert!(started.elapsed() < MINUTE, "{:?}", processes_with(&address));
        std::thread::yield_now();
    }
}

/// The folders in `/proc` of those who have a text in their arguments.
fn processes_with(text: &str) -> Vec<PathBuf> {
    let has_text = |process: &PathBuf| {
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(text)
    };
    fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(has_text).collect()
}

#[test]
fn a_git_that_hangs_is_stopped_with_its_helpers() {
    stops_in_time(RepoType::Git);
}

#[test]
fn an_hg_that_hangs_is_stopped() {
    stops_in_time(RepoType::Hg);
}

#[test]
fn moved_tags_rewritten_and_deleted_branches_are_followed() {
    let place = Place::new(RepoType::Git);
    let first = place.commit("file", "one");
    place.run(&["tag", "v1"]);
    place.run(&["branch", "dev"]);
    assert_eq!(place.update(Some("v1")).unwrap(), first);
    place.run(&["checkout", "--quiet", "dev"]);
    let dev = place.commit("file", "dev");
    assert_eq!(place.update(Some("dev")).unwrap(), dev);

    // Rewritten, so that the old one is no ancestor of the new one; the tag goes elsewhere.
    place.run(&["commit", "--quiet", "--amend", "-m", "rewritten"]);
    let rewritten = place.run(&["rev-parse", "HEAD"]);
    assert_ne!(dev, rewritten);
    place.run(&["tag", "--force", "v1"]);
    assert_eq!(place.update(Some("dev")).unwrap(), rewritten);
    assert_eq!(place.update(Some("v1")).unwrap(), rewritten);
    // An annotated tag gives the commit it is on, and a branch wins over a tag of its name.
    place.run(&["tag", "-a", "-m", "about it", "v2", "main"]);
    place.run(&["tag", "main", "dev"]);
    assert_eq!(place.update(Some("v2")).unwrap(), first);
    assert_eq!(place.update(Some("main")).unwrap(), first);
    assert_eq!(place.update(Some("refs/tags/main")).unwrap(), rewritten);
    // The default branch is that of the moment.
    assert_eq!(place.update(None).unwrap(), rewritten);
    place.run(&["checkout", "--quiet", "refs/heads/main"]);
    place.run(&["symbolic-ref", "HEAD", "refs/heads/main"]);
    assert_eq!(place.update(None).unwrap(), first);
    assert_eq!(place.update(Some("HEAD")).unwrap(), first);

    place.run(&["branch", "-D", "dev"]);
    place.run(&["tag", "-d", "v1"]);
    for gone in ["dev", "v1"] {
        assert!(matches!(place.update(Some(gone)), Err(VcsError::UnknownRevision { .. })), "{gone}");
    }
    // `dev/x` needs a folder where the file of `dev` was.
    place.run(&["branch", "dev/x", "refs/heads/main"]);
    assert_eq!(place.update(Some("dev/x")).unwrap(), first);
}

#[test]
fn a_git_commit_without_a_name_is_found_by_its_hash() {
    let place = Place::new(RepoType::Git);
    place.commit("file", "one");
    let nameless = place.commit("file", "two");
    place.run(&["reset", "--quiet", "--hard", "HEAD~1"]);
    // What big hosting services allow.
    place.run(&["config", "uploadpack.allowAnySHA1InWant", "true"]);
    assert_eq!(place.update(Some(&nameless)).unwrap(), nameless);
    assert_eq!(place.read("file"), "two");
}

#[test]
fn a_git_repository_without_the_branch_it_starts_with_still_has_its_others() {
    let place = Place::new(RepoType::Git);
    let error = place.update(None).unwrap_err();
    assert!(matches!(error, VcsError::UnknownRevision { .. }), "{error}");
    let first = place.commit("file", "one");
    place.run(&["symbolic-ref", "HEAD", "refs/heads/unborn"]);
    assert_eq!(place.update(Some("main")).unwrap(), first);
    assert!(matches!(place.update(None), Err(VcsError::UnknownRevision { .. })));
}

#[test]
fn git_submodules_come_along_also_by_relative_names() {
    let library = Place::new(RepoType::Git);
    library.commit("code", "library one");
    let nested = Place::new(RepoType::Git);
    nested.commit("deep", "nested");
    let allow = ["-c", "protocol.file.allow=always", "submodule", "--quiet", "add"];
    let nested_url = nested.repo();
    library.run(&[&allow[..], &[nested_url.to_str().unwrap(), "nested"]].concat());
    library.commit("code", "library one");
    let place = Place::new(RepoType::Git);
    // A sibling of the app's repository, named by a relative path.
    fs::rename(library.repo(), place.dir.path().join("library")).unwrap();
    let absolute = place.dir.path().join("library");
    place.run(&[&allow[..], &[absolute.to_str().unwrap(), "lib"]].concat());
    place.run(&["config", "--file", ".gitmodules", "submodule.lib.url", "../library"]);
    place.commit("file", "with library");
    place.update(None).unwrap();
    assert_eq!(place.read("lib/code"), "library one");
    assert_eq!(place.read("lib/nested/deep"), "nested");

    // The library goes on, the app with it; files left in the submodule go.
    fs::write(place.checkout().join("lib/left"), "x").unwrap();
    fs::write(absolute.join("code"), "library two").unwrap();
    run_in(RepoType::Git, &absolute, &["commit", "--quiet", "--all", "-m", "two"]);
    let in_app = place.repo().join("lib");
    run_in(RepoType::Git, &in_app, &["-c", "protocol.file.allow=always", "pull", "--quiet"]);
    place.commit("file", "with newer library");
    place.update(None).unwrap();
    assert_eq!(place.read("lib/code"), "library two");
    assert!(!place.checkout().join("lib/left").exists());

    place.run(&["rm", "--quiet", "lib"]);
    place.commit("file", "without library");
    place.update(None).unwrap();
    assert!(!place.checkout().join("lib").exists());

    let target = place.dir.path().join("exported");
    place.update(Some("HEAD~1")).unwrap();
    export(&place.checkout(), &target).unwrap();
    assert_eq!(names(&target), [".gitmodules", "file", "lib"]);
    assert_eq!(names(&target.join("lib")), [".gitmodules", "code", "nested"]);
}

#[test]
fn hooks_of_a_checkout_do_not_run_and_stale_locks_do_not_matter() {
    let place = Place::new(RepoType::Git);
    place.commit("file", "one");
    place.update(None).unwrap();
    let hooks = place.checkout().join(".git/hooks");
    fs::create_dir_all(&hooks).unwrap();
    let witness = place.dir.path().join("witness");
    for hook in ["post-checkout", "reference-transaction", "post-index-change"] {
        fs::write(hooks.join(hook), format!("#!/bin/sh\ntouch {}\n", witness.display())).unwrap();
        fs::set_permissions(hooks.join(hook), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(place.checkout().join(".git/index.lock"), "").unwrap();
    fs::write(place.checkout().join(".git/refs/remotes/origin/main.lock"), "").unwrap();
    let inode = fs::metadata(place.checkout()).unwrap().ino();
    let second = place.commit("file", "two");
    assert_eq!(place.update(None).unwrap(), second);
    assert!(!witness.exists());
    assert_eq!(fs::metadata(place.checkout()).unwrap().ino(), inode, "the checkout was made anew");
}

#[test]
fn a_repository_of_another_owner_can_be_used() {
    for kind in [RepoType::Git, RepoType::Hg] {
        let place = Place::new(kind);
        let first = place.commit("file", "one");
        let mut folders = vec![place.repo()];
        while let Some(path) = folders.pop() {
            std::os::unix::fs::lchown(&path, Some(12345), Some(12345)).unwrap();
            if path.is_dir() {
                folders.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
        }
        assert_eq!(place.update(None).unwrap(), first);
        assert_eq!(place.update(None).unwrap(), first);
    }
}

#[test]
fn hg_branches_tags_and_bookmarks_are_those_of_the_repository() {
    let place = Place::new(RepoType::Hg);
    let first = place.commit("file", "one");
    place.run(&["tag", "v1"]);
    place.run(&["branch", "--quiet", "stable"]);
    let stable = place.commit("file", "stable");
    place.run(&["bookmark", "--rev", &first, "marked"]);
    assert_eq!(place.update(Some("v1")).unwrap(), first);
    assert_eq!(place.update(Some("stable")).unwrap(), stable);
    assert_eq!(place.update(Some("marked")).unwrap(), first);
    // Without a revision: what is on the branch "default", not the latest one.
    let default = place.run(&["log", "--rev", "default", "--template", "{node}"]);
    assert_eq!(place.update(None).unwrap(), default);
    place.run(&["bookmark", "--force", "--rev", &stable, "marked"]);
    assert_eq!(place.update(Some("marked")).unwrap(), stable);
    assert_eq!(place.read("file"), "stable");
}

#[test]
fn two_callers_for_one_checkout_wait_for_each_other() {
    let place = Place::new(RepoType::Git);
    let first = place.commit("file", "one");
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3).map(|_| scope.spawn(|| place.update(None).unwrap())).collect();
        for caller in callers {
            assert_eq!(caller.join().unwrap(), first);
        }
    });
    assert_eq!(names(place.checkout().parent().unwrap()), [".app.lock", "app"]);
}

#[test]
fn a_copied_tree_is_the_same_and_stays_inside() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("sub/.git")).unwrap();
    fs::create_dir(from.join("closed")).unwrap();
    fs::write(from.join("closed/file"), "text").unwrap();
    fs::write(dir.path().join("outside"), "untouched").unwrap();
    symlink("../outside", from.join("link")).unwrap();
    let past = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::open(from.join("closed/file")).unwrap().set_modified(past).unwrap();
    fs::set_permissions(from.join("closed/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(from.join("closed"), fs::Permissions::from_mode(0o500)).unwrap();
    std::os::unix::fs::lchown(from.join("closed/file"), Some(77), Some(78)).unwrap();
    fs::set_permissions(from.join("closed/file"), fs::Permissions::from_mode(0o4751)).unwrap();

    let to = dir.path().join("deep/to");
    copy_tree(&from, &to).unwrap();
    assert_eq!(names(&to), ["closed", "link", "sub"]);
    assert!(to.join("sub/.git").is_dir());
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("../outside"));
    assert_eq!(fs::metadata(to.join("closed")).unwrap().mode() & 0o7777, 0o500);
    let copied = fs::metadata(to.join("closed/file")).unwrap();
    assert_eq!((copied.mode() & 0o7777, copied.uid(), copied.gid()), (0o4751, 77, 78));
    assert_eq!(copied.modified().unwrap(), past);

    // Nothing is written through what is already there.
    let trap = dir.path().join("trap");
    fs::create_dir(&trap).unwrap();
    symlink("..", trap.join("closed")).unwrap();
    assert!(matches!(copy_tree(&from, &trap), Err(VcsError::Io { action: "copy", .. })));
    assert!(!dir.path().join("file").exists());
    let error = copy_tree(&from, &from.join("inside")).unwrap_err();
    assert!(crate::exit::chain(&error).ends_with("the copy would be inside of what is copied"));
}
