//! Caddy (2.6 and newer) with a Caddyfile: a pool is a file `<include_dir>/<pool>.caddy` with a snippet of `to` lines.
//!
//! The operator's Caddyfile imports the folder and says `reverse_proxy { import my_app }` where requests go to the pool.
//!
//! `caddy adapt` tests the files; `caddy validate` would also open the logs, as root, which Caddy then could not write to.
//! `caddy reload` gives the configuration to the admin API, which takes it whole or not at all. Afterwards the API is asked
//! which upstreams it has. While an old configuration still answers requests, or has connections on which no request has
//! come yet, a server of Go's is being shut down; the API shows that among its goroutines.

mod snippet;

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};

use crate::pools_in_files::{Change, Program, Refusal};
use crate::site::{Command, Endpoint, FileOnSite, OpenConnections, Output, Site};

/// What is done when nothing else is said; the paths are Debian's.
pub const INCLUDE_DIR: &str = "/etc/caddy/pools/";
/// The operator's Caddyfile.
pub const CONFIG_FILE: &str = "/etc/caddy/Caddyfile";
/// The language of the operator's file, whatever its name ends with.
const ADAPTER: &str = "caddyfile";
/// Where the admin API is.
const ADMIN: (&str, u16) = ("localhost", 2019);
/// For an answer of the admin API.
const ANSWER: Duration = Duration::from_secs(20);
/// For Caddy to take a configuration.
const RELOAD: Duration = Duration::from_secs(120);
/// From when a request has chosen its upstream until it has a connection.
const SETTLING: Duration = Duration::from_millis(200);
/// A name that nobody asks for, for a site that is only adapted, never loaded.
const PROBE: &str = "velociraptor-probe.invalid";

/// How Caddy is told.
#[derive(Debug, Clone)]
pub struct Caddy {
    /// Begins every command, such as `env HOME=/var/lib/caddy caddy`; a line for the shell.
    pub caddy_cmd: String,
    /// The operator's Caddyfile.
    pub config_file: String,
    /// Where the admin API is.
    pub admin: Endpoint,
    /// Reloads the configuration in another way than by `caddy reload`; a line for the shell.
    pub reload_cmd: Option<String>,
    /// Tests it in another way than by `caddy adapt`; a line for the shell.
    pub test_cmd: Option<String>,
    /// The folder of the pools' files.
    pub include_dir: String,
}

impl Default for Caddy {
    fn default() -> Self {
        Self {
            caddy_cmd: "caddy".to_owned(),
            config_file: CONFIG_FILE.to_owned(),
            admin: Endpoint::Tcp(ADMIN.0.to_owned(), ADMIN.1),
            reload_cmd: None,
            test_cmd: None,
            include_dir: INCLUDE_DIR.to_owned(),
        }
    }
}

impl Caddy {
    /// A command of Caddy's; the words are put behind the operator's line by the shell.
    fn command(&self, words: &[&str]) -> Command {
        let title = format!("{} {}", self.caddy_cmd, words.join(" "));
        Command::script(&title, &format!("{} \"$@\"", self.caddy_cmd), words.iter().copied()).deadline(RELOAD)
    }

    async fn run(&self, site: &Site, command: &Command) -> Result<Output, Refusal> {
        let output = site.run(command).await?;
        if output.is_success() { Ok(output) } else { Err(refusal(command.title(), &output)) }
    }

    /// The configuration that the files are, in Caddy's own form.
    async fn adapted(&self, site: &Site) -> Result<Value, Refusal> {
        let command = self.command(&["adapt", "--adapter", ADAPTER, "--config", &self.config_file]);
        let output = self.run(site, &command).await?;
        read_json(&output.stdout, command.title())
    }

