//! Varnish (6.0 and newer): a pool is a file `<include_dir>/pool-<pool>.vcl` with its backends and a `directors.round_robin` object
//! named after it, and `pools.vcl` includes all of them.
//!
//! The operator's VCL includes `pools.vcl` and says which requests go to which pool: `set req.backend_hint = my_app.backend();`.
//!
//! A change is compiled by the running Varnish (`vcl.load`), which is the test, then used (`vcl.use`), and the VCLs that we
//! loaded before are discarded. With a `reload_cmd`, that is run instead, after a compilation of its own.

mod vcl;

use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use vr_common::names::{Node, PoolName};

use crate::pools_in_files::{Change, Program, Refusal};
use crate::site::{Command, FileOnSite, OpenConnections, Output, Site};

/// What is done when nothing else is said; the paths are Debian's.
pub const INCLUDE_DIR: &str = "/etc/varnish/";
/// The names of the VCLs that are ours to discard.
const OURS: &str = "velociraptor-";
/// For the C compiler, on a machine that has other things to do.
const COMPILATION: Duration = Duration::from_secs(120);
/// For Varnish to say that the VCL it uses is a new one, after a reload that is not ours.
const NEW_VCL: Duration = Duration::from_secs(20);

/// How Varnish is told.
#[derive(Debug, Clone)]
pub struct Varnish {
    /// Begins every command to Varnish, such as `varnishadm -n /var/lib/other`; a line for the shell.
    pub varnishadm_cmd: String,
    /// Begins every question for Varnish's counters, such as `varnishstat -n /var/lib/other`; a line for the shell.
    pub varnishstat_cmd: String,
    /// The operator's VCL, which is loaded.
    pub vcl_file: String,
    /// Reloads it in another way than by `varnishadm`; a line for the shell.
    pub reload_cmd: Option<String>,
    /// Tests it in another way; a line for the shell.
    pub test_cmd: Option<String>,
    /// The folder of the pools' files.
    pub include_dir: String,
    /// The file that includes them all.
    pub main_pool_file: String,
    /// What the names of the pools' files begin with.
    pub pool_file_prefix: String,
}

impl Default for Varnish {
    fn default() -> Self {
        Self {
            varnishadm_cmd: "varnishadm".to_owned(),
            varnishstat_cmd: "varnishstat".to_owned(),
            vcl_file: "/etc/varnish/default.vcl".to_owned(),
            reload_cmd: None,
            test_cmd: None,
            include_dir: INCLUDE_DIR.to_owned(),
            main_pool_file: "pools.vcl".to_owned(),
            pool_file_prefix: "pool-".to_owned(),
        }
    }
}

/// One VCL that Varnish has, as `vcl.list -j` tells.
#[derive(Debug, Deserialize)]
struct Loaded {
    status: String,
    name: String,
}

impl Varnish {
    /// Runs a command of `varnishadm`; the words are ours and hold nothing that a shell would see.
    async fn ask(&self, site: &Site, words: &[&str]) -> Result<Output, Refusal> {
        // The operator's line may hold options and quotes, so it is a shell that puts both together.
        let script = format!("{} \"$@\"", self.varnishadm_cmd);
        let command = Command::script(
            &format!("{} {}", self.varnishadm_cmd, words.join(" ")),
            &script,
            words.iter().copied(),
        );
        Ok(site.run(&command.deadline(COMPILATION)).await?)
    }

    async fn tell(&self, site: &Site, words: &[&str]) -> Result<String, Refusal> {
        let output = self.ask(site, words).await?;
        if output.is_success() {
            return Ok(output.text());
        }
        let command = format!("{} {}", self.varnishadm_cmd, words.join(" "));
        // What Varnish says is on standard output; the other has only varnishadm's number for it.
        let said = output
            .text()
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .take(12)
            .collect::<Vec<_>>()
            .join(" / ");
        Err(if said.is_empty() { Refusal::of(&command, &output) } else { Refusal::Says { command, said } })
    }

