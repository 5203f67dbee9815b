//! What all numbers depend on: the machine, and the versions of what ran on it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use vr_common::process::command;

use super::programs::{is_installed, version};

/// Where and when it was measured.
#[derive(Debug)]
pub struct Machine {
    date: String,
    kernel: String,
    processor: String,
    file_system: String,
    versions: Vec<String>,
    load: [String; 2],
}

impl Machine {
    /// At the beginning. `folder` is where it is measured, `ours` are the programs that it is about, and `others` the
    /// names of those that they are measured against, as far as they are installed.
    pub fn look(folder: &Path, ours: &[&Path], others: &[&str]) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let cpuinfo = read("/proc/cpuinfo")?;
        let of_cpu =
            |key: &str| cpuinfo.lines().find(|line| line.starts_with(key)).and_then(|l| l.split_once(':'));
        let model = of_cpu("model name").map_or("unknown", |(_, name)| name.trim());
        let is_virtual =
            of_cpu("flags").is_some_and(|(_, flags)| flags.split(' ').any(|flag| flag == "hypervisor"));
        let cores = std::thread::available_parallelism()?;
        let kind = if is_virtual { "a virtual machine" } else { "no virtual machine" };
        let others = others.iter().filter(|name| is_installed(name)).map(Path::new);
        let versions = ours.iter().copied().chain(others).map(version).collect();
        let mut file_system = command("stat");
        let file_system = file_system.args(["--file-system", "--format=%T"]).arg(folder).output()?;
        Ok(Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            processor: format!("{model}, {cores} processors, {kind}"),
            file_system: String::from_utf8_lossy(&file_system.stdout).trim().to_owned(),
            versions,
            load: [load()?, String::new()],
        })
    }

    /// At the end.
    pub fn look_again(&mut self) -> Result<()> {
        self.load[1] = load()?;
        Ok(())
    }

    /// All of it, as the paragraph that a report begins with.
    pub fn write(&self, to: &mut String) -> std::fmt::Result {
        use std::fmt::Write as _;
        let Self { date, kernel, processor, file_system, versions, load } = self;
        writeln!(
            to,
            "{date}; Linux {kernel}; {processor}; {file_system}. Load {} at the beginning, {} at the end.",
            load[0], load[1]
        )?;
        writeln!(to, "{}.\n", versions.join("; "))
    }
}

fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
