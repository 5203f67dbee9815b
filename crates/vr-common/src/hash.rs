//! The hashes that identify builds and releases.
//!
//! Both are md5 over the concatenated JSON texts of their arguments, JSON as Python's
//! `json.dumps(x, sort_keys=True)` writes it, because existing installations compare them
//! (vectors: `build_hash`, `release_hash`). Nothing here is meant to resist an attacker.

use std::fmt::Write as _;

use md5::{Digest, Md5};
use serde_json::{Number, Value};

/// JSON text as Python writes it with sorted keys: `, ` and `: ` separators, ASCII only, Python's floats.
pub fn python_json(value: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, value);
    text
}

fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(out, number),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_value(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            // Python sorts by code point, which is also the order of UTF-8 bytes.
            entries.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_string(out, key);
                out.push_str(": ");
                write_value(out, item);
            }
            out.push('}');
        }
    }
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

fn write_number(out: &mut String, number: &Number) {
    match number.as_f64() {
        Some(float) if number.is_f64() => out.push_str(&python_float(float)),
        _ => {
            let _ = write!(out, "{number}");
        }
    }
}

/// A float as Python's `repr` writes it: the shortest digits that read back the same,
/// with an exponent below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    // Rust's `{:e}` gives the same shortest digits: `-1.25e-7`.
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 || (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        if plain.contains('.') { plain } else { plain + ".0" }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.abs())
    }
}

/// md5 (32 lower-case hexadecimal digits) over the concatenated JSON texts of `values`.
pub fn hash(values: &[Value]) -> String {
    let mut md5 = Md5::new();
    for value in values {
        md5.update(python_json(value));
    }
    hex::encode(md5.finalize())
}

/// md5 of bytes, as 32 lower-case hexadecimal digits.
pub fn md5_hex(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}

/// A build's hash: of its tarball's md5 and its image's, if it has one.
pub fn build_hash(file_md5: &str, image_md5: Option<&str>) -> String {
    hash(&[file_md5.into(), image_md5.map_or(Value::Null, Value::from)])
}

/// What a release is made of, in the order in which it is hashed.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseParts<'a> {
    /// The build's hash; none before the build has succeeded.
    pub build_hash: Option<&'a str>,
    /// The compiled config, a mapping or null.
    pub config: &'a Value,
    /// The compiled environment, a mapping or null.
    pub env: &'a Value,
    /// A list of volumes, or null.
    pub volumes: &'a Value,
    /// The user.
    pub run_as: &'a str,
    /// RAM, such as `256M`.
    pub mem_limit: Option<&'a str>,
    /// RAM and swap.
    pub memsw_limit: Option<&'a str>,
}

impl ReleaseParts<'_> {
    /// The first eight digits of the hash over all parts.
    pub fn hash(&self) -> String {
        let text = |t: Option<&str>| t.map_or(Value::Null, Value::from);
        let mut digits = hash(&[
            text(self.build_hash),
            self.config.clone(),
            self.env.clone(),
            self.volumes.clone(),
            self.run_as.into(),
            text(self.mem_limit),
            text(self.memsw_limit),
        ]);
        digits.truncate(8);
        digits
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The golden data made by the published implementation.
    pub(crate) fn vectors() -> Value {
        serde_json::from_str(include_str!("../tests/data/vectors.json")).unwrap()
    }

    #[test]
    fn build_hashes_of_the_vectors() {
        for case in vectors()["build_hash"].as_array().unwrap() {
            let got = build_hash(case["file_md5"].as_str().unwrap(), case["image_md5"].as_str());
            assert_eq!(got, case["hash"].as_str().unwrap());
        }
    }

    #[test]
    fn release_hashes_of_the_vectors() {
        let cases = vectors();
        let cases = cases["release_hash"].as_array().unwrap();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let parts = ReleaseParts {
                build_hash: case["build_hash"].as_str(),
                config: &case["config"],
                env: &case["env"],
                volumes: &case["volumes"],
                run_as: case["run_as"].as_str().unwrap(),
                mem_limit: case["mem_limit"].as_str(),
                memsw_limit: case["memsw_limit"].as_str(),
            };
            assert_eq!(python_json(parts.config), case["serialized"][1].as_str().unwrap());
            assert_eq!(parts.hash(), case["hash"].as_str().unwrap());
        }
    }

    #[test]
    fn floats_as_python_writes_them() {
        for (value, text) in [
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-10, "-2.5e-10"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    proptest! {
        #[test]
        fn texts_read_back_the_same(text in any::<String>(), float in any::<f64>()) {
            let written = python_json(&Value::from(text.clone()));
            prop_assert!(written.is_ascii());
            prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
            if float.is_finite() {
                prop_assert_eq!(python_float(float).parse::<f64>().unwrap(), float);
            }
        }
    }
}
