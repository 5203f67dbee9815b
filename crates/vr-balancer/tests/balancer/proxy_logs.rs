//! The access log and the metrics.

use rustix::process::Signal;
use vr_balancer::Balancer;

use crate::proxy_support::{configured, curl, free_address, http2, metrics, signal};
use crate::support::{HttpNode, Place, RawClient, blocking, eventually, in_time, pool};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_has_a_line_and_the_log_can_be_moved_away() {
    let shared = free_address();
    let dir = tempfile::tempdir().unwrap();
    let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let place = Place::new().with(&[
        "--access-log",
        path.to_str().unwrap(),
        "--listen",
        &shared.to_string(),
        "--route",
        "known.example=web",
    ]);
    let mut process = place.start().await;
    let app = HttpNode::start("app").await;
    place.balancer().add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    let ask = |host: &'static str, path: &'static str| {
        blocking(move || {
            let mut client = RawClient::connect(&shared.to_string());
            client.send(&format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: a \"b\"\r\nReferer: http://x/\r\n\r\n"
            ));
            client.answer()
        })
    };
    ask("known.example", "/a?b=1").await;
    ask("unknown.example", "/").await;
    let mut client = http2(shared).await;
    let request = http::Request::get("http://known.example/two").body(Default::default()).unwrap();
    drop(in_time(client.send_request(request)).await.unwrap());
    eventually("there are three lines", || read(&path).lines().count() == 3).await;
    let text = read(&path);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("127.0.0.1 - - ["), "{text}");
    assert!(lines[0].ends_with("] \"GET /a?b=1 HTTP/1.1\" 200 3 \"http://x/\" \"a \\\"b\\\"\""), "{text}");
    assert!(lines[1].contains("\"GET / HTTP/1.1\" 404 "), "{text}");
    assert!(lines[2].contains("\"GET /two HTTP/2.0\" 200 "), "{text}");

    for (number, kind) in [Signal::USR1, Signal::HUP].into_iter().enumerate() {
        std::fs::rename(&path, &moved).unwrap();
        signal(&process, kind);
        eventually("the file is there anew", || path.exists()).await;
        ask("known.example", "/after").await;
        eventually("there is a line", || read(&path).lines().count() == 1).await;
        assert_eq!(read(&moved).lines().count(), if number == 0 { 3 } else { 1 });
    }
    // The last line is written before the process ends.
    ask("known.example", "/last").await;
    process.terminate();
    assert_eq!(process.ended().await, Some(0));
    assert!(read(&path).contains("/last"), "{}", read(&path));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_written_costs_no_request_and_is_counted() {
    let prometheus = free_address();
    let place =
        configured(&format!("access_log: {{file: /dev/full, format: json}}\nmetrics: {prometheus}\n"));
    let _process = place.start().await;
    let app = HttpNode::start("app").await;
    let balancer = place.balancer();
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    blocking(move || {
        let mut client = RawClient::connect(&address);
        for _ in 0..10 {
            assert_eq!(client.get("/").1, "app");
        }
    })
    .await;
    let end = std::time::Instant::now() + crate::support::DEADLINE;
    while metrics(prometheus).await["vr_proxy_access_log_dropped_total"] < 10. {
        assert!(std::time::Instant::now() < end);
    }
    assert!(place.log().contains("cannot write the access log"), "{}", place.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_logged_as_json_and_counted_for_pool_and_node() {
    let prometheus = free_address();
    let place =
        configured(&format!("access_log: {{file: access.json, format: json}}\nmetrics: {prometheus}\n"));
    let _process = place.start().await;
    let app = HttpNode::start("app").await;
    let balancer = place.balancer();
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    let post = address.clone();
    blocking(move || {
        let mut client = RawClient::connect(&post);
        for _ in 0..4 {
            client.get("/");
        }
        client.post("/echo", "some text");
    })
    .await;
    let path = place.dir.path().join("access.json");
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    eventually("there are five lines", || lines().lines().count() == 5).await;
    let last: serde_json::Value = serde_json::from_str(lines().lines().last().unwrap()).unwrap();
    let node = app.node().to_string();
    for (key, value) in [
        ("method", "POST"),
        ("path", "/echo"),
        ("host", "app.example"),
        ("protocol", "HTTP/1.1"),
        ("pool", "web"),
        ("node", node.as_str()),
        ("client", "127.0.0.1"),
    ] {
        assert_eq!(last[key], value, "{last}");
    }
    assert_eq!((&last["status"], &last["bytes"], &last["complete"]), (&200.into(), &9.into(), &true.into()));

    let of_pool = "pool=\"web\"";
    let of_node = format!("pool=\"web\",node=\"{node}\"");
    let seen = metrics(prometheus).await;
    let value = |name: &str, labels: &str| seen[&format!("{name}{{{labels}}}")];
    for (prefix, labels) in [("vr_proxy", of_pool), ("vr_proxy_node", of_node.as_str())] {
        assert_eq!(value(&format!("{prefix}_requests_total"), &format!("{labels},code=\"2xx\"")), 5.);
        assert_eq!(value(&format!("{prefix}_requests_total"), &format!("{labels},code=\"5xx\"")), 0.);
        let duration = format!("{prefix}_request_duration_seconds");
        assert_eq!(value(&format!("{duration}_count"), labels), 5.);
        assert_eq!(value(&format!("{duration}_bucket"), &format!("{labels},le=\"+Inf\"")), 5.);
        assert!(value(&format!("{duration}_sum"), labels) > 0.);
        assert_eq!(value(&format!("{prefix}_sent_bytes_total"), labels), 4. * 3. + 9.);
        assert_eq!(value(&format!("{prefix}_received_bytes_total"), labels), 9.);
    }
    assert_eq!(value("vr_proxy_node_in_flight_requests", &of_node), 0.);
    assert_eq!(value("vr_proxy_pool_nodes", of_pool), 1.);
    assert!(seen["vr_proxy_connections_total"] >= 1.);

    // What a pool has counted outlives its nodes; and what the proxy says itself is counted, too.
    balancer.delete_nodes(&pool("web"), &[app.node()], None).await.unwrap();
    blocking(move || RawClient::connect(&address).get("/")).await;
    let seen = metrics(prometheus).await;
    assert_eq!(seen["vr_proxy_requests_total{pool=\"web\",code=\"2xx\"}"], 5.);
    assert_eq!(seen["vr_proxy_requests_total{pool=\"web\",code=\"5xx\"}"], 1.);
    assert!(!seen.keys().any(|key| key.contains("node=")), "{seen:?}");
    let url = format!("http://{prometheus}/metrics");
    let page = curl(&["-w", "%{http_code} %{content_type}", "-o", "/dev/null", &url]).await;
    assert_eq!(page, "200 text/plain; version=0.0.4; charset=utf-8");
}
