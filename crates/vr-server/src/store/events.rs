//! The events that are kept.

use super::{Doing, Result, Store};
use crate::time::Millis;

/// One kept event.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct EventRow {
    /// Growing.
    pub id: i64,
    /// When it happened.
    pub time: Millis,
    /// JSON text of a [`vr_common::events::Event`].
    pub data: String,
}

/// How many events are kept.
const KEPT: i64 = 10_000;

impl Store {
    /// Keeps an event and gives its id; the oldest make room.
    pub async fn add_event(&self, time: Millis, data: &str) -> Result<i64> {
        let doing = "store an event";
        let mut tx = self.write(doing).await?;
        let id: i64 = sqlx::query_scalar("INSERT INTO events (time, data) VALUES ($1, $2) RETURNING id")
            .bind(time)
            .bind(data)
            .fetch_one(&mut *tx)
            .await
            .doing(doing)?;
        sqlx::query("DELETE FROM events WHERE id <= $1")
            .bind(id - KEPT)
            .execute(&mut *tx)
            .await
            .doing(doing)?;
        tx.commit().await.doing(doing)?;
        Ok(id)
    }

    /// The newest events after `after`, newest first.
    pub async fn events(&self, after: i64, offset: i64, limit: i64) -> Result<Vec<EventRow>> {
        sqlx::query_as("SELECT id, time, data FROM events WHERE id > $1 ORDER BY id DESC LIMIT $2 OFFSET $3")
            .bind(after)
            .bind(limit)
            .bind(offset)
            .fetch_all(&self.pool)
            .await
            .doing("read events")
    }

    /// How many events are kept.
    pub async fn count_events(&self) -> Result<i64> {
        sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&self.pool).await.doing("count events")
    }
}
