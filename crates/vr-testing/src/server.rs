//! An HTTP server on the loopback interface that answers what it is told.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a client may say nothing: one that is silent must not hold up the others, nor the end of the test.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer to a GET.
#[derive(Debug, Clone)]
pub enum Answer {
    /// 200 with this body.
    Body(Vec<u8>),
    /// 200 with this body and the promise of so many bytes, after which the connection ends.
    Short(Vec<u8>, u64),
    /// A status, such as `404 Not Found`, with nothing else.
    Status(&'static str),
}

/// The server. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one that answers by path, such as `/file`.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(answers: impl Fn(&str) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopped);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if seen.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away has its own reasons.
                let _answered = stream.and_then(|stream| answer(stream, &answers));
            }
        });
        Self { address, stopped, thread: Some(thread) }
    }

    /// The URL of a path that begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // It waits for a connection.
        let _woken = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn answer(stream: TcpStream, answers: &impl Fn(&str) -> Answer) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    let (status, length, body) = match answers(path) {
        Answer::Body(body) => ("200 OK", body.len() as u64, body),
        Answer::Short(body, length) => ("200 OK", length, body),
        Answer::Status(status) => (status, 0, Vec::new()),
    };
    let mut stream = &stream;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    stream.write_all(&body)
}