    /// What the admin API answers. A request of HTTP/1.0 is answered in one piece, and needs no host on a unix socket.
    async fn ask(&self, site: &Site, path: &str) -> Result<Vec<u8>, Refusal> {
        let host = match &self.admin {
            Endpoint::Tcp(..) => format!("Host: {}\r\n", self.admin),
            Endpoint::Unix(_) => String::new(),
        };
        let request = format!("GET {path} HTTP/1.0\r\n{host}\r\n");
        let answer = site.exchange(&self.admin, request.into_bytes(), ANSWER).await?;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).unwrap_or_default();
        if status != "200" {
            let line = head.lines().next().unwrap_or_default();
            let body: String = body.trim().chars().take(300).collect();
            return Err(Refusal::Says {
                command: format!("{} {path}", self.admin),
                said: format!("{line}: {body}"),
            });
        }
        Ok(body.as_bytes().to_vec())
    }

    /// Whether Caddy has the upstreams that its files say.
    async fn serves_its_files(&self, site: &Site) -> Result<bool, Refusal> {
        let wanted = self.adapted(site).await?;
        let loaded = read_json(&self.ask(site, "/config/").await?, "the admin API")?;
        Ok(upstreams(&wanted) == upstreams(&loaded))
    }

    /// Whether the Caddyfile knows a pool, and with these nodes. Asked by a site of our own that is put behind the
    /// operator's configuration, and goes nowhere but into this question.
    async fn knows(&self, site: &Site, pool: &PoolName, nodes: &[Node]) -> Result<(), Refusal> {
        let file = self.config_file.replace('"', "\\\"");
        let probe = format!(
            "import \"{file}\"\nhttp://{PROBE} {{\n\treverse_proxy {{\n\t\timport {pool}\n\t}}\n}}\n"
        );
        // A pipe can be opened by its name; what SSH gives might not.
        let script = format!("cat | {} adapt --adapter {ADAPTER} --config /dev/stdin", self.caddy_cmd);
        let command = Command::line(&script).stdin(probe.into_bytes()).deadline(RELOAD);
        let output = site.run(&command).await?;
        let unknown = || {
            let (dir, file) = (self.include_dir.trim_end_matches('/'), &self.config_file);
            Refusal::NotServed(format!(
                "caddy does not load {dir}/{pool}{}: {file} has to say \"import {dir}/*{0}\"",
                self.suffix()
            ))
        };
        if !output.is_success() {
            // A Caddyfile of a single site without braces, say, takes no second one; then nobody can tell.
            let is_unknown = output.last_words().contains(&format!("File to import not found: {pool}"));
            return if is_unknown { Err(unknown()) } else { Ok(()) };
        }
        let adapted = read_json(&output.stdout, command.title())?;
        let mut wanted: Vec<String> = nodes.iter().map(Node::to_string).collect();
        wanted.sort();
        match probe_of(&adapted).map(upstreams) {
            Some(found) if found != [wanted] => Err(unknown()),
            _ => Ok(()),
        }
    }

    /// The calls that Caddy's goroutines are in; none if it does not show them.
    async fn goroutines(&self, site: &Site) -> Result<Option<String>, Refusal> {
        match self.ask(site, "/debug/pprof/goroutine?debug=1").await {
            Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
            Err(Refusal::Says { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

/// Whether a configuration from before still has connections of clients.
fn is_shutting_down(goroutines: &str) -> bool {
    ["caddyhttp.(*App).Stop", "net/http.(*Server).Shutdown"].iter().any(|call| goroutines.contains(call))
}

/// Whether there are WebSockets, which no shutdown waits for.
fn has_tunnels(goroutines: &str) -> bool {
    goroutines.contains("reverseproxy.(*Handler).handleUpgradeResponse")
}

/// Caddy's own words: the lines of its log before them are about everything.
fn refusal(command: &str, output: &Output) -> Refusal {
    let text = [output.stdout.as_slice(), b"\n", output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    let errors: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("Error: ")).collect();
    if errors.is_empty() {
        return Refusal::of(command, output);
    }
    Refusal::Says { command: command.to_owned(), said: errors.join(" / ") }
}

fn read_json(text: &[u8], from: &str) -> Result<Value, Refusal> {
    serde_json::from_slice(text).map_err(|error| {
        Refusal::NotServed(format!("{from} gave no configuration that can be read: {error}"))
    })
}

/// The upstreams of every `reverse_proxy` in a configuration, each list sorted, and the lists as well.
fn upstreams(configuration: &Value) -> Vec<Vec<String>> {
    fn collect(value: &Value, found: &mut Vec<Vec<String>>) {
        match value {
            Value::Object(object) => {
                if object.get("handler").and_then(Value::as_str) == Some("reverse_proxy") {
                    let own =
                        object.get("upstreams").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                    let dial = |upstream: &Value| Some(upstream.get("dial")?.as_str()?.to_owned());
                    let mut own: Vec<String> = own.iter().filter_map(dial).collect();
                    own.sort();
                    found.push(own);
                }
                object.values().for_each(|value| collect(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(configuration, &mut found);
    found.sort();
    found
}

/// The route of the probe's site.
fn probe_of(configuration: &Value) -> Option<&Value> {
    let servers = configuration.pointer("/apps/http/servers")?.as_object()?;
    let mut routes = servers.values().filter_map(|server| server.get("routes")?.as_array()).flatten();
    routes.find(|route| route.pointer("/match/0/host/0").and_then(Value::as_str) == Some(PROBE))
}

#[async_trait]
impl Program for Caddy {
    fn title(&self) -> &'static str {
        "caddy"
    }

    fn suffix(&self) -> &str {
        ".caddy"
    }

    fn parse(&self, pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String> {
        snippet::parse(pool, text)
    }

    fn render(&self, pool: &PoolName, nodes: &[Node], old: Option<&str>) -> Result<String, String> {
        snippet::render(pool, nodes, old)
    }

    async fn test(&self, site: &Site, change: &Change) -> Result<(), Refusal> {
        if let Some(test_cmd) = &self.test_cmd {
            self.run(site, &Command::line(test_cmd).deadline(RELOAD)).await?;
        }
        self.adapted(site).await?;
        for edit in &change.pools {
            if let Some(after) = &edit.after {
                edit.check_names(site).await?;
                self.knows(site, &edit.pool, after).await?;
            }
        }
        Ok(())
    }

    async fn load(&self, site: &Site, _change: &Change) -> Result<(), Refusal> {
        let reload = match &self.reload_cmd {
            Some(reload_cmd) => Command::line(reload_cmd).deadline(RELOAD),
            None => {
                let admin = match &self.admin {
                    Endpoint::Tcp(..) => self.admin.to_string(),
                    Endpoint::Unix(path) => format!("unix/{}", path.display()),
                };
                self.command(&[
                    "reload",
                    "--adapter",
                    ADAPTER,
                    "--config",
                    &self.config_file,
                    "--address",
                    &admin,
                ])
            }
        };
        self.run(site, &reload).await?;
        if self.serves_its_files(site).await? {
            return Ok(());
        }
        Err(Refusal::NotServed(format!(
            "caddy has other upstreams than {} says, after {:?}",
            self.config_file,
            reload.title()
        )))
    }

    async fn is_loaded(&self, site: &Site, _files: &[FileOnSite]) -> Result<Option<bool>, Refusal> {
        self.serves_its_files(site).await.map(Some)
    }

    async fn has_old_generation(&self, site: &Site) -> Result<bool, Refusal> {
        Ok(self.goroutines(site).await?.is_some_and(|goroutines| is_shutting_down(&goroutines)))
    }

    /// Connections count only while a request can be on one: Caddy keeps those that are idle for minutes.
    async fn open(&self, site: &Site, nodes: &[Node]) -> Result<OpenConnections, Refusal> {
        match self.goroutines(site).await? {
            Some(goroutines) if !is_shutting_down(&goroutines) && !has_tunnels(&goroutines) => {
                Ok(nodes.iter().map(|node| (node.clone(), 0)).collect())
            }
            _ => Ok(site.connections(None, nodes).await?),
        }
    }

    fn settling(&self) -> Duration {
        SETTLING
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>, Refusal> {
        let mut problems = Vec::new();
        let change = Change { id: String::new(), pools: Vec::new(), everything: false };
        if let Err(refusal) = self.test(site, &change).await {
            problems.push(chain(&refusal));
        }
        if let Err(refusal) = self.ask(site, "/config/").await {
            problems.push(chain(&refusal));
        }
        Ok(problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_found_wherever_they_are() {
        let configuration = serde_json::json!({"apps": {"http": {"servers": {
            "srv0": {"routes": [{"handle": [{"handler": "subroute", "routes": [
                {"handle": [{"handler": "reverse_proxy", "upstreams": [{"dial": "h:2"}, {"dial": "h:1"}]}]}]}]}]},
            "srv1": {"routes": [
                {"match": [{"host": ["other"]}]},
                {"match": [{"host": [PROBE]}], "handle": [{"handler": "reverse_proxy"}]}]},
        }}}});
        assert_eq!(upstreams(&configuration), [vec![], vec!["h:1".to_owned(), "h:2".to_owned()]]);
        assert_eq!(upstreams(probe_of(&configuration).unwrap()), [Vec::<String>::new()]);
        assert!(probe_of(&serde_json::json!({"apps": {}})).is_none());
    }
}
