//! A host in a temporary folder, and the server's driver for it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vr_common::process::command;
use vr_server::hosts::{Connector, DriverKind, HostDriver, HostsSettings};
use vr_server::store::{HostRow, Store};
use vr_testing::{Sshd, SshdOptions, SudoRule, until};

/// The name of the host, as the server knows it.
pub const HOST: &str = "localhost";
/// The agent's token.
pub const TOKEN: &str = "0123456789abcdef0123";
/// Supervisor's password, with what means something in an ini file.
pub const PASSWORD: &str = "sec ret";

/// What a host has beside the usual.
#[derive(Debug, Default)]
pub struct More {
    /// Arguments of vr-agent.
    pub agent: Vec<String>,
    /// Its address, instead of the loopback's.
    pub address: Option<std::net::IpAddr>,
    /// What vr-agent calls its host, instead of a name that the server does not know.
    pub name: Option<&'static str>,
    /// Lines of supervisord.conf.
    pub supervisord: String,
}

/// A host. Ends all that it started when it is dropped.
pub struct Rig {
    pub kind: DriverKind,
    /// The server's driver of it.
    pub driver: Arc<dyn HostDriver>,
    pub store: Store,
    more: More,
    /// The supervising process.
    daemon: Option<Child>,
    pub port: u16,
    pub sshd: Option<Sshd>,
    pub dir: TempDir,
}

/// The folder with all programs of the workspace.
pub fn programs() -> PathBuf {
    let own = Path::new(env!("CARGO_BIN_EXE_vr-server")).parent().expect("a folder").to_owned();
    for program in ["vr-agent", "vrun"] {
        assert!(own.join(program).is_file(), "build the others first: cargo build -p vr-agent -p vr-runner");
    }
    own
}

impl Rig {
    /// A host of this kind that runs.
    pub async fn start(kind: DriverKind) -> Self {
        Self::start_with(kind, More::default()).await
    }

