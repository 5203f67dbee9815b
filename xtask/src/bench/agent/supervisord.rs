//! Debian's supervisord with the same procs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vr_common::process::command;
use vr_common::supervisor::SupervisorClient;

use super::processes::start;
use super::{name, read, until};
use crate::bench::world::World;

/// One that runs; ended when dropped, with what it started.
#[derive(Debug)]
pub struct Supervisord {
    child: Child,
    client: SupervisorClient,
}

impl Supervisord {
    /// Starts one: each proc is a `program` of its own, either `sleep` itself, or by that vrun a proc that was set up.
    pub fn start(world: &World, ports: &[u16], vrun: Option<&Path>) -> Result<Self> {
        let folder = world.path().join("supervisord");
        let logs = folder.join("logs");
        fs::create_dir_all(&logs)?;
        // A name in the world, by which it is found at the end.
        let sleep = folder.join("sleep");
        fs::copy("/usr/bin/sleep", &sleep)?;
        let path = folder.display();
        let mut config = format!(
            "[supervisord]\nnodaemon=true\nlogfile={path}/log\npidfile={path}/pid\nchildlogdir={path}\nminfds=8192\n\
             environment=VR_ROOT=\"{root}\"\n[unix_http_server]\nfile={path}/sock\n[rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n",
            root = world.root().display()
        );
        for port in ports {
            let (name, own) = (name(*port), world.root().join("procs").join(name(*port)));
            let (run, log) = match vrun {
                Some(vrun) => {
                    (format!("{} run {}/proc.yaml", vrun.display(), own.display()), own.join("log"))
                }
                None => (format!("{} 98765", sleep.display()), logs.join(&name)),
            };
            // As procs on such a host have it.
            writeln!(
                config,
                "[program:{name}]\ncommand={run}\nautostart=true\nautorestart=true\nuser=root\nredirect_stderr=true\n\
                 stdout_logfile={}\nstdout_logfile_maxbytes=10000000\nstdout_logfile_backups=1",
                log.display()
            )?;
        }
        let file = folder.join("supervisord.conf");
        fs::write(&file, config)?;
        let mut program = command("supervisord");
        program.arg("--configuration").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let child = start(&mut program)?;
        let client = SupervisorClient::new(&format!("unix://{path}/sock"), None)?;
        let mut started = Self { child, client };
        until("supervisord's answer", || {
            if let Some(status) = started.child.try_wait()? {
                bail!("supervisord ended with {status}: {}", read(&folder.join("log"))?);
            }
            Ok(started.client.all_process_info().is_ok())
        })?;
        Ok(started)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until so many run. One that is given up is an error.
    pub fn until_running(&self, count: usize) -> Result<()> {
        until("all programs to run", || {
            let infos = self.client.all_process_info()?;
            if let Some(lost) = infos.iter().find(|info| info.statename == "FATAL") {
                bail!("{} was given up: {}", lost.name, lost.description);
            }
            Ok(infos.iter().filter(|info| info.statename == "RUNNING").count() == count)
        })
    }
}

impl Drop for Supervisord {
    fn drop(&mut self) {
        // Its children are ended with the world: to be asked one after the other takes minutes.
        let _gone = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ended = self.child.wait();
    }
}
