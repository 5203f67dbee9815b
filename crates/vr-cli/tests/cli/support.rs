//! A tiny HTTP server with canned answers, and the program run against it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

/// A request as the server got it.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// With names in lower case.
    pub headers: BTreeMap<String, String>,
    /// JSON, or null.
    pub body: Value,
}

impl Request {
    /// `PATCH /api/v1/swarms/1/ {"version":"v2"}`; the body only when there is one.
    pub fn line(&self) -> String {
        let line = format!("{} {}", self.method, self.path);
        if self.body.is_null() { line } else { format!("{line} {}", self.body) }
    }
}

/// What the server answers.
pub enum Reply {
    /// Status and body.
    Json(u16, Value),
    /// 201 with a `Location`.
    Created(&'static str),
    /// 200 with a stream of events, which ends.
    Events(String),
    /// Nothing: the connection breaks.
    HangUp,
}

/// A list's only page.
pub fn page(objects: Value) -> Reply {
    let count = objects.as_array().map_or(0, Vec::len);
    Reply::Json(
        200,
        serde_json::json!({
            "meta": {"limit": 100, "offset": 0, "total_count": count, "next": null, "previous": null},
            "objects": objects,
        }),
    )
}

type Handler = dyn FnMut(&Request) -> Reply + Send;

/// A server on 127.0.0.1; dropping it frees its port.
pub struct Server {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one on a free port.
    pub fn start(handler: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), handler)
    }

    /// Starts one at an address.
    pub fn start_at(address: SocketAddr, handler: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let (log, stop) = (requests.clone(), stopping.clone());
        let mut handler: Box<Handler> = Box::new(handler);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                serve(stream.unwrap(), &log, &mut *handler);
            }
        });
        Self { address, requests, stopping, thread: Some(thread) }
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// [`Request::line`] of all requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(Request::line).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, handler: &mut Handler) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let first = line();
    let mut words = first.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let mut headers = BTreeMap::new();
    loop {
        let header = line();
        let Some((name, value)) = header.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let request = Request { method: method.to_owned(), path: path.to_owned(), headers, body };
    log.lock().unwrap().push(request.clone());

    let (head, body) = match handler(&request) {
        Reply::HangUp => return,
        Reply::Json(status, body) => {
            (format!("{status} X\r\nContent-Type: application/json"), body.to_string())
        }
        Reply::Created(location) => (format!("201 Created\r\nLocation: {location}"), String::new()),
        Reply::Events(text) => ("200 OK\r\nContent-Type: text/event-stream".to_owned(), text),
    };
    let length = body.len();
    let answer = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    // A client that went away already knows enough.
    let _ = stream.write_all(answer.as_bytes());
}

/// How the program ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The program with an environment of its own.
pub struct Cli {
    pub home: TempDir,
    pub environment: BTreeMap<&'static str, String>,
}

impl Cli {
    /// One that is told nothing.
    pub fn bare() -> Self {
        Self { home: tempfile::tempdir().unwrap(), environment: BTreeMap::new() }
    }

    /// One that is told of a server and a login.
    pub fn of(server: &Server) -> Self {
        let mut cli = Self::bare();
        cli.environment = BTreeMap::from([
            ("VELOCIRAPTOR_URL", server.url()),
            ("VELOCIRAPTOR_USERNAME", "admin".to_owned()),
            ("VELOCIRAPTOR_PASSWORD", "hunter2".to_owned()),
        ]);
        cli
    }

    /// The command, with both streams piped.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = vr_common::process::command(env!("CARGO_BIN_EXE_vr-cli"));
        command.env_clear().env("HOME", self.home.path()).envs(&self.environment).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Ended {
        let output = self.command(args).output().unwrap();
        Ended {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
