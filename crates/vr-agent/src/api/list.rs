//! `GET procs`: all procs, written out a few at a time. The list of a large host is read every few seconds, and the memory
//! that it takes as a whole would never be given back.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use vr_common::host_api::ProcDocument;

use super::Api;

/// How many procs are written out at once.
const AT_ONCE: usize = 16;

/// Answers the call, with a [`vr_common::host_api::ProcList`].
pub(super) async fn list(State(api): State<Api>) -> Response {
    let host = Arc::clone(&api.host);
    let usage = host.usage().await;
    let begin = format!("{{\"host\":{},\"procs\":[", serde_json::Value::from(host.name()));
    let names = host.names();
    let groups: Vec<Vec<String>> = names.chunks(AT_ONCE).map(<[String]>::to_vec).collect();
    let mut is_first = true;
    let pieces = groups.into_iter().map(move |names| {
        let mut piece = Vec::new();
        for name in names {
            // One that is gone by now is not listed.
            let Ok(proc) = host.document(&name) else { continue };
            let proc = ProcDocument { usage: usage.get(&name).cloned(), ..proc };
            // Texts and numbers only, which are always JSON.
            let Ok(mut text) = serde_json::to_vec(&proc) else { continue };
            if !std::mem::take(&mut is_first) {
                piece.push(b',');
            }
            piece.append(&mut text);
        }
        piece
    });
    let all = std::iter::once(begin.into_bytes()).chain(pieces).chain(std::iter::once(b"]}".to_vec()));
    let body = Body::from_stream(stream::iter(all.map(Ok::<_, Infallible>)));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
