//! A client of Supervisor's XML-RPC interface, and what it says of a process.
//!
//! This module must not know who asks, or what becomes of the answers.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value as Json};
use thiserror::Error;
use ureq::unversioned::resolver::DefaultResolver;

use crate::host_api::{ProcDocument, ProcState};
use crate::names::ParsedProcName;
use crate::secret::Secret;
use crate::xmlrpc::{self, Fault, MAX_DOCUMENT, Value, XmlRpcError};

mod unix_socket;

use unix_socket::UnixSocketConnector;

/// How long one try of a call may take, from the connect to the last byte of the answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a call is tried when the server cannot be reached, or is too busy to answer.
const TRIES: u32 = 2;
/// The pause before the second try.
const BACK_OFF: Duration = Duration::from_millis(250);

/// Supervisor's numbers for why it refuses a call.
pub mod fault {
    /// There is no such method.
    pub const UNKNOWN_METHOD: i32 = 1;
    /// Too many or too few parameters, or of the wrong type.
    pub const INCORRECT_PARAMETERS: i32 = 2;
    /// Parameters that do not go together.
    pub const BAD_ARGUMENTS: i32 = 3;
    /// Nothing is known of the method.
    pub const SIGNATURE_UNSUPPORTED: i32 = 4;
    /// It is about to end.
    pub const SHUTDOWN_STATE: i32 = 6;
    /// There is no such process.
    pub const BAD_NAME: i32 = 10;
    /// There is no such signal.
    pub const BAD_SIGNAL: i32 = 11;
    /// There is no such file.
    pub const NO_FILE: i32 = 20;
    /// The program cannot be executed.
    pub const NOT_EXECUTABLE: i32 = 21;
    /// Anything else.
    pub const FAILED: i32 = 30;
    /// The process did not come up, nor was it told to.
    pub const ABNORMAL_TERMINATION: i32 = 40;
    /// The process could not be started, or ended too soon.
    pub const SPAWN_ERROR: i32 = 50;
    /// Asked to start what runs.
    pub const ALREADY_STARTED: i32 = 60;
    /// Asked to stop what does not run.
    pub const NOT_RUNNING: i32 = 70;
    /// Not a fault: how one of several processes is said to have done well.
    pub const SUCCESS: i32 = 80;
    /// Asked to add a group that is there.
    pub const ALREADY_ADDED: i32 = 90;
    /// Asked to remove a group that runs.
    pub const STILL_RUNNING: i32 = 91;
    /// The configuration cannot be read.
    pub const CANT_REREAD: i32 = 92;

    /// How Supervisor calls a fault; its texts begin with that.
    pub fn name(code: i32) -> &'static str {
        match code {
            UNKNOWN_METHOD => "UNKNOWN_METHOD",
            INCORRECT_PARAMETERS => "INCORRECT_PARAMETERS",
            BAD_ARGUMENTS => "BAD_ARGUMENTS",
            SIGNATURE_UNSUPPORTED => "SIGNATURE_UNSUPPORTED",
            SHUTDOWN_STATE => "SHUTDOWN_STATE",
            BAD_NAME => "BAD_NAME",
            BAD_SIGNAL => "BAD_SIGNAL",
            NO_FILE => "NO_FILE",
            NOT_EXECUTABLE => "NOT_EXECUTABLE",
            FAILED => "FAILED",
            ABNORMAL_TERMINATION => "ABNORMAL_TERMINATION",
            SPAWN_ERROR => "SPAWN_ERROR",
            ALREADY_STARTED => "ALREADY_STARTED",
            NOT_RUNNING => "NOT_RUNNING",
            SUCCESS => "SUCCESS",
            ALREADY_ADDED => "ALREADY_ADDED",
            STILL_RUNNING => "STILL_RUNNING",
            CANT_REREAD => "CANT_REREAD",
            _ => "UNKNOWN",
        }
    }
}

/// Why Supervisor did not do what it was asked.
#[derive(Debug, Error)]
pub enum SupervisorError {
    /// The address is not one of `http://host:port` and `unix:///path.sock`.
    #[error("{url:?} is not an address of Supervisor: expected http://host:port or unix:///path.sock")]
    Address {
        /// As it was given, without user name and password.
        url: String,
    },
    /// No answer in time, after all tries.
    #[error("{method} at {url}")]
    Unreachable {
        /// The method.
        method: String,
        /// The server.
        url: String,
        /// The last try's error.
        source: Box<ureq::Error>,
    },
    /// An answer, but not from an XML-RPC method.
    #[error("{method} at {url} was answered with the HTTP status {status}{}", hint(*.status))]
    Status {
        /// The method.
        method: String,
        /// The server.
        url: String,
        /// 401 if user name or password are wrong.
        status: u16,
    },
    /// The call cannot be written, or the answer cannot be read.
    #[error("{method} at {url}")]
    Document {
        /// The method.
        method: String,
        /// The server.
        url: String,
        /// What is wrong.
        source: XmlRpcError,
    },
    /// The answer is XML-RPC but not what the method gives.
    #[error("{method} at {url} gave something else than {expected}")]
    Unexpected {
        /// The method.
        method: String,
        /// The server.
        url: String,
        /// What it should be.
        expected: &'static str,
        /// Why it is not.
        source: serde_json::Error,
    },
    /// Supervisor refused; see [`fault`].
    #[error("{method} at {url}")]
    Refused {
        /// The method.
        method: String,
        /// The server.
        url: String,
        /// Its reason.
        source: Fault,
    },
}

