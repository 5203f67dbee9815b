//! Commands for another machine, and how they end. A command is made of words, which reach the program as they are: no
//! shell there sees anything that it could take for its own.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncRead;

use crate::error::SshError;

/// How long a command may take, unless it says something else.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a command's output is kept, in bytes, unless it says something else.
pub const OUTPUT_LIMIT: usize = 1 << 20;
/// How much of the end of its standard error is kept, in bytes.
pub(crate) const STDERR_LIMIT: usize = 64 << 10;

/// A command for another machine.
#[derive(Debug)]
pub struct Command {
    words: Vec<OsString>,
    name: Option<String>,
    env: Vec<(String, OsString)>,
    dir: Option<PathBuf>,
    pub(crate) input: Input,
    pub(crate) as_root: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) output_limit: usize,
}

/// What a command reads.
pub(crate) enum Input {
    None,
    Bytes(Bytes),
    /// So many bytes.
    Sized(u64, Box<dyn AsyncRead + Send + Unpin>),
    /// As many as there are. The end of the connection looks to the command like the end of its input.
    Unsized(Box<dyn AsyncRead + Send + Unpin>),
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not what it is: that can be a secret.
        match self {
            Self::None => f.write_str("None"),
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Sized(length, _) => write!(f, "Sized({length})"),
            Self::Unsized(_) => f.write_str("Unsized"),
        }
    }
}

impl Command {
    /// A program, found in the `PATH` over there unless it is a path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            words: vec![program.as_ref().to_owned()],
            name: None,
            env: Vec::new(),
            dir: None,
            input: Input::None,
            as_root: false,
            timeout: None,
            output_limit: OUTPUT_LIMIT,
        }
    }

    /// One more argument. Everybody on the host can see it in the list of processes.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.words.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.words.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// What messages call it, when that is more than its program.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// A variable of its environment. Nobody but its user and root can see it.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// The folder that it runs in; the user's home unless said.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// What it reads; nothing unless said.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Bytes>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// So many bytes that it reads. With fewer, the command is ended.
    #[must_use]
    pub fn input_of(mut self, length: u64, reader: impl AsyncRead + Send + Unpin + 'static) -> Self {
        self.input = Input::Sized(length, Box::new(reader));
        self
    }

    /// What it reads, as much as there is. Prefer [`Self::input_of`]: with this one, a command whose caller goes away
    /// sees the end of its input and cannot know that it came too early.
    #[must_use]
    pub fn input_until_end(mut self, reader: impl AsyncRead + Send + Unpin + 'static) -> Self {
        self.input = Input::Unsized(Box::new(reader));
        self
    }

    /// Runs it as root, by sudo when the host's settings say so.
    #[must_use]
    pub fn as_root(mut self) -> Self {
        self.as_root = true;
        self
    }

    /// How long it may take, with the connection; [`TIMEOUT`] unless said, and no limit when it is streamed.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How many bytes of its output are kept; [`OUTPUT_LIMIT`] unless said.
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// What messages call it.
    pub(crate) fn display_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.words[0].to_string_lossy().into_owned())
    }

    /// What a shell over there runs to become this command.
    ///
    /// The command's standard input is not the channel's: that one stays open as long as somebody here waits. When it
    /// ends before the command does, a watcher ends the command, even when the whole connection broke. With
    /// [`Input::Unsized`] there is no way to tell the two ends apart, and no watcher.
    pub(crate) fn script(&self) -> Result<Vec<u8>, SshError> {
        let mut exec = Vec::new();
        if let Some(dir) = &self.dir {
            exec.extend(b"cd -- ");
            quote(dir.as_os_str(), &mut exec)?;
            exec.extend(b" || exit 126\n");
        }
        for (name, value) in &self.env {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(is_part) {
                return Err(invalid(name, "it is no name of a variable"));
            }
            exec.extend(format!("export {name}=").bytes());
            quote(value, &mut exec)?;
            exec.push(b'\n');
        }
        exec.extend(b"exec");
        for word in &self.words {
            exec.push(b' ');
            quote(word, &mut exec)?;
        }
        let length = match &self.input {
            Input::Unsized(_) => {
                exec.push(b'\n');
                return Ok(exec);
            }
            Input::None => None,
            Input::Bytes(bytes) => Some(bytes.len() as u64),
            Input::Sized(length, _) => Some(*length),
        };
        let mut script = Vec::from(GROUP);
        match length {
            None => {
                script.extend(format!("( ( {WATCH} ) <&3 3<&- >/dev/null 2>&1 & )\n").bytes());
                script.extend(exec);
                script.extend(b" 3<&-\n");
            }
            Some(length) => {
                // `head` may read more than that: nothing but the end comes after it.
                let feed =
                    format!("( ( head -c {length}; exec >/dev/null; {WATCH} ) <&3 3<&- 2>/dev/null & )");
                script.extend(feed.bytes());
                script.extend(b" | (\n");
                script.extend(exec);
                script.extend(b" 3<&- )\n");
            }
        }
        Ok(script)
    }
}

