//! The daemon itself: who is let in, over what, and how one agent follows another.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use harness::{
    NAME, PATIENCE, TOKEN, TestHost, Vrun, agent_program, folder, host, host_with, is_alive, proc_yaml, send,
    until, write_secret,
};
use http_body_util::BodyExt;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use reqwest::Method;
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use vr_agent::address::{AgentAddress, ListenAddress};
use vr_common::host_api::{HostInfo, ProcState};

/// What an agent says that does not start, and its exit code.
fn refusal(arguments: &[&str]) -> (Option<i32>, String) {
    let dir = folder();
    let mut agent = agent_program();
    agent.args(["serve", "--host", "h", "--root"]).arg(dir.path()).args(arguments);
    agent.env_remove("REDIS_URL").stdout(Stdio::null()).stderr(Stdio::piped());
    let ended = agent.output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
}

#[test]
fn an_agent_that_would_let_everybody_in_does_not_start() {
    let dir = folder();
    let token = dir.path().join("token");
    write_secret(&token, TOKEN);
    let token = token.to_str().unwrap();
    for (arguments, part) in [
        (vec!["--listen", "0.0.0.0:0"], "expected --token-file, or --client-ca"),
        (vec!["--listen", "unix:/nowhere/x", "--listen", "[::]:0"], "can be reached from other machines"),
        (vec!["--token-file", token, "--supervisor-listen", "0.0.0.0:0"], "--supervisor-password-file"),
        (vec!["--token-file", "/nowhere/token"], "cannot read the token from /nowhere/token"),
        (vec!["--token-file", "/dev/null"], "/dev/null is empty: expected a token"),
        (vec!["--token-file", token, "--tls-cert", token, "--tls-key", token], "in PEM"),
        (vec!["--config", "/nowhere/agent.yaml"], "cannot read /nowhere/agent.yaml"),
        (vec!["--config", token], "invalid type"),
        (vec!["--token-file", token, "--redis-url", "gopher://h"], "--redis-url: "),
    ] {
        let (code, said) = refusal(&arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.starts_with("ERROR: ") && said.contains(part), "{arguments:?}: {said}");
    }
    // A token that others know is none, but whose files they are is not ours to say.
    fs::set_permissions(token, fs::Permissions::from_mode(0o644)).unwrap();
    let (_, said) = refusal(&["--token-file", token, "--listen", "127.0.0.1:0", "--redis-url", "gopher://h"]);
    assert!(said.contains("can be read by other users: chmod 600"), "{said}");
}

