//! Does what a call asks for.

use std::sync::Arc;

use vr_common::supervisor::fault;
use vr_common::xmlrpc::{Call, Fault, Value};

use super::answer::{Allowance, Budget, Reserved, weight};
use super::arguments::Arguments;
use super::faults::{about, bare};
use super::methods::{self, Method};
use super::procs::{self, Deed};
use super::{configuration, logs, velociraptor};
use crate::host::Host;

/// Supervisor's version of its interface, in all that exist.
const API_VERSION: &str = "3.0";
/// The Supervisor whose answers these are, and which agent gives them; clients that compare versions understand it.
const VERSION: &str = concat!("4.2.5+vr-agent.", env!("CARGO_PKG_VERSION"));
/// Supervisor's number for a supervisor that is up.
const RUNNING: i32 = 1;
/// How a call of several calls is called.
const MULTICALL: &str = "system.multicall";

/// The interface to a host.
#[derive(Debug)]
pub(super) struct Rpc {
    host: Arc<Host>,
    budget: Budget,
}

impl Rpc {
    pub fn new(host: Arc<Host>, budget: Budget) -> Self {
        Self { host, budget }
    }

    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The outcome of a call, and what has to be kept until the caller has it.
    pub async fn call(&self, call: Call) -> (Result<Value, Fault>, Option<Reserved>) {
        let mut answer = Allowance::new(self.budget.clone());
        let done = if call.method == MULTICALL {
            self.several(call.params, &mut answer).await
        } else {
            self.one(&call.method, call.params, &mut answer).await
        };
        (done, answer.into_reserved())
    }

    /// Several calls, one after the other. As with Supervisor, and unlike what its manual says, results are not wrapped
    /// into arrays.
    async fn several(&self, params: Vec<Value>, answer: &mut Allowance) -> Result<Value, Fault> {
        if params.len() != 1 {
            return Err(bare(fault::INCORRECT_PARAMETERS));
        }
        let mut results = Vec::new();
        for call in Arguments::new(params).list()? {
            let result = self.one_that_fits(call, answer).await;
            results.push(result.unwrap_or_else(as_value));
            // Thousands of calls that wait for nothing must not keep a thread from all others.
            tokio::task::yield_now().await;
        }
        Ok(Value::Array(results))
    }

    async fn one_that_fits(&self, call: Value, answer: &mut Allowance) -> Result<Value, Fault> {
        // What nobody could be told is not begun.
        answer.has_room()?;
        let before = answer.left();
        let result = self.one_of_several(call, answer).await?;
        // Some of it may have been counted on the way.
        answer.spend(weight(&result).saturating_sub(before - answer.left()))?;
        Ok(result)
    }

    async fn one_of_several(&self, call: Value, answer: &mut Allowance) -> Result<Value, Fault> {
        let incorrect = |what| about(fault::INCORRECT_PARAMETERS, what);
        let Value::Struct(mut call) = call else {
            return Err(incorrect("a call is a struct with methodName and params"));
        };
        let method = match call.remove("methodName") {
            Some(Value::String(method)) => method,
            _ => return Err(incorrect("No methodName")),
        };
        if method == MULTICALL {
            return Err(incorrect("Recursive system.multicall forbidden"));
        }
        let params = match call.remove("params") {
            None => Vec::new(),
            Some(Value::Array(params)) => params,
            Some(_) => return Err(bare(fault::INCORRECT_PARAMETERS)),
        };
        self.one(&method, params, answer).await
    }

    async fn one(&self, method: &str, params: Vec<Value>, answer: &mut Allowance) -> Result<Value, Fault> {
        let known = Method::find(method).ok_or_else(|| bare(fault::UNKNOWN_METHOD))?;
        if !known.takes(params.len()) {
            return Err(bare(fault::INCORRECT_PARAMETERS));
        }
        let mut given = Arguments::new(params);
        match known.name.split_once('.').unwrap_or_default() {
            ("supervisor", method) => self.supervisor(method, &mut given, answer).await,
            ("vr", method) => self.velociraptor(method, &mut given, answer).await,
            ("system", "listMethods") => Ok(methods::list()),
            ("system", "methodHelp") => methods::help(&given.text()?),
            ("system", "methodSignature") => methods::signature(&given.text()?),
            _ => Err(bare(fault::UNKNOWN_METHOD)),
        }
    }

