//! The container of a run whose vrun was killed. The kernel ends it too, but gives the dead vrun's locks back before
//! the last process of the container is gone; the next command has to wait for that.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use vr_common::log::DOING;

use super::files::{Access, Durable, write_file};
use super::status::stat_of;
use super::{Proc, ProcError};

/// Holds number and start of the last container's first process.
const FILE_NAME: &str = "container.init";
/// How long the end of killed processes may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the first process of each container is called; see [`crate::container`].
const INIT: &str = "vr-init";

/// Writes down which process the container of this run lives and dies with.
pub(super) fn remember(proc: &Proc, init: i32) -> Result<(), ProcError> {
    let stat = stat_of(&init.to_string()).map_err(io_error(&proc.folder()))?;
    let text = format!("{init} {}\n", stat.start_ticks);
    let access = Access { mode: 0o600, group: 0 };
    // After a power cut there is no such process.
    write_file(&proc.folder(), FILE_NAME, text.as_bytes(), access, Durable::No)
}

/// Waits until the container of a killed run is gone. The caller holds the folder's lock.
pub(super) fn wait_until_gone(folder: &Path) -> Result<(), ProcError> {
    let Ok(text) = fs::read_to_string(folder.join(FILE_NAME)) else { return Ok(()) };
    let Some((number, ticks)) = text.trim_end().split_once(' ') else { return Ok(()) };
    let Some(pid) = number.parse().ok().and_then(Pid::from_raw) else { return Ok(()) };
    // The handle first: a number alone could be another process's by the time it is looked at.
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(Errno::SRCH | Errno::INVAL) => return Ok(()),
        Err(error) => return Err(io_error(folder)(error.into())),
    };
    match stat_of(number) {
        Ok(stat) if stat.name == INIT && stat.start_ticks.to_string() == ticks => {}
        _ => return Ok(()),
    }
    tracing::info!(target: DOING, "waiting for the end of the last container (process {number})");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => {
                return Err(ProcError::StillEnding { folder: folder.to_owned(), process: number.to_owned() });
            }
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(io_error(folder)(error.into())),
        }
    }
}

fn io_error(folder: &Path) -> impl FnOnce(io::Error) -> ProcError {
    let path = folder.to_owned();
    move |source| ProcError::Io { step: "look for the last container of", path, source }
}
