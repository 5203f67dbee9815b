//! Files of the kernel's in `/proc` and `/sys`.

use crate::scene::HOST_KEY;
use std::fs;

use super::*;

pub const ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "change_a_setting_of_the_kernel",
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        arrange: |scene| {
            let path = "/proc/sys/kernel/printk_ratelimit_burst";
            let now: u32 = fs::read_to_string(path).unwrap().trim().parse().unwrap();
            scene.set("VALUE", now + 1);
            changes_kernel_file(path.to_owned())
        },
        script: r#"put("/proc/sys/kernel/printk_ratelimit_burst", $ENV{VALUE});"#,
        ..PLAIN
    },
    Attempt {
        name: "set_the_program_for_core_dumps",
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        // What it is already, as it counts for the whole machine.
        script: r#"
            my $pattern = file("/proc/sys/kernel/core_pattern");
            print "escaped\n" if put("/proc/sys/kernel/core_pattern", $pattern);"#,
        ..PLAIN
    },
    Attempt {
        name: "change_a_setting_of_the_hosts_network",
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        arrange: |_| changes_kernel_file("/proc/sys/net/ipv4/ip_default_ttl".to_owned()),
        script: r#"put("/proc/sys/net/ipv4/ip_default_ttl", "77");"#,
        ..PLAIN
    },
    Attempt {
        name: "press_a_magic_key",
        lacks: || missing("/proc/sysrq-trigger"),
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        script: r#"print "escaped\n" if sysopen(my $keys, "/proc/sysrq-trigger", 1);"#,
        ..PLAIN
    },
    Attempt {
        name: "move_interrupts",
        lacks: || missing("/proc/irq/default_smp_affinity"),
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        script: r#"print "escaped\n" if sysopen(my $mask, "/proc/irq/default_smp_affinity", 1);"#,
        ..PLAIN
    },
    Attempt {
        name: "change_a_device_in_sys",
        lacks: || missing("/dev/loop-control"),
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[])],
        arrange: |scene| {
            scene.disk();
            changes_kernel_file(format!("/sys/block/{}/queue/read_ahead_kb", scene.variables["DISK"]))
        },
        script: r#"put("/sys/block/$ENV{DISK}/queue/read_ahead_kb", "16");"#,
        ..PLAIN
    },
    Attempt {
        name: "read_the_memory_of_the_kernel",
        lacks: || missing("/proc/kcore"),
        cases: &[
            together(
                Who::Root,
                &[MaskKernelFiles, UserNamespace, DropCapabilities],
                &[MaskKernelFiles, UserNamespace],
            ),
            user(&[]),
            rootless(&[]),
        ],
        script: r#"print "escaped\n" if file("/proc/kcore") =~ /^.ELF/;"#,
        ..PLAIN
    },
    Attempt {
        name: "list_the_hosts_timers",
        lacks: || missing("/proc/timer_list"),
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        script: r#"print "escaped\n" if file("/proc/timer_list") ne "";"#,
        ..PLAIN
    },
    Attempt {
        name: "list_the_hosts_keys",
        lacks: || missing("/proc/keys"),
        cases: &[
            together(Who::Root, &[MaskKernelFiles, UserNamespace, NewKeyring], &[MaskKernelFiles]),
            together(Who::User, &[MaskKernelFiles, UserNamespace, NewKeyring], &[MaskKernelFiles]),
        ],
        arrange: |_| Box::new(|_, outcome| outcome.output.contains(HOST_KEY)),
        script: r#"print file("/proc/keys");"#,
        ..PLAIN
    },
    Attempt {
        name: "list_the_hosts_firmware",
        lacks: || missing("/sys/firmware"),
        cases: &[root(&[MaskKernelFiles]), user(&[MaskKernelFiles])],
        script: r#"print "escaped\n" if () = glob "/sys/firmware/*";"#,
        ..PLAIN
    },
];

/// A file of the kernel's says something else afterwards; then it gets back what it said.
fn changes_kernel_file(path: String) -> Evidence {
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let before = read(&path);
    Box::new(move |_, _| {
        let changed = read(&path) != before;
        if changed {
            fs::write(&path, &before).unwrap();
        }
        changed
    })
}
