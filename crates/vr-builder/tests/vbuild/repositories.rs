//! Where apps come from: branches, tags and hashes, paths and URLs, and what upstream does between two builds.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vr_common::process::command;

use crate::support::{Answer, Ended, Server, World, commit, ended, git, hg, printed, through};

/// The usual app's file `Procfile` is what is built; it is shown.
fn shower(world: &World) -> String {
    format!("buildpack_url: {}", world.pack("pack", "cat $1/Procfile").display())
}

/// A commit on the branch that is checked out, in which `Procfile` has the text, and its hash.
fn change(app: &Path, text: &str, tag: &str) -> String {
    fs::write(app.join("Procfile"), format!("{text}\n")).unwrap();
    commit(app, tag);
    git(app, &["rev-parse", "HEAD"])
}

fn expect_text(ended: Ended, text: &str) -> Ended {
    let ended = ended.expect(0);
    assert_eq!(ended.stdout, format!("{text}\n"));
    ended
}

#[test]
fn git_branches_tags_and_hashes() {
    let world = World::new();
    let (app, pack) = (world.app(), shower(&world));
    let old = change(&app, "web: old", "r-1");
    git(&app, &["switch", "--quiet", "--create", "feature.x"]);
    let new = change(&app, "web: new", "annotated");
    git(&app, &["tag", "--force", "-m", "words", "annotated"]);
    let (short_old, short_new) = (&old[..8], &new[..8]);
    for (version, text, hash) in [
        ("feature.x", "web: new", &new),
        ("r-1", "web: old", &old),
        ("annotated", "web: new", &new),
        (short_old, "web: old", &old),
        (short_new, "web: new", &new),
        (&old, "web: old", &old),
        ("v1", "web: ./run", &git(&app, &["rev-parse", "v1"])),
    ] {
        expect_text(world.build(&world.yaml(&app, &format!("{pack}\nversion: '{version}'"))), text);
        assert_eq!(world.result()["app_revisions"][version].as_str(), Some(hash.as_str()), "{version}");
        assert_eq!(world.result()["version"].as_str(), Some(version));
    }
    world.assert_clean();
}

#[test]
fn hg_branches_tags_bookmarks_and_hashes() {
    let world = World::new();
    let app = world.hg("app", &[("Procfile", "web: one\n")]);
    let pack = shower(&world);
    let one = hg(&app, &["identify", "--debug", "--id", "--rev", "v1"]);
    hg(&app, &["branch", "stable"]);
    fs::write(app.join("Procfile"), "web: two\n").unwrap();
    hg(&app, &["commit", "-m", "two"]);
    hg(&app, &["bookmark", "mark"]);
    for (version, text) in [
        ("v1", "web: one"),
        ("stable", "web: two"),
        ("mark", "web: two"),
        (&one[..12], "web: one"),
        (&one, "web: one"),
    ] {
        expect_text(world.build(&world.yaml_of("hg", &app, &format!("{pack}\nversion: '{version}'"))), text);
    }
    world.assert_clean();
}

#[test]
fn a_branch_that_moved_or_was_rewritten_is_as_it_is_now() {
    let world = World::new();
    let (app, pack) = (world.app(), shower(&world));
    git(&app, &["branch", "--move", "main"]);
    let yaml = world.yaml(&app, &format!("{pack}\nversion: main"));
    expect_text(world.build(&yaml), "web: ./run");
    let result = world.path("result.yaml");
    fs::copy(world.out("build_result.yaml"), &result).unwrap();
    let first = git(&app, &["rev-parse", "main"]);

    let moved = change(&app, "web: moved", "v2");
    expect_text(world.build(&yaml), "web: moved");
    git(&app, &["reset", "--quiet", "--hard", "v1"]);
    let rewritten = change(&app, "web: rewritten", "v3");
    expect_text(world.build(&yaml), "web: rewritten");
    assert_eq!(world.result()["app_revisions"]["main"].as_str(), Some(rewritten.as_str()));
    assert_ne!(moved, rewritten);

    // The result of the first build is still about the same revision, unless it is told to be about another version.
    expect_text(world.build(&result), "web: ./run");
    assert_eq!(world.result()["app_revisions"]["main"].as_str(), Some(first.as_str()));
    let text = fs::read_to_string(&result).unwrap();
    fs::write(&result, text.replace("version: main\n", "version: v3\n")).unwrap();
    expect_text(world.build(&result), "web: rewritten");
    let revisions = world.result()["app_revisions"].clone();
    assert_eq!(revisions, serde_yaml::from_str::<serde_yaml::Value>(&format!("v3: {rewritten}")).unwrap());
    world.assert_clean();
}

