//! The block `HOSTS` of `settings.yaml`: what the server has to know to talk to hosts, for all of them and for some.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};
use vr_common::names::HostName;
use vr_common::secret::Secret;
use vr_ssh::SshSettings;

/// How to talk to one host, or to all that nothing else is said of.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostSettings {
    /// The host's files. An agent has its own idea of them; this is for Supervisor's hosts.
    pub root: PathBuf,
    /// The runner on the host: a path, or a name to be found in the `PATH` of both supervisord and SSH's sessions.
    pub vrun: String,
    /// How often the host is cleaned up, in seconds; 0 for never.
    pub clean_up_seconds: u64,
    /// Its agent.
    pub agent: AgentSettings,
    /// Its Supervisor.
    pub supervisor: SupervisorSettings,
    /// SSH to it, which is needed for all that changes files where there is no agent.
    pub ssh: SshSettings,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/apps"),
            vrun: "vrun".to_owned(),
            clean_up_seconds: 4 * 3600,
            agent: AgentSettings::default(),
            supervisor: SupervisorSettings::default(),
            ssh: SshSettings::default(),
        }
    }
}

/// How to talk to vr-agent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentSettings {
    /// Where it listens, unless the host has an `agent_url`.
    pub port: u16,
    /// Holds the token. Read again when an agent refuses it.
    pub token_file: Option<PathBuf>,
    /// The authorities whose certificates are trusted, instead of those that this machine trusts.
    pub ca_file: Option<PathBuf>,
    /// The one certificate that is trusted, whoever signed it and whatever its name.
    pub fingerprint: Option<Fingerprint>,
    /// This server's certificate, for agents that want one.
    pub certificate_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            port: 9002,
            token_file: None,
            ca_file: None,
            fingerprint: None,
            certificate_file: None,
            key_file: None,
        }
    }
}

/// How to talk to Supervisor.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupervisorSettings {
    /// Where its `[inet_http_server]` listens.
    pub port: u16,
    /// Its user.
    pub username: Option<String>,
    /// That one's password.
    pub password: Option<Secret>,
    /// How often it is asked what it does, in seconds, while nothing is pushed.
    pub poll_seconds: u64,
}

impl Default for SupervisorSettings {
    fn default() -> Self {
        Self { port: 9001, username: None, password: None, poll_seconds: 5 }
    }
}

/// The SHA-256 sum of a certificate, as `openssl x509 -noout -fingerprint -sha256` prints it, with or without colons.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Fingerprint(pub [u8; 32]);

impl TryFrom<String> for Fingerprint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.replace(':', "");
        let bytes = hex::decode(&digits).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| {
            format!("{text:?} is no fingerprint: expected 64 hexadecimal digits, with or without colons")
        })
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<_> = self.0.iter().map(|byte| format!("{byte:02X}")).collect();
        f.write_str(&pairs.join(":"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The whole block: the keys of [`HostSettings`], and `overrides` with the same keys for hosts by name.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(try_from = "Mapping")]
pub struct HostsSettings {
    all: HostSettings,
    some: BTreeMap<String, HostSettings>,
}

impl HostsSettings {
    /// What counts for a host.
    pub fn of(&self, host: &str) -> &HostSettings {
        self.some.get(host).unwrap_or(&self.all)
    }

    /// All that is said, and of whom.
    pub fn each(&self) -> impl Iterator<Item = &HostSettings> {
        std::iter::once(&self.all).chain(self.some.values())
    }
}

impl TryFrom<Mapping> for HostsSettings {
    type Error = String;

    fn try_from(mut all: Mapping) -> Result<Self, String> {
        let overrides = match all.remove("overrides") {
            None | Some(Value::Null) => Mapping::new(),
            Some(Value::Mapping(overrides)) => overrides,
            Some(_) => return Err("HOSTS.overrides: expected a mapping of hosts' names".to_owned()),
        };
        let mut some = BTreeMap::new();
        for (host, own) in overrides {
            let name = match &host {
                Value::String(name) => {
                    name.parse::<HostName>().map_err(|e| format!("HOSTS.overrides: {e}"))?.to_string()
                }
                _ => return Err("HOSTS.overrides: expected the names of hosts as keys".to_owned()),
            };
            let Value::Mapping(own) = own else {
                return Err(format!("HOSTS.overrides.{name}: expected a mapping"));
            };
            let mut merged = all.clone();
            merge(&mut merged, own);
            let settings = read(merged).map_err(|e| format!("HOSTS.overrides.{name}: {e}"))?;
            some.insert(name, settings);
        }
        Ok(Self { all: read(all).map_err(|e| format!("HOSTS: {e}"))?, some })
    }
}

/// Puts values over others, mappings key by key.
fn merge(under: &mut Mapping, over: Mapping) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Mapping(below)), Value::Mapping(above)) => merge(below, above),
            (_, value) => drop(under.insert(key, value)),
        }
    }
}

