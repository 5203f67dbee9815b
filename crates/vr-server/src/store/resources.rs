//! The API's resources in the database: finding, listing, making, changing and deleting them.
//!
//! Objects go out as JSON objects with the API's field names and URIs; values come in as columns of ours with
//! checked values. Whoever calls has checked them; this module only adds what the database alone can know:
//! what is unique, and what is still referred to. Every change is kept with who made it, in the same transaction.

mod filters;
mod history;
mod tables;

use std::fmt;

use serde_json::{Map, Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};
use vr_common::hash::ReleaseParts;

pub use filters::Filter;
pub use history::{ChangeRow, Deed};

use super::releases::{parse_volumes, parts_text};
use super::swarms::mapping;
use super::{Doing, Result, Store, StoreError, Write};
use crate::time;
use history::NewChange;
use tables::Kind;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Applications.
    Apps,
    /// Buildpacks.
    Buildpacks,
    /// Groups of hosts.
    Squads,
    /// Hosts.
    Hosts,
    /// Shared config.
    Ingredients,
    /// Apps at a revision, compiled.
    Builds,
    /// Builds with config.
    Releases,
    /// Procs of a release.
    Swarms,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Apps,
        Self::Buildpacks,
        Self::Squads,
        Self::Hosts,
        Self::Ingredients,
        Self::Builds,
        Self::Releases,
        Self::Swarms,
    ];

    /// Its name in URLs.
    pub fn name(self) -> &'static str {
        self.table().name
    }

    /// What one of them is called.
    pub fn one(self) -> &'static str {
        match self {
            Self::Apps => "app",
            Self::Buildpacks => "buildpack",
            Self::Squads => "squad",
            Self::Hosts => "host",
            Self::Ingredients => "ingredient",
            Self::Builds => "build",
            Self::Releases => "release",
            Self::Swarms => "swarm",
        }
    }

    /// Whether its URIs hold a name instead of a number.
    pub fn is_named(self) -> bool {
        matches!(self, Self::Apps | Self::Squads | Self::Hosts)
    }

    /// The URI of the object with this key.
    pub fn uri(self, key: impl fmt::Display) -> String {
        format!("/api/v1/{}/{key}/", self.name())
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The key that a URI such as `/api/v1/apps/hello/` holds, with or without the server before it and the final
/// slash; none when it is not of that resource.
pub fn uri_key(resource: Resource, uri: &str) -> Option<&str> {
    let path = match uri.split_once("://") {
        Some(("http" | "https", rest)) => &rest[rest.find('/')?..],
        _ => uri,
    };
    let key = path.strip_prefix("/api/v1/")?.strip_prefix(resource.name())?.strip_prefix('/')?;
    let key = key.strip_suffix('/').unwrap_or(key);
    (!key.is_empty() && !key.contains('/')).then_some(key)
}

/// A value for a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datum {
    /// NULL.
    Null,
    /// A text.
    Text(String),
    /// A number, truth value or time.
    Number(i64),
}

/// What is to be written of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values {
    /// Columns of the object's own table; the names are ours.
    pub columns: Vec<(&'static str, Datum)>,
    /// A swarm's ingredients, in order.
    pub ingredients: Option<Vec<i64>>,
    /// A squad's hosts.
    pub hosts: Option<Vec<i64>>,
}