#[test]
fn each_way_of_naming_a_repository_has_a_cache_of_its_own() {
    let world = World::new();
    let app = world.app();
    let pack = world.pack("pack", "cat $2/x 2>/dev/null || echo empty; echo kept >$2/x");
    let pack = format!("buildpack_url: {}", pack.display());
    // Relative paths start from where vbuild does.
    let urls = [app.clone(), format!("file://{}", app.display()).into(), PathBuf::from("../app")];
    for expected in ["empty", "kept"] {
        for url in &urls {
            expect_text(world.build(&world.yaml(url, &pack)), expected);
        }
    }
    assert_eq!(world.caches().len(), urls.len());
    // A URL that has another repository now.
    fs::rename(&app, world.path("elsewhere")).unwrap();
    world.git("app", &[("Procfile", "web: another\n")]);
    let pack = world.pack("shower", "cat $1/Procfile");
    let yaml = world.yaml(&app, &format!("buildpack_url: {}", pack.display()));
    expect_text(world.build(&yaml), "web: another");
    world.assert_clean();
}

#[test]
fn submodules_are_files_like_all_others() {
    let world = World::new();
    let library = world.git("library", &[("lib.py", "x = 1\n")]);
    let app = world.app();
    let library = library.display().to_string();
    git(&app, &["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", &library, "vendor/lib"]);
    commit(&app, "v2");
    let pack = world.pack("pack", "find $1 -name '.git*' | sed \"s|$1/||\"; cat $1/vendor/lib/lib.py");
    let more = format!("buildpack_url: {}\nversion: v2", pack.display());
    let built = world.build(&world.yaml(&app, &more)).expect(0);
    assert_eq!(built.stdout, ".gitmodules\nx = 1\n");
    assert!(world.packed().contains(&"vendor/lib/lib.py".to_owned()), "{:?}", world.packed());
    world.assert_clean();
}

/// OpenSSH's server on a port of its own; each connection gets a process that ends with it.
struct Sshd {
    port: u16,
    stopped: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// What `ssh` has to be told to get in.
    ssh: String,
}

