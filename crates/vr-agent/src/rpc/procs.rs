//! Looks at, starts, stops and signals procs by Supervisor's rules: one, a group, or all.
//!
//! A group has one process of the same name, as with programs that are in no group.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use rustix::process::Signal;
use vr_common::exit::chain;
use vr_common::host_api::{ProcDocument, ProcState};
use vr_common::supervisor::fault;
use vr_common::xmlrpc::{Fault, Value};

use super::faults::{about, bare, of_look, of_start};
use crate::deadline::to_the_end;
use crate::error::AgentError;
use crate::host::Host;
use crate::supervision::Wait;

/// How long a start may take, a setup included, before its caller is told that it goes on.
const START_DEADLINE: Duration = Duration::from_secs(1200);
/// The same for everything else.
const CHANGE_DEADLINE: Duration = Duration::from_secs(300);

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// One process.
    Process(String),
    /// All processes of a group.
    Group(String),
}

impl Target {
    /// Takes a name apart: `name`, `group:name`, `group:*` or `group:`. Whether there is such a group is not looked at.
    pub fn parse(name: &str) -> Option<Self> {
        match name.split_once(':') {
            None => Some(Self::Process(name.to_owned())),
            Some((group, "" | "*")) => Some(Self::Group(group.to_owned())),
            Some((group, process)) if group == process => Some(Self::Process(process.to_owned())),
            Some(_) => None,
        }
    }
}

/// What `name` stands for, if it is supervised.
pub(super) fn find(host: &Host, name: &str) -> Result<(Target, ProcDocument), Fault> {
    let bad_name = || about(fault::BAD_NAME, name);
    let target = Target::parse(name).ok_or_else(bad_name)?;
    let (Target::Process(process) | Target::Group(process)) = &target;
    let document = host.document(process).map_err(|_| bad_name())?;
    Ok((target, document))
}

/// The one process that `name` stands for.
pub(super) fn find_process(host: &Host, name: &str) -> Result<ProcDocument, Fault> {
    match find(host, name)? {
        (Target::Process(_), document) => Ok(document),
        (Target::Group(_), _) => Err(about(fault::BAD_NAME, name)),
    }
}

// ---- information -------------------------------------------------------------------------------------------

