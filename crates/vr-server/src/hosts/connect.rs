//! Which driver a host gets: the one that it is said to have, or the one that answers.
//!
//! What is found out is remembered with the time, and looked at again when the host stops answering. Nothing secret
//! is sent while finding out. An agent gets its token over a socket of this machine, over TLS whose certificate is
//! the expected one, over plain HTTP where somebody gave that host an `agent_url` with `http://`, or over plain HTTP on
//! this machine itself after something there said that it is an agent. Supervisor knows only passwords over plain
//! HTTP; a host that was not said to have it gets one after it has asked for it as Supervisor does, and only if no agent
//! could be there: whoever keeps an agent from answering must not get a password in its place.

use std::fmt;
use std::fs;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use tokio::sync::Mutex;
use url::Url;
use vr_common::exit::chain;
use vr_common::host_api::{CleanUpReport, ErrorBody, HostInfo, ProcDocument, UptestResult};
use vr_common::secret::Secret;

use super::agent::AgentDriver;
use super::http::{Endpoint, HttpError};
use super::settings::{AgentSettings, HostSettings, HostsSettings};
use super::supervisor::SupervisorDriver;
use super::tls::{TlsSettingsError, client_config};
use super::{Action, DriverKind, HostDriver, HostError, LogStream, NewsStream};
use crate::store::{HostRow, Store};
use crate::time;

/// How long one place may take to say what it is.
const PROBE: Duration = Duration::from_secs(4);
/// How long what was found out is left alone at least, though the host does not answer.
const PROBE_AGAIN: Duration = Duration::from_secs(15);
/// How long those who waited for the same answer are told the same.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// The largest answer of something that is not known yet, in bytes.
const MAX_PROBE: usize = 64 * 1024;
/// The longest token, in bytes.
const MAX_TOKEN: u64 = 4096;

/// Whether a host's `agent_url` can be used.
///
/// # Errors
/// One sentence.
pub fn check_agent_url(text: &str) -> Result<(), String> {
    agent_address(text).map(drop)
}

/// Scheme, host and port of an `agent_url`.
fn agent_address(text: &str) -> Result<(bool, String, u16), String> {
    let bad = |why: &str| {
        format!("{text:?} is not an agent's address ({why}): expected https://HOST:PORT or http://HOST:PORT")
    };
    if text.starts_with("unix:") {
        return Err(bad("only the server itself uses sockets"));
    }
    let url = Url::parse(text).map_err(|e| bad(&e.to_string()))?;
    let tls = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err(bad("another scheme")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it has a user name or password"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it has a path"));
    }
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    // The URL library leaves out the port that its scheme has anyway.
    match url.port_or_known_default() {
        Some(port) if port > 0 && !host.is_empty() => Ok((tls, host, port)),
        _ => Err(bad("no host or no port")),
    }
}

/// Makes drivers.
pub struct Connector {
    settings: HostsSettings,
    store: Store,
    /// The agent of this machine, and its address in the store.
    local: Option<(String, AgentDriver)>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    /// Drivers by these settings; `local` is this machine's agent, whose token goes to nobody else.
    pub fn new(settings: HostsSettings, store: Store, local: Option<(String, AgentDriver)>) -> Self {
        Self { settings, store, local }
    }

    /// Checks what the settings say of files, so that an operator hears of it at the start and not at the first host.
    ///
    /// # Errors
    /// One sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        for HostSettings { agent, .. } in self.settings.each() {
            read_token(agent)?;
            if agent.ca_file.is_some() || agent.certificate_file.is_some() {
                client_config(agent).map_err(|e| chain(&e))?;
            }
        }
        Ok(())
    }

    /// The driver of a host.
    pub fn driver(self: &Arc<Self>, row: &HostRow) -> Arc<dyn HostDriver> {
        if let Some((url, driver)) = &self.local
            && row.agent_url.as_deref() == Some(url.as_str())
        {
            return Arc::new(driver.clone());
        }
        let found = match (row.found_driver.as_deref().map(str::parse), row.found_url.clone()) {
            (Some(Ok(kind)), Some(url)) => Some(Found { kind, url }),
            _ => None,
        };
        let settings = self.settings.of(&row.name);
        // It may have had another name then, or its agent another port.
        let found = found.filter(|found| match (found.kind, agent_address(&found.url)) {
            (DriverKind::Supervisor, _) => true,
            (DriverKind::Agent, Ok((_, host, port))) => {
                port == settings.agent.port && host.eq_ignore_ascii_case(row.name.trim_matches(['[', ']']))
            }
            (DriverKind::Agent, Err(_)) => false,
        });
        let supervisor = SupervisorDriver::new(&row.name, settings);
        let state = State { driver: None, found, probed: None, hint: None };
        Arc::new_cyclic(|this| HostLink {
            this: Weak::clone(this),
            connector: Arc::clone(self),
            row: row.clone(),
            supervisor,
            kind: RwLock::new(None),
            state: Mutex::new(state),
        })
    }
}

