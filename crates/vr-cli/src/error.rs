//! What can go wrong, and which exit code it has.

use std::io;
use std::time::Duration;

use thiserror::Error;
use vr_common::api::ApiError;
use vr_common::credentials::CredentialsError;
use vr_common::exit;
use vr_common::names::NameError;

/// Why a command could not do its work.
#[derive(Debug, Error)]
pub enum CliError {
    /// A pattern is not a regular expression that we know.
    #[error("{pattern:?} is not a regular expression: {reason}")]
    Pattern {
        /// As it was given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name on the command line is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Procs were to be changed without saying which.
    #[error("refusing to {action} every proc: say which ones with a REGEX ('.*' for all)")]
    AllProcs {
        /// `start`, `stop` or `restart`.
        action: &'static str,
    },
    /// No server is known.
    #[error("no server to talk to: give --url, set VELOCIRAPTOR_URL, or start one on this machine")]
    NoServer,
    /// The server's address is none.
    #[error("{url:?} is not a server's address: {reason}")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody can be asked for the name or the password.
    #[error("no {what} for {server}: {how}")]
    NoLogin {
        /// `user name` or `password`.
        what: &'static str,
        /// The server's address.
        server: String,
        /// What would help.
        how: &'static str,
    },
    /// The credentials file cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The question for the name or the password got no answer.
    #[error("cannot ask for a login")]
    Ask(#[source] io::Error),
    /// The server refused the login.
    #[error("{server} does not accept the login of {username:?}")]
    Unauthorized {
        /// The server's address.
        server: String,
        /// The user.
        username: String,
    },
    /// No swarm is meant.
    #[error("no swarm matches {pattern:?}{}", if *excluded { " once the excluded ones are left out" } else { "" })]
    NoSwarm {
        /// The pattern.
        pattern: String,
        /// Whether there were some before the excludes.
        excluded: bool,
    },
    /// No proc is meant.
    #[error("no proc matches {pattern:?}{}", host.as_ref().map(|h| format!(" on hosts that match {h:?}")).unwrap_or_default())]
    NoProc {
        /// The pattern.
        pattern: String,
        /// The pattern of the hosts.
        host: Option<String>,
    },
    /// The server was away for too long.
    #[error("{server} has not answered for {}", humantime::format_duration(*after))]
    Away {
        /// The server's address.
        server: String,
        /// How long it was tried.
        after: Duration,
        /// The last failure.
        source: ApiError,
    },
    /// The time that the user gave is over.
    #[error("{what} after {}; it goes on without us", humantime::format_duration(*after))]
    TimedOut {
        /// What is not over: `hello-prod-web is still deploying`.
        what: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The API said no, or something else than it promises.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

impl CliError {
    /// The process' exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Pattern { .. }
            | Self::Name(_)
            | Self::AllProcs { .. }
            | Self::NoServer
            | Self::Url { .. }
            | Self::NoLogin { .. }
            | Self::Credentials(_) => exit::BAD_INPUT,
            _ => exit::FAILED,
        }
    }

    /// A way out, when there is a likely one.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Unauthorized { .. } => {
                "check --username and VELOCIRAPTOR_PASSWORD, or the server's entry in the credentials file"
            }
            Self::Credentials(CredentialsError::Exposed { path, .. }) => {
                return Some(format!("chmod 600 {}", path.display()));
            }
            Self::Api(ApiError::Unreachable { .. }) => "is the server running, and is --url right?",
            Self::NoSwarm { .. } => {
                "'vr-cli list-swarms' shows the names; patterns match from their start on"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }

    /// Whether the reader of standard output went away.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }
}
