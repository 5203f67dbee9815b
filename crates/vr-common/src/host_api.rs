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
//! | `GET procs/NAME/log?offset=A&length=B` | so many bytes from there on |
//! | `GET procs/NAME/log/follow?bytes=N` | the log's last N bytes and what is written from now on, until the proc is deleted |
//! | `DELETE procs/NAME` | [`Deleted`]; an unknown proc is no error |
//! | `GET logs` | [`KeptLogs`]: the logs of procs that were deleted; they are read and followed like the others |
//! | `POST clean-up` with a [`CleanUpRequest`] | [`CleanUpReport`] |
//! | `GET changes` | a stream of Server-Sent Events, below |
//!
//! `GET changes` begins with the event `hello` ([`Hello`]), which lists all procs, and goes on with a [`ProcChange`] for
//! each change since then, so that a caller that takes them in order always knows what the host knows. Each has an id. A
//! caller that was cut off gives its last one, as the header `Last-Event-ID` or as `?after=ID`; the stream then goes on
//! just after it, and `hello` has no list. If the agent no longer has what came between, the list is there again. A caller
//! that reads too slowly gets the event `lagged` and another `hello` with a list. A comment every 15 seconds shows that
//! the agent is there.
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
    /// What it uses of the host. Only in answers of the agent's JSON API, and only when the host could tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What a proc uses of its host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time since it was last started, in seconds.
    pub cpu_seconds: f64,
    /// Processor time between the last two looks at it, in hundredths of one processor; none after the first look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// Memory, in bytes: of its control group without the files that the kernel could forget, or of all its processes
    /// together, those that they share counted more than once.
    pub memory_bytes: u64,
    /// How often it was started again by itself since it was deployed.
    pub restarts: u32,
    /// How many of its processes were killed for want of memory since it was deployed.
    pub ooms: u32,
    /// Processes, without vrun's own; none when they could not be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
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
    /// RAM that could be used without swapping, in bytes.
    #[serde(default)]
    pub memory_available_bytes: u64,
    /// The size of the file system with the procs, in bytes.
    #[serde(default)]
    pub disk_total_bytes: u64,
    /// The load over 1, 5 and 15 minutes, as in `/proc/loadavg`.
    #[serde(default)]
    pub load: [f64; 3],
    /// The kernel's release, such as `6.1.0-18-amd64`.
    #[serde(default)]
    pub kernel: String,
    /// Which cgroup hierarchies are mounted.
    #[serde(default)]
    pub cgroups: CgroupVersion,
    /// Changes with each boot.
    #[serde(default)]
    pub boot_id: String,
    /// Seconds since the boot.
    #[serde(default)]
    pub uptime: u64,
    /// What `vrun --version` says; none when it cannot be started.
    #[serde(default)]
    pub vrun_version: Option<String>,
    /// Changes with each start of the agent, as the ids of changes begin anew with it.
    #[serde(default)]
    pub epoch: String,
}

/// Which cgroup hierarchies a host has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupVersion {
    /// None is mounted.
    #[default]
    None,
    /// A hierarchy for each controller.
    V1,
    /// One for all.
    V2,
    /// Controllers are in hierarchies of version 1, beside an empty one of version 2.
    Hybrid,
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

/// The first message of `GET changes`, and the one after each `lagged`. Its SSE event is `hello`, and its id is the last
/// change that it covers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The host, by its own name.
    pub host: String,
    /// [`HostInfo::epoch`].
    pub epoch: String,
    /// All procs, sorted by name, as they are now; absent when the stream goes on just after the id that the caller
    /// gave, so that nothing was missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub procs: Option<Vec<ProcDocument>>,
}

/// One message of `GET changes`. Its SSE event is [`ProcChange::event`], its id `EPOCH.NUMBER`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcChange {
    /// Supervisor's name of what happened: `PROCESS_STATE_RUNNING` and its like, `PROCESS_GROUP_ADDED` or
    /// `PROCESS_GROUP_REMOVED`.
    pub event: String,
    /// When it happened, in Unix milliseconds.
    pub at: i64,
    /// The proc just after that; for one that is gone, just before.
    #[serde(flatten)]
    pub proc: ProcDocument,
}

/// A log of a proc that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptLog {
    /// The proc that it was of.
    pub name: String,
    /// When the proc was deleted, in Unix milliseconds.
    pub deleted_at: i64,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// The answer to `GET logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptLogs {
    /// Sorted by name.
    pub logs: Vec<KeptLog>,
}

/// Asks a host to remove what nobody uses any more. Empty means the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CleanUpRequest {
    /// Only say what would go.
    pub dry_run: bool,
    /// How long ago something must have been used last, in seconds: unpacked builds, tarballs and images. The default is
    /// 7 days.
    pub unused_for: Option<u64>,
}

/// What a clean-up removed, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanUpReport {
    /// Whether everything is still there.
    pub dry_run: bool,
    /// Folders and files.
    pub removed: Vec<RemovedPath>,
    /// How much room that made, in bytes.
    pub removed_bytes: u64,
    /// Folders of procs that no longer had a `proc.yaml`, by name; they are among what was removed.
    pub procs: Vec<String>,
    /// What could not be removed, a sentence each.
    pub errors: Vec<String>,
}

/// Something that a clean-up removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedPath {
    /// What it was, such as `unpacked_build`.
    pub kind: String,
    /// Where it was on the host.
    pub path: String,
    /// What it took on disk, in bytes.
    pub bytes: u64,
}

/// How good one thing of a host is, for `vr-agent check` and `vrun check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Procs run, but something is weaker, or soon will not work.
    Warn,
    /// Procs do not run without it.
    Missing,
}

/// One thing that a host was checked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, such as `overlayfs`.
    pub what: String,
    /// How good it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when nothing is to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

impl Finding {
    /// A line for people, with its end, and another one with what to do.
    pub fn line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Missing => "missing",
        };
        let advice = match self.advice.as_str() {
            "" => String::new(),
            advice => format!("{:9}{advice}\n", ""),
        };
        format!("{verdict:<9}{}: {}\n{advice}", self.what, self.found)
    }
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
    /// How many of its processes the kernel killed because of its memory limit; absent when there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u32>,
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
