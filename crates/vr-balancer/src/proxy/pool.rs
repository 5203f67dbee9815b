//! A pool as the data plane sees it: a list of nodes that is swapped whole, and the choice among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use vr_common::names::{Node, PoolName};

use super::upstream::{InFlight, Upstream};
use super::warnings::Warnings;

pub(super) struct Pool {
    pub(super) name: PoolName,
    nodes: ArcSwap<Vec<Arc<Upstream>>>,
    next: AtomicUsize,
    pub(super) warnings: Arc<Warnings>,
}

impl Pool {
    pub(super) fn new(name: PoolName) -> Self {
        let warnings = Arc::new(Warnings::new(name.clone()));
        Self { name, nodes: ArcSwap::default(), next: AtomicUsize::new(0), warnings }
    }

    pub(super) fn upstreams(&self) -> Arc<Vec<Arc<Upstream>>> {
        self.nodes.load_full()
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        self.nodes.load().iter().map(|upstream| upstream.node.clone()).collect()
    }

    /// Makes these the nodes for the very next request, and gives back the ones that left, retired.
    /// Only one caller at a time: the registry sees to that.
    pub(super) fn replace_nodes(&self, nodes: &[Node]) -> Vec<Arc<Upstream>> {
        let before = self.upstreams();
        let after: Vec<Arc<Upstream>> = nodes
            .iter()
            .map(|node| match before.iter().find(|upstream| upstream.node == *node) {
                Some(kept) => Arc::clone(kept),
                None => Arc::new(Upstream::new(node.clone(), Arc::clone(&self.warnings))),
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

    /// The node with the least open on it, in turn among equals, that has not been tried yet.
    /// Nodes that refused connections lately come last, but they do come.
    pub(super) fn pick(&self, tried: &[Arc<Upstream>]) -> Option<(Arc<Upstream>, InFlight)> {
        loop {
            let nodes = self.nodes.load();
            let start = self.next.fetch_add(1, Ordering::Relaxed);
            let upstream = (0..nodes.len())
                .map(|offset| &nodes[start.wrapping_add(offset) % nodes.len()])
                .filter(|upstream| !tried.iter().any(|other| Arc::ptr_eq(other, upstream)))
                .min_by_key(|upstream| (upstream.is_aside(), upstream.open()))?;
            // None: it was taken out of the pool since the list was loaded, and there is another list now.
            if let Some(place) = upstream.enter() {
                return Some((Arc::clone(upstream), place));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ports: &[u16]) -> Vec<Node> {
        ports.iter().map(|port| format!("127.0.0.1:{port}").parse().unwrap()).collect()
    }

    fn pool(ports: &[u16]) -> Pool {
        let pool = Pool::new("web".parse().unwrap());
        assert!(pool.replace_nodes(&nodes(ports)).is_empty());
        pool
    }

    #[test]
    fn equal_nodes_take_turns() {
        let pool = pool(&[1, 2, 3]);
        let mut ports: Vec<u16> = (0..6).map(|_| pool.pick(&[]).unwrap().0.node.port).collect();
        ports.sort_unstable();
        assert_eq!(ports, [1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn the_least_busy_node_is_chosen() {
        let pool = pool(&[1, 2]);
        let busy = pool.pick(&[]).unwrap();
        for _ in 0..4 {
            assert_ne!(pool.pick(&[]).unwrap().0.node, busy.0.node);
        }
    }

    #[test]
    fn tried_nodes_are_not_chosen_again() {
        let pool = pool(&[1, 2]);
        let first = pool.pick(&[]).unwrap().0;
        let second = pool.pick(&[Arc::clone(&first)]).unwrap().0;
        assert_ne!(first.node, second.node);
        assert!(pool.pick(&[first, second]).is_none());
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
