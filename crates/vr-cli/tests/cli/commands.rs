//! Every command against a server with canned answers.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;

use crate::support::{Cli, Reply, Server, page};
use serde_json::{Value, json};
use vr_common::credentials::Credentials;
use vr_common::secret::Secret;

fn swarm(id: u32, name: &str) -> Value {
    let mut parts = name.split('-');
    json!({
        "id": id, "resource_uri": format!("/api/v1/swarms/{id}/"), "version": "v1", "size": 2,
        "app_name": parts.next(), "config_name": parts.next(), "proc_name": parts.next(),
        "squad_name": "local", "a_new_field": 1,
    })
}

fn dispatch(id: &str, states: &[&str], error: Option<&str>) -> Value {
    let step = |(n, pair): (usize, &[&str])| {
        json!({"time": format!("2026-01-02T03:04:{:02}Z", 5 + n), "from": pair[0], "to": pair[1],
               "who": "worker", "why": format!("why {}", pair[1])})
    };
    let transitions: Vec<_> = states.windows(2).enumerate().map(step).collect();
    json!({
        "id": id, "resource_uri": format!("/api/v1/dispatches/{id}/"), "swarm": "/api/v1/swarms/1/",
        "swarm_name": "hello-prod-web", "version": "v2", "state": states.last(), "user": "admin",
        "error": error, "pool_address": "http://127.0.0.1:7000", "created": "2026-01-02T03:04:04.5Z",
        "finished": "2026-01-02T03:04:10Z", "transitions": transitions,
    })
}

/// A server with one swarm, whose dispatch is answered with these, one after the other.
fn dispatching(looks: Vec<Reply>) -> Server {
    dispatching_at("127.0.0.1:0", looks)
}

fn dispatching_at(address: &str, mut looks: Vec<Reply>) -> Server {
    looks.reverse();
    Server::start_at(address.parse().unwrap(), move |request| {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", path) if path.starts_with("/api/v1/swarms/?") => {
                page(json!([swarm(1, "hello-prod-web")]))
            }
            ("PATCH", "/api/v1/swarms/1/") => Reply::Json(202, swarm(1, "hello-prod-web")),
            ("POST", "/api/v1/swarms/1/swarm/") => Reply::Json(202, json!({"swarm_id": "t1"})),
            ("GET", "/api/v1/dispatches/t1/") => looks.pop().unwrap(),
            other => panic!("unexpected {other:?}"),
        }
    })
}

#[test]
fn list_swarms_follows_the_pages_and_matches_from_the_start() {
    let server = Server::start(|request| {
        let meta =
            |next: Value| json!({"limit": 2, "offset": 0, "total_count": 4, "next": next, "previous": null});
        match request.path.as_str() {
            "/api/v1/swarms/?limit=100&app__name=hello" => Reply::Json(
                200,
                json!({
                    "meta": meta(json!("/api/v1/swarms/?limit=2&offset=2")),
                    "objects": [swarm(1, "hello-prod-worker"), swarm(2, "hello-prod-web")],
                }),
            ),
            "/api/v1/swarms/?limit=2&offset=2" => Reply::Json(
                200,
                json!({
                    "meta": meta(Value::Null), "objects": [swarm(3, "hello-test-web"), swarm(4, "xhello-prod-web")],
                }),
            ),
            other => panic!("unexpected {other:?}"),
        }
    });
    let cli = Cli::of(&server);
    let ended = cli.run(&["list-swarms", "hello-.*-w"]);
    assert_eq!(ended.stdout, "hello-prod-web\nhello-prod-worker\nhello-test-web\n", "{ended:?}");
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert_eq!(server.requests()[0].headers["authorization"], "Basic YWRtaW46aHVudGVyMg==");

    let ended = cli.run(&["--json", "list-swarms", "hello-test"]);
    let listed: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(listed[0]["name"], "hello-test-web");
    assert_eq!(listed[0]["resource_uri"], "/api/v1/swarms/3/");
    assert_eq!(listed.as_array().unwrap().len(), 1);
}

