//! Errors as the API's clients see them: a status and a JSON body.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::store::StoreError;

/// A request that is not done.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    body: Value,
}

/// What handlers give.
pub(super) type Answer = Result<Response, Failure>;

impl Failure {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, body: json!({"error": message.into()}) }
    }

    /// 400 about a field.
    pub fn field(field: &str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, body: json!({"error": message.into(), "field": field}) }
    }

    /// 400 about the whole request.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 401, in the words that clients know.
    pub fn unauthorized() -> Self {
        Self { status: StatusCode::UNAUTHORIZED, body: json!({"status": 401, "msg": "Basic auth required"}) }
    }

    /// 500 of a host.
    pub fn fault(message: impl Into<String>) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, body: json!({"fault": message.into()}) }
    }

    /// 500 with a log line: what is inside is nobody's business but the operator's.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!("a request failed: {}", vr_common::exit::chain(error));
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed at this request; its log says why")
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Invalid { field: Some(field), message } => Self::field(&field, message),
            StoreError::Invalid { field: None, message } => Self::bad(message),
            StoreError::NotFound { .. } => Self::not_found(error.to_string()),
            _ => Self::internal(&error),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body);
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"velociraptor\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// A JSON answer.
pub(super) fn json_response(status: StatusCode, body: &impl serde::Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(text) => {
            let mut response = Response::new(Body::from(text));
            *response.status_mut() = status;
            let kind = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(error) => Failure::internal(&error).into_response(),
    }
}
