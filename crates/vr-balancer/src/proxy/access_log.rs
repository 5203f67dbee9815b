//! The access log: a line for each request, written by a thread of its own. A request never waits for it: lines that
//! find the queue full are dropped and counted.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use http::header::{HOST, HeaderMap, HeaderName, REFERER, USER_AGENT};
use http::{Method, Version};
use jiff::Zoned;
use serde::Serialize;

use super::options::{AccessLogOptions, LogFormat};
use super::upstream::now_ms;

/// Lines that wait to be written.
const QUEUE: usize = 8192;
/// The most bytes that are written at once.
const BATCH_BYTES: usize = 64 << 10;
/// The longest part of a line that a client decides about, in bytes.
const LONGEST_FIELD: usize = 2048;
/// How often the thread looks whether it shall reopen its file while there is nothing to write.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The shortest time between two complaints about a log that cannot be written.
const COMPLAIN_EVERY_MS: u64 = 10_000;

/// What a line says about a request, kept from before the request is passed on.
#[derive(Debug)]
pub(super) struct Request {
    client: IpAddr,
    tls: bool,
    method: Method,
    target: String,
    version: Version,
    host: Option<String>,
    referer: Option<String>,
    user_agent: Option<String>,
}

/// How it ended.
pub(super) struct Outcome<'a> {
    pub(super) status: u16,
    pub(super) bytes: u64,
    pub(super) took: Duration,
    pub(super) pool: Option<&'a str>,
    pub(super) node: Option<String>,
    /// False if the answer was broken off.
    pub(super) is_whole: bool,
}

impl Request {
    pub(super) fn new<B>(client: IpAddr, tls: bool, request: &http::Request<B>) -> Self {
        let uri = request.uri();
        let authority = uri.authority().map(|authority| shorten(authority.as_str()));
        Self {
            client: client.to_canonical(),
            tls,
            method: request.method().clone(),
            target: shorten(uri.path_and_query().map_or(uri.path(), |target| target.as_str())),
            version: request.version(),
            host: authority.or_else(|| text(request.headers(), HOST)),
            referer: text(request.headers(), REFERER),
            user_agent: text(request.headers(), USER_AGENT),
        }
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).map(|value| shorten(&String::from_utf8_lossy(value.as_bytes())))
}

fn shorten(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST_FIELD)].to_owned()
}

/// Where lines are handed in.
pub(super) struct AccessLog {
    format: LogFormat,
    lines: SyncSender<String>,
    wishes: Arc<Wishes>,
    dropped: Arc<AtomicU64>,
    /// Fails when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

/// What the thread shall do beside writing.
#[derive(Default)]
struct Wishes {
    reopen: AtomicBool,
    end: AtomicBool,
}

impl AccessLog {
    /// Opens the file and starts the thread.
    pub(super) fn start(options: &AccessLogOptions) -> io::Result<Self> {
        let output = Output::open(&options.file)?;
        let (lines, queue) = sync_channel(QUEUE);
        let (alive, ended) = sync_channel(0);
        let (wishes, dropped) = (Arc::new(Wishes::default()), Arc::new(AtomicU64::new(0)));
        let writer = Writer {
            path: options.file.clone(),
            output,
            wishes: Arc::clone(&wishes),
            dropped: Arc::clone(&dropped),
            complained: None,
            _alive: alive,
        };
        thread::Builder::new().name("access log".to_owned()).spawn(move || writer.run(&queue))?;
        Ok(Self { format: options.format, lines, wishes, dropped, ended: Mutex::new(ended) })
    }

    /// Opens the file anew, as it may have been moved away; what was handed in before goes where it is by then.
    pub(super) fn reopen(&self) {
        self.wishes.reopen.store(true, Ordering::Relaxed);
    }

    /// Writes what has been handed in, and waits for that, but not for longer than `patience`.
    pub(super) fn finish(&self, patience: Duration) {
        self.wishes.end.store(true, Ordering::Relaxed);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(patience);
    }

    /// Lines that were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn write(&self, request: &Request, outcome: &Outcome<'_>) {
        let line = match self.format {
            LogFormat::Combined => combined(request, outcome, &Zoned::now()),
            LogFormat::Json => json(request, outcome, &Zoned::now()),
        };
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn combined(request: &Request, outcome: &Outcome<'_>, now: &Zoned) -> String {
    let mut line = String::with_capacity(256);
    let quoted = |line: &mut String, text: Option<&str>| {
        line.push('"');
        escape(line, text.unwrap_or("-"));
        line.push('"');
    };
    let _ = write!(line, "{} - - [{}] ", request.client, now.strftime("%d/%b/%Y:%H:%M:%S %z"));
    quoted(&mut line, Some(&format!("{} {} {:?}", request.method, request.target, request.version)));
    let _ = write!(line, " {} {} ", outcome.status, outcome.bytes);
    quoted(&mut line, request.referer.as_deref());
    line.push(' ');
    quoted(&mut line, request.user_agent.as_deref());
    line.push('\n');
    line
}

/// As Apache does, so that no field can pretend to be several or another line.
fn escape(line: &mut String, text: &str) {
    for char in text.chars() {
        match char {
            '"' | '\\' => line.extend(['\\', char]),
            char if char.is_control() => {
                let mut bytes = [0; 4];
                for byte in char.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(line, "\\x{byte:02x}");
                }
            }
            char => line.push(char),
        }
    }
}

fn json(request: &Request, outcome: &Outcome<'_>, now: &Zoned) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        time: String,
        client: IpAddr,
        tls: bool,
        method: &'a str,
        host: Option<&'a str>,
        path: &'a str,
        protocol: String,
        status: u16,
        bytes: u64,
        seconds: f64,
        complete: bool,
        pool: Option<&'a str>,
        node: Option<&'a str>,
        referer: Option<&'a str>,
        user_agent: Option<&'a str>,
    }
    let line = Line {
        time: now.strftime("%Y-%m-%dT%H:%M:%S%.6f%:z").to_string(),
        client: request.client,
        tls: request.tls,
        method: request.method.as_str(),
        host: request.host.as_deref(),
        path: &request.target,
        protocol: format!("{:?}", request.version),
        status: outcome.status,
        bytes: outcome.bytes,
        seconds: outcome.took.as_micros() as f64 / 1e6,
        complete: outcome.is_whole,
        pool: outcome.pool,
        node: outcome.node.as_deref(),
        referer: request.referer.as_deref(),
        user_agent: request.user_agent.as_deref(),
    };
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

enum Output {
    Standard,
    File(File),
}

impl Output {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Standard);
        }
        OpenOptions::new().append(true).create(true).mode(0o640).open(path).map(Self::File)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Standard => {
                let mut output = io::stdout().lock();
                output.write_all(bytes)?;
                output.flush()
            }
            Self::File(file) => file.write_all(bytes),
        }
    }
}

