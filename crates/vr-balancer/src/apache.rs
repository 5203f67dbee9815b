//! Apache (2.4): a pool is a file `<include_dir>/<pool>.conf` with one `<Proxy balancer://…>` block.
//!
//! The operator says which requests go there: `ProxyPass "/" "balancer://my_app/"`. `apachectl -t -D DUMP_INCLUDES` tests the
//! files and lists them, so that a folder that no `Include` names is noticed before anybody relies on it.
//!
//! A graceful restart: the parent tells its children to stop listening, reads its files, writes its number into its
//! `PidFile` again, and makes new children. When that file was written is therefore when the files were read. An old child
//! goes on with the connections that it has, and may still choose a node for a request that comes in on one of them.

mod proxy;

use async_trait::async_trait;
use vr_common::names::{Node, PoolName};

use crate::pools_in_files::{Change, PoolEdit, Program, Refusal, reload_and_wait};
use crate::site::{Command, FileOnSite, OpenConnections, Site};

/// What is done when nothing else is said; the paths are Debian's.
pub const INCLUDE_DIR: &str = "/etc/apache2/conf-enabled/";
const RELOAD: &str = "apachectl graceful";
const TEST: &str = "apachectl -t -D DUMP_INCLUDES";
/// Where the parent's number is, tried in this order.
const PID_FILES: [&str; 3] =
    ["/run/apache2/apache2.pid", "/run/httpd/httpd.pid", "/usr/local/apache2/logs/httpd.pid"];

/// Defines what the scripts below share. `find_parent FILE…` sets `$parent` from the first `$file` that has the number of
/// an Apache. `list` prints `S AGE` for each child that holds a socket at which the parent listens, and `L` for each that
/// holds none of them, but a connection that came in by their ports and was not closed by Apache itself (01: established,
/// 08: the client has sent all). Others, such as loggers and CGI's, have neither. First what is held is read, and then
/// what it is: a child of the second kind gets no new connections in between.
///
/// By the "pipe of death" the parent tells its children to end; with each restart it makes another. AGE is `new` if the child
/// has a pipe in common with the parent that is not in `$known`, else `old`.
const FUNCTIONS: &str = r#"
set -u
find_parent() {
    for file; do
        parent=
        [ ! -s "$file" ] || read -r parent <"$file" || true
        case $parent in '' | *[!0-9]*) continue ;; esac
        case $(cat "/proc/$parent/comm" 2>/dev/null) in *apache* | *httpd*) return 0 ;; esac
    done
    return 1
}
complain() { echo "$1" >&2; exit 3; }
absent() { complain "apache does not run: no process of it has its number in $*"; }
pipes() { LC_ALL=C ls -ln "/proc/$parent/fd" 2>/dev/null | sed -n 's/.* -> pipe:\[\([0-9]*\)\]$/\1/p' | tr '\n' ' '; }
known=
list() {
    children=$(cat /proc/[0-9]*/stat 2>/dev/null | awk -v parent="$parent" \
        '{ pid = $1; sub(/^.*\) /, ""); if ($1 != "Z" && $2 == parent) print pid }')
    # The parent twice, so that it has a headline even if it has no children.
    set -- "/proc/$parent/fd" "/proc/$parent/fd"
    for child in $children; do set -- "$@" "/proc/$child/fd"; done
    { LC_ALL=C ls -ln "$@" 2>/dev/null; cat "/proc/$parent/net/tcp" "/proc/$parent/net/tcp6" 2>/dev/null; } |
    awk -v parent="$parent" -v known=" $known" '
        /^\/proc\/[0-9]+\/fd:$/ { split($0, path, "/"); pid = path[3]; pids[pid] }
        / -> socket:\[[0-9]+\]$/ { socket = $NF; gsub(/[^0-9]/, "", socket); held[pid " " socket] }
        / -> pipe:\[[0-9]+\]$/ { pipe = $NF; gsub(/[^0-9]/, "", pipe); piped[pid " " pipe] }
        $1 ~ /^[0-9]+:$/ { state[$10] = $4; port[$10] = substr($2, length($2) - 3) }
        END {
            for (socket in state) if (state[socket] == "0A" && (parent " " socket) in held) {
                listeners[socket]
                ports[port[socket]]
            }
            for (key in held) {
                split(key, part, " ")
                if (part[2] in listeners) serves[part[1]]
                else if (state[part[2]] ~ /^0[18]$/ && port[part[2]] in ports) leaves[part[1]]
            }
            for (key in piped) {
                split(key, part, " ")
                if ((parent " " part[2]) in piped && !index(known, " " part[2] " ")) is_new[part[1]]
            }
            if (!(parent in serves)) exit 1
            for (pid in pids) if (pid != parent) {
                if (pid in serves) print "S", (pid in is_new) ? "new" : "old"
                else if (pid in leaves) print "L"
            }
        }'
}
"#;

