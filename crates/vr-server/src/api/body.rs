//! JSON bodies of requests, with errors as the API gives them.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use serde_json::{Map, Value};

use super::error::Failure;

/// The largest body, in bytes.
pub(super) const MAX_BODY: usize = 10 << 20;

/// A JSON object; the content type does not matter, as clients of old send many.
#[derive(Debug)]
pub(super) struct JsonObject(pub Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for JsonObject {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| Failure::new(rejection.status(), rejection.body_text()))?;
        if bytes.is_empty() {
            return Err(Failure::bad("the request has no body: expected a JSON object"));
        }
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(object)) => Ok(Self(object)),
            Ok(_) => Err(Failure::bad("the body is not a JSON object")),
            Err(error) => Err(Failure::bad(format!("the body is not JSON: {error}"))),
        }
    }
}
