//! How a host is reached and who logs in, as operators write it.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Unexpected, Visitor};
use vr_common::secret::Secret;

/// The settings of a host, or of all. What is not set is as the `ssh` program has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SshSettings {
    /// Who logs in; the user of this process unless set.
    pub user: Option<String>,
    /// The port; 22 unless set.
    pub port: Option<u16>,
    /// The private key; `~/.ssh/id_ed25519`, `id_ecdsa` and `id_rsa` unless set.
    pub key_file: Option<PathBuf>,
    /// What the private key is encrypted with.
    pub passphrase: Option<Secret>,
    /// The socket of an ssh-agent; `$SSH_AUTH_SOCK` unless set.
    pub agent_socket: Option<PathBuf>,
    /// The user's password, for a login without a key.
    pub password: Option<Secret>,
    /// The known host keys; `~/.ssh/known_hosts` and then `/etc/ssh/ssh_known_hosts` unless set.
    pub known_hosts: Option<PathBuf>,
    /// What happens to a host whose key is not known.
    pub host_key_check: Option<HostKeyCheck>,
    /// Whether commands that need root use sudo; no unless set. For root it means nothing.
    pub sudo: Option<bool>,
    /// The password for sudo, when it asks; that of the login unless set.
    pub sudo_password: Option<Secret>,
    /// How long the connection and the exchange of keys may take; ten seconds unless set.
    #[serde(deserialize_with = "time")]
    pub connect_timeout: Option<Duration>,
    /// How often a silent host is asked whether it is still there; fifteen seconds unless set. After three times
    /// without an answer it is not.
    #[serde(deserialize_with = "time")]
    pub keepalive: Option<Duration>,
    /// How long an unused connection is kept; five minutes unless set.
    #[serde(deserialize_with = "time")]
    pub idle_timeout: Option<Duration>,
}

/// What happens to a host whose key is not known. A key that changed is never accepted, but with [`Self::Off`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKeyCheck {
    /// It is refused.
    #[default]
    Strict,
    /// The first key that it shows is written to the known ones.
    AcceptNew,
    /// Nothing is checked: anybody in between can read and change everything, passwords as well.
    Off,
}

/// How a command becomes root's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sudo {
    /// It does not.
    No,
    /// By a sudo that asks for nothing.
    WithoutPassword,
    /// By a sudo that may ask for this.
    WithPassword(Secret),
}

impl SshSettings {
    /// These settings, and for what they leave out those of somebody else, such as the ones for all hosts.
    pub fn or(self, other: &Self) -> Self {
        let other = other.clone();
        Self {
            user: self.user.or(other.user),
            port: self.port.or(other.port),
            // A passphrase belongs to its key.
            passphrase: self.passphrase.or(if self.key_file.is_some() { None } else { other.passphrase }),
            key_file: self.key_file.or(other.key_file),
            agent_socket: self.agent_socket.or(other.agent_socket),
            password: self.password.or(other.password),
            known_hosts: self.known_hosts.or(other.known_hosts),
            host_key_check: self.host_key_check.or(other.host_key_check),
            sudo: self.sudo.or(other.sudo),
            sudo_password: self.sudo_password.or(other.sudo_password),
            connect_timeout: self.connect_timeout.or(other.connect_timeout),
            keepalive: self.keepalive.or(other.keepalive),
            idle_timeout: self.idle_timeout.or(other.idle_timeout),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(22)
    }

    /// Who logs in.
    pub fn user(&self) -> String {
        let uid = nix::unistd::getuid();
        let own = || nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        self.user.clone().or_else(own).unwrap_or_else(|| uid.to_string())
    }

    /// How a command becomes root's.
    pub fn sudo(&self) -> Sudo {
        if self.sudo != Some(true) || self.user() == "root" {
            return Sudo::No;
        }
        let password = self.sudo_password.as_ref().or(self.password.as_ref());
        password.map_or(Sudo::WithoutPassword, |password| Sudo::WithPassword(password.clone()))
    }

    /// The files with known host keys, the one to add to first.
    pub(crate) fn known_hosts(&self) -> Vec<PathBuf> {
        match &self.known_hosts {
            Some(file) => vec![at_home(file)],
            None => vec![at_home(Path::new("~/.ssh/known_hosts")), PathBuf::from("/etc/ssh/ssh_known_hosts")],
        }
    }

    /// The private keys, and whether somebody asked for just these.
    pub(crate) fn key_files(&self) -> (Vec<PathBuf>, bool) {
        match &self.key_file {
            Some(file) => (vec![at_home(file)], true),
            None => {
                let usual = ["~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"];
                (usual.iter().map(|file| at_home(Path::new(file))).collect(), false)
            }
        }
    }

    /// The socket of the ssh-agent, if there is one.
    pub(crate) fn agent_socket(&self) -> Option<PathBuf> {
        let own = self.agent_socket.as_deref().map(at_home);
        own.or_else(|| env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from))
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout.unwrap_or(Duration::from_secs(10))
    }

