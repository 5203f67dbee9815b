//! HTTP to one host: a connection of its own for every call, over TCP, TLS or a Unix socket.
//!
//! A call that is given up takes its connection with it. Nothing is followed, kept or cached, so that what is sent,
//! such as a token, goes to the place that was meant and nowhere else.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, Error as TlsError};
use tokio_util::task::AbortOnDropHandle;

/// How long a connection may take to be made, with the name looked up and TLS agreed upon.
const CONNECT: Duration = Duration::from_secs(5);
/// How long nothing may come before the kernel asks whether the other machine is still there, and how often it then asks.
/// A log that is followed may be silent for as long as it likes.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum HttpError {
    /// There is no connection.
    #[error("cannot connect to {place}")]
    Connect { place: String, source: io::Error },
    /// The other side is not whom its certificate should show.
    #[error("cannot agree upon TLS with {place}")]
    Tls { place: String, source: io::Error },
    /// Only this machine may be behind the name, and it is not.
    #[error("{place} is at {address}, which is not this machine")]
    NotHere { place: String, address: IpAddr },
    /// The connection broke.
    #[error("the connection to {place} broke")]
    Broken { place: String, source: hyper::Error },
    /// The request cannot be written.
    #[error("cannot ask {place}")]
    Request { place: String, source: http::Error },
    /// The answer is too large.
    #[error("the answer of {place} is larger than {limit} bytes")]
    TooLarge { place: String, limit: usize },
    /// No answer in time.
    #[error("no answer of {place} within {} s", deadline.as_secs_f32())]
    Late { place: String, deadline: Duration },
}

impl HttpError {
    /// Whether nothing said anything at all, not even that nobody listens there: something is in the way, or somebody.
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.kind() != io::ErrorKind::ConnectionRefused,
            Self::Late { .. } => true,
            _ => false,
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(super) struct Flow {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
}

#[derive(Debug, Clone)]
enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Where a host's HTTP server is. Cheap to clone.
#[derive(Clone)]
pub(super) struct Endpoint {
    place: Place,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Whether anything but this machine is refused.
    here_only: bool,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Endpoint").field(&self.shown()).finish()
    }
}

impl Endpoint {
    /// A socket of this machine.
    pub fn unix(path: PathBuf) -> Self {
        Self { place: Place::Unix(path), tls: None, here_only: false }
    }

    /// Plain HTTP. `host` is a name or an address, without brackets.
    pub fn plain(host: &str, port: u16) -> Self {
        Self { place: Place::Tcp { host: host.to_owned(), port }, tls: None, here_only: false }
    }

    /// HTTPS. None when `host` can be in no certificate.
    pub fn tls(host: &str, port: u16, config: Arc<ClientConfig>) -> Option<Self> {
        let name = ServerName::try_from(host.to_owned()).ok()?;
        let place = Place::Tcp { host: host.to_owned(), port };
        Some(Self { place, tls: Some((config, name)), here_only: false })
    }

    /// The same, but refuses to send anything to another machine.
    pub fn here_only(mut self) -> Self {
        self.here_only = true;
        self
    }

    /// Whether it is HTTPS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// For people, and as a URL where it has one.
    pub fn shown(&self) -> String {
        match &self.place {
            Place::Unix(path) => format!("unix:{}", path.display()),
            Place::Tcp { host, port } => {
                let scheme = if self.tls.is_some() { "https" } else { "http" };
                format!("{scheme}://{}", authority(host, *port))
            }
        }
    }

    /// Whether it is this machine that is there.
    pub async fn is_here(&self) -> bool {
        let Place::Tcp { host, port } = &self.place else { return true };
        let connected = tokio::time::timeout(CONNECT, TcpStream::connect((host.as_str(), *port))).await;
        let address = connected.ok().and_then(Result::ok).and_then(|stream| stream.peer_addr().ok());
        address.is_some_and(|address| address.ip().to_canonical().is_loopback())
    }

    /// Sends a request and reads the whole answer, all before the deadline.
    pub async fn call(
        &self,
        request: http::request::Builder,
        body: Bytes,
        deadline: Duration,
        limit: usize,
    ) -> Result<Answer, HttpError> {
        let whole = async {
            let request = request.header(header::CONNECTION, "close");
            let Flow { status, headers, mut body } = self.send(request, body).await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|source| HttpError::Broken { place: self.shown(), source })?;
                if bytes.len() + chunk.len() > limit {
                    return Err(HttpError::TooLarge { place: self.shown(), limit });
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(Answer { status, headers, body: bytes.into() })
        };
        self.in_time(deadline, whole).await
    }

    /// Sends a request; the head of the answer comes before the deadline, its body flows for as long as it likes. It does
    /// not say that the connection will be closed: Supervisor would then collect 64 KiB before it sends anything.
    pub async fn open(&self, request: http::request::Builder, deadline: Duration) -> Result<Flow, HttpError> {
        self.in_time(deadline, self.send(request, Bytes::new())).await
    }

