//! Locks that are waited for, with a note in them of who has them since when.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vr_common::lock::{FileLock, LockError};

use super::{Interrupts, JobError};

/// How often a lock that somebody else has is tried again.
const PAUSE: Duration = Duration::from_millis(50);
/// How often people are told that it is still waited for.
const REMINDER: Duration = Duration::from_secs(60);

/// A lock; dropping it, or dying, gives it back.
#[derive(Debug)]
pub struct Locked {
    _lock: FileLock,
}

/// Takes the lock on the file `path`, which is made when it is missing, or on the folder, and waits for whoever has it,
/// but no longer than `longest`. `say` gets what to tell people while it lasts.
pub(super) fn wait(
    path: &Path,
    longest: Option<Duration>,
    interrupts: &Interrupts,
    say: impl Fn(&str),
) -> Result<Locked, JobError> {
    let is_folder = path.is_dir();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(JobError::io("make", folder))?;
    }
    let begin = Instant::now();
    let mut said = None::<Instant>;
    loop {
        let taken = match is_folder {
            true => FileLock::existing(path).map(|lock| Locked { _lock: lock }).map_err(JobError::from),
            false => try_lock(path),
        };
        match taken {
            Err(JobError::Lock(LockError::Held(_))) => {}
            done => return done,
        }
        if said.is_none_or(|at| at.elapsed() >= REMINDER) {
            say(&format!("waiting for {}", holder(path)));
            said = Some(Instant::now());
        }
        if longest.is_some_and(|longest| begin.elapsed() >= longest) {
            return Err(JobError::LockTimeout { holder: holder(path), waited: longest.unwrap_or_default() });
        }
        let left = longest.map_or(PAUSE, |longest| longest.saturating_sub(begin.elapsed()));
        interrupts.pause(PAUSE.min(left))?;
    }
}

/// Takes the lock on the file `path`, which is made when it is missing; [`LockError::Held`] when somebody has it.
pub fn try_lock(path: &Path) -> Result<Locked, JobError> {
    let lock = FileLock::create(path)?;
    let note = || -> io::Result<()> {
        lock.file().set_len(0)?;
        lock.file().write_all(format!("{} {}\n", std::process::id(), now()).as_bytes())
    };
    // The note is for people only; without it the lock is as good.
    if let Err(error) = note() {
        tracing::debug!(lock = %path.display(), %error, "cannot note who holds the lock");
    }
    Ok(Locked { _lock: lock })
}

/// `process 123, which has held LOCK for 12 s`, as far as the lock's note tells.
fn holder(path: &Path) -> String {
    let mut note = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(64).read_to_string(&mut note));
    let mut numbers = note.split_whitespace().map(str::parse::<u64>);
    match (read, numbers.next(), numbers.next()) {
        (Ok(_), Some(Ok(pid)), Some(Ok(since))) => {
            let seconds = now().saturating_sub(since);
            format!("process {pid}, which has held {} for {seconds} s", path.display())
        }
        _ => match holder_by_kernel(path) {
            Some(pid) => format!("process {pid}, which holds {}", path.display()),
            None => format!("another process, which holds {}", path.display()),
        },
    }
}

/// The process that holds a lock, by the kernel's list of all: `1: FLOCK ADVISORY WRITE 123 fe:00:4567 0 EOF`, where the
/// sixth field is the file's device, in hexadecimal, and its number.
fn holder_by_kernel(path: &Path) -> Option<u32> {
    let found = fs::metadata(path).ok()?;
    let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", found.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            // Those who wait are listed below, with an arrow.
            [_, "FLOCK", _, _, pid, place, ..] if place == file => pid.parse().ok().filter(|pid| *pid > 0),
            _ => None,
        }
    })
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
