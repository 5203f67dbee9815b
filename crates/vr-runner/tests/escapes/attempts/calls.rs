//! System calls.

use crate::scene::{HOST_KEY, HOST_VARIABLE};
use crate::until;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

pub const ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "mount_in_a_user_namespace_of_its_own",
        cases: &ANYBODYS_CALL,
        script: r#"
            mkdir "/tmp/place";
            call("unshare", 0x10020000);
            call("mount", "none", "/tmp/place", "tmpfs", 0, 0);
            print "escaped\n" if file("/proc/self/mounts") =~ m{ /tmp/place tmpfs };"#,
        ..PLAIN
    },
    Attempt {
        name: "mount_a_proc_without_masks_in_namespaces_of_its_own",
        // Where it is masked, the kernel gives nobody a proc that is not.
        cases: &[
            root(&[Seccomp, MaskKernelFiles]),
            user(&[Seccomp, MaskKernelFiles]),
            rootless(&[Seccomp, MaskKernelFiles]),
        ],
        script: r#"
            mkdir "/tmp/place";
            if (call("unshare", 0x30020000) == 0) {
                my $child = fork;
                if ($child == 0) {
                    print "escaped\n" if call("mount", "proc", "/tmp/place", "proc", 0, 0) == 0;
                    exec "/bin/true";
                }
                waitpid $child, 0;
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "load_a_module",
        lacks: || missing("/proc/modules"),
        cases: &ROOTS_CALL,
        script: r#"reached("finit_module", -1, "", 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "load_another_kernel",
        lacks: || missing("/sys/kernel/kexec_loaded"),
        cases: &ROOTS_CALL,
        // More segments than there may be.
        script: r#"reached("kexec_load", 0, 1000, 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "restart_the_machine",
        cases: &ROOTS_CALL,
        // Without the numbers that are to be given for that.
        script: r#"reached("reboot", 0, 0, 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "take_swap_away",
        cases: &ROOTS_CALL,
        script: r#"reached("swapoff", "/nothing");"#,
        ..PLAIN
    },
    Attempt {
        name: "switch_accounting_on",
        cases: &ROOTS_CALL,
        script: r#"reached("acct", "/nothing");"#,
        ..PLAIN
    },
    Attempt {
        name: "set_the_clock",
        cases: &ROOTS_CALL,
        // To nothing.
        script: r#"reached("settimeofday", 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "load_a_bpf_program",
        cases: &ROOTS_CALL,
        // Only a map, for one number.
        script: r#"print "escaped\n" if call("bpf", 0, pack("L4 x56", 2, 4, 4, 1), 72) >= 0;"#,
        ..PLAIN
    },
    Attempt {
        name: "control_the_kernels_log",
        cases: &[ROOT_OF_HOST, user(&[]), rootless(&[])],
        // To "switch the console on" is as privileged.
        script: r#"print "escaped\n" if call("syslog", 7, 0, 0) >= 0;"#,
        ..PLAIN
    },
    Attempt {
        name: "watch_performance_events",
        cases: &ANYBODYS_CALL,
        script: r#"reached("perf_event_open", pack("L2 x112", 1, 112), 0, -1, -1, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "use_io_uring",
        cases: &ANYBODYS_CALL,
        script: r#"reached("io_uring_setup", 1, pack("x120"));"#,
        ..PLAIN
    },
    Attempt {
        name: "use_userfaultfd",
        cases: &ANYBODYS_CALL,
        script: r#"reached("userfaultfd", 1);"#,
        ..PLAIN
    },
    Attempt {
        name: "switch_address_randomisation_off",
        cases: &ANYBODYS_CALL,
        script: r#"reached("personality", 0x40000);"#,
        ..PLAIN
    },
    Attempt {
        name: "use_a_socket_to_the_hypervisor",
        cases: &ANYBODYS_CALL,
        script: r#"reached("socket", 40, 1, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "compare_kernel_addresses",
        cases: &ANYBODYS_CALL,
        script: r#"reached("kcmp", $$, $$, 0, 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "take_descriptors_of_another_process",
        cases: &ANYBODYS_CALL,
        script: r#"reached("pidfd_getfd", call("pidfd_open", $$, 0), 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "read_a_key_of_the_callers_session",
        cases: &[
            root(&[Seccomp, NewKeyring]),
            user(&[Seccomp, NewKeyring]),
            rootless(&[Seccomp, NewKeyring]),
        ],
        arrange: |scene| {
            scene.set("HOST_KEY", HOST_KEY);
            let secret = std::env::var(HOST_VARIABLE).unwrap();
            Box::new(move |_, outcome| outcome.output.contains(&secret))
        },
        script: r#"
            # Search the session's keyring, and read.
            my $key = call("keyctl", 10, -3, "user", $ENV{HOST_KEY}, 0);
            my $text = " " x 100;
            call("keyctl", 11, $key, \$text, 100) if $key > 0;
            print $text;"#,
        ..PLAIN
    },
    Attempt {
        name: "keep_a_key_in_the_kernel",
        cases: &ANYBODYS_CALL,
        // Into the keyring of the process, which ends with it.
        script: r#"reached("add_key", "user", "escape", "x", 1, -2);"#,
        ..PLAIN
    },
    Attempt {
        name: "have_the_host_find_a_key",
        cases: &ANYBODYS_CALL,
        script: r#"reached("request_key", "user", "nothing", 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "run_a_program_on_the_host_by_release_agent",
        cases: &[
            root(&[UserNamespace, DropCapabilities, Seccomp, CgroupNamespace]),
            user(&[]),
            rootless(&[]),
        ],
        arrange: release_agent,
        // In a hierarchy of its own, which goes when nothing is left in it.
        script: r#"
            mkdir "/tmp/groups";
            if (call("mount", "none", "/tmp/groups", "cgroup", 0, "none,name=$ENV{NAME}") == 0) {
                mkdir "/tmp/groups/group";
                if (put("/tmp/groups/release_agent", $ENV{AGENT}) && put("/tmp/groups/group/notify_on_release", "1")) {
                    my $child = fork;
                    if ($child == 0) {
                        put("/tmp/groups/group/cgroup.procs", "0");
                        exec "/bin/true";
                    }
                    waitpid $child, 0;
                    for (1 .. 1000) { last if -e "/out/done"; select(undef, undef, undef, 0.01); }
                }
                rmdir "/tmp/groups/group";
            }"#,
        ..PLAIN
    },
];