/// The token of the settings.
fn read_token(agent: &AgentSettings) -> Result<Option<Secret>, String> {
    let Some(path) = &agent.token_file else { return Ok(None) };
    let failed = |why: String| format!("HOSTS.agent.token_file: {}: {why}", path.display());
    let size = fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > MAX_TOKEN {
        return Err(failed(format!("expected a token, found {size} bytes")));
    }
    let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    let token = text.trim();
    if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(failed("expected a token of printable characters".to_owned()));
    }
    Ok(Some(Secret::new(token)))
}

/// What was found out of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    kind: DriverKind,
    url: String,
}

#[derive(Debug)]
struct State {
    driver: Option<Arc<dyn HostDriver>>,
    found: Option<Found>,
    /// When somebody last tried to find out.
    probed: Option<Instant>,
    /// Why nothing else was found when it last stopped answering, if there is something to do about it.
    hint: Option<String>,
}

/// A host whose driver is made when it is first needed.
#[derive(Debug)]
struct HostLink {
    this: Weak<Self>,
    connector: Arc<Connector>,
    row: HostRow,
    /// Kept whatever the driver is at the moment: it holds the connection of SSH.
    supervisor: SupervisorDriver,
    kind: RwLock<Option<DriverKind>>,
    state: Mutex<State>,
}

/// What is at a place.
#[derive(Debug)]
enum Sight {
    /// What was looked for.
    There,
    /// It may not be used, for this reason.
    Useless(String),
    /// Something else.
    Other,
    /// Nothing, for this reason.
    Nothing(HttpError),
}

impl HostLink {
    fn settings(&self) -> &HostSettings {
        self.connector.settings.of(&self.row.name)
    }

    fn denied(&self, message: impl Into<String>) -> HostError {
        HostError::denied(&self.row.name, message)
    }

    /// The driver, which may have to be found out first.
    async fn driver(&self) -> Result<Arc<dyn HostDriver>, HostError> {
        let mut state = self.state.lock().await;
        if let Some(driver) = &state.driver {
            return Ok(Arc::clone(driver));
        }
        let driver = self.make(&mut state).await?;
        self.note_kind(driver.kind());
        state.driver = Some(Arc::clone(&driver));
        Ok(driver)
    }

    async fn make(&self, state: &mut State) -> Result<Arc<dyn HostDriver>, HostError> {
        let wanted = match self.row.driver.as_deref() {
            Some(name) => Some(name.parse::<DriverKind>().map_err(|e| self.denied(e))?),
            None => None,
        };
        match (wanted, self.row.agent_url.as_deref()) {
            (Some(DriverKind::Supervisor), _) => return Ok(Arc::new(self.supervisor.clone())),
            (_, Some(url)) => {
                let (tls, host, port) = agent_address(url).map_err(|e| self.denied(e))?;
                let endpoint =
                    if tls { self.tls_endpoint(&host, port)? } else { Endpoint::plain(&host, port) };
                return Ok(Arc::new(self.agent(endpoint, tls)?));
            }
            _ => {}
        }
        if let Some(found) = &state.found
            && (wanted.is_none() || wanted == Some(found.kind))
        {
            return self.driver_of(found);
        }
        if let Some(probed) = state.probed
            && probed.elapsed() < PROBE_PAUSE
        {
            // Many may wait for the same answer, one after the other.
            let source = "it was tried just now, and nothing answered".to_owned();
            return Err(HostError::unreachable(&self.row.name, source));
        }
        let found = self.probe(wanted, None).await;
        state.probed = Some(Instant::now());
        let found = found?;
        let driver = self.driver_of(&found)?;
        self.remember(&found).await;
        state.found = Some(found);
        Ok(driver)
    }

