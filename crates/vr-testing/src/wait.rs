//! What happens on the machine: conditions that are waited for, processes and files that are there.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Long enough for anything that will happen at all.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for a condition.
///
/// # Panics
/// When it has not come within [`DEADLINE`].
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An argument for `sleep` that no other process of this machine has, of more than an hour.
pub fn marker() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("4000.{}{:04}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Whether a `sleep` with this argument runs anywhere.
///
/// # Panics
/// When `/proc` cannot be read.
pub fn sleeps(marker: &str) -> bool {
    let wanted = format!("sleep\0{marker}\0");
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .any(|line| line == wanted.as_bytes())
}

/// The names in a folder, sorted; none when it is not there.
///
/// # Panics
/// When it cannot be read to its end.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<_> = entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
