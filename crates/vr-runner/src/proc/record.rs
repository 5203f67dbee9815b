//! What setup decided and every other command goes by: `setup.json` in the proc's folder, where the app cannot get at
//! it. A proc that has it is set up.

use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ProcError;
use super::files::{Access, Durable, holds, write_file};
use crate::container::Credentials;

const FILE_NAME: &str = "setup.json";

/// The decisions. Whatever is added gets a default that is right for what an older vrun set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Whom the app runs as. Looked up once: what the app writes to its `/etc/passwd` must not change it.
    user: User,
    /// The unpacked build under its root, by key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer: Option<String>,
    /// Whether the command is more than every shell understands.
    #[serde(default = "yes")]
    pub needs_bash: bool,
    /// The texts that a container starts from.
    texts: Vec<Text>,
}

fn yes() -> bool {
    true
}

/// What decides about the app's own files, out of a record of whatever version.
#[derive(Deserialize)]
struct LayerOnly {
    #[serde(default)]
    layer: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct User {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// A file of a container's `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Text {
    /// Its name.
    pub name: String,
    /// Its permission bits.
    pub mode: u32,
    /// The number of its group; its owner is root.
    pub group: u32,
    /// All of it.
    pub content: String,
}

impl Record {
    pub fn new(user: &Credentials, layer: Option<String>, needs_bash: bool, texts: Vec<Text>) -> Self {
        let user = User { uid: user.uid, gid: user.gid, groups: user.groups.clone() };
        Self { user, layer, needs_bash, texts }
    }

    /// What stands for the record of a proc that was set up before there were any.
    pub fn of_old_setup(user: &Credentials) -> Self {
        Self::new(user, None, true, Vec::new())
    }

    /// Whom the app runs as.
    pub fn credentials(&self) -> Credentials {
        Credentials { uid: self.user.uid, gid: self.user.gid, groups: self.user.groups.clone() }
    }

    /// The record in a proc's folder, if there is one.
    pub fn read(folder: &Path) -> Result<Option<Self>, ProcError> {
        read_as(folder)
    }

    /// The unpacked build that it refers to, also when nothing else in it makes sense to this version.
    pub fn read_layer(folder: &Path) -> Result<Option<String>, ProcError> {
        let there: Option<LayerOnly> = read_as(folder)?;
        Ok(there.and_then(|record| record.layer))
    }

    /// Writes it, which makes the proc count as set up.
    pub fn write(&self, folder: &Path) -> Result<(), ProcError> {
        let error = |source: serde_json::Error| ProcError::BadRecord { path: folder.join(FILE_NAME), source };
        let mut text = serde_json::to_vec(self).map_err(error)?;
        text.push(b'\n');
        write_file(folder, FILE_NAME, &text, Access { mode: 0o600, group: 0 }, Durable::Yes)
    }

    /// Removes it; one that is missing is fine.
    pub fn remove(folder: &Path) -> Result<(), ProcError> {
        let path = folder.join(FILE_NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ProcError::Io { step: "remove", path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// Sees to it that a container's root, or the folder above it, has the texts as setup wrote them. Says whether one
    /// had to be written.
    pub fn put_texts(&self, root: &Path) -> Result<bool, ProcError> {
        let mut wrote = false;
        for Text { name, mode, group, content } in &self.texts {
            let access = Access { mode: *mode, group: *group };
            if !holds(root, name, content.as_bytes(), access) {
                // Should the power fail now, the next command writes it again.
                write_file(root, name, content.as_bytes(), access, Durable::No)?;
                wrote = true;
            }
        }
        Ok(wrote)
    }
}

/// What a proc's folder has under the record's name, if there is anything.
fn read_as<T: DeserializeOwned>(folder: &Path) -> Result<Option<T>, ProcError> {
    let path = folder.join(FILE_NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // The folder itself is somebody's file.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        Err(source) => return Err(ProcError::Io { step: "read", path, source }),
    };
    serde_json::from_slice(&text).map(Some).map_err(|source| ProcError::BadRecord { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_and_repairs_the_texts() {
        let dir = tempfile::tempdir().unwrap();
        let user = Credentials { uid: 1, gid: 2, groups: vec![3] };
        let text = Text { name: "proc.sh".into(), mode: 0o755, group: 0, content: "#!/bin/sh\n".into() };
        let record = Record::new(&user, Some("key".into()), false, vec![text]);
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        record.write(dir.path()).unwrap();
        let read = Record::read(dir.path()).unwrap().unwrap();
        assert_eq!(read, record);
        assert_eq!(read.credentials(), user);
        let path = dir.path().join("proc.sh");
        for _ in 0..2 {
            assert!(record.put_texts(dir.path()).unwrap());
            assert!(!record.put_texts(dir.path()).unwrap());
            assert_eq!(fs::read_to_string(&path).unwrap(), "#!/bin/sh\n");
            fs::write(&path, "#!/bin/no").unwrap();
        }
        record.put_texts(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "#!/bin/sh\n");
        // Of a version to come, which has other words for other things.
        fs::write(dir.path().join(FILE_NAME), r#"{"user": "daemon", "layer": "key", "new": {}}"#).unwrap();
        assert!(matches!(Record::read(dir.path()), Err(ProcError::BadRecord { .. })));
        assert_eq!(Record::read_layer(dir.path()).unwrap().as_deref(), Some("key"));
        // Of one that did not know yet which shell.
        fs::write(dir.path().join(FILE_NAME), r#"{"user": {"uid": 1, "gid": 2, "groups": []}, "texts": []}"#)
            .unwrap();
        assert!(Record::read(dir.path()).unwrap().unwrap().needs_bash);
        fs::write(dir.path().join(FILE_NAME), "{\"user\":").unwrap();
        assert!(matches!(Record::read_layer(dir.path()), Err(ProcError::BadRecord { .. })));
        assert!(matches!(Record::read(dir.path()), Err(ProcError::BadRecord { .. })));
        Record::remove(dir.path()).unwrap();
        Record::remove(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        assert_eq!(Record::read_layer(dir.path()).unwrap(), None);
    }
}
