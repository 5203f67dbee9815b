//! What came of a command, told to people on standard error and to programs on standard output.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use vr_common::exit;
use vr_common::fetch::without_credentials;
use vr_common::host_api::{Finding, UptestResult, Verdict};
use vr_common::log::DOING;

use crate::container::ExitStatus;
use crate::job::size;
use crate::proc::{CleanedUp, ProcError, RunEnd, SetUp, TornDown};

/// What a command did that could do its work.
pub(super) enum Outcome {
    /// `setup`.
    SetUp { done: SetUp, build_url: Option<String> },
    /// `run`. The app may have had our standard output.
    Ran { end: RunEnd, shares_output: bool },
    /// `uptest`.
    Tested(Vec<UptestResult>),
    /// `shell`.
    Looked(ExitStatus),
    /// `teardown`.
    TornDown(TornDown),
    /// `cleanup`.
    CleanedUp(CleanedUp),
    /// `check`.
    Checked(Vec<Finding>),
}

/// What `--json` prints.
#[derive(Serialize)]
struct Line<'a> {
    command: Option<&'a str>,
    proc: Option<&'a str>,
    /// Whether our exit status is 0.
    ok: bool,
    seconds: f64,
    #[serde(flatten)]
    more: Value,
}

/// What is known about any command.
pub(super) struct Report<'a> {
    pub command: &'a str,
    pub proc: Option<&'a str>,
    pub took: Duration,
    pub json: bool,
    pub quiet: bool,
}

impl Report<'_> {
    /// Prints everything, and gives the exit status.
    pub fn give(&self, result: &Result<Outcome, ProcError>) -> ExitCode {
        let (code, more) = match result {
            Ok(outcome) => {
                for error in outcome.failures() {
                    // The exit status is one for all of them.
                    let _ = exit::report(error, error.hint(), exit::FAILED);
                }
                (outcome.exit_code(), outcome.json())
            }
            Err(error) => {
                let _ = exit::report(error, error.hint(), error.exit_code());
                (error.exit_code(), json!({ "error": exit::chain(error), "exit_code": error.exit_code() }))
            }
        };
        let mut text = match result {
            Ok(outcome) if self.json => outcome.before_json().to_owned(),
            Ok(outcome) => outcome.data(self.quiet),
            Err(_) => String::new(),
        };
        if self.json {
            let line = Line {
                command: Some(self.command),
                proc: self.proc,
                ok: code == 0,
                seconds: self.took.as_millis() as f64 / 1000.0,
                more,
            };
            text.push_str(&line.text());
        }
        if let Err(error) = print(&text) {
            let _ = exit::report(&error, None, exit::FAILED);
            return ExitCode::from(if code == 0 { exit::FAILED } else { code });
        }
        if let Ok(outcome) = result
            && let Some(summary) = outcome.summary(self.proc.unwrap_or_default(), &took(self.took))
        {
            tracing::info!(target: DOING, "{summary}");
        }
        ExitCode::from(code)
    }
}

impl Line<'_> {
    fn text(&self) -> String {
        // Texts and numbers only, which are always JSON.
        serde_json::to_string(self).map(|line| line + "\n").unwrap_or_default()
    }
}

/// Says what is wrong with the arguments, or what was asked to be said of them.
pub(super) fn refuse(error: &clap::Error) -> ExitCode {
    // Nobody may be reading, which changes nothing.
    let _ = error.print();
    let code = u8::try_from(error.exit_code()).unwrap_or(exit::BAD_INPUT);
    let wants_json = std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json");
    if error.use_stderr() && wants_json {
        let said = error.render().to_string();
        let said = said.split("\n\n").next().unwrap_or_default();
        let said = said.strip_prefix("error: ").unwrap_or(said);
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let more = json!({ "error": said, "exit_code": code });
        let line = Line { command: None, proc: None, ok: false, seconds: 0.0, more };
        let _ = print(&line.text());
    }
    ExitCode::from(code)
}

