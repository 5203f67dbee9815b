//! What must hold whichever vrun is called: every test runs with the real one, in containers and as root, and
//! with a stand-in.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::fs;
use std::time::Duration;

use harness::{NAME, TestHost, Vrun, host, is_alive, proc_yaml, send, until};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use vr_agent::record::Record;
use vr_common::host_api::{Deleted, HostInfo, ProcList, ProcState, UptestReport, UptestResult};

macro_rules! with_each_vrun {
    ($($test:ident)*) => {
        mod real_vrun {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::host(super::Vrun::Real).await).await;
            })*
        }
        mod stand_in {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::host(super::Vrun::StandIn).await).await;
            })*
        }
    };
}

with_each_vrun! {
    a_proc_is_deployed_once_and_listed
    a_crash_is_followed_by_a_start
    a_proc_that_cannot_start_is_reported_and_left_alone
    a_proc_that_cannot_be_set_up_leaves_nothing
    a_proc_that_breaks_backs_off_and_is_given_up
    stop_start_and_restart
    an_app_that_ignores_term_is_stopped_all_the_same
    a_deleted_proc_is_gone
    procs_outlive_the_agent
    the_log_is_read_from_its_end
    only_a_vrun_that_dies_takes_the_app_down
}

fn sleeper() -> String {
    proc_yaml("cmd: sleep 98765")
}

async fn a_proc_is_deployed_once_and_listed(host: TestHost) {
    let info: HostInfo = host.call(Method::GET, "info").await.unwrap();
    assert_eq!((info.host.as_str(), info.pid), ("testhost", host.agent_pid()));
    let list: ProcList = host.call(Method::GET, "procs").await.unwrap();
    assert!(list.procs.is_empty());

    let first = host.deploy(&sleeper()).await.unwrap();
    assert_eq!((first.statename, first.state, first.name.as_str()), (ProcState::Running, 20, NAME));
    assert!(first.description.starts_with(&format!("pid {}, uptime 0:00:0", first.pid)), "{first:?}");
    assert_eq!((first.id.as_str(), first.parsed.port), ("testhost-demo-v1-prod-abcd1234-web-5001", 5001));
    assert!(is_alive(first.pid) && first.start_time.is_some() && first.stop_time.is_none());

    // The same again, also in other words, is no change.
    let again = host.deploy(&format!("# the same\n{}", sleeper())).await.unwrap();
    assert_eq!((again.pid, again.start_time), (first.pid, first.start_time.clone()));
    let list: ProcList = host.call(Method::GET, "procs").await.unwrap();
    assert_eq!((list.host.as_str(), list.procs.len(), list.procs[0].pid), ("testhost", 1, first.pid));

    let refused = host.deploy(&proc_yaml("cmd: sleep 5")).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert_eq!(refused.body.error, format!("{NAME} exists with a different proc.yaml; delete it first"));
    assert_eq!(host.look().await.pid, first.pid);
    assert_eq!(host.waiting_vruns().len(), 1);
}

async fn a_crash_is_followed_by_a_start(host: TestHost) {
    let mut before = host.deploy(&sleeper()).await.unwrap();
    for _ in 0..2 {
        send(before.pid, Signal::KILL);
        let back = host
            .until_within("new process", Duration::from_secs(3), |now| now.pid != 0 && now.pid != before.pid)
            .await;
        assert_eq!(back.exitstatus, 128 + 9);
        assert!(back.stop_time.is_some());
        before = host.until_state(ProcState::Running).await;
        assert!(is_alive(before.pid));
    }
    assert_eq!(host.waiting_vruns().len(), 1);
}

