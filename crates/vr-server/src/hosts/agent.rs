//! A host that runs vr-agent: its JSON API over HTTP.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use http::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vr_common::host_api::{DeployRequest, ErrorBody, ProcDocument, ProcList, UptestReport, UptestResult};
use vr_common::secret::Secret;

use super::{Action, HostDriver, HostError};

/// How long an agent may take to fetch, unpack and start a build.
const DEPLOY: Duration = Duration::from_secs(15 * 60);
/// How long an agent may take to run all uptests of a proc.
const UPTEST: Duration = Duration::from_secs(6 * 60);
/// How long a stop may take, with the app's grace period.
const ACT: Duration = Duration::from_secs(90);
/// How long a plain question may take.
const ASK: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// The agent of one host.
#[derive(Debug, Clone)]
pub struct AgentDriver {
    host: String,
    base: String,
    token: Secret,
    client: reqwest::Client,
}

impl AgentDriver {
    /// The agent of the host that the server calls `host`, behind a socket of this machine. Only who may enter the
    /// socket's folder can answer there, whereas a port of an agent that died could be anybody's, and the token with it.
    pub fn local(host: &str, socket: &Path, token: Secret) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder().unix_socket(socket).build()?;
        Ok(Self { host: host.to_owned(), base: "http://agent".to_owned(), token, client })
    }

    fn unreachable(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HostError {
        HostError::Unreachable { host: self.host.clone(), source: source.into() }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        deadline: Duration,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<String, HostError> {
        let mut request = self
            .client
            .request(method, format!("{}/v1/{path}", self.base))
            .bearer_auth(self.token.expose())
            .timeout(deadline);
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(|e| self.unreachable(e.without_url()))?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(e.without_url()))? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(self.unreachable(format!("its answer is larger than {MAX_ANSWER} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        let body = serde_json::from_str::<ErrorBody>(&text).unwrap_or_else(|_| ErrorBody {
            error: format!("{status}: {}", text.chars().take(500).collect::<String>()),
            log_tail: None,
        });
        let proc = path.strip_prefix("procs/").and_then(|rest| rest.split(['/', '?']).next());
        match (status, proc) {
            (StatusCode::NOT_FOUND, Some(proc)) => {
                Err(HostError::NoSuchProc { host: self.host.clone(), proc: proc.to_owned() })
            }
            _ => Err(HostError::Refused {
                host: self.host.clone(),
                message: body.error,
                log_tail: body.log_tail,
            }),
        }
    }

    fn read<T: DeserializeOwned>(&self, text: &str) -> Result<T, HostError> {
        serde_json::from_str(text).map_err(|e| self.unreachable(e))
    }
}

const NOTHING: Option<&()> = None;

/// The path of a proc, or of something below it. A version may hold characters that mean something in a URL.
fn proc_path(proc: &str, below: &str) -> String {
    let encoded: String = url::form_urlencoded::byte_serialize(proc.as_bytes()).collect();
    format!("procs/{encoded}{below}")
}

#[async_trait]
impl HostDriver for AgentDriver {
    async fn procs(&self) -> Result<Vec<ProcDocument>, HostError> {
        let list: ProcList = self.read(&self.call(Method::GET, "procs", ASK, NOTHING).await?)?;
        Ok(list.procs.into_iter().map(|proc| proc.on_host(&self.host)).collect())
    }

    async fn deploy(&self, proc: &str, proc_yaml: &str) -> Result<ProcDocument, HostError> {
        let request = DeployRequest { proc_yaml: proc_yaml.to_owned() };
        let text = self.call(Method::PUT, &proc_path(proc, ""), DEPLOY, Some(&request)).await?;
        Ok(self.read::<ProcDocument>(&text)?.on_host(&self.host))
    }

    async fn act(&self, proc: &str, action: Action) -> Result<ProcDocument, HostError> {
        let path = proc_path(proc, &format!("/{}", action.name()));
        let text = self.call(Method::POST, &path, ACT, NOTHING).await?;
        Ok(self.read::<ProcDocument>(&text)?.on_host(&self.host))
    }

    async fn uptest(&self, proc: &str) -> Result<Vec<UptestResult>, HostError> {
        let text = self.call(Method::POST, &proc_path(proc, "/uptest"), UPTEST, NOTHING).await?;
        Ok(self.read::<UptestReport>(&text)?.results)
    }

    async fn delete(&self, proc: &str) -> Result<(), HostError> {
        self.call(Method::DELETE, &proc_path(proc, ""), ACT, NOTHING).await.map(drop)
    }

    async fn log_tail(&self, proc: &str, bytes: u64) -> Result<String, HostError> {
        self.call(Method::GET, &proc_path(proc, &format!("/log?bytes={bytes}")), ASK, NOTHING).await
    }
}
