//! Programs that were started: how they ended, and what they say while they run.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::{DEADLINE, until};

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output, with what is not UTF-8 replaced.
    pub stdout: String,
    /// The same of standard error.
    pub stderr: String,
}

impl Ended {
    /// Fails the test with everything that was said, unless the exit code is the expected one.
    ///
    /// # Panics
    /// When it is another one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// The line that begins with `ERROR: `, without that.
    ///
    /// # Panics
    /// When there is none, or more than one.
    #[track_caller]
    pub fn error(&self) -> &str {
        let lines: Vec<&str> = self.stderr.lines().filter_map(|line| line.strip_prefix("ERROR: ")).collect();
        assert_eq!(lines.len(), 1, "{}", self.stderr);
        lines[0]
    }
}

/// Runs a program to its end, with an empty input.
///
/// # Panics
/// When it cannot be started, or has not ended within [`DEADLINE`].
#[track_caller]
pub fn ended(command: &mut Command) -> Ended {
    Started::new(command.stdin(Stdio::null())).end()
}

/// A program that runs at the moment. It is killed when the test is over.
#[derive(Debug)]
pub struct Started(pub Child);

impl Started {
    /// Starts it, with both streams coming here.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn new(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Self(child.expect("the program can be started"))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When that is not possible.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("the program gets a signal");
    }

    /// Reads standard output until a line has the text in it, and gives the line.
    ///
    /// # Panics
    /// When it ends before, or there is no such line within [`DEADLINE`].
    #[track_caller]
    pub fn until_output(&mut self, text: &str) -> String {
        until_line(self.0.stdout.as_mut().expect("standard output"), text, DEADLINE)
    }

    /// The same with standard error.
    ///
    /// # Panics
    /// When it ends before, or there is no such line within [`DEADLINE`].
    #[track_caller]
    pub fn until_said(&mut self, text: &str) -> String {
        until_line(self.0.stderr.as_mut().expect("standard error"), text, DEADLINE)
    }

    /// Waits for the end, and reads what was not read yet.
    ///
    /// # Panics
    /// When it has not ended within [`DEADLINE`], or something else still has its streams.
    #[track_caller]
    pub fn end(self) -> Ended {
        self.end_within(DEADLINE)
    }

    #[track_caller]
    fn end_within(mut self, patience: Duration) -> Ended {
        // Both at once: a program that writes much to one of them would wait for its reader for ever.
        let (out, err) = (Rest::read(self.0.stdout.take()), Rest::read(self.0.stderr.take()));
        let deadline = Instant::now() + patience;
        let complete = out.is_complete(deadline) && err.is_complete(deadline);
        let (stdout, stderr) = (out.text(), err.text());
        assert!(complete, "no end within {patience:?}; stdout so far:\n{stdout}\nstderr so far:\n{stderr}");
        let mut code = None;
        until("the program ends", || {
            let status = self.0.try_wait().expect("a child");
            code = status.and_then(|status| status.code());
            status.is_some()
        });
        Ended { code, stdout, stderr }
    }
}

/// What a stream still gives, read by a thread of its own.
struct Rest {
    bytes: Arc<Mutex<Vec<u8>>>,
    // Nothing comes from it; its other side goes at the end of the stream.
    end: Receiver<()>,
}

impl Rest {
    fn read(stream: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (reading, end) = channel();
        let so_far = Arc::clone(&bytes);
        std::thread::spawn(move || {
            let _reading = reading;
            let mut chunk = [0; 8192];
            let mut stream = stream;
            while let Some(length @ 1..) = stream.as_mut().and_then(|stream| stream.read(&mut chunk).ok()) {
                so_far.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..length]);
            }
        });
        Self { bytes, end }
    }

    fn is_complete(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        self.end.recv_timeout(left) == Err(RecvTimeoutError::Disconnected)
    }

    fn text(&self) -> String {
        shown(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn until_line(stream: &mut (impl Read + AsFd), text: &str, patience: Duration) -> String {
    let deadline = Instant::now() + patience;
    let mut all = Vec::new();
    let mut line_begins = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).expect("a deadline that fits");
        match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => continue,
            ready => {
                assert_ne!(ready, Ok(0), "within {patience:?} no line with {text:?} in:\n{}", shown(&all))
            }
        }
        // Byte by byte: what comes after the line is still wanted.
        let mut byte = [0];
        let length = stream.read(&mut byte).expect("a stream that can be read");
        assert!(length > 0, "no line with {text:?} in:\n{}", shown(&all));
        all.extend(byte);
        if byte == *b"\n" {
            let line = shown(&all[line_begins..]);
            if line.contains(text) {
                return line;
            }
            line_begins = all.len();
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use vr_common::process::command;

    use super::*;

    const SHORT: Duration = Duration::from_millis(300);

    fn shell(script: &str) -> Started {
        Started::new(command("sh").args(["-c", script]))
    }

    #[test]
    fn all_that_was_said_is_given_but_what_was_read_before() {
        let mut started = shell("echo one; echo two; echo three >&2; exit 7");
        assert_eq!(started.until_output("on"), "one\n");
        let ended = started.end().expect(7);
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("two\n", "three\n"));
    }

    #[test]
    #[should_panic(expected = "no end within 300ms; stdout so far:\nsaid\n")]
    fn a_program_that_does_not_end_fails_the_test() {
        let mut started = shell("echo begun; echo said; exec sleep 4000");
        started.until_output("begun");
        started.end_within(SHORT);
    }

    #[test]
    #[should_panic(expected = "within 300ms no line with \"wanted\" in:\nothers\n")]
    fn a_line_that_does_not_come_fails_the_test() {
        let mut started = shell("echo others; exec sleep 4000");
        until_line(started.0.stdout.as_mut().unwrap(), "wanted", SHORT);
    }

    #[test]
    #[should_panic(expected = "no line with \"wanted\" in:\nothers\n")]
    fn an_end_before_the_line_fails_the_test() {
        shell("echo others").until_output("wanted");
    }
}
