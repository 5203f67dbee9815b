//! What can go wrong with a host, each with its host and one clear sentence. No secret gets in here.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::command::Status;

/// Why something on another machine was not done.
#[derive(Debug, Clone, Error)]
pub enum SshError {
    /// Nobody answers there, or nobody who speaks SSH.
    #[error("{host} cannot be reached on port {port}: {reason}")]
    Unreachable {
        /// Whom we wanted.
        host: String,
        /// On which port.
        port: u16,
        /// What the network said.
        reason: String,
    },
    /// The host shows a key that nobody vouched for.
    #[error(transparent)]
    UnknownHostKey(Box<UnknownHostKey>),
    /// The host shows another key than the one that is known.
    #[error(
        "{host} on port {port} shows another host key than {}:{line} has: {fingerprint}; either somebody is in between, \
         or the host got new keys and the line has to be replaced",
        file.display()
    )]
    ChangedHostKey {
        /// Whom we wanted.
        host: String,
        /// On which port.
        port: u16,
        /// Of the key that was shown.
        fingerprint: String,
        /// Where the known key is.
        file: PathBuf,
        /// On which line.
        line: usize,
    },
    /// The host shows a key that is marked as revoked.
    #[error("{host} on port {port} shows a host key that {}:{line} revokes: {fingerprint}", file.display())]
    RevokedHostKey {
        /// Whom we wanted.
        host: String,
        /// On which port.
        port: u16,
        /// Of the key that was shown.
        fingerprint: String,
        /// Where it is revoked.
        file: PathBuf,
        /// On which line.
        line: usize,
    },
    /// All that is known of the host is an authority for certificates.
    #[error(
        "{}:{line} has only a certificate authority for {host} on port {port}, and host certificates are not supported; \
         add the host's own key: {fingerprint}",
        file.display()
    )]
    HostCertificate {
        /// Whom we wanted.
        host: String,
        /// On which port.
        port: u16,
        /// Of the key that was shown.
        fingerprint: String,
        /// Where the authority is.
        file: PathBuf,
        /// On which line.
        line: usize,
    },
    /// A file of this machine, such as a key, cannot be used.
    #[error("{} cannot be used: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The host lets nobody in with what we have.
    #[error("{host} does not let {user} in: {tried}{accepted}")]
    Authentication {
        /// The host.
        host: String,
        /// Who wanted in.
        user: String,
        /// What was tried, or why not, for people.
        tried: String,
        /// What the host takes, for people.
        accepted: String,
    },
    /// sudo does not do it.
    #[error("sudo on {host} does not let {user} become root: {reason}")]
    Sudo {
        /// The host.
        host: String,
        /// Who wanted to.
        user: String,
        /// What sudo said.
        reason: String,
    },
    /// The host runs no commands, or not this one's.
    #[error("{host} does not run {command}: {reason}")]
    Refused {
        /// The host.
        host: String,
        /// The command's name.
        command: String,
        /// What is known of the reason.
        reason: String,
    },
    /// A command ended with something else than success.
    #[error("{command} on {host} failed with {status}{}", last_lines(stderr))]
    Failed {
        /// The host.
        host: String,
        /// The command's name.
        command: String,
        /// How it ended.
        status: Status,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// The connection ended before the command did; nobody knows how that ended.
    #[error("the connection to {host} broke while {command} ran: {reason}")]
    Lost {
        /// The host.
        host: String,
        /// The command's name.
        command: String,
        /// What is known of the reason.
        reason: String,
    },
    /// It was not done in time.
    #[error("{command} on {host} was not done within {}", humantime::format_duration(*after))]
    Deadline {
        /// The host.
        host: String,
        /// The command's name.
        command: String,
        /// How long it had.
        after: Duration,
    },
    /// What was to be read is longer than was allowed.
    #[error("{path} on {host} is longer than {limit} bytes")]
    TooLong {
        /// The host.
        host: String,
        /// The file there.
        path: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// Somebody else has the lock.
    #[error("{path} on {host} is locked{holder}")]
    Locked {
        /// The host.
        host: String,
        /// The lock's file there.
        path: String,
        /// Who has it, for people; empty when unknown.
        holder: String,
    },
    /// What was asked for makes no sense.
    #[error("{what} cannot be used in a command: {reason}")]
    Invalid {
        /// What was given, shortened.
        what: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The input that was promised could not be read here.
    #[error("the input of {command} on {host} cannot be read: {reason}")]
    Input {
        /// The host.
        host: String,
        /// The command's name.
        command: String,
        /// What is wrong.
        reason: String,
    },
}

/// A host key that nobody vouched for, and how to do that.
#[derive(Debug, Clone, Error)]
#[error(
    "{host} on port {port} shows the {kind} host key {fingerprint}, which is not in {known_hosts}{others}; \
     compare it with that of the host, then add it: ssh-keyscan -p {port} -t {short} {host} >>{first}"
)]
pub struct UnknownHostKey {
    /// Whom we wanted.
    pub host: String,
    /// On which port.
    pub port: u16,
    /// The type of the key, such as `ssh-ed25519`.
    pub kind: String,
    /// The same for `ssh-keyscan -t`.
    pub short: &'static str,
    /// `SHA256:` and the sum in base64, as OpenSSH writes it.
    pub fingerprint: String,
    /// The files that were read, for people.
    pub known_hosts: String,
    /// The file to add it to.
    pub first: String,
    /// Which other keys of the host are known, for people; mostly empty.
    pub others: String,
}

impl SshError {
    /// Whether the host did not answer, which may be different in a while. All other errors need somebody who does
    /// something about them.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Lost { .. } | Self::Deadline { .. })
    }
}

/// The last lines of what a command said, as part of a sentence.
fn last_lines(stderr: &str) -> String {
    const LINES: usize = 5;
    const LONGEST: usize = 1000;
    let lines: Vec<&str> = stderr.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let text = lines[lines.len().saturating_sub(LINES)..].join("\n");
    let begin = text.len().saturating_sub(LONGEST);
    let begin = (begin..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    if text.is_empty() { String::new() } else { format!(": {}", &text[begin..]) }
}
