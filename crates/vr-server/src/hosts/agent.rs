//! A host that runs vr-agent: its JSON API.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{Method, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vr_common::events::SseReader;
use vr_common::exit::chain;
use vr_common::host_api::{
    CleanUpReport, CleanUpRequest, DeployRequest, ErrorBody, Hello, HostInfo, ProcChange, ProcDocument,
    ProcList, UptestReport, UptestResult,
};
use vr_common::secret::Secret;

use super::http::{Body, Endpoint, HttpError};
use super::{Action, DriverKind, HostDriver, HostError, LogStream, News, NewsStream};

/// How long an agent may take to fetch, unpack and start a build.
const DEPLOY: Duration = Duration::from_secs(15 * 60);
/// How long an agent may take to run all uptests of a proc.
const UPTEST: Duration = Duration::from_secs(6 * 60);
/// How long a stop may take, with the app's grace period.
const ACT: Duration = Duration::from_secs(90);
/// How long a clean-up may take.
const CLEAN_UP: Duration = Duration::from_secs(10 * 60);
/// How long a plain question may take.
const ASK: Duration = Duration::from_millis(4500);
/// How often a host is asked whether it is there while it does something that may take longer than [`ASK`].
const STILL_THERE: Duration = Duration::from_secs(5);
/// How often in a row it may leave that unanswered.
const SILENT: u32 = 3;
/// The largest answer that is read, and the largest event of a stream, in bytes.
const MAX_ANSWER: usize = 16 << 20;
/// How long a stream of changes may be silent: the agent says every 15 s that it is there.
const SILENCE: Duration = Duration::from_secs(40);

/// The agent of one host.
#[derive(Debug, Clone)]
pub struct AgentDriver {
    host: String,
    endpoint: Endpoint,
    token: Option<Secret>,
}

impl AgentDriver {
    /// The agent of the host that the server calls `host`, behind a socket of this machine. Only who may enter the
    /// socket's folder can answer there, whereas a port of an agent that died could be anybody's, and the token with it.
    pub fn local(host: &str, socket: PathBuf, token: Secret) -> Self {
        Self::new(host, Endpoint::unix(socket), Some(token))
    }

    /// The agent behind an endpoint; without a token, the endpoint shows a certificate.
    pub(super) fn new(host: &str, endpoint: Endpoint, token: Option<Secret>) -> Self {
        Self { host: host.to_owned(), endpoint, token }
    }

    fn unreachable(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HostError {
        HostError::unreachable(&self.host, source)
    }

    fn no_answer(&self, error: HttpError) -> HostError {
        match error {
            HttpError::Tls { .. } => HostError::denied(&self.host, chain(&error)),
            error => self.unreachable(error),
        }
    }

    /// Waits until the host no longer answers. One that is cut off in the middle of a deploy says nothing, and the deploy
    /// may take long.
    async fn until_silent(&self) -> HostError {
        let mut unanswered = 0;
        loop {
            tokio::time::sleep(STILL_THERE).await;
            let asked =
                self.endpoint.call(self.request(Method::GET, "info"), Bytes::new(), ASK, MAX_ANSWER).await;
            unanswered = if asked.is_ok() { 0 } else { unanswered + 1 };
            if let Err(error) = asked
                && unanswered >= SILENT
            {
                return self.no_answer(error);
            }
        }
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = http::Request::builder().method(method).uri(format!("/v1/{path}"));
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose())),
            None => request,
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        deadline: Duration,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Bytes, HostError> {
        let mut request = self.request(method, path);
        let mut bytes = Bytes::new();
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json");
            bytes = serde_json::to_vec(body).map_err(|e| self.unreachable(e))?.into();
        }
        let answer = self.endpoint.call(request, bytes, deadline, MAX_ANSWER);
        let answer = tokio::select! {
            answer = answer => answer.map_err(|error| match error {
                // It answered everything else in the meantime.
                HttpError::Late { .. } if deadline > ASK => HostError::refused(
                    &self.host,
                    format!("not done within {} s; it may still be at it, so try again later", deadline.as_secs()),
                ),
                error => self.no_answer(error),
            })?,
            error = self.until_silent(), if deadline > ASK => return Err(error),
        };
        if answer.status.is_success() {
            Ok(answer.body)
        } else {
            Err(self.refusal(path, answer.status, &answer.body))
        }
    }

    /// What an answer of 400 or above means.
    fn refusal(&self, path: &str, status: StatusCode, body: &[u8]) -> HostError {
        let text = String::from_utf8_lossy(body);
        let body = serde_json::from_str::<ErrorBody>(&text).unwrap_or_else(|_| ErrorBody {
            error: format!("{status}: {}", text.chars().take(500).collect::<String>()),
            log_tail: None,
        });
        let proc = path.strip_prefix("procs/").and_then(|rest| rest.split(['/', '?']).next());
        match (status, proc) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => HostError::denied(
                &self.host,
                format!("its agent does not let this server in ({}); see HOSTS.agent.token_file", body.error),
            ),
            (StatusCode::NOT_FOUND, Some(proc)) => {
                let name: String = url::form_urlencoded::parse(format!("name={proc}").as_bytes())
                    .map(|(_, name)| name.into_owned())
                    .collect();
                HostError::no_such_proc(&self.host, &name)
            }
            _ => HostError::Refused { host: self.host.clone(), message: body.error, log_tail: body.log_tail },
        }
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, HostError> {
        serde_json::from_slice(body).map_err(|e| self.unreachable(e))
    }

    /// An answer that flows; none when there is nothing at the path.
    async fn open(
        &self,
        path: &str,
        request: http::request::Builder,
    ) -> Result<Result<Body, HostError>, HostError> {
        let flow = self.endpoint.open(request, ASK).await.map_err(|e| self.no_answer(e))?;
        if flow.status.is_success() {
            return Ok(Ok(flow.body));
        }
        let mut bytes = Vec::new();
        let mut body = flow.body;
        while let Ok(Some(Ok(chunk))) = tokio::time::timeout(ASK, body.next()).await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > 64 * 1024 {
                break;
            }
        }
        Ok(Err(self.refusal(path, flow.status, &bytes)))
    }
}

