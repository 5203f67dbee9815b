//! What a build can see and touch.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::{Meeting, Started, World, ended};

#[test]
fn a_build_runs_as_nobody_with_an_environment_of_its_own() {
    let world = World::new();
    let yaml = world.yaml_with("id -un; id -u; pwd; env | sort; ls -A /root /env; echo \"$@\"");
    world.build(&yaml).expect(0);
    let log = world.log();
    assert!(log.contains("\nnobody\n65534\n/pack-"), "{log}");
    let variables: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .filter(|name| !["PWD", "SHLVL", "_", "OLDPWD"].contains(name))
        .collect();
    assert_eq!(variables, ["HOME", "LANG", "PATH", "REQUEST_ID", "SOURCE_VERSION", "TMPDIR"]);
    assert!(!log.contains("SECRET"), "{log}");
    assert!(log.contains("HOME=/app\n") && log.contains("TMPDIR=/tmp\n"), "{log}");
    assert!(log.contains("/root:\n\n/env:\n") || log.contains("/env:\n\n/root:\n"), "{log}");
    let arguments = log.lines().last().unwrap();
    assert!(
        arguments.starts_with("/build/app-") && arguments.ends_with(" /cache/buildpack_cache /env"),
        "{log}"
    );
}

#[test]
fn a_build_cannot_reach_the_host() {
    let world = World::new();
    let secret = world.path("secret");
    fs::write(&secret, "of the host").unwrap();
    let folder = world.path("builder");
    let script = format!(
        "try() {{ if \"$@\" 2>/dev/null; then echo \"FAIL $*\"; fi; }}
         try cat {secret}; try ls {builder}; try ls {world}; try ls /apps; try ls /home/; try touch /usr/x; try touch /etc/x; try touch /x
         try sh -c 'echo x >> /builder.sh'; try mount -t tmpfs none /tmp; try chroot / true
         try cat /etc/shadow; try kill -0 {pid}; try mknod /tmp/null c 1 3
         touch /tmp/t /app/h \"$1/a\" \"$2/c\" \"${{0%/bin/compile}}/b\" && echo written",
        secret = secret.display(),
        builder = folder.display(),
        world = world.path("").display(),
        pid = std::process::id(),
    );
    world.build(&world.yaml_with(&script)).expect(0);
    let log = world.log();
    assert!(!log.contains("FAIL"), "{log}");
    assert!(log.contains("\nwritten\n"), "{log}");
    assert_eq!(world.packed(), ["Procfile", "a", "src", "src/main.py"]);
    world.assert_clean();
}

#[test]
fn another_user_may_be_asked_for() {
    let world = World::new();
    let (app, pack) = (world.app(), world.pack("pack", "id -u"));
    let yaml = world.yaml(&app, &format!("buildpack_url: {}\nuser: daemon", pack.display()));
    assert_eq!(world.build(&yaml).expect(0).stdout, "1\n");
}

#[test]
fn the_repositorys_history_is_not_shown() {
    let world = World::new();
    let ended = world.build(&world.yaml_with("ls -A \"$1\"; ls -A \"${0%/bin/compile}\"")).expect(0);
    assert_eq!(ended.stdout, "-----> Toy app detected\nProcfile\nsrc\nbin\n");
}

#[test]
fn what_a_build_does_to_its_buildpack_is_gone_afterwards() {
    let world = World::new();
    let script = "pack=${0%/bin/compile}; ls $pack $pack/bin; cat $pack/bin/detect
        touch $pack/new; echo '#!/bin/sh' >$pack/bin/detect; sed -i '$a exit 1' $0";
    let yaml = world.yaml_with(script);
    let first = world.build(&yaml).expect(0);
    assert!(first.stdout.ends_with("detect\n#!/bin/sh\necho Toy\n"), "{}", first.stdout);
    let md5 = world.md5();
    assert_eq!(world.build(&yaml).expect(0).stdout, first.stdout);
    assert_eq!(world.md5(), md5);
    // Nor does the build's app reach the next one.
    assert_eq!(world.packed(), ["Procfile", "src", "src/main.py"]);
}

#[test]
fn a_build_cannot_become_anybody_else() {
    let world = World::new();
    // The second is what a setuid program of the host's would come to.
    let script = "cp /usr/bin/id $1/id; chmod 6755 $1/id; $1/id -u; grep NoNewPrivs /proc/self/status
        grep -E 'Cap(Eff|Prm|Inh|Amb):' /proc/self/status | tr -d '0\\t'
        for place in /build /cache ${0%/bin/compile} /app /out; do
            while read -r _ target _ options _; do [ $target = $place ] && echo $options; done </proc/self/mounts
        done | grep -cw nosuid";
    let shown = world.build(&world.yaml_with(script)).expect(0).stdout;
    assert_eq!(
        shown,
        "-----> Toy app detected\n65534\nNoNewPrivs:\t1\nCapInh:\nCapPrm:\nCapEff:\nCapAmb:\n5\n"
    );
    // Nor does root who unpacks what it made.
    let mut archive =
        tar::Archive::new(vr_common::archive::open_tarball(&world.out("build.tar.gz")).unwrap());
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let id = entries.find(|entry| entry.path().unwrap().ends_with("id")).unwrap();
    assert_eq!(id.header().mode().unwrap(), 0o755);
    world.assert_clean();
}

#[test]
fn builds_at_the_same_time_do_not_see_each_other() {
    let world = World::new();
    let meeting = Meeting::new();
    let yaml = world.yaml_with(&format!("exec 3>/tmp/of-one; sleep 0 & {}", meeting.script()));
    let first = Started::new(&mut world.vbuild(&["build"], &yaml));
    let mut met = meeting.wait();
    let spy = world.pack("spy", "ls -A /tmp /build /cache/*; ls /proc | grep -E '^[0-9]+$'");
    let other = world.git("other", &[("x", "x")]);
    let other = world.yaml(&other, &format!("buildpack_url: {}", spy.display()));
    let arguments = ["build", "--output", "../second"];
    let shown = ended(&mut world.vbuild(&arguments, &other)).expect(0).stdout;
    let (numbers, names): (Vec<&str>, Vec<&str>) = shown
        .lines()
        .filter(|line| !line.is_empty())
        .partition(|line| line.bytes().all(|byte| byte.is_ascii_digit()));
    assert!(names[0] == "/build:" && names[1].starts_with("other-"), "{shown}");
    assert_eq!(names[2..], ["/cache/buildpack_cache:", "/tmp:"], "{shown}");
    // Its own: process 1, the script, bin/compile, and those of the pipe.
    assert!(numbers.len() < 12, "{shown}");
    met.write_all(b"go\n").unwrap();
    first.end().expect(0);
    world.assert_clean();
}

#[test]
fn a_buildpack_that_leads_elsewhere_changes_nothing_there() {
    let world = World::new();
    let elsewhere = world.write("elsewhere", &[("detect", "exit 0\n"), ("compile", "exit 0\n")]);
    let pack = world.write("pack", &[("README", "no folder bin\n")]);
    symlink(&elsewhere, pack.join("bin")).unwrap();
    let pack = world.git("pack", &[]);
    let ended =
        world.build(&world.yaml(&world.app(), &format!("buildpack_urls: [{}]", pack.display()))).expect(3);
    assert_eq!(ended.error(), "no buildpack matched: tried pack");
    assert_eq!(fs::metadata(elsewhere.join("detect")).unwrap().permissions().mode() & 0o111, 0);
    world.assert_no_build();
}
