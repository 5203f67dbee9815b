//! Bodies on their way through: nothing is kept back, and everything is counted until its last byte.
//!
//! Both kinds give up when nothing moves for too long or when their node is cut off, and both hold the request's
//! place on its node, so that a node is drained only when answer and upload have ended.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use thiserror::Error;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::connections::Sender;
use super::exchange::Exchange;
use super::streams::StreamPlace;
use super::upstream::{InFlight, Upstream, now_ms};
use super::warnings::Warning;

#[derive(Debug, Error)]
pub(super) enum BodyError {
    #[error("nothing moved for {} s", .0.as_secs_f64())]
    Idle(Duration),
    #[error("it came slower than {0} bytes a second")]
    Slow(u64),
    #[error("the node was taken out of the pool and its grace period is over, or the client took nothing")]
    CutOff,
    #[error("the other side broke off")]
    Broken(#[source] hyper::Error),
}

/// What a body that stands still waits for.
struct Waiting {
    patience: Pin<Box<Sleep>>,
    cut_off: Pin<Box<WaitForCancellationFutureOwned>>,
    since: Instant,
}

/// Notices that a body stands still. Costs nothing while data is there when it is asked for.
struct Watch {
    idle: Duration,
    closing: CancellationToken,
    waiting: Option<Waiting>,
    moved: bool,
    rate: Option<Rate>,
}

/// The slowest that a body may come.
struct Rate {
    bytes_per_second: u64,
    bytes: u64,
    /// How long it has been waited for altogether.
    waited: Duration,
}

impl Rate {
    /// How long it may be waited for the next bytes: `idle` at first, and what the bytes so far have earned.
    fn rest(&self, idle: Duration) -> Duration {
        let earned = Duration::from_millis(self.bytes.saturating_mul(1000) / self.bytes_per_second.max(1));
        idle.saturating_add(earned).saturating_sub(self.waited)
    }
}

impl Watch {
    fn new(idle: Duration, closing: CancellationToken, min_rate: Option<u64>) -> Self {
        let rate =
            min_rate.map(|bytes_per_second| Rate { bytes_per_second, bytes: 0, waited: Duration::ZERO });
        Self { idle, closing, waiting: None, moved: true, rate }
    }

    fn has_moved(&mut self, bytes: usize) {
        if let Some(rate) = &mut self.rate {
            rate.bytes += bytes as u64;
            if let Some(waiting) = self.waiting.as_ref().filter(|_| !self.moved) {
                rate.waited += waiting.since.elapsed();
            }
        }
        self.moved = true;
    }

    /// To be asked each time that there is nothing to pass on.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Waiting { patience, cut_off, since } = self.waiting.get_or_insert_with(|| Waiting {
            patience: Box::pin(tokio::time::sleep(self.idle)),
            cut_off: Box::pin(self.closing.clone().cancelled_owned()),
            since: Instant::now(),
        });
        let limit = self.rate.as_ref().map_or(self.idle, |rate| rate.rest(self.idle).min(self.idle));
        if self.moved {
            self.moved = false;
            *since = Instant::now();
            patience.as_mut().reset(*since + limit);
        }
        if cut_off.as_mut().poll(cx).is_ready() {
            Poll::Ready(BodyError::CutOff)
        } else if patience.as_mut().poll(cx).is_ready() {
            Poll::Ready(match &self.rate {
                Some(rate) if limit < self.idle => BodyError::Slow(rate.bytes_per_second),
                _ => BodyError::Idle(self.idle),
            })
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
            watch.has_moved(frame.as_ref().map_or(0, |frame| frame.as_ref().map_or(0, length)));
            Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
        }
        Poll::Pending => watch.poll_stalled(cx).map(|stalled| Some(Err(stalled))),
    }
}

fn length(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len)
}

/// How a request's body is getting on, for those who wait for the answer.
#[derive(Clone)]
pub(super) struct UploadProgress(Arc<Upload>);

struct Upload {
    moved_ms: AtomicU64,
    failed: AtomicBool,
}