    async fn remember(&self, found: &Found) {
        tracing::info!(
            host = self.row.name,
            driver = found.kind.name(),
            url = found.url,
            "found out how a host is talked to"
        );
        let noted = self
            .connector
            .store
            .remember_driver(self.row.id, found.kind.name(), &found.url, time::now())
            .await;
        if let Err(error) = noted {
            tracing::warn!(host = self.row.name, "not remembered how it is talked to: {}", chain(&error));
        }
    }

    fn driver_of(&self, found: &Found) -> Result<Arc<dyn HostDriver>, HostError> {
        match found.kind {
            DriverKind::Supervisor => Ok(Arc::new(self.supervisor.clone())),
            DriverKind::Agent => {
                let (tls, host, port) = agent_address(&found.url).map_err(|e| self.denied(e))?;
                let endpoint = match tls {
                    true => self.tls_endpoint(&host, port)?,
                    false => Endpoint::plain(&host, port).here_only(),
                };
                Ok(Arc::new(self.agent(endpoint, tls)?))
            }
        }
    }

    fn tls_endpoint(&self, host: &str, port: u16) -> Result<Endpoint, HostError> {
        let config = client_config(&self.settings().agent).map_err(|e| self.denied(chain(&e)))?;
        Endpoint::tls(host, port, config).ok_or_else(|| {
            self.denied(format!("{host:?} can be in no certificate, so it cannot be an https address"))
        })
    }

    fn agent(&self, endpoint: Endpoint, tls: bool) -> Result<AgentDriver, HostError> {
        let settings = &self.settings().agent;
        let token = read_token(settings).map_err(|e| self.denied(e))?;
        if token.is_none() && !(tls && settings.certificate_file.is_some()) {
            return Err(self.denied(
                "it has an agent, but settings.yaml has no HOSTS.agent.token_file for it, and no certificate_file either",
            ));
        }
        Ok(AgentDriver::new(&self.row.name, endpoint, token))
    }

    /// Finds out what answers: an agent over TLS, an agent in plain, Supervisor. All are asked at once.
    async fn probe(
        &self,
        wanted: Option<DriverKind>,
        before: Option<DriverKind>,
    ) -> Result<Found, HostError> {
        let host = self.row.name.trim_matches(['[', ']']);
        let port = self.settings().agent.port;
        let is_wanted = |kind| wanted.is_none_or(|wanted| wanted == kind);
        let agents = is_wanted(DriverKind::Agent);
        let secure = match client_config(&self.settings().agent) {
            Ok(config) if agents => Endpoint::tls(host, port, config),
            // With nothing to trust there is no certificate that could be the expected one.
            Ok(_) | Err(TlsSettingsError::NoRoots) => None,
            Err(_) if !agents => None,
            Err(error) => return Err(self.denied(chain(&error))),
        };
        let plain = agents.then(|| Endpoint::plain(host, port));
        let over_tls = async {
            match &secure {
                Some(endpoint) => see_agent(endpoint).await,
                None => Sight::Other,
            }
        };
        let in_plain = async {
            match &plain {
                Some(endpoint) => see_agent(endpoint).await,
                None => Sight::Other,
            }
        };
        let supervisor = async {
            match is_wanted(DriverKind::Supervisor) {
                true => self.supervisor.see().await,
                false => Ok(false),
            }
        };
        let (over_tls, in_plain, supervisor) = tokio::join!(over_tls, in_plain, supervisor);
        let silent = [&over_tls, &in_plain]
            .into_iter()
            .any(|sight| matches!(sight, Sight::Nothing(error) if error.is_silence()));
        match (&secure, over_tls) {
            (Some(endpoint), Sight::There) => {
                return Ok(Found { kind: DriverKind::Agent, url: endpoint.shown() });
            }
            // Whoever can spoil TLS must not be able to have the server ask for a password in plain instead.
            (_, Sight::Useless(why)) => {
                return Err(self.denied(format!(
                    "{why}; give it an agent_url or set HOSTS.agent.ca_file or .fingerprint, or set its driver to \
                     supervisor if that is no agent"
                )));
            }
            _ => {}
        }
        let nothing = match (&plain, in_plain) {
            (Some(endpoint), Sight::There) => {
                return match endpoint.is_here().await {
                    true => Ok(Found { kind: DriverKind::Agent, url: endpoint.shown() }),
                    false => Err(self.denied(format!(
                        "its agent has no TLS, so its token is not sent; set the host's agent_url to {} if the network \
                         between is yours alone",
                        endpoint.shown()
                    ))),
                };
            }
            (_, Sight::Nothing(error)) => Some(error),
            _ => None,
        };
        let has_password = self.settings().supervisor.password.is_some();
        match supervisor {
            Ok(true) if has_password && (silent || before == Some(DriverKind::Agent)) => {
                let why = match before {
                    Some(DriverKind::Agent) => "it had an agent".to_owned(),
                    _ => format!("nothing is heard of port {port}, where an agent may be"),
                };
                Err(self.denied(format!(
                    "{why}, so no password is sent to what answers at {}; set its driver to supervisor if it has no \
                     agent",
                    self.supervisor.shown()
                )))
            }
            Ok(true) => Ok(Found { kind: DriverKind::Supervisor, url: self.supervisor.shown() }),
            Ok(false) => Err(HostError::unreachable(
                &self.row.name,
                "something answers, but it is neither vr-agent nor Supervisor".to_owned(),
            )),
            Err(error) => Err(HostError::unreachable(
                &self.row.name,
                match nothing {
                    Some(no_agent) => format!("{}; {}", chain(&no_agent), chain(&error)),
                    None => chain(&error),
                },
            )),
        }
    }

