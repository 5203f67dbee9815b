//! Filters of lists: `field=value` and `field__lookup=value`, through relations with `__`.
//!
//! Owns what may be filtered by what. A filter from outside picks a field of the table of fields; its value is
//! parsed to the field's kind and bound.

use sqlx::{QueryBuilder, Sqlite};

use super::tables::{Field, Kind};
use super::{Resource, uri_key};
use crate::store::{Result, StoreError};

/// How a field is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lookup {
    Exact,
    IgnoringCase,
    Contains,
    ContainsIgnoringCase,
    StartsWith,
    In,
    Compare(&'static str),
    IsNull,
}

const LOOKUPS: [(&str, Lookup); 11] = [
    ("exact", Lookup::Exact),
    ("iexact", Lookup::IgnoringCase),
    ("contains", Lookup::Contains),
    ("icontains", Lookup::ContainsIgnoringCase),
    ("startswith", Lookup::StartsWith),
    ("in", Lookup::In),
    ("gt", Lookup::Compare(" > ")),
    ("gte", Lookup::Compare(" >= ")),
    ("lt", Lookup::Compare(" < ")),
    ("lte", Lookup::Compare(" <= ")),
    ("isnull", Lookup::IsNull),
];

/// The most values of one `__in`.
const MOST_VALUES: usize = 500;

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Text(String),
    Number(i64),
    /// An object that its key names.
    Key(Resource, String),
}

/// One condition of a list.
#[derive(Debug, Clone)]
pub struct Filter {
    field: &'static Field,
    lookup: Lookup,
    operands: Vec<Operand>,
    is_null: bool,
}

fn invalid(parameter: &str, message: String) -> StoreError {
    StoreError::Invalid { field: Some(parameter.to_owned()), message }
}

fn find(resource: Resource, name: &str) -> Option<&'static Field> {
    let table = resource.table();
    table.fields.iter().chain(table.filters).find(|field| field.name == name)
}

impl Filter {
    /// Reads one query parameter of a list. None when it filters nothing: the published client sends
    /// `app__name=` for "any app".
    pub fn parse(resource: Resource, parameter: &str, value: &str) -> Result<Option<Self>> {
        let (name, lookup) = match parameter.rsplit_once("__") {
            Some((name, last)) => match LOOKUPS.iter().find(|(word, _)| *word == last) {
                Some((_, lookup)) => (name, *lookup),
                None => (parameter, Lookup::Exact),
            },
            None => (parameter, Lookup::Exact),
        };
        let field = find(resource, name).ok_or_else(|| {
            invalid(parameter, format!("{resource} cannot be filtered by {parameter:?}: no such field"))
        })?;
        let refused =
            |why: &str| invalid(parameter, format!("{resource} cannot be filtered by {parameter:?}: {why}"));
        let fits = match field.kind {
            Kind::Text => true,
            Kind::Number | Kind::Time => {
                matches!(lookup, Lookup::Exact | Lookup::In | Lookup::Compare(_) | Lookup::IsNull)
            }
            Kind::Truth => matches!(lookup, Lookup::Exact | Lookup::IsNull),
            Kind::Link(..) => matches!(lookup, Lookup::Exact | Lookup::In | Lookup::IsNull),
            Kind::Yaml | Kind::Json | Kind::Links(_) => {
                return Err(refused("this field may not be filtered"));
            }
        };
        if !fits {
            return Err(refused("this field does not know this lookup"));
        }
        if value.is_empty() && lookup == Lookup::Exact {
            return Ok(None);
        }
        let wrong = |expected: &str| invalid(parameter, format!("{parameter}: {value:?} is not {expected}"));
        if lookup == Lookup::IsNull {
            let is_null = parse_truth(value).ok_or_else(|| wrong("true or false"))?;
            return Ok(Some(Self { field, lookup, operands: Vec::new(), is_null }));
        }
        let parts: Vec<&str> = if lookup == Lookup::In { value.split(',').collect() } else { vec![value] };
        if parts.len() > MOST_VALUES {
            return Err(invalid(parameter, format!("{parameter}: more than {MOST_VALUES} values")));
        }
        let operands = parts
            .into_iter()
            .map(|part| match field.kind {
                Kind::Number => part.trim().parse().map(Operand::Number).map_err(|_| wrong("a whole number")),
                Kind::Truth => {
                    parse_truth(part).map(|b| Operand::Number(b.into())).ok_or_else(|| wrong("true or false"))
                }
                Kind::Time => part
                    .trim()
                    .parse::<jiff::Timestamp>()
                    .map(|time| Operand::Number(time.as_millisecond()))
                    .map_err(|_| wrong("a time such as 2026-01-31T12:00:00Z")),
                Kind::Link(to, _) => {
                    let key = uri_key(to, part).unwrap_or(part);
                    Ok(Operand::Key(to, key.to_owned()))
                }
                _ => Ok(Operand::Text(part.to_owned())),
            })
            .collect::<Result<_>>()?;
        Ok(Some(Self { field, lookup, operands, is_null: false }))
    }

