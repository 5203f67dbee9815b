//! HAProxy (2.4 and newer): a pool is a file `<include_dir>/<pool>.cfg` with one `backend` section.
//!
//! HAProxy reads the folder when it is started with `-f <include_dir>` after the operator's own file. Nodes come and go
//! at run time, through the stats socket, without a reload: a new one is added and made ready, one that leaves is put
//! into maintenance, in which it gets no new request while those that it has go on, and is deleted when nothing refers to
//! it any more. A reload is made for new and deleted pools, and where the socket cannot do what the file says: a backend
//! with a static balance algorithm, `default-server`, `on-marked-down`, and options that it does not take.

mod runtime;
mod section;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep};
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};

use crate::pools_in_files::{Change, PoolEdit, Program, Refusal};
use crate::site::{Command, Endpoint, FileOnSite, OpenConnections, Site, SiteError};
use runtime::{Running, SHOW_STATE, State};
use section::{Section, Server};

/// What is done when nothing else is said; the paths are Debian's.
pub const INCLUDE_DIR: &str = "/etc/haproxy/pools/";
const RELOAD: &str = "/etc/init.d/haproxy reload";
const CONFIG: &str = "/etc/haproxy/haproxy.cfg";
const STATS_SOCKET: &str = "/run/haproxy/admin.sock";
/// For an answer from the stats socket.
const ANSWER: Duration = Duration::from_secs(20);
/// For a new process to serve after a reload.
const NEW_WORKER: Duration = Duration::from_secs(20);
/// From when a request has chosen its server until it is counted there.
const SETTLING: Duration = Duration::from_millis(100);
/// Commands in one line; HAProxy takes 16 KiB.
const COMMANDS: usize = 50;
/// With more connections than this, the list of requests is too long to look for those that know a server.
const MOST_CONNECTIONS: u64 = 20_000;

