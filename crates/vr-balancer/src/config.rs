//! The `BALANCERS:` setting: `{name: {BACKEND: …, key: value, …}}`.
//!
//! A backend is chosen by its short name or by the dotted path that existing settings files use.

mod on_hosts;
mod without_files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_yaml::{Mapping, Value};
use thiserror::Error;
use vr_common::names::{HostName, Node, PoolName};
use vr_common::yaml::{self, YamlError, kind};
use vr_ssh::{SshHost, SshSettings};

use crate::balancer::Balancer;
use crate::dummy::DummyBalancer;
use crate::nginx::{self, Nginx};
use crate::pools_in_files::{FileBalancer, FileBalancerSettings, Program};
use crate::proxy::client::ProxyBalancer;
use crate::site::Site;
use crate::stingray::EndpointError;
use crate::varnish::{self, Varnish};

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
        known: Vec<&'static str>,
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
    /// A traffic manager that cannot be asked like this.
    #[error("BALANCERS.{balancer}: it cannot be used with these URL, USER, PASSWORD and ca_file")]
    Stingray {
        /// The balancer.
        balancer: String,
        /// Why.
        source: EndpointError,
    },
    /// Keys about SSH that do not fit together, or hold something that they cannot.
    #[error("BALANCERS.{balancer}: {reason}")]
    Ssh {
        /// The balancer.
        balancer: String,
        /// What is wrong.
        reason: String,
    },
}

