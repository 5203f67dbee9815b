//! A request and its answer as they are counted and logged: begun when the request is there, ended when the last byte
//! of the answer is, or when the client is gone.

use std::sync::Arc;
use std::time::Instant;

use super::access_log::{AccessLog, Outcome, Request};
use super::pool::Pool;
use super::upstream::Upstream;

/// How many bytes of a body are counted together.
const COUNT_EVERY: u64 = 256 << 10;

pub(super) struct Exchange {
    started: Instant,
    pool: Option<Arc<Pool>>,
    upstream: Option<Arc<Upstream>>,
    /// Zero until there is an answer.
    status: u16,
    bytes: u64,
    /// Those of `bytes` that the counters do not have yet.
    uncounted: u64,
    is_whole: bool,
    log: Option<Box<(Arc<AccessLog>, Request)>>,
}

impl Exchange {
    pub(super) fn begin(log: Option<(Arc<AccessLog>, Request)>) -> Self {
        Self {
            started: Instant::now(),
            pool: None,
            upstream: None,
            status: 0,
            bytes: 0,
            uncounted: 0,
            is_whole: false,
            log: log.map(Box::new),
        }
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    pub(super) fn is_for(&mut self, pool: &Arc<Pool>) {
        self.pool = Some(Arc::clone(pool));
    }

    /// Nodes are counted only for answers of their own.
    pub(super) fn answered_by(&mut self, upstream: &Arc<Upstream>) {
        self.upstream = Some(Arc::clone(upstream));
    }

    pub(super) fn status(&mut self, status: u16) {
        self.status = status;
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.uncounted += bytes as u64;
        if self.uncounted >= COUNT_EVERY {
            self.count_bytes();
        }
    }

    /// The last byte of the answer is through.
    pub(super) fn complete(&mut self) {
        self.is_whole = true;
    }

    fn count_bytes(&mut self) {
        let bytes = std::mem::take(&mut self.uncounted);
        if bytes > 0 {
            if let Some(pool) = &self.pool {
                pool.counters.sent(bytes);
            }
            if let Some(upstream) = &self.upstream {
                upstream.counters.sent(bytes);
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.count_bytes();
        let took = self.started.elapsed();
        // A client that was gone before there was an answer; nginx calls it so, too.
        let status = if self.status == 0 { 499 } else { self.status };
        if let Some(pool) = &self.pool {
            pool.counters.answered(status, took);
        }
        if let Some(upstream) = &self.upstream {
            upstream.counters.answered(status, took);
        }
        if let Some((log, request)) = self.log.take().map(|both| *both) {
            let outcome = Outcome {
                status,
                bytes: self.bytes,
                took,
                pool: self.pool.as_ref().map(|pool| pool.name.as_str()),
                node: self.upstream.as_ref().map(|upstream| upstream.node.to_string()),
                is_whole: self.is_whole,
            };
            log.write(&request, &outcome);
        }
    }
}
