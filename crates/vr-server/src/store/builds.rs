//! Builds and who is at them.

use std::time::Duration;

use uuid::Uuid;

use super::dispatches::FREE;
use super::{Doing, Lease, Result, Store, StoreError};
use crate::time::{self, Millis};

/// A build.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct BuildRow {
    /// Its number.
    pub id: i64,
    /// Its app.
    pub app_id: i64,
    /// Its app's name.
    pub app_name: String,
    /// Where the app's code is.
    pub repo_url: String,
    /// `git` or `hg`.
    pub repo_type: String,
    /// The app's own buildpack.
    pub app_buildpack: Option<String>,
    /// The revision.
    pub tag: String,
    /// The OS image it was compiled in.
    pub os_image: Option<String>,
    /// `pending`, `started`, `success`, `failed` or `expired`.
    pub status: String,
    /// The tarball's path below `/files/`.
    pub file: Option<String>,
    /// Its md5 sum.
    pub file_md5: Option<String>,
    /// Of the tarball and the image.
    pub hash: Option<String>,
    /// The buildpack's `config_vars`.
    pub env_yaml: String,
    /// The buildpack that matched.
    pub buildpack_url: Option<String>,
    /// Its revision.
    pub buildpack_version: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildOutcome {
    /// There is a tarball.
    Success {
        /// Its path below `/files/`.
        file: String,
        /// Its md5 sum.
        file_md5: String,
        /// The log's path below `/files/`.
        compile_log: Option<String>,
        /// The build's hash.
        hash: String,
        /// The buildpack's `config_vars`, YAML text.
        env_yaml: String,
        /// The buildpack that matched.
        buildpack_url: Option<String>,
        /// Its revision.
        buildpack_version: Option<String>,
    },
    /// There is none.
    Failed {
        /// Why, one sentence.
        error: String,
        /// The log's path below `/files/`.
        compile_log: Option<String>,
    },
}

const BUILD: &str = "SELECT b.id, b.app_id, a.name AS app_name, a.repo_url, a.repo_type,
    p.repo_url AS app_buildpack, b.tag, b.os_image, b.status, b.file, b.file_md5, b.hash, b.env_yaml,
    b.buildpack_url, b.buildpack_version, b.error
    FROM builds b JOIN apps a ON a.id = b.app_id LEFT JOIN buildpacks p ON p.id = a.buildpack_id";

impl Store {
    /// One build.
    pub async fn build(&self, id: i64) -> Result<BuildRow> {
        sqlx::query_as(sqlx::AssertSqlSafe(format!("{BUILD} WHERE b.id = $1")))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .doing("read a build")?
            .ok_or_else(|| StoreError::NotFound { what: format!("build {id}") })
    }

