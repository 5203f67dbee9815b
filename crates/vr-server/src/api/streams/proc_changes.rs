//! `GET /api/streams/proc_changes/`: each change of a proc, on whichever host, as a document with its `event`.

use std::convert::Infallible;

use axum::body::Bytes;
use axum::extract::State;
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;
use vr_common::events::SSE_KEEP_ALIVE;

use super::{KEEP_ALIVE, SSE, flowing};
use crate::api::Api;
use crate::api::error::Answer;

/// How soon a reader comes back that was cut off.
const RETRY: &str = "retry: 1000\n\n";

pub(in crate::api) async fn stream(State(api): State<Api>) -> Answer {
    let changes = api.fleet.listen();
    let pieces = stream::unfold((api, changes, Some(RETRY)), |(api, mut changes, first)| async move {
        let piece = match first {
            Some(first) => Bytes::from_static(first.as_bytes()),
            None => {
                let stop = api.stop.clone();
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return None,
                    next = changes.recv() => match next {
                        Ok(told) => match serde_json::to_string(&*told.change) {
                            Ok(json) => format!("event: {}\ndata: {json}\n\n", told.change.event).into(),
                            Err(error) => {
                                tracing::error!(%error, "a change of a proc cannot be written as JSON");
                                return None;
                            }
                        },
                        // It has missed some: it has to list anew.
                        Err(RecvError::Lagged(_) | RecvError::Closed) => return None,
                    },
                    () = tokio::time::sleep(KEEP_ALIVE) => Bytes::from_static(SSE_KEEP_ALIVE.as_bytes()),
                }
            }
        };
        Some((Ok::<_, Infallible>(piece), (api, changes, None)))
    });
    Ok(flowing(SSE, pieces))
}
