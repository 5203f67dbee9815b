//! The file that says how a run began and ended, for whoever watches the proc.

use std::fs;
use std::io;
use std::path::Path;

use vr_common::host_api::RunStatus;
use vr_common::state_file;

use crate::container::{ExitStatus, Running};

/// The status of a run that begins now, by this process.
pub(super) fn beginning() -> io::Result<RunStatus> {
    Ok(RunStatus {
        pid: std::process::id(),
        start_ticks: stat_of("self")?.start_ticks,
        started_at: now(),
        app_pid: None,
        ended_at: None,
        exit_code: None,
        signal: None,
        message: None,
        oom_kills: None,
    })
}

/// Adds the end, and what brought it where that is known.
pub(super) fn ended(status: RunStatus, end: ExitStatus, running: &Running) -> RunStatus {
    let kills = Some(running.oom_kills()).filter(|kills| *kills > 0);
    let oom_kills = kills.map(|kills| u32::try_from(kills).unwrap_or(u32::MAX));
    RunStatus { oom_kills, ..ended_with(status, end, running.out_of_memory()) }
}

fn ended_with(mut status: RunStatus, end: ExitStatus, reason: Option<&str>) -> RunStatus {
    status.ended_at = Some(now());
    match end {
        ExitStatus::Code(code) => status.exit_code = Some(i32::from(code)),
        ExitStatus::Signal(signal) => status.signal = Some(signal),
    }
    status.message = Some(reason.map_or_else(|| format!("ended with {end}"), str::to_owned));
    status
}

/// Adds why there never was a run.
pub(super) fn failed(mut status: RunStatus, message: String) -> RunStatus {
    status.ended_at = Some(now());
    status.message = Some(message);
    status
}

/// Replaces the file as a whole, also on a full disk: whoever watches an app that is started again there has to learn of it.
pub(super) fn write(path: &Path, status: &RunStatus) -> io::Result<()> {
    state_file::replace(path, &serde_json::to_vec(status)?)
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Two fields of a process's `stat`.
pub(super) struct Stat {
    /// Field 2: what it is called.
    pub name: String,
    /// Field 22: when it started, in ticks since the machine did.
    pub start_ticks: u64,
}

/// Reads `/proc/<process>/stat`.
pub(super) fn stat_of(process: &str) -> io::Result<Stat> {
    let text = String::from_utf8_lossy(&fs::read(format!("/proc/{process}/stat"))?).into_owned();
    // The name may hold spaces and parentheses itself.
    text.split_once('(')
        .and_then(|(_, rest)| rest.rsplit_once(')'))
        .and_then(|(name, rest)| {
            let start_ticks = rest.split_whitespace().nth(22 - 3)?.parse().ok()?;
            Some(Stat { name: name.to_owned(), start_ticks })
        })
        .ok_or_else(|| io::Error::other(format!("/proc/{process}/stat has no field 22")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status");
        let begin = beginning().unwrap();
        write(&path, &begin).unwrap();
        let end = ended_with(begin.clone(), ExitStatus::Signal(9), None);
        write(&path, &end).unwrap();
        let read: RunStatus = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, end);
        assert_eq!((read.signal, read.exit_code), (Some(9), None));
        assert_eq!(read.message.as_deref(), Some("ended with signal 9 (SIGKILL)"));
        assert_eq!(read.pid, std::process::id());
        assert!(read.ended_at >= Some(read.started_at));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
