//! What a host says of its procs: the types of vr-agent's JSON API and of vrun's status file.
//!
//! The API, under `/v1/` of the agent's address, with `Authorization: Bearer <token>`:
//!
//! | call | answer |
//! | --- | --- |
//! | `GET info` | [`HostInfo`] |
//! | `GET procs` | [`ProcList`] |
//! | `GET procs/NAME` | [`ProcDocument`] |
//! | `PUT procs/NAME` with a [`DeployRequest`] | [`ProcDocument`] once it runs; the same request again is no change |
//! | `POST procs/NAME/start`, `…/stop`, `…/restart` | [`ProcDocument`] |
//! | `POST procs/NAME/uptest` | [`UptestReport`] |
//! | `GET procs/NAME/log?bytes=N` | the log's last N bytes (16 KiB by default) as plain text |
//! | `DELETE procs/NAME` | [`Deleted`]; an unknown proc is no error |
//!
//! Anything else is answered with a status of 400 or above and an [`ErrorBody`].

use serde::{Deserialize, Serialize};

use crate::names::ParsedProcName;

/// A proc's state, with Supervisor's names and numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ProcState {
    /// Stopped on request, or never started.
    Stopped,
    /// Started less than `startsecs` ago.
    Starting,
    /// Up.
    Running,
    /// Ended too soon after its start; will be tried again.
    Backoff,
    /// Was told to stop and has not ended yet.
    Stopping,
    /// Ended by itself and is not to be restarted.
    Exited,
    /// Ended too soon too often; somebody has to look.
    Fatal,
    /// The host could not tell.
    Unknown,
}

impl ProcState {
    /// Supervisor's number for the state.
    pub fn code(self) -> u32 {
        match self {
            Self::Stopped => 0,
            Self::Starting => 10,
            Self::Running => 20,
            Self::Backoff => 30,
            Self::Stopping => 40,
            Self::Exited => 100,
            Self::Fatal => 200,
            Self::Unknown => 1000,
        }
    }

    /// Supervisor's name for the state.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Backoff => "BACKOFF",
            Self::Stopping => "STOPPING",
            Self::Exited => "EXITED",
            Self::Fatal => "FATAL",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// A proc as it is shown everywhere: Supervisor's info, the parsed name, and where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcDocument {
    /// For people: `pid 5556, uptime 16:05:53`, or what went wrong.
    pub description: String,
    /// The last exit status, 0 if it never ended.
    pub exitstatus: i32,
    /// Supervisor's group; vr-agent has the name again.
    pub group: String,
    /// The log file's path on the host.
    pub logfile: String,
    /// The container's name.
    pub name: String,
    /// When the host looked, ISO 8601 UTC.
    pub now: Option<String>,
    /// The process, 0 if there is none.
    pub pid: u32,
    /// Why it could not be started, or empty.
    pub spawnerr: String,
    /// When it was last started, ISO 8601 UTC.
    pub start_time: Option<String>,
    /// [`ProcState::code`].
    pub state: u32,
    /// [`ProcState::name`].
    pub statename: ProcState,
    /// Empty under vr-agent, where both streams go to one log.
    pub stderr_logfile: String,
    /// The log file's path on the host.
    pub stdout_logfile: String,
    /// When it last ended, ISO 8601 UTC.
    pub stop_time: Option<String>,
    /// The name, taken apart.
    #[serde(flatten)]
    pub parsed: ParsedProcName,
    /// The host.
    pub host: String,
    /// The name with `.` written `dot`.
    pub jsname: String,
    /// `{host}-{name}`.
    pub id: String,
}

impl ProcDocument {
    /// Sets the host and what is made from it; the server knows hosts by its own names.
    pub fn on_host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self.id = format!("{host}-{}", self.name);
        self
    }
}

/// All procs of a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcList {
    /// The host, by its own name.
    pub host: String,
    /// Sorted by name.
    pub procs: Vec<ProcDocument>,
}

/// What a host is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostInfo {
    /// The host, by its own name.
    pub host: String,
    /// The agent's version.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// CPUs.
    pub cpus: u32,
    /// RAM, in bytes.
    pub memory_bytes: u64,
    /// Free space for procs, in bytes.
    pub disk_free_bytes: u64,
}

/// Asks an agent to have a proc.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeployRequest {
    /// The text of `proc.yaml`.
    pub proc_yaml: String,
}

/// The result of one uptest, as vrun prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UptestResult {
    /// The file's name.
    pub name: String,
    /// Standard output and error together, or why it could not start.
    pub output: String,
    /// Whether it exited with 0.
    pub passed: bool,
}

/// The results of all uptests of a proc; empty when it has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UptestReport {
    /// In name order.
    pub results: Vec<UptestResult>,
}

/// The answer to a delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// The proc.
    pub name: String,
    /// Always true.
    pub deleted: bool,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One sentence.
    pub error: String,
    /// The last lines of the proc's log, where they help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<String>,
}

/// The file that `vrun run --status-file` keeps, so that anybody may learn how a proc began and ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStatus {
    /// The waiting vrun.
    pub pid: u32,
    /// Field 22 of its `/proc/<pid>/stat`: with the pid, it names one process for good.
    pub start_ticks: u64,
    /// Unix milliseconds.
    pub started_at: i64,
    /// The app's process as the host sees it.
    #[serde(default)]
    pub app_pid: Option<u32>,
    /// Unix milliseconds; none while it runs.
    #[serde(default)]
    pub ended_at: Option<i64>,
    /// How it ended, unless by a signal.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Why it could not start, or what ended it.
    #[serde(default)]
    pub message: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_supervisors_names_and_numbers() {
        for (state, code, name) in
            [(ProcState::Running, 20, "RUNNING"), (ProcState::Unknown, 1000, "UNKNOWN")]
        {
            assert_eq!((state.code(), state.name()), (code, name));
            assert_eq!(serde_json::to_value(state).unwrap(), name);
        }
    }

    #[test]
    fn uptest_results_have_the_published_keys() {
        let result = UptestResult { name: "01".into(), output: "ok".into(), passed: true };
        assert_eq!(serde_json::to_string(&result).unwrap(), r#"{"Name":"01","Output":"ok","Passed":true}"#);
    }
}
