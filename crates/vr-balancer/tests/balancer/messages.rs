//! What the proxy does to requests and answers, byte for byte.

use std::io::Read;

use vr_balancer::Balancer;

use crate::support::{
    HttpNode, Place, Process, RawClient, RawNode, blocking, header, pool, proxy, read_until, status,
};

async fn proxy_for(node: vr_common::names::Node) -> (Place, Process, String) {
    let (place, process, balancer) = proxy().await;
    balancer.add_nodes(&pool("web"), &[node]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    (place, process, address)
}

/// What the node says that it got, for a request with these lines.
async fn seen_by_node(request: &'static str) -> String {
    let node = HttpNode::start("node").await;
    let (_place, _process, address) = proxy_for(node.node()).await;
    blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send(request);
        client.answer().1
    })
    .await
}

fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines[1..].sort_unstable();
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_arrives_without_what_is_only_for_the_proxy() {
    let seen = seen_by_node(
        "GET /head?x=%20y HTTP/1.1\r\nHost: app.example:8080\r\nConnection: keep-alive, X-Only\r\n\
         Keep-Alive: timeout=5\r\nX-Only: proxy\r\nProxy-Authorization: Basic eDp5\r\n\
         X-Forwarded-For: 10.1.1.1\r\nAccept: */*\r\nCookie: a=b\r\n\r\n",
    )
    .await;
    assert_eq!(
        lines(&seen),
        [
            "GET /head?x=%20y HTTP/1.1",
            "accept: */*",
            "cookie: a=b",
            "host: app.example:8080",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: app.example:8080",
            "x-forwarded-proto: http",
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_trusted_proxy_is_believed_about_its_clients() {
    const REQUEST: &str = "GET /head HTTP/1.1\r\nHost: inside.example\r\nX-Forwarded-For: 10.1.1.1\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: outside.example\r\nForwarded: for=10.1.1.1\r\n\
         X_Forwarded_Proto: gopher\r\n\r\n";
    let known = [
        "GET /head HTTP/1.1",
        "host: inside.example",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: inside.example",
        "x-forwarded-proto: http",
    ];
    let told = [
        "GET /head HTTP/1.1",
        "forwarded: for=10.1.1.1, for=127.0.0.1;proto=http",
        "host: inside.example",
        "x-forwarded-for: 10.1.1.1, 127.0.0.1",
        "x-forwarded-host: outside.example",
        "x-forwarded-proto: https",
    ];
    let node = HttpNode::start("node").await;
    let cases: [(&[&str], &[&str]); 3] = [
        (&[], &known),
        (&["--trusted-proxy", "192.0.2.1"], &known),
        (&["--trusted-proxy", "192.0.2.1", "--trusted-proxy", "::ffff:127.0.0.1"], &told),
    ];
    for (options, expected) in cases {
        let place = Place::new().with(options);
        let _process = place.start().await;
        let balancer = place.balancer();
        balancer.add_nodes(&pool("web"), &[node.node()]).await.unwrap();
        let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
        let seen = blocking(move || {
            let mut client = RawClient::connect(&address);
            client.send(REQUEST);
            client.answer().1
        })
        .await;
        assert_eq!(lines(&seen), expected, "{options:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunked_body_reaches_the_node_whatever_the_method() {
    let node = RawNode::start(|mut connection| {
        while let Some(head) = connection.head() {
            assert_eq!(header(&head, "transfer-encoding"), Some("chunked"), "{head}");
            assert_eq!(header(&head, "content-length"), None);
            let body = read_until(&mut connection.stream, "0\r\n\r\n").unwrap();
            connection.send(&format!("HTTP/1.1 200 OK\r\nX-Body: {body:?}\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    let (_place, _process, address) = proxy_for(node.node()).await;
    blocking(move || {
        let mut client = RawClient::connect(&address);
        for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS"] {
            for (chunks, expected) in [("3\r\nabc\r\n", r#""3\r\nabc\r\n0\r\n\r\n""#), ("", r#""0\r\n\r\n""#)]
            {
                client.send(&format!(
                    "{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
                ));
                let head = client.head();
                assert_eq!((status(&head), header(&head, "x-body")), (200, Some(expected)), "{method}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_may_have_up_to_100_lines() {
    let many = |count: usize| (0..count).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    let node = RawNode::start(move |mut connection| {
        while let Some(head) = connection.head() {
            let lines = if head.starts_with("GET /more ") { 99 } else { 98 };
            let seen = head.lines().filter(|line| line.starts_with("x-") && line.ends_with(": 1")).count();
            let more = many(lines);
            connection.send(&format!("HTTP/1.1 200 OK\r\nSeen: {seen}\r\n{more}Content-Length: 0\r\n\r\n"));
        }
    });
    let (_place, _process, address) = proxy_for(node.node()).await;
    blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", many(99)));
        let (head, _) = client.answer();
        assert_eq!((status(&head), header(&head, "seen")), (200, Some("99")));
        assert_eq!(head.lines().filter(|line| line.starts_with("x-")).count(), 98);
        assert_eq!(status(&client.get("/more").0), 502);
        let mut client = RawClient::connect(&address);
        client.send(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", many(100)));
        assert_eq!(status(&client.head()), 431);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_in_the_request_line_outranks_the_header() {
    let seen = seen_by_node("GET http://right.example/head HTTP/1.1\r\nHost: wrong.example\r\n\r\n").await;
    assert!(seen.starts_with("GET /head HTTP/1.1\n"), "{seen}");
    assert!(seen.contains("\nhost: right.example\n"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_client_gets_an_answer_and_the_node_a_host() {
    let node = HttpNode::start("node").await;
    let (_place, _process, address) = proxy_for(node.node()).await;
    let answer = blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send("GET /head HTTP/1.0\r\n\r\n");
        let mut answer = String::new();
        client.0.read_to_string(&mut answer).unwrap();
        answer
    })
    .await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.contains(&format!("\nhost: {}\n", node.address)), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_lengths_reach_the_node_as_one() {
    let seen = seen_by_node(
        "POST /head HTTP/1.1\r\nHost: app.example\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nab\r\n0\r\n\r\n",
    )
    .await;
    assert!(seen.contains("\ntransfer-encoding: chunked\n"), "{seen}");
    assert!(!seen.contains("content-length"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_cannot_be_passed_on_are_refused() {
    let node = HttpNode::start("node").await;
    let (_place, _process, address) = proxy_for(node.node()).await;
    let long = "x".repeat(100_000);
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), 400),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".to_owned(), 400),
        ("nonsense\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {long}\r\n\r\n"), 431),
    ];
    blocking(move || {
        for (request, expected) in cases {
            let mut client = RawClient::connect(&address);
            // The proxy may have hung up before the last byte of a request that is too long.
            let _ = std::io::Write::write_all(&mut client.0, request.as_bytes());
            let line = read_until(&mut client.0, "\r\n").expect("a status line");
            assert_eq!(status(&line), expected, "{}", &request[..request.len().min(60)]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_arrives_without_what_is_only_for_the_proxy() {
    let node = RawNode::start(|mut connection| {
        while connection.head().is_some() {
            connection.send(
                "HTTP/1.1 404 Nothing Here\r\nConnection: x-only, keep-alive\r\nX-Only: proxy\r\n\
                 Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nSet-Cookie: a=1\r\n\
                 Set-Cookie: b=2\r\nX-App: yes\r\nContent-Length: 4\r\n\r\ngone",
            );
        }
    });
    let (_place, _process, address) = proxy_for(node.node()).await;
    let (head, body) = blocking(move || {
        let mut client = RawClient::connect(&address);
        client.get("/");
        client.get("/")
    })
    .await;
    assert_eq!(body, "gone");
    let mut names: Vec<_> = head.lines().filter_map(|line| line.split_once(": ")).collect();
    names.retain(|(name, _)| *name != "date");
    names.sort_unstable();
    assert_eq!(
        names,
        [("content-length", "4"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("x-app", "yes")]
    );
    assert_eq!(status(&head), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_head_keeps_its_length_and_has_no_body() {
    let node = RawNode::start(|mut connection| {
        while let Some(head) = connection.head() {
            let body = if head.starts_with("HEAD") { "" } else { "hello" };
            connection.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}"));
        }
    });
    let (_place, _process, address) = proxy_for(node.node()).await;
    blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send("HEAD / HTTP/1.1\r\nHost: app.example\r\n\r\n");
        let head = client.head();
        assert_eq!((status(&head), header(&head, "content-length")), (200, Some("5")));
        assert_eq!(client.get("/").1, "hello", "on the same connection, so there was no body");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_pass_in_both_directions() {
    let node = RawNode::start(|mut connection| {
        connection.head().unwrap();
        let body = read_until(&mut connection.stream, "\r\n\r\n").unwrap();
        let sum =
            body.lines().find(|line| line.starts_with("x-sum: ")).unwrap_or("x-sum: missing").to_owned();
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n");
        connection.send(&format!("2\r\nok\r\n0\r\n{sum}!\r\n\r\n"));
    });
    let (_place, _process, address) = proxy_for(node.node()).await;
    let body = blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send(
            "POST / HTTP/1.1\r\nHost: app.example\r\nConnection: te\r\nTE: trailers\r\nTrailer: x-sum\r\n\
             Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n",
        );
        client.head();
        read_until(&mut client.0, "\r\n\r\n").unwrap()
    })
    .await;
    assert_eq!(body, "2\r\nok\r\n0\r\nx-sum: 7!\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let node = RawNode::start(|mut connection| {
        let head = connection.head().unwrap();
        assert_eq!(header(&head, "expect"), None, "the proxy has answered this already");
        let mut body = [0; 4];
        connection.stream.read_exact(&mut body).unwrap();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell");
    });
    let (_place, _process, address) = proxy_for(node.node()).await;
    let (go_on, body) = blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send(
            "POST / HTTP/1.1\r\nHost: app.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
        );
        let go_on = client.head();
        client.send("text");
        let (head, body) = client.answer();
        assert_eq!(status(&head), 200);
        (go_on, body)
    })
    .await;
    assert_eq!(status(&go_on), 100);
    assert_eq!(body, "well");
}

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: app.example\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_protocol_can_be_changed_to() {
    let node = RawNode::start(|mut connection| {
        let head = connection.head().unwrap();
        assert_eq!(header(&head, "upgrade"), Some("chat"));
        assert_eq!(header(&head, "connection"), Some("upgrade"));
        // The first words of the new protocol come right behind the head.
        connection
            .send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\nhello\n");
        let line = read_until(&mut connection.stream, "\n").unwrap();
        connection.send(&format!("you said {line}"));
    });
    let (_place, _process, address) = proxy_for(node.node()).await;
    blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send(&format!("{UPGRADE}first words\n"));
        let head = client.head();
        assert_eq!((status(&head), header(&head, "upgrade")), (101, Some("chat")));
        let mut rest = String::new();
        client.0.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello\nyou said first words\n");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_refuse_to_change_the_protocol() {
    let node = RawNode::start(|mut connection| {
        while let Some(head) = connection.head() {
            let answer = if head.contains("upgrade: chat") { "403 Forbidden" } else { "200 OK" };
            connection.send(&format!("HTTP/1.1 {answer}\r\nContent-Length: 2\r\n\r\nno"));
        }
    });
    let (_place, _process, address) = proxy_for(node.node()).await;
    blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send(UPGRADE);
        let (head, body) = client.answer();
        assert_eq!((status(&head), body.as_str()), (403, "no"));
        assert_eq!(header(&head, "upgrade"), None);
        assert_eq!(status(&client.get("/").0), 200, "the connection is still good for HTTP");
    })
    .await;
}
