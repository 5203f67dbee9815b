//! The processes that one machine needs beside the server: the host's agent and the built-in proxy.
//!
//! They are processes of their own so that apps run and traffic flows while the server is down or being
//! replaced. A server that starts finds the ones of its predecessor; one that is missing is started,
//! and its own lock keeps a second one out.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vr_common::process::{command, sibling};

/// How long a companion may take to answer after its start.
const START: Duration = Duration::from_secs(20);
/// From which size on a log is moved aside when its companion starts, in bytes.
const LARGE_LOG: u64 = 10 << 20;
/// How often a companion is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A process to be kept up.
#[derive(Debug)]
pub struct Companion {
    /// The binary.
    pub program: &'static str,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Where its messages go.
    pub log: PathBuf,
}

/// Why a companion is not there.
#[derive(Debug, Error)]
pub enum CompanionError {
    /// It cannot be started.
    #[error("cannot start {}", program.display())]
    Start {
        /// The binary.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was started and does not answer.
    #[error("{program} does not answer; it said: {last_words} (more in {})", log.display())]
    Silent {
        /// The binary.
        program: &'static str,
        /// The end of its log.
        last_words: String,
        /// Its log.
        log: PathBuf,
    },
}

impl Companion {
    /// Returns when `answers` says yes, after starting the process if it has to.
    pub async fn ensure<F: Future<Output = bool>>(
        &self,
        answers: impl Fn() -> F,
    ) -> Result<(), CompanionError> {
        if answers().await {
            return Ok(());
        }
        let mut child = self.start()?;
        let deadline = Instant::now() + START;
        loop {
            if answers().await {
                // Whoever it is that answers, our child must not become a zombie if it was one too many.
                std::thread::spawn(move || child.wait());
                return Ok(());
            }
            let ended = matches!(child.try_wait(), Ok(Some(_)) | Err(_));
            if ended || Instant::now() > deadline {
                drop(child.kill());
                drop(child.wait());
                return Err(CompanionError::Silent {
                    program: self.program,
                    last_words: self.last_words(),
                    log: self.log.clone(),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Looks after the process until `stop`: starts it again when it is gone.
    pub async fn keep<F: Future<Output = bool>>(&self, answers: impl Fn() -> F, stop: CancellationToken) {
        let look_after = async {
            loop {
                tokio::time::sleep(ASK_EVERY).await;
                if answers().await {
                    continue;
                }
                tracing::warn!("{} does not answer and is started again", self.program);
                if let Err(error) = self.ensure(&answers).await {
                    tracing::error!("{}", vr_common::exit::chain(&error));
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = look_after => {}
        }
    }

    fn start(&self) -> Result<std::process::Child, CompanionError> {
        let program = sibling(self.program);
        let failed = |source| CompanionError::Start { program: program.clone(), source };
        self.make_room().map_err(failed)?;
        let log = OpenOptions::new().create(true).append(true).open(&self.log).map_err(failed)?;
        // A group of its own, so that Ctrl-C at the server's terminal does not reach it.
        command(&program)
            .args(&self.args)
            .process_group(0)
            .stdout(Stdio::from(log.try_clone().map_err(failed)?))
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(failed)
    }

    /// Moves a log aside that has grown large, so that companions that are started again and again fill no disk.
    fn make_room(&self) -> io::Result<()> {
        match fs::metadata(&self.log) {
            Ok(found) if found.len() > LARGE_LOG => fs::rename(&self.log, self.log.with_extension("log.1")),
            _ => Ok(()),
        }
    }

    fn last_words(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let end = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(end.saturating_sub(2_000)))?;
            let mut text = Vec::new();
            file.take(2_000).read_to_end(&mut text)?;
            Ok(String::from_utf8_lossy(&text).trim().lines().last().unwrap_or("nothing").to_owned())
        };
        read().unwrap_or_else(|_| "nothing".to_owned())
    }
}
