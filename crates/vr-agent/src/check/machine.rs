//! The kernel, the disk, the clock, and what this process may use.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use jiff::Timestamp;
use rustix::fs::StatVfsMountFlags;
use rustix::process::{PidfdFlags, Resource, getpid, getrlimit, pidfd_open};
use vr_common::host_api::{CgroupVersion, Finding};
use vr_common::paths::VrRoot;

use super::{missing, ok, warn};
use crate::{files, host_info};

/// Free space below which deploys soon fail, in bytes.
const LITTLE_DISK: u64 = 1 << 30;
/// Free space below which nothing works, in bytes.
const NO_DISK: u64 = 64 << 20;
/// Free inodes below which deploys soon fail.
const FEW_INODES: u64 = 20_000;
/// Available memory below which there is no room for procs, in bytes.
const LITTLE_MEMORY: u64 = 128 << 20;
/// Open files that an agent of hundreds of procs and their readers needs.
const OPEN_FILES: u64 = 4096;
/// Processes that hundreds of procs need: each at least vrun, its init, and the app.
const PROCESSES: u64 = 4096;

pub fn look(root: &Path) -> Vec<Finding> {
    // What is not there yet will be where the nearest folder is.
    let there = root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let info = host_info::collect("", &VrRoot::new(there));
    vec![
        user(),
        kernel(&info.kernel),
        cgroups(info.cgroups),
        writable(root, there),
        disk(root, there),
        memory(info.memory_bytes, info.memory_available_bytes),
        open_files(getrlimit(Resource::Nofile).current),
        processes(),
        clock(),
    ]
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        return ok("user", "root");
    }
    let advice = "run the agent as root: procs then have users and limits of their own";
    warn("user", "not root, so all procs are of one user", advice)
}

fn kernel(release: &str) -> Finding {
    let found = format!("Linux {release}");
    if let Err(e) = pidfd_open(getpid(), PidfdFlags::empty()) {
        let advice = "needs Linux 5.3: the agent watches procs through handles on processes (pidfd)";
        return missing("kernel", format!("{found}, pidfd_open: {e}"), advice);
    }
    match version(release) {
        Some(version) if version < (5, 12) => warn(
            "kernel",
            found,
            "Linux 5.19 or later keeps procs better apart from the host (idmapped mounts)",
        ),
        Some(version) if version < (5, 19) => warn(
            "kernel",
            found,
            "Linux 5.19 or later keeps procs with builds and images better apart from the host",
        ),
        _ => ok("kernel", found),
    }
}

/// `(6, 1)` of `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn cgroups(version: CgroupVersion) -> Finding {
    match version {
        CgroupVersion::V2 => ok("control groups", "version 2"),
        CgroupVersion::V1 => ok("control groups", "version 1"),
        CgroupVersion::Hybrid => ok("control groups", "version 1 beside version 2 (hybrid)"),
        CgroupVersion::None => {
            let advice = "mount them (mount -t cgroup2 none /sys/fs/cgroup), or procs have no limits";
            warn("control groups", "none are mounted", advice)
        }
    }
}

fn writable(root: &Path, there: &Path) -> Finding {
    let what = "folder of the host";
    let exists = root.is_dir();
    let tried = tempfile::Builder::new().prefix(".vr-agent-check-").tempfile_in(there).and_then(|file| {
        io::Write::write_all(&mut file.as_file(), b"x")?;
        file.as_file().sync_all()
    });
    match tried {
        Err(e) => missing(
            what,
            format!("cannot write to {}: {e}", there.display()),
            "give --root a folder that this user may write to",
        ),
        Ok(()) if exists => ok(what, format!("{} can be written to", root.display())),
        Ok(()) => ok(what, format!("{} is not there yet and will be made", root.display())),
    }
}

fn disk(root: &Path, there: &Path) -> Finding {
    const WHAT: &str = "disk";
    let Ok(disk) = rustix::fs::statvfs(there) else {
        return missing(WHAT, format!("cannot look at {}", there.display()), "see that it is mounted");
    };
    if disk.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        let advice = "mount it without noexec: apps are run from there";
        return missing(WHAT, format!("{} is mounted noexec", root.display()), advice);
    }
    if disk.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return missing(WHAT, format!("{} is mounted read-only", root.display()), "mount it writable");
    }
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let total = disk.f_blocks.saturating_mul(disk.f_frsize);
    // Some file systems, such as btrfs, make inodes as they need them and count none.
    let inodes = (disk.f_files > 0).then_some(disk.f_favail);
    let mut found = format!("{} of {} free", size(free), size(total));
    if let Some(inodes) = inodes {
        found.push_str(&format!(", {inodes} inodes free"));
    }
    let advice = "make room: POST /v1/clean-up, or `vrun cleanup`, removes what no proc uses";
    if free < NO_DISK || inodes.is_some_and(|inodes| inodes < 100) {
        missing(WHAT, found, advice)
    } else if free < LITTLE_DISK || inodes.is_some_and(|inodes| inodes < FEW_INODES) {
        warn(WHAT, found, advice)
    } else {
        ok(WHAT, found)
    }
}

