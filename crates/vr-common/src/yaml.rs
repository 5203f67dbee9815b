//! The one way in for YAML: bounded in size, nesting and expanded nodes, with errors that say where.
//!
//! The parser library by itself accepts alias and nesting bombs; every YAML text from outside goes through
//! [`parse`], which first walks the document and counts what its aliases expand to.
//!
//! Values without a type of ours (settings, keys that we do not know) are YAML 1.1 as PyYAML reads it: apps and older
//! servers do. [`to_string`] writes what readers of YAML 1.1 and of YAML 1.2 take for the same.

mod emit;
mod plain;
#[cfg(test)]
mod pyyaml_tests;
mod read;

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::Value;
use thiserror::Error;

/// The largest text, in bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// The deepest nesting of lists and mappings.
pub const MAX_DEPTH: usize = 64;
/// The most values in one document, aliases expanded.
pub const MAX_NODES: usize = 200_000;

/// Why a YAML text was refused.
#[derive(Debug, Error)]
pub enum YamlError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is too large, nests too deep, or expands to too much.
    #[error("{name}: {reason}")]
    TooMuch {
        /// The file, or what the text is.
        name: String,
        /// The limit it broke.
        reason: String,
    },
    /// It is not YAML, or not what was expected. The message says line and column where the parser knows them.
    #[error("{name}: {message}")]
    Invalid {
        /// The file, or what the text is.
        name: String,
        /// What is wrong and where.
        message: String,
    },
}

/// Reads and parses a file.
pub fn parse_file<T: DeserializeOwned>(path: &Path) -> Result<T, YamlError> {
    let text = read_file(path)?;
    parse(&path.display().to_string(), &text)
}

/// Reads a file of at most [`MAX_BYTES`] of UTF-8.
pub fn read_file(path: &Path) -> Result<String, YamlError> {
    let read = |source| YamlError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(read)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(read)?;
    let name = path.display().to_string();
    if bytes.len() > MAX_BYTES {
        return Err(too_large(&name));
    }
    String::from_utf8(bytes).map_err(|e| YamlError::Invalid {
        name,
        message: format!("not UTF-8 text from byte {} on", e.utf8_error().valid_up_to()),
    })
}

/// Parses a text; `name` is the file's path, or says what the text is, and begins every error.
///
/// Texts are what is written, quoted or not; where `T` leaves the type open, YAML 1.2 decides: see [`parse_value`].
pub fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, YamlError> {
    check(name, text)?;
    serde_yaml::from_str(text).map_err(|e| invalid(name, &e))
}

/// Parses a text into what PyYAML makes of it: bare `yes`, `0755`, `12:30:00` and `1_000` are a boolean and numbers,
/// bare `1e3` and `0o17` are texts, `<<` merges.
///
/// Dates and values with a tag of YAML's own (`!!binary`) are texts.
pub fn parse_value(name: &str, text: &str) -> Result<Value, YamlError> {
    check(name, text)?;
    read::document(text).map_err(|e| invalid(name, &e))
}

/// What PyYAML makes of a word without quotes; nothing when it is an integer that 64 bits cannot hold.
pub(crate) fn bare_word(word: &str) -> Option<Value> {
    plain::resolve(word)
}

/// Parses a text that must hold a mapping, as [`parse_value`]; an empty text is an empty one.
pub fn parse_mapping(name: &str, text: &str) -> Result<serde_yaml::Mapping, YamlError> {
    match parse_value(name, text)? {
        Value::Null => Ok(serde_yaml::Mapping::new()),
        Value::Mapping(mapping) => Ok(mapping),
        other => Err(YamlError::Invalid {
            name: name.to_owned(),
            message: format!("expected a mapping (key: value), found {}", kind(&other)),
        }),
    }
}

/// Writes a value as YAML text that PyYAML, other readers of YAML 1.1, and readers of YAML 1.2 take for the same.
pub fn to_string<T: serde::Serialize>(value: &T) -> Result<String, YamlError> {
    let unwritable = |message| YamlError::Invalid { name: "YAML output".into(), message };
    let value = serde_yaml::to_value(value).map_err(|e| unwritable(e.to_string()))?;
    emit::document(&value).map_err(unwritable)
}

/// What a value is, for messages: `a list`, `the number 9`.
pub fn kind(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(_) => "a text".into(),
        Value::Sequence(_) => "a list".into(),
        Value::Mapping(_) => "a mapping".into(),
        Value::Tagged(_) => "a tagged value".into(),
    }
}

fn too_large(name: &str) -> YamlError {
    YamlError::TooMuch { name: name.to_owned(), reason: format!("larger than {MAX_BYTES} bytes") }
}

/// What is wrong with a bare word that is an integer.
fn too_large_integer(word: &str) -> String {
    let shown: String = word.chars().take(60).collect();
    format!("the integer {shown} is larger than 64 bits; put it in quotes if it is a text")
}

fn invalid(name: &str, error: &serde_yaml::Error) -> YamlError {
    YamlError::Invalid { name: name.to_owned(), message: error.to_string() }
}

