//! Calls of the program `vrun`: the short ones that are waited for, and `run`, which is let go.
//!
//! Knows vrun's command line and messages; must not know of states or requests.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use vr_common::host_api::RunStatus;
use vr_common::paths::VrRoot;
use vr_common::process;

use crate::files;

/// How big a proc's log gets before it is rotated, in bytes.
pub const LOG_MAX_BYTES: u64 = 10_000_000;
/// How many rotated logs are kept.
pub const LOG_BACKUPS: u32 = 1;
/// The most of vrun's standard error that is kept, in bytes.
const STDERR_LIMIT: usize = 64 * 1024;
/// When vrun's own messages, kept in `vrun.log`, are thrown away, in bytes.
const MESSAGES_LIMIT: u64 = 256 * 1024;
/// The longest status file that is read, in bytes.
const STATUS_LIMIT: u64 = 64 * 1024;
/// The end of vrun's message when another vrun works on the same proc.
const LOCKED: &str = "is locked by another process.";

/// Where a proc's files are.
#[derive(Debug, Clone)]
pub struct ProcFiles {
    /// The proc's folder.
    pub dir: PathBuf,
}

impl ProcFiles {
    /// What vrun is called with; it also is what vrun locks.
    pub fn proc_yaml(&self) -> PathBuf {
        self.dir.join("proc.yaml")
    }

    /// The app's output.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The waiting vrun's own messages.
    pub fn messages(&self) -> PathBuf {
        self.dir.join("vrun.log")
    }

    /// How the last run began and ended.
    pub fn status(&self) -> PathBuf {
        self.dir.join("status.json")
    }

    /// Reads the status file; `None` when there is none yet.
    pub fn run_status(&self) -> io::Result<Option<RunStatus>> {
        match files::read_text(&self.status(), STATUS_LIMIT) {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// How a call of vrun went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// Another vrun works on the proc.
    Locked,
    /// vrun's last message, or what happened to it.
    Failed(String),
}

/// Runs `vrun SUBCOMMAND proc.yaml` to its end and gives its standard output.
///
/// Dropping the future kills vrun. More than `stdout_limit` bytes of output, or a run longer than `deadline`,
/// are failures.
pub async fn call(
    root: &VrRoot,
    subcommand: &'static str,
    files: &ProcFiles,
    deadline: Duration,
    stdout_limit: usize,
) -> Result<Vec<u8>, CallError> {
    let file = files.proc_yaml();
    let output = ask(root, &[OsStr::new(subcommand), file.as_os_str()], deadline, stdout_limit).await?;
    if !output.success {
        let message = output.message;
        return Err(if message.ends_with(LOCKED) { CallError::Locked } else { CallError::Failed(message) });
    }
    Ok(output.stdout)
}

/// How a call of vrun ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Whether its exit status was 0.
    pub success: bool,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// Its last message, or how it ended.
    pub message: String,
}

/// What `vrun --version` says, such as `0.1.0`.
pub async fn version(root: &VrRoot, deadline: Duration) -> Result<String, CallError> {
    let output = ask(root, &[OsStr::new("--version")], deadline, 1000).await?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match said.split_once(' ') {
        Some((_, version)) if output.success => Ok(version.to_owned()),
        _ => Err(CallError::Failed(format!("vrun --version said {said:?}: {}", output.message))),
    }
}

/// Runs `vrun ARGUMENTS` to its end, whatever that is.
///
/// Dropping the future kills vrun. More than `stdout_limit` bytes of output, or a run longer than `deadline`,
/// are failures.
pub async fn ask(
    root: &VrRoot,
    arguments: &[&OsStr],
    deadline: Duration,
    stdout_limit: usize,
) -> Result<Output, CallError> {
    let program = process::sibling("vrun");
    let failed = |text: String| CallError::Failed(text);
    let mut command = process::command(&program);
    command
        .args(arguments)
        .env("VR_ROOT", root.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let mut child =
        start(|| command.spawn()).map_err(|e| failed(format!("cannot start {}: {e}", program.display())))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (out, err, status) =
            tokio::join!(read_bounded(stdout, stdout_limit), read_tail(stderr, STDERR_LIMIT), child.wait());
        let status = status.map_err(|e| failed(format!("cannot wait for vrun: {e}")))?;
        let message = last_message(&err).unwrap_or_else(|| format!("vrun ended with {status}"));
        Ok(Output { success: status.success(), stdout: out.map_err(failed)?, message })
    };
    match tokio::time::timeout(deadline, work).await {
        Ok(done) => done,
        Err(_) => Err(failed(format!("it was not done after {} s and was killed", deadline.as_secs()))),
    }
}

async fn read_bounded(from: Option<impl AsyncRead + Unpin>, limit: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let Some(mut from) = from else { return Ok(bytes) };
    let got = (&mut from).take(limit as u64 + 1).read_to_end(&mut bytes).await;
    // Drained, so that vrun can end and its exit status be known.
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    match got {
        Ok(_) if bytes.len() > limit => Err(format!("its output is longer than {limit} bytes")),
        Ok(_) => Ok(bytes),
        Err(e) => Err(format!("cannot read its output: {e}")),
    }
}

async fn read_tail(from: Option<impl AsyncRead + Unpin>, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Some(mut from) = from else { return bytes };
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut chunk).await {
        bytes.extend_from_slice(&chunk[..n]);
        if bytes.len() > 2 * limit {
            bytes.drain(..bytes.len() - limit);
        }
    }
    bytes
}

