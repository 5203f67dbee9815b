//! What may be changed about pools and routes, why it may not, and what a pool's nodes are afterwards.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use thiserror::Error;
use vr_common::names::{Node, PoolName};

use super::options::HostPattern;
use super::state::StateError;
use super::wire::PoolView;

/// The most nodes that a pool can have.
const MAX_NODES: usize = 10_000;
/// The most routes that can be made beside those of the configuration.
pub(super) const MAX_ROUTES: usize = 10_000;

/// Why a pool was not changed, or does not listen.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// Somebody else listens at the address that the pool has.
    #[error("pool {pool}: {address} is in use by another program")]
    AddressInUse {
        /// The pool.
        pool: PoolName,
        /// Its address.
        address: SocketAddr,
    },
    /// The pool's address cannot be listened at.
    #[error("pool {pool}: cannot listen at {address}")]
    Listen {
        /// The pool.
        pool: PoolName,
        /// Its address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Every port of the range belongs to another pool or program.
    #[error("pool {pool}: no port from {} to {} is free on {host}", ports.start(), ports.end())]
    NoFreePort {
        /// The pool.
        pool: PoolName,
        /// The address that pools listen on.
        host: IpAddr,
        /// The range.
        ports: RangeInclusive<u16>,
    },
    /// The pool would become too large.
    #[error("pool {pool}: {count} nodes are too many, the most is {MAX_NODES}")]
    TooManyNodes {
        /// The pool.
        pool: PoolName,
        /// How many there would be.
        count: usize,
    },
    /// Two pools with one address.
    #[error("pools {first} and {second} have the same address {address}")]
    SharedAddress {
        /// One pool.
        first: PoolName,
        /// The other.
        second: PoolName,
        /// Their address.
        address: SocketAddr,
    },
    /// A listener's address is another one's, too.
    #[error("{address} is the address of a listener and of {other}")]
    ListenerTwice {
        /// The address.
        address: SocketAddr,
        /// Who else has it.
        other: String,
    },
    /// A listener's address cannot be had.
    #[error("cannot listen at {address}")]
    Listener {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The configuration says where a host's requests go.
    #[error("the route of {host} stands in the proxy's configuration and is changed there")]
    ConfiguredRoute {
        /// The host.
        host: HostPattern,
    },
    /// There are too many routes.
    #[error("{MAX_ROUTES} routes are the most that there can be")]
    TooManyRoutes,
    /// The routes could not be written down, so they were not changed.
    #[error("the route was not changed")]
    RouteState(#[source] StateError),
    /// The change could not be written down, so it was not made.
    #[error("pool {pool}: the change was not made")]
    State {
        /// The pool.
        pool: PoolName,
        /// Why.
        source: StateError,
    },
}

impl ChangeError {
    /// Whether what was asked for can never work.
    pub(super) fn is_bad_input(&self) -> bool {
        matches!(self, Self::TooManyNodes { .. } | Self::ConfiguredRoute { .. } | Self::TooManyRoutes)
    }
}

/// A change to one pool.
#[derive(Debug)]
pub(super) enum Change {
    Add(Vec<Node>),
    Delete { nodes: Vec<Node>, close_after: Option<Duration> },
    Set(Vec<Node>),
    DeletePool { only_if_empty: bool },
}

/// A pool after a change.
pub(super) struct Changed {
    pub(super) view: PoolView,
    pub(super) exists: bool,
    pub(super) removed: Vec<Node>,
}

/// The nodes that the pool has after a change; none if there is no pool then.
pub(super) fn desired(current: Option<&[Node]>, change: &Change) -> Option<Vec<Node>> {
    let without_repeats = |start: &[Node], more: &[Node]| {
        let mut known: std::collections::HashSet<&Node> = start.iter().collect();
        let new = more.iter().filter(|node| known.insert(node));
        start.iter().chain(new).cloned().collect::<Vec<_>>()
    };
    match change {
        Change::Add(nodes) => Some(without_repeats(current.unwrap_or_default(), nodes)),
        Change::Set(nodes) => {
            let kept: Vec<Node> =
                current.unwrap_or_default().iter().filter(|node| nodes.contains(node)).cloned().collect();
            Some(without_repeats(&kept, nodes))
        }
        Change::Delete { nodes, .. } => {
            current.map(|current| current.iter().filter(|node| !nodes.contains(node)).cloned().collect())
        }
        Change::DeletePool { only_if_empty: true } => {
            current.filter(|current| !current.is_empty()).map(<[Node]>::to_vec)
        }
        Change::DeletePool { only_if_empty: false } => None,
    }
}

/// Whether a pool may have so many nodes.
pub(super) fn check_size(pool: &PoolName, nodes: Option<&[Node]>) -> Result<(), ChangeError> {
    match nodes.map(<[Node]>::len).filter(|count| *count > MAX_NODES) {
        Some(count) => Err(ChangeError::TooManyNodes { pool: pool.clone(), count }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ports: &[u16]) -> Vec<Node> {
        ports.iter().map(|port| format!("h:{port}").parse().unwrap()).collect()
    }

    #[test]
    fn changes_keep_the_order_and_drop_repeats() {
        let current = nodes(&[3, 1]);
        let after = |change: Change| desired(Some(&current), &change);
        assert_eq!(after(Change::Add(nodes(&[2, 3, 2]))), Some(nodes(&[3, 1, 2])));
        assert_eq!(after(Change::Set(nodes(&[1, 2, 2]))), Some(nodes(&[1, 2])));
        assert_eq!(after(Change::Set(nodes(&[1, 3]))), Some(nodes(&[3, 1])));
        assert_eq!(after(Change::Delete { nodes: nodes(&[3, 9]), close_after: None }), Some(nodes(&[1])));
        assert_eq!(after(Change::DeletePool { only_if_empty: true }), Some(nodes(&[3, 1])));
        assert_eq!(after(Change::DeletePool { only_if_empty: false }), None);
    }

    #[test]
    fn a_pool_is_made_by_adding_but_not_by_deleting() {
        assert_eq!(desired(None, &Change::Add(Vec::new())), Some(Vec::new()));
        assert_eq!(desired(None, &Change::Delete { nodes: nodes(&[1]), close_after: None }), None);
        assert_eq!(desired(Some(&[]), &Change::DeletePool { only_if_empty: true }), None);
        assert_eq!(desired(None, &Change::DeletePool { only_if_empty: true }), None);
    }
}
