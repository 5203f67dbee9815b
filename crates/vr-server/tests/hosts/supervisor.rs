//! What only hosts of Supervisor have.

use std::fs;
use std::time::Duration;

use vr_common::host_api::ProcState;
use vr_common::process::command;
use vr_server::hosts::{Action, DriverKind, HostError};
use vr_testing::{Meeting, until};

use crate::rig::{HOST, Rig, proc};

const SLEEP: &str = "cmd: sleep 4000";

async fn rig() -> Rig {
    Rig::start(DriverKind::Supervisor).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_have_configured_is_shown_started_and_stopped_but_never_removed() {
    let rig = rig().await;
    let listed = rig.driver.procs().await.unwrap();
    let names: Vec<_> = listed.iter().map(|proc| (proc.group.as_str(), proc.name.as_str())).collect();
    assert_eq!(names, [("foreign", "foreign"), ("other", "w0"), ("worker", "w0"), ("worker", "w1")]);
    assert_eq!((listed[0].parsed.app_name.as_str(), listed[0].parsed.port), ("foreign", 0));
    assert_eq!(rig.driver.act("foreign", Action::Stop).await.unwrap().statename, ProcState::Stopped);
    assert_eq!(rig.driver.act("foreign", Action::Start).await.unwrap().statename, ProcState::Running);
    // The group is found out where it can be.
    assert_eq!(rig.driver.act("w1", Action::Stop).await.unwrap().group, "worker");
    let error = rig.driver.act("w0", Action::Stop).await.unwrap_err().to_string();
    assert!(error.contains("other:w0") && error.contains("worker:w0"), "{error}");
    assert_eq!(rig.driver.act("other:w0", Action::Stop).await.unwrap().group, "other");

    let error = rig.driver.delete("foreign").await.unwrap_err();
    assert!(matches!(error, HostError::NotOurs { .. }), "{error}");
    assert!(error.to_string().contains("not deployed by Velociraptor"), "{error}");
    assert!(matches!(rig.driver.uptest("foreign").await, Err(HostError::NotOurs { .. })));
    rig.driver.delete("nobody").await.unwrap();
    assert!(rig.driver.procs().await.unwrap().iter().any(|proc| proc.name == "foreign"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_with_a_name_like_ours_is_not_ours() {
    let rig = rig().await;
    let (name, yaml) = proc(5001, SLEEP);
    let file = rig.path("supervisord.conf");
    let conf = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{conf}\n[program:{name}]\ncommand=sleep 4000\n")).unwrap();
    supervisorctl(&rig, &["update"]);
    let error = rig.driver.delete(&name).await.unwrap_err();
    assert!(matches!(error, HostError::NotOurs { .. }), "{error}");
    let error = rig.driver.deploy(&name, &yaml).await.unwrap_err();
    assert!(error.to_string().contains("did not deploy"), "{error}");
    assert!(!rig.proc_dir(&name).exists());
    let stopped = rig.driver.act(&name, Action::Stop).await.unwrap();
    assert_eq!(stopped.statename, ProcState::Stopped);
}

fn supervisorctl(rig: &Rig, words: &[&str]) -> String {
    let mut client = command("supervisorctl");
    client.args(["-s", &format!("http://127.0.0.1:{}", rig.port), "-u", "velo", "-p", "sec ret"]);
    let output = client.args(words).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proc_is_a_program_as_the_format_says() {
    let rig = rig().await;
    let (name, yaml) =
        proc(5001, "cmd: sleep 4000\nstartsecs: 2\nautorestart: unexpected\nexitcodes: [0, 2]");
    rig.driver.deploy(&name, &yaml).await.unwrap();
    let conf = fs::read_to_string(rig.proc_dir(&name).join("proc.conf")).unwrap();
    for line in [
        &*format!("[program:{name}]"),
        "user=root",
        "redirect_stderr=true",
        "startsecs=2",
        "autorestart=unexpected",
        "exitcodes=0,2",
        "stdout_logfile_maxbytes=10000000",
        "stdout_logfile_backups=1",
    ] {
        assert!(conf.lines().any(|found| found == line), "{line} in {conf}");
    }
    // Debian's own client sees it, and a Supervisor that is started anew takes it up again.
    assert!(supervisorctl(&rig, &["status", &name]).contains("RUNNING"));
    supervisorctl(&rig, &["reload"]);
    let driver = &rig.driver;
    let deadline = tokio::time::Instant::now() + vr_testing::DEADLINE;
    loop {
        let found = driver.procs().await.unwrap_or_default();
        if found.iter().any(|proc| proc.name == name && proc.statename == ProcState::Running) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Supervisor says yes to a start of what is about to end, and does not start it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_about_to_end_can_be_started_again() {
    let rig = rig().await;
    let script = "trap \"sleep 2; exit 0\" TERM; echo up; while :; do sleep 0.05; done";
    let (name, yaml) = proc(5001, &format!("cmd: sh -c '{script}'"));
    let mut before = rig.driver.deploy(&name, &yaml).await.unwrap();
    for again in ["start", "deploy"] {
        let mut stop = command("supervisorctl")
            .args(["-s", &format!("http://127.0.0.1:{}", rig.port), "-u", "velo", "-p", "sec ret"])
            .args(["stop", &name])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        until("it is about to end", || supervisorctl(&rig, &["status", &name]).contains("STOPPING"));
        let after = match again {
            "start" => rig.driver.act(&name, Action::Start).await.unwrap(),
            _ => rig.driver.deploy(&name, &yaml).await.unwrap(),
        };
        stop.wait().unwrap();
        assert_eq!(after.statename, ProcState::Running, "{again}");
        assert_ne!(after.pid, before.pid, "{again}");
        before = after;
    }
}

/// As if the server, the connection or the host had died between two steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_or_delete_that_was_cut_short_is_finished_by_the_next() {
    let rig = rig().await;
    let (name, yaml) = proc(5001, SLEEP);
    let dir = rig.proc_dir(&name);

    // Only proc.yaml was written, or that and everything but Supervisor's part.
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("proc.yaml"), &yaml).unwrap();
    assert_eq!(rig.driver.deploy(&name, &yaml).await.unwrap().statename, ProcState::Running);

    // Supervisor has forgotten it already.
    supervisorctl(&rig, &["stop", &name]);
    supervisorctl(&rig, &["remove", &name]);
    assert!(dir.join("proc.conf").exists());
    assert_eq!(rig.driver.deploy(&name, &yaml).await.unwrap().statename, ProcState::Running);
    supervisorctl(&rig, &["stop", &name]);
    supervisorctl(&rig, &["remove", &name]);
    fs::remove_file(dir.join("proc.conf")).unwrap();
    rig.driver.delete(&name).await.unwrap();
    assert!(!dir.exists());

    // Nothing but the folder.
    fs::create_dir_all(&dir).unwrap();
    rig.driver.delete(&name).await.unwrap();
    assert!(!dir.exists());

    // The one who deployed is gone in the middle of the setup: the lock is free, and the next one does it all.
    let silent = Meeting::new();
    let (name, slow) = proc(5002, &format!("{SLEEP}\nbuild_url: {}", silent.url("/build.tar.gz")));
    let (driver, to_deploy, text) = (rig.driver.clone(), name.clone(), slow.clone());
    let deploy = tokio::spawn(async move { driver.deploy(&to_deploy, &text).await });
    let file = rig.proc_dir(&name).join("proc.yaml");
    let vrun = || {
        let found =
            command("pgrep").arg("-f").arg(format!("vrun setup {}", file.display())).output().unwrap();
        !found.stdout.is_empty()
    };
    until("a setup is under way", vrun);
    deploy.abort();
    drop(deploy.await);
    until("its setup has ended with it", || !vrun());
    rig.driver.delete(&name).await.unwrap();
    assert!(!rig.proc_dir(&name).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_ssh_procs_are_seen_and_told_and_what_is_missing_is_said() {
    let rig = rig().await;
    let (name, yaml) = proc(5001, SLEEP);
    rig.driver.deploy(&name, &yaml).await.unwrap();
    let none = rig.path("no-known-hosts");
    fs::write(&none, "").unwrap();
    for (more, hint) in [
        (format!("ssh: {{known_hosts: {}}}", none.display()), "host key"),
        ("ssh: {password: n0tit}".to_owned(), "does not let"),
        ("ssh: {sudo_password: n0tit}".to_owned(), "sudo"),
    ] {
        let driver = rig.driver_with(&more);
        assert_eq!(driver.act(&name, Action::Stop).await.unwrap().statename, ProcState::Stopped);
        let error = driver.delete(&name).await.unwrap_err();
        assert!(
            matches!(&error, HostError::Denied { message, .. } if message.contains(hint)),
            "{more}: {error}"
        );
        assert!(error.to_string().contains(HOST) && !error.to_string().contains("n0tit"), "{error}");
    }
    assert!(rig.proc_dir(&name).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_does_not_include_procs_is_told_apart() {
    let rig = rig().await;
    let (name, yaml) = proc(5001, SLEEP);
    let driver = rig.driver_with(&format!("root: {}", rig.path("elsewhere").display()));
    let error = driver.deploy(&name, &yaml).await.unwrap_err().to_string();
    assert!(error.contains("has to include") && error.contains("elsewhere/procs/*/proc.conf"), "{error}");
    assert!(!rig.path("elsewhere/procs").join(&name).exists(), "nothing is left half-made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn procs_that_supervisor_does_not_know_are_torn_down_but_not_at_once() {
    let rig = rig().await;
    let (orphan, yaml) = proc(5001, SLEEP);
    let (fresh, _) = proc(5002, SLEEP);
    let (of_agent, _) = proc(5003, SLEEP);
    // As all of them look to a Supervisor whose configuration lost its `[include]`.
    let (configured, _) = proc(5004, SLEEP);
    for name in [&orphan, &fresh, &of_agent, &configured] {
        fs::create_dir_all(rig.proc_dir(name)).unwrap();
    }
    fs::write(rig.proc_dir(&orphan).join("proc.yaml"), yaml).unwrap();
    fs::write(rig.proc_dir(&of_agent).join("agent.json"), "{}").unwrap();
    fs::write(rig.proc_dir(&configured).join("proc.conf"), "[program:x]\ncommand=sleep 4000\n").unwrap();
    let aged = command("touch").args(["-d", "6 days ago"]).arg(rig.proc_dir(&fresh)).status();
    assert!(aged.unwrap().success());
    for name in [&orphan, &of_agent, &configured] {
        let aged = command("touch").args(["-d", "8 days ago"]).arg(rig.proc_dir(name)).status();
        assert!(aged.unwrap().success());
    }
    let report = rig.driver.clean_up().await.unwrap();
    assert_eq!((report.procs, report.errors), (vec![orphan.clone()], Vec::new()));
    assert!(!rig.proc_dir(&orphan).exists());
    for name in [&fresh, &of_agent, &configured] {
        assert!(rig.proc_dir(name).exists(), "{name}");
    }
}
