//! Procs: shown as last seen, and acted on through their hosts.

use axum::Extension;
use axum::extract::{Path, State};
use http::StatusCode;
use serde_json::{Value, json};
use vr_common::host_api::{Deleted, ProcDocument};

use super::Api;
use super::auth::User;
use super::body::JsonObject;
use super::documents::procs_of;
use super::error::{Answer, Failure, json_response};
use super::objects::locate;
use crate::events::News;
use crate::hosts::{Action, HostError};
use crate::store::HostRow;
use crate::store::resources::Resource;

pub(super) async fn of_swarm(State(api): State<Api>, Path(key): Path<String>) -> Answer {
    let swarm = api.store.swarm(locate(&api, Resource::Swarms, &key).await?).await?;
    let hosts = api.store.hosts_of_squad(swarm.squad_id).await?;
    let procs = procs_of(&api, hosts.iter(), &swarm.app_name, &swarm.config_name, &swarm.proc_name);
    Ok(json_response(StatusCode::OK, &json!({"objects": procs})))
}

pub(super) async fn of_host(State(api): State<Api>, Path(key): Path<String>) -> Answer {
    let host = host(&api, &key).await?;
    Ok(json_response(StatusCode::OK, &json!({"objects": api.fleet.view(&host.name).procs})))
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
    let document = api.fleet.driver(&host).act(&proc, action).await.map_err(fault)?;
    // What pages show next is what the host says now; a host that fails here has been told of above.
    let _ = api.fleet.look(&host).await;
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
    api.fleet.driver(&host).delete(&proc).await.map_err(fault)?;
    let _ = api.fleet.look(&host).await;
    let done = format!("{} deleted {proc} on {}", user.0, host.name);
    let news = News::new(format!("delete {proc}"), done, &["user", "proc", "deleted"]);
    api.events.tell(news.with("resource_uri", uri(&host, &proc))).await;
    Ok(json_response(StatusCode::OK, &Deleted { name: proc, deleted: true }))
}

fn uri(host: &HostRow, proc: &str) -> String {
    format!("{}procs/{proc}/", Resource::Hosts.uri(&host.name))
}

async fn host(api: &Api, key: &str) -> Result<HostRow, Failure> {
    let id = locate(api, Resource::Hosts, key).await?;
    let hosts = api.store.hosts().await?;
    let host = hosts.into_iter().find(|host| host.id == id);
    host.ok_or_else(|| Failure::not_found(format!("there is no host {key}")))
}

/// The proc as last seen. One that is too new to have been seen is asked for.
async fn known(api: &Api, host: &HostRow, proc: &str) -> Result<ProcDocument, Failure> {
    let among = |procs: Vec<ProcDocument>| procs.into_iter().find(|known| known.name == proc);
    if let Some(document) = among(api.fleet.view(&host.name).procs) {
        return Ok(document);
    }
    let procs = api.fleet.look(host).await.map_err(fault)?;
    among(procs).ok_or_else(|| Failure::not_found(format!("host {} has no proc {proc}", host.name)))
}

fn fault(error: HostError) -> Failure {
    match error {
        HostError::NoSuchProc { .. } => Failure::not_found(error.to_string()),
        _ => Failure::fault(vr_common::exit::chain(&error)),
    }
}
