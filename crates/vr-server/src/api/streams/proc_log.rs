//! `GET /api/streams/proc_log/<host>/<proc>/`: a log as it is written. One event a line for those who accept events,
//! else the text itself.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, StatusCode, Uri, header};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use vr_common::events::SSE_KEEP_ALIVE;

use super::{KEEP_ALIVE, SSE, flowing};
use crate::api::Api;
use crate::api::error::{Answer, Failure};
use crate::api::paging::ListQuery;
use crate::api::procs::{fault, host, known};
use crate::hosts::{FleetChange, Lines, LogStream, REMOVED};

/// How much of a log comes first, unless it is said, and at most, in bytes.
const BYTES: (u64, u64) = (16 * 1024, 1 << 20);
/// The longest line that is told as one, in bytes.
const MAX_LINE: usize = 64 * 1024;

struct Log {
    api: Api,
    host: String,
    proc: String,
    pieces: LogStream,
    changes: Receiver<FleetChange>,
    /// Lines that are taken apart, for events.
    lines: Option<Lines>,
    waiting: VecDeque<Bytes>,
    over: bool,
    silent: Instant,
    _place: OwnedSemaphorePermit,
}

impl Log {
    /// The next piece; none at the end.
    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        loop {
            if let Some(piece) = self.waiting.pop_front() {
                self.silent = Instant::now() + KEEP_ALIVE;
                return Some(Ok(piece));
            }
            if self.over {
                return None;
            }
            let stop = self.api.stop.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                piece = self.pieces.next() => match piece {
                    Some(Ok(bytes)) => self.take(bytes),
                    Some(Err(error)) => return Some(Err(io::Error::other(error))),
                    None => self.end(),
                },
                change = self.changes.recv() => match change {
                    // Supervisor would go on showing a file that is gone.
                    Ok(FleetChange { change, .. })
                        if change.event == REMOVED && change.proc.name == self.proc && change.proc.host == self.host =>
                    {
                        self.end();
                    }
                    // That may have been among what was missed.
                    Err(RecvError::Lagged(_))
                        if self.api.fleet.view(&self.host).procs.iter().all(|proc| proc.name != self.proc) =>
                    {
                        self.end();
                    }
                    Err(RecvError::Closed) => return None,
                    _ => {}
                },
                () = tokio::time::sleep_until(self.silent), if self.lines.is_some() => {
                    self.silent = Instant::now() + KEEP_ALIVE;
                    return Some(Ok(Bytes::from_static(SSE_KEEP_ALIVE.as_bytes())));
                }
            }
        }
    }

    fn take(&mut self, bytes: Bytes) {
        let Some(lines) = &mut self.lines else {
            self.waiting.push_back(bytes);
            return;
        };
        lines.push(&bytes);
        while let Some(line) = lines.next() {
            self.waiting.push_back(event(&line));
        }
        if lines.waiting() > MAX_LINE
            && let Some(begin) = lines.rest()
        {
            self.waiting.push_back(event(&begin));
        }
    }

    fn end(&mut self) {
        self.over = true;
        let rest = self.lines.as_mut().and_then(Lines::rest);
        self.waiting.extend(rest.map(|rest| event(&rest)));
    }
}

/// A line as an event. A carriage return would end a line of the event, and the event with it.
fn event(line: &str) -> Bytes {
    format!("data: {}\n\n", line.replace('\r', "")).into()
}

pub(in crate::api) async fn stream(
    State(api): State<Api>,
    Path((key, proc)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    let query = ListQuery::parse(&uri)?;
    query.only(&["bytes"])?;
    let bytes = match query.filters.iter().find(|(name, _)| name == "bytes") {
        Some((_, value)) => value
            .parse::<u64>()
            .map_err(|_| Failure::field("bytes", format!("bytes: {value:?} is not a number of bytes")))?,
        None => BYTES.0,
    };
    let row = host(&api, &key).await?;
    let document = known(&api, &row, &proc).await?;
    let Ok(place) = Arc::clone(&api.0.logs).try_acquire_owned() else {
        let message = "too many logs are being followed: try again later";
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, message));
    };
    // Before the log is opened, so that an end in between is not missed.
    let changes = api.fleet.listen();
    let pieces = api.fleet.driver(&row).log_follow(&proc, bytes.min(BYTES.1)).await.map_err(fault)?;
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let events = accepts.contains("text/event-stream");
    let log = Log {
        host: row.name,
        proc: document.name,
        pieces,
        changes,
        lines: events.then(Lines::default),
        waiting: VecDeque::new(),
        over: false,
        silent: Instant::now() + KEEP_ALIVE,
        _place: place,
        api,
    };
    let pieces = stream::unfold(log, |mut log| async move {
        let piece = log.next().await?;
        Some((piece, log))
    });
    Ok(flowing(if events { SSE } else { "text/plain; charset=utf-8" }, pieces))
}
