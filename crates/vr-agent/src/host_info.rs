//! What this host has: CPUs, memory, disk.

use std::path::Path;

use vr_common::host_api::{CgroupVersion, HostInfo};
use vr_common::paths::VrRoot;

use crate::files;

/// The longest file of `/proc` that is read, in bytes.
const PROC_LIMIT: u64 = 64 * 1024;

/// Looks at the host; what cannot be found out is 0 or empty. What only the agent knows of itself, its epoch and vrun's
/// version, is left to the caller.
pub fn collect(host: &str, root: &VrRoot) -> HostInfo {
    let cpus = std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    let memory = read("/proc/meminfo");
    let disk = rustix::fs::statvfs(root.path()).ok();
    let blocks = |number: fn(&rustix::fs::StatVfs) -> u64| {
        disk.as_ref().map_or(0, |disk| number(disk).saturating_mul(disk.f_frsize))
    };
    HostInfo {
        host: host.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        cpus,
        memory_bytes: memory_bytes(&memory, "MemTotal:").unwrap_or(0),
        disk_free_bytes: blocks(|disk| disk.f_bavail),
        memory_available_bytes: memory_bytes(&memory, "MemAvailable:").unwrap_or(0),
        disk_total_bytes: blocks(|disk| disk.f_blocks),
        load: load(&read("/proc/loadavg")).unwrap_or_default(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cgroups: cgroups(&read("/proc/self/mountinfo")),
        boot_id: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
        uptime: read("/proc/uptime").split('.').next().and_then(|s| s.parse().ok()).unwrap_or(0),
        vrun_version: None,
        epoch: String::new(),
    }
}

fn read(path: &str) -> String {
    files::read_text(Path::new(path), PROC_LIMIT).unwrap_or_default()
}

fn memory_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn load(loadavg: &str) -> Option<[f64; 3]> {
    let mut words = loadavg.split_whitespace();
    let mut next = || words.next()?.parse().ok();
    Some([next()?, next()?, next()?])
}

/// Which hierarchies are mounted, from `/proc/<pid>/mountinfo`; see proc(5).
pub fn cgroups(mountinfo: &str) -> CgroupVersion {
    // The type of the file system comes after a lone dash, as the number of fields before it varies.
    let kinds = || {
        mountinfo.lines().filter_map(|line| line.split_once(" - ")?.1.split(' ').next()).collect::<Vec<_>>()
    };
    let is_there = |kind| kinds().contains(&kind);
    match (is_there("cgroup"), is_there("cgroup2")) {
        (false, false) => CgroupVersion::None,
        (true, false) => CgroupVersion::V1,
        (false, true) => CgroupVersion::V2,
        (true, true) => CgroupVersion::Hybrid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let meminfo = "MemTotal:       2048 kB\nMemFree: 1 kB\n";
        assert_eq!(memory_bytes(meminfo, "MemTotal:"), Some(2_097_152));
        assert_eq!(memory_bytes("nothing", "MemTotal:"), None);
    }

    #[test]
    fn hierarchies_are_told_apart() {
        let (one, two) = (
            "34 25 0:29 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n",
            "35 25 0:30 / /x rw - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(cgroups(one), CgroupVersion::V1);
        assert_eq!(cgroups(two), CgroupVersion::V2);
        assert_eq!(cgroups(&format!("{one}{two}")), CgroupVersion::Hybrid);
        assert_eq!(cgroups("1 2 0:3 / / rw - ext4 /dev/vda rw\n"), CgroupVersion::None);
    }

    #[test]
    fn this_host_has_something_of_everything() {
        let info = collect("h", &VrRoot::new("/"));
        assert!(info.cpus > 0 && info.memory_bytes > info.memory_available_bytes);
        assert!(info.disk_free_bytes > 0 && info.disk_total_bytes > info.disk_free_bytes);
        assert!(info.uptime > 0 && info.boot_id.len() == 36 && !info.kernel.is_empty(), "{info:?}");
    }
}
