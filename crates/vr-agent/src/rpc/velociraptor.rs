//! The namespace `vr`: what a proc was deployed with, beside what Supervisor tells.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tracing::warn;
use vr_common::exit::chain;
use vr_common::names::ContainerName;
use vr_common::supervisor::fault;
use vr_common::xmlrpc::{Fault, Value};
use vr_common::yaml;

use super::answer::{Allowance, weight};
use super::faults::about;
use super::logs::off_thread;
use super::procs::{find_process, info};
use crate::host::Host;

/// `get_velociraptor_info`: a proc's `proc.yaml`, empty when it has none.
pub(super) async fn settings(host: &Arc<Host>, name: &str) -> Result<Value, Fault> {
    let (host, name) = (Arc::clone(host), name.to_owned());
    off_thread(move || Ok(settings_of(&host, &name)))
        .await
        .and_then(|settings| settings.map_err(io::Error::other))
        .map_err(|e| about(fault::FAILED, e))
}

/// `get_proc_info`.
pub(super) async fn both(host: &Arc<Host>, name: &str) -> Result<Value, Fault> {
    let document = find_process(host, name)?;
    let settings = settings(host, &document.name).await?;
    Ok(pair(info(&document), settings))
}

/// `get_all_procs_info`. A `proc.yaml` that cannot be told does not keep all the others back.
pub(super) async fn all(host: &Arc<Host>, answer: &mut Allowance) -> Result<Value, Fault> {
    let mut all = Vec::new();
    for document in host.list().procs {
        let settings = settings(host, &document.name).await.unwrap_or_else(|e| {
            warn!(proc = document.name, "its proc.yaml cannot be told: {}", e.message);
            Value::Struct(BTreeMap::new())
        });
        let both = pair(info(&document), settings);
        answer.spend(weight(&both))?;
        all.push(both);
    }
    Ok(Value::Array(all))
}

fn pair(supervisor: Value, velociraptor: Value) -> Value {
    let members = [("supervisor", supervisor), ("velociraptor", velociraptor)];
    Value::Struct(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// Reads a file; the error is a sentence.
fn settings_of(host: &Host, name: &str) -> Result<Value, String> {
    let empty = Value::Struct(BTreeMap::new());
    let Ok(name) = name.parse::<ContainerName>() else { return Ok(empty) };
    let path = host.proc_yaml(&name);
    if path.exists() { read(&path) } else { Ok(empty) }
}

fn read(path: &Path) -> Result<Value, String> {
    let text = yaml::read_file(path).map_err(|e| chain(&e))?;
    let settings = yaml::parse_mapping(&path.display().to_string(), &text).map_err(|e| chain(&e))?;
    Value::from_yaml("proc.yaml", &settings.into()).map_err(|e| e.to_string())
}
