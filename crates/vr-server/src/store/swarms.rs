//! Swarms, their squads' hosts, and what their config compiles to.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vr_common::yaml;

use super::{Doing, Result, Store, StoreError};

/// A swarm with the names of what it refers to.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow, Serialize, Deserialize)]
pub struct SwarmRow {
    /// Its number.
    pub id: i64,
    /// Its app.
    pub app_id: i64,
    /// Its app's name.
    pub app_name: String,
    /// The release it is at.
    pub release_id: Option<i64>,
    /// The revision of that release.
    pub version: Option<String>,
    /// The deployment.
    pub config_name: String,
    /// The Procfile's entry.
    pub proc_name: String,
    /// Its squad.
    pub squad_id: i64,
    /// Its squad's name.
    pub squad_name: String,
    /// How many procs it wants.
    pub size: i64,
    /// The balancer's pool.
    pub pool: Option<String>,
    /// The balancer.
    pub balancer: Option<String>,
    /// Its own config, YAML text.
    pub config_yaml: String,
    /// Its own environment, YAML text.
    pub env_yaml: String,
    /// Volumes, JSON text.
    pub volumes: String,
    /// The user.
    pub run_as: String,
    /// RAM.
    pub mem_limit: Option<String>,
    /// RAM and swap.
    pub memsw_limit: Option<String>,
}

impl SwarmRow {
    /// `{app}-{config}-{proc}`, the name that operators use.
    pub fn cli_name(&self) -> String {
        format!("{}-{}-{}", self.app_name, self.config_name, self.proc_name)
    }

    /// `{app}-{version}-{config}-{proc}`.
    pub fn shortname(&self) -> String {
        let version = self.version.as_deref().unwrap_or("UNKNOWN");
        format!("{}-{version}-{}-{}", self.app_name, self.config_name, self.proc_name)
    }
}

/// A host.
#[derive(Debug, Clone, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct HostRow {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Whether new procs may be put on it.
    pub active: bool,
    /// Its squad.
    pub squad_id: Option<i64>,
    /// Where its agent answers, when it is not at the usual place.
    pub agent_url: Option<String>,
    /// How to talk to it, `agent` or `supervisor`; none to find out.
    pub driver: Option<String>,
    /// How to talk to it as it was found out.
    pub found_driver: Option<String>,
    /// Where it was found.
    pub found_url: Option<String>,
    /// When it was found, in Unix milliseconds.
    pub found_at: Option<i64>,
}

/// The columns of a [`HostRow`].
const HOST: &str =
    "SELECT id, name, active, squad_id, agent_url, driver, found_driver, found_url, found_at FROM hosts";

const SWARM: &str =
    "SELECT s.id, s.app_id, a.name AS app_name, s.release_id, b.tag AS version, s.config_name,
    s.proc_name, s.squad_id, q.name AS squad_name, s.size, s.pool, s.balancer, s.config_yaml, s.env_yaml,
    s.volumes, s.run_as, s.mem_limit, s.memsw_limit
    FROM swarms s JOIN apps a ON a.id = s.app_id JOIN squads q ON q.id = s.squad_id
    LEFT JOIN releases r ON r.id = s.release_id LEFT JOIN builds b ON b.id = r.build_id";

impl Store {
    /// One swarm.
    pub async fn swarm(&self, id: i64) -> Result<SwarmRow> {
        sqlx::query_as(sqlx::AssertSqlSafe(format!("{SWARM} WHERE s.id = $1")))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .doing("read a swarm")?
            .ok_or_else(|| StoreError::NotFound { what: format!("swarm {id}") })
    }