fn hint(status: u16) -> &'static str {
    match status {
        401 => " (wrong user name or password)",
        404 => " (nothing speaks XML-RPC there)",
        _ => "",
    }
}

impl SupervisorError {
    /// Whether Supervisor refused with this [`fault`] code.
    pub fn is_fault(&self, code: i32) -> bool {
        matches!(self, Self::Refused { source, .. } if source.code == code)
    }
}

/// User name and password of Supervisor's HTTP server.
#[derive(Debug, Clone)]
pub struct Login {
    /// The user.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// A blocking client. Every call takes its own connection, so that a client may be kept for as long as one likes.
#[derive(Debug)]
pub struct SupervisorClient {
    agent: ureq::Agent,
    /// For messages, without user name and password.
    shown: String,
    /// What HTTP asks for.
    endpoint: String,
    authorization: Option<Secret>,
}

impl SupervisorClient {
    /// A client of the server at `url`, `http://host:port` or `unix:///path.sock`; nothing is sent yet.
    ///
    /// # Errors
    /// [`SupervisorError::Address`].
    pub fn new(url: &str, login: Option<&Login>) -> Result<Self, SupervisorError> {
        Self::with_timeout(url, login, CALL_TIMEOUT)
    }

    /// As [`Self::new`], with another time for one try of a call.
    ///
    /// # Errors
    /// [`SupervisorError::Address`].
    pub fn with_timeout(
        url: &str,
        login: Option<&Login>,
        timeout: Duration,
    ) -> Result<Self, SupervisorError> {
        let shown = match url.split_once("://") {
            Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit('@').next().unwrap_or(rest)),
            None => url.to_owned(),
        };
        let bad = || SupervisorError::Address { url: shown.clone() };
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(timeout))
            .max_redirects(0)
            .max_idle_connections(0)
            .proxy(None)
            .user_agent("velociraptor")
            .build();
        let (agent, endpoint) = if let Some(path) = url.strip_prefix("unix://") {
            if !path.starts_with('/') {
                return Err(bad());
            }
            let connector = UnixSocketConnector::new(PathBuf::from(path));
            // The address is never resolved: it is a number, and the connector does not look at it.
            let agent = ureq::Agent::with_parts(config, connector, DefaultResolver::default());
            (agent, "http://127.0.0.1/RPC2".to_owned())
        } else {
            let mut parsed = url::Url::parse(url).map_err(|_| bad())?;
            if parsed.scheme() != "http" || parsed.host_str().is_none_or(str::is_empty) {
                return Err(bad());
            }
            if parsed.path() == "/" {
                parsed.set_path("/RPC2");
            }
            // Only the given login counts.
            parsed.set_username("").map_err(|()| bad())?;
            parsed.set_password(None).map_err(|()| bad())?;
            (ureq::Agent::new_with_config(config), parsed.into())
        };
        let authorization = login.map(|login| {
            let pair = format!("{}:{}", login.username, login.password.expose());
            Secret::new(format!("Basic {}", STANDARD.encode(pair)))
        });
        Ok(Self { agent, shown, endpoint, authorization })
    }

    /// What Supervisor knows of all its processes, in its own order.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn all_process_info(&self) -> Result<Vec<ProcessInfo>, SupervisorError> {
        self.call_for("supervisor.getAllProcessInfo", &[], "a list of process infos")
    }

    /// What Supervisor knows of the process `group:process`, or `process` where both names are the same.
    ///
    /// # Errors
    /// As [`Self::call`]; an unknown name is [`fault::BAD_NAME`].
    pub fn process_info(&self, name: &str) -> Result<ProcessInfo, SupervisorError> {
        self.call_for("supervisor.getProcessInfo", &[name.into()], "a process info")
    }

    /// Starts a process and returns at once; one that runs is no error.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn start_process(&self, name: &str) -> Result<(), SupervisorError> {
        match self.call("supervisor.startProcess", &[name.into(), false.into()]) {
            Err(e) if !e.is_fault(fault::ALREADY_STARTED) => Err(e),
            _ => Ok(()),
        }
    }

    /// Tells a process to stop and returns at once; one that does not run is no error.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn stop_process(&self, name: &str) -> Result<(), SupervisorError> {
        match self.call("supervisor.stopProcess", &[name.into(), false.into()]) {
            Err(e) if !e.is_fault(fault::NOT_RUNNING) => Err(e),
            _ => Ok(()),
        }
    }

    /// Calls any method.
    ///
    /// # Errors
    /// [`SupervisorError::Refused`] when Supervisor said no, another when there was no answer, or no good one.
    pub fn call(&self, method: &str, params: &[Value]) -> Result<Value, SupervisorError> {
        let document =
            |source| SupervisorError::Document { method: method.to_owned(), url: self.shown.clone(), source };
        let call = xmlrpc::write_call(method, params).map_err(document)?;
        let mut tried = 1;
        let (status, body) = loop {
            match self.post(&call) {
                // Supervisor answers a call that broke within it with 500, which is not worth another.
                Ok((502..=504, _)) if tried < TRIES => {}
                Ok(answer) => break answer,
                Err(_) if tried < TRIES => {}
                Err(source) => {
                    let (method, url) = (method.to_owned(), self.shown.clone());
                    return Err(SupervisorError::Unreachable { method, url, source: Box::new(source) });
                }
            }
            std::thread::sleep(BACK_OFF * tried);
            tried += 1;
        };
        if status != 200 {
            let (method, url) = (method.to_owned(), self.shown.clone());
            return Err(SupervisorError::Status { method, url, status });
        }
        xmlrpc::read_response(&body).map_err(document)?.map_err(|source| SupervisorError::Refused {
            method: method.to_owned(),
            url: self.shown.clone(),
            source,
        })
    }

    fn call_for<T: for<'de> Deserialize<'de>>(
        &self,
        method: &str,
        params: &[Value],
        expected: &'static str,
    ) -> Result<T, SupervisorError> {
        let answer = self.call(method, params)?.into_json();
        serde_json::from_value(answer).map_err(|source| {
            let (method, url) = (method.to_owned(), self.shown.clone());
            SupervisorError::Unexpected { method, url, expected, source }
        })
    }

    fn post(&self, call: &str) -> Result<(u16, Vec<u8>), ureq::Error> {
        let mut request = self.agent.post(&self.endpoint).header("Content-Type", "text/xml");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization.expose());
        }
        let mut response = request.send(call)?;
        let limit = MAX_DOCUMENT as u64;
        let body = response.body_mut().with_config().limit(limit).read_to_vec()?;
        Ok((response.status().as_u16(), body))
    }
}

