//! One request of HTTP/1.1 on a connection of its own, with or without TLS.
//!
//! A change that was sent is never sent twice by itself: there is no telling whether it was made.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use url::{Position, Url};
use vr_common::secret::Secret;

/// Why a server cannot be asked at all.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// The address is not one.
    #[error("expected http://HOST[:PORT]/PATH or https://…, without a user, a password or a fragment")]
    Url,
    /// The user or the password cannot be sent.
    #[error("the login has characters that HTTP cannot carry")]
    Login,
    /// The file of certificates cannot be used.
    #[error("{} holds no usable certificate in PEM", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be used")]
    Tls(#[source] tokio_rustls::rustls::Error),
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum HttpError {
    /// Nobody listens there, or the name is unknown.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// No TLS with it, or its certificate is not trusted.
    #[error("no TLS connection")]
    Tls(#[source] io::Error),
    /// The connection broke, or what it says is no HTTP.
    #[error("the connection failed before there was an answer")]
    Broken(#[source] hyper::Error),
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The answer has no end.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// The answer broke off.
    #[error("the answer broke off")]
    Cut(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where to ask, and who asks.
#[derive(Clone)]
pub struct Endpoint {
    host: String,
    port: u16,
    path: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    authorization: HeaderValue,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Endpoint").field(&self.shown()).finish()
    }
}

impl Endpoint {
    /// A server by its URL. Its certificate has to be of an authority in `ca_file`, or else of one that this machine
    /// trusts.
    pub fn new(
        url: &str,
        user: &str,
        password: &Secret,
        ca_file: Option<&Path>,
    ) -> Result<Self, EndpointError> {
        let url = Url::parse(url).map_err(|_| EndpointError::Url)?;
        let is_clean = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
        let is_http = ["http", "https"].contains(&url.scheme());
        let (Some(host), Some(port), true, true) =
            (url.host_str(), url.port_or_known_default(), is_clean, is_http)
        else {
            return Err(EndpointError::Url);
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match url.scheme() {
            "https" => {
                let name = ServerName::try_from(host.clone()).map_err(|_| EndpointError::Url)?;
                Some((TlsConnector::from(client_config(ca_file)?), name))
            }
            _ => None,
        };
        // A colon would end the user's name.
        if user.contains(':') {
            return Err(EndpointError::Login);
        }
        let login = STANDARD.encode(format!("{user}:{}", password.expose()));
        let mut authorization =
            HeaderValue::from_str(&format!("Basic {login}")).map_err(|_| EndpointError::Login)?;
        authorization.set_sensitive(true);
        let path = url[Position::BeforePath..Position::AfterQuery].to_owned();
        Ok(Self { host, port, path, tls, authorization })
    }

    /// `host:port`, for messages.
    pub fn shown(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Sends a SOAP message and gives the answer, of at most so many bytes.
    pub async fn post(
        &self,
        action: &str,
        body: String,
        longest: usize,
        deadline: Duration,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let exchange = async {
            let address = (self.host.as_str(), self.port);
            let stream = TcpStream::connect(address).await.map_err(HttpError::Connect)?;
            let request = self.request(action, body).map_err(|e| HttpError::Connect(io::Error::other(e)))?;
            match &self.tls {
                None => exchange(stream, request, longest).await,
                Some((connector, name)) => {
                    let stream = connector.connect(name.clone(), stream).await.map_err(HttpError::Tls)?;
                    exchange(stream, request, longest).await
                }
            }
        };
        tokio::time::timeout(deadline, exchange).await.unwrap_or(Err(HttpError::TimedOut(deadline)))
    }

    fn request(&self, action: &str, body: String) -> Result<Request<Full<Bytes>>, http::Error> {
        Request::post(&self.path)
            .header(HOST, self.shown())
            .header(CONNECTION, "close")
            .header(USER_AGENT, "velociraptor")
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, "text/xml; charset=utf-8")
            .header("SOAPAction", format!("\"{action}\""))
            .body(Full::new(Bytes::from(body)))
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Full<Bytes>>,
    longest: usize,
) -> Result<(StatusCode, Bytes), HttpError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(HttpError::Broken)?;
    let answered = async {
        let (head, body) = sender.send_request(request).await.map_err(HttpError::Broken)?.into_parts();
        let body = Limited::new(body, longest).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { HttpError::TooLong(longest) } else { HttpError::Cut(error) }
        })?;
        Ok((head.status, body.to_bytes()))
    };
    // The connection is driven here and not in a task, so that it ends with this call.
    let mut answered = std::pin::pin!(answered);
    tokio::select! {
        biased;
        answered = answered.as_mut() => answered,
        // Why it ended is what the request is told, too.
        _ended = connection => answered.await,
    }
}

fn client_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, EndpointError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let bad = |source| EndpointError::Certificates { path: path.to_owned(), source };
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let (_, unusable) = match read.map_err(bad)? {
                none if none.is_empty() => return Err(bad(pem::Error::NoItemsFound)),
                found => roots.add_parsable_certificates(found),
            };
            if unusable > 0 {
                return Err(bad(pem::Error::NoItemsFound));
            }
        }
        None => {
            // What cannot be read among the system's certificates is not trusted, and that is all.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(EndpointError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> Result<Endpoint, EndpointError> {
        Endpoint::new(url, "me", &Secret::new("pw"), None)
    }

    #[test]
    fn a_url_is_taken_apart() {
        let parts = |url: &str| {
            let endpoint = endpoint(url).unwrap();
            (endpoint.shown(), endpoint.path.clone(), endpoint.tls.is_some())
        };
        assert_eq!(
            parts("https://traffic.yougov.local:9090/soap"),
            ("traffic.yougov.local:9090".to_owned(), "/soap".to_owned(), true)
        );
        assert_eq!(parts("http://[::1]/a?b=c"), ("[::1]:80".to_owned(), "/a?b=c".to_owned(), false));
        assert_eq!(parts("http://h:1"), ("h:1".to_owned(), "/".to_owned(), false));
        for bad in ["h:9090/soap", "ftp://h/", "http://", "https://me:pw@h/soap", "http://h/#x", "/soap"] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
        assert!(Endpoint::new("http://h/", "a:b", &Secret::new("pw"), None).is_err());
        assert!(Endpoint::new("http://h/", "me", &Secret::new("a\nb\u{e9}"), None).is_ok(), "it is encoded");
    }

    #[test]
    fn nothing_prints_the_login() {
        assert_eq!(format!("{:?}", endpoint("http://h/").unwrap()), "Endpoint(\"h:80\")");
    }
}