#[test]
fn swarm_sets_the_version_of_the_swarms_that_are_meant() {
    let server = Server::start(|request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", _) => page(json!([
            swarm(1, "hello-prod-web"),
            swarm(2, "hello-prod-worker"),
            swarm(3, "other-hello-web")
        ])),
        ("PATCH", _) => Reply::Json(202, swarm(1, "hello-prod-web")),
        ("POST", path) => Reply::Json(202, json!({"swarm_id": format!("trace of {path}")})),
        other => panic!("unexpected {other:?}"),
    });
    let cli = Cli::of(&server);
    let ended = cli.run(&["swarm", "hello", "v2", "-x", "WORKER"]);
    assert_eq!(ended.stdout, "hello-prod-web trace of /api/v1/swarms/1/swarm/\n", "{ended:?}");
    assert_eq!(ended.code, 0);
    assert_eq!(
        server.lines(),
        [
            "GET /api/v1/swarms/?limit=100",
            "PATCH /api/v1/swarms/1/ {\"version\":\"v2\"}",
            "POST /api/v1/swarms/1/swarm/ {}",
        ]
    );

    // '-' leaves the versions alone.
    let ended = cli.run(&["--json", "swarm", ".*", "-"]);
    let started: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(started.as_array().unwrap().len(), 3);
    assert_eq!(
        started[2],
        json!({"swarm": "other-hello-web", "trace_id": "trace of /api/v1/swarms/3/swarm/"})
    );
    assert!(!server.lines()[3..].iter().any(|line| line.starts_with("PATCH")));
}

