//! Objects as clients see them: what the store has, and what only the hosts and balancers know.

use std::collections::HashMap;

use futures_util::future::join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use vr_common::api;
use vr_common::host_api::ProcDocument;

use super::Api;
use super::error::Failure;
use crate::store::resources::{Resource, uri_key};
use crate::store::{HostRow, StoreError};
use crate::time;

type Object = Map<String, Value>;

/// The names of fields that are not in the store.
pub(super) fn computed_fields(resource: Resource) -> &'static [&'static str] {
    match resource {
        Resource::Apps => &["resolved_url"],
        Resource::Hosts => &["procs_uri", "procs", "unreachable_since", "seen", "error", "facts"],
        Resource::Swarms => {
            &["compiled_config", "compiled_env", "shortname", "procs_uri", "procs", "pool_address"]
        }
        _ => &[],
    }
}

/// Completes objects of the store.
pub(super) async fn complete(
    api: &Api,
    resource: Resource,
    objects: Vec<Object>,
) -> Result<Vec<Value>, Failure> {
    match resource {
        Resource::Apps => shaped::<api::App>(objects.into_iter().map(app)),
        Resource::Buildpacks => shaped::<api::Buildpack>(objects),
        Resource::Squads => {
            let mut hosts: HashMap<String, Vec<Value>> = HashMap::new();
            for object in api.store.list(Resource::Hosts, &[], 0, i64::MAX).await? {
                if let Some(squad) = object["squad"].as_str() {
                    hosts.entry(squad.to_owned()).or_default().push(Value::Object(host(api, object.clone())));
                }
            }
            shaped::<api::Squad>(objects.into_iter().map(|mut squad| {
                let own = hosts.remove(&text(&squad, "resource_uri")).unwrap_or_default();
                squad.insert("hosts".into(), own.into());
                squad
            }))
        }
        Resource::Hosts => shaped::<api::Host>(objects.into_iter().map(|object| host(api, object))),
        Resource::Ingredients => shaped::<api::Ingredient>(objects),
        Resource::Builds => shaped::<api::Build>(objects),
        Resource::Releases => shaped::<api::Release>(objects.into_iter().map(release)),
        Resource::Swarms => {
            let hosts = api.store.hosts().await?;
            let squads = api.store.list(Resource::Squads, &[], 0, i64::MAX).await?;
            let squad_ids: HashMap<String, i64> = squads
                .iter()
                .map(|squad| (text(squad, "resource_uri"), squad["id"].as_i64().unwrap_or_default()))
                .collect();
            let completed = join_all(objects.into_iter().map(|object| {
                let squad_id = squad_ids.get(&text(&object, "squad")).copied();
                let hosts = hosts.iter().filter(move |host| host.squad_id == squad_id);
                swarm(api, object, hosts)
            }));
            shaped::<api::Swarm>(completed.await.into_iter().collect::<Result<Vec<_>, _>>()?)
        }
    }
}

/// One object, whole.
pub(super) async fn one(api: &Api, resource: Resource, id: i64) -> Result<Value, Failure> {
    let object = api.store.object(resource, id).await?;
    let mut completed = complete(api, resource, vec![object]).await?;
    Ok(completed.pop().unwrap_or_default())
}

/// The shape that both sides agreed on, so that the types stay true.
fn shaped<T: DeserializeOwned + Serialize>(
    objects: impl IntoIterator<Item = Object>,
) -> Result<Vec<Value>, Failure> {
    objects
        .into_iter()
        .map(|object| {
            let shaped: T = serde_json::from_value(Value::Object(object))?;
            serde_json::to_value(shaped)
        })
        .collect::<Result<_, _>>()
        .map_err(|error: serde_json::Error| Failure::internal(&error))
}

