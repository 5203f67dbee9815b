//! More rights than were given.

use crate::scene::USER;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use super::*;

pub const ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "become_root_by_a_program_with_the_set_user_id_bit",
        cases: &[user(&[NoNewPrivileges, Seccomp, NoDevicesOrSetuid])],
        arrange: setuid_programs,
        script: SET_USER_ID,
        ..PLAIN
    },
    Attempt {
        name: "become_root_by_a_program_of_an_image",
        cases: &[user(&[NoNewPrivileges, Seccomp, NoDevicesOrSetuid])],
        arrange: |scene| {
            let evidence = setuid_programs(scene);
            root_is_an_image(scene);
            evidence
        },
        script: SET_USER_ID,
        ..PLAIN
    },
    Attempt {
        name: "have_the_numbers_of_the_hosts_users",
        cases: &[root(&[UserNamespace]), user(&[UserNamespace])],
        script: r#"
            my ($inside, $outside) = split " ", file("/proc/self/uid_map");
            print "escaped\n" if $inside == $outside;"#,
        ..PLAIN
    },
    Attempt {
        name: "have_capabilities_within_reach",
        cases: &[root(&[DropCapabilities]), user(&[DropCapabilities]), rootless(&[DropCapabilities])],
        arrange: |scene| {
            // chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service, net_raw, sys_chroot,
            // audit_write, setfcap: by their numbers.
            let usual =
                [0, 1, 3, 4, 5, 6, 7, 10, 13, 18, 29, 31].iter().fold(0_u64, |all, bit| all | 1 << bit);
            let most = if scene.who == Who::User { 0 } else { usual };
            Box::new(move |_, outcome| {
                let sets: Vec<_> = outcome.output.lines().filter(|line| line.starts_with("Cap")).collect();
                assert_eq!(sets.len(), 5, "{}", outcome.output);
                sets.iter().any(|line| {
                    let set = u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap();
                    let most =
                        if line.starts_with("CapInh") || line.starts_with("CapAmb") { 0 } else { most };
                    set & !most != 0
                })
            })
        },
        script: r#"print file("/proc/self/status");"#,
        ..PLAIN
    },
    Attempt {
        name: "get_new_privileges_at_all",
        cases: &ANYBODY_NEW_PRIVILEGES,
        script: r#"print "escaped\n" if file("/proc/self/status") =~ /NoNewPrivs:\t0/;"#,
        ..PLAIN
    },
    Attempt {
        name: "raise_its_own_limits",
        lacks: missing_sys_resource,
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[]), rootless(&[])],
        script: r#"
            call("prlimit64", 0, 4, pack("Q2", 0, 0), 0) == 0 or die $!;
            print "escaped\n" if call("prlimit64", 0, 4, pack("Q2", 1, 1), 0) == 0;"#,
        ..PLAIN
    },
    Attempt {
        name: "hide_from_the_oom_killer",
        lacks: missing_sys_resource,
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[]), rootless(&[])],
        script: r#"
            put("/proc/self/oom_score_adj", "-1000");
            print "escaped\n" if file("/proc/self/oom_score_adj") == -1000;"#,
        ..PLAIN
    },
    Attempt {
        name: "run_before_all_others",
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[]), rootless(&[])],
        script: r#"
            eval { setpriority(0, 0, -5) };
            print "escaped\n" if getpriority(0, 0) < 0 || call("ioprio_set", 1, 0, 1 << 13) == 0;"#,
        ..PLAIN
    },
];

/// Root itself may lack it, where the machine is a container.
fn missing_sys_resource() -> Option<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let has_it = u64::from_str_radix(line, 16).unwrap() & 1 << 24 != 0;
    (!has_it).then_some("capability sys_resource")
}

const SET_USER_ID: &str = r#"
    for my $program ("/perl", "/data/perl") {
        my $name = "/out/made-by" . ($program =~ tr{/}{-}r);
        system $program, "-e", "sysopen(my \$file, '$name', 0x41, 0666)";
    }"#;

/// Copies of a program that give root's rights to whoever runs them, in the root and in a volume.
fn setuid_programs(scene: &mut Scene) -> Evidence {
    fs::create_dir(scene.path("volume")).unwrap();
    for name in ["root/perl", "volume/perl"] {
        fs::copy("/usr/bin/perl", scene.path(name)).unwrap();
        chown(scene.path(name), Some(0), Some(0)).unwrap();
        fs::set_permissions(scene.path(name), fs::Permissions::from_mode(0o6755)).unwrap();
    }
    scene.volume("volume", "/data", false);
    scene.volume("out", "/out", false);
    Box::new(|scene, outcome| {
        let made: Vec<_> = fs::read_dir(scene.path("out")).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(made.len(), 2, "the programs did not run: {}", outcome.output);
        made.iter().any(|entry| {
            entry.metadata().unwrap().uid() != USER.0 || entry.metadata().unwrap().gid() != USER.1
        })
    })
}

const ANYBODY_NEW_PRIVILEGES: [Case; 3] = [
    root(&[NoNewPrivileges, Seccomp]),
    user(&[NoNewPrivileges, Seccomp]),
    rootless(&[NoNewPrivileges, Seccomp]),
];
