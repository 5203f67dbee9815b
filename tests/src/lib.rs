//! Whole machines for the whole-system tests and the demo: a real server with its agent and its proxy on free
//! ports in a folder of its own, real repositories, real requests. Everything ends with its [`Machine`].

pub mod debian;
pub mod load;
pub mod machine;
pub mod network;
pub mod ports;
pub mod repository;
pub mod wait;

pub use debian::Debian;
pub use load::{Load, LoadReport};
pub use machine::Machine;
pub use network::{Network, NetworkHost};
pub use ports::PortBlock;
pub use repository::Repository;
pub use wait::wait_for;
