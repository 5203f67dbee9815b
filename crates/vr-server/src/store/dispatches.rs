//! Dispatches: persisted state machines that one worker at a time drives under a lease.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::builds::until;
use super::{Doing, Result, Store, StoreError, Write};
use crate::time::{self, Millis};

/// Where a dispatch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Asked for.
    Queued,
    /// The build is made or waited for.
    Building,
    /// The release is found or made.
    Releasing,
    /// Procs are placed and started.
    Deploying,
    /// Procs are tested.
    Uptesting,
    /// The pool gets the new nodes and loses the old.
    Routing,
    /// Old procs are deleted.
    Cleaning,
    /// All of it was done.
    Done,
    /// It ended early; what served before serves on.
    Failed,
    /// A newer one took its place.
    Cancelled,
}

impl State {
    /// All states, in order.
    pub const ALL: [Self; 10] = [
        Self::Queued,
        Self::Building,
        Self::Releasing,
        Self::Deploying,
        Self::Uptesting,
        Self::Routing,
        Self::Cleaning,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Whether nothing comes after it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// The state's name, as stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Building => "building",
            Self::Releasing => "releasing",
            Self::Deploying => "deploying",
            Self::Uptesting => "uptesting",
            Self::Routing => "routing",
            Self::Cleaning => "cleaning",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for State {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|state| state.name() == text).ok_or_else(|| StoreError::Invalid {
            field: Some("state".into()),
            message: format!("{text:?} is not a dispatch's state"),
        })
    }
}

/// The right to drive one thing for a while: a random token that every write has to show.
#[derive(Debug, Clone)]
pub struct Lease {
    pub(super) what: String,
    pub(super) token: String,
}

/// A dispatch that somebody asks for.
#[derive(Debug, Clone)]
pub struct NewDispatch<'a> {
    /// The swarm.
    pub swarm_id: i64,
    /// The revision.
    pub version: &'a str,
    /// The user.
    pub requested_by: &'a str,
}

/// A dispatch.
#[derive(Debug, Clone, PartialEq)]
pub struct DispatchRow {
    /// The trace id.
    pub id: String,
    /// The swarm.
    pub swarm_id: i64,
    /// The revision.
    pub version: String,
    /// Where it is.
    pub state: State,
    /// The user.
    pub requested_by: String,
    /// Why it failed.
    pub error: Option<String>,
    /// What the conductor remembers between two steps.
    pub memory: Value,
    /// When it was asked for.
    pub created: Millis,
    /// When it ended.
    pub finished: Option<Millis>,
}

#[derive(sqlx::FromRow)]
struct Raw {
    id: String,
    swarm_id: i64,
    version: String,
    state: String,
    requested_by: String,
    error: Option<String>,
    memory: String,
    created: Millis,
    finished: Option<Millis>,
}

impl TryFrom<Raw> for DispatchRow {
    type Error = StoreError;

    fn try_from(raw: Raw) -> Result<Self> {
        let memory = serde_json::from_str(&raw.memory).map_err(|e| StoreError::Invalid {
            field: Some("memory".into()),
            message: format!("the memory of dispatch {} is stored wrongly: {e}", raw.id),
        })?;
        Ok(Self {
            state: raw.state.parse()?,
            memory,
            id: raw.id,
            swarm_id: raw.swarm_id,
            version: raw.version,
            requested_by: raw.requested_by,
            error: raw.error,
            created: raw.created,
            finished: raw.finished,
        })
    }
}

/// A change of state.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct TransitionRow {
    /// When.
    pub time: Millis,
    /// The state it left.
    pub from_state: String,
    /// The state it reached.
    pub to_state: String,
    /// The user or worker.
    pub who: String,
    /// Why.
    pub why: String,
}

const DISPATCH: &str =
    "SELECT id, swarm_id, version, state, requested_by, error, memory, created, finished FROM dispatches";
const LIVE: &str = "state NOT IN ('done', 'failed', 'cancelled')";
/// What nobody else drives at time `$1` and worker `$2` does not drive itself: leases end by the wall clock,
/// which may jump, and a worker must not begin its own work twice.
pub(super) const FREE: &str =
    "(lease_until IS NULL OR (lease_until < $1 AND (lease_owner IS NULL OR lease_owner <> $2)))";

