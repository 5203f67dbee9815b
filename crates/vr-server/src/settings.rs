//! What an operator may choose: flags of `vr-server up`, and the file `settings.yaml` in the data folder.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_yaml::Mapping;
use thiserror::Error;
use vr_common::names::HostName;
use vr_common::secret::Secret;
use vr_common::yaml::{self, YamlError};

use crate::hosts::HostsSettings;
use crate::store::PortRange;

/// The flags of `vr-server up`.
#[derive(Debug, Clone, Args)]
pub struct UpFlags {
    /// The folder that holds everything: database, builds, procs, logs. Made when missing.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where the API and the page are served; port 0 takes any free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Where hosts fetch builds from, when it is not the address of --listen.
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// The address on which the built-in proxy listens for the pools' traffic.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub route_host: IpAddr,
    /// The ports that the built-in proxy gives to pools, one each.
    #[arg(long, value_name = "FIRST-LAST", default_value = "8100-8199")]
    pub route_ports: PortRange,
    /// A proxy in front of this machine's, whose X-Forwarded-For, -Proto and -Host are believed. May be repeated.
    /// A proxy that runs already is told when it is started the next time, after `down`.
    #[arg(long, value_name = "ADDRESS")]
    pub trusted_proxy: Vec<IpAddr>,
    /// The ports that procs get.
    #[arg(long, value_name = "FIRST-LAST", default_value = "5000-5999")]
    pub proc_ports: PortRange,
    /// The name of this machine among the hosts; it must resolve, as the balancer sends traffic to it.
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    pub host_name: HostName,
    /// Seconds that a node may take to finish its requests once it is out of its pool, unless its balancer's settings say
    /// how long.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain_grace: u64,
}

/// `settings.yaml` in the data folder. A missing file is an empty one.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SettingsFile {
    /// Balancers by name, as the manual writes them; without it, `default` is the built-in proxy.
    #[serde(rename = "BALANCERS")]
    pub balancers: Option<Mapping>,
    /// How to talk to hosts.
    #[serde(rename = "HOSTS")]
    pub hosts: HostsSettings,
    /// The Redis on whose channels procs' changes come and go.
    #[serde(rename = "EVENTS_PUBSUB_URL")]
    pub events_pubsub_url: Option<Secret>,
}

/// Settings that cannot be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file is not what was expected.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// A balancer is described wrongly.
    #[error("{}: {source}", path.display())]
    Balancers {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: vr_balancer::ConfigError,
    },
    /// What is said of hosts cannot be used.
    #[error("{}: {message}", path.display())]
    Hosts {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A flag does not make sense.
    #[error("{flag}: {message}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What is wrong.
        message: String,
    },
}

impl SettingsFile {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = yaml::read_file(path)?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        Ok(yaml::parse(&path.display().to_string(), &text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.yaml");
        assert_eq!(SettingsFile::load(&path).unwrap(), SettingsFile::default());
        std::fs::write(&path, "BALANCER: {}\n").unwrap();
        let message = SettingsFile::load(&path).unwrap_err().to_string();
        assert!(message.contains("settings.yaml") && message.contains("`BALANCER`"), "{message}");
    }
}
