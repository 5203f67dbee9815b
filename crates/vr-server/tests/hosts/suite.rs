//! What both drivers have to do alike.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use vr_common::host_api::ProcState;
use vr_server::hosts::{Action, DriverKind, HostError};

use crate::rig::{HOST, Rig, named, proc};

/// Makes a test for each driver of each function.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod on_agent {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::DriverKind::Agent).await;
            })*
        }
        mod on_supervisor {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::DriverKind::Supervisor).await;
            })*
        }
    };
}

on_both! {
    a_proc_lives_and_dies
    uptests_pass_and_fail
    a_log_is_read_and_followed
    an_app_is_asked_to_end_by_its_own_signal
    a_host_that_is_gone_or_frozen_costs_its_deadline_only
    a_wrong_secret_is_no_silence
    two_deploys_at_once_make_one_proc
    a_build_that_cannot_be_fetched_leaves_nothing
    a_proc_that_does_not_stay_up_says_why
    odd_names_work_or_are_refused
    a_proc_yaml_of_another_proc_is_refused
    a_host_says_what_it_is_and_is_cleaned_up
}

const SLEEP: &str = "cmd: sleep 4000";

async fn a_proc_lives_and_dies(kind: DriverKind) {
    let rig = Rig::start(kind).await;
    let (name, yaml) = proc(5001, SLEEP);
    let driver = &rig.driver;

    let document = driver.deploy(&name, &yaml).await.unwrap();
    assert_eq!((document.statename, document.name.as_str()), (ProcState::Running, name.as_str()));
    assert_eq!((document.host.as_str(), document.parsed.port), (HOST, 5001));
    assert_eq!(document.id, format!("{HOST}-{name}"));
    assert!(document.pid > 0 && rig.proc_dir(&name).join("proc.yaml").exists());
    let procs = driver.procs().await.unwrap();
    let listed = procs.iter().find(|proc| proc.name == name).unwrap();
    assert_eq!((listed.pid, listed.statename), (document.pid, ProcState::Running));
    assert!(procs.is_sorted_by_key(|proc| &proc.name));

    // The same again changes nothing, another one is refused.
    assert_eq!(driver.deploy(&name, &yaml).await.unwrap().pid, document.pid);
    let (_, other) = proc(5001, "cmd: sleep 4001");
    let error = driver.deploy(&name, &other).await.unwrap_err();
    assert!(matches!(&error, HostError::Refused { message, .. } if message.contains("different")), "{error}");

    assert_eq!(driver.act(&name, Action::Start).await.unwrap().pid, document.pid);
    assert_eq!(driver.act(&name, Action::Stop).await.unwrap().statename, ProcState::Stopped);
    assert_eq!(driver.act(&name, Action::Stop).await.unwrap().statename, ProcState::Stopped);
    let again = driver.deploy(&name, &yaml).await.unwrap();
    assert_eq!(again.statename, ProcState::Running);
    let restarted = driver.act(&name, Action::Restart).await.unwrap();
    assert_eq!(restarted.statename, ProcState::Running);
    assert_ne!(restarted.pid, again.pid);

    driver.delete(&name).await.unwrap();
    assert!(!rig.proc_dir(&name).exists());
    assert!(driver.procs().await.unwrap().iter().all(|proc| proc.name != name));
    driver.delete(&name).await.unwrap();
    for action in [Action::Start, Action::Stop, Action::Restart] {
        let error = driver.act(&name, action).await.unwrap_err();
        assert!(matches!(&error, HostError::NoSuchProc { proc, .. } if *proc == name), "{error}");
    }
    assert!(matches!(driver.uptest(&name).await, Err(HostError::NoSuchProc { .. })));
    // And it may come back.
    assert_eq!(driver.deploy(&name, &yaml).await.unwrap().statename, ProcState::Running);
}

