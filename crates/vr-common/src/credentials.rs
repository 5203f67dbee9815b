//! The file that keeps logins of servers: written by a server for the people of its own machine, read by vr-cli.
//!
//! ```yaml
//! default: http://127.0.0.1:8000
//! servers:
//!   http://127.0.0.1:8000: {username: admin, password: secret}
//! ```
//!
//! It is only ever readable by its owner, and one that others can read is refused, as a password that
//! everybody saw is no password.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::lock::{FileLock, LockError};
use crate::secret::Secret;
use crate::yaml::{self, YamlError};

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// No variable says where it is.
    #[error("cannot tell where the credentials are: set HOME or VELOCIRAPTOR_CREDENTIALS")]
    NoPlace,
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than its owner can read or change it.
    #[error("{} holds passwords and has mode {mode:04o}: expected 0600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not what was expected.
    #[error(transparent)]
    Content(#[from] YamlError),
    /// It is being written and cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// A name and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// The logins that are known, by server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    default: Option<String>,
    servers: BTreeMap<String, Login>,
}

/// The file's contents. Passwords are plain texts here and nowhere else.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    #[serde(default)]
    servers: BTreeMap<String, LoginText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoginText {
    username: String,
    password: String,
}

impl Credentials {
    /// Where the file is: `$VELOCIRAPTOR_CREDENTIALS`, else `velociraptor/credentials.yaml` in
    /// `$XDG_CONFIG_HOME`, else in `~/.config`.
    pub fn path() -> Result<PathBuf, CredentialsError> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = variable("VELOCIRAPTOR_CREDENTIALS") {
            return Ok(path);
        }
        // The base directory rules say to ignore a relative path.
        let config = variable("XDG_CONFIG_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| Some(variable("HOME")?.join(".config")))
            .ok_or(CredentialsError::NoPlace)?;
        Ok(config.join("velociraptor/credentials.yaml"))
    }

    /// Reads the file at its usual [path](Self::path); a missing one holds no logins.
    pub fn load() -> Result<Self, CredentialsError> {
        Self::load_from(&Self::path()?)
    }

    /// Reads a file; a missing one holds no logins.
    pub fn load_from(path: &Path) -> Result<Self, CredentialsError> {
        let read = |source| CredentialsError::Read { path: path.to_owned(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(read(e)),
        };
        let mode = file.metadata().map_err(read)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(CredentialsError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        // One byte more than allowed, so that the parser sees that it is too large.
        file.take(yaml::MAX_BYTES as u64 + 1).read_to_string(&mut text).map_err(read)?;
        let name = path.display().to_string();
        let contents: Contents =
            if text.trim().is_empty() { Contents::default() } else { yaml::parse(&name, &text)? };
        let servers = contents.servers.into_iter().map(|(server, login)| {
            (normal(&server), Login { username: login.username, password: Secret::new(login.password) })
        });
        Ok(Self { default: contents.default.as_deref().map(normal), servers: servers.collect() })
    }

    /// The server to talk to when nobody names one.
    pub fn default_server(&self) -> Option<&str> {
        self.default.as_deref()
    }

    /// The login of a server; a slash at the address' end does not matter.
    pub fn login(&self, server: &str) -> Option<&Login> {
        self.servers.get(&normal(server))
    }

    /// Keeps a login in the file at its usual [path](Self::path) and gives the path; see [`Self::remember_in`].
    pub fn remember(server: &str, username: &str, password: &Secret) -> Result<PathBuf, CredentialsError> {
        let path = Self::path()?;
        Self::remember_in(&path, server, username, password)?;
        Ok(path)
    }

    /// Keeps a login in a file, with mode 0600, and leaves all others in it as they are.
    ///
    /// The first server becomes the default and stays it: a second server on a machine must not silently
    /// become the target of its operators' commands.
    pub fn remember_in(
        path: &Path,
        server: &str,
        username: &str,
        password: &Secret,
    ) -> Result<(), CredentialsError> {
        let write = |source| CredentialsError::Write { path: path.to_owned(), source };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(write)?;
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let _lock = FileLock::wait(Path::new(&lock_path), || ())?;

        let before = Self::load_from(path)?;
        let mut credentials = before.clone();
        let server = normal(server);
        credentials.default.get_or_insert_with(|| server.clone());
        credentials
            .servers
            .insert(server, Login { username: username.to_owned(), password: password.clone() });
        if credentials == before {
            return Ok(());
        }
        let text = yaml::to_string(&credentials.contents())?;
        // Made with mode 0600, so it is never readable by others, not even for a moment.
        let mut aside =
            tempfile::Builder::new().prefix(".credentials-").tempfile_in(folder).map_err(write)?;
        aside.write_all(text.as_bytes()).map_err(write)?;
        aside.as_file().sync_all().map_err(write)?;
        aside.persist(path).map_err(|e| write(e.error))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(write)
    }

    fn contents(&self) -> Contents {
        let servers = self.servers.iter().map(|(server, login)| {
            let password = login.password.expose().to_owned();
            (server.clone(), LoginText { username: login.username.clone(), password })
        });
        Contents { default: self.default.clone(), servers: servers.collect() }
    }
}

fn normal(server: &str) -> String {
    server.trim().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_login_is_kept_where_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/credentials.yaml");
        assert_eq!(Credentials::load_from(&path).unwrap(), Credentials::default());

        Credentials::remember_in(&path, "http://a:1/", "admin", &Secret::new("one: 'two'")).unwrap();
        Credentials::remember_in(&path, "http://b:2", "bob", &Secret::new("2")).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);

        let read = Credentials::load_from(&path).unwrap();
        assert_eq!(read.default_server(), Some("http://a:1"));
        let login = read.login("http://a:1").unwrap();
        assert_eq!((login.username.as_str(), login.password.expose()), ("admin", "one: 'two'"));
        assert_eq!(read.login("http://b:2/").unwrap().username, "bob");
        assert!(read.login("http://c").is_none());

        Credentials::remember_in(&path, "http://a:1", "admin", &Secret::new("new")).unwrap();
        assert_eq!(
            Credentials::load_from(&path).unwrap().login("http://a:1").unwrap().password.expose(),
            "new"
        );
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 2, "only the file and its lock are left: {left:?}");
    }

    #[test]
    fn the_documented_form_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let text = "default: http://127.0.0.1:8000\nservers:\n  http://127.0.0.1:8000: {username: admin, password: x}\n";
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let read = Credentials::load_from(&path).unwrap();
        assert_eq!(read.login(read.default_server().unwrap()).unwrap().password.expose(), "x");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, "servers: {}\n").unwrap();
        for mode in [0o644, 0o640, 0o604, 0o602] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let message = Credentials::load_from(&path).unwrap_err().to_string();
            let expected =
                format!("{} holds passwords and has mode {mode:04o}: expected 0600", path.display());
            assert_eq!(message, expected);
            Credentials::remember_in(&path, "http://a", "a", &Secret::new("p")).unwrap_err();
        }
    }

    #[test]
    fn writers_at_once_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    Credentials::remember_in(path, &format!("http://h{n}"), "u", &Secret::random()).unwrap();
                });
            }
        });
        let read = Credentials::load_from(&path).unwrap();
        assert!((0..8).all(|n| read.login(&format!("http://h{n}")).is_some()));
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, "servers: [1]\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let message = Credentials::load_from(&path).unwrap_err().to_string();
        assert!(message.starts_with(&path.display().to_string()), "{message}");
    }
}
