//! Messages of our programs, on standard error. One that cannot be written, as the disk is full or nobody reads,
//! is dropped: no work may fail for want of its log.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// For a service: `RUST_LOG`, else `default` (such as `info`), with times.
pub fn init_service(default: &str) {
    tracing_subscriber::fmt()
        .with_env_filter(filter(default))
        .with_writer(io::stderr)
        .with_ansi(colours())
        .log_internal_errors(false)
        .init();
}

/// For a tool that people call: `RUST_LOG`, else `default` (such as `warn`), without times and modules.
pub fn init_tool(default: &str) {
    tracing_subscriber::fmt()
        .with_env_filter(filter(default))
        .with_writer(io::stderr)
        .with_ansi(colours())
        .with_target(false)
        .without_time()
        .log_internal_errors(false)
        .init();
}

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default))
}

/// Colours are for terminals, and for those who did not ask for none (no-color.org).
fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
