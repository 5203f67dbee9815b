//! Which methods there are, what they take and give, and what `system.methodHelp` says of them.

use std::fmt::Write as _;

use vr_common::supervisor::fault;
use vr_common::xmlrpc::{Fault, Value};

use super::faults::bare;

/// A method.
#[derive(Debug)]
pub(super) struct Method {
    /// With its namespace.
    pub name: &'static str,
    /// What it does.
    help: &'static str,
    /// What it takes.
    params: &'static [Param],
    /// What it gives: a type, and its meaning.
    gives: (&'static str, &'static str),
}

/// A parameter: its type, name and meaning.
#[derive(Debug, Clone, Copy)]
struct Param {
    kind: &'static str,
    name: &'static str,
    help: &'static str,
    optional: bool,
}

const fn param(kind: &'static str, name: &'static str, help: &'static str) -> Param {
    Param { kind, name, help, optional: false }
}

const NAME: Param = param("string", "name", "The process, as name or group:name");
const GROUP: Param = param("string", "name", "The group");
const PROC: Param = param("string", "name", "The proc");
const WAIT: Param =
    Param { kind: "boolean", name: "wait", help: "Wait for the outcome; true unless given", optional: true };
const SIGNAL: Param = param("string", "signal", "A name such as HUP, or a number");
const OFFSET: Param = param("int", "offset", "Where to begin; below 0: how far before the end");
const LENGTH: Param = param("int", "length", "How many bytes; 0: up to the end");
const TAIL_OFFSET: Param = param("int", "offset", "Where to begin");
const TAIL_LENGTH: Param = param("int", "length", "How many bytes at most");

const TRUE: (&str, &str) = ("boolean", "True unless there is a fault");
const STATUSES: (&str, &str) = ("array", "A struct for each process: name, group, status, description");
const TEXT: (&str, &str) = ("string", "What is in the log");
const TAIL: (&str, &str) = ("array", "The text, the log's length, and whether there was more");

const fn method(
    name: &'static str,
    help: &'static str,
    params: &'static [Param],
    gives: (&'static str, &'static str),
) -> Method {
    Method { name, help, params, gives }
}

/// All of them, sorted by name.
pub(super) const METHODS: [Method; 43] = [
    method(
        "supervisor.addProcessGroup",
        "Take up a proc that has a folder with a proc.yaml, and start it",
        &[GROUP],
        TRUE,
    ),
    method("supervisor.clearAllProcessLogs", "Empty the logs of all processes", &[], STATUSES),
    method("supervisor.clearLog", "Empty the agent's own log; it has no file of its own", &[], TRUE),
    method("supervisor.clearProcessLog", "The same as clearProcessLogs", &[NAME], TRUE),
    method("supervisor.clearProcessLogs", "Empty a process's log", &[NAME], TRUE),
    method(
        "supervisor.getAPIVersion",
        "Tell the version of this interface",
        &[],
        ("string", "Supervisor's number for it"),
    ),
    method(
        "supervisor.getAllConfigInfo",
        "Tell how all processes are configured, also those that are not supervised",
        &[],
        ("array", "A struct for each process"),
    ),
    method(
        "supervisor.getAllProcessInfo",
        "Tell the state of all processes",
        &[],
        ("array", "A struct for each process, as getProcessInfo gives it"),
    ),
    method("supervisor.getIdentification", "Tell which host this is", &[], ("string", "The host's name")),
    method("supervisor.getPID", "Tell the agent's process", &[], ("int", "Its PID")),
    method(
        "supervisor.getProcessInfo",
        "Tell the state of a process",
        &[NAME],
        ("struct", "Name, group, times, state, logs and PID"),
    ),
    method("supervisor.getState", "Tell the agent's state", &[], ("struct", "statecode and statename")),
    method(
        "supervisor.getSupervisorVersion",
        "Tell which version of Supervisor this is like, and which agent it is",
        &[],
        ("string", "Both versions"),
    ),
    method(
        "supervisor.getVersion",
        "The same as getAPIVersion",
        &[],
        ("string", "Supervisor's number for this interface"),
    ),
    method(
        "supervisor.readLog",
        "Read the agent's own log; it has no file of its own",
        &[OFFSET, LENGTH],
        TEXT,
    ),
    method("supervisor.readMainLog", "The same as readLog", &[OFFSET, LENGTH], TEXT),
    method("supervisor.readProcessLog", "The same as readProcessStdoutLog", &[NAME, OFFSET, LENGTH], TEXT),
    method(
        "supervisor.readProcessStderrLog",
        "Read a process's error log; there is none, as errors go to the one log",
        &[NAME, OFFSET, LENGTH],
        TEXT,
    ),
    method("supervisor.readProcessStdoutLog", "Read a process's log", &[NAME, OFFSET, LENGTH], TEXT),
    method(
        "supervisor.reloadConfig",
        "Compare the folders of procs with what is supervised; changes nothing",
        &[],
        ("array", "[[added, changed, removed]], each an array of groups"),
    ),
    method("supervisor.removeProcessGroup", "Forget a proc that is down; its files stay", &[GROUP], TRUE),
    method("supervisor.restart", "Refused: the agent is restarted by whoever started it", &[], TRUE),
    method(
        "supervisor.sendProcessStdin",
        "Refused: procs have no standard input",
        &[NAME, param("string", "chars", "What to send")],
        TRUE,
    ),
    method("supervisor.shutdown", "Refused: the agent is ended by whoever started it", &[], TRUE),
    method("supervisor.signalAllProcesses", "Send a signal to all processes", &[SIGNAL], STATUSES),
    method("supervisor.signalProcess", "Send a signal to a process", &[NAME, SIGNAL], TRUE),
    method("supervisor.signalProcessGroup", "Send a signal to a group", &[GROUP, SIGNAL], STATUSES),
    method("supervisor.startAllProcesses", "Start all processes", &[WAIT], STATUSES),
    method("supervisor.startProcess", "Start a process", &[NAME, WAIT], TRUE),
    method("supervisor.startProcessGroup", "Start a group", &[GROUP, WAIT], STATUSES),
    method("supervisor.stopAllProcesses", "Stop all processes", &[WAIT], STATUSES),
    method("supervisor.stopProcess", "Stop a process", &[NAME, WAIT], TRUE),
    method("supervisor.stopProcessGroup", "Stop a group", &[GROUP, WAIT], STATUSES),
    method(
        "supervisor.tailProcessLog",
        "The same as tailProcessStdoutLog",
        &[NAME, TAIL_OFFSET, TAIL_LENGTH],
        TAIL,
    ),
    method(
        "supervisor.tailProcessStderrLog",
        "Read the end of a process's error log, which is always empty",
        &[NAME, TAIL_OFFSET, TAIL_LENGTH],
        TAIL,
    ),
    method(
        "supervisor.tailProcessStdoutLog",
        "Read the end of a process's log: from the offset on, or the last bytes if that are too many",
        &[NAME, TAIL_OFFSET, TAIL_LENGTH],
        TAIL,
    ),
    method("system.listMethods", "Tell which methods there are", &[], ("array", "Their names")),
    method(
        "system.methodHelp",
        "Tell what a method does",
        &[param("string", "name", "The method")],
        ("string", "A text like this one"),
    ),
    method(
        "system.methodSignature",
        "Tell the types of what a method gives and takes",
        &[param("string", "name", "The method")],
        ("array", "Types: first of the result, then of the parameters"),
    ),
    method(
        "system.multicall",
        "Do several calls, one after the other",
        &[param("array", "calls", "Structs with methodName and params")],
        ("array", "For each call its result, or a struct with faultCode and faultString"),
    ),
    method(
        "vr.get_all_procs_info",
        "Tell what get_proc_info tells, of all processes",
        &[],
        ("array", "A struct for each process"),
    ),
    method(
        "vr.get_proc_info",
        "Tell the state and the settings of a proc",
        &[PROC],
        ("struct", "supervisor: as getProcessInfo gives it; velociraptor: as get_velociraptor_info gives it"),
    ),
    method(
        "vr.get_velociraptor_info",
        "Tell the settings of a proc",
        &[PROC],
        ("struct", "Its proc.yaml; empty if it has none"),
    ),
];

