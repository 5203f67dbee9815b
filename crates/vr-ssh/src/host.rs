//! A host that commands run on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::{OnceCell, mpsc};
use tokio::time::{Instant, sleep, timeout_at};

use crate::command::{Command, Output, Status, TIMEOUT};
use crate::connection::Connection;
use crate::error::SshError;
use crate::process::{Chunk, Failure, Process, Sink};
use crate::settings::SshSettings;

/// How many pieces of output wait for their reader; each has at most 32 KiB.
const CHUNKS: usize = 16;
/// The longest line, in bytes; a longer one comes in pieces.
const LONGEST_LINE: usize = 64 << 10;
/// How long to wait before a host that has no room for one more command is asked again.
const NO_ROOM: Duration = Duration::from_millis(100);

/// A host. Copies are the same host and share its connection.
#[derive(Clone)]
pub struct SshHost {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    settings: SshSettings,
    /// What all who want something share: a connection, the attempt to make one, or how the attempt failed.
    shared: Mutex<Attempt>,
}

type Attempt = Arc<OnceCell<Result<Arc<Connection>, SshError>>>;

impl std::fmt::Debug for SshHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshHost")
            .field("name", &self.inner.name)
            .field("settings", &self.inner.settings)
            .finish()
    }
}

impl SshHost {
    /// A host by its name or address. Nothing happens until something is asked for.
    pub fn new(name: impl Into<String>, settings: SshSettings) -> Self {
        Self { inner: Arc::new(Inner { name: name.into(), settings, shared: Mutex::default() }) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its settings.
    pub fn settings(&self) -> &SshSettings {
        &self.inner.settings
    }

    /// Runs a command to its end, whatever that is.
    ///
    /// # Errors
    /// When it could not be run, or nobody knows how it ended.
    pub async fn run(&self, command: Command) -> Result<Output, SshError> {
        let limit = command.timeout.unwrap_or(TIMEOUT);
        let (host, name) = (self.inner.name.clone(), command.display_name());
        let mut attempt = None;
        if let Ok(result) = timeout_at(Instant::now() + limit, self.run_shared(command, &mut attempt)).await {
            return result;
        }
        // The next one should not wait for a connection over which nothing can be begun, such as one that a firewall
        // has forgotten.
        if let Some((connection, begun)) = attempt
            && !begun.load(Ordering::Relaxed)
        {
            self.inner.forget(&connection);
        }
        Err(SshError::Deadline { host, command: name, after: limit })
    }

    /// Runs a command that has to succeed.
    ///
    /// # Errors
    /// When it did not, could not be run, or nobody knows how it ended.
    pub async fn check(&self, command: Command) -> Result<Output, SshError> {
        self.run(command).await?.expect_success()
    }

    /// Begins a command and gives its output as it comes.
    ///
    /// It has a connection of its own, so that a slow reader holds up nobody else.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn stream(&self, command: Command) -> Result<Running, SshError> {
        let host = self.inner.name.clone();
        let deadline = command.timeout.map(|after| Deadline {
            at: Instant::now() + after,
            error: SshError::Deadline { host: host.clone(), command: command.display_name(), after },
        });
        let connect = Connection::open(&self.inner.name, &self.inner.settings);
        let connection = match &deadline {
            None => connect.await?,
            Some(Deadline { at, error }) => timeout_at(*at, connect).await.map_err(|_| error.clone())??,
        };
        let (sender, chunks) = mpsc::channel(CHUNKS);
        let process = Process::start(Arc::new(connection), None, command, Sink::Send(sender));
        let (lines, begun) = Default::default();
        Ok(Running { chunks, process, host, deadline, lines, begun })
    }

    /// Closes the connection, once what runs over it has ended.
    pub fn disconnect(&self) {
        *self.attempt() = Attempt::default();
    }

    /// Runs a command over the shared connection, and says over which, and whether it was begun.
    async fn run_shared(
        &self,
        mut command: Command,
        attempt: &mut Option<(Arc<Connection>, Arc<AtomicBool>)>,
    ) -> Result<Output, SshError> {
        let mut is_second = false;
        loop {
            let connection = self.connection().await?;
            let seat = connection.seat().await;
            let mut process = Process::start(Arc::clone(&connection), seat, command, Sink::Keep);
            *attempt = Some((Arc::clone(&connection), process.is_begun()));
            let (again, error) = match process.end().await {
                Ok(output) => return Ok(output),
                Err(Failure::Ended(error)) => return Err(error),
                Err(Failure::NotBegun { command, error }) => (*command, error),
            };
            command = again;
            if let russh::Error::ChannelOpenFailure(_) = error {
                // It has other things to do, or nothing for us at all.
                if connection.is_idle() {
                    let reason = "it opens no channel for commands".to_owned();
                    let host = self.inner.name.clone();
                    return Err(SshError::Refused { host, command: command.display_name(), reason });
                }
                sleep(NO_ROOM).await;
                continue;
            }
            // Nothing was begun, so that it may be tried again, over a new connection. What still runs over the old one
            // may go on.
            self.inner.forget(&connection);
            if is_second {
                let (host, port) = (self.inner.name.clone(), self.inner.settings.port());
                let reason = format!("the connection broke: {}", connection.end_reason());
                return Err(SshError::Unreachable { host, port, reason });
            }
            is_second = true;
        }
    }

    /// The connection that all share, made by the first who wants it.
    async fn connection(&self) -> Result<Arc<Connection>, SshError> {
        loop {
            let attempt = Arc::clone(&self.attempt());
            let inner = &self.inner;
            let mut is_ours = false;
            let result = attempt
                .get_or_init(|| async {
                    is_ours = true;
                    let connection = Arc::new(Connection::open(&inner.name, &inner.settings).await?);
                    tokio::spawn(close_when_idle(Arc::downgrade(inner), Arc::downgrade(&connection)));
                    Ok(connection)
                })
                .await;
            match result {
                Ok(connection) if !connection.is_closed() => return Ok(Arc::clone(connection)),
                Ok(_) => self.replace(&attempt),
                Err(error) => {
                    self.replace(&attempt);
                    return Err(error.clone());
                }
            }
            // Over before it was used.
            if is_ours {
                let (host, port) = (inner.name.clone(), inner.settings.port());
                let reason = "it closed the connection after the login".to_owned();
                return Err(SshError::Unreachable { host, port, reason });
            }
        }
    }

    /// Makes room for a new attempt, unless somebody else did.
    fn replace(&self, old: &Attempt) {
        let mut attempt = self.attempt();
        if Arc::ptr_eq(&attempt, old) {
            *attempt = Attempt::default();
        }
    }

    fn attempt(&self) -> std::sync::MutexGuard<'_, Attempt> {
        self.inner.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&self, old: &Arc<Connection>) {
        let mut attempt = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(attempt.get(), Some(Ok(connection)) if Arc::ptr_eq(connection, old)) {
            *attempt = Attempt::default();
        }
    }
}

