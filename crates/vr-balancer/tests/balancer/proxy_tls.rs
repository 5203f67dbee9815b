//! Certificates: which one is shown, and what happens when their files change.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tokio_rustls::rustls::pki_types::CertificateDer;
use vr_balancer::Balancer;

use crate::proxy_support::{certificate, configured, free_address, signal, tls};
use crate::support::{HttpNode, Place, Process, eventually, in_time, pool};

/// The certificate that is shown for a name, to a client that trusts it.
async fn shown(address: SocketAddr, host: &str, trusted: &[&CertificateDer<'static>]) -> Option<Vec<u8>> {
    let stream = tls(address, host, trusted, &["http/1.1"]).await.ok()?;
    stream.get_ref().1.peer_certificates().map(|chain| chain[0].to_vec())
}

async fn wait_until_shown(address: SocketAddr, host: &str, expected: &CertificateDer<'static>) {
    let end = std::time::Instant::now() + crate::support::DEADLINE;
    while shown(address, host, &[expected]).await.is_none() {
        assert!(std::time::Instant::now() < end, "the new certificate is never shown");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

struct Secure {
    place: Place,
    process: Process,
    dir: tempfile::TempDir,
    address: SocketAddr,
    _app: HttpNode,
}

/// A proxy with the certificates `one` and `two` in `dir`.
async fn secure(dir: tempfile::TempDir, more: &str) -> Secure {
    let address = free_address();
    let folder = dir.path().display();
    let place = configured(&format!(
        "listeners: [{{address: '{address}', tls: true, pool: web}}]\n\
         certificates:\n- {{certificate: {folder}/one.pem, key: {folder}/one.key}}\n\
         - {{certificate: {folder}/two.pem, key: {folder}/two.key}}\n{more}"
    ));
    let process = place.start().await;
    let app = HttpNode::start("app").await;
    place.balancer().add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    Secure { place, process, dir, address, _app: app }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_is_the_one_for_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let one = certificate(dir.path(), "one", &["one.example", "both.example"]);
    let two = certificate(dir.path(), "two", &["*.two.example", "both.example"]);
    let Secure { address, .. } = &secure(dir, "min_tls: '1.3'\n").await;
    assert_eq!(shown(*address, "one.example", &[&one, &two]).await, Some(one.to_vec()));
    assert_eq!(shown(*address, "a.two.example", &[&one, &two]).await, Some(two.to_vec()));
    assert_eq!(shown(*address, "both.example", &[&one, &two]).await, Some(one.to_vec()));
    assert_eq!(shown(*address, "a.two.example", &[&one]).await, None, "the client does not know that one");
    // A name that none is for: the first one, which the client may like or not.
    let error = tls(*address, "other.example", &[&one, &two], &[]).await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
    let said = vr_common::process::command("openssl")
        .args(["s_client", "-connect", &address.to_string(), "-tls1_2"])
        .output()
        .unwrap();
    assert!(!said.status.success(), "TLS 1.2 is not to be had");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_files_are_read_again_and_bad_ones_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let old = certificate(dir.path(), "one", &["one.example"]);
    let two = certificate(dir.path(), "two", &["two.example"]);
    let Secure { place, process, dir, address, _app } = secure(dir, "").await;
    let path = |name: &str| dir.path().join(name);

    // A connection that lives through all of it.
    let stream = tls(address, "one.example", &[&old], &["http/1.1"]).await.unwrap();
    let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let request = Request::get("/").header("host", "one.example").body(Full::<Bytes>::default()).unwrap();
        client.ready().await.unwrap();
        let answer = in_time(client.send_request(request)).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "app");
    };
    ask().await;

    let new = certificate(dir.path(), "one", &["one.example"]);
    wait_until_shown(address, "one.example", &new).await;
    assert_eq!(shown(address, "two.example", &[&two]).await, Some(two.to_vec()));
    ask().await;

    // A key that is another one's, as in the middle of a renewal.
    let good = std::fs::read(path("one.key")).unwrap();
    std::fs::copy(path("two.key"), path("one.key")).unwrap();
    let complaint = "a certificate cannot be read again, the old one stays in use";
    eventually("it is said", || place.log().contains(complaint)).await;
    assert!(place.log().contains("one.pem and ") && place.log().contains("cannot be used together"));
    assert_eq!(shown(address, "one.example", &[&new]).await, Some(new.to_vec()));
    std::fs::write(path("one.pem"), "nonsense").unwrap();
    eventually("it is said", || place.log().contains("holds no usable certificate in PEM")).await;
    assert_eq!(shown(address, "one.example", &[&new]).await, Some(new.to_vec()));
    std::fs::write(path("one.key"), good).unwrap();
    std::fs::remove_file(path("one.pem")).unwrap();
    let newest = certificate(dir.path(), "one", &["one.example"]);
    signal(&process, Signal::HUP);
    wait_until_shown(address, "one.example", &newest).await;
    ask().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_a_bad_certificate_says_why() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "one", &["one.example"]);
    std::fs::write(dir.path().join("bad.key"), "nonsense").unwrap();
    let (address, folder) = (free_address(), dir.path().display());
    let place = configured(&format!(
        "listeners: [{{address: '{address}', tls: true, pool: web}}]\n\
         certificates: [{{certificate: {folder}/one.pem, key: {folder}/bad.key}}]\n"
    ));
    let output = place.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("bad.key holds no usable private key in PEM"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_passes_through_tls() {
    let dir = tempfile::tempdir().unwrap();
    let one = certificate(dir.path(), "one", &["one.example"]);
    certificate(dir.path(), "two", &["two.example"]);
    let Secure { place, address, .. } = &secure(dir, "").await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let chat = crate::support::node(listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut socket = tungstenite::accept(listener.accept().unwrap().0).unwrap();
        while let Ok(message) = socket.read() {
            if message.is_text() {
                socket.send(message).unwrap();
            }
        }
    });
    place.balancer().set_nodes(&pool("web"), &[chat]).await.unwrap();
    let stream = tls(*address, "one.example", &[&one], &["http/1.1"]).await.unwrap();
    let (reader, writer) = tokio::io::split(stream);
    let bridge = tokio_util::io::SyncIoBridge::new(tokio::io::join(reader, writer));
    let answer = crate::support::blocking(move || {
        let (mut socket, _) = tungstenite::client("wss://one.example/chat", bridge).unwrap();
        socket.send(tungstenite::Message::text("hello")).unwrap();
        socket.read().unwrap().into_text().unwrap().to_string()
    })
    .await;
    assert_eq!(answer, "hello");
}