fn read(mapping: Mapping) -> Result<HostSettings, String> {
    // A part that is written but empty, as while somebody is still thinking, is the same as none.
    let mapping: Mapping = mapping.into_iter().filter(|(_, value)| !value.is_null()).collect();
    // The same as below, but with the part's name in front of what is wrong with it.
    part::<AgentSettings>(&mapping, "agent")?;
    part::<SupervisorSettings>(&mapping, "supervisor")?;
    part::<SshSettings>(&mapping, "ssh")?;
    let settings: HostSettings =
        serde_yaml::from_value(Value::Mapping(mapping)).map_err(|e| e.to_string())?;
    let HostSettings { root, vrun, agent, supervisor, .. } = &settings;
    if !root.is_absolute() {
        return Err(format!("root: {} is not an absolute path", root.display()));
    }
    if vrun.is_empty() || vrun.chars().any(|c| c.is_control()) {
        return Err("vrun: expected the path of a program".to_owned());
    }
    if agent.certificate_file.is_some() != agent.key_file.is_some() {
        return Err("agent: certificate_file and key_file only make sense together".to_owned());
    }
    if agent.ca_file.is_some() && agent.fingerprint.is_some() {
        return Err("agent: ca_file and fingerprint exclude each other".to_owned());
    }
    if supervisor.username.is_some() != supervisor.password.is_some() {
        return Err("supervisor: username and password only make sense together".to_owned());
    }
    if supervisor.poll_seconds == 0 {
        return Err("supervisor.poll_seconds: expected at least 1".to_owned());
    }
    Ok(settings)
}

fn part<T: DeserializeOwned>(mapping: &Mapping, key: &str) -> Result<(), String> {
    match mapping.get(key) {
        Some(value) => {
            serde_yaml::from_value::<T>(value.clone()).map(drop).map_err(|e| format!("{key}: {e}"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<HostsSettings, String> {
        vr_common::yaml::parse("settings", text).map_err(|e| e.to_string())
    }

    #[test]
    fn a_host_may_have_settings_of_its_own() {
        let settings = load(
            "root: /srv/apps\nsupervisor: {username: velo, password: hunter2}\n\
             overrides:\n  web1: {supervisor: {port: 9101}}\n  web2: {root: /apps}\n",
        )
        .unwrap();
        let web1 = settings.of("web1");
        assert_eq!(web1.root, PathBuf::from("/srv/apps"));
        assert_eq!((web1.supervisor.port, web1.supervisor.username.as_deref()), (9101, Some("velo")));
        assert_eq!(settings.of("web2").root, PathBuf::from("/apps"));
        assert_eq!(settings.of("other").supervisor.port, 9001);
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert_eq!(load("{}").unwrap(), HostsSettings::default());
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_named() {
        for (text, named) in [
            ("roots: /apps", "`roots`"),
            ("agent: {tokenfile: x}", "`tokenfile`"),
            ("overrides: {web1: {agent: {prot: 1}}}", "HOSTS.overrides.web1: agent: unknown field `prot`"),
            ("overrides: {\"a b\": {}}", "a b"),
            ("root: apps", "absolute"),
            ("supervisor: {username: x}", "password"),
            ("agent: {key_file: x}", "certificate_file"),
            ("agent: {fingerprint: abc}", "64 hexadecimal digits"),
        ] {
            let message = load(text).unwrap_err();
            assert!(message.contains(named), "{text}: {message}");
        }
        let sum = "AB:".repeat(31) + "cd";
        let settings = load(&format!("agent: {{fingerprint: '{sum}'}}")).unwrap();
        assert_eq!(settings.of("x").agent.fingerprint.as_ref().unwrap().to_string(), sum.to_uppercase());
    }
}