    /// The same with more settings of its own.
    pub async fn start_with(kind: DriverKind, more: More) -> Self {
        let dir = tempfile::Builder::new().prefix("vr-hosts-").tempdir().expect("a folder");
        let store = Store::open(&dir.path().join("store.db")).await.expect("a store");
        store.ensure_host(HOST, "squad", "http://unused").await.expect("a host");
        fs::write(dir.path().join("token"), TOKEN).expect("a file");
        fs::create_dir_all(dir.path().join("root/procs")).expect("a folder");
        let sshd = (kind == DriverKind::Supervisor)
            .then(|| Sshd::start(SshdOptions { sudo: SudoRule::WithPassword, ..SshdOptions::default() }));
        let placeholder = Arc::new(Connector::new(HostsSettings::default(), store.clone(), None));
        let driver = placeholder.driver(&HostRow::default());
        let mut rig = Self { kind, driver, store, more, daemon: None, port: 0, sshd, dir };
        rig.start_daemon();
        rig.driver = rig.driver_with("");
        rig
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub fn proc_dir(&self, proc: &str) -> PathBuf {
        self.path("root/procs").join(proc)
    }

    /// Settings for the host, with more lines.
    pub fn settings(&self, more: &str) -> HostsSettings {
        let mut text = format!(
            "root: {}\nvrun: {}\nagent: {{port: {port}, token_file: {}}}\n\
             supervisor: {{port: {port}, username: velo, password: \"{PASSWORD}\", poll_seconds: 1}}\n",
            self.path("root").display(),
            programs().join("vrun").display(),
            self.path("token").display(),
            port = self.port,
        );
        if let Some(sshd) = &self.sshd {
            text += &format!(
                "ssh: {{port: {}, user: {}, password: {}, known_hosts: {}, sudo: true}}\n",
                sshd.port(),
                sshd.user(),
                serde_json::to_string(sshd.password()).expect("JSON"),
                sshd.known_hosts().display(),
            );
        }
        if !more.is_empty() {
            text += &format!("overrides: {{{HOST}: {{{more}}}}}\n");
        }
        vr_common::yaml::parse("settings", &text).unwrap_or_else(|e| panic!("{e} in {text}"))
    }

    /// The host as the store has it.
    pub fn row(&self) -> HostRow {
        let row = HostRow { id: 1, name: HOST.into(), active: true, ..HostRow::default() };
        match self.kind {
            DriverKind::Agent => {
                HostRow { agent_url: Some(format!("http://127.0.0.1:{}", self.port)), ..row }
            }
            DriverKind::Supervisor => HostRow { driver: Some("supervisor".into()), ..row },
        }
    }

    /// A driver with other settings for the host.
    pub fn driver_with(&self, more: &str) -> Arc<dyn HostDriver> {
        self.driver_of(&self.row(), more)
    }

    pub fn driver_of(&self, row: &HostRow, more: &str) -> Arc<dyn HostDriver> {
        Arc::new(Connector::new(self.settings(more), self.store.clone(), None)).driver(row)
    }

    /// Starts the supervising process, on the same port as before.
    pub fn start_daemon(&mut self) {
        let deadline = Instant::now() + vr_testing::DEADLINE;
        loop {
            if self.port == 0 {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
                self.port = listener.local_addr().expect("an address").port();
            }
            let mut child = match self.kind {
                DriverKind::Agent => self.agent(),
                DriverKind::Supervisor => self.supervisord(),
            };
            let address = (self.address(), self.port);
            let mut ended = false;
            until("the host answers", || {
                ended = child.try_wait().expect("a child").is_some();
                ended || std::net::TcpStream::connect(address).is_ok()
            });
            if !ended {
                self.daemon = Some(child);
                return;
            }
            // Somebody else took the port after it was found free.
            assert!(Instant::now() < deadline, "it does not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn address(&self) -> std::net::IpAddr {
        self.more.address.unwrap_or(std::net::Ipv4Addr::LOCALHOST.into())
    }

    fn agent(&self) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).expect("a file");
        let mut agent = command(programs().join("vr-agent"));
        let listen = format!("{}:{}", self.address(), self.port);
        let name = self.more.name.unwrap_or("its-own-name");
        agent.args(["serve", "--host", name, "--listen", &listen]).args(&self.more.agent);
        agent.arg("--root").arg(self.path("root")).arg("--token-file").arg(self.path("token"));
        agent.env("RUST_LOG", "debug").env("VR_BIN_DIR", programs()).stderr(log);
        agent.spawn().expect("vr-agent")
    }

    fn supervisord(&self) -> Child {
        let dir = self.dir.path().display();
        // Two groups have a process of the same name, and one program is nobody's.
        let text = format!(
            "[supervisord]\nlogfile={dir}/log\npidfile={dir}/pid\nnodaemon=true\nchildlogdir={dir}\n\
             loglevel=debug\nuser=root\nenvironment=RIG=\"{dir}\"\n\
             [inet_http_server]\nport=127.0.0.1:{port}\nusername=velo\npassword={PASSWORD}\n\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
             [program:foreign]\ncommand=sleep 4000\n\
             [program:worker]\ncommand=sleep 4000\nprocess_name=w%(process_num)d\nnumprocs=2\n\
             [program:other]\ncommand=sleep 4000\nprocess_name=w0\n\
             {more}\n[include]\nfiles={dir}/root/procs/*/proc.conf\n",
            port = self.port,
            more = self.more.supervisord,
        );
        let file = self.path("supervisord.conf");
        fs::write(&file, text).expect("a file");
        let said = fs::File::create(self.path("said")).expect("a file");
        let mut supervisord = command("supervisord");
        supervisord.arg("-c").arg(file).stdout(said.try_clone().expect("a file")).stderr(said);
        supervisord.spawn().expect("supervisord, of Debian's package supervisor")
    }

    pub fn log(&self) -> String {
        ["log", "said"].map(|name| fs::read_to_string(self.path(name)).unwrap_or_default()).concat()
    }

    fn signal(&self, signal: Signal) {
        if let Some(daemon) = &self.daemon {
            kill(Pid::from_raw(daemon.id().cast_signed()), signal).expect("it is there");
        }
    }

    /// Stops the supervising process and, where there is one, the server of SSH: connections stay, nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        if let Some(sshd) = &self.sshd {
            sshd.freeze();
        }
    }

    /// Lets both go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
        if let Some(sshd) = &self.sshd {
            sshd.thaw();
        }
    }

    /// Kills the supervising process.
    pub fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().expect("it can be killed");
            daemon.wait().expect("a child");
        }
    }

    /// All processes that have the host's folder among their words or variables.
    fn processes(&self) -> Vec<Pid> {
        let ours = self.dir.path().display().to_string();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names
            .filter_map(|name| name.parse::<i32>().ok())
            .filter(|pid| {
                ["cmdline", "environ"].iter().any(|file| {
                    let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                    String::from_utf8_lossy(&text).contains(&ours)
                })
            })
            .map(Pid::from_raw)
            .collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the host's log:\n{}", self.log());
        }
        self.thaw();
        if let Some(mut daemon) = self.daemon.take() {
            // Supervisor ends what it has started, foreign programs as well.
            let _gone = kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(20);
            while matches!(daemon.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _gone = daemon.kill();
            let _gone = daemon.wait();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > deadline {
                return;
            }
            for pid in left {
                let _gone = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The name of a proc with this port, and a `proc.yaml` for it with more lines.
pub fn proc(port: u16, more: &str) -> (String, String) {
    named("v1", port, more)
}

/// The same of another version.
pub fn named(version: &str, port: u16, more: &str) -> (String, String) {
    let yaml = format!(
        "app_name: demo\nversion: '{version}'\nconfig_name: prod\nrelease_hash: abcd1234\nproc_name: web\n\
         port: {port}\nhost: 127.0.0.1\nuser: nobody\ngroup: nogroup\n{more}\n"
    );
    (format!("demo-{version}-prod-abcd1234-web-{port}"), yaml)
}
