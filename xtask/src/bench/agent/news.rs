//! How soon a change of a proc is known to those who follow the agent, and to those who follow a server.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vr_common::api::Client;
use vr_common::credentials::Credentials;
use vr_common::host_api::{ProcChange, ProcState};
use vr_common::process::command;

use super::ours::Agent;
use super::processes::start;
use super::{PATIENCE, name, read, until};
use crate::bench::stats::Samples;
use crate::bench::world::World;

/// Between two kills.
const PAUSE: Duration = Duration::from_millis(25);

/// How soon the changes were there.
#[derive(Debug)]
pub struct News {
    /// Where they were followed, and how long each took from when the agent saw it.
    pub rows: Vec<(&'static str, Samples)>,
    /// From the kill of an app to the agent's first word of it.
    pub noticed: Samples,
}

/// Follows both while apps are killed.
pub fn measure(world: &World, agent: &Agent, program: &Path, ports: &[u16], kills: u32) -> Result<News> {
    eprintln!("killing {kills} apps and following the news");
    let server = Server::start(world, agent, program)?;
    let at_agent = Reader::start(&format!("{}/v1/changes", agent.url()), &Agent::authorization())?;
    let at_server =
        Reader::start(&format!("{}/api/streams/proc_changes/", server.url), &server.authorization)?;
    // A stream that has not begun yet would miss the first ones.
    server.until_it_knows(ports.len())?;

    let pids: BTreeMap<String, u32> = agent.procs()?.into_iter().map(|proc| (proc.name, proc.pid)).collect();
    let mut killed = Vec::new();
    for port in ports.iter().cycle().take(usize::try_from(kills)?.min(ports.len())) {
        let name = name(*port);
        let pid = pids.get(&name).with_context(|| format!("{name} is gone"))?;
        let at = SystemTime::now();
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)
            .with_context(|| format!("cannot kill {name}"))?;
        killed.push((name, at));
        std::thread::sleep(PAUSE);
    }
    until("all changes", || {
        let all = |reader: &Reader| {
            let told = reader.told();
            killed.iter().all(|(name, _)| told.iter().any(|told| told.runs && &told.name == name))
        };
        Ok(all(&at_agent) && all(&at_server))
    })?;

    let mut noticed = Samples::default();
    let told = at_agent.told();
    for (name, at) in killed {
        let first = told.iter().find(|told| told.name == name).context("a kill that nobody told of")?;
        noticed.push(first.arrived.duration_since(at).unwrap_or_default());
    }
    let rows =
        [("the agent's `/v1/changes`", at_agent), ("the server's `/api/streams/proc_changes/`", at_server)];
    let rows = rows.map(|(name, reader)| (name, reader.samples()));
    Ok(News { rows: rows.into(), noticed })
}

/// A change that somebody was told of.
#[derive(Debug, Clone)]
struct Told {
    name: String,
    /// Whether it says that the proc runs, which is the last thing that a killed app brings.
    runs: bool,
    happened: SystemTime,
    arrived: SystemTime,
}

/// Somebody who follows a stream of changes.
struct Reader {
    told: Arc<Mutex<Vec<Told>>>,
}

impl Reader {
    /// Begins, and comes back when the stream has begun.
    fn start(url: &str, authorization: &str) -> Result<Self> {
        let client: ureq::Agent =
            ureq::Agent::config_builder().timeout_connect(Some(PATIENCE)).proxy(None).build().into();
        let request =
            client.get(url).header("Authorization", authorization).header("Accept", "text/event-stream");
        let answer = request.call().with_context(|| format!("cannot follow {url}"))?;
        let mut lines = BufReader::new(answer.into_body().into_reader());
        let mut first = String::new();
        // Both begin with a word before the first change.
        lines.read_line(&mut first).with_context(|| format!("nothing came from {url}"))?;
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        // Ends with the stream.
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let arrived = SystemTime::now();
                let Some(change) = line.strip_prefix("data:") else { continue };
                if let Ok(ProcChange { at, proc, .. }) = serde_json::from_str(change.trim()) {
                    let happened = SystemTime::UNIX_EPOCH + Duration::from_millis(at.unsigned_abs());
                    let runs = proc.statename == ProcState::Running;
                    let told = Told { name: proc.name, runs, happened, arrived };
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(told);
                }
            }
        });
        Ok(Self { told })
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn samples(&self) -> Samples {
        let mut samples = Samples::default();
        for Told { happened, arrived, .. } in self.told() {
            samples.push(arrived.duration_since(happened).unwrap_or_default());
        }
        samples
    }
}

/// A server whose only host but its own is the agent's.
struct Server {
    child: Child,
    url: String,
    authorization: String,
    client: Client,
}

impl Server {
    fn start(world: &World, agent: &Agent, program: &Path) -> Result<Self> {
        let [data, credentials, said, log] =
            ["data", "credentials.yaml", "server.out", "server.log"].map(|name| world.path().join(name));
        fs::create_dir_all(&data)?;
        let settings = json!({"HOSTS": {"agent": {"token_file": agent.token_file()}}});
        fs::write(data.join("settings.yaml"), settings.to_string())?;
        let mut program = command(program);
        program
            .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .env("VELOCIRAPTOR_CREDENTIALS", &credentials)
            .stdout(Stdio::from(fs::File::create(&said)?))
            .stderr(Stdio::from(fs::File::create(&log)?));
        let mut child = start(&mut program)?;
        until("the server's address", || {
            if let Some(status) = child.try_wait()? {
                bail!("the server ended with {status}: {}", read(&log)?);
            }
            Ok(read(&said)?.contains("Stop everything with"))
        })?;
        let said = read(&said)?;
        let url = said
            .lines()
            .find_map(|line| line.strip_prefix("Velociraptor is at "))
            .context("no address")?
            .to_owned();
        let credentials = Credentials::load_from(&credentials)?;
        let login = credentials.login(&url).context("no login")?;
        let words = format!("{}:{}", login.username, login.password.expose());
        let authorization = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(words));
        let client = Client::new(&url, &login.username, &login.password);
        let host = json!({"name": "bench", "driver": "agent", "agent_url": agent.url()});
        client.create("/api/v1/hosts/", &host)?;
        Ok(Self { child, url, authorization, client })
    }

    /// Waits until it has seen so many procs.
    fn until_it_knows(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        until("the server to know all procs", || {
            let list: Value = self.client.get("/api/v1/hosts/bench/procs/")?;
            let known = list["objects"].as_array().map_or(0, Vec::len);
            if Instant::now() > deadline {
                bail!("the server knows {known} procs: {list}");
            }
            Ok(known == count)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ended = self.child.wait();
    }
}
