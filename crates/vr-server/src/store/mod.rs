//! The store of desires: the only place that knows SQL.
//!
//! One SQLite file in write-ahead mode. Times are Unix milliseconds, documents JSON as text. Every method is
//! one transaction; those that write begin as writers, so that two of them wait for each other instead of failing.

mod builds;
mod dispatches;
mod events;
mod ports;
mod releases;
pub mod resources;
mod swarms;
mod users;

use std::path::Path;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use thiserror::Error;

pub use builds::{BuildOutcome, BuildRow};
pub use dispatches::{DispatchRow, Lease, NewDispatch, State, TransitionRow};
pub use events::EventRow;
pub use ports::{LateDelete, PortRange};
pub use releases::ReleaseRow;
pub use swarms::{HostRow, SwarmRow};

/// Why the store could not do something.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the database failed while it was to {doing}")]
    Database {
        /// What was being done, such as `read swarm 3`.
        doing: String,
        /// Why.
        source: sqlx::Error,
    },
    /// The file cannot be opened or its schema not be brought up to date.
    #[error("cannot open the database {path}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no such thing.
    #[error("there is no {what}")]
    NotFound {
        /// Such as `swarm 3`.
        what: String,
    },
    /// The caller's lease is over; another worker may be at it.
    #[error("lost the lease on {what}")]
    LostLease {
        /// Such as `dispatch 1234`.
        what: String,
    },
    /// A value cannot be stored or is stored wrongly.
    #[error("{message}")]
    Invalid {
        /// The field, when it is one.
        field: Option<String>,
        /// What is wrong with it.
        message: String,
    },
    /// No port is left for a proc.
    #[error("all ports of {range} are in use on host {host}")]
    NoPort {
        /// The host.
        host: String,
        /// The range, such as `5000-5999`.
        range: PortRange,
    },
}

/// Short for what every method gives.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Adds what was being done to a database error.
trait Doing<T> {
    fn doing(self, doing: &str) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, sqlx::Error> {
    fn doing(self, doing: &str) -> Result<T> {
        self.map_err(|source| StoreError::Database { doing: doing.to_owned(), source })
    }
}

/// A writing transaction.
type Write = sqlx::Transaction<'static, sqlx::Sqlite>;

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Opens the file, makes it when it is missing, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
            path: path.display().to_string(),
            source,
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(20));
        let pool = SqlitePoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options)
            .await
            .map_err(|e| failed(e.into()))?;
        sqlx::migrate!("migrations/sqlite").run(&pool).await.map_err(|e| failed(e.into()))?;
        Ok(Self { pool })
    }

    async fn write(&self, doing: &str) -> Result<Write> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.doing(doing)
    }

    /// Writes everything to the file and closes it.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

#[cfg(test)]
impl Store {
    /// Runs a statement that sets a test's scene.
    pub(crate) async fn execute_for_tests(&self, sql: &str) {
        sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.expect(sql);
    }
}
