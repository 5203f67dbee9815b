//! One connection: its encryption, its deadlines, and the HTTP on it.
//!
//! Whoever is on the other end may be slow, silent or gone: that costs this connection and nothing else.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::Watcher;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::listener::Connection;
use crate::places::Caller;
use crate::rpc::WithoutBlankLine;
use crate::tls::Tls;

/// How long TLS may take to be agreed on.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a request's head may take to arrive, and a connection may be idle.
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
/// How long the other side may take nothing of what is sent to it.
pub const STALL_DEADLINE: Duration = Duration::from_secs(20);
/// How much of an answer is kept for a connection before more of it is made, in bytes.
const BUFFER: usize = 64 * 1024;

/// Marks the requests of callers who showed a certificate of an authority that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownCertificate;

/// Serves one connection to its end. Requests have the caller among their extensions.
pub async fn serve(
    stream: Box<dyn Connection>,
    caller: Caller,
    tls: Option<Arc<Tls>>,
    router: Router,
    watcher: Watcher,
) {
    let stream = Unstalled::new(stream, STALL_DEADLINE);
    let Some(tls) = tls else {
        return serve_http(stream, caller, None, router, watcher).await;
    };
    let acceptor = TlsAcceptor::from(tls.config().await);
    match timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
        Err(_) => debug!("a caller did not agree on TLS in time"),
        Ok(Err(e)) => debug!("a caller did not agree on TLS: {e}"),
        Ok(Ok(stream)) => {
            // They are checked by now.
            let shown = stream.get_ref().1.peer_certificates().map(|_| ShownCertificate);
            serve_http(stream, caller, shown, router, watcher).await;
        }
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    caller: Caller,
    shown: Option<ShownCertificate>,
    router: Router,
    watcher: Watcher,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let extensions = request.extensions_mut();
        extensions.insert(caller.clone());
        if let Some(shown) = shown {
            extensions.insert(shown);
        }
        router.call(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(WithoutBlankLine::new(stream)), service);
    if let Err(e) = watcher.watch(connection).await {
        debug!("a connection broke: {}", vr_common::exit::chain(&e));
    }
}

/// A stream that fails when the other side has taken nothing for a while, so that nobody can keep an answer, and the
/// connection with it, for ever.
#[derive(Debug)]
struct Unstalled<S> {
    stream: S,
    limit: Duration,
    /// Runs while something waits to be taken.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S: Unpin> Unstalled<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, stalled: None }
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, sent: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if sent.is_ready() {
            self.stalled = None;
            return sent;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the other side takes nothing any more")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unstalled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unstalled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.judge(context, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, sent)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(context, sent)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn who_takes_nothing_is_cut_off_and_who_is_slow_is_not() {
        const LIMIT: Duration = Duration::from_millis(300);
        let (ours, mut theirs) = duplex(10);
        let mut ours = Unstalled::new(ours, LIMIT);
        let begun = Instant::now();
        let slow = tokio::spawn(async move {
            let mut taken = [0; 10];
            for _ in 0..10 {
                sleep(LIMIT / 6).await;
                theirs.read_exact(&mut taken).await.unwrap();
            }
            theirs
        });
        ours.write_all(&[0; 100]).await.unwrap();
        assert!(begun.elapsed() > LIMIT, "slower than what is cut off");
        let theirs = slow.await.unwrap();
        let cut_off = timeout(10 * LIMIT, ours.write_all(&[0; 100])).await.expect("no end").unwrap_err();
        assert_eq!(cut_off.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }
}
