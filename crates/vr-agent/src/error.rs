//! Why the agent did not do what it was asked.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vr_common::lock::LockError;

/// What a call of the API can fail with.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// There is no such proc.
    #[error("there is no proc {0} on this host")]
    NoSuchProc(String),
    /// The proc exists with another `proc.yaml`.
    #[error("{0} exists with a different proc.yaml; delete it first")]
    Different(String),
    /// Another request had the last word.
    #[error("{name} {what}")]
    Overtaken {
        /// The proc.
        name: String,
        /// What happened to it, such as `was stopped meanwhile`.
        what: &'static str,
    },
    /// `vrun setup` failed.
    #[error("{name} cannot be set up: {reason}")]
    Setup {
        /// The proc.
        name: String,
        /// vrun's own words.
        reason: String,
    },
    /// It ended too soon.
    #[error("{name} did not start: {reason}")]
    Start {
        /// The proc.
        name: String,
        /// Why, or how it ended.
        reason: String,
        /// The end of its log.
        log_tail: String,
    },
    /// Another vrun command failed.
    #[error("vrun {subcommand} of {name} failed: {reason}")]
    Vrun {
        /// `uptest` or `teardown`.
        subcommand: &'static str,
        /// The proc.
        name: String,
        /// vrun's own words, or what was wrong with its answer.
        reason: String,
    },
    /// A file cannot be read, written or removed.
    #[error("cannot {what} {}", path.display())]
    File {
        /// `read`, `write`, …
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It takes longer than a request may; it goes on.
    #[error("{name} is not done after {seconds} s; it goes on, ask again later")]
    Slow {
        /// The proc.
        name: String,
        /// The deadline.
        seconds: u64,
    },
    /// A stop that a later agent will not know of.
    #[error("{name} is down, but will be started again with the agent or the host, as that cannot be noted")]
    NotNoted {
        /// The proc.
        name: String,
        /// Why its record cannot be written.
        source: Box<AgentError>,
    },
    /// Asked to take up a proc that is supervised already.
    #[error("{0} is supervised already")]
    AlreadyAdded(String),
    /// Asked to let go of a proc that is not down.
    #[error("{0} is still running; stop it first")]
    StillRunning(String),
    /// There is no process to do that to.
    #[error("{0} is not running")]
    NotRunning(String),
    /// The kernel refused a signal.
    #[error("cannot signal {name}")]
    Signal {
        /// The proc.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A defect of the agent itself.
    #[error("the agent failed while it worked on {0}; its log says why")]
    Broken(String),
    /// The agent is ending.
    #[error("the agent is shutting down")]
    ShuttingDown,
}

/// Why the agent does not serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A setting is wrong.
    #[error("{0}")]
    BadSetting(String),
    /// The file of settings cannot be used.
    #[error(transparent)]
    Config(vr_common::yaml::YamlError),
    /// A certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// The file of a token or password cannot be used.
    #[error("cannot read the {what} from {}", path.display())]
    Secret {
        /// `token` or `password`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent serves the same root.
    #[error("another agent already serves {}", root.display())]
    AlreadyServed {
        /// The root.
        root: PathBuf,
    },
    /// The root's lock cannot be taken.
    #[error("cannot become the only agent of {}", root.display())]
    Lock {
        /// The root.
        root: PathBuf,
        /// Why.
        source: LockError,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: crate::address::ListenAddress,
        /// Why.
        source: io::Error,
    },
    /// A file or folder cannot be made, read or written.
    #[error("cannot {what} {}", path.display())]
    File {
        /// `make`, `read`, `write`, …
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system refused something else.
    #[error("cannot {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl ServeError {
    /// Whether the caller has to change the command line or a file of settings.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::BadSetting(_) | Self::Config(_) | Self::Tls(_) | Self::Secret { .. })
    }
}
