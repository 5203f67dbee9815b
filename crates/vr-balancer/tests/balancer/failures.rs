//! Nodes that do not answer, or not well.

use vr_balancer::{Balancer, ProxyBalancer};
use vr_common::names::Node;

use crate::support::{
    DeadAddress, HttpNode, Place, Process, RawClient, RawNode, blocking, header, pool, proxy, status,
};

/// A proxy with a pool of these nodes, and the pool's address.
async fn proxy_for(nodes: &[Node]) -> (Place, Process, ProxyBalancer, String) {
    let (place, process, balancer) = proxy().await;
    let web = pool("web");
    balancer.add_nodes(&web, nodes).await.unwrap();
    let address = balancer.pool_address(&web).await.unwrap().unwrap();
    (place, process, balancer, address)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_refuses_connections_costs_no_request_of_any_method() {
    let live = HttpNode::start("live").await;
    let dead = DeadAddress::new();
    let (_place, _process, balancer, address) = proxy_for(&[dead.node(), live.node()]).await;
    blocking(move || {
        for round in 0..20 {
            let mut client = RawClient::connect(&address);
            let (head, body) = if round % 2 == 0 { client.post("/echo", "text") } else { client.get("/") };
            assert_eq!(status(&head), 200);
            assert_eq!(body, if round % 2 == 0 { "text" } else { "live" });
        }
    })
    .await;
    let stats = balancer.stats().await.unwrap();
    let [of_dead, of_live] = stats.pools[0].nodes.as_slice() else { panic!("{stats:?}") };
    assert!((1..20).contains(&of_dead.failures), "tried, then left alone for a while: {of_dead:?}");
    assert_eq!((of_dead.total, of_live.total, of_live.failures), (0, 20, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_node_that_answers_there_is_a_maintenance_page() {
    let (_place, _process, balancer, address) = proxy_for(&[]).await;
    let ask = |address: String| blocking(move || RawClient::connect(&address).get("/"));
    let expect_page = |(head, body): (String, String)| {
        assert_eq!(status(&head), 503);
        assert_eq!(header(&head, "content-type"), Some("text/html; charset=utf-8"));
        assert!(header(&head, "retry-after").is_some());
        assert!(body.contains("Down for maintenance"));
    };
    expect_page(ask(address.clone()).await);
    let (dead, deader) = (DeadAddress::new(), DeadAddress::new());
    balancer.add_nodes(&pool("web"), &[dead.node(), deader.node()]).await.unwrap();
    expect_page(ask(address.clone()).await);

    // The last ones are never put aside for good: the moment one of them is there, it is asked.
    let late = HttpNode::start("late").await;
    balancer.add_nodes(&pool("web"), &[late.node()]).await.unwrap();
    assert_eq!(ask(address).await.1, "late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_aside_node_is_asked_again_when_no_other_is_left() {
    let back = DeadAddress::new();
    let other = HttpNode::start("other").await;
    let (_place, _process, balancer, address) = proxy_for(&[back.node(), other.node()]).await;
    let ask = |address: String| blocking(move || RawClient::connect(&address).get("/"));
    let end = std::time::Instant::now() + crate::support::DEADLINE;
    while !balancer.stats().await.unwrap().pools[0].nodes[0].put_aside {
        assert_eq!(ask(address.clone()).await.1, "other");
        assert!(std::time::Instant::now() < end, "it is never put aside");
    }
    let listener = back.revive();
    std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        crate::support::read_head(&mut stream).unwrap();
        stream.write_all(OK.as_bytes()).unwrap();
    });
    other.stop().await;
    assert_eq!(ask(address).await.1, "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_closes_used_connections_costs_no_request() {
    // Each connection answers once; the second request on it is read and never answered.
    let shy = RawNode::start(|mut connection| {
        if connection.head().is_some_and(|head| !head.starts_with("POST")) {
            connection.send(OK);
            connection.head();
        } else {
            let mut text = [0; 4];
            std::io::Read::read_exact(&mut connection.stream, &mut text).unwrap();
            connection.send(OK);
            connection.head();
        }
    });
    let (_place, _process, balancer, address) = proxy_for(&[shy.node()]).await;
    let posts = blocking(move || {
        let mut client = RawClient::connect(&address);
        for _ in 0..10 {
            assert_eq!(client.get("/get").1, "ok");
            assert_eq!(client.post("/post", "text").1, "ok");
        }
        10
    })
    .await;
    let seen = shy.seen();
    assert_eq!(seen.iter().filter(|line| line.starts_with("POST")).count(), posts, "none was repeated");
    assert!(seen.iter().filter(|line| line.starts_with("GET")).count() >= 10);
    assert_eq!(balancer.stats().await.unwrap().pools[0].nodes[0].failures, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_breaks_is_repeated_only_where_that_is_harmless() {
    // Reads the request, and hangs up.
    let rude = RawNode::start(|mut connection| drop(connection.head()));
    let good = HttpNode::start("good").await;
    let (_place, _process, balancer, address) = proxy_for(&[rude.node()]).await;
    let alone = address.clone();
    blocking(move || {
        let mut client = RawClient::connect(&alone);
        assert_eq!(status(&client.get("/").0), 502);
        assert_eq!(status(&client.post("/", "text").0), 502);
    })
    .await;
    assert_eq!(rude.seen().len(), 2);

    balancer.add_nodes(&pool("web"), &[good.node()]).await.unwrap();
    let statuses = blocking(move || {
        let mut client = RawClient::connect(&address);
        for _ in 0..10 {
            assert_eq!(client.get("/").1, "good", "whoever is asked first, somebody answers");
        }
        (0..10).map(|_| status(&client.post("/", "text").0)).collect::<Vec<_>>()
    })
    .await;
    let refused = statuses.iter().filter(|status| **status == 502).count();
    assert!(refused > 0 && statuses.iter().all(|status| [200, 502].contains(status)), "{statuses:?}");
    let posts = rude.seen().iter().filter(|line| line.starts_with("POST")).count();
    assert_eq!(posts, 1 + refused, "each POST reached one node once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_says_nothing_is_given_up() {
    let silent = RawNode::start(|mut connection| {
        connection.head();
        connection.head();
    });
    let place = Place::new().with(&["--answer-timeout", "0.2"]);
    let _process = place.start().await;
    let balancer = place.balancer();
    balancer.add_nodes(&pool("web"), &[silent.node()]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    let (head, _) = blocking(move || RawClient::connect(&address).get("/")).await;
    assert_eq!(status(&head), 504);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_stands_still_is_broken_off() {
    let half = RawNode::start(|mut connection| {
        connection.head();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        connection.head();
    });
    let place = Place::new().with(&["--idle-timeout", "0.2"]);
    let _process = place.start().await;
    let balancer = place.balancer();
    balancer.add_nodes(&pool("web"), &[half.node()]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    let rest = blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send("GET / HTTP/1.1\r\nHost: app.example\r\n\r\n");
        client.head();
        let mut rest = Vec::new();
        let ended = std::io::Read::read_to_end(&mut client.0, &mut rest);
        (ended.is_ok() || !rest.is_empty()).then_some(rest)
    })
    .await;
    assert_eq!(rest.unwrap(), b"half");
    let stats = balancer.stats().await.unwrap();
    assert_eq!((stats.pools[0].nodes[0].in_flight, stats.pools[0].nodes[0].failures), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_no_http_is_a_bad_gateway() {
    let gibberish = RawNode::start(|mut connection| {
        connection.head();
        connection.send("220 mail.example ESMTP\r\n\r\n");
    });
    let pushy = RawNode::start(|mut connection| {
        connection.head();
        connection.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n");
        connection.head();
    });
    for node in [gibberish.node(), pushy.node()] {
        let (_place, _process, _balancer, address) = proxy_for(&[node]).await;
        let (head, _) = blocking(move || RawClient::connect(&address).post("/", "text")).await;
        assert_eq!(status(&head), 502);
    }
}

/// Waits until nothing is open on the pool's only node.
async fn nothing_is_open(balancer: &ProxyBalancer) {
    let end = std::time::Instant::now() + crate::support::DEADLINE;
    while balancer.stats().await.unwrap().pools[0].nodes[0].in_flight > 0 {
        assert!(std::time::Instant::now() < end, "the node is never free");
    }
}

/// Waits until the pool's only node has been asked something.
async fn something_was_asked(balancer: &ProxyBalancer) {
    let end = std::time::Instant::now() + crate::support::DEADLINE;
    while balancer.stats().await.unwrap().pools[0].nodes[0].total == 0 {
        assert!(std::time::Instant::now() < end, "the request never came");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_frees_its_node() {
    let app = HttpNode::start("app").await;
    let silent = RawNode::start(|mut connection| {
        connection.head();
        connection.head();
    });
    for (node, request) in [
        (silent.node(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (app.node(), "GET /stream HTTP/1.1\r\nHost: a\r\n\r\n"),
        (app.node(), "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf"),
    ] {
        let (_place, _process, balancer, address) = proxy_for(&[node]).await;
        let client = blocking(move || {
            let mut client = RawClient::connect(&address);
            client.send(request);
            client
        })
        .await;
        something_was_asked(&balancer).await;
        drop(client);
        nothing_is_open(&balancer).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stands_still_does_not_hold_its_node_for_ever() {
    use std::io::Write;
    // More than all buffers between it and the client can take.
    let generous = RawNode::start(|mut connection| {
        connection.head();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while connection.stream.write_all(&[0; 65536]).is_ok() {}
    });
    let patient = RawNode::start(|mut connection| {
        connection.head();
        connection.head();
    });
    let stuck_upload = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf";
    for (node, request) in
        [(generous.node(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n"), (patient.node(), stuck_upload)]
    {
        let place = Place::new().with(&["--idle-timeout", "0.3"]);
        let _process = place.start().await;
        let balancer = place.balancer();
        balancer.add_nodes(&pool("web"), &[node]).await.unwrap();
        let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
        let _client = blocking(move || {
            let mut client = RawClient::connect(&address);
            client.send(request);
            client
        })
        .await;
        something_was_asked(&balancer).await;
        nothing_is_open(&balancer).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_in_which_nothing_moves_is_closed() {
    let chat = RawNode::start(|mut connection| {
        connection.head();
        connection.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n");
        connection.head();
    });
    let place = Place::new().with(&["--tunnel-timeout", "0.3"]);
    let _process = place.start().await;
    let balancer = place.balancer();
    balancer.add_nodes(&pool("web"), &[chat.node()]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    let rest = blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n");
        assert_eq!(status(&client.head()), 101);
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut client.0, &mut rest).map(|_| rest).ok()
    })
    .await;
    assert_eq!(rest, Some(Vec::new()));
    nothing_is_open(&balancer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_end_of_the_upload_gets_through() {
    let hasty = RawNode::start(|mut connection| {
        connection.head();
        connection.send("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno");
        let mut upload = Vec::new();
        let _ = std::io::Read::read_to_end(&mut connection.stream, &mut upload);
    });
    let (_place, _process, balancer, address) = proxy_for(&[hasty.node()]).await;
    let mut client = blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
        let (head, body) = client.answer();
        assert_eq!((status(&head), body.as_str()), (413, "no"));
        client
    })
    .await;
    assert_eq!(balancer.stats().await.unwrap().pools[0].nodes[0].in_flight, 1, "the upload is not over");
    blocking(move || {
        client.send(" done!");
        client
    })
    .await;
    nothing_is_open(&balancer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_cannot_fill_the_disk_with_warnings() {
    let (place, _process, balancer, address) = proxy_for(&[]).await;
    let began = std::time::Instant::now();
    let dead = DeadAddress::new();
    let ask = |address: String| {
        blocking(move || {
            let mut client = RawClient::connect(&address);
            (0..500).for_each(|_| assert_eq!(status(&client.get("/").0), 503));
        })
    };
    ask(address.clone()).await;
    balancer.add_nodes(&pool("web"), &[dead.node()]).await.unwrap();
    ask(address).await;
    let log = place.log();
    // One line at once, one for each ten seconds that this took, and one for what was left out.
    let most = 2 + began.elapsed().as_secs() as usize / 10;
    for text in ["no node takes the request", "cannot connect to a node"] {
        let lines = log.lines().filter(|line| line.contains(text)).count();
        assert!((1..=most).contains(&lines), "{lines} lines: {log}");
    }
}
