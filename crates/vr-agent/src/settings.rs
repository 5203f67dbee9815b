//! What an operator may choose: the flags of `vr-agent serve` and the same keys in a file, and whether they make sense
//! together.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tracing::warn;
use vr_common::names::HostName;
use vr_common::secret::Secret;
use vr_common::yaml;

use crate::address::ListenAddress;
use crate::error::ServeError;
use crate::files;
use crate::tls::TlsFiles;

/// Where the API listens unless something else is said.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:9002";
/// How long logs of deleted procs are kept unless something else is said, in days.
pub const DEFAULT_KEEP_LOGS: u32 = 7;
/// The longest token or password, in bytes.
const SECRET_LIMIT: u64 = 4096;
/// The shortest token that may be used, in bytes.
const TOKEN_LEAST: usize = 16;

/// The flags of `vr-agent serve`, and the keys of its file. What is said as a flag or in the environment wins.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Flags {
    /// The folder of this host's builds, images and procs [default: /apps]
    #[arg(long, env = "VR_ROOT", value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Where to listen: ADDRESS:PORT, with port 0 for a free one, or unix:/absolute/path.sock. May be repeated
    /// [default: 127.0.0.1:9002]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "one_or_more")]
    pub listen: Vec<ListenAddress>,
    /// The host's name, shown with every proc
    #[arg(long, value_name = "NAME")]
    pub host: Option<HostName>,
    /// A file with the token that every request needs
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The agent's certificate and those between it and its authority, in PEM: the API is HTTPS then
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Authorities, in PEM, whose certificates callers may show instead of the token
    #[arg(long, value_name = "FILE")]
    pub client_ca: Option<PathBuf>,
    /// Where the agent keeps notes of its own; `agent` below the root by default
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where to write {"address": "ADDRESS", "pid": N} once requests are taken
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    /// Where to answer as Supervisor does: ADDRESS:PORT or unix:/absolute/path.sock. May be repeated
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "one_or_more")]
    pub supervisor_listen: Vec<ListenAddress>,
    /// Who may ask there
    #[arg(long, value_name = "NAME")]
    pub supervisor_username: Option<String>,
    /// A file with the password, as it is or as {SHA} and its SHA-1 in hexadecimal digits
    #[arg(long, value_name = "FILE")]
    pub supervisor_password_file: Option<PathBuf>,
    /// The Redis to publish changes to: redis://[user:password@]host[:port][/database]
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    pub redis_url: Option<RedisUrl>,
    /// For how many days the logs of deleted procs are kept; 0 for not at all [default: 7]
    #[arg(long, value_name = "DAYS")]
    pub keep_logs: Option<u32>,
}

/// The address of a Redis, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RedisUrl(pub Secret);

impl std::str::FromStr for RedisUrl {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Secret::new(text)))
    }
}

/// What an agent is told, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The host's files.
    pub root: PathBuf,
    /// Where to listen; at least one.
    pub listen: Vec<ListenAddress>,
    /// The host's name, shown with every proc.
    pub host: HostName,
    /// Holds the token; white space around it does not count.
    pub token_file: Option<PathBuf>,
    /// The API's certificates, for TCP; a unix socket has none.
    pub tls: Option<TlsFiles>,
    /// Where the agent keeps what does not belong into a proc's folder; `agent` below the root by default.
    pub state_dir: Option<PathBuf>,
    /// Where to write an [`AgentAddress`](crate::address::AgentAddress) once requests are taken.
    pub address_file: Option<PathBuf>,
    /// Where to answer as Supervisor does.
    pub supervisor_listen: Vec<ListenAddress>,
    /// Who may ask there; everybody who can reach it without.
    pub supervisor_login: Option<SupervisorLogin>,
    /// The Redis to publish to.
    pub redis_url: Option<Secret>,
    /// For how many days the logs of deleted procs are kept.
    pub keep_logs: u32,
}

/// Who may ask as one asks Supervisor.
#[derive(Debug, Clone)]
pub struct SupervisorLogin {
    /// The user.
    pub username: String,
    /// The password, or `{SHA}` and its SHA-1.
    pub password: Secret,
}

impl Flags {
    /// The flags with what the file says where they say nothing.
    pub fn or_file(self, path: &Path) -> Result<Self, ServeError> {
        let text = yaml::read_file(path).map_err(ServeError::Config)?;
        // An empty file is an empty mapping.
        let file: Option<Self> =
            yaml::parse(&path.display().to_string(), &text).map_err(ServeError::Config)?;
        let file = file.unwrap_or_default();
        let list = |flags: Vec<_>, file| if flags.is_empty() { file } else { flags };
        Ok(Self {
            root: self.root.or(file.root),
            listen: list(self.listen, file.listen),
            host: self.host.or(file.host),
            token_file: self.token_file.or(file.token_file),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            client_ca: self.client_ca.or(file.client_ca),
            state_dir: self.state_dir.or(file.state_dir),
            address_file: self.address_file.or(file.address_file),
            supervisor_listen: list(self.supervisor_listen, file.supervisor_listen),
            supervisor_username: self.supervisor_username.or(file.supervisor_username),
            supervisor_password_file: self.supervisor_password_file.or(file.supervisor_password_file),
            redis_url: self.redis_url.or(file.redis_url),
            keep_logs: self.keep_logs.or(file.keep_logs),
        })
    }

