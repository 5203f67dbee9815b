//! Attempts to break out of a container, each made twice: with everything that protects the host, when it must fail,
//! and without what stops it, when it must succeed, which shows that the first could have failed. Needs root.
//!
//! The "host" of these attempts is this process in namespaces of its own, so that an attack that succeeds meets only
//! what it is meant to meet. One attempt after the other in a process without threads, which is what making
//! containers needs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attempts;
mod defences;
mod scene;
mod setup;
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use vr_common::process::command;
use vr_runner::container::Engine;
use vr_testing::until;

use attempts::{Attempt, Case};
use defences::Defence;
use scene::{HOST_KEY, HOST_VARIABLE, Scene, USER, Who};

/// What makes the containers. All of them have to withstand all attempts, but LXC's have no user namespace and are
/// not for ordinary users.
const ENGINES: [Engine; 2] = [Engine::Own, Engine::Lxc];

/// The first argument of the process that is the "host".
const HOST: &str = "--as-the-host";
/// The first argument of a process that makes one container; the attempt, the attacker, the engine and the
/// defences that are off follow.
const ONE: &str = "--one";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["/proc/self/exe", ..] => be_the_shell(),
        [_, ONE, attempt, who, engine, ref off @ ..] => answer(attempt, who, engine, off),
        [_, HOST, ref wanted @ ..] => be_the_host(wanted),
        [_, ref options @ ..] if options.contains(&"--list") => {
            for name in names() {
                println!("{name}: test");
            }
            ExitCode::SUCCESS
        }
        [_, ref options @ ..] => start_the_host(options.iter().filter(|option| !option.starts_with('-'))),
        [] => ExitCode::FAILURE,
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    attempts::all().map(|attempt| attempt.name).chain(setup::TESTS.iter().map(|(name, _)| *name))
}

/// Starts the "host": in namespaces of its own, with a key in its session and a variable that nobody is to see.
fn start_the_host<'a>(wanted: impl Iterator<Item = &'a &'a str>) -> ExitCode {
    const SCRIPT: &str = "my ($join, $add, @command) = @ARGV; my ($key, $secret) = @ENV{qw(KEY SECRET)}; \
        syscall($join + 0, 1, 0) >= 0 or die qq(no keyring: $!); \
        my ($kind, $name, $text) = ('user', $key, $secret); \
        syscall($add + 0, $kind, $name, $text, length $secret, -3) >= 0 or die qq(no key: $!); exec @command or die $!";
    assert!(nix::unistd::geteuid().is_root(), "these tests need root");
    let (join, add) = (nix::libc::SYS_keyctl.to_string(), nix::libc::SYS_add_key.to_string());
    let secret = scene::random();
    let namespaces = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET;
    unshare(namespaces).unwrap();
    let mut host = command("/usr/bin/perl");
    host.args(["-e", SCRIPT, &join, &add]).arg(std::env::current_exe().unwrap()).arg(HOST).args(wanted);
    host.env("KEY", HOST_KEY).env("SECRET", &secret).env(HOST_VARIABLE, &secret);
    match host.status().unwrap().success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn be_the_host(wanted: &[&str]) -> ExitCode {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_PRIVATE | MsFlags::MS_REC, nothing).unwrap();
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), nothing).unwrap();
    mount(Some("none"), "/dev/shm", Some("tmpfs"), MsFlags::empty(), Some("mode=1777")).unwrap();
    let loopback = "my $up = pack('a16 s x22', 'lo', 1); \
        socket(my $socket, 2, 2, 0); ioctl($socket, 0x8914, $up) or die $!";
    assert!(command("/usr/bin/perl").args(["-e", loopback]).status().unwrap().success());
    let copy = Copy::new();
    let shifted = numbers_are_shifted();
    if !shifted {
        println!("no idmapped mounts here: not shown what the user namespace stops alone");
    }
    let mut failed = Vec::new();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    for attempt in attempts::all().filter(|attempt| is_wanted(attempt.name)) {
        match catch_unwind(AssertUnwindSafe(|| check(attempt, &copy, shifted))) {
            Ok(remark) => println!("test {} ... ok{remark}", attempt.name),
            Err(_) => {
                println!("test {} ... FAILED", attempt.name);
                failed.push(attempt.name);
            }
        }
    }
    for (name, test) in setup::TESTS.iter().filter(|(name, _)| is_wanted(name)) {
        match catch_unwind(test) {
            Ok(()) => println!("test {name} ... ok"),
            Err(_) => {
                println!("test {name} ... FAILED");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(" "));
    ExitCode::FAILURE
}

/// This program once more, where ordinary users can run it, and a folder for their files.
struct Copy {
    dir: TempDir,
}

impl Copy {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let set = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy("/proc/self/exe", dir.path().join("program")).unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        chown(dir.path().join("folder"), Some(USER.0), Some(USER.1)).unwrap();
        set(dir.path());
        set(&dir.path().join("program"));
        Self { dir }
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("program")
    }

    /// Gives the program to whoever runs it for this attacker, as if it were installed in a home.
    fn belonging_to(who: Who) -> Self {
        let copy = Self::new();
        if who == Who::Rootless {
            chown(copy.program(), Some(USER.0), Some(USER.1)).unwrap();
        }
        copy
    }
}

