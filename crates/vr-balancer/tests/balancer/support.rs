//! A proxy process, nodes to stand behind it, and clients to stand before it.

use std::convert::Infallible;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vr_balancer::ProxyBalancer;
use vr_common::names::{Node, PoolName};

/// Far more than anything here takes; a test that gets there has found something.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub fn pool(name: &str) -> PoolName {
    name.parse().unwrap()
}

pub fn node(address: impl ToString) -> Node {
    address.to_string().parse().unwrap()
}

/// Waits until the condition holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("it took too long")
}

/// A port range of its own for each test, below the ports that the kernel gives out.
pub fn ports() -> (u16, u16) {
    const SIZE: u16 = 4;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() as u16 % 40 * 400;
    let first = 12_000 + start + NEXT.fetch_add(1, Ordering::Relaxed) * SIZE;
    (first, first + SIZE - 1)
}

/// An address that refuses connections and that nobody else can get as long as this lives.
///
/// A listener that was closed would not do: a process that another test starts in this moment holds it, too, until
/// it runs its own program.
pub struct DeadAddress {
    socket: OwnedFd,
    pub address: SocketAddr,
}

impl DeadAddress {
    pub fn new() -> Self {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = getsockname(&socket).unwrap().try_into().unwrap();
        Self { socket, address }
    }

    pub fn node(&self) -> Node {
        node(self.address)
    }

    pub fn revive(self) -> TcpListener {
        rustix::net::listen(&self.socket, 16).unwrap();
        self.socket.into()
    }
}

pub fn program() -> Command {
    let mut command = vr_common::process::command(env!("CARGO_BIN_EXE_vr-balancer"));
    command.env_remove("RUST_LOG");
    command
}

pub fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

/// A folder for a proxy, and the way it is started there.
pub struct Place {
    pub dir: TempDir,
    pub arguments: Vec<String>,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (first, last) = ports();
        let state = dir.path().join("state").display().to_string();
        let arguments = ["serve", "--state-dir", &state, "--ports", &format!("{first}-{last}")];
        Self { arguments: arguments.map(str::to_owned).to_vec(), dir }
    }

    pub fn with(mut self, more: &[&str]) -> Self {
        self.arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        self
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.state_dir().join("control.sock")
    }

    pub fn balancer(&self) -> ProxyBalancer {
        ProxyBalancer::new("front", self.socket())
    }

    pub fn command(&self) -> Command {
        let mut command = program();
        command.args(&self.arguments);
        command
    }

    /// What the proxies that were started here have said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// A proxy that is ready.
    pub async fn start(&self) -> Process {
        let log = self.dir.path().join("log");
        let log = std::fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
        let mut process = Process(self.command().stderr(log).spawn().unwrap());
        let socket = self.socket();
        eventually("the control socket answers", || {
            assert_eq!(process.0.try_wait().unwrap(), None, "the proxy ended at once");
            UnixStream::connect(&socket).is_ok()
        })
        .await;
        process
    }
}

/// A proxy process that ends with the test.
pub struct Process(pub Child);

impl Process {
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub async fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the process ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A proxy and a balancer for it.
pub async fn proxy() -> (Place, Process, ProxyBalancer) {
    let place = Place::new();
    let process = place.start().await;
    let balancer = place.balancer();
    (place, process, balancer)
}

/// A node that speaks HTTP properly, until it is stopped without mercy.
pub struct HttpNode {
    pub address: SocketAddr,
    /// One for each chunk that `/stream` may send.
    pub chunks: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

pub const STREAM_CHUNKS: usize = 5;
/// How much `/slow` sends, and in how many pieces, with a pause before each.
pub const SLOW_BYTES: usize = 256 << 10;
const SLOW_PIECES: usize = 64;

impl HttpNode {
    pub async fn start(name: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let chunks = Arc::new(Semaphore::new(0));
        let served =
            HttpNode { address, chunks: Arc::clone(&chunks), stop: stop.clone(), tasks: tasks.clone() };
        let name = Bytes::from(name.to_owned());
        tasks.clone().spawn(async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = stop.cancelled() => return,
                };
                let (name, chunks, stop) = (name.clone(), Arc::clone(&chunks), stop.clone());
                tasks.spawn(async move {
                    let service =
                        service_fn(move |request| answer(name.clone(), Arc::clone(&chunks), request));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = connection => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
        });
        served
    }

