//! One machine that a balancer program runs on: this one, or one that is reached over SSH.
//!
//! All that a backend may do there is in [`Site`]: run a command, read files, put files in place, hold a lock, open
//! a connection, and count connections to nodes. Files are read and written by small scripts for `sh`, which run the
//! same way here and over SSH; they need coreutils, `flock` of util-linux, `awk` and `getent`, as Debian always has.
//!
//! This module knows nothing of pools.

mod connections;
mod files;
mod local;
mod lock;
mod ssh;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use vr_ssh::SshHost;

pub use connections::OpenConnections;
pub use files::{FileOnSite, FileText};
pub use lock::Lock;

/// How long a command may take that says nothing else.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// The most that is kept of what a command says, in bytes of each stream: the files of hundreds of large pools.
const OUTPUT_LIMIT: usize = 64 << 20;

/// A command for a site: words, never a line that somebody glued together.
#[derive(Clone)]
pub struct Command {
    /// What messages call it.
    title: String,
    words: Vec<String>,
    stdin: Vec<u8>,
    deadline: Duration,
    /// It may be ended by whoever comes after us, should we be killed.
    is_marked: bool,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not what it reads: that can be a secret.
        f.debug_tuple("Command").field(&self.title).finish()
    }
}

impl Command {
    /// A program with its arguments.
    pub fn new(words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let words: Vec<String> = words.into_iter().map(Into::into).collect();
        Self { title: words.join(" "), words, stdin: Vec::new(), deadline: DEADLINE, is_marked: false }
    }

    /// A line that an operator wrote for the shell, such as `reload_cmd`.
    pub fn line(line: &str) -> Self {
        Self { title: line.to_owned(), ..Self::new(["sh", "-c", line]) }
    }

    /// A script of ours with its arguments, which it finds in `$1` and so on.
    pub fn script<'a>(title: &str, script: &'a str, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        let words = ["sh", "-c", script, "sh"].into_iter().chain(arguments);
        Self { title: title.to_owned(), ..Self::new(words) }
    }

    /// What it reads from its standard input.
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = bytes;
        self
    }

    /// How long it may take.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// On this machine: lets [`vr_common::process::end_left_behind`] find it should we be killed.
    pub fn marked(mut self) -> Self {
        self.is_marked = true;
        self
    }

    /// What messages call it.
    pub fn title(&self) -> &str {
        &self.title
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Code(i32),
    /// By a signal, or in another way; half a sentence.
    Other(String),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// Its standard output, as far as it is kept.
    pub stdout: Vec<u8>,
    /// Its standard error, as far as it is kept.
    pub stderr: Vec<u8>,
    /// It said more than is kept.
    pub cut: bool,
}

impl Output {
    /// Whether it ended with exit code 0.
    pub fn is_success(&self) -> bool {
        self.status == Status::Code(0)
    }

    /// The standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The program's last words, in one line: of standard error, else of standard output.
    pub fn last_words(&self) -> String {
        let said = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            lines[lines.len().saturating_sub(12)..].join(" / ")
        };
        match said(&self.stderr) {
            text if text.is_empty() => said(&self.stdout),
            text => text,
        }
    }
}

/// Why something on a site was not done.
#[derive(Debug, Error)]
pub enum SiteError {
    /// A program of this machine that cannot be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A command that ended with an error.
    #[error("{command} failed with {status}{}", after_colon(said))]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: Status,
        /// Its last words.
        said: String,
    },
    /// A command that was not done in time.
    #[error("{command} was not done within {} s", after.as_secs_f64())]
    TimedOut {
        /// What was run.
        command: String,
        /// How long it had.
        after: Duration,
    },
    /// What a script of ours found wrong, in its own words.
    #[error("{0}")]
    Script(String),
    /// Somebody else has had the lock all the time.
    #[error("somebody else holds the lock {path} for more than {} s", after.as_secs())]
    Locked {
        /// The lock's file.
        path: String,
        /// How long was waited.
        after: Duration,
    },
    /// The lock's holder ended while the lock was still needed.
    #[error("the lock {path} was lost: its process ended")]
    LockLost {
        /// The lock's file.
        path: String,
    },
    /// A machine that cannot be reached, lets us not in, or has lost us.
    #[error(transparent)]
    Ssh(Box<vr_ssh::SshError>),
    /// A script's answer that makes no sense.
    #[error("{command} gave an answer that cannot be read: {reason}")]
    BadAnswer {
        /// What was run.
        command: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody listens there.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// Where.
        endpoint: String,
        /// Why.
        source: io::Error,
    },
}

