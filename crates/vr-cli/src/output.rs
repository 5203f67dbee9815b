//! Where words go: data to standard output, talk to standard error, and nothing that a server sent may
//! steer the terminal.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::CliError;

/// The two streams and the form of the data.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
    terminal: bool,
}

impl Output {
    /// Looks at standard output once.
    pub fn new(json: bool) -> Self {
        Self { json, terminal: io::stdout().is_terminal() }
    }

    /// Whether data is JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Writes a line of data.
    pub fn line(&self, text: &str) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", printable(text)).and_then(|()| stdout.flush()).map_err(CliError::Output)
    }

    /// Writes a value as JSON over several lines.
    pub fn json(&self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value).map_err(|e| CliError::Output(e.into()))?;
        self.line(&text)
    }

    /// Writes rows: a table with a heading on a terminal, else tabs between the fields and no heading.
    pub fn rows(&self, heading: &[&str], rows: &[Vec<String>]) -> Result<(), CliError> {
        if !self.terminal {
            return rows.iter().try_for_each(|row| {
                let fields: Vec<_> = row.iter().map(|field| field.replace(['\t', '\n'], " ")).collect();
                self.line(&fields.join("\t"))
            });
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(heading.iter().copied());
        for row in rows {
            table.add_row(row.iter().map(|field| printable(field)));
        }
        self.line(table.to_string().trim_end())
    }
}

/// Says something on standard error.
pub fn say(text: &str) {
    eprintln!("{}", printable(text));
}

/// Says that a part of the work failed; the rest goes on.
pub fn complain(text: &str) {
    say(&format!("ERROR: {text}"));
}

/// The text without control characters but tabs and line ends: a test's or a build's output may hold any.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_steered_by_what_a_server_sent() {
        assert_eq!(printable("a\x1b[2Jb\r\n\tc\u{9b}1m é"), "a[2Jb\n\tc1m é");
    }
}
