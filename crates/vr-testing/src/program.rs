//! Programs that were started: how they ended, and what they say while they run.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

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

/// Runs a program to its end.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn ended(command: &mut Command) -> Ended {
    let output = command.output().expect("the program can be started");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
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
    /// When it ends before.
    #[track_caller]
    pub fn until_output(&mut self, text: &str) -> String {
        until_line(self.0.stdout.as_mut().expect("standard output"), text)
    }

    /// The same with standard error.
    ///
    /// # Panics
    /// When it ends before.
    #[track_caller]
    pub fn until_said(&mut self, text: &str) -> String {
        until_line(self.0.stderr.as_mut().expect("standard error"), text)
    }

    /// Waits for the end, and reads what was not read yet.
    ///
    /// # Panics
    /// When it cannot be read.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (out, err) = (self.0.stdout.take(), self.0.stderr.take());
        // Both at once: a program that writes much to one of them would wait for its reader for ever.
        std::thread::scope(|scope| {
            let read = scope.spawn(|| err.map(|mut err| err.read_to_end(&mut stderr)).transpose());
            out.map(|mut out| out.read_to_end(&mut stdout)).transpose().expect("standard output is read");
            read.join().expect("no panic").expect("standard error is read");
        });
        let code = self.0.wait().expect("the program ends").code();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended { code, stdout: text(stdout), stderr: text(stderr) }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn until_line(stream: &mut impl Read, text: &str) -> String {
    // Byte by byte: what comes after the line is still wanted.
    let mut reader = BufReader::with_capacity(1, stream);
    let mut all = String::new();
    loop {
        let mut line = String::new();
        let length = reader.read_line(&mut line).expect("a line of text");
        assert!(length > 0, "no line with {text:?} in:\n{all}");
        if line.contains(text) {
            return line;
        }
        all += &line;
    }
}