impl Values {
    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty() && self.ingredients.is_none() && self.hosts.is_none()
    }

    fn text(&self, column: &str) -> Option<Option<&str>> {
        self.columns.iter().find(|(name, _)| *name == column).map(|(_, datum)| match datum {
            Datum::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }
}

fn select(resource: Resource) -> QueryBuilder<Sqlite> {
    let table = resource.table();
    let mut query = QueryBuilder::new("SELECT ");
    for (n, field) in table.fields.iter().enumerate() {
        query.push(if n == 0 { "" } else { ", " }).push(field.sql);
    }
    query.push(" FROM ").push(table.from);
    query
}

fn push_where(query: &mut QueryBuilder<Sqlite>, filters: &[Filter]) {
    for (n, filter) in filters.iter().enumerate() {
        query.push(if n == 0 { " WHERE " } else { " AND " });
        filter.push(query);
    }
}

/// An object's fields, as they are shown.
fn read(resource: Resource, row: &SqliteRow) -> Result<Map<String, Value>> {
    let mut object = Map::new();
    for (n, field) in resource.table().fields.iter().enumerate() {
        let doing = "read a field";
        let number = || row.try_get::<Option<i64>, _>(n).doing(doing);
        let text = || row.try_get::<Option<String>, _>(n).doing(doing);
        let parsed = || -> Result<Value> {
            serde_json::from_str(&text()?.unwrap_or_else(|| "null".into())).map_err(|e| StoreError::Invalid {
                field: Some(field.name.into()),
                message: format!("{} of a {} is stored wrongly: {e}", field.name, resource.one()),
            })
        };
        let value = match field.kind {
            Kind::Text | Kind::Yaml => json!(text()?),
            Kind::Number => json!(number()?),
            Kind::Truth => json!(number()?.is_some_and(|n| n != 0)),
            Kind::Time => json!(number()?.map(time::iso)),
            Kind::Json => parsed()?,
            Kind::Link(to, _) if to.is_named() => json!(text()?.map(|key| to.uri(key))),
            Kind::Link(to, _) => json!(number()?.map(|key| to.uri(key))),
            Kind::Links(to) => match parsed()? {
                Value::Array(ids) => ids.iter().map(|id| to.uri(id)).collect(),
                _ => json!([]),
            },
        };
        object.insert(field.name.to_owned(), value);
    }
    let key = if resource.is_named() { &object["name"] } else { &object["id"] };
    let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
    object.insert("resource_uri".into(), resource.uri(key).into());
    Ok(object)
}

async fn read_one(tx: &mut Write, resource: Resource, id: i64) -> Result<Map<String, Value>> {
    let mut query = select(resource);
    query.push(" WHERE ").push(resource.table().id).push(" = ").push_bind(id);
    let row = query.build().fetch_optional(&mut **tx).await.doing("read an object")?;
    let row = row.ok_or_else(|| not_found(resource, id))?;
    read(resource, &row)
}

fn not_found(resource: Resource, key: impl fmt::Display) -> StoreError {
    StoreError::NotFound { what: format!("{} {key}", resource.one()) }
}

/// A broken rule of the database as a sentence about the field.
fn broken(resource: Resource, doing: &str, error: sqlx::Error) -> StoreError {
    use sqlx::error::ErrorKind;

    let kind = error.as_database_error().map(|e| e.kind());
    let (field, message) = match (kind, resource) {
        (Some(ErrorKind::UniqueViolation), Resource::Buildpacks) => {
            ("repo_url", "there is a buildpack with this repo_url already".to_owned())
        }
        (Some(ErrorKind::UniqueViolation), Resource::Swarms) => {
            let what = "there is a swarm of this app, config_name and proc_name on this squad already";
            ("proc_name", what.to_owned())
        }
        (Some(ErrorKind::UniqueViolation), Resource::Releases) => (
            "build",
            "there is a release of this build with the same config, env, volumes, user and limits already"
                .to_owned(),
        ),
        (Some(ErrorKind::UniqueViolation), _) => {
            ("name", format!("there is a {} with this name already", resource.one()))
        }
        _ => return StoreError::Database { doing: doing.to_owned(), source: error },
    };
    StoreError::Invalid { field: Some(field.into()), message }
}

/// Who refers to objects of a resource.
fn referrers(resource: Resource) -> &'static [(&'static str, &'static str)] {
    match resource {
        Resource::Apps => &[
            ("swarms", "SELECT COUNT(*) FROM swarms WHERE app_id = $1"),
            ("builds", "SELECT COUNT(*) FROM builds WHERE app_id = $1"),
        ],
        Resource::Buildpacks => &[("apps", "SELECT COUNT(*) FROM apps WHERE buildpack_id = $1")],
        Resource::Squads => &[
            ("swarms", "SELECT COUNT(*) FROM swarms WHERE squad_id = $1"),
            ("hosts", "SELECT COUNT(*) FROM hosts WHERE squad_id = $1"),
        ],
        Resource::Ingredients => {
            &[("swarms", "SELECT COUNT(*) FROM swarm_ingredients WHERE ingredient_id = $1")]
        }
        Resource::Builds => &[("releases", "SELECT COUNT(*) FROM releases WHERE build_id = $1")],
        Resource::Releases => &[("swarms", "SELECT COUNT(*) FROM swarms WHERE release_id = $1")],
        Resource::Swarms => &[(
            "dispatches under way",
            "SELECT COUNT(*) FROM dispatches WHERE swarm_id = $1 AND state NOT IN ('done', 'failed', 'cancelled')",
        )],
        Resource::Hosts => &[],
    }
}

