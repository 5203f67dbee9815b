//! `pools.json`: every pool with its address and nodes, so that a restart changes nothing.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vr_common::names::{Node, PoolName};

/// The largest state file that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// The shape of the file that this code reads and writes.
const FORMAT: u32 = 1;

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
    /// Where it listens.
    pub address: SocketAddr,
    /// Its nodes in the order in which they were added.
    pub nodes: Vec<Node>,
}

impl StateFile {
    /// A state with these pools.
    pub fn new(pools: BTreeMap<PoolName, PoolState>) -> Self {
        Self { format: FORMAT, pools }
    }

    /// Where the file is in its folder.
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("pools.json")
    }

    /// Reads the file; a missing one is a state without pools.
    pub fn load(state_dir: &Path) -> Result<Self, StateError> {
        let path = Self::path(state_dir);
        let read = |source| StateError::Read { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new(BTreeMap::new())),
            Err(error) => return Err(read(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
        let damaged = |reason: String| StateError::Damaged { path: path.clone(), reason };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(damaged(format!("larger than {MAX_BYTES} bytes")));
        }
        let state: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if state.format != FORMAT {
            return Err(damaged(format!("expected format {FORMAT}, found {}", state.format)));
        }
        Ok(state)
    }

    /// Writes the file aside, makes sure that it is on disk, and puts it in place.
    /// Only for the holder of the folder's lock, as the name aside is always the same.
    pub fn save(&self, state_dir: &Path) -> Result<(), StateError> {
        let path = Self::path(state_dir);
        let aside = state_dir.join("pools.json.new");
        let write = || -> io::Result<()> {
            let mut text = serde_json::to_vec_pretty(self)?;
            text.push(b'\n');
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&aside, &path)?;
            File::open(state_dir)?.sync_all()
        };
        write().map_err(|source| StateError::Write { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(StateFile::load(dir.path()).unwrap().pools.is_empty());
        let pool = PoolState {
            address: "127.0.0.1:8100".parse().unwrap(),
            nodes: vec!["h2:5001".parse().unwrap(), "[::1]:5000".parse().unwrap()],
        };
        let state = StateFile::new(BTreeMap::from([("web".parse().unwrap(), pool)]));
        state.save(dir.path()).unwrap();
        assert_eq!(StateFile::load(dir.path()).unwrap(), state);

        let path = StateFile::path(dir.path());
        let text = fs::read_to_string(&path).unwrap();
        for bad in [&text[..text.len() / 2], &text.replace("\"format\": 1", "\"format\": 2"), "{}"] {
            fs::write(&path, bad).unwrap();
            let error = StateFile::load(dir.path()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{} is damaged: ", path.display())), "{error}");
        }
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