/// Prints `C` if the process is HAProxy, `O PID` for each process from before its start that is still there, `D FILE` for
/// each file of its configuration with a `default-server`, or that cannot be found, and `A NAME ADDRESS` for each of the
/// host names that follow the process in the arguments. A process that replaces others has their numbers behind `-sf`.
const PROCESS: &str = r#"
set -u
pid=$1
shift
for name; do getent ahosts "$name" | while read -r address rest; do echo "A $name $address"; done; done
[ -r "/proc/$pid/cmdline" ] || exit 0
case $(cat "/proc/$pid/comm" 2>/dev/null) in *haproxy*) echo C ;; *) exit 0 ;; esac
cd "/proc/$pid/cwd" 2>/dev/null || cd /
look() {
    if [ -d "$1" ]; then
        for file in "$1"/*.cfg; do [ ! -e "$file" ] || look "$file"; done
    elif [ ! -r "$1" ] || grep -qE '^[[:space:]]*default-server([[:space:]]|$)' -- "$1"; then
        echo "D $1"
    fi
}
what=
tr '\0' '\n' <"/proc/$pid/cmdline" | while IFS= read -r word; do
    case $what$word in
    -sf | -st) what=old ;;
    -f) what=file ;;
    --) what=files ;;
    old[0-9]*)
        if grep -qs haproxy "/proc/$word/comm" && ! grep -qs '^State:.Z' "/proc/$word/status"; then echo "O $word"; fi ;;
    file*) look "$word"; what= ;;
    files*) look "$word" ;;
    *) what= ;;
    esac
    case $word in -sf | -st) what=old ;; -f) what=file ;; esac
done
exit 0
"#;

/// How HAProxy is told.
#[derive(Debug, Clone)]
pub struct Haproxy {
    /// Reloads the configuration; a line for the shell.
    pub reload_cmd: String,
    /// Tests it; a line for the shell.
    pub test_cmd: String,
    /// Where it takes commands, at level admin.
    pub stats_socket: Endpoint,
    /// What follows the address of a new node in its `server` line, such as `check inter 2s`.
    pub server_options: String,
    /// The folder of the pools' files.
    pub include_dir: String,
}

impl Haproxy {
    /// As Debian sets it up, with the pools' files in this folder.
    pub fn new(include_dir: impl Into<String>) -> Self {
        let include_dir = include_dir.into();
        Self {
            reload_cmd: RELOAD.to_owned(),
            test_cmd: format!("haproxy -c -f {CONFIG} -f '{}'", include_dir.replace('\'', r"'\''")),
            stats_socket: Endpoint::Unix(STATS_SOCKET.into()),
            server_options: String::new(),
            include_dir,
        }
    }

    async fn tell(&self, site: &Site, commands: &str) -> Result<String, SiteError> {
        let answer = site.exchange(&self.stats_socket, format!("{commands}\n").into_bytes(), ANSWER).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    async fn state(&self, site: &Site) -> Result<State, Refusal> {
        self.read_state(&self.tell(site, SHOW_STATE).await?)
    }

    fn read_state(&self, answer: &str) -> Result<State, Refusal> {
        State::read(answer).ok_or_else(|| {
            let said = answer.lines().find(|line| !line.is_empty()).unwrap_or("nothing");
            Refusal::NotServed(format!("{} does not tell haproxy's state, but {said:?}", self.stats_socket))
        })
    }

    /// The sections of the pools that a change is about, as they are in their files now; of those without a file, none.
    async fn sections(&self, site: &Site, change: &Change) -> Result<BTreeMap<PoolName, Section>, Refusal> {
        let names: Vec<String> = change.pools.iter().map(|edit| self.file(&edit.pool)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let files = site.read(self.include_dir.trim_end_matches('/'), &names).await?;
        let mut sections = BTreeMap::new();
        for PoolEdit { pool, .. } in &change.pools {
            let Some(file) = files.iter().find(|file| file.name == self.file(pool)) else { continue };
            let section = section::find(pool, &file.text).map_err(|reason| self.unserved(pool, &reason))?;
            sections.extend(section.map(|section| (pool.clone(), section)));
        }
        Ok(sections)
    }

    fn file(&self, pool: &PoolName) -> String {
        format!("{pool}{}", self.suffix())
    }

    fn unserved(&self, pool: &PoolName, reason: &str) -> Refusal {
        let dir = self.include_dir.trim_end_matches('/');
        Refusal::NotServed(format!("haproxy does not load {dir}/{}: {reason}", self.file(pool)))
    }

    /// Brings the running process in line with the files, without a reload. Says why that cannot be done, if so; then what
    /// was done is something that a reload does, too.
    async fn by_socket(&self, site: &Site, change: &Change) -> Result<Result<(), String>, Refusal> {
        let cannot = |reason: &str| Ok(Err(reason.to_owned()));
        if change.everything || change.pools.is_empty() {
            return cannot("all of the configuration has to be read");
        }
        let (state, sections) = (self.state(site).await?, self.sections(site, change).await?);
        let mut pools = Vec::new();
        for edit in &change.pools {
            match (&edit.after, state.pool(&edit.pool), sections.get(&edit.pool)) {
                (None, None, _) => {}
                (Some(_), Some(running), Some(section)) => pools.push((edit, running, section)),
                _ => return cannot("a backend comes or goes"),
            }
        }
        if pools.iter().any(|(.., section)| section.needs_reload) {
            return cannot("the pool's file has default-server or on-marked-down");
        }
        let mut names: Vec<&str> = Vec::new();
        for server in pools.iter().flat_map(|(.., section)| &section.servers) {
            let host = server.node.host.as_str();
            if host.parse::<IpAddr>().is_err() && !names.contains(&host) {
                names.push(host);
            }
        }
        let process = Process::look(site, state.pid, &names).await?;
        if let Some(file) = process.default_server {
            return cannot(&format!("{file} has a default-server, or cannot be read"));
        }
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        for (edit, running, section) in &pools {
            match additions(edit, running, section, &process.addresses) {
                Ok(commands) => add.extend(commands),
                Err(reason) => return Ok(Err(reason)),
            }
            remove.extend(removals(edit, running, section));
        }
        let mut said = String::new();
        for commands in add.chunks(COMMANDS) {
            said += &self.tell(site, &commands.join(";")).await?;
        }
        if !add.is_empty() {
            let state = self.state(site).await?;
            let is_served = |(edit, before, section): &(&PoolEdit, &[Running], &Section)| {
                let running = state.pool(&edit.pool).unwrap_or_default();
                section.servers.iter().all(|server| serves(running, before, server))
            };
            if !pools.iter().all(is_served) {
                let said: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
                return Ok(Err(format!("haproxy says: {}", said.join(" / "))));
            }
        }
        for commands in remove.chunks(COMMANDS) {
            self.tell(site, &commands.join(";")).await?;
        }
        let state = self.state(site).await?;
        for (edit, _, section) in &pools {
            let mut left = leaving(edit, state.pool(&edit.pool).unwrap_or_default(), section);
            if left.any(|server| !server.is_in_maintenance()) {
                return cannot("a server cannot be put into maintenance");
            }
        }
        // What nobody waited for when it left.
        for (edit, _, section) in &pools {
            let is_left_over = |server: &&Running| {
                is_named_by_us(server) && section.servers.iter().all(|own| own.name != server.name)
            };
            let gone: Vec<&Running> =
                state.pool(&edit.pool).unwrap_or_default().iter().filter(is_left_over).collect();
            self.forget(site, &edit.pool, &state, &gone).await;
        }
        Ok(Ok(()))
    }

    /// Deletes those of these servers that are in maintenance and have nothing open. What cannot be deleted yet is left
    /// for another time.
    async fn forget(&self, site: &Site, pool: &PoolName, state: &State, servers: &[&Running]) {
        if state.connections > MOST_CONNECTIONS || !servers.iter().any(|server| server.is_in_maintenance()) {
            return;
        }
        let forget = async {
            let answer = self.tell(site, &format!("show stat {pool} 4 -1")).await?;
            let open = runtime::read_open(&answer);
            let is_open = |server: &Running| open.get(&(pool.to_string(), server.name.clone())) != Some(&0);
            // Versions of 2023 and before crash when a server goes while a request still knows it, though it has no
            // connection any more (haproxy's issue 2298).
            let sessions = self.tell(site, "show sess").await?;
            let is_idle = |server: &&&Running| {
                server.is_in_maintenance()
                    && !is_open(server)
                    && !runtime::is_referred_to(&sessions, pool, &server.name)
            };
            let commands: Vec<String> = servers
                .iter()
                .filter(is_idle)
                .map(|server| format!("del server {pool}/{}", server.name))
                .collect();
            for commands in commands.chunks(COMMANDS) {
                self.tell(site, &commands.join(";")).await?;
            }
            Ok::<_, SiteError>(())
        };
        if let Err(error) = forget.await {
            let error = chain(&error);
            tracing::debug!(host = site.name(), %pool, error, "servers that left are not deleted yet");
        }
    }

    /// Makes HAProxy read its files, and waits until a new process serves what they say.
    async fn reload(&self, site: &Site, change: &Change) -> Result<(), Refusal> {
        let before = self.state(site).await?.pid;
        let output = site.run(&Command::line(&self.reload_cmd)).await?;
        if !output.is_success() {
            return Err(Refusal::of(&self.reload_cmd, &output));
        }
        let end = Instant::now() + NEW_WORKER;
        let mut pause = Duration::from_millis(20);
        loop {
            // In between, nobody may listen at the socket.
            let state = self.state(site).await;
            match &state {
                Ok(state) if state.pid != before => return self.compare(state, change, site).await,
                _ if Instant::now() < end => {}
                Ok(_) => {
                    return Err(Refusal::NotServed(format!(
                        "haproxy (process {before}) started no new process within {} s after {:?}; see its log",
                        NEW_WORKER.as_secs(),
                        self.reload_cmd
                    )));
                }
                Err(_) => return state.map(drop),
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    /// Whether a new process serves what the files say.
    async fn compare(&self, state: &State, change: &Change, site: &Site) -> Result<(), Refusal> {
        let sections = self.sections(site, change).await?;
        for edit in change.pools.iter().filter(|edit| edit.after.is_some()) {
            let Some(running) = state.pool(&edit.pool) else {
                let dir = &self.include_dir;
                let reason = format!("it has no backend {}; it has to be started with -f {dir}", edit.pool);
                return Err(self.unserved(&edit.pool, &reason));
            };
            let servers = sections.get(&edit.pool).map(|section| section.servers.as_slice());
            for server in servers.unwrap_or_default() {
                if !running.iter().any(|running| running.is_as(server)) {
                    let reason = format!("its backend {} has no server {}", edit.pool, server.name);
                    return Err(self.unserved(&edit.pool, &reason));
                }
            }
        }
        Ok(())
    }
}

/// What a process of HAProxy's is, as the site sees it.
#[derive(Debug, Default)]
struct Process {
    /// It is one, and not somebody else's of the same number, as it could be with containers.
    is_here: bool,
    has_old: bool,
    /// A file because of which servers cannot be added at run time.
    default_server: Option<String>,
    addresses: BTreeMap<String, IpAddr>,
}

impl Process {
    async fn look(site: &Site, pid: u32, names: &[&str]) -> Result<Self, SiteError> {
        let pid = pid.to_string();
        let arguments = std::iter::once(pid.as_str()).chain(names.iter().copied());
        let output = site.succeed(&Command::script("looking at haproxy", PROCESS, arguments)).await?;
        let mut process = Self::default();
        for line in output.text().lines() {
            match line.splitn(3, ' ').collect::<Vec<_>>().as_slice() {
                ["C"] => process.is_here = true,
                ["O", _] => process.has_old = true,
                ["D", file @ ..] => process.default_server = Some(file.join(" ")),
                ["A", name, address] => {
                    if let Ok(address) = address.parse() {
                        process.addresses.entry((*name).to_owned()).or_insert(address);
                    }
                }
                _ => {}
            }
        }
        Ok(process)
    }
}

/// Whether a server of the configuration gets requests, or would if the operator had not put it into maintenance.
fn serves(running: &[Running], before: &[Running], server: &Server) -> bool {
    let own = |all: &[Running]| all.iter().find(|running| running.is_as(server)).cloned();
    let is_checked = server.options.iter().any(|option| option == "check" || option == "agent-check");
    match (own(running), own(before)) {
        (Some(now), Some(before)) if before.admin != 0 && now.admin == before.admin => true,
        (Some(now), _) => now.admin == 0 && (now.operational != 0 || is_checked),
        (None, _) => false,
    }
}

/// The commands that add what is new in a pool; or why they cannot be given.
fn additions(
    edit: &PoolEdit,
    running: &[Running],
    section: &Section,
    addresses: &BTreeMap<String, IpAddr>,
) -> Result<Vec<String>, String> {
    let pool = &edit.pool;
    let mut commands = Vec::new();
    for server in &section.servers {
        let Server { name, node, options, .. } = server;
        let is_new = !edit.before.as_ref().is_some_and(|before| before.contains(node));
        match running.iter().find(|running| running.name == *name) {
            Some(running) if !running.is_as(server) => {
                return Err(format!("server {name} has another address"));
            }
            // It left before and comes back.
            Some(running) if is_new && running.admin != 0 => {
                commands.push(format!("set server {pool}/{name} state ready"));
            }
            Some(_) => {}
            None => {
                let host = node.host.as_str();
                let address = host.parse().ok().or_else(|| addresses.get(host).copied());
                let address = address.ok_or_else(|| format!("{host} means nothing to the host"))?;
                let is_plain = |c: char| c.is_ascii_graphic() && !";\\\"'<".contains(c);
                if !options.iter().chain([name]).all(|word| !word.is_empty() && word.chars().all(is_plain)) {
                    return Err(format!("the options of server {name} have odd characters"));
                }
                let options: String = options.iter().map(|option| format!(" {option}")).collect();
                let address = std::net::SocketAddr::new(address, node.port);
                commands.push(format!("add server {pool}/{name} {address}{options}"));
                if options.split(' ').any(|option| option == "check") {
                    commands.push(format!("enable health {pool}/{name}"));
                }
                if options.split(' ').any(|option| option == "agent-check") {
                    commands.push(format!("enable agent {pool}/{name}"));
                }
                commands.push(format!("set server {pool}/{name} state ready"));
            }
        }
    }
    Ok(commands)
}

/// The servers of the nodes that leave.
fn leaving<'a>(
    edit: &'a PoolEdit,
    running: &'a [Running],
    section: &'a Section,
) -> impl Iterator<Item = &'a Running> {
    let stays = |node: &Node| edit.after.as_ref().is_some_and(|after| after.contains(node));
    let is_leaving = move |running: &&Running| {
        section.servers.iter().all(|server| server.name != running.name)
            && edit.before.iter().flatten().any(|node| !stays(node) && running.is_of(node))
    };
    running.iter().filter(is_leaving)
}

/// The commands that keep requests from the nodes that leave.
fn removals(edit: &PoolEdit, running: &[Running], section: &Section) -> Vec<String> {
    leaving(edit, running, section)
        .filter(|running| !running.is_in_maintenance())
        .map(|running| format!("set server {}/{} state maint", edit.pool, running.name))
        .collect()
}

/// Whether the server has a name that we give.
fn is_named_by_us(server: &Running) -> bool {
    let (name, port) = (&server.name, server.port);
    name.strip_suffix(&format!(":{port}")).is_some_and(|host| !host.is_empty())
}

#[async_trait]
impl Program for Haproxy {
    fn title(&self) -> &'static str {
        "haproxy"
    }

    fn suffix(&self) -> &str {
        ".cfg"
    }

    fn parse(&self, pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String> {
        section::parse(pool, text)
    }

    fn render(&self, pool: &PoolName, nodes: &[Node], old: Option<&str>) -> Result<String, String> {
        section::render(pool, nodes, old, &self.server_options)
    }

    async fn test(&self, site: &Site, _change: &Change) -> Result<(), Refusal> {
        let output = site.run(&Command::line(&self.test_cmd)).await?;
        if output.is_success() { Ok(()) } else { Err(Refusal::of(&self.test_cmd, &output)) }
    }

    async fn load(&self, site: &Site, change: &Change) -> Result<(), Refusal> {
        match self.by_socket(site, change).await? {
            Ok(()) => Ok(()),
            Err(reason) => {
                tracing::debug!(host = site.name(), reason, "haproxy is reloaded");
                self.reload(site, change).await
            }
        }
    }

    async fn is_loaded(&self, site: &Site, files: &[FileOnSite]) -> Result<Option<bool>, Refusal> {
        let state = self.state(site).await?;
        let is_loaded = |file: &FileOnSite| {
            let Some(Ok(pool)) = file.name.strip_suffix(self.suffix()).map(str::parse::<PoolName>) else {
                return true;
            };
            // What is no pool, or is broken, is not for us to say.
            let Ok(Some(section)) = section::find(&pool, &file.text) else { return true };
            let Some(running) = state.pool(&pool) else { return false };
            let is_there = |server: &Server| running.iter().any(|running| running.is_as(server));
            let is_known = |running: &Running| {
                let is_listed = section.servers.iter().any(|server| server.name == running.name);
                is_listed || running.is_in_maintenance() || !is_named_by_us(running)
            };
            section.servers.iter().all(is_there) && running.iter().all(is_known)
        };
        Ok(Some(files.iter().all(is_loaded)))
    }

    async fn has_old_generation(&self, site: &Site) -> Result<bool, Refusal> {
        let pid = self.state(site).await?.pid;
        Ok(Process::look(site, pid, &[]).await?.has_old)
    }

    /// What HAProxy says itself; connections that it only keeps for later are no reason to wait. While there are processes
    /// from before a reload, which cannot be asked, all connections count.
    async fn open(&self, site: &Site, nodes: &[Node]) -> Result<OpenConnections, Refusal> {
        let answer = self.tell(site, &format!("{SHOW_STATE};show stat -1 4 -1")).await?;
        let (state, stat) = answer.split_once("# pxname,").unwrap_or((&answer, ""));
        let (state, open) = (self.read_state(state)?, runtime::read_open(&format!("# pxname,{stat}")));
        let mut counts: OpenConnections = nodes.iter().map(|node| (node.clone(), 0)).collect();
        for (backend, servers) in &state.backends {
            for server in servers {
                let own = open.get(&(backend.clone(), server.name.clone())).copied().unwrap_or(0);
                for (_, count) in counts.iter_mut().filter(|(node, _)| server.is_of(node)) {
                    *count += own;
                }
            }
        }
        let process = Process::look(site, state.pid, &[]).await?;
        if process.has_old {
            for (node, connections) in site.connections(Some(state.pid), nodes).await? {
                counts.entry(node).and_modify(|count| *count = (*count).max(connections));
            }
        }
        Ok(counts)
    }

    fn settling(&self) -> Duration {
        SETTLING
    }

    async fn drained(&self, site: &Site, pool: &PoolName, nodes: &[Node]) {
        let Ok(state) = self.state(site).await else { return };
        let own = |running: &&Running| nodes.iter().any(|node| running.is_of(node));
        let servers: Vec<&Running> = state.pool(pool).unwrap_or_default().iter().filter(own).collect();
        self.forget(site, pool, &state, &servers).await;
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>, Refusal> {
        let mut problems = Vec::new();
        let output = site.run(&Command::line(&self.test_cmd)).await?;
        if !output.is_success() {
            problems.push(Refusal::of(&self.test_cmd, &output).to_string());
        }
        // Nothing is added by this: there is no such backend.
        match self.tell(site, "add server velociraptor-none/none 127.0.0.1:1").await {
            Ok(said) if said.contains("Permission denied") => problems.push(format!(
                "{} is not one of level admin, so that every change needs a reload",
                self.stats_socket
            )),
            Ok(_) => {}
            Err(error) => problems.push(chain(&error)),
        }
        Ok(problems)
    }
}
