//! What follows an HTTP upgrade, such as a WebSocket: bytes in both directions until both sides are done.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use super::body::NodeConnection;
use super::upstream::{Upstream, now_ms};
use super::warnings::Warning;

/// How long both sides have to finish the upgrade that they agreed on.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(30);

/// Joins the two sides once both have changed their protocol. Holds the request's connection and place to the end,
/// which is also when the node is cut off, or nothing has moved for `idle`.
pub(super) async fn run(
    idle: Duration,
    client_side: OnUpgrade,
    node_side: OnUpgrade,
    upstream: Arc<Upstream>,
    connection: NodeConnection,
) {
    let both = async { tokio::try_join!(client_side, node_side) };
    let (client, node) = match tokio::time::timeout(UPGRADE_PATIENCE, both).await {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => {
            tracing::debug!(node = %upstream.node, %error, "a tunnel did not come about");
            return;
        }
        Err(_) => {
            tracing::debug!(node = %upstream.node, "a tunnel did not come about in time");
            return;
        }
    };
    let last_move = Arc::new(AtomicU64::new(now_ms()));
    let observe = |inner, is_client| Observed {
        inner: TokioIo::new(inner),
        last_move: Arc::clone(&last_move),
        upstream: Arc::clone(&upstream),
        is_client,
    };
    let (mut client, mut node) = (observe(client, true), observe(node, false));
    tokio::select! {
        ended = copy_bidirectional(&mut client, &mut node) => {
            if let Err(error) = ended {
                tracing::debug!(node = %upstream.node, %error, "a tunnel broke");
            }
        }
        () = stands_still(&last_move, idle) => {
            upstream.warnings.warn(Warning::TunnelIdle, Some(&upstream.node), None);
        }
        () = upstream.closing.cancelled() => {
            tracing::info!(node = %upstream.node, "a tunnel was cut off at the end of the grace period");
        }
    }
    drop(connection);
}

/// Returns when nothing has moved for `idle`.
async fn stands_still(last_move: &AtomicU64, idle: Duration) {
    loop {
        let since = Duration::from_millis(now_ms().saturating_sub(last_move.load(Ordering::Relaxed)));
        match idle.checked_sub(since) {
            None | Some(Duration::ZERO) => return,
            Some(rest) => tokio::time::sleep(rest).await,
        }
    }
}

/// A side of the tunnel that notes when something came from it.
struct Observed {
    inner: TokioIo<Upgraded>,
    last_move: Arc<AtomicU64>,
    upstream: Arc<Upstream>,
    is_client: bool,
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if polled.is_ready() {
            self.last_move.store(now_ms(), Ordering::Relaxed);
            let bytes = buffer.filled().len() - before;
            if self.is_client {
                self.upstream.count_received(bytes);
            } else {
                self.upstream.count_sent(bytes);
            }
        }
        polled
    }
}

impl AsyncWrite for Observed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