    /// All swarms, by name.
    pub async fn swarms(&self) -> Result<Vec<SwarmRow>> {
        let sql = format!("{SWARM} ORDER BY a.name, s.config_name, s.proc_name, s.id");
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool).await.doing("read swarms")
    }

    /// The names and texts of a swarm's ingredients, in order: (config, env).
    async fn ingredient_texts(&self, swarm_id: i64) -> Result<Vec<(String, String, String)>> {
        sqlx::query_as(
            "SELECT i.name, i.config_yaml, i.env_yaml FROM swarm_ingredients m
             JOIN ingredients i ON i.id = m.ingredient_id WHERE m.swarm_id = $1 ORDER BY m.position",
        )
        .bind(swarm_id)
        .fetch_all(&self.pool)
        .await
        .doing("read a swarm's ingredients")
    }

    /// A swarm's config: its ingredients' in order, then its own; a shallow merge.
    pub async fn compiled_config(&self, swarm: &SwarmRow) -> Result<Value> {
        let mut merged = Map::new();
        for (name, config, _) in self.ingredient_texts(swarm.id).await? {
            merged.extend(mapping(&format!("config_yaml of ingredient {name}"), &config)?);
        }
        merged.extend(mapping("config_yaml", &swarm.config_yaml)?);
        Ok(Value::Object(merged))
    }

    /// A swarm's environment: the build's, then its ingredients' in order, then its own; a shallow merge.
    pub async fn compiled_env(&self, swarm: &SwarmRow, build_env_yaml: &str) -> Result<Value> {
        let mut merged = mapping("env_yaml of the build", build_env_yaml)?;
        for (name, _, env) in self.ingredient_texts(swarm.id).await? {
            merged.extend(mapping(&format!("env_yaml of ingredient {name}"), &env)?);
        }
        merged.extend(mapping("env_yaml", &swarm.env_yaml)?);
        Ok(Value::Object(merged))
    }

    /// All hosts, by name.
    pub async fn hosts(&self) -> Result<Vec<HostRow>> {
        sqlx::query_as(sqlx::AssertSqlSafe(format!("{HOST} ORDER BY name")))
            .fetch_all(&self.pool)
            .await
            .doing("read hosts")
    }

    /// A squad's hosts, by name.
    pub async fn hosts_of_squad(&self, squad_id: i64) -> Result<Vec<HostRow>> {
        sqlx::query_as(sqlx::AssertSqlSafe(format!("{HOST} WHERE squad_id = $1 ORDER BY name")))
            .bind(squad_id)
            .fetch_all(&self.pool)
            .await
            .doing("read a squad's hosts")
    }

    /// Remembers how a host is talked to, as it was found out just now.
    pub async fn remember_driver(&self, host_id: i64, driver: &str, url: &str, now: i64) -> Result<()> {
        sqlx::query("UPDATE hosts SET found_driver = $1, found_url = $2, found_at = $3 WHERE id = $4")
            .bind(driver)
            .bind(url)
            .bind(now)
            .bind(host_id)
            .execute(&self.pool)
            .await
            .doing("remember how a host is talked to")?;
        Ok(())
    }

    /// Makes sure that a host of this name exists and that its agent is looked for at `agent_url`;
    /// a new host joins the squad, which is made as well.
    pub async fn ensure_host(&self, name: &str, squad: &str, agent_url: &str) -> Result<()> {
        let doing = "register a host";
        let known: Option<String> =
            sqlx::query_scalar("SELECT agent_url FROM hosts WHERE name = $1 AND agent_url = $2")
                .bind(name)
                .bind(agent_url)
                .fetch_optional(&self.pool)
                .await
                .doing(doing)?;
        if known.is_some() {
            return Ok(());
        }
        let mut tx = self.write(doing).await?;
        let updated = sqlx::query("UPDATE hosts SET agent_url = $1 WHERE name = $2")
            .bind(agent_url)
            .bind(name)
            .execute(&mut *tx)
            .await
            .doing(doing)?;
        if updated.rows_affected() == 0 {
            sqlx::query("INSERT INTO squads (name) VALUES ($1) ON CONFLICT (name) DO NOTHING")
                .bind(squad)
                .execute(&mut *tx)
                .await
                .doing(doing)?;
            sqlx::query(
                "INSERT INTO hosts (name, active, squad_id, agent_url)
                 SELECT $1, 1, id, $2 FROM squads WHERE name = $3",
            )
            .bind(name)
            .bind(agent_url)
            .bind(squad)
            .execute(&mut *tx)
            .await
            .doing(doing)?;
        }
        tx.commit().await.doing(doing)
    }
}

/// The mapping that a YAML text holds, as JSON; an empty text is an empty one.
///
/// Keys must be texts, as a release's hash is made of JSON.
pub(super) fn mapping(field: &str, text: &str) -> Result<Map<String, Value>> {
    let invalid = |message: String| StoreError::Invalid { field: Some(field.to_owned()), message };
    let parsed = yaml::parse_mapping(field, text).map_err(|e| invalid(e.to_string()))?;
    match serde_json::to_value(&parsed) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Ok(Map::new()),
        Err(e) => Err(invalid(format!("{field}: {e}"))),
    }
}