/// An authority, and what it vouches for, as files in a folder.
struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A certificate and its key.
struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        Self {
            folder: folder.to_owned(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Vouches for somebody, and writes `NAME.pem` and `NAME.key`.
    fn vouch(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        // The key first: a certificate without its key is not taken.
        fs::write(self.folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        fs::write(self.folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Identity { certificate: certificate.der().clone(), key }
    }
}

/// A caller who trusts an authority, and may show who it is.
fn caller(trusted: &Authority, identity: Option<&Identity>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.certificate.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { certificate, key }) => {
            builder.with_client_auth_cert(vec![certificate.clone()], key.clone_key()).unwrap()
        }
    };
    TlsConnector::from(Arc::new(config))
}

/// Asks for the host's facts; fails when there is no answer at all.
async fn ask(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    headers: &[(&str, &str)],
) -> Result<(StatusCode, String), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let mut request = Request::get("/v1/info");
    for (name, value) in headers.iter().chain(&[("host", "localhost")]) {
        // The first one of a name counts.
        if request.headers_ref().is_none_or(|there| !there.contains_key(*name)) {
            request = request.header(*name, *value);
        }
    }
    let asked = tokio::time::timeout(PATIENCE, sender.send_request(request.body(Body::empty()).unwrap()));
    let response = asked.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
    connection.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

async fn ask_tls(
    host: &TestHost,
    connector: &TlsConnector,
    headers: &[(&str, &str)],
) -> Result<(StatusCode, String), String> {
    let stream = TcpStream::connect(host.address()).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    ask(stream, headers).await
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn bearer() -> String {
    format!("Bearer {TOKEN}")
}

#[tokio::test]
async fn over_tls_the_token_is_needed_and_new_certificates_are_taken_up() {
    let dir = folder();
    let (first, second) = (Authority::new(dir.path(), "first"), Authority::new(dir.path(), "second"));
    first.vouch("agent", ExtendedKeyUsagePurpose::ServerAuth);
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (certificate, key) = (file("agent.pem"), file("agent.key"));
    let mut host =
        host_with(Vrun::StandIn, &words(&["--tls-cert", &certificate, "--tls-key", &key]), dir).await;

    let trusting = caller(&first, None);
    let token = bearer();
    let right = [("authorization", token.as_str())];
    let (status, facts) = ask_tls(&host, &trusting, &right).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{facts}");
    assert_eq!(serde_json::from_str::<HostInfo>(&facts).unwrap().pid, host.agent_pid());
    for wrong in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", &token[7..])]] {
        let (status, said) = ask_tls(&host, &trusting, wrong).await.unwrap();
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{said}");
        assert!(!said.contains("pid"), "{said}");
    }
    // In the clear there is nothing to be had.
    let plain = TcpStream::connect(host.address()).await.unwrap();
    assert!(!ask(plain, &right).await.is_ok_and(|(status, _)| status == StatusCode::OK));
    assert!(ask_tls(&host, &caller(&second, None), &right).await.is_err(), "it is not the second's");

    // What cannot be used changes nothing; what can is used without anybody's doing.
    fs::write(&certificate, "not a certificate").unwrap();
    send(host.agent_pid(), Signal::HUP);
    until("the complaint", || host.agent_log().contains("the certificates from before go on").then_some(()))
        .await;
    ask_tls(&host, &trusting, &right).await.unwrap();
    second.vouch("agent", ExtendedKeyUsagePurpose::ServerAuth);
    let deadline = Instant::now() + PATIENCE;
    while ask_tls(&host, &caller(&second, None), &right).await.is_err() {
        assert!(Instant::now() < deadline, "{}", host.agent_log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(ask_tls(&host, &trusting, &right).await.is_err());

    // A new token, without a break.
    fs::write(host.path("token"), "another-token-of-some-length").unwrap();
    send(host.agent_pid(), Signal::HUP);
    let trusting = caller(&second, None);
    let changed = [("authorization", "Bearer another-token-of-some-length")];
    let deadline = Instant::now() + PATIENCE;
    while ask_tls(&host, &trusting, &changed).await.unwrap().0 != StatusCode::OK {
        assert!(Instant::now() < deadline, "{}", host.agent_log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ask_tls(&host, &trusting, &right).await.unwrap().0, StatusCode::UNAUTHORIZED);
    assert_eq!(host.end_agent(Signal::TERM), Some(0));
    assert!(!host.agent_log().contains(TOKEN) && !host.agent_log().contains("another-token"));
}

#[tokio::test]
async fn a_certificate_of_the_right_authority_does_instead_of_the_token() {
    for with_token in [true, false] {
        let dir = folder();
        let (ours, others) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "others"));
        let agent = ours.vouch("agent", ExtendedKeyUsagePurpose::ServerAuth);
        let server = ours.vouch("server", ExtendedKeyUsagePurpose::ClientAuth);
        let stranger = others.vouch("stranger", ExtendedKeyUsagePurpose::ClientAuth);
        let file = |name: &str| dir.path().join(name).display().to_string();
        let more = words(&[
            "--tls-cert",
            &file("agent.pem"),
            "--tls-key",
            &file("agent.key"),
            "--client-ca",
            &file("ours.pem"),
        ]);
        let host = match with_token {
            true => host_with(Vrun::StandIn, &more, dir).await,
            false => TestHost::without_token(Vrun::StandIn, &more, dir).await,
        };
        let (status, _) = ask_tls(&host, &caller(&ours, Some(&server)), &[]).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        // The token of the other way in is of no use where there is none.
        let token = bearer();
        let nobody = ask_tls(&host, &caller(&ours, None), &[("authorization", &token)]).await;
        assert_eq!(nobody.is_ok_and(|(status, _)| status == StatusCode::OK), with_token);
        let nobody = ask_tls(&host, &caller(&ours, None), &[]).await;
        assert!(
            nobody.as_ref().map_or(true, |(status, _)| *status == StatusCode::UNAUTHORIZED),
            "{nobody:?}"
        );
        // Neither another authority's certificate, nor the one that agents have for their callers.
        for other in [stranger, agent] {
            let other = ask_tls(&host, &caller(&ours, Some(&other)), &[]).await;
            assert!(
                other.as_ref().map_or(true, |(status, _)| *status == StatusCode::UNAUTHORIZED),
                "{other:?}"
            );
        }
    }
}

#[tokio::test]
async fn without_a_token_this_machine_may_call_but_no_web_page() {
    let dir = folder();
    let socket = dir.path().join("private/agent.sock");
    let more = words(&["--listen", &format!("unix:{}", socket.display())]);
    let host = TestHost::without_token(Vrun::StandIn, &more, dir).await;
    let said = AgentAddress::load(&host.path("address")).unwrap();
    assert_eq!(said.more, [ListenAddress::Unix(socket.clone())]);
    let tcp = async |headers: &[(&str, &str)]| {
        ask(TcpStream::connect(host.address()).await.unwrap(), headers).await.unwrap().0
    };
    assert_eq!(tcp(&[]).await, StatusCode::OK);
    assert_eq!(tcp(&[("origin", "http://evil.example")]).await, StatusCode::FORBIDDEN);
    assert_eq!(tcp(&[("sec-fetch-site", "cross-site")]).await, StatusCode::FORBIDDEN);
    // A page that was made to look as if it came from this machine says nothing but its name.
    assert_eq!(tcp(&[("host", "evil.example:9002")]).await, StatusCode::FORBIDDEN);
    for own in [host.address().as_str(), "localhost:9002", "testhost:9002"] {
        assert_eq!(tcp(&[("host", own)]).await, StatusCode::OK);
    }
    let (status, _) = ask(UnixStream::connect(&socket).await.unwrap(), &[]).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(host.agent_log().contains("no token: every user and every app of this machine may call"));
}

#[tokio::test]
async fn a_file_of_settings_is_enough() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::write(at("token"), TOKEN).unwrap();
    fs::write(at("password"), "secret").unwrap();
    fs::write(
        at("agent.yaml"),
        format!(
            "root: {}\nlisten: 127.0.0.1:0\nhost: from-the-file\ntoken-file: {}\naddress-file: {}\n\
             supervisor-listen: ['127.0.0.1:0', 'unix:{}']\nsupervisor-username: u\n\
             supervisor-password-file: {}\nkeep-logs: 1\n",
            at("root"),
            at("token"),
            at("address"),
            at("supervisor.sock"),
            at("password"),
        ),
    )
    .unwrap();
    let mut command = agent_program();
    command.args(["serve", "--config", &at("agent.yaml")]).env_remove("VR_ROOT").env_remove("REDIS_URL");
    let mut agent = Ended(command.stderr(Stdio::null()).spawn().unwrap());
    let pid = agent.0.id();
    let address = dir.path().join("address");
    let said =
        until("the address", || AgentAddress::load(&address).ok().filter(|said| said.pid == pid)).await;
    let ListenAddress::Tcp(tcp) = said.address else { panic!("{said:?}") };
    let token = bearer();
    let (_, facts) = ask(TcpStream::connect(tcp).await.unwrap(), &[("authorization", &token)]).await.unwrap();
    assert_eq!(serde_json::from_str::<HostInfo>(&facts).unwrap().host, "from-the-file");
    // Supervisor's addresses know nothing of the API, and want their own password.
    assert_eq!(said.supervisor.len(), 2);
    let ListenAddress::Tcp(tcp) = said.supervisor[0] else { panic!("{said:?}") };
    let (status, _) =
        ask(TcpStream::connect(tcp).await.unwrap(), &[("authorization", &token)]).await.unwrap();
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let login = [("authorization", "Basic dTpzZWNyZXQ=")];
    let (status, _) = ask(TcpStream::connect(tcp).await.unwrap(), &login).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    let socket = UnixStream::connect(dir.path().join("supervisor.sock")).await.unwrap();
    assert_eq!(ask(socket, &login).await.unwrap().0, StatusCode::NOT_FOUND);

    send(pid, Signal::TERM);
    assert_eq!(agent.0.wait().unwrap().code(), Some(0));
    assert!(!address.exists() && !dir.path().join("supervisor.sock").exists());
}

/// A child that is gone when the test is.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_service_manager_is_told_when_the_agent_is_ready_and_when_it_ends() {
    let dir = folder();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut message = [0; 100];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let mut command = agent_program();
    command.args(["serve", "--host", "h", "--listen", "127.0.0.1:0", "--root"]).arg(dir.path().join("root"));
    command.env("NOTIFY_SOCKET", &path).env_remove("REDIS_URL");
    let mut agent = Ended(command.stderr(Stdio::null()).spawn().unwrap());
    assert_eq!(hear(), "READY=1");
    send(agent.0.id(), Signal::TERM);
    assert_eq!(hear(), "STOPPING=1");
    assert_eq!(agent.0.wait().unwrap().code(), Some(0));
}