    /// The folder of the host's files.
    pub fn root(&self) -> PathBuf {
        self.root.clone().unwrap_or_else(|| "/apps".into())
    }

    /// Where to listen.
    pub fn listen(&self) -> Vec<ListenAddress> {
        if self.listen.is_empty() {
            vec![ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 9002)))]
        } else {
            self.listen.clone()
        }
    }

    /// Checks that everything is there and nobody is let in by mistake.
    pub fn settings(self) -> Result<Settings, ServeError> {
        let bad = |text: String| Err(ServeError::BadSetting(text));
        let (root, listen) = (self.root(), self.listen());
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles {
                certificate,
                key,
                only_certificates: self.client_ca.is_some() && self.token_file.is_none(),
                client_ca: self.client_ca,
            }),
            (None, None) if self.client_ca.is_some() => {
                return bad(
                    "--client-ca needs --tls-cert and --tls-key: certificates are shown over TLS".into()
                );
            }
            (None, None) => None,
            _ => return bad("--tls-cert and --tls-key belong together: expected both".into()),
        };
        let is_guarded = self.token_file.is_some() || tls.as_ref().is_some_and(|tls| tls.only_certificates);
        if let Some(open) = listen.iter().find(|address| !address.is_local())
            && !is_guarded
        {
            return bad(format!(
                "--listen {open} can be reached from other machines, and whoever is let in is root here: \
                 expected --token-file, or --client-ca with --tls-cert and --tls-key"
            ));
        }
        let supervisor_login = match (self.supervisor_username, &self.supervisor_password_file) {
            (Some(username), Some(path)) => {
                let password = read_secret(path, "password")?;
                Some(SupervisorLogin { username, password: Secret::new(password) })
            }
            (None, None) => None,
            _ => {
                return bad("--supervisor-username and --supervisor-password-file belong together: \
                            expected both"
                    .into());
            }
        };
        if supervisor_login.is_some() && self.supervisor_listen.is_empty() {
            return bad("--supervisor-username is of no use without --supervisor-listen".into());
        }
        if let Some(open) = self.supervisor_listen.iter().find(|address| !address.is_local())
            && supervisor_login.is_none()
        {
            return bad(format!(
                "--supervisor-listen {open} can be reached from other machines: \
                 expected --supervisor-username and --supervisor-password-file"
            ));
        }
        let Some(host) = self.host else {
            return bad("--host is missing: expected the name by which the server knows this host".into());
        };
        Ok(Settings {
            root,
            listen,
            host,
            token_file: self.token_file,
            tls,
            state_dir: self.state_dir,
            address_file: self.address_file,
            supervisor_listen: self.supervisor_listen,
            supervisor_login,
            // An empty variable is none, as everywhere.
            redis_url: self.redis_url.map(|RedisUrl(url)| url).filter(|url| !url.expose().is_empty()),
            keep_logs: self.keep_logs.unwrap_or(DEFAULT_KEEP_LOGS),
        })
    }
}

/// Reads a token; one that is too short to be one is refused.
pub fn read_token(path: &Path) -> Result<Secret, ServeError> {
    let token = read_secret(path, "token")?;
    if token.len() < TOKEN_LEAST || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ServeError::BadSetting(format!(
            "{} holds no token: expected at least {TOKEN_LEAST} printable ASCII characters without spaces",
            path.display()
        )));
    }
    Ok(Secret::new(token))
}

/// Reads a text that must not be empty; white space around it does not count.
fn read_secret(path: &Path, what: &'static str) -> Result<String, ServeError> {
    let text = files::read_text(path, SECRET_LIMIT).map_err(|source| ServeError::Secret {
        what,
        path: path.to_owned(),
        source,
    })?;
    if files::can_others_read(path) {
        warn!("the {what} in {} can be read by other users: chmod 600", path.display());
    }
    match text.trim() {
        "" => Err(ServeError::BadSetting(format!("{} is empty: expected a {what}", path.display()))),
        text => Ok(text.to_owned()),
    }
}

fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<ListenAddress>, D::Error> {
    struct Addresses;

    impl<'de> Visitor<'de> for Addresses {
        type Value = Vec<ListenAddress>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("ADDRESS:PORT or unix:/PATH, or a list of these")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![text.parse().map_err(E::custom)?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut addresses = Vec::new();
            while let Some(address) = list.next_element()? {
                addresses.push(address);
            }
            Ok(addresses)
        }
    }

    from.deserialize_any(Addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(of: &[&str]) -> Flags {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            flags: Flags,
        }
        let words = ["x", "--host", "h"].iter().chain(of);
        let mut flags = <Line as clap::Parser>::try_parse_from(words).unwrap().flags;
        // Whatever the environment of the tests says.
        (flags.root, flags.redis_url) = (None, None);
        flags
    }

    fn refusal(of: &[&str]) -> String {
        flags(of).settings().unwrap_err().to_string()
    }

    #[test]
    fn nobody_is_let_in_from_other_machines_by_mistake() {
        for address in ["0.0.0.0:9002", "192.168.1.1:9002", "[::]:0", "[fe80::1]:1", "[::ffff:10.0.0.1]:1"] {
            let said = refusal(&["--listen", address]);
            assert!(said.contains("can be reached from other machines"), "{said}");
            // TLS hides what is said from others, but lets everybody say it. A second address changes nothing.
            let said = refusal(&[
                "--listen",
                "127.0.0.1:1",
                "--listen",
                address,
                "--tls-cert",
                "c",
                "--tls-key",
                "k",
            ]);
            assert!(said.contains("--token-file"), "{said}");
            flags(&["--listen", address, "--token-file", "t"]).settings().unwrap();
            let by_certificate =
                ["--listen", address, "--tls-cert", "c", "--tls-key", "k", "--client-ca", "a"];
            assert!(flags(&by_certificate).settings().unwrap().tls.unwrap().only_certificates);
        }
        for address in ["127.0.0.1:9002", "127.8.8.8:0", "[::1]:0", "[::ffff:127.0.0.1]:1", "unix:/a/b"] {
            flags(&["--listen", address]).settings().unwrap();
        }
        assert!(refusal(&["--client-ca", "a"]).contains("--tls-cert"));
        assert!(refusal(&["--tls-cert", "a"]).contains("expected both"));
        let both = ["--tls-cert", "c", "--tls-key", "k", "--client-ca", "a", "--token-file", "t"];
        assert!(!flags(&both).settings().unwrap().tls.unwrap().only_certificates);
    }

    #[test]
    fn supervisors_port_is_guarded_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "{SHA}82ab876d1387bfafe46cc1c8a2ef074eae50cb1d\n").unwrap();
        let login = ["--supervisor-username", "user", "--supervisor-password-file", file.to_str().unwrap()];
        let open = ["--supervisor-listen", "0.0.0.0:9001"];
        assert!(refusal(&open).contains("--supervisor-username"));
        let settings = flags(&[&open[..], &login].concat()).settings().unwrap();
        assert!(settings.supervisor_login.unwrap().password.expose().ends_with("1d"));
        assert!(refusal(&login).contains("--supervisor-listen"));
        assert!(refusal(&login[..2]).contains("expected both"));
        flags(&["--supervisor-listen", "127.0.0.1:9001"]).settings().unwrap();
        std::fs::write(&file, "\n").unwrap();
        assert!(refusal(&[&open[..], &login].concat()).ends_with("is empty: expected a password"));
    }

    #[test]
    fn a_file_says_the_same_as_flags_which_win() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.yaml");
        std::fs::write(
            &file,
            "listen: [127.0.0.1:1, 'unix:/a/b']\nhost: from-file\nkeep-logs: 30\nroot: /srv\nredis-url: redis://u:geheim@r\n\
             supervisor-listen: 127.0.0.1:9001\n",
        )
        .unwrap();
        let settings = flags(&["--keep-logs", "3"]).or_file(&file).unwrap().settings().unwrap();
        assert_eq!((settings.host.as_str(), settings.keep_logs), ("h", 3));
        assert_eq!((settings.root, settings.listen.len()), (PathBuf::from("/srv"), 2));
        assert_eq!(settings.supervisor_listen.len(), 1);
        assert_eq!(settings.redis_url.unwrap().expose(), "redis://u:geheim@r");
        let of_file = Flags::default().or_file(&file).unwrap();
        assert_eq!(of_file.host.as_ref().unwrap().as_str(), "from-file");
        assert!(!format!("{of_file:?}").contains("geheim"));

        std::fs::write(&file, "").unwrap();
        assert_eq!(Flags::default().or_file(&file).unwrap().listen()[0].to_string(), DEFAULT_LISTEN);
        for (bad, part) in
            [("lisen: x", "lisen"), ("listen: 9002", "listen"), ("listen: [x]", "is no address")]
        {
            std::fs::write(&file, bad).unwrap();
            let said = vr_common::exit::chain(&Flags::default().or_file(&file).unwrap_err());
            assert!(said.contains("agent.yaml") && said.contains(part), "{said}");
        }
    }
}
