//! What is on disk, so that a restart changes nothing: `pools.json` with every pool, its address and nodes, and
//! `routes.json` with the routes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vr_common::names::{Node, PoolName};

use super::options::HostPattern;

/// The largest state file that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// The shape of the file: 1, which every version reads, or 2 if there is a pool without an address of its own.
const FORMATS: RangeInclusive<u32> = 1..=2;

/// Why the state file could not be read or written.
#[derive(Debug, Error)]
pub enum StateError {
    /// Reading failed.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing failed; the old file is still there.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a state file of this version.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateFile {
    format: u32,
    /// The pools by name.
    pub pools: BTreeMap<PoolName, PoolState>,
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolState {
    /// Where it listens; null if it has no address of its own.
    pub address: Option<SocketAddr>,
    /// Its nodes in the order in which they were added.
    pub nodes: Vec<Node>,
}

impl StateFile {
    /// A state with these pools.
    pub fn new(pools: BTreeMap<PoolName, PoolState>) -> Self {
        let format = if pools.values().all(|pool| pool.address.is_some()) { 1 } else { 2 };
        Self { format, pools }
    }

    /// Where the file is in its folder.
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("pools.json")
    }

    /// Reads the file; a missing one is a state without pools.
    pub fn load(state_dir: &Path) -> Result<Self, StateError> {
        let path = Self::path(state_dir);
        let Some(state) = load::<Self>(&path)? else {
            return Ok(Self::new(BTreeMap::new()));
        };
        if !FORMATS.contains(&state.format) {
            let (first, last) = (FORMATS.start(), FORMATS.end());
            let reason = format!("expected format {first} or {last}, found {}", state.format);
            return Err(StateError::Damaged { path, reason });
        }
        Ok(state)
    }

    /// Writes the file aside, makes sure that it is on disk, and puts it in place.
    /// Only for the holder of the folder's lock, as the name aside is always the same.
    pub fn save(&self, state_dir: &Path) -> Result<(), StateError> {
        save(&Self::path(state_dir), self)
    }
}

/// `routes.json`: the routes that were made through the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutesFile {
    format: u32,
    /// The pools by host.
    pub routes: BTreeMap<HostPattern, PoolName>,
}

impl RoutesFile {
    /// These routes.
    pub fn new(routes: BTreeMap<HostPattern, PoolName>) -> Self {
        Self { format: 1, routes }
    }

    /// Where the file is in its folder.
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("routes.json")
    }

    /// Reads the file; a missing one means no routes.
    pub fn load(state_dir: &Path) -> Result<Self, StateError> {
        let path = Self::path(state_dir);
        match load::<Self>(&path)? {
            Some(Self { format, .. }) if format != 1 => {
                Err(StateError::Damaged { path, reason: format!("expected format 1, found {format}") })
            }
            Some(file) => Ok(file),
            None => Ok(Self::new(BTreeMap::new())),
        }
    }

    /// As [`StateFile::save`].
    pub fn save(&self, state_dir: &Path) -> Result<(), StateError> {
        save(&Self::path(state_dir), self)
    }
}

/// None if there is no such file.
fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let read = |source| StateError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    let damaged = |reason: String| StateError::Damaged { path: path.to_owned(), reason };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(damaged(format!("larger than {MAX_BYTES} bytes")));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|e| damaged(e.to_string()))
}

fn save(path: &Path, value: &impl Serialize) -> Result<(), StateError> {
    let write = || -> io::Result<()> {
        let aside = path.with_extension("json.new");
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| StateError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(StateFile::load(dir.path()).unwrap().pools.is_empty());
        let pool = PoolState {
            address: Some("127.0.0.1:8100".parse().unwrap()),
            nodes: vec!["h2:5001".parse().unwrap(), "[::1]:5000".parse().unwrap()],
        };
        let state = StateFile::new(BTreeMap::from([("web".parse().unwrap(), pool)]));
        state.save(dir.path()).unwrap();
        assert_eq!(StateFile::load(dir.path()).unwrap(), state);

        let path = StateFile::path(dir.path());
        let text = fs::read_to_string(&path).unwrap();
        for bad in [&text[..text.len() / 2], &text.replace("\"format\": 1", "\"format\": 3"), "{}"] {
            fs::write(&path, bad).unwrap();
            let error = StateFile::load(dir.path()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{} is damaged: ", path.display())), "{error}");
        }
    }

    #[test]
    fn only_a_pool_without_an_address_makes_a_file_that_older_versions_do_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = StateFile::path(dir.path());
        let old =
            "{\"format\": 1, \"pools\": {\"web\": {\"address\": \"127.0.0.1:80\", \"nodes\": [\"h:1\"]}}}";
        fs::write(&path, old).unwrap();
        let mut state = StateFile::load(dir.path()).unwrap();
        state.save(dir.path()).unwrap();
        let read =
            |path: &Path| serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).unwrap();
        assert_eq!(read(&path), serde_json::from_str::<serde_json::Value>(old).unwrap());
        for pool in state.pools.values_mut() {
            pool.address = None;
        }
        StateFile::new(state.pools).save(dir.path()).unwrap();
        assert_eq!(read(&path)["format"], 2);
        assert_eq!(StateFile::load(dir.path()).unwrap().pools.len(), 1);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::new(BTreeMap::new());
        state.save(dir.path()).unwrap();
        // A folder cannot be opened for writing, not even by root.
        fs::create_dir(dir.path().join("pools.json.new")).unwrap();
        let error = state.save(dir.path()).unwrap_err();
        assert!(matches!(error, StateError::Write { .. }), "{error}");
        assert_eq!(StateFile::load(dir.path()).unwrap(), state);
    }
}
