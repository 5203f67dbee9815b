//! What clients may write of each resource, and what it has to look like.
//!
//! Clients put back whole objects as they got them, so fields that nobody can write are taken and dropped; only
//! a PATCH that asks for another value of such a field is refused, as it would seem to have worked.

use std::str::FromStr;

use serde_json::{Map, Value};
use vr_common::memory::Size;
use vr_common::names::{AppName, ConfigName, HostName, NameError, PoolName, ProcName, SquadName, Version};
use vr_common::vcs::RepoUrl;

use super::Api;
use super::documents::{computed_fields, linked};
use super::error::Failure;
use super::yaml_fields::{kind, mapping_text, volumes_text};
use crate::hosts::{DriverKind, check_agent_url};
use crate::store::resources::{Datum, Resource, Values};

/// How an object is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// A new one.
    Create,
    /// All fields of one: those that are not given get their defaults.
    Replace,
    /// Some fields of one.
    Amend,
}

/// What a field may hold.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// A text that the function does not refuse; empty or null where `nullable`.
    Text {
        check: fn(&str) -> Result<(), String>,
        nullable: bool,
    },
    /// A whole number in a range.
    Number(i64, i64),
    Truth,
    Config,
    Env,
    Volumes,
    Link {
        to: Resource,
        nullable: bool,
    },
}

/// What a field that is not given becomes.
#[derive(Debug, Clone, Copy)]
enum Default {
    Required,
    Null,
    Text(&'static str),
    Number(i64),
}

struct Writable {
    field: &'static str,
    column: &'static str,
    shape: Shape,
    default: Default,
}

const fn must(field: &'static str, check: fn(&str) -> Result<(), String>) -> Writable {
    let shape = Shape::Text { check, nullable: false };
    Writable { field, column: field, shape, default: Default::Required }
}

const fn may(field: &'static str, check: fn(&str) -> Result<(), String>) -> Writable {
    let shape = Shape::Text { check, nullable: true };
    Writable { field, column: field, shape, default: Default::Null }
}

const fn config() -> Writable {
    Writable { field: "config_yaml", column: "config_yaml", shape: Shape::Config, default: Default::Text("") }
}

const fn env() -> Writable {
    Writable { field: "env_yaml", column: "env_yaml", shape: Shape::Env, default: Default::Text("") }
}

const fn volumes() -> Writable {
    Writable { field: "volumes", column: "volumes", shape: Shape::Volumes, default: Default::Text("null") }
}

const fn run_as() -> Writable {
    let shape = Shape::Text { check: user, nullable: false };
    Writable { field: "run_as", column: "run_as", shape, default: Default::Text("nobody") }
}

const fn repo_type() -> Writable {
    let shape = Shape::Text { check: is_repo_type, nullable: false };
    Writable { field: "repo_type", column: "repo_type", shape, default: Default::Text("git") }
}

const fn link(field: &'static str, column: &'static str, to: Resource, nullable: bool) -> Writable {
    let default = if nullable { Default::Null } else { Default::Required };
    Writable { field, column, shape: Shape::Link { to, nullable }, default }
}

static APPS: [Writable; 4] = [
    must("name", name::<AppName>),
    must("repo_url", repo_url),
    repo_type(),
    link("buildpack", "buildpack_id", Resource::Buildpacks, true),
];
static BUILDPACKS: [Writable; 4] = [
    must("repo_url", repo_url),
    repo_type(),
    Writable {
        field: "desc",
        column: "description",
        shape: Shape::Text { check: anything, nullable: false },
        default: Default::Text(""),
    },
    Writable {
        field: "order",
        column: "position",
        shape: Shape::Number(i32::MIN as i64, i32::MAX as i64),
        default: Default::Number(0),
    },
];
static SQUADS: [Writable; 1] = [must("name", name::<SquadName>)];
static HOSTS: [Writable; 5] = [
    must("name", name::<HostName>),
    Writable { field: "active", column: "active", shape: Shape::Truth, default: Default::Number(1) },
    link("squad", "squad_id", Resource::Squads, true),
    may("driver", driver),
    may("agent_url", anything),
];
static INGREDIENTS: [Writable; 3] = [must("name", ingredient_name), config(), env()];
static BUILDS: [Writable; 2] = [link("app", "app_id", Resource::Apps, false), must("tag", name::<Version>)];
static RELEASES: [Writable; 7] = [
    link("build", "build_id", Resource::Builds, false),
    config(),
    env(),
    volumes(),
    run_as(),
    may("mem_limit", memory),
    may("memsw_limit", memory),
];
static SWARMS: [Writable; 13] = [
    link("app", "app_id", Resource::Apps, false),
    must("config_name", name::<ConfigName>),
    must("proc_name", name::<ProcName>),
    link("squad", "squad_id", Resource::Squads, false),
    Writable { field: "size", column: "size", shape: Shape::Number(0, 1000), default: Default::Number(1) },
    may("pool", name::<PoolName>),
    may("balancer", anything),
    config(),
    env(),
    volumes(),
    run_as(),
    may("mem_limit", memory),
    may("memsw_limit", memory),
];

fn writables(resource: Resource) -> &'static [Writable] {
    match resource {
        Resource::Apps => &APPS,
        Resource::Buildpacks => &BUILDPACKS,
        Resource::Squads => &SQUADS,
        Resource::Hosts => &HOSTS,
        Resource::Ingredients => &INGREDIENTS,
        Resource::Builds => &BUILDS,
        Resource::Releases => &RELEASES,
        Resource::Swarms => &SWARMS,
    }
}

