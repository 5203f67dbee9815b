//! Which swarms, procs and hosts a pattern means.
//!
//! As in the published client, a pattern has to match at the start of a name (Python's `re.match`), and an
//! exclude anywhere in it, whatever the case.

use std::fmt;
use std::str::FromStr;

use regex::{Regex, RegexBuilder};

use crate::error::CliError;

/// A regular expression that must match from a name's start on.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Whether the pattern matches at the name's start.
    pub fn matches(&self, name: &str) -> bool {
        // The leftmost match is found, so one at the start cannot be missed.
        self.0.find(name).is_some_and(|found| found.start() == 0)
    }

    /// What the server can sort out: the swarms' fields that every matching name has in common.
    ///
    /// Names are `<app>-<config>-<proc>` and no part holds a dash, so a part that is written out, dash
    /// included, is certain. The last part never is, as a pattern may end in the middle of a name.
    pub fn certain_fields(&self) -> Vec<(&'static str, &str)> {
        let pattern = self.0.as_str();
        let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
        if pattern.contains('|') {
            return Vec::new();
        }
        let special = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let end = pattern.find(special).unwrap_or(pattern.len());
        let (written_out, rest) = pattern.split_at(end);
        // `a-?` does not promise a dash.
        let repeated = rest.starts_with(['?', '*', '+', '{']);
        let written_out = if repeated { &written_out[..end.saturating_sub(1)] } else { written_out };
        let Some((parts, _)) = written_out.rsplit_once('-') else { return Vec::new() };
        ["app__name", "config_name", "proc_name"].into_iter().zip(parts.split('-')).collect()
    }
}

impl FromStr for Pattern {
    type Err = CliError;

    fn from_str(text: &str) -> Result<Self, CliError> {
        Regex::new(text).map(Self).map_err(|e| not_a_pattern(text, &e))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// Patterns of names to leave out.
#[derive(Debug, Clone, Default)]
pub struct Excludes(Vec<Regex>);

impl Excludes {
    /// Reads the patterns.
    pub fn new(patterns: &[String]) -> Result<Self, CliError> {
        let regex = |text: &String| {
            RegexBuilder::new(text).case_insensitive(true).build().map_err(|e| not_a_pattern(text, &e))
        };
        patterns.iter().map(regex).collect::<Result<_, _>>().map(Self)
    }

    /// Whether one of the patterns is found in the name.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|regex| regex.is_match(name))
    }
}

fn not_a_pattern(pattern: &str, error: &regex::Error) -> CliError {
    // The library draws a picture of several lines; the reason is the last.
    let text = error.to_string();
    let last = text.trim().lines().last().unwrap_or_default();
    let reason = last.trim().trim_start_matches("error: ").to_owned();
    CliError::Pattern { pattern: pattern.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_matches_from_the_start_on() {
        for (text, name, expected) in [
            ("", "hello-prod-web", true),
            ("hello", "hello-prod-web", true),
            ("hello-prod-web", "hello-prod-web2", true),
            ("hello-prod-web$", "hello-prod-web2", false),
            ("prod", "hello-prod-web", false),
            (".*prod", "hello-prod-web", true),
            ("Hello", "hello-prod-web", false),
            ("x|hello", "hello-prod-web", true),
            ("prod|hel", "hello-prod-web", true),
        ] {
            assert_eq!(pattern(text).matches(name), expected, "{text:?} on {name:?}");
        }
    }

    #[test]
    fn excludes_are_found_anywhere_whatever_the_case() {
        let excludes = Excludes::new(&["WORK".into(), "^x".into()]).unwrap();
        assert!(excludes.matches("hello-prod-worker"));
        assert!(excludes.matches("Xylo-prod-web"));
        assert!(!excludes.matches("hello-xprod-web"));
        assert!(!Excludes::default().matches("anything"));
    }

    #[test]
    fn only_certain_fields_are_asked_for() {
        for (text, expected) in [
            ("", &[][..]),
            ("hello", &[]),
            ("hello-", &[("app__name", "hello")]),
            ("^hello-", &[("app__name", "hello")]),
            ("hello-pr", &[("app__name", "hello")]),
            ("hello-prod-web", &[("app__name", "hello"), ("config_name", "prod")]),
            ("hello-.*-web", &[("app__name", "hello")]),
            ("hello-?", &[]),
            ("hello-prod-*", &[("app__name", "hello")]),
            ("hello-prod|other-", &[]),
            ("hel.*-prod-", &[]),
            ("(?i)hello-", &[]),
        ] {
            assert_eq!(pattern(text).certain_fields(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_broken_pattern_is_refused_in_one_line() {
        let message = "a(".parse::<Pattern>().unwrap_err().to_string();
        assert_eq!(message, "\"a(\" is not a regular expression: unclosed group");
        let message = Excludes::new(&["[".into()]).unwrap_err().to_string();
        assert!(!message.contains('\n') && message.contains("unclosed character class"), "{message}");
    }
}
