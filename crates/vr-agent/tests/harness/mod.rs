//! A real agent in a folder of its own, with the real vrun or a stand-in, and a client for it.
#![allow(dead_code, reason = "not every test binary uses everything")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use vr_agent::address::AgentAddress;
use vr_common::host_api::{DeployRequest, ErrorBody, ProcDocument, ProcState};
use vr_common::process::command;

pub const TOKEN: &str = "0123456789abcdef0123";
pub const NAME: &str = "demo-v1-prod-abcd1234-web-5001";
/// For everything that happens sooner or later; far longer than it takes.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Which vrun an agent calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vrun {
    Real,
    StandIn,
}

/// A host: its folder and the agent that serves it now. Ends everything that it started.
pub struct TestHost {
    dir: TempDir,
    bin_dir: PathBuf,
    agent: Option<Child>,
    address: String,
    /// What else the agent is told.
    more: Vec<String>,
    has_token: bool,
    /// Where the next agent listens.
    pub listen: String,
    /// The program, with its first arguments, that runs the next agent; none when it runs by itself.
    pub runner: Vec<String>,
    /// Variables of the next agent.
    pub variables: Vec<(&'static str, String)>,
}

/// A host with an agent.
pub async fn host(vrun: Vrun) -> TestHost {
    host_with(vrun, &[], folder()).await
}

/// A folder for a test.
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("vr-agent-test-").tempdir().unwrap()
}

/// Writes a file that only its owner may read.
pub fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A host in a given folder, with an agent that is told more.
pub async fn host_with(vrun: Vrun, more: &[String], dir: TempDir) -> TestHost {
    let mut host = prepared(vrun, more, dir);
    host.start_agent().await;
    host
}

