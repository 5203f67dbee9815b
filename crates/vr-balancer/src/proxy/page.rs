//! The few pages that the proxy itself answers with.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

use super::body::AnswerBody;

/// A small page that says what is the matter, to people and to caches.
pub(super) fn page(status: StatusCode, title: &str, text: &str) -> Response<AnswerBody> {
    let html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title></head>\n\
         <body><h1>{title}</h1><p>{text}</p></body></html>\n"
    );
    let mut response = Response::new(AnswerBody::Page(Full::new(Bytes::from(html))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}

/// 503: there is nobody to answer.
pub(super) fn maintenance() -> Response<AnswerBody> {
    page(
        StatusCode::SERVICE_UNAVAILABLE,
        "Down for maintenance",
        "This service is not available at the moment. Please try again in a little while.",
    )
}

/// 502: a node took the request and gave no proper answer.
pub(super) fn bad_gateway() -> Response<AnswerBody> {
    page(StatusCode::BAD_GATEWAY, "Bad gateway", "The service broke off before it answered.")
}

/// 504: a node took the request and gave no answer in time.
pub(super) fn gateway_timeout() -> Response<AnswerBody> {
    page(StatusCode::GATEWAY_TIMEOUT, "Gateway time-out", "The service did not answer in time.")
}
