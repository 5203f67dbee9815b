//! The URL of a repository, with the revision in its fragment.

use std::fmt;
use std::str::FromStr;

use md5::{Digest, Md5};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::VcsError;
use crate::fetch::without_credentials;

/// The longest URL and the longest revision that are accepted, in bytes.
const LONGEST: usize = 2048;

/// A repository's URL (or path) and, after a `#`, perhaps a revision: `https://example.com/app.git#v5`.
///
/// `Display` and `Debug` hide passwords; [`RepoUrl::url`] is the way to the text itself.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RepoUrl {
    /// Exactly as given, without the fragment: the folder's name is a hash of it, spaces and all.
    as_given: String,
    revision: Option<String>,
}

impl RepoUrl {
    /// Takes a URL apart. Refused: empty ones, those that git or hg would take for an option,
    /// control characters, and names of foreign transports (`ext::…`).
    pub fn parse(text: &str) -> Result<Self, VcsError> {
        let (as_given, revision) = match text.split_once('#') {
            Some((url, revision)) => (url, Some(revision.trim()).filter(|r| !r.is_empty())),
            None => (text, None),
        };
        let bad = |reason| VcsError::BadUrl { url: without_credentials(as_given), reason };
        let url = as_given.trim();
        if url.is_empty() {
            return Err(bad("it is empty"));
        }
        if url.len() > LONGEST {
            return Err(bad("it is longer than 2048 bytes"));
        }
        if url.chars().any(char::is_control) {
            return Err(bad("it contains control characters"));
        }
        let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
        let host = after_scheme.split('/').next().unwrap_or_default();
        if url.starts_with('-') || host.rsplit('@').next().unwrap_or_default().starts_with('-') {
            return Err(bad("neither it nor its host may begin with \"-\""));
        }
        if url.split_once("::").is_some_and(|(helper, _)| helper.bytes().all(|b| b.is_ascii_alphanumeric())) {
            return Err(bad("expected a URL or a path, not a remote helper"));
        }
        if let Some(revision) = revision {
            check_revision(revision)?;
        }
        let parsed = Self { as_given: as_given.to_owned(), revision: revision.map(str::to_owned) };
        if parsed.basename().is_empty() {
            return Err(bad("it names no repository"));
        }
        Ok(parsed)
    }

    /// The URL without the fragment and the spaces around it, credentials included.
    pub fn url(&self) -> &str {
        self.as_given.trim()
    }

    /// The revision in the fragment, if there is one.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The same repository at another revision.
    pub fn with_revision(&self, revision: &str) -> Result<Self, VcsError> {
        check_revision(revision)?;
        Ok(Self { as_given: self.as_given.clone(), revision: Some(revision.to_owned()) })
    }

    /// The last part of the path, without a trailing `/` and a trailing `.git`.
    pub fn basename(&self) -> &str {
        let url = self.url();
        let url = url.strip_suffix('/').unwrap_or(url);
        let last = url.rsplit('/').next().unwrap_or(url);
        last.strip_suffix(".git").unwrap_or(last)
    }

    /// The name of the repository's folder in caches: `{basename}-{md5 of the URL without its fragment}`.
    pub fn folder(&self) -> String {
        format!("{}-{}", self.basename(), hex::encode(Md5::digest(self.as_given.as_bytes())))
    }

    /// The whole text, credentials and revision included, as it is written to files: `url#revision`.
    pub fn to_full_string(&self) -> String {
        match &self.revision {
            Some(revision) => format!("{}#{revision}", self.as_given),
            None => self.as_given.clone(),
        }
    }

    /// Whether the repository is on this machine: a `file://` URL or a path, but not `host:path`.
    pub(super) fn is_local(&self) -> bool {
        let url = self.url();
        if url.contains("://") {
            return url.starts_with("file://");
        }
        url.split('/').next().is_none_or(|start| !start.contains(':'))
    }

    /// What git and hg are given: they run in other folders, so a path must be absolute.
    pub(super) fn address(&self) -> String {
        let url = self.url();
        if !self.is_local() || url.contains("://") {
            return url.to_owned();
        }
        std::path::absolute(url).map_or_else(|_| url.to_owned(), |path| path.to_string_lossy().into_owned())
    }
}

impl fmt::Display for RepoUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_credentials(self.url()))?;
        match &self.revision {
            Some(revision) => write!(f, "#{revision}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for RepoUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RepoUrl({self})")
    }
}

impl FromStr for RepoUrl {
    type Err = VcsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for RepoUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_full_string())
    }
}

impl<'de> Deserialize<'de> for RepoUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Refuses what can be no revision, and what git or hg would take for an option.
pub(super) fn check_revision(revision: &str) -> Result<(), VcsError> {
    let reason = if revision.is_empty() {
        "it is empty"
    } else if revision.starts_with('-') {
        "it may not begin with \"-\""
    } else if revision.chars().any(char::is_control) {
        "it contains control characters"
    } else if revision.len() > LONGEST {
        "it is longer than 2048 bytes"
    } else {
        return Ok(());
    };
    Err(VcsError::BadRevision { revision: revision.chars().take(100).collect(), reason })
}
