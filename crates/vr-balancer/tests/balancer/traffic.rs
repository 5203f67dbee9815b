//! Traffic that flows while pools change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http::{Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tungstenite::Message;
use vr_balancer::{Balancer, DrainReport, ProxyBalancer};
use vr_common::names::{Node, PoolName};

use crate::support::{
    HttpNode, RawClient, STREAM_CHUNKS, blocking, eventually, header, in_time, node, pool, proxy, status,
};

/// Longer than any test: whoever waits so long has failed.
const LONG: Duration = Duration::from_secs(3600);

async fn address(balancer: &ProxyBalancer, pool: &PoolName) -> String {
    balancer.pool_address(pool).await.unwrap().unwrap()
}

async fn drained(balancer: &ProxyBalancer, pool: &PoolName, nodes: &[Node]) {
    let reports = in_time(balancer.wait_drained(pool, nodes, LONG)).await.unwrap();
    assert!(reports.iter().all(DrainReport::is_drained), "{reports:?}");
}

async fn open_now(balancer: &ProxyBalancer, pool: &PoolName, node: Node) -> u64 {
    balancer.wait_drained(pool, &[node], Duration::ZERO).await.unwrap()[0].open
}

async fn connect<B>(address: &str) -> SendRequest<B>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request<B>(method: Method, path: &str, body: B) -> Request<B> {
    Request::builder().method(method).uri(path).header("host", "app.example").body(body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_spread_evenly_over_the_nodes() {
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let (a, b, c) = (HttpNode::start("a").await, HttpNode::start("b").await, HttpNode::start("c").await);
    balancer.add_nodes(&web, &[a.node(), b.node(), c.node()]).await.unwrap();
    let address = address(&balancer, &web).await;
    let mut answers = blocking(move || {
        let mut client = RawClient::connect(&address);
        (0..30).map(|_| client.get("/").1).collect::<Vec<_>>()
    })
    .await;
    answers.sort();
    assert_eq!(answers.concat(), ["a".repeat(10), "b".repeat(10), "c".repeat(10)].concat());
    let stats = balancer.stats().await.unwrap();
    let counts: Vec<_> = stats.pools[0].nodes.iter().map(|n| (n.total, n.in_flight, n.failures)).collect();
    assert_eq!(counts, [(10, 0, 0); 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_node_gets_less() {
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let busy = HttpNode::start("busy").await;
    balancer.add_nodes(&web, &[busy.node()]).await.unwrap();
    let address = address(&balancer, &web).await;
    let mut download = connect(&address).await;
    let answer = in_time(download.send_request(request(Method::GET, "/stream", Full::<Bytes>::default())));
    busy.chunks.add_permits(1);
    let _answer = answer.await.unwrap();
    let free = HttpNode::start("free").await;
    balancer.add_nodes(&web, &[free.node()]).await.unwrap();
    let answers = blocking(move || {
        let mut client = RawClient::connect(&address);
        (0..10).map(|_| client.get("/").1).collect::<BTreeSet<_>>()
    })
    .await;
    assert_eq!(answers.into_iter().collect::<Vec<_>>(), ["free"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_fifty_changes_swap_all_nodes() {
    const CHANGES: u64 = 50;
    const CLIENTS: usize = 6;
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let start = |round: u64| async move {
        join_all((0..2).map(|n| async move { HttpNode::start(&format!("{round}-{n}")).await })).await
    };
    let nodes_of = |nodes: &[HttpNode]| nodes.iter().map(HttpNode::node).collect::<Vec<_>>();
    let mut current = start(0).await;
    balancer.set_nodes(&web, &nodes_of(&current)).await.unwrap();
    let address = address(&balancer, &web).await;

    let (sent, failed, stop) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (address, sent, failed, stop) =
                (address.clone(), Arc::clone(&sent), Arc::clone(&failed), Arc::clone(&stop));
            tokio::spawn(async move {
                // One connection from the first request to the last: it may not be closed either.
                let mut client = connect(&address).await;
                while !stop.load(Ordering::SeqCst) {
                    // Every other client sends what may not be repeated.
                    let request = match number % 2 {
                        0 => request(Method::GET, "/", Full::default()),
                        _ => request(Method::POST, "/", Full::new(Bytes::from_static(b"some text"))),
                    };
                    sent.fetch_add(1, Ordering::SeqCst);
                    let answered = async {
                        client.ready().await?;
                        let answer = client.send_request(request).await?;
                        let status = answer.status();
                        answer.into_body().collect().await.map(|body| (status, body.to_bytes()))
                    };
                    match in_time(answered).await {
                        Ok((StatusCode::OK, body)) if body.contains(&b'-') => {}
                        other => {
                            eprintln!("client {number}: {other:?}");
                            failed.fetch_add(1, Ordering::SeqCst);
                            return;
                        }
                    }
                }
            })
        })
        .collect();

    for round in 1..=CHANGES {
        let next = start(round).await;
        let before = sent.load(Ordering::SeqCst);
        let stale = balancer.set_nodes(&web, &nodes_of(&next)).await.unwrap();
        assert_eq!(stale, nodes_of(&current));
        drained(&balancer, &web, &stale).await;
        join_all(std::mem::replace(&mut current, next).into_iter().map(HttpNode::stop)).await;
        let enough = || sent.load(Ordering::SeqCst) >= before + 20 || failed.load(Ordering::SeqCst) > 0;
        eventually("requests flow on", enough).await;
        assert_eq!(failed.load(Ordering::SeqCst), 0, "in round {round}");
    }
    stop.store(true, Ordering::SeqCst);
    in_time(join_all(clients)).await.into_iter().for_each(|ended| ended.unwrap());
    assert_eq!(failed.load(Ordering::SeqCst), 0);
    assert!(sent.load(Ordering::SeqCst) >= 20 * CHANGES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_download_goes_on_when_its_node_leaves_the_pool() {
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let (old, new) = (HttpNode::start("old").await, HttpNode::start("new").await);
    balancer.add_nodes(&web, &[old.node()]).await.unwrap();
    let address = address(&balancer, &web).await;

    old.chunks.add_permits(1);
    let mut client = connect(&address).await;
    let answer =
        in_time(client.send_request(request(Method::GET, "/stream", Full::<Bytes>::default()))).await;
    let mut body = answer.unwrap().into_body();
    let first = in_time(body.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "chunk 0\n", "a chunk comes through before the next one exists");

    assert_eq!(balancer.set_nodes(&web, &[new.node()]).await.unwrap(), [old.node()]);
    assert_eq!(open_now(&balancer, &web, old.node()).await, 1);
    let fresh = address.clone();
    assert_eq!(blocking(move || RawClient::connect(&fresh).get("/").1).await, "new");
    assert_eq!(balancer.stats().await.unwrap().draining[0].stats.node, old.node());

    old.chunks.add_permits(STREAM_CHUNKS);
    let rest = in_time(body.collect()).await.unwrap().to_bytes();
    assert_eq!(rest, "chunk 1\nchunk 2\nchunk 3\nchunk 4\n");
    drained(&balancer, &web, &[old.node()]).await;
    assert!(balancer.stats().await.unwrap().draining.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_upload_goes_on_when_its_node_leaves_the_pool() {
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let (old, new) = (HttpNode::start("old").await, HttpNode::start("new").await);
    balancer.add_nodes(&web, &[old.node()]).await.unwrap();
    let address = address(&balancer, &web).await;

    let (upload, pieces) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
    let body =
        StreamBody::new(stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) }));
    let mut client = connect(&address).await;
    upload.send(Ok(Frame::data(Bytes::from_static(b"one ")))).await.unwrap();
    let answer = in_time(client.send_request(request(Method::POST, "/echo", body))).await.unwrap();
    let mut echo = answer.into_body();
    let first = in_time(echo.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "one ", "a piece is there and back before the next one is sent");

    balancer.set_nodes(&web, &[new.node()]).await.unwrap();
    assert_eq!(open_now(&balancer, &web, old.node()).await, 1);
    for piece in ["two ", "three"] {
        upload.send(Ok(Frame::data(Bytes::from(piece)))).await.unwrap();
    }
    drop(upload);
    assert_eq!(in_time(echo.collect()).await.unwrap().to_bytes(), "two three");
    drained(&balancer, &web, &[old.node()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_come_through_whole_in_both_directions() {
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let echo = HttpNode::start("echo").await;
    balancer.add_nodes(&web, &[echo.node()]).await.unwrap();
    let bytes: Bytes = (0..20_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut client = connect(&address(&balancer, &web).await).await;
    let answer = client.send_request(request(Method::PUT, "/echo", Full::new(bytes.clone())));
    let body = in_time(async { answer.await.unwrap().into_body().collect().await.unwrap().to_bytes() }).await;
    assert!(body == bytes, "{} bytes of {}", body.len(), bytes.len());
}

/// A node that sends every WebSocket message back, with its name.
fn websocket_node(name: &'static str) -> Node {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut socket = tungstenite::accept(stream.unwrap()).unwrap();
                while let Ok(message) = socket.read() {
                    if let Message::Text(text) = message {
                        socket.send(Message::text(format!("{name}: {text}"))).unwrap();
                    }
                }
            });
        }
    });
    node(address)
}

type WebSocket = tungstenite::WebSocket<std::net::TcpStream>;

async fn websocket(address: String) -> WebSocket {
    blocking(move || {
        let stream = RawClient::connect(&address).0;
        tungstenite::client(format!("ws://{address}/chat"), stream).unwrap().0
    })
    .await
}

async fn echo(mut socket: WebSocket, text: &'static str) -> (WebSocket, String) {
    blocking(move || {
        socket.send(Message::text(text)).unwrap();
        let answer = socket.read().unwrap().into_text().unwrap().to_string();
        (socket, answer)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_lives_on_when_its_node_leaves_the_pool() {
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let (old, new) = (websocket_node("old"), websocket_node("new"));
    balancer.add_nodes(&web, std::slice::from_ref(&old)).await.unwrap();
    let address = address(&balancer, &web).await;

    let (socket, answer) = echo(websocket(address.clone()).await, "hello").await;
    assert_eq!(answer, "old: hello");
    balancer.set_nodes(&web, std::slice::from_ref(&new)).await.unwrap();
    let (mut socket, answer) = echo(socket, "still there?").await;
    assert_eq!(answer, "old: still there?");
    let (_other, answer) = echo(websocket(address).await, "hello").await;
    assert_eq!(answer, "new: hello");
    assert_eq!(open_now(&balancer, &web, old.clone()).await, 1, "the grace period is over and it says so");

    blocking(move || {
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
    })
    .await;
    drained(&balancer, &web, &[old]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_after_the_grace_period_is_cut_off_only_when_asked_for() {
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let (chat, files) = (websocket_node("chat"), HttpNode::start("files").await);
    balancer.add_nodes(&web, std::slice::from_ref(&chat)).await.unwrap();
    let address = address(&balancer, &web).await;
    let (socket, _) = echo(websocket(address.clone()).await, "hello").await;
    balancer.set_nodes(&web, &[files.node()]).await.unwrap();
    files.chunks.add_permits(1);
    let mut client = connect(&address).await;
    let answer =
        in_time(client.send_request(request(Method::GET, "/stream", Full::<Bytes>::default()))).await;
    let mut download = answer.unwrap().into_body();
    in_time(download.frame()).await.unwrap().unwrap();

    balancer.delete_nodes(&web, &[files.node()], Some(Duration::ZERO)).await.unwrap();
    drained(&balancer, &web, &[files.node()]).await;
    assert!(in_time(download.collect()).await.is_err(), "a cut answer must not look like a whole one");
    assert_eq!(open_now(&balancer, &web, chat.clone()).await, 1, "nobody asked to cut this one off");

    balancer.add_nodes(&web, std::slice::from_ref(&chat)).await.unwrap();
    let (second, _) = echo(websocket(address).await, "hello").await;
    balancer.delete_nodes(&web, std::slice::from_ref(&chat), Some(Duration::ZERO)).await.unwrap();
    let cut = blocking(move || {
        let mut second = second;
        second.read().is_err()
    })
    .await;
    assert!(cut);
    let (_socket, answer) = echo(socket, "me too?").await;
    assert_eq!(answer, "chat: me too?", "it belongs to the first time that the node was in the pool");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pool_ends_what_it_answers_and_gives_its_address_back() {
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let node = HttpNode::start("node").await;
    balancer.add_nodes(&web, &[node.node()]).await.unwrap();
    let address = address(&balancer, &web).await;
    node.chunks.add_permits(1);
    let mut client = connect(&address).await;
    let answer =
        in_time(client.send_request(request(Method::GET, "/stream", Full::<Bytes>::default()))).await;
    balancer.delete_pool(&web).await.unwrap();
    assert_eq!(balancer.pool_address(&web).await.unwrap(), None);
    assert!(std::net::TcpStream::connect(&address).is_err());
    assert_eq!(open_now(&balancer, &web, node.node()).await, 1);

    balancer.add_nodes(&web, &[node.node()]).await.unwrap();
    assert_eq!(balancer.pool_address(&web).await.unwrap(), Some(address.clone()));
    let again = address.clone();
    let (head, body) = blocking(move || RawClient::connect(&again).get("/")).await;
    assert_eq!((status(&head), body.as_str()), (200, "node"));
    assert_eq!(header(&head, "connection"), None);

    node.chunks.add_permits(STREAM_CHUNKS);
    let body = in_time(answer.unwrap().into_body().collect()).await.unwrap().to_bytes();
    assert!(body.ends_with(b"chunk 4\n"));
}
