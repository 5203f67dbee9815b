//! What is remembered on a site beside the pools' files: the change that is being made, and which pools were deleted.
//!
//! The journal is there from before the first file of a change is written until the program serves the change. Whoever
//! finds one has found a change whose maker died: it is taken back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vr_common::names::PoolName;

use crate::site::{FileOnSite, FileText};

/// The lock that every change of a folder's pools holds.
pub(super) const LOCK: &str = ".velociraptor/lock";
/// The change that is being made.
pub(super) const JOURNAL: &str = ".velociraptor/journal";
/// The pools that were deleted, and when.
pub(super) const DELETED: &str = ".velociraptor/deleted";
/// The most deleted pools that are remembered.
const MOST_DELETED: usize = 1000;

/// A change that is being made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Journal {
    /// The files it writes. None at all: they are as they should be, and the program has to read them.
    pub files: Vec<FileChange>,
}

/// A file before and after a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct FileChange {
    /// Its name in the folder.
    pub name: String,
    /// What was in it; none if there was no such file.
    pub old: Option<String>,
    /// When that was written, in seconds since 1970 by the site's clock; not kept in the journal.
    #[serde(skip)]
    pub modified: Option<f64>,
    /// What shall be in it; none to remove it.
    pub new: Option<String>,
}

impl Journal {
    /// The journal among these files. One that cannot be read says at least that something was going on.
    pub fn find(files: &[FileOnSite]) -> Option<Self> {
        let file = files.iter().find(|file| file.name == JOURNAL)?;
        Some(serde_json::from_str(&file.text).unwrap_or_default())
    }

    /// The journal as a file.
    pub fn to_file(&self) -> FileText {
        FileText { name: JOURNAL.to_owned(), text: serde_json::to_string(self).ok() }
    }

    /// That there is none any more.
    pub fn over() -> FileText {
        FileText { name: JOURNAL.to_owned(), text: None }
    }

    /// What takes the change back. A file that somebody wrote after it is theirs and stays.
    pub fn undo(&self, now: &[FileOnSite]) -> Vec<FileText> {
        let current = |name: &str| now.iter().find(|file| file.name == name).map(|file| file.text.as_str());
        let ours = self.files.iter().filter(|file| current(&file.name) == file.new.as_deref());
        ours.map(|file| FileText { name: file.name.clone(), text: file.old.clone() }).collect()
    }
}

/// When pools were deleted, in seconds since 1970 by the site's clock, so that a host that missed it does not bring them back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Deleted(pub BTreeMap<PoolName, f64>);

impl Deleted {
    /// The list among these files.
    pub fn find(files: &[FileOnSite]) -> Self {
        let file = files.iter().find(|file| file.name == DELETED);
        file.and_then(|file| serde_json::from_str(&file.text).ok()).unwrap_or_default()
    }

    /// Takes note of a pool that is there, or that is not any more. Says whether that is news.
    pub fn note(&mut self, pool: &PoolName, is_there: bool, now: f64) -> bool {
        if is_there {
            return self.0.remove(pool).is_some();
        }
        self.0.insert(pool.clone(), now);
        while self.0.len() > MOST_DELETED {
            let oldest = self.0.iter().min_by(|a, b| a.1.total_cmp(b.1)).map(|(pool, _)| pool.clone());
            if let Some(oldest) = oldest {
                self.0.remove(&oldest);
            }
        }
        true
    }

    /// The list as a file.
    pub fn to_file(&self) -> FileText {
        FileText { name: DELETED.to_owned(), text: serde_json::to_string(self).ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> FileOnSite {
        FileOnSite { name: name.to_owned(), modified: 0.0, text: text.to_owned() }
    }

    #[test]
    fn only_what_the_change_itself_wrote_is_taken_back() {
        let change = |name: &str, old: Option<&str>, new: Option<&str>| FileChange {
            name: name.to_owned(),
            old: old.map(str::to_owned),
            modified: None,
            new: new.map(str::to_owned),
        };
        let journal = Journal {
            files: vec![
                change("written", Some("old"), Some("new")),
                change("not-yet", Some("old"), Some("new")),
                change("edited", Some("old"), Some("new")),
                change("made", None, Some("new")),
                change("removed", Some("old"), None),
            ],
        };
        let now =
            [file("written", "new"), file("not-yet", "old"), file("edited", "mine"), file("made", "new")];
        let undo: Vec<_> =
            journal.undo(&now).into_iter().map(|file| (file.name, file.text.unwrap_or_default())).collect();
        let expected = [("written", "old"), ("made", ""), ("removed", "old")];
        assert_eq!(undo, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));

        let stored = file(JOURNAL, journal.to_file().text.as_deref().unwrap());
        assert_eq!(Journal::find(&[stored]), Some(journal));
        assert_eq!(Journal::find(&[file(JOURNAL, "{\"files\": [")]), Some(Journal::default()));
        assert_eq!(Journal::find(&[]), None);
    }

    #[test]
    fn deleted_pools_are_remembered_within_bounds() {
        let mut deleted = Deleted::default();
        let pool = |number: usize| format!("p{number}").parse::<PoolName>().unwrap();
        for number in 0..MOST_DELETED + 5 {
            assert!(deleted.note(&pool(number), false, number as f64));
        }
        assert_eq!(deleted.0.len(), MOST_DELETED);
        assert!(!deleted.note(&pool(0), true, 0.0), "the oldest are forgotten");
        assert!(deleted.note(&pool(10), true, 0.0));
    }
}