/// Makes a balancer from its name and its checked mapping.
type Build = fn(&Settings<'_>) -> Result<Arc<dyn Balancer>, ConfigError>;

/// A backend: its names, its keys, and how to make one.
struct Backend {
    short_name: &'static str,
    /// The last two parts of the dotted path, after `vr.common.balancer.` or `vr.server.balancer.`.
    dotted_name: &'static str,
    /// Its keys beside `BACKEND`, in groups.
    keys: &'static [&'static [&'static str]],
    build: Build,
}

/// The keys of a login, named as everywhere where Velociraptor uses SSH.
const LOGIN: &[&str] = &[
    "user",
    "password",
    "key_file",
    "passphrase",
    "port",
    "known_hosts",
    "host_key_check",
    "sudo",
    "sudo_password",
    "connect_timeout",
    "agent_socket",
    "keepalive",
    "idle_timeout",
];
/// The keys of backends whose pools are files on hosts.
const FILES: &[&str] =
    &["hosts", "include_dir", "reload_cmd", "test_cmd", "tmpdir", "grace_period", "grace_periods"];

const BACKENDS: &[Backend] = &[
    Backend {
        short_name: "dummy",
        dotted_name: "dummy.DummyBalancer",
        keys: &[],
        build: |settings| Ok(Arc::new(DummyBalancer::new(settings.balancer))),
    },
    Backend {
        short_name: "proxy",
        dotted_name: "proxy.ProxyBalancer",
        keys: &[&["control_socket"]],
        build: |settings| {
            let socket =
                settings.required_text("control_socket", "the path of the proxy's control socket")?;
            Ok(Arc::new(ProxyBalancer::new(settings.balancer, socket)))
        },
    },
    Backend {
        short_name: "nginx",
        dotted_name: "nginx.NginxBalancer",
        keys: &[LOGIN, FILES, &["pid_file"]],
        build: |settings| {
            let default = Nginx::default();
            let include_dir = settings.folder("include_dir", nginx::INCLUDE_DIR)?;
            let program = Nginx {
                reload_cmd: settings.command("reload_cmd")?.unwrap_or(default.reload_cmd),
                test_cmd: settings.command("test_cmd")?.unwrap_or(default.test_cmd),
                pid_file: settings.text("pid_file", "a path")?.map(str::to_owned),
                include_dir: include_dir.clone(),
            };
            settings.pools_in_files(include_dir, Arc::new(program))
        },
    },
    Backend {
        short_name: "varnish",
        dotted_name: "varnish.VarnishBalancer",
        keys: &[
            LOGIN,
            FILES,
            &["main_pool_file", "pool_file_prefix", "vcl_file", "varnishadm_cmd", "varnishstat_cmd"],
        ],
        build: |settings| {
            let default = Varnish::default();
            let include_dir = settings.folder("include_dir", varnish::INCLUDE_DIR)?;
            let program = Varnish {
                varnishadm_cmd: settings.command("varnishadm_cmd")?.unwrap_or(default.varnishadm_cmd),
                varnishstat_cmd: settings.command("varnishstat_cmd")?.unwrap_or(default.varnishstat_cmd),
                vcl_file: settings.folder("vcl_file", &default.vcl_file)?,
                reload_cmd: settings.command("reload_cmd")?,
                test_cmd: settings.command("test_cmd")?,
                include_dir: include_dir.clone(),
                main_pool_file: settings.file_name("main_pool_file", &default.main_pool_file)?,
                pool_file_prefix: settings.file_name("pool_file_prefix", &default.pool_file_prefix)?,
            };
            settings.pools_in_files(include_dir, Arc::new(program))
        },
    },
    Backend {
        short_name: "haproxy",
        dotted_name: "haproxy.HaproxyBalancer",
        keys: &[LOGIN, FILES, on_hosts::HAPROXY],
        build: |settings| settings.haproxy(),
    },
    Backend {
        short_name: "caddy",
        dotted_name: "caddy.CaddyBalancer",
        keys: &[LOGIN, FILES, on_hosts::CADDY],
        build: |settings| settings.caddy(),
    },
    Backend {
        short_name: "apache",
        dotted_name: "apache.ApacheBalancer",
        keys: &[LOGIN, FILES, on_hosts::APACHE],
        build: |settings| settings.apache(),
    },
    Backend {
        short_name: "stingray",
        dotted_name: "stingray.StingrayBalancer",
        keys: &[without_files::STINGRAY],
        build: |settings| settings.stingray(),
    },
    Backend {
        short_name: "zxtm",
        dotted_name: "zxtm.ZXTMBalancer",
        keys: &[without_files::STINGRAY],
        build: |settings| settings.stingray(),
    },
    Backend {
        short_name: "chained",
        dotted_name: "chained.ChainedBalancer",
        keys: &[&["BALANCERS"]],
        build: |settings| settings.chained(),
    },
    Backend {
        short_name: "exec",
        dotted_name: "exec.ExecBalancer",
        keys: &[without_files::EXEC],
        build: |settings| settings.exec(),
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

/// The keys of one balancer.
struct Settings<'a> {
    balancer: &'a str,
    keys: &'a Mapping,
}

impl<'a> Settings<'a> {
    fn bad(&self, key: &'static str, expected: &'static str, found: impl Into<String>) -> ConfigError {
        ConfigError::BadValue { balancer: self.balancer.to_owned(), key, expected, found: found.into() }
    }

    /// What a key has; a key without a value is like no key.
    fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &'static str, expected: &'static str) -> Result<Option<&'a str>, ConfigError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(other) => Err(self.bad(key, expected, kind(other))),
        }
    }

    fn required_text(&self, key: &'static str, expected: &'static str) -> Result<&'a str, ConfigError> {
        self.text(key, expected)?.ok_or_else(|| self.bad(key, expected, "nothing"))
    }

    fn command(&self, key: &'static str) -> Result<Option<String>, ConfigError> {
        self.text(key, "a command").map(|text| text.map(str::to_owned))
    }

    /// A path that does not depend on where we are.
    fn folder(&self, key: &'static str, default: &str) -> Result<String, ConfigError> {
        let expected = "a path, beginning with a slash";
        let folder = self.text(key, expected)?.unwrap_or(default);
        if !folder.starts_with('/') || folder.trim_matches('/').is_empty() {
            return Err(self.bad(key, expected, format!("{folder:?}")));
        }
        Ok(folder.to_owned())
    }

    /// A plain file name, for a file in a folder that another key names.
    fn file_name(&self, key: &'static str, default: &str) -> Result<String, ConfigError> {
        let expected = "a file name of letters, digits, '_', '.' and '-'";
        let name = self.text(key, expected)?.unwrap_or(default);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if name.starts_with(['.', '-']) || !name.chars().all(is_plain) {
            return Err(self.bad(key, expected, format!("{name:?}")));
        }
        Ok(name.to_owned())
    }

    fn seconds(&self, key: &'static str, value: &Value) -> Result<Duration, ConfigError> {
        let time = value.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        time.filter(|time| *time <= Duration::from_secs(7 * 24 * 3600))
            .ok_or_else(|| self.bad(key, "a number of seconds, at most a week", kind(value)))
    }

    /// A backend whose pools are files in this folder of its hosts.
    fn pools_in_files(
        &self,
        include_dir: String,
        program: Arc<dyn Program>,
    ) -> Result<Arc<dyn Balancer>, ConfigError> {
        let mut settings = FileBalancerSettings { include_dir, ..FileBalancerSettings::default() };
        settings.grace_period = match self.value("grace_period") {
            Some(value) => Some(self.seconds("grace_period", value)?),
            None => None,
        };
        let expected = "a mapping of pools and seconds";
        match self.value("grace_periods") {
            None => {}
            Some(Value::Mapping(pools)) => {
                for (pool, seconds) in pools {
                    let name = pool.as_str().and_then(|pool| pool.parse::<PoolName>().ok());
                    let name = name.ok_or_else(|| self.bad("grace_periods", expected, kind(pool)))?;
                    settings.grace_periods.insert(name, self.seconds("grace_periods", seconds)?);
                }
            }
            Some(other) => return Err(self.bad("grace_periods", expected, kind(other))),
        }
        Ok(Arc::new(FileBalancer::new(self.balancer, settings, self.sites()?, program)))
    }

    /// The hosts. `localhost` without a user is this machine itself; all others are reached over SSH.
    fn sites(&self) -> Result<Vec<Site>, ConfigError> {
        let tmpdir = self.folder("tmpdir", "/tmp")?;
        let login = self.login()?;
        let expected = "a list of hosts, each NAME or NAME:PORT";
        let mut names: Vec<&str> = Vec::new();
        match self.value("hosts") {
            None => names.push("localhost"),
            Some(Value::Sequence(hosts)) if !hosts.is_empty() => {
                for host in hosts {
                    let name = host.as_str().ok_or_else(|| self.bad("hosts", expected, kind(host)))?;
                    if names.contains(&name) {
                        return Err(self.bad("hosts", expected, format!("{name:?} twice")));
                    }
                    names.push(name);
                }
            }
            Some(Value::Sequence(_)) => return Err(self.bad("hosts", expected, "an empty list")),
            Some(other) => return Err(self.bad("hosts", expected, kind(other))),
        }
        let mut sites = Vec::new();
        for name in names {
            if name == "localhost" && login.user.is_none() {
                let sudo = login.sudo.unwrap_or(false);
                sites.push(Site::local(name, sudo).with_tmpdir(&tmpdir));
                continue;
            }
            let mut login = login.clone();
            let host = match (name.parse::<HostName>(), name.parse::<Node>()) {
                (Ok(host), _) => host.to_string(),
                (_, Ok(Node { host, port })) => {
                    login.port = Some(port);
                    host.to_string()
                }
                _ => return Err(self.bad("hosts", expected, format!("{name:?}"))),
            };
            // Whoever is not root needs it to write where root does; who does not can say so.
            login.sudo.get_or_insert(true);
            sites.push(Site::over_ssh(name, SshHost::new(host, login)).with_tmpdir(&tmpdir));
        }
        Ok(sites)
    }

    fn login(&self) -> Result<SshSettings, ConfigError> {
        let mut login = Mapping::new();
        for key in LOGIN.iter().copied() {
            match self.value(key) {
                None => {}
                // Not with what is there: that would be in everybody's log.
                Some(value)
                    if !value.is_string() && ["password", "passphrase", "sudo_password"].contains(&key) =>
                {
                    return Err(self.bad(
                        key,
                        "a text; put it in quotes",
                        "something that is not shown here",
                    ));
                }
                Some(value) => {
                    login.insert(key.into(), value.clone());
                }
            }
        }
        serde_yaml::from_value(Value::Mapping(login)).map_err(|error| ConfigError::Ssh {
            balancer: self.balancer.to_owned(),
            reason: error.to_string(),
        })
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
        let known = backend.keys.concat();
        if key != "BACKEND" && !known.contains(&key.as_str()) {
            let (balancer, backend) = (name.to_owned(), backend.short_name);
            return Err(ConfigError::UnknownKey { balancer, backend, key, known });
        }
    }
    (backend.build)(&Settings { balancer: name, keys: config })
}

