//! Streams that flow for as long as somebody reads them: procs' changes, and procs' logs. (Events: `feed`.)
//!
//! A reader that is too slow is cut off: it comes back and lists anew, which costs less than remembering all it missed.

mod proc_changes;
mod proc_log;

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::Stream;
use http::{HeaderValue, Version, header};

pub(super) use proc_changes::stream as proc_changes;
pub(super) use proc_log::stream as proc_log;

/// How long a stream is silent before it says that it is alive.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The type of Server-Sent Events.
pub(super) const SSE: &str = "text/event-stream; charset=utf-8";

/// An answer that flows.
pub(super) fn flowing<E>(
    content_type: &'static str,
    pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Response
where
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let mut response = Response::new(Body::from_stream(pieces));
    // The stream ends with its connection. The published client (sseclient 0.0.11) cannot read chunks: it drops the
    // connection after the first one.
    *response.version_mut() = Version::HTTP_10;
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-cache"),
        // nginx would hold pieces back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
