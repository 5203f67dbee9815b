//! nginx: a pool is a file `<include_dir>/<pool>.conf` with one `upstream` block.
//!
//! `nginx -T` tests the files and shows what nginx would load, so that a folder that no `include` names is noticed before
//! anybody relies on it. After the reload, nginx serves the change when its master has made new workers and the old ones
//! have stopped to take connections.

mod upstream;

use std::collections::BTreeSet;

use async_trait::async_trait;
use vr_common::names::{Node, PoolName};

use crate::pools_in_files::{Change, Program, Refusal, reload_and_wait};
use crate::site::{Command, FileOnSite, OpenConnections, Site};

/// What is done when nothing else is said; the paths are Debian's.
pub const INCLUDE_DIR: &str = "/etc/nginx/sites-enabled/";
const RELOAD: &str = "/etc/init.d/nginx reload";
const TEST: &str = "nginx -T";
/// Where the master's number is, tried in this order.
const PID_FILES: [&str; 2] = ["/run/nginx.pid", "/usr/local/nginx/logs/nginx.pid"];

/// Defines what the scripts below share: `find_master FILE…` sets `$master` from the first file that has the number of a
/// process, and `list` prints `PID BEGAN TITLE` of each of its children, with when it began in seconds since 1970 (the
/// kernel counts in hundredths of a second for everybody).
const FUNCTIONS: &str = r#"
set -u
find_master() {
    for file; do
        if [ -s "$file" ] && read -r master <"$file" && [ -d "/proc/$master" ]; then return; fi
    done
    echo "nginx does not run: no process of its number in $*" >&2
    exit 3
}
list() {
    cat /proc/stat /proc/[0-9]*/stat 2>/dev/null | awk -v master="$master" '
        $1 == "btime" { booted = $2 }
        $1 ~ /^[0-9]+$/ {
            pid = $1
            sub(/^.*\) /, "")
            if ($2 == master) print pid, booted + int($20 / 100)
        }' |
    while read -r pid began; do
        title=
        read -r title 2>/dev/null <"/proc/$pid/cmdline" || true
        echo "$pid $began $title"
    done
}
"#;

/// Prints `M PID` for the master, and for each of its workers `W PID BEGAN TITLE`. The arguments are files that may have
/// the master's number.
const WORKERS: &str = r#"
find_master "$@"
echo "M $master"
list | sed 's/^/W /'
"#;

/// Runs the line `$1`, and returns when the master has made new workers and no old one takes connections any more: one
/// command, and not several, as every command costs a host that is far away time. Ends with 4 if the line fails, and with
/// 5 if there are no new workers after `$2` seconds. More arguments as above.
const RELOAD_AND_WAIT: &str = r#"
reload=$1 seconds=$2
shift 2
find_master "$@"
serving() {
    list | while read -r pid began title; do
        case $title in *"shutting down"*) ;; *"worker process"*) printf '%s ' "$pid" ;; esac
    done
}
before=" $(serving)"
sh -c "$reload" || exit 4
end=$(($(date +%s) + seconds))
while :; do
    new= old=
    for pid in $(serving); do
        case $before in *" $pid "*) old=yes ;; *) new=yes ;; esac
    done
    if [ -n "$new" ] && [ -z "$old" ]; then exit 0; fi
    [ "$(date +%s)" -lt "$end" ] || exit 5
    sleep 0.02
done
"#;

/// How nginx is told.
#[derive(Debug, Clone)]
pub struct Nginx {
    /// Reloads the configuration; a line for the shell.
    pub reload_cmd: String,
    /// Tests it; a line for the shell. If it prints the configuration, as `nginx -T` does, that is looked at, too.
    pub test_cmd: String,
    /// Where the master's number is; the usual places if none.
    pub pid_file: Option<String>,
    /// The folder of the pools' files, for messages.
    pub include_dir: String,
}

impl Default for Nginx {
    fn default() -> Self {
        Self {
            reload_cmd: RELOAD.to_owned(),
            test_cmd: TEST.to_owned(),
            pid_file: None,
            include_dir: INCLUDE_DIR.to_owned(),
        }
    }
}

/// The master and its workers.
#[derive(Debug, Default)]
struct Processes {
    master: u32,
    /// Those that take connections.
    serving: BTreeSet<u32>,
    /// Those that only finish what they have begun.
    leaving: BTreeSet<u32>,
    /// When the youngest of those that take connections began, in seconds since 1970.
    since: f64,
}

