//! The one place that makes a [`Command`], so that every child has a known standard input
//! and every failure names its program.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

/// The variable that says who started a program: a process's number and when it began.
const STARTED_BY: &str = "VELOCIRAPTOR_STARTED_BY";

/// A command whose standard input is `/dev/null`.
#[expect(clippy::disallowed_methods, reason = "this is the helper that the ban points to")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Marks a program that will lead a process group of its own, so that [`end_left_behind`] finds it should this process be
/// killed.
pub fn mark(command: &mut Command) {
    if let Some(stat) = stat("self") {
        command.env(STARTED_BY, format!("{} {}", std::process::id(), stat.began));
    }
}

/// Kills the marked programs whose starters are no more, with their process groups.
pub fn end_left_behind() {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    for name in names.filter_map(|name| name.into_string().ok()) {
        if let Some(group) = name.parse().ok().and_then(Pid::from_raw).filter(|_| is_left_behind(&name)) {
            // It may have ended by itself.
            let _ended = kill_process_group(group, Signal::KILL);
        }
    }
}

fn is_left_behind(pid: &str) -> bool {
    // The mark is a number that means something in its own namespace only.
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    if namespace(pid) != namespace("self") {
        return false;
    }
    // What was meant to stay, such as ssh's shared connections, has a session of its own.
    if stat(pid).is_none_or(|stat| stat.group != pid || stat.session == pid) {
        return false;
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut variables =
        environment.split(|&byte| byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    let mark = variables.find_map(|variable| variable.strip_prefix(STARTED_BY)?.strip_prefix('='));
    mark.and_then(|mark| mark.split_once(' '))
        .is_some_and(|(starter, at)| stat(starter).is_none_or(|starter| starter.began != at))
}

/// What `/proc` says about a process.
struct Stat {
    group: String,
    session: String,
    /// When it began, in ticks since the machine did.
    began: String,
}

/// A process that has not ended; see `proc_pid_stat(5)`.
fn stat(pid: &str) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // A program's name can hold anything. After it come the third field, the state, and the rest.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).map(|field| (*field).to_owned());
    match field(3)?.as_str() {
        "Z" | "X" => None,
        _ => Some(Stat { group: field(5)?, session: field(6)?, began: field(22)? }),
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::time::{Duration, Instant};

    use super::*;

    /// Killed when the test is over.
    struct Sleep(std::process::Child);

    impl Sleep {
        fn new(starter: Option<&str>) -> Self {
            let mut sleep = command("sleep");
            mark(&mut sleep);
            if let Some(starter) = starter {
                sleep.env(STARTED_BY, starter);
            }
            // Whoever reads what the test says must not wait for these.
            sleep.arg("4000").stdout(Stdio::null()).stderr(Stdio::null());
            Self(sleep.process_group(0).spawn().unwrap())
        }
    }

    impl Drop for Sleep {
        fn drop(&mut self) {
            let _ended = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    #[test]
    fn only_what_nobody_waits_for_any_more_is_ended() {
        let mut ours = Sleep::new(None);
        // Our number, but not our life.
        let mut left = Sleep::new(Some(&format!("{} 1", std::process::id())));
        end_left_behind();
        let deadline = Instant::now() + Duration::from_secs(10);
        while left.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(ours.0.try_wait().unwrap().is_none());
    }
}
