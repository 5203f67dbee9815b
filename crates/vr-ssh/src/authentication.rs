//! The login: keys from files, keys of an ssh-agent, the password.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, decode_secret_key};
use russh::{MethodKind, MethodSet};
use vr_common::secret::Secret;

use crate::connection::{Client, printable};
use crate::error::SshError;
use crate::settings::SshSettings;

/// How many keys are shown at most. OpenSSH lets six attempts pass (`MaxAuthTries`), and the password wants some, too.
const MOST_KEYS: usize = 4;
/// How many questions of a dialogue are answered.
const MOST_QUESTIONS: usize = 5;
/// The longest private key that is read, in bytes.
const LONGEST_KEY: u64 = 1 << 20;

/// Logs in, or says all that was tried.
pub(crate) async fn authenticate(
    handle: &mut Handle<Client>,
    host: &str,
    user: &str,
    settings: &SshSettings,
    end: &OnceLock<String>,
) -> Result<(), SshError> {
    let mut login = Login {
        handle,
        host,
        user,
        end,
        accepted: MethodSet::empty(),
        tried: Vec::new(),
        keys_shown: 0,
        is_in: false,
    };
    // Says what the host takes, and some need no more than a name.
    let first = login.handle.authenticate_none(user).await;
    login.answered(first)?;
    if !login.is_in {
        login.key_files(settings).await?;
    }
    if !login.is_in {
        login.agent(settings).await?;
    }
    if !login.is_in
        && let Some(password) = &settings.password
    {
        login.password(password).await?;
    }
    if login.is_in {
        return Ok(());
    }
    let tried = if login.tried.is_empty() {
        "there is no private key, no ssh-agent and no password to try".to_owned()
    } else {
        format!("tried {}", login.tried.join(", "))
    };
    Err(login.failed(tried))
}

struct Login<'a> {
    handle: &'a mut Handle<Client>,
    host: &'a str,
    user: &'a str,
    end: &'a OnceLock<String>,
    /// What the host would take now.
    accepted: MethodSet,
    /// What was tried, for people.
    tried: Vec<String>,
    keys_shown: usize,
    is_in: bool,
}

