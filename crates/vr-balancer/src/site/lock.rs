//! A lock on a site that dies with its holder.
//!
//! It is an `flock` that a shell on the site holds as long as its standard input is open. Whatever ends us, or the
//! connection to the site, closes that input. It is the same lock whether it is taken there or from afar.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::time::timeout;

use super::files::OWN_WORDS;
use super::{Access, Command, Site, SiteError, local, ssh};

/// The shell's part: waits for the lock, says so, and holds it until its input ends.
const HOLD: &str = r#"
set -eu
umask 077
[ -d "${1%/*/*}" ] || { echo "there is no folder ${1%/*/*}" >&2; exit 3; }
mkdir -p -- "${1%/*}"
exec 9>>"$1"
flock -w "$2" 9 || exit 75
echo held
exec cat >/dev/null
"#;
/// That somebody else has it (`EX_TEMPFAIL`).
const BUSY: i32 = 75;
/// What a shell needs to start and to answer, beside the time for the lock.
const MARGIN: Duration = Duration::from_secs(20);
/// For the shell to end when it is told to. It holds nothing up if it does not.
const RELEASE: Duration = Duration::from_secs(2);

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Lock {
    path: String,
    holder: Holder,
}

#[derive(Debug)]
enum Holder {
    Local { child: Child, stdin: ChildStdin },
    Ssh(vr_ssh::Lock),
}

impl Site {
    /// Takes the lock in this file, and waits for it if somebody else has it. The folder of the file is made, for its
    /// owner only; the folder above has to be there.
    pub async fn lock(&self, path: &str, wait: Duration) -> Result<Lock, SiteError> {
        let seconds = wait.as_secs().max(1).to_string();
        let title = format!("the lock {path}");
        let command = Command::script(&title, HOLD, [path, seconds.as_str()]);
        match &self.access {
            Access::Ssh(host) => {
                let lock = ssh::lock(host, path, wait).await?;
                Ok(Lock { path: path.to_owned(), holder: Holder::Ssh(lock) })
            }
            Access::Local { sudo } => {
                let mut child = local::start(&command, *sudo)?;
                let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
                let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
                    return Err(SiteError::LockLost { path: path.to_owned() });
                };
                let mut line = String::new();
                let mut stdout = BufReader::new(stdout);
                let answer = timeout(wait + MARGIN, stdout.read_line(&mut line)).await;
                if matches!(answer, Ok(Ok(_))) && line == "held\n" {
                    return Ok(Lock { path: path.to_owned(), holder: Holder::Local { child, stdin } });
                }
                drop(stdin);
                let mut said = String::new();
                let mut stderr = BufReader::new(stderr);
                let _broken = timeout(RELEASE, stderr.read_line(&mut said)).await;
                match timeout(RELEASE, child.wait()).await {
                    Ok(Ok(status)) if status.code() == Some(OWN_WORDS) => {
                        Err(SiteError::Script(said.trim().to_owned()))
                    }
                    Ok(Ok(status)) if status.code() != Some(BUSY) => Err(SiteError::Failed {
                        command: title,
                        status: local::describe(status),
                        said: said.trim().to_owned(),
                    }),
                    _ => Err(SiteError::Locked { path: path.to_owned(), after: wait }),
                }
            }
        }
    }
}

impl Lock {
    /// Fails if the lock was lost meanwhile. To be asked before every step that others could undo.
    pub fn check(&mut self) -> Result<(), SiteError> {
        let held = match &mut self.holder {
            Holder::Local { child, .. } => matches!(child.try_wait(), Ok(None)),
            Holder::Ssh(lock) => lock.is_held(),
        };
        if held { Ok(()) } else { Err(SiteError::LockLost { path: self.path.clone() }) }
    }

    /// Gives the lock back, and waits for that: whoever asks next in our name gets it at once.
    pub async fn release(self) {
        match self.holder {
            Holder::Local { mut child, stdin } => {
                drop(stdin);
                let _late = timeout(RELEASE, child.wait()).await;
            }
            Holder::Ssh(lock) => {
                let _late = timeout(RELEASE, lock.release()).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_the_lock_is_free_when_its_holder_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".state/lock").display().to_string();
        let site = Site::local("localhost", false);
        let mut lock = site.lock(&path, Duration::from_secs(5)).await.unwrap();
        lock.check().unwrap();
        let error = site.lock(&path, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.to_string(), format!("somebody else holds the lock {path} for more than 1 s"));
        lock.release().await;
        let lock = site.lock(&path, Duration::from_secs(5)).await.unwrap();
        let (next, ()) = tokio::join!(site.lock(&path, Duration::from_secs(10)), async { drop(lock) });
        next.unwrap().check().unwrap();
    }

    #[tokio::test]
    async fn a_lost_lock_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".state/lock").display().to_string();
        let mut lock = Site::local("localhost", false).lock(&path, Duration::from_secs(5)).await.unwrap();
        let Holder::Local { child, .. } = &mut lock.holder else { panic!("it is here") };
        child.kill().await.unwrap();
        assert!(matches!(lock.check(), Err(SiteError::LockLost { .. })));
    }
}
