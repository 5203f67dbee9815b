//! What is configured, beside what is supervised: folders with a `proc.yaml` are what Supervisor's `[program:x]` sections
//! are.

use std::io;
use std::sync::Arc;

use vr_common::exit::chain;
use vr_common::proc_data::ProcData;
use vr_common::supervisor::fault;
use vr_common::xmlrpc::{Fault, Value};

use super::faults::about;
use super::logs::off_thread;
use crate::host::{Differences, Host};
use crate::machine::{GRACE_SECONDS, Rules};
use crate::vrun::{LOG_BACKUPS, LOG_MAX_BYTES};

/// Supervisor's priority of what has none.
const PRIORITY: i32 = 999;
/// Supervisor's word for what is not configured, as it cannot send `nil`.
const NONE: &str = "none";

/// `reloadConfig`: what has been added, changed and removed since it was looked at.
pub(super) async fn compare(host: &Arc<Host>) -> Result<Value, Fault> {
    let Differences { added, changed, removed } = differences(host).await?;
    let names = |names: Vec<String>| Value::Array(names.into_iter().map(Value::String).collect());
    let three = vec![names(added), names(changed), names(removed)];
    // Supervisor's own list in a list.
    Ok(Value::Array(vec![Value::Array(three)]))
}

/// `getAllConfigInfo`: all procs that are supervised or could be, sorted by name.
pub(super) async fn all(host: &Arc<Host>) -> Result<Value, Fault> {
    let Differences { added, removed, .. } = differences(host).await?;
    let supervised = host.names().into_iter().filter(|name| !removed.contains(name));
    let mut names: Vec<_> = supervised.map(|name| (name, true)).collect();
    names.extend(added.into_iter().map(|name| (name, false)));
    names.sort();
    let host = Arc::clone(host);
    let told = off_thread(move || {
        Ok(names.iter().filter_map(|(name, in_use)| describe(&host, name, *in_use)).collect())
    });
    told.await.map(Value::Array).map_err(failed)
}

async fn differences(host: &Arc<Host>) -> Result<Differences, Fault> {
    let host = Arc::clone(host);
    off_thread(move || host.compare().map_err(io::Error::other)).await.map_err(failed)
}

fn failed(error: io::Error) -> Fault {
    about(fault::CANT_REREAD, chain(&error))
}

/// Nothing for one whose `proc.yaml` is gone or cannot be read; whoever starts it is told why.
fn describe(host: &Host, name: &str, in_use: bool) -> Option<Value> {
    let path = host.proc_yaml(&name.parse().ok()?);
    let data = ProcData::load(&path).ok()?;
    let log = path.with_file_name("log");
    let number = |number: u32| Value::Int(i32::try_from(number).unwrap_or(i32::MAX));
    let bytes = Value::Int(i32::try_from(LOG_MAX_BYTES).unwrap_or(i32::MAX));
    let rules = Rules::of(&data);
    let seconds = |ms: u64| Value::Int(i32::try_from(ms / 1000).unwrap_or(i32::MAX));
    let codes = rules.exit_codes.iter().map(|code| Value::Int(i32::from(*code)));
    let none = || Value::from(NONE);
    let members = [
        ("autostart", Value::Boolean(true)),
        ("command", Value::String(format!("vrun run {}", path.display()))),
        ("directory", none()),
        ("exitcodes", Value::Array(codes.collect())),
        ("group", name.into()),
        ("group_prio", Value::Int(PRIORITY)),
        ("inuse", Value::Boolean(in_use)),
        ("killasgroup", Value::Boolean(false)),
        ("name", name.into()),
        ("process_prio", Value::Int(PRIORITY)),
        ("redirect_stderr", Value::Boolean(true)),
        ("serverurl", none()),
        ("startretries", number(rules.start_retries)),
        ("startsecs", seconds(rules.start_ms)),
        ("stderr_capture_maxbytes", Value::Int(0)),
        ("stderr_events_enabled", Value::Boolean(false)),
        ("stderr_logfile", none()),
        ("stderr_logfile_backups", Value::Int(0)),
        ("stderr_logfile_maxbytes", Value::Int(0)),
        ("stderr_syslog", Value::Boolean(false)),
        ("stdout_capture_maxbytes", Value::Int(0)),
        ("stdout_events_enabled", Value::Boolean(false)),
        ("stdout_logfile", Value::String(log.display().to_string())),
        ("stdout_logfile_backups", number(LOG_BACKUPS)),
        ("stdout_logfile_maxbytes", bytes),
        ("stdout_syslog", Value::Boolean(false)),
        ("stopsignal", Value::Int(data.stopsignal.unwrap_or_default().number())),
        ("stopwaitsecs", number(data.grace_period.unwrap_or(GRACE_SECONDS))),
        ("uid", none()),
    ];
    Some(Value::Struct(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()))
}
