//! Publishes what procs do to Redis and keeps the host's cache there: `proc_publisher` those of a Supervisor, whose events
//! it listens to, and [`own`] the agent's own.
//!
//! Of `proc_publisher`, the thread that called [`run`] speaks Supervisor's listener protocol and never waits for anything
//! but Supervisor. In both cases a worker with a thread of its own talks to Redis, behind a bounded [`queue`].

use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use thiserror::Error;
use tracing::warn;
use vr_common::names::{HostName, NameError};
use vr_common::secret::Secret;
use vr_common::supervisor::{Login, SupervisorClient, SupervisorError};

pub mod cli;
pub mod host_name;
pub mod messages;
pub mod own;
pub mod protocol;
pub mod queue;
pub mod worker;

use protocol::ProtocolError;
use queue::Queue;
use worker::Worker;

/// How long the worker may go on once Supervisor is gone.
const LAST_WORK: Duration = Duration::from_secs(5);

/// Settings that cannot be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// A variable that must be there is missing or empty.
    #[error("the environment variable {name} is not set: expected {expected}")]
    Missing {
        /// The variable.
        name: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// A variable that is not UTF-8.
    #[error("the environment variable {name} is not UTF-8")]
    NotText {
        /// The variable.
        name: &'static str,
    },
    /// `REDIS_URL` is no address of Redis. It may hold a password, so it is not shown.
    #[error("REDIS_URL is not an address of Redis: expected redis://[user:password@]host[:port][/database]")]
    Redis {
        /// What is wrong with it.
        source: redis::RedisError,
    },
    /// `SUPERVISOR_SERVER_URL` is no address of Supervisor.
    #[error("SUPERVISOR_SERVER_URL")]
    Supervisor {
        /// What is wrong with it.
        source: SupervisorError,
    },
    /// `HOSTNAME` is no host's name.
    #[error("HOSTNAME")]
    Host {
        /// What is wrong with it.
        source: NameError,
    },
}

/// Why a listener ended before Supervisor did.
#[derive(Debug, Error)]
pub enum PublisherError {
    /// Supervisor said something that is not the protocol, or could not be talked to.
    #[error("the talk with Supervisor broke off")]
    Protocol(#[source] ProtocolError),
    /// The worker could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// What the listener needs to know.
#[derive(Debug)]
pub struct Settings {
    /// Where to publish.
    pub redis: redis::Client,
    /// Whom to ask for details.
    pub supervisor: SupervisorClient,
    /// The host's name in messages; found out if there is none.
    pub host: Option<HostName>,
}

impl Settings {
    /// Reads the settings from environment variables, given by name.
    ///
    /// # Errors
    /// Names the variable that is missing or wrong.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, SettingsError> {
        let text = |name: &'static str| match variable(name) {
            None => Ok(None),
            Some(value) => match value.into_string() {
                Ok(text) => Ok(Some(text).filter(|text| !text.is_empty())),
                Err(_) => Err(SettingsError::NotText { name }),
            },
        };
        let needed = |name, expected| text(name)?.ok_or(SettingsError::Missing { name, expected });

        let url =
            needed("SUPERVISOR_SERVER_URL", "Supervisor's address, which it gives to its event listeners")?;
        let login = text("SUPERVISOR_USERNAME")?.map(|username| {
            let password = Secret::new(text("SUPERVISOR_PASSWORD")?.unwrap_or_default());
            Ok(Login { username, password })
        });
        let supervisor = SupervisorClient::new(&url, login.transpose()?.as_ref())
            .map_err(|source| SettingsError::Supervisor { source })?;
        let redis_url = needed("REDIS_URL", "an address such as redis://localhost:6379/0")?;
        let redis = redis_at(&Secret::new(redis_url))?;
        let host = text("HOSTNAME")?.map(|name| name.parse()).transpose();
        Ok(Self { redis, supervisor, host: host.map_err(|source| SettingsError::Host { source })? })
    }
}

/// A client of the Redis at a URL; nothing is sent yet.
///
/// # Errors
/// [`SettingsError::Redis`].
pub fn redis_at(url: &Secret) -> Result<redis::Client, SettingsError> {
    redis::Client::open(url.expose()).map_err(|source| SettingsError::Redis { source })
}

/// Serves Supervisor until it closes its end, then gives the worker a few seconds to finish.
///
/// # Errors
/// When the protocol is broken, which cannot be mended: Supervisor starts a listener that ends again.
pub fn run(settings: Settings, input: impl BufRead, output: impl Write) -> Result<(), PublisherError> {
    let queue = Arc::new(Queue::default());
    let (finish, finished) = mpsc::channel::<()>();
    let for_worker = Arc::clone(&queue);
    thread::Builder::new()
        .name("publisher".into())
        .spawn(move || {
            let host = settings.host.map_or_else(host_name::fully_qualified, String::from);
            Worker::new(settings.redis, settings.supervisor, host).work(&for_worker);
            drop(finish);
        })
        .map_err(PublisherError::Thread)?;
    let served = protocol::serve(input, output, |event| queue.push(event));
    queue.close();
    // Nothing is ever sent: the channel closes when the worker has ended.
    if finished.recv_timeout(LAST_WORK) == Err(mpsc::RecvTimeoutError::Timeout) {
        warn!(unpublished = queue.waiting(), "ended before everything was published");
    }
    served.map_err(PublisherError::Protocol)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vr_common::exit::chain;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Settings::read(|name| variables.get(name).map(Into::into)).map_err(|e| chain(&e))
    }

    const SUPERVISOR: (&str, &str) = ("SUPERVISOR_SERVER_URL", "unix:///run/supervisor.sock");
    const REDIS: (&str, &str) = ("REDIS_URL", "redis://:s3cret@localhost:6379/0");

    #[test]
    fn two_variables_are_enough() {
        let settings = read(&[SUPERVISOR, REDIS, ("HOSTNAME", "")]).unwrap();
        assert_eq!(settings.host, None);
        let settings = read(&[SUPERVISOR, REDIS, ("HOSTNAME", "precise64")]).unwrap();
        assert_eq!(settings.host.unwrap().as_str(), "precise64");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_and_no_password_shown() {
        for (variables, expected) in [
            (&[REDIS][..], "SUPERVISOR_SERVER_URL is not set: expected Supervisor's address"),
            (&[SUPERVISOR], "REDIS_URL is not set: expected an address such as redis://localhost:6379/0"),
            (&[SUPERVISOR, ("REDIS_URL", "")], "REDIS_URL is not set"),
            (&[SUPERVISOR, ("REDIS_URL", "http://:s3cret@h")], "REDIS_URL is not an address of Redis"),
            (&[REDIS, ("SUPERVISOR_SERVER_URL", "localhost")], "expected http://host:port or unix:///path"),
            (&[REDIS, SUPERVISOR, ("HOSTNAME", "a b")], "HOSTNAME: \"a b\" is not a valid host name"),
        ] {
            let error = read(variables).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