/// Supervisor's description of a process.
pub(super) fn info(document: &ProcDocument) -> Value {
    let ProcDocument { description, exitstatus, group, logfile, name, now, pid, spawnerr, .. } = document;
    let text = |text: &str| Value::from(text);
    let members = [
        ("description", text(description)),
        ("exitstatus", Value::Int(*exitstatus)),
        ("group", text(group)),
        ("logfile", text(logfile)),
        ("name", text(name)),
        ("now", seconds(now.as_deref())),
        ("pid", capped(i64::from(*pid))),
        ("spawnerr", text(spawnerr)),
        ("start", seconds(document.start_time.as_deref())),
        ("state", capped(i64::from(document.state))),
        ("statename", text(document.statename.name())),
        ("stderr_logfile", text(&document.stderr_logfile)),
        ("stdout_logfile", text(&document.stdout_logfile)),
        ("stop", seconds(document.stop_time.as_deref())),
    ];
    Value::Struct(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// A time as Unix seconds, 0 for none.
fn seconds(iso: Option<&str>) -> Value {
    let time = iso.and_then(|iso| iso.parse::<Timestamp>().ok());
    capped(time.map_or(0, Timestamp::as_second))
}

/// A number as near as XML-RPC can carry it.
pub(super) fn capped(number: i64) -> Value {
    Value::Int(i32::try_from(number).unwrap_or(if number < 0 { i32::MIN } else { i32::MAX }))
}

// ---- one process -------------------------------------------------------------------------------------------

fn is_up(state: ProcState) -> bool {
    matches!(state, ProcState::Running | ProcState::Starting | ProcState::Backoff)
}

fn takes_signals(state: ProcState) -> bool {
    matches!(state, ProcState::Running | ProcState::Starting | ProcState::Stopping)
}

/// Has a process that is down started; `name` is how the caller called it.
async fn start_process(
    host: Arc<Host>,
    document: ProcDocument,
    name: String,
    wait: bool,
) -> Result<(), Fault> {
    if is_up(document.statename) {
        return Err(about(fault::ALREADY_STARTED, name));
    }
    if document.statename == ProcState::Unknown {
        return Err(about(fault::FAILED, format!("{name} is in an unknown process state")));
    }
    let process = document.name.clone();
    let work = async move { host.start_with(&process, waiting(wait)).await.map(drop) };
    to_the_end(document.name.clone(), START_DEADLINE, work).await.map_err(|e| of_start(&name, &e))
}

/// Has a process that is up stopped. One that is still being set up is given up.
async fn stop_process(
    host: Arc<Host>,
    document: ProcDocument,
    name: String,
    wait: bool,
) -> Result<(), Fault> {
    let is_set_up = || host.snapshot(&document.name).is_some_and(|seen| seen.setting_up);
    if !is_up(document.statename) && !is_set_up() {
        return Err(about(fault::NOT_RUNNING, name));
    }
    let process = document.name.clone();
    let work = async move { host.stop_with(&process, waiting(wait)).await.map(drop) };
    to_the_end(document.name.clone(), CHANGE_DEADLINE, work).await.map_err(|e| of_look(&name, &e))
}

async fn signal_process(
    host: Arc<Host>,
    document: ProcDocument,
    name: String,
    signal: String,
) -> Result<(), Fault> {
    let sent = signal_of(&signal).ok_or_else(|| about(fault::BAD_SIGNAL, &signal))?;
    if !takes_signals(document.statename) {
        return Err(about(fault::NOT_RUNNING, name));
    }
    let process = document.name.clone();
    let work = async move { host.signal(&process, sent).await };
    to_the_end(document.name.clone(), CHANGE_DEADLINE, work).await.map_err(|e| match e {
        AgentError::NotRunning(_) => about(fault::NOT_RUNNING, &name),
        e => of_look(&name, &e),
    })
}

fn waiting(wait: bool) -> Wait {
    if wait { Wait::Outcome } else { Wait::Asked }
}

/// A signal by its number, or by its name with or without `SIG`, in any case.
fn signal_of(text: &str) -> Option<Signal> {
    let text = text.trim();
    if let Ok(number) = text.parse::<i32>() {
        return Signal::from_named_raw(number);
    }
    let upper = text.to_ascii_uppercase();
    let (_, signal) =
        SIGNALS.iter().find(|(name, _)| *name == upper.strip_prefix("SIG").unwrap_or(&upper))?;
    Some(*signal)
}

/// As in signal(7), with the older names of some.
const SIGNALS: [(&str, Signal); 34] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("ILL", Signal::ILL),
    ("TRAP", Signal::TRAP),
    ("ABRT", Signal::ABORT),
    ("IOT", Signal::ABORT),
    ("BUS", Signal::BUS),
    ("FPE", Signal::FPE),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("SEGV", Signal::SEGV),
    ("USR2", Signal::USR2),
    ("PIPE", Signal::PIPE),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("STKFLT", Signal::STKFLT),
    ("CHLD", Signal::CHILD),
    ("CLD", Signal::CHILD),
    ("CONT", Signal::CONT),
    ("STOP", Signal::STOP),
    ("TSTP", Signal::TSTP),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("URG", Signal::URG),
    ("XCPU", Signal::XCPU),
    ("XFSZ", Signal::XFSZ),
    ("VTALRM", Signal::VTALARM),
    ("PROF", Signal::PROF),
    ("WINCH", Signal::WINCH),
    ("IO", Signal::IO),
    ("POLL", Signal::IO),
    ("PWR", Signal::POWER),
    ("SYS", Signal::SYS),
];

// ---- one, a group or all -----------------------------------------------------------------------------------

/// What is done to processes.
#[derive(Debug, Clone)]
pub(super) enum Deed {
    /// Start those that are down.
    Start { wait: bool },
    /// Stop those that are up.
    Stop { wait: bool },
    /// Signal those that are up.
    Signal(String),
    /// Empty the logs of all.
    ClearLog,
}

impl Deed {
    /// Whether it is done at all to a process of a group.
    fn concerns(&self, state: ProcState) -> bool {
        match self {
            Self::Start { .. } => !is_up(state),
            Self::Stop { .. } => is_up(state),
            Self::Signal(_) => takes_signals(state),
            Self::ClearLog => true,
        }
    }

    async fn to(self, host: Arc<Host>, document: ProcDocument, name: String) -> Result<(), Fault> {
        match self {
            Self::Start { wait } => start_process(host, document, name, wait).await,
            Self::Stop { wait } => stop_process(host, document, name, wait).await,
            Self::Signal(signal) => signal_process(host, document, name, signal).await,
            Self::ClearLog => {
                let process = document.name.clone();
                let work = async move { host.clear_log(&process).await };
                let cleared = to_the_end(document.name.clone(), CHANGE_DEADLINE, work).await;
                cleared.map_err(|e| match e {
                    AgentError::NoSuchProc(_) => about(fault::BAD_NAME, &name),
                    _ => about(fault::FAILED, &name),
                })
            }
        }
    }
}

/// Does it to what `name` stands for: true for a process, a list for a group.
pub(super) async fn do_to(host: &Arc<Host>, name: &str, deed: Deed) -> Result<Value, Fault> {
    match find(host, name)? {
        (Target::Group(_), document) => Ok(do_to_each(host, vec![document], deed).await),
        (Target::Process(_), document) => {
            deed.to(Arc::clone(host), document, name.to_owned()).await?;
            Ok(Value::Boolean(true))
        }
    }
}

/// Does it to the one process that `name` stands for.
pub(super) async fn do_to_process(host: &Arc<Host>, name: &str, deed: Deed) -> Result<Value, Fault> {
    let document = find_process(host, name)?;
    deed.to(Arc::clone(host), document, name.to_owned()).await?;
    Ok(Value::Boolean(true))
}

/// Does it to all processes of the group `name`.
pub(super) async fn do_to_group(host: &Arc<Host>, name: &str, deed: Deed) -> Result<Value, Fault> {
    let document = host.document(name).map_err(|_| about(fault::BAD_NAME, name))?;
    Ok(do_to_each(host, vec![document], deed).await)
}

/// Does it to all processes.
pub(super) async fn do_to_all(host: &Arc<Host>, deed: Deed) -> Value {
    do_to_each(host, host.list().procs, deed).await
}

/// Does it to all these processes at once, and tells how it went with each that it concerned.
async fn do_to_each(host: &Arc<Host>, documents: Vec<ProcDocument>, deed: Deed) -> Value {
    let concerned = documents.into_iter().filter(|document| deed.concerns(document.statename));
    let work = concerned.map(|document| {
        let (name, host, deed) = (document.name.clone(), Arc::clone(host), deed.clone());
        async move {
            let done = deed.to(host, document, name.clone()).await;
            status(&name, done)
        }
    });
    Value::Array(join_all(work).await)
}

fn status(name: &str, done: Result<(), Fault>) -> Value {
    let (code, text) = match done {
        Ok(()) => (fault::SUCCESS, "OK".to_owned()),
        Err(fault) => (fault.code, fault.message),
    };
    let members = [
        ("name", Value::from(name)),
        ("group", Value::from(name)),
        ("status", Value::Int(code)),
        ("description", Value::String(text)),
    ];
    Value::Struct(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

// ---- what is supervised ------------------------------------------------------------------------------------

/// `addProcessGroup`.
pub(super) async fn add(host: &Arc<Host>, name: &str) -> Result<Value, Fault> {
    let (worker, process) = (Arc::clone(host), name.to_owned());
    let work = async move { worker.add(&process).await.map(drop) };
    to_the_end(name.to_owned(), START_DEADLINE, work).await.map_err(|e| match e {
        AgentError::AlreadyAdded(_) => about(fault::ALREADY_ADDED, name),
        AgentError::NoSuchProc(_) => about(fault::BAD_NAME, name),
        AgentError::ShuttingDown => bare(fault::SHUTDOWN_STATE),
        e => about(fault::FAILED, chain(&e)),
    })?;
    Ok(Value::Boolean(true))
}

/// `removeProcessGroup`.
pub(super) async fn remove(host: &Arc<Host>, name: &str) -> Result<Value, Fault> {
    let (worker, process) = (Arc::clone(host), name.to_owned());
    let work = async move { worker.let_go(&process).await.map(drop) };
    to_the_end(name.to_owned(), CHANGE_DEADLINE, work).await.map_err(|e| match e {
        AgentError::StillRunning(_) => about(fault::STILL_RUNNING, name),
        e => of_look(name, &e),
    })?;
    Ok(Value::Boolean(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_as_supervisor_does() {
        let process = |name: &str| Some(Target::Process(name.into()));
        let group = |name: &str| Some(Target::Group(name.into()));
        assert_eq!(Target::parse("web"), process("web"));
        assert_eq!(Target::parse("web:web"), process("web"));
        assert_eq!(Target::parse("web:*"), group("web"));
        assert_eq!(Target::parse("web:"), group("web"));
        assert_eq!(Target::parse("*"), process("*"));
        assert_eq!(Target::parse("web:other"), None);
        assert_eq!(Target::parse("a:b:a"), None);
        assert_eq!(Target::parse(""), process(""));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, signal) in [
            ("HUP", Signal::HUP),
            ("sighup", Signal::HUP),
            (" 1 ", Signal::HUP),
            ("CLD", Signal::CHILD),
            ("usr2", Signal::USR2),
            ("31", Signal::SYS),
        ] {
            assert_eq!(signal_of(text), Some(signal), "{text}");
        }
        for bad in ["", "SIG", "0", "-1", "NOSUCH", "99", "1.5", "SIGSIGHUP"] {
            assert_eq!(signal_of(bad), None, "{bad}");
        }
        for (name, signal) in SIGNALS {
            assert_eq!(signal_of(&signal.as_raw().to_string()), Some(signal), "{name}");
        }
    }
}
