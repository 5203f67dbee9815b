//! Exit codes and the last words of every binary.

use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;

/// The work was understood and failed.
pub const FAILED: u8 = 1;
/// The command line or an input file is wrong.
pub const BAD_INPUT: u8 = 2;

/// One line that holds an error and everything that caused it, joined with `: `.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // A cause that its parent already spelled out adds nothing.
        let text = cause.to_string();
        if !line.contains(&text) {
            let _ = write!(line, ": {text}");
        }
        source = cause.source();
    }
    line
}

/// Prints `ERROR: <error and its causes>` and, if there is one, a `hint:` line on standard error,
/// and gives the exit code back.
pub fn report(error: &dyn Error, hint: Option<&str>, code: u8) -> ExitCode {
    let mut text = format!("ERROR: {}\n", chain(error));
    if let Some(hint) = hint {
        let _ = writeln!(text, "hint: {hint}");
    }
    // Not `eprint!`, which panics when nobody reads standard error any more.
    let _unread = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    ExitCode::from(code)
}