    /// Adds the condition to a query.
    pub(super) fn push(&self, query: &mut QueryBuilder<Sqlite>) {
        let column = match self.field.kind {
            Kind::Link(_, id) => id,
            _ => self.field.sql,
        };
        // An expression such as `a || b` must stay one operand.
        let column = format!("({column})");
        let mut operands = self.operands.iter();
        let first = operands.next();
        match (self.lookup, first) {
            (Lookup::IsNull, _) => {
                query.push(column).push(if self.is_null { " IS NULL" } else { " IS NOT NULL" });
            }
            (_, None) => {
                query.push("0");
            }
            (Lookup::In, Some(first)) => {
                query.push(column).push(" IN (");
                push_operand(query, first);
                for operand in operands {
                    query.push(", ");
                    push_operand(query, operand);
                }
                query.push(")");
            }
            (Lookup::Exact, Some(first)) => {
                query.push(column).push(" = ");
                push_operand(query, first);
            }
            (Lookup::Compare(operator), Some(first)) => {
                query.push(column).push(operator);
                push_operand(query, first);
            }
            (Lookup::IgnoringCase, Some(first)) => {
                query.push("LOWER").push(column).push(" = LOWER(");
                push_operand(query, first);
                query.push(")");
            }
            // INSTR and SUBSTR take the text as it is, where LIKE has wildcards and ignores case.
            (Lookup::Contains, Some(first)) => {
                query.push("INSTR(").push(column).push(", ");
                push_operand(query, first);
                query.push(") > 0");
            }
            (Lookup::ContainsIgnoringCase, Some(first)) => {
                query.push("INSTR(LOWER").push(column).push(", LOWER(");
                push_operand(query, first);
                query.push(")) > 0");
            }
            (Lookup::StartsWith, Some(first)) => {
                query.push("SUBSTR(").push(column).push(", 1, LENGTH(");
                push_operand(query, first);
                query.push(")) = ");
                push_operand(query, first);
            }
        }
    }
}

fn push_operand(query: &mut QueryBuilder<Sqlite>, operand: &Operand) {
    match operand {
        Operand::Text(text) => query.push_bind(text.clone()),
        Operand::Number(number) => query.push_bind(*number),
        Operand::Key(resource, key) => {
            query.push("(");
            push_find(query, *resource, key);
            query.push(")")
        }
    };
}

/// A query that gives the number of the object of a key: its name or, if no name is the same, its number.
pub(super) fn push_find(query: &mut QueryBuilder<Sqlite>, resource: Resource, key: &str) {
    let table = resource.table().name;
    let number: Option<i64> = key.parse().ok();
    query.push("SELECT id FROM ").push(table).push(" WHERE ");
    if resource.is_named() {
        query.push("name = ").push_bind(key.to_owned());
        if let Some(number) = number {
            query.push(" OR id = ").push_bind(number).push(" ORDER BY name = ").push_bind(key.to_owned());
            query.push(" DESC LIMIT 1");
        }
    } else {
        query.push("id = ").push_bind(number);
    }
}

fn parse_truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}
