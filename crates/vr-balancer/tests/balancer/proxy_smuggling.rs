//! Requests that two programs might read differently. Either nobody reads them, or the node sees one meaning.

use std::io::{Read, Write};
use std::time::Duration;

use vr_balancer::Balancer;
use vr_common::names::Node;

use crate::support::{
    Place, Process, RawClient, RawNode, blocking, eventually, header, pool, proxy, read_until,
};

/// A node that takes bodies as it is told, and keeps every byte of every connection.
fn recording_node(bytes: &std::sync::Arc<std::sync::Mutex<Vec<u8>>>) -> RawNode {
    let bytes = std::sync::Arc::clone(bytes);
    RawNode::start(move |mut connection| {
        while let Some(head) = connection.head() {
            let mut body = Vec::new();
            if header(&head, "transfer-encoding").is_some() {
                body = read_until(&mut connection.stream, "0\r\n\r\n").unwrap_or_default().into_bytes();
            } else if let Some(length) = header(&head, "content-length") {
                body = vec![0; length.parse().unwrap()];
                if connection.stream.read_exact(&mut body).is_err() {
                    return;
                }
            }
            let mut seen = bytes.lock().unwrap();
            seen.extend_from_slice(head.as_bytes());
            seen.extend_from_slice(&body);
            drop(seen);
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    })
}

async fn proxy_for(node: Node) -> (Place, Process, String) {
    let (place, process, balancer) = proxy().await;
    balancer.add_nodes(&pool("web"), &[node]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    (place, process, address)
}

/// Everything that comes back for these bytes.
fn exchange(address: &str, request: &str) -> String {
    let mut client = RawClient::connect(address);
    let _ = client.0.write_all(request.as_bytes());
    // Whoever waits for more has not taken it for a request.
    client.0.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut said = Vec::new();
    let _ = client.0.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

const INNER: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ambiguous_is_refused_and_never_reaches_the_node() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let node = recording_node(&seen);
    let (_place, _process, address) = proxy_for(node.node()).await;
    let post = |headers: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}");
    let cases = [
        ("two lengths", post("Content-Length: 3\r\nContent-Length: 5\r\n", "abcde")),
        ("two lengths in a line", post("Content-Length: 3, 5\r\n", "abcde")),
        ("a signed length", post("Content-Length: +3\r\n", "abc")),
        ("a negative length", post("Content-Length: -3\r\n", "abc")),
        ("a length in hex", post("Content-Length: 0x3\r\n", "abc")),
        ("a length with a space in it", post("Content-Length: 3 3\r\n", &"x".repeat(33))),
        ("a length beyond all", post("Content-Length: 99999999999999999999\r\n", "abc")),
        ("an unknown coding", post("Transfer-Encoding: xchunked\r\n", &format!("0\r\n\r\n{INNER}"))),
        (
            "chunked is not the last",
            post("Transfer-Encoding: chunked, gzip\r\n", &format!("0\r\n\r\n{INNER}")),
        ),
        ("a vertical tab", post("Transfer-Encoding: \x0bchunked\r\n", &format!("0\r\n\r\n{INNER}"))),
        ("a space before the colon", post("Transfer-Encoding : chunked\r\n", &format!("0\r\n\r\n{INNER}"))),
        ("a space before the length's colon", post("Content-Length : 3\r\n", "abc")),
        ("a folded line", post("X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", INNER)),
        ("a folded coding", post("Transfer-Encoding:\r\n chunked\r\n", &format!("0\r\n\r\n{INNER}"))),
        ("a space before the first header", format!("GET / HTTP/1.1\r\n Host: a\r\nX: b\r\n\r\n{INNER}")),
        ("a bare CR", post("X-A: b\rContent-Length: 3\r\n", INNER)),
        ("a NUL", post("X-A: b\0c\r\n", "")),
        ("a chunk without a size", post("Transfer-Encoding: chunked\r\n", "\r\nabc\r\n0\r\n\r\n")),
        ("a chunk of a bad size", post("Transfer-Encoding: chunked\r\n", "g\r\nabc\r\n0\r\n\r\n")),
        ("a chunk in 0x", post("Transfer-Encoding: chunked\r\n", "0x3\r\nabc\r\n0\r\n\r\n")),
        ("a signed chunk", post("Transfer-Encoding: chunked\r\n", "+3\r\nabc\r\n0\r\n\r\n")),
        (
            "a chunk beyond all",
            post("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        ),
        ("a chunk longer than its size", post("Transfer-Encoding: chunked\r\n", "2\r\nabc\r\n0\r\n\r\n")),
        (
            "chunked in HTTP/1.0",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        ),
        ("HTTP/0.9", "GET /\r\n\r\n".into()),
        ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n".into()),
        ("two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into()),
    ];
    for (name, request) in cases {
        let said = blocking({
            let address = address.clone();
            move || exchange(&address, &request)
        })
        .await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{name}: {said}");
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{name}: {said}");
    }
    let seen = String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
    assert!(!seen.contains("smuggled"), "{seen}");
    assert!(!node.seen().iter().any(|line| line.contains("smuggled")), "{:?}", node.seen());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_one_meaning_by_the_rules_has_the_same_one_for_the_node() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let node = recording_node(&seen);
    let (_place, _process, address) = proxy_for(node.node()).await;
    // Chunked outranks a length (RFC 9112, 6.3): the rest of the length is the next request, here and there.
    let both = format!(
        "POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{INNER}",
        5 + INNER.len()
    );
    let said = blocking({
        let address = address.clone();
        move || exchange(&address, &both)
    })
    .await;
    let answers = said.matches("HTTP/1.1 200 ").count();
    eventually("the node has seen what was answered", || node.seen().len() == answers).await;
    let requests = node.seen();
    assert!(
        requests == ["POST /one HTTP/1.1"] || requests == ["POST /one HTTP/1.1", "GET /smuggled HTTP/1.1"],
        "as the rules say, or closed after the first: {requests:?}"
    );
    let text = String::from_utf8(seen.lock().unwrap().clone()).unwrap().to_ascii_lowercase();
    let first = text.split("\r\n\r\n").next().unwrap();
    assert!(first.contains("transfer-encoding: chunked") && !first.contains("content-length"), "{text}");

    // Equal lengths are one; extensions of chunks are dropped, and sizes are written anew.
    seen.lock().unwrap().clear();
    let said = blocking({
        let address = address.clone();
        move || {
            exchange(
                &address,
                "POST /two HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                 0003;a=b\r\nabc\r\n000\r\n\r\n",
            )
        }
    })
    .await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    let text = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
    assert!(text.ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http2_cannot_write_headers_of_http1() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let node = recording_node(&seen);
    let (_place, _process, address) = proxy_for(node.node()).await;
    // By hand, as no library sends this: HPACK literals without indexing, not Huffman coded.
    let literal = |name: &str, value: &str| {
        let mut bytes = vec![0, name.len() as u8];
        bytes.extend(name.bytes());
        bytes.push(value.len() as u8);
        bytes.extend(value.bytes());
        bytes
    };
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    };
    let request = |path: &str, more: &[(&str, &str)]| {
        let start = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", path)];
        start.iter().chain(more).flat_map(|(name, value)| literal(name, value)).collect::<Vec<u8>>()
    };
    let cases: Vec<Vec<u8>> = vec![
        request("/", &[("x-a", "b\r\nx-injected: 1")]),
        request("/ HTTP/1.1\r\nx-injected: 1\r\nx: ", &[]),
        request("/", &[("transfer-encoding", "chunked")]),
        request("/", &[("connection", "x-injected")]),
        request("/", &[("x a", "injected")]),
        request("/", &[("X-Injected", "1")]),
        request("/", &[("content-length", "3"), ("content-length", "5")]),
        request("/", &[(":path", "/injected")]),
        request("/", &[("x-a", "b"), (":scheme", "injected")]),
    ];
    for headers in cases {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(1, 4, 1, &headers));
        // A body, with what would be a request if the length were believed to be shorter.
        bytes.extend(frame(0, 1, 1, INNER.as_bytes()));
        let address = address.clone();
        let ended = blocking(move || {
            let mut client = RawClient::connect(&address);
            client.0.write_all(&bytes).unwrap();
            client.0.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // Until the stream is reset, answered with 400, or the connection is given up.
            loop {
                let mut head = [0; 9];
                if client.0.read_exact(&mut head).is_err() {
                    return "closed".to_owned();
                }
                let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                client.0.read_exact(&mut payload).unwrap();
                match head[3] {
                    3 => return "reset".to_owned(),
                    7 => return "goaway".to_owned(),
                    // 0x8c is ":status: 400" of the static table; 0x88 would be 200.
                    1 => return format!("answered {:#x}", payload[0]),
                    _ => {}
                }
            }
        })
        .await;
        assert!(["closed", "reset", "goaway", "answered 0x8c"].contains(&ended.as_str()), "{ended}");
    }
    let seen = String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
    assert!(!seen.contains("injected") && !seen.contains("smuggled"), "{seen}");
}
