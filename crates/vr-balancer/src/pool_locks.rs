//! Changes of one pool one after the other, within this process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;
use vr_common::names::PoolName;

/// One lock for each pool that somebody changes.
#[derive(Debug, Default)]
pub(crate) struct PoolLocks(Mutex<BTreeMap<PoolName, Arc<tokio::sync::Mutex<()>>>>);

impl PoolLocks {
    /// Waits until nobody else has the pool.
    pub(crate) async fn lock(&self, pool: &PoolName) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody has or wants those that only this map knows.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(pool.clone()).or_default())
        };
        lock.lock_owned().await
    }
}
