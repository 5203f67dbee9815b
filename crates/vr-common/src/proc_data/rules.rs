//! The keys of `proc.yaml` that say when a proc is started again and how it is stopped. Names, values and defaults are
//! those of Supervisor's `[program:x]` sections.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_yaml::Value;
use thiserror::Error;

use super::Scalar;
use crate::yaml;

/// The longest `startsecs`, in seconds: a day.
pub const LONGEST_START: u32 = 86_400;
/// The most `startretries`.
pub const MOST_RETRIES: u32 = 1_000_000;

/// Whether a proc that ended by itself, once it was up, is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AutoRestart {
    /// Whatever its exit status.
    #[default]
    Always,
    /// Never.
    Never,
    /// Unless its exit status is one of `exitcodes`.
    Unexpected,
}

impl<'de> Deserialize<'de> for AutoRestart {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let value = Value::deserialize(deserializer)?;
        let word = match &value {
            Value::Bool(truth) => Some(*truth),
            Value::String(text) if text == "unexpected" => return Ok(Self::Unexpected),
            Value::String(text) => yaml::bare_word(text).and_then(|value| value.as_bool()),
            _ => None,
        };
        match word {
            Some(true) => Ok(Self::Always),
            Some(false) => Ok(Self::Never),
            None => Err(D::Error::custom(format!(
                "autorestart: expected true, false or unexpected, found {}",
                shown(&value)
            ))),
        }
    }
}

impl Serialize for AutoRestart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Always => serializer.serialize_bool(true),
            Self::Never => serializer.serialize_bool(false),
            Self::Unexpected => serializer.serialize_str("unexpected"),
        }
    }
}

/// The signal that asks an app to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StopSignal {
    /// The usual one.
    #[default]
    Term,
    /// As if its terminal was gone.
    Hup,
    /// As if somebody typed Ctrl-C.
    Int,
    /// As if somebody typed Ctrl-\.
    Quit,
    /// Does not ask, but ends it.
    Kill,
    /// Whatever the app makes of it.
    Usr1,
    /// Whatever the app makes of it.
    Usr2,
}

impl StopSignal {
    const ALL: [Self; 7] = [Self::Term, Self::Hup, Self::Int, Self::Quit, Self::Kill, Self::Usr1, Self::Usr2];

    /// The name without `SIG`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Hup => "HUP",
            Self::Int => "INT",
            Self::Quit => "QUIT",
            Self::Kill => "KILL",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
        }
    }

    /// Linux's number.
    pub fn number(self) -> i32 {
        match self {
            Self::Term => 15,
            Self::Hup => 1,
            Self::Int => 2,
            Self::Quit => 3,
            Self::Kill => 9,
            Self::Usr1 => 10,
            Self::Usr2 => 12,
        }
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no signal that stops apps.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a signal to stop with: expected TERM, HUP, INT, QUIT, KILL, USR1 or USR2")]
pub struct BadStopSignal(String);

impl FromStr for StopSignal {
    type Err = BadStopSignal;

    /// Takes `TERM`, `SIGTERM`, `term` and `15`, as Supervisor does.
    fn from_str(text: &str) -> Result<Self, BadStopSignal> {
        let upper = text.trim().to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let found =
            Self::ALL.into_iter().find(|signal| signal.name() == name || signal.number().to_string() == name);
        found.ok_or_else(|| BadStopSignal(text.chars().take(60).collect()))
    }
}

impl<'de> Deserialize<'de> for StopSignal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = Scalar::deserialize(deserializer)?.0;
        text.parse().map_err(|error| D::Error::custom(format!("stopsignal: {error}")))
    }
}

impl Serialize for StopSignal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Exit statuses that an app ends with on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ExitCodes(pub Vec<u8>);

impl Default for ExitCodes {
    fn default() -> Self {
        Self(vec![0])
    }
}

impl<'de> Deserialize<'de> for ExitCodes {
    /// A list, one number, or Supervisor's own `0,2`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let value = Value::deserialize(deserializer)?;
        let codes: Option<Vec<u8>> = match &value {
            Value::Sequence(items) => items.iter().map(code).collect(),
            Value::String(text) => text.split(',').map(|part| part.trim().parse().ok()).collect(),
            single => code(single).map(|code| vec![code]),
        };
        codes.map(Self).ok_or_else(|| {
            let found = shown(&value);
            D::Error::custom(format!("exitcodes: expected exit statuses from 0 to 255, found {found}"))
        })
    }
}