/// Prints `P PID TIME` for the parent and when it read its files, in seconds since 1970, and its children. The arguments
/// are files that may have the parent's number.
const LOOK: &str = r#"
find_parent "$@" || absent "$@"
echo "P $parent $(LC_ALL=C stat -L -c %.6Y -- "$file")"
list || complain "apache (process $parent) listens at no port, or only root can see at which"
"#;

/// Runs the line `$1`, and returns when all children that take connections were made after the parent has read its files
/// since: one command, as each costs a host that is far away time. Ends with 4 if the line fails, and with 5 if it is not
/// so `$2` seconds after its end. More arguments as above.
const RELOAD_AND_WAIT: &str = r#"
reload=$1 seconds=$2
shift 2
find_parent "$@" || absent "$@"
known=$(pipes)
sh -c "$reload" || exit 4
end=$(($(date +%s) + seconds))
while :; do
    find_parent "$@" || absent "$@"
    case $(list | sed -n 's/^S //p' | sort -u) in new) exit 0 ;; esac
    [ "$(date +%s)" -lt "$end" ] || exit 5
    sleep 0.02
done
"#;

/// Prints `FILE:NAME` for each balancer that the files of the arguments name.
const BALANCERS: &str = r#"
awk '/^[ \t]*#/ { next }
    {
        while (match(tolower($0), /balancer:\/\/[a-z0-9._-]+/)) {
            print FILENAME ":" substr($0, RSTART + 11, RLENGTH - 11)
            $0 = substr($0, RSTART + RLENGTH)
        }
    }' "$@"
"#;

/// How Apache is told.
#[derive(Debug, Clone)]
pub struct Apache {
    /// Reloads the configuration; a line for the shell.
    pub reload_cmd: String,
    /// Tests it; a line for the shell. If it lists the files, that is looked at, too.
    pub test_cmd: String,
    /// Where the parent's number is; the usual places if none.
    pub pid_file: Option<String>,
    /// What follows the URL of a new node in its line, such as `retry=5`.
    pub member_options: String,
    /// The folder of the pools' files.
    pub include_dir: String,
}

impl Default for Apache {
    fn default() -> Self {
        Self {
            reload_cmd: RELOAD.to_owned(),
            test_cmd: TEST.to_owned(),
            pid_file: None,
            member_options: String::new(),
            include_dir: INCLUDE_DIR.to_owned(),
        }
    }
}

/// The parent and its children.
#[derive(Debug, Default)]
struct Processes {
    parent: u32,
    /// When the parent read its files, in seconds since 1970.
    loaded: f64,
    /// Whether there are children that take connections.
    serves: bool,
    /// Whether there are some that only finish what they have.
    has_old: bool,
}

impl Apache {
    /// The files that may have the parent's number.
    fn pid_files(&self) -> Vec<&str> {
        self.pid_file.as_deref().map_or_else(|| PID_FILES.to_vec(), |file| vec![file])
    }