fn check(name: &str, text: &str) -> Result<(), YamlError> {
    if text.len() > MAX_BYTES {
        return Err(too_large(name));
    }
    let budget = Budget { nodes: Cell::new(0), broken: Cell::new(None) };
    let walked = Walk { budget: &budget, depth: 0 }.deserialize(serde_yaml::Deserializer::from_str(text));
    match (budget.broken.take(), walked) {
        (Some(reason), _) => Err(YamlError::TooMuch { name: name.to_owned(), reason }),
        // The library has a limit of its own, relative to the text's size, that may be reached first.
        (None, Err(e)) if e.to_string().contains("repetition limit exceeded") => {
            Err(YamlError::TooMuch { name: name.to_owned(), reason: "its aliases expand to too much".into() })
        }
        (None, Err(e)) => Err(invalid(name, &e)),
        (None, Ok(())) => Ok(()),
    }
}

struct Budget {
    nodes: Cell<usize>,
    broken: Cell<Option<String>>,
}

/// Visits every value of a document, aliases expanded, and keeps none of it.
#[derive(Clone, Copy)]
struct Walk<'a> {
    budget: &'a Budget,
    depth: usize,
}

impl Walk<'_> {
    fn count<E: de::Error>(&self) -> Result<(), E> {
        let nodes = self.budget.nodes.get() + 1;
        self.budget.nodes.set(nodes);
        let reason = if nodes > MAX_NODES {
            format!("more than {MAX_NODES} values once its aliases are expanded")
        } else if self.depth > MAX_DEPTH {
            format!("nested deeper than {MAX_DEPTH} levels")
        } else {
            return Ok(());
        };
        let error = E::custom(&reason);
        self.budget.broken.set(Some(reason));
        Err(error)
    }

    fn deeper(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.count()
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.count()
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.count()
    }

    fn visit_i128<E: de::Error>(self, number: i128) -> Result<(), E> {
        Err(E::custom(too_large_integer(&number.to_string())))
    }

    fn visit_u128<E: de::Error>(self, number: u128) -> Result<(), E> {
        Err(E::custom(too_large_integer(&number.to_string())))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.count()
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        self.count()
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.count()
    }

    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.count()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.count()?;
        while items.next_element_seed(self.deeper())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        self.count()?;
        while entries.next_key_seed(self.deeper())?.is_some() {
            entries.next_value_seed(self.deeper())?;
        }
        Ok(())
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, data: A) -> Result<(), A::Error> {
        use serde::de::VariantAccess;
        // A tagged value such as `!secret x`; the tag counts as one level.
        let (_, content) = data.variant::<String>()?;
        self.count()?;
        content.newtype_variant_seed(self.deeper())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn error(text: &str) -> String {
        parse::<Value>("proc.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let alias = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", vec![alias; 9].join(", "));
        }
        assert_eq!(error(&text), "proc.yaml: its aliases expand to too much");
        // Flat enough for the library's limit, too much for ours.
        let wide = format!("a: &a [{}]\nb: [{}]\n", "x, ".repeat(2_000), "*a, ".repeat(150));
        assert_eq!(error(&wide), "proc.yaml: more than 200000 values once its aliases are expanded");
    }

    #[test]
    fn nesting_bombs_are_refused() {
        for text in ["[".repeat(100_000), "- ".repeat(10_000), "{a: ".repeat(5_000), "? ".repeat(5_000)] {
            let message = error(&text);
            assert!(message.starts_with("proc.yaml: "), "{message}");
        }
        let closed = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert_eq!(error(&closed), "proc.yaml: nested deeper than 64 levels");
        let fine = format!("{}{}", "[".repeat(60), "]".repeat(60));
        parse::<Value>("x", &fine).unwrap();
    }

    #[test]
    fn an_integer_of_more_than_64_bits_is_named() {
        for number in
            ["18446744073709551616", "-9223372036854775809", "340282366920938463463374607431768211455"]
        {
            let text = format!("a:\n  b: {number}\n");
            let expected =
                format!("the integer {number} is larger than 64 bits; put it in quotes if it is a text");
            let typed = parse::<BTreeMap<String, BTreeMap<String, String>>>("f", &text).unwrap_err();
            for message in [error(&text), parse_value("f", &text).unwrap_err().to_string(), typed.to_string()]
            {
                assert!(message.contains(&expected) && message.contains("line 2"), "{message}");
            }
            let quoted = format!("a: '{number}'");
            assert_eq!(parse::<BTreeMap<String, String>>("f", &quoted).unwrap()["a"], number);
        }
    }

    #[test]
    fn recursive_and_long_documents_are_refused() {
        assert!(error("a: &a [*a]").starts_with("proc.yaml: "));
        assert_eq!(error(&"#".repeat(MAX_BYTES + 1)), "proc.yaml: larger than 4194304 bytes");
    }

    #[test]
    fn errors_say_where() {
        let message = error("app_name: x\nbad: [1, 2\nmore: 1\n");
        assert!(message.contains("line 3"), "{message}");
        assert!(error("a: 1\na: 2\n").contains("duplicate"), "{}", error("a: 1\na: 2\n"));
        let wrong = parse::<BTreeMap<String, u16>>("f", "a: 1\nport: high\n").unwrap_err();
        assert!(wrong.to_string().contains("line 2"), "{wrong}");
    }

    #[test]
    fn a_mapping_is_required_where_one_is_expected() {
        assert_eq!(
            parse_mapping("config", "- 1").unwrap_err().to_string(),
            "config: expected a mapping (key: value), found a list"
        );
        assert!(parse_mapping("config", "").unwrap().is_empty());
        assert_eq!(parse_mapping("config", "a: !tag {b: 1}").unwrap().len(), 1);
    }
}
