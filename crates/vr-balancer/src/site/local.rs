//! Commands on this machine.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Child;
use tokio::time::timeout;

use super::{Command, Endpoint, OUTPUT_LIMIT, Output, SiteError, Status};

/// How long the output of a program is read that ended, while what it left running holds its streams open.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Starts a command with all its streams in our hands and in a process group of its own, so that Ctrl-C in somebody's
/// terminal ends us and not the reload of a balancer.
pub(super) fn start(command: &Command, sudo: bool) -> Result<Child, SiteError> {
    let mut words = command.words.iter().map(String::as_str);
    let program = if sudo { "sudo" } else { words.next().unwrap_or_default() };
    let mut process = vr_common::process::command(program);
    if sudo {
        process.args(["-n", "--"]);
    }
    if command.is_marked {
        vr_common::process::mark(&mut process);
    }
    process.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut process = tokio::process::Command::from(process);
    process.spawn().map_err(|source| SiteError::Start { program: program.to_owned(), source })
}

/// Kills the process group of a command that nobody waits for any more.
struct EndGroup(Option<Pid>);

impl Drop for EndGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may just have ended by itself.
            let _ended = kill_process_group(group, Signal::KILL);
        }
    }
}

pub(super) async fn run(command: &Command, sudo: bool) -> Result<Output, SiteError> {
    let mut child = start(command, sudo)?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut running = EndGroup(pid);
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut said, mut complained) = (Kept::default(), Kept::default());
    let work = async {
        let streams = async {
            let feed = async {
                if let Some(mut stdin) = stdin.take() {
                    // A program that does not read its input is nobody's mistake; its status tells.
                    let _broken = stdin.write_all(&command.stdin).await;
                }
            };
            tokio::join!(feed, said.read(stdout.as_mut()), complained.read(stderr.as_mut()));
        };
        tokio::pin!(streams);
        tokio::select! {
            () = &mut streams => child.wait().await,
            status = child.wait() => {
                let _open = timeout(LAST_WORDS, streams).await;
                status
            }
        }
    };
    let status = match timeout(command.deadline, work).await {
        Ok(status) => status,
        Err(_) => {
            return Err(SiteError::TimedOut { command: command.title.clone(), after: command.deadline });
        }
    };
    running.0 = None;
    let status = status.map_err(|source| SiteError::Start { program: command.title.clone(), source })?;
    Ok(Output {
        status: describe(status),
        cut: said.cut || complained.cut,
        stdout: said.bytes,
        stderr: complained.bytes,
    })
}

pub(super) fn describe(status: ExitStatus) -> Status {
    status.code().map_or_else(|| Status::Other(status.to_string()), Status::Code)
}

/// What is kept of a stream.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    cut: bool,
}

impl Kept {
    /// Reads to the end, so that nobody is stopped by a full pipe, and keeps the first part.
    async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else { return };
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = stream.read(&mut piece).await {
            let kept = length.min(OUTPUT_LIMIT - self.bytes.len());
            self.bytes.extend_from_slice(&piece[..kept]);
            self.cut |= kept < length;
        }
    }
}

pub(super) async fn exchange(
    endpoint: &Endpoint,
    request: &[u8],
    deadline: Duration,
) -> Result<Vec<u8>, SiteError> {
    let exchange = async {
        match endpoint {
            Endpoint::Tcp(host, port) => {
                send_and_read(TcpStream::connect((host.as_str(), *port)).await?, request).await
            }
            Endpoint::Unix(path) => send_and_read(UnixStream::connect(path).await?, request).await,
        }
    };
    let failed = |source| SiteError::Connect { endpoint: endpoint.to_string(), source };
    timeout(deadline, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)
}

async fn send_and_read(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &[u8],
) -> io::Result<Vec<u8>> {
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.take(OUTPUT_LIMIT as u64 + 1).read_to_end(&mut answer).await?;
    if answer.len() > OUTPUT_LIMIT { Err(io::Error::other("the answer is too long")) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::Site;

    fn here() -> Site {
        Site::local("localhost", false)
    }

    #[tokio::test]
    async fn what_a_command_says_and_how_it_ends_is_told() {
        let output = here()
            .run(
                &Command::script("x", "cat; echo \"$1\" >&2; exit 7", ["it's \"odd\"\n"])
                    .stdin(b"in".to_vec()),
            )
            .await
            .unwrap();
        assert_eq!((output.status, output.stdout.as_slice()), (Status::Code(7), b"in".as_slice()));
        assert_eq!(output.stderr, b"it's \"odd\"\n\n");
        let error = here().run(&Command::new(["/nonexistent/x"])).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot run /nonexistent/x");
        let error = here().succeed(&Command::line("echo no >&2; false")).await.unwrap_err();
        assert_eq!(error.to_string(), "echo no >&2; false failed with exit code 1: no");
    }

    #[tokio::test]
    async fn a_command_that_does_not_end_is_ended_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = "sleep 4000 & echo $! >\"$1\"; wait";
        let command =
            Command::script("x", script, [file.to_str().unwrap()]).deadline(Duration::from_millis(300));
        assert!(matches!(here().run(&command).await, Err(SiteError::TimedOut { .. })));
        let pid = std::fs::read_to_string(file).unwrap();
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !gone() {
            assert!(std::time::Instant::now() < end, "it goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_daemon_that_keeps_the_streams_open_is_not_waited_for() {
        let command = Command::line("setsid sleep 3 & echo started");
        let output = timeout(Duration::from_secs(2), here().run(&command)).await.unwrap().unwrap();
        assert_eq!(output.stdout, b"started\n");
    }
}