const NOTHING: Option<&()> = None;

/// The path of a proc, or of something below it. A version may hold characters that mean something in a URL.
fn proc_path(proc: &str, below: &str) -> String {
    let encoded: String = url::form_urlencoded::byte_serialize(proc.as_bytes()).collect();
    format!("procs/{}{below}", encoded.replace('+', "%20"))
}

#[async_trait]
impl HostDriver for AgentDriver {
    fn kind(&self) -> Option<DriverKind> {
        Some(DriverKind::Agent)
    }

    async fn procs(&self) -> Result<Vec<ProcDocument>, HostError> {
        let list: ProcList = self.read(&self.call(Method::GET, "procs", ASK, NOTHING).await?)?;
        Ok(list.procs.into_iter().map(|proc| proc.on_host(&self.host)).collect())
    }

    async fn deploy(&self, proc: &str, proc_yaml: &str) -> Result<ProcDocument, HostError> {
        let request = DeployRequest { proc_yaml: proc_yaml.to_owned() };
        let body = self.call(Method::PUT, &proc_path(proc, ""), DEPLOY, Some(&request)).await?;
        Ok(self.read::<ProcDocument>(&body)?.on_host(&self.host))
    }

    async fn act(&self, proc: &str, action: Action) -> Result<ProcDocument, HostError> {
        let path = proc_path(proc, &format!("/{}", action.name()));
        let body = self.call(Method::POST, &path, ACT, NOTHING).await?;
        Ok(self.read::<ProcDocument>(&body)?.on_host(&self.host))
    }

    async fn uptest(&self, proc: &str) -> Result<Vec<UptestResult>, HostError> {
        let body = self.call(Method::POST, &proc_path(proc, "/uptest"), UPTEST, NOTHING).await?;
        Ok(self.read::<UptestReport>(&body)?.results)
    }

    async fn delete(&self, proc: &str) -> Result<(), HostError> {
        self.call(Method::DELETE, &proc_path(proc, ""), ACT, NOTHING).await.map(drop)
    }

