//! API v1: its resources as both sides see them, and a blocking client.
//!
//! Relations are resource URIs (`/api/v1/apps/hello/`), times ISO 8601 UTC. The server renders these types and
//! clients read them; a client ignores fields that it does not know.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::events::{Envelope, SseReader};
use crate::host_api::{HostInfo, ProcDocument};
use crate::secret::Secret;
use crate::web_proxy;

macro_rules! resource {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            /// The row's number.
            pub id: i64,
            /// Where it is.
            pub resource_uri: String,
            $($(#[$field_doc])* #[serde(default)] pub $field: $type,)*
        }
    };
}

resource! {
    /// An application.
    App {
        /// Unique.
        name: String,
        /// Where its code is.
        repo_url: String,
        /// `git` or `hg`.
        repo_type: String,
        /// The buildpack to use without detecting.
        buildpack: Option<String>,
        /// The OS images to build and run in.
        stack: Option<String>,
        /// `repo_url` with Mercurial's schemes expanded.
        resolved_url: String,
    }
}

resource! {
    /// A buildpack.
    Buildpack {
        /// Unique.
        repo_url: String,
        /// `git` or `hg`.
        repo_type: String,
        /// For people.
        desc: String,
        /// Its place in the order of detecting.
        order: i64,
    }
}

resource! {
    /// A group of hosts.
    Squad {
        /// Unique.
        name: String,
        /// Its hosts, whole.
        hosts: Vec<Host>,
    }
}

resource! {
    /// A host.
    Host {
        /// Unique.
        name: String,
        /// Whether new procs may be put on it.
        active: bool,
        /// Its squad.
        squad: Option<String>,
        /// Where its procs are.
        procs_uri: String,
        /// Its procs as last seen.
        procs: Vec<ProcDocument>,
        /// Since when it does not answer, if so.
        unreachable_since: Option<String>,
        /// When it last answered.
        seen: Option<String>,
        /// Why it cannot be used at the moment.
        error: Option<String>,
        /// How the server is to talk to it: `agent`, `supervisor`, or null to find out.
        driver: Option<String>,
        /// Where its agent answers, when it is not at the usual place.
        agent_url: Option<String>,
        /// How the server talks to it, as it found out by itself.
        found_driver: Option<String>,
        /// When it found out.
        found_at: Option<String>,
        /// What it is, as far as it was said.
        facts: Option<HostInfo>,
    }
}

resource! {
    /// Config and environment shared by swarms.
    Ingredient {
        /// Unique.
        name: String,
        /// YAML text of a mapping.
        config_yaml: String,
        /// YAML text of a mapping.
        env_yaml: String,
        /// The swarms that use it.
        swarms: Vec<String>,
    }
}

resource! {
    /// An app at a revision, compiled.
    Build {
        /// The app.
        app: String,
        /// The revision.
        tag: String,
        /// The OS image it was compiled in.
        os_image: Option<String>,
        /// `pending`, `started`, `success`, `failed` or `expired`.
        status: String,
        /// The tarball's path below `/files/`.
        file: Option<String>,
        /// Its md5 sum.
        file_md5: Option<String>,
        /// The log's path below `/files/`.
        compile_log: Option<String>,
        /// When it began.
        start_time: Option<String>,
        /// When it ended.
        end_time: Option<String>,
        /// Of the tarball and the image.
        hash: Option<String>,
        /// The buildpack's `config_vars`, YAML text.
        env_yaml: String,
        /// The buildpack that matched.
        buildpack_url: Option<String>,
        /// Its revision.
        buildpack_version: Option<String>,
        /// Why it failed.
        error: Option<String>,
    }
}

resource! {
    /// A build with config, environment, volumes, user and limits.
    Release {
        /// The build.
        build: String,
        /// YAML text of a mapping.
        config_yaml: String,
        /// YAML text of a mapping.
        env_yaml: String,
        /// `[[host dir, mountpoint], …]`.
        volumes: Value,
        /// Set once the build has succeeded.
        hash: Option<String>,
        /// The user.
        run_as: String,
        /// RAM.
        mem_limit: Option<String>,
        /// RAM and swap.
        memsw_limit: Option<String>,
        /// `{app}-{version}-{hash}`, for people.
        compiled_name: String,
    }
}