/// Fields that are known and can only be null yet, with what they are for.
fn only_null(resource: Resource, field: &str) -> bool {
    matches!((resource, field), (Resource::Apps, "stack") | (Resource::Builds, "os_image"))
}

fn anything(text: &str) -> Result<(), String> {
    if text.contains('\0') { Err("it contains a null character".into()) } else { Ok(()) }
}

fn name<T: FromStr<Err = NameError>>(text: &str) -> Result<(), String> {
    text.parse::<T>().map(drop).map_err(|e| e.to_string())
}

fn ingredient_name(text: &str) -> Result<(), String> {
    if text.trim().is_empty() || text.len() > 200 || text.chars().any(char::is_control) {
        return Err(format!(
            "{text:?} is not a valid ingredient name: expected 1 to 200 printable characters"
        ));
    }
    Ok(())
}

fn repo_url(text: &str) -> Result<(), String> {
    RepoUrl::parse(text).map(drop).map_err(|e| vr_common::exit::chain(&e))
}

fn driver(text: &str) -> Result<(), String> {
    text.parse::<DriverKind>().map(drop)
}

fn is_repo_type(text: &str) -> Result<(), String> {
    match text {
        "git" | "hg" => Ok(()),
        _ => Err(format!("{text:?} is not a kind of repository: expected git or hg")),
    }
}

fn user(text: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if text.is_empty() || text.len() > 32 || text.starts_with(['-', '.']) || !text.chars().all(fine) {
        return Err(format!("{text:?} is not a user's name: expected letters, digits, '_', '.' and '-'"));
    }
    Ok(())
}

/// Exactly what a host takes, or the first deploy would be the one to fail.
fn memory(text: &str) -> Result<(), String> {
    if text.trim() != text {
        return Err(format!("{text:?} has spaces around the amount"));
    }
    text.parse::<Size>().map(drop).map_err(|e| e.to_string())
}

/// What was asked for, checked.
#[derive(Debug, Default)]
pub(super) struct Wish {
    /// For the store.
    pub values: Values,
    /// The revision that a swarm is to be at.
    pub version: Option<String>,
}

/// Checks a write. `current` is the object as it is, when there is one.
pub(super) async fn read(
    api: &Api,
    resource: Resource,
    mode: Mode,
    sent: &Map<String, Value>,
    current: Option<&Map<String, Value>>,
) -> Result<Wish, Failure> {
    let mut wish = Wish::default();
    let writables = writables(resource);
    for (field, value) in sent {
        if let Some(writable) = writables.iter().find(|writable| writable.field == field) {
            let datum = datum(api, writable, value).await?;
            wish.values.columns.push((writable.column, datum));
            continue;
        }
        match (resource, field.as_str()) {
            (Resource::Squads, "hosts") => {
                wish.values.hosts = Some(links(api, field, Resource::Hosts, value).await?);
            }
            (Resource::Swarms, "config_ingredients") => {
                wish.values.ingredients = Some(links(api, field, Resource::Ingredients, value).await?);
            }
            (Resource::Swarms, "version" | "release") => {}
            (_, field) if only_null(resource, field) => {
                if !value.is_null() {
                    return Err(Failure::field(
                        field,
                        format!("{field}: OS images are not supported yet: expected null"),
                    ));
                }
            }
            (_, "id" | "resource_uri") => {}
            (_, field) if computed_fields(resource).contains(&field) => {}
            (_, field) => match (shown(resource, field), current) {
                (false, _) => {
                    return Err(Failure::field(field, format!("{resource} have no field {field:?}")));
                }
                (true, Some(current)) if mode == Mode::Amend && current.get(field) != Some(value) => {
                    return Err(Failure::field(field, format!("{field} cannot be changed")));
                }
                (true, _) => {}
            },
        }
    }
    if mode != Mode::Amend {
        for writable in writables.iter().filter(|writable| !sent.contains_key(writable.field)) {
            let datum = match writable.default {
                Default::Required => {
                    return Err(Failure::field(writable.field, format!("{} is required", writable.field)));
                }
                Default::Null => Datum::Null,
                Default::Text(text) => Datum::Text(text.to_owned()),
                Default::Number(number) => Datum::Number(number),
            };
            wish.values.columns.push((writable.column, datum));
        }
        if mode == Mode::Replace && resource == Resource::Swarms {
            wish.values.ingredients.get_or_insert_default();
        }
    }
    check_memory(&wish.values, current)?;
    if resource == Resource::Hosts {
        check_host(&wish.values, current)?;
    }
    if resource == Resource::Swarms {
        check_routing(api, &wish.values, current)?;
        place_swarm(api, &mut wish, mode, sent, current).await?;
    }
    Ok(wish)
}