    pub(crate) fn keepalive(&self) -> Duration {
        // Never none: without it, a host that is gone would be found out by nobody.
        self.keepalive.unwrap_or(Duration::from_secs(15)).max(Duration::from_secs(1))
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        self.idle_timeout.unwrap_or(Duration::from_secs(300))
    }
}

fn at_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// Reads seconds, or a text such as `10s` or `5m`.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    struct Time;
    impl Visitor<'_> for Time {
        type Value = Option<Duration>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("seconds, or a time such as 10s or 5m")
        }

        fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Self::Value, E> {
            Ok(Some(Duration::from_secs(seconds)))
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let time = humantime::parse_duration(text);
            time.map(Some).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    let time = deserializer.deserialize_any(Time)?;
    match time {
        Some(Duration::ZERO) => Err(D::Error::custom("a time must be longer than zero")),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_operators_write_is_read_and_secrets_do_not_show() {
        let text = "user: deploy\npassword: hunter2\nkey_file: ~/keys/a\npassphrase: open\nport: 2222\n\
            known_hosts: /k\nhost_key_check: accept-new\nsudo: true\nsudo_password: hunter3\nconnect_timeout: 3\n\
            idle_timeout: 2m\n";
        let settings: SshSettings = serde_yaml::from_str(text).unwrap();
        assert_eq!((settings.user().as_str(), settings.port()), ("deploy", 2222));
        assert_eq!(settings.host_key_check, Some(HostKeyCheck::AcceptNew));
        assert_eq!(settings.connect_timeout(), Duration::from_secs(3));
        assert_eq!(settings.idle_timeout(), Duration::from_secs(120));
        assert_eq!(settings.sudo(), Sudo::WithPassword(Secret::new("hunter3")));
        assert_eq!(settings.key_files().0, [env::home_dir().unwrap().join("keys/a")]);
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hunter") && !shown.contains("open"), "{shown}");
    }

    #[test]
    fn a_misspelt_key_is_refused_and_named() {
        let refused = |text: &str| serde_yaml::from_str::<SshSettings>(text).unwrap_err().to_string();
        assert!(refused("pasword: x").contains("`pasword`"));
        assert!(refused("host_key_check: never").contains("`never`"));
        assert!(refused("connect_timeout: soon").contains("such as 10s"));
        assert!(refused("connect_timeout: 0").contains("longer than zero"));
    }

    #[test]
    fn a_hosts_own_settings_go_first() {
        let read = |text: &str| serde_yaml::from_str::<SshSettings>(text).unwrap();
        let all = read("{user: deploy, key_file: /a, passphrase: x, sudo: true, password: y}");
        let own = read("{port: 23, key_file: /b, sudo: false}").or(&all);
        assert_eq!(
            (own.port(), own.user().as_str(), own.key_file.as_deref()),
            (23, "deploy", Some(Path::new("/b")))
        );
        assert_eq!((own.passphrase.clone(), own.sudo()), (None, Sudo::No));
        assert_eq!(SshSettings::default().or(&all).sudo(), Sudo::WithPassword(Secret::new("y")));
        let root = SshSettings { user: Some("root".to_owned()), ..SshSettings::default() }.or(&all);
        assert_eq!(root.sudo(), Sudo::No);
    }
}