#[test]
fn swarm_without_a_match_fails_and_asks_for_nothing() {
    let server = Server::start(|_| page(json!([swarm(1, "hello-prod-web")])));
    let cli = Cli::of(&server);
    let ended = cli.run(&["swarm", "prod", "v2", "--wait"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.starts_with("ERROR: no swarm matches \"prod\"\nhint: "), "{ended:?}");
    let ended = cli.run(&["swarm", "hello", "v2", "-x", "web"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("once the excluded ones are left out"), "{ended:?}");
    assert!(server.lines().iter().all(|line| line.starts_with("GET")));
}

#[test]
fn a_refused_swarm_does_not_hold_up_the_others() {
    let server = Server::start(|request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", _) => page(json!([swarm(1, "a-prod-web"), swarm(2, "b-prod-web")])),
        ("PATCH", "/api/v1/swarms/1/") => {
            Reply::Json(400, json!({"error": "a has no revision \"v9\"", "field": "version"}))
        }
        ("PATCH", _) => Reply::Json(202, swarm(2, "b-prod-web")),
        ("POST", "/api/v1/swarms/2/swarm/") => Reply::Json(202, json!({"swarm_id": "t2"})),
        other => panic!("unexpected {other:?}"),
    });
    let ended = Cli::of(&server).run(&["swarm", ".*", "v9"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, "b-prod-web t2\n"));
    assert_eq!(ended.stderr, "ERROR: a-prod-web: version: a has no revision \"v9\"\n");
}

#[test]
fn swarm_wait_tells_each_step_and_ends_well() {
    let all = ["queued", "building", "releasing", "done"];
    let looks = [1, 2, 2, 4].map(|n| Reply::Json(200, dispatch("t1", &all[..n], None)));
    let server = dispatching(looks.into());
    let ended = Cli::of(&server).run(&["swarm", "hello", "v2", "--wait"]);
    assert_eq!(ended.stdout, "hello-prod-web t1\nhello-prod-web done http://127.0.0.1:7000\n", "{ended:?}");
    assert_eq!(
        ended.stderr,
        "hello-prod-web: building after 0.5 s (why building)
hello-prod-web: releasing after 1.5 s (why releasing)
hello-prod-web: done after 2.5 s (why done)\n"
    );
    assert_eq!(ended.code, 0);
}

#[test]
fn swarm_wait_fails_with_the_failing_test_and_its_output() {
    let error = "uptest 01_version of hello-v2-prod-0123abcd-web-5001 failed:\nexpected v2, \x1b[31mgot v1";
    let end = |state| Reply::Json(200, dispatch("t1", &["uptesting", state], Some(error)));
    let server = dispatching(vec![end("failed")]);
    let ended = Cli::of(&server).run(&["swarm", "hello", "v2", "--wait"]);
    assert_eq!(ended.code, 1);
    assert_eq!(ended.stdout, "hello-prod-web t1\nhello-prod-web failed\n");
    let expected = "ERROR: hello-prod-web failed: uptest 01_version of hello-v2-prod-0123abcd-web-5001 \
        failed:\nexpected v2, [31mgot v1\n";
    assert!(ended.stderr.ends_with(expected), "{ended:?}");

    let server = dispatching(vec![end("cancelled")]);
    let ended = Cli::of(&server).run(&["--json", "swarm", "hello", "v2", "--wait"]);
    assert_eq!(ended.code, 1);
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    let expected = json!({"swarm": "hello-prod-web", "trace_id": "t1", "state": "cancelled", "seconds": 5.5,
        "pool_address": "http://127.0.0.1:7000", "error": error});
    // Control characters are escaped in JSON, so they arrive.
    assert_eq!(told, json!([expected]));
}

#[test]
fn swarm_wait_ends_when_its_time_is_over() {
    let looks = (0..100).map(|_| Reply::Json(200, dispatch("t1", &["queued", "building"], None)));
    let server = dispatching(looks.collect());
    let ended = Cli::of(&server).run(&["swarm", "hello", "v2", "--wait", "--timeout", "1ms"]);
    assert_eq!(ended.code, 1);
    let expected = "ERROR: hello-prod-web is still building after 1ms; it goes on without us\n";
    assert!(ended.stderr.ends_with(expected), "{ended:?}");
}

#[test]
fn swarm_wait_survives_a_restart_of_the_server() {
    // An address of its own, so that no other test's server takes the port in between.
    let first = dispatching_at(
        "127.0.0.2:0",
        vec![
            Reply::Json(200, dispatch("t1", &["queued", "building"], None)),
            // The server dies while it answers, or is behind a balancer that says so.
            Reply::Json(503, json!({"error": "restarting"})),
            Reply::HangUp,
        ],
    );
    let address = first.address;
    let mut child = Cli::of(&first).command(&["swarm", "hello", "v2", "--wait"]).spawn().unwrap();
    let mut talk = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("does not answer") {
        line.clear();
        assert!(talk.read_line(&mut line).unwrap() > 0, "it gave up");
    }
    drop(first);
    let second = Server::start_at(address, |_| {
        Reply::Json(200, dispatch("t1", &["queued", "building", "done"], None))
    });
    let mut rest = String::new();
    talk.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "the server answers again\nhello-prod-web: done after 1.5 s (why done)\n");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert!(
        second.lines().iter().all(|line| line == "GET /api/v1/dispatches/t1/"),
        "nothing is asked for twice"
    );
}

#[test]
fn build_starts_and_waits() {
    let run = |build: Value, args: &[&str]| {
        let mut looks =
            vec![build, json!({"id": 5, "resource_uri": "/api/v1/builds/5/", "status": "started"})];
        let server = Server::start(move |request| match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/api/v1/builds/") => Reply::Created("/api/v1/builds/5/"),
            ("POST", "/api/v1/builds/5/build/") => Reply::Json(202, json!({})),
            ("GET", "/api/v1/builds/5/") => Reply::Json(200, looks.pop().unwrap()),
            other => panic!("unexpected {other:?}"),
        });
        let ended = Cli::of(&server).run(args);
        (ended, server.lines())
    };
    let good = json!({"id": 5, "resource_uri": "/api/v1/builds/5/", "status": "success",
                      "file": "builds/hello-v2.tar.gz", "file_md5": "0123"});
    let (ended, lines) = run(good.clone(), &["build", "hello", "v2"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "/api/v1/builds/5/\n"), "{ended:?}");
    assert_eq!(
        lines,
        [
            "POST /api/v1/builds/ {\"app\":\"/api/v1/apps/hello/\",\"tag\":\"v2\"}",
            "POST /api/v1/builds/5/build/ {}",
        ]
    );

    let (ended, _) = run(good, &["build", "hello", "v2", "--wait"]);
    assert_eq!(ended.stdout, "/api/v1/builds/5/\nsuccess builds/hello-v2.tar.gz 0123\n");
    assert_eq!((ended.code, ended.stderr.as_str()), (0, "hello v2: started\nhello v2: success\n"));

    let bad = json!({"id": 5, "resource_uri": "/api/v1/builds/5/", "status": "failed",
                     "error": "no buildpack matched", "compile_log": "builds/5/compile.log"});
    let (ended, _) = run(bad, &["--json", "build", "hello", "v2", "--wait"]);
    assert_eq!(ended.code, 1);
    assert_eq!(serde_json::from_str::<Value>(&ended.stdout).unwrap()["status"], "failed");
    assert!(ended.stderr.contains("ERROR: the build of hello v2 failed: no buildpack matched\nhint: "));
    assert!(ended.stderr.trim_end().ends_with("/files/builds/5/compile.log"), "{ended:?}");
}

