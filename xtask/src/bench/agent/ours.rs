//! vr-agent, and what a server asks of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vr_common::host_api::{ProcDocument, ProcList, ProcState};
use vr_common::process::command;

use super::processes::start;
use super::{PATIENCE, name, read, until};
use crate::bench::world::World;

/// What the agent wants to hear.
const TOKEN: &str = "0123456789abcdef0123";
/// Callers at once. A deploy is answered when its proc has been up for a second, so a few would measure themselves.
const CALLERS: usize = 200;

/// An agent that runs; ended when dropped, without its procs.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    url: String,
    token_file: PathBuf,
    client: ureq::Agent,
}

impl Agent {
    /// Starts one, and waits until it takes requests.
    pub fn start(world: &World, program: &Path, vrun: &Path) -> Result<Self> {
        let [token_file, address_file] = ["token", "address.json"].map(|name| world.path().join(name));
        fs::write(&token_file, TOKEN)?;
        if address_file.exists() {
            fs::remove_file(&address_file)?;
        }
        let mut program = command(program);
        program
            .args(["serve", "--host", "bench", "--listen", "127.0.0.1:0"])
            .arg("--root")
            .arg(world.root())
            .arg("--token-file")
            .arg(&token_file)
            .arg("--address-file")
            .arg(&address_file)
            .env("VR_BIN_DIR", vrun.parent().unwrap_or(vrun))
            .env_remove("RUST_LOG")
            .stderr(Stdio::from(fs::File::create(world.path().join("agent.log"))?));
        let mut child = start(&mut program)?;
        until("the agent's address", || {
            if let Some(status) = child.try_wait()? {
                bail!("the agent ended with {status}: {}", read(&world.path().join("agent.log"))?);
            }
            Ok(address_file.exists())
        })?;
        let address: Value = serde_json::from_str(&read(&address_file)?)?;
        let url = format!("http://{}/v1", address["address"].as_str().context("no address")?);
        let client = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).proxy(None).build().into();
        Ok(Self { child, url, token_file, client })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens, as a server is told.
    pub fn url(&self) -> &str {
        self.url.trim_end_matches("/v1")
    }

    /// The file that holds its token.
    pub fn token_file(&self) -> &PathBuf {
        &self.token_file
    }

    /// What a caller shows it.
    pub fn authorization() -> String {
        format!("Bearer {TOKEN}")
    }

    /// Has all procs set up and running; how long that took.
    pub fn deploy_all(&self, world: &World, ports: &[u16]) -> Result<Duration> {
        eprintln!("deploying {} procs", ports.len());
        let texts = ports.iter().map(|port| {
            let file = world.proc_file(*port, super::COMMAND, world.build(), world.image())?;
            Ok((*port, json!({"proc_yaml": read(&file)?})))
        });
        let texts: Vec<(u16, Value)> = texts.collect::<Result<_>>()?;
        let next = AtomicUsize::new(0);
        let deploy = || -> Result<()> {
            while let Some((port, body)) = texts.get(next.fetch_add(1, Ordering::Relaxed)) {
                let url = format!("{}/procs/{}", self.url, name(*port));
                let request = self.client.put(&url).header("Authorization", Self::authorization());
                request.send_json(body).with_context(|| format!("cannot deploy {}", name(*port)))?;
            }
            Ok(())
        };
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(deploy)).collect();
            callers.into_iter().try_for_each(|caller| match caller.join() {
                Ok(done) => done,
                Err(_) => bail!("a caller broke"),
            })
        })?;
        self.until_running(ports.len())?;
        Ok(begin.elapsed())
    }

    /// All procs.
    pub fn procs(&self) -> Result<Vec<ProcDocument>> {
        let request =
            self.client.get(format!("{}/procs", self.url)).header("Authorization", Self::authorization());
        let mut answer = request.call().context("cannot list procs")?;
        Ok(answer.body_mut().with_config().limit(64 << 20).read_json::<ProcList>()?.procs)
    }

    /// Waits until so many run. One that is given up is an error.
    pub fn until_running(&self, count: usize) -> Result<()> {
        until("all procs to run", || {
            let procs = self.procs()?;
            if let Some(lost) = procs.iter().find(|proc| proc.statename == ProcState::Fatal) {
                bail!("{} was given up: {}", lost.name, lost.description);
            }
            Ok(procs.iter().filter(|proc| proc.statename == ProcState::Running).count() == count)
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ended = self.child.wait();
    }
}