/// Whether the resource shows a field of this name that is kept in the store and that nobody can write.
fn shown(resource: Resource, field: &str) -> bool {
    let fields: &[&str] = match resource {
        Resource::Ingredients => &["swarms"],
        Resource::Builds => &[
            "status",
            "file",
            "file_md5",
            "compile_log",
            "start_time",
            "end_time",
            "hash",
            "env_yaml",
            "buildpack_url",
            "buildpack_version",
            "error",
        ],
        Resource::Releases => &["hash", "compiled_name"],
        Resource::Hosts => &["found_driver", "found_at"],
        Resource::Swarms => &["app_name", "squad_name"],
        _ => &[],
    };
    fields.contains(&field)
}

async fn links(api: &Api, field: &str, to: Resource, sent: &Value) -> Result<Vec<i64>, Failure> {
    let Value::Array(items) = sent else {
        return Err(Failure::field(field, format!("{field}: expected a list of URIs, found {}", kind(sent))));
    };
    let mut ids = Vec::new();
    for item in items {
        let id = linked(api, field, to, item).await?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

async fn datum(api: &Api, writable: &Writable, sent: &Value) -> Result<Datum, Failure> {
    let field = writable.field;
    let wrong =
        |expected: &str| Failure::field(field, format!("{field}: expected {expected}, found {}", kind(sent)));
    let refused = |reason: String| Failure::field(field, reason);
    Ok(match writable.shape {
        Shape::Text { nullable: true, .. } if sent.is_null() || sent.as_str() == Some("") => Datum::Null,
        Shape::Text { check, .. } => {
            let text = match sent {
                Value::String(text) => text.clone(),
                // `mem_limit: 1048576` and versions such as 9 come as numbers from people's scripts.
                Value::Number(number) if field != "name" => number.to_string(),
                _ => return Err(wrong("a text")),
            };
            if text.len() > 10_000 {
                return Err(refused(format!("{field}: longer than 10000 bytes")));
            }
            check(&text).map_err(|reason| refused(format!("{field}: {reason}")))?;
            Datum::Text(text)
        }
        Shape::Number(least, most) => {
            let number = sent.as_i64().or_else(|| sent.as_str()?.parse().ok());
            match number.filter(|number| (least..=most).contains(number)) {
                Some(number) => Datum::Number(number),
                None => return Err(wrong(&format!("a whole number from {least} to {most}"))),
            }
        }
        Shape::Truth => match sent.as_bool() {
            Some(truth) => Datum::Number(truth.into()),
            None => return Err(wrong("true or false")),
        },
        Shape::Config => Datum::Text(mapping_text(field, sent, false).map_err(refused)?),
        Shape::Env => Datum::Text(mapping_text(field, sent, true).map_err(refused)?),
        Shape::Volumes => Datum::Text(volumes_text(sent).map_err(refused)?),
        Shape::Link { nullable: true, .. } if sent.is_null() => Datum::Null,
        Shape::Link { to, .. } => Datum::Number(linked(api, field, to, sent).await?),
    })
}

/// Memory and swap together cannot be less than memory alone. What is stored already stands in the way of no other change.
fn check_memory(values: &Values, current: Option<&Map<String, Value>>) -> Result<(), Failure> {
    if !values.columns.iter().any(|(column, _)| matches!(*column, "mem_limit" | "memsw_limit")) {
        return Ok(());
    }
    let size = |field: &str| -> Option<Size> {
        match values.columns.iter().find(|(column, _)| *column == field) {
            Some((_, Datum::Text(text))) => text.parse().ok(),
            Some(_) => None,
            None => current?.get(field)?.as_str()?.parse().ok(),
        }
    };
    match (size("mem_limit"), size("memsw_limit")) {
        (Some(memory), Some(both)) if both.bytes() < memory.bytes() => Err(Failure::field(
            "memsw_limit",
            format!(
                "memsw_limit: {both} of memory and swap is less than mem_limit, {memory} of memory alone"
            ),
        )),
        _ => Ok(()),
    }
}

/// Where a host's agent may be. The socket of this machine's agent is written by the server itself, and only taken back.
fn check_host(values: &Values, current: Option<&Map<String, Value>>) -> Result<(), Failure> {
    let value = |field: &str| -> Option<&str> {
        match values.columns.iter().find(|(column, _)| *column == field) {
            Some((_, Datum::Text(text))) => Some(text),
            Some(_) => None,
            None => current?.get(field)?.as_str(),
        }
    };
    let Some(url) = value("agent_url") else { return Ok(()) };
    if current.and_then(|object| object.get("agent_url")?.as_str()) != Some(url) {
        check_agent_url(url).map_err(|reason| Failure::field("agent_url", format!("agent_url: {reason}")))?;
    }
    if value("driver") == Some(DriverKind::Supervisor.name()) {
        let message = "agent_url: a host with the driver supervisor has no agent: expected null";
        return Err(Failure::field("agent_url", message));
    }
    Ok(())
}

/// A swarm with a pool needs a balancer, and a balancer must be one of the settings.
fn check_routing(api: &Api, values: &Values, current: Option<&Map<String, Value>>) -> Result<(), Failure> {
    let value = |field: &str| -> Option<String> {
        match values.columns.iter().find(|(column, _)| *column == field) {
            Some((_, Datum::Text(text))) => Some(text.clone()),
            Some(_) => None,
            None => current.and_then(|object| object[field].as_str()).map(str::to_owned),
        }
    };
    match (value("pool"), value("balancer")) {
        (Some(pool), None) => Err(Failure::field(
            "balancer",
            format!("the swarm has the pool {pool}, so it must name a balancer"),
        )),
        (_, Some(balancer)) if !api.balancers.contains_key(&balancer) => {
            let known: Vec<_> = api.balancers.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let message = format!("there is no balancer {balancer:?}; the settings name: {known}");
            Err(Failure::field("balancer", message))
        }
        _ => Ok(()),
    }
}

/// Which release a swarm is to be at: by `release`, or by `version`, which finds or makes the release.
async fn place_swarm(
    api: &Api,
    wish: &mut Wish,
    mode: Mode,
    sent: &Map<String, Value>,
    current: Option<&Map<String, Value>>,
) -> Result<(), Failure> {
    let now = |field: &str| current.and_then(|object| object.get(field)).unwrap_or(&Value::Null);
    let mut released = None;
    match sent.get("release") {
        None | Some(Value::Null) => {}
        Some(release) if release == now("release") => {}
        Some(release) => {
            let id = linked(api, "release", Resource::Releases, release).await?;
            let build = api.store.build(api.store.release(id).await?.build_id).await?;
            let app_id = wish.values.columns.iter().find(|(column, _)| *column == "app_id");
            let app_id = match (app_id, now("app")) {
                (Some((_, Datum::Number(id))), _) => Some(*id),
                (_, Value::Null) => None,
                (_, app) => Some(linked(api, "app", Resource::Apps, app).await?),
            };
            if app_id != Some(build.app_id) {
                let message = format!("release: it is a release of the app {}", build.app_name);
                return Err(Failure::field("release", message));
            }
            wish.values.columns.push(("release_id", Datum::Number(id)));
            released = Some(build.tag);
        }
    }
    match sent.get("version") {
        None | Some(Value::Null) => Ok(()),
        // Put back as it was: no wish, perhaps beside another release.
        Some(version) if version == now("version") && (mode == Mode::Replace || released.is_some()) => Ok(()),
        Some(version) => {
            let text = match version {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                other => {
                    return Err(Failure::field(
                        "version",
                        format!("version: expected a text, found {}", kind(other)),
                    ));
                }
            };
            name::<Version>(&text)
                .map_err(|reason| Failure::field("version", format!("version: {reason}")))?;
            match released {
                Some(tag) if tag == text => {}
                Some(tag) => {
                    let message = format!("version: the release given beside it is at {tag}, not at {text}");
                    return Err(Failure::field("version", message));
                }
                None => wish.version = Some(text),
            }
            Ok(())
        }
    }
}