async fn a_proc_that_cannot_start_is_reported_and_left_alone(host: TestHost) {
    let refused = host.deploy(&proc_yaml(r#"cmd: sh -c "echo no luck; exit 3""#)).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused:?}");
    assert!(refused.body.error.contains("exit status 3"), "{refused:?}");
    assert!(refused.body.log_tail.unwrap().contains("no luck"));
    let document = host.look().await;
    assert_eq!((document.statename, document.exitstatus, document.pid), (ProcState::Stopped, 3, 0));
    let record = fs::read_to_string(host.proc_dir().join("agent.json")).unwrap();
    assert!(record.contains(r#""desired":"stopped""#), "{record}");

    // Asked once more, it is tried once more.
    let refused = host.post("start").await.unwrap_err();
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    // A start that somebody asked for is tried again by the rules until somebody stops it.
    host.post("stop").await.unwrap();
}

async fn a_proc_that_cannot_be_set_up_leaves_nothing(host: TestHost) {
    // The real vrun finds no tarball; the stand-in is told to fail.
    let yaml = proc_yaml(
        "cmd: sleep 1\nbuild_url: /nowhere/build.tar.gz\nx_setup: echo no /nowhere/build.tar.gz >&2; exit 1",
    );
    for _ in 0..2 {
        let refused = host.deploy(&yaml).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(refused.body.error.contains("/nowhere/build.tar.gz"), "{refused:?}");
        let gone = async || host.call::<ProcList>(Method::GET, "procs").await.unwrap().procs.is_empty();
        while !gone().await {
            tokio::task::yield_now().await;
        }
        assert!(!host.proc_dir().exists());
    }
    // The name is free for something better.
    host.deploy(&sleeper()).await.unwrap();
}

async fn a_proc_that_breaks_backs_off_and_is_given_up(host: TestHost) {
    let up = host.deploy(&proc_yaml(r#"cmd: sh -c "test ! -e broken && exec sleep 98765""#)).await.unwrap();
    let flag = host.proc_dir().join("rootfs/app/broken");
    fs::write(&flag, "").unwrap();
    send(up.pid, Signal::KILL);
    let waiting = host.until_state(ProcState::Backoff).await;
    assert!(waiting.spawnerr.contains("exited too quickly (exit status 1)"), "{waiting:?}");
    let fatal = host.until_state(ProcState::Fatal).await;
    assert_eq!((fatal.pid, fatal.description), (0, fatal.spawnerr.clone()));

    // Another agent does not try it again by itself; somebody who asks does. What is shown is on disk a moment later.
    let noted = || Record::load(&host.proc_dir()).ok().filter(|record| record.failures == 4);
    until("the agent's note of it", noted).await;
    let mut host = host;
    host.end_agent(Signal::KILL);
    host.start_agent().await;
    let fatal = host.look().await;
    assert_eq!(fatal.statename, ProcState::Fatal);
    assert!(fatal.spawnerr.contains("exit status 1"), "{fatal:?}");
    fs::remove_file(&flag).unwrap();
    assert_eq!(host.post("start").await.unwrap().statename, ProcState::Running);
}

async fn stop_start_and_restart(host: TestHost) {
    let first = host.deploy(&sleeper()).await.unwrap();
    assert_eq!(host.post("start").await.unwrap().pid, first.pid, "a running one is not started again");
    let second = host.post("restart").await.unwrap();
    assert_eq!(second.statename, ProcState::Running);
    assert!(second.pid != first.pid && !is_alive(first.pid));

    let down = host.post("stop").await.unwrap();
    assert_eq!((down.statename, down.pid), (ProcState::Stopped, 0));
    assert!(!is_alive(second.pid) && host.waiting_vruns().is_empty() && down.stop_time.is_some());
    assert_eq!(host.post("stop").await.unwrap().statename, ProcState::Stopped);
    // A deploy of what is there already brings it up again.
    assert_eq!(host.deploy(&sleeper()).await.unwrap().statename, ProcState::Running);
    host.post("stop").await.unwrap();
    assert_eq!(host.post("restart").await.unwrap().statename, ProcState::Running);
    assert_eq!(host.waiting_vruns().len(), 1);
}

async fn an_app_that_ignores_term_is_stopped_all_the_same(host: TestHost) {
    // `exec` keeps an ignored signal ignored.
    let yaml = proc_yaml("cmd: sh -c \"trap '' TERM; exec sleep 98765\"\ngrace_period: 1");
    let up = host.deploy(&yaml).await.unwrap();
    let down = host.post("stop").await.unwrap();
    assert_eq!(down.statename, ProcState::Stopped);
    until("the app's end", || (!is_alive(up.pid)).then_some(())).await;
}

async fn a_deleted_proc_is_gone(host: TestHost) {
    let up = host.deploy(&sleeper()).await.unwrap();
    for _ in 0..2 {
        let deleted: Deleted = host.call(Method::DELETE, &format!("procs/{NAME}")).await.unwrap();
        assert_eq!(deleted, Deleted { name: NAME.into(), deleted: true });
        assert!(!host.proc_dir().exists() && !is_alive(up.pid) && host.waiting_vruns().is_empty());
    }
    for (method, what) in
        [(Method::GET, ""), (Method::POST, "/start"), (Method::POST, "/stop"), (Method::GET, "/log")]
    {
        let refused =
            host.call::<serde_json::Value>(method, &format!("procs/{NAME}{what}")).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::NOT_FOUND, "{what}");
    }
    assert_eq!(fs::read_dir(host.path("root/agent/deleting")).unwrap().count(), 0);
    host.deploy(&sleeper()).await.unwrap();
}

async fn procs_outlive_the_agent(mut host: TestHost) {
    let up = host.deploy(&sleeper()).await.unwrap();
    host.end_agent(Signal::KILL);
    assert!(is_alive(up.pid));
    host.start_agent().await;
    // Found again before the first request is answered, with the same pid and age.
    let found = host.look().await;
    assert_eq!(
        (found.statename, found.pid, found.start_time),
        (ProcState::Running, up.pid, up.start_time.clone())
    );
    assert_eq!(host.deploy(&sleeper()).await.unwrap().pid, up.pid);

    // The end of one that is nobody's child is noticed too.
    send(up.pid, Signal::KILL);
    let back = host
        .until_within("new process", Duration::from_secs(3), |now| now.pid != 0 && now.pid != up.pid)
        .await;
    assert_eq!(back.exitstatus, 128 + 9);
    let back = host.until_state(ProcState::Running).await;

    // A polite end of the agent is no end of the proc either.
    assert_eq!(host.end_agent(Signal::TERM), Some(0));
    assert!(is_alive(back.pid) && !host.path("address").exists());
    host.start_agent().await;
    assert_eq!(host.look().await.pid, back.pid);

    // One that was adopted can be stopped, and stays down for the next agent.
    assert_eq!(host.post("stop").await.unwrap().statename, ProcState::Stopped);
    assert!(!is_alive(back.pid));
    host.end_agent(Signal::KILL);
    host.start_agent().await;
    assert_eq!(host.look().await.statename, ProcState::Stopped);

    // One that ended while no agent was there is started again, as after a boot.
    let up = host.post("start").await.unwrap();
    host.end_agent(Signal::KILL);
    for pid in host.waiting_vruns() {
        send(pid, Signal::KILL);
    }
    until("the app's end", || (!is_alive(up.pid)).then_some(())).await;
    host.start_agent().await;
    let back = host.until_state(ProcState::Running).await;
    assert_ne!(back.pid, up.pid);
    assert_eq!(host.waiting_vruns().len(), 1);
}

async fn only_a_vrun_that_dies_takes_the_app_down(host: TestHost) {
    let up = host.deploy(&sleeper()).await.unwrap();
    let vrun = host.waiting_vruns();
    send(vrun[0], Signal::KILL);
    let back = host
        .until_within("new process", Duration::from_secs(3), |now| now.pid != 0 && now.pid != up.pid)
        .await;
    assert_eq!(back.exitstatus, 128 + 9);
    until("the app's end", || (!is_alive(up.pid)).then_some(())).await;
    host.until_state(ProcState::Running).await;
    assert_eq!(host.waiting_vruns().len(), 1);
}

#[tokio::test]
async fn uptests_run_in_a_container_of_their_own() {
    use std::os::unix::fs::PermissionsExt;
    let host = host(Vrun::Real).await;
    host.deploy(&sleeper()).await.unwrap();
    let report = async || {
        host.call::<UptestReport>(Method::POST, &format!("procs/{NAME}/uptest")).await.unwrap().results
    };
    assert_eq!(report().await, []);
    let folder = host.proc_dir().join("rootfs/app/uptests/web");
    fs::create_dir_all(&folder).unwrap();
    for (name, text) in
        [("01_good", "#!/bin/sh\necho $2 in $PWD\n"), ("02_bad", "#!/bin/sh\necho no >&2; exit 1\n")]
    {
        fs::write(folder.join(name), text).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let result =
        |name: &str, output: &str, passed| UptestResult { name: name.into(), output: output.into(), passed };
    assert_eq!(report().await, [result("01_good", "5001 in /app\n", true), result("02_bad", "no\n", false)]);
    // Also of a proc that is down.
    host.post("stop").await.unwrap();
    assert_eq!(report().await.len(), 2);
}

async fn the_log_is_read_from_its_end(host: TestHost) {
    let yaml = proc_yaml(r#"cmd: sh -c "echo first; echo second >&2; exec sleep 98765""#);
    host.deploy(&yaml).await.unwrap();
    let log = async |query: &str| {
        let response = host.request(Method::GET, &format!("procs/{NAME}/log{query}")).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
        response.text().await.unwrap()
    };
    assert_eq!(log("").await, "first\nsecond\n");
    assert_eq!(log("?bytes=7").await, "second\n");
    host.post("stop").await.unwrap();
    assert_eq!(log("").await, "first\nsecond\n", "the log outlives the process");
    fs::write(host.proc_dir().join("log.1"), "older\n").unwrap();
    assert_eq!(log("?bytes=16").await, "er\nfirst\nsecond\n", "filled up from the rotated one");
    for bad in ["?bytes=-1", "?bytes=x", "?lines=3"] {
        let refused =
            host.call::<serde_json::Value>(Method::GET, &format!("procs/{NAME}/log{bad}")).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{bad}");
    }
}