impl From<vr_ssh::SshError> for SiteError {
    fn from(error: vr_ssh::SshError) -> Self {
        Self::Ssh(Box::new(error))
    }
}

fn after_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// Something that listens on a site, reached from there.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// A host, as the site calls it, and a port.
    Tcp(String, u16),
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A machine that a balancer program runs on.
#[derive(Debug)]
pub struct Site {
    name: String,
    access: Access,
    tmpdir: String,
}

/// The way to a machine.
#[derive(Debug)]
enum Access {
    /// This machine.
    Local {
        /// Whether commands are run by sudo.
        sudo: bool,
    },
    /// Another one, whose settings say who logs in and whether sudo is needed.
    Ssh(SshHost),
}

impl Site {
    /// This machine. `sudo` is for a user who is not root but may use sudo without a password.
    pub fn local(name: impl Into<String>, sudo: bool) -> Self {
        Self { name: name.into(), access: Access::Local { sudo }, tmpdir: "/tmp".to_owned() }
    }

    /// Another machine. Connects to nothing yet.
    pub fn over_ssh(name: impl Into<String>, host: SshHost) -> Self {
        Self { name: name.into(), access: Access::Ssh(host), tmpdir: "/tmp".to_owned() }
    }

    /// Where new files are written first.
    pub fn with_tmpdir(mut self, tmpdir: impl Into<String>) -> Self {
        self.tmpdir = tmpdir.into();
        self
    }

    /// What operators call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command as root, if the site's settings allow it, and says how it ended.
    pub async fn run(&self, command: &Command) -> Result<Output, SiteError> {
        match &self.access {
            Access::Local { sudo } => local::run(command, *sudo).await,
            Access::Ssh(host) => ssh::run(host, command).await,
        }
    }

    /// Runs a command that has to succeed.
    pub async fn succeed(&self, command: &Command) -> Result<Output, SiteError> {
        let output = self.run(command).await?;
        match output.status {
            Status::Code(0) => Ok(output),
            // Only scripts of ours speak in whole sentences; see `files.rs`.
            Status::Code(files::OWN_WORDS) if command.words.get(3).is_some_and(|word| word == "sh") => {
                Err(SiteError::Script(output.last_words()))
            }
            _ => Err(SiteError::Failed {
                command: command.title.clone(),
                said: output.last_words(),
                status: output.status,
            }),
        }
    }

    /// Sends this to something that listens on the site, and gives what it answers until it closes the connection.
    ///
    /// Over SSH, or with sudo, it is `perl` on the site that connects: sockets that only root may open can be reached, and
    /// a server that forwards no ports is no hindrance.
    pub async fn exchange(
        &self,
        endpoint: &Endpoint,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, SiteError> {
        if let Access::Local { sudo: false } = &self.access {
            return local::exchange(endpoint, &request, deadline).await;
        }
        let command = Command::new(match endpoint {
            Endpoint::Tcp(host, port) => {
                vec!["perl".to_owned(), "-e".to_owned(), EXCHANGE.to_owned(), host.clone(), port.to_string()]
            }
            Endpoint::Unix(path) => {
                vec!["perl".to_owned(), "-e".to_owned(), EXCHANGE.to_owned(), path.display().to_string()]
            }
        });
        let command =
            Command { title: format!("talking to {endpoint}"), ..command.stdin(request).deadline(deadline) };
        let output = self.run(&command).await?;
        match output.status {
            Status::Code(0) if !output.cut => Ok(output.stdout),
            Status::Code(files::OWN_WORDS) => Err(SiteError::Script(output.last_words())),
            Status::Code(0) => {
                Err(SiteError::BadAnswer { command: command.title, reason: "it is too long".to_owned() })
            }
            _ => Err(SiteError::Failed {
                command: command.title,
                said: output.last_words(),
                status: output.status,
            }),
        }
    }
}

/// Connects to a unix socket, or to a host and a port, sends its input and prints the answer.
const EXCHANGE: &str = r#"
use strict; use IO::Socket::UNIX; use IO::Socket::IP;
my ($where, $port) = @ARGV;
my $socket = defined $port ? IO::Socket::IP->new(PeerHost => $where, PeerPort => $port) : IO::Socket::UNIX->new(Peer => $where);
if (!$socket) { print STDERR "cannot connect to $where", defined $port ? " port $port" : "", ": $!\n"; exit 3 }
local $/; my $request = <STDIN>; print $socket $request; $socket->flush;
while (my $length = sysread $socket, my $piece, 65536) { print $piece }
"#;
