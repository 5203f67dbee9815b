//! Tells people or programs how far a transfer is.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::ProgressCallback;

/// Callbacks are not called more often than this, save for the last bytes.
const CALLBACK_EVERY: Duration = Duration::from_millis(100);

/// Who is told how far a transfer is.
#[derive(Clone, Default)]
pub enum Progress {
    /// Nobody.
    #[default]
    Quiet,
    /// A bar on standard error, drawn only when that is a terminal.
    Bar,
    /// A function that gets the bytes so far and, when known, the size of the whole; a new attempt starts at 0.
    Callback(ProgressCallback),
}

/// One running transfer.
pub(super) struct Meter {
    bar: Option<ProgressBar>,
    callback: Option<ProgressCallback>,
    total: Option<u64>,
    told: Instant,
}

impl Meter {
    pub(super) fn start(progress: &Progress, shown: &str, total: Option<u64>) -> Self {
        let mut meter = Self { bar: None, callback: None, total, told: Instant::now() };
        match progress {
            Progress::Quiet => {}
            Progress::Bar if std::io::stderr().is_terminal() => {
                let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
                let template = match total {
                    Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                    None => "{msg} {spinner} {bytes} {bytes_per_sec}",
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                let name = shown.rsplit('/').find(|part| !part.is_empty()).unwrap_or(shown);
                bar.set_message(name.to_owned());
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

    pub(super) fn at(&mut self, bytes: u64) {
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
