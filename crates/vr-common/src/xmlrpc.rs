//! XML-RPC: values, and the documents that carry calls and answers, in both directions.
//!
//! Reading is bounded ([`MAX_DOCUMENT`], [`MAX_DEPTH`], [`MAX_VALUES`]) and never resolves entities or document
//! types. `nil` is understood and written; integers are 32 bits wide, as the format prescribes.
//!
//! This module must not know of HTTP, nor of anybody's methods.

use std::collections::BTreeMap;

use thiserror::Error;

mod read;
mod write;

pub use read::{read_call, read_response};
pub use write::{write_call, write_fault, write_response};

/// The longest document that is read, in bytes.
pub const MAX_DOCUMENT: usize = 16 << 20;
/// How deep arrays and structs may be nested.
pub const MAX_DEPTH: usize = 32;
/// The most values in one document.
pub const MAX_VALUES: usize = 250_000;

/// What XML-RPC can carry.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `nil`, an extension that everybody we talk to allows.
    Nil,
    /// `boolean`.
    Boolean(bool),
    /// `int` or `i4`.
    Int(i32),
    /// `double`; never infinite, never NaN.
    Double(f64),
    /// `string`.
    String(String),
    /// `dateTime.iso8601`, as it is written: it names no time zone, so it cannot be read further.
    DateTime(String),
    /// `base64`, decoded.
    Base64(Vec<u8>),
    /// `array`.
    Array(Vec<Value>),
    /// `struct`.
    Struct(BTreeMap<String, Value>),
}

/// A call: a method's name and its arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Such as `supervisor.getState`.
    pub method: String,
    /// By position.
    pub params: Vec<Value>,
}

/// The other side understood the call and refused it.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("fault {code}: {message}")]
pub struct Fault {
    /// The method's own number for what is wrong.
    pub code: i32,
    /// For people.
    pub message: String,
}

/// A document that cannot be read, or a value that cannot be written.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum XmlRpcError {
    /// It is longer than [`MAX_DOCUMENT`].
    #[error("the XML-RPC document is {length} bytes long, more than {MAX_DOCUMENT}")]
    TooLong {
        /// In bytes.
        length: usize,
    },
    /// It is not an XML-RPC document, or one with too much in it.
    #[error("malformed XML-RPC document at byte {position}: {problem}")]
    Malformed {
        /// Where the reader stood, from the document's begin.
        position: u64,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// XML-RPC has no way to write the value.
    #[error("{path}: {value} cannot be carried by XML-RPC, {reason}")]
    NotCarried {
        /// Where the value is, such as `settings.limits[0]`.
        path: String,
        /// The value.
        value: String,
        /// What could be.
        reason: &'static str,
    },
}

impl Value {
    /// The value as JSON; times and bytes become texts, the bytes in base64.
    pub fn into_json(self) -> serde_json::Value {
        use base64::Engine as _;
        match self {
            Self::Nil => serde_json::Value::Null,
            Self::Boolean(value) => value.into(),
            Self::Int(value) => value.into(),
            Self::Double(value) => value.into(),
            Self::String(text) | Self::DateTime(text) => text.into(),
            Self::Base64(bytes) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
            Self::Array(items) => items.into_iter().map(Self::into_json).collect(),
            Self::Struct(members) => {
                serde_json::Value::Object(members.into_iter().map(|(k, v)| (k, v.into_json())).collect())
            }
        }
    }

    /// The value of some JSON, called `path` in errors.
    ///
    /// # Errors
    /// [`XmlRpcError::NotCarried`] for an integer of more than 32 bits.
    pub fn from_json(path: &str, json: &serde_json::Value) -> Result<Self, XmlRpcError> {
        Ok(match json {
            serde_json::Value::Null => Self::Nil,
            serde_json::Value::Bool(value) => Self::Boolean(*value),
            serde_json::Value::Number(number) if number.is_f64() => {
                Self::Double(number.as_f64().unwrap_or_default())
            }
            serde_json::Value::Number(number) => {
                let int = number.as_i64().and_then(|wide| i32::try_from(wide).ok());
                Self::Int(int.ok_or_else(|| XmlRpcError::NotCarried {
                    path: path.to_owned(),
                    value: number.to_string(),
                    reason: "whose integers go from -2147483648 to 2147483647",
                })?)
            }
            serde_json::Value::String(text) => Self::String(text.clone()),
            serde_json::Value::Array(items) => {
                let items = items.iter().enumerate();
                Self::Array(
                    items
                        .map(|(i, item)| Self::from_json(&format!("{path}[{i}]"), item))
                        .collect::<Result<_, _>>()?,
                )
            }
            serde_json::Value::Object(members) => {
                let member = |(key, value): (&String, _)| {
                    Ok((key.clone(), Self::from_json(&format!("{path}.{key}"), value)?))
                };
                Self::Struct(members.iter().map(member).collect::<Result<_, XmlRpcError>>()?)
            }
        })
    }
}

impl Value {
    /// The value of some YAML, called `path` in errors. Tags are left out.
    ///
    /// # Errors
    /// [`XmlRpcError::NotCarried`] for an integer of more than 32 bits, a number that is infinite or none, and a key that
    /// is no text.
    pub fn from_yaml(path: &str, yaml: &serde_yaml::Value) -> Result<Self, XmlRpcError> {
        use serde_yaml::Value as Yaml;
        let not_carried =
            |value: String, reason| XmlRpcError::NotCarried { path: path.to_owned(), value, reason };
        match yaml {
            Yaml::Null => Ok(Self::Nil),
            Yaml::Bool(value) => Ok(Self::Boolean(*value)),
            Yaml::Number(number) => match serde_json::to_value(number) {
                Ok(json) if json.is_number() => Self::from_json(path, &json),
                _ => Err(not_carried(number.to_string(), "whose doubles are finite")),
            },
            Yaml::String(text) => Ok(Self::String(text.clone())),
            Yaml::Sequence(items) => {
                let items = items.iter().enumerate();
                let items = items.map(|(i, item)| Self::from_yaml(&format!("{path}[{i}]"), item));
                items.collect::<Result<_, _>>().map(Self::Array)
            }
            Yaml::Mapping(members) => {
                let member = |(key, member): (&Yaml, &Yaml)| match key {
                    Yaml::String(key) => {
                        Ok((key.clone(), Self::from_yaml(&format!("{path}.{key}"), member)?))
                    }
                    other => Err(not_carried(
                        format!("a key that is {}", crate::yaml::kind(other)),
                        "whose structs have texts as keys",
                    )),
                };
                members.iter().map(member).collect::<Result<_, _>>().map(Self::Struct)
            }
            Yaml::Tagged(tagged) => Self::from_yaml(path, &tagged.value),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Boolean(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::Int(value)
    }
}

#[cfg(test)]
mod tests;
