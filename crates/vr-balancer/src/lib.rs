//! Pools of nodes in load balancers, and the built-in proxy.
//!
//! [`Balancer`] is the one interface; [`from_config`] makes balancers from the `BALANCERS:` setting. Backends are
//! [`DummyBalancer`] (memory only); [`ProxyBalancer`], which steers the built-in proxy of [`proxy`], a process of its own
//! that carries on when everything else is down; [`pools_in_files`], with a module for each program; [`stingray`], which
//! speaks SOAP; [`chained`], several as one; and [`exec`], a program of the operator's.
//!
//! This crate owns pools and their nodes. It must not know of swarms, procs or hosts, nor of the rules that send
//! traffic to a pool: those belong to the user.

pub mod apache;
pub mod balancer;
pub mod caddy;
pub mod chained;
pub mod cli;
pub mod config;
pub mod dummy;
pub mod error;
pub mod exec;
pub mod haproxy;
pub mod nginx;
mod pool_locks;
pub mod pools_in_files;
pub mod proxy;
pub mod site;
pub mod stingray;
pub mod varnish;

pub use balancer::{Balancer, DrainReport};
pub use config::{ConfigError, from_config, load_config};
pub use dummy::DummyBalancer;
pub use error::{BalancerError, Subject};
pub use proxy::client::ProxyBalancer;
