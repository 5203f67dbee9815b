//! Waiting until nodes that were taken out have nothing open any more.
//!
//! A node is free when no host of the balancer has a connection to it, and no part of the program is left that might still
//! open one: after a graceful reload, old workers finish what they have begun, and a request whose body is still being
//! received has not chosen its node yet. When the grace period is over, only connections count.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::time::{Instant, sleep};
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};

use super::place::Place;
use super::{FileBalancer, PlaceError, Refusal};
use crate::balancer::{Balancer, DrainReport};
use crate::error::{BalancerError, HostFailure};

/// Between two looks; more and more, as long ones are seldom about to end.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl FileBalancer {
    /// See [`Balancer::wait_drained`].
    pub(super) async fn drain(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        grace: Duration,
    ) -> Result<Vec<DrainReport>, BalancerError> {
        let end = Instant::now() + grace;
        let mut pause = FIRST_PAUSE;
        let in_pool = self.get_nodes(pool).await?;
        let leaving: Vec<Node> = nodes.iter().filter(|node| !in_pool.contains(node)).cloned().collect();
        let report = |open: &BTreeMap<Node, u64>| {
            let report = |node: &Node| DrainReport {
                node: node.clone(),
                open: open.get(node).copied().unwrap_or(0),
                in_pool: in_pool.contains(node),
            };
            nodes.iter().map(report).collect()
        };
        if leaving.is_empty() {
            return Ok(report(&BTreeMap::new()));
        }
        let settling = self.places.iter().map(|place| place.program.settling()).max().unwrap_or_default();
        let mut free_since: Option<Instant> = None;
        loop {
            let began = Instant::now();
            let looks = try_join_all(self.places.iter().map(|place| place.look(&leaving))).await;
            let is_over = Instant::now() >= end;
            match looks {
                Ok(looks) => {
                    let mut open: BTreeMap<Node, u64> = BTreeMap::new();
                    for (node, count) in looks.iter().flat_map(|(counts, _)| counts) {
                        *open.entry(node.clone()).or_default() += count;
                    }
                    let nothing_open =
                        open.values().all(|count| *count == 0) && !looks.iter().any(|(_, old)| *old);
                    free_since = free_since.or(Some(began)).filter(|_| nothing_open);
                    if is_over || free_since.is_some_and(|since| began.duration_since(since) >= settling) {
                        let is_free = |node: &&Node| open.get(*node).is_none_or(|count| *count == 0);
                        let free: Vec<Node> = leaving.iter().filter(is_free).cloned().collect();
                        join_all(
                            self.places.iter().map(|place| place.program.drained(&place.site, pool, &free)),
                        )
                        .await;
                        return Ok(report(&open));
                    }
                }
                Err(failure) if is_over => {
                    let subject = self.subject(Some(pool));
                    return Err(BalancerError::Failed { subject, failed: vec![failure] });
                }
                Err(HostFailure { host, reason }) => {
                    tracing::debug!(balancer = self.name, host, reason, "cannot see yet what is open");
                }
            }
            sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl Place {
    /// The connections to each node, and whether an old generation of the program is left.
    async fn look(&self, nodes: &[Node]) -> Result<(BTreeMap<Node, u64>, bool), HostFailure> {
        let look = async {
            // First the old generation: what it opens until it is gone is counted afterwards.
            let old = self.program.has_old_generation(&self.site).await?;
            Ok::<_, Refusal>((self.program.open(&self.site, nodes).await?, old))
        };
        look.await.map_err(|refusal| self.failure(chain(&refusal)))
    }
}

impl From<Refusal> for PlaceError {
    /// Of a program that was only asked something.
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Site(error) => Self::Site(error),
            asked => Self::Asked(asked),
        }
    }
}