fn proc_document(name: &str, state: &str) -> Value {
    let code = if state == "RUNNING" { 20 } else { 0 };
    json!({
        "description": "Not started", "exitstatus": 0, "group": name, "logfile": "/l", "name": name, "now": null,
        "pid": if code == 20 { 42 } else { 0 }, "spawnerr": "", "start_time": null, "state": code,
        "statename": state, "stderr_logfile": "", "stdout_logfile": "/l", "stop_time": null, "app_name": "hello",
        "version": "v1", "config_name": "prod", "hash": "0123abcd", "proc_name": "web", "port": 5000,
        "host": "own-name", "jsname": name, "id": "x",
    })
}

fn hosts() -> Reply {
    let host = |id: u32, name: &str, procs: Value, since: Value| {
        json!({"id": id, "resource_uri": format!("/api/v1/hosts/{name}/"), "name": name, "active": true,
               "procs": procs, "unreachable_since": since})
    };
    page(json!([
        host(
            1,
            "web1",
            json!([
                proc_document("hello-v1-prod-0123abcd-web-5001", "STOPPED"),
                proc_document("hello-v1-prod-0123abcd-web-5000", "RUNNING"),
            ]),
            Value::Null
        ),
        host(2, "web2", json!([proc_document("cron job", "RUNNING")]), json!("2026-01-02T03:04:05Z")),
    ]))
}

#[test]
fn procs_are_listed_in_a_pipe_as_fields_and_as_json() {
    let server = Server::start(|request| {
        assert_eq!(request.line(), "GET /api/v1/hosts/?limit=0");
        hosts()
    });
    let cli = Cli::of(&server);
    let ended = cli.run(&["procs", "list"]);
    assert_eq!(
        ended.stdout,
        "cron job\tweb2\tRUNNING\t42\tNot started
hello-v1-prod-0123abcd-web-5000\tweb1\tRUNNING\t42\tNot started
hello-v1-prod-0123abcd-web-5001\tweb1\tSTOPPED\t-\tNot started\n"
    );
    let warning = "web2 has not answered since 2026-01-02T03:04:05Z; its procs are as last seen\n";
    assert_eq!((ended.code, ended.stderr.as_str()), (0, warning));

    let ended = cli.run(&["procs", "--json", "list", ".*5001$", "--host", "web"]);
    let listed: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!((&listed[0]["host"], &listed[0]["statename"]), (&json!("web1"), &json!("STOPPED")));
    assert_eq!(cli.run(&["procs", "list", "", "--host", "eb1"]).stdout, "");
}

