//! One attempt to get a file over HTTP.

use std::io;
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};
use url::Url;

use super::aside::AsideFile;
use super::{CopyFailure, Failure, FetchError, FetchOptions, TransferError, copy_hashed};
use crate::progress::Meter;

/// The longest header of an answer, in bytes.
const MAX_HEADER: usize = 64 * 1024;

/// Gets `url` into the unfinished file; gives the number of bytes and their md5 sum.
pub(super) fn download(
    url: &Url,
    shown: &str,
    aside: &mut AsideFile,
    options: &FetchOptions,
    deadline: Instant,
) -> Result<(u64, String), Failure> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let config = Agent::config_builder()
        .proxy(crate::web_proxy::for_url(url.as_str()))
        .http_status_as_error(false)
        .timeout_global(Some(left))
        .timeout_resolve(Some(options.timeout_connect))
        .timeout_connect(Some(options.timeout_connect))
        .timeout_recv_response(Some(options.timeout_idle))
        .timeout_per_read(Some(options.timeout_idle))
        .timeout_per_write(Some(options.timeout_idle))
        .max_response_header_size(MAX_HEADER)
        .user_agent(concat!("velociraptor/", env!("CARGO_PKG_VERSION")))
        // The sum and the announced length are those of the file as it is stored.
        .accept_encoding("identity")
        .build();
    let agent = Agent::new_with_config(config);
    let mut response = agent.get(url.as_str()).call().map_err(|error| transfer(error, 0, None, shown))?;
    check_status(&response, shown)?;

    let announced = response.body().content_length();
    let too_large =
        || Failure::Final(FetchError::TooLarge { source_shown: shown.to_owned(), limit: options.max_bytes });
    if announced.is_some_and(|length| length > options.max_bytes) {
        return Err(too_large());
    }
    let mut meter = Meter::start(&options.progress, shown, announced);
    let path = aside.path().to_owned();
    let mut reader = response.body_mut().with_config().limit(u64::MAX).reader();
    let (bytes, md5) = copy_hashed(&mut reader, aside.file(), options.max_bytes, &mut meter).map_err(
        |failure| match failure {
            CopyFailure::Read { got, source } => transfer(ureq::Error::from(source), got, announced, shown),
            CopyFailure::Write(source) => Failure::Final(FetchError::Write { path, source }),
            CopyFailure::TooLarge => too_large(),
        },
    )?;
    match announced {
        Some(expected) if expected != bytes => {
            Err(Failure::again(TransferError::Short { got: bytes, expected }))
        }
        _ => Ok((bytes, md5)),
    }
}

fn check_status(response: &Response<Body>, shown: &str) -> Result<(), Failure> {
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(());
    }
    let text = status.to_string();
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        let wait_at_least = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map_or(Duration::ZERO, Duration::from_secs);
        return Err(Failure::Again { error: TransferError::Busy(text), wait_at_least });
    }
    Err(Failure::Final(FetchError::Status { source_shown: shown.to_owned(), status: text }))
}

/// Sorts ureq's errors into those worth another attempt and the rest; none of the texts holds a URL.
fn transfer(error: ureq::Error, got: u64, announced: Option<u64>, shown: &str) -> Failure {
    use ureq::Error;
    let again = match error {
        Error::Timeout(what) => TransferError::TimedOut(what.to_string()),
        Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof && announced.is_some() => {
            TransferError::Short { got, expected: announced.unwrap_or_default() }
        }
        Error::Io(error) => TransferError::Connection(error.to_string()),
        Error::HostNotFound => TransferError::Connection("the host name is not known".to_owned()),
        Error::ConnectionFailed | Error::ConnectProxyFailed(_) | Error::Protocol(_) | Error::BodyStalled => {
            TransferError::Connection(error.to_string())
        }
        // Certificates, redirects and settings do not get better by waiting.
        error => {
            let said = match error {
                Error::BadUri(_) => "the URL cannot be used".to_owned(),
                error => error.to_string(),
            };
            return Failure::Final(FetchError::Transfer {
                source_shown: shown.to_owned(),
                attempts: 1,
                source: TransferError::Connection(said),
            });
        }
    };
    Failure::again(again)
}