fn prepared(vrun: Vrun, more: &[String], dir: TempDir) -> TestHost {
    write_secret(&dir.path().join("token"), &format!("{TOKEN}\n"));
    let bin_dir = match vrun {
        Vrun::StandIn => {
            let bin_dir = dir.path().join("bin");
            fs::create_dir(&bin_dir).unwrap();
            let program = bin_dir.join("vrun");
            fs::write(&program, include_str!("vrun.sh")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            bin_dir
        }
        Vrun::Real => {
            let agent = Path::new(env!("CARGO_BIN_EXE_vr-agent"));
            let bin_dir = agent.parent().unwrap().to_owned();
            assert!(bin_dir.join("vrun").is_file(), "build vrun first: cargo build -p vr-runner");
            bin_dir
        }
    };
    let listen = "127.0.0.1:0".to_owned();
    let (agent, address, more) = (None, String::new(), more.to_vec());
    let (runner, variables) = (Vec::new(), Vec::new());
    TestHost { dir, bin_dir, agent, address, more, has_token: true, listen, runner, variables }
}

impl TestHost {
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub fn proc_dir(&self) -> PathBuf {
        self.path("root/procs").join(NAME)
    }

    pub fn agent_command(&self) -> std::process::Command {
        let mut agent = match self.runner.split_first() {
            None => agent_program(),
            Some((program, first)) => {
                let mut runner = command(program);
                runner.args(first).arg(env!("CARGO_BIN_EXE_vr-agent"));
                runner
            }
        };
        agent.envs(self.variables.iter().map(|(name, value)| (name, value)));
        agent.args(["serve", "--listen", &self.listen, "--host", "testhost"]).args(&self.more);
        agent.arg("--root").arg(self.path("root"));
        if self.has_token {
            agent.arg("--token-file").arg(self.path("token"));
        }
        agent.arg("--address-file").arg(self.path("address"));
        agent.env("VR_BIN_DIR", &self.bin_dir).env("RUST_LOG", "debug");
        agent
    }

    pub async fn start_agent(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("agent.log")).unwrap();
        let child = self.agent_command().stderr(log).spawn().unwrap();
        let pid = child.id();
        self.agent = Some(child);
        let said = until("the address file", || {
            AgentAddress::load(&self.path("address")).ok().filter(|said| said.pid == pid)
        })
        .await;
        self.address = format!("http://{}", said.address);
    }

    /// A host whose agent has no token.
    pub async fn without_token(vrun: Vrun, more: &[String], dir: TempDir) -> Self {
        let mut host = prepared(vrun, more, dir);
        host.has_token = false;
        host.start_agent().await;
        host
    }

    /// From now on calls go to another agent, which somebody else ends.
    pub fn adopt_address(&mut self, said: &AgentAddress) {
        self.address = format!("http://{}", said.address);
    }

    /// `IP:PORT`.
    pub fn address(&self) -> String {
        self.address.replace("http://", "")
    }

    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    /// `kill -9`, or something gentler; gives the exit code.
    pub fn end_agent(&mut self, signal: Signal) -> Option<i32> {
        let mut agent = self.agent.take().unwrap();
        send(agent.id(), signal);
        agent.wait().unwrap().code()
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        reqwest::Client::builder()
            .no_proxy()
            .build()
            .unwrap()
            .request(method, format!("{}/v1/{path}", self.address))
            .bearer_auth(TOKEN)
            .timeout(Duration::from_secs(90))
    }

    pub async fn call<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Refused> {
        answer(self.request(method, path)).await
    }

    pub fn put(&self, proc_yaml: &str) -> reqwest::RequestBuilder {
        let request = DeployRequest { proc_yaml: proc_yaml.to_owned() };
        self.request(Method::PUT, &format!("procs/{NAME}")).json(&request)
    }

    pub async fn deploy(&self, proc_yaml: &str) -> Result<ProcDocument, Refused> {
        answer(self.put(proc_yaml)).await
    }

    pub async fn post(&self, what: &str) -> Result<ProcDocument, Refused> {
        self.call(Method::POST, &format!("procs/{NAME}/{what}")).await
    }

    pub async fn look(&self) -> ProcDocument {
        self.call(Method::GET, &format!("procs/{NAME}")).await.unwrap()
    }

    /// Waits until the proc looks as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&ProcDocument) -> bool) -> ProcDocument {
        self.until_within(what, PATIENCE, wanted).await
    }

    pub async fn until_within(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&ProcDocument) -> bool,
    ) -> ProcDocument {
        let deadline = Instant::now() + limit;
        loop {
            let document = self.look().await;
            if wanted(&document) {
                return document;
            }
            assert!(Instant::now() < deadline, "no {what}: {document:?}\n{}", self.agent_log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn until_state(&self, state: ProcState) -> ProcDocument {
        self.until(state.name(), |document| document.statename == state).await
    }

    pub fn agent_log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// The processes that were started as `vrun run` for the proc, without those that vrun forked itself.
    pub fn waiting_vruns(&self) -> Vec<u32> {
        let file = self.proc_dir().join("proc.yaml");
        let all =
            processes(|words| words.iter().any(|w| w == "run") && words.iter().any(|w| Path::new(w) == file));
        all.iter().copied().filter(|pid| parent(*pid).is_none_or(|parent| !all.contains(&parent))).collect()
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.agent_log());
        }
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        // Everything else that was started names something in our folder; containers end with their vrun.
        end_all_naming(self.dir.path());
    }
}

/// Kills all processes whose arguments name a folder or something in it.
pub fn end_all_naming(folder: &Path) {
    let ours = folder.display().to_string();
    let left = || processes(|words| words.iter().any(|w| w.contains(&ours)));
    for pid in left() {
        send(pid, Signal::KILL);
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while !left().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The agent's program, without arguments.
pub fn agent_program() -> std::process::Command {
    command(env!("CARGO_BIN_EXE_vr-agent"))
}

/// A refusal, as it came.
#[derive(Debug)]
pub struct Refused {
    pub status: StatusCode,
    pub body: ErrorBody,
}

pub async fn answer<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, Refused> {
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    if status.is_success() {
        return Ok(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}")));
    }
    let body = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {status} {text}"));
    Err(Refused { status, body })
}

/// A `proc.yaml` of the proc [`NAME`], with more lines.
pub fn proc_yaml(more: &str) -> String {
    format!(
        "app_name: demo\nversion: v1\nconfig_name: prod\nrelease_hash: abcd1234\nproc_name: web\nport: 5001\n{more}\n"
    )
}

/// Polls until there is something.
pub async fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process is there and no zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn processes(wanted: impl Fn(&[String]) -> bool) -> Vec<u32> {
    let own = std::process::id();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own && is_alive(*pid))
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<String> =
                line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
            wanted(&words)
        })
        .collect()
}