impl UploadProgress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Upload { moved_ms: AtomicU64::new(now_ms()), failed: AtomicBool::new(false) }))
    }

    pub(super) fn since_last_move(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.0.moved_ms.load(Ordering::Relaxed)))
    }

    /// Whether the client's body could not be read to its end.
    pub(super) fn has_failed(&self) -> bool {
        self.0.failed.load(Ordering::Relaxed)
    }

    fn has_moved(&self) {
        self.0.moved_ms.store(now_ms(), Ordering::Relaxed);
    }
}

/// A client's body on its way to a node.
pub(super) struct RequestBody(Option<ClientBody>);

/// A body that there is.
struct ClientBody {
    incoming: Incoming,
    watch: Watch,
    progress: UploadProgress,
    upstream: Arc<Upstream>,
    _place: Arc<InFlight>,
}

impl RequestBody {
    pub(super) fn empty() -> Self {
        Self(None)
    }

    pub(super) fn new(
        incoming: Incoming,
        upstream: &Arc<Upstream>,
        place: Arc<InFlight>,
        idle: Duration,
        min_rate: Option<u64>,
        progress: UploadProgress,
    ) -> Self {
        let watch = Watch::new(idle, upstream.closing.clone(), min_rate);
        Self(Some(ClientBody { incoming, watch, progress, upstream: Arc::clone(upstream), _place: place }))
    }

    /// The client's body, as long as nobody has read from this one.
    pub(super) fn into_incoming(self) -> Option<Incoming> {
        self.0.map(|body| body.incoming)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let polled = poll_incoming(&mut body.incoming, &mut body.watch, cx);
        if let Poll::Ready(frame) = &polled {
            body.progress.has_moved();
            match frame {
                Some(Ok(frame)) => body.upstream.count_received(length(frame)),
                Some(Err(_)) => body.progress.0.failed.store(true, Ordering::Relaxed),
                None => {}
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |body| body.incoming.size_hint())
    }
}

/// An answer's body on its way to the client.
pub(super) struct AnswerBody {
    source: Source,
    /// None for what is not counted.
    exchange: Option<Exchange>,
    /// The answer's place on a client's HTTP/2 connection.
    stream: Option<StreamPlace>,
}

enum Source {
    /// A page of our own.
    Page(Full<Bytes>),
    /// A node's.
    Node(Box<NodeBody>),
    /// A node's that can be taken away while nobody asks for it.
    Revocable(Arc<RevocableBody>),
}

impl From<Full<Bytes>> for AnswerBody {
    fn from(page: Full<Bytes>) -> Self {
        Self { source: Source::Page(page), exchange: None, stream: None }
    }
}

impl AnswerBody {
    pub(super) fn empty() -> Self {
        Self::from(Full::default())
    }

    pub(super) fn from_node(
        incoming: Incoming,
        upstream: Arc<Upstream>,
        connection: NodeConnection,
        idle: Duration,
    ) -> Self {
        let watch = Watch::new(idle, upstream.closing.clone(), None);
        let mut body = NodeBody { incoming, watch, upstream, connection: Some(connection) };
        body.finish_at_the_end();
        Self { source: Source::Node(Box::new(body)), exchange: None, stream: None }
    }

    /// Counts the answer until it has ended, whichever way.
    pub(super) fn count(&mut self, mut exchange: Exchange) {
        if self.is_end_stream() {
            exchange.complete();
        }
        self.exchange = Some(exchange);
    }

    /// Holds the answer's place on an HTTP/2 connection, and lets that connection take the body away: HTTP/2 does
    /// not ask for a body that its client does not want to have yet, so the body itself would not notice anything.
    pub(super) fn belongs_to(&mut self, mut stream: StreamPlace) {
        if let Source::Node(_) = &self.source
            && !self.is_end_stream()
            && let Source::Node(body) = std::mem::replace(&mut self.source, Source::Page(Full::default()))
        {
            let body = Arc::new(RevocableBody::new(*body));
            stream.watch(&body);
            self.source = Source::Revocable(body);
        }
        if self.is_end_stream() {
            stream.complete();
        }
        self.stream = Some(stream);
    }
}

/// Where an answer comes from, and the request's place there.
pub(super) struct NodeConnection {
    pub(super) sender: Sender,
    /// Whether another request may follow on it.
    pub(super) is_reusable: bool,
    pub(super) place: Arc<InFlight>,
}

/// What a node sends, with the connection it comes from.
struct NodeBody {
    incoming: Incoming,
    watch: Watch,
    upstream: Arc<Upstream>,
    /// Taken when the last byte is through.
    connection: Option<NodeConnection>,
}

impl NodeBody {
    fn finish_at_the_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }

    /// The answer is whole: the connection may serve another request, and the node has one less open.
    fn finish(&mut self) {
        if let Some(NodeConnection { sender, is_reusable, place }) = self.connection.take() {
            if is_reusable {
                self.upstream.give_back(sender);
            }
            drop(place);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = poll_incoming(&mut self.incoming, &mut self.watch, cx);
        match &polled {
            Poll::Ready(Some(Ok(_))) => self.finish_at_the_end(),
            Poll::Ready(None) => self.finish(),
            Poll::Ready(Some(Err(error))) => {
                let upstream = &self.upstream;
                upstream.warnings.warn(Warning::AnswerBroken, Some(&upstream.node), Some(error));
                upstream.count_failure();
                // Without its sender the connection closes; it cannot be used again.
                self.connection = None;
            }
            Poll::Pending => {}
        }
        polled
    }
}

/// A node's body that somebody else may take away.
pub(super) struct RevocableBody {
    body: Mutex<Option<NodeBody>>,
    /// When the client took something last; 0 while it waits for the node and not the node for it.
    taken_ms: AtomicU64,
    closing: CancellationToken,
}

impl RevocableBody {
    fn new(body: NodeBody) -> Self {
        let closing = body.upstream.closing.clone();
        Self { body: Mutex::new(Some(body)), taken_ms: AtomicU64::new(now_ms()), closing }
    }

    fn lock(&self) -> MutexGuard<'_, Option<NodeBody>> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut body = self.lock();
        let Some(inner) = body.as_mut() else {
            return Poll::Ready(Some(Err(BodyError::CutOff)));
        };
        let polled = inner.poll(cx);
        let taken = if polled.is_pending() { 0 } else { now_ms().max(1) };
        self.taken_ms.store(taken, Ordering::Relaxed);
        polled
    }

    /// Gives the node back what it holds for this answer, if the client has taken nothing for `idle`, or the node is
    /// to be cut off. The client is told so when it asks for more.
    pub(super) fn revoke_if_stalled(&self, idle: Duration) {
        let taken = self.taken_ms.load(Ordering::Relaxed);
        let stalled = taken != 0 && Duration::from_millis(now_ms().saturating_sub(taken)) >= idle;
        if !stalled && !self.closing.is_cancelled() {
            return;
        }
        let Some(body) = self.lock().take_if(|body| body.connection.is_some()) else {
            return;
        };
        let reason = if stalled { BodyError::Idle(idle) } else { BodyError::CutOff };
        let upstream = Arc::clone(&body.upstream);
        drop(body);
        upstream.warnings.warn(Warning::AnswerBroken, Some(&upstream.node), Some(&reason));
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = match &mut this.source {
            Source::Page(page) => Pin::new(page).poll_frame(cx).map_err(|never| match never {}),
            Source::Node(body) => body.poll(cx),
            Source::Revocable(body) => body.poll(cx),
        };
        let ended = match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(exchange) = &mut this.exchange {
                    exchange.sent(length(frame));
                }
                this.is_end_stream()
            }
            Poll::Ready(None) => true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if ended {
            if let Some(exchange) = &mut this.exchange {
                exchange.complete();
            }
            if let Some(stream) = &mut this.stream {
                stream.complete();
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Page(page) => page.is_end_stream(),
            Source::Node(body) => body.incoming.is_end_stream(),
            Source::Revocable(body) => body.lock().as_ref().is_some_and(|body| body.incoming.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Page(page) => page.size_hint(),
            Source::Node(body) => body.incoming.size_hint(),
            Source::Revocable(body) => {
                body.lock().as_ref().map_or_else(SizeHint::default, |body| body.incoming.size_hint())
            }
        }
    }
}