/// Whether the users of a container have other numbers on the "host". Without idmapped mounts they have the same, and a
/// user namespace stops less.
fn numbers_are_shifted() -> bool {
    let outcome = Scene::new(Who::Root, r#"print file("/proc/self/uid_map");"#).run(&[]);
    assert!(outcome.not_started.is_none(), "{:?}", outcome.not_started);
    let mut words = outcome.output.split_whitespace();
    words.next() == Some("0") && words.next() != Some("0")
}

/// Makes one attempt in all ways; gives a remark.
fn check(attempt: &Attempt, copy: &Copy, shifted: bool) -> String {
    let missing = (attempt.lacks)();
    for (engine, Case { who, stopped_by, alone }) in
        ENGINES.iter().flat_map(|engine| attempt.cases.iter().map(move |case| (*engine, case)))
    {
        let report = |off: &[Defence], verdict: &Verdict| {
            let (name, who) = (attempt.name, who.name());
            format!("{name} by {who} in a container of {engine:?} without {off:?}:\n{}", verdict.details)
        };
        let stopped = |off: &[Defence], words: &str| {
            let verdict = make(attempt, *who, engine, off, copy);
            assert!(!verdict.escaped, "{words}: {}", report(off, &verdict));
            assert!(verdict.ran || attempt.at_start, "it was not even tried: {}", report(off, &verdict));
        };
        if engine == Engine::Lxc && (*who == Who::Rootless || stopped_by == &[Defence::UserNamespace]) {
            continue;
        }
        stopped(&[], "ESCAPED");
        // The other engine has no defence that can be switched off.
        if missing.is_some() || stopped_by.is_empty() || engine != Engine::Own {
            continue;
        }
        let verdict = make(attempt, *who, engine, stopped_by, copy);
        assert!(verdict.escaped, "something else stops it: {}", report(stopped_by, &verdict));
        let is_shown = |defence: &&Defence| shifted || **defence != Defence::UserNamespace;
        for defence in alone.iter().filter(|_| stopped_by.len() > 1).filter(is_shown) {
            let off: Vec<_> = stopped_by.iter().copied().filter(|other| other != defence).collect();
            stopped(&off, &format!("{defence:?} alone does not stop it"));
        }
    }
    missing.map_or(String::new(), |thing| format!(" (but not shown to work: no {thing} here)"))
}

/// What came of one try.
struct Verdict {
    escaped: bool,
    /// The attack ran to its end.
    ran: bool,
    details: String,
}

fn make(attempt: &Attempt, who: Who, engine: Engine, off: &[Defence], copy: &Copy) -> Verdict {
    match who == Who::Rootless || attempt.in_copy {
        true if attempt.in_copy => ask(attempt, who, engine, off, &Copy::belonging_to(who)),
        true => ask(attempt, who, engine, off, copy),
        false => make_here(attempt, who, engine, off),
    }
}

fn make_here(attempt: &Attempt, who: Who, engine: Engine, off: &[Defence]) -> Verdict {
    let mut scene = Scene::new(who, attempt.script);
    scene.spec.engine = engine;
    let evidence = (attempt.arrange)(&mut scene);
    let off: Vec<_> = off.iter().chain(attempt.beneath).copied().collect();
    let outcome = scene.run(&off);
    let escaped = evidence(&scene, &outcome);
    let ran = outcome.not_started.is_none() && (attempt.in_copy || outcome.output.contains("\ntried\n"));
    let details = format!("{}{}", outcome.not_started.unwrap_or_default(), outcome.output);
    Verdict { escaped, ran, details }
}

/// Has another process make the attempt: a copy of this one, as an ordinary user if need be.
fn ask(attempt: &Attempt, who: Who, engine: Engine, off: &[Defence], copy: &Copy) -> Verdict {
    let mut other = command(copy.program());
    other.args([ONE, attempt.name, who.name(), &format!("{engine:?}")]);
    other.args(off.iter().map(|defence| defence.name())).current_dir("/");
    if who == Who::Rootless {
        other.uid(USER.0).gid(USER.1).env("TMPDIR", copy.dir.path().join("folder"));
    } else {
        other.env("TMPDIR", copy.dir.path());
    }
    let output = other.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}{errors}", attempt.name);
    let (words, details) = said.split_once('\n').unwrap();
    Verdict {
        escaped: words.contains("escaped"),
        ran: words.contains("ran"),
        details: format!("{details}{errors}"),
    }
}

/// The other side of [`ask`].
fn answer(attempt: &str, who: &str, engine: &str, off: &[&str]) -> ExitCode {
    let attempt = attempts::all().find(|other| other.name == attempt).unwrap();
    let who = Who::ALL.into_iter().find(|other| other.name() == who).unwrap();
    let engine = ENGINES.into_iter().find(|other| format!("{other:?}") == engine).unwrap();
    let off: Vec<_> =
        Defence::ALL.into_iter().filter(|defence| off.contains(&defence.name().as_str())).collect();
    let Verdict { escaped, ran, details } = make_here(attempt, who, engine, &off);
    let words = [(escaped, "escaped"), (ran, "ran")];
    let words: Vec<_> = words.iter().filter(|(holds, _)| *holds).map(|(_, word)| *word).collect();
    println!("{}\n{details}", words.join(" "));
    ExitCode::SUCCESS
}

/// What the program that makes containers does when an image has it run as its shell, with the image's own libraries:
/// whatever the image wants. Here, it changes that program's own file, which is the host's.
fn be_the_shell() -> ExitCode {
    println!("in the caller's program");
    let _ = std::io::stdout().flush();
    let Ok(file) = File::open("/proc/self/exe") else { return ExitCode::FAILURE };
    match file.set_permissions(fs::Permissions::from_mode(0o711)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
