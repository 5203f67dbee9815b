//! Events on their way: kept in the store, and told to everybody who listens.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::broadcast;
use vr_common::events::{Envelope, Event, snip};

use crate::store::Store;
use crate::time;

/// How many events a new listener is given first.
const BUFFERED: i64 = 100;
/// How many events a slow listener may fall behind before it loses some.
const QUEUE: usize = 1024;

/// What is to be told.
#[derive(Debug, Clone, Default)]
pub struct News {
    /// A short heading.
    pub title: String,
    /// For people.
    pub message: String,
    /// Such as `swarm`, `failed`.
    pub tags: Vec<&'static str>,
    /// Such as `swarm_id`.
    pub extra: Map<String, Value>,
}

impl News {
    /// An event with a heading, a message and tags.
    pub fn new(title: impl Into<String>, message: impl Into<String>, tags: &[&'static str]) -> Self {
        Self { title: title.into(), message: message.into(), tags: tags.to_vec(), extra: Map::new() }
    }

    /// Adds a fact, such as `swarm_id`.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(key.to_owned(), value.into());
        self
    }
}

/// The one place that events go to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {
    store: Store,
    live: Arc<broadcast::Sender<Envelope>>,
}

impl EventLog {
    /// A log that keeps its events in `store`.
    pub fn new(store: Store) -> Self {
        Self { store, live: Arc::new(broadcast::Sender::new(QUEUE)) }
    }

    /// Keeps an event and tells it. An event that cannot be kept is logged: no work fails for want of its news.
    pub async fn tell(&self, news: News) {
        let now = time::now();
        let event = Event {
            time: time::iso(now),
            message: snip(&news.message),
            tags: news.tags.iter().map(|tag| (*tag).to_owned()).collect(),
            title: news.title,
            extra: news.extra,
        };
        tracing::info!(title = event.title, tags = ?event.tags, "{}", event.message);
        let data = match serde_json::to_string(&event) {
            Ok(data) => data,
            Err(error) => {
                tracing::error!(%error, "an event cannot be written as JSON");
                return;
            }
        };
        match self.store.add_event(now, &data).await {
            // An error only says that nobody listens.
            Ok(id) => drop(self.live.send(Envelope { id: id.to_string(), data, event: None })),
            Err(error) => tracing::error!(error = %vr_common::exit::chain(&error), "an event was not kept"),
        }
    }

    /// What happens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Envelope> {
        self.live.subscribe()
    }

    /// The newest events, oldest first; only those after `last_id` when it is given.
    pub async fn buffered(&self, last_id: Option<i64>) -> crate::store::Result<Vec<Envelope>> {
        let mut rows = self.store.events(last_id.unwrap_or(0), 0, BUFFERED).await?;
        rows.reverse();
        Ok(rows
            .into_iter()
            .map(|row| Envelope { id: row.id.to_string(), data: row.data, event: None })
            .collect())
    }
}
