//! HAProxy (2.4 and newer): a pool is a file `<include_dir>/<pool>.cfg` with one `backend` section.
//!
//! HAProxy reads the folder when it is started with `-f <include_dir>` after the operator's own file. Nodes come and go
//! at run time, through the stats socket, without a reload: a new one is added and made ready, one that leaves is put
//! into maintenance, in which it gets no new request while those that it has go on, and is deleted when nothing refers to
//! it any more. A reload is made for new and deleted pools, and where the socket cannot do what the file says: a backend
//! with a static balance algorithm, `default-server`, `on-marked-down`, and options that it does not take.

mod runtime;
mod section;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep};
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};

use crate::pools_in_files::{Change, PoolEdit, Program, Refusal};
use crate::site::{Command, Endpoint, FileOnSite, OpenConnections, Site, SiteError};
use runtime::{Info, Running, SHOW_OPEN, SHOW_STATE, State};
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
/// For a reload that seems to be under way to end. A master of 3.1 or newer that refused a configuration looks as if it
/// still read it, and `grace` lets old processes go on for as long as the operator wants.
const RELOAD_UNDER_WAY: Duration = Duration::from_secs(5);
/// For somebody to answer at the stats socket again, which nobody may do while processes change.
const GAP: Duration = Duration::from_secs(2);
/// Between two questions to a process that is being replaced.
const PAUSE: Duration = Duration::from_millis(20);
/// From when a request has chosen its server until it is counted there.
const SETTLING: Duration = Duration::from_millis(100);
/// Commands in one line; HAProxy takes 16 KiB.
const COMMANDS: usize = 50;
/// With more connections than this, the list of requests is too long to look for those that know a server.
const MOST_CONNECTIONS: u64 = 20_000;

