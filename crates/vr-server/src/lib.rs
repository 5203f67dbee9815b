//! The control plane: store, API, pages, conductor and workers.
//!
//! Requests change what is wanted in the [`store`]; the [`conductor`] compares it with what [`hosts`] report
//! and acts; everything that happened becomes an event.

pub mod api;
pub mod cli;
pub mod companions;
pub mod conductor;
pub mod events;
pub mod hosts;
pub mod serve;
pub mod settings;
pub mod store;
pub mod time;
pub mod up;
