//! Nodes that are asked whether they are well, turns, and what is said when there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use vr_balancer::Balancer;

use crate::proxy_support::{configured, free_address, metrics, signal};
use crate::support::{
    DEADLINE, DeadAddress, HttpNode, RawClient, RawNode, STREAM_CHUNKS, blocking, eventually, header, pool,
    status,
};

/// A node that answers checks as `well` says, all else with its name, and knows how often it was asked for what.
struct Checked {
    node: RawNode,
    well: Arc<AtomicBool>,
    checks: Arc<AtomicUsize>,
}

impl Checked {
    fn start(name: &'static str) -> Self {
        let (well, checks) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let node = RawNode::start({
            let (well, checks) = (Arc::clone(&well), Arc::clone(&checks));
            move |mut connection| {
                while let Some(head) = connection.head() {
                    let length = name.len();
                    if head.starts_with("GET /health ") {
                        assert_eq!(header(&head, "host"), Some("check.example"));
                        checks.fetch_add(1, Ordering::SeqCst);
                        let code = if well.load(Ordering::SeqCst) { "204 No Content" } else { "500 Oh" };
                        connection.send(&format!("HTTP/1.1 {code}\r\nConnection: close\r\n\r\n"));
                        return;
                    }
                    connection.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}"));
                }
            }
        });
        Self { node, well, checks }
    }
}

const CHECK: &str = "health_check: {path: /health, host: check.example, interval: 0.02, timeout: 1, rise: 2, \
                     fall: 2, expect: '204'}";

