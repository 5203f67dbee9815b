//! Writes XML-RPC documents.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Fault, Value, XmlRpcError};

const DECLARATION: &str = "<?xml version=\"1.0\"?>\n";

/// The document of a call.
///
/// # Errors
/// [`XmlRpcError::NotCarried`] for a double that is infinite or not a number.
pub fn write_call(method: &str, params: &[Value]) -> Result<String, XmlRpcError> {
    let mut out = format!("{DECLARATION}<methodCall><methodName>");
    text(&mut out, method);
    out.push_str("</methodName><params>");
    for (i, param) in params.iter().enumerate() {
        out.push_str("<param>");
        value(&mut out, &format!("params[{i}]"), param)?;
        out.push_str("</param>");
    }
    out.push_str("</params></methodCall>\n");
    Ok(out)
}

/// The document of a good answer.
///
/// # Errors
/// As [`write_call`].
pub fn write_response(result: &Value) -> Result<String, XmlRpcError> {
    let mut out = format!("{DECLARATION}<methodResponse><params><param>");
    value(&mut out, "result", result)?;
    out.push_str("</param></params></methodResponse>\n");
    Ok(out)
}

/// The document of a refusal.
pub fn write_fault(fault: &Fault) -> String {
    let mut message = String::new();
    text(&mut message, &fault.message);
    format!(
        "{DECLARATION}<methodResponse><fault><value><struct>\
         <member><name>faultCode</name><value><int>{}</int></value></member>\
         <member><name>faultString</name><value><string>{message}</string></value></member>\
         </struct></value></fault></methodResponse>\n",
        fault.code
    )
}

fn value(out: &mut String, path: &str, given: &Value) -> Result<(), XmlRpcError> {
    out.push_str("<value>");
    match given {
        Value::Nil => out.push_str("<nil/>"),
        Value::Boolean(given) => element(out, "boolean", if *given { "1" } else { "0" }),
        Value::Int(given) => element(out, "int", &given.to_string()),
        Value::Double(given) if given.is_finite() => element(out, "double", &given.to_string()),
        Value::Double(given) => {
            return Err(XmlRpcError::NotCarried {
                path: path.to_owned(),
                value: given.to_string(),
                reason: "whose doubles are finite",
            });
        }
        Value::String(given) => element(out, "string", given),
        Value::DateTime(given) => element(out, "dateTime.iso8601", given),
        Value::Base64(given) => element(out, "base64", &STANDARD.encode(given)),
        Value::Array(items) => {
            out.push_str("<array><data>");
            for (i, item) in items.iter().enumerate() {
                value(out, &format!("{path}[{i}]"), item)?;
            }
            out.push_str("</data></array>");
        }
        Value::Struct(members) => {
            out.push_str("<struct>");
            for (key, member) in members {
                out.push_str("<member>");
                element(out, "name", key);
                value(out, &format!("{path}.{key}"), member)?;
                out.push_str("</member>");
            }
            out.push_str("</struct>");
        }
    }
    out.push_str("</value>");
    Ok(())
}

fn element(out: &mut String, name: &str, content: &str) {
    let _ = write!(out, "<{name}>");
    text(out, content);
    let _ = write!(out, "</{name}>");
}

/// Writes a text so that every reader gets it back. XML has no way at all to write most control characters, which
/// logs are full of, so they become U+FFFD rather than make the whole answer unreadable.
fn text(out: &mut String, given: &str) {
    for c in given.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            // Written as itself, a reader has to make it a line feed.
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(c),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
}
