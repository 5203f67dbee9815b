//! `procs`: what runs where, and starting and stopping it.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use vr_common::api::{ApiError, Host};
use vr_common::host_api::{ProcDocument, ProcState};

use crate::Outcome;
use crate::args::{self, ProcsAction};
use crate::error::CliError;
use crate::login::Session;
use crate::output::{Output, complain, say};
use crate::select::Pattern;

/// `procs`, checked.
#[derive(Debug)]
pub struct Request {
    /// None to list.
    action: Option<&'static str>,
    pattern: Pattern,
    host: Option<Pattern>,
}

/// A proc in JSON output, after an action.
#[derive(Debug, Serialize)]
struct ActionLine {
    name: String,
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<ProcState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Request {
    /// Checks the arguments.
    pub fn new(args: &args::Procs) -> Result<Self, CliError> {
        let (action, selection) = match &args.action {
            ProcsAction::List(selection) => (None, selection),
            ProcsAction::Start(selection) => (Some("start"), selection),
            ProcsAction::Stop(selection) => (Some("stop"), selection),
            ProcsAction::Restart(selection) => (Some("restart"), selection),
        };
        let pattern = match (action, selection.pattern.as_deref()) {
            (Some(action), None | Some("")) => return Err(CliError::AllProcs { action }),
            (_, pattern) => pattern.unwrap_or_default().parse()?,
        };
        let host = selection.host.as_deref().map(str::parse).transpose()?;
        Ok(Self { action, pattern, host })
    }

    /// Shows the procs, or does the action to each; one that fails does not hold up the others.
    pub fn run(&self, output: &Output, session: Session) -> Result<Outcome, CliError> {
        let procs = self.matching(&session)?;
        match self.action {
            None => show(&procs, output).map(|()| Outcome::Done),
            Some(_) if procs.is_empty() => Err(CliError::NoProc {
                pattern: self.pattern.to_string(),
                host: self.host.as_ref().map(ToString::to_string),
            }),
            Some(action) => act(action, &procs, output, &session),
        }
    }

    fn matching(&self, session: &Session) -> Result<Vec<ProcDocument>, CliError> {
        let mut hosts: Vec<Host> =
            session.client.list("/api/v1/hosts/?limit=0").map_err(|e| session.error(e))?;
        hosts.retain(|host| self.host.as_ref().is_none_or(|pattern| pattern.matches(&host.name)));
        let mut procs = Vec::new();
        for host in hosts {
            if let Some(since) = &host.unreachable_since {
                say(&format!("{} has not answered since {since}; its procs are as last seen", host.name));
            }
            procs.extend(host.procs.into_iter().map(|proc| proc.on_host(&host.name)));
        }
        procs.retain(|proc| self.pattern.matches(&proc.name));
        procs.sort_by(|a, b| (&a.name, &a.host).cmp(&(&b.name, &b.host)));
        Ok(procs)
    }
}

fn show(procs: &[ProcDocument], output: &Output) -> Result<(), CliError> {
    if output.is_json() {
        return output.json(&procs);
    }
    let now = Timestamp::now();
    let row = |proc: &ProcDocument| {
        let pid = if proc.pid == 0 { "-".to_owned() } else { proc.pid.to_string() };
        vec![proc.name.clone(), proc.host.clone(), proc.statename.name().to_owned(), pid, uptime(proc, now)]
    };
    let rows: Vec<_> = procs.iter().map(row).collect();
    output.rows(&["NAME", "HOST", "STATE", "PID", "UPTIME"], &rows)
}

/// How long a proc has been up, or what the host says of one that is not.
fn uptime(proc: &ProcDocument, now: Timestamp) -> String {
    let started = proc.start_time.as_deref().and_then(|time| time.parse::<Timestamp>().ok());
    match (proc.statename, started) {
        (ProcState::Running | ProcState::Starting, Some(started)) => {
            let seconds = u64::try_from(now.duration_since(started).as_secs()).unwrap_or(0);
            humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
        }
        _ if proc.description.is_empty() => "-".to_owned(),
        _ => proc.description.clone(),
    }
}

fn act(
    action: &'static str,
    procs: &[ProcDocument],
    output: &Output,
    session: &Session,
) -> Result<Outcome, CliError> {
    let mut lines = Vec::new();
    let mut outcome = Outcome::Done;
    for proc in procs {
        let path = format!("/api/v1/hosts/{}/procs/{}/", segment(&proc.host), segment(&proc.name));
        let (name, host) = (proc.name.clone(), proc.host.clone());
        match session.client.post::<ProcDocument>(&path, &json!({"action": action})) {
            Ok(after) => {
                if !output.is_json() {
                    output.line(&format!("{name}\t{host}\t{}", after.statename.name()))?;
                }
                lines.push(ActionLine { name, host, state: Some(after.statename), error: None });
            }
            Err(ApiError::Refused { status, message, .. }) if status != 401 => {
                complain(&format!("cannot {action} {name} on {host}: {message}"));
                outcome = Outcome::Failed;
                lines.push(ActionLine { name, host, state: None, error: Some(message) });
            }
            Err(error) => return Err(session.error(error)),
        }
    }
    if output.is_json() {
        output.json(&lines)?;
    }
    Ok(outcome)
}

/// A name as one part of a path: names that are not ours may hold anything.
fn segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let encode = |byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_part_of_a_path() {
        assert_eq!(segment("hello-v1-prod-0123abcd-web-5000"), "hello-v1-prod-0123abcd-web-5000");
        assert_eq!(segment("a/b?é"), "a%2Fb%3F%C3%A9");
    }
}