/// What Supervisor says of one process: `getProcessInfo`'s struct, and a value of the cache in Redis. Texts are
/// empty and numbers 0 where Supervisor has nothing to say; times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// The process.
    pub name: String,
    /// Its group; the name again unless the configuration says otherwise.
    #[serde(default, deserialize_with = "or_default")]
    pub group: String,
    /// For people.
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    /// When it was last started; 0 for never.
    #[serde(default, deserialize_with = "or_default")]
    pub start: i64,
    /// When it last ended; 0 for never.
    #[serde(default, deserialize_with = "or_default")]
    pub stop: i64,
    /// When Supervisor looked.
    #[serde(default, deserialize_with = "or_default")]
    pub now: i64,
    /// [`ProcState::code`].
    pub state: u32,
    /// [`ProcState::name`].
    pub statename: String,
    /// Why it could not be started.
    #[serde(default, deserialize_with = "or_default")]
    pub spawnerr: String,
    /// Its last exit status.
    #[serde(default, deserialize_with = "or_default")]
    pub exitstatus: i32,
    /// The older name of `stdout_logfile`.
    #[serde(default, deserialize_with = "or_default")]
    pub logfile: String,
    /// The log of its standard output.
    #[serde(default, deserialize_with = "or_default")]
    pub stdout_logfile: String,
    /// The log of its standard error, if that has one of its own.
    #[serde(default, deserialize_with = "or_default")]
    pub stderr_logfile: String,
    /// The process's number; 0 for none.
    #[serde(default, deserialize_with = "or_default")]
    pub pid: u32,
    /// What other versions of Supervisor say beyond that, kept as it is.
    #[serde(flatten)]
    pub other: Map<String, Json>,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(source: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or_default())
}

impl ProcessInfo {
    /// The state by its name; an unknown name is [`ProcState::Unknown`].
    pub fn proc_state(&self) -> ProcState {
        serde_json::from_value(Json::from(self.statename.as_str())).unwrap_or(ProcState::Unknown)
    }

    /// The process as it is shown: with its name taken apart, times as texts, and the host's name.
    pub fn document(&self, host: &str) -> ProcDocument {
        ProcDocument {
            description: self.description.clone(),
            exitstatus: self.exitstatus,
            group: self.group.clone(),
            logfile: self.logfile.clone(),
            name: self.name.clone(),
            now: time(self.now),
            pid: self.pid,
            spawnerr: self.spawnerr.clone(),
            start_time: time(self.start),
            state: self.state,
            statename: self.proc_state(),
            stderr_logfile: self.stderr_logfile.clone(),
            stdout_logfile: self.stdout_logfile.clone(),
            stop_time: time(self.stop),
            parsed: ParsedProcName::parse(&self.name),
            host: String::new(),
            jsname: self.name.replace('.', "dot"),
            id: String::new(),
            usage: None,
        }
        .on_host(host)
    }
}

/// `2012-12-19T06:19:46+00:00`; nothing for 0, which stands for "no time".
fn time(unix_seconds: i64) -> Option<String> {
    let time = Timestamp::from_second(unix_seconds).ok().filter(|_| unix_seconds != 0)?;
    Some(time.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string())
}

#[cfg(test)]
mod tests;
