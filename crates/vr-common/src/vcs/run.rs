//! Runs git and hg with a deadline, without anything that could ask a question, and keeps what they said.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::{RepoUrl, VcsError};

/// The most bytes of standard output, and how many of the last ones of standard error are kept.
const LARGEST_OUTPUT: usize = 4 * 1024 * 1024;
const KEEP_ERRORS: usize = 64 * 1024;
/// How many of the last lines on standard error a message quotes, and how long they may be together.
const QUOTED_LINES: usize = 4;
const QUOTED_CHARS: usize = 600;
/// How long after a program's end its streams may stay open (a helper of it may have inherited them).
const DRAIN: Duration = Duration::from_secs(2);

/// What a program said and how it ended.
pub(super) struct Ended {
    pub success: bool,
    pub stdout: Vec<u8>,
    /// The last lines of standard error, on one line.
    pub said: String,
}

impl Ended {
    /// Standard output without the spaces around it, for what is a text, such as a hash.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

/// One repository, one program, one deadline.
pub(super) struct Runner<'a> {
    pub url: &'a RepoUrl,
    /// The URL as the program gets it.
    pub address: String,
    pub program: &'static str,
    pub deadline: Instant,
}

impl Runner<'_> {
    /// Runs a command; `step` is what it is called in messages.
    /// Only a program that cannot be started, does not end in time or says more than 4 MiB is an error.
    pub fn run(&self, step: &str, mut command: Command) -> Result<Ended, VcsError> {
        let start_error = |source| VcsError::Start { program: self.program, source };
        let timed_out =
            || VcsError::TimedOut { url: self.url.to_string(), program: self.program, step: step.to_owned() };
        if Instant::now() >= self.deadline {
            return Err(timed_out());
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        crate::process::mark(&mut command);
        let mut child = command.spawn().map_err(start_error)?;
        let stdout = Kept::collect(child.stdout.take(), |kept, chunk| {
            // One more shows that there was more.
            let room = LARGEST_OUTPUT + 1 - kept.len();
            kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
        });
        let stderr = Kept::collect(child.stderr.take(), |kept, chunk| {
            kept.extend_from_slice(chunk);
            let surplus = kept.len().saturating_sub(KEEP_ERRORS);
            kept.drain(..surplus);
        });
        let ended = wait_until(&mut child, self.deadline).map_err(start_error)?;
        if !ended {
            kill_group(&child);
            child.wait().map_err(start_error)?;
            return Err(timed_out());
        }
        let drained = Instant::now() + DRAIN;
        let stdout = stdout.bytes_by(drained);
        let stderr = String::from_utf8_lossy(&stderr.bytes_by(drained)).into_owned();
        // Nothing that git or hg started may outlive it. Only after this is the child's number free for others.
        kill_group(&child);
        let status = child.wait().map_err(start_error)?;
        if let Some(signal) = status.signal() {
            // That says nothing about the repository.
            return Err(self.failed(step, format!("it was ended by signal {signal}")));
        }
        if stdout.len() > LARGEST_OUTPUT {
            return Err(self.failed(step, format!("expected at most {LARGEST_OUTPUT} bytes of output")));
        }
        Ok(Ended { success: status.success(), stdout, said: last_lines(&self.url.hide_in(&stderr)) })
    }

    /// Like [`Runner::run`], and a failure of the program is [`VcsError::Failed`]; gives its standard output, trimmed.
    pub fn must(&self, step: &str, command: Command) -> Result<String, VcsError> {
        let ended = self.run(step, command)?;
        if ended.success { Ok(ended.text()) } else { Err(self.failed(step, ended.said)) }
    }

    pub fn failed(&self, step: &str, said: String) -> VcsError {
        VcsError::Failed { url: self.url.to_string(), program: self.program, step: step.to_owned(), said }
    }

    pub fn unreachable(&self, said: String) -> VcsError {
        VcsError::Unreachable { url: self.url.to_string(), said }
    }

    pub fn bad_content(&self, said: String) -> VcsError {
        VcsError::BadContent { url: self.url.to_string(), said }
    }

    /// A repository from elsewhere must not make this machine's own ones part of itself. `what` the other one is, such
    /// as `submodule`.
    pub fn must_be_as_far(&self, part: &RepoUrl, what: &str) -> Result<(), VcsError> {
        if self.url.is_local() || part.is_remote() {
            return Ok(());
        }
        let said = format!("its {what} {part} may not be on this machine, as the repository itself is not");
        Err(self.bad_content(said))
    }

    pub fn unknown_revision(&self, revision: &str) -> VcsError {
        VcsError::UnknownRevision { url: self.url.shown(), revision: revision.to_owned() }
    }
}

/// Whether a program says that this machine does not let it work, whatever the state of its files.
pub(super) fn is_about_the_machine(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    [
        "no space left on device",
        "disk quota exceeded",
        "file too large",
        "permission denied",
        "read-only file system",
        "cannot allocate memory",
        "out of memory",
        "too many open files",
    ]
    .iter()
    .any(|words| said.contains(words))
}

/// Waits for the end of a child; `false` when the deadline comes first.
fn wait_until(child: &mut Child, deadline: Instant) -> std::io::Result<bool> {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return Err(std::io::Error::other("the process has no number"));
    };
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Kills the process group of a child that was not waited for yet, so that the number is still its own.
fn kill_group(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// What a thread keeps of a stream.
struct Kept {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Kept {
    fn collect<R: Read + Send + 'static>(
        stream: Option<R>,
        keep: impl Fn(&mut Vec<u8>, &[u8]) + Send + 'static,
    ) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (tell, ended) = channel();
        let for_thread = Arc::clone(&bytes);
        if let Some(mut stream) = stream {
            thread::spawn(move || {
                let mut chunk = [0; 8192];
                loop {
                    match stream.read(&mut chunk) {
                        Ok(0) => break,
                        Ok(n) => {
                            keep(&mut for_thread.lock().unwrap_or_else(PoisonError::into_inner), &chunk[..n])
                        }
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(_) => break,
                    }
                }
                let _ = tell.send(());
            });
        }
        Self { bytes, ended }
    }

    /// The bytes, complete unless somebody keeps the stream open for longer than until `deadline`.
    fn bytes_by(self, deadline: Instant) -> Vec<u8> {
        match self.ended.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(()) | Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {}
        }
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The last few lines that say something, joined with `; `.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        // Progress is drawn over itself with carriage returns; the last drawing counts.
        .map(|line| line.rsplit('\r').find(|part| !part.trim().is_empty()).unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .collect();
    let joined = lines[lines.len().saturating_sub(QUOTED_LINES)..].join("; ");
    let surplus = joined.chars().count().saturating_sub(QUOTED_CHARS);
    let quoted: String = joined.chars().skip(surplus).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if quoted.is_empty() { "it said nothing".to_owned() } else { quoted }
}