struct Writer {
    path: PathBuf,
    output: Output,
    wishes: Arc<Wishes>,
    dropped: Arc<AtomicU64>,
    complained: Option<u64>,
    _alive: SyncSender<()>,
}

impl Writer {
    /// Ends when it shall or nobody can hand lines in any more, after the last of them.
    fn run(mut self, queue: &Receiver<String>) {
        let mut batch = String::new();
        loop {
            let first = queue.recv_timeout(LOOK_EVERY);
            if self.wishes.reopen.swap(false, Ordering::Relaxed) {
                match Output::open(&self.path) {
                    Ok(output) => self.output = output,
                    Err(error) => self.complain("cannot reopen the access log, the old file goes on", &error),
                }
            }
            match first {
                Ok(line) => batch.push_str(&line),
                Err(RecvTimeoutError::Timeout) if !self.wishes.end.load(Ordering::Relaxed) => continue,
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let mut lines = 1;
            while batch.len() < BATCH_BYTES
                && let Ok(line) = queue.try_recv()
            {
                batch.push_str(&line);
                lines += 1;
            }
            if let Err(error) = self.output.write(batch.as_bytes()) {
                self.dropped.fetch_add(lines, Ordering::Relaxed);
                self.complain("cannot write the access log", &error);
            }
            batch.clear();
        }
    }

    fn complain(&mut self, what: &str, error: &io::Error) {
        let now = now_ms();
        if self.complained.is_none_or(|before| now.saturating_sub(before) >= COMPLAIN_EVERY_MS) {
            self.complained = Some(now);
            tracing::error!(file = %self.path.display(), %error, "{what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, agent: &str) -> Request {
        let request = http::Request::builder()
            .uri(target)
            .header(HOST, "shop.example")
            .header(USER_AGENT, agent)
            .body(())
            .unwrap();
        Request::new("::ffff:192.0.2.7".parse().unwrap(), true, &request)
    }

    const OUTCOME: Outcome<'static> = Outcome {
        status: 200,
        bytes: 5,
        took: Duration::from_millis(12),
        pool: Some("shop"),
        node: None,
        is_whole: true,
    };

    #[test]
    fn a_combined_line_is_what_its_readers_expect() {
        let now: Zoned = "2024-02-03T04:05:06+01:00[+01:00]".parse().unwrap();
        assert_eq!(
            combined(&request("/a?b=1", "curl/8 \"x\\y"), &OUTCOME, &now),
            "192.0.2.7 - - [03/Feb/2024:04:05:06 +0100] \"GET /a?b=1 HTTP/1.1\" 200 5 \"-\" \"curl/8 \\\"x\\\\y\"\n"
        );
        let escaped = combined(&request("/", "a\tb"), &OUTCOME, &now);
        assert!(escaped.ends_with("\"a\\x09b\"\n"), "{escaped}");
    }

    #[test]
    fn a_line_of_json_has_everything() {
        let now: Zoned = "2024-02-03T04:05:06.5+01:00[+01:00]".parse().unwrap();
        let line = json(&request("/a?b=1", "x\"y"), &OUTCOME, &now);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["time"], "2024-02-03T04:05:06.500000+01:00");
        assert_eq!((value["client"].as_str(), value["tls"].as_bool()), (Some("192.0.2.7"), Some(true)));
        assert_eq!(
            (value["host"].as_str(), value["user_agent"].as_str()),
            (Some("shop.example"), Some("x\"y"))
        );
        assert_eq!((value["seconds"].as_f64(), value["node"].is_null()), (Some(0.012), true));
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn what_nobody_takes_is_dropped_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("log");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        // Somebody has it open and reads nothing.
        let _reader = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        let log = AccessLog::start(&AccessLogOptions { file: fifo, format: LogFormat::Combined }).unwrap();
        let request = request("/", &"x".repeat(1000));
        for _ in 0..QUEUE * 2 {
            log.write(&request, &OUTCOME);
        }
        assert!(log.dropped() > 0);
    }
}
