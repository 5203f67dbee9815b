//! Waiting for work that goes on in the server, which may be restarted meanwhile.

use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use vr_common::api::ApiError;

use crate::error::CliError;
use crate::login::Session;
use crate::output::say;

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Between two looks.
    pub poll: Duration,
    /// For a server that does not answer.
    pub outage: Duration,
    /// For all of it.
    pub timeout: Duration,
}

impl Patience {
    /// The usual one: a look every half second, a minute for a server's restart.
    pub fn new(timeout: Duration) -> Self {
        Self { poll: Duration::from_millis(500), outage: Duration::from_secs(60), timeout }
    }
}

/// A server that may go away for a while.
#[derive(Debug)]
pub struct Outage {
    limit: Duration,
    since: Option<Instant>,
}

impl Outage {
    /// One that may last as long as this.
    pub fn new(limit: Duration) -> Self {
        Self { limit, since: None }
    }

    /// The server answered.
    pub fn is_over(&mut self) {
        if self.since.take().is_some() {
            say("the server answers again");
        }
    }

    /// Takes a failed call: an error when it is no outage, or one that lasts too long.
    pub fn bear(&mut self, session: &Session, error: ApiError) -> Result<(), CliError> {
        let passing = match &error {
            ApiError::Unreachable { .. } => true,
            ApiError::Refused { status, .. } => matches!(status, 502..=504),
            ApiError::Unexpected { .. } => false,
        };
        if !passing {
            return Err(session.error(error));
        }
        let now = Instant::now();
        let server = session.client.base();
        match self.since {
            None => {
                self.since = Some(now);
                let limit = humantime::format_duration(self.limit);
                say(&format!("{server} does not answer, trying again for {limit}"));
                Ok(())
            }
            Some(since) if now.duration_since(since) < self.limit => Ok(()),
            Some(_) => Err(CliError::Away { server: server.to_owned(), after: self.limit, source: error }),
        }
    }
}

/// A wait with a deadline.
#[derive(Debug)]
pub struct Wait<'a> {
    session: &'a Session,
    patience: Patience,
    started: Instant,
    outage: Outage,
}

impl<'a> Wait<'a> {
    /// Starts the clock.
    pub fn new(session: &'a Session, patience: Patience) -> Self {
        Self { session, patience, started: Instant::now(), outage: Outage::new(patience.outage) }
    }

    /// GETs a path; none while the server does not answer.
    pub fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<Option<T>, CliError> {
        match self.session.client.get(path) {
            Ok(value) => {
                self.outage.is_over();
                Ok(Some(value))
            }
            Err(error) => self.outage.bear(self.session, error).map(|()| None),
        }
    }

    /// Lets a moment pass, unless the time is over; `what` says what is not done yet.
    pub fn pause(&self, what: impl FnOnce() -> String) -> Result<(), CliError> {
        let left = self.patience.timeout.saturating_sub(self.started.elapsed());
        if left.is_zero() {
            return Err(CliError::TimedOut { what: what(), after: self.patience.timeout });
        }
        thread::sleep(self.patience.poll.min(left));
        Ok(())
    }
}
