//! Logs: their end, any part of them, and what is written from now on.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use vr_common::host_api::KeptLogs;

use super::{Api, off_thread, one_more_stream, parse, too_many_streams};
use crate::error::AgentError;
use crate::host::LOG_LIMIT;
use crate::logs::{self, Follower, LogFile, Window};

/// How much of a log is given when nothing is said, in bytes.
const DEFAULT: u64 = 16 * 1024;
/// How long the log is at the moment, in bytes, so that a reader of parts knows where the end is.
const LOG_SIZE: HeaderName = HeaderName::from_static("x-log-size");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    bytes: Option<u64>,
    offset: Option<u64>,
    length: Option<u64>,
}

pub(super) async fn log(
    State(api): State<Api>,
    Path(name): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, AgentError> {
    let name = parse(&name)?.to_string();
    let Query(LogQuery { bytes, offset, length }) =
        query.map_err(|e| AgentError::BadRequest(e.body_text()))?;
    if bytes.is_some() && (offset.is_some() || length.is_some()) {
        return Err(AgentError::BadRequest("expected bytes, or offset and length, but not both".to_owned()));
    }
    let read = move || {
        let path = api.host.log_file(&name)?;
        let read = match offset.or(length.map(|_| 0)) {
            None => logs::read(&path, bytes.unwrap_or(DEFAULT).min(LOG_LIMIT)).map(|text| (text, None)),
            Some(start) => LogFile::open(&path).and_then(|file| match file {
                None => Ok((Vec::new(), Some(0))),
                Some(file) => {
                    let window = Window { start, length: length.unwrap_or(LOG_LIMIT).min(LOG_LIMIT) };
                    Ok((file.read(window)?, Some(file.size())))
                }
            }),
        };
        read.map_err(|source| AgentError::File { what: "read", path, source })
    };
    let (text, size) = off_thread("log", read).await?;
    let mut response = plain(Body::from(text));
    if let Some(size) = size {
        response.headers_mut().insert(LOG_SIZE, HeaderValue::from(size));
    }
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FollowQuery {
    bytes: Option<u64>,
}

pub(super) async fn follow(
    State(api): State<Api>,
    Path(name): Path<String>,
    query: Result<Query<FollowQuery>, QueryRejection>,
) -> Result<Response, AgentError> {
    let name = parse(&name)?.to_string();
    let Query(query) = query.map_err(|e| AgentError::BadRequest(e.body_text()))?;
    let Some(permit) = one_more_stream(&api.streams) else { return Ok(too_many_streams()) };
    let (host, asked) = (Arc::clone(&api.host), name.clone());
    let path = off_thread("log", move || host.log_file(&asked)).await?;
    let host = Arc::clone(&api.host);
    let is_there = move || host.snapshot(&name).is_some();
    let follower = Follower::new(path, query.bytes.unwrap_or(DEFAULT).min(LOG_LIMIT), is_there);
    let pieces = stream::unfold((follower, permit), |(mut follower, permit)| async move {
        let piece = follower.next().await.transpose()?;
        Some((piece, (follower, permit)))
    });
    Ok(plain(Body::from_stream(pieces)))
}

pub(super) async fn kept(State(api): State<Api>) -> Result<Json<KeptLogs>, AgentError> {
    off_thread("logs", move || api.host.kept_logs()).await.map(|logs| Json(KeptLogs { logs }))
}

fn plain(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}