async fn uptests_pass_and_fail(kind: DriverKind) {
    let rig = Rig::start(kind).await;
    let (name, yaml) = proc(5001, SLEEP);
    rig.driver.deploy(&name, &yaml).await.unwrap();
    assert_eq!(rig.driver.uptest(&name).await.unwrap(), []);
    let folder = rig.proc_dir(&name).join("rootfs/app/uptests/web");
    fs::create_dir_all(&folder).unwrap();
    for (file, script) in
        [("01_good", "#!/bin/sh\necho at $1 $2\n"), ("02_bad", "#!/bin/sh\necho no; exit 3\n")]
    {
        fs::write(folder.join(file), script).unwrap();
        fs::set_permissions(folder.join(file), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let results = rig.driver.uptest(&name).await.unwrap();
    let seen: Vec<_> = results.iter().map(|r| (r.name.as_str(), r.output.trim(), r.passed)).collect();
    assert_eq!(seen, [("01_good", "at 127.0.0.1 5001", true), ("02_bad", "no", false)]);
}

async fn a_log_is_read_and_followed(kind: DriverKind) {
    let rig = Rig::start(kind).await;
    let go = rig.path("go");
    fs::create_dir(&go).unwrap();
    fs::set_permissions(&go, fs::Permissions::from_mode(0o777)).unwrap();
    // Says one thing at once, the next when it is told to.
    let (name, yaml) = proc(
        5001,
        &format!(
            "cmd: sh -c 'echo first words; until [ -e /go/on ]; do sleep 0.05; done; echo second words; sleep 4000'\n\
             volumes: [['{}', /go]]",
            go.display()
        ),
    );
    rig.driver.deploy(&name, &yaml).await.unwrap();
    let mut log = rig.driver.log_follow(&name, 1000).await.unwrap();
    let mut text = String::new();
    let mut read_until = async |words: &str| {
        while !text.contains(words) {
            let piece = tokio::time::timeout(Duration::from_secs(30), log.next()).await;
            let piece = piece.unwrap_or_else(|_| panic!("no {words:?} in {text:?}"));
            text += &String::from_utf8_lossy(&piece.expect("the log goes on").unwrap());
        }
    };
    read_until("first words\n").await;
    fs::write(go.join("on"), "").unwrap();
    read_until("second words\n").await;
    assert_eq!(rig.driver.log_tail(&name, 13).await.unwrap(), "second words\n");
    assert_eq!(rig.driver.log_tail(&name, 4000).await.unwrap(), "first words\nsecond words\n");
    let unknown = proc(5999, "").0;
    assert!(matches!(rig.driver.log_tail(&unknown, 10).await, Err(HostError::NoSuchProc { .. })));
    assert!(matches!(rig.driver.log_follow(&unknown, 10).await.err(), Some(HostError::NoSuchProc { .. })));
}

async fn an_app_is_asked_to_end_by_its_own_signal(kind: DriverKind) {
    let rig = Rig::start(kind).await;
    let script = "trap \"echo asked by USR1; exit 0\" USR1; trap \"echo wrong\" TERM INT; \
                  echo up; while :; do sleep 0.05; done";
    let (name, yaml) = proc(5001, &format!("cmd: sh -c '{script}'\nstopsignal: USR1\ngrace_period: 60"));
    rig.driver.deploy(&name, &yaml).await.unwrap();
    let stopped = rig.driver.act(&name, Action::Stop).await.unwrap();
    assert_eq!(stopped.statename, ProcState::Stopped);
    assert_eq!(rig.driver.log_tail(&name, 1000).await.unwrap(), "up\nasked by USR1\n");
}

async fn a_host_that_is_gone_or_frozen_costs_its_deadline_only(kind: DriverKind) {
    let mut rig = Rig::start(kind).await;
    let (name, yaml) = proc(5001, SLEEP);
    rig.driver.deploy(&name, &yaml).await.unwrap();

    rig.freeze();
    let begun = Instant::now();
    let (procs, facts, tail, follow) = tokio::join!(
        rig.driver.procs(),
        rig.driver.facts(),
        rig.driver.log_tail(&name, 10),
        rig.driver.log_follow(&name, 10),
    );
    for error in [procs.err(), facts.err(), tail.err(), follow.err()] {
        let error = error.expect("nothing answers");
        assert!(error.is_unreachable(), "{error}");
        assert!(error.to_string().contains(HOST), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    rig.thaw();
    assert_eq!(rig.driver.act(&name, Action::Start).await.unwrap().statename, ProcState::Running);

    rig.kill_daemon();
    let begun = Instant::now();
    let (deploy, act, delete) = tokio::join!(
        rig.driver.deploy(&name, &yaml),
        rig.driver.act(&name, Action::Stop),
        rig.driver.delete(&name),
    );
    for error in [deploy.err(), act.err(), delete.err(), rig.driver.procs().await.err()] {
        let error = error.expect("nothing answers");
        assert!(error.is_unreachable(), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    assert!(rig.proc_dir(&name).join("proc.yaml").exists(), "a delete that was not heard of does nothing");

    rig.start_daemon();
    let found = rig.driver.procs().await.unwrap();
    assert!(found.iter().any(|proc| proc.name == name), "{found:?}");
}

async fn a_wrong_secret_is_no_silence(kind: DriverKind) {
    let rig = Rig::start(kind).await;
    let (name, yaml) = proc(5001, SLEEP);
    let other = rig.path("other-token");
    fs::write(&other, "not the right one at all").unwrap();
    let (more, hint) = match kind {
        DriverKind::Agent => (format!("agent: {{token_file: {}}}", other.display()), "token"),
        DriverKind::Supervisor => ("supervisor: {username: velo, password: wrong}".to_owned(), "password"),
    };
    let driver = rig.driver_with(&more);
    for error in [
        driver.procs().await.err(),
        driver.deploy(&name, &yaml).await.err(),
        driver.act(&name, Action::Stop).await.err(),
        driver.delete(&name).await.err(),
        driver.log_follow(&name, 10).await.err(),
    ] {
        let error = error.expect("it is not let in");
        assert!(matches!(&error, HostError::Denied { message, .. } if message.contains(hint)), "{error}");
        assert!(!error.to_string().contains("wrong one") && !error.to_string().contains("not the right"));
    }
    assert!(!rig.proc_dir(&name).exists());
}

async fn two_deploys_at_once_make_one_proc(kind: DriverKind) {
    let rig = Rig::start(kind).await;
    let (name, yaml) = proc(5001, SLEEP);
    // As from two servers.
    let other = rig.driver_with("");
    let (one, two) = tokio::join!(rig.driver.deploy(&name, &yaml), other.deploy(&name, &yaml));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((one.statename, one.pid), (ProcState::Running, two.pid));
    // And side by side with another proc.
    let (second, second_yaml) = proc(5002, SLEEP);
    let (deleted, deployed) = tokio::join!(rig.driver.delete(&name), other.deploy(&second, &second_yaml));
    deleted.unwrap();
    assert_eq!(deployed.unwrap().statename, ProcState::Running);
    let left: Vec<_> = rig.driver.procs().await.unwrap().into_iter().map(|proc| proc.name).collect();
    assert!(left.contains(&second) && !left.contains(&name), "{left:?}");
    let (one, two) = tokio::join!(rig.driver.delete(&second), other.delete(&second));
    one.unwrap();
    two.unwrap();
    assert!(!rig.proc_dir(&second).exists());
}

async fn a_build_that_cannot_be_fetched_leaves_nothing(kind: DriverKind) {
    let rig = Rig::start(kind).await;
    let missing = rig.path("no-such-build.tar.gz");
    let (name, yaml) = proc(5001, &format!("{SLEEP}\nbuild_url: {}", missing.display()));
    let error = rig.driver.deploy(&name, &yaml).await.unwrap_err();
    let HostError::Refused { message, .. } = &error else { panic!("{error}") };
    assert!(message.contains("no-such-build.tar.gz"), "{message}");
    assert!(!rig.proc_dir(&name).exists(), "{message}");
    assert!(rig.driver.procs().await.unwrap().iter().all(|proc| proc.name != name));
    // Nothing of it is in the way of a better one.
    let (_, yaml) = proc(5001, SLEEP);
    assert_eq!(rig.driver.deploy(&name, &yaml).await.unwrap().statename, ProcState::Running);
}

async fn a_proc_that_does_not_stay_up_says_why(kind: DriverKind) {
    let rig = Rig::start(kind).await;
    let (name, yaml) = proc(5001, "cmd: sh -c 'echo last words; exit 3'");
    let error = rig.driver.deploy(&name, &yaml).await.unwrap_err();
    let HostError::Refused { message, log_tail, .. } = &error else { panic!("{error}") };
    assert!(message.contains(&name), "{message}");
    assert!(log_tail.as_deref().unwrap_or_default().contains("last words"), "{log_tail:?}");
    rig.driver.delete(&name).await.unwrap();
    assert!(!rig.proc_dir(&name).exists());
}

async fn odd_names_work_or_are_refused(kind: DriverKind) {
    let rig = Rig::start(kind).await;
    let (name, yaml) = named("v1.0+x@y~1-rc.2", 5001, SLEEP);
    assert_eq!(rig.driver.deploy(&name, &yaml).await.unwrap().name, name);
    assert_eq!(rig.driver.act(&name, Action::Restart).await.unwrap().parsed.version, "v1.0+x@y~1-rc.2");
    assert_eq!(rig.driver.log_tail(&name, 10).await.unwrap(), "");
    rig.driver.delete(&name).await.unwrap();
    for version in ["a:b", "a]b", "a;b", "100%", "a#b", "é", "a&b?c=d", "$(id)", "a`id`"] {
        let (name, yaml) = named(version, 5002, SLEEP);
        match rig.driver.deploy(&name, &yaml).await {
            Ok(document) => {
                assert_eq!(document.name, name);
                let procs = rig.driver.procs().await.unwrap();
                assert!(procs.iter().any(|proc| proc.name == name), "{name}");
            }
            Err(HostError::Refused { message, .. }) if kind == DriverKind::Supervisor => {
                assert!(message.contains("cannot be a program of Supervisor"), "{message}");
                assert!(!rig.proc_dir(&name).exists(), "{name}");
            }
            Err(error) => panic!("{name}: {error}"),
        }
        rig.driver.delete(&name).await.unwrap();
        assert!(!rig.proc_dir(&name).exists(), "{name}");
    }
}

async fn a_proc_yaml_of_another_proc_is_refused(kind: DriverKind) {
    let rig = Rig::start(kind).await;
    let (name, _) = proc(5001, SLEEP);
    let (_, other) = proc(5002, SLEEP);
    for bad in [other.as_str(), "cmd: sleep 1", "cmd: [", ""] {
        let error = rig.driver.deploy(&name, bad).await.unwrap_err();
        assert!(matches!(&error, HostError::Refused { .. }), "{bad:?}: {error}");
    }
    assert!(!rig.proc_dir(&name).exists());
}

async fn a_host_says_what_it_is_and_is_cleaned_up(kind: DriverKind) {
    let rig = Rig::start(kind).await;
    let facts = rig.driver.facts().await.unwrap();
    assert!(facts.cpus > 0 && facts.memory_bytes > 0 && facts.disk_free_bytes > 0, "{facts:?}");
    assert!(facts.disk_total_bytes >= facts.disk_free_bytes && !facts.kernel.is_empty(), "{facts:?}");
    let (name, yaml) = proc(5001, SLEEP);
    let before = rig.driver.deploy(&name, &yaml).await.unwrap();
    let report = rig.driver.clean_up().await.unwrap();
    assert!(report.errors.is_empty(), "{report:?}");
    let procs = rig.driver.procs().await.unwrap();
    assert_eq!(procs.iter().find(|proc| proc.name == name).map(|proc| proc.pid), Some(before.pid));
}
