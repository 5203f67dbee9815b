//! How soon a change of the built-in proxy's pool is in effect.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use vr_common::process::command;

use super::load::Load;
use super::server::{POOL, Proxy, Upstream};
use super::{PATIENCE, until};
use crate::bench::programs::checked;
use crate::bench::stats::Samples;

/// Between two changes.
const PAUSE: Duration = Duration::from_millis(20);
/// The largest answer of the nodes or the control socket, in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// All changes that were made in one way.
#[derive(Debug)]
pub struct Row {
    /// The way.
    pub name: &'static str,
    /// Until the first request was answered by the new node.
    pub in_effect: Samples,
    /// Until whoever made the change was told that it was made.
    pub acknowledged: Samples,
}

/// What was measured.
#[derive(Debug)]
pub struct Changes {
    /// The first two are those for which there is a mark.
    pub rows: Vec<Row>,
    /// How many requests were answered while the pool was changed under load.
    pub under_load: u64,
}

/// Changes the pool again and again, while one client asks all the time who answers.
pub fn measure(
    proxy: &Proxy,
    program: &Path,
    upstream: &Upstream,
    load: &Load,
    changes: u32,
) -> Result<Changes> {
    let nodes = upstream.nodes();
    let by_socket = |node: &SocketAddr| set(proxy, &[*node]);
    let by_program = |node: &SocketAddr| {
        let mut set = command(program);
        set.arg("--control-socket").arg(proxy.control_socket()).args(["set", POOL, &node.to_string()]);
        checked(&mut set).map(drop)
    };
    eprintln!("changing a pool {changes} times in three ways");
    by_socket(&nodes[0])?;
    let asker = Asker::start(proxy.server().address())?;
    let idle = asker.changes("control socket, nothing else going on", nodes, changes, by_socket)?;
    let background = load.begin(proxy.server())?;
    // The load has begun when it is felt.
    std::thread::sleep(PAUSE * 50);
    let busy =
        asker.changes("control socket, under the load of 64 connections", nodes, changes, by_socket)?;
    let under_load = background.end()?;
    let by_program = asker.changes(
        "`vr-balancer set` from its start, nothing else going on",
        nodes,
        changes,
        by_program,
    )?;
    asker.end()?;
    Ok(Changes { rows: vec![idle, busy, by_program], under_load })
}

/// Makes these the only nodes of the pool, as the library does.
pub fn set(proxy: &Proxy, nodes: &[SocketAddr]) -> Result<()> {
    let body = json!({ "nodes": nodes }).to_string();
    let request = format!(
        "POST /v1/pools/{POOL}/set HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(proxy.control_socket()).context("no control socket")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200 ") {
        bail!("the proxy refused a change: {answer}");
    }
    Ok(())
}

/// A request and its answer.
#[derive(Debug, Clone, Copy)]
struct Answer {
    begun: Instant,
    ended: Instant,
    /// The number of the node that answered.
    node: usize,
}

/// One client that asks again and again, on one connection.
struct Asker {
    answers: Arc<Mutex<Vec<Answer>>>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Asker {
    fn start(address: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(address).context("the proxy is gone")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let answers: Arc<Mutex<Vec<Answer>>> = Arc::default();
        let is_over = Arc::new(AtomicBool::new(false));
        let (all, end) = (Arc::clone(&answers), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let node = ask(&mut stream)?;
                let ended = Instant::now();
                all.lock().unwrap_or_else(PoisonError::into_inner).push(Answer { begun, ended, node });
            }
            Ok(())
        });
        Ok(Self { answers, is_over, thread })
    }

    fn answers(&self) -> MutexGuard<'_, Vec<Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Swaps the pool's only node so often.
    fn changes(
        &self,
        name: &'static str,
        nodes: &[SocketAddr; 2],
        count: u32,
        change: impl Fn(&SocketAddr) -> Result<()>,
    ) -> Result<Row> {
        let (mut in_effect, mut acknowledged) = (Samples::default(), Samples::default());
        let old = self.answers().last().map_or(0, |answer| answer.node);
        for number in 0..count as usize {
            let new = (old + number + 1) % nodes.len();
            self.answers().clear();
            let begin = Instant::now();
            change(&nodes[new])?;
            let told = Instant::now();
            until("a request at the new node", || {
                if self.thread.is_finished() {
                    bail!("a request was not answered as it should be");
                }
                Ok(self.answers().iter().any(|answer| answer.begun >= told))
            })?;
            std::thread::sleep(PAUSE);
            let answers = std::mem::take(&mut *self.answers());
            if answers.iter().any(|answer| answer.begun >= told && answer.node != new) {
                bail!("a node was asked after it was taken out of the pool");
            }
            let first = answers.iter().find(|answer| answer.node == new).context("nobody answered")?;
            in_effect.push(first.ended.duration_since(begin));
            acknowledged.push(told.duration_since(begin));
        }
        Ok(Row { name, in_effect, acknowledged })
    }

    /// Ends it.
    fn end(self) -> Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the client died"))?
    }
}

/// Asks once: the number of the node that answers.
pub fn ask(stream: &mut TcpStream) -> Result<usize> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 || answer.len() as u64 > MAX_ANSWER {
            bail!("an answer has no end: {}", String::from_utf8_lossy(&answer));
        }
        answer.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        if !head.starts_with("HTTP/1.1 200 ") {
            bail!("a request was answered with {head}");
        }
        if body.len() >= length.context("an answer without a length")? {
            let node = body.chars().next().and_then(|first| first.to_digit(10));
            return Ok(node.context("an answer of nobody")? as usize);
        }
    }
}
