//! What is shown of a proc: Supervisor's info and the parsed name, made from what the supervision knows.

use jiff::Timestamp;
use vr_common::host_api::{ProcDocument, ProcState};
use vr_common::names::ParsedProcName;

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
        }
    }

    /// The document of the proc `name` whose log is at `log`, at the time `now`.
    pub fn document(&self, host: &str, name: &str, log: &str, now: Timestamp) -> ProcDocument {
        ProcDocument {
            description: self.description(now),
            exitstatus: self.exit_status,
            group: name.to_owned(),
            logfile: log.to_owned(),
            name: name.to_owned(),
            now: Some(iso(now)),
            pid: self.pid,
            spawnerr: self.spawn_error.clone(),
            start_time: time(self.started_at).map(iso),
            state: self.state.code(),
            statename: self.state,
            stderr_logfile: String::new(),
            stdout_logfile: log.to_owned(),
            stop_time: time(self.ended_at).map(iso),
            parsed: ParsedProcName::parse(name),
            host: String::new(),
            jsname: name.replace('.', "dot"),
            id: String::new(),
        }
        .on_host(host)
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

/// `2012-12-19T06:19:46+00:00`.
fn iso(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string()
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
