//! Passwords, tokens and the user's own settings arrive where they should, and nowhere else.

use std::sync::{Arc, Mutex};

use super::*;

#[test]
fn tokens_and_queries_are_in_no_names_and_messages() {
    let url = RepoUrl::parse("https://host/team/x.git?token=SECRET/1#v1").unwrap();
    assert_eq!(url.basename(), "x");
    assert!(url.folder().starts_with("x-") && !url.folder().contains("SECRET"), "{}", url.folder());
    assert_eq!(url.to_string(), "https://host/team/x.git?***#v1");
    assert_eq!(RepoUrl::parse("/srv/what?.git").unwrap().basename(), "what?");
    let said = "cannot get https://host/team/x.git?token=SECRET/1: token=SECRET/1 is bad";
    assert_eq!(url.hide_in(said), "cannot get https://host/team/x.git?***: *** is bad");

    for (url, shown, said, hidden) in [
        (
            "https://TOK%2BEN@host/x",
            "https://***@host/x",
            "for 'https://TOK+EN@host': TOK%2BEN",
            "for 'https://***@host': ***",
        ),
        (
            "https://TOKEN:basic@host/x",
            "https://***@host/x",
            "for TOKEN@host and basic",
            "for ***@host and ***",
        ),
        (
            "https://me:a%20b@host/x",
            "https://***@host/x",
            "me:a b@host me:a%20b@host a b",
            "***@host ***@host ***",
        ),
        ("ssh://git:pw@host/x", "ssh://git:***@host/x", "git: pw", "git: ***"),
        ("ssh://git@host/x", "ssh://git@host/x", "git failed", "git failed"),
    ] {
        let url = RepoUrl::parse(url).unwrap();
        assert_eq!((url.to_string().as_str(), url.hide_in(said).as_str()), (shown, hidden));
    }
    let error = RepoUrl::parse("https://a:b%0ac@host/x").unwrap_err().to_string();
    assert!(error.ends_with("its name or password contains control characters"), "{error}");
}

#[test]
fn a_server_that_lets_nobody_in_does_not_make_git_or_hg_tell_the_token() {
    let server = Server::new(|_| response("200 OK", b""));
    for kind in [RepoType::Git, RepoType::Hg] {
        for user in ["TOK%2BEN", "TOK%2BEN:", "me:TOK%2BEN"] {
            let dir = tempfile::tempdir().unwrap();
            let url = RepoUrl::parse(&format!("http://{user}@{}/x.git", server.address)).unwrap();
            let (mirror, into) = (dir.path().join("mirrors/app"), dir.path().join("into"));
            let error = check_out(kind, &url, None, &mirror, &into, MINUTE).unwrap_err();
            assert!(matches!(error, VcsError::Unreachable { .. }), "{error}");
            let text = format!("{error} {error:?}");
            assert!(!text.contains("TOK"), "{user}: {text}");
        }
    }
}

#[test]
fn a_password_arrives_and_is_in_no_arguments() {
    let seen: Arc<Mutex<Vec<Vec<PathBuf>>>> = Arc::default();
    let sees = Arc::clone(&seen);
    // Only those with the right password get this far; git or hg, and their helpers, wait meanwhile.
    let server = Server::new(move |_| {
        sees.lock().unwrap().push([processes_with("pass+1"), processes_with("pass%2B1")].concat());
        response("404 Not Found", b"")
    });
    for kind in [RepoType::Git, RepoType::Hg] {
        let dir = tempfile::tempdir().unwrap();
        let (mirror, into) = (dir.path().join("mirrors/app"), dir.path().join("into"));
        let error = check_out(kind, &server.url(), None, &mirror, &into, MINUTE).unwrap_err();
        assert!(matches!(error, VcsError::Unreachable { .. }), "{error}");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert!(!seen.is_empty(), "{kind} did not get through: {error}");
        assert!(seen.iter().all(Vec::is_empty), "{kind}: {seen:?}");
    }
}

/// In the next test's child: the folder where what it does is kept.
const PLACE: &str = "VELOCIRAPTOR_TEST_PLACE";

#[test]
fn the_users_own_ssh_is_used() {
    if let Some(place) = std::env::var_os(PLACE).map(PathBuf::from) {
        for kind in [RepoType::Git, RepoType::Hg] {
            let url = RepoUrl::parse("ssh://nowhere.invalid/app").unwrap();
            let (mirror, into) = (place.join("mirrors/app"), place.join("into"));
            assert!(check_out(kind, &url, None, &mirror, &into, MINUTE).is_err());
            fs::rename(place.join("used"), place.join(kind.as_str())).unwrap();
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    fs::write(place("ssh"), format!("#!/bin/sh\ntouch {}\nexit 1\n", place("used").display())).unwrap();
    fs::set_permissions(place("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(place("gitconfig"), format!("[core]\n\tsshCommand = {}\n", place("ssh").display())).unwrap();
    fs::write(place("hgrc"), format!("[ui]\nssh = {}\n", place("ssh").display())).unwrap();
    // Settings come with the environment, which is this whole process's.
    let mut child = command(std::env::current_exe().unwrap());
    child.args(["--exact", "vcs::tests::secrets::the_users_own_ssh_is_used"]);
    child.env(PLACE, dir.path()).env("GIT_CONFIG_GLOBAL", place("gitconfig")).env("HGRCPATH", place("hgrc"));
    child.env_remove("GIT_SSH_COMMAND").env_remove("GIT_SSH");
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(place("git").exists() && place("hg").exists());
}
