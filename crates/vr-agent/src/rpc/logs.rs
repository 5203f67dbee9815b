//! Logs of processes, read in parts as Supervisor gives them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use vr_common::supervisor::fault;
use vr_common::xmlrpc::{Fault, Value};

use super::answer::Allowance;
use super::faults::{about, bare, of_look};
use super::procs::{Target, capped};
use crate::host::Host;
use crate::logs::{LogFile, Window};

/// How long a look at the disk may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);

/// Where the log of a process is, also of one that was deleted a while ago.
pub(super) async fn path(host: &Arc<Host>, name: &str) -> Result<PathBuf, Fault> {
    let Some(Target::Process(process)) = Target::parse(name) else {
        return Err(about(fault::BAD_NAME, name));
    };
    let host = Arc::clone(host);
    let found = off_thread(move || Ok(host.log_file(&process))).await;
    found.map_err(|_| bare(fault::FAILED))?.map_err(|e| of_look(name, &e))
}

/// `readProcessStdoutLog`.
pub(super) async fn read(
    path: PathBuf,
    offset: i64,
    length: i64,
    answer: &mut Allowance,
) -> Result<Value, Fault> {
    let failed = |_: io::Error| bare(fault::FAILED);
    let opened = path.clone();
    let file = off_thread(move || LogFile::open(&opened)).await.map_err(failed)?;
    let file = file.ok_or_else(|| about(fault::NO_FILE, path.display()))?;
    let window =
        Window::of_read(file.size(), offset, length).map_err(|_| bare(fault::BAD_ARGUMENTS))?.within(&file);
    answer.spend_on_log(usize::try_from(window.length).unwrap_or(usize::MAX)).await?;
    let text = off_thread(move || file.read(window)).await.map_err(failed)?;
    Ok(Value::String(lossy(text)))
}

/// `tailProcessStdoutLog`: a text, where the log ends, and whether there was more than was asked for.
pub(super) async fn tail(
    path: PathBuf,
    offset: i64,
    length: i64,
    answer: &mut Allowance,
) -> Result<Value, Fault> {
    let triple = |text, end, overflow: bool| {
        Ok(Value::Array(vec![Value::String(text), capped(end), Value::Boolean(overflow)]))
    };
    let file = match off_thread(move || LogFile::open(&path)).await {
        Ok(Some(file)) => file,
        Ok(None) => return triple(String::new(), 0, false),
        Err(_) => return triple(String::new(), offset, false),
    };
    let end = i64::try_from(file.size()).unwrap_or(i64::MAX);
    let (window, overflow) = Window::of_tail(file.size(), offset, length);
    let window = window.within(&file);
    answer.spend_on_log(usize::try_from(window.length).unwrap_or(usize::MAX)).await?;
    match off_thread(move || file.read(window)).await {
        Ok(text) => triple(lossy(text), end, overflow),
        Err(_) => triple(String::new(), offset, false),
    }
}

/// Logs hold what apps write, which need not be text.
fn lossy(text: Vec<u8>) -> String {
    String::from_utf8(text).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Reads files where that holds up nobody.
pub(super) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match timeout(LOOK_DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(done) => done.unwrap_or_else(|e| Err(io::Error::other(e))),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the disk takes too long")),
    }
}
