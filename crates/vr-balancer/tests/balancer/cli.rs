//! The commands, as they are typed.

use std::io::Write;
use std::process::Output;

use serde_json::{Value, json};
use vr_balancer::Balancer;

use crate::support::{HttpNode, Place, RawClient, blocking, header, pool, proxy, run, status};

fn text(output: &Output) -> (Option<i32>, String, String) {
    let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), utf8(&output.stdout), utf8(&output.stderr))
}

/// Runs a command against a proxy.
async fn steer(place: &Place, arguments: &[&str]) -> (Option<i32>, String, String) {
    let socket = place.socket().display().to_string();
    let mut all = vec!["--control-socket".to_owned(), socket];
    all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    blocking(move || text(&run(&all.iter().map(String::as_str).collect::<Vec<_>>()))).await
}

fn done(stdout: &str) -> (Option<i32>, String, String) {
    (Some(0), stdout.to_owned(), String::new())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_are_changed_and_shown() {
    let (place, _process, balancer) = proxy().await;
    assert_eq!(steer(&place, &["list"]).await, done(""));
    assert_eq!(steer(&place, &["add", "web", "h1:5000", "h2:5001"]).await, done(""));
    assert_eq!(steer(&place, &["set", "web", "h2:5001", "[::1]:5002"]).await, done(""));
    assert_eq!(steer(&place, &["show", "web"]).await, done("h2:5001\n[::1]:5002\n"));
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    assert_eq!(steer(&place, &["list"]).await, done(&format!("web\t{address}\th2:5001 [::1]:5002\n")));
    assert_eq!(steer(&place, &["delete", "web", "h2:5001", "--wait", "5"]).await, done(""));

    let (code, stdout, _) = steer(&place, &["--json", "show", "web"]).await;
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (code, &shown),
        (Some(0), &json!({"pool": "web", "address": address, "nodes": ["[::1]:5002"]}))
    );
    let (_, stdout, _) = steer(&place, &["list", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap(), json!([shown]));

    let (code, _, stderr) = steer(&place, &["delete-pool", "web", "--if-empty"]).await;
    assert_eq!((code, stderr.as_str()), (Some(1), "ERROR: pool web has nodes\n"));
    assert_eq!(steer(&place, &["delete-pool", "web"]).await, done(""));
    assert_eq!(steer(&place, &["show", "web"]).await, done(""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_ends_too_early_is_an_error() {
    let (place, _process, balancer) = proxy().await;
    let app = HttpNode::start("app").await;
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    app.chunks.add_permits(1);
    let _download = blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send("GET /stream HTTP/1.1\r\nHost: app.example\r\n\r\n");
        client.head();
        client
    })
    .await;
    let node = app.node().to_string();
    let (code, _, stderr) = steer(&place, &["delete", "web", &node, "--wait", "0"]).await;
    assert_eq!(
        (code, stderr),
        (Some(1), format!("ERROR: after 0 s there is still something open: {node} (1)\n"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_in_one_sentence_with_code_2() {
    let (place, _process, _balancer) = proxy().await;
    for (arguments, part) in [
        (&["show", "../x"][..], "\"../x\" is not a valid pool name: "),
        (&["show", "a b"], "\"a b\" is not a valid pool name: "),
        (&["add", "web", "h1"], "\"h1\" is not a valid node: expected host:port"),
        (&["add", "web", "h1:0"], "\"h1:0\" is not a valid node: expected a port from 1 to 65535"),
        (&["delete", "web"], "<NODES>..."),
    ] {
        let (code, stdout, stderr) = steer(&place, arguments).await;
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
    let (code, _, stderr) = text(&run(&["list"]));
    assert_eq!(
        (code, stderr.as_str()),
        (Some(2), "ERROR: which balancer? Give --config FILE or --control-socket PATH\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_is_not_there_is_named() {
    let place = Place::new();
    let (code, _, stderr) = steer(&place, &["list"]).await;
    assert_eq!(code, Some(1));
    let socket = place.socket().display().to_string();
    assert!(
        stderr.starts_with(&format!("ERROR: balancer proxy: cannot talk to {socket}: No such file")),
        "{stderr}"
    );
    assert!(stderr.contains("\nhint: is the proxy running?"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settings_file_chooses_the_balancer() {
    let (place, _process, balancer) = proxy().await;
    balancer.add_nodes(&pool("web"), &[]).await.unwrap();
    let socket = place.socket();
    let file = place.dir.path().join("settings.yaml");
    let write = |text: String| std::fs::File::create(&file).unwrap().write_all(text.as_bytes()).unwrap();
    let list = |more: &[&str]| {
        let mut arguments = vec!["--config", file.to_str().unwrap()];
        arguments.extend(more);
        text(&run(&arguments))
    };
    let front =
        format!("BALANCERS:\n  front:\n    BACKEND: proxy\n    control_socket: {}\n", socket.display());
    write(front.clone());
    assert!(list(&["list"]).1.starts_with("web\t127.0.0.1:"));
    write(format!("{front}  default:\n    BACKEND: vr.common.balancer.dummy.DummyBalancer\n"));
    assert!(list(&["--balancer", "front", "list"]).1.starts_with("web\t127.0.0.1:"));
    assert_eq!(list(&["--balancer", "default", "list"]), done(""));
    for (arguments, message) in [
        (&["list"][..], "the settings have several balancers, choose one with --balancer: default, front"),
        (&["--balancer", "back", "list"], "no balancer \"back\" in the settings, there are: default, front"),
    ] {
        assert_eq!(list(arguments), (Some(2), String::new(), format!("ERROR: {message}\n")));
    }
    write("BALANCERS: {front: {BACKEND: nginy}}\n".to_owned());
    let (code, _, stderr) = list(&["list"]);
    assert_eq!(code, Some(2));
    let said = "ERROR: BALANCERS.front: unknown BACKEND \"nginy\", expected one of dummy, proxy, ";
    assert!(stderr.starts_with(said), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_socket_refuses_what_it_does_not_know() {
    let (place, _process, balancer) = proxy().await;
    let cases = [
        ("GET", "/v1/pools/..", "", 400),
        ("POST", "/v1/pools/a%20b/add", "{\"nodes\": []}", 400),
        ("POST", "/v1/pools/web/add", "{\"nodes\": [\"h1\"]}", 400),
        ("POST", "/v1/pools/web/add", "{\"nodes\": [], \"weight\": 3}", 400),
        ("POST", "/v1/pools/web/add", "{", 400),
        ("DELETE", "/v1/pools/web?if_empty=maybe", "", 400),
        ("POST", "/v1/pools/web/explode", "{}", 404),
        ("GET", "/", "", 404),
    ];
    let socket = place.socket();
    blocking(move || {
        for (method, path, body, expected) in cases {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
            let length = body.len();
            let head =
                format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(head.as_bytes()).unwrap();
            let head = crate::support::read_head(&mut stream).unwrap();
            assert_eq!(status(&head), expected, "{method} {path} {body}");
            let mut answer = vec![0; header(&head, "content-length").unwrap().parse().unwrap()];
            std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            assert!(!answer["error"].as_str().unwrap().is_empty(), "{method} {path} {body}");
        }
    })
    .await;
    assert!(balancer.list_pools().await.unwrap().is_empty());
}
