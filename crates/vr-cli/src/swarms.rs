//! `list-swarms` and `swarm`.

use serde::Serialize;
use serde_json::{Value, json};
use vr_common::api::{ApiError, Swarm, SwarmStarted};
use vr_common::names::Version;

use crate::Outcome;
use crate::args;
use crate::dispatches::{Started, follow};
use crate::error::CliError;
use crate::login::Session;
use crate::output::{Output, complain};
use crate::patience::Patience;
use crate::select::{Excludes, Pattern};

/// A swarm in JSON output.
#[derive(Debug, Serialize)]
struct SwarmLine {
    name: String,
    version: Option<String>,
    size: u32,
    squad: String,
    pool: Option<String>,
    balancer: Option<String>,
    pool_address: Option<String>,
    resource_uri: String,
}

/// A dispatch in JSON output.
#[derive(Debug, Serialize)]
struct DispatchLine<'a> {
    swarm: &'a str,
    trace_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool_address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Prints the names of the swarms that a pattern matches, sorted.
pub fn list(pattern: &Pattern, output: &Output, session: Session) -> Result<Outcome, CliError> {
    let swarms = matching(pattern, &session)?;
    if !output.is_json() {
        swarms.iter().try_for_each(|swarm| output.line(&swarm.cli_name()))?;
        return Ok(Outcome::Done);
    }
    let lines: Vec<_> = swarms
        .into_iter()
        .map(|swarm| SwarmLine {
            name: swarm.cli_name(),
            version: swarm.version,
            size: swarm.size,
            squad: swarm.squad_name,
            pool: swarm.pool,
            balancer: swarm.balancer,
            pool_address: swarm.pool_address,
            resource_uri: swarm.resource_uri,
        })
        .collect();
    output.json(&lines)?;
    Ok(Outcome::Done)
}

fn matching(pattern: &Pattern, session: &Session) -> Result<Vec<Swarm>, CliError> {
    let mut path = "/api/v1/swarms/?limit=100".to_owned();
    for (field, value) in pattern.certain_fields() {
        path += &format!("&{field}={value}");
    }
    let mut swarms: Vec<Swarm> = session.client.list(&path).map_err(|e| session.error(e))?;
    swarms.retain(|swarm| pattern.matches(&swarm.cli_name()));
    swarms.sort_by_cached_key(Swarm::cli_name);
    Ok(swarms)
}

/// `swarm`, checked.
#[derive(Debug)]
pub struct Request {
    pattern: Pattern,
    excludes: Excludes,
    version: Option<Version>,
    patience: Option<Patience>,
}

impl Request {
    /// Checks the arguments.
    pub fn new(args: &args::Swarm) -> Result<Self, CliError> {
        let version = if args.tag == "-" { None } else { Some(args.tag.parse()?) };
        Ok(Self {
            pattern: args.pattern.parse()?,
            excludes: Excludes::new(&args.exclude)?,
            version,
            patience: args.wait.then(|| Patience::new(args.timeout)),
        })
    }

    /// Dispatches every swarm that is meant; one that is refused does not hold up the others.
    pub fn run(&self, output: &Output, session: Session) -> Result<Outcome, CliError> {
        let mut swarms = matching(&self.pattern, &session)?;
        let found = swarms.len();
        swarms.retain(|swarm| !self.excludes.matches(&swarm.cli_name()));
        if swarms.is_empty() {
            return Err(CliError::NoSwarm { pattern: self.pattern.to_string(), excluded: found > 0 });
        }

        let mut outcome = Outcome::Done;
        let mut started = Vec::new();
        let mut lost = None;
        for swarm in &swarms {
            let swarm_name = swarm.cli_name();
            match self.dispatch(swarm, &session) {
                Ok(trace_id) => {
                    if !output.is_json() {
                        output.line(&format!("{swarm_name} {trace_id}"))?;
                    }
                    started.push(Started { swarm_name, trace_id, dispatch: None });
                }
                Err(ApiError::Refused { status, message, .. }) if status != 401 => {
                    complain(&format!("{swarm_name}: {message}"));
                    outcome = Outcome::Failed;
                }
                Err(error) => {
                    lost = Some(session.error(error));
                    break;
                }
            }
        }

        let followed = match (lost, self.patience) {
            (Some(error), _) => Err(error),
            (None, None) => Ok(()),
            (None, Some(patience)) => {
                follow(&session, &mut started, patience, |ended| tell_end(output, ended))
            }
        };
        // What was started is known even when following it came to nothing.
        if output.is_json() {
            output.json(&started.iter().map(line).collect::<Vec<_>>())?;
        }
        followed?;
        let all_done = started.iter().filter_map(|one| one.dispatch.as_ref()).all(|d| d.state == "done");
        Ok(if all_done { outcome } else { Outcome::Failed })
    }

    fn dispatch(&self, swarm: &Swarm, session: &Session) -> Result<String, ApiError> {
        let uri = &swarm.resource_uri;
        if let Some(version) = &self.version {
            session.client.patch::<Value>(uri, &json!({"version": version}))?;
        }
        let started: SwarmStarted = session.client.post(&format!("{uri}swarm/"), &json!({}))?;
        Ok(started.swarm_id)
    }
}

fn line(started: &Started) -> DispatchLine<'_> {
    let dispatch = started.dispatch.as_ref();
    DispatchLine {
        swarm: &started.swarm_name,
        trace_id: &started.trace_id,
        state: dispatch.map(|d| d.state.as_str()),
        seconds: started.seconds(),
        pool_address: dispatch.and_then(|d| d.pool_address.as_deref()),
        error: dispatch.and_then(|d| d.error.as_deref()),
    }
}

fn tell_end(output: &Output, ended: &Started) -> Result<(), CliError> {
    let Some(dispatch) = &ended.dispatch else { return Ok(()) };
    let name = &ended.swarm_name;
    if !output.is_json() {
        let address = dispatch.pool_address.as_deref().filter(|_| dispatch.state == "done");
        output.line(&match address {
            Some(address) => format!("{name} {} {address}", dispatch.state),
            None => format!("{name} {}", dispatch.state),
        })?;
    }
    if dispatch.state != "done" {
        let last = dispatch.transitions.last().map(|transition| transition.why.as_str());
        let reason = dispatch.error.as_deref().or(last).unwrap_or("the server gave no reason");
        complain(&format!("{name} {}: {}", dispatch.state, reason.trim_end()));
    }
    Ok(())
}