async fn until_up(balancer: &vr_balancer::ProxyBalancer, expected: &[bool]) {
    let end = std::time::Instant::now() + DEADLINE;
    loop {
        let stats = balancer.stats().await.unwrap();
        let up: Vec<bool> = stats.pools[0].nodes.iter().map(|node| node.up).collect();
        if up == expected {
            return;
        }
        assert!(std::time::Instant::now() < end, "expected {expected:?}, found {up:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_down_gets_nothing_until_it_is_up_and_all_are_tried_when_all_are_down() {
    let prometheus = free_address();
    let place = configured(&format!("pools: {{web: {{{CHECK}}}}}\nmetrics: {prometheus}\n"));
    let process = place.start().await;
    let balancer = place.balancer();
    let web = pool("web");
    let (one, two) = (Checked::start("one"), Checked::start("two"));
    balancer.add_nodes(&web, &[one.node.node(), two.node.node()]).await.unwrap();
    let address = balancer.pool_address(&web).await.unwrap().unwrap();
    let ask = || {
        let address = address.clone();
        blocking(move || {
            let mut client = RawClient::connect(&address);
            let mut names: Vec<String> = (0..10).map(|_| client.get("/").1).collect();
            names.sort();
            names.dedup();
            names.join(" ")
        })
    };
    assert_eq!(ask().await, "one two");
    two.well.store(false, Ordering::SeqCst);
    until_up(&balancer, &[true, false]).await;
    assert_eq!(ask().await, "one");
    let labels = |node: &Checked| format!("vr_proxy_node_up{{pool=\"web\",node=\"{}\"}}", node.node.node());
    let seen = metrics(prometheus).await;
    assert_eq!(
        (seen[&labels(&one)], seen[&labels(&two)], seen["vr_proxy_pool_up{pool=\"web\"}"]),
        (1., 0., 1.)
    );

    one.well.store(false, Ordering::SeqCst);
    until_up(&balancer, &[false, false]).await;
    assert_eq!(ask().await, "one two", "better than none");
    assert_eq!(metrics(prometheus).await["vr_proxy_pool_up{pool=\"web\"}"], 0.);
    two.well.store(true, Ordering::SeqCst);
    until_up(&balancer, &[false, true]).await;
    assert_eq!(ask().await, "two");
    assert!(place.log().contains("a node is down") && place.log().contains("status 500"), "{}", place.log());

    // Without checks, nothing is held against a node any more.
    crate::proxy_support::write_configuration(&place, &format!("metrics: {prometheus}\n"));
    signal(&process, Signal::HUP);
    until_up(&balancer, &[true, true]).await;
    let checks = one.checks.load(Ordering::SeqCst);
    assert_eq!(ask().await, "one two");
    assert!(one.checks.load(Ordering::SeqCst) <= checks + 1, "one may have been on its way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_answer_its_check_is_down() {
    let place = configured(
        "pools: {web: {health_check: {path: /, interval: 0.02, timeout: 0.1, fall: 2, rise: 1}}}\n",
    );
    let _process = place.start().await;
    let balancer = place.balancer();
    let mute = RawNode::start(|mut connection| {
        connection.head();
        let _ = std::io::Read::read(&mut connection.stream, &mut [0]);
    });
    let dead = DeadAddress::new();
    let well = HttpNode::start("well").await;
    balancer.add_nodes(&pool("web"), &[mute.node(), dead.node(), well.node()]).await.unwrap();
    until_up(&balancer, &[false, false, true]).await;
    let late = dead.revive();
    std::thread::spawn(move || {
        for stream in late.incoming() {
            let mut stream = stream.unwrap();
            crate::support::read_head(&mut stream);
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    until_up(&balancer, &[false, true, true]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_are_taken_however_busy_a_node_is_if_that_is_asked_for() {
    let place = configured("pools: {web: {balance: round-robin}}\n");
    let _process = place.start().await;
    let balancer = place.balancer();
    let web = pool("web");
    let (busy, free) = (HttpNode::start("busy").await, HttpNode::start("free").await);
    balancer.add_nodes(&web, &[busy.node()]).await.unwrap();
    let address = balancer.pool_address(&web).await.unwrap().unwrap();
    busy.chunks.add_permits(1);
    let mut download = blocking({
        let address = address.clone();
        move || {
            let mut client = RawClient::connect(&address);
            client.send("GET /stream HTTP/1.1\r\nHost: a\r\n\r\n");
            client.head();
            client
        }
    })
    .await;
    balancer.add_nodes(&web, &[free.node()]).await.unwrap();
    let answers = blocking(move || {
        let mut client = RawClient::connect(&address);
        (0..10).map(|_| client.get("/").1).collect::<Vec<_>>()
    })
    .await;
    assert_eq!(answers.iter().filter(|name| *name == "busy").count(), 5, "{answers:?}");
    busy.chunks.add_permits(STREAM_CHUNKS);
    blocking(move || assert!(crate::support::read_until(&mut download.0, "0\r\n\r\n").is_some())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_page_is_shown_while_no_node_is_there_and_read_again_when_it_changes() {
    let place = configured("pools: {web: {maintenance_page: web.html, retry_after: 120}}\n");
    let page = place.dir.path().join("web.html");
    std::fs::write(&page, "<h1>Back at noon</h1>").unwrap();
    let _process = place.start().await;
    let balancer = place.balancer();
    let web = pool("web");
    balancer.add_nodes(&web, &[]).await.unwrap();
    let address = balancer.pool_address(&web).await.unwrap().unwrap();
    let ask = || {
        let address = address.clone();
        blocking(move || RawClient::connect(&address).get("/"))
    };
    let (head, body) = ask().await;
    assert_eq!((status(&head), body.as_str()), (503, "<h1>Back at noon</h1>"));
    assert_eq!(header(&head, "retry-after"), Some("120"));
    assert_eq!(header(&head, "content-type"), Some("text/html; charset=utf-8"));
    let dead = DeadAddress::new();
    balancer.add_nodes(&web, &[dead.node()]).await.unwrap();
    assert_eq!(ask().await.1, "<h1>Back at noon</h1>");

    std::fs::write(&page, "<h1>Back at one</h1>").unwrap();
    eventually("it is read", || place.log().contains("the maintenance page was read again")).await;
    assert_eq!(ask().await.1, "<h1>Back at one</h1>");
    std::fs::remove_file(&page).unwrap();
    eventually("it is missed", || place.log().contains("cannot read a maintenance page")).await;
    assert_eq!(ask().await.1, "<h1>Back at one</h1>", "the old one is better than none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_not_offered_to_nodes_without_end() {
    let (_place, _process, balancer) = crate::support::proxy().await;
    let dead: Vec<_> = (0..40).map(|_| DeadAddress::new()).collect();
    let nodes: Vec<_> = dead.iter().map(DeadAddress::node).collect();
    balancer.add_nodes(&pool("web"), &nodes).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    let (head, _) = blocking(move || RawClient::connect(&address).get("/")).await;
    assert_eq!(status(&head), 503);
    let stats = balancer.stats().await.unwrap();
    let tried: u64 = stats.pools[0].nodes.iter().map(|node| node.failures).sum();
    assert_eq!(tried, 20);
}
