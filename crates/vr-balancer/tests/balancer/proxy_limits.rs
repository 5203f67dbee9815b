//! Clients that take more than their share.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use vr_balancer::Balancer;

use crate::proxy_support::free_address;
use crate::support::{
    HttpNode, Place, Process, RawClient, RawNode, blocking, eventually, pool, read_until, status,
};

async fn proxy_with(options: &[&str]) -> (Place, Process, HttpNode, String) {
    let place = Place::new().with(options);
    let process = place.start().await;
    let app = HttpNode::start("app").await;
    let balancer = place.balancer();
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    (place, process, app, address)
}

/// Whether the other side has closed the connection, without another word.
fn is_closed(client: &mut RawClient) -> bool {
    matches!(client.0.read(&mut [0]), Ok(0) | Err(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_no_more_connections_than_it_may_have() {
    let (place, _process, _app, address) = proxy_with(&["--max-connections-per-client", "2"]).await;
    blocking(move || {
        let mut first = RawClient::connect(&address);
        let mut second = RawClient::connect(&address);
        assert_eq!((first.get("/").1, second.get("/").1), ("app".to_owned(), "app".to_owned()));
        let mut third = RawClient::connect(&address);
        assert!(is_closed(&mut third));
        assert_eq!(first.get("/").1, "app", "the others are left alone");
        drop(second);
        let end = Instant::now() + crate::support::DEADLINE;
        loop {
            let mut next = RawClient::connect(&address);
            let _ = next.0.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            if read_until(&mut next.0, "\r\n").is_some_and(|line| line.contains("200")) {
                break;
            }
            assert!(Instant::now() < end, "there is never room again");
        }
    })
    .await;
    assert!(place.log().contains("as many connections as it may have"));
    // A proxy in front has the connections of all its clients.
    let (_place, _process, _app, address) =
        proxy_with(&["--max-connections-per-client", "1", "--trusted-proxy", "127.0.0.0/8"]).await;
    blocking(move || {
        let mut clients: Vec<_> = (0..5).map(|_| RawClient::connect(&address)).collect();
        assert!(clients.iter_mut().all(|client| client.get("/").1 == "app"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn further_connections_wait_for_room() {
    let (_place, _process, _app, address) = proxy_with(&["--max-connections", "2"]).await;
    blocking(move || {
        let mut first = RawClient::connect(&address);
        let mut second = RawClient::connect(&address);
        assert_eq!((first.get("/").1, second.get("/").1), ("app".to_owned(), "app".to_owned()));
        let mut third = RawClient::connect(&address);
        third.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        third.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(third.0.read(&mut [0]).is_err(), "nothing yet");
        third.0.set_read_timeout(Some(crate::support::DEADLINE)).unwrap();
        drop(first);
        assert_eq!(third.answer().1, "app");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_says_a_whole_head_is_not_waited_for() {
    let (_place, _process, _app, address) = proxy_with(&["--head-timeout", "0.5"]).await;
    blocking(move || {
        let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for start in ["", "G", "GET / HTTP/1.1\r\nHost: a\r\n", "PRI * HT", preface] {
            let mut client = RawClient::connect(&address);
            client.send(start);
            let begun = Instant::now();
            // A byte now and then does not help.
            client.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut said = Vec::new();
            let mut buffer = [0; 1024];
            loop {
                match client.0.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => said.extend_from_slice(&buffer[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        if start.starts_with("GET") {
                            let _ = client.0.write_all(b"X");
                        }
                    }
                    Err(_) => break,
                }
                assert!(begun.elapsed() < crate::support::DEADLINE, "{start:?} is waited for");
            }
            assert!(!said.starts_with(b"HTTP/1.1 2"), "{start:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_a_body_too_slowly_is_told_so() {
    let (place, _process, _app, address) =
        proxy_with(&["--min-body-rate", "1000", "--idle-timeout", "0.5"]).await;
    blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
        client.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let begun = Instant::now();
        let mut said = Vec::new();
        // A byte each 50 ms is never idle for half a second, and still too slow.
        while begun.elapsed() < crate::support::DEADLINE {
            let mut buffer = [0; 1024];
            match client.0.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => said.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if client.0.write_all(b"x").is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        assert!(said.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&said));
    })
    .await;
    eventually("it is said", || place.log().contains("slower than 1000 bytes a second")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_at_a_good_rate_is_not_too_slow() {
    let (_place, _process, _app, address) =
        proxy_with(&["--min-body-rate", "1000", "--idle-timeout", "0.3"]).await;
    blocking(move || {
        let mut client = RawClient::connect(&address);
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n");
        // All pauses together are longer than the time-out, but each of them has been earned.
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(60));
            client.send(&"x".repeat(1000));
        }
        let (head, body) = client.answer();
        assert_eq!(status(&head), 200);
        assert_eq!(body, "app");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_cannot_be_had_keeps_the_proxy_from_starting() {
    let taken = free_address();
    let _thief = std::net::TcpListener::bind(taken).unwrap();
    for options in [["--listen", &taken.to_string()], ["--metrics", &taken.to_string()]] {
        let place = Place::new().with(&options);
        let output = place.command().output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&format!("at {taken}")), "{said}");
    }
    let twice = free_address().to_string();
    let place = Place::new().with(&["--listen", &twice, "--pool", &format!("web={twice}")]);
    let output = place.command().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("{twice} is the address of a listener and of pool web")), "{said}");
}

/// A node that answers at once and then neither reads nor writes, until the other side is gone.
fn standing_node() -> RawNode {
    RawNode::start(|mut connection| {
        connection.head();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\nsome");
        // Sees the end of the connection without reading what is before it.
        while !matches!(is_gone(&connection.stream), Ok(true)) {
            std::thread::sleep(Duration::from_millis(10));
        }
    })
}

fn is_gone(stream: &std::net::TcpStream) -> std::io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_its_node_does_not_take_holds_nothing_once_it_is_given_up_or_cut_off() {
    for options in [&["--idle-timeout", "0.5"][..], &[]] {
        let place = Place::new().with(options);
        let _process = place.start().await;
        let balancer = place.balancer();
        let web = pool("web");
        let node = standing_node();
        balancer.add_nodes(&web, &[node.node()]).await.unwrap();
        let address = balancer.pool_address(&web).await.unwrap().unwrap();
        let mut client = blocking(move || {
            let mut client = RawClient::connect(&address);
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
            assert_eq!(status(&client.head()), 200);
            // Until nobody takes any more.
            client.0.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            while client.0.write_all(&[b'x'; 65536]).is_ok() {}
            client
        })
        .await;
        let cut_off = options.is_empty().then_some(Duration::ZERO);
        balancer.delete_nodes(&web, &[node.node()], cut_off).await.unwrap();
        let reports = balancer.wait_drained(&web, &[node.node()], Duration::from_secs(30)).await.unwrap();
        assert!(reports.iter().all(vr_balancer::DrainReport::is_drained), "{options:?}: {reports:?}");
        blocking(move || {
            let mut rest = Vec::new();
            let _ = client.0.read_to_end(&mut rest);
            assert!(rest.len() < 100, "an answer that is cut off does not look like a whole one");
        })
        .await;
    }
}