    /// The current build of an app at a revision: the newest that is neither failed nor expired;
    /// a new, pending one when there is none.
    pub async fn current_build(&self, app_id: i64, tag: &str) -> Result<i64> {
        let doing = "find a build";
        let mut tx = self.write(doing).await?;
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM builds WHERE app_id = $1 AND tag = $2 AND os_image IS NULL
             AND status NOT IN ('failed', 'expired') ORDER BY id DESC LIMIT 1",
        )
        .bind(app_id)
        .bind(tag)
        .fetch_optional(&mut *tx)
        .await
        .doing(doing)?;
        let id = match found {
            Some(id) => id,
            None => sqlx::query_scalar("INSERT INTO builds (app_id, tag) VALUES ($1, $2) RETURNING id")
                .bind(app_id)
                .bind(tag)
                .fetch_one(&mut *tx)
                .await
                .doing(doing)?,
        };
        tx.commit().await.doing(doing)?;
        Ok(id)
    }

    /// Asks for a build to be built and gives the build that will be: the same one, or a new one of the same
    /// app and revision when `again` is set and the old one has succeeded, as releases are made of that one.
    /// A build that is queued or under way stays so; one that failed is tried again only when `again` is set.
    pub async fn queue_build(&self, id: i64, again: bool) -> Result<i64> {
        let doing = "queue a build";
        let mut tx = self.write(doing).await?;
        let status: Option<String> = sqlx::query_scalar("SELECT status FROM builds WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut *tx)
            .await
            .doing(doing)?;
        let status = status.ok_or_else(|| StoreError::NotFound { what: format!("build {id}") })?;
        let id = match (status.as_str(), again) {
            ("success", true) => sqlx::query_scalar(
                "INSERT INTO builds (app_id, tag, os_image)
                 SELECT app_id, tag, os_image FROM builds WHERE id = $1 RETURNING id",
            )
            .bind(id)
            .fetch_one(&mut *tx)
            .await
            .doing(doing)?,
            ("pending", _) | ("failed" | "expired", true) => id,
            _ => return Ok(id),
        };
        sqlx::query(
            "UPDATE builds SET status = 'pending', queued = $1, error = NULL WHERE id = $2 AND queued IS NULL",
        )
        .bind(time::now())
        .bind(id)
        .execute(&mut *tx)
        .await
        .doing(doing)?;
        tx.commit().await.doing(doing)?;
        Ok(id)
    }

    /// Takes the longest waiting build, or one whose worker has died.
    pub async fn lease_build(&self, owner: &str, ttl: Duration) -> Result<Option<(BuildRow, Lease)>> {
        let doing = "lease a build";
        let now = time::now();
        let mut tx = self.write(doing).await?;
        let sql =
            format!("SELECT id FROM builds WHERE queued IS NOT NULL AND {FREE} ORDER BY queued, id LIMIT 1");
        let found: Option<i64> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .bind(now)
            .bind(owner)
            .fetch_optional(&mut *tx)
            .await
            .doing(doing)?;
        let Some(id) = found else { return Ok(None) };
        let lease = Lease::new(format!("build {id}"));
        sqlx::query(
            "UPDATE builds SET status = 'started', start_time = $1, end_time = NULL,
             lease_owner = $2, lease_token = $3, lease_until = $4 WHERE id = $5",
        )
        .bind(now)
        .bind(owner)
        .bind(lease.token())
        .bind(until(now, ttl))
        .bind(id)
        .execute(&mut *tx)
        .await
        .doing(doing)?;
        tx.commit().await.doing(doing)?;
        Ok(Some((self.build(id).await?, lease)))
    }

    /// Keeps a build's lease for another `ttl`.
    pub async fn renew_build(&self, id: i64, lease: &Lease, ttl: Duration) -> Result<()> {
        let now = time::now();
        let done = sqlx::query("UPDATE builds SET lease_until = $1 WHERE id = $2 AND lease_token = $3")
            .bind(until(now, ttl))
            .bind(id)
            .bind(lease.token())
            .execute(&self.pool)
            .await
            .doing("renew a build's lease")?;
        lease.held(done.rows_affected())
    }

    /// Ends a build's lease before it is built, so that somebody builds it after a pause.
    /// Nothing happens when the lease is lost or the build has ended.
    pub async fn give_back_build(&self, id: i64, lease: &Lease, pause: Duration) -> Result<()> {
        sqlx::query(
            "UPDATE builds SET lease_owner = NULL, lease_token = NULL, lease_until = $1
             WHERE id = $2 AND lease_token = $3",
        )
        .bind(until(time::now(), pause))
        .bind(id)
        .bind(lease.token())
        .execute(&self.pool)
        .await
        .doing("give a build back")?;
        Ok(())
    }

    /// Writes how a build ended, and ends the lease.
    pub async fn finish_build(&self, id: i64, lease: &Lease, outcome: &BuildOutcome) -> Result<()> {
        let doing = "finish a build";
        let query = match outcome {
            BuildOutcome::Success {
                file,
                file_md5,
                compile_log,
                hash,
                env_yaml,
                buildpack_url,
                buildpack_version,
            } => sqlx::query(
                "UPDATE builds SET status = 'success', end_time = $1, file = $2, file_md5 = $3, compile_log = $4,
                 hash = $5, env_yaml = $6, buildpack_url = $7, buildpack_version = $8, error = NULL,
                 queued = NULL, lease_owner = NULL, lease_token = NULL, lease_until = NULL
                 WHERE id = $9 AND lease_token = $10",
            )
            .bind(time::now())
            .bind(file)
            .bind(file_md5)
            .bind(compile_log)
            .bind(hash)
            .bind(env_yaml)
            .bind(buildpack_url)
            .bind(buildpack_version),
            BuildOutcome::Failed { error, compile_log } => sqlx::query(
                "UPDATE builds SET status = 'failed', end_time = $1, error = $2, compile_log = $3,
                 queued = NULL, lease_owner = NULL, lease_token = NULL, lease_until = NULL
                 WHERE id = $4 AND lease_token = $5",
            )
            .bind(time::now())
            .bind(error)
            .bind(compile_log),
        };
        let done = query.bind(id).bind(lease.token()).execute(&self.pool).await.doing(doing)?;
        lease.held(done.rows_affected())
    }

    /// The buildpacks that are tried for an app without its own, in order.
    pub async fn buildpack_urls(&self) -> Result<Vec<String>> {
        sqlx::query_scalar("SELECT repo_url FROM buildpacks ORDER BY position, id")
            .fetch_all(&self.pool)
            .await
            .doing("read buildpacks")
    }
}

/// When a lease that is taken now ends.
pub(super) fn until(now: Millis, ttl: Duration) -> Millis {
    now.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
}

impl Lease {
    pub(super) fn new(what: String) -> Self {
        Self { what, token: Uuid::new_v4().to_string() }
    }

    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// An error unless the guarded statement found its row.
    pub(super) fn held(&self, rows: u64) -> Result<()> {
        if rows == 1 { Ok(()) } else { Err(StoreError::LostLease { what: self.what.clone() }) }
    }
}
