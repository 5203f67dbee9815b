//! Which host keys are known, after `sshd(8)`, "SSH_KNOWN_HOSTS FILE FORMAT": lists of names with wildcards and
//! negation, hashed names, `[name]:port`, several keys a host, `@revoked` and `@cert-authority`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use russh::Preferred;
use russh::keys::{Algorithm, HashAlg, PublicKey};

use crate::error::{SshError, UnknownHostKey};

/// The longest file that is read, in bytes: hundreds of thousands of hosts.
const LONGEST: u64 = 256 << 20;

/// What the files say about one host.
#[derive(Debug)]
pub(crate) struct KnownKeys {
    host: String,
    port: u16,
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
    /// Under the name without the port, which count as long as there is nothing for name and port.
    entries_of_name: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    file: PathBuf,
    line: usize,
    marker: Marker,
    key: PublicKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    None,
    Revoked,
    Authority,
}

impl KnownKeys {
    /// Reads the files; a missing one is empty.
    pub(crate) fn load(files: Vec<PathBuf>, host: &str, port: u16) -> Result<Self, SshError> {
        let name = host.to_lowercase();
        let full = if port == 22 { name.clone() } else { format!("[{name}]:{port}") };
        let (mut entries, mut entries_of_name) = (Vec::new(), Vec::new());
        for file in &files {
            let text = read(file).map_err(|reason| SshError::File { path: file.clone(), reason })?;
            for (line, text) in (1..).zip(text.split(|&byte| byte == b'\n')) {
                let Some((patterns, marker, key)) = std::str::from_utf8(text).ok().and_then(parse) else {
                    continue;
                };
                let list = if matches(patterns, &full) {
                    &mut entries
                } else if port != 22 && matches(patterns, &name) {
                    &mut entries_of_name
                } else {
                    continue;
                };
                match PublicKey::from_openssh(&key) {
                    Ok(key) => list.push(Entry { file: file.clone(), line, marker, key }),
                    // OpenSSH leaves out what it does not know as well.
                    Err(error) => {
                        tracing::debug!(file = %file.display(), line, %error, "a host key is left out")
                    }
                }
            }
        }
        Ok(Self { host: host.to_owned(), port, files, entries, entries_of_name })
    }

    /// The algorithms to ask the host for, those of its known keys first: a host has several keys, and shows the one
    /// that it is asked for.
    pub(crate) fn algorithms(&self) -> Vec<Algorithm> {
        let all = Preferred::DEFAULT.key.iter();
        // Signatures with SHA-1 are no proof any more.
        let all: Vec<_> =
            all.filter(|algorithm| **algorithm != Algorithm::Rsa { hash: None }).cloned().collect();
        let is_known = |algorithm: &Algorithm| {
            let mut entries = self.entries.iter().chain(&self.entries_of_name);
            entries.any(|entry| entry.marker == Marker::None && same_type(&entry.key.algorithm(), algorithm))
        };
        let (mut known, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_known);
        known.extend(others);
        known
    }

    /// Whether this is one of the host's keys.
    pub(crate) fn check(&self, key: &PublicKey) -> Result<(), SshError> {
        let (host, port) = (self.host.clone(), self.port);
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let all = || self.entries.iter().chain(&self.entries_of_name);
        let same = |entry: &&Entry| entry.key.key_data() == key.key_data();
        if let Some(Entry { file, line, .. }) =
            all().filter(same).find(|entry| entry.marker == Marker::Revoked)
        {
            return Err(SshError::RevokedHostKey {
                host,
                port,
                fingerprint,
                file: file.clone(),
                line: *line,
            });
        }
        let plain = |entry: &&Entry| entry.marker == Marker::None;
        let has_own = self.entries.iter().any(|entry| plain(&entry));
        let fallback: &[Entry] = if has_own { &[] } else { &self.entries_of_name };
        if self.entries.iter().chain(fallback).filter(plain).any(|entry| same(&entry)) {
            return Ok(());
        }
        let own = || self.entries.iter().filter(plain);
        let of_type = |entry: &&Entry| same_type(&entry.key.algorithm(), &key.algorithm());
        if let Some(Entry { file, line, .. }) = own().find(of_type) {
            return Err(SshError::ChangedHostKey {
                host,
                port,
                fingerprint,
                file: file.clone(),
                line: *line,
            });
        }
        if !has_own && let Some(entry) = self.entries.iter().find(|entry| entry.marker == Marker::Authority) {
            let Entry { file, line, .. } = entry;
            return Err(SshError::HostCertificate {
                host,
                port,
                fingerprint,
                file: file.clone(),
                line: *line,
            });
        }
        let names: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        let known: Vec<String> =
            own().map(|e| format!("{} on {}:{}", e.key.algorithm(), e.file.display(), e.line)).collect();
        let others =
            if known.is_empty() { String::new() } else { format!(" (which has {})", known.join(", ")) };
        Err(SshError::UnknownHostKey(Box::new(UnknownHostKey {
            host,
            port,
            kind: key.algorithm().to_string(),
            short: match key.algorithm() {
                Algorithm::Ed25519 => "ed25519",
                Algorithm::Ecdsa { .. } => "ecdsa",
                _ => "rsa",
            },
            fingerprint,
            known_hosts: names.join(" or "),
            first: names.first().cloned().unwrap_or_default(),
            others,
        })))
    }

