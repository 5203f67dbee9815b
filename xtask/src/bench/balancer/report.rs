//! The numbers as Markdown, with the marks to reach, the machine and the date.

use std::fmt::Write as _;
use std::time::Duration;

use super::changes::Changes;
use super::hosts::HOSTS;
use super::load::{CONNECTIONS, Runs};
use super::server::LARGE;
use crate::bench::agent::processes::Memory;
use crate::bench::machine::Machine;
use crate::bench::markdown::{MARKS, mark, mb, ms, ratio};
use crate::bench::stats::Samples;

/// The marks: against haproxy's requests a second, against its p99, bytes of memory, the time of a change, and that of one
/// on nginx on hosts.
const RATE: f64 = 0.7;
const P99: f64 = 1.5;
const RESIDENT: u64 = 20_000_000;
const CHANGED: Duration = Duration::from_millis(10);
const HOSTS_CHANGED: Duration = Duration::from_secs(1);
/// Whom the marks compare with.
const PEER: &str = "haproxy";

/// Who answered.
#[derive(Debug)]
pub struct Row<'a> {
    /// Who.
    pub name: &'a str,
    /// Small answers.
    pub small: Runs,
    /// Large ones, after these.
    pub large: Runs,
}

/// Everything that was measured.
#[derive(Debug)]
pub struct Report<'a> {
    /// Where and when.
    pub machine: Machine,
    /// How often each got the load.
    pub rounds: u32,
    /// For how many seconds.
    pub seconds: u32,
    /// The built-in proxy first, and who answers without a proxy last.
    pub rows: Vec<Row<'a>>,
    /// Of the built-in proxy's pool.
    pub changes: Changes,
    /// Of a pool of nginx on hosts.
    pub hosts: Option<Samples>,
    /// What was not installed.
    pub left_out: Vec<&'static str>,
}

impl Report<'_> {
    /// The whole table.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.machine.write(&mut text);
        let _ = self.write_marks(&mut text);
        let _ = self.write_rows(&mut text);
        let _ = self.write_changes(&mut text);
        text
    }

    fn write_marks(&self, to: &mut String) -> std::fmt::Result {
        writeln!(to, "{MARKS}")?;
        let peer = self.rows.iter().find(|row| row.name == PEER);
        if let Some(ours) = self.rows.first() {
            if let Some(peer) = peer {
                let (rate, of_peer) = (ours.small.rate(), peer.small.rate());
                let words = format!("requests a second at least {RATE} × {PEER}'s");
                let measured = format!("{:.2} × ({rate:.0} against {of_peer:.0})", rate / of_peer);
                mark(to, &words, &measured, rate >= RATE * of_peer)?;
                let (p99, of_peer) = (ours.small.p99(), peer.small.p99());
                let words = format!("p99 at most {P99} × {PEER}'s");
                let times = ratio(p99, of_peer);
                let measured = format!("{times:.2} × ({} against {})", ms(p99), ms(of_peer));
                mark(to, &words, &measured, times <= P99)?;
            }
            let loads = [("small answers", &ours.small), ("large answers", &ours.large)];
            for (load, runs) in loads {
                let resident = runs.memory().resident;
                let words = format!("resident memory after {load} at most {}", mb(RESIDENT));
                mark(to, &words, &mb(resident), resident <= RESIDENT)?;
            }
        }
        for row in self.changes.rows.iter().take(2) {
            let p99 = row.in_effect.p99();
            let words =
                format!("a change of a pool in effect after at most {} (p99; {})", ms(CHANGED), row.name);
            mark(to, &words, &ms(p99), p99 <= CHANGED)?;
        }
        if let Some(hosts) = &self.hosts {
            let longest = hosts.longest();
            let words = format!(
                "a change of a pool of nginx on {HOSTS} hosts over SSH at most {} (the longest)",
                ms(HOSTS_CHANGED)
            );
            mark(to, &words, &ms(longest), longest <= HOSTS_CHANGED)?;
        }
        writeln!(to)
    }

    fn write_rows(&self, to: &mut String) -> std::fmt::Result {
        let Self { rounds, seconds, .. } = self;
        writeln!(to, "### Small answers, {CONNECTIONS} connections\n")?;
        writeln!(to, "{rounds} times {seconds} s each, in turn.\n")?;
        writeln!(
            to,
            "| | requests a second | lowest, highest | median | p99 | processor time for each request | resident (VmRSS) | share (Pss) | peak (VmHWM) |"
        )?;
        writeln!(to, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for Row { name, small, .. } in &self.rows {
            let Memory { resident, share, peak, .. } = small.memory();
            let (lowest, highest) = small.rates();
            writeln!(
                to,
                "| {name} | {:.0} | {lowest:.0}, {highest:.0} | {} | {} | {:.1} µs | {} | {} | {} |",
                small.rate(),
                ms(small.p50()),
                ms(small.p99()),
                small.cpu().as_secs_f64() * 1e6,
                mb(resident),
                mb(share),
                mb(peak)
            )?;
        }
        if !self.left_out.is_empty() {
            writeln!(to, "\nLeft out: {}.", self.left_out.join("; "))?;
        }
        writeln!(to, "\n### Answers of {}, {CONNECTIONS} connections\n", mb(LARGE as u64))?;
        writeln!(to, "{rounds} times {} s each, in turn.\n", seconds.div_ceil(2))?;
        writeln!(
            to,
            "| | megabytes a second | median | p99 | processor time for each megabyte | resident (VmRSS) | share (Pss) | peak (VmHWM) |"
        )?;
        writeln!(to, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for Row { name, large, .. } in &self.rows {
            let Memory { resident, share, peak, .. } = large.memory();
            writeln!(
                to,
                "| {name} | {:.0} | {} | {} | {:.0} µs | {} | {} | {} |",
                large.bytes() / 1e6,
                ms(large.p50()),
                ms(large.p99()),
                large.cpu().as_secs_f64() * 1e12 / LARGE as f64,
                mb(resident),
                mb(share),
                mb(peak)
            )?;
        }
        writeln!(to)
    }

    fn write_changes(&self, to: &mut String) -> std::fmt::Result {
        writeln!(to, "### From a change of a pool to the first request at the new node\n")?;
        writeln!(to, "| | changes | median | p99 | longest | acknowledged, median |")?;
        writeln!(to, "| --- | ---: | ---: | ---: | ---: | ---: |")?;
        for row in &self.changes.rows {
            let (effect, told) = (&row.in_effect, &row.acknowledged);
            let (median, p99, longest) = (ms(effect.median()), ms(effect.p99()), ms(effect.longest()));
            writeln!(
                to,
                "| {} | {} | {median} | {p99} | {longest} | {} |",
                row.name,
                effect.len(),
                ms(told.median())
            )?;
        }
        writeln!(
            to,
            "\n{} requests were answered while the pool was changed under load; none failed, and none that began \
             after a change was acknowledged went to the old node.",
            self.changes.under_load
        )?;
        if let Some(hosts) = &self.hosts {
            writeln!(to, "\n### A pool of nginx on {HOSTS} hosts, over SSH\n")?;
            writeln!(to, "| | changes | median | p90 | longest |\n| --- | ---: | ---: | ---: | ---: |")?;
            writeln!(
                to,
                "| `vr-balancer set`, from its start to its end | {} | {} | {} | {} |",
                hosts.len(),
                ms(hosts.median()),
                ms(hosts.p90()),
                ms(hosts.longest())
            )?;
        }
        writeln!(to)
    }
}
