//! Watching what a container writes. File systems have no limit for a folder that would work everywhere, so the files
//! are looked at every now and then, and once more at the end; a container that writes fast may get beyond its limit by
//! what it writes in between.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use vr_common::archive::bytes_in_while;

/// The shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(250);
/// A look may take no more than one part in this many of the time.
const SHARE: u32 = 10;

/// What may be written below a folder.
#[derive(Debug, Clone)]
pub struct DiskLimit {
    /// The folder.
    pub folder: PathBuf,
    /// How many bytes on disk all of it may have.
    pub bytes: u64,
}

impl DiskLimit {
    /// Looks whether there is more now.
    pub(super) fn is_exceeded(&self) -> bool {
        bytes_in_while(&self.folder, |bytes| bytes <= self.bytes) > self.bytes
    }
}

/// A thread that looks at the files until this is dropped.
#[derive(Debug)]
pub(super) struct DiskWatch {
    exceeded: OwnedFd,
    stopped: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl DiskWatch {
    pub(super) fn start(limit: &DiskLimit) -> io::Result<Self> {
        let (exceeded, tell) = pipe_with(PipeFlags::CLOEXEC)?;
        let stopped = Arc::new((Mutex::new(false), Condvar::new()));
        let (limit, seen) = (limit.clone(), Arc::clone(&stopped));
        let thread = thread::Builder::new().name("disk".to_owned()).spawn(move || {
            if is_exceeded(&limit.folder, limit.bytes, &seen) {
                // Whoever polls sees this, and then the end of the pipe.
                let _told = rustix::io::write(&tell, b"!");
            }
            // Until then the pipe stays open: its end would show as well.
            wait(&seen, None);
        })?;
        Ok(Self { exceeded, stopped, thread: Some(thread) })
    }

    /// What polls as readable once the limit is exceeded.
    pub(super) fn handle(&self) -> BorrowedFd<'_> {
        self.exceeded.as_fd()
    }

    /// Whether it is; does not wait.
    pub(super) fn is_exceeded(&self) -> bool {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(&self.exceeded, PollFlags::IN)], Some(&at_once)), Ok(1..))
    }
}

impl Drop for DiskWatch {
    fn drop(&mut self) {
        *self.stopped.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopped.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// Looks until there is too much, or until it is stopped.
fn is_exceeded(folder: &Path, limit: u64, stopped: &(Mutex<bool>, Condvar)) -> bool {
    let mut pause = SHORTEST;
    loop {
        if wait(stopped, Some(pause)) {
            return false;
        }
        let begin = Instant::now();
        let is_on = |bytes| bytes <= limit && !*stopped.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes_in_while(folder, is_on) > limit {
            return true;
        }
        pause = SHORTEST.max(begin.elapsed() * SHARE);
    }
}

/// Waits to be stopped, at most for so long; gives whether it was.
fn wait((stopped, told): &(Mutex<bool>, Condvar), longest: Option<Duration>) -> bool {
    let guard = stopped.lock().unwrap_or_else(PoisonError::into_inner);
    let guard = match longest {
        Some(longest) => {
            told.wait_timeout_while(guard, longest, |stopped| !*stopped)
                .unwrap_or_else(PoisonError::into_inner)
                .0
        }
        None => told.wait_while(guard, |stopped| !*stopped).unwrap_or_else(PoisonError::into_inner),
    };
    *guard
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tripped(watch: &DiskWatch, seconds: i64) -> bool {
        let handle = watch.handle();
        let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
        poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)).unwrap() > 0
    }

    #[test]
    fn what_grows_beyond_the_limit_is_seen_and_what_does_not_is_let_be() {
        let dir = tempfile::tempdir().unwrap();
        let limit = DiskLimit { folder: dir.path().to_owned(), bytes: 4 << 20 };
        std::fs::write(dir.path().join("small"), vec![1; 1 << 20]).unwrap();
        let watch = DiskWatch::start(&limit).unwrap();
        assert!(!tripped(&watch, 1));
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/large"), vec![1; 4 << 20]).unwrap();
        assert!(tripped(&watch, 30));
    }

    #[test]
    fn a_watch_that_nobody_needs_any_more_ends_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        drop(DiskWatch::start(&DiskLimit { folder: dir.path().to_owned(), bytes: 0 }).unwrap());
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