fn is_balancer(value: &Value) -> bool {
    value.as_mapping().is_some_and(|keys| keys.contains_key("BACKEND"))
}

/// Reads the `BALANCERS` of a settings file; its other keys are other parts' business.
pub fn load_config(path: &Path) -> Result<BTreeMap<String, Arc<dyn Balancer>>, ConfigError> {
    let settings = yaml::parse_mapping(&path.display().to_string(), &yaml::read_file(path)?)?;
    match settings.get("BALANCERS") {
        Some(Value::Mapping(balancers)) => from_config(balancers),
        // Some examples of the manual have balancers beside an empty key, and not below it.
        Some(Value::Null) if settings.values().any(is_balancer) => {
            let beside = settings.iter().filter(|(_, value)| is_balancer(value));
            from_config(&beside.map(|(name, value)| (name.clone(), value.clone())).collect())
        }
        None | Some(Value::Null) => Err(ConfigError::NoBalancers(path.to_owned())),
        Some(other) => Err(ConfigError::NotAMapping {
            place: format!("{}: BALANCERS", path.display()),
            found: kind(other),
        }),
    }
}

#[cfg(test)]
mod tests {
    use vr_common::exit::chain;

    use super::*;

    pub(super) fn load(text: &str) -> Result<BTreeMap<String, Arc<dyn Balancer>>, ConfigError> {
        from_config(&yaml::parse_mapping("settings", text).unwrap())
    }

