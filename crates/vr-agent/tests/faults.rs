//! What goes wrong on the way: bad callers, agents that are killed in the middle, a vrun that hangs or answers
//! nonsense. With a stand-in for vrun, as the real one does none of that on demand.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::{NAME, TOKEN, TestHost, Vrun, answer, host, is_alive, proc_yaml, send, until};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use vr_common::host_api::{Deleted, ProcDocument, ProcList, ProcState, UptestReport};

fn sleeper(more: &str) -> String {
    proc_yaml(&format!("cmd: sleep 98765\n{more}"))
}

/// How often the stand-in was called for a setup.
fn setups(host: &TestHost) -> usize {
    fs::read_to_string(host.proc_dir().join("calls")).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn nobody_without_the_token_gets_an_answer() {
    let host = host(Vrun::StandIn).await;
    for (method, path) in [
        (Method::GET, "info".to_owned()),
        (Method::GET, "procs".to_owned()),
        (Method::GET, format!("procs/{NAME}")),
        (Method::PUT, format!("procs/{NAME}")),
        (Method::DELETE, format!("procs/{NAME}")),
        (Method::POST, format!("procs/{NAME}/start")),
        (Method::POST, format!("procs/{NAME}/stop")),
        (Method::POST, format!("procs/{NAME}/restart")),
        (Method::POST, format!("procs/{NAME}/uptest")),
        (Method::GET, format!("procs/{NAME}/log")),
        (Method::GET, "nothing".to_owned()),
    ] {
        for header in [None, Some("Bearer wrong-token-wrong-tok"), Some("Basic eDp5"), Some(TOKEN)] {
            let mut request = host.request(method.clone(), &path).build().unwrap();
            request.headers_mut().remove("authorization");
            if let Some(header) = header {
                request.headers_mut().insert("authorization", header.parse().unwrap());
            }
            let response =
                reqwest::Client::builder().no_proxy().build().unwrap().execute(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{method} {path} {header:?}");
            let text = response.text().await.unwrap();
            assert!(text.starts_with("{\"error\":\"") && text.contains("token"), "{text}");
        }
    }
    assert!(!host.agent_log().contains(TOKEN), "the token is in the log");
}

#[tokio::test]
async fn bad_requests_are_refused_in_one_sentence() {
    let host = host(Vrun::StandIn).await;
    for (yaml, expected) in [
        ("cmd: [".to_owned(), "proc.yaml"),
        ("port: 1".to_owned(), "needs one of the keys proc_name and cmd"),
        ("cmd: x".to_owned(), "needs all of app_name, version, config_name, release_hash and proc_name"),
        (proc_yaml("cmd: x").replace("5001", "5002"), "was sent for demo-v1-prod-abcd1234-web-5001"),
        (proc_yaml("cmd: x\nenv: {A-B: 1}"), "is not a variable name"),
    ] {
        let refused = host.deploy(&yaml).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{yaml}");
        assert!(refused.body.error.contains(expected), "{yaml}: {refused:?}");
    }
    let refused = |request: reqwest::RequestBuilder| async {
        let refused = answer::<serde_json::Value>(request).await.unwrap_err();
        (refused.status.as_u16(), refused.body.error)
    };
    let put = |body: Vec<u8>| host.request(Method::PUT, &format!("procs/{NAME}")).body(body);
    assert_eq!(refused(put(b"{}".to_vec())).await.0, 400);
    assert_eq!(refused(put(vec![b' '; (4 << 20) + 1])).await.0, 413);
    for name in ["not-ours", "..%2F..%2Fetc", "demo-v1-prod-abcd1234-web-5001%2F.."] {
        for method in [Method::GET, Method::DELETE] {
            let (status, error) = refused(host.request(method, &format!("procs/{name}"))).await;
            assert_eq!(status, 400, "{name}: {error}");
        }
    }
    assert_eq!(refused(host.request(Method::GET, "nothing")).await.0, 404);
    assert_eq!(refused(host.request(Method::PATCH, "procs")).await.0, 405);
    let (status, error) = refused(host.request(Method::GET, &format!("procs/{NAME}"))).await;
    assert_eq!((status, error), (404, format!("there is no proc {NAME} on this host")));
    assert_eq!(fs::read_dir(host.path("root/procs")).unwrap().count(), 0);
}

#[tokio::test]
async fn half_a_request_holds_up_nobody() {
    let host = host(Vrun::StandIn).await;
    let address = host.address();
    let mut slow = TcpStream::connect(&address).unwrap();
    slow.write_all(b"GET /v1/procs HTTP/1.1\r\nHost: x\r\n").unwrap();
    host.deploy(&sleeper("")).await.unwrap();
    slow.write_all(format!("Authorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains(NAME), "{text}");
}

/// What is said at a unix socket to a request with these headers.
fn ask_socket(socket: &Path, headers: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(harness::PATIENCE)).unwrap();
    write!(stream, "GET /v1/procs HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn a_unix_socket_serves_the_same_and_is_replaced_after_a_crash() {
    let mut host = host(Vrun::StandIn).await;
    host.deploy(&sleeper("")).await.unwrap();
    host.end_agent(Signal::TERM);
    let socket = host.path("root/agent/agent.sock");
    host.listen = format!("unix:{}", socket.display());
    for signal in [Signal::KILL, Signal::TERM] {
        host.start_agent().await;
        let said = fs::read_to_string(host.path("address")).unwrap();
        let expected = format!(r#"{{"address":"unix:{}","pid":{}}}"#, socket.display(), host.agent_pid());
        assert_eq!(said.trim(), expected);
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let folder = socket.parent().unwrap();
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        let answer = ask_socket(&socket, &format!("Authorization: Bearer {TOKEN}\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(NAME), "{answer}");
        for headers in ["", "Authorization: Bearer wrong-token-wrong-tok\r\n"] {
            let answer = ask_socket(&socket, headers);
            assert!(answer.starts_with("HTTP/1.1 401") && !answer.contains(NAME), "{answer}");
        }
        let second = host.agent_command().output().unwrap();
        assert_eq!(second.status.code(), Some(1));
        assert!(socket.exists(), "the socket of the first agent stays");
        host.end_agent(signal);
        assert_eq!(socket.exists(), signal == Signal::KILL);
    }
}

#[tokio::test]
async fn uptests_are_passed_on() {
    let host = host(Vrun::StandIn).await;
    let passed = r#"x_uptest: echo '[{"Name"_ "01", "Output"_ "fine", "Passed"_ true}]' | tr _ '\072'"#;
    host.deploy(&sleeper(passed)).await.unwrap();
    let report: UptestReport = host.call(Method::POST, &format!("procs/{NAME}/uptest")).await.unwrap();
    assert_eq!((report.results.len(), report.results[0].output.as_str()), (1, "fine"));
    assert!(report.results[0].passed);
    for (number, (answer, expected)) in [
        ("echo no container >&2; exit 1", "no container"),
        ("echo hello", "not a list of test results"),
        ("kill -9 $$", "signal: 9"),
        ("head -c 20000000 /dev/zero", "longer than"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = NAME.replace("5001", &(6000 + number).to_string());
        let yaml = sleeper(&format!("x_uptest: {answer}")).replace("5001", &(6000 + number).to_string());
        let body = serde_json::json!({ "proc_yaml": yaml });
        answer_ok(host.request(Method::PUT, &format!("procs/{name}")).json(&body)).await;
        let refused =
            host.call::<UptestReport>(Method::POST, &format!("procs/{name}/uptest")).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(refused.body.error.contains(expected), "{refused:?}");
    }
}

async fn answer_ok(request: reqwest::RequestBuilder) {
    answer::<serde_json::Value>(request).await.unwrap();
}

#[tokio::test]
async fn a_root_has_one_agent() {
    let host = host(Vrun::StandIn).await;
    let second = host.agent_command().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8_lossy(&second.stderr);
    let root = host.path("root").canonicalize().unwrap();
    assert!(text.contains(&format!("ERROR: another agent already serves {}", root.display())), "{text}");
    // The first one is none the worse for it.
    host.deploy(&sleeper("")).await.unwrap();
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let host = host(Vrun::StandIn).await;
    fs::write(host.path("short"), "abc\n").unwrap();
    for (flags, expected) in [
        (["--token-file".to_owned(), host.path("short").display().to_string()], "holds no token"),
        (
            ["--token-file".to_owned(), "/nowhere/token".to_owned()],
            "cannot read the token from /nowhere/token",
        ),
        (["--listen".to_owned(), "9002".to_owned()], "--listen"),
        (
            ["--listen".to_owned(), "unix:agent.sock".to_owned()],
            "expected ADDRESS:PORT or unix:/absolute/path",
        ),
        (["--host".to_owned(), "a b".to_owned()], "is not a valid host name"),
    ] {
        let mut command = harness::agent_program();
        command.args(["serve", "--root"]).arg(host.path("other"));
        for (name, value) in [
            ("--listen", "127.0.0.1:0".to_owned()),
            ("--host", "h".to_owned()),
            ("--token-file", host.path("token").display().to_string()),
        ] {
            if name != flags[0] {
                command.arg(name).arg(value);
            }
        }
        let output = command.args(&flags).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(expected), "{text}");
    }
    let no_token =
        harness::agent_program().args(["serve", "--host", "h", "--listen", "0.0.0.0:0"]).output().unwrap();
    assert_eq!(no_token.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&no_token.stderr).contains("--token-file"));
}

#[tokio::test]
async fn an_agent_killed_during_a_start_does_not_start_twice() {
    let mut host = host(Vrun::StandIn).await;
    // vrun runs and holds the proc, but has not said so when the next agent looks.
    let go = host.path("go");
    let held = host.path("held");
    let wait = format!(
        "x_before_status: touch {}; while [ ! -e {} ]; do sleep 0.02; done",
        held.display(),
        go.display()
    );
    let yaml = sleeper(&wait);
    let request = host.put(&yaml);
    let asked = tokio::spawn(async move { request.send().await.is_ok() });
    until("a vrun that holds the proc", || held.exists().then_some(())).await;
    let vrun = until("vrun", || host.waiting_vruns().first().copied()).await;
    host.end_agent(Signal::KILL);
    assert!(!asked.await.unwrap());
    host.start_agent().await;
    assert!(is_alive(vrun));
    fs::write(&go, "").unwrap();
    let up = host.until_state(ProcState::Running).await;
    assert_eq!(host.waiting_vruns(), [vrun]);
    assert_eq!(host.deploy(&yaml).await.unwrap().pid, up.pid);
    assert_eq!(host.waiting_vruns(), [vrun]);
}

#[tokio::test]
async fn many_killed_agents_never_start_a_proc_twice() {
    let mut host = host(Vrun::StandIn).await;
    host.deploy(&sleeper("")).await.unwrap();
    for round in 0..5 {
        // Right after it was told to restart, and at whatever moment that is for the proc.
        let request = host.request(Method::POST, &format!("procs/{NAME}/restart"));
        let asked = tokio::spawn(async move { request.send().await.is_ok() });
        let old = host.waiting_vruns();
        until("a change", || (host.waiting_vruns() != old || round % 2 == 0).then_some(())).await;
        host.end_agent(Signal::KILL);
        assert!(!asked.await.unwrap());
        host.start_agent().await;
        host.until_state(ProcState::Running).await;
        assert_eq!(host.waiting_vruns().len(), 1);
    }
}

#[tokio::test]
async fn an_interrupted_setup_is_done_by_the_next_agent() {
    let mut host = host(Vrun::StandIn).await;
    let go = host.path("go");
    let yaml = sleeper(&format!("x_setup: while [ ! -e {} ]; do sleep 0.02; done", go.display()));
    let request = host.put(&yaml);
    let asked = tokio::spawn(async move { request.send().await.is_ok() });
    until("the setup", || (setups(&host) == 1).then_some(())).await;
    assert_eq!(host.look().await.description, "being set up");
    host.end_agent(Signal::KILL);
    assert!(!asked.await.unwrap());
    // The old setup goes on and holds the proc; the new agent waits for it, and then makes sure.
    host.start_agent().await;
    fs::write(&go, "").unwrap();
    host.until_state(ProcState::Running).await;
    assert_eq!(setups(&host), 2);
    assert_eq!(host.waiting_vruns().len(), 1);
}

#[tokio::test]
async fn a_delete_ends_a_setup_that_hangs() {
    let host = host(Vrun::StandIn).await;
    let request = host.put(&sleeper("x_setup: while true; do sleep 0.1; done"));
    let asked = tokio::spawn(answer::<serde_json::Value>(request));
    until("the setup", || (setups(&host) == 1).then_some(())).await;
    let deleted: Deleted = host.call(Method::DELETE, &format!("procs/{NAME}")).await.unwrap();
    assert!(deleted.deleted && !host.proc_dir().exists());
    let refused = asked.await.unwrap().unwrap_err();
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert_eq!(refused.body.error, format!("{NAME} was deleted meanwhile"));
}

#[tokio::test]
async fn an_interrupted_delete_is_finished_by_the_next_agent() {
    let mut host = host(Vrun::StandIn).await;
    let up = host.deploy(&sleeper("")).await.unwrap();
    host.end_agent(Signal::KILL);
    // As it is when an agent dies after it noted the delete.
    fs::write(host.path("root/agent/deleting").join(NAME), "").unwrap();
    host.start_agent().await;
    until("the end of it", || (!host.proc_dir().exists()).then_some(())).await;
    until("the end of the note", || {
        (fs::read_dir(host.path("root/agent/deleting")).unwrap().count() == 0).then_some(())
    })
    .await;
    assert!(!is_alive(up.pid) && host.waiting_vruns().is_empty());
    host.deploy(&sleeper("")).await.unwrap();
}

#[tokio::test]
async fn a_proc_that_hangs_holds_up_no_other() {
    let host = host(Vrun::StandIn).await;
    let request = host.put(&sleeper("x_setup: while true; do sleep 0.1; done"));
    let asked = tokio::spawn(answer::<serde_json::Value>(request));
    until("the setup", || (setups(&host) == 1).then_some(())).await;
    let name = NAME.replace("5001", "5002");
    let body = serde_json::json!({ "proc_yaml": sleeper("").replace("5001", "5002") });
    answer_ok(host.request(Method::PUT, &format!("procs/{name}")).json(&body)).await;
    let list: ProcList = host.call(Method::GET, "procs").await.unwrap();
    let states: Vec<_> = list.procs.iter().map(|p| p.statename).collect();
    assert_eq!(states, [ProcState::Stopped, ProcState::Running]);
    asked.abort();
}

#[tokio::test]
async fn a_change_goes_on_when_the_caller_hangs_up() {
    let host = host(Vrun::StandIn).await;
    let go = host.path("go");
    let yaml = sleeper(&format!("x_setup: while [ ! -e {} ]; do sleep 0.02; done", go.display()));
    let request = host.put(&yaml).timeout(Duration::from_millis(500));
    assert!(request.send().await.unwrap_err().is_timeout());
    fs::write(&go, "").unwrap();
    host.until_state(ProcState::Running).await;
}

#[tokio::test]
async fn a_missing_vrun_is_named() {
    let host = host(Vrun::StandIn).await;
    host.deploy(&sleeper("")).await.unwrap();
    host.post("stop").await.unwrap();
    let vrun = host.path("bin/vrun");
    fs::write(&vrun, "#!/nowhere/sh\n").unwrap();
    let refused = host.post("start").await.unwrap_err();
    assert!(refused.body.error.contains(&format!("cannot start {}", vrun.display())), "{refused:?}");
    // A deploy's setup that fails does not cost what was set up before.
    let refused = host.deploy(&sleeper("")).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(host.proc_dir().join("proc.yaml").exists());
    assert_eq!(host.look().await.statename, ProcState::Fatal);
}

#[tokio::test]
async fn a_delete_that_fails_says_so_and_can_be_repeated_or_revoked() {
    let mut host = host(Vrun::StandIn).await;
    let first = host.deploy(&sleeper("")).await.unwrap();
    let vrun = host.path("bin/vrun");
    let good = fs::read_to_string(&vrun).unwrap();
    fs::write(&vrun, "#!/bin/sh\necho ERROR: still mounted >&2\nexit 1\n").unwrap();
    let path = format!("procs/{NAME}");
    for _ in 0..2 {
        let refused = host.call::<Deleted>(Method::DELETE, &path).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(refused.body.error.contains("still mounted"), "{refused:?}");
        assert!(host.proc_dir().join("proc.yaml").exists() && !is_alive(first.pid));
        assert_eq!(host.look().await.statename, ProcState::Stopped);
    }
    // Who deploys it again does not lose it to the old delete when the next agent comes.
    fs::write(&vrun, &good).unwrap();
    let again = host.deploy(&sleeper("")).await.unwrap();
    host.end_agent(Signal::KILL);
    host.start_agent().await;
    assert_eq!(host.look().await.pid, again.pid);

    fs::write(&vrun, "#!/bin/sh\nexit 1\n").unwrap();
    host.call::<Deleted>(Method::DELETE, &path).await.unwrap_err();
    fs::write(&vrun, &good).unwrap();
    let _: Deleted = host.call(Method::DELETE, &path).await.unwrap();
    assert!(!host.proc_dir().exists());
}

#[tokio::test]
async fn a_proc_whose_file_nobody_can_read_is_deleted_without_vrun() {
    let host = host(Vrun::StandIn).await;
    host.deploy(&sleeper("")).await.unwrap();
    host.post("stop").await.unwrap();
    fs::write(host.proc_dir().join("proc.yaml"), "cmd: [").unwrap();
    fs::write(host.path("bin/vrun"), "#!/bin/sh\nexit 1\n").unwrap();
    let _: Deleted = host.call(Method::DELETE, &format!("procs/{NAME}")).await.unwrap();
    assert!(!host.proc_dir().exists());
}

#[tokio::test]
async fn a_stop_stops_also_when_it_cannot_be_noted() {
    let host = host(Vrun::StandIn).await;
    let up = host.deploy(&sleeper("")).await.unwrap();
    let record = host.proc_dir().join("agent.json");
    fs::remove_file(&record).unwrap();
    fs::create_dir_all(record.join("in the way")).unwrap();
    for _ in 0..2 {
        let refused = host.post("stop").await.unwrap_err();
        assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
        let expected = format!("{NAME} is down, but will be started again with the agent or the host");
        assert!(refused.body.error.starts_with(&expected), "{refused:?}");
        assert!(refused.body.error.contains(&record.display().to_string()), "{refused:?}");
        assert!(!is_alive(up.pid));
        assert_eq!(host.look().await.statename, ProcState::Stopped);
    }
    fs::remove_dir_all(&record).unwrap();
    assert_eq!(host.post("stop").await.unwrap().statename, ProcState::Stopped);
    assert!(fs::read_to_string(&record).unwrap().contains(r#""desired":"stopped""#));
}

#[tokio::test]
async fn a_stop_ends_a_setup_that_hangs() {
    let host = host(Vrun::StandIn).await;
    let go = host.path("go");
    let yaml = sleeper(&format!("x_setup: while [ ! -e {} ]; do sleep 0.02; done", go.display()));
    for asked_for in 1..=2 {
        let request = if asked_for == 1 {
            host.put(&yaml)
        } else {
            host.request(Method::POST, &format!("procs/{NAME}/start"))
        };
        let asked = tokio::spawn(answer::<serde_json::Value>(request));
        until("the setup", || (setups(&host) == asked_for).then_some(())).await;
        assert_eq!(host.look().await.description, "being set up");
        let stopped = host.post("stop").await.unwrap();
        assert_eq!((stopped.statename, stopped.description.as_str()), (ProcState::Stopped, "Not started"));
        let refused = asked.await.unwrap().unwrap_err();
        assert_eq!(refused.status, StatusCode::CONFLICT);
        assert_eq!(refused.body.error, format!("{NAME} was stopped meanwhile"));
    }
    // It is set up by the next start.
    fs::write(&go, "").unwrap();
    assert_eq!(host.post("start").await.unwrap().statename, ProcState::Running);
    assert_eq!(setups(&host), 3);
}

#[tokio::test]
async fn vrun_is_not_started_again_and_again_while_another_one_works() {
    let host = host(Vrun::StandIn).await;
    let yaml = sleeper("");
    host.deploy(&yaml).await.unwrap();
    host.post("stop").await.unwrap();
    let asked = || fs::read_to_string(host.path("root/asked")).unwrap().matches("setup").count();
    assert_eq!(asked(), 1);
    let lock = vr_common::lock::FileLock::existing(&host.proc_dir().join("proc.yaml")).unwrap();
    let request = tokio::spawn(answer::<serde_json::Value>(host.put(&yaml)));
    host.until("a setup", |document| document.description == "being set up").await;
    let waited = || host.agent_log().matches("waits for another vrun").count();
    let before = waited();
    until("a few looks", || (waited() >= before + 5).then_some(())).await;
    assert_eq!(asked(), 1);
    drop(lock);
    request.await.unwrap().unwrap();
    assert_eq!(asked(), 2);
}

#[tokio::test]
async fn folders_that_are_no_procs_are_left_alone() {
    let mut host = host(Vrun::StandIn).await;
    host.end_agent(Signal::TERM);
    let procs = host.path("root/procs");
    fs::create_dir(procs.join("not ours")).unwrap();
    fs::create_dir(procs.join(NAME)).unwrap();
    fs::create_dir(procs.join("demo-v1-prod-abcd1234-web-7")).unwrap();
    fs::write(procs.join("demo-v1-prod-abcd1234-web-7/proc.yaml"), "cmd: [").unwrap();
    host.start_agent().await;
    let list: ProcList = host.call(Method::GET, "procs").await.unwrap();
    assert_eq!(list.procs.len(), 1, "the one with a proc.yaml, however broken, is shown");
    for name in [NAME, "demo-v1-prod-abcd1234-web-7"] {
        let _: Deleted = host.call(Method::DELETE, &format!("procs/{name}")).await.unwrap();
        assert!(!procs.join(name).exists());
    }
    assert!(procs.join("not ours").exists());
}

#[tokio::test]
async fn a_proc_found_running_against_its_record_is_stopped() {
    let mut host = host(Vrun::StandIn).await;
    let up = host.deploy(&sleeper("")).await.unwrap();
    host.end_agent(Signal::KILL);
    // As it is when an agent dies between the note of a stop and the signal.
    let record = host.proc_dir().join("agent.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace(r#""desired":"running""#, r#""desired":"stopped""#)).unwrap();
    host.start_agent().await;
    host.until_state(ProcState::Stopped).await;
    assert!(!is_alive(up.pid));
}

#[tokio::test]
async fn a_lost_record_costs_no_running_proc() {
    let mut host = host(Vrun::StandIn).await;
    let record = host.proc_dir().join("agent.json");
    for damage in [None, Some("{")] {
        let up = host.deploy(&sleeper("")).await.unwrap();
        host.end_agent(Signal::KILL);
        match damage {
            None => fs::remove_file(&record).unwrap(),
            Some(text) => fs::write(&record, text).unwrap(),
        }
        host.start_agent().await;
        until("a new record", || fs::read_to_string(&record).ok().filter(|text| text.contains("running")))
            .await;
        let found = host.look().await;
        assert_eq!((found.statename, found.pid), (ProcState::Running, up.pid));
    }
}

/// A disk of its own for the agent and its procs, which nobody else sees; `path` is on it.
struct SmallDisk {
    agent: u32,
    root: PathBuf,
}

impl SmallDisk {
    /// Has the next agent run on one.
    fn of(host: &mut TestHost, size: &str) {
        let root = host.path("root");
        let script = format!("mount -t tmpfs -o size={size} tmpfs '{}' && exec \"$@\"", root.display());
        let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
        host.runner = words.map(str::to_owned).to_vec();
    }

    fn under(host: &TestHost) -> Self {
        Self { agent: host.agent_pid(), root: host.path("root") }
    }

    /// The path by which others get to a file.
    fn path(&self, below: &str) -> PathBuf {
        let inside = self.root.strip_prefix("/").unwrap().join(below);
        Path::new("/proc").join(self.agent.to_string()).join("root").join(inside)
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.path("ballast")).unwrap();
        for size in [64 * 1024, 1] {
            let chunk = vec![1; size];
            while file.write_all(&chunk).is_ok() {}
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.path("ballast")).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_stops_no_supervision() {
    let mut host = host(Vrun::Real).await;
    host.end_agent(Signal::TERM);
    SmallDisk::of(&mut host, "4M");
    host.start_agent().await;
    let disk = SmallDisk::under(&host);
    let yaml = sleeper("env: {A: b}");
    let up = host.deploy(&yaml).await.unwrap();
    disk.fill();

    // One that crashes is started again.
    send(up.pid, Signal::KILL);
    host.until("another process", |now| now.pid != 0 && now.pid != up.pid).await;
    let again = host.until_state(ProcState::Running).await;
    // A stop is a stop, and is remembered.
    assert_eq!(host.post("stop").await.unwrap().statename, ProcState::Stopped);
    assert!(!is_alive(again.pid));
    let record = fs::read_to_string(disk.path(&format!("procs/{NAME}/agent.json"))).unwrap();
    assert!(record.contains(r#""desired":"stopped""#), "{record}");
    assert_eq!(host.post("start").await.unwrap().statename, ProcState::Running);

    // What cannot be done is refused with a reason, and leaves nothing.
    let other = NAME.replace("5001", "5002");
    let body = serde_json::json!({ "proc_yaml": yaml.replace("5001", "5002") });
    let refused =
        answer::<serde_json::Value>(host.request(Method::PUT, &format!("procs/{other}")).json(&body))
            .await
            .unwrap_err();
    assert!(refused.body.error.contains("No space left on device"), "{refused:?}");
    assert!(!disk.path(&format!("procs/{other}")).exists());

    // A delete makes room, so it must not need any.
    let _: Deleted = host.call(Method::DELETE, &format!("procs/{NAME}")).await.unwrap();
    assert!(!disk.path(&format!("procs/{NAME}")).exists());
    disk.make_room();
    host.deploy(&yaml).await.unwrap();
}

/// Debian's library that tells a program another wall clock, and nothing but that.
fn faketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    let found = folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|path| path.exists());
    found.expect("install Debian's package faketime")
}

#[tokio::test]
async fn a_wall_clock_that_jumps_changes_nothing_but_what_is_shown() {
    let mut host = host(Vrun::StandIn).await;
    host.end_agent(Signal::TERM);
    let clock = host.path("clock");
    let set = |offset: &str| fs::write(&clock, offset).unwrap();
    set("+0");
    host.variables = vec![
        ("LD_PRELOAD", faketime().display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    host.start_agent().await;
    let mut up = host.deploy(&sleeper("")).await.unwrap();
    let year = |document: &ProcDocument| document.now.as_ref().unwrap()[..4].parse::<i32>().unwrap();
    let now = year(&up);
    for (offset, expected) in [("+3653d", now + 10), ("-3653d", now - 10), ("+0", now)] {
        set(offset);
        let shown = host.look().await;
        assert!((year(&shown) - expected).abs() <= 1, "{shown:?}");
        assert_eq!((shown.statename, shown.pid), (ProcState::Running, up.pid));
        assert!(!shown.description.contains('-'), "{shown:?}");

        // A start still takes a second, and a wait for the next one no longer than before.
        let began = Instant::now();
        let restarted = host.post("restart").await.unwrap();
        assert_eq!(restarted.statename, ProcState::Running);
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        let app = host.proc_dir().join("rootfs/app");
        fs::rename(&app, host.path("app")).unwrap();
        send(restarted.pid, Signal::KILL);
        host.until_state(ProcState::Backoff).await;
        let began = Instant::now();
        fs::rename(host.path("app"), &app).unwrap();
        up = host.until_state(ProcState::Running).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(host.waiting_vruns().len(), 1);

        // Whatever it reads on the clock, the next agent knows the proc again.
        host.end_agent(Signal::KILL);
        host.start_agent().await;
        assert_eq!(host.look().await.pid, up.pid);
    }
}

#[tokio::test]
async fn procs_that_hang_at_their_start_hold_up_others_only_for_a_while() {
    let host = host(Vrun::StandIn).await;
    let go = host.path("go");
    let hangs = sleeper(&format!("x_before_status: while [ ! -e {} ]; do sleep 0.1; done", go.display()));
    let name = |number: usize| NAME.replace("5001", &(6000 + number).to_string());
    let put = |number: usize, yaml: &str| {
        let body = serde_json::json!({ "proc_yaml": yaml.replace("5001", &(6000 + number).to_string()) });
        host.request(Method::PUT, &format!("procs/{}", name(number))).json(&body)
    };
    let states = async || {
        let list: ProcList = host.call(Method::GET, "procs").await.unwrap();
        list.procs.into_iter().map(|proc| (proc.statename, proc.pid)).collect::<Vec<_>>()
    };
    // More than are started at once on any machine that this runs on.
    let at_once = 4 * std::thread::available_parallelism().unwrap().get();
    for number in 0..at_once {
        tokio::spawn(put(number, &hangs).send());
    }
    let all_hang = async || {
        let states = states().await;
        states.len() == at_once
            && states.iter().all(|(state, pid)| *state == ProcState::Starting && *pid != 0)
    };
    let deadline = Instant::now() + harness::PATIENCE;
    while !all_hang().await {
        assert!(Instant::now() < deadline, "{:?}", states().await);
    }
    let began = Instant::now();
    // One that waits for its turn can be stopped without ever having been started.
    let late = at_once + 1;
    let asked = tokio::spawn(answer::<serde_json::Value>(put(late, &sleeper(""))));
    let late_state = async || states().await.into_iter().nth(at_once);
    while late_state().await != Some((ProcState::Starting, 0)) {
        assert!(Instant::now() < deadline, "{:?}", states().await);
    }
    let stopped: ProcDocument = host.call(Method::POST, &format!("procs/{}/stop", name(late))).await.unwrap();
    assert_eq!((stopped.statename, stopped.description.as_str()), (ProcState::Stopped, "Not started"));
    assert_eq!(asked.await.unwrap().unwrap_err().status, StatusCode::CONFLICT);
    assert!(began.elapsed() < Duration::from_secs(8), "it did not wait for others: {:?}", began.elapsed());
    // One that goes on waiting gets its turn although the others still hang.
    let up = host.call::<ProcDocument>(Method::POST, &format!("procs/{}/start", name(late))).await.unwrap();
    assert_eq!(up.statename, ProcState::Running);
    assert!(!go.exists());
    fs::write(&go, "").unwrap();
    while states().await.iter().any(|(state, _)| *state != ProcState::Running) {
        assert!(Instant::now() < deadline, "{:?}", states().await);
    }
}