    /// Writes a new key to the first file.
    pub(crate) fn add(&self, key: &PublicKey) -> Result<(), SshError> {
        // One at a time, so that no line is added twice by this process.
        static ADDING: Mutex<()> = Mutex::new(());
        let _one = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = self.files.first() else { return Ok(()) };
        if Self::load(vec![file.clone()], &self.host, self.port)?.check(key).is_ok() {
            return Ok(());
        }
        let host = self.host.to_lowercase();
        let name = if self.port == 22 { host } else { format!("[{host}]:{}", self.port) };
        let encoded = PublicKey::new(key.key_data().clone(), "").to_openssh();
        let encoded =
            encoded.map_err(|error| SshError::File { path: file.clone(), reason: error.to_string() })?;
        append(file, &format!("{name} {}\n", encoded.trim()))
            .map_err(|error| SshError::File { path: file.clone(), reason: error.to_string() })
    }
}

fn same_type(one: &Algorithm, other: &Algorithm) -> bool {
    match (one, other) {
        (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
        _ => one == other,
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    match fs::metadata(file).map(|data| data.len()) {
        Ok(length) if length > LONGEST => Err(format!("it is longer than {LONGEST} bytes")),
        Ok(_) => fs::read(file).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    }
}

fn append(file: &Path, line: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let ends_in_line = fs::read(file).map_or(true, |text| text.last().is_none_or(|&last| last == b'\n'));
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    // At once, so that a line of another process does not get in between.
    file.write_all(format!("{}{line}", if ends_in_line { "" } else { "\n" }).as_bytes())
}

/// The patterns, the marker and the key (its type and base64) of a line; `None` for one without.
fn parse(line: &str) -> Option<(&str, Marker, String)> {
    let mut words = line.split_ascii_whitespace();
    let first = words.next().filter(|word| !word.starts_with('#'))?;
    let (marker, patterns) = match first {
        "@revoked" => (Marker::Revoked, words.next()?),
        "@cert-authority" => (Marker::Authority, words.next()?),
        // Of a newer OpenSSH; what it means is not known.
        word if word.starts_with('@') => return None,
        word => (Marker::None, word),
    };
    Some((patterns, marker, format!("{} {}", words.next()?, words.next()?)))
}

/// Whether a name, in small letters, is in a list of patterns.
fn matches(patterns: &str, name: &str) -> bool {
    let mut found = false;
    for pattern in patterns.split(',') {
        if pattern.starts_with('|') {
            found |= is_hash_of(pattern, name).unwrap_or(false);
        } else if let Some(pattern) = pattern.strip_prefix('!') {
            if is_like(pattern.to_lowercase().as_bytes(), name.as_bytes()) {
                return false;
            }
        } else {
            found |= is_like(pattern.to_lowercase().as_bytes(), name.as_bytes());
        }
    }
    found
}

/// `|1|salt|hash`: HMAC-SHA1 of the name with the salt as its key, both in base64.
fn is_hash_of(pattern: &str, name: &str) -> Option<bool> {
    let (salt, hash) = pattern.strip_prefix("|1|")?.split_once('|')?;
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &STANDARD.decode(salt).ok()?);
    Some(hmac::verify(&key, name.as_bytes(), &STANDARD.decode(hash).ok()?).is_ok())
}

/// `*` is anything, `?` one byte.
fn is_like(pattern: &[u8], name: &[u8]) -> bool {
    // Where to go on when what follows the last star does not fit.
    let mut retry = None;
    let (mut p, mut n) = (0, 0);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match &mut retry {
                Some((after_star, taken)) => {
                    *taken += 1;
                    (p, n) = (*after_star, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const TWO: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILIG2T/B0l0gaqj3puu510tu9N1OkQ4znY3LYuEm5zCF";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg=";

    fn check(text: &str, host: &str, port: u16) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("known_hosts");
        fs::write(&file, text).unwrap();
        let known = KnownKeys::load(vec![file], host, port).unwrap();
        let checked = known.check(&PublicKey::from_openssh(ONE).unwrap());
        checked.map_err(|error| error.to_string().replace(&dir.path().display().to_string(), "DIR"))
    }

    #[track_caller]
    fn refused(text: &str, host: &str, port: u16, why: &str) {
        let message = check(text, host, port).unwrap_err();
        assert!(
            message.contains(why) && message.contains(host) && message.contains(&port.to_string()),
            "{message}"
        );
        assert!(message.contains("SHA256:") && !message.contains('\n'), "{message}");
    }

    #[test]
    fn names_ports_and_patterns() {
        check(&format!("web1 {ONE}"), "web1", 22).unwrap();
        check(&format!("# web1\n\n  web0,WEB1\t{ONE} a comment\n"), "Web1", 22).unwrap();
        check(&format!("[web1]:2222 {ONE}"), "web1", 2222).unwrap();
        check(&format!("*.example.com,10.0.?.1 {ONE}"), "10.0.7.1", 22).unwrap();
        check(&format!("*.example.com {ONE}"), "a.b.example.com", 22).unwrap();
        check(&format!("[*]:2222 {ONE}"), "web1", 2222).unwrap();
        // As the ssh program: a key of the name counts for all ports, as long as the port has none of its own.
        check(&format!("web1 {ONE}"), "web1", 2222).unwrap();
        refused(&format!("web1 {ONE}\n[web1]:2222 {TWO}"), "web1", 2222, "DIR/known_hosts:2");
        refused(&format!("web1 {TWO}"), "web1", 2222, "is not in DIR/known_hosts");
        refused(&format!("!web1,web* {ONE}"), "web1", 22, "is not in");
        refused(&format!("[web1]:2222 {ONE}"), "web1", 22, "is not in");
        refused(&format!("web {ONE}\nweb11 {ONE}\n*.web1 {ONE}"), "web1", 22, "is not in");
        refused("", "web1", 22, "ssh-keyscan -p 22 -t ed25519 web1 >>DIR/known_hosts");
    }

    #[test]
    fn several_keys_of_a_host() {
        check(&format!("web1 {TWO}\nweb1 {ECDSA}\nweb1 {ONE}"), "web1", 22).unwrap();
        refused(&format!("web1 {TWO}"), "web1", 22, "another host key than DIR/known_hosts:1 has");
        refused(&format!("web1 {ECDSA}"), "web1", 22, "(which has ecdsa-sha2-nistp256 on DIR/known_hosts:1)");
    }

    #[test]
    fn markers() {
        refused(&format!("web1 {ONE}\n@revoked * {ONE}"), "web1", 22, "DIR/known_hosts:2 revokes");
        check(&format!("web1 {ONE}\n@revoked * {TWO}"), "web1", 22).unwrap();
        refused(&format!("@cert-authority * {ONE}"), "web1", 22, "only a certificate authority");
        check(&format!("@cert-authority * {TWO}\nweb1 {ONE}"), "web1", 22).unwrap();
        refused(&format!("@other web1 {ONE}"), "web1", 22, "is not in");
    }

    #[test]
    fn lines_that_nobody_understands_are_left_out() {
        let text = format!(
            "web1\nweb1 ssh-ed25519\nweb1 ssh-ed25519 !!!\n|1|x {ONE}\n|2|a|b {ONE}\n\u{e4} {ONE}\nweb1 {ONE}"
        );
        check(&text, "web1", 22).unwrap();
    }

    #[test]
    fn stars_and_question_marks() {
        let like = |pattern: &str, name: &str| is_like(pattern.as_bytes(), name.as_bytes());
        assert!(like("*", "") && like("a*b*c", "aXbYbZc") && like("**a", "ba") && like("a?c", "abc"));
        assert!(!like("a*b", "aXbX") && !like("?", "") && !like("", "a") && !like("a?", "a"));
        // Would take for ever with a naive one.
        assert!(!like(&"*a".repeat(50), &"b".repeat(1000)));
    }

    #[test]
    fn the_algorithms_of_known_keys_are_asked_for_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("known_hosts");
        let first = |text: String| {
            fs::write(&file, text).unwrap();
            let known = KnownKeys::load(vec![file.clone()], "web1", 22).unwrap();
            assert_eq!(known.algorithms().len(), 6);
            known.algorithms()[0].to_string()
        };
        assert_eq!(first(String::new()), "ssh-ed25519");
        assert_eq!(first(format!("web1 {ECDSA}")), "ecdsa-sha2-nistp256");
    }

    #[test]
    fn a_new_key_is_added_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new/known_hosts");
        let key = PublicKey::from_openssh(ONE).unwrap();
        let known = KnownKeys::load(vec![file.clone()], "Web1", 2222).unwrap();
        known.add(&key).unwrap();
        known.add(&key).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("[web1]:2222 {ONE}\n"));
        fs::write(&file, "# no line's end").unwrap();
        known.add(&key).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("# no line's end\n[web1]:2222 {ONE}\n"));
    }
}
