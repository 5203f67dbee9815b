//! The one place that makes a [`Command`], so that every child has a known standard input
//! and every failure names its program.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A command whose standard input is `/dev/null`.
#[expect(clippy::disallowed_methods, reason = "this is the helper that the ban points to")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Finds another of our binaries: in `$VR_BIN_DIR`, beside the running one, or in `$PATH`.
///
/// The last resort is the bare name, so that the error of a failed start names what is missing.
pub fn sibling(name: &str) -> PathBuf {
    let beside = |dir: &Path| Some(dir.join(name)).filter(|path| path.is_file());
    if let Some(found) = std::env::var_os("VR_BIN_DIR").and_then(|dir| beside(Path::new(&dir))) {
        return found;
    }
    if let Ok(exe) = std::env::current_exe() {
        // Test binaries live one folder below the programs they test.
        for dir in exe.ancestors().skip(1).take(2) {
            if let Some(found) = beside(dir) {
                return found;
            }
        }
    }
    std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).find_map(|dir| beside(&dir)))
        .unwrap_or_else(|| PathBuf::from(name))
}
