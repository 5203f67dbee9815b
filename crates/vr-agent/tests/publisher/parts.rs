//! What the listener's tests are made of: the listener as a child, a Redis server, and a stand-in for Supervisor's
//! XML-RPC server. All end with the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use vr_common::process::command;
use vr_common::supervisor::fault;
use vr_common::xmlrpc::{Fault, Value, read_call, write_fault, write_response};

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn vectors() -> Json {
    serde_json::from_str(include_str!("../../../vr-common/tests/data/vectors.json")).unwrap()
}

/// Waits until `look` finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Ends a child for good.
pub fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

pub struct RedisServer {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl RedisServer {
    pub fn start() -> Self {
        // Another test may take the port before Redis does.
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let port = free_port();
            if let Some(child) = Self::spawn(dir.path(), port) {
                return Self { child, dir, port };
            }
        }
        panic!("redis-server does not start");
    }

    fn spawn(dir: &Path, port: u16) -> Option<Child> {
        let mut child = command("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()])
            .arg("--dir")
            .arg(dir)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        until("redis-server", || {
            if child.try_wait().unwrap().is_some() {
                return Some(None);
            }
            let mut connection = client.get_connection_with_timeout(PATIENCE).ok()?;
            redis::cmd("PING").exec(&mut connection).ok().map(Some)
        })?;
        Some(child)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub fn kill(&mut self) {
        end(&mut self.child);
    }

    /// Starts it again where it was, without anything it knew.
    pub fn start_again(&mut self) {
        self.child = Self::spawn(self.dir.path(), self.port).expect("the port is still free");
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection_with_timeout(PATIENCE).unwrap()
    }

    /// All messages of the channel from now on, until the server ends.
    pub fn subscribe(&self) -> Messages {
        let (sender, messages) = mpsc::channel();
        let (ready, subscribed) = mpsc::channel();
        let mut connection = self.connection();
        thread::spawn(move || {
            let mut subscription = connection.as_pubsub();
            subscription.subscribe("proc_events").unwrap();
            ready.send(()).unwrap();
            while let Ok(message) = subscription.get_message() {
                let text: String = message.get_payload().unwrap();
                if sender.send(serde_json::from_str(&text).unwrap()).is_err() {
                    break;
                }
            }
        });
        subscribed.recv_timeout(PATIENCE).unwrap();
        Messages(messages)
    }

    /// The cache of a host: what is known of each proc.
    pub fn cache(&self, host: &str) -> serde_json::Map<String, Json> {
        let fields: Vec<(String, String)> =
            redis::cmd("HGETALL").arg(format!("host_procs:{host}")).query(&mut self.connection()).unwrap();
        fields.into_iter().map(|(name, info)| (name, serde_json::from_str(&info).unwrap())).collect()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

pub struct Messages(mpsc::Receiver<Json>);

impl Messages {
    pub fn next(&self) -> Json {
        self.0.recv_timeout(PATIENCE).expect("a message")
    }

    /// Skips messages up to the one of that event of that process or group.
    pub fn next_of(&self, event: &str, name: &str) -> Json {
        let end = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while Instant::now() < end {
            if let Ok(message) = self.0.recv_timeout(Duration::from_millis(100)) {
                if message["event"] == event && message["name"] == name {
                    return message;
                }
                seen.push(message);
            }
        }
        panic!("no {event} of {name}, but {seen:#?}");
    }
}

/// Answers as Supervisor would, with the processes of the vectors.
pub struct StandInSupervisor {
    pub url: String,
    silent: Arc<AtomicBool>,
}

impl StandInSupervisor {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let silent = Arc::new(AtomicBool::new(false));
        let is_silent = Arc::clone(&silent);
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                if !is_silent.load(Ordering::SeqCst) {
                    let _ = answer(&mut stream.unwrap());
                }
            }
        });
        Self { url, silent }
    }

    /// From now on, or no longer, connections are closed without an answer.
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }
}

fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(&mut *stream);
    let (mut line, mut length) = (String::new(), 0);
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let call = read_call(&body).unwrap();
    let infos = vectors()["supervisor_process_info"].as_object().unwrap().clone();
    let result = match (call.method.as_str(), call.params.as_slice()) {
        ("supervisor.getAllProcessInfo", []) => {
            Some(Json::Array(infos.into_iter().map(|(_, v)| v).collect()))
        }
        ("supervisor.getProcessInfo", [Value::String(name)]) => infos.get(name).cloned(),
        other => panic!("{other:?}"),
    };
    let document = match result {
        Some(result) => write_response(&Value::from_json("result", &result).unwrap()).unwrap(),
        None => write_fault(&Fault { code: fault::BAD_NAME, message: "BAD_NAME".into() }),
    };
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{document}",
        document.len()
    )
}

/// The listener under test; the test speaks Supervisor's part.
pub struct Listener {
    child: Child,
    input: Option<ChildStdin>,
    output: mpsc::Receiver<Vec<u8>>,
    log: Option<thread::JoinHandle<String>>,
    said: Vec<u8>,
}

impl Listener {
    pub fn start(variables: &[(&str, &str)]) -> Self {
        let mut child = command(env!("CARGO_BIN_EXE_proc_publisher"))
            .env_clear()
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, output) = mpsc::channel();
        let mut stdout = child.stdout.take().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                let _ = sender.send(buffer[..n].to_vec());
            }
        });
        let mut stderr = child.stderr.take().unwrap();
        let log = thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let input = child.stdin.take();
        Self { child, input, output, log: Some(log), said: Vec::new() }
    }

    pub fn start_with(supervisor: &str, redis: &str) -> Self {
        let variables =
            [("SUPERVISOR_SERVER_URL", supervisor), ("REDIS_URL", redis), ("HOSTNAME", "somewhere")];
        let mut listener = Self::start(&variables);
        listener.expect("READY\n");
        listener
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The listener says exactly this next, and at once: nothing that it waits for takes as long as this allows.
    fn expect(&mut self, text: &str) {
        while self.said.len() < text.len() {
            let more = self.output.recv_timeout(Duration::from_secs(4));
            self.said.extend(more.unwrap_or_else(|_| panic!("no {text:?} in time")));
        }
        let rest = self.said.split_off(text.len());
        assert_eq!(String::from_utf8_lossy(&self.said), text);
        self.said = rest;
    }

    pub fn write(&mut self, text: &str) {
        self.input.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Sends an event and sees it accepted.
    pub fn event(&mut self, name: &str, payload: &str) {
        self.write(&format!(
            "ver:3.0 server:supervisor serial:1 pool:proc_publisher poolserial:1 eventname:{name} len:{}\n{payload}",
            payload.len()
        ));
        self.expect("RESULT 2\nOKREADY\n");
    }

    /// Closes the listener's input and gives how it ended, what else it said, and its log.
    pub fn finish(mut self) -> (ExitStatus, String, String) {
        drop(self.input.take());
        let status = until("the listener's end", || self.child.try_wait().unwrap());
        while let Ok(more) = self.output.recv_timeout(PATIENCE) {
            self.said.extend(more);
        }
        let log = self.log.take().unwrap().join().unwrap();
        (status, String::from_utf8_lossy(&self.said).into_owned(), log)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
