//! Asking for work: dispatching a swarm, building a build.

use axum::Extension;
use axum::extract::{Path, State};
use http::StatusCode;
use serde_json::json;
use vr_common::api::SwarmStarted;

use super::Api;
use super::auth::User;
use super::error::{Answer, Failure, json_response};
use super::objects::locate;
use crate::events::News;
use crate::store::NewDispatch;
use crate::store::resources::Resource;

/// Queues a dispatch of the swarm at the version that it has; what is sent along does not matter.
pub(super) async fn dispatch_swarm(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path(key): Path<String>,
) -> Answer {
    let swarm = api.store.swarm(locate(&api, Resource::Swarms, &key).await?).await?;
    let name = swarm.cli_name();
    let Some(version) = swarm.version.as_deref() else {
        let message = format!("swarm {name} has no version yet: give it one before it is dispatched");
        return Err(Failure::field("version", message));
    };
    let new = NewDispatch { swarm_id: swarm.id, version, requested_by: &user.0 };
    let swarm_id = api.store.add_dispatch(new).await?;
    api.wake.notify_one();
    let news = News::new(
        format!("swarm {name}"),
        format!("{} asked for {name} at version {version}, {} procs", user.0, swarm.size),
        &["user", "swarm"],
    );
    let uri = Resource::Swarms.uri(swarm.id);
    api.events.tell(news.with("swarm_id", swarm_id.as_str()).with("resource_uri", uri)).await;
    Ok(json_response(StatusCode::ACCEPTED, &SwarmStarted { swarm_id }))
}

/// Queues a build. One that has succeeded stays as it is: a new one is built, and named in the answer.
pub(super) async fn build(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path(key): Path<String>,
) -> Answer {
    let build = api.store.build(locate(&api, Resource::Builds, &key).await?).await?;
    let id = api.store.queue_build(build.id, true).await?;
    api.wake.notify_one();
    let name = format!("{}-{}", build.app_name, build.tag);
    let uri = Resource::Builds.uri(id);
    let message = format!("{} asked for build {id} of {name}", user.0);
    let news = News::new(format!("build {name}"), message, &["user", "build"]);
    api.events.tell(news.with("resource_uri", uri.as_str())).await;
    Ok(json_response(StatusCode::ACCEPTED, &json!({"id": id, "resource_uri": uri})))
}