fn text(object: &Object, field: &str) -> String {
    object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn app(mut object: Object) -> Object {
    object.insert("stack".into(), Value::Null);
    let resolved = object["repo_url"].clone();
    object.insert("resolved_url".into(), resolved);
    object
}

/// Clients compare the texts' contents: one that says nothing holds an empty mapping.
fn release(mut object: Object) -> Object {
    for field in ["config_yaml", "env_yaml"] {
        if object[field] == "" {
            object.insert(field.into(), "{}\n".into());
        }
    }
    object
}

fn host(api: &Api, mut object: Object) -> Object {
    let view = api.fleet.view(&text(&object, "name"));
    let procs_uri = format!("{}procs/", text(&object, "resource_uri"));
    object.insert("procs_uri".into(), procs_uri.into());
    object.insert("procs".into(), json!(view.procs));
    object.insert("unreachable_since".into(), json!(view.unreachable_since.map(time::iso)));
    object.insert("seen".into(), json!(view.seen.map(time::iso)));
    object.insert("error".into(), json!(view.error));
    object.insert("facts".into(), json!(view.facts));
    object
}

async fn swarm(
    api: &Api,
    mut object: Object,
    hosts: impl Iterator<Item = &HostRow>,
) -> Result<Object, Failure> {
    let (app_name, config_name) = (text(&object, "app_name"), text(&object, "config_name"));
    let proc_name = text(&object, "proc_name");
    let version = object["version"].as_str().unwrap_or("UNKNOWN").to_owned();
    let procs = procs_of(api, hosts, &app_name, &config_name, &proc_name);
    let (config, env) = match api.store.compiled(object["id"].as_i64().unwrap_or_default()).await {
        Ok(compiled) => compiled,
        // One swarm with a bad text must not hide the others.
        Err(error @ (StoreError::Invalid { .. } | StoreError::NotFound { .. })) => {
            tracing::warn!(swarm = %object["id"], "its config cannot be compiled: {error}");
            (Value::Null, Value::Null)
        }
        Err(error) => return Err(error.into()),
    };
    let address = api.0.addresses.of(object["balancer"].as_str(), object["pool"].as_str()).await;
    let procs_uri = format!("{}procs/", text(&object, "resource_uri"));
    object.insert("shortname".into(), format!("{app_name}-{version}-{config_name}-{proc_name}").into());
    object.insert("compiled_config".into(), config);
    object.insert("compiled_env".into(), env);
    object.insert("pool_address".into(), json!(address));
    object.insert("procs_uri".into(), procs_uri.into());
    object.insert("procs".into(), json!(procs));
    Ok(object)
}

/// The procs of a swarm, of whichever release, as last seen on its squad's hosts.
pub(super) fn procs_of<'a>(
    api: &Api,
    hosts: impl Iterator<Item = &'a HostRow>,
    app_name: &str,
    config_name: &str,
    proc_name: &str,
) -> Vec<ProcDocument> {
    let mut found = Vec::new();
    for host in hosts {
        let view = api.fleet.view(&host.name);
        let ours = view.procs.iter().filter(|proc| {
            proc.parsed.app_name == app_name
                && proc.parsed.config_name == config_name
                && proc.parsed.proc_name == proc_name
        });
        found.extend(ours.cloned());
    }
    found
}

/// The number of the object that a field of a request names: by URI, or by a whole object with its URI.
pub(super) async fn linked(api: &Api, field: &str, to: Resource, sent: &Value) -> Result<i64, Failure> {
    let uri = match sent {
        Value::String(uri) => uri,
        Value::Object(object) => match object.get("resource_uri") {
            Some(Value::String(uri)) => uri,
            _ => return Err(Failure::field(field, format!("{field}: an object without a resource_uri"))),
        },
        other => {
            let found = super::yaml_fields::kind(other);
            return Err(Failure::field(
                field,
                format!("{field}: expected a URI such as {}, found {found}", example(to)),
            ));
        }
    };
    let key = uri_key(to, uri).ok_or_else(|| {
        Failure::field(field, format!("{field}: {uri:?} is not a URI such as {}", example(to)))
    })?;
    match api.store.find(to, key).await? {
        Some(id) => Ok(id),
        None => Err(Failure::field(field, format!("{field}: there is no {} {key}", to.one()))),
    }
}

fn example(resource: Resource) -> String {
    resource.uri(if resource.is_named() { "NAME" } else { "1" })
}