async fn write_lists(tx: &mut Write, id: i64, values: &Values, doing: &str) -> Result<()> {
    if let Some(ingredients) = &values.ingredients {
        sqlx::query("DELETE FROM swarm_ingredients WHERE swarm_id = $1")
            .bind(id)
            .execute(&mut **tx)
            .await
            .doing(doing)?;
        for (position, ingredient) in (0_i64..).zip(ingredients) {
            sqlx::query(
                "INSERT INTO swarm_ingredients (swarm_id, ingredient_id, position) VALUES ($1, $2, $3)",
            )
            .bind(id)
            .bind(ingredient)
            .bind(position)
            .execute(&mut **tx)
            .await
            .doing(doing)?;
        }
    }
    if let Some(hosts) = &values.hosts {
        sqlx::query("UPDATE hosts SET squad_id = NULL WHERE squad_id = $1")
            .bind(id)
            .execute(&mut **tx)
            .await
            .doing(doing)?;
        for host in hosts {
            sqlx::query("UPDATE hosts SET squad_id = $1 WHERE id = $2")
                .bind(id)
                .bind(host)
                .execute(&mut **tx)
                .await
                .doing(doing)?;
        }
    }
    Ok(())
}

fn push_datum(query: &mut QueryBuilder<Sqlite>, datum: &Datum) {
    match datum {
        Datum::Null => query.push("NULL"),
        Datum::Text(text) => query.push_bind(text.clone()),
        Datum::Number(number) => query.push_bind(*number),
    };
}

impl Store {
    /// The number of the object that a key means: its name or, if no name is the same, its number.
    pub async fn find(&self, resource: Resource, key: &str) -> Result<Option<i64>> {
        let mut query = QueryBuilder::new("");
        filters::push_find(&mut query, resource, key);
        query.build_query_scalar().fetch_optional(&self.pool).await.doing("find an object")
    }

    /// How many objects pass the filters.
    pub async fn count(&self, resource: Resource, filters: &[Filter]) -> Result<i64> {
        let mut query = QueryBuilder::new("SELECT COUNT(*) FROM ");
        query.push(resource.table().from);
        push_where(&mut query, filters);
        query.build_query_scalar().fetch_one(&self.pool).await.doing("count objects")
    }

    /// The objects that pass the filters, by number.
    pub async fn list(
        &self,
        resource: Resource,
        filters: &[Filter],
        offset: i64,
        limit: i64,
    ) -> Result<Vec<Map<String, Value>>> {
        let mut query = select(resource);
        push_where(&mut query, filters);
        query.push(" ORDER BY ").push(resource.table().id);
        query.push(" LIMIT ").push_bind(limit).push(" OFFSET ").push_bind(offset);
        let rows = query.build().fetch_all(&self.pool).await.doing("list objects")?;
        rows.iter().map(|row| read(resource, row)).collect()
    }

