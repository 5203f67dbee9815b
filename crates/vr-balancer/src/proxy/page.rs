//! The few pages that the proxy itself answers with.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use vr_common::names::PoolName;

use super::body::AnswerBody;
use super::files::Stamp;
use super::options::PoolOptions;

/// The largest maintenance page, in bytes.
const MAX_PAGE_BYTES: u64 = 1 << 20;
/// Seconds after which clients are asked to come back, unless the pool's options say otherwise.
const RETRY_AFTER_SECONDS: u32 = 5;

fn html(status: StatusCode, html: Bytes) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::from(Full::new(html)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A small page that says what is the matter, to people and to caches.
pub(super) fn page(status: StatusCode, title: &str, text: &str) -> Response<AnswerBody> {
    let text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title></head>\n\
         <body><h1>{title}</h1><p>{text}</p></body></html>\n"
    );
    html(status, Bytes::from(text))
}

/// 408 or 400: the body of a request did not come in time, or is none.
pub(super) fn body_missing(is_late: bool) -> Response<AnswerBody> {
    if is_late {
        page(StatusCode::REQUEST_TIMEOUT, "Request time-out", "The body of the request did not arrive.")
    } else {
        page(StatusCode::BAD_REQUEST, "Bad request", "The body of the request is malformed or broken off.")
    }
}

/// 502: a node took the request and gave no proper answer.
pub(super) fn bad_gateway() -> Response<AnswerBody> {
    page(StatusCode::BAD_GATEWAY, "Bad gateway", "The service broke off before it answered.")
}

/// 504: a node took the request and gave no answer in time.
pub(super) fn gateway_timeout() -> Response<AnswerBody> {
    page(StatusCode::GATEWAY_TIMEOUT, "Gateway time-out", "The service did not answer in time.")
}

/// 404: no route leads from this host to a pool.
pub(super) fn unknown_host() -> Response<AnswerBody> {
    page(StatusCode::NOT_FOUND, "Unknown host", "There is no service under this name.")
}

/// The same place under `https`. Methods that may change something are repeated there as they are.
pub(super) fn redirect(location: HeaderValue, is_safe: bool) -> Response<AnswerBody> {
    let status = if is_safe { StatusCode::MOVED_PERMANENTLY } else { StatusCode::PERMANENT_REDIRECT };
    let mut response = page(status, "Moved", "This service is to be found under https.");
    response.headers_mut().remove(CACHE_CONTROL);
    response.headers_mut().insert(LOCATION, location);
    response
}

/// What a pool says while no node takes a request: 503, with the operator's HTML or a page of our own.
pub(super) struct Maintenance {
    retry_after: u32,
    file: Option<PageFile>,
}

struct PageFile {
    path: PathBuf,
    /// As it was when it was last read, whether it could be used or not.
    stamp: Option<Stamp>,
    html: Option<Bytes>,
}

impl Maintenance {
    /// Reads the page. One that cannot be read is logged, and a page of our own stands in for it.
    pub(super) fn new(options: &PoolOptions) -> Self {
        let file = options.maintenance_page.as_ref().map(|path| PageFile {
            path: path.clone(),
            stamp: Stamp::of(path),
            html: read(path).inspect_err(|error| complain(path, error)).ok(),
        });
        Self { retry_after: options.retry_after.unwrap_or(RETRY_AFTER_SECONDS), file }
    }

    /// The page as it is now, if its file has changed. While it cannot be read, the old one stays.
    pub(super) fn reread(&self, pool: &PoolName) -> Option<Self> {
        let file = self.file.as_ref()?;
        let stamp = Stamp::of(&file.path);
        if stamp == file.stamp {
            return None;
        }
        let html = match read(&file.path) {
            Ok(html) => {
                tracing::info!(%pool, file = %file.path.display(), "the maintenance page was read again");
                Some(html)
            }
            Err(error) => {
                complain(&file.path, &error);
                file.html.clone()
            }
        };
        let file = PageFile { path: file.path.clone(), stamp, html };
        Some(Self { retry_after: self.retry_after, file: Some(file) })
    }

    pub(super) fn response(&self) -> Response<AnswerBody> {
        let mut response = match self.file.as_ref().and_then(|file| file.html.clone()) {
            Some(operators) => html(StatusCode::SERVICE_UNAVAILABLE, operators),
            None => page(
                StatusCode::SERVICE_UNAVAILABLE,
                "Down for maintenance",
                "This service is not available at the moment. Please try again in a little while.",
            ),
        };
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(self.retry_after));
        response
    }
}

fn read(path: &Path) -> io::Result<Bytes> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_PAGE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_PAGE_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_PAGE_BYTES} bytes")));
    }
    Ok(Bytes::from(bytes))
}

fn complain(path: &Path, error: &io::Error) {
    tracing::error!(file = %path.display(), %error, "cannot read a maintenance page");
}