fn memory(total: u64, available: u64) -> Finding {
    let found = format!("{} of {} available", size(available), size(total));
    if available < LITTLE_MEMORY {
        return warn("memory", found, "there is no room for procs");
    }
    ok("memory", found)
}

fn open_files(most: Option<u64>) -> Finding {
    match most {
        Some(most) if most < OPEN_FILES => warn(
            "open files",
            format!("at most {most} for each process"),
            format!("hundreds of procs and readers need {OPEN_FILES}: LimitNOFILE=65536, or ulimit -n"),
        ),
        Some(most) => ok("open files", format!("at most {most} for each process")),
        None => ok("open files", "no limit"),
    }
}

fn processes() -> Finding {
    let number =
        |path: &str| -> Option<u64> { files::read_text(Path::new(path), 100).ok()?.trim().parse().ok() };
    let own_group = files::read_text(Path::new("/proc/self/cgroup"), 64 * 1024).unwrap_or_default();
    let of_group = own_group
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .and_then(|group| number(&format!("/sys/fs/cgroup{group}/pids.max")));
    let limits = [
        ("kernel.pid_max", number("/proc/sys/kernel/pid_max"), "sysctl -w kernel.pid_max=4194304"),
        ("kernel.threads-max", number("/proc/sys/kernel/threads-max"), "sysctl -w kernel.threads-max=100000"),
        ("RLIMIT_NPROC", getrlimit(Resource::Nproc).current, "LimitNPROC=infinity, or ulimit -u"),
        ("pids.max of this control group", of_group, "TasksMax=infinity"),
    ];
    let least = limits.iter().filter_map(|(name, most, advice)| Some((most.as_ref()?, name, advice))).min();
    match least {
        Some((most, name, advice)) if *most < PROCESSES => warn(
            "processes",
            format!("at most {most} ({name})"),
            format!("hundreds of procs need {PROCESSES}: {advice}"),
        ),
        Some((most, name, _)) => ok("processes", format!("at most {most} ({name})")),
        None => ok("processes", "no limit"),
    }
}

fn clock() -> Finding {
    let now = Timestamp::now();
    let found = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let installed = std::env::current_exe().and_then(fs::metadata).and_then(|file| file.modified());
    match installed {
        Ok(installed) if installed > SystemTime::now() => {
            let advice = "set the clock, and keep it right with systemd-timesyncd, chrony or ntpd";
            warn("clock", format!("{found}, which is before this program was installed"), advice)
        }
        _ => ok("clock", found),
    }
}

/// `61.9 GB`.
fn size(bytes: u64) -> String {
    let gigabytes = bytes as f64 / 1e9;
    if gigabytes >= 1.0 { format!("{gigabytes:.1} GB") } else { format!("{:.0} MB", bytes as f64 / 1e6) }
}

#[cfg(test)]
mod tests {
    use vr_common::host_api::Verdict;

    use super::*;

    #[test]
    fn old_kernels_and_small_limits_are_told() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert_eq!(version("strange"), None);
        assert_eq!(kernel("5.10.0").verdict, Verdict::Warn);
        assert_eq!(kernel("5.15.0-100-generic").verdict, Verdict::Warn);
        assert_eq!(kernel("6.1.0").verdict, Verdict::Ok);
        assert_eq!(open_files(Some(1024)).verdict, Verdict::Warn);
        assert_eq!(open_files(None).verdict, Verdict::Ok);
        assert_eq!(memory(1 << 30, 1 << 20).verdict, Verdict::Warn);
        assert_eq!(cgroups(CgroupVersion::None).verdict, Verdict::Warn);
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_missing() {
        let proc = Path::new("/proc/self");
        assert_eq!(writable(proc, proc).verdict, Verdict::Missing);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(writable(dir.path(), dir.path()).verdict, Verdict::Ok);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