    /// Whether somebody said where and how it is talked to, so that there is nothing to find out.
    fn is_said(&self) -> bool {
        self.row.agent_url.is_some() || self.row.driver.as_deref() == Some(DriverKind::Supervisor.name())
    }

    /// What a failure says of the driver itself.
    async fn judge<T>(&self, done: Result<T, HostError>) -> Result<T, HostError> {
        match done {
            Err(HostError::Denied { .. }) => {
                let mut state = self.state.lock().await;
                // The file may hold another token by now, and another certificate. Or the host has changed its ways.
                state.driver = None;
                self.doubt(&mut state);
                done
            }
            Err(HostError::Unreachable { host, source }) => {
                let mut state = self.state.lock().await;
                self.doubt(&mut state);
                Err(match &state.hint {
                    Some(hint) => HostError::unreachable(&host, format!("{}; {hint}", chain(&*source))),
                    None => HostError::Unreachable { host, source },
                })
            }
            _ => done,
        }
    }

    /// Has it found out again how the host is talked to, unless that was said or tried just now. Nobody has to wait for it.
    fn doubt(&self, state: &mut State) {
        if !self.is_said()
            && state.probed.is_none_or(|probed| probed.elapsed() > PROBE_AGAIN)
            && let Some(this) = self.this.upgrade()
        {
            state.probed = Some(Instant::now());
            tokio::spawn(async move { this.find_out_again().await });
        }
    }

    /// Looks for another driver of a host that stopped answering. If nothing answers, it has the one that it had.
    async fn find_out_again(&self) {
        let wanted = self.row.driver.as_deref().and_then(|name| name.parse().ok());
        let before = self.state.lock().await.found.as_ref().map(|found| found.kind);
        let found = match self.probe(wanted, before).await {
            Ok(found) => found,
            Err(error) => {
                self.state.lock().await.hint = match error {
                    HostError::Denied { message, .. } => Some(message),
                    _ => None,
                };
                return;
            }
        };
        let Ok(driver) = self.driver_of(&found) else { return };
        let mut state = self.state.lock().await;
        state.hint = None;
        if state.found.as_ref() != Some(&found) {
            self.remember(&found).await;
        }
        self.note_kind(driver.kind());
        state.found = Some(found);
        state.driver = Some(driver);
    }

    fn note_kind(&self, kind: Option<DriverKind>) {
        *self.kind.write().unwrap_or_else(PoisonError::into_inner) = kind;
    }
}

