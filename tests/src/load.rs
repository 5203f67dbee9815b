//! Requests without a pause, counted.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Clients that send one request after the other over connections that they keep.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<LoadReport>>,
}

/// What the clients saw.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LoadReport {
    /// Requests sent.
    pub sent: u64,
    /// Requests without a whole answer of status 200.
    pub failed: u64,
    /// The first reasons of failures.
    pub reasons: Vec<String>,
    /// Answers by the version that they named.
    pub versions: BTreeMap<String, u64>,
}

impl Load {
    /// Begins to ask `http://<address>/` from a number of clients. An answer's version is its line `version: …`.
    pub fn start(address: &str, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let (address, stop) = (address.to_owned(), Arc::clone(&stop));
            std::thread::spawn(move || run(&address, &stop))
        };
        Self { clients: (0..clients).map(client).collect(), stop }
    }

    /// Ends the clients and adds up what they saw.
    pub fn stop(self) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = LoadReport::default();
        for client in self.clients {
            let report = client.join().expect("a client of the load");
            sum.sent += report.sent;
            sum.failed += report.failed;
            sum.reasons.extend(report.reasons);
            for (version, count) in report.versions {
                *sum.versions.entry(version).or_default() += count;
            }
        }
        sum.reasons.truncate(5);
        sum
    }
}

fn run(address: &str, stop: &AtomicBool) -> LoadReport {
    let mut report = LoadReport::default();
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        report.sent += 1;
        match ask(address, &mut connection) {
            Ok(version) => *report.versions.entry(version).or_default() += 1,
            Err(reason) => {
                connection = None;
                report.failed += 1;
                if report.reasons.len() < 5 {
                    report.reasons.push(reason);
                }
            }
        }
    }
    report
}

/// Sends one GET and reads the whole answer; gives the version that it names.
///
/// Written by hand on purpose: a client library would quietly send a request again when its connection was closed,
/// and a dropped request would not be seen.
fn ask(address: &str, kept: &mut Option<BufReader<TcpStream>>) -> Result<String, String> {
    let failed = |doing: &str, e: std::io::Error| format!("{doing}: {e}");
    if kept.is_none() {
        let stream = TcpStream::connect(address).map_err(|e| failed("connect", e))?;
        let limit = Some(Duration::from_secs(20));
        stream.set_read_timeout(limit).map_err(|e| failed("set a time-out", e))?;
        stream.set_write_timeout(limit).map_err(|e| failed("set a time-out", e))?;
        *kept = Some(BufReader::new(stream));
    }
    let Some(connection) = kept.as_mut() else { return Err("no connection".into()) };
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
    connection.get_mut().write_all(request.as_bytes()).map_err(|e| failed("send", e))?;

    let mut line = String::new();
    connection.read_line(&mut line).map_err(|e| failed("read the status", e))?;
    if !line.starts_with("HTTP/1.1 200 ") {
        return Err(format!("answered {:?}", line.trim()));
    }
    let (mut length, mut chunked, mut close) = (0, false, false);
    loop {
        line.clear();
        connection.read_line(&mut line).map_err(|e| failed("read the headers", e))?;
        let header = line.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        match header.split_once(':').map(|(name, value)| (name, value.trim())) {
            Some(("content-length", value)) => length = value.parse().map_err(|_| "bad length".to_owned())?,
            Some(("transfer-encoding", "chunked")) => chunked = true,
            Some(("connection", "close")) => close = true,
            _ => {}
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            line.clear();
            connection.read_line(&mut line).map_err(|e| failed("read a chunk's size", e))?;
            let size =
                usize::from_str_radix(line.trim(), 16).map_err(|_| format!("bad chunk size {line:?}"))?;
            let mut chunk = vec![0; size + 2];
            connection.read_exact(&mut chunk).map_err(|e| failed("read a chunk", e))?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else {
        body.resize(length, 0);
        connection.read_exact(&mut body).map_err(|e| failed("read the body", e))?;
    }
    if close {
        *kept = None;
    }
    let text = String::from_utf8_lossy(&body);
    let version = text.lines().find_map(|line| line.strip_prefix("version:"));
    Ok(version.map_or("?", str::trim).to_owned())
}

/// One GET over a connection of its own; gives the version that the answer names.
pub fn ask_once(address: &str) -> Result<String, String> {
    ask(address, &mut None)
}