#[test]
fn procs_are_changed_only_when_named() {
    let server = Server::start(|request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", _) => hosts(),
        ("POST", "/api/v1/hosts/web2/procs/cron%20job/") => Reply::Json(500, json!({"fault": "NOT_RUNNING"})),
        ("POST", _) => Reply::Json(200, proc_document("hello-v1-prod-0123abcd-web-5000", "RUNNING")),
        other => panic!("unexpected {other:?}"),
    });
    let cli = Cli::of(&server);
    for action in ["start", "stop", "restart"] {
        for args in [&["procs", action][..], &["procs", action, "--host", "web1"], &["procs", action, ""]] {
            let ended = cli.run(args);
            assert_eq!(ended.code, 2);
            let expected = format!(
                "ERROR: refusing to {action} every proc: say which ones with a REGEX ('.*' for all)\n"
            );
            assert_eq!(ended.stderr, expected);
        }
    }
    assert!(server.lines().is_empty());

    let ended = cli.run(&["procs", "restart", "hello.*5000"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "hello-v1-prod-0123abcd-web-5000\tweb1\tRUNNING\n"));
    let expected = "POST /api/v1/hosts/web1/procs/hello-v1-prod-0123abcd-web-5000/ {\"action\":\"restart\"}";
    assert_eq!(server.lines().last().unwrap(), expected);

    // One that fails does not hold up the others.
    let ended = cli.run(&["--json", "procs", "stop", ".*"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.ends_with("ERROR: cannot stop cron job on web2: NOT_RUNNING\n"), "{ended:?}");
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(told[0], json!({"name": "cron job", "host": "web2", "error": "NOT_RUNNING"}));
    assert_eq!(told[2]["state"], "RUNNING");

    let ended = cli.run(&["procs", "stop", "nothing", "--host", "web1"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.ends_with("ERROR: no proc matches \"nothing\" on hosts that match \"web1\"\n"));
}

fn event(title: &str) -> Value {
    json!({"id": 1, "time": "2026-01-02T03:04:05Z", "message": "done\nand well", "tags": ["swarm", "done"],
           "title": title, "swarm_id": "t1"})
}

#[test]
fn past_events_are_shown_oldest_first() {
    let server = Server::start(|request| {
        assert_eq!(request.line(), "GET /api/v1/events/?limit=2");
        page(json!([event("second"), event("first")]))
    });
    let cli = Cli::of(&server);
    let ended = cli.run(&["events", "--limit", "2"]);
    assert_eq!(
        ended.stdout,
        "2026-01-02T03:04:05Z  first  [swarm done]  done\n    and well
2026-01-02T03:04:05Z  second  [swarm done]  done\n    and well\n"
    );
    let ended = cli.run(&["events", "--limit", "2", "--json"]);
    let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["title"], "first");
    assert_eq!(lines[1]["swarm_id"], "t1");
}