    async fn in_time<T>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, HttpError>>,
    ) -> Result<T, HttpError> {
        match tokio::time::timeout(deadline, work).await {
            Ok(done) => done,
            Err(_) => Err(HttpError::Late { place: self.shown(), deadline }),
        }
    }

    async fn send(&self, request: http::request::Builder, body: Bytes) -> Result<Flow, HttpError> {
        let connect = async {
            match &self.place {
                Place::Unix(path) => {
                    let stream = UnixStream::connect(path).await.map_err(|e| self.no_connection(e))?;
                    self.over(stream, request, body).await
                }
                Place::Tcp { host, port } => {
                    let stream = tokio::time::timeout(CONNECT, TcpStream::connect((host.as_str(), *port)))
                        .await
                        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                        .map_err(|e| self.no_connection(e))?;
                    let peer = stream.peer_addr().map_err(|e| self.no_connection(e))?.ip();
                    if self.here_only && !peer.to_canonical().is_loopback() {
                        return Err(HttpError::NotHere { place: self.shown(), address: peer });
                    }
                    stream.set_nodelay(true).map_err(|e| self.no_connection(e))?;
                    keep_alive(&stream).map_err(|e| self.no_connection(e))?;
                    match &self.tls {
                        None => self.over(stream, request, body).await,
                        Some((config, name)) => {
                            let connector = TlsConnector::from(Arc::clone(config));
                            let agreed =
                                tokio::time::timeout(CONNECT, connector.connect(name.clone(), stream));
                            let stream = agreed
                                .await
                                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                                .map_err(|source| match source.kind() {
                                    // What rustls has to say; anything else is the network's doing.
                                    io::ErrorKind::InvalidData => {
                                        HttpError::Tls { place: self.shown(), source }
                                    }
                                    _ => self.no_connection(source),
                                })?;
                            self.over(stream, request, body).await
                        }
                    }
                }
            }
        };
        connect.await
    }

    async fn over<S>(
        &self,
        stream: S,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Flow, HttpError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let broken = |source| HttpError::Broken { place: self.shown(), source };
        let named = match &self.place {
            Place::Unix(_) => "localhost".to_owned(),
            Place::Tcp { host, port } => authority(host, *port),
        };
        let request = request
            .header(header::HOST, named)
            .header(header::USER_AGENT, concat!("velociraptor/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|source| HttpError::Request { place: self.shown(), source })?;
        self.exchange(stream, request).await.map_err(|source| match is_alert(&source) {
            // It hears of a certificate that it does not take only after it seemed to be agreed upon.
            true => HttpError::Tls { place: self.shown(), source: io::Error::other(source) },
            false => broken(source),
        })
    }

    async fn exchange<S>(&self, stream: S, request: Request<Full<Bytes>>) -> Result<Flow, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut sender, connection) =
            hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(stream)).await?;
        let mut driving = AbortOnDropHandle::new(tokio::spawn(async move { connection.await.err() }));
        let answer = match sender.send_request(request).await {
            Ok(answer) => answer,
            // The one who drives the connection may know better what became of it.
            Err(error) => match tokio::time::timeout(CONNECT, &mut driving).await {
                Ok(Ok(Some(reason))) => return Err(reason),
                _ => return Err(error),
            },
        };
        let (head, incoming) = answer.into_parts();
        Ok(Flow { status: head.status, headers: head.headers, body: Body { incoming, _driving: driving } })
    }

    fn no_connection(&self, source: io::Error) -> HttpError {
        HttpError::Connect { place: self.shown(), source }
    }
}

/// Whether the other side ended TLS for a reason of its own.
fn is_alert(error: &hyper::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if inner.and_then(|inner| inner.downcast_ref::<TlsError>()).is_some() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Has the kernel end a connection whose other machine is gone.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let (idle, between, times) = KEEP_ALIVE;
    sockopt::set_tcp_keepidle(stream, idle)?;
    sockopt::set_tcp_keepintvl(stream, between)?;
    sockopt::set_tcp_keepcnt(stream, times)?;
    sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

/// A host and a port, as URLs have them.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The body of an answer, with the connection that it comes over.
#[derive(Debug)]
pub(super) struct Body {
    incoming: Incoming,
    _driving: AbortOnDropHandle<Option<hyper::Error>>,
}

impl Stream for Body {
    type Item = Result<Bytes, hyper::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            return match std::task::ready!(Pin::new(&mut self.incoming).poll_frame(context)) {
                None => Poll::Ready(None),
                Some(Err(error)) => Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Poll::Ready(Some(Ok(data))),
                    Err(_) => continue,
                },
            };
        }
    }
}
