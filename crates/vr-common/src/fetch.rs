//! Gets a file from an HTTP server or from this machine, checks it, and puts it in place whole or not at all.
//!
//! Must not know what is in the files or why they are wanted.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use md5::{Digest, Md5};
use thiserror::Error;
use url::Url;

use crate::lock::{FileLock, LockError};
use crate::log::DOING;
use crate::progress::Meter;
pub use crate::progress::{Progress, ProgressCallback};

pub(crate) mod aside;
mod http;
mod record;

use aside::{AsideFile, hidden_sibling};
use record::Record;

/// Bytes that are copied at once.
const CHUNK: usize = 128 * 1024;
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// How to fetch.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// The md5 sum that the whole file must have, as hexadecimal digits of either case.
    pub md5: Option<String>,
    /// How long looking up a name and connecting may take (default 15 s).
    pub timeout_connect: Duration,
    /// How long the other side may send nothing (default 60 s).
    pub timeout_idle: Duration,
    /// How long everything may take, all attempts together (default one hour).
    pub timeout_total: Duration,
    /// How often to try at most, at least 1 (default 5).
    pub attempts: u32,
    /// The pause after the first failed attempt (default 500 ms); each further one is twice as long,
    /// and all are varied at random by half.
    pub first_pause: Duration,
    /// The largest file that is accepted, in bytes (default 20 GiB).
    pub max_bytes: u64,
    /// Who is told how far it is.
    pub progress: Progress,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            md5: None,
            timeout_connect: Duration::from_secs(15),
            timeout_idle: Duration::from_secs(60),
            timeout_total: Duration::from_secs(3600),
            attempts: 5,
            first_pause: Duration::from_millis(500),
            max_bytes: 20 << 30,
            progress: Progress::Quiet,
        }
    }
}

impl FetchOptions {
    /// The default options with an expected md5 sum, if there is one; an empty one counts as none.
    pub fn with_md5(md5: Option<&str>) -> Self {
        Self { md5: md5.map(str::to_owned).filter(|sum| !sum.is_empty()), ..Self::default() }
    }
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The size of the file in bytes.
    pub bytes: u64,
    /// The md5 sum in lower-case hexadecimal digits.
    pub md5: String,
    /// Whether anything was fetched; `false` when the file that was already there was kept.
    pub downloaded: bool,
}