impl Nginx {
    /// The files that may have the master's number.
    fn pid_files(&self) -> Vec<&str> {
        self.pid_file.as_deref().map_or_else(|| PID_FILES.to_vec(), |file| vec![file])
    }

    async fn processes(&self, site: &Site) -> Result<Processes, Refusal> {
        let files = self.pid_files();
        let script = [FUNCTIONS, WORKERS].concat();
        let output = site.succeed(&Command::script("looking for nginx", &script, files)).await?;
        let mut processes = Processes::default();
        for line in output.text().lines() {
            let mut words = line.splitn(4, ' ');
            let mut number = || words.nth(1).and_then(|word| word.parse::<u32>().ok());
            match (line.split(' ').next(), number()) {
                (Some("M"), Some(master)) => processes.master = master,
                (Some("W"), Some(worker)) => {
                    let began = words.next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
                    let title = words.next().unwrap_or_default();
                    // Others are children of the master as well, such as the cache's.
                    if !title.contains("worker process") {
                        continue;
                    }
                    if title.contains("shutting down") {
                        processes.leaving.insert(worker);
                    } else {
                        processes.serving.insert(worker);
                        processes.since = processes.since.max(began);
                    }
                }
                _ => {}
            }
        }
        Ok(processes)
    }
}

#[async_trait]
impl Program for Nginx {
    fn title(&self) -> &'static str {
        "nginx"
    }

    fn suffix(&self) -> &str {
        ".conf"
    }

    fn parse(&self, pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String> {
        upstream::parse(pool, text)
    }

    fn render(&self, pool: &PoolName, nodes: &[Node], old: Option<&str>) -> Result<String, String> {
        upstream::render(pool, nodes, old)
    }

    async fn test(&self, site: &Site, change: &Change) -> Result<(), Refusal> {
        let output = site.run(&Command::line(&self.test_cmd)).await?;
        if !output.is_success() {
            return Err(Refusal::of(&self.test_cmd, &output));
        }
        let shown = output.text();
        if output.cut || !shown.contains("# configuration file ") {
            return Ok(());
        }
        for edit in &change.pools {
            let Some(after) = &edit.after else { continue };
            if upstream::find(&edit.pool, &shown).as_ref() != Some(after) {
                let (pool, dir) = (&edit.pool, self.include_dir.trim_end_matches('/'));
                return Err(Refusal::NotServed(format!(
                    "nginx does not load {dir}/{pool}.conf: http {{ … }} of its configuration needs \"include {dir}/*.conf;\", \
                     and no other upstream {pool}"
                )));
            }
        }
        Ok(())
    }

    async fn load(&self, site: &Site, _change: &Change) -> Result<(), Refusal> {
        let script = [FUNCTIONS, RELOAD_AND_WAIT].concat();
        reload_and_wait(site, &script, &self.reload_cmd, &self.pid_files(), "nginx made no new workers").await
    }

    /// Workers that are younger than a file have read it. Files of the last seconds are taken for loaded: the system tells
    /// the age of a process by the second only, and a change of ours that was not loaded has left its journal.
    async fn is_loaded(&self, site: &Site, files: &[FileOnSite]) -> Result<Option<bool>, Refusal> {
        let Processes { since, serving, .. } = self.processes(site).await?;
        let ours = files.iter().filter(|file| file.name.ends_with(self.suffix()));
        let newest = ours.map(|file| file.modified).fold(0.0, f64::max);
        Ok(if serving.is_empty() { None } else { Some(newest < since + 2.0) })
    }

    async fn has_old_generation(&self, site: &Site) -> Result<bool, Refusal> {
        Ok(!self.processes(site).await?.leaving.is_empty())
    }

    /// By the network that nginx lives in, which may be another than the site's.
    async fn open(&self, site: &Site, nodes: &[Node]) -> Result<OpenConnections, Refusal> {
        let master = self.processes(site).await?.master;
        Ok(site.connections(Some(master), nodes).await?)
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>, Refusal> {
        let mut problems = Vec::new();
        let output = site.run(&Command::line(&self.test_cmd)).await?;
        if !output.is_success() {
            problems.push(Refusal::of(&self.test_cmd, &output).to_string());
        }
        match self.processes(site).await {
            Ok(processes) if processes.serving.is_empty() => {
                problems.push(format!("nginx (process {}) has no workers", processes.master));
            }
            Ok(_) => {}
            Err(refusal) => problems.push(refusal.to_string()),
        }
        Ok(problems)
    }
}
