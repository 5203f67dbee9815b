//! `vr-server up` and `vr-server down`: everything on one machine.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use vr_balancer::{Balancer, ProxyBalancer};
use vr_common::credentials::Credentials;
use vr_common::exit::chain;
use vr_common::lock::{FileLock, LockError};
use vr_common::secret::Secret;

use crate::api::{self, ApiState, Auth};
use crate::companions::{Companion, CompanionError};
use crate::conductor::building::Vbuild;
use crate::conductor::{Balancers, Conductor, Settings};
use crate::events::EventLog;
use crate::hosts::{AgentDriver, Connector, Fleet, HostDriver, PubSub};
use crate::serve::serve;
use crate::settings::{SettingsError, SettingsFile, UpFlags};
use crate::store::{Store, StoreError};

/// Why `up` or `down` failed.
#[derive(Debug, Error)]
pub enum UpError {
    /// A flag or the settings file is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A file cannot be used.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// Such as `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server is at the same data folder.
    #[error("a server already runs on {}", .0.display())]
    Running(PathBuf),
    /// No server was ever at the folder.
    #[error("{} is not a server's data folder: it has no file named lock", .0.display())]
    NoServer(PathBuf),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The agent or the proxy did not come up.
    #[error(transparent)]
    Companion(#[from] CompanionError),
    /// The conductor is gone, which is a defect; a server without it would take requests and do nothing.
    #[error("the conductor ended by itself; apps and their traffic go on, start the server again")]
    ConductorEnded,
    /// Something of the operating system failed.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A process did not end.
    #[error("process {pid} ({what}) did not end within {seconds} s")]
    StillThere {
        /// The process.
        pid: i32,
        /// What it is.
        what: &'static str,
        /// How long was waited.
        seconds: u64,
    },
}

/// Where things are in a data folder.
#[derive(Debug, Clone)]
struct Layout(PathBuf);

impl Layout {
    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UpError {
    let path = path.to_owned();
    move |source| UpError::File { doing, path, source }
}

/// Writes a file that only its owner may read, whole or not at all.
fn write_private(path: &Path, text: &str) -> Result<(), UpError> {
    let aside = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().map_err(file_error("write", path))
}

/// The secret in a file; a new random one when there is no such file.
fn keep_secret(path: &Path) -> Result<Secret, UpError> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(Secret::new(text.trim())),
        Ok(_) => new_secret(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => new_secret(path),
        Err(e) => Err(file_error("read", path)(e)),
    }
}

fn new_secret(path: &Path) -> Result<Secret, UpError> {
    let secret = Secret::random();
    write_private(path, &format!("{}\n", secret.expose()))?;
    Ok(secret)
}

/// Runs a server, its agent and its proxy until SIGTERM or SIGINT. Apps, agent and proxy stay up after it.
pub async fn up(flags: UpFlags) -> Result<(), UpError> {
    fs::create_dir_all(&flags.data_dir).map_err(file_error("make", &flags.data_dir))?;
    let data_dir = fs::canonicalize(&flags.data_dir).map_err(file_error("find", &flags.data_dir))?;
    // The database holds the apps' settings, and the builds' names are all that guards them.
    fs::set_permissions(&data_dir, fs::Permissions::from_mode(0o700))
        .map_err(file_error("close to others", &data_dir))?;
    let layout = Layout(data_dir.clone());
    // Held for as long as the server lives.
    let _lock = take_lock(&layout)?;
    let file = SettingsFile::load(&layout.at("settings.yaml"))?;
    for name in ["files", "logs", "agent", "balancer", "apps"] {
        let dir = layout.at(name);
        fs::create_dir_all(&dir).map_err(file_error("make", &dir))?;
    }

    let listener = TcpListener::bind(flags.listen)
        .await
        .map_err(|source| UpError::Listen { address: flags.listen.to_string(), source })?;
    let address = listener
        .local_addr()
        .map_err(|source| UpError::Listen { address: flags.listen.to_string(), source })?;
    let url = format!("http://{address}");
    let public_url = flags.public_url.clone().unwrap_or_else(|| url.clone());

    let store = Store::open(&layout.at("velociraptor.db")).await?;
    let events = EventLog::new(store.clone());
    // The lock says that the worker of that name, which was this server's predecessor, is dead.
    let worker = flags.host_name.to_string();
    store.end_leases_of(&worker).await?;

    let token = keep_secret(&layout.at("agent-token"))?;
    let agent_socket = layout.at("agent").join("agent.sock");
    let driver = AgentDriver::local(flags.host_name.as_str(), agent_socket.clone(), token);

    let stop = CancellationToken::new();
    let agent = Arc::new(LocalAgent {
        layout: layout.clone(),
        host: flags.host_name.to_string(),
        socket: agent_socket,
        driver: driver.clone(),
        store: store.clone(),
    });
    let agent_process = agent.companion();
    agent_process.ensure(|| agent.answers()).await?;
    agent.register().await;

    let socket = layout.at("balancer").join("control.sock");
    let proxy: Arc<dyn Balancer> = Arc::new(ProxyBalancer::new("default", &socket));
    let proxy_process = proxy_companion(&layout, &flags, &socket);
    let proxy_answers = {
        let proxy = Arc::clone(&proxy);
        move || {
            let proxy = Arc::clone(&proxy);
            async move { proxy.list_pools().await.is_ok() }
        }
    };
    proxy_process.ensure(&proxy_answers).await?;
    let balancers: Balancers = Arc::new(match &file.balancers {
        None => [("default".to_owned(), proxy)].into(),
        Some(mapping) => vr_balancer::from_config(mapping)
            .map_err(|source| SettingsError::Balancers { path: layout.at("settings.yaml"), source })?,
    });

    let default_url = public_url.clone();
    let connector = Connector::new(file.hosts, store.clone(), Some((agent.url(), driver)));
    let wrong = |message| SettingsError::Hosts { path: layout.at("settings.yaml"), message };
    connector.check().map_err(wrong)?;
    let connector = Arc::new(connector);
    let fleet = Fleet::new(store.clone(), events.clone(), move |host| connector.driver(host));
    if let Some(redis) = &file.events_pubsub_url {
        let pubsub = PubSub::new(redis.expose())
            .map_err(|_| wrong("EVENTS_PUBSUB_URL: expected redis://HOST:PORT/DATABASE".to_owned()))?;
        pubsub.start(&fleet).map_err(|e| UpError::System { doing: "start a thread", source: e.into() })?;
    }
    let builder = Vbuild {
        work: layout.at("work"),
        files: layout.at("files"),
        home: layout.at("builder"),
        root: layout.at("apps"),
    };
    if let Err(error) = builder.remove_leftovers() {
        // A vbuild of the server before this one may be ending just now.
        tracing::warn!(%error, "{} was not cleared", builder.work.display());
    }

    let new_password = make_admin(&store, &layout, &url).await?;
    let wake = Arc::new(Notify::new());
    let settings = Settings {
        ports: flags.proc_ports,
        grace: Duration::from_secs(flags.drain_grace),
        ..Settings::new(&worker, &default_url)
    };
    let conductor = Conductor::new(
        store.clone(),
        events.clone(),
        fleet.clone(),
        Arc::clone(&balancers),
        Arc::new(builder),
        settings,
        Arc::clone(&wake),
    );
    fleet.look_at_all().await;
    let router = api::router(ApiState {
        store: store.clone(),
        events,
        fleet: fleet.clone(),
        balancers,
        wake,
        files: layout.at("files"),
        auth: Auth::new(store.clone()),
        stop: stop.clone(),
    });

    greet(&url, &layout, new_password);

    let mut tasks = tokio::task::JoinSet::new();
    {
        let (conductor, stop) = (conductor.clone(), stop.clone());
        tasks.spawn(async move {
            // Whatever ends it: a server that answers and does nothing would be worse than none.
            let _end = stop.clone().drop_guard();
            conductor.run(stop).await;
        });
    }
    {
        let (fleet, stop) = (fleet.clone(), stop.clone());
        tasks.spawn(async move {
            fleet.run(stop).await;
        });
    }
    {
        let (agent, stop) = (Arc::clone(&agent), stop.clone());
        tasks.spawn(async move {
            agent_process.keep(|| agent.answers_and_is_known(), stop).await;
        });
    }
    {
        let stop = stop.clone();
        tasks.spawn(async move { proxy_process.keep(proxy_answers, stop).await });
    }

    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    let asked_to_end = CancellationToken::new();
    {
        let (stop, asked_to_end) = (stop.clone(), asked_to_end.clone());
        tasks.spawn(async move {
            tokio::select! {
                _ = terminate.recv() => asked_to_end.cancel(),
                _ = interrupt.recv() => asked_to_end.cancel(),
                () = stop.cancelled() => {}
            }
            stop.cancel();
        });
    }
    serve(listener, router, stop.clone()).await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    store.close().await;
    if !asked_to_end.is_cancelled() {
        return Err(UpError::ConductorEnded);
    }
    eprintln!(
        "The server has ended; apps and their traffic go on. To end those too: vr-server down --data-dir {}",
        data_dir.display()
    );
    Ok(())
}

fn signals(kind: SignalKind) -> Result<tokio::signal::unix::Signal, UpError> {
    signal(kind).map_err(|e| UpError::System { doing: "listen for signals", source: e.into() })
}

/// Takes the data folder's lock, and writes into it whose it is.
fn take_lock(layout: &Layout) -> Result<FileLock, UpError> {
    let path = layout.at("lock");
    let lock = FileLock::create(&path).map_err(|e| match e {
        LockError::Held(_) => UpError::Running(layout.0.clone()),
        LockError::Io { path, source } => UpError::File { doing: "lock", path, source },
    })?;
    let write = || -> io::Result<()> {
        lock.file().set_len(0)?;
        lock.file().write_all(std::process::id().to_string().as_bytes())
    };
    write().map_err(file_error("write", &path))?;
    Ok(lock)
}

/// Makes the user `admin` on the first start, and gives it a new password when the file with the old one is gone;
/// gives whether the password is new.
async fn make_admin(store: &Store, layout: &Layout, url: &str) -> Result<bool, UpError> {
    let path = layout.at("admin-password");
    let first = store.has_no_users().await?;
    // Who may remove the file may also have a new password.
    let new = first || !path.exists();
    let password = keep_secret(&path)?;
    if new {
        let hash = api::hash_password(&password)
            .await
            .map_err(|e| UpError::System { doing: "hash a password", source: e })?;
        store.set_password("admin", &hash).await?;
    }
    // The address may be another one than last time.
    if let Err(error) = Credentials::remember(url, "admin", &password) {
        tracing::warn!("vr-cli will have to be told the password: {}", chain(&error));
    }
    Ok(new)
}

fn greet(url: &str, layout: &Layout, new_password: bool) {
    let password_file = layout.at("admin-password");
    println!("Velociraptor is at {url}");
    if new_password && let Ok(password) = fs::read_to_string(&password_file) {
        println!(
            "User admin, password {} (printed once; kept in {})",
            password.trim(),
            password_file.display()
        );
    }
    println!("Stop everything with: vr-server down --data-dir {}", layout.0.display());
}

/// The agent of this machine.
struct LocalAgent {
    layout: Layout,
    host: String,
    socket: PathBuf,
    driver: AgentDriver,
    store: Store,
}

impl LocalAgent {
    /// Where it is, as the store keeps it.
    fn url(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    fn companion(&self) -> Companion {
        let path = |name: &str| self.layout.at(name).into_os_string();
        Companion {
            program: "vr-agent",
            args: vec![
                "serve".into(),
                "--root".into(),
                path("apps"),
                "--state-dir".into(),
                path("agent"),
                "--listen".into(),
                self.url().into(),
                "--host".into(),
                self.host.clone().into(),
                "--token-file".into(),
                path("agent-token"),
                "--address-file".into(),
                self.layout.at("agent").join("address.json").into(),
            ],
            log: self.layout.at("logs").join("agent.log"),
        }
    }

    async fn answers(&self) -> bool {
        self.driver.procs().await.is_ok()
    }

    /// Whether the agent answers; if so, the store knows where.
    async fn answers_and_is_known(&self) -> bool {
        let answers = self.answers().await;
        if answers {
            self.register().await;
        }
        answers
    }

    /// Tells the store where the agent is.
    async fn register(&self) {
        if let Err(error) = self.store.ensure_host(&self.host, "default", &self.url()).await {
            tracing::error!("host {} was not registered: {}", self.host, chain(&error));
        }
    }
}

fn proxy_companion(layout: &Layout, flags: &UpFlags, socket: &Path) -> Companion {
    let mut args: Vec<OsString> = vec![
        "serve".into(),
        "--state-dir".into(),
        layout.at("balancer").into(),
        "--listen-host".into(),
        flags.route_host.to_string().into(),
        "--ports".into(),
        flags.route_ports.to_string().into(),
        "--control-socket".into(),
        socket.into(),
    ];
    for address in &flags.trusted_proxy {
        args.extend(["--trusted-proxy".into(), address.to_string().into()]);
    }
    Companion { program: "vr-balancer", args, log: layout.at("logs").join("proxy.log") }
}

/// Ends the server of a data folder and everything that it has started: proxy, agent and procs.
/// The next `up` starts the procs again.
pub fn down(data_dir: &Path) -> Result<(), UpError> {
    let data_dir = fs::canonicalize(data_dir).map_err(file_error("find", data_dir))?;
    let layout = Layout(data_dir.clone());
    let lock = layout.at("lock");
    let text = fs::read_to_string(&lock).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => UpError::NoServer(data_dir.clone()),
        _ => file_error("read", &lock)(e),
    })?;
    // A free lock says that the server is gone, whoever may have its pid now.
    if matches!(FileLock::existing(&lock), Err(LockError::Held(_)))
        && let Ok(pid) = text.trim().parse()
    {
        ask_to_end(&[pid]);
        wait_for_end(&[pid], "the server", Duration::from_secs(30))?;
    }
    let agent = processes_of("vr-agent", &data_dir);
    ask_to_end(&agent);
    wait_for_end(&agent, "vr-agent", Duration::from_secs(20))?;
    // All at once, so that their grace periods pass side by side; and once each, as vrun takes a second signal for
    // impatience and kills its app.
    let procs = waiting_vruns(&layout);
    ask_to_end(&procs);
    wait_for_end(&procs, "a proc", Duration::from_secs(120))?;
    let proxy = processes_of("vr-balancer", &data_dir);
    ask_to_end(&proxy);
    wait_for_end(&proxy, "the proxy", Duration::from_secs(40))?;
    println!("Ended: the server, the agent, the proxy and {} procs.", procs.len());
    Ok(())
}

