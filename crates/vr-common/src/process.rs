//! The one place that makes a [`Command`], so that every child has a known standard input
//! and every failure names its program.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, getpgid, getsid, kill_process_group};

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
    if let Some(began) = began("self") {
        command.env(STARTED_BY, format!("{} {began}", std::process::id()));
    }
}

/// Kills the marked programs whose starters are no more, with their process groups.
pub fn end_left_behind() {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let numbers = names.filter_map(|name| name.to_str()?.parse().ok()).filter_map(Pid::from_raw);
    for group in numbers.filter(|pid| is_left_behind(*pid)) {
        // It may have ended by itself.
        let _ended = kill_process_group(group, Signal::KILL);
    }
}

fn is_left_behind(pid: Pid) -> bool {
    // What was meant to stay, such as ssh's shared connections, has a session of its own.
    if getpgid(Some(pid)) != Ok(pid) || getsid(Some(pid)) == Ok(pid) {
        return false;
    }
    let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero().get())).unwrap_or_default();
    let mut variables =
        environment.split(|&byte| byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    let mark = variables.find_map(|variable| variable.strip_prefix(STARTED_BY)?.strip_prefix('='));
    mark.and_then(|mark| mark.split_once(' '))
        .is_some_and(|(starter, at)| began(starter).as_deref() != Some(at))
}

/// When a process that has not ended began, in ticks since the machine did; see `proc_pid_stat(5)`.
fn began(pid: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // A program's name can hold anything. After it come the third field, the state, and the rest.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let is_there = !matches!(fields.first(), None | Some(&"Z" | &"X"));
    fields.get(19).filter(|_| is_there).map(|began| (*began).to_owned())
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

    use super::*;

    #[test]
    fn only_what_nobody_waits_for_any_more_is_ended() {
        let marked_by = |mark: Option<&str>| {
            let mut sleep = command("sleep");
            mark_or(&mut sleep, mark);
            sleep.arg("4000").process_group(0).spawn().unwrap()
        };
        fn mark_or(command: &mut Command, other: Option<&str>) {
            mark(command);
            other.map(|mark| command.env(STARTED_BY, mark));
        }
        let mut ours = marked_by(None);
        // Our number, but not our life.
        let mut left = marked_by(Some(&format!("{} 1", std::process::id())));
        end_left_behind();
        assert!(!left.wait().unwrap().success());
        assert!(ours.try_wait().unwrap().is_none());
        ours.kill().unwrap();
        ours.wait().unwrap();
    }
}