    /// One object.
    pub async fn object(&self, resource: Resource, id: i64) -> Result<Map<String, Value>> {
        let mut tx = self.pool.begin().await.doing("read an object")?;
        read_one(&mut tx, resource, id).await
    }

    /// Ingredients' and own config of a swarm, and that with the environment of its build.
    pub async fn compiled(&self, swarm_id: i64) -> Result<(Value, Value)> {
        let swarm = self.swarm(swarm_id).await?;
        let build_env = match swarm.release_id {
            Some(id) => self.build(self.release(id).await?.build_id).await?.env_yaml,
            None => String::new(),
        };
        Ok((self.compiled_config(&swarm).await?, self.compiled_env(&swarm, &build_env).await?))
    }

    /// Makes an object and gives its number.
    pub async fn create(&self, resource: Resource, mut values: Values, who: &str) -> Result<i64> {
        let doing = "make an object";
        if resource == Resource::Releases {
            self.complete_release(&mut values, None).await?;
        }
        let mut tx = self.write(doing).await?;
        let mut query = QueryBuilder::new("INSERT INTO ");
        query.push(resource.table().name).push(" (");
        for (n, (column, _)) in values.columns.iter().enumerate() {
            query.push(if n == 0 { "" } else { ", " }).push(column);
        }
        query.push(") VALUES (");
        for (n, (_, datum)) in values.columns.iter().enumerate() {
            query.push(if n == 0 { "" } else { ", " });
            push_datum(&mut query, datum);
        }
        query.push(") RETURNING id");
        let id: i64 = query
            .build_query_scalar()
            .fetch_one(&mut *tx)
            .await
            .map_err(|error| broken(resource, doing, error))?;
        write_lists(&mut tx, id, &values, doing).await?;
        let new = read_one(&mut tx, resource, id).await?;
        let change = NewChange { who, resource, id, deed: Deed::Create, old: None, new: Some(&new) };
        history::keep(&mut tx, change).await?;
        tx.commit().await.doing(doing)?;
        Ok(id)
    }

    /// Changes an object; a change that changes nothing is not kept.
    pub async fn change(&self, resource: Resource, id: i64, mut values: Values, who: &str) -> Result<()> {
        let doing = "change an object";
        if values.is_empty() {
            return Ok(());
        }
        if resource == Resource::Releases {
            self.complete_release(&mut values, Some(id)).await?;
        }
        let mut tx = self.write(doing).await?;
        let old = read_one(&mut tx, resource, id).await?;
        if !values.columns.is_empty() {
            let mut query = QueryBuilder::new("UPDATE ");
            query.push(resource.table().name).push(" SET ");
            for (n, (column, datum)) in values.columns.iter().enumerate() {
                query.push(if n == 0 { "" } else { ", " }).push(column).push(" = ");
                push_datum(&mut query, datum);
            }
            query.push(" WHERE id = ").push_bind(id);
            query.build().execute(&mut *tx).await.map_err(|error| broken(resource, doing, error))?;
        }
        write_lists(&mut tx, id, &values, doing).await?;
        self.keep_update(tx, resource, id, &old, who, values.hosts.is_some()).await
    }

    /// Puts a swarm at a revision, as [`Store::set_swarm_version`] does, and keeps who did it.
    pub async fn change_swarm_version(&self, id: i64, version: &str, who: &str) -> Result<()> {
        let old = self.object(Resource::Swarms, id).await?;
        self.set_swarm_version(id, version).await?;
        let tx = self.write("record a change").await?;
        self.keep_update(tx, Resource::Swarms, id, &old, who, false).await
    }

