//! Ports that are taken while a deploy is under way, and procs that are still to be deleted.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{Doing, Result, Store, StoreError};
use crate::time::{self, Millis};

/// The ports that procs may get, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl Default for PortRange {
    fn default() -> Self {
        Self { first: 5000, last: 5999 }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let bad = || format!("{text:?} is not a port range: expected FIRST-LAST, such as 5000-5999");
        let (first, last) = text.split_once('-').ok_or_else(bad)?;
        let (first, last) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
        if first == 0 || first > last {
            return Err(bad());
        }
        Ok(Self { first, last })
    }
}

/// A proc that is to be deleted again later.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct LateDelete {
    /// Its host.
    pub host: String,
    /// Its container name.
    pub proc: String,
    /// How often it was tried.
    pub tries: i64,
    /// The dispatch that wanted it gone.
    pub dispatch_id: String,
}

impl Store {
    /// Takes the lowest port of the range that is neither `used` on the host nor reserved by any dispatch,
    /// and keeps it reserved until [`Store::free_ports`].
    pub async fn reserve_port(
        &self,
        host: &str,
        range: PortRange,
        used: &BTreeSet<u16>,
        dispatch_id: &str,
    ) -> Result<u16> {
        let doing = "reserve a port";
        let mut tx = self.write(doing).await?;
        let reserved: Vec<i64> = sqlx::query_scalar("SELECT port FROM reserved_ports WHERE host = $1")
            .bind(host)
            .fetch_all(&mut *tx)
            .await
            .doing(doing)?;
        let port = (range.first..=range.last)
            .find(|port| !used.contains(port) && !reserved.contains(&i64::from(*port)))
            .ok_or_else(|| StoreError::NoPort { host: host.to_owned(), range })?;
        sqlx::query("INSERT INTO reserved_ports (host, port, dispatch_id, created) VALUES ($1, $2, $3, $4)")
            .bind(host)
            .bind(i64::from(port))
            .bind(dispatch_id)
            .bind(time::now())
            .execute(&mut *tx)
            .await
            .doing(doing)?;
        tx.commit().await.doing(doing)?;
        Ok(port)
    }

    /// Gives a dispatch's ports back.
    pub async fn free_ports(&self, dispatch_id: &str) -> Result<()> {
        sqlx::query("DELETE FROM reserved_ports WHERE dispatch_id = $1")
            .bind(dispatch_id)
            .execute(&self.pool)
            .await
            .doing("free ports")?;
        Ok(())
    }

    /// Remembers that a proc is to be deleted at `next_try`; a later call for the same proc replaces the earlier.
    pub async fn delete_later(&self, delete: &LateDelete, next_try: Millis) -> Result<()> {
        sqlx::query(
            "INSERT INTO late_deletes (host, proc, tries, next_try, dispatch_id) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (host, proc) DO UPDATE SET tries = excluded.tries, next_try = excluded.next_try",
        )
        .bind(&delete.host)
        .bind(&delete.proc)
        .bind(delete.tries)
        .bind(next_try)
        .bind(&delete.dispatch_id)
        .execute(&self.pool)
        .await
        .doing("remember a proc to delete")?;
        Ok(())
    }

    /// The procs whose next try is due.
    pub async fn due_deletes(&self) -> Result<Vec<LateDelete>> {
        sqlx::query_as(
            "SELECT host, proc, tries, dispatch_id FROM late_deletes WHERE next_try <= $1 ORDER BY next_try LIMIT 50",
        )
        .bind(time::now())
        .fetch_all(&self.pool)
        .await
        .doing("read procs to delete")
    }

    /// All procs that are still to be deleted, as (host, proc): nobody may count on one of them.
    pub async fn doomed(&self) -> Result<BTreeSet<(String, String)>> {
        let rows: Vec<(String, String)> = sqlx::query_as("SELECT host, proc FROM late_deletes")
            .fetch_all(&self.pool)
            .await
            .doing("read procs to delete")?;
        Ok(rows.into_iter().collect())
    }

    /// Forgets a proc that is gone or given up.
    pub async fn forget_delete(&self, host: &str, proc: &str) -> Result<()> {
        sqlx::query("DELETE FROM late_deletes WHERE host = $1 AND proc = $2")
            .bind(host)
            .bind(proc)
            .execute(&self.pool)
            .await
            .doing("forget a deleted proc")?;
        Ok(())
    }
}
