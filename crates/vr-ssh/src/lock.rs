//! A lock on a host, that ends with whoever holds it.
//!
//! It is an flock of the host's, held by a small script over a connection of its own. Both sides show each other that
//! they are still there: the host gives the lock up after a minute without a sign of us, and we take it as lost after
//! half of that.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep_until, timeout};

use crate::command::{Command, invalid};
use crate::error::SshError;
use crate::files::As;
use crate::host::SshHost;
use crate::process::Chunk;

/// How often we say that we are there.
const BEAT: Duration = Duration::from_secs(8);
/// The lock is lost after so long without an answer; the script below gives it up after sixty seconds.
const SILENCE: Duration = Duration::from_secs(30);
/// How long the host may take for the rest, beside waiting for the lock.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a release may take.
const RELEASE: Duration = Duration::from_secs(10);
/// The exit code of a lock that somebody else has.
const TAKEN: u32 = 75;

/// Locks `$1`, waiting `$2` seconds, and writes `$3` into it, so that others know who has it.
const LOCK: &str = r#"
umask 022
flock -E 75 -w "$2" "$1" /bin/sh -c '
    printf "%s\n" "$2" >"$1"
    echo locked
    while timeout 60 /bin/sh -c "read -r line && echo here"; do :; done
    : >"$1"
' sh "$1" "$3"
status=$?
if [ $status = 75 ]; then head -c 300 "$1" | head -n 1; fi
exit $status
"#;

/// A lock that is held. It is released when this is dropped, and when this process or the connection ends.
#[derive(Debug)]
pub struct Lock {
    lost: watch::Receiver<bool>,
    release: Option<watch::Sender<()>>,
    released: watch::Receiver<bool>,
}

impl SshHost {
    /// Takes the lock of a file, which is made when missing; its folder has to exist. `note` says to others who has it.
    ///
    /// # Errors
    /// [`SshError::Locked`] when somebody else still has it after `wait` (to the second); others when it could not be
    /// tried.
    pub async fn lock(&self, path: &Path, note: &str, wait: Duration, who: As) -> Result<Lock, SshError> {
        if !path.is_absolute() {
            return Err(invalid(&path.to_string_lossy(), "the path does not begin with a slash"));
        }
        let (mut beats, input) = tokio::io::duplex(64);
        let note = crate::connection::printable(note);
        let command =
            Command::new("/bin/sh").args(["-c", LOCK, "sh"]).arg(path).arg(wait.as_secs().to_string());
        let command = command.arg(note).named(format!("locking {}", path.display())).input_until_end(input);
        let command = if who == As::Root { command.as_root() } else { command };
        let limit = wait + PATIENCE;
        let locking = async {
            let mut running = self.stream(command).await?;
            let mut said = Vec::new();
            while let Some(chunk) = running.chunk().await? {
                if let Chunk::Stdout(bytes) = chunk {
                    said.extend_from_slice(&bytes);
                }
                if said.starts_with(b"locked\n") {
                    return Ok(running);
                }
            }
            let output = running.end().await?;
            if output.status.code() != Some(TAKEN) {
                return Err(output.into_failure());
            }
            let holder = crate::connection::printable(&String::from_utf8_lossy(&said));
            let holder = if holder.is_empty() { holder } else { format!(" by {holder}") };
            Err(SshError::Locked { host: self.name().to_owned(), path: path.display().to_string(), holder })
        };
        let mut running = timeout(limit, locking).await.unwrap_or_else(|_| {
            let command = format!("locking {}", path.display());
            Err(SshError::Deadline { host: self.name().to_owned(), command, after: limit })
        })?;

        let (lose, lost) = watch::channel(false);
        let (release, mut released) = watch::channel(());
        let (finish, finished) = watch::channel(false);
        tokio::spawn(async move {
            let mut beat = interval(BEAT);
            let mut heard = Instant::now();
            loop {
                tokio::select! {
                    _ = beat.tick() => {
                        // It takes a few beats even when nobody reads them, and the silence is seen below.
                        let _full = timeout(BEAT, beats.write_all(b"here\n")).await;
                    }
                    chunk = running.chunk() => match chunk {
                        Ok(Some(_)) => heard = Instant::now(),
                        Ok(None) | Err(_) => break,
                    },
                    () = sleep_until(heard + SILENCE) => break,
                    // Also when it was dropped.
                    _ = released.changed() => {
                        drop(beats);
                        let _late = timeout(RELEASE, running.end()).await;
                        let _nobody = finish.send(true);
                        return;
                    }
                }
            }
            let _nobody = lose.send(true);
        });
        Ok(Lock { lost, release: Some(release), released: finished })
    }
}

impl Lock {
    /// Whether it is still held, as far as anybody knows.
    pub fn is_held(&self) -> bool {
        // An end of its task other than a release is a loss.
        !*self.lost.borrow() && self.lost.has_changed().is_ok()
    }

    /// Waits until the lock is lost, which it is when the connection ends or the host says nothing for half a minute.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        let _gone = lost.wait_for(|lost| *lost).await;
    }

    /// Releases it, and waits until others can have it.
    pub async fn release(mut self) {
        self.release = None;
        let _gone = self.released.wait_for(|released| *released).await;
    }
}
