//! Hosts, and what flows of them.

use super::*;

#[tokio::test]
async fn a_host_says_how_it_is_talked_to_and_how_old_what_is_known_is() {
    let bench = Bench::new().await;
    let made = bench.post("hosts/", json!({"name": "web1", "driver": "supervisor"})).await.must(201);
    assert_eq!(
        (&made["driver"], &made["agent_url"], &made["seen"]),
        (&json!("supervisor"), &Value::Null, &Value::Null)
    );
    assert_eq!(
        (&made["found_driver"], &made["facts"], &made["error"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let changed = json!({"driver": null, "agent_url": "https://web1.example.com:9002"});
    let changed = bench.patch("hosts/web1/", changed).await.must(200);
    assert_eq!(
        (&changed["driver"], &changed["agent_url"]),
        (&Value::Null, &json!("https://web1.example.com:9002"))
    );
    // Clients put back whole objects.
    assert_eq!(bench.put("hosts/web1/", changed.clone()).await.must(200)["agent_url"], changed["agent_url"]);
    assert_eq!(bench.listed("hosts/?driver__isnull=true&name=web1", "name").await, ["web1"]);

    for (field, body) in [
        ("driver", json!({"driver": "puppet"})),
        ("driver", json!({"driver": 1})),
        ("agent_url", json!({"agent_url": "web1:9002"})),
        ("agent_url", json!({"agent_url": "ftp://web1:9002"})),
        ("agent_url", json!({"agent_url": "https://user:password@web1:9002"})),
        ("agent_url", json!({"agent_url": "unix:/tmp/somebodys.sock"})),
        ("agent_url", json!({"driver": "supervisor"})),
        ("found_driver", json!({"found_driver": "agent"})),
    ] {
        let answer = bench.patch("hosts/web1/", body.clone()).await.must(400);
        assert_eq!(answer["field"], field, "{body}: {answer}");
    }
    // The socket of the server's own agent may be put back, as it is.
    bench.state.store.ensure_host("h1", "default", "unix:/data/agent.sock").await.unwrap();
    let h1 = bench.get("hosts/h1/").await.must(200);
    assert_eq!(h1["agent_url"], "unix:/data/agent.sock");
    bench.put("hosts/h1/", h1).await.must(200);

    bench.state.fleet.look_at_all().await;
    let list = bench.get("hosts/h1/procs/").await.must(200);
    assert!(list["seen"].is_string() && list["age"].as_i64().unwrap() < 60, "{list}");
    assert_eq!((&list["unreachable_since"], &list["error"]), (&Value::Null, &Value::Null));
    bench.hosts["h1"].cut_off(true);
    bench.state.fleet.look_at_all().await;
    let list = bench.get("hosts/h1/procs/").await.must(200);
    assert!(list["seen"].is_string() && list["unreachable_since"].is_string(), "{list}");
    assert_eq!(list["error"], "host h1 does not answer: cut off");
    let squad = bench.get("squads/default/").await.must(200);
    assert!(squad["hosts"][0]["unreachable_since"].is_string(), "{squad}");
}

#[tokio::test]
async fn swarms_say_how_old_their_hosts_procs_are() {
    let bench = Bench::with_swarm().await;
    bench.hosts["h2"].cut_off(true);
    bench.state.fleet.look_at_all().await;
    let hosts = bench.get("swarms/1/procs/").await.must(200)["hosts"].clone();
    assert!(hosts["h1"]["age"].is_i64() && hosts["h1"]["unreachable_since"].is_null(), "{hosts}");
    assert!(hosts["h2"]["age"].is_null() && hosts["h2"]["unreachable_since"].is_string(), "{hosts}");
}

#[tokio::test]
async fn what_others_run_is_told_what_to_do_but_not_removed() {
    let bench = Bench::new().await;
    bench.hosts["h1"].deploy("redis", "").await.unwrap();
    bench.state.fleet.look_at_all().await;
    let stopped = bench.post("hosts/h1/procs/redis/", json!({"action": "stop"})).await.must(200);
    assert_eq!((&stopped["statename"], &stopped["app_name"]), (&json!("STOPPED"), &json!("redis")));
    let refused = bench.delete("hosts/h1/procs/redis/").await.must(409);
    assert!(refused["error"].as_str().unwrap().contains("not deployed by Velociraptor"), "{refused}");
    assert_eq!(bench.hosts["h1"].names(), ["redis"]);
    assert_eq!(bench.post("hosts/h1/clean-up/", json!({})).await.must(200)["removed"], json!([]));
}

/// Reads a stream until its text has something in it.
async fn read_until(body: &mut Body, so_far: &mut String, wanted: &str) {
    while !so_far.contains(wanted) {
        let frame = tokio::time::timeout(Duration::from_secs(20), body.frame()).await;
        let frame = frame.unwrap_or_else(|_| panic!("no {wanted:?} in {so_far:?}"));
        let data = frame.expect("the stream goes on").unwrap().into_data().unwrap();
        so_far.push_str(std::str::from_utf8(&data).unwrap());
    }
}

async fn open(bench: &Bench, path: &str, accept: &str) -> http::Response<Body> {
    let mut request = Bench::request(Method::GET, path, None);
    request.headers_mut().insert("accept", accept.parse().unwrap());
    bench.router.clone().oneshot(request).await.unwrap()
}

#[tokio::test]
async fn changes_of_procs_flow() {
    let bench = Bench::new().await;
    let proc = "hello-v1-prod-0123abcd-web-5000";
    bench.hosts["h1"].deploy(proc, "").await.unwrap();
    bench.state.fleet.look_at_all().await;
    let response = open(&bench, "/api/streams/proc_changes/", "*/*").await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(response.version(), http::Version::HTTP_10, "the published client cannot read chunks");
    let mut body = response.into_body();
    let mut text = String::new();
    let path = format!("hosts/h1/procs/{proc}/");
    bench.post(&path, json!({"action": "stop"})).await.must(200);
    bench.delete(&path).await.must(200);
    read_until(&mut body, &mut text, "PROCESS_GROUP_REMOVED\"").await;
    assert!(text.starts_with("retry: 1000\n\n"), "{text}");
    let documents: Vec<Value> = text
        .lines()
        .filter_map(|line| Some(serde_json::from_str(line.strip_prefix("data: ")?).unwrap()))
        .collect();
    let seen: Vec<_> = documents.iter().map(|d| (&d["event"], &d["host"], &d["name"], &d["port"])).collect();
    let (host, name, port) = (&json!("h1"), &json!(proc), &json!(5000));
    assert_eq!(
        seen,
        [
            (&json!("PROCESS_STATE_STOPPED"), host, name, port),
            (&json!("PROCESS_GROUP_REMOVED"), host, name, port)
        ]
    );
    bench.state.stop.cancel();
    let end = tokio::time::timeout(Duration::from_secs(20), body.frame()).await.expect("the stream goes on");
    assert!(end.is_none());
}

#[tokio::test]
async fn a_reader_of_changes_that_falls_behind_is_cut_off() {
    let bench = Bench::new().await;
    let document = |state| crate::hosts::simulated::document("h1", "app", state);
    bench.state.fleet.look_at_all().await;
    let mut body = open(&bench, "/api/streams/proc_changes/", "*/*").await.into_body();
    for _ in 0..5_000 {
        bench.state.fleet.note(document(ProcState::Stopped));
        bench.state.fleet.note(document(ProcState::Running));
    }
    let (mut pieces, mut ended) = (0, false);
    while !ended {
        let frame = tokio::time::timeout(Duration::from_secs(20), body.frame()).await.expect("an end");
        ended = frame.is_none();
        pieces += 1;
    }
    assert!(pieces < 5_000, "{pieces}");
}

#[tokio::test]
async fn logs_flow_as_text_and_as_events() {
    let bench = Bench::new().await;
    let proc = "hello-v1-prod-0123abcd-web-5000";
    bench.hosts["h1"].deploy(proc, "").await.unwrap();
    let path = format!("/api/streams/proc_log/h1/{proc}/");
    for (accept, kind, expected) in [
        ("*/*", "text/plain; charset=utf-8", "first\nsecond\nlast words"),
        (
            "text/event-stream",
            "text/event-stream; charset=utf-8",
            "data: first\n\ndata: second\n\ndata: last words\n\n",
        ),
    ] {
        let response = open(&bench, &path, accept).await;
        assert_eq!(response.headers()["content-type"], kind);
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(bytes, expected);
    }
    assert_eq!(bench.get(&format!("{path}?bytes=x")).await.must(400)["field"], "bytes");
    assert_eq!(bench.get(&format!("{path}?line=1")).await.must(400)["field"], "line");
    bench.get("/api/streams/proc_log/h1/nobody/").await.must(404);
    bench.get(&format!("/api/streams/proc_log/h9/{proc}/")).await.must(404);
    bench.hosts["h1"].fail("log_follow", Some("no log yet"));
    assert_eq!(bench.get(&path).await.must(500)["fault"], "host h1: no log yet");
}
