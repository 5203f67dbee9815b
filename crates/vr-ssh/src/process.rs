//! A command that runs on another machine, over one channel of a connection.
//!
//! Each has a task of its own, which always reads what comes, even when nobody here waits any more: a channel that is
//! not read would hold up all others of its connection, as the library hands out data in the order in which it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::command::{Command, Input, Output, STDERR_LIMIT, Status};
use crate::connection::{Connection, Seat};
use crate::error::SshError;
use crate::settings::Sudo;

/// How long a host may take to open a channel.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a command may take to end that nobody waits for; the watcher over there kills it after five seconds.
const GRACE: Duration = Duration::from_secs(10);
/// After its end, a command is given up when nothing came for so long: something that it left behind has its streams.
const QUIET: Duration = Duration::from_secs(5);
/// How much of what sudo says before the command begins is kept, in bytes.
const SUDO_LIMIT: usize = 64 << 10;

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// Of standard output.
    Stdout(Bytes),
    /// Of standard error.
    Stderr(Bytes),
}

/// Why a command has no output.
pub(crate) enum Failure {
    /// No channel could be opened: it was not begun.
    NotBegun { command: Box<Command>, error: russh::Error },
    /// All else.
    Ended(SshError),
}

/// Where the output goes.
pub(crate) enum Sink {
    /// To the end of the command.
    Keep,
    /// To somebody who waits for it.
    Send(mpsc::Sender<Chunk>),
}

/// A command under way. Dropping it ends the command.
pub(crate) struct Process {
    /// Whether the host opened a channel for it.
    is_begun: Arc<AtomicBool>,
    done: oneshot::Receiver<Result<Output, Failure>>,
    // The task sees when this goes.
    _wanted: oneshot::Sender<()>,
}

impl Process {
    /// Begins it.
    pub(crate) fn start(
        connection: Arc<Connection>,
        seat: Option<Seat>,
        command: Command,
        sink: Sink,
    ) -> Self {
        let (wanted, cancelled) = oneshot::channel();
        let (report, done) = oneshot::channel();
        let is_begun = Arc::new(AtomicBool::new(false));
        let begun = Arc::clone(&is_begun);
        tokio::spawn(async move {
            let result = drive(connection, seat, command, sink, cancelled, &begun).await;
            let _nobody = report.send(result);
        });
        Self { is_begun, done, _wanted: wanted }
    }

    /// Tells, also later, whether the host opened a channel for it.
    pub(crate) fn is_begun(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_begun)
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> Result<Output, Failure> {
        match (&mut self.done).await {
            Ok(result) => result,
            // Only when the whole runtime goes.
            Err(_) => Err(Failure::Ended(SshError::Lost {
                host: String::new(),
                command: "a command".to_owned(),
                reason: "its task ended".to_owned(),
            })),
        }
    }
}

async fn drive(
    connection: Arc<Connection>,
    seat: Option<Seat>,
    mut command: Command,
    sink: Sink,
    cancelled: oneshot::Receiver<()>,
    begun: &AtomicBool,
) -> Result<Output, Failure> {
    let host = connection.host().to_owned();
    let name = command.display_name();
    let sudo = if command.as_root { connection.sudo() } else { Sudo::No };
    let script = command.script().map_err(Failure::Ended)?;
    // Not given up when nobody waits any more: a channel that is opened behind our back would stay.
    let channel = match timeout(PATIENCE, connection.open_channel()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(Failure::NotBegun { command: Box::new(command), error }),
        Err(_) => {
            let error = russh::Error::ConnectionTimeout;
            return Err(Failure::NotBegun { command: Box::new(command), error });
        }
    };
    begun.store(true, Ordering::Relaxed);
    let input = std::mem::replace(&mut command.input, Input::None);
    let session = Session {
        host,
        name,
        user: connection.user().to_owned(),
        output_limit: command.output_limit,
        connection,
        seat,
        sink,
        status: None,
        stdout: BytesMut::new(),
        stderr: BytesMut::new(),
        is_truncated: false,
    };
    session.run(channel, sudo, script, input, cancelled).await.map_err(Failure::Ended)
}

struct Session {
    connection: Arc<Connection>,
    seat: Option<Seat>,
    host: String,
    user: String,
    name: String,
    sink: Sink,
    output_limit: usize,
    status: Option<Status>,
    stdout: BytesMut,
    stderr: BytesMut,
    is_truncated: bool,
}