    async fn processes(&self, site: &Site) -> Result<Processes, Refusal> {
        let script = [FUNCTIONS, LOOK].concat();
        let output = site.succeed(&Command::script("looking for apache", &script, self.pid_files())).await?;
        let mut processes = Processes::default();
        for line in output.text().lines() {
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["P", parent, loaded] => {
                    processes.parent = parent.parse().unwrap_or_default();
                    processes.loaded = loaded.parse().unwrap_or_default();
                }
                ["S", _] => processes.serves = true,
                ["L"] => processes.has_old = true,
                _ => {}
            }
        }
        Ok(processes)
    }

    /// Refuses a new pool that Apache would take for another balancer in these files.
    async fn check_pools(&self, site: &Site, change: &Change, files: &[&str]) -> Result<(), Refusal> {
        let is_new = |edit: &&PoolEdit| edit.before.is_none() && edit.after.is_some();
        let new: Vec<&PoolName> = change.pools.iter().filter(is_new).map(|edit| &edit.pool).collect();
        if new.is_empty() || files.is_empty() {
            return Ok(());
        }
        let files = files.iter().copied();
        let output = site.succeed(&Command::script("looking for balancers", BALANCERS, files)).await?;
        let text = output.text();
        let named: Vec<(&str, &str)> = text.lines().filter_map(|line| line.rsplit_once(':')).collect();
        for pool in new {
            let own = self.file(pool);
            let is_other = |(file, name): &&(&str, &str)| {
                let is_its_pool = name.parse::<PoolName>().is_ok_and(|other| self.file(&other) == *file);
                *file != own && (is_its_pool || !name.eq_ignore_ascii_case(pool.as_str()))
            };
            let is_alike =
                |(_, name): &&(&str, &str)| proxy::memory_name(name) == proxy::memory_name(pool.as_str());
            if let Some((file, name)) = named.iter().filter(is_other).find(is_alike) {
                return Err(Refusal::NotServed(format!(
                    "apache cannot tell pool {pool} from balancer {name} of {file}: to it, capitals are small letters, and \
                     \".\", \"-\" and \"_\" are the same"
                )));
            }
        }
        Ok(())
    }

    /// The path of a pool's file.
    fn file(&self, pool: &PoolName) -> String {
        format!("{}/{pool}{}", self.include_dir.trim_end_matches('/'), self.suffix())
    }
}

/// The path of a line `    (20) /etc/apache2/conf-enabled/my_app.conf`; the number is that of the line which includes it.
fn included(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix('(')?.split_once(") ").map(|(_, path)| path)
}

#[async_trait]
impl Program for Apache {
    fn title(&self) -> &'static str {
        "apache"
    }

    fn suffix(&self) -> &str {
        ".conf"
    }

    fn parse(&self, pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String> {
        proxy::parse(pool, text)
    }

    fn render(&self, pool: &PoolName, nodes: &[Node], old: Option<&str>) -> Result<String, String> {
        proxy::render(pool, nodes, old, &self.member_options)
    }

    async fn test(&self, site: &Site, change: &Change) -> Result<(), Refusal> {
        let output = site.run(&Command::line(&self.test_cmd)).await?;
        if !output.is_success() {
            return Err(Refusal::of(&self.test_cmd, &output));
        }
        let text = output.text();
        let is_listed = text.contains("Included configuration files:") && !output.cut;
        let files: Vec<&str> = text.lines().filter(|_| is_listed).filter_map(included).collect();
        for edit in change.pools.iter().filter(|edit| edit.after.is_some()) {
            let file = self.file(&edit.pool);
            if is_listed && !files.contains(&file.as_str()) {
                let (dir, suffix) = (self.include_dir.trim_end_matches('/'), self.suffix());
                return Err(Refusal::NotServed(format!(
                    "apache does not load {file}: its configuration needs \"IncludeOptional {dir}/*{suffix}\""
                )));
            }
            edit.check_names(site).await?;
        }
        self.check_pools(site, change, &files).await
    }

    async fn load(&self, site: &Site, _change: &Change) -> Result<(), Refusal> {
        let script = [FUNCTIONS, RELOAD_AND_WAIT].concat();
        reload_and_wait(
            site,
            &script,
            &self.reload_cmd,
            &self.pid_files(),
            "apache did not replace its children",
        )
        .await
    }

    /// Whether the files were read after they were written.
    async fn is_loaded(&self, site: &Site, files: &[FileOnSite]) -> Result<Option<bool>, Refusal> {
        let loaded = self.processes(site).await?.loaded;
        let mut pools = files.iter().filter(|file| file.name.ends_with(self.suffix()));
        Ok(Some(pools.all(|file| file.modified < loaded)))
    }

    async fn has_old_generation(&self, site: &Site) -> Result<bool, Refusal> {
        Ok(self.processes(site).await?.has_old)
    }

    /// By the network that Apache lives in, which may be another than the site's.
    async fn open(&self, site: &Site, nodes: &[Node]) -> Result<OpenConnections, Refusal> {
        let parent = self.processes(site).await?.parent;
        Ok(site.connections(Some(parent), nodes).await?)
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>, Refusal> {
        let mut problems = Vec::new();
        let output = site.run(&Command::line(&self.test_cmd)).await?;
        if !output.is_success() {
            problems.push(Refusal::of(&self.test_cmd, &output).to_string());
        }
        match self.processes(site).await {
            Ok(Processes { serves: false, parent, .. }) => {
                problems.push(format!("apache (process {parent}) has no children that listen"));
            }
            Ok(_) => {}
            Err(refusal) => problems.push(refusal.to_string()),
        }
        Ok(problems)
    }
}
