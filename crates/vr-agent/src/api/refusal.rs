//! Errors as answers: a status and one sentence.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use vr_common::host_api::ErrorBody;

use crate::error::AgentError;

/// An answer that says no.
pub(super) fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(ErrorBody { error: error.to_owned(), log_tail: None })).into_response()
}

impl IntoResponse for AgentError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NoSuchProc(_) => StatusCode::NOT_FOUND,
            Self::Different(_)
            | Self::Overtaken { .. }
            | Self::AlreadyAdded(_)
            | Self::StillRunning(_)
            | Self::NotRunning(_) => StatusCode::CONFLICT,
            Self::Setup { .. } | Self::Start { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Vrun { .. }
            | Self::File { .. }
            | Self::NotNoted { .. }
            | Self::Signal { .. }
            | Self::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Slow { .. } => StatusCode::GATEWAY_TIMEOUT,
        };
        let error = vr_common::exit::chain(&self);
        let log_tail = match self {
            Self::Start { log_tail, .. } => Some(log_tail),
            _ => None,
        };
        (status, Json(ErrorBody { error, log_tail })).into_response()
    }
}
