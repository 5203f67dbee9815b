//! What an operator may say about pools, listeners and limits, as values. Where it is said is the business of
//! `arguments` and `configuration`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use vr_common::names::PoolName;

/// The longest time that can be set.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// A number of seconds in bounds.
pub(super) fn seconds(number: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number)
        .ok()
        .filter(|time| *time > Duration::ZERO && *time <= LONGEST)
        .ok_or_else(|| "expected more than 0 seconds and at most a week".to_owned())
}

fn deserialize_seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    seconds(f64::deserialize(from)?).map_err(serde::de::Error::custom)
}

/// Reads `10.0.0.0/8`, or `10.0.0.1` for that address alone. IPv4 in IPv6 is IPv4.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let expected = || format!("{text:?} is not an IP address or a network such as 10.0.0.0/8");
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address.to_canonical())),
        Err(_) => text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| expected()),
    }
}

pub(super) fn deserialize_networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| network(text).map_err(serde::de::Error::custom)).collect()
}

/// Whether an address is in one of the networks.
pub(super) fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    !networks.is_empty() && {
        let address = address.to_canonical();
        networks.iter().any(|network| network.contains(&address))
    }
}

/// How a pool's nodes take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// The node with the fewest open requests, in turn among equals.
    #[default]
    LeastConnections,
    /// One after the other, however busy they are.
    RoundRobin,
}

/// What a pool's nodes speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum NodeProtocol {
    /// HTTP/1.1.
    #[default]
    #[serde(rename = "http/1.1", alias = "h1")]
    Http1,
    /// HTTP/2 without TLS and without asking first ("prior knowledge"), as gRPC servers do.
    #[serde(rename = "h2")]
    Http2,
}

/// A version of the PROXY protocol (haproxy's `doc/proxy-protocol.txt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ProxyVersion {
    /// One line of text.
    #[serde(rename = "v1")]
    V1,
    /// Binary.
    #[serde(rename = "v2")]
    V2,
}

/// The status codes that a check takes for an answer of a healthy node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected(Vec<(u16, u16)>);

impl Expected {
    /// Whether the code is among them.
    pub fn contains(&self, code: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&code))
    }

    /// Reads `200`, `2xx`, `200-399`, or several of them with commas.
    pub fn parse(text: &str) -> Option<Self> {
        let code = |text: &str| text.parse::<u16>().ok().filter(|code| (100..=599).contains(code));
        let item = |item: &str| -> Option<(u16, u16)> {
            if let Some(class) = item.strip_suffix("xx") {
                let first = class.parse::<u16>().ok().filter(|class| (1..=5).contains(class))? * 100;
                return Some((first, first + 99));
            }
            match item.split_once('-') {
                Some((first, last)) => Some((code(first)?, code(last)?)).filter(|(a, b)| a <= b),
                None => code(item).map(|code| (code, code)),
            }
        };
        text.split(',').map(|part| item(part.trim())).collect::<Option<_>>().map(Self)
    }
}

impl Default for Expected {
    fn default() -> Self {
        Self(vec![(200, 399)])
    }
}

impl<'de> Deserialize<'de> for Expected {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!("expected status codes such as 2xx or 200,204, found {text:?}"))
        })
    }
}

/// How the nodes of a pool are asked whether they are well.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is asked for with `GET`.
    pub path: String,
    /// The `Host` that is sent; the node's own address if there is none.
    #[serde(default)]
    pub host: Option<String>,
    /// From one round of checks to the next, in seconds.
    #[serde(default = "default_interval", deserialize_with = "deserialize_seconds")]
    pub interval: Duration,
    /// For a connection and the head of its answer, in seconds.
    #[serde(default = "default_timeout", deserialize_with = "deserialize_seconds")]
    pub timeout: Duration,
    /// Good answers in a row after which a node that is down is up.
    #[serde(default = "default_rise")]
    pub rise: u32,
    /// Bad ones in a row after which a node is down.
    #[serde(default = "default_fall")]
    pub fall: u32,
    /// The codes of a good answer.
    #[serde(default)]
    pub expect: Expected,
}

fn default_interval() -> Duration {
    Duration::from_secs(5)
}

fn default_timeout() -> Duration {
    Duration::from_secs(2)
}

fn default_rise() -> u32 {
    2
}

fn default_fall() -> u32 {
    3
}

/// What an operator may say about a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolOptions {
    /// An address of its own, as with `--pool`.
    pub address: Option<SocketAddr>,
    /// How its nodes take turns.
    pub balance: Balance,
    /// What its nodes speak.
    pub protocol: NodeProtocol,
    /// Tells nodes the client's address with the PROXY protocol. Every request has a connection of its own then.
    pub send_proxy: Option<ProxyVersion>,
    /// What clients see when no node takes a request: a file with HTML.
    pub maintenance_page: Option<PathBuf>,
    /// Seconds after which clients are asked to come back.
    pub retry_after: Option<u32>,
    /// How nodes are asked whether they are well; never if there is none.
    pub health_check: Option<HealthCheck>,
}