    async fn list(&self, site: &Site) -> Result<Vec<Loaded>, Refusal> {
        let said = self.tell(site, &["--", "vcl.list", "-j"]).await?;
        let unreadable = || Refusal::NotServed("varnishadm vcl.list -j gave no list of VCLs".to_owned());
        // `[ 2, ["vcl.list", "-j"], 1795278777.502, {…}, … ]`
        let all: Vec<serde_json::Value> = serde_json::from_str(&said).map_err(|_| unreadable())?;
        Ok(all.into_iter().skip(3).filter_map(|entry| serde_json::from_value(entry).ok()).collect())
    }

    async fn active(&self, site: &Site) -> Result<String, Refusal> {
        let vcls = self.list(site).await?;
        let active = vcls.into_iter().find(|vcl| vcl.status == "active");
        active.map(|vcl| vcl.name).ok_or_else(|| Refusal::NotServed("varnish has no active VCL".to_owned()))
    }

    fn name_of(change: &Change) -> String {
        format!("{OURS}{}", change.id)
    }

    /// Whether the VCL was made of these nodes.
    async fn serves(&self, site: &Site, vcl: &str, change: &Change) -> Result<(), Refusal> {
        let source = self.tell(site, &["--", "vcl.show", "-v", vcl]).await?;
        for edit in &change.pools {
            let Some(after) = &edit.after else { continue };
            if vcl::find(&edit.pool, &source).as_ref() != Some(after) {
                let (pool, main, file) = (&edit.pool, &self.main_pool_file, &self.vcl_file);
                let dir = self.include_dir.trim_end_matches('/');
                return Err(Refusal::NotServed(format!(
                    "varnish does not load the nodes of pool {pool}: {file} has to include \"{dir}/{main}\""
                )));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Program for Varnish {
    fn title(&self) -> &'static str {
        "varnish"
    }

    fn prefix(&self) -> &str {
        &self.pool_file_prefix
    }

    fn suffix(&self) -> &str {
        ".vcl"
    }

    fn shared_file(&self) -> Option<&str> {
        Some(&self.main_pool_file)
    }

    fn write_shared(&self, old: Option<&str>, pool: &PoolName, is_there: bool) -> String {
        let dir = self.include_dir.trim_end_matches('/');
        vcl::write_includes(old, &format!("{dir}/{}{pool}.vcl", self.pool_file_prefix), is_there)
    }

    fn parse(&self, pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String> {
        vcl::parse(pool, text)
    }

    fn render(&self, pool: &PoolName, nodes: &[Node], old: Option<&str>) -> Result<String, String> {
        vcl::render(pool, nodes, old)
    }

    async fn test(&self, site: &Site, change: &Change) -> Result<(), Refusal> {
        if let Some(test_cmd) = &self.test_cmd {
            let output = site.run(&Command::line(test_cmd).deadline(COMPILATION)).await?;
            if !output.is_success() {
                return Err(Refusal::of(test_cmd, &output));
            }
        }
        let vcl = Self::name_of(change);
        self.tell(site, &["vcl.load", &vcl, &self.vcl_file]).await?;
        let served = self.serves(site, &vcl, change).await;
        if self.reload_cmd.is_some() {
            // It was only a test; the other way loads its own.
            self.abandon(site, change).await;
        }
        served
    }

    async fn load(&self, site: &Site, change: &Change) -> Result<(), Refusal> {
        let Some(reload_cmd) = &self.reload_cmd else {
            let vcl = Self::name_of(change);
            self.tell(site, &["vcl.use", &vcl]).await?;
            let active = self.active(site).await?;
            if active != vcl {
                return Err(Refusal::NotServed(format!(
                    "varnish uses {active} and not {vcl}, which it was told to"
                )));
            }
            for old in self.list(site).await? {
                if old.name.starts_with(OURS) && old.status == "available" && old.name != vcl {
                    // Those that are still answering are only marked, and go when they have ended.
                    self.tell(site, &["vcl.discard", &old.name]).await?;
                }
            }
            return Ok(());
        };
        let before = self.active(site).await?;
        let output = site.run(&Command::line(reload_cmd).deadline(COMPILATION)).await?;
        if !output.is_success() {
            return Err(Refusal::of(reload_cmd, &output));
        }
        let end = Instant::now() + NEW_VCL;
        loop {
            let active = self.active(site).await?;
            if active != before {
                return self.serves(site, &active, change).await;
            }
            if Instant::now() >= end {
                let seconds = NEW_VCL.as_secs();
                return Err(Refusal::NotServed(format!(
                    "varnish still uses the VCL {before}, {seconds} s after {reload_cmd}"
                )));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn abandon(&self, site: &Site, change: &Change) {
        // It may not have come into being.
        let _unknown = self.ask(site, &["vcl.discard", &Self::name_of(change)]).await;
    }

    async fn is_loaded(&self, site: &Site, files: &[FileOnSite]) -> Result<Option<bool>, Refusal> {
        let active = self.active(site).await?;
        let source = self.tell(site, &["--", "vcl.show", "-v", &active]).await?;
        let ours = files.iter().filter(|file| {
            file.name == self.main_pool_file
                || (file.name.starts_with(&self.pool_file_prefix) && file.name.ends_with(".vcl"))
        });
        Ok(Some(ours.into_iter().all(|file| source.contains(file.text.trim()))))
    }

    /// What Varnish counts, also in VCLs that it is told to discard. TCP connections would say little: it keeps those that
    /// it does not use.
    async fn open(&self, site: &Site, nodes: &[Node]) -> Result<OpenConnections, Refusal> {
        let script = format!("{} -1 -f 'VBE.*.conn'", self.varnishstat_cmd);
        let output = site.run(&Command::line(&script)).await?;
        if !output.is_success() {
            return Err(Refusal::of(&script, &output));
        }
        let mut open: OpenConnections = nodes.iter().map(|node| (node.clone(), 0)).collect();
        let mut active = None;
        for line in output.text().lines() {
            // `VBE.velociraptor-1.web_x_h1_x3a80.conn     1     .   Concurrent connections used`
            let mut words = line.split_whitespace();
            let (Some(counter), Some(Ok(count))) = (words.next(), words.next().map(str::parse::<u64>)) else {
                continue;
            };
            let name = counter.strip_prefix("VBE.").and_then(|name| name.strip_suffix(".conn"));
            let Some((vcl, backend)) = name.and_then(|name| name.rsplit_once('.')) else { continue };
            if count == 0 {
                continue;
            }
            match vcl::node_of(backend) {
                Some(node) => {
                    if let Some(open) = open.get_mut(&node) {
                        *open += count;
                    }
                }
                // One that a person named. Of an older VCL, it may be any of these nodes.
                None => {
                    if active.is_none() {
                        active = Some(self.active(site).await?);
                    }
                    if active.as_deref() != Some(vcl) {
                        open.values_mut().for_each(|open| *open += count);
                    }
                }
            }
        }
        Ok(open)
    }

    fn settling(&self) -> Duration {
        Duration::from_millis(200)
    }

    async fn check(&self, site: &Site) -> Result<Vec<String>, Refusal> {
        let change = Change {
            id: format!("check-{:08x}", rand::random::<u32>()),
            pools: Vec::new(),
            everything: false,
        };
        let mut problems = Vec::new();
        if let Err(refusal) = self.active(site).await {
            return Ok(vec![refusal.to_string()]);
        }
        if let Err(refusal) = self.test(site, &change).await {
            problems.push(refusal.to_string());
        }
        self.abandon(site, &change).await;
        if let Err(refusal) = self.open(site, &[]).await {
            problems.push(refusal.to_string());
        }
        Ok(problems)
    }
}
