//! Writes a value so that YAML 1.1 readers (PyYAML above all) and YAML 1.2 readers find the same in it.
//!
//! The library's own emitter asks only YAML 1.2 whether a text may stand bare, so that `yes`, `12:30:00` or `1_000`
//! come out of PyYAML as something else, and it writes floats such as `1e100` that PyYAML takes for texts.

use serde_yaml::value::TaggedValue;
use serde_yaml::{Mapping, Number, Value};

use super::plain;

/// Longer keys are written with a `?` before them: readers look for the colon of others only so far.
const LONGEST_SIMPLE_KEY: usize = 128;

/// The document's text; an error says what YAML cannot hold.
pub(super) fn document(value: &Value) -> Result<String, String> {
    let mut out = String::new();
    match value {
        Value::Mapping(mapping) if !mapping.is_empty() => entries(&mut out, mapping, 0)?,
        Value::Sequence(items) if !items.is_empty() => list(&mut out, items, 0)?,
        _ => {
            // Begun like every value behind a key, without the space.
            after(&mut out, value, 0, Place::Top)?;
            out.remove(0);
        }
    }
    Ok(out)
}

/// What a value stands behind.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Nothing.
    Top,
    /// `key:`, at the value's indentation.
    Key,
    /// `-` or `?` or `:` of an explicit key, at the value's indentation.
    Dash,
    /// A tag.
    Tag,
}

fn indent(out: &mut String, width: usize) {
    out.extend(std::iter::repeat_n(' ', width));
}

fn entries(out: &mut String, mapping: &Mapping, width: usize) -> Result<(), String> {
    for (at, (key, value)) in mapping.iter().enumerate() {
        if at > 0 {
            indent(out, width);
        }
        match simple_key(key) {
            Some(key) => {
                out.push_str(&key);
                out.push(':');
                after(out, value, width, Place::Key)?;
            }
            None => {
                out.push('?');
                after(out, key, width, Place::Dash)?;
                indent(out, width);
                out.push(':');
                after(out, value, width, Place::Dash)?;
            }
        }
    }
    Ok(())
}

fn list(out: &mut String, items: &[Value], width: usize) -> Result<(), String> {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            indent(out, width);
        }
        out.push('-');
        after(out, item, width, Place::Dash)?;
    }
    Ok(())
}

/// A value behind what stands at `width`, and the line's end.
fn after(out: &mut String, value: &Value, width: usize, place: Place) -> Result<(), String> {
    match value {
        Value::Mapping(mapping) if !mapping.is_empty() => {
            begin_block(out, width + 2, place);
            entries(out, mapping, width + 2)
        }
        Value::Sequence(items) if !items.is_empty() => {
            // Lists need no indentation of their own below a key.
            let width = if place == Place::Key { width } else { width + 2 };
            begin_block(out, width, place);
            list(out, items, width)
        }
        Value::Tagged(tagged) => {
            if place == Place::Tag {
                return Err("a tagged value in a tagged value".to_owned());
            }
            out.push(' ');
            out.push_str(&tag(tagged));
            after(out, &tagged.value, width, Place::Tag)
        }
        Value::String(text) if may_be_a_block(text) => {
            out.push_str(if text.ends_with('\n') { " |\n" } else { " |-\n" });
            for line in text.lines() {
                if !line.is_empty() {
                    indent(out, width + 2);
                    out.push_str(line);
                }
                out.push('\n');
            }
            Ok(())
        }
        _ => {
            out.push(' ');
            out.push_str(&scalar(value));
            out.push('\n');
            Ok(())
        }
    }
}

/// The first line of a nested list or mapping begins behind a dash, and on a line of its own behind all else.
fn begin_block(out: &mut String, width: usize, place: Place) {
    match place {
        Place::Dash => out.push(' '),
        Place::Top | Place::Key | Place::Tag => {
            out.push('\n');
            indent(out, width);
        }
    }
}

/// The text of a key that fits before a colon.
fn simple_key(key: &Value) -> Option<String> {
    match key {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Some(scalar(key)).filter(|text| text.len() <= LONGEST_SIMPLE_KEY)
        }
        Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

/// Anything that takes one line.
fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => number_text(number),
        Value::String(text) => quoted_where_needed(text),
        Value::Sequence(_) => "[]".to_owned(),
        Value::Mapping(_) => "{}".to_owned(),
        Value::Tagged(tagged) => tag(tagged),
    }
}

fn number_text(number: &Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else {
        return number.to_string();
    };
    if float.is_nan() {
        return ".nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    // Rust's shortest text that reads back the same; a YAML 1.1 float has a point and a signed exponent.
    let text = format!("{float:?}");
    match text.split_once('e') {
        None => text,
        Some((mantissa, exponent)) => {
            let point = if mantissa.contains('.') { "" } else { ".0" };
            let sign = if exponent.starts_with('-') { "" } else { "+" };
            format!("{mantissa}{point}e{sign}{exponent}")
        }
    }
}

fn quoted_where_needed(text: &str) -> String {
    if may_be_bare(text) {
        text.to_owned()
    } else if text.chars().all(|c| is_shown(c) && c != '\t') {
        format!("'{}'", text.replace('\'', "''"))
    } else {
        double_quoted(text)
    }
}

fn may_be_bare(text: &str) -> bool {
    let begins = |c: char| c.is_alphanumeric() || "/_.$(+;^\\".contains(c);
    let inside = |c: char| c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ';
    text.starts_with(begins)
        && text.chars().all(|c| inside(c) && is_shown(c))
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.starts_with("...")
        && plain::is_always_text(text)
}

/// Whether a text of several lines keeps every character in a literal block, in every reader.
fn may_be_a_block(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let shown = |c| is_shown(c) && (c == '\t' || !char::is_whitespace(c) || c == ' ');
    !body.is_empty()
        && text.contains('\n')
        && !body.ends_with('\n')
        && !body.starts_with(char::is_whitespace)
        && body
            .split('\n')
            .all(|line| line.chars().all(shown) && (line.is_empty() || !line.trim().is_empty()))
}

/// Whether the character may stand for itself; astral ones may not, as PyYAML before 5.1 refuses to read them.
fn is_shown(c: char) -> bool {
    match c {
        '\t' | ' '..='~' => true,
        '\u{2028}' | '\u{2029}' | '\u{feff}' => false,
        '\u{a0}'..='\u{fffd}' => true,
        _ => false,
    }
}

fn double_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if is_shown(c) => out.push(c),
            c => {
                let code = u32::from(c);
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
        }
    }
    out.push('"');
    out
}

fn tag(tagged: &TaggedValue) -> String {
    let name = tagged.tag.to_string();
    let mut out = String::from("!");
    for byte in name.trim_start_matches('!').bytes() {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' | b'/' | b':' => {
                out.push(char::from(byte));
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