/// Keeps the channel's input for the watcher, and finds out what the watcher may end: the whole process group, but only
/// if it was made for this command by sshd (which makes a session) or is that of the sudo above it.
const GROUP: &str = "exec 3<&0 </dev/null\n\
    g=$$\n\
    if read -r s </proc/$$/stat; then set -- ${s##*) }; [ \"$3\" != $$ ] && [ \"$3\" != $PPID ] || g=0; fi 2>/dev/null\n\
    set --\n";

/// Waits for the end of the channel's input and ends the command, unless it ended by itself.
const WATCH: &str =
    "trap \"\" TERM HUP INT; cat >/dev/null; kill -0 $$ || exit; kill -TERM $g; sleep 5; kill -KILL $g";

/// Writes a word so that a shell reads it as one, whatever it is.
fn quote(word: &OsStr, script: &mut Vec<u8>) -> Result<(), SshError> {
    let bytes = word.as_bytes();
    if bytes.contains(&0) {
        return Err(invalid(&word.to_string_lossy(), "it has a zero byte in it"));
    }
    script.push(b'\'');
    for &byte in bytes {
        if byte == b'\'' { script.extend(b"'\\''") } else { script.push(byte) }
    }
    script.push(b'\'');
    Ok(())
}

pub(crate) fn invalid(what: &str, reason: &'static str) -> SshError {
    SshError::Invalid { what: format!("{:?}", what.chars().take(100).collect::<String>()), reason }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code. A command with input that a signal ended has 128 and the signal's number, as in
    /// shells.
    Code(u32),
    /// By a signal, such as `TERM`.
    Signal(String),
}

impl Status {
    /// Whether it was a success.
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }

    /// The exit code, if it has one.
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Code(code) => Some(*code),
            Self::Signal(_) => None,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(name) => write!(f, "signal {name}"),
        }
    }
}

/// What is known of a command that ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// The beginning of its standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// Whether there was more of it.
    pub is_truncated: bool,
    /// The end of its standard error, with what is not UTF-8 replaced.
    pub stderr: String,
    pub(crate) host: String,
    pub(crate) command: String,
}

impl Output {
    /// The output of a command that succeeded.
    ///
    /// # Errors
    /// [`SshError::Failed`] when it did not.
    pub fn expect_success(self) -> Result<Self, SshError> {
        if self.status.success() { Ok(self) } else { Err(self.into_failure()) }
    }

    /// The error that this command is.
    pub fn into_failure(self) -> SshError {
        let Self { host, command, status, stderr, .. } = self;
        SshError::Failed { host, command, status, stderr }
    }

    /// Its standard output, with what is not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use vr_common::process::command;

    use super::*;

    /// Runs the script with a shell of this machine.
    fn run(wanted: &Command, shell: &[&str], input: &[u8]) -> String {
        let script = wanted.script().unwrap();
        let mut shell_command = command(shell[0]);
        shell_command.args(&shell[1..]).arg("-c").arg(OsStr::from_bytes(&script));
        let mut child = shell_command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, input).unwrap();
        // Open until the end, as a channel is.
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn words_reach_the_program_as_they_are() {
        let odd = "a 'b' \"c\" $HOME `id` \\n \n * ~ ! # & ; | < > ( ) { } [ ] ? % = \t \u{e4}";
        for shell in [&["sh"][..], &["bash"], &["bash", "--posix"]] {
            let wanted = Command::new("printf").args(["%s|", odd, "", "-x"]).env("A", "it's");
            assert_eq!(run(&wanted, shell, b""), format!("{odd}||-x|"));
            let wanted =
                Command::new("sh").args(["-c", "printf %s \"$A$PWD\"; cat"]).env("A", odd).dir("/usr");
            assert_eq!(run(&wanted.input("x\0y"), shell, b"x\0y"), format!("{odd}/usrx\0y"));
        }
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let refused = |wanted: Command| wanted.script().unwrap_err().to_string();
        assert!(refused(Command::new("a").arg("b\0c")).contains("zero byte"));
        assert!(refused(Command::new("a").env("B C", "")).contains("\"B C\" cannot be used"));
        assert!(refused(Command::new("a").env("1", "")).contains("no name of a variable"));
    }

    #[test]
    fn the_input_is_in_no_message() {
        let shown = format!("{:?}", Command::new("a").input("hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