impl PoolOptions {
    /// What is wrong with them, as half a sentence.
    pub(super) fn problem(&self) -> Option<String> {
        if self.protocol == NodeProtocol::Http2 && self.send_proxy.is_some() {
            return Some(
                "send_proxy cannot be had with protocol h2, as a connection carries requests of many clients"
                    .into(),
            );
        }
        if self.address.is_some_and(|address| address.port() == 0) {
            return Some("address has port 0, expected one from 1 to 65535".into());
        }
        let check = self.health_check.as_ref()?;
        if !check.path.starts_with('/') || check.path.parse::<http::uri::PathAndQuery>().is_err() {
            return Some(format!("health_check.path is {:?}, expected a path such as /health", check.path));
        }
        if check.host.as_ref().is_some_and(|host| http::HeaderValue::from_str(host).is_err()) {
            return Some("health_check.host cannot be sent as a Host header".into());
        }
        if check.rise == 0 || check.fall == 0 {
            return Some("health_check.rise and health_check.fall must be at least 1".into());
        }
        None
    }
}

/// An address that clients connect to, beside the pools' own ones.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerOptions {
    /// Where it listens.
    pub address: SocketAddr,
    /// The pool that gets all of its requests; without one, the routes choose by `Host`.
    #[serde(default)]
    pub pool: Option<PoolName>,
    /// Whether it speaks TLS with the certificates of the configuration.
    #[serde(default)]
    pub tls: bool,
    /// Networks whose connections begin with a header of the PROXY protocol. All others must not send one.
    #[serde(default, deserialize_with = "deserialize_networks")]
    pub proxy_protocol_from: Vec<IpNet>,
    /// Sends clients to the same place under `https`, at this port; 443 is not written into addresses.
    #[serde(default)]
    pub redirect_to_https: Option<u16>,
}

impl ListenerOptions {
    /// A plain one whose requests are spread by `Host`.
    pub(super) fn plain(address: SocketAddr) -> Self {
        Self { address, pool: None, tls: false, proxy_protocol_from: Vec::new(), redirect_to_https: None }
    }
}

/// A host that a route is for: `shop.example.org`, `*.example.org` for everything below (but not itself), or `*` for
/// every host without a route of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern(String);

impl HostPattern {
    /// As it is written: in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let host = text.to_ascii_lowercase();
        let name = host.strip_prefix("*.").unwrap_or(&host);
        let is_name = !name.is_empty()
            && name.len() <= 253
            && name.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            });
        let is_ipv6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let is_ipv6 = is_ipv6.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
        if host == "*" || is_name || is_ipv6 {
            Ok(Self(host))
        } else {
            Err(format!(
                "{text:?} is not a host, expected shop.example.org, *.example.org, or * for all others"
            ))
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The shape of the access log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Apache's "combined".
    #[default]
    Combined,
    /// An object of JSON a line, with more in it.
    Json,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessLogOptions {
    /// The file, or `-` for standard output.
    pub file: PathBuf,
    /// Its lines.
    #[serde(default)]
    pub format: LogFormat,
}

/// The files of one certificate, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The oldest version of TLS that clients may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum MinTls {
    /// TLS 1.2.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V1_3,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_suffixes_or_everything() {
        for good in ["shop.example.org", "*.Example.org", "*", "localhost", "127.0.0.1", "[::1]", "a_b.c"] {
            let pattern: HostPattern = good.parse().unwrap();
            assert_eq!(pattern.as_str(), good.to_ascii_lowercase());
        }
        for bad in ["", "*.", "a..b", "a.*.b", "a b", "http://a", "a:80", "**", ".a", "[x]", "é.org"] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn status_codes_are_listed_in_several_ways() {
        let expected = Expected::parse("2xx, 301,400-404").unwrap();
        let found: Vec<u16> = [200, 299, 300, 301, 302, 400, 404, 405]
            .into_iter()
            .filter(|code| expected.contains(*code))
            .collect();
        assert_eq!(found, [200, 299, 301, 400, 404]);
        for bad in ["", "xx", "6xx", "99", "600", "300-200", "200,,"] {
            assert!(Expected::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn networks_hold_addresses_of_both_kinds() {
        let networks = [network("10.0.0.0/8").unwrap(), network("::ffff:192.0.2.1").unwrap()];
        assert!(is_in(&networks, "10.255.0.1".parse().unwrap()));
        assert!(is_in(&networks, "::ffff:10.1.1.1".parse().unwrap()));
        assert!(is_in(&networks, "192.0.2.1".parse().unwrap()));
        assert!(!is_in(&networks, "192.0.2.2".parse().unwrap()));
        for bad in ["", "10.0.0.0/33", "host", "10.0.0"] {
            assert!(network(bad).is_err(), "{bad:?}");
        }
    }
}
