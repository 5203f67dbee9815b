//! One machine with everything on it, as `vr-server up` makes it.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vr_common::api::{Client, Dispatch, Host, Page, Swarm};
use vr_common::credentials::Credentials;
use vr_common::host_api::{ProcDocument, ProcState, RunStatus};
use vr_common::process::{command, sibling};

use crate::ports::PortBlock;
use crate::repository::Repository;
use crate::wait::wait_for;

/// A server, its agent and its proxy. Dropping it ends all of them and their procs.
#[derive(Debug)]
pub struct Machine {
    root: PathBuf,
    /// Removes the folder at the end, unless it was given.
    _temporary: Option<tempfile::TempDir>,
    ports: PortBlock,
    more_flags: Vec<String>,
    server: Option<Child>,
    listen: String,
    url: String,
    keep: bool,
}

/// A swarm to register; the pool is named after the app.
#[derive(Debug, Clone)]
pub struct NewSwarm<'a> {
    /// The app.
    pub app: &'a str,
    /// How many procs.
    pub size: u32,
    /// Further fields.
    pub more: Value,
}

impl Machine {
    /// A machine in a temporary folder.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A machine in a temporary folder, with further flags of `vr-server up`.
    pub fn start_with(more_flags: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("vr-machine-").tempdir().expect("a temporary folder");
        Self::new(dir.path().to_owned(), Some(dir), more_flags)
    }

    /// A machine in a temporary folder with this `settings.yaml`, whose server listens at an address that its other hosts
    /// reach.
    pub fn start_with_hosts(address: Ipv4Addr, settings: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("vr-machine-").tempdir().expect("a temporary folder");
        let data = dir.path().join("data");
        fs::create_dir(&data)
            .and_then(|()| fs::write(data.join("settings.yaml"), settings))
            .expect("the settings");
        Self::new_at(dir.path().to_owned(), Some(dir), &[], format!("{address}:0"))
    }

    /// A machine in a given folder, which stays.
    pub fn start_in(root: &Path) -> Self {
        Self::new(root.to_owned(), None, &[])
    }

    fn new(root: PathBuf, temporary: Option<tempfile::TempDir>, more_flags: &[&str]) -> Self {
        Self::new_at(root, temporary, more_flags, "127.0.0.1:0".to_owned())
    }

    fn new_at(
        root: PathBuf,
        temporary: Option<tempfile::TempDir>,
        more_flags: &[&str],
        listen: String,
    ) -> Self {
        let mut machine = Self {
            root,
            _temporary: temporary,
            ports: PortBlock::take(),
            more_flags: more_flags.iter().map(|flag| (*flag).to_owned()).collect(),
            server: None,
            listen,
            url: String::new(),
            keep: false,
        };
        fs::create_dir_all(&machine.root).expect("the machine's folder");
        machine.start_server();
        machine
    }

    /// Where everything of the machine is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The server's data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The server's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The ports that procs get.
    pub fn proc_ports(&self) -> (u16, u16) {
        self.ports.procs()
    }

    fn credentials_file(&self) -> PathBuf {
        self.root.join("credentials.yaml")
    }

    /// One of our binaries, with the machine's environment.
    pub fn program(&self, name: &str) -> Command {
        let mut program = command(sibling(name));
        program
            .env("VELOCIRAPTOR_CREDENTIALS", self.credentials_file())
            .env_remove("VELOCIRAPTOR_URL")
            .env_remove("VELOCIRAPTOR_USERNAME")
            .env_remove("VELOCIRAPTOR_PASSWORD");
        program
    }

