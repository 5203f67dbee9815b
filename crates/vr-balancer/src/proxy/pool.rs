//! A pool as the data plane sees it: a list of nodes that is swapped whole, and the choice among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use vr_common::names::{Node, PoolName};

use super::counters::Counters;
use super::options::{Balance, PoolOptions};
use super::page::Maintenance;
use super::upstream::{InFlight, Upstream};
use super::warnings::Warnings;

pub(super) struct Pool {
    pub(super) name: PoolName,
    nodes: ArcSwap<Vec<Arc<Upstream>>>,
    next: AtomicUsize,
    pub(super) warnings: Arc<Warnings>,
    pub(super) counters: Arc<Counters>,
    pub(super) options: ArcSwap<PoolOptions>,
    /// What is said while no node takes a request.
    pub(super) maintenance: ArcSwap<Maintenance>,
    /// Woken when the options are others.
    pub(super) options_changed: Arc<Notify>,
    /// Cancelled when the pool is gone.
    gone: CancellationToken,
    _until_gone: DropGuard,
}

impl Pool {
    pub(super) fn new(name: PoolName, options: PoolOptions) -> Self {
        let warnings = Arc::new(Warnings::new(name.clone()));
        let gone = CancellationToken::new();
        Self {
            name,
            nodes: ArcSwap::default(),
            next: AtomicUsize::new(0),
            warnings,
            counters: Arc::default(),
            maintenance: ArcSwap::from_pointee(Maintenance::new(&options)),
            options: ArcSwap::from_pointee(options),
            options_changed: Arc::default(),
            _until_gone: gone.clone().drop_guard(),
            gone,
        }
    }

