//! Drives dispatches: leases them one by one, takes their steps, and writes every step down before the next.
//!
//! A dispatch's step may be interrupted at any point and be taken again, by this worker or another one; each
//! action is idempotent, and what a step decided (which host, which port) is written before it is acted upon.

pub mod building;
pub mod planner;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use thiserror::Error;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use vr_balancer::{Balancer, BalancerError};
use vr_common::exit::chain;

use crate::events::{EventLog, News};
use crate::hosts::Fleet;
use crate::store::{DispatchRow, LateDelete, Lease, PortRange, State, Store, StoreError, SwarmRow};
use crate::time;

use building::BuildRunner;

/// The balancers of the settings, by name.
pub type Balancers = Arc<BTreeMap<String, Arc<dyn Balancer>>>;

/// What can be chosen.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This worker, as leases and transitions name it.
    pub worker: String,
    /// The ports that procs may get.
    pub ports: PortRange,
    /// Where hosts reach this server, such as `http://127.0.0.1:8000`.
    pub public_url: String,
    /// How long a lease lasts unless it is renewed.
    pub lease: Duration,
    /// How long a node that was taken out of its pool may finish what it has.
    pub grace: Duration,
    /// The most dispatches under way at once.
    pub dispatches: usize,
    /// The most builds under way at once.
    pub builds: usize,
    /// How long to wait before something is looked at again without having been told to.
    pub poll: Duration,
    /// How long to wait before a proc that could not be deleted is tried again.
    pub delete_again: Duration,
}

impl Settings {
    /// The usual values for a worker of this name.
    pub fn new(worker: &str, public_url: &str) -> Self {
        Self {
            worker: worker.to_owned(),
            ports: PortRange::default(),
            public_url: public_url.trim_end_matches('/').to_owned(),
            lease: Duration::from_secs(15),
            grace: Duration::from_secs(30),
            dispatches: 64,
            builds: 2,
            poll: Duration::from_millis(500),
            delete_again: Duration::from_secs(60),
        }
    }
}

/// How often a proc is deleted before somebody has to look.
const DELETE_TRIES: i64 = 3;

/// Why a step was not taken.
#[derive(Debug, Error)]
enum StepError {
    /// It cannot be taken; the dispatch ends here.
    #[error("{0}")]
    Failed(String),
    /// The store failed or the lease is lost; another try may go well.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<BalancerError> for StepError {
    fn from(error: BalancerError) -> Self {
        Self::Failed(chain(&error))
    }
}

/// The worker. Cheap to clone.
#[derive(Clone)]
pub struct Conductor {
    store: Store,
    events: EventLog,
    fleet: Fleet,
    balancers: Balancers,
    builder: Arc<dyn BuildRunner>,
    settings: Arc<Settings>,
    wake: Arc<Notify>,
    /// Held by the one task that deletes what could not be deleted at once.
    deleting: Arc<tokio::sync::Mutex<()>>,
}

impl Conductor {
    /// A worker on these parts; `wake` tells it that something was queued.
    pub fn new(
        store: Store,
        events: EventLog,
        fleet: Fleet,
        balancers: Balancers,
        builder: Arc<dyn BuildRunner>,
        settings: Settings,
        wake: Arc<Notify>,
    ) -> Self {
        let settings = Arc::new(settings);
        Self { store, events, fleet, balancers, builder, settings, wake, deleting: Arc::default() }
    }

    /// Works until `stop`; what is under way then is left at its last written step.
    pub async fn run(&self, stop: CancellationToken) {
        let mut work = JoinSet::new();
        let dispatches = Arc::new(Semaphore::new(self.settings.dispatches));
        let builds = Arc::new(Semaphore::new(self.settings.builds));
        loop {
            while let Ok(permit) = Arc::clone(&dispatches).try_acquire_owned() {
                match self.store.lease_dispatch(&self.settings.worker, self.settings.lease).await {
                    Ok(Some((dispatch, lease))) => {
                        let this = self.clone();
                        work.spawn(async move {
                            this.drive(dispatch, lease).await;
                            drop(permit);
                        });
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(error = %chain(&error), "no dispatch was leased");
                        break;
                    }
                }
            }
            while let Ok(permit) = Arc::clone(&builds).try_acquire_owned() {
                match self.store.lease_build(&self.settings.worker, self.settings.lease).await {
                    Ok(Some((build, lease))) => {
                        let this = self.clone();
                        work.spawn(async move {
                            this.build(build, lease).await;
                            drop(permit);
                        });
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(error = %chain(&error), "no build was leased");
                        break;
                    }
                }
            }
            if let Ok(only_one) = Arc::clone(&self.deleting).try_lock_owned() {
                let this = self.clone();
                work.spawn(async move {
                    this.delete_late_ones().await;
                    drop(only_one);
                });
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(self.settings.poll) => {}
            }
            // Panics were told where they happened.
            while work.try_join_next().is_some() {}
        }
        work.shutdown().await;
    }

    /// Takes a dispatch's steps, one after the other, for as long as the lease is held.
    async fn drive(&self, dispatch: DispatchRow, lease: Lease) {
        let id = dispatch.id.clone();
        let steps = AssertUnwindSafe(self.take_steps(dispatch, &lease)).catch_unwind();
        tokio::select! {
            steps = steps => if steps.is_err() {
                tracing::error!(dispatch = id, "a step panicked; it will be taken again");
            },
            error = self.keep(|| self.store.renew_dispatch(&id, &lease, self.settings.lease)) => {
                tracing::warn!(dispatch = id, error = %chain(&error), "stopped driving a dispatch");
            }
        }
        if let Err(error) = self.store.give_back_dispatch(&id, &lease, self.pause()).await {
            tracing::warn!(dispatch = id, error = %chain(&error), "a lease has to run out");
        }
    }

