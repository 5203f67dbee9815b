//! Reads a document's values as PyYAML does (YAML 1.1), where the library reads them as YAML 1.2.
//!
//! The library resolves bare words by itself. So the document is read a second time for the texts behind the values:
//! the library lends them out of the document, which tells bare words from quoted ones.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Mapping, Value};

use super::{kind, plain, too_large_integer};

/// The document as YAML 1.1 has it. It must have been checked for its size.
pub(super) fn document(text: &str) -> Result<Value, serde_yaml::Error> {
    let value: Value = serde_yaml::from_str(text)?;
    match value {
        // Also an empty document, which has no value to look behind.
        Value::Null => Ok(Value::Null),
        _ => Again { value: &value, text }.deserialize(serde_yaml::Deserializer::from_str(text)),
    }
}

/// Reads the same place of the document again; `value` is what the library found there.
#[derive(Clone, Copy)]
struct Again<'a> {
    value: &'a Value,
    text: &'a str,
}

impl<'a> Again<'a> {
    fn at(self, value: &'a Value) -> Self {
        Self { value, ..self }
    }

    /// A bare word's own meaning; anything else is what the library says.
    fn scalar<E: Error>(self, lent: &str) -> Result<Value, E> {
        let meaning = plain::resolve(lent);
        if meaning.as_ref() == Some(self.value) || !is_bare(self.text, lent) {
            return Ok(self.value.clone());
        }
        meaning.ok_or_else(|| E::custom(too_large_integer(lent)))
    }
}

/// How far before a word its tag begins at most, in bytes.
const FARTHEST_TAG: usize = 128;

/// Whether a text that is part of the document stands there without quotes, without a tag, and for itself.
fn is_bare(document: &str, lent: &str) -> bool {
    let Some(start) = (lent.as_ptr() as usize).checked_sub(document.as_ptr() as usize) else { return false };
    let (Some(before), Some(behind)) = (document.get(..start), document.get(start + lent.len()..)) else {
        return false;
    };
    // A bare word goes on where a quote follows it.
    if lent.is_empty() || behind.starts_with(['\'', '"']) {
        return false;
    }
    // Only so far back, or a long document without a space would be walked again for each of its words.
    let near = &before[before.floor_char_boundary(before.len().saturating_sub(FARTHEST_TAG))..];
    let mut words = near.trim_end().rsplit(char::is_whitespace).filter(|word| !word.is_empty());
    let nearest = words.next().unwrap_or_default();
    let before_it = if nearest.starts_with('&') { words.next().unwrap_or_default() } else { nearest };
    // A tag ends in no colon; one that does is a key.
    let is_tag = |word: &str| word.starts_with('!') && !word.ends_with(':');
    !is_tag(before_it) && !is_tag(before_it.trim_start_matches(['[', '{', ',', ':']))
}

impl<'de> DeserializeSeed<'de> for Again<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.value {
            Value::Sequence(_) => deserializer.deserialize_seq(self),
            Value::Mapping(_) => deserializer.deserialize_map(self),
            Value::Tagged(_) => deserializer.deserialize_ignored_any(IgnoredAny).map(|_| self.value.clone()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                deserializer.deserialize_str(self)
            }
        }
    }
}

impl<'de> Visitor<'de> for Again<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&kind(self.value))
    }

    fn visit_borrowed_str<E: Error>(self, lent: &'de str) -> Result<Value, E> {
        self.scalar(lent)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Value, E> {
        // With escapes, folded, or a block: never a bare word.
        Ok(self.value.clone())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        for value in self.value.as_sequence().into_iter().flatten() {
            list.extend(items.next_element_seed(self.at(value))?);
        }
        Ok(Value::Sequence(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut own = Mapping::new();
        let mut merged = Mapping::new();
        for (key, value) in self.value.as_mapping().into_iter().flatten() {
            let Some(key) = entries.next_key_seed(Key(self.at(key)))? else { break };
            let value = entries.next_value_seed(self.at(value))?;
            match key {
                Name::Merge => merge(&mut merged, value)?,
                Name::Value(key) => {
                    if own.contains_key(&key) {
                        return Err(A::Error::custom(format!("two keys that are both {}", kind(&key))));
                    }
                    own.insert(key, value);
                }
            }
        }
        merged.extend(own);
        Ok(Value::Mapping(merged))
    }
}

/// Puts in what a bare `<<` refers to; of several mappings the first one wins.
fn merge<E: Error>(merged: &mut Mapping, value: Value) -> Result<(), E> {
    let all = match value {
        Value::Sequence(all) => all,
        one => vec![one],
    };
    for one in all {
        let Value::Mapping(one) = one else {
            return Err(E::custom(format!(
                "<<: expected a mapping or a list of mappings, found {}",
                kind(&one)
            )));
        };
        for (key, value) in one {
            merged.entry(key).or_insert(value);
        }
    }
    Ok(())
}

/// A mapping's key, as YAML 1.1 has it.
enum Name {
    /// A bare `<<`.
    Merge,
    Value(Value),
}

struct Key<'a>(Again<'a>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Name;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
        match self.0.value {
            Value::String(text) if text == "<<" => deserializer.deserialize_str(self),
            _ => self.0.deserialize(deserializer).map(Name::Value),
        }
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: Error>(self, lent: &'de str) -> Result<Name, E> {
        Ok(if is_bare(self.0.text, lent) { Name::Merge } else { Name::Value(lent.into()) })
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Name, E> {
        Ok(Name::Value(text.into()))
    }
}