    async fn log_tail(&self, proc: &str, bytes: u64) -> Result<String, HostError> {
        let path = proc_path(proc, &format!("/log?bytes={bytes}"));
        let body = self.call(Method::GET, &path, ASK, NOTHING).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn log_follow(&self, proc: &str, bytes: u64) -> Result<LogStream, HostError> {
        let path = proc_path(proc, &format!("/log/follow?bytes={bytes}"));
        let body = self.open(&path, self.request(Method::GET, &path)).await??;
        let host = self.host.clone();
        Ok(Box::pin(body.map(move |piece| piece.map_err(|e| HostError::unreachable(&host, e)))))
    }

    async fn clean_up(&self) -> Result<CleanUpReport, HostError> {
        let body = self.call(Method::POST, "clean-up", CLEAN_UP, Some(&CleanUpRequest::default())).await?;
        self.read(&body)
    }

    async fn facts(&self) -> Result<HostInfo, HostError> {
        self.read(&self.call(Method::GET, "info", ASK, NOTHING).await?)
    }

    async fn changes(&self, after: Option<&str>) -> Result<Option<NewsStream>, HostError> {
        let mut request = self.request(Method::GET, "changes").header(header::ACCEPT, "text/event-stream");
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        match self.open("changes", request).await? {
            Ok(body) => Ok(Some(Box::pin(news(self.host.clone(), body)))),
            // An agent of an older version.
            Err(HostError::Refused { message, .. }) => {
                tracing::debug!(host = self.host, message, "no stream of changes");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// The events of a stream of changes.
fn news(
    host: String,
    body: Body,
) -> impl Stream<Item = Result<(Option<String>, News), HostError>> + Send + 'static {
    struct Reading {
        host: String,
        body: Body,
        lines: Lines,
        reader: SseReader,
        /// Bytes that came since the last event.
        pending: usize,
        over: bool,
    }
    let (lines, reader) = (Lines::default(), SseReader::default());
    let reading = Reading { host, body, lines, reader, pending: 0, over: false };
    stream::unfold(reading, |mut reading| async move {
        if reading.over {
            return None;
        }
        let problem: Box<dyn std::error::Error + Send + Sync> = loop {
            if let Some(line) = reading.lines.next() {
                if line.starts_with(':') {
                    return Some((Ok((None, News::Alive)), reading));
                }
                let Some(event) = reading.reader.line(&line) else { continue };
                reading.pending = reading.lines.waiting();
                let id = Some(event.id).filter(|id| !id.is_empty());
                let kind = event.event.as_deref().unwrap_or("message");
                match read_news(&reading.host, kind, &event.data) {
                    Ok(news) => return Some((Ok((id, news)), reading)),
                    Err(error) => break error.into(),
                }
            }
            match tokio::time::timeout(SILENCE, reading.body.next()).await {
                Ok(Some(Ok(chunk))) => {
                    reading.pending += chunk.len();
                    reading.lines.push(&chunk);
                }
                Ok(Some(Err(error))) => break error.into(),
                Ok(None) => break "it ended its stream of changes".into(),
                Err(_) => break format!("its stream of changes was silent for {SILENCE:?}").into(),
            }
            if reading.pending > MAX_ANSWER {
                break format!("one of its changes is longer than {MAX_ANSWER} bytes").into();
            }
        };
        reading.over = true;
        Some((Err(HostError::unreachable(&reading.host, problem)), reading))
    })
}

fn read_news(host: &str, kind: &str, data: &str) -> Result<News, serde_json::Error> {
    Ok(match kind {
        "hello" => match serde_json::from_str::<Hello>(data)?.procs {
            Some(procs) => News::List(procs.into_iter().map(|proc| proc.on_host(host)).collect()),
            None => News::Alive,
        },
        // Another list comes next.
        "lagged" => News::Alive,
        _ if kind.starts_with("PROCESS_") => {
            let mut change: ProcChange = serde_json::from_str(data)?;
            change.proc = change.proc.on_host(host);
            News::Change(Box::new(change))
        }
        // Something that a newer agent has to say.
        _ => News::Alive,
    })
}

/// Takes bytes and gives lines.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// How many of them were looked through for the end of a line.
    seen: usize,
    /// How many of them were given away.
    given: usize,
}

impl Lines {
    /// Takes what came next.
    pub fn push(&mut self, bytes: &[u8]) {
        // What was given is cut off before the next piece comes, once for all lines of a piece.
        self.bytes.drain(..self.given);
        self.seen -= self.given;
        self.given = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    #[allow(clippy::should_implement_trait, reason = "there may be another one after none")]
    pub fn next(&mut self) -> Option<String> {
        match self.bytes[self.seen..].iter().position(|byte| *byte == b'\n') {
            Some(length) => {
                let end = self.seen + length;
                let line = &self.bytes[self.given..end];
                let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
                self.seen = end + 1;
                self.given = end + 1;
                Some(line)
            }
            None => {
                self.seen = self.bytes.len();
                None
            }
        }
    }

    /// How many bytes there are of a line that has no end yet.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.given
    }

    /// What there is of a line that has no end yet; it is given away.
    pub fn rest(&mut self) -> Option<String> {
        let rest = String::from_utf8_lossy(&self.bytes[self.given..]).into_owned();
        self.given = self.bytes.len();
        self.seen = self.given;
        (!rest.is_empty()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let text = "one\r\ntwo\n\nthrée\nrest";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                lines.push(piece);
                found.extend(std::iter::from_fn(|| lines.next()));
            }
            assert_eq!(found, ["one", "two", "", "thrée"], "{size}");
            assert_eq!((lines.waiting(), lines.rest().as_deref()), (4, Some("rest")));
            assert_eq!(lines.rest(), None);
        }
    }

    #[tokio::test]
    async fn what_takes_long_is_no_silence() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        // Takes the request, and is at it.
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        let driver = AgentDriver::local("web1", socket, Secret::new("token"));
        let longer = ASK + Duration::from_millis(300);
        let error = driver.call(Method::POST, "procs/x/stop", longer, NOTHING).await.unwrap_err();
        assert!(!error.is_unreachable() && error.to_string().contains("still be at it"), "{error}");
        let error = driver.call(Method::GET, "info", ASK, NOTHING).await.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
    }

    #[test]
    fn names_of_procs_are_safe_in_a_path() {
        assert_eq!(proc_path("a-v1+x#?%é-p-0-w-1", "/stop"), "procs/a-v1%2Bx%23%3F%25%C3%A9-p-0-w-1/stop");
    }
}
