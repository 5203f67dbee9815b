//! Dispatches: where they are and how they got there.

use axum::extract::{Path, State};
use http::{StatusCode, Uri};
use vr_common::api::{Dispatch, Transition};

use super::Api;
use super::error::{Answer, Failure, json_response};
use super::objects::locate;
use super::paging::ListQuery;
use crate::store::DispatchRow;
use crate::store::resources::{Resource, uri_key};
use crate::time;

pub(super) async fn list(State(api): State<Api>, uri: Uri) -> Answer {
    let query = ListQuery::parse(&uri)?;
    query.only(&["swarm"])?;
    let mut swarm_id = None;
    for (_, swarm) in &query.filters {
        let key = uri_key(Resource::Swarms, swarm).unwrap_or(swarm);
        let id = locate(&api, Resource::Swarms, key).await;
        swarm_id =
            Some(id.map_err(|_| Failure::field("swarm", format!("swarm: there is no swarm {swarm}")))?);
    }
    let total = api.store.count_dispatches(swarm_id).await?;
    let rows = api.store.dispatches(swarm_id, query.offset.into(), query.limit.into()).await?;
    let mut objects = Vec::new();
    for row in rows {
        objects.push(document(&api, row).await?);
    }
    query.page(total, objects)
}

pub(super) async fn show(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    let row = api.store.dispatch(&id).await?;
    Ok(json_response(StatusCode::OK, &document(&api, row).await?))
}

async fn document(api: &Api, row: DispatchRow) -> Result<Dispatch, Failure> {
    let swarm = api.store.swarm(row.swarm_id).await?;
    let transitions = api.store.transitions(&row.id).await?;
    Ok(Dispatch {
        resource_uri: format!("/api/v1/dispatches/{}/", row.id),
        swarm: Resource::Swarms.uri(swarm.id),
        swarm_name: swarm.cli_name(),
        pool_address: api.0.addresses.of(swarm.balancer.as_deref(), swarm.pool.as_deref()).await,
        id: row.id,
        version: row.version,
        state: row.state.name().to_owned(),
        user: row.requested_by,
        error: row.error,
        created: time::iso(row.created),
        finished: row.finished.map(time::iso),
        transitions: transitions
            .into_iter()
            .map(|step| Transition {
                time: time::iso(step.time),
                from: step.from_state,
                to: step.to_state,
                who: step.who,
                why: step.why,
            })
            .collect(),
    })
}
