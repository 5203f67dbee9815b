//! Procs: shown as last seen, and acted on through their hosts.

use axum::Extension;
use axum::extract::{Path, State};
use http::StatusCode;
use serde_json::{Map, Value, json};
use vr_common::host_api::{Deleted, ProcDocument};

use super::Api;
use super::auth::User;
use super::body::JsonObject;
use super::documents::procs_of;
use super::error::{Answer, Failure, json_response};
use super::objects::locate;
use crate::events::News;
use crate::hosts::{Action, HostError, HostView};
use crate::store::HostRow;
use crate::store::resources::Resource;
use crate::time;

pub(super) async fn of_swarm(State(api): State<Api>, Path(key): Path<String>) -> Answer {
    let swarm = api.store.swarm(locate(&api, Resource::Swarms, &key).await?).await?;
    let hosts = api.store.hosts_of_squad(swarm.squad_id).await?;
    let procs = procs_of(&api, hosts.iter(), &swarm.app_name, &swarm.config_name, &swarm.proc_name);
    let ages: Map<String, Value> =
        hosts.iter().map(|host| (host.name.clone(), age(&api.fleet.view(&host.name)))).collect();
    Ok(json_response(StatusCode::OK, &json!({"objects": procs, "hosts": ages})))
}

pub(super) async fn of_host(State(api): State<Api>, Path(key): Path<String>) -> Answer {
    let host = host(&api, &key).await?;
    let view = api.fleet.view(&host.name);
    let mut list = age(&view);
    list["objects"] = json!(view.procs);
    Ok(json_response(StatusCode::OK, &list))
}

/// How old what is known of a host is, and why, if it is older than it should be.
fn age(view: &HostView) -> Value {
    json!({
        "seen": view.seen.map(time::iso),
        "age": view.seen.map(|seen| (time::now() - seen).max(0) / 1000),
        "unreachable_since": view.unreachable_since.map(time::iso),
        "error": view.error,
    })
}

pub(super) async fn show(State(api): State<Api>, Path((key, proc)): Path<(String, String)>) -> Answer {
    let host = host(&api, &key).await?;
    Ok(json_response(StatusCode::OK, &known(&api, &host, &proc).await?))
}

pub(super) async fn act(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path((key, proc)): Path<(String, String)>,
    JsonObject(sent): JsonObject,
) -> Answer {
    let host = host(&api, &key).await?;
    let action = match sent.get("action") {
        Some(Value::String(action)) => {
            action.parse::<Action>().map_err(|reason| Failure::field("action", reason))?
        }
        _ => {
            return Err(Failure::field(
                "action",
                "expected {\"action\": \"start\", \"stop\" or \"restart\"}",
            ));
        }
    };
    known(&api, &host, &proc).await?;
    answers(&api, &host).await?;
    let document = api.fleet.driver(&host).act(&proc, action).await.map_err(fault)?;
    api.fleet.note(document.clone());
    let done = format!("{} told {proc} on {} to {}", user.0, host.name, action.name());
    let news = News::new(format!("{} {proc}", action.name()), done, &["user", "proc"]);
    api.events.tell(news.with("resource_uri", uri(&host, &proc))).await;
    Ok(json_response(StatusCode::OK, &document))
}

pub(super) async fn delete(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path((key, proc)): Path<(String, String)>,
) -> Answer {
    let host = host(&api, &key).await?;
    known(&api, &host, &proc).await?;
    answers(&api, &host).await?;
    api.fleet.driver(&host).delete(&proc).await.map_err(fault)?;
    api.fleet.note_gone(&host.name, &proc);
    let done = format!("{} deleted {proc} on {}", user.0, host.name);
    let news = News::new(format!("delete {proc}"), done, &["user", "proc", "deleted"]);
    api.events.tell(news.with("resource_uri", uri(&host, &proc))).await;
    Ok(json_response(StatusCode::OK, &Deleted { name: proc, deleted: true }))
}

pub(super) async fn clean_up(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path(key): Path<String>,
) -> Answer {
    let host = host(&api, &key).await?;
    answers(&api, &host).await?;
    let report = api.fleet.driver(&host).clean_up().await.map_err(fault)?;
    let done =
        format!("{} had {} cleaned up: {} bytes are free again", user.0, host.name, report.removed_bytes);
    let news = News::new(format!("clean-up of {}", host.name), done, &["user", "host"]);
    api.events.tell(news.with("resource_uri", Resource::Hosts.uri(&host.name))).await;
    Ok(json_response(StatusCode::OK, &report))
}

fn uri(host: &HostRow, proc: &str) -> String {
    format!("{}procs/{proc}/", Resource::Hosts.uri(&host.name))
}

pub(super) async fn host(api: &Api, key: &str) -> Result<HostRow, Failure> {
    let id = locate(api, Resource::Hosts, key).await?;
    let hosts = api.store.hosts().await?;
    let host = hosts.into_iter().find(|host| host.id == id);
    host.ok_or_else(|| Failure::not_found(format!("there is no host {key}")))
}

/// Nothing for a host that was last heard of well. One that was not is asked shortly first, as the work itself may wait
/// for much longer.
async fn answers(api: &Api, host: &HostRow) -> Result<(), Failure> {
    if api.fleet.view(&host.name).error.is_some() {
        api.fleet.look(host).await.map_err(fault)?;
    }
    Ok(())
}

/// The proc as last seen. One that is too new to have been seen is asked for.
pub(super) async fn known(api: &Api, host: &HostRow, proc: &str) -> Result<ProcDocument, Failure> {
    // Two of Supervisor's groups may each have a process of the same name.
    let is_it = |known: &&ProcDocument| match proc.split_once(':') {
        Some((group, name)) => known.name == name && known.group == group,
        None => known.name == proc,
    };
    if let Some(document) = api.fleet.view(&host.name).procs.iter().find(is_it) {
        return Ok(document.clone());
    }
    let procs = api.fleet.look(host).await.map_err(fault)?;
    procs
        .iter()
        .find(is_it)
        .cloned()
        .ok_or_else(|| Failure::not_found(format!("host {} has no proc {proc}", host.name)))
}

pub(super) fn fault(error: HostError) -> Failure {
    match error {
        HostError::NoSuchProc { .. } => Failure::not_found(error.to_string()),
        HostError::NotOurs { .. } => Failure::new(StatusCode::CONFLICT, error.to_string()),
        _ => Failure::fault(vr_common::exit::chain(&error)),
    }
}