#[test]
fn the_stream_of_events_is_taken_up_where_it_broke() {
    let mut streams = 0;
    let server = Server::start(move |request| {
        if request.path.starts_with("/api/v1/events/") {
            return page(json!([]));
        }
        assert_eq!(request.path, "/api/streams/events/");
        streams += 1;
        match streams {
            1 => {
                Reply::Events(format!(":\n\nid: 7\ndata: {}\n\n: keep\nid: 8\ndata: flush\n\n", event("one")))
            }
            2 => Reply::HangUp,
            _ => Reply::Events(format!("id: 9\ndata: {}\n\n", event("two"))),
        }
    });
    let mut child = Cli::of(&server).command(&["events", "--follow"]).spawn().unwrap();
    let mut data = BufReader::new(child.stdout.take().unwrap()).lines();
    let titles: Vec<_> =
        data.by_ref().map(Result::unwrap).filter(|line| !line.starts_with(' ')).take(2).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(titles[0].contains("  one  ") && titles[1].contains("  two  "), "{titles:?}");
    let last_ids: Vec<_> = server
        .requests()
        .iter()
        .filter(|request| request.path.starts_with("/api/streams"))
        .take(3)
        .map(|request| request.headers.get("last-event-id").cloned())
        .collect();
    assert_eq!(last_ids, [None, Some("8".to_owned()), Some("8".to_owned())]);
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let server = Server::start(|_| page(Value::Array((0..5_000).map(|n| event(&n.to_string())).collect())));
    let mut child = Cli::of(&server).command(&["events"]).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_refused_login_and_a_missing_server_are_said_plainly() {
    let server = Server::start(|_| Reply::Json(401, json!({"status": 401, "msg": "Basic auth required"})));
    let cli = Cli::of(&server);
    for args in [
        &["list-swarms"][..],
        &["swarm", ".*", "v1"],
        &["build", "a", "b"],
        &["procs", "list"],
        &["events"],
        &["events", "--follow"],
    ] {
        let ended = cli.run(args);
        assert_eq!(ended.code, 1, "{args:?}");
        let expected = format!("ERROR: {} does not accept the login of \"admin\"\nhint: ", server.url());
        assert!(ended.stderr.starts_with(&expected), "{args:?}: {ended:?}");
    }
    for args in [
        &["--url", "http://127.0.0.1:1", "list-swarms"][..],
        &["--url", "http://127.0.0.1:1", "events", "--follow"],
    ] {
        let ended = cli.run(args);
        assert_eq!(ended.code, 1);
        assert!(
            ended.stderr.contains("failed: ") && ended.stderr.contains("hint: is the server running"),
            "{ended:?}"
        );
    }
}

#[test]
fn the_credentials_file_gives_server_and_login() {
    let server = Server::start(|_| page(json!([])));
    let cli = Cli::bare();
    let path = cli.home.path().join(".config/velociraptor/credentials.yaml");
    Credentials::remember_in(&path, &server.url(), "bob", &Secret::new("p:w")).unwrap();
    assert_eq!(cli.run(&["list-swarms"]).code, 0);
    // echo -n bob:p:w | base64
    assert_eq!(server.requests()[0].headers["authorization"], "Basic Ym9iOnA6dw==");

    // Another user's password is not sent.
    let ended = cli.run(&["--username", "eve", "list-swarms"]);
    assert_eq!(ended.code, 2);
    let expected = format!("ERROR: no password for {}: set VELOCIRAPTOR_PASSWORD\n", server.url());
    assert_eq!(ended.stderr, expected);
    assert_eq!(server.requests().len(), 1);

    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let ended = cli.run(&["list-swarms"]);
    assert_eq!(ended.code, 2);
    let file = path.display();
    let expected =
        format!("ERROR: {file} holds passwords and has mode 0644: expected 0600\nhint: chmod 600 {file}\n");
    assert_eq!(ended.stderr, expected);
}

#[test]
fn bad_usage_is_refused_before_anything_is_asked_for() {
    let server = Server::start(|_| page(json!([])));
    let cli = Cli::of(&server);
    for (args, expected) in [
        (&["list-swarms", "a("][..], "ERROR: \"a(\" is not a regular expression: unclosed group\n"),
        (
            &["swarm", "a", "v1", "-x", "["],
            "ERROR: \"[\" is not a regular expression: unclosed character class\n",
        ),
        (&["build", "my-app", "v1"], "ERROR: \"my-app\" is not a valid app name: "),
        (&["build", "a", "a/b"], "ERROR: \"a/b\" is not a valid version: "),
        (
            &["swarm", "a", "v1", "--wait", "--timeout", "soon"],
            "error: invalid value 'soon' for '--timeout <TIME>'",
        ),
        (
            &["--url", "ftp://x", "list-swarms"],
            "ERROR: \"ftp://x\" is not a server's address: expected http://",
        ),
        (&["procs"], ""),
        (&["frobnicate"], "error: unrecognized subcommand 'frobnicate'"),
    ] {
        let ended = cli.run(args);
        assert_eq!(ended.code, 2, "{args:?}: {ended:?}");
        assert!(ended.stderr.starts_with(expected), "{args:?}: {ended:?}");
        assert_eq!(ended.stdout, "");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn every_command_has_help() {
    let cli = Cli::bare();
    for args in [
        &["--help"][..],
        &["list-swarms", "--help"],
        &["swarm", "--help"],
        &["build", "--help"],
        &["procs", "list", "--help"],
        &["procs", "restart", "--help"],
        &["events", "--help"],
    ] {
        let ended = cli.run(args);
        assert_eq!(ended.code, 0);
        assert!(ended.stdout.contains("Example") && ended.stdout.contains("vr-cli"), "{args:?}");
    }
}