    pub(super) fn error(text: &str) -> String {
        chain(&load(text).err().unwrap())
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
            format!("BALANCERS.front: unknown BACKEND \"nginy\", expected one of {}", known_backends())
        );
        assert_eq!(
            error("front: {}"),
            format!("BALANCERS.front: expected BACKEND to be one of {}", known_backends())
        );
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

    /// The blocks of settings in the manual's chapter *Balancers*, letter for letter, but for two: the hosts of Varnish are a
    /// block of their own there, and the dummy's is Python, with `=` for the first colon.
    #[test]
    fn the_manuals_blocks_are_taken_as_they_are() {
        const NGINX: &str = "\
BALANCERS:
  my_nginx_balancer:
    BACKEND: vr.common.balancer.nginx.NginxBalancer
    user: some_user_with_sudo
    password: some_password
    include_dir: /etc/nginx/sites-enabled/
    reload_cmd: /etc/init.d/nginx reload
    tmpdir: /tmp
    hosts:
      - frontend1.mydomain.com
      - frontend2.mydomain.com
";
        const VARNISH: &str = "\
BALANCERS:
  my_varnish_balancer:
    BACKEND: vr.common.balancer.varnish.VarnishBalancer
    user: some_user_with_sudo
    password: some_password
    include_dir: /etc/varnish/
    reload_cmd: /etc/init.d/varnish reload
    tmpdir: /tmp
    hosts:
    - cache1.mydomain.com
    - cache2.mydomain.com
";
        const STINGRAY: &str = "\
BALANCERS:
my_stingray_balancer:
  BACKEND: vr.common.balancer.zxtm.ZXTMBalancer
  URL: https://traffic.yougov.local:9090/soap
  USER: api_user
  PASSWORD: api_user_password
  POOL_PREFIX: vr-
";
        const SEVERAL: &str = "\
BALANCERS:
my_varnish_balancer:
  BACKEND: vr.common.balancer.varnish.VarnishBalancer
  user: some_user_with_sudo
  password: some_password
  hosts:
  - varnish.mydomain.com
my_nginx_balancer:
  BACKEND: vr.common.balancer.nginx.NginxBalancer
  user: some_user_with_sudo
  password: some_password
  hosts:
  - nginx.mydomain.com
";
        const DUMMY: &str = "\
BALANCERS: {
    'default': {
        'BACKEND': 'vr.common.balancer.dummy.DummyBalancer',
    }
}
";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.yaml");
        for (block, names) in [
            (NGINX, &["my_nginx_balancer"][..]),
            (VARNISH, &["my_varnish_balancer"]),
            (STINGRAY, &["my_stingray_balancer"]),
            (SEVERAL, &["my_nginx_balancer", "my_varnish_balancer"]),
            (DUMMY, &["default"]),
        ] {
            std::fs::write(&path, block).unwrap();
            let balancers = load_config(&path).unwrap_or_else(|error| panic!("{}: {block}", chain(&error)));
            assert_eq!(balancers.keys().collect::<Vec<_>>(), names, "{block}");
        }
        std::fs::write(&path, "BALANCERS:\na: {BACKEND: nginy}\n").unwrap();
        let error = load_config(&path).err().unwrap().to_string();
        assert!(error.starts_with("BALANCERS.a: unknown BACKEND"), "{error}");
    }

    #[test]
    fn a_pool_can_have_a_grace_period_of_its_own() {
        let balancers = load("a: {BACKEND: nginx, grace_period: 5, grace_periods: {slow: 120}}").unwrap();
        let period =
            |pool: &str| balancers["a"].grace_period(&pool.parse().unwrap()).map(|period| period.as_secs());
        assert_eq!((period("slow"), period("other")), (Some(120), Some(5)));
    }

    #[test]
    fn what_is_wrong_with_hosts_and_logins_is_told_without_secrets() {
        let nginx = |more: &str| error(&format!("a: {{BACKEND: nginx, {more}}}"));
        assert_eq!(
            nginx("hosts: []"),
            "BALANCERS.a.hosts: expected a list of hosts, each NAME or NAME:PORT, found an empty list"
        );
        assert!(nginx("hosts: [\"a b\"]").ends_with("found \"a b\""));
        assert!(nginx("hosts: [a, a]").ends_with("found \"a\" twice"));
        assert!(nginx("hosts: web1").contains("expected a list of hosts"));
        assert!(nginx("include_dir: etc").contains("beginning with a slash, found \"etc\""));
        assert!(nginx("grace_period: soon").contains("a number of seconds"));
        assert!(nginx("grace_periods: {a/b: 1}").contains("a mapping of pools and seconds"));
        assert!(nginx("host_key_check: maybe").starts_with("BALANCERS.a: "));
        let leaked = nginx("user: me, password: 4711");
        assert!(
            leaked.starts_with("BALANCERS.a.password: expected a text") && !leaked.contains("4711"),
            "{leaked}"
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