    async fn keep_update(
        &self,
        mut tx: Write,
        resource: Resource,
        id: i64,
        old: &Map<String, Value>,
        who: &str,
        always: bool,
    ) -> Result<()> {
        let new = read_one(&mut tx, resource, id).await?;
        if always || *old != new {
            let change = NewChange { who, resource, id, deed: Deed::Update, old: Some(old), new: Some(&new) };
            history::keep(&mut tx, change).await?;
        }
        tx.commit().await.doing("change an object")
    }

    /// Deletes an object that nothing refers to.
    pub async fn delete(&self, resource: Resource, id: i64, who: &str) -> Result<()> {
        let doing = "delete an object";
        let mut tx = self.write(doing).await?;
        let old = read_one(&mut tx, resource, id).await?;
        for (what, sql) in referrers(resource) {
            let count: i64 = sqlx::query_scalar(*sql).bind(id).fetch_one(&mut *tx).await.doing(doing)?;
            if count > 0 {
                let name =
                    old.get("name").and_then(Value::as_str).map_or_else(|| id.to_string(), str::to_owned);
                return Err(StoreError::Invalid {
                    field: None,
                    message: format!("{} {name} cannot be deleted: it has {count} {what}", resource.one()),
                });
            }
        }
        let mut query = QueryBuilder::new("DELETE FROM ");
        query.push(resource.table().name).push(" WHERE id = ").push_bind(id);
        query.build().execute(&mut *tx).await.doing(doing)?;
        let change = NewChange { who, resource, id, deed: Deed::Delete, old: Some(&old), new: None };
        history::keep(&mut tx, change).await?;
        tx.commit().await.doing(doing)
    }

    /// Adds what follows from a release's parts: the text by which it is found again, and its hash.
    async fn complete_release(&self, values: &mut Values, id: Option<i64>) -> Result<()> {
        let current = match id {
            Some(id) => Some(self.release(id).await?),
            None => None,
        };
        let text = |column: &str, now: Option<&str>| -> Option<String> {
            values.text(column).unwrap_or(now).map(str::to_owned)
        };
        let now = current.as_ref();
        let config = text("config_yaml", now.map(|r| r.config_yaml.as_str())).unwrap_or_default();
        let env = text("env_yaml", now.map(|r| r.env_yaml.as_str())).unwrap_or_default();
        let volumes = text("volumes", now.map(|r| r.volumes.as_str())).unwrap_or_else(|| "null".into());
        let run_as = text("run_as", now.map(|r| r.run_as.as_str())).unwrap_or_else(|| "nobody".into());
        let mem_limit = text("mem_limit", now.and_then(|r| r.mem_limit.as_deref()));
        let memsw_limit = text("memsw_limit", now.and_then(|r| r.memsw_limit.as_deref()));
        let build_id = values.columns.iter().find_map(|(name, datum)| match datum {
            Datum::Number(id) if *name == "build_id" => Some(*id),
            _ => None,
        });
        let build_id = build_id.or(now.map(|r| r.build_id)).ok_or_else(|| StoreError::Invalid {
            field: Some("build".into()),
            message: "build is required".into(),
        })?;

        let config = Value::Object(mapping("config_yaml", &config)?);
        let env = Value::Object(mapping("env_yaml", &env)?);
        let volumes = parse_volumes(&volumes)?;
        let (mem_limit, memsw_limit) = (mem_limit.as_deref(), memsw_limit.as_deref());
        let hash = self.build(build_id).await?.hash.map(|build_hash| {
            ReleaseParts {
                build_hash: Some(&build_hash),
                config: &config,
                env: &env,
                volumes: &volumes,
                run_as: &run_as,
                mem_limit,
                memsw_limit,
            }
            .hash()
        });
        let parts = parts_text(config.clone(), env.clone(), volumes.clone(), &run_as, mem_limit, memsw_limit);
        values.columns.push(("parts", Datum::Text(parts)));
        values.columns.push(("hash", hash.map_or(Datum::Null, Datum::Text)));
        Ok(())
    }
}
