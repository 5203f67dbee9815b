//! The numbers as Markdown, with the marks to reach, the machine and the date; and their place in the docs.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vr_common::process::command;

use super::builds::Builds;
use super::memory::{Memory, Waiting};
use super::peers::is_installed;
use super::starts::Starts;
use super::world::World;

const BEGIN: &str = "<!-- written by `cargo xtask bench runner --write`: begin -->";
const END: &str = "<!-- written by `cargo xtask bench runner --write`: end -->";

/// The marks: times of bare unshare, the time of a tenth setup, bytes beside an app.
const UNSHARE_FACTOR: f64 = 3.0;
const TENTH: Duration = Duration::from_millis(15);
const BESIDE_THE_APP: u64 = 3_000_000;

/// Everything that was measured.
#[derive(Debug)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// Containers.
    pub starts: Starts,
    /// Large builds.
    pub builds: Builds,
    /// A waiting vrun.
    pub memory: Waiting,
}

/// What the numbers depend on.
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
    /// At the beginning.
    pub fn look(world: &World) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let cpuinfo = read("/proc/cpuinfo")?;
        let of_cpu =
            |key: &str| cpuinfo.lines().find(|line| line.starts_with(key)).and_then(|l| l.split_once(':'));
        let model = of_cpu("model name").map_or("unknown", |(_, name)| name.trim());
        let is_virtual =
            of_cpu("flags").is_some_and(|(_, flags)| flags.split(' ').any(|flag| flag == "hypervisor"));
        let cores = std::thread::available_parallelism()?;
        let kind = if is_virtual { "a virtual machine" } else { "no virtual machine" };
        let mut versions = vec![first_line(&world.vrun, "--version")];
        for program in
            ["crun", "runc", "lxc-start", "bwrap", "unshare", "tar"].into_iter().filter(|p| is_installed(p))
        {
            let version = first_line(Path::new(program), "--version");
            versions.push(if version.starts_with(|c: char| c.is_ascii_digit()) {
                format!("{program} {version}")
            } else {
                version
            });
        }
        let mut file_system = command("stat");
        let file_system = file_system.args(["--file-system", "--format=%T"]).arg(world.path()).output()?;
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
}

fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