impl Login<'_> {
    fn failed(&self, tried: String) -> SshError {
        let accepted: Vec<String> = self.accepted.iter().map(String::from).collect();
        let accepted =
            if accepted.is_empty() { String::new() } else { format!("; it takes {}", accepted.join(", ")) };
        SshError::Authentication { host: self.host.to_owned(), user: self.user.to_owned(), tried, accepted }
    }

    /// Takes an answer, unless the host has hung up.
    fn answered(&mut self, answer: Result<AuthResult, russh::Error>) -> Result<(), SshError> {
        match answer {
            Ok(AuthResult::Success) => self.is_in = true,
            Ok(AuthResult::Failure { remaining_methods, .. }) if !self.handle.is_closed() => {
                self.accepted = remaining_methods;
            }
            _ => {
                let reason = self.end.get().cloned().unwrap_or_else(|| "it closed the connection".to_owned());
                let tried = if self.tried.is_empty() {
                    reason
                } else {
                    format!("tried {}; then: {reason}", self.tried.join(", "))
                };
                return Err(self.failed(tried));
            }
        }
        Ok(())
    }

    fn accepts(&self, method: MethodKind) -> bool {
        self.accepted.contains(&method)
    }

    async fn key_files(&mut self, settings: &SshSettings) -> Result<(), SshError> {
        let (files, is_chosen) = settings.key_files();
        for file in files {
            if !self.accepts(MethodKind::PublicKey) || self.is_in {
                return Ok(());
            }
            let passphrase = settings.passphrase.clone();
            let key = match read_key(file.clone(), passphrase).await {
                Ok(key) => key,
                Err(KeyError::Absent) if !is_chosen => continue,
                Err(error) if is_chosen => {
                    return Err(SshError::File { path: file, reason: error.explained() });
                }
                Err(error) => {
                    self.tried.push(format!("not {} ({})", file.display(), error.explained()));
                    continue;
                }
            };
            self.tried.push(format!("the key {}", file.display()));
            self.keys_shown += 1;
            let hash = self.hash(&key.algorithm()).await;
            let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
            let answer = self.handle.authenticate_publickey(self.user, key).await;
            self.answered(answer)?;
        }
        Ok(())
    }

    async fn agent(&mut self, settings: &SshSettings) -> Result<(), SshError> {
        let Some(socket) = settings.agent_socket().filter(|_| self.accepts(MethodKind::PublicKey)) else {
            return Ok(());
        };
        let mut agent = match AgentClient::connect_uds(&socket).await {
            Ok(agent) => agent,
            Err(error) => {
                self.tried.push(format!("not the ssh-agent at {} ({error})", socket.display()));
                return Ok(());
            }
        };
        let keys = match agent.request_identities().await {
            Ok(keys) => keys,
            Err(error) => {
                self.tried.push(format!("not the ssh-agent at {} ({error})", socket.display()));
                return Ok(());
            }
        };
        let mut shown = 0;
        for key in keys {
            let AgentIdentity::PublicKey { key, .. } = key else { continue };
            if self.is_in || !self.accepts(MethodKind::PublicKey) || self.keys_shown >= MOST_KEYS {
                break;
            }
            shown += 1;
            self.keys_shown += 1;
            let hash = self.hash(&key.algorithm()).await;
            // An agent may decline, for one key or for all.
            let answer = self.handle.authenticate_publickey_with(self.user, key, hash, &mut agent).await;
            if let Ok(answer) = answer {
                self.answered(Ok(answer))?;
            }
        }
        self.tried.push(format!("{shown} of the ssh-agent's keys"));
        Ok(())
    }

    async fn password(&mut self, password: &Secret) -> Result<(), SshError> {
        if self.accepts(MethodKind::Password) {
            self.tried.push("the password".to_owned());
            let answer = self.handle.authenticate_password(self.user, password.expose()).await;
            self.answered(answer)?;
        }
        if !self.is_in && self.accepts(MethodKind::KeyboardInteractive) {
            self.tried.push("the password in a dialogue".to_owned());
            self.dialogue(password).await?;
        }
        Ok(())
    }

    /// Answers what is asked for without an echo with the password, and all else with nothing.
    async fn dialogue(&mut self, password: &Secret) -> Result<(), SshError> {
        let mut answer = self.handle.authenticate_keyboard_interactive_start(self.user, None).await;
        for _ in 0..MOST_QUESTIONS {
            let prompts = match answer {
                Ok(KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. }) => prompts,
                Ok(KeyboardInteractiveAuthResponse::Success) => {
                    return self.answered(Ok(AuthResult::Success));
                }
                Ok(KeyboardInteractiveAuthResponse::Failure { remaining_methods, partial_success }) => {
                    return self.answered(Ok(AuthResult::Failure { remaining_methods, partial_success }));
                }
                Err(error) => return self.answered(Err(error)),
            };
            let reply = |echo: bool| if echo { String::new() } else { password.expose().to_owned() };
            let replies = prompts.iter().map(|prompt| reply(prompt.echo)).collect();
            answer = self.handle.authenticate_keyboard_interactive_respond(replies).await;
        }
        Err(self.failed(format!("tried {}; it asks without end", self.tried.join(", "))))
    }

    /// The hash that the host takes for signatures with this kind of key.
    async fn hash(&self, algorithm: &Algorithm) -> Option<HashAlg> {
        if !matches!(algorithm, Algorithm::Rsa { .. }) {
            return None;
        }
        match self.handle.best_supported_rsa_hash().await {
            Ok(Some(hash)) => hash,
            // It does not say; all that are not very old take this one.
            Ok(None) | Err(_) => Some(HashAlg::Sha512),
        }
    }
}

enum KeyError {
    Absent,
    NeedsPassphrase,
    Other(String),
}

impl KeyError {
    fn explained(&self) -> String {
        match self {
            Self::Absent => "there is no such file".to_owned(),
            Self::NeedsPassphrase => "it is encrypted, and there is no passphrase".to_owned(),
            Self::Other(reason) => printable(reason),
        }
    }
}

/// Reads a private key. An encrypted one takes a while, on purpose.
async fn read_key(file: PathBuf, passphrase: Option<Secret>) -> Result<PrivateKey, KeyError> {
    let read = tokio::task::spawn_blocking(move || {
        let text = read_text(&file)?;
        match decode_secret_key(&text, None) {
            Ok(key) if !key.is_encrypted() => return Ok(key),
            Ok(_) | Err(russh::keys::Error::KeyIsEncrypted) => {}
            // The older formats say nothing clearer.
            Err(_) if text.contains("ENCRYPTED") => {}
            // Of the library's: it wants all numbers of an ECDSA key to have 32 bytes, and one in 256 has fewer.
            Err(error) if text.contains("OPENSSH PRIVATE KEY") => {
                let way_out = "an ssh-agent can use it, or make another key";
                return Err(KeyError::Other(format!("it cannot be read ({error}); {way_out}")));
            }
            Err(error) => return Err(KeyError::Other(format!("it is no private key: {error}"))),
        }
        let passphrase = passphrase.ok_or(KeyError::NeedsPassphrase)?;
        decode_secret_key(&text, Some(passphrase.expose()))
            .map_err(|_| KeyError::Other("the passphrase does not fit".to_owned()))
    });
    read.await.unwrap_or_else(|error| Err(KeyError::Other(error.to_string())))
}

fn read_text(file: &Path) -> Result<String, KeyError> {
    let other = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => KeyError::Absent,
        _ => KeyError::Other(error.to_string()),
    };
    if std::fs::metadata(file).map_err(other)?.len() > LONGEST_KEY {
        return Err(KeyError::Other("it is too long for a private key".to_owned()));
    }
    std::fs::read_to_string(file).map_err(other)
}