/// Prints about the process of this number, if it is one of HAProxy's:
///
/// - `R` if another one has replaced it,
/// - `C` if its master is reading a configuration for another one, or one from before its start still takes
///   connections,
/// - `O PID` for each process from before its start that is still there,
/// - `D FILE` for each file of its configuration with a `default-server`, or that cannot be found,
/// - `A NAME ADDRESS` for each of the host names that follow the process in the arguments.
///
/// A process that replaces others has their numbers behind `-sf`. So has the master, its parent, always, but while it waits
/// for its workers to end, as it does when it has nothing to read, it has a mark in its environment (2.4 to 3.0).
const PROCESS: &str = r#"
set -u
pid=$1
shift
for name; do getent ahosts "$name" | while read -r address rest; do echo "A $name $address"; done; done
is_haproxy() { grep -qs haproxy "/proc/$1/comm" && ! grep -qs '^State:.Z' "/proc/$1/status"; }
is_haproxy "$pid" || exit 0
# The fourth and the twenty-second field: the parent, and when it began. Numbers of processes are used again.
parent() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 2; }
began() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }
owner() { stat -c %u -- "/proc/$1" 2>/dev/null; }
is_before() { [ "$(began "$1")" -le "$(began "$2")" ] 2>/dev/null; }
arguments() {
    what=
    tr '\0' '\n' <"/proc/$1/cmdline" 2>/dev/null | while IFS= read -r word; do
        case $word in
        -sf | -st) what=old ;;
        -f) what=file ;;
        --) what=files ;;
        -*) what= ;;
        *) [ -z "$what" ] || echo "$what $word"; [ "$what" != file ] || what= ;;
        esac
    done
}
sockets() { ls -l "/proc/$1/fd" 2>/dev/null | sed -n 's/.* socket:\[\([0-9]*\)\]$/\1/p'; }
listening() {
    cat "/proc/$pid/net/tcp" "/proc/$pid/net/tcp6" 2>/dev/null | awk '$4 == "0A" { print $10 }'
    awk '$4 == "00010000" { print $7 }' "/proc/$pid/net/unix"
}
listens() { { sockets "$1" | sort -u; listening | sort -u; } | sort | uniq -d | grep -q .; }
look() {
    if [ -d "$1" ]; then
        for file in "$1"/*.cfg; do [ ! -e "$file" ] || look "$file"; done
    elif [ ! -r "$1" ] || grep -qE '^[[:space:]]*default-server([[:space:]]|$)' -- "$1"; then
        echo "D $1"
    fi
}
cd "/proc/$pid/cwd" 2>/dev/null || cd /
arguments "$pid" | while read -r what word; do
    case $what in
    old)
        is_haproxy "$word" && is_before "$word" "$pid" || continue
        echo "O $word"
        ! listens "$word" || echo C ;;
    *) look "$word" ;;
    esac
done
for other in $(grep -ls -- "$pid" /proc/[0-9]*/cmdline | tr -dc '0-9\n'); do
    is_haproxy "$other" && arguments "$other" | grep -qx "old $pid" || continue
    # Anybody may run something of that name.
    case $(owner "$other") in 0 | "$(owner "$pid")") ;; *) continue ;; esac
    if [ "$other" != "$(parent "$pid")" ]; then
        ! is_before "$pid" "$other" || echo R
    elif [ -r "/proc/$other/environ" ] && ! grep -q HAPROXY_MWORKER_WAIT_ONLY "/proc/$other/environ"; then
        echo C
    fi
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

    /// Gives commands to whatever process answers, and says which one that was.
    async fn tell(&self, site: &Site, commands: &str) -> Result<(Info, String), Refusal> {
        let request = format!("show info;{commands}\n").into_bytes();
        let answer = site.exchange(&self.stats_socket, request, ANSWER).await?;
        let answer = String::from_utf8_lossy(&answer);
        let (info, said) = runtime::read_info(&answer).ok_or_else(|| self.odd(&answer))?;
        Ok((info, said.to_owned()))
    }

    fn odd(&self, answer: &str) -> Refusal {
        let said = answer.lines().find(|line| !line.is_empty()).unwrap_or("nothing");
        Refusal::NotServed(format!("{} does not tell haproxy's state, but {said:?}", self.stats_socket))
    }

    /// Gives commands to this process; none if another one answers instead. One that has been replaced may do so for a
    /// moment; what it is told then is of no consequence.
    async fn tell_process(&self, site: &Site, pid: u32, commands: &str) -> Result<Option<String>, Refusal> {
        let end = Instant::now() + GAP;
        loop {
            match self.tell(site, commands).await {
                Ok((info, said)) if info.pid == pid => return Ok(Some(said)),
                answer if Instant::now() >= end => return answer.map(|_| None),
                _ => sleep(PAUSE).await,
            }
        }
    }

    /// The same for many commands.
    async fn tell_all(&self, site: &Site, pid: u32, commands: &[String]) -> Result<Option<String>, Refusal> {
        let mut said = String::new();
        for commands in commands.chunks(COMMANDS) {
            let Some(answer) = self.tell_process(site, pid, &commands.join(";")).await? else {
                return Ok(None);
            };
            said += &answer;
        }
        Ok(Some(said))
    }

    /// What the youngest process serves. While a reload is under way, others may answer, or nobody; its end is waited for.
    async fn current(&self, site: &Site, names: &[&str]) -> Result<(State, Process), Refusal> {
        let began = Instant::now();
        loop {
            let seen = async {
                let (info, said) = self.tell(site, SHOW_STATE).await?;
                let state = State::read(info.pid, &said).ok_or_else(|| self.odd(&said))?;
                let process = Process::look(site, state.pid, names).await?;
                Ok((state, process))
            };
            let (refusal, patience) = match seen.await {
                Ok((state, process))
                    if !process.is_replaced
                        && (!process.is_changing || began.elapsed() >= RELOAD_UNDER_WAY) =>
                {
                    return Ok((state, process));
                }
                Ok((state, _)) => {
                    let (socket, pid) = (&self.stats_socket, state.pid);
                    let reason = format!("the process that answers at {socket} is an old one, {pid}");
                    (Refusal::NotServed(reason), NEW_WORKER)
                }
                Err(refusal) => (refusal, GAP),
            };
            if began.elapsed() >= patience {
                return Err(refusal);
            }
            sleep(PAUSE).await;
        }
    }

    /// What this process serves now; none if it is not the one that answers any more.
    async fn state_of(&self, site: &Site, pid: u32) -> Result<Option<State>, Refusal> {
        let Some(said) = self.tell_process(site, pid, SHOW_STATE).await? else { return Ok(None) };
        let state = State::read(pid, &said).ok_or_else(|| self.odd(&said))?;
        Ok(Some(state))
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
        let sections = self.sections(site, change).await?;
        let hosts =
            sections.values().flat_map(|section| &section.servers).map(|server| server.node.host.as_str());
        let names: BTreeSet<&str> = hosts.filter(|host| host.parse::<IpAddr>().is_err()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let (state, process) = self.current(site, &names).await?;
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
        const REPLACED: &str = "another process answers now";
        if !add.is_empty() {
            let Some(said) = self.tell_all(site, state.pid, &add).await? else { return cannot(REPLACED) };
            let Some(state) = self.state_of(site, state.pid).await? else { return cannot(REPLACED) };
            let is_served = |(edit, before, section): &(&PoolEdit, &[Running], &Section)| {
                let running = state.pool(&edit.pool).unwrap_or_default();
                section.servers.iter().all(|server| serves(running, before, server))
            };
            if !pools.iter().all(is_served) {
                let said: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
                return Ok(Err(format!("haproxy says: {}", said.join(" / "))));
            }
        }
        if self.tell_all(site, state.pid, &remove).await?.is_none() {
            return cannot(REPLACED);
        }
        let Some(state) = self.state_of(site, state.pid).await? else { return cannot(REPLACED) };
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
            self.forget(site, &edit.pool, state.pid, &gone).await;
        }
        Ok(Ok(()))
    }

    /// Deletes those of these servers of a process that are in maintenance and have nothing open. What cannot be deleted
    /// yet is left for another time.
    async fn forget(&self, site: &Site, pool: &PoolName, pid: u32, servers: &[&Running]) {
        if !servers.iter().any(|server| server.is_in_maintenance()) {
            return;
        }
        let forget = async {
            let (info, answer) = self.tell(site, SHOW_OPEN).await?;
            if info.pid != pid || info.connections > MOST_CONNECTIONS {
                return Ok(());
            }
            let open = runtime::read_open(&answer);
            let is_open = |server: &Running| open.get(&(pool.to_string(), server.name.clone())) != Some(&0);
            // Versions of 2023 and before crash when a server goes while a request still knows it, though it has no
            // connection any more (haproxy's issue 2298).
            let Some(sessions) = self.tell_process(site, pid, "show sess").await? else { return Ok(()) };
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
            self.tell_all(site, pid, &commands).await.map(drop)
        };
        if let Err(error) = forget.await {
            let error = chain(&error);
            tracing::debug!(host = site.name(), %pool, error, "servers that left are not deleted yet");
        }
    }

    /// Makes HAProxy read its files, and waits until a new process, and no old one, serves what they say.
    async fn reload(&self, site: &Site, change: &Change) -> Result<(), Refusal> {
        let sections = self.sections(site, change).await?;
        let before = self.current(site, &[]).await?.0.pid;
        let output = site.run(&Command::line(&self.reload_cmd)).await?;
        if !output.is_success() {
            return Err(Refusal::of(&self.reload_cmd, &output));
        }
        let end = Instant::now() + NEW_WORKER;
        let mut pause = PAUSE;
        loop {
            let refusal = match self.current(site, &[]).await {
                Ok((state, _)) if state.pid == before => Refusal::NotServed(format!(
                    "haproxy (process {before}) started no new process within {} s after {:?}; see its log",
                    NEW_WORKER.as_secs(),
                    self.reload_cmd
                )),
                // It began after the files were written, so it has read them.
                Ok((state, _)) => return self.compare(&state, change, &sections),
                Err(refusal) => refusal,
            };
            if Instant::now() >= end {
                return Err(refusal);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    /// Whether a new process serves what the files say.
    fn compare(
        &self,
        state: &State,
        change: &Change,
        sections: &BTreeMap<PoolName, Section>,
    ) -> Result<(), Refusal> {
        for edit in change.pools.iter().filter(|edit| edit.after.is_some()) {
            let Some(running) = state.pool(&edit.pool) else {
                let dir = &self.include_dir;
                let reason = format!("it has no backend {}; it has to be started with -f {dir}", edit.pool);
                return Err(self.unserved(&edit.pool, &reason));
            };
            let Some(section) = sections.get(&edit.pool) else { continue };
            if let Some(missing) =
                section.servers.iter().find(|server| !running.iter().any(|own| own.is_as(server)))
            {
                let reason = format!("its backend {} has no server {}", edit.pool, missing.name);
                return Err(self.unserved(&edit.pool, &reason));
            }
            if let Some(stale) = leaving(edit, running, section).find(|server| !server.is_in_maintenance()) {
                let reason = format!("its backend {} still has the server {}", edit.pool, stale.name);
                return Err(self.unserved(&edit.pool, &reason));
            }
        }
        Ok(())
    }
}

/// What a process of HAProxy's is, as the site sees it; nothing at all if it is not one there, as with containers.
#[derive(Debug, Default)]
struct Process {
    /// There is another one in its place, so that it is about to end.
    is_replaced: bool,
    /// There will be one, whose configuration may have been read already; or another one may still serve what was before.
    is_changing: bool,
    /// Others from before its start are still there.
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
                ["R"] => process.is_replaced = true,
                ["C"] => process.is_changing = true,
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
        let (state, _) = self.current(site, &[]).await?;
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
        Ok(self.current(site, &[]).await?.1.has_old)
    }

    /// What HAProxy says itself; connections that it only keeps for later are no reason to wait. While there are processes
    /// from before a reload, which cannot be asked, all connections count.
    async fn open(&self, site: &Site, nodes: &[Node]) -> Result<OpenConnections, Refusal> {
        let (state, process) = self.current(site, &[]).await?;
        let Some(answer) = self.tell_process(site, state.pid, SHOW_OPEN).await? else {
            let reason = format!("haproxy's process {} has just been replaced", state.pid);
            return Err(Refusal::NotServed(reason));
        };
        let open = runtime::read_open(&answer);
        let mut counts: OpenConnections = nodes.iter().map(|node| (node.clone(), 0)).collect();
        for (backend, servers) in &state.backends {
            for server in servers {
                let own = open.get(&(backend.clone(), server.name.clone())).copied().unwrap_or(0);
                for (_, count) in counts.iter_mut().filter(|(node, _)| server.is_of(node)) {
                    *count += own;
                }
            }
        }
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
        let Ok((state, _)) = self.current(site, &[]).await else { return };
        let own = |running: &&Running| nodes.iter().any(|node| running.is_of(node));
        let servers: Vec<&Running> = state.pool(pool).unwrap_or_default().iter().filter(own).collect();
        self.forget(site, pool, state.pid, &servers).await;
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>, Refusal> {
        let mut problems = Vec::new();
        let output = site.run(&Command::line(&self.test_cmd)).await?;
        if !output.is_success() {
            problems.push(Refusal::of(&self.test_cmd, &output).to_string());
        }
        // Nothing is added by this: there is no such backend.
        match self.tell(site, "add server velociraptor-none/none 127.0.0.1:1").await {
            Ok((_, said)) if said.contains("Permission denied") => problems.push(format!(
                "{} is not one of level admin, so that every change needs a reload",
                self.stats_socket
            )),
            Ok(_) => {}
            Err(error) => problems.push(chain(&error)),
        }
        Ok(problems)
    }
}
