//! A host whose agent's address is not known: nothing is sent anywhere, least of all a token.

use async_trait::async_trait;
use vr_common::host_api::{ProcDocument, UptestResult};

use super::{Action, HostDriver, HostError};

/// Says to everything that it cannot be done.
#[derive(Debug, Clone)]
pub struct UnknownHost {
    host: String,
}

impl UnknownHost {
    /// The host of that name.
    pub fn new(host: &str) -> Self {
        Self { host: host.to_owned() }
    }

    fn error<T>(&self) -> Result<T, HostError> {
        Err(HostError::Unreachable {
            host: self.host.clone(),
            source: "this server does not know where its agent is".into(),
        })
    }
}

#[async_trait]
impl HostDriver for UnknownHost {
    async fn procs(&self) -> Result<Vec<ProcDocument>, HostError> {
        self.error()
    }

    async fn deploy(&self, _: &str, _: &str) -> Result<ProcDocument, HostError> {
        self.error()
    }

    async fn act(&self, _: &str, _: Action) -> Result<ProcDocument, HostError> {
        self.error()
    }

    async fn uptest(&self, _: &str) -> Result<Vec<UptestResult>, HostError> {
        self.error()
    }

    async fn delete(&self, _: &str) -> Result<(), HostError> {
        self.error()
    }

    async fn log_tail(&self, _: &str, _: u64) -> Result<String, HostError> {
        self.error()
    }
}
