//! The proxy's configuration file: listeners, certificates, routes, pools' options, logs and limits.
//!
//! Which pools and nodes there are is not in it; that is what the control socket changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use thiserror::Error;
use vr_common::names::PoolName;
use vr_common::yaml::{self, YamlError};

use super::options::{
    AccessLogOptions, CertificateFiles, HostPattern, ListenerOptions, MinTls, PoolOptions,
    deserialize_networks,
};

/// Why a configuration is of no use.
#[derive(Debug, Error)]
pub enum ConfigurationError {
    /// The file cannot be read, or is no configuration.
    #[error(transparent)]
    File(#[from] YamlError),
    /// What it says does not fit together.
    #[error("{}: {reason}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What, where, and what was expected.
        reason: String,
    },
}

/// What the file holds, and what the command line adds to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Configuration {
    /// Addresses that clients connect to, beside the pools' own ones.
    pub listeners: Vec<ListenerOptions>,
    /// For the listeners with TLS; the first one is for clients that name no host, or an unknown one.
    pub certificates: Vec<CertificateFiles>,
    /// The oldest TLS that clients may speak.
    pub min_tls: MinTls,
    /// Which host's requests go to which pool, on listeners without a pool of their own.
    pub routes: BTreeMap<HostPattern, PoolName>,
    /// Options of pools, whether these exist yet or not.
    pub pools: BTreeMap<PoolName, PoolOptions>,
    /// Where requests are logged; nowhere if there is none.
    pub access_log: Option<AccessLogOptions>,
    /// Where Prometheus may ask for metrics.
    pub metrics: Option<SocketAddr>,
    /// Proxies in front of this one whose `X-Forwarded-…` are believed.
    #[serde(deserialize_with = "deserialize_networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// The most open connections of clients.
    pub max_connections: Option<usize>,
    /// The most of them from one address that is not a trusted proxy.
    pub max_connections_per_client: Option<u32>,
    /// The slowest that a client may send a body, in bytes a second, once it has used up the time-out for idle ones.
    pub min_body_rate: Option<u64>,
    /// The most requests that one HTTP/2 connection may have open.
    pub max_streams: Option<u32>,
}

impl Configuration {
    /// Reads a file. Relative paths in it start at its folder.
    pub fn read(path: &Path) -> Result<Self, ConfigurationError> {
        let text = yaml::read_file(path)?;
        let name = path.display().to_string();
        // A file of comments is an empty configuration.
        let mut read: Self = yaml::parse::<Option<Self>>(&name, &text)?.unwrap_or_default();
        let base = path.parent().unwrap_or(Path::new(""));
        read.files().for_each(|file| *file = base.join(&*file));
        read.problem()
            .map_or(Ok(read), |reason| Err(ConfigurationError::Unfit { path: path.to_owned(), reason }))
    }

    fn files(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let certificates =
            self.certificates.iter_mut().flat_map(|pair| [&mut pair.certificate, &mut pair.key]);
        let pages = self.pools.values_mut().filter_map(|pool| pool.maintenance_page.as_mut());
        let log = self.access_log.iter_mut().map(|log| &mut log.file).filter(|file| **file != Path::new("-"));
        certificates.chain(pages).chain(log)
    }

