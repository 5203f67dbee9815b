//! What the agent has to remember of a proc when it is killed: `agent.json` in the proc's folder.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vr_common::state_file;

use crate::{files, process};

/// The file's name in a proc's folder.
pub const FILE_NAME: &str = "agent.json";
/// The longest record that is read, in bytes.
const LONGEST: u64 = 64 * 1024;

/// What somebody wants of a proc.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// Up, also after the next boot.
    Running,
    /// Down.
    Stopped,
}

/// How far a proc has been set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// `vrun setup` has not ended well yet, so it has to run (again).
    SettingUp,
    /// It can be started.
    Ready,
}

/// A proc's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What is wanted.
    pub desired: Desired,
    /// How far it is set up.
    pub phase: Phase,
    /// Starts in a row that failed, in the boot named by `boot_id`.
    #[serde(default)]
    pub failures: u32,
    /// Why the last start failed.
    #[serde(default)]
    pub spawn_error: String,
    /// How often it was started again by itself since it was deployed.
    #[serde(default)]
    pub restarts: u32,
    /// How many of its processes were killed for want of memory since it was deployed.
    #[serde(default)]
    pub ooms: u32,
    /// When somebody last wanted it up, in the boot named by `boot_id`, in clock ticks since that. A run that began later
    /// is one that was wanted then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted_at_ticks: Option<u64>,
    /// The kernel's name of the boot in which this was written.
    #[serde(default)]
    pub boot_id: String,
}

impl Record {
    /// Of a proc that somebody else made, or that is just being made.
    pub fn new(desired: Desired) -> Self {
        let mut record = Self {
            desired,
            phase: Phase::SettingUp,
            failures: 0,
            spawn_error: String::new(),
            restarts: 0,
            ooms: 0,
            wanted_at_ticks: None,
            boot_id: boot_id(),
        };
        record.want(desired);
        record
    }

    /// Notes a wish, and when it was made.
    pub fn want(&mut self, desired: Desired) {
        self.desired = desired;
        self.wanted_at_ticks = match desired {
            // When it cannot be told, nothing that ended is taken for what is wanted now.
            Desired::Running => process::ticks_since_boot().ok(),
            Desired::Stopped => None,
        };
    }

    /// Reads a proc's record; failures of an earlier boot are forgotten.
    pub fn load(proc_dir: &Path) -> io::Result<Self> {
        let mut record: Self = serde_json::from_str(&files::read_text(&proc_dir.join(FILE_NAME), LONGEST)?)?;
        let now = boot_id();
        if record.boot_id != now {
            record.failures = 0;
            record.spawn_error.clear();
            record.wanted_at_ticks = None;
            record.boot_id = now;
        }
        Ok(record)
    }

    /// Writes a proc's record for good.
    pub fn save(&self, proc_dir: &Path) -> io::Result<()> {
        state_file::replace(&proc_dir.join(FILE_NAME), &serde_json::to_vec(self)?)
    }
}

fn boot_id() -> String {
    files::read_text(Path::new("/proc/sys/kernel/random/boot_id"), 100).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_failures_end_with_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record { failures: 3, phase: Phase::Ready, ..Record::new(Desired::Running) };
        record.spawn_error = "no".into();
        record.save(dir.path()).unwrap();
        assert_eq!(Record::load(dir.path()).unwrap(), record);
        record.boot_id = "another".into();
        record.save(dir.path()).unwrap();
        let later = Record::load(dir.path()).unwrap();
        assert_eq!((later.failures, later.spawn_error.as_str(), later.phase), (0, "", Phase::Ready));
        assert_eq!((record.wanted_at_ticks.is_some(), later.wanted_at_ticks), (true, None));
    }
}