/// The processes that wait for the procs of this machine, without their children: those are the containers' first
/// processes, which end with their parents.
fn waiting_vruns(layout: &Layout) -> Vec<i32> {
    let all = processes_of("vrun", &layout.0);
    let parent = |pid: &i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
    };
    all.iter().filter(|pid| parent(pid).is_none_or(|parent| !all.contains(&parent))).copied().collect()
}

/// Whether a process is the program that it is thought to be, and has a path of this data folder among its arguments.
fn runs(pid: i32, program: &str, data_dir: &Path) -> bool {
    let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut words = cmdline.split(|byte| *byte == 0).map(|word| Path::new(OsStr::from_bytes(word)));
    words.next().and_then(Path::file_name).is_some_and(|name| name == program)
        && words.any(|word| word.starts_with(data_dir))
}

fn processes_of(program: &str, data_dir: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| runs(*pid, program, data_dir))
        .collect()
}

fn ask_to_end(pids: &[i32]) {
    for pid in pids {
        let _gone = kill(Pid::from_raw(*pid), Signal::SIGTERM);
    }
}

fn wait_for_end(pids: &[i32], what: &'static str, patience: Duration) -> Result<(), UpError> {
    let deadline = Instant::now() + patience;
    let gone = |pid: i32| {
        // A zombie has ended; its parent has only not asked yet.
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    };
    for pid in pids {
        while !gone(*pid) {
            if Instant::now() > deadline {
                return Err(UpError::StillThere { pid: *pid, what, seconds: patience.as_secs() });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}