    /// Starts the server and waits until it answers.
    pub fn start_server(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.root.join("server.log"))
            .expect("the server's log");
        let said = self.root.join("server.out");
        let out = File::create(&said).expect("the server's output");
        // The same address as before, so that those who wait for the server find it again.
        let listen = self.url.strip_prefix("http://").unwrap_or(&self.listen).to_owned();
        let ((first, last), (low, high)) = (self.ports.procs(), self.ports.pools());
        let child = self
            .program("vr-server")
            .args(["up", "--listen", &listen])
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--proc-ports", &format!("{first}-{last}"), "--route-ports", &format!("{low}-{high}")])
            .args(&self.more_flags)
            .stdout(Stdio::from(out))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("vr-server (cargo build --workspace --bins makes it)");
        let mut child = child;
        self.url = wait_for("the server to say where it is", Duration::from_secs(60), || {
            if let Ok(Some(status)) = child.try_wait() {
                let log = fs::read_to_string(self.root.join("server.log")).unwrap_or_default();
                panic!("the server ended with {status}:\n{log}");
            }
            let text = fs::read_to_string(&said).ok()?;
            // The last line says that all is written.
            let ready = text.contains("Stop everything with");
            let line = text.lines().find_map(|line| line.strip_prefix("Velociraptor is at "));
            line.filter(|_| ready).map(str::to_owned)
        });
        self.server = Some(child);
    }

    /// What the server printed on its last start.
    pub fn greeting(&self) -> String {
        fs::read_to_string(self.root.join("server.out")).unwrap_or_default()
    }

    /// Kills the server with SIGKILL.
    pub fn kill_server(&mut self) {
        let mut child = self.server.take().expect("a running server");
        child.kill().expect("to kill the server");
        child.wait().expect("the server's end");
    }

    /// The agent's process.
    pub fn agent_pid(&self) -> i32 {
        let text =
            fs::read_to_string(self.data_dir().join("agent/address.json")).expect("the agent's address");
        let address: Value = serde_json::from_str(&text).expect("the agent's address");
        address["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("the agent's pid")
    }

    /// A client of the API that is logged in as admin.
    pub fn client(&self) -> Client {
        let credentials = Credentials::load_from(&self.credentials_file()).expect("the credentials");
        let login = credentials.login(&self.url).expect("the server's login");
        Client::new(&self.url, &login.username, &login.password)
    }

    /// Runs vr-cli to its end.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.program("vr-cli").args(["--url", &self.url]).args(args).output().expect("vr-cli")
    }

    /// Makes a repository in the machine's folder.
    pub fn repository(&self, name: &str) -> Repository {
        Repository::new(&self.root.join("repos").join(name))
    }

    /// Makes a repository from one of the examples.
    pub fn example(&self, path: &str) -> Repository {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        Repository::from_folder(&self.root.join("repos").join(path), &examples.join(path))
    }

    /// Registers a buildpack.
    pub fn add_buildpack(&self, buildpack: &Repository, order: u32) {
        let body = json!({"repo_url": buildpack.url(), "repo_type": "git", "order": order});
        self.client().create("/api/v1/buildpacks/", &body).expect("a buildpack");
    }

    /// Registers an app.
    pub fn add_app(&self, name: &str, code: &Repository) {
        let body = json!({"name": name, "repo_url": code.url(), "repo_type": "git"});
        self.client().create("/api/v1/apps/", &body).expect("an app");
    }

    /// Registers a swarm of an app's `web` procs with a pool, and gives its path.
    pub fn add_swarm(&self, new: NewSwarm<'_>) -> String {
        let mut body = json!({
            "app": format!("/api/v1/apps/{}/", new.app),
            "squad": "/api/v1/squads/default/",
            "config_name": "demo",
            "proc_name": "web",
            "size": new.size,
            "pool": new.app,
            "balancer": "default",
        });
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), new.more) {
            body.extend(more);
        }
        self.client().create("/api/v1/swarms/", &body).expect("a swarm")
    }

    /// Registers the example `hello_perl` as app `hello` with tags v1 and v2, its buildpack, and a swarm.
    pub fn add_hello(&self, size: u32) -> Repository {
        self.add_buildpack(&self.example("buildpacks/perl"), 0);
        let code = self.example("hello_perl");
        for version in ["v1", "v2"] {
            code.write("VERSION", &format!("{version}\n"));
            code.tag(version);
        }
        self.add_app("hello", &code);
        self.add_swarm(NewSwarm { app: "hello", size, more: Value::Null });
        code
    }

    /// The only swarm.
    pub fn swarm(&self) -> Swarm {
        let mut page: Page<Swarm> = self.client().get("/api/v1/swarms/").expect("the swarms");
        assert_eq!(page.objects.len(), 1, "expected one swarm");
        page.objects.remove(0)
    }

    /// Where the only swarm's pool can be reached, as `host:port`.
    pub fn pool_address(&self) -> String {
        self.swarm().pool_address.expect("the pool's address")
    }

    /// Dispatches the only swarm at a version and gives the dispatch's path.
    pub fn dispatch(&self, version: &str) -> String {
        let (client, swarm) = (self.client(), self.swarm());
        client.patch::<Value>(&swarm.resource_uri, &json!({"version": version})).expect("the version");
        let path = format!("{}swarm/", swarm.resource_uri);
        let started: Value = client.post(&path, &json!({})).expect("a dispatch");
        format!("/api/v1/dispatches/{}/", started["swarm_id"].as_str().expect("a trace id"))
    }

    /// Waits until a dispatch is over.
    pub fn wait_dispatch(&self, path: &str) -> Dispatch {
        wait_for("the dispatch to end", Duration::from_secs(120), || {
            self.client().get::<Dispatch>(path).ok().filter(Dispatch::is_over)
        })
    }

    /// Dispatches the only swarm at a version and waits for its end.
    pub fn swarm_to(&self, version: &str) -> Dispatch {
        self.wait_dispatch(&self.dispatch(version))
    }

    /// All procs as the agent lists them now, through the server's view of its hosts.
    pub fn procs(&self) -> Vec<ProcDocument> {
        let page: Page<Host> = self.client().get("/api/v1/hosts/?limit=0").expect("the hosts");
        page.objects.into_iter().flat_map(|host| host.procs).collect()
    }

    /// Waits until exactly so many procs run, and no other exists; gives them.
    pub fn wait_procs(&self, count: usize) -> Vec<ProcDocument> {
        wait_for(&format!("{count} running procs"), Duration::from_secs(30), || {
            let procs = self.procs();
            let all_up = procs.iter().all(|proc| proc.statename == ProcState::Running);
            (procs.len() == count && all_up).then_some(procs)
        })
    }

    /// The names of all procs that have a folder on the machine.
    pub fn proc_dirs(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.data_dir().join("apps/procs")) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    /// What vrun wrote down of a proc.
    pub fn run_status(&self, proc: &str) -> RunStatus {
        let path = self.data_dir().join("apps/procs").join(proc).join("status.json");
        let text = fs::read_to_string(&path).expect("a proc's status");
        serde_json::from_str(&text).expect("a proc's status")
    }

    /// The pids of all processes that have the machine's folder in their command line or root.
    pub fn processes(&self) -> Vec<(i32, String)> {
        processes_of(&self.root)
    }

    /// Leaves everything running when the value is dropped.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

/// All processes whose command line names a folder.
pub fn processes_of(root: &Path) -> Vec<(i32, String)> {
    let folder = root.display().to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let text = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        (text.contains(&folder) && pid != i32::try_from(std::process::id()).ok()?).then_some((pid, text))
    })
    .collect()
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let down = self.program("vr-server").args(["down", "--data-dir"]).arg(self.data_dir()).output();
        if let Some(mut server) = self.server.take() {
            drop(server.wait());
        }
        // A test that failed may have left things in a state that `down` does not know.
        let left = self.processes();
        for (pid, _) in &left {
            let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if !std::thread::panicking() {
            let down = down.expect("vr-server down");
            assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
            assert!(left.is_empty(), "left over: {left:#?}");
        } else {
            let log = fs::read_to_string(self.root.join("server.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(60).collect();
            eprintln!("--- the server's last words");
            for line in lines.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
