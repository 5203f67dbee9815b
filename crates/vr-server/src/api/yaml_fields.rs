//! `config_yaml`, `env_yaml` and `volumes` as clients send them, checked for everything that would only fail later:
//! on the way to a host, in a hash, or when a proc starts.

use serde_json::Value as Json;
use serde_yaml::Value as Yaml;
use vr_common::proc_data::{Volume, is_variable_name};
use vr_common::yaml;

/// The text to store of a mapping that was sent as YAML text or as a mapping.
pub(super) fn mapping_text(field: &str, sent: &Json, is_env: bool) -> Result<String, String> {
    let (text, mapping) = match sent {
        Json::Null => return Ok(String::new()),
        Json::String(text) => (text.clone(), yaml::parse_mapping(field, text).map_err(|e| e.to_string())?),
        Json::Object(object) if object.is_empty() => return Ok(String::new()),
        Json::Object(_) => {
            let text = yaml::to_string(sent).map_err(|e| format!("{field}: {e}"))?;
            let mapping = yaml::parse_mapping(field, &text).map_err(|e| e.to_string())?;
            (text, mapping)
        }
        other => return Err(format!("{field}: expected a mapping or its YAML text, found {}", kind(other))),
    };
    for (key, value) in &mapping {
        carriable(field, key, value)?;
        let Yaml::String(name) = key else { continue };
        if !is_env {
            continue;
        }
        if !is_variable_name(name) {
            return Err(format!(
                "{field}: {name:?} is not a variable name (letters, digits and '_', not beginning with a digit)"
            ));
        }
        match value {
            Yaml::Sequence(_) | Yaml::Mapping(_) => {
                return Err(format!("{field}: {name}: expected a text, found {}", yaml::kind(value)));
            }
            Yaml::String(text) if text.contains('\0') => {
                return Err(format!("{field}: {name}: no variable can hold a null character"));
            }
            _ => {}
        }
    }
    Ok(text)
}

/// Whether Supervisor's XML-RPC can carry the value: hosts of old are told their settings that way.
fn carriable(place: &str, key: &Yaml, value: &Yaml) -> Result<(), String> {
    let Yaml::String(name) = key else {
        return Err(format!(
            "{place}: keys must be texts, as XML-RPC carries no others, found {}",
            yaml::kind(key)
        ));
    };
    carriable_value(&format!("{place}: {name}"), value)
}

fn carriable_value(place: &str, value: &Yaml) -> Result<(), String> {
    match value {
        Yaml::Number(number) if number.is_f64() => match number.as_f64() {
            Some(float) if float.is_finite() => Ok(()),
            _ => Err(format!("{place}: {number} cannot be carried over XML-RPC")),
        },
        Yaml::Number(number) => match number.as_i64().map(i32::try_from) {
            Some(Ok(_)) => Ok(()),
            _ => {
                Err(format!("{place}: {number} cannot be carried over XML-RPC, whose integers have 32 bits"))
            }
        },
        Yaml::Sequence(items) => items.iter().try_for_each(|item| carriable_value(place, item)),
        Yaml::Mapping(mapping) => mapping.iter().try_for_each(|(key, value)| carriable(place, key, value)),
        Yaml::Tagged(tagged) => {
            Err(format!("{place}: the tag {} cannot be carried over XML-RPC", tagged.tag))
        }
        Yaml::Null | Yaml::Bool(_) | Yaml::String(_) => Ok(()),
    }
}

/// The JSON text to store of a list of volumes that was sent as such or as YAML text.
pub(super) fn volumes_text(sent: &Json) -> Result<String, String> {
    let parsed;
    let list = match sent {
        Json::String(text) => {
            parsed = yaml::parse::<Json>("volumes", text).map_err(|e| e.to_string())?;
            &parsed
        }
        other => other,
    };
    let expected = "expected a list of [host dir, mountpoint] or [host dir, mountpoint, ro]";
    let items = match list {
        Json::Null => return Ok("null".into()),
        Json::Array(items) if items.is_empty() => return Ok("null".into()),
        Json::Array(items) => items,
        other => return Err(format!("volumes: {expected}, found {}", kind(other))),
    };
    let mut volumes = Vec::new();
    for item in items {
        let parts: Vec<String> =
            serde_json::from_value(item.clone()).map_err(|_| format!("volumes: {item}: {expected}"))?;
        volumes.push(Volume::try_from(parts).map_err(|e| format!("volumes: {e}"))?);
    }
    serde_json::to_string(&volumes).map_err(|e| format!("volumes: {e}"))
}

