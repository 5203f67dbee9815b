//! The filter as the text that LXC reads.
//!
//! LXC has names and not numbers of calls, and knows only those that the host's libseccomp knew when it was made. What
//! it does not know is answered as from a kernel without the call, as is everything younger, so that programs fall
//! back to an older one; EPERM, which they do not fall back from, is for the calls that are named.

use std::fmt::Write as _;

use nix::libc;

use super::calls;

/// Calls that are not for containers. Whatever is missing here is refused too, with the other answer.
const REFUSED: [&str; 66] = [
    "acct",
    "add_key",
    "bpf",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "migrate_pages",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "set_mempolicy_home_node",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "syslog",
    "sysfs",
    "_sysctl",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
    "vserver",
];

/// The families of sockets that the kernel counts.
const SOCKET_FAMILIES: u32 = 46;

/// The policy; see `lxc.seccomp.profile` in lxc.container.conf(5).
pub(in super::super) fn policy() -> String {
    let names = calls::ALLOWED_NAMES.iter().chain(calls::ALLOWED_HERE_NAMES);
    let allowed: Vec<&str> = names.map(|name| name.strip_prefix("SYS_").unwrap_or(name)).collect();
    let mut text = format!("2\nallowlist errno {}\n[{}]\n", libc::ENOSYS, machine());
    for name in &allowed {
        line(&mut text, name);
    }
    for name in REFUSED.iter().filter(|name| !allowed.contains(name)) {
        line(&mut text, &format!("{name} errno {}", libc::EPERM));
    }
    // Only these bits are compared: what is above them, the kernel does not look at either.
    let flags = calls::NAMESPACE_FLAGS;
    line(&mut text, &format!("clone allow [0,0,SCMP_CMP_MASKED_EQ,{flags}]"));
    for flag in (0..u32::BITS).map(|bit| flags & (1 << bit)).filter(|flag| *flag != 0) {
        line(&mut text, &format!("clone errno {} [0,{flag},SCMP_CMP_MASKED_EQ,{flag}]", libc::EPERM));
    }
    for family in 0..SOCKET_FAMILIES {
        let answer = match calls::SOCKET_FAMILIES.contains(&family) {
            true => "allow".to_owned(),
            false => format!("errno {}", libc::EPERM),
        };
        for call in ["socket", "socketpair"] {
            line(&mut text, &format!("{call} {answer} [0,{family},SCMP_CMP_MASKED_EQ,{}]", u32::MAX));
        }
    }
    for value in calls::PERSONALITIES {
        line(&mut text, &format!("personality allow [0,{value},SCMP_CMP_MASKED_EQ,{}]", u32::MAX));
    }
    for (value, mask) in all_but(&calls::TERMINAL_INPUT) {
        line(&mut text, &format!("ioctl allow [1,{value},SCMP_CMP_MASKED_EQ,{mask}]"));
    }
    for value in calls::TERMINAL_INPUT {
        let answer = libc::EPERM;
        line(&mut text, &format!("ioctl errno {answer} [1,{value},SCMP_CMP_MASKED_EQ,{}]", u32::MAX));
    }
    text
}

fn line(text: &mut String, rule: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{rule}");
}

/// This machine's name in libseccomp.
fn machine() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" }
}

/// All 32-bit numbers but the given ones, as pairs of a value and a mask. Two conditions on one argument cannot be in
/// one rule, and two rules would each let the other's number through.
fn all_but(numbers: &[u32]) -> Vec<(u32, u32)> {
    fn split(numbers: &[u32], value: u32, bits: u32, found: &mut Vec<(u32, u32)>) {
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        if !numbers.iter().any(|number| number & mask == value) {
            found.push((value, mask));
        } else if bits < 32 {
            split(numbers, value, bits + 1, found);
            split(numbers, value | 1 << (31 - bits), bits + 1, found);
        }
    }
    let mut found = Vec::new();
    split(numbers, 0, 0, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_numbers_but_the_refused_are_covered_once() {
        let refused = calls::TERMINAL_INPUT;
        let pairs = all_but(&refused);
        let mut tried: Vec<u32> = refused.iter().flat_map(|n| [*n, n ^ 1, n + 1, n - 1, !n]).collect();
        tried.extend((0..32).flat_map(|bit| refused.map(|n| n ^ (1 << bit))));
        tried.extend([0, 1, u32::MAX, 0x5401, 0x8000_0000]);
        for number in tried {
            let matches = pairs.iter().filter(|(value, mask)| number & mask == *value).count();
            assert_eq!(matches, usize::from(!refused.contains(&number)), "{number:#x}");
        }
        let size: u64 = pairs.iter().map(|(_, mask)| u64::from(!mask) + 1).sum();
        assert_eq!(size, (1 << 32) - refused.len() as u64);
    }

    #[test]
    fn each_call_has_one_answer() {
        let text = policy();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("2"));
        assert_eq!(lines.next(), Some("allowlist errno 38"));
        let plain: Vec<_> = text.lines().skip(3).filter(|line| !line.contains('[')).collect();
        let mut names: Vec<_> = plain.iter().map(|line| line.split(' ').next().unwrap()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for line in ["read", "mount errno 1", "unshare errno 1", "bpf errno 1"] {
            assert!(plain.contains(&line), "{line}");
        }
        for conditional in ["clone", "ioctl", "socket", "personality", "clone3"] {
            assert!(!names.contains(&conditional), "{conditional}");
        }
    }
}
