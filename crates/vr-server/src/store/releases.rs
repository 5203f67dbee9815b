//! Releases: a build with config, environment, volumes, user and limits.

use serde_json::{Value, json};
use vr_common::hash::{ReleaseParts, python_json};
use vr_common::yaml;

use super::{Doing, Result, Store, StoreError, SwarmRow};

/// A release and the facts of its build.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ReleaseRow {
    /// Its number.
    pub id: i64,
    /// Its build.
    pub build_id: i64,
    /// Compiled config, YAML text.
    pub config_yaml: String,
    /// Compiled environment, YAML text.
    pub env_yaml: String,
    /// Volumes, JSON text.
    pub volumes: String,
    /// The user.
    pub run_as: String,
    /// RAM.
    pub mem_limit: Option<String>,
    /// RAM and swap.
    pub memsw_limit: Option<String>,
    /// Set once the build has succeeded.
    pub hash: Option<String>,
}

/// Null for everything that says nothing: `{}`, `[]` and an empty text.
fn nothing_is_null(value: Value) -> Value {
    match &value {
        Value::Object(map) if map.is_empty() => Value::Null,
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::String(text) if text.is_empty() => Value::Null,
        _ => value,
    }
}

/// One text for all that a release is made of beside its build: two of the same are the same release.
pub(super) fn parts_text(
    config: Value,
    env: Value,
    volumes: Value,
    run_as: &str,
    mem_limit: Option<&str>,
    memsw_limit: Option<&str>,
) -> String {
    python_json(&json!([
        nothing_is_null(config),
        nothing_is_null(env),
        nothing_is_null(volumes),
        run_as,
        nothing_is_null(json!(mem_limit)),
        nothing_is_null(json!(memsw_limit)),
    ]))
}

pub(super) fn parse_volumes(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| StoreError::Invalid {
        field: Some("volumes".into()),
        message: format!("volumes: stored wrongly: {e}"),
    })
}

fn yaml_text(value: &Value) -> Result<String> {
    match value {
        Value::Object(map) if map.is_empty() => Ok(String::new()),
        _ => yaml::to_string(value).map_err(|e| StoreError::Invalid { field: None, message: e.to_string() }),
    }
}

impl Store {
    /// One release.
    pub async fn release(&self, id: i64) -> Result<ReleaseRow> {
        sqlx::query_as(
            "SELECT id, build_id, config_yaml, env_yaml, volumes, run_as, mem_limit, memsw_limit, hash
             FROM releases WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await
        .doing("read a release")?
        .ok_or_else(|| StoreError::NotFound { what: format!("release {id}") })
    }

    /// The release of a swarm's config on a build: the one there is, or a new one.
    /// Its hash is set as soon as the build has one.
    ///
    /// The swarm is at this release from now on; with `unless_moved`, only if its present version is none or that.
    pub async fn release_for(
        &self,
        swarm: &SwarmRow,
        build_id: i64,
        unless_moved: Option<&str>,
    ) -> Result<ReleaseRow> {
        let build = self.build(build_id).await?;
        let config = self.compiled_config(swarm).await?;
        let env = self.compiled_env(swarm, &build.env_yaml).await?;
        let volumes = parse_volumes(&swarm.volumes)?;
        let hash = build.hash.as_deref().map(|build_hash| {
            ReleaseParts {
                build_hash: Some(build_hash),
                config: &config,
                env: &env,
                volumes: &volumes,
                run_as: &swarm.run_as,
                mem_limit: swarm.mem_limit.as_deref(),
                memsw_limit: swarm.memsw_limit.as_deref(),
            }
            .hash()
        });
        let parts = parts_text(
            config.clone(),
            env.clone(),
            volumes,
            &swarm.run_as,
            swarm.mem_limit.as_deref(),
            swarm.memsw_limit.as_deref(),
        );

        let doing = "find or make a release";
        let mut tx = self.write(doing).await?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO releases
             (build_id, config_yaml, env_yaml, volumes, run_as, mem_limit, memsw_limit, parts, hash)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (build_id, parts) DO UPDATE SET hash = COALESCE(releases.hash, excluded.hash)
             RETURNING id",
        )
        .bind(build_id)
        .bind(yaml_text(&config)?)
        .bind(yaml_text(&env)?)
        .bind(&swarm.volumes)
        .bind(&swarm.run_as)
        .bind(&swarm.mem_limit)
        .bind(&swarm.memsw_limit)
        .bind(&parts)
        .bind(hash)
        .fetch_one(&mut *tx)
        .await
        .doing(doing)?;
        sqlx::query(
            "UPDATE swarms SET release_id = $1 WHERE id = $2 AND ($3 IS NULL OR release_id IS NULL OR EXISTS (
                 SELECT 1 FROM releases r JOIN builds b ON b.id = r.build_id
                 WHERE r.id = swarms.release_id AND b.tag = $3))",
        )
        .bind(id)
        .bind(swarm.id)
        .bind(unless_moved)
        .execute(&mut *tx)
        .await
        .doing(doing)?;
        tx.commit().await.doing(doing)?;
        self.release(id).await
    }

    /// Puts a swarm at a revision: at the release of its present config on the current build of that revision.
    pub async fn set_swarm_version(&self, swarm_id: i64, version: &str) -> Result<ReleaseRow> {
        let swarm = self.swarm(swarm_id).await?;
        let build_id = self.current_build(swarm.app_id, version).await?;
        self.release_for(&swarm, build_id, None).await
    }
}
