//! Tests of [`super`].

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::process::command;

mod hostile;
mod secrets;

const MINUTE: Duration = Duration::from_secs(60);

/// A repository `repo` that tests change, a mirror of it, and the files of a revision.
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

    fn mirror(&self) -> PathBuf {
        self.dir.path().join("mirrors/app")
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("files/of app")
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

    fn check_out(&self, revision: Option<&str>) -> Result<String, VcsError> {
        self.check_out_from(&self.url(), revision)
    }

    fn check_out_from(&self, url: &RepoUrl, revision: Option<&str>) -> Result<String, VcsError> {
        remove_tree(&self.files()).unwrap();
        let hash = check_out(self.kind, url, revision, &self.mirror(), &self.files(), MINUTE)?;
        assert_eq!(names(self.mirror().parent().unwrap()), ["app"]);
        Ok(hash)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.files().join(name)).unwrap()
    }

    /// Runs git in the mirror.
    fn in_mirror(&self, args: &[&str]) -> String {
        run_in(self.kind, &self.mirror(), args)
    }

    fn commits_in_mirror(&self) -> usize {
        self.in_mirror(&["rev-list", "--all"]).lines().count()
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

/// Everything below a folder.
fn all_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            found.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

/// The files below a folder that contain a text.
fn files_with(text: &str, dir: &Path) -> Vec<PathBuf> {
    let contains = |path: &PathBuf| {
        path.is_file() && fs::read(path).unwrap().windows(text.len()).any(|part| part == text.as_bytes())
    };
    all_below(dir).into_iter().filter(contains).collect()
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
    assert_eq!(url.to_string(), "https://***@example.com/app.git#v5");
    assert_eq!(format!("{url:?}"), "RepoUrl(https://***@example.com/app.git#v5)");
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
        let place = Place::new(RepoType::Git);
        let error = place.check_out(Some(revision)).unwrap_err();
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
    assert_eq!(place.check_out(None).unwrap(), first);
    assert_eq!(place.read("file"), "one");

    fs::create_dir_all(place.repo().join("sub/dir")).unwrap();
    fs::write(place.repo().join("sub/dir/script"), "#!/bin/sh").unwrap();
    fs::set_permissions(place.repo().join("sub/dir/script"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("../file", place.repo().join("sub/link")).unwrap();
    let second = place.commit("new", "two");
    assert_eq!(place.check_out(None).unwrap(), second);
    assert_eq!(names(&place.files()), ["file", "new", "sub"]);
    assert_eq!(place.read("file"), "one");
    assert_eq!(fs::read_link(place.files().join("sub/link")).unwrap(), Path::new("../file"));
    let mode = |name: &str| fs::metadata(place.files().join(name)).unwrap().mode() & 0o777;
    assert_eq!([mode("file"), mode("sub/dir/script"), mode("sub/dir")], [0o644, 0o755, 0o755]);

    // Back to an older one, by its whole and by a short hash; by the URL's fragment.
    assert_eq!(place.check_out(Some(&first)).unwrap(), first);
    assert_eq!(names(&place.files()), ["file"]);
    assert_eq!(place.check_out(Some(&second[..10])).unwrap(), second);
    assert_eq!(place.check_out_from(&place.url().with_revision(&first).unwrap(), None).unwrap(), first);

    // No settings in the mirror say where the repository is, and there is no working copy.
    let mut with_url = files_with(place.repo().to_str().unwrap(), &place.mirror());
    with_url.retain(|file| !file.ends_with(".hg/undo.desc"));
    assert!(with_url.is_empty(), "{with_url:?}");
    assert!(!place.mirror().join("file").exists());

    let error = place.check_out(Some("v9")).unwrap_err();
    assert_eq!(error.to_string(), format!("{} has no revision \"v9\"", place.repo().display()));
    assert!(matches!(error, VcsError::UnknownRevision { .. }));
    let unknown_hash = "0123456789012345678901234567890123456789";
    for unknown in [unknown_hash, &unknown_hash[..12]] {
        let error = place.check_out(Some(unknown)).unwrap_err();
        assert!(matches!(error, VcsError::UnknownRevision { .. }), "{error}");
    }

    // The mirror is as good as before, and a hash that it has needs no repository.
    let inode = fs::metadata(place.mirror()).unwrap().ino();
    assert_eq!(place.check_out(None).unwrap(), second);
    fs::rename(place.repo(), place.dir.path().join("gone")).unwrap();
    assert_eq!(place.check_out(Some(&first)).unwrap(), first);
    assert_eq!(place.check_out(Some(&second)).unwrap(), second);
    assert!(matches!(place.check_out(None), Err(VcsError::Unreachable { .. })));
    assert_eq!(fs::metadata(place.mirror()).unwrap().ino(), inode, "the mirror was made anew");
    assert!(place.check_out(Some(&second)).is_ok());

    let error =
        check_out(kind, &place.url(), Some(&second), &place.mirror(), &place.files(), MINUTE).unwrap_err();
    assert_eq!(
        crate::exit::chain(&error),
        format!("cannot write a revision's files to {}: directory not empty", place.files().display())
    );
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
    place.check_out(None).unwrap();
    let (data, store) = match kind {
        RepoType::Git => (".", "objects"),
        RepoType::Hg => (".hg", "store"),
    };
    let second = place.commit("file", "two");
    let working_copy = || place.run(&["clone", "--quiet", ".", place.mirror().to_str().unwrap()]);
    let breakages: [&dyn Fn(&Path); 8] = [
        &|dir| fs::remove_dir_all(dir.join(data).join(store)).unwrap(),
        &|dir| {
            let file = if kind == RepoType::Git { "HEAD" } else { "requires" };
            fs::write(dir.join(data).join(file), "nonsense\0").unwrap();
        },
        &|dir| {
            fs::remove_dir_all(dir).unwrap();
            fs::write(dir, "a file").unwrap();
        },
        &|dir| {
            fs::remove_dir_all(dir).unwrap();
            fs::create_dir(dir).unwrap();
        },
        // What was there is cut off; the commits are still found.
        &|dir| {
            let objects = all_below(&dir.join(data).join(store));
            for file in objects.iter().filter(|path| path.is_file()) {
                fs::remove_file(file).unwrap();
                fs::write(file, "").unwrap();
            }
        },
        // What older versions left: a working copy, also one whose files look like a mirror.
        &|dir| {
            fs::remove_dir_all(dir).unwrap();
            working_copy();
            fs::write(dir.join("left"), "by a build").unwrap();
        },
        &|dir| {
            fs::remove_dir_all(dir).unwrap();
            working_copy();
            for name in ["HEAD", "config"] {
                fs::write(dir.join(name), "ref: refs/heads/main\n").unwrap();
            }
            fs::create_dir(dir.join("objects")).unwrap();
            fs::create_dir(dir.join("refs")).unwrap();
        },
        // What a killed process left beside it.
        &|dir| {
            fs::remove_dir_all(dir).unwrap();
            fs::create_dir(dir.with_file_name(".app.part-0123456789abcdef")).unwrap();
        },
    ];
    for (number, break_it) in breakages.iter().enumerate() {
        break_it(&place.mirror());
        let (revision, expected) =
            if number % 2 == 0 { (None, &second) } else { (Some(first.as_str()), &first) };
        assert_eq!(&place.check_out(revision).unwrap(), expected, "breakage {number}");
        assert_eq!(place.read("file"), if number % 2 == 0 { "two" } else { "one" });
        for name in [".git", "file", "left"] {
            assert!(!place.mirror().join(name).exists(), "breakage {number}: {name}");
        }
    }
}

#[test]
fn a_broken_git_mirror_is_made_anew() {
    is_repaired(RepoType::Git);
}

#[test]
fn a_broken_hg_mirror_is_made_anew() {
    is_repaired(RepoType::Hg);
}

fn cannot_be_read(kind: RepoType) {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let url = RepoUrl::parse(missing.to_str().unwrap()).unwrap();
    for revision in [None, Some("0123456789012345678901234567890123456789")] {
        let (mirror, into) = (dir.path().join("mirrors/app"), dir.path().join("into"));
        let error = check_out(kind, &url, revision, &mirror, &into, MINUTE).unwrap_err();
        assert!(matches!(error, VcsError::Unreachable { .. }), "{error}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot read the repository {}: ", missing.display())), "{text}");
        assert_eq!(names(&dir.path().join("mirrors")), [""; 0]);
        assert_eq!(names(&into), [""; 0]);
    }
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
    let (mirror, into) = (dir.path().join("mirrors/app"), dir.path().join("into"));
    let error = check_out(kind, &url, None, &mirror, &into, timeout).unwrap_err();
    assert!(matches!(error, VcsError::TimedOut { .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    assert!(started.elapsed() < MINUTE);
    assert_eq!(names(&dir.path().join("mirrors")), [""; 0]);
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
    assert_eq!(place.check_out(Some("v1")).unwrap(), first);
    place.run(&["checkout", "--quiet", "dev"]);
    let dev = place.commit("file", "dev");
    assert_eq!(place.check_out(Some("dev")).unwrap(), dev);

    // Rewritten, so that the old one is no ancestor of the new one; the tag goes elsewhere.
    place.run(&["commit", "--quiet", "--amend", "-m", "rewritten"]);
    let rewritten = place.run(&["rev-parse", "HEAD"]);
    assert_ne!(dev, rewritten);
    place.run(&["tag", "--force", "v1"]);
    assert_eq!(place.check_out(Some("dev")).unwrap(), rewritten);
    assert_eq!(place.check_out(Some("v1")).unwrap(), rewritten);
    // An annotated tag gives the commit it is on, and a branch wins over a tag of its name.
    place.run(&["tag", "-a", "-m", "about it", "v2", "main"]);
    place.run(&["tag", "main", "dev"]);
    assert_eq!(place.check_out(Some("v2")).unwrap(), first);
    assert_eq!(place.check_out(Some("main")).unwrap(), first);
    assert_eq!(place.check_out(Some("refs/tags/main")).unwrap(), rewritten);
    // The default branch is that of the moment.
    assert_eq!(place.check_out(None).unwrap(), rewritten);
    place.run(&["checkout", "--quiet", "refs/heads/main"]);
    place.run(&["symbolic-ref", "HEAD", "refs/heads/main"]);
    assert_eq!(place.check_out(None).unwrap(), first);
    assert_eq!(place.check_out(Some("HEAD")).unwrap(), first);

    place.run(&["branch", "-D", "dev"]);
    place.run(&["tag", "-d", "v1"]);
    for gone in ["dev", "v1"] {
        assert!(matches!(place.check_out(Some(gone)), Err(VcsError::UnknownRevision { .. })), "{gone}");
    }
    // `dev/x` needs a folder where the file of `dev` was.
    place.run(&["branch", "dev/x", "refs/heads/main"]);
    assert_eq!(place.check_out(Some("dev/x")).unwrap(), first);
}

#[test]
fn a_git_commit_without_a_name_is_found_by_its_hash() {
    let place = Place::new(RepoType::Git);
    place.commit("file", "one");
    let nameless = place.commit("file", "two");
    place.run(&["reset", "--quiet", "--hard", "HEAD~1"]);
    // What big hosting services allow.
    place.run(&["config", "uploadpack.allowAnySHA1InWant", "true"]);
    assert_eq!(place.check_out(Some(&nameless)).unwrap(), nameless);
    assert_eq!(place.read("file"), "two");
}

#[test]
fn a_git_repository_without_the_branch_it_starts_with_still_has_its_others() {
    let place = Place::new(RepoType::Git);
    let error = place.check_out(None).unwrap_err();
    assert!(matches!(error, VcsError::UnknownRevision { .. }), "{error}");
    let first = place.commit("file", "one");
    place.run(&["symbolic-ref", "HEAD", "refs/heads/unborn"]);
    assert_eq!(place.check_out(Some("main")).unwrap(), first);
    assert!(matches!(place.check_out(None), Err(VcsError::UnknownRevision { .. })));
}

#[test]
fn only_what_is_wanted_of_a_git_history_is_fetched() {
    let place = Place::new(RepoType::Git);
    let url = RepoUrl::parse(&format!("file://{}", place.repo().display())).unwrap();
    let commits: Vec<String> = (0..5).map(|number| place.commit("file", &format!("{number}"))).collect();
    place.run(&["tag", "-a", "-m", "about it", "v1", &commits[1]]);
    place.run(&["branch", "dev", &commits[3]]);
    assert_eq!(place.check_out_from(&url, Some("dev")).unwrap(), commits[3]);
    assert_eq!(place.commits_in_mirror(), 1);
    assert_eq!(place.check_out_from(&url, None).unwrap(), commits[4]);
    assert_eq!(place.check_out_from(&url, Some("v1")).unwrap(), commits[1]);
    assert_eq!(place.check_out_from(&url, Some(&commits[2])).unwrap(), commits[2]);
    assert_eq!(place.commits_in_mirror(), 1);
    assert_eq!(place.read("file"), "2");

    // Only the whole history knows these. It is then kept up.
    assert_eq!(place.check_out_from(&url, Some(&commits[0][..9])).unwrap(), commits[0]);
    assert_eq!(place.commits_in_mirror(), 5);
    let described = format!("v1-2-g{}", &commits[3][..8]);
    for (expression, commit) in
        [("dev~2", 1), ("HEAD~1", 3), ("@~3", 1), ("v1^{}", 1), ("v1^", 0), (described.as_str(), 3)]
    {
        assert_eq!(place.check_out_from(&url, Some(expression)).unwrap(), commits[commit], "{expression}");
    }
    place.run(&["commit", "--quiet", "--amend", "-m", "rewritten"]);
    let last = place.commit("file", "5");
    assert_eq!(place.check_out_from(&url, Some("HEAD~2")).unwrap(), commits[3]);
    assert_eq!(place.check_out_from(&url, Some("main")).unwrap(), last);
    assert!(!place.mirror().join("shallow").exists());
    for unknown in ["dev~9", "HEAD~9", "^dev", "dev..main", "v1^{tree}"] {
        let error = place.check_out_from(&url, Some(unknown)).unwrap_err();
        assert!(matches!(error, VcsError::UnknownRevision { .. }), "{unknown}: {error}");
    }
}

#[test]
fn a_git_branch_may_be_called_like_a_hash() {
    let place = Place::new(RepoType::Git);
    let first = place.commit("file", "one");
    let second = place.commit("file", "two");
    let name = &first[..8];
    place.run(&["branch", name, &second]);
    assert_eq!(place.check_out(Some(name)).unwrap(), second);
    place.run(&["branch", "-D", name]);
    assert_eq!(place.check_out(Some(name)).unwrap(), first);
    place.run(&["tag", name, &second]);
    assert_eq!(place.check_out(Some(name)).unwrap(), second);
    place.run(&["tag", "-d", name]);
    assert_eq!(place.check_out(Some(name)).unwrap(), first);
}

#[test]
fn a_git_server_that_gives_out_only_its_branches_is_asked_for_all_of_them() {
    let place = Place::new(RepoType::Git);
    let first = place.commit("file", "one");
    let second = place.commit("file", "two");
    place.check_out(None).unwrap();
    place.in_mirror(&["config", "protocol.version", "0"]);
    assert_eq!(place.check_out(Some(&first)).unwrap(), first);
    assert_eq!(place.check_out(Some(&second)).unwrap(), second);
    assert_eq!(place.in_mirror(&["config", "protocol.version"]), "0", "the mirror was made anew");
}

#[test]
fn a_git_repository_that_is_itself_shallow_or_has_longer_hashes_can_be_used() {
    let place = Place::new(RepoType::Git);
    place.commit("file", "one");
    let second = place.commit("file", "two");
    place.run(&["branch", "dev"]);
    let url = format!("file://{}", place.repo().display());
    let shallow = place.dir.path().join("shallow");
    place.run(&["clone", "--quiet", "--depth=1", &url, shallow.to_str().unwrap()]);
    let url = RepoUrl::parse(shallow.to_str().unwrap()).unwrap();
    assert_eq!(place.check_out_from(&url, None).unwrap(), second);
    assert_eq!(place.check_out_from(&url, Some(&second[..9])).unwrap(), second);
    run_in(RepoType::Git, &shallow, &["commit", "--quiet", "--allow-empty", "-m", "three"]);
    let third = run_in(RepoType::Git, &shallow, &["rev-parse", "HEAD"]);
    assert_eq!(place.check_out_from(&url, None).unwrap(), third);
    assert_eq!(place.check_out_from(&url, Some("main~1")).unwrap(), second);

    // The same URL, another repository.
    fs::remove_dir_all(&shallow).unwrap();
    let new =
        ["init", "--quiet", "--initial-branch=main", "--object-format=sha256", shallow.to_str().unwrap()];
    place.run(&new);
    fs::write(shallow.join("file"), "longer").unwrap();
    run_in(RepoType::Git, &shallow, &["add", "file"]);
    run_in(RepoType::Git, &shallow, &["commit", "--quiet", "-m", "one"]);
    let hash = run_in(RepoType::Git, &shallow, &["rev-parse", "HEAD"]);
    assert_eq!(hash.len(), 64);
    for revision in [None, Some("main"), Some(hash.as_str()), Some(&hash[..9])] {
        assert_eq!(place.check_out_from(&url, revision).unwrap(), hash);
        assert_eq!(place.read("file"), "longer");
        fs::remove_dir_all(place.mirror()).unwrap();
    }
}

#[test]
fn a_git_mirror_is_packed_now_and_then() {
    let place = Place::new(RepoType::Git);
    place.commit("file", "one");
    place.check_out(None).unwrap();
    // As after hundreds of fetches.
    for (setting, value) in [("fetch.unpackLimit", "1"), ("gc.autoPackLimit", "1"), ("gc.pruneExpire", "now")]
    {
        place.in_mirror(&["config", setting, value]);
    }
    for text in ["two", "three", "four", "five"] {
        let hash = place.commit("file", text);
        assert_eq!(place.check_out(None).unwrap(), hash);
    }
    let files = names(&place.mirror().join("objects/pack"));
    let packs = files.iter().filter(|name| name.ends_with(".pack")).count();
    assert!(packs <= 2, "{files:?}");
    // What is no longer wanted is gone.
    assert_eq!(place.in_mirror(&["cat-file", "--batch-all-objects", "--batch-check"]).lines().count(), 3);
}

#[test]
fn attributes_count_as_in_a_working_copy_and_not_as_in_an_archive() {
    let place = Place::new(RepoType::Git);
    fs::write(
        place.repo().join(".gitattributes"),
        "secret export-ignore\nfile export-subst\nshouted filter=shout\nlines eol=crlf\n",
    )
    .unwrap();
    fs::write(place.repo().join("secret"), "kept").unwrap();
    fs::write(place.repo().join("file"), "$Format:%H$").unwrap();
    fs::write(place.repo().join("lines"), "a\nb\n").unwrap();
    place.commit("shouted", "hello");
    place.check_out(None).unwrap();
    assert_eq!(place.read("shouted"), "hello");
    // Usually in the user's own settings.
    place.in_mirror(&["config", "filter.shout.smudge", "tr a-z A-Z && git config remote.origin.url"]);
    place.check_out(None).unwrap();
    assert_eq!(place.read("shouted"), format!("HELLO{}\n", place.repo().display()));
    assert_eq!(place.read("file"), "$Format:%H$");
    assert_eq!(place.read("lines"), "a\r\nb\r\n");
    assert_eq!(names(&place.files()), [".gitattributes", "file", "lines", "secret", "shouted"]);
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
    place.run(&[&allow[..], &[absolute.to_str().unwrap(), "lib/one"]].concat());
    place.run(&["config", "--file", ".gitmodules", "submodule.lib/one.url", "../library"]);
    let with_library = place.commit("file", "with library");
    place.check_out(None).unwrap();
    assert_eq!(place.read("lib/one/code"), "library one");
    assert_eq!(place.read("lib/one/nested/deep"), "nested");
    let git_data = |path: &PathBuf| path.file_name().is_some_and(|name| name == ".git");
    assert!(!all_below(&place.files()).iter().any(git_data));
    assert_eq!(names(&place.files().join("lib/one")), [".gitmodules", "code", "nested"]);

    // The library goes on, the app with it.
    fs::write(absolute.join("code"), "library two").unwrap();
    run_in(RepoType::Git, &absolute, &["commit", "--quiet", "--all", "-m", "two"]);
    let in_app = place.repo().join("lib/one");
    run_in(RepoType::Git, &in_app, &["-c", "protocol.file.allow=always", "pull", "--quiet"]);
    let newer = place.commit("file", "with newer library");
    place.check_out(None).unwrap();
    assert_eq!(place.read("lib/one/code"), "library two");

    // It moves elsewhere, and one is not to be written.
    fs::rename(&absolute, place.dir.path().join("moved")).unwrap();
    place.run(&["config", "--file", ".gitmodules", "submodule.lib/one.url", "../moved"]);
    place.commit("file", "with moved library");
    place.check_out(None).unwrap();
    assert_eq!(place.read("lib/one/code"), "library two");
    place.run(&["config", "--file", ".gitmodules", "submodule.lib/one.update", "none"]);
    place.commit("file", "without its files");
    place.check_out(None).unwrap();
    assert_eq!(names(&place.files().join("lib/one")), [""; 0]);

    place.run(&["rm", "--quiet", "--force", "lib/one"]);
    let without = place.commit("file", "without library");
    place.check_out(None).unwrap();
    assert!(!place.files().join("lib").exists());

    // What was there once needs no network, submodules included.
    fs::rename(place.repo(), place.dir.path().join("gone")).unwrap();
    fs::remove_dir_all(nested.repo()).unwrap();
    for (hash, expected) in [(&with_library, "library one"), (&newer, "library two")] {
        place.check_out(Some(hash)).unwrap();
        assert_eq!(place.read("lib/one/code"), expected);
        assert_eq!(place.read("lib/one/nested/deep"), "nested");
    }
    place.check_out(Some(&without)).unwrap();
}

#[test]
fn a_git_submodule_that_cannot_be_had_is_an_error_that_names_it() {
    let place = Place::new(RepoType::Git);
    place.commit("file", "one");
    let gone = "0123456789012345678901234567890123456789";
    place.run(&["update-index", "--add", "--cacheinfo", &format!("160000,{gone},lib")]);
    let with_url = |url: &str| {
        fs::write(
            place.repo().join(".gitmodules"),
            format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {url}\n"),
        )
        .unwrap();
        place.run(&["add", ".gitmodules"]);
        place.run(&["commit", "--quiet", "-m", url]);
        let error = place.check_out(None).unwrap_err();
        // Also when there was no mirror yet.
        fs::remove_dir_all(place.dir.path().join("mirrors")).unwrap();
        assert_eq!(place.check_out(None).unwrap_err().to_string(), error.to_string());
        error.to_string()
    };
    let dir = place.dir.path().display();
    assert!(with_url("../none").starts_with(&format!("cannot read the repository {dir}/none: ")));
    assert_eq!(with_url("./"), format!("{dir}/repo has no revision \"{gone}\""));
    assert_eq!(
        with_url("--upload-pack=touch"),
        "bad repository URL \"--upload-pack=touch\": neither it nor its host may begin with \"-\""
    );
    assert!(with_url(&"../".repeat(50)).ends_with("leads to above all folders"));
    assert!(with_url("\"").contains(".gitmodules: "));
}

#[test]
fn relative_urls_of_submodules_are_read_as_git_reads_them() {
    for (base, url, expected) in [
        ("/srv/app", "../lib", Some("/srv/lib")),
        ("/srv/app/", "./lib/", Some("/srv/app/lib")),
        ("https://me@host/org/app.git", "../../other/lib.git", Some("https://me@host/other/lib.git")),
        ("git@host:org/app.git", "../lib.git", Some("git@host:org/lib.git")),
        ("git@host:app.git", "../lib.git", Some("git@host:lib.git")),
        ("git@host:app.git", ".././lib", Some("git@host:lib")),
        ("/srv", "../../lib", None),
    ] {
        assert_eq!(git::relative_to(base, url).as_deref(), expected, "{base} {url}");
    }
}

/// An HTTP server for those with the name `user` and the password `pass+1@`.
struct Server {
    address: std::net::SocketAddr,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// `answer` gets the lines of a request's head.
    fn new(answer: impl Fn(&[String]) -> Vec<u8> + Send + 'static) -> Self {
        use std::io::{BufRead, BufReader, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(std::sync::atomic::Ordering::SeqCst) {
                    break;
                }
                let mut stream = stream.unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let authorization = "authorization: basic dxnlcjpwyxnzkzfa";
                let response = if head.iter().any(|line| line.to_ascii_lowercase() == authorization) {
                    answer(&head)
                } else {
                    response("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"all\"", b"")
                };
                let _ = stream.write_all(&response);
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    fn url(&self) -> RepoUrl {
        RepoUrl::parse(&format!("http://user:pass+1%40@{}/repo", self.address)).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.address);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[test]
fn git_over_http_that_knows_only_files_works_and_its_password_stays_nowhere() {
    let place = Place::new(RepoType::Git);
    let first = place.commit("file", "one");
    let second = place.commit("file", "two");
    place.run(&["tag", "-a", "-m", "about it", "v1", &first]);
    let library = place.dir.path().join("lib");
    place.run(&["clone", "--quiet", ".", library.to_str().unwrap()]);
    let submodule = |url: &str| {
        let text = format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {url}\n");
        fs::write(place.repo().join(".gitmodules"), text).unwrap();
        place.run(&["update-index", "--add", "--cacheinfo", &format!("160000,{first},lib")]);
        place.run(&["add", ".gitmodules"]);
        place.run(&["commit", "--quiet", "-m", url]);
        place.run(&["update-server-info"]);
    };
    run_in(RepoType::Git, &library, &["update-server-info"]);
    submodule("../lib");
    let root = place.dir.path().to_owned();
    let server = Server::new(move |head| {
        let path = head[0].split(' ').nth(1).unwrap().split('?').next().unwrap();
        let (repo, file) = path[1..].split_once('/').unwrap();
        match fs::read(root.join(repo).join(".git").join(file)) {
            Ok(body) => response("200 OK", &body),
            Err(_) => response("404 Not Found", b""),
        }
    });
    let url = server.url();
    place.check_out_from(&url, None).unwrap();
    assert_eq!(place.read("lib/file"), "one");
    for (revision, hash) in [("v1", &first), (&second[..8], &second), (&first, &first), ("main~1", &second)] {
        assert_eq!(&place.check_out_from(&url, Some(revision)).unwrap(), hash);
    }
    let error = place.check_out_from(&url, Some("v2")).unwrap_err();
    assert_eq!(error.to_string(), format!("http://***@{}/repo has no revision \"v2\"", server.address));
    assert!(files_with("pass", &place.mirror()).is_empty());

    // This machine's own files are not for repositories from elsewhere.
    submodule(library.to_str().unwrap());
    let error = place.check_out_from(&url, None).unwrap_err().to_string();
    assert!(error.ends_with("may not be on this machine, as the repository itself is not"), "{error}");

    let wrong = RepoUrl::parse(&url.url().replace("pass", "wrong")).unwrap();
    let error = place.check_out_from(&wrong, None).unwrap_err();
    assert!(matches!(error, VcsError::Unreachable { .. }), "{error}");
    assert!(!error.to_string().contains("wrong"), "{error}");
}

/// `hg serve`, ended with the test.
struct HgServe(std::process::Child);

impl HgServe {
    /// Also gives its `host:port`. The repository is in its folder `repo`.
    fn new(repo: &Path) -> (Self, String) {
        use std::io::{BufRead, BufReader};
        let mut serve = command("hg");
        serve.args(["serve", "--subrepos", "--address", "127.0.0.1", "--port", "0", "--prefix", "repo"]);
        serve.args(["--print-url", "--accesslog", "/dev/null"]);
        serve.current_dir(repo).env("HGPLAIN", "1").stdout(std::process::Stdio::piped());
        let mut serve = Self(serve.spawn().unwrap());
        let mut line = String::new();
        BufReader::new(serve.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let host = line.trim().strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
        (serve, host)
    }
}

impl Drop for HgServe {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn hg_subrepositories_come_along_and_the_password_stays_nowhere() {
    use std::io::{Read, Write};
    let place = Place::new(RepoType::Hg);
    let library = place.repo().join("lib");
    run_in(RepoType::Hg, &place.repo(), &["init", "lib"]);
    fs::write(library.join("code"), "library").unwrap();
    run_in(RepoType::Hg, &library, &["commit", "--addremove", "-m", "library"]);
    fs::write(place.repo().join(".hgsub"), "lib = lib\n").unwrap();
    let first = place.commit("file", "one");
    place.check_out(None).unwrap();
    assert_eq!(place.read("lib/code"), "library");
    assert_eq!(names(&place.files()), [".hgsub", ".hgsubstate", "file", "lib"]);
    assert_eq!(names(&place.files().join("lib")), ["code"]);
    fs::remove_dir_all(place.mirror()).unwrap();

    let (serve, backend) = HgServe::new(&place.repo());
    let server = Server::new(move |head| {
        let mut stream = std::net::TcpStream::connect(&backend).unwrap();
        let kept = head.iter().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        let head: String = kept.map(|line| format!("{line}\r\n")).collect();
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    assert_eq!(place.check_out_from(&server.url(), None).unwrap(), first);
    assert_eq!(place.read("lib/code"), "library");
    assert!(files_with("pass", &place.mirror()).is_empty());
    let second = place.commit("file", "two");
    assert_eq!(place.check_out_from(&server.url(), None).unwrap(), second);
    assert!(files_with("user:", &place.mirror()).is_empty());

    // Both need no network once they are here.
    let url = server.url();
    drop((server, serve));
    assert_eq!(place.check_out_from(&url, Some(&first)).unwrap(), first);
    assert_eq!(place.read("lib/code"), "library");
    let error = place.check_out_from(&url, Some("default")).unwrap_err();
    assert!(matches!(error, VcsError::Unreachable { .. }), "{error}");
    assert!(!error.to_string().contains("pass"), "{error}");
}

#[test]
fn hooks_of_a_mirror_do_not_run_and_what_a_killed_git_left_does_not_matter() {
    let place = Place::new(RepoType::Git);
    place.commit("file", "one");
    place.check_out(None).unwrap();
    place.check_out(Some("main~0")).unwrap();
    let hooks = place.mirror().join("hooks");
    fs::create_dir_all(&hooks).unwrap();
    let witness = place.dir.path().join("witness");
    for hook in ["post-checkout", "reference-transaction", "post-index-change"] {
        fs::write(hooks.join(hook), format!("#!/bin/sh\ntouch {}\n", witness.display())).unwrap();
        fs::set_permissions(hooks.join(hook), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for lock in [
        "index.lock",
        "shallow.lock",
        "packed-refs.lock",
        "refs/heads/main.lock",
        "refs/velociraptor/latest.lock",
        // Of a killed gc.
        "packed-refs.new",
        "objects/info/commit-graph.lock",
    ] {
        fs::create_dir_all(place.mirror().join(lock).parent().unwrap()).unwrap();
        fs::write(place.mirror().join(lock), "").unwrap();
    }
    let half_fetched = place.mirror().join("objects/pack/tmp_pack_AbCdEf");
    fs::write(&half_fetched, "PACK").unwrap();
    let inode = fs::metadata(place.mirror()).unwrap().ino();
    let second = place.commit("file", "two");
    assert_eq!(place.check_out(None).unwrap(), second);
    assert_eq!(place.check_out(Some("main~0")).unwrap(), second);
    assert!(!half_fetched.exists());
    let mut left = all_below(&place.mirror());
    left.retain(|path| path.extension().is_some_and(|end| end == "lock" || end == "new"));
    assert!(left.is_empty(), "{left:?}");
    place.in_mirror(&["-c", "core.hooksPath=/dev/null", "gc", "--quiet"]);
    assert!(!witness.exists());
    assert_eq!(fs::metadata(place.mirror()).unwrap().ino(), inode, "the mirror was made anew");
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
        assert_eq!(place.check_out(None).unwrap(), first);
        assert_eq!(place.check_out(None).unwrap(), first);
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
    assert_eq!(place.check_out(Some("v1")).unwrap(), first);
    assert_eq!(place.check_out(Some("stable")).unwrap(), stable);
    assert_eq!(place.check_out(Some("marked")).unwrap(), first);
    // Without a revision: what is on the branch "default", not the latest one.
    let default = place.run(&["log", "--rev", "default", "--template", "{node}"]);
    assert_eq!(place.check_out(None).unwrap(), default);
    place.run(&["bookmark", "--force", "--rev", &stable, "marked"]);
    assert_eq!(place.check_out(Some("marked")).unwrap(), stable);
    assert_eq!(place.read("file"), "stable");
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
