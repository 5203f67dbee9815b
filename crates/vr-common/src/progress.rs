//! Tells people or programs how far the work on a file is.
//!
//! Must not know what is done with the file.

use std::fmt;
use std::io::IsTerminal;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::log::DOING;

/// Callbacks are not called more often than this, save for the last bytes.
const CALLBACK_EVERY: Duration = Duration::from_millis(100);

/// A function that is told the bytes so far, and all of them if known.
pub type ProgressCallback = Arc<dyn Fn(u64, Option<u64>) + Send + Sync>;

/// Who is told how far it is.
#[derive(Clone, Default)]
pub enum Progress {
    /// Nobody.
    #[default]
    Quiet,
    /// A bar on standard error, drawn only when that is a terminal and messages about what is being done
    /// ([`DOING`]) are shown.
    Bar,
    /// A function that gets the bytes so far and, when known, the size of the whole; a new attempt starts at 0.
    Callback(ProgressCallback),
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quiet => "Quiet",
            Self::Bar => "Bar",
            Self::Callback(_) => "Callback",
        })
    }
}

/// Some work that is going on. Dropping it takes the bar away.
pub(crate) struct Meter {
    bar: Option<ProgressBar>,
    callback: Option<ProgressCallback>,
    total: Option<u64>,
    told: Instant,
}

impl Meter {
    /// Work on the file or URL `shown`, of which only the last part is shown.
    pub(crate) fn start(progress: &Progress, shown: &str, total: Option<u64>) -> Self {
        let mut meter = Self { bar: None, callback: None, total, told: Instant::now() };
        match progress {
            Progress::Quiet => {}
            Progress::Bar if io::stderr().is_terminal() && is_talking() => {
                let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
                let template = match total {
                    Some(_) => {
                        "{msg} [{wide_bar}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}"
                    }
                    None => "{msg} {spinner} {decimal_bytes} {decimal_bytes_per_sec}",
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("=> "));
                }
                let name = shown.rsplit('/').find(|part| !part.is_empty()).unwrap_or(shown);
                bar.set_message(name.escape_debug().to_string());
                meter.bar = Some(bar);
            }
            Progress::Bar => {}
            Progress::Callback(callback) => {
                callback(0, total);
                meter.callback = Some(callback.clone());
            }
        }
        meter
    }

    pub(crate) fn at(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
        if let Some(callback) = &self.callback
            && (self.total == Some(bytes) || self.told.elapsed() >= CALLBACK_EVERY)
        {
            self.told = Instant::now();
            callback(bytes, self.total);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn is_talking() -> bool {
    tracing::enabled!(target: DOING, tracing::Level::INFO)
}

/// A reader whose bytes are counted as they are read.
pub(crate) struct Metered<R> {
    reader: R,
    meter: Meter,
    bytes: u64,
}

impl<R> Metered<R> {
    pub(crate) fn new(reader: R, meter: Meter) -> Self {
        Self { reader, meter, bytes: 0 }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(into)?;
        self.bytes += length as u64;
        self.meter.at(self.bytes);
        Ok(length)
    }
}
