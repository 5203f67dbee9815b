//! What these tests are made of: a host whose agent answers as Supervisor does, a real supervisord beside it, and
//! `supervisorctl` for both.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::Signal;
use vr_agent::address::{AgentAddress, ListenAddress};
use vr_common::host_api::{DeployRequest, ProcDocument};
use vr_common::process::command;
use vr_common::secret::Secret;
use vr_common::supervisor::{Login, SupervisorClient};
use vr_testing::Started;

use crate::harness::{PATIENCE, Refused, TestHost, Vrun, answer, host_with, send};

pub const USER: &str = "me";
pub const PASSWORD: &str = "thepassword";
/// The SHA-1 sum of [`PASSWORD`].
const SUM: &str = "{SHA}82ab876d1387bfafe46cc1c8a2ef074eae50cb1d";

/// A host whose agent also answers as Supervisor does, at a port with a password.
pub struct RpcHost {
    pub host: TestHost,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl RpcHost {
    pub async fn start(vrun: Vrun) -> Self {
        let dir = tempfile::Builder::new().prefix("vr-agent-rpc-").tempdir().unwrap();
        let password = dir.path().join("password");
        fs::write(&password, format!("{SUM}\n")).unwrap();
        let more = ["--supervisor-listen", "127.0.0.1:0", "--supervisor-username", USER];
        let mut more: Vec<String> = more.map(str::to_owned).to_vec();
        more.extend(["--supervisor-password-file".to_owned(), password.display().to_string()]);
        let socket = dir.path().join("supervisor.sock");
        more.extend(["--supervisor-listen".to_owned(), format!("unix:{}", socket.display())]);
        let host = host_with(vrun, &more, dir).await;
        let said = AgentAddress::load(&host.path("address")).unwrap();
        let Some(ListenAddress::Tcp(address)) = said.supervisor.first() else {
            panic!("{said:?}");
        };
        Self { address: address.to_string(), host }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn socket(&self) -> String {
        format!("unix://{}", self.host.path("supervisor.sock").display())
    }

    pub fn client(&self) -> SupervisorClient {
        let login = Login { username: USER.into(), password: Secret::new(PASSWORD) };
        SupervisorClient::with_timeout(&self.url(), Some(&login), PATIENCE).unwrap()
    }

    pub fn ctl(&self) -> Command {
        supervisorctl(&self.url())
    }

    /// Has a proc, with more lines in its `proc.yaml`.
    pub async fn deploy(&self, name: &str, more: &str) -> Result<ProcDocument, Refused> {
        let request = DeployRequest { proc_yaml: proc_yaml(name, more) };
        answer(self.host.request(Method::PUT, &format!("procs/{name}")).json(&request)).await
    }

    pub fn proc_dir(&self, name: &str) -> PathBuf {
        self.host.path("root/procs").join(name)
    }

    /// Memory of the agent, in KiB.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.host.agent_pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Open files of the agent, among them its connections.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.host.agent_pid())).unwrap().count()
    }
}

/// The `proc.yaml` of a proc of that name.
pub fn proc_yaml(name: &str, more: &str) -> String {
    let parts: Vec<&str> = name.split('-').collect();
    let [app, version, config, hash, proc, port] = parts.as_slice() else { panic!("{name}") };
    format!(
        "app_name: {app}\nversion: {version}\nconfig_name: {config}\nrelease_hash: {hash}\nproc_name: {proc}\n\
         port: {port}\n{more}\n"
    )
}

/// The program, for the server at `url`, with user and password.
pub fn supervisorctl(url: &str) -> Command {
    supervisorctl_as(url, USER, PASSWORD)
}

/// The same with another user and password.
pub fn supervisorctl_as(url: &str, user: &str, password: &str) -> Command {
    let mut ctl = command("supervisorctl");
    // Not the machine's own.
    ctl.args(["-c", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rpc/supervisorctl.conf")]);
    ctl.args(["-s", url, "-u", user, "-p", password]);
    ctl.env("LANG", "C.UTF-8");
    ctl
}

/// Waits for something on the other side of a process, without a runtime.
#[track_caller]
pub fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a program prints, line by line, also when that is a lot.
pub struct Lines(Receiver<String>);

impl Lines {
    pub fn of(program: &mut Started) -> Self {
        let stdout = program.0.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self(lines)
    }

    /// The next line; none at the end.
    #[track_caller]
    pub fn next(&self) -> Option<String> {
        match self.0.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("there is neither a line nor an end"),
        }
    }

    /// Skips everything up to a line.
    #[track_caller]
    pub fn until(&self, wanted: &str) {
        while self.next().expect(wanted) != wanted {}
    }
}

/// Debian's supervisord with the same programs.
pub struct Supervisord {
    child: Child,
    pub dir: tempfile::TempDir,
    port: u16,
}

impl Supervisord {
    /// Starts one with `[program:x]` sections, each in a file of its own below `procs`.
    pub fn start(programs: &[(&str, String)]) -> Self {
        // Another test may take the port before it does.
        for _ in 0..5 {
            if let Some(started) = Self::try_start(programs) {
                return started;
            }
        }
        panic!("supervisord does not start");
    }

    fn try_start(programs: &[(&str, String)]) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("vr-agent-supervisord-").tempdir().unwrap();
        let path = dir.path().display();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "[supervisord]\nlogfile={path}/log\npidfile={path}/pid\nchildlogdir={path}\nnodaemon=true\n\
             [inet_http_server]\nport=127.0.0.1:{port}\nusername={USER}\npassword={SUM}\n\
             [unix_http_server]\nfile={path}/supervisor.sock\nusername={USER}\npassword={SUM}\n\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
             [include]\nfiles={path}/procs/*.conf\n"
        );
        fs::create_dir(dir.path().join("procs")).unwrap();
        fs::write(dir.path().join("supervisord.conf"), config).unwrap();
        for (name, section) in programs {
            fs::write(dir.path().join(format!("procs/{name}.conf")), section).unwrap();
        }
        let child = command("supervisord")
            .arg("--configuration")
            .arg(dir.path().join("supervisord.conf"))
            .stdout(Stdio::null())
            .spawn()
            .expect("supervisor is installed");
        let mut started = Self { child, dir, port };
        let client = started.client();
        wait("supervisord", || {
            if started.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            client.all_process_info().is_ok().then_some(true)
        })
        .then_some(started)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn socket(&self) -> String {
        format!("unix://{}/supervisor.sock", self.dir.path().display())
    }

    pub fn client(&self) -> SupervisorClient {
        let login = Login { username: USER.into(), password: Secret::new(PASSWORD) };
        SupervisorClient::with_timeout(&self.url(), Some(&login), PATIENCE).unwrap()
    }
}

impl Drop for Supervisord {
    fn drop(&mut self) {
        // It ends its children first.
        send(self.child.id(), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(20);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
