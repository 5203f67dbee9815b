//! The URL of a repository, with the revision in its fragment.

use std::fmt;
use std::str::FromStr;

use md5::{Digest, Md5};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::form_urlencoded;

use super::VcsError;
use crate::fetch::without_credentials;

/// The longest URL and the longest revision that are accepted, in bytes.
const LONGEST: usize = 2048;

/// A repository's URL (or path) and, after a `#`, perhaps a revision: `https://example.com/app.git#v5`.
///
/// `Display` and `Debug` hide passwords, tokens and queries; [`RepoUrl::url`] is the way to the text itself.
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
        let bad = |reason| VcsError::BadUrl { url: shown(as_given), reason };
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
        let account = Account::of(url);
        let decoded = account.iter().flat_map(|account| [Some(&account.name), account.password.as_ref()]);
        if decoded.flatten().any(|text| text.chars().any(char::is_control)) {
            return Err(bad("its name or password contains control characters"));
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

    /// The last part of the path, without a trailing `/` and a trailing `.git`. What follows the `?` of a URL, which
    /// may be secret, is not part of it.
    pub fn basename(&self) -> &str {
        let url = self.url();
        let url = query(url).map_or(url, |query| &url[..url.len() - query.len() - 1]);
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

    /// Whether the repository is certainly not on this machine. Not the opposite of [`RepoUrl::is_local`]: hg also
    /// reads files by names such as `bundle://`.
    pub(super) fn is_remote(&self) -> bool {
        match self.url().split_once("://") {
            Some((scheme, _)) => {
                matches!(scheme, "http" | "https" | "ssh" | "git" | "git+ssh" | "ssh+git" | "static-http")
            }
            None => !self.is_local(),
        }
    }

    /// Whether it is read through ssh, as far as the URL tells: `ssh://host/path` or `host:path`.
    pub(super) fn is_ssh(&self) -> bool {
        match self.url().split_once("://") {
            Some((scheme, _)) => matches!(scheme, "ssh" | "git+ssh" | "ssh+git"),
            None => !self.is_local(),
        }
    }

    /// The name and password in an http(s) URL, if there are any.
    pub(super) fn account(&self) -> Option<Account> {
        Account::of(self.url())
    }

    /// The URL without the fragment, as people may see it.
    pub(super) fn shown(&self) -> String {
        shown(self.url())
    }

    /// A text without the URL's secrets, for what git and hg say: they hide some themselves, but not all.
    pub(super) fn hide_in(&self, text: &str) -> String {
        let url = self.url();
        let mut hidden = text.replace(url, &self.shown());
        let mut hide = |secret: &str, shown: &str| {
            for secret in [secret, &decoded(secret)] {
                if !secret.is_empty() {
                    hidden = hidden.replace(secret, shown);
                }
            }
        };
        if let Some(query) = query(url) {
            hide(query, "***");
        }
        if let Some((before, authority)) = authority(url)
            && let Some((user, _)) = authority.rsplit_once('@')
        {
            let is_http = before.starts_with("http");
            hide(&format!("{user}@"), "***@");
            match user.split_once(':') {
                Some((name, password)) => {
                    hide(password, "***");
                    if is_http {
                        hide(&format!("{name}@"), "***@");
                    }
                }
                None if is_http => hide(user, "***"),
                None => {}
            }
        }
        hidden
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

/// The name and password in an http(s) URL.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Account {
    /// Whose they are: `scheme://host:port`.
    pub origin: String,
    /// The URL without both.
    pub address: String,
    pub name: String,
    pub password: Option<String>,
}

impl Account {
    fn of(url: &str) -> Option<Self> {
        let (scheme, authority) = authority(url)
            .filter(|(scheme, _)| matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https"))?;
        let (user, host) = authority.rsplit_once('@')?;
        let rest = &url[scheme.len() + "://".len() + authority.len()..];
        let (name, password) = match user.split_once(':') {
            Some((name, password)) => (name, Some(password)),
            None => (user, None),
        };
        let origin = format!("{scheme}://{host}");
        let address = format!("{origin}{rest}");
        Some(Self { origin, address, name: decoded(name), password: password.map(decoded) })
    }
}

/// The scheme of a URL and what is between it and the path: `user:password@host:port`.
fn authority(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    Some((scheme, &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())]))
}

/// What follows the first `?` of a URL. In a path it is a letter like others.
fn query(url: &str) -> Option<&str> {
    url.split_once("://")?.1.split_once('?').map(|(_, query)| query)
}

/// A URL as people may see it. Tokens are also given as names, with anything for a password.
fn shown(url: &str) -> String {
    let url = without_credentials(url);
    match Account::of(&url) {
        Some(account) => {
            let (scheme, rest) = account.address.split_once("://").unwrap_or_default();
            format!("{scheme}://***@{rest}")
        }
        None => url,
    }
}

/// A part of a URL without its percent signs.
fn decoded(text: &str) -> String {
    // In forms these three mean something else.
    let escaped = text.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    form_urlencoded::parse(escaped.as_bytes()).next().map_or_else(String::new, |(text, _)| text.into_owned())
}

impl fmt::Display for RepoUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())?;
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
