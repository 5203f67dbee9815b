//! Messages of our programs, on standard error. One that cannot be written, as the disk is full or nobody reads,
//! is dropped: no work may fail for want of its log.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// The target of messages that say what a program is doing, such as `fetching …`. Tools show them to people at a
/// terminal as they are, without a level.
pub const DOING: &str = "doing";

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
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(colours())
        .event_format(ToolFormat(Format::default().with_target(false).without_time()))
        .log_internal_errors(false);
    let registry = tracing_subscriber::registry();
    match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(_) => registry.with(layer.with_filter(filter(default))).init(),
        // A tool may start many times a second, and the filter above takes its time to be made.
        Err(_) => registry.with(layer.with_filter(plain_filter(default))).init(),
    }
}

fn plain_filter(default: &str) -> Targets {
    default.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::WARN))
}

/// The default of a tool with `-q` and `-v`: warnings and errors, and what it is doing when somebody sits in front of
/// it. Quiet leaves errors; verbose once everything of interest, twice everything.
pub fn tool_default(quiet: bool, verbose: u8) -> String {
    level(quiet, verbose, io::stderr().is_terminal())
}

fn level(quiet: bool, verbose: u8, terminal: bool) -> String {
    match (quiet, verbose, terminal) {
        (true, _, _) => "error".to_owned(),
        (false, 0, false) => "warn".to_owned(),
        (false, 0, true) => format!("warn,{DOING}=info"),
        (false, 1, _) => "info".to_owned(),
        (false, _, _) => "trace".to_owned(),
    }
}

/// The usual lines, except for those that say what is being done.
struct ToolFormat(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for ToolFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if event.metadata().target() != DOING {
            return self.0.format_event(context, writer, event);
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default))
}

/// Colours are for terminals, and for those who did not ask for none (no-color.org).
fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Takes what is logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(quiet: bool, verbose: u8, terminal: bool) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(ToolFormat(Format::default().with_target(false).without_time()))
            .with_filter(plain_filter(&level(quiet, verbose, terminal)));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!("an error");
            tracing::warn!(number = 1, "a warning");
            tracing::info!(target: DOING, "fetching {}", "x");
            tracing::info!("a detail");
            tracing::debug!("noise");
        });
        let said = lines.0.lock().unwrap().clone();
        String::from_utf8(said).unwrap()
    }

    #[test]
    fn people_at_a_terminal_hear_more_than_a_pipe() {
        assert_eq!(said(true, 0, true), "ERROR an error\n");
        assert_eq!(said(false, 0, false), "ERROR an error\n WARN a warning number=1\n");
        assert_eq!(said(false, 0, true), "ERROR an error\n WARN a warning number=1\nfetching x\n");
        assert_eq!(
            said(false, 1, false),
            "ERROR an error\n WARN a warning number=1\nfetching x\n INFO a detail\n"
        );
        assert!(said(false, 2, false).ends_with("DEBUG noise\n"));
    }
}