/// The last `ERROR:` line without that word, else the last line.
fn last_message(stderr: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(stderr);
    let mut lines = text.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().next()?;
    let line = lines.find_map(|line| line.strip_prefix("ERROR: ")).unwrap_or(last);
    Some(line.chars().take(2_000).collect())
}

/// Starts `vrun run` in a process group of its own, with nothing of ours open, so that it
/// outlives us.
pub fn launch(root: &VrRoot, files: &ProcFiles) -> Result<(Child, Messages), String> {
    let path = files.messages();
    let open = || -> io::Result<(File, u64)> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        if file.metadata()?.len() > MESSAGES_LIMIT {
            file.set_len(0)?;
        }
        let from = file.metadata()?.len();
        Ok((file, from))
    };
    let (file, from) = open().map_err(|e| format!("cannot open {}: {e}", path.display()))?;
    let errors = file.try_clone().map_err(|e| format!("cannot open {}: {e}", path.display()))?;
    let program = process::sibling("vrun");
    let mut command = process::command(&program);
    command
        .arg("run")
        .arg(files.proc_yaml())
        .arg("--log")
        .arg(files.log())
        .args(["--log-max-bytes", &LOG_MAX_BYTES.to_string(), "--log-backups", &LOG_BACKUPS.to_string()])
        .arg("--status-file")
        .arg(files.status())
        .env("VR_ROOT", root.path())
        .current_dir("/")
        .stdout(file)
        .stderr(errors)
        .process_group(0);
    let child = start(|| command.spawn()).map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    Ok((child, Messages { path, from }))
}

/// What one `vrun run` has to say for itself.
#[derive(Debug, Clone)]
pub struct Messages {
    path: PathBuf,
    from: u64,
}

impl Messages {
    /// Its last message, if it left one.
    pub fn last(&self) -> Option<String> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.from.max(length.saturating_sub(STDERR_LIMIT as u64))))?;
            let mut bytes = Vec::new();
            file.take(STDERR_LIMIT as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        last_message(&read().ok()?)
    }

    /// Whether it gave up because another vrun works on the proc.
    pub fn say_locked(&self) -> bool {
        self.last().is_some_and(|message| message.ends_with(LOCKED))
    }
}

/// Held together by those who try a lock, and alone by those who start a program. A child that was forked while a lock was
/// being tried holds it, too, until it executes its program; whoever looks then, vrun among them, finds the lock taken.
static TRIED_LOCKS: RwLock<()> = RwLock::new(());

/// Starts a program while no lock is being tried. All programs of the agent are started this way.
pub fn start<T>(spawn: impl FnOnce() -> T) -> T {
    let _alone = TRIED_LOCKS.write().unwrap_or_else(PoisonError::into_inner);
    spawn()
}

/// Whether no vrun holds the proc.
pub fn is_free(proc_yaml: &Path) -> io::Result<bool> {
    use vr_common::lock::{FileLock, LockError};
    let _together = TRIED_LOCKS.read().unwrap_or_else(PoisonError::into_inner);
    match FileLock::existing(proc_yaml) {
        Ok(_) => Ok(true),
        Err(LockError::Held(_)) => Ok(false),
        Err(LockError::Io { source, .. }) => Err(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_the_last_error_line() {
        let text = b"fetching\nERROR: wrong md5: x\nhint: y\n";
        assert_eq!(last_message(text).as_deref(), Some("wrong md5: x"));
        assert_eq!(last_message(b"a\nb\n\n").as_deref(), Some("b"));
        assert_eq!(last_message(b""), None);
    }
}
