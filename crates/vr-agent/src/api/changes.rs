//! `GET changes`: what happens on the host, as Server-Sent Events, without a gap.
//!
//! A reader pulls one message after the other; what it does not read in time is forgotten, and it is told so.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use vr_common::host_api::{Hello, ProcChange};

use super::{Api, one_more_stream, too_many_streams};
use crate::changes::{Change, Lagged, Subscription};
use crate::error::AgentError;
use crate::host::Host;

/// How often a reader hears something, if only that we are there.
const HEARTBEAT: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangesQuery {
    after: Option<String>,
}

/// Answers the call.
pub(super) async fn changes(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Result<Query<ChangesQuery>, QueryRejection>,
) -> Result<Response, AgentError> {
    let Query(query) = query.map_err(|e| AgentError::BadRequest(e.body_text()))?;
    let Some(permit) = one_more_stream(&api.streams) else { return Ok(too_many_streams()) };
    // The header is newer: a browser that connects again sends it with the address that it had from the start.
    let last =
        headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned).or(query.after);
    let after = last.and_then(|id| number(&id, api.host.changes().epoch()));
    let reader = Reader {
        changes: api.host.changes().subscribe(after),
        next: Step::Hello { with_list: after.is_none() },
        host: Arc::clone(&api.host),
        _permit: permit,
    };
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await;
        // Texts and numbers only, which are always JSON.
        event.is_ok().then_some((event, reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response())
}

/// `EPOCH.NUMBER`, unless it is of another epoch.
fn number(id: &str, epoch: &str) -> Option<u64> {
    id.strip_prefix(epoch)?.strip_prefix('.')?.parse().ok()
}

struct Reader {
    host: Arc<Host>,
    changes: Subscription,
    next: Step,
    _permit: OwnedSemaphorePermit,
}

/// What a reader is told next.
enum Step {
    Hello { with_list: bool },
    Change,
}

impl Reader {
    async fn next(&mut self) -> Result<Event, axum::Error> {
        if let Step::Hello { with_list } = self.next {
            self.next = Step::Change;
            return self.hello(with_list);
        }
        match self.changes.next().await {
            Ok(change) => self.told(&change),
            Err(Lagged) => {
                self.next = Step::Hello { with_list: true };
                Ok(Event::default().event("lagged").data("{}"))
            }
        }
    }

    fn hello(&mut self, with_list: bool) -> Result<Event, axum::Error> {
        let changes = self.host.changes();
        let procs = with_list.then(|| {
            // In this order: what changes in between is in the list and is told again.
            self.changes = changes.subscribe(Some(changes.newest()));
            self.host.list()
        });
        let hello = Hello {
            host: self.host.name().to_owned(),
            epoch: changes.epoch().to_owned(),
            procs: procs.map(|list| list.procs),
        };
        self.event("hello", self.changes.position()).json_data(hello)
    }

    fn told(&self, change: &Change) -> Result<Event, axum::Error> {
        let told = ProcChange { event: change.event().to_owned(), at: change.at, proc: change.proc.clone() };
        self.event(change.event(), change.id).json_data(told)
    }

    fn event(&self, name: &str, number: u64) -> Event {
        Event::default().event(name).id(format!("{}.{number}", self.host.changes().epoch()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_this_epoch_are_gone_on_from() {
        assert_eq!(number("abc.12", "abc"), Some(12));
        for other in ["abc12", "abd.12", "abc.", "abc.-1", "12", "", "abc.99999999999999999999"] {
            assert_eq!(number(other, "abc"), None, "{other}");
        }
    }
}