    pub(super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    pub(super) fn upstreams(&self) -> Arc<Vec<Arc<Upstream>>> {
        self.nodes.load_full()
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        self.nodes.load().iter().map(|upstream| upstream.node.clone()).collect()
    }

    /// Makes these the options for the very next request. Reads the maintenance page, so it may wait for the disk.
    pub(super) fn set_options(&self, options: PoolOptions) {
        self.maintenance.store(Arc::new(Maintenance::new(&options)));
        let before = self.options.swap(Arc::new(options));
        let after = self.options.load();
        if (before.protocol, before.send_proxy) != (after.protocol, after.send_proxy) {
            self.nodes.load().iter().for_each(|upstream| upstream.forget_connections());
        }
        if before.health_check != after.health_check {
            self.options_changed.notify_one();
        }
    }

    /// Reads the maintenance page again if its file has changed.
    pub(super) fn look_at_page(&self) {
        if let Some(changed) = self.maintenance.load().reread(&self.name) {
            self.maintenance.store(Arc::new(changed));
        }
    }

    /// Makes these the nodes for the very next request, and gives back the ones that left, retired.
    /// Only one caller at a time: the registry sees to that.
    pub(super) fn replace_nodes(&self, nodes: &[Node]) -> Vec<Arc<Upstream>> {
        let before = self.upstreams();
        let new = |node: &Node| {
            Arc::new(Upstream::new(node.clone(), Arc::clone(&self.warnings), Arc::clone(&self.counters)))
        };
        let after: Vec<Arc<Upstream>> = nodes
            .iter()
            .map(|node| match before.iter().find(|upstream| upstream.node == *node) {
                Some(kept) => Arc::clone(kept),
                None => new(node),
            })
            .collect();
        // First the list, then the flags: a request that finds a flag set finds the new list when it looks again.
        self.nodes.store(Arc::new(after));
        before
            .iter()
            .filter(|upstream| !nodes.contains(&upstream.node))
            .map(|upstream| {
                upstream.retire();
                Arc::clone(upstream)
            })
            .collect()
    }

    /// The node whose turn it is, of those that have not been tried yet. Nodes that are down come last, and those that
    /// refused connections lately before these; but they do come, as there may be no others.
    pub(super) fn pick(
        &self,
        balance: Balance,
        tried: &[Arc<Upstream>],
    ) -> Option<(Arc<Upstream>, InFlight)> {
        loop {
            let nodes = self.nodes.load();
            let start = self.next.fetch_add(1, Ordering::Relaxed);
            let in_turn = (0..nodes.len())
                .map(|offset| &nodes[start.wrapping_add(offset) % nodes.len()])
                .filter(|upstream| !tried.iter().any(|other| Arc::ptr_eq(other, upstream)));
            let health = |upstream: &Upstream| (upstream.is_down(), upstream.is_aside());
            let upstream = match balance {
                Balance::LeastConnections => {
                    in_turn.min_by_key(|upstream| (health(upstream), upstream.open()))?
                }
                Balance::RoundRobin => in_turn.min_by_key(|upstream| health(upstream))?,
            };
            // None: it was taken out of the pool since the list was loaded, and there is another list now.
            if let Some(place) = upstream.enter() {
                return Some((Arc::clone(upstream), place));
            }
        }
    }

    /// Whether a request would find a node that, as far as is known, answers.
    pub(super) fn is_up(&self) -> bool {
        self.nodes.load().iter().any(|upstream| !upstream.is_down() && !upstream.is_aside())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ports: &[u16]) -> Vec<Node> {
        ports.iter().map(|port| format!("127.0.0.1:{port}").parse().unwrap()).collect()
    }

    fn pool(ports: &[u16]) -> Pool {
        let pool = Pool::new("web".parse().unwrap(), PoolOptions::default());
        assert!(pool.replace_nodes(&nodes(ports)).is_empty());
        pool
    }

    fn pick(pool: &Pool, tried: &[Arc<Upstream>]) -> Option<(Arc<Upstream>, InFlight)> {
        pool.pick(Balance::LeastConnections, tried)
    }

    #[test]
    fn equal_nodes_take_turns() {
        for balance in [Balance::LeastConnections, Balance::RoundRobin] {
            let pool = pool(&[1, 2, 3]);
            let mut ports: Vec<u16> = (0..6).map(|_| pool.pick(balance, &[]).unwrap().0.node.port).collect();
            ports.sort_unstable();
            assert_eq!(ports, [1, 1, 2, 2, 3, 3]);
        }
    }

    #[test]
    fn the_least_busy_node_is_chosen_unless_they_take_turns() {
        let pool = pool(&[1, 2]);
        let busy = pick(&pool, &[]).unwrap();
        for _ in 0..4 {
            assert_ne!(pick(&pool, &[]).unwrap().0.node, busy.0.node);
        }
        let turns = (0..4).map(|_| pool.pick(Balance::RoundRobin, &[]).unwrap().0.node.clone());
        assert_eq!(turns.filter(|node| *node == busy.0.node).count(), 2);
    }

    #[test]
    fn tried_nodes_are_not_chosen_again() {
        let pool = pool(&[1, 2]);
        let first = pick(&pool, &[]).unwrap().0;
        let second = pick(&pool, &[Arc::clone(&first)]).unwrap().0;
        assert_ne!(first.node, second.node);
        assert!(pick(&pool, &[first, second]).is_none());
    }

    #[test]
    fn a_node_that_is_down_is_the_last_choice_but_one_all_the_same() {
        let pool = pool(&[1, 2]);
        let check = vr_common::yaml::parse("check", "{path: /, fall: 1, rise: 1}").unwrap();
        let upstreams = pool.upstreams();
        assert_eq!(upstreams[0].checked(false, &check), Some(false));
        for balance in [Balance::LeastConnections, Balance::RoundRobin] {
            for _ in 0..4 {
                assert_eq!(pool.pick(balance, &[]).unwrap().0.node.port, 2);
            }
        }
        assert!(pool.is_up());
        assert_eq!(upstreams[1].checked(false, &check), Some(false));
        assert!(!pool.is_up());
        let all: std::collections::BTreeSet<u16> =
            (0..4).map(|_| pick(&pool, &[]).unwrap().0.node.port).collect();
        assert_eq!(all.len(), 2, "when all are down, all are tried");
    }

    #[test]
    fn kept_nodes_keep_their_counts_and_removed_ones_are_retired() {
        let pool = pool(&[1, 2]);
        let kept = pool.upstreams()[1].enter().unwrap();
        let removed = pool.replace_nodes(&nodes(&[2, 3]));
        assert_eq!(removed.len(), 1);
        assert_eq!(removed[0].node.port, 1);
        assert!(removed[0].enter().is_none());
        assert_eq!(pool.upstreams()[0].open(), 1);
        drop(kept);
        assert_eq!(pool.nodes(), nodes(&[2, 3]));
    }
}