fn code(value: &Value) -> Option<u8> {
    match value {
        Value::Number(number) => u8::try_from(number.as_u64()?).ok(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// The value itself if it is short, else what it is.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if text.len() <= 60 => format!("{text:?}"),
        value => yaml::kind(value),
    }
}

pub(super) fn startsecs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    whole("startsecs", "seconds", LONGEST_START, deserializer)
}

pub(super) fn startretries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    whole("startretries", "tries", MOST_RETRIES, deserializer)
}

/// A whole number from 0 to `most`; nothing is none.
pub(super) fn whole<'de, D: Deserializer<'de>>(
    key: &str,
    of: &str,
    most: u32,
    deserializer: D,
) -> Result<Option<u32>, D::Error> {
    use serde::de::Error;
    let text = Scalar::deserialize(deserializer)?.0;
    let number = Some(&text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match number.and_then(|text| text.parse().ok()).filter(|number| *number <= most) {
        Some(number) => Ok(Some(number)),
        None if text.is_empty() => Ok(None),
        None => Err(D::Error::custom(format!(
            "{key}: {text:?} is not a number of {of}: expected one from 0 to {most}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ProcData;
    use super::*;

    fn parse(more: &str) -> Result<ProcData, String> {
        ProcData::parse("p", &format!("cmd: x\n{more}\n")).map_err(|e| e.to_string())
    }

    #[test]
    fn rules_survive_a_round_trip_and_absent_ones_are_not_written() {
        let text = "cmd: x\nstartsecs: 5\nstartretries: 0\nautorestart: unexpected\nexitcodes:\n- 0\n- 2\nstopsignal: INT\n";
        let data = ProcData::parse("p", text).unwrap();
        assert_eq!((data.startsecs, data.startretries), (Some(5), Some(0)));
        assert_eq!(data.autorestart, Some(AutoRestart::Unexpected));
        assert_eq!(data.exitcodes, Some(ExitCodes(vec![0, 2])));
        assert_eq!(data.stopsignal, Some(StopSignal::Int));
        assert!(data.unknown.is_empty());
        assert_eq!(data.to_yaml().unwrap(), text);
        assert_eq!(parse("startsecs:\nstartretries:").unwrap().to_yaml().unwrap(), "cmd: x\n");
    }

    #[test]
    fn values_may_be_written_as_supervisor_and_yaml_write_them() {
        for (text, expected) in [
            ("true", AutoRestart::Always),
            ("yes", AutoRestart::Always),
            ("off", AutoRestart::Never),
            ("unexpected", AutoRestart::Unexpected),
        ] {
            assert_eq!(parse(&format!("autorestart: {text}")).unwrap().autorestart, Some(expected));
        }
        for text in ["INT", "SIGINT", "int", "2"] {
            assert_eq!(parse(&format!("stopsignal: {text}")).unwrap().stopsignal, Some(StopSignal::Int));
        }
        for (text, expected) in [("'0,2'", vec![0, 2]), ("3", vec![3]), ("[]", vec![]), ("['1']", vec![1])] {
            assert_eq!(parse(&format!("exitcodes: {text}")).unwrap().exitcodes, Some(ExitCodes(expected)));
        }
    }

    #[test]
    fn bad_values_are_named() {
        for (text, expected) in [
            ("startsecs: -1", "startsecs: \"-1\" is not a number of seconds: expected one from 0 to 86400"),
            ("startsecs: 1.5", "startsecs: \"1.5\""),
            ("startretries: many", "startretries: \"many\" is not a number of tries"),
            ("autorestart: maybe", "autorestart: expected true, false or unexpected, found \"maybe\""),
            ("autorestart: [true]", "autorestart: expected true, false or unexpected, found a list"),
            ("exitcodes: [0, 256]", "exitcodes: expected exit statuses from 0 to 255, found a list"),
            ("exitcodes: '0,x'", "exitcodes: expected exit statuses from 0 to 255, found \"0,x\""),
            ("exitcodes: -1", "exitcodes: expected exit statuses"),
            ("stopsignal: STOP", "stopsignal: \"STOP\" is not a signal to stop with: expected TERM, HUP"),
            ("stopsignal: 99", "stopsignal: \"99\" is not a signal"),
            ("stopsignal: [TERM]", "expected a text, found a list"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?} gave {error:?}");
        }
    }
}