impl Method {
    /// The method of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        METHODS.iter().find(|method| method.name == name)
    }

    /// Whether it takes so many parameters.
    pub fn takes(&self, count: usize) -> bool {
        let required = self.params.iter().filter(|param| !param.optional).count();
        (required..=self.params.len()).contains(&count)
    }

    fn help(&self) -> String {
        let mut text = format!("{}\n\n", self.help);
        for Param { kind, name, help, .. } in self.params {
            let _ = writeln!(text, "@param {kind} {name} {help}");
        }
        let (kind, meaning) = self.gives;
        let _ = writeln!(text, "@return {kind} result {meaning}");
        text
    }
}

/// `system.listMethods`.
pub(super) fn list() -> Value {
    Value::Array(METHODS.iter().map(|method| method.name.into()).collect())
}

/// `system.methodHelp`.
pub(super) fn help(name: &str) -> Result<Value, Fault> {
    let method = Method::find(name).ok_or_else(|| bare(fault::SIGNATURE_UNSUPPORTED))?;
    Ok(Value::String(method.help()))
}

/// `system.methodSignature`.
pub(super) fn signature(name: &str) -> Result<Value, Fault> {
    let method = Method::find(name).ok_or_else(|| bare(fault::SIGNATURE_UNSUPPORTED))?;
    let kinds = std::iter::once(method.gives.0).chain(method.params.iter().map(|param| param.kind));
    Ok(Value::Array(kinds.map(Value::from).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_sorted_and_described() {
        assert!(METHODS.is_sorted_by(|a, b| a.name < b.name));
        assert!(METHODS.iter().all(|method| !method.help.is_empty()));
        let signature = signature("supervisor.startProcess").unwrap();
        assert_eq!(signature, Value::Array(["boolean", "string", "boolean"].map(Value::from).to_vec()));
        let Ok(Value::String(help)) = help("supervisor.signalProcess") else { panic!() };
        assert_eq!(
            help,
            "Send a signal to a process\n\n@param string name The process, as name or group:name\n\
             @param string signal A name such as HUP, or a number\n@return boolean result True unless there is a fault\n"
        );
    }

    #[test]
    fn parameters_are_counted() {
        let counts = |name| (0..4).filter(|n| Method::find(name).unwrap().takes(*n)).collect::<Vec<_>>();
        assert_eq!(counts("supervisor.startProcess"), [1, 2]);
        assert_eq!(counts("supervisor.startAllProcesses"), [0, 1]);
        assert_eq!(counts("supervisor.getPID"), [0]);
        assert!(Method::find("supervisor.nonsense").is_none());
    }
}
