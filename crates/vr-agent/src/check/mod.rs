//! `vr-agent check`: what this host lacks, tried out where that is possible, with what to do about it.
//!
//! What needs containers is left to `vrun check`; this module makes none.

mod machine;
mod programs;
mod settings;

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use vr_common::host_api::{Finding, Verdict};
use vr_common::paths::VrRoot;

use crate::settings::Flags;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether nothing is missing.
    ok: bool,
    root: PathBuf,
    findings: Vec<Finding>,
}

/// Looks at everything, prints it, and says whether procs can run here.
pub async fn check(flags: Flags, json: bool) -> std::io::Result<bool> {
    let root = flags.root();
    let mut findings = machine::look(&root);
    findings.extend(programs::look(&VrRoot::new(&root)).await);
    findings.extend(settings::look(flags).await);
    let ok = findings.iter().all(|finding| finding.verdict != Verdict::Missing);
    let text = if json {
        serde_json::to_string_pretty(&Report { ok, root, findings })? + "\n"
    } else {
        let lines: String = findings.iter().map(Finding::line).collect();
        format!("{lines}{}\n", summary(&findings))
    };
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(ok)
}

fn summary(findings: &[Finding]) -> String {
    let number = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    match (number(Verdict::Missing), number(Verdict::Warn)) {
        (0, 0) => "procs can run here".to_owned(),
        (0, 1) => "procs can run here; 1 warning".to_owned(),
        (0, warnings) => format!("procs can run here; {warnings} warnings"),
        (missing, _) => format!("procs cannot run here: {missing} missing"),
    }
}

fn ok(what: &str, found: impl Into<String>) -> Finding {
    Finding { what: what.to_owned(), verdict: Verdict::Ok, found: found.into(), advice: String::new() }
}

fn warn(what: &str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { what: what.to_owned(), verdict: Verdict::Warn, found: found.into(), advice: advice.into() }
}

fn missing(what: &str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { what: what.to_owned(), verdict: Verdict::Missing, found: found.into(), advice: advice.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_what_matters() {
        let (fine, weak, bad) = (ok("a", "x"), warn("b", "x", "y"), missing("c", "x", "y"));
        assert_eq!(summary(std::slice::from_ref(&fine)), "procs can run here");
        assert_eq!(summary(&[fine.clone(), weak.clone()]), "procs can run here; 1 warning");
        assert_eq!(summary(&[weak, bad.clone(), fine]), "procs cannot run here: 1 missing");
        assert_eq!(bad.line(), "missing  c: x\n         y\n");
    }
}
