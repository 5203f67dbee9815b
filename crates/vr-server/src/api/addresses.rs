//! Where pools can be reached, remembered for some seconds: a balancer that is slow or gone must not hold up pages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vr_common::names::PoolName;

use crate::conductor::Balancers;

/// How long an answer, or the lack of one, is good for.
const FRESH: Duration = Duration::from_secs(3);
/// How long a balancer may take to answer.
const DEADLINE: Duration = Duration::from_secs(1);

type Known = HashMap<(String, String), (Option<String>, Instant)>;

/// The addresses of all pools. Cheap to clone.
#[derive(Clone)]
pub(super) struct PoolAddresses {
    balancers: Balancers,
    known: Arc<Mutex<Known>>,
}

impl PoolAddresses {
    pub fn new(balancers: Balancers) -> Self {
        Self { balancers, known: Arc::default() }
    }

    /// The `host:port` of a pool; none when there is no pool, or its balancer does not say.
    pub async fn of(&self, balancer: Option<&str>, pool: Option<&str>) -> Option<String> {
        let (name, pool) = (balancer?, pool?.parse::<PoolName>().ok()?);
        let key = (name.to_owned(), pool.as_str().to_owned());
        let before = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(&key).cloned()
        };
        if let Some((address, since)) = &before
            && since.elapsed() < FRESH
        {
            return address.clone();
        }
        let balancer = self.balancers.get(name)?;
        let address = match tokio::time::timeout(DEADLINE, balancer.pool_address(&pool)).await {
            // The pool may be made at any moment.
            Ok(Ok(None)) => return None,
            Ok(Ok(address)) => address,
            // What it last was is a better guess than nothing.
            _ => before.and_then(|(address, _)| address),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, since)| since.elapsed() < 100 * FRESH);
        known.insert(key, (address.clone(), Instant::now()));
        address
    }
}
