//! Bodies on their way through: nothing is kept back, and everything is counted until its last byte.
//!
//! Both kinds give up when nothing moves for too long or when their node is cut off, and both hold the request's
//! place on its node, so that a node is drained only when answer and upload have ended.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use thiserror::Error;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::upstream::{InFlight, Upstream, now_ms};
use super::warnings::Warning;

#[derive(Debug, Error)]
pub(super) enum BodyError {
    #[error("nothing moved for {} s", .0.as_secs_f64())]
    Idle(Duration),
    #[error("the node was taken out of the pool and its grace period is over")]
    CutOff,
    #[error("the other side broke off")]
    Broken(#[source] hyper::Error),
}

/// What a body that stands still waits for.
struct Waiting {
    patience: Pin<Box<Sleep>>,
    cut_off: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// Notices that a body stands still. Costs nothing while data is there when it is asked for.
struct Watch {
    idle: Duration,
    closing: CancellationToken,
    waiting: Option<Waiting>,
    moved: bool,
}

impl Watch {
    fn new(idle: Duration, closing: CancellationToken) -> Self {
        Self { idle, closing, waiting: None, moved: true }
    }

    fn has_moved(&mut self) {
        self.moved = true;
    }

    /// To be asked each time that there is nothing to pass on.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Waiting { patience, cut_off } = self.waiting.get_or_insert_with(|| Waiting {
            patience: Box::pin(tokio::time::sleep(self.idle)),
            cut_off: Box::pin(self.closing.clone().cancelled_owned()),
        });
        if self.moved {
            self.moved = false;
            patience.as_mut().reset(Instant::now() + self.idle);
        }
        if cut_off.as_mut().poll(cx).is_ready() {
            Poll::Ready(BodyError::CutOff)
        } else if patience.as_mut().poll(cx).is_ready() {
            Poll::Ready(BodyError::Idle(self.idle))
        } else {
            Poll::Pending
        }
    }
}

fn poll_incoming(
    incoming: &mut Incoming,
    watch: &mut Watch,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    match Pin::new(incoming).poll_frame(cx) {
        Poll::Ready(frame) => {
            watch.has_moved();
            Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
        }
        Poll::Pending => watch.poll_stalled(cx).map(|stalled| Some(Err(stalled))),
    }
}

/// When a request's body last moved, for those who wait for the answer.
#[derive(Clone)]
pub(super) struct UploadProgress(Arc<AtomicU64>);

impl UploadProgress {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU64::new(now_ms())))
    }

    pub(super) fn since_last_move(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.0.load(Ordering::Relaxed)))
    }

    fn has_moved(&self) {
        self.0.store(now_ms(), Ordering::Relaxed);
    }
}

/// A client's body on its way to a node.
pub(super) struct RequestBody {
    /// None for a request without a body.
    incoming: Option<Incoming>,
    watch: Watch,
    progress: UploadProgress,
    _place: Arc<InFlight>,
}

impl RequestBody {
    pub(super) fn new(
        incoming: Option<Incoming>,
        upstream: &Upstream,
        place: Arc<InFlight>,
        idle: Duration,
        progress: UploadProgress,
    ) -> Self {
        Self { incoming, watch: Watch::new(idle, upstream.closing.clone()), progress, _place: place }
    }

    /// The client's body, as long as nobody has read from this one.
    pub(super) fn into_incoming(self) -> Option<Incoming> {
        self.incoming
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(incoming) = &mut this.incoming else {
            return Poll::Ready(None);
        };
        let polled = poll_incoming(incoming, &mut this.watch, cx);
        if polled.is_ready() {
            this.progress.has_moved();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// An answer's body on its way to the client.
pub(super) enum AnswerBody {
    /// A page of our own.
    Page(Full<Bytes>),
    /// A node's.
    Node(Box<NodeBody>),
}

/// What a node sends, with the connection it comes from.
pub(super) struct NodeBody {
    incoming: Incoming,
    watch: Watch,
    upstream: Arc<Upstream>,
    /// Taken when the last byte is through.
    connection: Option<(SendRequest<RequestBody>, Arc<InFlight>)>,
}

impl AnswerBody {
    pub(super) fn empty() -> Self {
        Self::Page(Full::default())
    }

    pub(super) fn from_node(
        incoming: Incoming,
        upstream: Arc<Upstream>,
        sender: SendRequest<RequestBody>,
        place: Arc<InFlight>,
        idle: Duration,
    ) -> Self {
        let watch = Watch::new(idle, upstream.closing.clone());
        let mut body = NodeBody { incoming, watch, upstream, connection: Some((sender, place)) };
        body.finish_at_the_end();
        Self::Node(Box::new(body))
    }
}

impl NodeBody {
    fn finish_at_the_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }

    /// The answer is whole: the connection may serve another request, and the node has one less open.
    fn finish(&mut self) {
        if let Some((sender, place)) = self.connection.take() {
            self.upstream.give_back(sender);
            drop(place);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Page(page) => Pin::new(page).poll_frame(cx).map_err(|never| match never {}),
            Self::Node(body) => {
                let polled = poll_incoming(&mut body.incoming, &mut body.watch, cx);
                match &polled {
                    Poll::Ready(Some(Ok(_))) => body.finish_at_the_end(),
                    Poll::Ready(None) => body.finish(),
                    Poll::Ready(Some(Err(error))) => {
                        let upstream = &body.upstream;
                        upstream.warnings.warn(Warning::AnswerBroken, Some(&upstream.node), Some(error));
                        body.upstream.count_failure();
                        // Without its sender the connection closes; it cannot be used again.
                        body.connection = None;
                    }
                    Poll::Pending => {}
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Page(page) => page.is_end_stream(),
            Self::Node(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Page(page) => page.size_hint(),
            Self::Node(body) => body.incoming.size_hint(),
        }
    }
}