resource! {
    /// A number of procs of one release, spread over a squad.
    Swarm {
        /// The app.
        app: String,
        /// The app's name.
        app_name: String,
        /// The release it is at or on its way to.
        release: Option<String>,
        /// The revision; writing it sets the release.
        version: Option<String>,
        /// The deployment.
        config_name: String,
        /// The Procfile's entry.
        proc_name: String,
        /// The squad.
        squad: String,
        /// The squad's name.
        squad_name: String,
        /// How many procs.
        size: u32,
        /// The balancer's pool.
        pool: Option<String>,
        /// The balancer.
        balancer: Option<String>,
        /// Its own config, YAML text.
        config_yaml: String,
        /// Its own environment, YAML text.
        env_yaml: String,
        /// `[[host dir, mountpoint], …]`.
        volumes: Value,
        /// The user.
        run_as: String,
        /// RAM.
        mem_limit: Option<String>,
        /// RAM and swap.
        memsw_limit: Option<String>,
        /// Shared config, in order.
        config_ingredients: Vec<String>,
        /// Ingredients' and own config, merged.
        compiled_config: Value,
        /// Build's, ingredients' and own environment, merged.
        compiled_env: Value,
        /// `{app}-{version}-{config}-{proc}`.
        shortname: String,
        /// Where its procs are.
        procs_uri: String,
        /// Its procs as last seen.
        procs: Vec<ProcDocument>,
        /// Where its pool can be reached, when the balancer knows.
        pool_address: Option<String>,
    }
}

impl Swarm {
    /// The name that operators use: `{app}-{config}-{proc}`.
    pub fn cli_name(&self) -> String {
        format!("{}-{}-{}", self.app_name, self.config_name, self.proc_name)
    }
}

/// One change of a dispatch's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// ISO 8601, UTC.
    pub time: String,
    /// The state it left.
    pub from: String,
    /// The state it reached.
    pub to: String,
    /// The user or worker that did it.
    pub who: String,
    /// Why.
    pub why: String,
}

/// A dispatch: a swarm on its way to a version. Its id is the trace id of its events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dispatch {
    /// The trace id.
    pub id: String,
    /// Where it is.
    pub resource_uri: String,
    /// The swarm.
    pub swarm: String,
    /// `{app}-{config}-{proc}`.
    pub swarm_name: String,
    /// The revision.
    pub version: String,
    /// `queued building releasing deploying uptesting routing cleaning done failed cancelled`.
    pub state: String,
    /// Who asked.
    pub user: String,
    /// Why it failed, with the failing test's name and output where it was one.
    pub error: Option<String>,
    /// Where the swarm's pool can be reached, when the balancer knows.
    pub pool_address: Option<String>,
    /// When it was asked for.
    pub created: String,
    /// When it ended.
    pub finished: Option<String>,
    /// All changes of state so far, oldest first.
    pub transitions: Vec<Transition>,
}

impl Dispatch {
    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "done" | "failed" | "cancelled")
    }
}

/// The answer to `POST …/swarm/`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwarmStarted {
    /// The dispatch's trace id.
    pub swarm_id: String,
}

