//! How a job ended, for people and as data.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;
use vr_common::exit;

/// How many lines at the end of a log a failure shows, and how much of the log is looked at for them, in bytes.
const LAST_LINES: usize = 10;
const LAST_BYTES: u64 = 16 << 10;
/// The longest that a shown line may be, in characters.
const LONGEST_LINE: usize = 400;

/// An error that knows what its program exits with.
pub trait Explained: Error {
    /// The exit code.
    fn exit_code(&self) -> u8;
    /// What may help, if anything is known to.
    fn hint(&self) -> Option<String>;
    /// What was said by a program whose output is in no log.
    fn said(&self) -> Option<&str> {
        None
    }
}

/// A job that failed.
#[derive(Debug)]
pub struct Failed<E> {
    /// Why. In a box, as errors are large and mostly do not come.
    pub error: Box<E>,
    /// The step that it failed in.
    pub step: Option<&'static str>,
    /// What its container said, if it said anything.
    pub log: Option<PathBuf>,
}

impl<E> Failed<E> {
    /// A job that failed before its first step.
    pub fn early(error: impl Into<E>) -> Self {
        Self { error: Box::new(error.into()), step: None, log: None }
    }
}

/// Prints how a job ended and gives the exit code: a success with `summarise`, a failure as `ERROR:` with the end of
/// the log, all on standard error. With `json`, one line of JSON on standard output comes first, in which a success
/// has the name `key`.
pub fn report<S: Serialize, E: Explained>(
    key: &str,
    result: &Result<S, Failed<E>>,
    json: bool,
    summarise: impl FnOnce(&S),
) -> ExitCode {
    let last_lines = match result {
        Err(Failed { error, log, .. }) => match (error.said(), log) {
            (Some(said), _) => last_lines(said),
            (None, Some(log)) => last_lines_in(log),
            (None, None) => Vec::new(),
        },
        Ok(_) => Vec::new(),
    };
    if json {
        let line = match result {
            Ok(summary) => json!({ "ok": true, key: summary }),
            Err(Failed { error, step, log }) => json!({
                "ok": false,
                "exit_code": error.exit_code(),
                "error": exit::chain(&**error),
                "step": step,
                "log": log.as_deref().map(Path::to_string_lossy),
                "last_lines": last_lines,
                "hint": error.hint(),
            }),
        };
        // Nobody may be reading any more, which changes nothing of the result.
        let _unread = writeln!(io::stdout(), "{line}");
    }
    match result {
        Ok(summary) => {
            summarise(summary);
            ExitCode::SUCCESS
        }
        Err(failed) => {
            let code = exit::report(&*failed.error, None, failed.error.exit_code());
            let _unread = io::stderr().write_all(details(failed, &last_lines).as_bytes());
            code
        }
    }
}

/// What is said below the error.
fn details<E: Explained>(failed: &Failed<E>, last_lines: &[String]) -> String {
    let mut text = String::new();
    if let Some(step) = failed.step {
        text.push_str(&format!("  in the step {step}\n"));
    }
    match (failed.error.said(), &failed.log, last_lines) {
        (Some(_), log, [_, ..]) => {
            if let Some(log) = log {
                text.push_str(&format!("  the output of those before it is in {}\n", log.display()));
            }
            text.push_str("  it said:\n");
        }
        (None, Some(log), [_, ..]) => {
            text.push_str(&format!("  its output is in {}, which ends with:\n", log.display()));
        }
        (_, Some(log), _) => text.push_str(&format!("  its output is in {}\n", log.display())),
        (_, None, _) => {}
    }
    for line in last_lines {
        text.push_str(&format!("  | {line}\n"));
    }
    if let Some(hint) = failed.error.hint() {
        text.push_str(&format!("hint: {hint}\n"));
    }
    text
}

/// The last lines of a log, see [`last_lines`].
fn last_lines_in(log: &Path) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(end.saturating_sub(LAST_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LAST_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // The error is what matters; a log that cannot be read is named all the same.
    let bytes = read().unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&bytes))
}

/// The last lines that say something, fit for a terminal.
fn last_lines(text: &str) -> Vec<String> {
    let lines: Vec<String> = text.lines().map(shown).filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].to_vec()
}

/// A line as it stood on the terminal in the end, without colours and other control sequences.
fn shown(line: &str) -> String {
    // Progress is drawn over itself; the last drawing counts.
    let line = line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or_default();
    let mut plain = String::new();
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            // ECMA-48: `ESC [`, parameters, and a final letter or other character from `@` on.
            '\u{1b}' => {
                if characters.next() == Some('[') {
                    characters.by_ref().find(|c| ('@'..='~').contains(c));
                }
            }
            '\t' => plain.push(c),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    match plain.char_indices().nth(LONGEST_LINE) {
        Some((end, _)) => format!("{}…", &plain[..end]),
        None => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_fit_for_a_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut text: String = (0..2_000).map(|number| format!("line {number}\n")).collect();
        text += " 10%\r 50%\r100%\r\n\n\u{1b}[1;31merror\u{1b}[0m: no\tway \u{7}\n\u{1b}";
        text += &"x".repeat(500);
        std::fs::write(&log, text).unwrap();
        let lines = last_lines_in(&log);
        assert_eq!(lines.len(), LAST_LINES);
        assert_eq!(&lines[6..9], ["line 1999", "100%", "error: no\tway "]);
        assert_eq!(lines[9].chars().count(), LONGEST_LINE + 1);
        assert_eq!(last_lines_in(&dir.path().join("none")), Vec::<String>::new());
    }
}
