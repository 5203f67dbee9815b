//! The PROXY protocol, from proxies in front and to nodes.

use std::net::SocketAddr;

use vr_balancer::Balancer;

use crate::proxy_support::{configured, free_address};
use crate::support::{HttpNode, RawClient, RawNode, blocking, header, pool, read_head, read_until, status};

const REQUEST: &str = "GET /head HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// A header of version 2 for IPv4, with something behind the addresses.
fn version_2(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0f".to_vec();
    header.extend(client);
    header.extend([10, 0, 0, 1, 0x12, 0x34, 0, 80]);
    header.extend([4, 0, 0]);
    header
}

/// What comes back for these bytes, in two pieces; nothing if the connection is closed.
async fn ask(address: SocketAddr, bytes: Vec<u8>) -> Option<(String, String)> {
    blocking(move || {
        let mut client = RawClient::connect(&address.to_string());
        let (first, second) = bytes.split_at(bytes.len().min(7));
        std::io::Write::write_all(&mut client.0, first).unwrap();
        // In most cases a packet of its own, so that the header comes in pieces.
        std::thread::yield_now();
        let _ = std::io::Write::write_all(&mut client.0, second);
        let head = read_head(&mut client.0)?;
        let length = header(&head, "content-length")?.parse().ok()?;
        let mut body = vec![0; length];
        std::io::Read::read_exact(&mut client.0, &mut body).unwrap();
        Some((head, String::from_utf8(body).unwrap()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_is_the_one_that_a_trusted_proxy_names() {
    let (trusting, distrusting) = (free_address(), free_address());
    let place = configured(&format!(
        "listeners:\n- {{address: '{trusting}', pool: web, proxy_protocol_from: [127.0.0.0/8]}}\n\
         - {{address: '{distrusting}', pool: web, proxy_protocol_from: [192.0.2.0/24]}}\n"
    ));
    let _process = place.start().await;
    let app = HttpNode::start("app").await;
    place.balancer().add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let v1 = format!("PROXY TCP4 192.0.2.7 10.0.0.1 1234 80\r\n{REQUEST}").into_bytes();
    let v6 = format!("PROXY TCP6 2001:db8::7 ::1 1234 80\r\n{REQUEST}").into_bytes();
    let v2 = [version_2([192, 0, 2, 8]), REQUEST.as_bytes().to_vec()].concat();
    let local = [b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00", REQUEST.as_bytes()].concat();
    for (bytes, client) in
        [(&v1, "192.0.2.7"), (&v6, "2001:db8::7"), (&v2, "192.0.2.8"), (&local, "127.0.0.1")]
    {
        let (head, body) = ask(trusting, bytes.clone()).await.unwrap();
        assert_eq!(status(&head), 200);
        assert!(body.contains(&format!("\nx-forwarded-for: {client}\n")), "{body}");
    }
    // A trusted proxy has to say it, and to say it properly.
    assert_eq!(ask(trusting, REQUEST.as_bytes().to_vec()).await, None);
    assert_eq!(ask(trusting, b"PROXY TCP4 nonsense\r\nGET / HTTP/1.1\r\n\r\n".to_vec()).await, None);
    assert!(place.log().contains("its client does not behave"), "{}", place.log());
    // From anybody else it is no header, but a request that is none.
    let (head, _) = ask(distrusting, REQUEST.as_bytes().to_vec()).await.unwrap();
    assert_eq!(status(&head), 200);
    for bytes in [v1, v2] {
        let answer = blocking(move || {
            let mut client = RawClient::connect(&distrusting.to_string());
            std::io::Write::write_all(&mut client.0, &bytes).unwrap();
            read_until(&mut client.0, "\r\n")
        })
        .await;
        assert!(answer.as_ref().is_none_or(|line| line.starts_with("HTTP/1.1 400 ")), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_told_who_the_client_is_and_each_client_has_connections_of_its_own() {
    let front = free_address();
    let place = configured(&format!(
        "listeners: [{{address: '{front}', pool: v1, proxy_protocol_from: [127.0.0.1]}}]\n\
         pools: {{v1: {{send_proxy: v1}}, v2: {{send_proxy: v2}}}}\n"
    ));
    let _process = place.start().await;
    let balancer = place.balancer();
    let told_v1 = RawNode::start(|mut connection| {
        let line = read_until(&mut connection.stream, "\r\n").unwrap();
        while connection.head().is_some() {
            connection.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len()));
        }
    });
    let told_v2 = RawNode::start(|mut connection| {
        let mut header = [0; 28];
        std::io::Read::read_exact(&mut connection.stream, &mut header).unwrap();
        let said = format!(
            "{} {:?} {:?}",
            header.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"),
            &header[16..20],
            &header[26..28]
        );
        while connection.head().is_some() {
            connection.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len()));
        }
    });
    balancer.add_nodes(&pool("v1"), &[told_v1.node()]).await.unwrap();
    balancer.add_nodes(&pool("v2"), &[told_v2.node()]).await.unwrap();
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.1"] {
        let request = format!("PROXY TCP4 {client} 10.0.0.1 1234 80\r\n{REQUEST}");
        let (_, line) = ask(front, request.into_bytes()).await.unwrap();
        assert_eq!(line, format!("PROXY TCP4 {client} 127.0.0.1 1234 {}\r\n", front.port()));
    }
    let own = balancer.pool_address(&pool("v2")).await.unwrap().unwrap();
    let port: u16 = own.rsplit_once(':').unwrap().1.parse().unwrap();
    let (_, said) = blocking(move || RawClient::connect(&own).get("/")).await;
    assert_eq!(said, format!("true [127, 0, 0, 1] {:?}", port.to_be_bytes()));
}
