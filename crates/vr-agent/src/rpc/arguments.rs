//! The parameters of a call, by position, taken as generously as Supervisor does.

use vr_common::supervisor::fault;
use vr_common::xmlrpc::{Fault, Value};

use super::faults::bare;

/// What is left of a call's parameters.
pub(super) struct Arguments(std::vec::IntoIter<Value>);

impl Arguments {
    pub fn new(params: Vec<Value>) -> Self {
        Self(params.into_iter())
    }

    fn next(&mut self) -> Result<Value, Fault> {
        self.0.next().ok_or_else(wrong)
    }

    pub fn text(&mut self) -> Result<String, Fault> {
        match self.next()? {
            Value::String(text) => Ok(text),
            Value::Base64(bytes) => String::from_utf8(bytes).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }

    pub fn integer(&mut self) -> Result<i64, Fault> {
        match self.next()? {
            Value::Int(number) => Ok(i64::from(number)),
            Value::Boolean(value) => Ok(i64::from(value)),
            // Saturates.
            Value::Double(number) => Ok(number as i64),
            Value::String(text) => text.trim().parse().map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }

    /// A signal's name or number, as a text.
    pub fn signal(&mut self) -> Result<String, Fault> {
        match self.next()? {
            Value::String(text) => Ok(text),
            Value::Int(number) => Ok(number.to_string()),
            _ => Err(wrong()),
        }
    }

    /// Whether to wait for the outcome: yes, unless something says no.
    pub fn wait(&mut self) -> bool {
        match self.0.next() {
            None => true,
            Some(Value::Boolean(value)) => value,
            Some(Value::Int(number)) => number != 0,
            Some(Value::Double(number)) => number != 0.0,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Nil) => false,
            Some(_) => true,
        }
    }

    pub fn list(&mut self) -> Result<Vec<Value>, Fault> {
        match self.next()? {
            Value::Array(items) => Ok(items),
            _ => Err(wrong()),
        }
    }
}

fn wrong() -> Fault {
    bare(fault::INCORRECT_PARAMETERS)
}
