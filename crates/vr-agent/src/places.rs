//! How many connections of an address are served at once, and which one has to go when there are more.
//!
//! Who has shown that it may call keeps its place. Of the others, the one that came first goes when somebody comes and no place
//! is left: whoever says nothing or does not know the token keeps nobody out. This module must not know what is shown.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tracing::debug;

/// The places of one address.
#[derive(Debug)]
pub struct Places {
    limit: usize,
    free: Arc<Semaphore>,
    /// Those who have shown nothing so far, the first ones first; and some who have since, or are gone.
    unproven: Mutex<VecDeque<Weak<Inner>>>,
}

/// What is known of a connection's caller. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Caller(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_proven: AtomicBool,
    has_to_go: Notify,
}

/// A connection's place, free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    caller: Caller,
    _permit: OwnedSemaphorePermit,
}

impl Caller {
    /// Says that it may call, so that its connection keeps its place.
    pub fn keep_place(&self) {
        self.0.is_proven.store(true, Ordering::Relaxed);
    }
}

impl Places {
    /// So many, all of them free.
    pub fn new(limit: usize) -> Self {
        Self { limit, free: Arc::new(Semaphore::new(limit)), unproven: Mutex::default() }
    }

    /// A place for somebody who has come. Waits only while all are taken by callers who have shown that they may call.
    pub async fn take(&self) -> Option<Place> {
        if self.free.available_permits() == 0 {
            self.send_one_away();
        }
        // The semaphore is never closed.
        let permit = Arc::clone(&self.free).acquire_owned().await.ok()?;
        let caller = Caller::default();
        let mut unproven = self.unproven.lock().unwrap_or_else(PoisonError::into_inner);
        if unproven.len() >= 2 * self.limit {
            unproven.retain(|caller| caller.upgrade().is_some_and(|caller| !caller.may_stay()));
        }
        unproven.push_back(Arc::downgrade(&caller.0));
        drop(unproven);
        Some(Place { caller, _permit: permit })
    }

    fn send_one_away(&self) {
        let mut unproven = self.unproven.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(first) = unproven.pop_front() {
            if let Some(first) = first.upgrade().filter(|first| !first.may_stay()) {
                return first.has_to_go.notify_one();
            }
        }
    }
}

impl Inner {
    fn may_stay(&self) -> bool {
        self.is_proven.load(Ordering::Relaxed)
    }
}

impl Place {
    /// Whose place it is.
    pub fn caller(&self) -> Caller {
        self.caller.clone()
    }

    /// Serves a connection to its end, or until its place is needed for somebody else.
    pub async fn serve(self, connection: impl Future<Output = ()>) {
        tokio::select! {
            () = connection => {}
            () = self.caller.0.has_to_go.notified() => {
                debug!("a caller that had not shown that it may call had to make room");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn whoever_has_shown_nothing_for_longest_makes_room() {
        let places = Places::new(3);
        let mut served = Vec::new();
        let mut callers = Vec::new();
        for _ in 0..3 {
            let place = places.take().await.unwrap();
            callers.push(place.caller());
            served.push(tokio::spawn(place.serve(pending())));
        }
        callers[0].keep_place();
        let fourth = timeout(SOON, places.take()).await.expect("a place").unwrap();
        timeout(SOON, served.remove(1)).await.expect("the second one goes").unwrap();
        assert!(served.iter().all(|one| !one.is_finished()));
        // Nobody who may call has to go.
        callers[2].keep_place();
        fourth.caller().keep_place();
        assert!(timeout(Duration::from_millis(20), places.take()).await.is_err());
        drop(fourth);
        timeout(SOON, places.take()).await.expect("a place").unwrap();
        for served in served {
            assert!(!served.is_finished());
            served.abort();
        }
    }

    #[tokio::test]
    async fn those_who_came_and_went_are_forgotten() {
        let places = Places::new(2);
        for _ in 0..1000 {
            places.take().await.unwrap();
        }
        assert!(places.unproven.lock().unwrap().len() <= 4);
    }
}