    async fn supervisor(
        &self,
        method: &str,
        given: &mut Arguments,
        answer: &mut Allowance,
    ) -> Result<Value, Fault> {
        let host = &self.host;
        match method {
            "getAPIVersion" | "getVersion" => Ok(API_VERSION.into()),
            "getSupervisorVersion" => Ok(VERSION.into()),
            "getIdentification" => Ok(host.name().into()),
            "getPID" => Ok(procs::capped(i64::from(std::process::id()))),
            "getState" => Ok(Value::Struct(
                [("statecode".to_owned(), Value::Int(RUNNING)), ("statename".to_owned(), "RUNNING".into())]
                    .into(),
            )),

            "getAllProcessInfo" => Ok(Value::Array(host.list().procs.iter().map(procs::info).collect())),
            "getProcessInfo" => Ok(procs::info(&procs::find_process(host, &given.text()?)?)),
            "getAllConfigInfo" => configuration::all(host).await,

            "startProcess" => {
                let name = given.text()?;
                procs::do_to(host, &name, Deed::Start { wait: given.wait() }).await
            }
            "startProcessGroup" => {
                let name = given.text()?;
                procs::do_to_group(host, &name, Deed::Start { wait: given.wait() }).await
            }
            "startAllProcesses" => Ok(procs::do_to_all(host, Deed::Start { wait: given.wait() }).await),
            "stopProcess" => {
                let name = given.text()?;
                procs::do_to(host, &name, Deed::Stop { wait: given.wait() }).await
            }
            "stopProcessGroup" => {
                let name = given.text()?;
                procs::do_to_group(host, &name, Deed::Stop { wait: given.wait() }).await
            }
            "stopAllProcesses" => Ok(procs::do_to_all(host, Deed::Stop { wait: given.wait() }).await),
            "signalProcess" => {
                let name = given.text()?;
                procs::do_to(host, &name, Deed::Signal(given.signal()?)).await
            }
            "signalProcessGroup" => {
                let name = given.text()?;
                procs::do_to_group(host, &name, Deed::Signal(given.signal()?)).await
            }
            "signalAllProcesses" => Ok(procs::do_to_all(host, Deed::Signal(given.signal()?)).await),

            "reloadConfig" => configuration::compare(host).await,
            "addProcessGroup" => procs::add(host, &given.text()?).await,
            "removeProcessGroup" => procs::remove(host, &given.text()?).await,

            "readProcessStdoutLog" | "readProcessLog" => {
                let path = logs::path(host, &given.text()?).await?;
                logs::read(path, given.integer()?, given.integer()?, answer).await
            }
            "tailProcessStdoutLog" | "tailProcessLog" => {
                let path = logs::path(host, &given.text()?).await?;
                logs::tail(path, given.integer()?, given.integer()?, answer).await
            }
            // Both streams go to one log.
            "readProcessStderrLog" => {
                logs::path(host, &given.text()?).await?;
                Err(bare(fault::NO_FILE))
            }
            "tailProcessStderrLog" => {
                logs::path(host, &given.text()?).await?;
                Ok(Value::Array(vec!["".into(), Value::Int(0), Value::Boolean(false)]))
            }
            "clearProcessLogs" | "clearProcessLog" => {
                procs::do_to_process(host, &given.text()?, Deed::ClearLog).await
            }
            "clearAllProcessLogs" => Ok(procs::do_to_all(host, Deed::ClearLog).await),
            "readLog" | "readMainLog" | "clearLog" => Err(about(
                fault::NO_FILE,
                "the agent's own log goes to its standard error; whoever started it has it",
            )),

            "sendProcessStdin" => {
                let name = given.text()?;
                given.text()?;
                let document = procs::find_process(host, &name)?;
                // As with a process that has closed its standard input.
                Err(about(if document.pid == 0 { fault::NOT_RUNNING } else { fault::NO_FILE }, name))
            }
            "shutdown" | "restart" => Err(about(
                fault::FAILED,
                "vr-agent is ended and restarted by whoever started it, such as systemd, not over this interface",
            )),
            _ => Err(bare(fault::UNKNOWN_METHOD)),
        }
    }

    async fn velociraptor(
        &self,
        method: &str,
        given: &mut Arguments,
        answer: &mut Allowance,
    ) -> Result<Value, Fault> {
        match method {
            "get_velociraptor_info" => velociraptor::settings(&self.host, &given.text()?).await,
            "get_proc_info" => velociraptor::both(&self.host, &given.text()?).await,
            "get_all_procs_info" => velociraptor::all(&self.host, answer).await,
            _ => Err(bare(fault::UNKNOWN_METHOD)),
        }
    }
}

fn as_value(fault: Fault) -> Value {
    let members = [
        ("faultCode".to_owned(), Value::Int(fault.code)),
        ("faultString".to_owned(), Value::String(fault.message)),
    ];
    Value::Struct(members.into())
}