impl Session {
    async fn run(
        mut self,
        channel: Channel<Msg>,
        sudo: Sudo,
        script: Vec<u8>,
        input: Input,
        mut cancelled: oneshot::Receiver<()>,
    ) -> Result<Output, SshError> {
        let (mut read, write) = channel.split();
        let (mut gate, steps) = Gate::new(&sudo);
        let line = gate.line(script.len());
        let has_watcher = !matches!(input, Input::Unsized(_));
        let password = match sudo {
            Sudo::WithPassword(password) => Some(password),
            _ => None,
        };
        let mut feeding = Box::pin(async {
            write.exec(true, line).await?;
            if let Some(mut steps) = steps {
                loop {
                    match (steps.recv().await, &password) {
                        (Some(Step::Password), Some(password)) => {
                            write.data_bytes(format!("{}\n", password.expose())).await?;
                        }
                        (Some(Step::Begin), _) => break,
                        (Some(Step::Password), None) | (None, _) => return Ok(()),
                    }
                }
            }
            write.data_bytes(script).await?;
            feed(&write, input).await
        });
        let mut is_feeding = true;
        let mut is_closed = false;
        let mut quiet_until = Instant::now();
        let ended = loop {
            let message = tokio::select! {
                fed = &mut feeding, if is_feeding => {
                    is_feeding = false;
                    match fed {
                        Err(FeedError::Input(reason)) => {
                            break Err(SshError::Input { host: self.host.clone(), command: self.name.clone(), reason });
                        }
                        // The channel is gone, which the other side of it says better.
                        Err(FeedError::Channel) | Ok(()) => continue,
                    }
                }
                message = read.wait() => message,
                () = sleep_until(quiet_until), if self.status.is_some() => break Ok(()),
                _ = &mut cancelled => break Err(self.lost("nobody waits for it any more")),
            };
            quiet_until = Instant::now() + QUIET;
            match message {
                Some(ChannelMsg::Data { data }) => {
                    if !self.stdout(data).await {
                        break Err(self.lost("nobody reads its output any more"));
                    }
                }
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    let data = match gate.pass(data) {
                        Ok(data) => data,
                        Err(reason) => break Err(self.sudo(reason)),
                    };
                    if !data.is_empty() && !self.stderr(data).await {
                        break Err(self.lost("nobody reads its output any more"));
                    }
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => self.status = Some(Status::Code(exit_status)),
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    self.status = Some(Status::Signal(name_of(&signal_name)));
                }
                Some(ChannelMsg::Failure) => {
                    let reason = "it refuses commands for this user".to_owned();
                    break Err(SshError::Refused {
                        host: self.host.clone(),
                        command: self.name.clone(),
                        reason,
                    });
                }
                Some(ChannelMsg::Close) | None => {
                    is_closed = true;
                    break Ok(());
                }
                Some(_) => {}
            }
        };
        drop(feeding);
        if !is_closed {
            let has_ended = self.status.is_some();
            // Nobody has to wait for this, and the seat is taken until it is done.
            let (connection, seat) = (Arc::clone(&self.connection), self.seat.take());
            tokio::spawn(async move {
                if has_ended || timeout(GRACE, end(&write, &mut read, has_watcher)).await.is_err() {
                    let _stuck = timeout(GRACE, close(&write, &mut read)).await;
                }
                drop((connection, seat));
            });
        }
        ended?;
        if let Some(said) = gate.closed() {
            return Err(self.sudo(said));
        }
        let Some(status) = self.status.take() else { return Err(self.lost(&self.connection.end_reason())) };
        Ok(Output {
            status,
            stdout: self.stdout.to_vec(),
            is_truncated: self.is_truncated,
            stderr: String::from_utf8_lossy(&self.stderr).into_owned(),
            host: self.host,
            command: self.name,
        })
    }

    async fn stdout(&mut self, data: Bytes) -> bool {
        if let Sink::Send(reader) = &self.sink {
            return reader.send(Chunk::Stdout(data)).await.is_ok();
        }
        let room = self.output_limit - self.stdout.len();
        self.is_truncated |= data.len() > room;
        self.stdout.extend_from_slice(&data[..data.len().min(room)]);
        true
    }

    async fn stderr(&mut self, data: Bytes) -> bool {
        self.stderr.extend_from_slice(&data);
        if self.stderr.len() > 2 * STDERR_LIMIT {
            let _beginning = self.stderr.split_to(self.stderr.len() - STDERR_LIMIT);
        }
        match &self.sink {
            Sink::Send(reader) => reader.send(Chunk::Stderr(data)).await.is_ok(),
            Sink::Keep => true,
        }
    }

    fn lost(&self, reason: &str) -> SshError {
        SshError::Lost { host: self.host.clone(), command: self.name.clone(), reason: reason.to_owned() }
    }

    fn sudo(&self, reason: String) -> SshError {
        SshError::Sudo { host: self.host.clone(), user: self.user.clone(), reason }
    }
}

