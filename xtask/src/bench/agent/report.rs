//! The numbers as Markdown, with the marks to reach, the machine and the date.

use std::fmt::Write as _;
use std::time::Duration;

use super::news::News;
use super::processes::{BesideMemory, Idle, Memory};
use crate::bench::machine::Machine;
use crate::bench::markdown::{MARKS, mark, mb, ms};
use crate::bench::stats::Samples;

/// The marks: bytes of the agent, its part of a processor, the time of all starts, that of the news.
const RESIDENT: u64 = 15_000_000;
const IDLE_PERCENT: f64 = 0.5;
const STARTED: Duration = Duration::from_secs(10);
const TOLD: Duration = Duration::from_millis(50);

/// What somebody who looks after procs costs.
#[derive(Debug)]
pub struct Row {
    /// Who.
    pub name: &'static str,
    /// From its start to the moment when all procs run.
    pub starts: Samples,
    /// Its own memory, later.
    pub memory: Memory,
    /// Processor time while nothing happened.
    pub idle: Idle,
    /// What waits beside the apps.
    pub beside: BesideMemory,
}

/// Everything that was measured.
#[derive(Debug)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// How many procs.
    pub procs: usize,
    /// How long it took to deploy them to an agent that had none.
    pub deployed: Duration,
    /// The agent first.
    pub rows: Vec<Row>,
    /// How soon changes are known.
    pub news: News,
    /// What was not installed.
    pub left_out: Vec<&'static str>,
    /// For how long nothing happened, in seconds.
    pub idle: u64,
}

impl Report {
    /// The whole table.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.machine.write(&mut text);
        let _ = self.write_marks(&mut text);
        let _ = self.write_rows(&mut text);
        let _ = self.write_news(&mut text);
        text
    }

    fn percent(&self, used: Duration) -> f64 {
        100.0 * used.as_secs_f64() / self.idle as f64
    }

    fn write_marks(&self, to: &mut String) -> std::fmt::Result {
        writeln!(to, "{MARKS}")?;
        if let Some(ours) = self.rows.first() {
            let words =
                format!("resident memory of the agent with {} procs at most {}", self.procs, mb(RESIDENT));
            mark(to, &words, &mb(ours.memory.resident), ours.memory.resident <= RESIDENT)?;
            let used = self.percent(ours.idle.supervisor);
            let words = format!("its idle CPU at most {IDLE_PERCENT} % of a processor");
            mark(to, &words, &format!("{used:.2} %"), used <= IDLE_PERCENT)?;
            let median = ours.starts.median();
            let words = format!("all {} started within {} s", self.procs, STARTED.as_secs());
            mark(to, &words, &seconds(median), median <= STARTED)?;
        }
        if let Some((name, samples)) = self.news.rows.last() {
            let p99 = samples.p99();
            let words = format!("state change to event on {name}, p99 at most {}", ms(TOLD));
            mark(to, &words, &ms(p99), p99 <= TOLD)?;
        }
        writeln!(to)
    }

    fn write_rows(&self, to: &mut String) -> std::fmt::Result {
        writeln!(to, "### {} procs of `sleep`\n", self.procs)?;
        if let Some(ours) = self.rows.first() {
            writeln!(
                to,
                "Started {} times each; then nothing happened for {} s.\n",
                ours.starts.len(),
                self.idle
            )?;
        }
        writeln!(
            to,
            "| | all run, median | slowest | resident (VmRSS) | share (Pss) | not of a file (RssAnon) | idle CPU |"
        )?;
        writeln!(to, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for Row { name, starts, memory, idle, .. } in &self.rows {
            writeln!(
                to,
                "| {name} | {} | {} | {} | {} | {} | {:.2} % |",
                seconds(starts.median()),
                seconds(starts.longest()),
                mb(memory.resident),
                mb(memory.share),
                mb(memory.anonymous),
                self.percent(idle.supervisor)
            )?;
        }
        writeln!(
            to,
            "\nDeployed to an agent that had none, over its API, they all ran after {}.\n",
            seconds(self.deployed)
        )?;
        writeln!(to, "What waits beside the apps, all together:\n")?;
        writeln!(
            to,
            "| | waiting `vrun run` | share (Pss) | each | first processes of containers, share | each | idle CPU of both |"
        )?;
        writeln!(to, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for Row { name, idle, beside: BesideMemory { count, vruns, inits }, .. } in &self.rows {
            if *count == 0 {
                writeln!(to, "| {name} | none | | | | | |")?;
                continue;
            }
            let each = |bytes: u64| mb(bytes / (*count).max(1) as u64);
            writeln!(
                to,
                "| {name} | {count} | {} | {} | {} | {} | {:.2} % |",
                mb(vruns.share),
                each(vruns.share),
                mb(inits.share),
                each(inits.share),
                self.percent(idle.beside)
            )?;
        }
        if !self.left_out.is_empty() {
            writeln!(to, "\nLeft out: {}.", self.left_out.join("; "))?;
        }
        writeln!(to)
    }

    fn write_news(&self, to: &mut String) -> std::fmt::Result {
        let News { rows, noticed } = &self.news;
        writeln!(to, "### From a change of state to those who follow it\n")?;
        writeln!(to, "{} apps were killed while all {} ran.\n", noticed.len(), self.procs)?;
        writeln!(to, "| | changes | median | p99 | longest |\n| --- | ---: | ---: | ---: | ---: |")?;
        let row = |to: &mut String, name: &str, samples: &Samples| {
            let (median, p99, longest) = (samples.median(), samples.p99(), samples.longest());
            writeln!(to, "| {name} | {} | {} | {} | {} |", samples.len(), ms(median), ms(p99), ms(longest))
        };
        for (name, samples) in rows {
            row(to, name, samples)?;
        }
        row(to, "from the kill of an app to the first word of it on `/v1/changes`", noticed)
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