    /// How long work rests that has to be begun again.
    fn pause(&self) -> Duration {
        self.settings.lease / 4
    }

    /// Renews a lease again and again; ends with the error that says that it is lost.
    async fn keep<F>(&self, renew: impl Fn() -> F) -> StoreError
    where
        F: Future<Output = crate::store::Result<()>>,
    {
        loop {
            tokio::time::sleep(self.settings.lease / 4).await;
            match renew().await {
                Ok(()) => {}
                Err(error @ StoreError::LostLease { .. }) => return error,
                // The lease may outlast a passing failure of the store.
                Err(error) => tracing::warn!(error = %chain(&error), "a lease was not renewed"),
            }
        }
    }

    async fn take_steps(&self, mut dispatch: DispatchRow, lease: &Lease) {
        while !dispatch.state.is_over() {
            let swarm = match self.store.swarm(dispatch.swarm_id).await {
                Ok(swarm) => swarm,
                Err(error) => {
                    tracing::error!(dispatch = dispatch.id, error = %chain(&error), "cannot go on");
                    return;
                }
            };
            let (to, why) = match self.step(&mut dispatch, &swarm, lease).await {
                Ok(next) => next,
                Err(StepError::Failed(reason)) => {
                    self.undo(&dispatch, lease).await;
                    (State::Failed, reason)
                }
                // These will be the same next time.
                Err(StepError::Store(
                    error @ (StoreError::Invalid { .. }
                    | StoreError::NoPort { .. }
                    | StoreError::NotFound { .. }),
                )) => {
                    self.undo(&dispatch, lease).await;
                    (State::Failed, chain(&error))
                }
                Err(StepError::Store(error)) => {
                    // Somebody takes the step again when the lease has run out.
                    tracing::error!(dispatch = dispatch.id, error = %chain(&error), "a step was not taken");
                    return;
                }
            };
            if let Err(error) = self.store.transition(&dispatch, lease, to, &self.settings.worker, &why).await
            {
                tracing::error!(dispatch = dispatch.id, error = %chain(&error), "a step was not written");
                return;
            }
            match to {
                State::Failed => self.tell(&dispatch, &swarm, &why, &["swarm", "failed"]).await,
                State::Done => {
                    let message = format!("{} is at {}: {why}", swarm.cli_name(), dispatch.version);
                    self.tell(&dispatch, &swarm, &message, &["swarm", "success", "done"]).await;
                }
                _ => {}
            }
            dispatch.state = to;
        }
        // The next dispatch of the same swarm may have waited for this one.
        self.wake.notify_one();
    }

    /// Tells an event of a dispatch.
    async fn tell(&self, dispatch: &DispatchRow, swarm: &SwarmRow, message: &str, tags: &[&'static str]) {
        let title = format!("{} {}", swarm.cli_name(), dispatch.version);
        self.events
            .tell(
                News::new(title, message, tags)
                    .with("swarm_id", dispatch.id.as_str())
                    .with("resource_uri", format!("/api/v1/swarms/{}/", swarm.id)),
            )
            .await;
    }

    /// Deletes a proc, or remembers to try again.
    async fn delete(&self, late: LateDelete) -> bool {
        let hosts = match self.store.hosts().await {
            Ok(hosts) => hosts,
            Err(error) => {
                tracing::error!(error = %chain(&error), "a proc was not deleted");
                return false;
            }
        };
        let Some(host) = hosts.iter().find(|host| host.name == late.host) else {
            // The host is no longer ours, and so are its procs.
            drop(self.store.forget_delete(&late.host, &late.proc).await);
            return true;
        };
        match self.fleet.driver(host).delete(&late.proc).await {
            Ok(()) => {
                self.fleet.note_gone(&late.host, &late.proc);
                if let Err(error) = self.store.forget_delete(&late.host, &late.proc).await {
                    tracing::warn!(error = %chain(&error), "a deleted proc was not forgotten");
                }
                let message = format!("deleted {} on {}", late.proc, late.host);
                let news = News::new(&late.proc, message, &["proc", "deleted"]);
                self.events.tell(news.with("swarm_id", late.dispatch_id)).await;
                true
            }
            Err(error) => {
                let tries = late.tries + 1;
                let again = tries < DELETE_TRIES;
                let what = if again { "will be tried again" } else { "given up; delete it by hand" };
                let message = format!("{} was not deleted ({what}): {}", late.proc, chain(&error));
                let news = News::new(&late.proc, message, &["proc", "deleted", "warning"]);
                self.events.tell(news.with("swarm_id", late.dispatch_id.as_str())).await;
                let wait = i64::try_from(self.settings.delete_again.as_millis()).unwrap_or(i64::MAX);
                let kept = if again {
                    self.store.delete_later(&LateDelete { tries, ..late }, time::now() + wait).await
                } else {
                    self.store.forget_delete(&late.host, &late.proc).await
                };
                if let Err(error) = kept {
                    tracing::error!(error = %chain(&error), "a proc to delete was not remembered");
                }
                false
            }
        }
    }

    /// Tries all deletes that are due, one after the other, so that none is tried twice at once.
    async fn delete_late_ones(&self) {
        match self.store.due_deletes().await {
            Ok(due) => {
                for late in due {
                    self.leave_pools(&late.dispatch_id, &[(late.host.clone(), late.proc.clone())]).await;
                    self.delete(late).await;
                }
            }
            Err(error) => tracing::error!(error = %chain(&error), "procs to delete were not read"),
        }
    }
}
