//! Why a call is refused, in Supervisor's numbers and words.

use std::fmt::Display;

use vr_common::exit::chain;
use vr_common::supervisor::fault;
use vr_common::xmlrpc::Fault;

use crate::error::AgentError;

/// A fault with nothing to say beyond its name.
pub(super) fn bare(code: i32) -> Fault {
    Fault { code, message: fault::name(code).to_owned() }
}

/// How much of what a fault is about is told, in characters: callers may have made it up.
const LONGEST: usize = 1000;

/// A fault about something, mostly a name.
pub(super) fn about(code: i32, what: impl Display) -> Fault {
    let what = what.to_string();
    let what = match what.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &what[..end]),
        None => what,
    };
    Fault { code, message: format!("{}: {what}", fault::name(code)) }
}

/// What went wrong with a look at a proc.
pub(super) fn of_look(name: &str, error: &AgentError) -> Fault {
    match error {
        AgentError::NoSuchProc(_) => about(fault::BAD_NAME, name),
        AgentError::ShuttingDown => bare(fault::SHUTDOWN_STATE),
        other => about(fault::FAILED, chain(other)),
    }
}

/// What went wrong with a start. supervisorctl understands few codes there, so what has none of its own is a
/// `SPAWN_ERROR` that says more.
pub(super) fn of_start(name: &str, error: &AgentError) -> Fault {
    match error {
        AgentError::NoSuchProc(_) => about(fault::BAD_NAME, name),
        AgentError::Start { .. } | AgentError::Setup { .. } => about(fault::SPAWN_ERROR, name),
        AgentError::Overtaken { .. } => about(fault::ABNORMAL_TERMINATION, name),
        AgentError::ShuttingDown => bare(fault::SHUTDOWN_STATE),
        other => about(fault::SPAWN_ERROR, chain(other)),
    }
}