    pub fn node(&self) -> Node {
        node(self.address)
    }

    /// Closes the listener and every connection, whatever they are doing.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for HttpNode {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// `/` its name, `/head` the request's head, `/echo` the request's body, `/stream` chunks as they are allowed, `/slow` a
/// download that takes a third of a second.
async fn answer(
    name: Bytes,
    chunks: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, hyper::Error>>, Infallible> {
    let whole = |bytes: Bytes| Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
    Ok(Response::new(match request.uri().path() {
        "/head" => {
            let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
            for (name, value) in request.headers() {
                text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
            }
            whole(Bytes::from(text))
        }
        "/echo" => request.into_body().boxed_unsync(),
        "/slow" => {
            let piece = |_| async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(Frame::data(Bytes::from_static(&[b'x'; SLOW_BYTES / SLOW_PIECES])))
            };
            StreamBody::new(stream::iter(0..SLOW_PIECES).then(piece)).boxed_unsync()
        }
        "/stream" => {
            let chunk = move |number| {
                let chunks = Arc::clone(&chunks);
                async move {
                    chunks.acquire().await.unwrap().forget();
                    Ok(Frame::data(Bytes::from(format!("chunk {number}\n"))))
                }
            };
            StreamBody::new(stream::iter(0..STREAM_CHUNKS).then(chunk)).boxed_unsync()
        }
        _ => {
            // As most programs do; the connection could not be used again otherwise.
            let _ = request.into_body().collect().await;
            whole(name)
        }
    }))
}

/// A node that does with each connection what the test says, on a thread each.
pub struct RawNode {
    pub address: SocketAddr,
    /// The first line of every request that was read with [`read_head`] by way of [`RawConnection`].
    pub seen: Arc<Mutex<Vec<String>>>,
}

pub struct RawConnection {
    pub stream: TcpStream,
    seen: Arc<Mutex<Vec<String>>>,
}

impl RawConnection {
    /// The next request's head; none when the proxy closed the connection.
    pub fn head(&mut self) -> Option<String> {
        let head = read_head(&mut self.stream)?;
        self.seen.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
        Some(head)
    }

    pub fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }
}

impl RawNode {
    pub fn start(serve: impl Fn(RawConnection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let node = Self { address, seen: Arc::clone(&seen) };
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (serve, seen) = (Arc::clone(&serve), Arc::clone(&seen));
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                std::thread::spawn(move || serve(RawConnection { stream, seen }));
            }
        });
        node
    }

    pub fn node(&self) -> Node {
        node(self.address)
    }

    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// Reads up to and with the empty line, byte by byte so that nothing behind it is taken.
pub fn read_head(stream: &mut impl Read) -> Option<String> {
    read_until(stream, "\r\n\r\n")
}

pub fn read_until(stream: &mut impl Read, end: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(end.as_bytes()) {
        match stream.read(&mut byte) {
            Ok(1) => bytes.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8(bytes).unwrap())
}

/// A client that says exactly what the test says.
pub struct RawClient(pub TcpStream);

impl RawClient {
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(stream)
    }

    pub fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    pub fn head(&mut self) -> String {
        read_head(&mut self.0).expect("an answer's head")
    }

    /// An answer with a Content-Length: head and body.
    pub fn answer(&mut self) -> (String, String) {
        let head = self.head();
        let length = header(&head, "content-length").expect("a Content-Length").parse().unwrap();
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    pub fn get(&mut self, path: &str) -> (String, String) {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: app.example\r\n\r\n"));
        self.answer()
    }

    pub fn post(&mut self, path: &str, body: &str) -> (String, String) {
        let length = body.len();
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nHost: app.example\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        self.answer()
    }
}

pub fn status(head: &str) -> u16 {
    head.split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no status in {head:?}"))
}

pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|h| h.1)
}

/// Runs what waits for sockets outside of the tasks' threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    in_time(tokio::task::spawn_blocking(work)).await.unwrap()
}

pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