fn second(host: &TestHost) -> Command {
    let mut agent = host.agent_command();
    agent.stderr(fs::File::options().append(true).open(host.path("agent.log")).unwrap());
    agent
}

#[tokio::test]
async fn a_new_agent_that_is_started_while_the_old_one_ends_takes_over() {
    let mut host = host(Vrun::StandIn).await;
    let running = host.deploy(&proc_yaml("cmd: sleep 98765")).await.unwrap();
    let mut stream =
        host.request(Method::GET, "changes").timeout(Duration::from_secs(600)).send().await.unwrap();
    let hello = stream.chunk().await.unwrap().unwrap();
    assert!(hello.starts_with(b"event: hello\n"), "{hello:?}");

    let mut successor = Ended(second(&host).spawn().unwrap());
    until("the wait", || host.agent_log().contains("waiting for its end").then_some(())).await;
    assert_eq!(host.look().await.pid, running.pid, "the old one still answers");
    let old = host.agent_pid();
    assert_eq!(host.end_agent(Signal::TERM), Some(0));
    // Its streams end as if there were nothing more to say, so that readers come back at once.
    while let Some(more) = stream.chunk().await.expect("a proper end") {
        assert!(!more.is_empty());
    }
    // What happens between the two is not lost either: the app dies while nobody looks.
    send(running.pid, Signal::KILL);
    let pid = successor.0.id();
    let said = until("the new address", || {
        AgentAddress::load(&host.path("address")).ok().filter(|said| said.pid == pid)
    })
    .await;
    assert_ne!(old, pid);
    host.adopt_address(&said);
    let back = host
        .until("the next life", |now| now.statename == ProcState::Running && now.pid != running.pid)
        .await;
    assert!(is_alive(back.pid));
    assert_eq!((back.name.as_str(), back.exitstatus), (NAME, 128 + 9));
    send(pid, Signal::TERM);
    assert_eq!(successor.0.wait().unwrap().code(), Some(0));
    assert!(is_alive(back.pid));
}