fn release_agent(scene: &mut Scene) -> Evidence {
    let agent = scene.path("victim/agent");
    fs::write(&agent, format!("#!/bin/sh\necho done > {}\n", scene.path("out/done").display())).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    scene.set("AGENT", agent.display());
    scene.set("NAME", format!("vr-escapes-{}", scene.secret));
    scene.volume("out", "/out", false);
    Box::new(|scene, _| {
        clear_groups(scene);
        scene.path("out/done").exists()
    })
}

/// A hierarchy whose last group was still going when it was unmounted stays, until it is mounted and unmounted once
/// more. Either way it takes the kernel a while.
fn clear_groups(scene: &Scene) {
    let options = format!("none,name={}", scene.variables["NAME"]);
    let is_there =
        || fs::read_to_string("/proc/self/cgroup").unwrap().contains(scene.variables["NAME"].as_str());
    let (place, nothing) = (scene.path("groups"), None::<&str>);
    fs::create_dir(&place).unwrap();
    let mut looks = 0;
    until("the hierarchy to be gone", || {
        looks += 1;
        if looks % 200 == 0 && is_there() {
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(nothing, &place, Some("cgroup"), flags, Some(options.as_str())).unwrap();
            let _ = fs::remove_dir(place.join("group"));
            nix::mount::umount(&place).unwrap();
        }
        !is_there()
    });
}
