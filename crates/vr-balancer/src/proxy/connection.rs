//! A client's connection from its first byte to its last: who the client is, TLS, which HTTP is spoken, and what ends
//! it.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::client_stream::ClientStream;
use super::forward::DataPlane;
use super::listener::Front;
use super::options::is_in;
use super::request::answer;
use super::socket::Socket;
use super::streams::Streams;

/// How long a connection that has not said anything is waited for after it is known that this is the end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a client of HTTP/2 without a request may take to go after it was told to.
const GOAWAY_PATIENCE: Duration = Duration::from_secs(5);
/// How often connections of HTTP/2 are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How much a client of HTTP/2 may send before a node takes it, in bytes: for a request, and for all of a connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// How much of an answer is kept for a client of HTTP/2 that does not take it, in bytes.
const SEND_BUFFER: usize = 128 << 10;

/// A connection as its requests see it.
pub(super) struct Visit {
    pub(super) plane: Arc<DataPlane>,
    pub(super) front: Arc<Front>,
    /// Whom the request is from, as far as the next proxy knows.
    pub(super) client: SocketAddr,
    /// Where the connection came in.
    pub(super) server: SocketAddr,
}

impl Visit {
    pub(super) fn is_tls(&self) -> bool {
        self.front.tls.is_some()
    }
}

/// Serves a connection until `stop`; without one, for a single request.
pub(super) async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    front: Arc<Front>,
    plane: Arc<DataPlane>,
    stop: Option<CancellationToken>,
) {
    let server = match stream.set_nodelay(true).and_then(|()| stream.local_addr()) {
        Ok(server) => server,
        Err(error) => {
            tracing::debug!(client = %peer.ip(), %error, "a client was gone at once");
            return;
        }
    };
    let mut stream = ClientStream::new(Socket::new(stream), plane.limits.body_idle);
    let mut client = peer;
    if is_in(&front.introduced_by, peer.ip()) {
        match in_time(stream.introduction(), &plane, &stop).await {
            Ok(introduced) => client = introduced.unwrap_or(peer),
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    plane.admission.misbehaved.make(Some(peer.ip()), Some(&error));
                }
                return;
            }
        }
    }
    // A proxy in front has the connections of all its clients.
    let is_bounded = !plane.is_trusted(client.ip());
    let Ok(_place) = (if is_bounded { plane.admission.enter_client(client.ip()) } else { Ok(None) }) else {
        return;
    };
    let visit = Arc::new(Visit { plane, front, client, server });
    let plane = &visit.plane;
    let served = match &visit.front.tls {
        Some(tls) => match in_time(tls.accept(stream), plane, &stop).await {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                serve_http2(stream, Arc::clone(&visit), stop).await
            }
            Ok(stream) => serve_http1(stream, Arc::clone(&visit), stop).await,
            Err(error) => Err(error.into()),
        },
        None => match in_time(stream.is_http2(), plane, &stop).await {
            Ok(true) => serve_http2(stream, Arc::clone(&visit), stop).await,
            Ok(false) => serve_http1(stream, Arc::clone(&visit), stop).await,
            Err(error) => Err(error.into()),
        },
    };
    if let Err(error) = served {
        tracing::debug!(client = %client.ip(), error, "a client's connection ended early");
    }
}

/// What comes before the first request: it has as much time as a head, and little when all is about to end.
async fn in_time<T>(
    work: impl Future<Output = io::Result<T>>,
    plane: &DataPlane,
    stop: &Option<CancellationToken>,
) -> io::Result<T> {
    let end = async {
        if let Some(stop) = stop {
            stop.cancelled().await;
        }
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        done = tokio::time::timeout(plane.limits.head, work) => {
            done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
        () = end => Err(io::ErrorKind::TimedOut.into()),
    }
}

type Served = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn serve_http1<S>(stream: S, visit: Arc<Visit>, stop: Option<CancellationToken>) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let visit = Arc::clone(&visit);
        async move { Ok::<_, Infallible>(answer(&visit, request).await) }
    });
    let limits = &visit.plane.limits;
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .max_header_size(limits.head_bytes)
        .keep_alive(stop.is_some())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let stop = stop.unwrap_or_default();
    tokio::select! {
        ended = served.as_mut() => ended?,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await?;
        }
    }
    Ok(())
}

/// Why a request of HTTP/2 is not answered at all.
#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client takes most of its requests back")
    }
}

impl std::error::Error for Refused {}

async fn serve_http2<S>(stream: S, visit: Arc<Visit>, stop: Option<CancellationToken>) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let streams = Streams::new();
    let hostile = CancellationToken::new();
    let service = service_fn(|request| {
        let (visit, place) = (Arc::clone(&visit), streams.begin());
        let is_hostile = streams.is_hostile();
        if is_hostile {
            hostile.cancel();
        }
        async move {
            if is_hostile {
                return Err(Refused);
            }
            let mut response = answer(&visit, request).await;
            response.body_mut().belongs_to(place);
            Ok(response)
        }
    });
    let limits = &visit.plane.limits;
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        // Clients that have gone without a word.
        .keep_alive_interval(limits.body_idle)
        .keep_alive_timeout(limits.head)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let stop = stop.unwrap_or_else(|| {
        // A single request cannot be had from HTTP/2: those that are on their way are taken, and no more.
        let stopped = CancellationToken::new();
        stopped.cancel();
        stopped
    });
    let mut is_ending = false;
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = served.as_mut() => return Ok(ended?),
            () = hostile.cancelled() => {
                visit.plane.admission.misbehaved.make(Some(visit.client.ip()), Some(&Refused));
                return Ok(());
            }
            () = stop.cancelled(), if !is_ending => {
                is_ending = true;
                served.as_mut().graceful_shutdown();
            }
            _ = look.tick() => {
                streams.revoke_stalled(limits.body_idle);
                let quiet = streams.quiet_for();
                if !is_ending && quiet >= limits.head {
                    is_ending = true;
                    served.as_mut().graceful_shutdown();
                } else if is_ending && quiet >= GOAWAY_PATIENCE.max(limits.head) {
                    return Ok(());
                }
            }
        }
    }
}

impl DataPlane {
    /// Whether an address is that of a proxy in front of this one.
    pub(super) fn is_trusted(&self, address: IpAddr) -> bool {
        is_in(&self.trusted_proxies, address)
    }
}
