//! Listing, making, showing, changing and deleting the resources of the store, and their histories.

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, Uri, header};
use serde_json::{Map, Value, json};

use super::Api;
use super::auth::User;
use super::body::JsonObject;
use super::documents;
use super::error::{Answer, Failure, json_response};
use super::input::{self, Mode, Wish};
use super::paging::ListQuery;
use crate::store::resources::{Filter, Resource};
use crate::time;

/// The most conditions of one list: the database can take about a thousand.
const MOST_FILTERS: usize = 100;

/// The number of the object that the URL names, or 404.
pub(super) async fn locate(api: &Api, resource: Resource, key: &str) -> Result<i64, Failure> {
    match api.store.find(resource, key).await? {
        Some(id) => Ok(id),
        None => Err(Failure::not_found(format!("there is no {} {key}", resource.one()))),
    }
}

pub(super) async fn list(
    State(api): State<Api>,
    Extension(resource): Extension<Resource>,
    uri: Uri,
) -> Answer {
    let query = ListQuery::parse(&uri)?;
    if query.filters.len() > MOST_FILTERS {
        return Err(Failure::bad(format!("more than {MOST_FILTERS} filters")));
    }
    let mut filters = Vec::new();
    for (name, value) in &query.filters {
        filters.extend(Filter::parse(resource, name, value)?);
    }
    let total = api.store.count(resource, &filters).await?;
    let objects = api.store.list(resource, &filters, query.offset.into(), query.limit.into()).await?;
    query.page(total, documents::complete(&api, resource, objects).await?)
}

pub(super) async fn show(
    State(api): State<Api>,
    Extension(resource): Extension<Resource>,
    Path(key): Path<String>,
) -> Answer {
    let id = locate(&api, resource, &key).await?;
    Ok(json_response(StatusCode::OK, &documents::one(&api, resource, id).await?))
}

pub(super) async fn create(
    State(api): State<Api>,
    Extension(resource): Extension<Resource>,
    Extension(user): Extension<User>,
    JsonObject(sent): JsonObject,
) -> Answer {
    let wish = input::read(&api, resource, Mode::Create, &sent, None).await?;
    let id = api.store.create(resource, wish.values, &user.0).await?;
    if let Some(version) = wish.version {
        api.store.change_swarm_version(id, &version, &user.0).await?;
    }
    note_hosts(&api, resource);
    let object = documents::one(&api, resource, id).await?;
    let mut response = json_response(StatusCode::CREATED, &object);
    if let Some(location) = object["resource_uri"].as_str().and_then(|uri| HeaderValue::from_str(uri).ok()) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

pub(super) async fn replace(
    State(api): State<Api>,
    Extension(resource): Extension<Resource>,
    Extension(user): Extension<User>,
    Path(key): Path<String>,
    JsonObject(sent): JsonObject,
) -> Answer {
    write(&api, resource, &user, &key, Mode::Replace, &sent).await
}

pub(super) async fn amend(
    State(api): State<Api>,
    Extension(resource): Extension<Resource>,
    Extension(user): Extension<User>,
    Path(key): Path<String>,
    JsonObject(sent): JsonObject,
) -> Answer {
    write(&api, resource, &user, &key, Mode::Amend, &sent).await
}

async fn write(
    api: &Api,
    resource: Resource,
    user: &User,
    key: &str,
    mode: Mode,
    sent: &Map<String, Value>,
) -> Answer {
    let id = locate(api, resource, key).await?;
    let current = api.store.object(resource, id).await?;
    let Wish { values, version } = input::read(api, resource, mode, sent, Some(&current)).await?;
    api.store.change(resource, id, values, &user.0).await?;
    if let Some(version) = version {
        api.store.change_swarm_version(id, &version, &user.0).await?;
    }
    note_hosts(api, resource);
    Ok(json_response(StatusCode::OK, &documents::one(api, resource, id).await?))
}

/// New hosts are looked at at once.
fn note_hosts(api: &Api, resource: Resource) {
    if matches!(resource, Resource::Hosts | Resource::Squads) {
        api.fleet.hosts_changed();
    }
}

pub(super) async fn delete(
    State(api): State<Api>,
    Extension(resource): Extension<Resource>,
    Extension(user): Extension<User>,
    Path(key): Path<String>,
) -> Result<Response, Failure> {
    let id = locate(&api, resource, &key).await?;
    api.store.delete(resource, id, &user.0).await?;
    note_hosts(&api, resource);
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Who changed the object, when, and from what to what; newest first.
pub(super) async fn versions(
    State(api): State<Api>,
    Extension(resource): Extension<Resource>,
    Path(key): Path<String>,
    uri: Uri,
) -> Answer {
    let query = ListQuery::parse(&uri)?;
    query.only(&[])?;
    let id = locate(&api, resource, &key).await?;
    let total = api.store.count_changes(resource, id).await?;
    let changes = api.store.changes(resource, id, query.offset.into(), query.limit.into()).await?;
    let objects = changes
        .into_iter()
        .map(|change| {
            json!({
                "id": change.id,
                "time": time::iso(change.time),
                "user": change.username,
                "action": change.action,
                "old": change.old,
                "new": change.new,
            })
        })
        .collect();
    query.page(total, objects)
}
