//! HTTP/2 from clients and to nodes.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use vr_balancer::{Balancer, DrainReport};
use vr_common::names::Node;

use crate::proxy_support::{certificate, configured, curl, free_address, http2 as connect, tls};
use crate::support::{HttpNode, Place, STREAM_CHUNKS, eventually, in_time, node, pool, proxy};

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::builder().uri(format!("http://app.example{path}")).body(Full::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_speaks_every_http_with_and_without_tls() {
    let (plain, secure) = (free_address(), free_address());
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "all", &["localhost"]);
    let folder = dir.path().display();
    let place = configured(&format!(
        "listeners: [{{address: '{plain}'}}, {{address: '{secure}', tls: true}}]\n\
         certificates: [{{certificate: {folder}/all.pem, key: {folder}/all.key}}]\n\
         routes: {{'*': web}}\n"
    ));
    let _process = place.start().await;
    let app = HttpNode::start("app").await;
    place.balancer().add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let ca = dir.path().join("all.pem").display().to_string();
    let resolve = format!("localhost:{}:127.0.0.1", secure.port());
    let (plain, secure) =
        (format!("http://{plain}/head"), format!("https://localhost:{}/head", secure.port()));
    for (options, url, version, scheme) in [
        (&["--http1.1"][..], &plain, "1.1", "http"),
        (&["--http2-prior-knowledge"], &plain, "2", "http"),
        (&["--http1.1"], &secure, "1.1", "https"),
        (&["--http2"], &secure, "2", "https"),
        (&["--http2", "--tls-max", "1.2"], &secure, "2", "https"),
    ] {
        let common = ["-w", "\n%{http_version} %{http_code}", "--cacert", &ca, "--resolve", &resolve, url];
        let cookies = ["-H", "Cookie: a=1", "-H", "Cookie: b=2", "-d", "some text", "-X", "PUT"];
        let said = curl(&[options, &cookies, &common].concat()).await;
        assert!(said.ends_with(&format!("\n{version} 200")), "{options:?}: {said}");
        assert!(said.starts_with("PUT /head HTTP/1.1\n"), "the node is spoken to in HTTP/1.1: {said}");
        assert!(said.contains(&format!("\nx-forwarded-proto: {scheme}\n")), "{said}");
        assert!(said.contains("\nhost: ") && said.contains("\ncontent-length: 9\n"), "{said}");
        assert!(!said.contains("\nconnection:"), "{said}");
        if version == "2" {
            assert!(said.contains("\ncookie: a=1; b=2\n"), "one line, as HTTP/1.1 has it: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_http2_fails_while_fifty_changes_swap_all_nodes() {
    const CHANGES: u64 = 50;
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let start = |round: u64| async move {
        join_all((0..2).map(|n| async move { HttpNode::start(&format!("{round}-{n}")).await })).await
    };
    let nodes_of = |nodes: &[HttpNode]| nodes.iter().map(HttpNode::node).collect::<Vec<_>>();
    let mut current = start(0).await;
    balancer.set_nodes(&web, &nodes_of(&current)).await.unwrap();
    let address = balancer.pool_address(&web).await.unwrap().unwrap();
    let (sent, failed, stop) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    // Two connections with four streams each, from the first request to the last.
    let connections = [connect(&address).await, connect(&address).await];
    let clients: Vec<_> = connections
        .iter()
        .flat_map(|connection| (0..4).map(move |number| (connection.clone(), number)))
        .map(|(mut client, number)| {
            let (sent, failed, stop) = (Arc::clone(&sent), Arc::clone(&failed), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let request = match number % 2 {
                        0 => get("/"),
                        _ => Request::post("http://app.example/")
                            .body(Full::new(Bytes::from_static(b"some text")))
                            .unwrap(),
                    };
                    sent.fetch_add(1, Ordering::SeqCst);
                    let answered = async {
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
        let reports = in_time(balancer.wait_drained(&web, &stale, Duration::from_secs(3600))).await.unwrap();
        assert!(reports.iter().all(DrainReport::is_drained), "{reports:?}");
        join_all(std::mem::replace(&mut current, next).into_iter().map(HttpNode::stop)).await;
        let enough = || sent.load(Ordering::SeqCst) >= before + 20 || failed.load(Ordering::SeqCst) > 0;
        eventually("requests flow on", enough).await;
        assert_eq!(failed.load(Ordering::SeqCst), 0, "in round {round}");
    }
    stop.store(true, Ordering::SeqCst);
    in_time(join_all(clients)).await.into_iter().for_each(|ended| ended.unwrap());
    assert_eq!(failed.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_says_goaway_and_lets_open_streams_end() {
    let place = Place::new().with(&["--stop-timeout", "600"]);
    let mut process = place.start().await;
    let balancer = place.balancer();
    let app = HttpNode::start("app").await;
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    let mut busy = connect(&address).await;
    let mut idle = connect(&address).await;
    assert_eq!(in_time(idle.send_request(get("/"))).await.unwrap().status(), 200);
    app.chunks.add_permits(1);
    let mut download = in_time(busy.send_request(get("/stream"))).await.unwrap().into_body();
    in_time(download.frame()).await.unwrap().unwrap();

    process.terminate();
    eventually("the idle connection is closed", || idle.is_closed()).await;
    assert!(process.0.try_wait().unwrap().is_none(), "it has an answer to end");
    app.chunks.add_permits(STREAM_CHUNKS);
    let rest = in_time(download.collect()).await.unwrap().to_bytes();
    assert_eq!(rest, "chunk 1\nchunk 2\nchunk 3\nchunk 4\n");
    eventually("the busy one is closed, too", || busy.is_closed()).await;
    assert_eq!(process.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_a_client_does_not_take_is_cut_off_with_its_node_when_asked_for() {
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let app = HttpNode::start("app").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    let address = balancer.pool_address(&web).await.unwrap().unwrap();
    let mut client = connect(&address).await;
    // More than all windows and buffers on the way: the node cannot finish as long as the client takes nothing.
    let bytes = Bytes::from(vec![b'x'; 40_000_000]);
    let request = Request::put("http://app.example/echo").body(Full::new(bytes)).unwrap();
    let answer = in_time(client.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), 200);
    balancer.delete_nodes(&web, &[app.node()], Some(Duration::ZERO)).await.unwrap();
    let reports = in_time(balancer.wait_drained(&web, &[app.node()], Duration::from_secs(50))).await.unwrap();
    assert!(reports.iter().all(DrainReport::is_drained), "{reports:?}");
    assert!(in_time(answer.into_body().collect()).await.is_err(), "it must not look like a whole one");
    // The connection is still good.
    let other = HttpNode::start("other").await;
    balancer.add_nodes(&web, &[other.node()]).await.unwrap();
    let answer = in_time(client.send_request(get("/"))).await.unwrap();
    assert_eq!(in_time(answer.into_body().collect()).await.unwrap().to_bytes(), "other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_its_requests_back_loses_its_connection_and_others_do_not() {
    let (_place, _process, balancer) = proxy().await;
    let web = pool("web");
    let app = HttpNode::start("app").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    let address = balancer.pool_address(&web).await.unwrap().unwrap();
    let mut good = connect(&address).await;
    let mut bad = connect(&address).await;
    let end = std::time::Instant::now() + crate::support::DEADLINE;
    while !bad.is_closed() {
        assert!(std::time::Instant::now() < end, "it goes on and on");
        // Dropped before there can be an answer: the stream is reset. `/stream` has none without permission.
        let _ = tokio::time::timeout(Duration::from_millis(1), bad.send_request(get("/stream"))).await;
    }
    assert_eq!(in_time(good.send_request(get("/"))).await.unwrap().status(), 200);
    let stats = balancer.stats().await.unwrap();
    assert!(stats.pools[0].nodes[0].total < 1000, "most of it did not reach the node: {stats:?}");
    let end = std::time::Instant::now() + crate::support::DEADLINE;
    while balancer.stats().await.unwrap().pools[0].nodes[0].in_flight > 0 {
        assert!(std::time::Instant::now() < end, "the node still works for it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_is_refused_over_http2_too() {
    let (_place, _process, balancer) = proxy().await;
    let app = HttpNode::start("app").await;
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    let mut client = connect(&address).await;
    let request = Request::connect("inside.example:22").body(Full::default()).unwrap();
    assert_eq!(in_time(client.send_request(request)).await.unwrap().status(), 400);
    // WebSockets over HTTP/2 are not offered, so clients use HTTP/1.1 for them: what asks for one anyway is reset.
    let mut request = Request::connect("http://app.example/chat").body(Full::default()).unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    assert!(in_time(client.send_request(request)).await.is_err());
    assert_eq!(balancer.stats().await.unwrap().pools[0].nodes[0].total, 0);
}

/// A node that speaks HTTP/2 only and answers as gRPC servers do: the status is in the trailers.
async fn grpc_node() -> Node {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(
                TokioIo::new(stream),
                service_fn(|request: Request<Incoming>| async move {
                    let seen = format!(
                        "{:?} {} te={:?} host={:?}",
                        request.version(),
                        request.uri(),
                        request.headers().get("te"),
                        request.headers().get("host"),
                    );
                    let body = request.into_body().collect().await.unwrap();
                    let count = body.trailers().map_or(0, HeaderMap::len);
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    let text = format!("{seen} {} bytes {count} trailers", body.to_bytes().len());
                    let frames = [Frame::data(Bytes::from(text)), Frame::trailers(trailers)];
                    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
                    Ok::<_, Infallible>(Response::new(body))
                }),
            ));
        }
    });
    node(address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_passes_to_nodes_that_speak_http2_with_its_trailers() {
    let secure = free_address();
    let dir = tempfile::tempdir().unwrap();
    let trusted = certificate(dir.path(), "rpc", &["rpc.example"]);
    let folder = dir.path().display();
    let place = configured(&format!(
        "listeners: [{{address: '{secure}', tls: true, pool: rpc}}]\n\
         certificates: [{{certificate: {folder}/rpc.pem, key: {folder}/rpc.key}}]\n\
         pools: {{rpc: {{protocol: h2, health_check: {{path: /ok, interval: 0.1}}}}}}\n"
    ));
    let _process = place.start().await;
    let balancer = place.balancer();
    balancer.add_nodes(&pool("rpc"), &[grpc_node().await]).await.unwrap();
    let stream = tls(secure, "rpc.example", &[&trusted], &["h2"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (client, connection) =
        in_time(hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)))
            .await
            .unwrap();
    tokio::spawn(connection);
    let calls = (0..200).map(|number: usize| {
        let mut client = client.clone();
        async move {
            let request = Request::post("https://rpc.example/a.B/C")
                .header("te", "trailers")
                .header("content-type", "application/grpc")
                .body(Full::new(Bytes::from(vec![0; number * 100])))
                .unwrap();
            let answer = client.send_request(request).await.unwrap();
            let body = answer.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
            let text = body.to_bytes();
            let expected = format!(
                "HTTP/2.0 https://rpc.example/a.B/C te=Some(\"trailers\") host=None {} bytes 0 trailers",
                number * 100
            );
            assert_eq!(text, expected);
        }
    });
    in_time(join_all(calls)).await;
    let stats = &balancer.stats().await.unwrap().pools[0].nodes[0];
    assert_eq!((stats.total, stats.failures, stats.in_flight, stats.up), (200, 0, 0, true));
    // A client of HTTP/1.1 gets an answer from there as well.
    let port = secure.port();
    let said = curl(&[
        "--http1.1",
        "--cacert",
        &format!("{folder}/rpc.pem"),
        "--resolve",
        &format!("rpc.example:{port}:127.0.0.1"),
        "-d",
        "text",
        &format!("https://rpc.example:{port}/x"),
    ])
    .await;
    assert!(said.contains("4 bytes"), "{said}");
}
