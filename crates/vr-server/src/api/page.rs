//! The page at `/`: swarms with their procs, hosts, and the latest events, for people; works without scripts.
//!
//! It reads what is known and asks no host.

use askama::Template;
use axum::extract::State;
use axum::response::{Html, IntoResponse};
use vr_common::events::Event;

use super::Api;
use super::documents::procs_of;
use super::error::{Answer, Failure};
use crate::store::State as DispatchState;
use crate::time;

/// How many events are shown.
const EVENTS: i64 = 30;

#[derive(Template)]
#[template(path = "page.html")]
struct Page {
    version: &'static str,
    now: String,
    swarms: Vec<SwarmPart>,
    hosts: Vec<HostPart>,
    events: Vec<Event>,
}

struct SwarmPart {
    name: String,
    version: String,
    squad: String,
    size: i64,
    pool: Option<String>,
    address: Option<String>,
    dispatch: Option<DispatchPart>,
    procs: Vec<ProcPart>,
}

struct DispatchPart {
    version: String,
    state: &'static str,
    user: String,
    created: String,
    error: Option<String>,
    failed: bool,
}

struct ProcPart {
    name: String,
    host: String,
    version: String,
    port: u16,
    state: &'static str,
    description: String,
    running: bool,
}

struct HostPart {
    name: String,
    squad: String,
    active: bool,
    procs: usize,
    seen: Option<String>,
    error: Option<String>,
    unreachable_since: Option<String>,
}

pub(super) async fn show(State(api): State<Api>) -> Answer {
    let page = gather(&api).await?;
    Ok(Html(page.render().map_err(|e| Failure::internal(&e))?).into_response())
}

async fn gather(api: &Api) -> Result<Page, Failure> {
    let hosts = api.store.hosts().await?;
    let mut squads = std::collections::HashMap::new();
    let mut swarms = Vec::new();
    let rows = api.store.swarms().await?;
    let addresses = futures_util::future::join_all(
        rows.iter().map(|swarm| api.0.addresses.of(swarm.balancer.as_deref(), swarm.pool.as_deref())),
    )
    .await;
    for (swarm, address) in rows.into_iter().zip(addresses) {
        squads.insert(swarm.squad_id, swarm.squad_name.clone());
        let own_hosts = hosts.iter().filter(|host| host.squad_id == Some(swarm.squad_id));
        let procs = procs_of(api, own_hosts, &swarm.app_name, &swarm.config_name, &swarm.proc_name);
        let latest = api.store.dispatches(Some(swarm.id), 0, 1).await?.pop();
        swarms.push(SwarmPart {
            name: swarm.cli_name(),
            version: swarm.version.unwrap_or_else(|| "none yet".into()),
            squad: swarm.squad_name,
            size: swarm.size,
            pool: swarm.pool,
            address,
            dispatch: latest.map(|dispatch| DispatchPart {
                version: dispatch.version,
                state: dispatch.state.name(),
                user: dispatch.requested_by,
                created: time::iso(dispatch.created),
                failed: dispatch.state == DispatchState::Failed,
                error: dispatch.error,
            }),
            procs: procs
                .into_iter()
                .map(|proc| ProcPart {
                    host: proc.host,
                    version: proc.parsed.version,
                    port: proc.parsed.port,
                    state: proc.statename.name(),
                    running: proc.statename == vr_common::host_api::ProcState::Running,
                    description: proc.description,
                    name: proc.name,
                })
                .collect(),
        });
    }
    for squad in api.store.list(crate::store::resources::Resource::Squads, &[], 0, i64::MAX).await? {
        if let (Some(id), Some(name)) = (squad["id"].as_i64(), squad["name"].as_str()) {
            squads.insert(id, name.to_owned());
        }
    }
    let hosts = hosts
        .into_iter()
        .map(|host| {
            let view = api.fleet.view(&host.name);
            HostPart {
                squad: host.squad_id.and_then(|id| squads.get(&id).cloned()).unwrap_or_default(),
                active: host.active,
                procs: view.procs.len(),
                seen: view.seen.map(time::iso),
                error: view.error,
                unreachable_since: view.unreachable_since.map(time::iso),
                name: host.name,
            }
        })
        .collect();
    let events = api
        .store
        .events(0, 0, EVENTS)
        .await?
        .iter()
        .map(|row| serde_json::from_str(&row.data))
        .collect::<Result<_, _>>()
        .map_err(|e| Failure::internal(&e))?;
    Ok(Page { version: env!("CARGO_PKG_VERSION"), now: time::iso(time::now()), swarms, hosts, events })
}
