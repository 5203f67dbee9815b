//! What the tests of the proxy's configuration share: configuration files, certificates, and clients of every kind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::{Place, Process, blocking, in_time, ports};

/// An address for a listener that nobody else has.
pub fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], ports().0))
}

/// A place for a proxy with a configuration file.
pub fn configured(configuration: &str) -> Place {
    let place = Place::new();
    write_configuration(&place, configuration);
    let path = configuration_path(&place).display().to_string();
    place.with(&["--config", &path])
}

pub fn configuration_path(place: &Place) -> PathBuf {
    place.dir.path().join("proxy.yaml")
}

pub fn write_configuration(place: &Place, configuration: &str) {
    std::fs::write(configuration_path(place), configuration).unwrap();
}

pub fn signal(process: &Process, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(&process.0), signal).unwrap();
}

/// Makes a certificate for these names that vouches for itself, and writes it to `NAME.pem` and `NAME.key`.
pub fn certificate(dir: &Path, name: &str, hosts: &[&str]) -> CertificateDer<'static> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(hosts).unwrap();
    let pem = made.cert.pem();
    std::fs::write(dir.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(dir.join(format!("{name}.pem")), &pem).unwrap();
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// A connection with TLS to a listener, under the name of a host, from a client that trusts these certificates.
pub async fn tls(
    address: SocketAddr,
    host: &str,
    trusted: &[&CertificateDer<'static>],
    protocols: &[&str],
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add((*certificate).clone()).unwrap();
    }
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = tokio::net::TcpStream::connect(address).await?;
    let name = ServerName::try_from(host.to_owned()).unwrap();
    in_time(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

/// A client of HTTP/2 without TLS.
pub async fn http2(address: impl ToString) -> http2::SendRequest<Full<Bytes>> {
    let stream = tokio::net::TcpStream::connect(address.to_string()).await.unwrap();
    let (sender, connection) =
        in_time(http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// What curl makes of it: what `-w` asks for, with the body where `-o` does not send it away.
pub async fn curl(arguments: &[&str]) -> String {
    let mut command = vr_common::process::command("curl");
    // Nobody's proxies and settings.
    command.args(["-q", "--noproxy", "*", "-sS", "--max-time", "30"]).args(arguments);
    for name in ["http_proxy", "https_proxy", "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    let output = blocking(move || command.output().unwrap()).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The values of a metrics page by name and labels.
pub async fn metrics(address: SocketAddr) -> BTreeMap<String, f64> {
    let text = curl(&[&format!("http://{address}/metrics")]).await;
    let values = text.lines().filter(|line| !line.starts_with('#'));
    values
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line:?}")))
        })
        .collect()
}