/// Ends the command and reads what still comes.
async fn end(write: &ChannelWriteHalf<Msg>, read: &mut ChannelReadHalf, has_watcher: bool) {
    let ask = async {
        if !has_watcher {
            // Not for the others: it reaches only a part of the processes, when sudo is among them, and the watcher
            // would take the command for one that ended by itself.
            let _gone = write.signal(Sig::TERM).await;
        }
        let _gone = write.eof().await;
    };
    let closed = async { while !matches!(read.wait().await, Some(ChannelMsg::Close) | None) {} };
    tokio::join!(ask, closed);
}

/// Closes the channel, whatever the other side does. What comes then is for nobody.
async fn close(write: &ChannelWriteHalf<Msg>, read: &mut ChannelReadHalf) {
    let tell = async {
        // For a command that does not even read its input, so that the watcher never sees its end.
        let _gone = write.signal(Sig::TERM).await;
        let _gone = write.close().await;
    };
    tokio::select! {
        () = tell => {}
        () = async { while read.wait().await.is_some() {} } => {}
    }
}

enum FeedError {
    Input(String),
    Channel,
}

impl From<russh::Error> for FeedError {
    fn from(_: russh::Error) -> Self {
        Self::Channel
    }
}

/// Writes the command's input. The channel stays open after it, unless its end is the input's.
async fn feed(write: &ChannelWriteHalf<Msg>, input: Input) -> Result<(), FeedError> {
    match input {
        Input::None => {}
        Input::Bytes(bytes) => write.data_bytes(bytes).await?,
        Input::Sized(length, reader) => {
            let written = copy(write, reader.take(length)).await?;
            if written < length {
                return Err(FeedError::Input(format!("it ended after {written} of {length} bytes")));
            }
        }
        Input::Unsized(reader) => {
            copy(write, reader).await?;
            write.eof().await?;
        }
    }
    Ok(())
}

async fn copy(write: &ChannelWriteHalf<Msg>, mut reader: impl AsyncRead + Unpin) -> Result<u64, FeedError> {
    const CHUNK: usize = 64 << 10;
    let mut written = 0;
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        match reader.read_buf(&mut chunk).await {
            Ok(0) => return Ok(written),
            Ok(length) => written += length as u64,
            Err(error) => return Err(FeedError::Input(error.to_string())),
        }
        write.data_bytes(chunk.freeze()).await?;
    }
}

enum Step {
    Password,
    Begin,
}

/// Keeps a command from its input until sudo is through. sudo gets the password only when it asks for it: were it
/// written anyway, a sudo that does not ask would leave it to the command.
struct Gate {
    /// What sudo's prompt has in it, and what the shell behind sudo says; nothing else on earth does.
    mark: String,
    mode: Mode,
    steps: Option<mpsc::UnboundedSender<Step>>,
    said: Vec<u8>,
    is_answered: bool,
}

#[derive(PartialEq)]
enum Mode {
    Plain,
    Sudo { asks: bool },
}

