//! The `BALANCERS:` setting: `{name: {BACKEND: …, key: value, …}}`.
//!
//! A backend is chosen by its short name or by the dotted path that existing settings files use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_yaml::{Mapping, Value};
use thiserror::Error;
use vr_common::yaml::{self, YamlError, kind};

use crate::balancer::Balancer;
use crate::dummy::DummyBalancer;
use crate::proxy::client::ProxyBalancer;

/// Why settings were refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read or is not YAML.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// The file says nothing about balancers.
    #[error("{}: no BALANCERS, expected \"BALANCERS: {{name: {{BACKEND: …}}}}\"", .0.display())]
    NoBalancers(PathBuf),
    /// `BALANCERS`, or one balancer, is not a mapping.
    #[error("{place}: expected a mapping (key: value), found {found}")]
    NotAMapping {
        /// The place in the settings.
        place: String,
        /// What is there.
        found: String,
    },
    /// A balancer without a `BACKEND`, or with one that is not a text.
    #[error("BALANCERS.{balancer}: expected BACKEND to be one of {}", known_backends())]
    NoBackend {
        /// The balancer.
        balancer: String,
    },
    /// A `BACKEND` that there is not.
    #[error("BALANCERS.{balancer}: unknown BACKEND {backend:?}, expected one of {}", known_backends())]
    UnknownBackend {
        /// The balancer.
        balancer: String,
        /// What it says.
        backend: String,
    },
    /// A key that the backend does not have.
    #[error("BALANCERS.{balancer}: unknown key {key:?}, the {backend} backend knows {}", list(known))]
    UnknownKey {
        /// The balancer.
        balancer: String,
        /// The backend's short name.
        backend: &'static str,
        /// The key.
        key: String,
        /// The keys that there are, beside `BACKEND`.
        known: &'static [&'static str],
    },
    /// A key that is missing or holds the wrong kind of value.
    #[error("BALANCERS.{balancer}.{key}: expected {expected}, found {found}")]
    BadValue {
        /// The balancer.
        balancer: String,
        /// The key.
        key: &'static str,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// Makes a balancer from its name and its checked mapping.
type Build = fn(&str, &Mapping) -> Result<Arc<dyn Balancer>, ConfigError>;

/// A backend: its names, its keys, and how to make one.
struct Backend {
    short_name: &'static str,
    /// The last two parts of the dotted path, after `vr.common.balancer.` or `vr.server.balancer.`.
    dotted_name: &'static str,
    keys: &'static [&'static str],
    build: Build,
}

const BACKENDS: &[Backend] = &[
    Backend {
        short_name: "dummy",
        dotted_name: "dummy.DummyBalancer",
        keys: &[],
        build: |name, _| Ok(Arc::new(DummyBalancer::new(name))),
    },
    Backend {
        short_name: "proxy",
        dotted_name: "proxy.ProxyBalancer",
        keys: &["control_socket"],
        build: |name, config| {
            let socket =
                required_text(name, config, "control_socket", "the path of the proxy's control socket")?;
            Ok(Arc::new(ProxyBalancer::new(name, socket)))
        },
    },
];

impl Backend {
    fn is_called(&self, name: &str) -> bool {
        let dotted = name.strip_prefix("vr.common.balancer.").or(name.strip_prefix("vr.server.balancer."));
        name == self.short_name || dotted == Some(self.dotted_name)
    }
}

fn known_backends() -> String {
    BACKENDS.iter().map(|backend| backend.short_name).collect::<Vec<_>>().join(", ")
}

fn list(keys: &[&str]) -> String {
    if keys.is_empty() {
        "no other keys than BACKEND".to_owned()
    } else {
        format!("BACKEND, {}", keys.join(", "))
    }
}

fn required_text<'a>(
    balancer: &str,
    config: &'a Mapping,
    key: &'static str,
    expected: &'static str,
) -> Result<&'a str, ConfigError> {
    match config.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        other => Err(ConfigError::BadValue {
            balancer: balancer.to_owned(),
            key,
            expected,
            found: other.map_or_else(|| "nothing".to_owned(), kind),
        }),
    }
}

/// Makes the balancers of the `BALANCERS` mapping, by name. Connects to nothing.
pub fn from_config(balancers: &Mapping) -> Result<BTreeMap<String, Arc<dyn Balancer>>, ConfigError> {
    balancers
        .iter()
        .map(|(name, config)| {
            let Value::String(name) = name else {
                return Err(ConfigError::NotAMapping {
                    place: "BALANCERS".to_owned(),
                    found: format!("{} as a balancer's name", kind(name)),
                });
            };
            Ok((name.clone(), build(name, config)?))
        })
        .collect()
}

