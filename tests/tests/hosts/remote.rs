//! A host with its agent, as a server sees it: over the network.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vr_common::process::{command, sibling};
use vr_tests::network::{Network, NetworkHost};
use vr_tests::wait_for;

/// What all agents of these tests want to hear.
pub const TOKEN: &str = "0123456789abcdef0123";
/// For everything that happens sooner or later.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// Agents listen here, each at its host's own address.
pub const PORT: u16 = 9002;

/// A host and its agent, if that runs.
pub struct Remote {
    pub host: NetworkHost,
    folder: tempfile::TempDir,
    agent: Option<Child>,
    /// More of the agent's environment.
    pub environment: Vec<(&'static str, String)>,
}

/// Why there was no answer, or not the wanted one.
#[derive(Debug)]
pub enum Failure {
    /// The agent said no.
    Refused(u16, Value),
    /// Nobody said anything, for this reason.
    NoAnswer(#[expect(dead_code, reason = "shown when a test fails")] String),
}

impl Failure {
    /// The sentence of a refusal with this status.
    #[track_caller]
    pub fn sentence(&self, status: u16) -> String {
        match self {
            Self::Refused(found, body) if *found == status => {
                body["error"].as_str().expect("an error's sentence").to_owned()
            }
            _ => panic!("expected {status}: {self:?}"),
        }
    }
}

/// The name of a proc.
pub fn name(port: u16) -> String {
    format!("demo-v1-prod-abcd1234-web-{port}")
}

/// The `proc.yaml` of a proc that sleeps.
fn sleeper(port: u16) -> Value {
    json!({"proc_yaml": format!(
        "app_name: demo\nversion: v1\nconfig_name: prod\nrelease_hash: abcd1234\nproc_name: web\nport: {port}\n\
         cmd: sleep 98765\n"
    )})
}

impl Remote {
    /// A host whose agent is not started yet.
    pub fn new(network: &Network, name: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("vr-host-").tempdir().expect("a temporary folder");
        fs::write(folder.path().join("token"), TOKEN).expect("a token");
        fs::create_dir(folder.path().join("root")).expect("a root");
        Self { host: network.host(name), folder, agent: None, environment: Vec::new() }
    }

    /// A host whose agent answers.
    pub fn started(network: &Network, name: &str) -> Self {
        let mut remote = Self::new(network, name);
        remote.start_agent();
        remote
    }

    /// A file of the host.
    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Starts the agent and waits until it answers.
    pub fn start_agent(&mut self) {
        assert!(self.agent.is_none(), "the agent runs already");
        let log =
            File::options().create(true).append(true).open(self.path("agent.log")).expect("the agent's log");
        let address = self.path("address");
        let _old = fs::remove_file(&address);
        let mut agent = command(sibling("vr-agent"));
        agent
            .args([
                "serve",
                "--host",
                self.host.name(),
                "--listen",
                &format!("{}:{PORT}", self.host.address()),
            ])
            .arg("--root")
            .arg(self.path("root"))
            .arg("--token-file")
            .arg(self.path("token"))
            .arg("--address-file")
            .arg(&address)
            .env("RUST_LOG", "debug")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stderr(log);
        let mut child = self.host.spawn(&mut agent);
        wait_for("the agent to listen", PATIENCE, || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the agent ended with {status}:\n{}", self.log());
            }
            address.exists().then_some(())
        });
        self.agent = Some(child);
    }

    /// What the agent said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// Sends the agent a signal.
    pub fn signal_agent(&self, signal: Signal) {
        let agent = self.agent.as_ref().expect("an agent").id();
        kill(Pid::from_raw(agent.cast_signed()), signal).expect("a signal");
    }

    /// Kills the agent, and nothing else.
    pub fn kill_agent(&mut self) {
        self.signal_agent(Signal::SIGKILL);
        self.agent.take().expect("an agent").wait().expect("the agent's end");
    }

    /// Takes the power away.
    pub fn lose_power(&mut self) {
        self.host.lose_power();
        self.agent.take().expect("an agent").wait().expect("the agent's end");
    }

    /// Gives it back; then only the agent is started, as by systemd.
    pub fn power_on(&mut self) {
        self.host.boot();
        self.start_agent();
    }

    /// Asks the agent from wherever the caller is.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        deadline: Duration,
    ) -> Result<Value, Failure> {
        let client: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(deadline))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}:{PORT}/v1/{path}", self.host.name()))
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/json")
            .body(text)
            .expect("a request");
        let no_answer = |e: ureq::Error| Failure::NoAnswer(e.to_string());
        let mut response = client.run(request).map_err(no_answer)?;
        let status = response.status().as_u16();
        let body = response.body_mut().read_json().map_err(no_answer)?;
        if status < 300 { Ok(body) } else { Err(Failure::Refused(status, body)) }
    }

    /// Asks the agent, which answers.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.ask("GET", path, None, PATIENCE).unwrap_or_else(|e| panic!("{path}: {e:?}\n{}", self.log()))
    }

    /// Has a proc that sleeps set up and running.
    pub fn deploy(&self, port: u16, deadline: Duration) -> Result<Value, Failure> {
        self.ask("PUT", &format!("procs/{}", name(port)), Some(&sleeper(port)), deadline)
    }

    /// Starts, stops or restarts a proc.
    pub fn act(&self, port: u16, action: &str) -> Result<Value, Failure> {
        self.act_within(port, action, PATIENCE)
    }

    /// The same by somebody who does not wait for long.
    pub fn act_within(&self, port: u16, action: &str, deadline: Duration) -> Result<Value, Failure> {
        self.ask("POST", &format!("procs/{}/{action}", name(port)), None, deadline)
    }

    /// What the agent says of a proc.
    #[track_caller]
    pub fn proc(&self, port: u16) -> Value {
        self.get(&format!("procs/{}", name(port)))
    }

    /// Waits until a proc looks as wanted.
    #[track_caller]
    pub fn until(&self, port: u16, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let proc = self.proc(port);
            if wanted(&proc) {
                return proc;
            }
            assert!(Instant::now() < deadline, "no {what}: {proc:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a proc runs, and gives its pid.
    #[track_caller]
    pub fn until_running(&self, port: u16) -> i32 {
        pid(&self.until(port, "RUNNING", |proc| proc["statename"] == "RUNNING"))
    }

    /// How many times vrun was started to run a proc and still waits.
    pub fn waiting_vruns(&self, port: u16) -> usize {
        let file = self.path("root/procs").join(name(port)).join("proc.yaml");
        let words = |pid: &i32| -> Vec<PathBuf> {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0)
                .map(|word| PathBuf::from(String::from_utf8_lossy(word).into_owned()))
                .collect()
        };
        let runs = |pid: &i32| {
            let words = words(pid);
            words.iter().any(|word| word == Path::new("run")) && words.contains(&file)
        };
        let all: Vec<i32> = self.host.processes().into_iter().filter(runs).collect();
        // The container's first process is vrun's own, and has its words.
        all.iter().filter(|pid| parent(**pid).is_none_or(|parent| !all.contains(&parent))).count()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}, the agent's last words", self.host.name());
            let log = self.log();
            let lines: Vec<_> = log.lines().rev().take(60).collect();
            lines.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        self.host.lose_power();
        if let Some(mut agent) = self.agent.take() {
            drop(agent.wait());
        }
    }
}

/// The pid that a proc says it has.
#[track_caller]
pub fn pid(proc: &Value) -> i32 {
    let pid = proc["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
    assert!(pid > 0, "it is down: {proc:#}");
    pid
}

/// Whether a process is there and no zombie.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Kills a process.
pub fn kill_app(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a signal");
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
