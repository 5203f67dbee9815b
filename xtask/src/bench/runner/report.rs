//! The numbers as Markdown, with the marks to reach, the machine and the date.

use std::fmt::Write as _;
use std::time::Duration;

use super::builds::Builds;
use super::memory::{Memory, Waiting};
use super::starts::Starts;
use crate::bench::machine::Machine;
use crate::bench::markdown::{MARKS, mark, mb, ms, ratio};

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

impl Report {
    /// The whole table.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.machine.write(&mut text);
        let _ = self.write_marks(&mut text);
        let _ = self.write_starts(&mut text);
        let _ = self.write_builds(&mut text);
        let _ = self.write_memory(&mut text);
        text
    }

    fn write_marks(&self, to: &mut String) -> std::fmt::Result {
        writeln!(to, "{MARKS}")?;
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
