//! Hosts that are gone, come back, freeze, or are something else.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use vr_ssh::{Command, SshError, SshHost, SshSettings};
use vr_testing::{Sshd, SshdOptions, marker, sleeps};

use crate::{host, settings, until};

/// Settings that find out soon, for a server that is none of ours.
fn quick(address: SocketAddr) -> SshSettings {
    SshSettings {
        port: Some(address.port()),
        connect_timeout: Some(Duration::from_secs(1)),
        known_hosts: Some("/dev/null".into()),
        ..SshSettings::default()
    }
}

async fn failure(name: &str, settings: SshSettings) -> SshError {
    let begun = Instant::now();
    let error = SshHost::new(name, settings).check(Command::new("true")).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
    error
}

#[tokio::test]
async fn hosts_that_cannot_be_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Accepted by the kernel, and never answered.
    let silent = failure("127.0.0.1", quick(address)).await;
    let expected = format!("127.0.0.1 cannot be reached on port {}: no answer within 1s", address.port());
    assert_eq!(silent.to_string(), expected);
    assert!(silent.is_unreachable());
    drop(listener);
    let refused = failure("127.0.0.1", quick(address)).await.to_string();
    assert!(refused.contains("Connection refused"), "{refused}");
    let unknown = failure("no-such-host.invalid", quick(address)).await.to_string();
    assert!(unknown.starts_with("no-such-host.invalid cannot be reached"), "{unknown}");
    assert!(unknown.contains("its address is not known"), "{unknown}");
}

#[tokio::test]
async fn something_else_than_ssh() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let error = failure("127.0.0.1", quick(address)).await;
    assert!(error.is_unreachable(), "{error}");
    let message = error.to_string();
    assert!(message.contains("no SSH server") || message.contains("closed the connection"), "{message}");
    server.join().unwrap();
}

#[tokio::test]
async fn a_server_that_is_killed_in_the_middle_and_comes_back() {
    let mut sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let marker = marker();
    let running = tokio::spawn({
        let (host, marker) = (host.clone(), marker.clone());
        async move { host.run(Command::new("sleep").arg(marker).named("the deploy")).await }
    });
    until("it sleeps", async || sleeps(&marker)).await;
    sshd.kill();
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, SshError::Lost { .. }) && error.is_unreachable());
    let message = error.to_string();
    assert!(message.starts_with("the connection to 127.0.0.1 broke while the deploy ran: "), "{message}");
    let error = host.run(Command::new("true")).await.unwrap_err();
    assert!(matches!(error, SshError::Unreachable { .. }), "{error}");
    sshd.start_again();
    host.check(Command::new("true")).await.unwrap();
    assert_eq!(sshd.logins(), 2);
}

#[tokio::test]
async fn a_frozen_host_costs_its_deadline() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    host.check(Command::new("true")).await.unwrap();
    sshd.freeze();
    let begun = Instant::now();
    let calls = (0..20).map(|_| {
        let host = host.clone();
        // More than all buffers between here and there take.
        let command = Command::new("cat").input(vec![0; 8 << 20]).timeout(Duration::from_secs(2));
        tokio::spawn(async move { host.run(command).await.unwrap_err() })
    });
    for call in calls.collect::<Vec<_>>() {
        let error = call.await.unwrap();
        assert!(matches!(error, SshError::Deadline { .. }) && error.is_unreachable(), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    sshd.thaw();
    host.check(Command::new("true")).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_leads_nowhere_costs_one_deadline() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    host.check(Command::new("true")).await.unwrap();
    // All but the server itself: new connections are answered.
    sshd.freeze_sessions();
    let short = || Command::new("true").timeout(Duration::from_secs(1));
    assert!(matches!(host.run(short()).await, Err(SshError::Deadline { .. })));
    host.check(Command::new("true")).await.unwrap();
    assert_eq!(sshd.logins(), 2);
    sshd.thaw();
}

#[tokio::test]
async fn a_frozen_host_is_found_out_without_a_deadline() {
    let sshd = Sshd::start(SshdOptions::default());
    let settings = SshSettings { keepalive: Some(Duration::from_secs(1)), ..settings(&sshd) };
    let host = host(&sshd, settings);
    let mut running = host.stream(Command::new("sh").args(["-c", "echo begun; sleep 4000"])).await.unwrap();
    assert_eq!(running.line().await.unwrap().as_deref(), Some("begun"));
    sshd.freeze();
    let ended = tokio::time::timeout(Duration::from_secs(30), running.end()).await.unwrap();
    let message = ended.unwrap_err().to_string();
    assert!(message.ends_with("it does not answer any more"), "{message}");
    sshd.thaw();
}

#[tokio::test]
async fn an_unused_connection_is_closed() {
    let sshd = Sshd::start(SshdOptions::default());
    let settings = SshSettings { idle_timeout: Some(Duration::from_secs(1)), ..settings(&sshd) };
    let host = host(&sshd, settings);
    // Not while something runs.
    host.check(Command::new("sleep").arg("2.5")).await.unwrap();
    host.check(Command::new("true")).await.unwrap();
    assert_eq!(sshd.logins(), 1);
    until("only the server itself is left", async || sshd.processes().len() == 1).await;
    host.check(Command::new("true")).await.unwrap();
    assert_eq!(sshd.logins(), 2);
    host.disconnect();
    until("only the server itself is left", async || sshd.processes().len() == 1).await;
    host.check(Command::new("true")).await.unwrap();
    drop(host);
    until("nobody holds the connection", async || sshd.processes().len() == 1).await;
}