/// What a JSON value is, for messages.
pub(super) fn kind(value: &Json) -> String {
    match value {
        Json::Null => "nothing".into(),
        Json::Bool(b) => format!("the boolean {b}"),
        Json::Number(n) => format!("the number {n}"),
        Json::String(_) => "a text".into(),
        Json::Array(_) => "a list".into(),
        Json::Object(_) => "a mapping".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mappings_come_as_text_or_as_mappings() {
        let text = "# why\na: 1\nb: [x, {c: null}]\n";
        assert_eq!(mapping_text("config_yaml", &json!(text), false).unwrap(), text);
        assert_eq!(mapping_text("config_yaml", &json!({"a": 1}), false).unwrap(), "a: 1\n");
        for empty in [json!(null), json!(""), json!({})] {
            assert_eq!(mapping_text("config_yaml", &empty, false).unwrap(), "");
        }
        assert_eq!(mapping_text("env_yaml", &json!("A: 1\nB: x\nC:\n"), true).unwrap(), "A: 1\nB: x\nC:\n");
    }

    #[test]
    fn what_cannot_be_carried_is_refused_with_its_place() {
        for (sent, is_env, expected) in [
            (json!("[1]"), false, "config_yaml: expected a mapping (key: value), found a list"),
            (json!([1]), false, "config_yaml: expected a mapping or its YAML text, found a list"),
            (json!("a: 2147483648"), false, "config_yaml: a: 2147483648 cannot be carried over XML-RPC"),
            (
                json!({"a": {"b": [-2147483649_i64]}}),
                false,
                "config_yaml: a: b: -2147483649 cannot be carried",
            ),
            (json!("a: 99999999999999999999"), false, "config_yaml: a: "),
            (json!("a: {b: {1: x}}"), false, "config_yaml: a: b: keys must be texts"),
            (json!("1: x"), false, "config_yaml: keys must be texts, as XML-RPC carries no others"),
            (json!("a: .nan"), false, "config_yaml: a: .nan cannot be carried over XML-RPC"),
            (json!("a: !x b"), false, "config_yaml: a: the tag !x cannot be carried"),
            (json!("A-B: x"), true, "config_yaml: \"A-B\" is not a variable name"),
            (json!("A: [x]"), true, "config_yaml: A: expected a text, found a list"),
            (json!({"A": "x\0y"}), true, "config_yaml: A: no variable can hold a null character"),
        ] {
            let message = mapping_text("config_yaml", &sent, is_env).unwrap_err();
            assert!(message.starts_with(expected), "{sent} gave {message:?}");
        }
        mapping_text("config_yaml", &json!("a: 2147483647\nb: -2147483648\nc: 1.5"), false).unwrap();
    }

    #[test]
    fn volumes_are_lists_of_paths() {
        let stored = r#"[["/a","/b"],["/c","/d","ro"]]"#;
        assert_eq!(volumes_text(&json!([["/a", "/b"], ["/c", "/d", "ro"]])).unwrap(), stored);
        assert_eq!(volumes_text(&json!("- [/a, /b]\n- [/c, /d, ro]")).unwrap(), stored);
        for empty in [json!(null), json!([]), json!("")] {
            assert_eq!(volumes_text(&empty).unwrap(), "null");
        }
        for bad in [json!({"a": 1}), json!([["/a"]]), json!([["/a", "/../b"]]), json!("a: b"), json!([1])] {
            assert!(volumes_text(&bad).unwrap_err().starts_with("volumes: "), "{bad}");
        }
    }
}