async fn close_when_idle(host: Weak<Inner>, connection: Weak<Connection>) {
    loop {
        let wait = match (host.upgrade(), connection.upgrade()) {
            (Some(host), Some(connection)) => {
                let left = host.settings.idle_timeout().saturating_sub(connection.idle_time());
                if left.is_zero() || connection.is_closed() {
                    host.forget(&connection);
                    return;
                }
                // A host that nobody has any more takes its connection along.
                left.min(Duration::from_secs(30))
            }
            _ => return,
        };
        sleep(wait).await;
    }
}

/// A command whose output is read as it comes. Dropping it ends the command.
pub struct Running {
    chunks: mpsc::Receiver<Chunk>,
    process: Process,
    host: String,
    deadline: Option<Deadline>,
    lines: VecDeque<String>,
    /// The beginnings of lines of standard output and of standard error.
    begun: [BytesMut; 2],
}

struct Deadline {
    at: Instant,
    error: SshError,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

impl Running {
    /// The next piece of output; `None` after the last.
    ///
    /// # Errors
    /// When the command could not be run, was not done in time, or nobody knows how it ended.
    pub async fn chunk(&mut self) -> Result<Option<Chunk>, SshError> {
        let Some(Deadline { at, error }) = &self.deadline else { return Ok(self.chunks.recv().await) };
        timeout_at(*at, self.chunks.recv()).await.map_err(|_| error.clone())
    }

    /// The next line of standard output or standard error, without its end; `None` after the last. What is not UTF-8 is
    /// replaced, and a very long line comes in pieces.
    ///
    /// # Errors
    /// As [`Self::chunk`].
    pub async fn line(&mut self) -> Result<Option<String>, SshError> {
        while self.lines.is_empty() {
            let Some(chunk) = self.chunk().await? else {
                let rest = self.begun.iter_mut().find(|begun| !begun.is_empty());
                return Ok(rest.map(|begun| text(&begun.split())));
            };
            let (begun, bytes) = match chunk {
                Chunk::Stdout(bytes) => (&mut self.begun[0], bytes),
                Chunk::Stderr(bytes) => (&mut self.begun[1], bytes),
            };
            begun.extend_from_slice(&bytes);
            while let Some(end) = begun.iter().position(|&byte| byte == b'\n') {
                let line = begun.split_to(end + 1);
                self.lines.push_back(text(&line[..end]));
            }
            while begun.len() > LONGEST_LINE {
                self.lines.push_back(text(&begun.split_to(LONGEST_LINE)));
            }
        }
        Ok(self.lines.pop_front())
    }

    /// How it ended, and the end of its standard error. What was not read of its output is not there.
    ///
    /// # Errors
    /// When the command could not be run, was not done in time, or nobody knows how it ended.
    pub async fn end(mut self) -> Result<Output, SshError> {
        // Nobody waits for the rest, but the command may want to write it.
        while self.chunk().await?.is_some() {}
        let ended = match &self.deadline {
            None => self.process.end().await,
            Some(Deadline { at, error }) => {
                timeout_at(*at, self.process.end()).await.map_err(|_| error.clone())?
            }
        };
        ended.map_err(|failure| match failure {
            Failure::Ended(error) => error,
            Failure::NotBegun { command, error } => SshError::Refused {
                host: self.host,
                command: command.display_name(),
                reason: format!("it opens no channel for commands: {error}"),
            },
        })
    }

    /// How it ended, when it ran at all.
    ///
    /// # Errors
    /// As [`Self::end`].
    pub async fn status(self) -> Result<Status, SshError> {
        Ok(self.end().await?.status)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
