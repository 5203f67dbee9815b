//! Finding out what a host has, and what may be sent to it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use vr_server::hosts::{DriverKind, HostError};
use vr_server::store::HostRow;

use crate::rig::{HOST, More, Rig, TOKEN};

fn unknown() -> HostRow {
    HostRow { id: 1, name: HOST.into(), active: true, ..HostRow::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_is_found_out_and_remembered() {
    for kind in [DriverKind::Agent, DriverKind::Supervisor] {
        let rig = Rig::start(kind).await;
        // Nothing is at the other one's port.
        let more = match kind {
            DriverKind::Agent => "supervisor: {port: 1}",
            DriverKind::Supervisor => "agent: {port: 1}",
        };
        let driver = rig.driver_of(&unknown(), more);
        assert_eq!(driver.kind(), None);
        driver.procs().await.unwrap();
        assert_eq!(driver.kind(), Some(kind));
        let row = rig.store.hosts().await.unwrap().remove(0);
        assert_eq!(row.found_driver.as_deref(), Some(kind.name()));
        assert_eq!(row.found_url, Some(format!("http://{HOST}:{}", rig.port)));
        assert!(row.found_at.is_some());
        // What is remembered is used at once.
        let known = HostRow { agent_url: None, ..row };
        rig.driver_of(&known, more).procs().await.unwrap();
    }
}

/// Answers every request as it is told, and keeps what was sent.
fn listen(answer: &'static str) -> (u16, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(String::new()));
    let into = Arc::clone(&heard);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut bytes = [0; 4096];
            let length = stream.read(&mut bytes).unwrap_or(0);
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
            let _gone = stream.write_all(answer.as_bytes());
        }
    });
    (port, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_sent_to_what_did_not_say_what_it_is() {
    let rig = Rig::start(DriverKind::Agent).await;
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"router\"\r\nContent-Length: 0\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "",
    ] {
        let ((agent, to_agent), (supervisor, to_supervisor)) = (listen(answer), listen(answer));
        let more = format!("agent: {{port: {agent}}}, supervisor: {{port: {supervisor}}}");
        let driver = rig.driver_of(&unknown(), &more);
        let error = driver.procs().await.unwrap_err();
        assert!(matches!(error, HostError::Unreachable { .. } | HostError::Denied { .. }), "{error}");
        for heard in [to_agent, to_supervisor] {
            let heard = heard.lock().unwrap().to_lowercase();
            assert!(!heard.is_empty(), "it was asked");
            assert!(!heard.contains(TOKEN) && !heard.contains("authorization"), "{heard}");
        }
    }
    assert_eq!(rig.store.hosts().await.unwrap()[0].found_driver, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_changes_its_ways_is_found_again() {
    let mut rig = Rig::start(DriverKind::Supervisor).await;
    let mut other = Rig::start(DriverKind::Agent).await;
    other.kill_daemon();
    let more = format!("agent: {{port: {}}}", other.port);
    let driver = rig.driver_of(&unknown(), &more);
    assert!(driver.procs().await.unwrap().iter().any(|proc| proc.name == "foreign"));
    assert_eq!(driver.kind(), Some(DriverKind::Supervisor));
    rig.kill_daemon();
    other.start_daemon();
    let deadline = tokio::time::Instant::now() + vr_testing::DEADLINE;
    while driver.kind() != Some(DriverKind::Agent) {
        let _away = driver.procs().await;
        assert!(tokio::time::Instant::now() < deadline, "it is still thought to have Supervisor");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(driver.procs().await.unwrap().is_empty());
}

/// An agent that also answers as Supervisor does, at the same place: with the password of the one before it, or another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_in_the_place_of_supervisor_is_found() {
    for password in [crate::rig::PASSWORD, "another one"] {
        let dir = tempfile::tempdir().unwrap();
        let (said, file) = (dir.path().join("address"), dir.path().join("password"));
        fs::write(&file, password).unwrap();
        let file = file.display().to_string();
        let more = ["--supervisor-listen", "127.0.0.1:0", "--supervisor-username", "velo"];
        let more = more.into_iter().chain(["--supervisor-password-file", &file, "--address-file"]);
        let agent = more.map(str::to_owned).chain([said.display().to_string()]).collect();
        let rig = Rig::start_with(DriverKind::Agent, More { agent, ..More::default() }).await;
        vr_testing::until("it says where it is", || said.exists());
        let said: serde_json::Value = serde_json::from_slice(&fs::read(&said).unwrap()).unwrap();
        let url = format!("http://{}", said["supervisor"][0].as_str().unwrap());
        let port = url.rsplit(':').next().unwrap();
        let row =
            HostRow { found_driver: Some("supervisor".into()), found_url: Some(url.clone()), ..unknown() };
        let driver = rig.driver_of(&row, &format!("supervisor: {{port: {port}}}"));
        // As the fleet does. There is no SSH, by which the rest would be found out.
        let deadline = tokio::time::Instant::now() + vr_testing::DEADLINE;
        while driver.kind() != Some(DriverKind::Agent) {
            let _refused = driver.procs().await;
            let _no_ssh = driver.facts().await;
            assert!(tokio::time::Instant::now() < deadline, "it is still thought to have Supervisor");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert_eq!(rig.store.hosts().await.unwrap()[0].found_driver.as_deref(), Some("agent"));
        driver.facts().await.unwrap();
    }
}

/// What Supervisor answers to somebody without a password.
const LIKE_SUPERVISOR: &str =
    "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"default\"\r\nContent-Length: 0\r\n\r\n";

/// Whoever keeps an agent from answering and imitates Supervisor does not get a password in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_does_not_go_where_an_agent_was_or_may_be() {
    let mut rig = Rig::start(DriverKind::Agent).await;
    let (impostor, heard) = listen(LIKE_SUPERVISOR);
    let to_impostor = format!("supervisor: {{port: {impostor}}}");
    // It had an agent; the one who is asked later may be another server.
    rig.driver_of(&unknown(), &to_impostor).procs().await.unwrap();
    let row = rig.store.hosts().await.unwrap().remove(0);
    let driver = rig.driver_of(&HostRow { agent_url: None, ..row }, &to_impostor);
    rig.kill_daemon();
    let deadline = tokio::time::Instant::now() + vr_testing::DEADLINE;
    loop {
        let error = driver.procs().await.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
        if vr_common::exit::chain(&error).contains("it had an agent, so no password is sent") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "nobody says what to do: {error}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(driver.kind(), Some(DriverKind::Agent));
    // Nobody knows what it has: something takes connections, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let more = format!("agent: {{port: {port}}}, {to_impostor}");
    let error = rig.driver_of(&unknown(), &more).procs().await.unwrap_err();
    assert!(
        matches!(&error, HostError::Denied { message, .. } if message.contains("set its driver to supervisor")),
        "{error}"
    );
    // Or the server cannot tell an agent by its certificate at the moment.
    let more = format!("agent: {{port: 1, ca_file: /no/such/file}}, {to_impostor}");
    let error = rig.driver_of(&unknown(), &more).procs().await.unwrap_err();
    assert!(
        matches!(&error, HostError::Denied { message, .. } if message.contains("/no/such/file")),
        "{error}"
    );

    let heard = heard.lock().unwrap().to_lowercase();
    assert!(heard.contains("post /rpc2") && !heard.contains("authorization"), "{heard}");
}

/// What was found out of a host by another name is not believed of this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_another_name_is_another_host() {
    let (rig, before) = (Rig::start(DriverKind::Agent).await, Rig::start(DriverKind::Agent).await);
    for url in [format!("http://before.example.com:{}", rig.port), format!("http://{HOST}:{}", before.port)] {
        let row = HostRow {
            found_driver: Some("agent".into()),
            found_url: Some(url),
            found_at: Some(1),
            ..unknown()
        };
        let (name, yaml) = crate::rig::proc(5001, "cmd: sleep 4000");
        rig.driver_of(&row, "supervisor: {port: 1}").deploy(&name, &yaml).await.unwrap();
        assert!(rig.proc_dir(&name).exists() && !before.proc_dir(&name).exists());
        let row = rig.store.hosts().await.unwrap().remove(0);
        assert_eq!(row.found_url, Some(format!("http://{HOST}:{}", rig.port)));
    }
}

/// An authority, and what it vouches for, as files in a folder.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    /// Writes `NAME.pem` and `NAME.key`, and gives the certificate's fingerprint.
    fn vouch(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        fs::write(self.folder.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
        hex::encode(Sha256::digest(certificate.der()))
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_known_by_its_certificate_and_the_server_by_its_own() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let fingerprint = authority.vouch("agent", ExtendedKeyUsagePurpose::ServerAuth);
    authority.vouch("server", ExtendedKeyUsagePurpose::ClientAuth);
    stranger.vouch("server", ExtendedKeyUsagePurpose::ClientAuth);
    let agent = ["--tls-cert", "agent.pem", "--tls-key", "agent.key", "--client-ca", "ca.pem"];
    let agent = agent.iter().map(|word| match word.starts_with("--") {
        true => (*word).to_owned(),
        false => authority.file(word),
    });
    let rig = Rig::start_with(DriverKind::Agent, More { agent: agent.collect(), ..More::default() }).await;
    // Something on the other port would like the password.
    let (supervisor, heard) = listen(LIKE_SUPERVISOR);
    let own = format!(
        "certificate_file: {}, key_file: {}",
        authority.file("server.pem"),
        authority.file("server.key")
    );
    let strange = format!(
        "certificate_file: {}, key_file: {}",
        stranger.file("server.pem"),
        stranger.file("server.key")
    );
    let ca = format!("ca_file: {}", authority.file("ca.pem"));
    let other_ca = format!("ca_file: {}", stranger.file("ca.pem"));
    let pinned = format!("fingerprint: '{fingerprint}'");
    let other_pin = format!("fingerprint: '{}'", "ab".repeat(32));
    for (agent, denied) in [
        (ca.clone(), None),
        (pinned, None),
        (format!("{ca}, token_file: null, {own}"), None),
        (String::new(), Some("certificate")),
        (other_ca, Some("certificate")),
        (other_pin, Some("fingerprint")),
        (format!("{ca}, token_file: null, {strange}"), Some("TLS")),
        (format!("{ca}, token_file: null"), Some("token_file")),
    ] {
        let separator = if agent.is_empty() { "" } else { ", " };
        let more =
            format!("agent: {{port: {}{separator}{agent}}}, supervisor: {{port: {supervisor}}}", rig.port);
        // Both found out and said.
        let said = HostRow { agent_url: Some(format!("https://{HOST}:{}", rig.port)), ..unknown() };
        for row in [unknown(), said] {
            let driver = rig.driver_of(&row, &more);
            match (driver.procs().await, denied) {
                (Ok(_), None) => assert_eq!(driver.kind(), Some(DriverKind::Agent)),
                (Err(HostError::Denied { message, .. }), Some(hint)) if message.contains(hint) => {}
                (other, _) => panic!("{more}: {other:?}"),
            }
        }
    }
    assert!(!heard.lock().unwrap().to_lowercase().contains("authorization"));
    let row = rig.store.hosts().await.unwrap().remove(0);
    assert_eq!(row.found_url, Some(format!("https://{HOST}:{}", rig.port)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_goes_over_a_network_in_plain_only_where_somebody_said_so() {
    // No packet is sent for this.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let address = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    let Ok(address) = address.map(|address| address.ip()) else {
        eprintln!("skipped: this machine has no address but the loopback's");
        return;
    };
    let rig = Rig::start_with(DriverKind::Agent, More { address: Some(address), ..More::default() }).await;
    let row = HostRow { id: 1, name: address.to_string(), ..HostRow::default() };
    let driver = |row: &HostRow| {
        // Settings of a host go by its name.
        let settings = format!(
            "agent: {{port: {port}, token_file: {}}}\nsupervisor: {{port: 1}}\n",
            rig.path("token").display(),
            port = rig.port
        );
        let settings = vr_common::yaml::parse("settings", &settings).unwrap();
        Arc::new(vr_server::hosts::Connector::new(settings, rig.store.clone(), None)).driver(row)
    };
    let error = driver(&row).procs().await.unwrap_err();
    let url = format!("http://{address}:{}", rig.port);
    assert!(matches!(&error, HostError::Denied { message, .. } if message.contains(&url)), "{error}");
    assert!(driver(&HostRow { agent_url: Some(url), ..row }).procs().await.unwrap().is_empty());
}
