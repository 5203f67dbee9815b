//! Repositories made to do harm, and flawed ones that are not.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use super::*;

/// Runs git in the repository with some input, and gives its output.
fn git_with(place: &Place, args: &[&str], input: &[u8]) -> String {
    let mut git = command("git");
    git.current_dir(place.repo()).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut git = git.spawn().unwrap();
    git.stdin.take().unwrap().write_all(input).unwrap();
    let output = git.wait_with_output().unwrap();
    assert!(output.status.success(), "git {args:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A tree of entries with any modes and names, in any order.
fn tree(place: &Place, entries: &[(&str, &[u8], &str)]) -> String {
    let mut bytes = Vec::new();
    for (mode, name, hash) in entries {
        bytes.extend_from_slice(mode.as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(name);
        bytes.push(0);
        bytes.extend(hex::decode(hash).unwrap());
    }
    git_with(place, &["hash-object", "-t", "tree", "-w", "--literally", "--stdin"], &bytes)
}

fn blob(place: &Place, text: &str) -> String {
    git_with(place, &["hash-object", "-w", "--stdin"], text.as_bytes())
}

/// Makes `main` a commit of a tree.
fn commit_tree(place: &Place, tree: &str) -> String {
    let hash = place.run(&["commit-tree", "-m", "made by hand", tree]);
    place.run(&["update-ref", "refs/heads/main", &hash]);
    hash
}

/// A repository with the file `evil` and a link `x` to the folder `victim`, and the hash of its commit.
fn library(kind: RepoType) -> (Place, PathBuf, String) {
    let library = Place::new(kind);
    let victim = library.dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    symlink(&victim, library.repo().join("x")).unwrap();
    let hash = library.commit("evil", "evil");
    (library, victim, hash)
}

#[test]
fn no_git_tree_leads_out_of_the_build() {
    let (library, victim, hash) = library(RepoType::Git);
    let place = Place::new(RepoType::Git);
    place.commit("file", "one");
    place.check_out(None).unwrap();
    let url = library.repo();
    let submodule =
        |path: &str| format!("[submodule \"{path}\"]\n\tpath = {path}\n\turl = {}\n", url.display());
    let link = blob(&place, victim.to_str().unwrap());

    // A folder with a submodule that is a link as well.
    let list = blob(&place, &submodule("a/b"));
    let folder = tree(&place, &[("160000", b"b", &hash)]);
    let a =
        [("100644", &b".gitmodules"[..], list.as_str()), ("40000", b"a", &folder), ("120000", b"a", &link)];
    let folder_and_link = commit_tree(&place, &tree(&place, &a));
    // A submodule inside of a submodule, where that has a link.
    let list = blob(&place, &(submodule("lib") + &submodule("lib/x")));
    let folder = tree(&place, &[("160000", b"x", &hash)]);
    let b = [
        ("100644", &b".gitmodules"[..], list.as_str()),
        ("160000", b"lib", &hash),
        ("40000", b"lib", &folder),
    ];
    let submodule_and_folder = commit_tree(&place, &tree(&place, &b));
    place.run(&["branch", "a", &folder_and_link]);

    for branch in ["a", "main"] {
        let error = place.check_out(Some(branch)).unwrap_err();
        assert!(matches!(error, VcsError::BadContent { .. }), "{error}");
        assert_eq!(names(&victim), [""; 0]);
    }
    // What servers give out that know only files is not checked by git: nothing may come of it all the same.
    place.in_mirror(&["config", "fetch.fsck.duplicateEntries", "ignore"]);
    place.in_mirror(&["config", "fetch.fsck.treeNotSorted", "ignore"]);
    for (branch, hash) in [("a", &folder_and_link), ("main", &submodule_and_folder)] {
        let done = place.check_out(Some(branch));
        assert_eq!(names(&victim), [""; 0], "{done:?}");
        assert_eq!(place.in_mirror(&["cat-file", "-t", hash]), "commit");
    }
}

#[test]
fn folders_are_made_below_a_folder_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let (root, victim) = (dir.path().join("root"), dir.path().join("victim"));
    fs::create_dir_all(root.join("full/of")).unwrap();
    fs::create_dir(&victim).unwrap();
    symlink(&victim, root.join("link")).unwrap();
    symlink("full", root.join("inside")).unwrap();
    fs::write(root.join("file"), "text").unwrap();
    let url = RepoUrl::parse("/srv/app").unwrap();
    let runner = run::Runner { url: &url, address: url.address(), program: "git", deadline: Instant::now() };
    let make = |path: &str| below::make_empty_below(&runner, "submodule", &root, path.as_bytes());
    assert_eq!(make("new/sub").unwrap(), root.join("new/sub"));
    assert_eq!(make("new/sub").unwrap(), root.join("new/sub"));
    for (path, reason) in [
        ("link", "its folder is behind a symbolic link"),
        ("link/sub", "its folder is behind a symbolic link"),
        ("inside/sub", "its folder is behind a symbolic link"),
        ("file/sub", "there is a file in its place"),
        ("full", "its folder already has files"),
        ("../victim/sub", "it is not the name of a folder inside"),
        ("/tmp", "it is not the name of a folder inside"),
        ("", "it is not the name of a folder inside"),
    ] {
        let expected =
            format!("cannot use the repository /srv/app: its submodule {path} cannot be written: {reason}");
        assert_eq!(make(path).unwrap_err().to_string(), expected);
    }
    assert_eq!(names(&victim), [""; 0]);
}

#[test]
fn the_flaws_of_old_git_repositories_do_not_matter() {
    let place = Place::new(RepoType::Git);
    let first = place.commit("file", "one");
    let inner = place.run(&["rev-parse", "main^{tree}"]);
    let padded = tree(&place, &[("040000", b"folder", &inner)]);
    let text = format!(
        "tree {padded}\nparent {first}\nauthor a <a@example.com>1300000000 +051800\n\
         committer <a@example.com> 0130000000 +0000\n\nold\n"
    );
    let hash =
        git_with(&place, &["hash-object", "-t", "commit", "-w", "--literally", "--stdin"], text.as_bytes());
    place.run(&["update-ref", "refs/heads/main", &hash]);
    assert_eq!(place.check_out(None).unwrap(), hash);
    assert_eq!(place.read("folder/file"), "one");
    assert_eq!(place.check_out(Some("main~1")).unwrap(), first);
}

#[test]
fn what_is_in_a_git_repository_does_not_break_its_mirror() {
    let place = Place::new(RepoType::Git);
    let first = place.commit("file", "one");
    place.check_out(None).unwrap();
    let inode = fs::metadata(place.mirror()).unwrap().ino();
    let config = blob(&place, "[core]");
    let folder = tree(&place, &[("100644", b"config", &config)]);
    commit_tree(&place, &tree(&place, &[("40000", b".GIT", &folder)]));
    for _ in 0..2 {
        let error = place.check_out(None).unwrap_err();
        assert!(matches!(error, VcsError::BadContent { .. }), "{error}");
    }
    // Also when git has not seen it while fetching.
    place.in_mirror(&["config", "fetch.fsck.hasDotgit", "ignore"]);
    let error = place.check_out(None).unwrap_err();
    assert!(matches!(error, VcsError::BadContent { .. }), "{error}");
    assert!(error.to_string().contains("invalid path '.GIT/config'"), "{error}");

    // A submodule that is nowhere.
    place.run(&["reset", "--quiet", "--hard", &first]);
    let list = "[submodule \"lib\"]\n\tpath = lib\n\turl = ../none\n";
    place.run(&["update-index", "--add", "--cacheinfo", &format!("160000,{first},lib")]);
    fs::write(place.repo().join(".gitmodules"), list).unwrap();
    place.run(&["add", ".gitmodules"]);
    place.run(&["commit", "--quiet", "-m", "with a submodule"]);
    assert!(matches!(place.check_out(None), Err(VcsError::Unreachable { .. })));
    assert_eq!(place.check_out(Some(&first)).unwrap(), first);
    assert_eq!(fs::metadata(place.mirror()).unwrap().ino(), inode, "the mirror was made anew");
}

#[test]
fn a_submodule_may_have_any_name() {
    let (library, _, hash) = library(RepoType::Git);
    let place = Place::new(RepoType::Git);
    let mut list = b"[submodule \"lib\"]\n\tpath = l\xffb\n\turl = ".to_vec();
    list.extend_from_slice(library.repo().as_os_str().as_bytes());
    fs::write(place.repo().join(".gitmodules"), list).unwrap();
    let mut entry = format!("160000,{hash},").into_bytes();
    entry.extend_from_slice(b"l\xffb");
    let mut git = command("git");
    git.current_dir(place.repo())
        .args(["update-index", "--add", "--cacheinfo"])
        .arg(OsStr::from_bytes(&entry));
    assert!(git.status().unwrap().success());
    place.run(&["add", ".gitmodules"]);
    place.run(&["commit", "--quiet", "-m", "with a submodule"]);
    place.check_out(None).unwrap();
    let evil = place.files().join(OsStr::from_bytes(b"l\xffb")).join("evil");
    assert_eq!(fs::read_to_string(evil).unwrap(), "evil");
}

/// Commits files that hg would not, such as what it says about subrepositories.
fn hg_import(place: &Place, files: &[(&str, String)]) -> String {
    let mut patch = String::new();
    for (name, text) in files {
        let lines = text.lines().count();
        patch +=
            &format!("diff --git a/{name} b/{name}\nnew file mode 100644\n--- /dev/null\n+++ b/{name}\n");
        patch += &format!("@@ -0,0 +1,{lines} @@\n");
        patch.extend(text.lines().map(|line| format!("+{line}\n")));
    }
    let file = place.dir.path().join("patch");
    fs::write(&file, patch).unwrap();
    place.run(&["import", "--bypass", "--quiet", "-m", "made by hand", file.to_str().unwrap()]);
    place.run(&["log", "--rev", "tip", "--template", "{node}"])
}

fn subrepositories(place: &Place, list: &str, states: &str) -> String {
    hg_import(place, &[(".hgsub", list.to_owned()), (".hgsubstate", states.to_owned())])
}

#[test]
fn subrepositories_are_of_both_kinds_and_never_lead_out_of_the_build() {
    let (hg_library, victim, hash) = library(RepoType::Hg);
    let (git_library, git_victim, git_hash) = library(RepoType::Git);
    let (hg_url, git_url) = (hg_library.repo(), git_library.repo());
    let (hg_url, git_url) = (hg_url.display(), git_url.display());
    let place = Place::new(RepoType::Hg);
    let list = format!("# both\ndeep/hg = {hg_url}\ngit = [git]{git_url}\nwithout = ../state\n");
    let both = subrepositories(&place, &list, &format!("{hash} deep/hg\n{git_hash} git\n"));
    assert_eq!(place.check_out(Some(&both)).unwrap(), both);
    assert_eq!(names(&place.files()), [".hgsub", ".hgsubstate", "deep", "git"]);
    assert_eq!(names(&place.files().join("deep/hg")), ["evil", "x"]);
    assert_eq!(names(&place.files().join("git")), ["evil", "x"]);

    for (list, states, expected) in [
        (
            format!("lib = {hg_url}\nlib/x = {hg_url}\n"),
            format!("{hash} lib\n{hash} lib/x\n"),
            "its subrepository lib/x cannot be written: its folder is behind a symbolic link",
        ),
        (
            format!("lib = [git]{git_url}\nlib/x/deep = {hg_url}\n"),
            format!("{git_hash} lib\n{hash} lib/x/deep\n"),
            "its subrepository lib/x/deep cannot be written: its folder is behind a symbolic link",
        ),
        (
            format!("../out = {hg_url}\n"),
            format!("{hash} ../out\n"),
            "its subrepository ../out cannot be written: it is not the name of a folder inside",
        ),
        (
            format!("a/.HG = {hg_url}\n"),
            format!("{hash} a/.HG\n"),
            "its .hgsub: a/.HG is a name that hg and git keep for themselves",
        ),
        (
            "sub = [svn]http://host/app\n".to_owned(),
            "7 sub\n".to_owned(),
            "its .hgsubstate: sub is at \"7\", expected a whole hash",
        ),
        (
            "sub = [svn]http://host/app\n".to_owned(),
            format!("{hash} sub\n"),
            "its subrepository sub is of the kind \"svn\", expected hg or git",
        ),
        ("[subpaths]\na = b\n".to_owned(), format!("{hash} sub\n"), "its .hgsub: subpaths are not supported"),
        (
            "%include /etc/passwd\n".to_owned(),
            format!("{hash} sub\n"),
            "its .hgsub: line 1, \"%include /etc/passwd\", is not understood",
        ),
    ] {
        place.run(&["update", "--quiet", "--clean", "null"]);
        let hash = subrepositories(&place, &list, &states);
        let error = place.check_out(Some(&hash)).unwrap_err().to_string();
        let start = format!("cannot use the repository {}: ", place.repo().display());
        assert_eq!(error.strip_prefix(&start), Some(expected), "{error}");
    }
    assert_eq!((names(&victim), names(&git_victim)), (Vec::new(), Vec::new()));
    assert!(!place.files().with_file_name("out").exists());
}

#[test]
fn an_hg_repository_from_elsewhere_gets_nothing_of_this_machine() {
    let (library, _, hash) = library(RepoType::Hg);
    let place = Place::new(RepoType::Hg);
    let path = library.repo();
    let path = path.display();
    let sources =
        [format!("{path}"), format!("file://{path}"), format!("bundle://{path}"), format!("[git]{path}")];
    let hashes = sources.map(|source| {
        place.run(&["update", "--quiet", "null"]);
        subrepositories(&place, &format!("sub = {source}\n"), &format!("{hash} sub\n"))
    });
    let (_serve, host) = HgServe::new(&place.repo());
    let url = RepoUrl::parse(&format!("http://{host}/repo")).unwrap();
    for hash in hashes {
        let error = place.check_out_from(&url, Some(&hash)).unwrap_err();
        assert!(matches!(error, VcsError::BadContent { .. }), "{error}");
        let error = error.to_string();
        assert!(error.ends_with("may not be on this machine, as the repository itself is not"), "{error}");
        assert_eq!(names(&place.files()), [".hgsub", ".hgsubstate"]);
    }
}

#[test]
fn relative_sources_of_subrepositories_are_read_as_hg_reads_them() {
    for (base, source, expected) in [
        ("/srv/app", "lib", Some("/srv/app/lib")),
        ("/srv/app/", "../lib/", Some("/srv/lib")),
        ("http://me:pw@host:80/org/app?x=y", "../lib", Some("http://me:pw@host:80/org/lib")),
        ("http://host", "lib", Some("http://host/lib")),
        ("ssh://hg@host//srv/app", "./../lib", Some("ssh://hg@host//srv/lib")),
        ("file:///srv/app", "../../lib", Some("file:///lib")),
        ("/srv/app", "../../../lib", None),
    ] {
        assert_eq!(hg::joined(base, source).as_deref(), expected, "{base} {source}");
    }
}

#[test]
fn hg_revisions_are_names_and_no_expressions() {
    let place = Place::new(RepoType::Hg);
    let first = place.commit("file", "one");
    place.run(&["bookmark", "a \"quoted\\name"]);
    for expression in ["all()", "tip^", "0:tip", "not 5", "file('**')", "\") or all() or (\""] {
        let error = place.check_out(Some(expression)).unwrap_err();
        assert!(matches!(error, VcsError::UnknownRevision { .. }), "{expression}: {error}");
    }
    for name in ["tip", "a \"quoted\\name", &first[..8]] {
        assert_eq!(place.check_out(Some(name)).unwrap(), first);
    }
}
