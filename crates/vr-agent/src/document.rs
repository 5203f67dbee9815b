//! What is shown of a proc: Supervisor's info and the parsed name, made from what the supervision knows.

use jiff::Timestamp;
use vr_common::host_api::{ProcDocument, ProcState};
use vr_common::supervisor::ProcessInfo;

/// What the supervision knows of a proc at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The state.
    pub state: ProcState,
    /// The app's process or, until that is known, the waiting vrun; 0 for none.
    pub pid: u32,
    /// When it was last started, in Unix milliseconds.
    pub started_at: Option<i64>,
    /// When it last ended, in Unix milliseconds.
    pub ended_at: Option<i64>,
    /// Its last exit status; -1 if nobody knows it.
    pub exit_status: i32,
    /// Why the last start failed, or empty.
    pub spawn_error: String,
    /// Whether `vrun setup` is at work, or has to work first.
    pub setting_up: bool,
    /// The waiting vrun; 0 for none.
    pub vrun_pid: u32,
    /// When that was started, in clock ticks since boot: a number alone may be another process's by now.
    pub vrun_ticks: u64,
    /// How often it was started again by itself.
    pub restarts: u32,
    /// How many of its processes were killed for want of memory, as far as their runs are over.
    pub ooms: u32,
}

impl Snapshot {
    /// Of a proc that nobody has looked at yet.
    pub fn unknown() -> Self {
        Self {
            state: ProcState::Unknown,
            pid: 0,
            started_at: None,
            ended_at: None,
            exit_status: 0,
            spawn_error: String::new(),
            setting_up: false,
            vrun_pid: 0,
            vrun_ticks: 0,
            restarts: 0,
            ooms: 0,
        }
    }

    /// The document of the proc `name` whose log is at `log`, at the time `now`.
    pub fn document(&self, host: &str, name: &str, log: &str, now: Timestamp) -> ProcDocument {
        self.info(name, log, now).document(host)
    }

    /// The same as Supervisor tells it.
    pub fn info(&self, name: &str, log: &str, now: Timestamp) -> ProcessInfo {
        let seconds = |unix_ms: Option<i64>| unix_ms.map_or(0, |ms| ms.div_euclid(1000));
        ProcessInfo {
            name: name.to_owned(),
            group: name.to_owned(),
            description: self.description(now),
            start: seconds(self.started_at),
            stop: seconds(self.ended_at),
            now: now.as_second(),
            state: self.state.code(),
            statename: self.state.name().to_owned(),
            spawnerr: self.spawn_error.clone(),
            exitstatus: self.exit_status,
            logfile: log.to_owned(),
            stdout_logfile: log.to_owned(),
            stderr_logfile: String::new(),
            pid: self.pid,
            other: serde_json::Map::new(),
        }
    }

    fn description(&self, now: Timestamp) -> String {
        match self.state {
            ProcState::Running => {
                let up = self.started_at.map_or(0, |start| (now.as_millisecond() - start).max(0) / 1000);
                format!("pid {}, uptime {}", self.pid, uptime(up))
            }
            ProcState::Backoff | ProcState::Fatal => self.spawn_error.clone(),
            ProcState::Stopped | ProcState::Exited if self.setting_up => "being set up".to_owned(),
            ProcState::Stopped | ProcState::Exited => match (self.started_at, time(self.ended_at)) {
                (Some(_), Some(ended)) => ended.strftime("%b %d %I:%M %p").to_string(),
                _ => "Not started".to_owned(),
            },
            ProcState::Starting | ProcState::Stopping | ProcState::Unknown => String::new(),
        }
    }
}

fn time(unix_ms: Option<i64>) -> Option<Timestamp> {
    Timestamp::from_millisecond(unix_ms?).ok()
}

/// `0:05:53`, `1 day, 0:05:53`, `2 days, 10:00:00`.
fn uptime(seconds: i64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    match days {
        0 => clock,
        1 => format!("1 day, {clock}"),
        days => format!("{days} days, {clock}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_running_proc_is_described_as_supervisor_does() {
        let now = at("2012-12-19T06:25:39.5Z");
        let snapshot = Snapshot {
            state: ProcState::Running,
            pid: 5556,
            started_at: Some(at("2012-12-19T06:19:46Z").as_millisecond()),
            ..Snapshot::unknown()
        };
        let doc = snapshot.document("h.example", "a.b-v1-prod-ffffffff-web-5000", "/l", now);
        assert_eq!(doc.description, "pid 5556, uptime 0:05:53");
        assert_eq!(doc.start_time.as_deref(), Some("2012-12-19T06:19:46+00:00"));
        assert_eq!(doc.now.as_deref(), Some("2012-12-19T06:25:39+00:00"));
        assert_eq!((doc.stop_time, doc.state, doc.parsed.port), (None, 20, 5000));
        assert_eq!(doc.jsname, "adotb-v1-prod-ffffffff-web-5000");
        assert_eq!(doc.id, "h.example-a.b-v1-prod-ffffffff-web-5000");
    }

    #[test]
    fn other_states_say_what_went_wrong_or_when() {
        let now = at("2012-12-19T06:25:39Z");
        let mut snapshot = Snapshot { state: ProcState::Stopped, ..Snapshot::unknown() };
        assert_eq!(snapshot.description(now), "Not started");
        (snapshot.started_at, snapshot.ended_at) = (Some(1), Some(now.as_millisecond()));
        assert_eq!(snapshot.description(now), "Dec 19 06:25 AM");
        snapshot.state = ProcState::Fatal;
        snapshot.spawn_error = "it broke".into();
        assert_eq!(snapshot.description(now), "it broke");
    }

    #[test]
    fn long_uptimes_are_counted_in_days() {
        assert_eq!(uptime(57_953), "16:05:53");
        assert_eq!(uptime(86_400 + 353), "1 day, 0:05:53");
        assert_eq!(uptime(10 * 86_400), "10 days, 0:00:00");
    }
}
