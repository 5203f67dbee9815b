//! Numbers as Markdown, and the place of a report in the docs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Begins the table of marks.
pub const MARKS: &str = "| mark | measured | |\n| --- | --- | --- |";

/// A row of the table of marks.
pub fn mark(to: &mut String, words: &str, measured: &str, reached: bool) -> std::fmt::Result {
    writeln!(to, "| {words} | {measured} | {} |", if reached { "met" } else { "**missed**" })
}

/// How many times as long.
pub fn ratio(duration: Duration, to: Duration) -> f64 {
    duration.as_secs_f64() / to.as_secs_f64()
}

/// Milliseconds, as exact as makes sense.
pub fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 100.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

/// Megabytes.
pub fn mb(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

/// Replaces what stands between the two marks that the page has for a benchmark.
pub fn write(page: &Path, bench: &str, report: &str) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let Some(text) = replaced(&text, bench, report) else {
        let [begin, end] = marks(bench);
        bail!("{} lacks the lines {begin} and {end}", page.display());
    };
    fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))?;
    println!("Written to {}", page.display());
    Ok(())
}

fn marks(bench: &str) -> [String; 2] {
    ["begin", "end"].map(|which| format!("<!-- written by `cargo xtask bench {bench} --write`: {which} -->"))
}

fn replaced(page: &str, bench: &str, report: &str) -> Option<String> {
    let [begin, end] = marks(bench);
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", report.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let [begin, end] = marks("runner");
        let [other_begin, other_end] = marks("builder");
        let other = format!("{other_begin}\n\nother\n\n{other_end}\n");
        let page = format!("# Top\n\n{begin}\n\nold\n\n{end}\n\n{other}\n## Below\n");
        let new = replaced(&page, "runner", "\nnew\n").unwrap();
        assert_eq!(new, format!("# Top\n\n{begin}\n\nnew\n\n{end}\n\n{other}\n## Below\n"));
        assert_eq!(replaced(&new, "runner", "new").unwrap(), new);
        assert!(replaced("# Top\n", "runner", "new").is_none());
    }

    #[test]
    fn the_docs_have_a_place_for_every_report() {
        let page = fs::read_to_string(crate::steps::workspace().join("docs/benchmarks.md")).unwrap();
        for bench in ["runner", "builder", "agent", "balancer"] {
            assert!(replaced(&page, bench, "new").is_some(), "{bench}");
        }
    }
}