impl Sshd {
    fn start(world: &World) -> Self {
        let server = printed(command("sh").args(["-c", "command -v sshd || echo /usr/sbin/sshd"]));
        assert!(Path::new(&server).exists(), "{server} is missing; Debian has it in openssh-server");
        let folder = world.path("ssh");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        let file = |name: &str| folder.join(name).display().to_string();
        for key in ["host", "user"] {
            printed(command("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]));
        }
        let path = std::env::var("PATH").unwrap();
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             PermitRootLogin yes\nSetEnv PATH=\"{path}\"\nPidFile none\n",
            file("host"),
            file("user.pub")
        );
        fs::write(file("config"), config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stopped = Arc::new(AtomicBool::new(false));
        let (seen, config) = (Arc::clone(&stopped), file("config"));
        let thread = std::thread::spawn(move || {
            let mut children = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if seen.load(Ordering::SeqCst) {
                    break;
                }
                // It wants a folder of the whole machine, which is here for it alone.
                let mut sshd = command("unshare");
                sshd.args(["--mount", "sh", "-c"]);
                sshd.args(["mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec \"$@\"", "sh"]);
                sshd.args([server.as_str(), "-i", "-e", "-f", &config]);
                let stream = OwnedFd::from(stream);
                sshd.stdin(stream.try_clone().unwrap()).stdout(stream).stderr(Stdio::null());
                children.push(sshd.spawn().unwrap());
            }
            for mut child in children {
                let _ended = child.wait();
            }
        });
        let options =
            "-oBatchMode=yes -oIdentitiesOnly=yes -oIdentityAgent=none -oLogLevel=ERROR -F/dev/null";
        let known = format!("-oStrictHostKeyChecking=no -oUserKnownHostsFile={}", file("known"));
        let ssh = format!("ssh {options} {known} -i {}", file("user"));
        Self { port, stopped, thread: Some(thread), ssh }
    }

    fn url(&self, path: &Path) -> PathBuf {
        format!("ssh://root@127.0.0.1:{}{}", self.port, path.display()).into()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // It waits for a connection.
        let _woken = std::net::TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

#[test]
fn repositories_behind_ssh() {
    let world = World::new();
    let sshd = Sshd::start(&world);
    let (app, pack) = (world.app(), shower(&world));
    let with_ssh = |mut vbuild: Command| ended(vbuild.env("GIT_SSH_COMMAND", &sshd.ssh));
    let yaml = world.yaml(&sshd.url(&app), &pack);
    expect_text(with_ssh(world.vbuild(&["build"], &yaml)), "web: ./run");
    change(&app, "web: new", "v2");
    let yaml = world.yaml(&sshd.url(&app), &format!("{pack}\nversion: v2"));
    expect_text(with_ssh(world.vbuild(&["build"], &yaml)), "web: new");

    let other = world.hg("other", &[("Procfile", "web: of hg\n")]);
    let settings = world.path("hgrc");
    fs::write(&settings, format!("[ui]\nssh = {}\n", sshd.ssh)).unwrap();
    // To hg, a path with one slash is relative to the user's home.
    let url = sshd.url(Path::new(&format!("/{}", other.display())));
    let yaml = world.yaml_of("hg", &url, &pack);
    expect_text(ended(world.vbuild(&["build"], &yaml).env("HGRCPATH", &settings)), "web: of hg");

    // Without the key, nobody is asked for a password.
    let yaml = world.yaml(&sshd.url(&world.path("out")), &pack);
    let failed = ended(world.vbuild(&["build"], &yaml).env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -F/dev/null -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oIdentityFile=/dev/null -oIdentityAgent=none"));
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    assert!(
        failed.error().starts_with("cannot read the repository ssh://root@127.0.0.1:"),
        "{}",
        failed.error()
    );
    assert!(failed.error().contains("Permission denied"), "{}", failed.error());
    world.assert_clean();
}

#[test]
fn repositories_behind_a_server_that_only_gives_out_files() {
    let world = World::new();
    let (app, pack) = (world.app(), shower(&world));
    let old = change(&app, "web: old", "v2");
    git(&app, &["branch", "--move", "main"]);
    let served = app.join(".git");
    git(&app, &["update-server-info"]);
    let folder = served.clone();
    let server = Server::start(move |path| {
        let path = path.split('?').next().unwrap_or_default().trim_start_matches("/app.git/");
        fs::read(folder.join(path)).map_or(Answer::Status("404 Not Found"), Answer::Body)
    });
    let url = PathBuf::from(server.url("/app.git"));
    let yaml = world.yaml(&url, &format!("{pack}\nversion: main"));
    expect_text(world.build(&yaml), "web: old");
    change(&app, "web: new", "v3");
    git(&app, &["update-server-info"]);
    expect_text(world.build(&yaml), "web: new");
    expect_text(world.build(&world.yaml(&url, &format!("{pack}\nversion: '{}'", &old[..10]))), "web: old");
    let failed = world.build(&world.yaml(&url, &format!("{pack}\nversion: v9"))).expect(2);
    assert_eq!(failed.error(), format!("{} has no revision \"v9\"", url.display()));
    world.assert_clean();
}

#[test]
fn a_password_is_neither_asked_for_nor_told() {
    let world = World::new();
    let server = Server::start(|_| Answer::Status("401 Unauthorized"));
    let pack = shower(&world);
    for (kind, user) in [("git", ""), ("git", "me:s3cret@"), ("hg", "me:s3cret@")] {
        let url = server.url("/private").replace("http://", &format!("http://{user}"));
        let shown = url.replace("me:s3cret@", "***@");
        let yaml = world.yaml_of(kind, Path::new(&url), &pack);
        let failed = world.build(&yaml).expect(1);
        assert!(
            failed.error().starts_with(&format!("cannot read the repository {shown}: ")),
            "{}",
            failed.error()
        );
        assert!(!(failed.stderr + &failed.stdout).contains("s3cret"));
        world.assert_no_build();

        // The same on a terminal, where somebody could answer.
        let line = "script --quiet --return --command \"$*\" /dev/null";
        let mut script = through(&["sh", "-c", line, "sh"], &world.vbuild(&["build"], &yaml));
        // An end of the input would end a question, too.
        let mut shown = crate::support::Started::new(script.stdin(Stdio::piped()));
        let _kept = shown.0.stdin.take();
        let shown = shown.end().expect(1);
        assert!(shown.stdout.contains("hint: passwords are never asked for"), "{}", shown.stdout);
        assert!(!shown.stdout.contains("s3cret") && !shown.stdout.to_lowercase().contains("password:"));
        world.assert_no_build();
    }
}
