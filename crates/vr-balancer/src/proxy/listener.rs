//! A pool's address: takes clients' connections and hands each of their requests to `forward`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::forward::{DataPlane, forward};
use super::pool::Pool;
use super::warnings::Warning;

/// The pause after an `accept` that failed, most likely because no more files may be open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listening address and the task that serves it.
pub(super) struct Listener {
    stop: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Listener {
    /// Serves the connections of a socket that listens already.
    pub(super) fn start(socket: TcpListener, pool: Arc<Pool>, plane: Arc<DataPlane>) -> Self {
        let stop = CancellationToken::new();
        let accepting = tokio::spawn(accept(socket, pool, plane, stop.clone()));
        Self { stop, accepting }
    }

    /// Gives the address back. Connections that are busy end after the answer that they wait for.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.accepting.await {
            tracing::error!(%error, "the task of a listener died");
        }
    }
}

async fn accept(socket: TcpListener, pool: Arc<Pool>, plane: Arc<DataPlane>, stop: CancellationToken) {
    loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((stream, peer)) => serve(stream, peer, &pool, &plane, Some(&stop)),
                Err(error) => {
                    pool.warnings.warn(Warning::CannotAccept, None, Some(&error));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = stop.cancelled() => break,
        }
    }
    // The kernel has already said yes to those that wait here.
    while let Some(Ok((stream, peer))) = socket.accept().now_or_never() {
        serve(stream, peer, &pool, &plane, None);
    }
}

/// Serves a connection until `stop`; without one, for a single request.
fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    pool: &Arc<Pool>,
    plane: &Arc<DataPlane>,
    stop: Option<&CancellationToken>,
) {
    let task = connection(stream, peer.ip(), Arc::clone(pool), Arc::clone(plane), stop.cloned());
    plane.tasks.spawn(task);
}

async fn connection(
    stream: TcpStream,
    client: IpAddr,
    pool: Arc<Pool>,
    plane: Arc<DataPlane>,
    stop: Option<CancellationToken>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%client, %error, "a client was gone at once");
        return;
    }
    let service = service_fn(|request| {
        let (pool, plane) = (Arc::clone(&pool), Arc::clone(&plane));
        async move { Ok::<_, std::convert::Infallible>(forward(&plane, &pool, client, request).await) }
    });
    let io = TokioIo::new(ClientStream { stream, patience: plane.limits.body_idle, waiting: None });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(plane.limits.head)
        .max_buf_size(plane.limits.head_bytes)
        .max_header_size(plane.limits.head_bytes)
        .max_headers(plane.limits.head_lines)
        .keep_alive(stop.is_some())
        .serve_connection(io, service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let stop = stop.unwrap_or_default();
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "a client's connection ended early");
    }
}

/// A client's socket that fails when the client takes nothing for too long; otherwise one that stopped reading
/// would hold its node for ever.
struct ClientStream {
    stream: TcpStream,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl ClientStream {
    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let patience = self.patience;
        let sleep = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
