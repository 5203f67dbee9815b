//! The suite of real procs once more, with the engine `lxc`: each module here is a test binary of its own with the
//! engine `own`, see `support::engine`. Needs root, LXC 4 or later, and what those need.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::duplicate_mod, reason = "each of the binaries has the shared part for itself")]

#[path = "keys.rs"]
mod keys;
#[path = "limits.rs"]
mod limits;
#[path = "run.rs"]
mod run;
#[path = "setup.rs"]
mod setup;
mod support;
#[path = "uptest.rs"]
mod uptest;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::sys::signal::Signal;
use support::{World, finish, processes_with, text, until};
use vr_common::host_api::RunStatus;

/// A command in mounts of its own, after a shell script that changes them. Neither locks nor control groups of LXC are
/// left by what it runs.
fn in_own_mounts(script: &str) -> std::process::Command {
    let mut unshare = vr_common::process::command("unshare");
    let script = format!(
        "set -e; mkdir -p /run/lxc; mount -t tmpfs none /run/lxc; mount -t tmpfs none /sys/fs/cgroup; {script}; \
         exec \"$@\""
    );
    unshare.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    unshare
}

#[test]
fn what_setup_writes_is_enough_for_lxc_alone() {
    for world in [World::new as fn(&str) -> World, World::with_image] {
        let volume = tempfile::Builder::new().prefix("odd name\\").tempdir().unwrap();
        fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let world = world(
            "echo $1 $2; id -u; hostname; grep -E 'CapBnd|Seccomp:' /proc/self/status; touch /data/made",
        )
        .yaml(&format!(
            "volumes: [[\"{}\", /data]]",
            volume.path().display().to_string().replace('\\', "\\\\")
        ))
        .ready();
        let folder = world.proc_folder();
        let mut lxc = in_own_mounts("true");
        lxc.args(["lxc-start", "--foreground", "--name", "by-hand"])
            .arg("--rcfile")
            .arg(folder.join("proc.lxc"));
        lxc.arg("--lxcpath").arg(world.path());
        let out = finish(lxc);
        let said = text(&out.stdout);
        let expected =
            "one 5001\n65534\ndemo-v1-prod-abcd1234-web-5001\nCapBnd:\t0000000000000000\nSeccomp:\t2\n";
        assert_eq!(said, expected, "{}", text(&out.stderr));
        assert!(volume.path().join("made").is_file());
    }
}

#[test]
fn a_program_that_hup_ends_is_not_started_again() {
    let world = World::new("echo started; kill -HUP $$").ready();
    let status = world.path().join("status");
    let mut command = world.command("run");
    command.arg("--status-file").arg(&status);
    let run = finish(command);
    assert_eq!((run.status.code(), text(&run.stdout)), (Some(129), "started\n".to_owned()));
    let news: RunStatus = serde_json::from_slice(&fs::read(&status).unwrap()).unwrap();
    assert_eq!((news.exit_code, news.signal), (None, Some(1)));
    assert_eq!(text(&run.stderr), "");
}

#[test]
fn a_killed_vrun_leaves_neither_lxc_nor_its_locks() {
    let world = World::new("echo ready; exec sleep $MARK").yaml("env: {MARK: '77123'}").ready();
    let mut run = world.start();
    run.until_says("ready");
    // LXC is given the path of its own socket, which has our process number in it.
    let mark = format!("/run/lxc/{}-", run.child.id());
    assert_eq!(processes_with(&mark), 1);
    run.child.kill().unwrap();
    run.end();
    until("the end of LXC", || processes_with(&mark) == 0 && processes_with("77123") == 0);
    // Others on this machine may use LXC, too.
    let mut find = vr_common::process::command("find");
    let pattern = format!("*/{}-*", run.child.id());
    find.args([
        "/run/lxc",
        "/sys/fs/cgroup",
        "-path",
        &pattern,
        "-o",
        "-name",
        &format!("lxc.*{}*", support::NAME),
    ]);
    assert_eq!(text(&finish(find).stdout), "");
}