fn build(name: &str, config: &Value) -> Result<Arc<dyn Balancer>, ConfigError> {
    let Value::Mapping(config) = config else {
        return Err(ConfigError::NotAMapping { place: format!("BALANCERS.{name}"), found: kind(config) });
    };
    let Some(Value::String(wanted)) = config.get("BACKEND") else {
        return Err(ConfigError::NoBackend { balancer: name.to_owned() });
    };
    let Some(backend) = BACKENDS.iter().find(|backend| backend.is_called(wanted)) else {
        return Err(ConfigError::UnknownBackend { balancer: name.to_owned(), backend: wanted.clone() });
    };
    for key in config.keys() {
        let key = key.as_str().map_or_else(|| kind(key), str::to_owned);
        if key != "BACKEND" && !backend.keys.contains(&key.as_str()) {
            return Err(ConfigError::UnknownKey {
                balancer: name.to_owned(),
                backend: backend.short_name,
                key,
                known: backend.keys,
            });
        }
    }
    (backend.build)(name, config)
}

/// Reads the `BALANCERS` of a settings file; its other keys are other parts' business.
pub fn load_config(path: &Path) -> Result<BTreeMap<String, Arc<dyn Balancer>>, ConfigError> {
    let settings = yaml::parse_mapping(&path.display().to_string(), &yaml::read_file(path)?)?;
    match settings.get("BALANCERS") {
        Some(Value::Mapping(balancers)) => from_config(balancers),
        None | Some(Value::Null) => Err(ConfigError::NoBalancers(path.to_owned())),
        Some(other) => Err(ConfigError::NotAMapping {
            place: format!("{}: BALANCERS", path.display()),
            found: kind(other),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<BTreeMap<String, Arc<dyn Balancer>>, ConfigError> {
        from_config(&yaml::parse_mapping("settings", text).unwrap())
    }

    fn error(text: &str) -> String {
        load(text).err().unwrap().to_string()
    }

    #[test]
    fn short_and_dotted_names_choose_the_same_backend() {
        let balancers = load(
            "a: {BACKEND: dummy}\nb: {BACKEND: vr.common.balancer.dummy.DummyBalancer}\n\
             c: {BACKEND: proxy, control_socket: /run/p.sock}\n\
             d: {BACKEND: vr.server.balancer.proxy.ProxyBalancer, control_socket: /run/p.sock}\n",
        )
        .unwrap();
        assert_eq!(balancers.keys().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        assert!(balancers.iter().all(|(name, balancer)| balancer.name() == name));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_was_expected() {
        assert_eq!(
            error("front: {BACKEND: nginy}"),
            "BALANCERS.front: unknown BACKEND \"nginy\", expected one of dummy, proxy"
        );
        assert_eq!(error("front: {}"), "BALANCERS.front: expected BACKEND to be one of dummy, proxy");
        assert_eq!(
            error("front: {BACKEND: proxy, control_sock: /x}"),
            "BALANCERS.front: unknown key \"control_sock\", the proxy backend knows BACKEND, control_socket"
        );
        assert_eq!(
            error("front: {BACKEND: dummy, user: me}"),
            "BALANCERS.front: unknown key \"user\", the dummy backend knows no other keys than BACKEND"
        );
        assert_eq!(
            error("front: {BACKEND: proxy, control_socket: 5}"),
            "BALANCERS.front.control_socket: expected the path of the proxy's control socket, found the number 5"
        );
        assert_eq!(error("front: [a]"), "BALANCERS.front: expected a mapping (key: value), found a list");
        assert!(
            error("front: {BACKEND: vr.common.balancer.dummy.ProxyBalancer}").contains("unknown BACKEND")
        );
    }

    #[test]
    fn a_settings_file_may_hold_other_settings_but_must_hold_balancers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.yaml");
        std::fs::write(&path, "DEBUG: false\nBALANCERS:\n  default:\n    BACKEND: dummy\n").unwrap();
        assert_eq!(load_config(&path).unwrap().len(), 1);
        std::fs::write(&path, "DEBUG: false\n").unwrap();
        let error = load_config(&path).err().unwrap().to_string();
        assert!(error.ends_with("no BALANCERS, expected \"BALANCERS: {name: {BACKEND: …}}\""), "{error}");
    }
}