/// A page's place in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// The most objects of a page.
    pub limit: u32,
    /// The number of objects before it.
    pub offset: u32,
    /// The number of all objects.
    pub total_count: u32,
    /// Path and query of the next page.
    pub next: Option<String>,
    /// Path and query of the page before.
    pub previous: Option<String>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// Where it is in the list.
    pub meta: Meta,
    /// What it holds.
    pub objects: Vec<T>,
}

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The server said no.
    #[error("{method} {url}: {status}: {message}")]
    Refused {
        /// The HTTP method.
        method: &'static str,
        /// The URL.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's reason.
        message: String,
    },
    /// The server did not answer.
    #[error("{method} {url} failed")]
    Unreachable {
        /// The HTTP method.
        method: &'static str,
        /// The URL.
        url: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The answer is not what the API promises.
    #[error("{method} {url}: unexpected answer")]
    Unexpected {
        /// The HTTP method.
        method: &'static str,
        /// The URL.
        url: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ApiError {
    /// The HTTP status, when the server answered with one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// A blocking client of API v1.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    authorization: Secret,
}

/// The largest answer that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

impl Client {
    /// A client of the server at `base`, such as `http://127.0.0.1:8000`, that logs in with HTTP basic auth.
    pub fn new(base: &str, username: &str, password: &Secret) -> Self {
        let config = ureq::Agent::config_builder()
            .proxy(web_proxy::for_url(base))
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_recv_body(Some(Duration::from_secs(300)))
            .timeout_per_read(Some(Duration::from_secs(120)))
            .build();
        let pair = format!("{username}:{}", password.expose());
        Self {
            agent: config.into(),
            base: base.trim_end_matches('/').to_owned(),
            authorization: Secret::new(format!("Basic {}", STANDARD.encode(pair))),
        }
    }

    /// The server's address, without a final slash.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GETs a path such as `/api/v1/swarms/1/`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call("GET", path, None)
    }

    /// GETs all pages of a list.
    pub fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ApiError> {
        let mut objects = Vec::new();
        let mut next = Some(path.to_owned());
        while let Some(path) = next {
            let page: Page<T> = self.get(&path)?;
            objects.extend(page.objects);
            next = page.meta.next;
        }
        Ok(objects)
    }

    /// POSTs a document; an empty answer is read as null.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, ApiError> {
        self.call("POST", path, Some(body))
    }

    /// POSTs a document and gives the new object's path (`Location`).
    pub fn create(&self, path: &str, body: &Value) -> Result<String, ApiError> {
        let (method, url) = ("POST", self.url(path));
        let mut response = self.send(method, &url, Some(body))?;
        let location = response.headers().get("location").and_then(|l| l.to_str().ok()).map(str::to_owned);
        self.text(method, &url, &mut response)?;
        location.ok_or_else(|| ApiError::Unexpected { method, url, source: "no Location header".into() })
    }

    /// PATCHes some fields.
    pub fn patch<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, ApiError> {
        self.call("PATCH", path, Some(body))
    }

    /// DELETEs an object; the answer, if any, is dropped.
    pub fn delete(&self, path: &str) -> Result<(), ApiError> {
        let (method, url) = ("DELETE", self.url(path));
        let mut response = self.send(method, &url, None)?;
        self.text(method, &url, &mut response).map(drop)
    }

    /// Follows a stream of events from `last_id` on; ends when the server ends it.
    ///
    /// `on_event` says whether to go on. A stream that is silent for two minutes (the server sends a comment
    /// every few seconds) is an error.
    pub fn events(
        &self,
        path: &str,
        last_id: Option<&str>,
        mut on_event: impl FnMut(Envelope) -> bool,
    ) -> Result<(), ApiError> {
        let (method, url) = ("GET", self.url(path));
        let unreachable =
            |e: ureq::Error| ApiError::Unreachable { method, url: url.clone(), source: Box::new(e) };
        let mut request = self
            .agent
            .get(&url)
            .header("Authorization", self.authorization.expose())
            .header("Accept", "text/event-stream")
            .config()
            .timeout_recv_body(None)
            .build();
        if let Some(id) = last_id {
            request = request.header("Last-Event-ID", id);
        }
        let mut response = request.call().map_err(unreachable)?;
        if !response.status().is_success() {
            self.text(method, &url, &mut response)?;
        }
        let mut reader = SseReader::default();
        let mut lines = BufReader::new(response.body_mut().as_reader());
        loop {
            let mut line = Vec::new();
            let read = lines.by_ref().take(1 << 20).read_until(b'\n', &mut line);
            match read {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) => return Err(unreachable(e.into())),
            }
            let text = String::from_utf8_lossy(&line);
            if let Some(envelope) = reader.line(text.trim_end_matches(['\r', '\n']))
                && !on_event(envelope)
            {
                return Ok(());
            }
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, ApiError> {
        let url = self.url(path);
        let mut response = self.send(method, &url, body)?;
        let text = self.text(method, &url, &mut response)?;
        let text = if text.is_empty() { "null" } else { &text };
        serde_json::from_str(text).map_err(|e| ApiError::Unexpected { method, url, source: e.into() })
    }

    fn send(
        &self,
        method: &'static str,
        url: &str,
        body: Option<&Value>,
    ) -> Result<ureq::http::Response<ureq::Body>, ApiError> {
        let unexpected = |source| ApiError::Unexpected { method, url: url.to_owned(), source };
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(url)
            .header("Authorization", self.authorization.expose())
            .header("Accept", "application/json");
        let sent = match body {
            Some(body) => {
                let request = request
                    .header("Content-Type", "application/json")
                    .body(body.to_string())
                    .map_err(|e| unexpected(e.into()))?;
                self.agent.run(request)
            }
            None => self.agent.run(request.body(()).map_err(|e| unexpected(e.into()))?),
        };
        sent.map_err(|e| ApiError::Unreachable { method, url: url.to_owned(), source: Box::new(e) })
    }

    fn text(
        &self,
        method: &'static str,
        url: &str,
        response: &mut ureq::http::Response<ureq::Body>,
    ) -> Result<String, ApiError> {
        let status = response.status();
        let text = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER)
            .read_to_string()
            .map_err(|e| ApiError::Unreachable { method, url: url.to_owned(), source: Box::new(e) })?;
        if status.is_success() {
            return Ok(text);
        }
        // Errors are JSON with `error`, `msg` (401) or `fault` (a host's); else the text itself.
        let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let message = ["error", "msg", "fault"].iter().find_map(|key| body[*key].as_str());
        let message = message.unwrap_or(text.trim());
        let message = match body["field"].as_str() {
            Some(field) if !message.contains(field) => format!("{field}: {message}"),
            _ => message.to_owned(),
        };
        let message = message.chars().take(2_000).collect();
        Err(ApiError::Refused { method, url: url.to_owned(), status: status.as_u16(), message })
    }
}