impl Gate {
    fn new(sudo: &Sudo) -> (Self, Option<mpsc::UnboundedReceiver<Step>>) {
        let mode = match sudo {
            Sudo::No => Mode::Plain,
            Sudo::WithoutPassword => Mode::Sudo { asks: false },
            Sudo::WithPassword(_) => Mode::Sudo { asks: true },
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        let is_open = mode == Mode::Plain;
        let mark = format!("vr-{:016x}", rand::random::<u64>());
        let gate =
            Self { mark, mode, steps: (!is_open).then_some(sender), said: Vec::new(), is_answered: false };
        (gate, (!is_open).then_some(receiver))
    }

    /// What the user's shell over there gets. It has nothing in it that only some shells understand; the rest comes
    /// through the standard input, where nobody sees it. `dd` reads not one byte too many.
    fn line(&self, length: usize) -> String {
        let read = format!("eval \"$(dd bs=1 count={length} 2>/dev/null)\"");
        let mark = &self.mark;
        match self.mode {
            Mode::Plain => format!("exec /bin/sh -c '{read}'"),
            Mode::Sudo { asks } => {
                let how = if asks { format!("-S -p {mark}:") } else { "-n".to_owned() };
                format!("exec sudo {how} -- /bin/sh -c 'echo {mark}+ >&2; {read}'")
            }
        }
    }

    /// Takes what comes on standard error, and gives what is the command's.
    fn pass(&mut self, data: Bytes) -> Result<Bytes, String> {
        let Some(steps) = &self.steps else { return Ok(data) };
        self.said.extend_from_slice(&data);
        if let Some(at) = find(&self.said, format!("{}+\n", self.mark).as_bytes()) {
            let _ended = steps.send(Step::Begin);
            self.steps = None;
            return Ok(Bytes::from(self.said.split_off(at)));
        }
        let prompt = format!("{}:", self.mark);
        match find(&self.said, prompt.as_bytes()) {
            Some(_) if self.is_answered => return Err("the password is wrong".to_owned()),
            Some(at) => {
                self.is_answered = true;
                let _ended = steps.send(Step::Password);
                self.said.drain(..at);
            }
            None if self.said.len() > SUDO_LIMIT => {
                self.said.drain(..SUDO_LIMIT / 2);
            }
            None => {}
        }
        Ok(Bytes::new())
    }

    /// What sudo said, when it never let the command begin.
    fn closed(&self) -> Option<String> {
        self.steps.as_ref()?;
        let said = String::from_utf8_lossy(&self.said).replace(&self.mark, "");
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| line.len() > 1).collect();
        Some(if lines.is_empty() { "it said nothing".to_owned() } else { lines.join(" ") })
    }
}

/// The place after the first occurrence.
fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part).map(|at| at + part.len())
}

fn name_of(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.clone(),
        signal => format!("{signal:?}"),
    }
}

#[cfg(test)]
mod tests {
    use vr_common::secret::Secret;

    use super::*;

    fn pass(gate: &mut Gate, text: &str) -> Result<String, String> {
        gate.pass(Bytes::from(text.to_owned())).map(|data| String::from_utf8(data.to_vec()).unwrap())
    }

    #[test]
    fn sudo_gets_the_password_once_and_only_when_it_asks() {
        let (mut gate, steps) = Gate::new(&Sudo::WithPassword(Secret::new("x")));
        let (mut steps, mark) = (steps.unwrap(), gate.mark.clone());
        assert_eq!(pass(&mut gate, "a lecture\n").unwrap(), "");
        assert!(steps.try_recv().is_err());
        // In pieces.
        pass(&mut gate, &mark[..5]).unwrap();
        pass(&mut gate, &format!("{}:", &mark[5..])).unwrap();
        assert!(matches!(steps.try_recv(), Ok(Step::Password)));
        assert_eq!(pass(&mut gate, &format!("\n{mark}+\nthe command's")).unwrap(), "the command's");
        assert!(matches!(steps.try_recv(), Ok(Step::Begin)));
        assert_eq!(pass(&mut gate, &format!("{mark}:")).unwrap(), format!("{mark}:"));
        assert_eq!(gate.closed(), None);
    }

    #[test]
    fn a_second_question_means_a_wrong_password() {
        let (mut gate, _steps) = Gate::new(&Sudo::WithPassword(Secret::new("x")));
        let prompt = format!("{}:", gate.mark);
        pass(&mut gate, &prompt).unwrap();
        assert_eq!(
            pass(&mut gate, &format!("\nSorry, try again.\n{prompt}")).unwrap_err(),
            "the password is wrong"
        );
    }

    #[test]
    fn what_sudo_says_is_told_when_it_refuses() {
        let (mut gate, _steps) = Gate::new(&Sudo::WithoutPassword);
        pass(&mut gate, "sudo: a password is required\n").unwrap();
        assert_eq!(gate.closed().as_deref(), Some("sudo: a password is required"));
    }
}
