//! The clean-up of this host: what no proc uses any more, asked for by the server and done now and then by itself.
//!
//! What is in use is vrun's to know, which holds locks on it; here only the folders of procs are judged that nobody
//! supervises.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::sleep;
use tracing::{info, warn};
use vr_common::archive::bytes_in;
use vr_common::host_api::{CleanUpReport, CleanUpRequest, RemovedPath};
use vr_common::lock::FileLock;
use vr_common::names::ContainerName;
use vr_common::paths::VrRoot;

use crate::error::AgentError;
use crate::host::Host;
use crate::vrun::{self, CallError};

/// How long ago something must have been used last, unless the request says so.
const UNUSED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often the agent cleans up by itself.
const EVERY: Duration = Duration::from_secs(4 * 3600);
/// How long after its start it does so for the first time.
const FIRST_AFTER: Duration = Duration::from_secs(600);
/// How long vrun may take.
const DEADLINE: Duration = Duration::from_secs(3600);
/// The longest report of vrun, in bytes.
const REPORT_LIMIT: usize = 16 << 20;
/// The kind of what is left of a proc that nobody supervises.
const LEFT_PROC: &str = "left_proc";

/// One clean-up at a time.
#[derive(Debug, Default)]
pub struct CleanUps {
    only_one: Mutex<()>,
}

/// The last line of `vrun cleanup --json`.
#[derive(Debug, Deserialize)]
struct OfVrun {
    #[serde(default)]
    removed: Vec<RemovedPath>,
    #[serde(default)]
    errors: Vec<String>,
    /// Why nothing was done at all.
    error: Option<String>,
}

impl CleanUps {
    /// Removes what was asked for, or says what would go.
    pub async fn run(&self, host: &Arc<Host>, request: &CleanUpRequest) -> Result<CleanUpReport, AgentError> {
        let _only_one = self.only_one.lock().await;
        let unused_for = request.unused_for.map_or(UNUSED_FOR, Duration::from_secs);
        let mut report = CleanUpReport { dry_run: request.dry_run, ..CleanUpReport::default() };
        // Procs first: what only they refer to is of no use after that.
        remove_left_procs(host, unused_for, &mut report).await;
        let done = call_vrun(host.root(), request.dry_run, unused_for).await?;
        report.removed.extend(done.removed);
        report.errors.extend(done.errors);
        report.removed_bytes = report.removed.iter().map(|removed| removed.bytes).sum();
        Ok(report)
    }
}

async fn call_vrun(root: &VrRoot, dry_run: bool, unused_for: Duration) -> Result<OfVrun, AgentError> {
    let failed =
        |reason| AgentError::Vrun { subcommand: "cleanup", name: root.path().display().to_string(), reason };
    let age = format!("{}s", unused_for.as_secs());
    let mut words = vec!["cleanup", "--json", "--unused-for", &age, "--tarballs-unused-for", &age];
    if dry_run {
        words.push("--dry-run");
    }
    let words: Vec<&OsStr> = words.into_iter().map(OsStr::new).collect();
    let output = vrun::ask(root, &words, DEADLINE, REPORT_LIMIT).await.map_err(|e| match e {
        CallError::Failed(reason) => failed(reason),
        CallError::Locked => failed("another vrun works on it".to_owned()),
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let done: Option<OfVrun> = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    match done {
        // What could not be removed is among the errors; with none of them, nothing was tried.
        Some(OfVrun { error: Some(error), errors, .. }) if errors.is_empty() => Err(failed(error)),
        Some(done) => Ok(done),
        None => Err(failed(output.message)),
    }
}

/// Removes folders of procs that have no `proc.yaml`, that nobody works on, and in which nothing has happened for long:
/// what a deploy left that was cut off, or a proc that was set up by hand and forgotten.
async fn remove_left_procs(host: &Arc<Host>, unused_for: Duration, report: &mut CleanUpReport) {
    let root = host.root().clone();
    let look = tokio::task::spawn_blocking(move || left_procs(&root, unused_for));
    let left = match look.await {
        Ok(Ok(left)) => left,
        Ok(Err(e)) => return report.errors.push(format!("cannot look at the procs' folders: {e}")),
        Err(e) => return report.errors.push(format!("cannot look at the procs' folders: {e}")),
    };
    for (name, path, bytes) in left {
        let goes = match report.dry_run {
            true => Ok(host.snapshot(&name).is_none()),
            false => host.delete_left(&name).await,
        };
        match goes {
            Ok(true) => {}
            // It is somebody's by now.
            Ok(false) => continue,
            Err(e) => {
                report.errors.push(vr_common::exit::chain(&e));
                continue;
            }
        }
        report.removed.push(RemovedPath { kind: LEFT_PROC.to_owned(), path, bytes });
        report.procs.push(name);
    }
}

fn left_procs(root: &VrRoot, unused_for: Duration) -> std::io::Result<Vec<(String, String, u64)>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(root.procs())? {
        let path = entry?.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if name.parse::<ContainerName>().is_ok() && is_left(&path, unused_for) {
            left.push((name.to_owned(), path.display().to_string(), bytes_in(&path)));
        }
    }
    Ok(left)
}

fn is_left(folder: &Path, unused_for: Duration) -> bool {
    let is_folder = fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir());
    if !is_folder || folder.join("proc.yaml").symlink_metadata().is_ok() {
        return false;
    }
    // A vrun that works on it has it locked.
    let Ok(_nobody) = FileLock::existing(folder) else { return false };
    let touched = ["", "setup.json", "log", "rootfs", "status.json"]
        .iter()
        .filter_map(|name| fs::symlink_metadata(folder.join(name)).and_then(|found| found.modified()).ok());
    // A time to come is that of a clock that was set back.
    let age = |touched: SystemTime| touched.elapsed().unwrap_or_default();
    touched.map(age).min().is_some_and(|age| age >= unused_for)
}

/// Cleans up now and then for as long as there is a host.
pub async fn now_and_then(host: Weak<Host>, clean_ups: Arc<CleanUps>) {
    let mut pause = FIRST_AFTER;
    loop {
        sleep(pause).await;
        pause = EVERY;
        let Some(host) = host.upgrade() else { return };
        match clean_ups.run(&host, &CleanUpRequest::default()).await {
            Ok(done) => {
                for error in &done.errors {
                    warn!("clean-up: {error}");
                }
                if !done.removed.is_empty() {
                    info!(removed = done.removed.len(), bytes = done.removed_bytes, "cleaned up");
                }
            }
            Err(e) => warn!("cannot clean up: {}", vr_common::exit::chain(&e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "demo-v1-prod-abcd1234-web-5001";

    #[test]
    fn only_folders_without_anybody_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let root = VrRoot::new(dir.path());
        let folder = root.proc_dir(NAME);
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(root.procs().join("something-else")).unwrap();
        let names = |age| -> Vec<String> {
            left_procs(&root, age).unwrap().into_iter().map(|(name, ..)| name).collect()
        };
        assert_eq!(names(Duration::ZERO), [NAME]);
        assert_eq!(names(Duration::from_secs(3600)), [""; 0], "somebody was there within the hour");
        let busy = FileLock::existing(&folder).unwrap();
        assert_eq!(names(Duration::ZERO), [""; 0], "a vrun works on it");
        drop(busy);
        fs::write(folder.join("proc.yaml"), "").unwrap();
        assert_eq!(names(Duration::ZERO), [""; 0], "the agent's own");
    }
}