async fn record(tx: &mut Write, id: &str, from: &str, to: State, who: &str, why: &str) -> Result<()> {
    sqlx::query(
        "INSERT INTO transitions (dispatch_id, time, from_state, to_state, who, why)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(id)
    .bind(time::now())
    .bind(from)
    .bind(to.name())
    .bind(who)
    .bind(why)
    .execute(&mut **tx)
    .await
    .doing("record a transition")?;
    Ok(())
}

impl Store {
    /// Queues a dispatch and gives its trace id. One of the same swarm that nobody has begun yet
    /// is cancelled: the newer wish is the one that counts.
    pub async fn add_dispatch(&self, new: NewDispatch<'_>) -> Result<String> {
        let doing = "queue a dispatch";
        let id = Uuid::new_v4().simple().to_string();
        let now = time::now();
        let mut tx = self.write(doing).await?;
        let waiting: Vec<String> = sqlx::query_scalar(
            "UPDATE dispatches SET state = 'cancelled', finished = $1, error = $2
             WHERE swarm_id = $3 AND state = 'queued' AND lease_token IS NULL RETURNING id",
        )
        .bind(now)
        .bind(format!("a newer dispatch ({id}) took its place"))
        .bind(new.swarm_id)
        .fetch_all(&mut *tx)
        .await
        .doing(doing)?;
        for old in waiting {
            let why = format!("a newer dispatch ({id}) took its place");
            record(&mut tx, &old, "queued", State::Cancelled, new.requested_by, &why).await?;
        }
        sqlx::query(
            "INSERT INTO dispatches (id, swarm_id, version, requested_by, created) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(&id)
        .bind(new.swarm_id)
        .bind(new.version)
        .bind(new.requested_by)
        .bind(now)
        .execute(&mut *tx)
        .await
        .doing(doing)?;
        record(&mut tx, &id, "", State::Queued, new.requested_by, "asked for").await?;
        tx.commit().await.doing(doing)?;
        Ok(id)
    }

    /// One dispatch.
    pub async fn dispatch(&self, id: &str) -> Result<DispatchRow> {
        let raw: Option<Raw> = sqlx::query_as(sqlx::AssertSqlSafe(format!("{DISPATCH} WHERE id = $1")))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .doing("read a dispatch")?;
        raw.ok_or_else(|| StoreError::NotFound { what: format!("dispatch {id}") })?.try_into()
    }

    /// Dispatches, newest first; of one swarm if asked.
    pub async fn dispatches(
        &self,
        swarm_id: Option<i64>,
        offset: i64,
        limit: i64,
    ) -> Result<Vec<DispatchRow>> {
        let sql =
            format!("{DISPATCH} WHERE $1 IS NULL OR swarm_id = $1 ORDER BY seq DESC LIMIT $2 OFFSET $3");
        let rows: Vec<Raw> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(swarm_id)
            .bind(limit)
            .bind(offset)
            .fetch_all(&self.pool)
            .await
            .doing("read dispatches")?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// How many dispatches there are; of one swarm if asked.
    pub async fn count_dispatches(&self, swarm_id: Option<i64>) -> Result<i64> {
        sqlx::query_scalar("SELECT COUNT(*) FROM dispatches WHERE $1 IS NULL OR swarm_id = $1")
            .bind(swarm_id)
            .fetch_one(&self.pool)
            .await
            .doing("count dispatches")
    }

    /// A dispatch's changes of state, oldest first.
    pub async fn transitions(&self, id: &str) -> Result<Vec<TransitionRow>> {
        sqlx::query_as(
            "SELECT time, from_state, to_state, who, why FROM transitions WHERE dispatch_id = $1 ORDER BY id",
        )
        .bind(id)
        .fetch_all(&self.pool)
        .await
        .doing("read transitions")
    }

    /// Takes the longest waiting dispatch that nobody drives. Dispatches of one swarm go one after the other.
    pub async fn lease_dispatch(&self, owner: &str, ttl: Duration) -> Result<Option<(DispatchRow, Lease)>> {
        let doing = "lease a dispatch";
        let now = time::now();
        let mut tx = self.write(doing).await?;
        let sql = format!(
            "SELECT id FROM dispatches d WHERE {LIVE} AND {FREE}
             AND NOT EXISTS (SELECT 1 FROM dispatches o WHERE o.swarm_id = d.swarm_id AND o.seq < d.seq
                             AND o.{LIVE})
             ORDER BY seq LIMIT 1"
        );
        let found: Option<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .bind(now)
            .bind(owner)
            .fetch_optional(&mut *tx)
            .await
            .doing(doing)?;
        let Some(id) = found else { return Ok(None) };
        let lease = Lease::new(format!("dispatch {id}"));
        sqlx::query(
            "UPDATE dispatches SET lease_owner = $1, lease_token = $2, lease_until = $3 WHERE id = $4",
        )
        .bind(owner)
        .bind(lease.token())
        .bind(until(now, ttl))
        .bind(&id)
        .execute(&mut *tx)
        .await
        .doing(doing)?;
        tx.commit().await.doing(doing)?;
        Ok(Some((self.dispatch(&id).await?, lease)))
    }

    /// Keeps a dispatch's lease for another `ttl`.
    pub async fn renew_dispatch(&self, id: &str, lease: &Lease, ttl: Duration) -> Result<()> {
        let done = sqlx::query("UPDATE dispatches SET lease_until = $1 WHERE id = $2 AND lease_token = $3")
            .bind(until(time::now(), ttl))
            .bind(id)
            .bind(lease.token())
            .execute(&self.pool)
            .await
            .doing("renew a dispatch's lease")?;
        lease.held(done.rows_affected())
    }

    /// Ends a lease before the work is done, so that somebody takes the work again after a pause.
    /// Nothing happens when the lease is lost or the dispatch over.
    pub async fn give_back_dispatch(&self, id: &str, lease: &Lease, pause: Duration) -> Result<()> {
        sqlx::query(
            "UPDATE dispatches SET lease_owner = NULL, lease_token = NULL, lease_until = $1
             WHERE id = $2 AND lease_token = $3",
        )
        .bind(until(time::now(), pause))
        .bind(id)
        .bind(lease.token())
        .execute(&self.pool)
        .await
        .doing("give a dispatch back")?;
        Ok(())
    }

    /// Writes what the conductor remembers of a dispatch.
    pub async fn remember(&self, id: &str, lease: &Lease, memory: &Value) -> Result<()> {
        let done = sqlx::query("UPDATE dispatches SET memory = $1 WHERE id = $2 AND lease_token = $3")
            .bind(memory.to_string())
            .bind(id)
            .bind(lease.token())
            .execute(&self.pool)
            .await
            .doing("remember a dispatch's step")?;
        lease.held(done.rows_affected())
    }

    /// Moves a dispatch from one state to the next; the last one ends the lease and gives its ports back.
    pub async fn transition(
        &self,
        dispatch: &DispatchRow,
        lease: &Lease,
        to: State,
        who: &str,
        why: &str,
    ) -> Result<()> {
        let doing = "move a dispatch on";
        let mut tx = self.write(doing).await?;
        let done = sqlx::query(
            "UPDATE dispatches SET state = $1, finished = $2, error = $3
             WHERE id = $4 AND state = $5 AND lease_token = $6",
        )
        .bind(to.name())
        .bind(to.is_over().then(time::now))
        .bind((to == State::Failed).then_some(why))
        .bind(&dispatch.id)
        .bind(dispatch.state.name())
        .bind(lease.token())
        .execute(&mut *tx)
        .await
        .doing(doing)?;
        lease.held(done.rows_affected())?;
        record(&mut tx, &dispatch.id, dispatch.state.name(), to, who, why).await?;
        if to.is_over() {
            sqlx::query(
                "UPDATE dispatches SET lease_owner = NULL, lease_token = NULL, lease_until = NULL WHERE id = $1",
            )
            .bind(&dispatch.id)
            .execute(&mut *tx)
            .await
            .doing(doing)?;
            sqlx::query("DELETE FROM reserved_ports WHERE dispatch_id = $1")
                .bind(&dispatch.id)
                .execute(&mut *tx)
                .await
                .doing(doing)?;
        }
        tx.commit().await.doing(doing)
    }

    /// Ends all leases of an owner that is known to be dead, so that nobody has to wait for them to run out.
    pub async fn end_leases_of(&self, owner: &str) -> Result<()> {
        let doing = "end a dead worker's leases";
        let mut tx = self.write(doing).await?;
        for table in ["dispatches", "builds"] {
            let sql = format!(
                "UPDATE {table} SET lease_owner = NULL, lease_token = NULL, lease_until = NULL
                 WHERE lease_owner = $1"
            );
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(owner).execute(&mut *tx).await.doing(doing)?;
        }
        tx.commit().await.doing(doing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    async fn store() -> (tempfile::TempDir, Store, i64) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let mut tx = store.write("test").await.unwrap();
        for sql in [
            "INSERT INTO apps (name, repo_url) VALUES ('a', '/r')",
            "INSERT INTO squads (name) VALUES ('s')",
            "INSERT INTO swarms (app_id, config_name, proc_name, squad_id) VALUES (1, 'c', 'web', 1)",
        ] {
            sqlx::query(sql).execute(&mut *tx).await.unwrap();
        }
        tx.commit().await.unwrap();
        (dir, store, 1)
    }

    fn new(swarm_id: i64) -> NewDispatch<'static> {
        NewDispatch { swarm_id, version: "v1", requested_by: "admin" }
    }

    #[tokio::test]
    async fn a_dispatch_has_one_driver_and_swarms_go_one_by_one() {
        let (_dir, store, swarm) = store().await;
        let first = store.add_dispatch(new(swarm)).await.unwrap();
        let (dispatch, lease) = store.lease_dispatch("w1", TTL).await.unwrap().unwrap();
        assert_eq!(dispatch.id, first);
        let second = store.add_dispatch(new(swarm)).await.unwrap();
        assert!(store.lease_dispatch("w2", TTL).await.unwrap().is_none());
        store.transition(&dispatch, &lease, State::Failed, "w1", "no").await.unwrap();
        let (next, _) = store.lease_dispatch("w2", TTL).await.unwrap().unwrap();
        assert_eq!(next.id, second);
        let ended = store.dispatch(&first).await.unwrap();
        assert_eq!((ended.state, ended.error.as_deref()), (State::Failed, Some("no")));
    }

    #[tokio::test]
    async fn a_worker_that_lost_its_lease_can_do_nothing() {
        let (_dir, store, swarm) = store().await;
        store.add_dispatch(new(swarm)).await.unwrap();
        let (dispatch, old) = store.lease_dispatch("w1", Duration::ZERO).await.unwrap().unwrap();
        // A lease of no length is over in the next millisecond.
        let (_, lease) = loop {
            if let Some(taken) = store.lease_dispatch("w2", TTL).await.unwrap() {
                break taken;
            }
        };
        let lost = |result: Result<()>| matches!(result, Err(StoreError::LostLease { .. }));
        assert!(lost(store.renew_dispatch(&dispatch.id, &old, TTL).await));
        assert!(lost(store.remember(&dispatch.id, &old, &Value::Null).await));
        assert!(lost(store.transition(&dispatch, &old, State::Building, "w1", "").await));
        store.transition(&dispatch, &lease, State::Building, "w2", "").await.unwrap();
        // Nor can the right worker take a step twice.
        assert!(lost(store.transition(&dispatch, &lease, State::Building, "w2", "").await));
    }

    #[tokio::test]
    async fn a_waiting_dispatch_gives_way_to_a_newer_one() {
        let (_dir, store, swarm) = store().await;
        let first = store.add_dispatch(new(swarm)).await.unwrap();
        let second = store.add_dispatch(new(swarm)).await.unwrap();
        assert_eq!(store.dispatch(&first).await.unwrap().state, State::Cancelled);
        assert_eq!(store.lease_dispatch("w", TTL).await.unwrap().unwrap().0.id, second);
        let last = store.transitions(&first).await.unwrap().pop().unwrap();
        assert_eq!((last.from_state.as_str(), last.to_state.as_str()), ("queued", "cancelled"));
    }

    #[tokio::test]
    async fn leases_of_the_dead_end_at_once() {
        let (_dir, store, swarm) = store().await;
        let id = store.add_dispatch(new(swarm)).await.unwrap();
        store.lease_dispatch("here", TTL).await.unwrap().unwrap();
        store.end_leases_of("here").await.unwrap();
        assert_eq!(store.lease_dispatch("here", TTL).await.unwrap().unwrap().0.id, id);
    }

    #[tokio::test]
    async fn ports_are_never_given_twice_until_they_run_out() {
        let (_dir, store, _) = store().await;
        let range = "5000-5003".parse().unwrap();
        let used = [5001].into();
        let mut got = Vec::new();
        for _ in 0..3 {
            got.push(store.reserve_port("h", range, &used, "d").await.unwrap());
        }
        assert_eq!(got, [5000, 5002, 5003]);
        let error = store.reserve_port("h", range, &used, "d").await.unwrap_err();
        assert_eq!(error.to_string(), "all ports of 5000-5003 are in use on host h");
        assert_eq!(store.reserve_port("other", range, &used, "d").await.unwrap(), 5000);
        store.free_ports("d").await.unwrap();
        assert_eq!(store.reserve_port("h", range, &used, "e").await.unwrap(), 5000);
    }
}
