//! Events: as pages, and as a stream that neither loses nor doubles any.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::Bytes;
use axum::extract::State;
use futures_util::stream;
use http::{HeaderMap, Uri};
use serde_json::Value;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use vr_common::events::{Envelope, SSE_KEEP_ALIVE};

use super::Api;
use super::error::{Answer, Failure};
use super::paging::ListQuery;
use super::streams::{KEEP_ALIVE, SSE, flowing};
use crate::store::{EventRow, Result as Stored};

/// More than the store keeps: all there are.
const ALL: i64 = 1_000_000;

/// Events, newest first.
pub(super) async fn list(State(api): State<Api>, uri: Uri) -> Answer {
    let query = ListQuery::parse(&uri)?;
    query.only(&[])?;
    let total = api.store.count_events().await?;
    let rows = api.store.events(0, query.offset.into(), query.limit.into()).await?;
    let objects = rows.into_iter().map(|row| document(&row)).collect::<Result<Vec<_>, _>>()?;
    query.page(total, objects)
}

/// An event's JSON with its id.
fn document(row: &EventRow) -> Result<Value, Failure> {
    let mut event: Value = serde_json::from_str(&row.data).map_err(|e| Failure::internal(&e))?;
    event["id"] = row.id.into();
    Ok(event)
}

/// A listener: the store says what happened, the live channel only when to look.
///
/// Two events may reach the channel in another order than the store, and a slow listener misses some of them;
/// ids in the store grow in the order in which events can be seen there.
struct Listener {
    api: Api,
    live: Receiver<Envelope>,
    last: i64,
    waiting: VecDeque<String>,
    /// When the stream has been silent for too long.
    silent: Instant,
}

impl Listener {
    /// Everything after the last event.
    async fn catch_up(&mut self) -> Stored<()> {
        let mut rows = self.api.store.events(self.last, 0, ALL).await?;
        rows.reverse();
        for row in rows {
            self.last = row.id;
            self.push(Envelope { id: row.id.to_string(), data: row.data, event: None });
        }
        Ok(())
    }

    fn push(&mut self, envelope: Envelope) {
        self.waiting.push_back(envelope.to_sse());
    }

    /// The next piece of the stream; none at its end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(text) = self.waiting.pop_front() {
                self.silent = Instant::now() + KEEP_ALIVE;
                return Some(text);
            }
            let stop = self.api.stop.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                news = self.live.recv() => match news {
                    Ok(envelope) => match envelope.id.parse::<i64>() {
                        Ok(id) if id <= self.last => {}
                        Ok(id) if id == self.last + 1 => {
                            self.last = id;
                            self.push(envelope);
                        }
                        _ => self.refill().await?,
                    },
                    Err(RecvError::Lagged(_)) => self.refill().await?,
                    Err(RecvError::Closed) => return None,
                },
                () = tokio::time::sleep_until(self.silent) => {
                    self.silent = Instant::now() + KEEP_ALIVE;
                    return Some(SSE_KEEP_ALIVE.to_owned());
                }
            }
        }
    }

    /// None when the store fails: the client comes back and says what it saw last.
    async fn refill(&mut self) -> Option<()> {
        match self.catch_up().await {
            Ok(()) => Some(()),
            Err(error) => {
                tracing::error!("a stream of events ends: {}", vr_common::exit::chain(&error));
                None
            }
        }
    }
}

/// `GET /api/streams/events/`: first what happened lately (or since `Last-Event-ID`), then what happens.
pub(super) async fn stream(State(api): State<Api>, headers: HeaderMap) -> Answer {
    // Listening begins before the store is read, so that nothing falls between the two.
    let live = api.events.listen();
    let newest = api.store.events(0, 0, 1).await?.first().map_or(0, |row| row.id);
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.trim().parse::<i64>().ok());
    let mut listener = Listener {
        live,
        last: 0,
        waiting: VecDeque::new(),
        silent: Instant::now() + KEEP_ALIVE,
        api: Api::clone(&api),
    };
    match seen.filter(|id| (0..=newest).contains(id)) {
        Some(id) => {
            listener.last = id;
            listener.catch_up().await?;
        }
        // An id of another server says nothing.
        None => {
            for envelope in api.events.buffered(None).await? {
                listener.last = envelope.id.parse().unwrap_or(listener.last);
                listener.push(envelope);
            }
        }
    }
    let pieces = stream::unfold(listener, |mut listener| async move {
        let text = listener.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), listener))
    });
    Ok(flowing(SSE, pieces))
}
