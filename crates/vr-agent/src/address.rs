//! Where an agent listens: as it is told on the command line, and as it says in the address file.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::files;

/// What a unix socket's address begins with.
const UNIX: &str = "unix:";
/// The longest path of a unix socket, in bytes: the kernel's 108 with the final zero.
const UNIX_PATH_LIMIT: usize = 107;

/// Where to listen; written `127.0.0.1:9002` or `unix:/absolute/path.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ListenAddress {
    /// A TCP address; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A unix socket's absolute path. Unlike a port, nobody else can listen there once the agent is gone.
    Unix(PathBuf),
}

/// An address is neither `ADDRESS:PORT` nor `unix:/absolute/path`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no address: expected ADDRESS:PORT or unix:/absolute/path (of at most {UNIX_PATH_LIMIT} bytes)"
)]
pub struct BadAddress(String);

impl FromStr for ListenAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        let Some(path) = text.strip_prefix(UNIX) else {
            return text.parse().map(Self::Tcp).map_err(|_| bad());
        };
        let usable = path.len() <= UNIX_PATH_LIMIT && !path.contains('\0') && !path.ends_with('/');
        let path = Path::new(path);
        if usable && path.is_absolute() && path.file_name().is_some() {
            Ok(Self::Unix(path.to_owned()))
        } else {
            Err(bad())
        }
    }
}

impl ListenAddress {
    /// Whether only programs of this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = BadAddress;

    fn try_from(text: String) -> Result<Self, BadAddress> {
        text.parse()
    }
}

/// The contents of the address file, as JSON: `{"address": "127.0.0.1:41234", "pid": 77}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentAddress {
    /// Where the API is, with the port that was really bound.
    pub address: ListenAddress,
    /// The agent's process; a file whose process is gone is stale.
    pub pid: u32,
    /// Where it listens beside that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<ListenAddress>,
    /// Where it answers as Supervisor does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supervisor: Vec<ListenAddress>,
}

impl AgentAddress {
    /// Reads an address file.
    pub fn load(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_str(&files::read_text(path, 4096)?)?)
    }

    /// Writes an address file, whole or not at all.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        files::write_atomically(path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["127.0.0.1:9002", "[::1]:0", "unix:/run/agent/agent.sock"] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            let said = AgentAddress { address, pid: 7, more: Vec::new(), supervisor: Vec::new() };
            let json = serde_json::to_string(&said).unwrap();
            assert_eq!(json, format!(r#"{{"address":"{text}","pid":7}}"#));
            assert_eq!(serde_json::from_str::<AgentAddress>(&json).unwrap(), said);
        }
        let long = format!("unix:/{}", "x".repeat(107));
        for text in
            ["9002", "", "unix:", "unix:agent.sock", "unix:/", "unix:/run/", "unix:/..", "unix:/a\0", &long]
        {
            assert!(text.parse::<ListenAddress>().is_err(), "{text:?}");
        }
    }
}
