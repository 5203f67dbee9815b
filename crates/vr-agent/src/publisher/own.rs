//! The agent's own procs, published as `proc_publisher` publishes those of a Supervisor.
//!
//! A task takes the changes as they come and puts them into the queue, which never waits for Redis.

use std::io;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep_until, timeout};
use tracing::warn;
use vr_common::host_api::ProcState;
use vr_common::supervisor::{ProcessInfo, SupervisorError};

use super::messages;
use super::protocol::Event;
use super::queue::Queue;
use super::worker::{Source, Worker};
use crate::changes::{Change, ChangeKind, Lagged, Subscription};
use crate::host::Host;

/// How often the cache is refreshed when nothing happens.
const REFRESH_EVERY: Duration = Duration::from_secs(60);
/// How often it is refreshed at most, so that many procs that are started at once cost little.
const REFRESH_AT_MOST_EVERY: Duration = Duration::from_millis(250);
/// How long the worker may go on when the agent ends.
const LAST_WORK: Duration = Duration::from_secs(2);

/// A host that is being published.
#[derive(Debug)]
pub struct Publishing {
    queue: Arc<Queue>,
    feeding: JoinHandle<()>,
    finished: oneshot::Receiver<()>,
}

/// Begins to publish what the procs of a host do from now on, and to keep its cache. Needs a tokio runtime.
///
/// # Errors
/// When there can be no other thread.
pub fn start(host: &Arc<Host>, redis: redis::Client) -> io::Result<Publishing> {
    let queue = Arc::new(Queue::default());
    let (finish, finished) = oneshot::channel::<()>();
    let (for_worker, source, name) =
        (Arc::clone(&queue), OwnProcs(Arc::downgrade(host)), host.name().to_owned());
    thread::Builder::new().name("publisher".into()).spawn(move || {
        Worker::new(redis, source, name).work(&for_worker);
        // Nothing is ever sent: the channel closes when the worker has ended.
        drop(finish);
    })?;
    let feed = feed(host.name().to_owned(), host.changes().subscribe(None), Arc::clone(&queue));
    Ok(Publishing { queue, feeding: tokio::spawn(feed), finished })
}

impl Publishing {
    /// Takes no more changes, and gives those that wait a little time.
    pub async fn end(self) {
        self.feeding.abort();
        self.queue.close();
        if timeout(LAST_WORK, self.finished).await.is_err() {
            warn!(unpublished = self.queue.waiting(), "ended before everything was published");
        }
    }
}

async fn feed(host: String, mut changes: Subscription, queue: Arc<Queue>) {
    let mut tick = interval(REFRESH_EVERY);
    let mut refreshed = Instant::now();
    let mut refresh_due: Option<Instant> = None;
    loop {
        let soon = refreshed + REFRESH_AT_MOST_EVERY;
        tokio::select! {
            change = changes.next() => {
                match change {
                    Ok(change) => queue_message(&queue, &change, &host),
                    Err(Lagged) => warn!("some changes were too fast to be published"),
                }
                refresh_due.get_or_insert(soon.max(Instant::now()));
            }
            // The first one comes at once.
            _ = tick.tick() => refresh_due = Some(Instant::now()),
            () = sleep_until(refresh_due.unwrap_or(soon)), if refresh_due.is_some() => {
                queue.refresh();
                refreshed = Instant::now();
                refresh_due = None;
            }
        }
    }
}

fn queue_message(queue: &Queue, change: &Change, host: &str) {
    match message(change, host) {
        Ok(Some(message)) => queue.push_message(message),
        Ok(None) => {}
        Err(e) => warn!(proc = change.proc.name, "cannot be published: {e}"),
    }
}

/// What is published of a change, if anything.
fn message(change: &Change, host: &str) -> Result<Option<String>, serde_json::Error> {
    match change.kind {
        // Supervisor has no event for it.
        ChangeKind::State if change.proc.statename == ProcState::Unknown => Ok(None),
        ChangeKind::State => messages::state_message(change.event(), &change.info, host).map(Some),
        ChangeKind::Removed => {
            let event = Event {
                name: change.event().to_owned(),
                payload_headers: [("groupname".to_owned(), change.proc.group.clone())].into(),
                payload_data: String::new(),
                arrived: jiff::Timestamp::from_millisecond(change.at).unwrap_or_default(),
            };
            Ok(Some(messages::removed_message(&event, &change.proc.group, host)))
        }
        ChangeKind::Added => Ok(None),
    }
}

/// What the agent itself knows.
struct OwnProcs(Weak<Host>);

impl Source for OwnProcs {
    fn process(&self, name: &str) -> Result<Option<ProcessInfo>, SupervisorError> {
        Ok(self.0.upgrade().and_then(|host| host.info_of(name)))
    }

    fn all(&self) -> Result<Vec<ProcessInfo>, SupervisorError> {
        let Some(host) = self.0.upgrade() else { return Ok(Vec::new()) };
        Ok(host.names().iter().filter_map(|name| host.info_of(name)).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use vr_common::paths::VrRoot;

    use super::*;
    use crate::changes::Changes;
    use crate::document::Snapshot;

    const NAME: &str = "node_example-v2-prod-f96054b7-web-5003";

    /// What is published when this happens to a proc of ours.
    async fn published(kind: ChangeKind, state: ProcState) -> Option<Value> {
        let changes = Changes::new("somewhere", VrRoot::new("/apps"));
        let mut reader = changes.subscribe(None);
        let snapshot =
            Snapshot { state, pid: 5556, started_at: Some(1_355_897_986_000), ..Snapshot::unknown() };
        changes.publish(kind, &Arc::from(NAME), snapshot);
        let message = message(&reader.next().await.unwrap(), "somewhere").unwrap();
        message.map(|text| serde_json::from_str(&text).unwrap())
    }

    /// The message that a vector has for an event.
    fn vector(event: &str) -> Value {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../vr-common/tests/data/vectors.json")).unwrap();
        let mut published = vectors["proc_publisher"].as_array().unwrap().iter().flat_map(|case| {
            assert!(case["published"].is_array());
            case["published"].as_array().unwrap()
        });
        let message = published.find(|one| one["message"]["event"] == event).unwrap();
        message["message"].clone()
    }

    fn kinds(message: &Value) -> Vec<(&String, String)> {
        let kind = |value: &Value| match value {
            Value::Null | Value::String(_) => "a text or nothing".to_owned(),
            Value::Object(inner) => format!("{:?}", inner.keys().collect::<Vec<_>>()),
            other => format!("{:?}", std::mem::discriminant(other)),
        };
        message.as_object().unwrap().iter().map(|(key, value)| (key, kind(value))).collect()
    }

    #[tokio::test]
    async fn messages_have_the_shape_of_the_vectors() {
        let state = published(ChangeKind::State, ProcState::Running).await.unwrap();
        assert_eq!(kinds(&state), kinds(&vector("PROCESS_STATE_RUNNING")));
        assert_eq!(
            (&state["event"], &state["app_name"]),
            (&"PROCESS_STATE_RUNNING".into(), &"node_example".into())
        );
        assert_eq!(state["start_time"], "2012-12-19T06:19:46+00:00");
        let removed = published(ChangeKind::Removed, ProcState::Stopped).await.unwrap();
        assert_eq!(kinds(&removed), kinds(&vector("PROCESS_GROUP_REMOVED")));
        assert_eq!(removed["payload_headers"], serde_json::json!({ "groupname": NAME }));
        assert_eq!(published(ChangeKind::Added, ProcState::Stopped).await, None);
    }
}