#[test]
fn links_do_not_make_lxc_touch_the_host() {
    for image in [false, true] {
        let victim = tempfile::tempdir().unwrap();
        let source = tempfile::tempdir().unwrap();
        fs::write(source.path().join("file"), "of the volume").unwrap();
        let world = if image { World::with_image("true") } else { World::new("true") };
        let world = world.yaml(&format!("volumes: [[{}, /mounted/here]]", source.path().display())).ready();
        let rootfs = world.proc_folder().join("rootfs");
        // As an app that ran as root could have left it.
        fs::remove_dir_all(rootfs.join("mounted")).unwrap();
        symlink(victim.path(), rootfs.join("mounted")).unwrap();
        let run = world.vrun("run");
        assert_eq!(run.status.code(), Some(1), "{}", text(&run.stderr));
        assert!(text(&run.stderr).contains("/mounted/here"), "{}", text(&run.stderr));
        assert_eq!(fs::read_dir(victim.path()).unwrap().count(), 0);
        for name in ["dev", "proc", "sys"] {
            fs::remove_file(rootfs.join("mounted")).ok();
            fs::remove_dir(rootfs.join(name)).unwrap();
            symlink(victim.path(), rootfs.join(name)).unwrap();
            let run = world.vrun("run");
            assert_eq!(run.status.code(), Some(1), "{name}");
            assert!(text(&run.stderr).contains(name), "{}", text(&run.stderr));
            assert_eq!(fs::read_dir(victim.path()).unwrap().count(), 0);
            fs::remove_file(rootfs.join(name)).unwrap();
            fs::create_dir(rootfs.join(name)).unwrap();
        }
        assert_eq!(world.vrun("run").status.code(), Some(0));
    }
}

#[test]
fn volumes_may_be_inside_volumes() {
    let folder = |mode| {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        folder
    };
    let (outer, inner) = (folder(0o777), folder(0o755));
    fs::write(inner.path().join("file"), "inner").unwrap();
    let (one, two) = (outer.path().display(), inner.path().display());
    let world = World::new(
        "cat /data/a/b/file; touch /data/made || exit 3; touch /data/a/b/x 2>/dev/null || echo ' ro'",
    )
    .yaml(&format!("volumes: [[{one}, /data], [{two}, /data/a/b, ro]]"))
    .ready();
    let run = world.vrun("run");
    assert_eq!(text(&run.stdout), "inner ro\n", "{}", text(&run.stderr));
    assert!(outer.path().join("made").is_file() && outer.path().join("a/b").is_dir());
}

#[test]
fn a_host_without_lxc_or_with_an_old_one_is_told_so() {
    let world = World::new("true").ready();
    let lxc = Path::new("/usr/bin/lxc-start");
    assert!(lxc.exists());
    let old = world.path().join("old-lxc");
    fs::write(&old, "#!/bin/sh\n[ \"$1\" = --version ] && echo 3.1.0\nexit 1\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    for (instead, expected) in [
        (
            "/dev/null",
            "there is no lxc-start on this host, which the engine lxc needs; it is in the package lxc",
        ),
        (&*old.to_string_lossy(), "LXC 3.1.0 is too old: the engine lxc needs LXC 4 or later"),
    ] {
        let mut run = vr_common::process::command("unshare");
        let script = format!("mount --bind {instead} {} && exec \"$@\"", lxc.display());
        run.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
        run.arg(env!("CARGO_BIN_EXE_vrun")).args(["--engine", "lxc", "run"]).arg(world.file());
        run.env("VR_ROOT", world.root());
        let run = finish(run);
        let error = text(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{error}");
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    }
    let mut run = world.command("run");
    run.env("VR_ENGINE", "docker");
    let run = finish(run);
    assert_eq!(run.status.code(), Some(2));
    assert!(
        text(&run.stderr).contains("\"docker\" is not an engine: expected own or lxc"),
        "{}",
        text(&run.stderr)
    );
}

#[test]
fn stopping_and_continuing_reaches_the_program() {
    let world = World::new("trap 'echo hup' HUP; echo ready; while :; do sleep 0.05; done").ready();
    let run = world.start();
    run.until_says("ready");
    run.signal(Signal::SIGHUP);
    run.until_says("hup");
    run.signal(Signal::SIGTERM);
    let mut run = run;
    assert_eq!(run.end(), 143);
}