fn first_line(program: &Path, argument: &str) -> String {
    let output = command(program).arg(argument).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

impl Report {
    /// The whole table.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_machine(&mut text);
        let _ = self.write_marks(&mut text);
        let _ = self.write_starts(&mut text);
        let _ = self.write_builds(&mut text);
        let _ = self.write_memory(&mut text);
        text
    }

    fn write_machine(&self, to: &mut String) -> std::fmt::Result {
        let Machine { date, kernel, processor, file_system, versions, load } = &self.machine;
        writeln!(
            to,
            "{date}; Linux {kernel}; {processor}; {file_system}. Load {} at the beginning, {} at the end.",
            load[0], load[1]
        )?;
        writeln!(to, "{}.\n", versions.join("; "))
    }

    fn write_marks(&self, to: &mut String) -> std::fmt::Result {
        writeln!(to, "| mark | measured | |\n| --- | --- | --- |")?;
        let median = |name: &str| self.starts.row(name).map(|row| row.samples.median());
        if let (Some(vrun), Some(unshare)) = (median("**vrun run**"), median("unshare")) {
            for (peer, words) in [
                ("crun run", "`vrun run` no slower than `crun run`, both with their overlay"),
                ("crun run, root mounted before", "… than `crun run` that is spared the overlay"),
            ] {
                if let Some(crun) = median(peer) {
                    mark(to, words, &format!("{} against {}", ms(vrun), ms(crun)), vrun <= crun)?;
                }
            }
            let factor = ratio(vrun, unshare);
            let words = format!("`vrun run` at most {UNSHARE_FACTOR:.0} × bare `unshare`");
            mark(to, &words, &format!("{factor:.2} ×"), factor <= UNSHARE_FACTOR)?;
        }
        let builds = &self.builds;
        let (first, tar, tenth) = (builds.first.median(), builds.tar.median(), builds.tenth.median());
        mark(
            to,
            "first `setup` no slower than `tar xzf`",
            &format!("{} against {}", ms(first), ms(tar)),
            first <= tar,
        )?;
        mark(to, &format!("tenth `setup` at most {}", ms(TENTH)), &ms(tenth), tenth <= TENTH)?;
        let both = self.memory.vrun.plus(self.memory.init);
        let peak = self.memory.vrun.peak;
        let limit = mb(BESIDE_THE_APP);
        let resident = self.memory.vrun.resident;
        let words = format!("a waiting `vrun run` at most {limit} resident");
        mark(to, &words, &mb(resident), resident <= BESIDE_THE_APP)?;
        let words = format!("its peak, which is while it starts, at most {limit}");
        mark(to, &words, &mb(peak), peak <= BESIDE_THE_APP)?;
        let words = format!("vrun and its init, shared pages counted by share, at most {limit}");
        mark(to, &words, &mb(both.share), both.share <= BESIDE_THE_APP)?;
        writeln!(to)
    }

    fn write_starts(&self, to: &mut String) -> std::fmt::Result {
        let Starts { rounds, rows, left_out } = &self.starts;
        writeln!(to, "### From the start to the end of `/bin/true`\n")?;
        writeln!(to, "{rounds} times each, in turn, after 3 starts that do not count.\n")?;
        writeln!(to, "| | median | p90 | × unshare | what it did |\n| --- | ---: | ---: | ---: | --- |")?;
        let floor = self.starts.row("unshare").map(|row| row.samples.median()).unwrap_or_default();
        for row in rows {
            let (median, p90) = (row.samples.median(), row.samples.p90());
            writeln!(
                to,
                "| {} | {} | {} | {:.2} | {} |",
                row.name,
                ms(median),
                ms(p90),
                ratio(median, floor),
                row.had
            )?;
        }
        if !left_out.is_empty() {
            writeln!(to, "\nLeft out: {}.", left_out.join("; "))?;
        }
        writeln!(to)
    }

    fn write_builds(&self, to: &mut String) -> std::fmt::Result {
        let builds = &self.builds;
        let (size, packed) = (mb(builds.size), mb(builds.packed));
        writeln!(to, "### A build of {size} in a tarball of {packed}\n")?;
        writeln!(
            to,
            "{} times each, in turn, with nothing left to be written before each.\n",
            builds.tar.len()
        )?;
        writeln!(to, "| | median | p90 |\n| --- | ---: | ---: |")?;
        for (name, samples) in [
            ("`tar xzf`", &builds.tar),
            ("`tar xzf` until all is on the disk, as setup sees to", &builds.tar_on_disk),
            ("`vrun setup` of the first proc, tarball there", &builds.first),
            ("`vrun setup` of the first proc, tarball copied from a local path", &builds.first_with_copy),
            ("`vrun setup` of the second proc", &builds.second),
            ("`vrun setup` of the tenth proc", &builds.tenth),
        ] {
            writeln!(to, "| {name} | {} | {} |", ms(samples.median()), ms(samples.p90()))?;
        }
        writeln!(to)
    }

    fn write_memory(&self, to: &mut String) -> std::fmt::Result {
        let Waiting { vrun, init } = &self.memory;
        writeln!(to, "### What waits beside an app\n")?;
        writeln!(to, "| | peak (VmHWM) | resident (VmRSS) | share (Pss) | not of a file (RssAnon) |")?;
        writeln!(to, "| --- | ---: | ---: | ---: | ---: |")?;
        for (name, Memory { peak, resident, share, anonymous }) in
            [("vrun", *vrun), ("its init", *init), ("both", vrun.plus(*init))]
        {
            writeln!(to, "| {name} | {} | {} | {} | {} |", mb(peak), mb(resident), mb(share), mb(anonymous))?;
        }
        Ok(())
    }
}

fn mark(to: &mut String, words: &str, measured: &str, reached: bool) -> std::fmt::Result {
    writeln!(to, "| {words} | {measured} | {} |", if reached { "✓" } else { "✗" })
}

fn ratio(duration: Duration, to: Duration) -> f64 {
    duration.as_secs_f64() / to.as_secs_f64()
}

fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 100.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

fn mb(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

/// Replaces what stands between the two marks of the page.
pub fn write(page: &Path, report: &str) -> Result<()> {
    let text = match fs::read_to_string(page) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => format!("# Benchmarks\n\n{BEGIN}\n{END}\n"),
        read => read.with_context(|| format!("cannot read {}", page.display()))?,
    };
    let Some(text) = replaced(&text, report) else {
        bail!("{} lacks the lines {BEGIN} and {END}", page.display());
    };
    fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))?;
    println!("Written to {}", page.display());
    Ok(())
}

fn replaced(page: &str, report: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", report.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = format!("# Top\n\n{BEGIN}\n\nold\n\n{END}\n\n## Below\n");
        let new = replaced(&page, "\nnew\n").unwrap();
        assert_eq!(new, format!("# Top\n\n{BEGIN}\n\nnew\n\n{END}\n\n## Below\n"));
        assert_eq!(replaced(&new, "new").unwrap(), new);
        assert!(replaced("# Top\n", "new").is_none());
    }
}