/// Why a file was not fetched. Sources are shown without their credentials.
#[derive(Debug, Error)]
pub enum FetchError {
    /// Neither an http(s) or `file://` URL nor a path.
    #[error("cannot fetch {source_shown:?}: {reason}")]
    BadSource {
        /// The source, without credentials.
        source_shown: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The expected md5 sum is not one.
    #[error("the md5 sum {md5:?} expected for {source_shown} is not 32 hexadecimal digits")]
    BadMd5 {
        /// The source, without credentials.
        source_shown: String,
        /// The text given as sum.
        md5: String,
    },
    /// The server answered, but not with the file.
    #[error("cannot fetch {source_shown}: the server answered {status}")]
    Status {
        /// The source, without credentials.
        source_shown: String,
        /// The status with its usual words, such as `404 Not Found`.
        status: String,
    },
    /// No whole answer came, in as many attempts as made sense.
    #[error("cannot fetch {source_shown} ({attempts} {})", if *attempts == 1 { "attempt" } else { "attempts" })]
    Transfer {
        /// The source, without credentials.
        source_shown: String,
        /// How often it was tried.
        attempts: u32,
        /// What happened the last time.
        source: TransferError,
    },
    /// The whole file came and is another one.
    #[error("{source_shown} has the md5 sum {got}, expected {expected}")]
    Md5Mismatch {
        /// The source, without credentials.
        source_shown: String,
        /// The sum asked for.
        expected: String,
        /// The sum of what came.
        got: String,
    },
    /// The file is larger than allowed.
    #[error("{source_shown} is larger than {limit} bytes, the most that is accepted")]
    TooLarge {
        /// The source, without credentials.
        source_shown: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A local source cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The target cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The lock beside the target cannot be taken.
    #[error("cannot wait for others who fetch the same file")]
    Lock(#[from] LockError),
}

/// What went wrong between us and a server.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The server is overloaded or broken (429 or 5xx).
    #[error("the server answered {0}")]
    Busy(String),
    /// Fewer bytes than announced.
    #[error("the connection ended after {got} of {expected} bytes")]
    Short {
        /// Bytes received.
        got: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// Nothing came for too long.
    #[error("timed out: {0}")]
    TimedOut(String),
    /// Connecting, TLS or HTTP failed.
    #[error("{0}")]
    Connection(String),
}

/// Fetches `source`, an http(s) or `file://` URL or a path, to `target`.
///
/// The bytes go to a hidden file beside `target`, which gets its name only when they are whole, have the expected
/// md5 sum and are on disk; a failure leaves `target` as it was. Missing folders are made.
/// Connection errors, time-outs, short answers, 429 and 5xx are tried again; other answers and a wrong sum are not.
pub fn fetch(source: &str, target: &Path, options: &FetchOptions) -> Result<Fetched, FetchError> {
    fetch_with(source, target, options, |_| Ok(()))
}

/// The same. `before_placing` gets the whole file while it has another name.
fn fetch_with(
    source: &str,
    target: &Path,
    options: &FetchOptions,
    before_placing: impl Fn(&File) -> io::Result<()>,
) -> Result<Fetched, FetchError> {
    let expected = expected_md5(source, options)?;
    let origin = Origin::parse(source)?;
    let deadline = Instant::now() + options.timeout_total;
    let shown = without_credentials(source);
    let write_error = |source| FetchError::Write { path: target.to_owned(), source };
    tracing::info!(target: DOING, "fetching {shown}");

    let mut attempt = 1;
    loop {
        let mut aside = AsideFile::create(target).map_err(write_error)?;
        let result = match &origin {
            Origin::Http(url) => http::download(url, &shown, &mut aside, options, deadline),
            Origin::Local(path) => copy_local(path, &shown, &mut aside, options),
        };
        let (error, wait_at_least) = match result {
            Ok((bytes, got)) => {
                if let Some(expected) = expected
                    && expected != got
                {
                    return Err(FetchError::Md5Mismatch { source_shown: shown, expected, got });
                }
                before_placing(aside.file()).and_then(|()| aside.place()).map_err(write_error)?;
                return Ok(Fetched { bytes, md5: got, downloaded: true });
            }
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Again { error, wait_at_least }) => (error, wait_at_least),
        };
        drop(aside);
        let pause = pause_after(attempt, options.first_pause).max(wait_at_least.min(LONGEST_PAUSE));
        if attempt >= options.attempts || Instant::now() + pause >= deadline {
            return Err(FetchError::Transfer { source_shown: shown, attempts: attempt, source: error });
        }
        tracing::warn!(source = %shown, attempt, %error, "fetching failed, trying again in {pause:?}");
        thread::sleep(pause);
        attempt += 1;
    }
}

/// Like [`fetch`], but keeps a target that is already there: with an expected md5 sum, one that has it; without, one that
/// was fetched from the same source, or that somebody else put there.
///
/// What was found out about the target is kept beside it in `.{name}.sum`, so that a file that did not change since
/// is not read again. Callers for the same target, in this or other processes, wait for each other (a lock file
/// `.{name}.lock` stays beside the target), so that the first fetches for all.
pub fn fetch_cached(source: &str, target: &Path, options: &FetchOptions) -> Result<Fetched, FetchError> {
    let expected = expected_md5(source, options)?;
    let write_error = |source| FetchError::Write { path: target.to_owned(), source };
    fs::create_dir_all(aside::folder_of(target)).map_err(write_error)?;
    let lock_path = hidden_sibling(target, "lock").map_err(write_error)?;
    let _only_one = FileLock::wait(&lock_path, || {
        tracing::info!(target: DOING, "waiting for another process that fetches {}", target.display());
    })?;
    match fs::metadata(target) {
        Ok(present) if present.is_file() => {
            let (record, is_new) = match Record::read(target, &present) {
                Some(record) => (record, false),
                None => {
                    let read_error = |source| FetchError::Read { path: target.to_owned(), source };
                    let md5 = md5_file(target).map_err(read_error)?;
                    // Whoever put it there may have been killed before it said so.
                    (
                        Record::announced(target, &present, &md5).unwrap_or_else(|| Record::new(md5, source)),
                        true,
                    )
                }
            };
            let is_right = match &expected {
                Some(expected) => *expected == record.md5,
                None => record.is_from(source),
            };
            if is_right {
                if is_new {
                    record.write(target, &present).map_err(write_error)?;
                }
                return Ok(Fetched { bytes: present.len(), md5: record.md5, downloaded: false });
            }
            let why =
                if expected.is_some() { "has another md5 sum than expected" } else { "is from elsewhere" };
            tracing::info!(target = %target.display(), "{why}, fetching it again");
        }
        Ok(_) => return Err(write_error(io::Error::other("something that is not a file is in the way"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(write_error(error)),
    }
    let fetched =
        fetch_with(source, target, options, |file| Record::announce(source, target, &file.metadata()?))?;
    let present = fs::metadata(target).map_err(write_error)?;
    Record::new(fetched.md5.clone(), source).write(target, &present).map_err(write_error)?;
    Ok(fetched)
}

/// The md5 sum of `target`, if it was fetched from `source` by [`fetch_cached`] and did not change since. Nothing is
/// fetched or read for it, and nobody waited for.
pub fn known_md5(source: &str, target: &Path) -> Option<String> {
    let present = fs::metadata(target).ok()?;
    let record = Record::read(target, &present)?;
    record.is_from(source).then_some(record.md5)
}

/// The md5 sum of a file, in lower-case hexadecimal digits.
pub fn md5_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Md5::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(hex::encode(hasher.finalize())),
            Ok(n) => hasher.update(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a file's name is one that [`fetch`] gives to what it has not finished: that of its target, with a dot before
/// and `.part-` and 16 hexadecimal digits behind. Whoever writes to such a file holds a lock on it.
pub fn is_unfinished(name: &OsStr) -> bool {
    aside::is_unfinished(name)
}

/// A URL for people: the password (or a lone user name, which may be a token) and the values of the query,
/// which may be a signature, are replaced by `***`. Anything that is not a URL stays as it is.
pub fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    // A password with a bare `/` in it would otherwise be taken for the start of the path.
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, _password)) => format!("{name}:***@{host}"),
            None if scheme.to_ascii_lowercase().starts_with("http") => format!("***@{host}"),
            None => authority.to_owned(),
        },
        None => authority.to_owned(),
    };
    let tail = match tail.split_once('?') {
        Some((path, query)) => match query.split_once('#') {
            Some((_, fragment)) => format!("{path}?***#{fragment}"),
            None => format!("{path}?***"),
        },
        None => tail.to_owned(),
    };
    format!("{scheme}://{authority}{tail}")
}

/// Where a source is.
enum Origin {
    Http(Url),
    Local(PathBuf),
}

impl Origin {
    fn parse(source: &str) -> Result<Self, FetchError> {
        let bad = |reason: &str| FetchError::BadSource {
            source_shown: without_credentials(source),
            reason: reason.to_owned(),
        };
        if source.is_empty() || source.contains('\0') {
            return Err(bad("expected an http, https or file URL or a path"));
        }
        let Some((scheme, _)) = source.split_once("://") else {
            return Ok(Self::Local(PathBuf::from(source)));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => match Url::parse(source) {
                Ok(url) => Ok(Self::Http(url)),
                Err(error) => Err(bad(&error.to_string())),
            },
            "file" => Url::parse(source)
                .ok()
                .and_then(|url| url.to_file_path().ok())
                .map(Self::Local)
                .ok_or_else(|| bad("expected file:///path on this machine")),
            // A path may contain `://` too, if somebody insists.
            _ if source.starts_with(['/', '.']) => Ok(Self::Local(PathBuf::from(source))),
            _ => Err(bad("expected an http, https or file URL or a path")),
        }
    }
}

/// Why one attempt failed.
enum Failure {
    /// Trying again would not help.
    Final(FetchError),
    /// Trying again may help, not before `wait_at_least`.
    Again { error: TransferError, wait_at_least: Duration },
}

impl Failure {
    fn again(error: TransferError) -> Self {
        Self::Again { error, wait_at_least: Duration::ZERO }
    }
}

/// Why copying a stream into the unfinished file stopped.
enum CopyFailure {
    Read { got: u64, source: io::Error },
    Write(io::Error),
    TooLarge,
}

/// Copies all of `reader`, and gives the number of bytes and their md5 sum.
fn copy_hashed(
    reader: &mut dyn Read,
    writer: &mut dyn Write,
    max_bytes: u64,
    meter: &mut Meter,
) -> Result<(u64, String), CopyFailure> {
    let mut hasher = Md5::new();
    let mut chunk = vec![0; CHUNK];
    let mut total: u64 = 0;
    loop {
        let n = match reader.read(&mut chunk) {
            Ok(0) => return Ok((total, hex::encode(hasher.finalize()))),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(CopyFailure::Read { got: total, source }),
        };
        total += n as u64;
        if total > max_bytes {
            return Err(CopyFailure::TooLarge);
        }
        hasher.update(&chunk[..n]);
        writer.write_all(&chunk[..n]).map_err(CopyFailure::Write)?;
        meter.at(total);
    }
}

fn copy_local(
    path: &Path,
    shown: &str,
    aside: &mut AsideFile,
    options: &FetchOptions,
) -> Result<(u64, String), Failure> {
    let read_error = |source| Failure::Final(FetchError::Read { path: path.to_owned(), source });
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let metadata = fs::metadata(path).map_err(read_error)?;
    if !metadata.is_file() {
        return Err(read_error(io::Error::other("it is not a file")));
    }
    let mut from = File::open(path).map_err(read_error)?;
    let mut meter = Meter::start(&options.progress, shown, Some(metadata.len()));
    let to = aside.path().to_owned();
    copy_hashed(&mut from, aside.file(), options.max_bytes, &mut meter).map_err(|failure| match failure {
        CopyFailure::Read { source, .. } => read_error(source),
        CopyFailure::Write(source) => Failure::Final(FetchError::Write { path: to, source }),
        CopyFailure::TooLarge => {
            Failure::Final(FetchError::TooLarge { source_shown: shown.to_owned(), limit: options.max_bytes })
        }
    })
}

fn expected_md5(source: &str, options: &FetchOptions) -> Result<Option<String>, FetchError> {
    match &options.md5 {
        None => Ok(None),
        Some(md5) if md5.len() == 32 && md5.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Ok(Some(md5.to_ascii_lowercase()))
        }
        Some(md5) => Err(FetchError::BadMd5 { source_shown: without_credentials(source), md5: md5.clone() }),
    }
}

/// The pause after the given failed attempt (the first is 1): doubled each time, varied by half so that
/// many hosts that lost the same server do not come back to it all at once.
fn pause_after(attempt: u32, first: Duration) -> Duration {
    let doubled = first.saturating_mul(1 << (attempt - 1).min(16)).min(LONGEST_PAUSE);
    doubled.mul_f64(rand::random_range(0.5..1.5))
}

#[cfg(test)]
mod tests;