/// Whether an agent is there: it wants a token, and says so as an agent does.
async fn see_agent(endpoint: &Endpoint) -> Sight {
    let request = Request::builder().method(Method::GET).uri("/v1/info");
    match endpoint.call(request, Bytes::new(), PROBE, MAX_PROBE).await {
        Ok(answer) => {
            let wants_token =
                answer.status == StatusCode::UNAUTHORIZED && challenge(&answer.headers).starts_with("Bearer");
            let is_agent = match wants_token {
                true => serde_json::from_slice::<ErrorBody>(&answer.body).is_ok(),
                // With a certificate of ours, it may need no token.
                false => serde_json::from_slice::<HostInfo>(&answer.body).is_ok(),
            };
            if is_agent { Sight::There } else { Sight::Other }
        }
        // Plain HTTP behind a TLS handshake is no certificate that nobody trusts.
        Err(error @ HttpError::Tls { .. }) if !is_no_tls(&error) => Sight::Useless(chain(&error)),
        // It showed the right certificate, so it is an agent or something else of ours, and in trouble.
        Err(error @ HttpError::Broken { .. }) if endpoint.is_tls() => Sight::Useless(chain(&error)),
        Err(HttpError::Tls { .. } | HttpError::Broken { .. }) => Sight::Other,
        Err(error) => Sight::Nothing(error),
    }
}

/// Whether the other side does not speak TLS at all.
fn is_no_tls(error: &HttpError) -> bool {
    use tokio_rustls::rustls::Error as TlsError;
    let HttpError::Tls { source, .. } = error else { return false };
    let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    matches!(inner, Some(TlsError::InvalidMessage(_) | TlsError::InappropriateMessage { .. }))
}

/// What an answer asks for, such as `Bearer`.
pub(super) fn challenge(headers: &HeaderMap) -> &str {
    headers.get(header::WWW_AUTHENTICATE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[async_trait]
impl HostDriver for HostLink {
    fn kind(&self) -> Option<DriverKind> {
        *self.kind.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_every(&self) -> Duration {
        Duration::from_secs(self.settings().supervisor.poll_seconds)
    }

    fn clean_up_every(&self) -> Option<Duration> {
        let seconds = self.settings().clean_up_seconds;
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    async fn procs(&self) -> Result<Vec<ProcDocument>, HostError> {
        let done = self.driver().await?.procs().await;
        self.judge(done).await
    }

    async fn deploy(&self, proc: &str, proc_yaml: &str) -> Result<ProcDocument, HostError> {
        let done = self.driver().await?.deploy(proc, proc_yaml).await;
        self.judge(done).await
    }

    async fn act(&self, proc: &str, action: Action) -> Result<ProcDocument, HostError> {
        let done = self.driver().await?.act(proc, action).await;
        self.judge(done).await
    }

    async fn uptest(&self, proc: &str) -> Result<Vec<UptestResult>, HostError> {
        let done = self.driver().await?.uptest(proc).await;
        self.judge(done).await
    }

    async fn delete(&self, proc: &str) -> Result<(), HostError> {
        let done = self.driver().await?.delete(proc).await;
        self.judge(done).await
    }

    async fn log_tail(&self, proc: &str, bytes: u64) -> Result<String, HostError> {
        let done = self.driver().await?.log_tail(proc, bytes).await;
        self.judge(done).await
    }

    async fn log_follow(&self, proc: &str, bytes: u64) -> Result<LogStream, HostError> {
        let done = self.driver().await?.log_follow(proc, bytes).await;
        self.judge(done).await
    }

    async fn clean_up(&self) -> Result<CleanUpReport, HostError> {
        let done = self.driver().await?.clean_up().await;
        self.judge(done).await
    }

    async fn facts(&self) -> Result<HostInfo, HostError> {
        let driver = self.driver().await?;
        let done = driver.facts().await;
        if driver.kind() == Some(DriverKind::Supervisor) && self.supervisor.is_agent() {
            // An agent that took the place of Supervisor takes its calls, too.
            self.doubt(&mut *self.state.lock().await);
        }
        self.judge(done).await
    }

    async fn changes(&self, after: Option<&str>) -> Result<Option<NewsStream>, HostError> {
        let done = self.driver().await?.changes(after).await;
        self.judge(done).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_agents() {
        assert_eq!(agent_address("https://web1:9002").unwrap(), (true, "web1".into(), 9002));
        assert_eq!(agent_address("http://[::1]:80/").unwrap(), (false, "::1".into(), 80));
        assert_eq!(agent_address("https://web1").unwrap().2, 443);
        for bad in [
            "",
            "web1:9002",
            "ftp://x:1",
            "unix:/x.sock",
            "http://u:p@x:1",
            "http://x:1/y",
            "http://x:1/?a",
            "http://:1",
            "http://x:0",
        ] {
            assert!(check_agent_url(bad).is_err(), "{bad}");
        }
    }
}