    fn problem(&self) -> Option<String> {
        for (name, pool) in &self.pools {
            if let Some(problem) = pool.problem() {
                return Some(format!("pools.{name}: {problem}"));
            }
        }
        for listener in &self.listeners {
            let address = listener.address;
            if address.port() == 0 {
                return Some(format!("listener {address}: expected a port from 1 to 65535"));
            }
            if listener.tls && self.certificates.is_empty() {
                return Some(format!("listener {address} has tls, but there are no certificates"));
            }
            if listener.tls && listener.redirect_to_https.is_some() {
                return Some(format!(
                    "listener {address} has tls and redirect_to_https, expected one of them"
                ));
            }
            if listener.redirect_to_https == Some(0) {
                return Some(format!("listener {address}: redirect_to_https is a port from 1 to 65535"));
            }
        }
        let zero = [
            ("max_connections", self.max_connections == Some(0)),
            ("max_connections_per_client", self.max_connections_per_client == Some(0)),
            ("max_streams", self.max_streams == Some(0)),
        ];
        zero.into_iter().find(|(_, is_zero)| *is_zero).map(|(name, _)| format!("{name} must be at least 1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::options::{Balance, HealthCheck, NodeProtocol};

    fn read(text: &str) -> Result<Configuration, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.yaml");
        std::fs::write(&path, text).unwrap();
        let shown =
            |error: ConfigurationError| error.to_string().replace(&path.display().to_string(), "FILE");
        Configuration::read(&path).map_err(shown)
    }

    #[test]
    fn a_whole_configuration_is_read() {
        let configuration = read(
            "listeners:\n\
             - {address: '0.0.0.0:80', redirect_to_https: 443}\n\
             - {address: '[::]:443', tls: true, proxy_protocol_from: [10.0.0.0/8, 192.0.2.1]}\n\
             - {address: '127.0.0.1:81', pool: shop}\n\
             certificates: [{certificate: c.pem, key: /etc/k.pem}]\n\
             min_tls: '1.3'\n\
             routes: {shop.example.org: shop, '*.example.org': web, '*': web}\n\
             pools:\n  shop:\n    balance: round-robin\n    protocol: h2\n    maintenance_page: shop.html\n    \
             health_check: {path: /ok, interval: 0.5, expect: '200,204'}\n\
             access_log: {file: '-', format: json}\n\
             metrics: 127.0.0.1:9100\n\
             trusted_proxies: [10.0.0.1]\nmax_connections: 100\n",
        )
        .unwrap();
        assert_eq!(configuration.listeners.len(), 3);
        let certificate = &configuration.certificates[0];
        assert!(certificate.certificate.is_absolute() && certificate.certificate.ends_with("c.pem"));
        assert_eq!(certificate.key, Path::new("/etc/k.pem"));
        let shop = &configuration.pools[&"shop".parse::<PoolName>().unwrap()];
        assert_eq!((shop.balance, shop.protocol), (Balance::RoundRobin, NodeProtocol::Http2));
        let check = shop.health_check.as_ref().unwrap();
        assert_eq!((check.interval.as_millis(), check.timeout.as_secs(), check.fall), (500, 2, 3));
        assert_eq!(configuration.access_log.unwrap().file, Path::new("-"));
        assert_eq!(read("# nothing\n").unwrap(), Configuration::default());
    }

    #[test]
    fn the_example_of_the_documentation_is_one() {
        let docs = include_str!("../../../../docs/balancers.md");
        let chapter = docs.split("### The configuration file").nth(1).unwrap();
        let example = chapter.split("```").nth(1).unwrap().strip_prefix("yaml\n").unwrap();
        let configuration = read(example).unwrap();
        assert_eq!((configuration.listeners.len(), configuration.routes.len()), (3, 2));
        let shop = &configuration.pools[&"shop".parse::<PoolName>().unwrap()];
        // What is said to be the default is the default.
        let check: HealthCheck = yaml::parse("check", "{path: /health, host: shop.example.org}").unwrap();
        assert_eq!(shop.health_check, Some(check));
        assert_eq!(shop.protocol, NodeProtocol::Http1);
        assert_eq!(configuration.min_tls, MinTls::default());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let error = |text: &str| read(text).unwrap_err();
        assert!(error("listener: []").contains("unknown field `listener`"), "{}", error("listener: []"));
        assert_eq!(
            error("listeners: [{address: '0.0.0.0:443', tls: true}]"),
            "FILE: listener 0.0.0.0:443 has tls, but there are no certificates"
        );
        assert_eq!(
            error("pools: {a: {health_check: {path: health}}}"),
            "FILE: pools.a: health_check.path is \"health\", expected a path such as /health"
        );
        assert!(error("pools: {a: {protocol: h2, send_proxy: v2}}").contains("send_proxy cannot be had"));
        assert!(error("routes: {'a b': x}").contains("is not a host"));
        assert_eq!(error("max_connections: 0"), "FILE: max_connections must be at least 1");
    }
}