impl Outcome {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Ran { end, .. } => end.status.as_exit_code(),
            Self::Looked(status) => status.as_exit_code(),
            Self::CleanedUp(done) if !done.failures.is_empty() => exit::FAILED,
            Self::Checked(findings) if is_missing(findings) => exit::FAILED,
            _ => 0,
        }
    }

    fn failures(&self) -> &[ProcError] {
        match self {
            Self::CleanedUp(done) => &done.failures,
            _ => &[],
        }
    }

    /// What standard output is for without `--json`.
    fn data(&self, quiet: bool) -> String {
        match self {
            Self::Tested(results) => {
                // Texts and truth values only, which are always JSON.
                serde_json::to_string(results).map(|line| line + "\n").unwrap_or_default()
            }
            Self::Checked(findings) => findings
                .iter()
                .filter(|finding| !quiet || finding.verdict != Verdict::Ok)
                .map(Finding::line)
                .collect(),
            Self::CleanedUp(done) if !quiet => {
                let mut text = String::new();
                for removed in &done.removed {
                    let line =
                        format!("{:>10}  {} {}\n", size(removed.bytes), removed.kind, removed.path.display());
                    text.push_str(&line);
                }
                text
            }
            _ => String::new(),
        }
    }

    /// The app's last line may have no end, and ours has to be one of its own.
    fn before_json(&self) -> &'static str {
        match self {
            Self::Ran { shares_output: true, .. } | Self::Looked(_) => "\n",
            _ => "",
        }
    }

    fn json(&self) -> Value {
        let end = |status: &ExitStatus| match status {
            ExitStatus::Code(code) => (Some(*code), None),
            ExitStatus::Signal(number) => (None, Some(*number)),
        };
        match self {
            Self::SetUp { done, build_url } => json!({
                "folder": lossy(&done.folder),
                "image": done.image.as_deref().map(lossy),
                "build": build_url.as_deref().map(without_credentials),
                "layer": done.layer.as_deref().map(lossy),
                "fetched_bytes": done.fetched_bytes,
                "changed": done.changed,
            }),
            Self::Ran { end: RunEnd { status, out_of_memory }, .. } => {
                let (exit_code, signal) = end(status);
                json!({ "exit_code": exit_code, "signal": signal, "out_of_memory": out_of_memory })
            }
            Self::Tested(results) => {
                json!({ "passed": results.iter().all(|result| result.passed), "results": results })
            }
            Self::Looked(status) => {
                let (exit_code, signal) = end(status);
                json!({ "exit_code": exit_code, "signal": signal })
            }
            Self::Checked(findings) => json!({ "findings": findings }),
            Self::TornDown(done) => json!({ "folder": lossy(&done.folder), "removed": done.removed }),
            Self::CleanedUp(done) => {
                let errors: Vec<_> = done.failures.iter().map(|error| exit::chain(error)).collect();
                let removed = done.removed.iter().map(|removed| {
                    json!({ "kind": removed.kind, "path": lossy(&removed.path), "bytes": removed.bytes })
                });
                let removed: Vec<_> = removed.collect();
                let mut more = json!({ "removed": removed, "removed_bytes": done.bytes(), "errors": errors });
                if let (Some(first), Value::Object(more)) = (errors.first(), &mut more) {
                    more.insert("error".to_owned(), json!(first));
                    more.insert("exit_code".to_owned(), json!(exit::FAILED));
                }
                more
            }
        }
    }

    /// One sentence for people; none when there is nothing to add.
    fn summary(&self, name: &str, took: &str) -> Option<String> {
        Some(match self {
            Self::SetUp { done, .. } if !done.changed => {
                format!("{name} was set up already, in {}", done.folder.display())
            }
            Self::SetUp { done, .. } => {
                let fetched = match done.fetched_bytes {
                    0 => "nothing to fetch".to_owned(),
                    bytes => format!("{} fetched", size(bytes)),
                };
                format!("{name} is set up in {} ({took}, {fetched})", done.folder.display())
            }
            Self::Ran { end, .. } if !end.status.success() => format!("{name} ended with {}", end.status),
            Self::Ran { .. } | Self::Looked(_) | Self::Checked(_) => return None,
            Self::Tested(results) if results.is_empty() => format!("{name} has no uptests"),
            Self::Tested(results) => {
                let passed = results.iter().filter(|result| result.passed).count();
                format!("{passed} of {} uptests passed ({took})", results.len())
            }
            Self::TornDown(done) if done.removed => format!("{name} is gone from {}", done.folder.display()),
            Self::TornDown(_) => format!("there was nothing of {name}"),
            Self::CleanedUp(done) if done.removed.is_empty() => "there was nothing to remove".to_owned(),
            Self::CleanedUp(done) if done.dry_run => {
                format!("that would make room for {}", size(done.bytes()))
            }
            Self::CleanedUp(done) => format!("that made room for {}", size(done.bytes())),
        })
    }
}

fn is_missing(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.verdict == Verdict::Missing)
}

/// JSON has no bytes that are not text.
fn lossy(path: &Path) -> Cow<'_, str> {
    path.to_string_lossy()
}

/// A time for people: `12 ms`, `3.4 s`.
fn took(duration: Duration) -> String {
    match duration.as_millis() {
        milliseconds @ 0..1000 => format!("{milliseconds} ms"),
        milliseconds => format!("{:.1} s", milliseconds as f64 / 1000.0),
    }
}

fn print(text: &str) -> Result<(), ProcError> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|source| ProcError::Io {
        step: "write to",
        path: "standard output".into(),
        source,
    })
}
