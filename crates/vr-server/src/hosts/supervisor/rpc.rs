//! Supervisor's XML-RPC, without waiting threads: hundreds of hosts are asked at once, and some never answer.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use serde::de::DeserializeOwned;
use vr_common::exit::chain;
use vr_common::secret::Secret;
use vr_common::supervisor::ProcessInfo;
use vr_common::xmlrpc::{self, Fault, MAX_DOCUMENT, Value};

use super::super::HostError;
use super::super::connect::challenge;
use super::super::http::{Endpoint, Flow, HttpError};

/// How long one try of a call may take.
const CALL: Duration = Duration::from_millis(4500);
/// How long a call that reads configuration files may take.
const RELOAD: Duration = Duration::from_secs(30);
/// How often a call is tried when the connection breaks, and the pause before the second time.
const TRIES: (u32, Duration) = (2, Duration::from_millis(250));
/// How long an unknown server may take to say what it is.
const SEE: Duration = Duration::from_secs(4);
/// The largest answer of an unknown server, in bytes.
const MAX_SEEN: usize = 64 * 1024;

/// Supervisor's numbers for why it refuses a call.
pub(super) mod fault {
    pub const SHUTDOWN_STATE: i32 = 6;
    pub const BAD_NAME: i32 = 10;
    pub const NO_FILE: i32 = 20;
    pub const ALREADY_STARTED: i32 = 60;
    pub const NOT_RUNNING: i32 = 70;
    pub const ALREADY_ADDED: i32 = 90;
    pub const STILL_RUNNING: i32 = 91;
    pub const CANT_REREAD: i32 = 92;
}

/// A call that was not answered, or answered with a fault.
#[derive(Debug)]
pub(super) enum RpcError {
    Fault(Fault),
    Host(HostError),
}

impl RpcError {
    pub fn is(&self, code: i32) -> bool {
        matches!(self, Self::Fault(fault) if fault.code == code)
    }
}

/// The server of one host.
#[derive(Debug, Clone)]
pub(super) struct Rpc {
    host: String,
    pub endpoint: Endpoint,
    authorization: Option<Secret>,
}

impl Rpc {
    pub fn new(host: &str, endpoint: Endpoint, login: Option<(&str, &Secret)>) -> Self {
        let authorization = login.map(|(username, password)| {
            Secret::new(format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.expose()))))
        });
        Self { host: host.to_owned(), endpoint, authorization }
    }

    /// Whether Supervisor is there; nothing secret is sent to find out.
    pub async fn see(&self) -> Result<bool, HttpError> {
        let request =
            Request::builder().method(Method::POST).uri("/RPC2").header(header::CONTENT_TYPE, "text/xml");
        let Ok(call) = xmlrpc::write_call("supervisor.getAPIVersion", &[]) else { return Ok(false) };
        let answer = match self.endpoint.call(request, call.into(), SEE, MAX_SEEN).await {
            Err(HttpError::Broken { .. } | HttpError::TooLarge { .. }) => return Ok(false),
            answer => answer?,
        };
        Ok(match answer.status {
            // Supervisor's name for what it guards; vr-agent's too, where it speaks for Supervisor.
            StatusCode::UNAUTHORIZED => {
                challenge(&answer.headers).eq_ignore_ascii_case("Basic realm=\"default\"")
            }
            StatusCode::OK => matches!(xmlrpc::read_response(&answer.body), Ok(Ok(Value::String(_)))),
            _ => false,
        })
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(path);
        match &self.authorization {
            Some(authorization) => request.header(header::AUTHORIZATION, authorization.expose()),
            None => request,
        }
    }

    pub fn unreachable(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HostError {
        HostError::unreachable(&self.host, source)
    }

    /// What an HTTP status that is no success means.
    pub fn refusal(&self, status: StatusCode) -> HostError {
        let place = self.endpoint.shown();
        match status {
            StatusCode::UNAUTHORIZED => HostError::denied(
                &self.host,
                match self.authorization {
                    Some(_) => format!(
                        "Supervisor at {place} does not take the user name and password of HOSTS.supervisor"
                    ),
                    None => format!(
                        "Supervisor at {place} wants a user name and a password: set HOSTS.supervisor.username and .password"
                    ),
                },
            ),
            StatusCode::NOT_FOUND => HostError::denied(
                &self.host,
                format!(
                    "nothing at {place} speaks XML-RPC; supervisord.conf needs [rpcinterface:supervisor]"
                ),
            ),
            status => HostError::refused(&self.host, format!("Supervisor at {place} answered {status}")),
        }
    }

    /// Calls a method.
    pub async fn call(&self, method: &str, params: &[Value]) -> Result<Value, RpcError> {
        let deadline = if method == "supervisor.reloadConfig" { RELOAD } else { CALL };
        let odd = |error: xmlrpc::XmlRpcError| {
            RpcError::Host(HostError::refused(&self.host, format!("{method}: {}", chain(&error))))
        };
        let call: Bytes = xmlrpc::write_call(method, params).map_err(odd)?.into();
        let mut tried = 1;
        let answer = loop {
            let request = self.request(Method::POST, "/RPC2").header(header::CONTENT_TYPE, "text/xml");
            match self.endpoint.call(request, call.clone(), deadline, MAX_DOCUMENT).await {
                Ok(answer) => break answer,
                // A server that is restarted refuses or drops connections for a moment; one that is silent stays so.
                Err(HttpError::Broken { .. } | HttpError::Connect { .. }) if tried < TRIES.0 => {
                    tokio::time::sleep(TRIES.1).await;
                    tried += 1;
                }
                Err(error) => return Err(RpcError::Host(self.unreachable(error))),
            }
        };
        if answer.status != StatusCode::OK {
            return Err(RpcError::Host(self.refusal(answer.status)));
        }
        match xmlrpc::read_response(&answer.body).map_err(odd)? {
            Ok(value) => Ok(value),
            Err(fault) => Err(RpcError::Fault(fault)),
        }
    }

    async fn call_for<T: DeserializeOwned>(&self, method: &str, params: &[Value]) -> Result<T, RpcError> {
        let value = self.call(method, params).await?.into_json();
        serde_json::from_value(value).map_err(|e| {
            RpcError::Host(HostError::refused(&self.host, format!("{method} gave something unexpected: {e}")))
        })
    }

    pub async fn all(&self) -> Result<Vec<ProcessInfo>, RpcError> {
        self.call_for("supervisor.getAllProcessInfo", &[]).await
    }

    pub async fn info(&self, name: &str) -> Result<ProcessInfo, RpcError> {
        self.call_for("supervisor.getProcessInfo", &[name.into()]).await
    }

    /// The end of a log.
    pub async fn tail(&self, name: &str, bytes: i32) -> Result<String, RpcError> {
        let (text, _, _): (String, i64, bool) =
            self.call_for("supervisor.tailProcessStdoutLog", &[name.into(), 0.into(), bytes.into()]).await?;
        Ok(text)
    }

    /// A log as it grows.
    pub async fn follow(&self, name: &str) -> Result<Flow, HostError> {
        let name: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
        let request = self.request(Method::GET, &format!("/logtail/{}", name.replace('+', "%20")));
        self.endpoint.open(request, CALL).await.map_err(|e| self.unreachable(e))
    }
}
