//! Does what waits in the queue: asks who knows the processes, tells Redis, and tries again what failed.

use std::thread;
use std::time::{Duration, Instant};

use redis::Pipeline;
use thiserror::Error;
use tracing::{info, warn};
use vr_common::exit::chain;
use vr_common::supervisor::{ProcessInfo, SupervisorClient, SupervisorError};

use super::messages;
use super::queue::{Pending, Queue, Work};

/// How long Redis may take to connect, and then for each read and write.
const REDIS_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after the first failure; it doubles with each that follows.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause: how late the news may come once Redis is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often Supervisor is asked about one event. It may be unable to answer about one process only, and the
/// others wait.
const SUPERVISOR_TRIES: u32 = 3;
/// Dropped messages are reported no more often.
const DROP_REPORTS: Duration = Duration::from_secs(10);

#[derive(Debug, Error)]
enum Failure {
    #[error("cannot ask Supervisor")]
    Supervisor(#[from] SupervisorError),
    #[error("cannot tell Redis")]
    Redis(#[from] redis::RedisError),
    #[error("cannot write a message")]
    Json(#[from] serde_json::Error),
}

/// Who knows the processes: a Supervisor, or the agent itself.
pub trait Source {
    /// A process as it is now; none if there is no such process.
    ///
    /// # Errors
    /// When nobody answers; it is worth another try.
    fn process(&self, name: &str) -> Result<Option<ProcessInfo>, SupervisorError>;

    /// All processes as they are now.
    ///
    /// # Errors
    /// As [`Self::process`].
    fn all(&self) -> Result<Vec<ProcessInfo>, SupervisorError>;
}

impl Source for SupervisorClient {
    fn process(&self, name: &str) -> Result<Option<ProcessInfo>, SupervisorError> {
        match self.process_info(name) {
            Ok(info) => Ok(Some(info)),
            Err(e @ SupervisorError::Refused { .. }) => {
                // It is gone by now, or Supervisor is going.
                info!(process = name, "not known any more: {}", chain(&e));
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn all(&self) -> Result<Vec<ProcessInfo>, SupervisorError> {
        self.all_process_info()
    }
}

/// The connections, and where they stand.
pub struct Worker<S> {
    redis: redis::Client,
    connection: Option<redis::Connection>,
    source: S,
    host: String,
    failures_in_a_row: u32,
    refreshes_in_vain: u32,
    drops_reported: Option<Instant>,
}

impl<S: Source> Worker<S> {
    /// A worker that connects when it has something to say.
    pub fn new(redis: redis::Client, source: S, host: String) -> Self {
        Self {
            redis,
            connection: None,
            source,
            host,
            failures_in_a_row: 0,
            refreshes_in_vain: 0,
            drops_reported: None,
        }
    }

    /// Works until the queue is closed and empty.
    pub fn work(&mut self, queue: &Queue) {
        loop {
            let done = match queue.take() {
                Work::End => break,
                Work::Publish(pending) => self.publish(queue, pending),
                Work::Refresh => self.refresh(queue),
            };
            match done {
                Ok(()) if self.failures_in_a_row > 0 => {
                    info!(failures = self.failures_in_a_row, "publishing works again");
                    self.failures_in_a_row = 0;
                }
                Ok(()) => {}
                Err(failure) => {
                    let pause = pause(self.failures_in_a_row);
                    self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                    warn!(waiting = queue.waiting(), pause_ms = pause.as_millis(), "{}", chain(&failure));
                    thread::sleep(pause);
                }
            }
            self.report_drops(queue);
        }
        self.drops_reported = None;
        self.report_drops(queue);
    }

    fn report_drops(&mut self, queue: &Queue) {
        if self.drops_reported.is_some_and(|last| last.elapsed() < DROP_REPORTS) {
            return;
        }
        let dropped = queue.take_dropped();
        if dropped > 0 {
            self.drops_reported = Some(Instant::now());
            warn!(dropped, "too many messages waited, the oldest were dropped");
        }
    }

    /// Publishes one message; what is worth another try is put back.
    fn publish(&mut self, queue: &Queue, pending: Pending) -> Result<(), Failure> {
        let message = match pending {
            Pending::Message(message) => message,
            Pending::Removed { event, group } => messages::removed_message(&event, &group, &self.host),
            Pending::State { event, process, tries } => match self.source.process(&process) {
                Ok(Some(info)) => messages::state_message(&event.name, &info, &self.host)?,
                Ok(None) => {
                    info!(event = event.name, process, "not published, as the process is gone");
                    return Ok(());
                }
                Err(e) if tries + 1 >= SUPERVISOR_TRIES => {
                    warn!(event = event.name, process, "not published, as Supervisor did not answer");
                    return Err(e.into());
                }
                Err(e) => {
                    queue.put_back(Work::Publish(Pending::State { event, process, tries: tries + 1 }));
                    return Err(e.into());
                }
            },
        };
        let mut pipeline = Pipeline::new();
        pipeline.cmd("PUBLISH").arg(messages::CHANNEL).arg(&message).ignore();
        self.tell_redis(&pipeline).inspect_err(|_| {
            // As it is now: asked again, Supervisor would tell of a later state.
            queue.put_back(Work::Publish(Pending::Message(message)));
        })
    }

    fn refresh(&mut self, queue: &Queue) -> Result<(), Failure> {
        let infos = match self.source.all() {
            Ok(infos) => infos,
            Err(e) => {
                // Otherwise the next event asks again, and a tick always comes.
                self.refreshes_in_vain += 1;
                if !self.refreshes_in_vain.is_multiple_of(SUPERVISOR_TRIES) {
                    queue.put_back(Work::Refresh);
                }
                return Err(e.into());
            }
        };
        self.refreshes_in_vain = 0;
        let pipeline = messages::cache_refresh(&self.host, &infos)?;
        self.tell_redis(&pipeline).inspect_err(|_| queue.put_back(Work::Refresh))
    }

    fn tell_redis(&mut self, pipeline: &Pipeline) -> Result<(), Failure> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = self.redis.get_connection_with_timeout(REDIS_TIMEOUT)?;
                connection.set_read_timeout(Some(REDIS_TIMEOUT))?;
                connection.set_write_timeout(Some(REDIS_TIMEOUT))?;
                connection
            }
        };
        // A connection that failed once is not used again: an answer might still be on its way.
        pipeline.exec(&mut connection)?;
        self.connection = Some(connection);
        Ok(())
    }
}

fn pause(failures_before: u32) -> Duration {
    SHORTEST_PAUSE.saturating_mul(1 << failures_before.min(16)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let pauses: Vec<_> = [0, 1, 4, 5, u32::MAX].map(|n| pause(n).as_millis()).into();
        assert_eq!(pauses, [200, 400, 3200, 5000, 5000]);
    }
}
