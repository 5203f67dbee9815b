//! Who changed what and when: every change made through the API.

use serde_json::{Map, Value};

use super::Resource;
use crate::store::{Doing, Result, Store, StoreError, Write};
use crate::time::{self, Millis};

/// What was done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// It was made.
    Create,
    /// It was changed.
    Update,
    /// It was deleted.
    Delete,
}

impl Deed {
    /// `create`, `update` or `delete`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// A change that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangeRow {
    /// Growing.
    pub id: i64,
    /// When.
    pub time: Millis,
    /// Who.
    pub username: String,
    /// `create`, `update` or `delete`.
    pub action: String,
    /// The object's fields before; null when it was made.
    pub old: Value,
    /// The object's fields after; null when it was deleted.
    pub new: Value,
}

/// A change that is to be kept.
#[derive(Debug)]
pub(super) struct NewChange<'a> {
    pub who: &'a str,
    pub resource: Resource,
    pub id: i64,
    pub deed: Deed,
    pub old: Option<&'a Map<String, Value>>,
    pub new: Option<&'a Map<String, Value>>,
}

/// Keeps a change in the transaction that makes it.
pub(super) async fn keep(tx: &mut Write, change: NewChange<'_>) -> Result<()> {
    let text = |fields: Option<&Map<String, Value>>| match fields {
        Some(fields) => Value::Object(fields.clone()).to_string(),
        None => "null".to_owned(),
    };
    sqlx::query(
        "INSERT INTO changes (time, username, resource, object, action, old, new)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(time::now())
    .bind(change.who)
    .bind(change.resource.name())
    .bind(change.id)
    .bind(change.deed.name())
    .bind(text(change.old))
    .bind(text(change.new))
    .execute(&mut **tx)
    .await
    .doing("record a change")?;
    Ok(())
}

type Raw = (i64, Millis, String, String, String, String);

impl Store {
    /// The changes of an object, newest first.
    pub async fn changes(
        &self,
        resource: Resource,
        id: i64,
        offset: i64,
        limit: i64,
    ) -> Result<Vec<ChangeRow>> {
        let rows: Vec<Raw> = sqlx::query_as(
            "SELECT id, time, username, action, old, new FROM changes WHERE resource = $1 AND object = $2
             ORDER BY id DESC LIMIT $3 OFFSET $4",
        )
        .bind(resource.name())
        .bind(id)
        .bind(limit)
        .bind(offset)
        .fetch_all(&self.pool)
        .await
        .doing("read changes")?;
        let parse = |text: &str| {
            serde_json::from_str(text).map_err(|e| StoreError::Invalid {
                field: None,
                message: format!("a change of {} is stored wrongly: {e}", resource.one()),
            })
        };
        rows.into_iter()
            .map(|(id, time, username, action, old, new)| {
                Ok(ChangeRow { id, time, username, action, old: parse(&old)?, new: parse(&new)? })
            })
            .collect()
    }

    /// How many changes of an object there are.
    pub async fn count_changes(&self, resource: Resource, id: i64) -> Result<i64> {
        sqlx::query_scalar("SELECT COUNT(*) FROM changes WHERE resource = $1 AND object = $2")
            .bind(resource.name())
            .bind(id)
            .fetch_one(&self.pool)
            .await
            .doing("count changes")
    }
}
