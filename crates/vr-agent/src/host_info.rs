//! What this host has: CPUs, memory, disk.

use std::path::Path;

use vr_common::host_api::HostInfo;
use vr_common::paths::VrRoot;

use crate::files;

/// Looks at the host; what cannot be found out is 0.
pub fn collect(host: &str, root: &VrRoot) -> HostInfo {
    let cpus = std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    let memory = files::read_text(Path::new("/proc/meminfo"), 64 * 1024).unwrap_or_default();
    let disk = rustix::fs::statvfs(root.path()).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    HostInfo {
        host: host.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        cpus,
        memory_bytes: memory_bytes(&memory).unwrap_or(0),
        disk_free_bytes: disk,
    }
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(memory_bytes("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2_097_152));
        assert_eq!(memory_bytes("nothing"), None);
    }

    #[test]
    fn this_host_has_something_of_everything() {
        let info = collect("h", &VrRoot::new("/"));
        assert!(info.cpus > 0 && info.memory_bytes > 0 && info.disk_free_bytes > 0);
    }
}
