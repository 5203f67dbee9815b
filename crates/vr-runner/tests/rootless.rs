//! `vrun` as an ordinary user: everything works that a user namespace allows, and the rest says so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use support::{World, finish, text, until};
use vr_common::process::command;

/// Nobody's number on this machine.
const USER: u32 = 47_111;

/// Gives the whole world to the user, with a vrun that it can run wherever the build folder is.
fn hand_over(world: &World) {
    let vrun = world.path().join("vrun");
    // By another process: a copy that is open for writing here would be so in whatever other tests start meanwhile, and
    // could not be run.
    assert!(command("cp").arg(env!("CARGO_BIN_EXE_vrun")).arg(&vrun).status().unwrap().success());
    fs::set_permissions(&vrun, fs::Permissions::from_mode(0o755)).unwrap();
    give(world.path());
}

fn give(path: &Path) {
    std::os::unix::fs::lchown(path, Some(USER), Some(USER)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
}

fn as_user(world: &World, verb: &str) -> Command {
    let mut vrun = command(world.path().join("vrun").to_str().unwrap());
    vrun.uid(USER)
        .gid(USER)
        .env("VR_ROOT", world.root())
        .current_dir(world.path())
        .arg(verb)
        .arg(world.file());
    vrun
}

fn vrun(world: &World, verb: &str) -> Output {
    finish(as_user(world, verb))
}

fn ready(world: World) -> World {
    world.pack();
    hand_over(&world);
    let setup = vrun(&world, "setup");
    assert!(setup.status.success(), "{}", text(&setup.stderr));
    world
}

fn said(world: &World) -> String {
    let run = vrun(world, "run");
    assert!(run.status.success(), "{} {}", text(&run.stdout), text(&run.stderr));
    text(&run.stdout)
}

#[test]
fn all_five_commands_work_on_the_hosts_system() {
    let world = World::new(
        "id -u; touch /app/made; ls /proc | grep -c '^[0-9]'; cat /etc/hostname >/dev/null && echo read",
    );
    world.app_program("uptests/web/1-is-there", "#!/bin/sh\ntest -x /app/serve && echo $1 $2");
    let world = ready(world);
    let said = said(&world);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines[0], lines[2]), ("65534", "read"), "{said}");
    // Init, the shell, ls and grep, and nothing of the host's.
    assert!(lines[1].parse::<u32>().unwrap() <= 4, "{said}");
    let made = world.proc_folder().join("rootfs/app/made");
    assert_eq!(fs::metadata(made).unwrap().uid(), USER);

    let tests = vrun(&world, "uptest");
    assert_eq!(
        text(&tests.stdout),
        "[{\"Name\":\"1-is-there\",\"Output\":\"localhost 5001\\n\",\"Passed\":true}]\n",
        "{}",
        text(&tests.stderr)
    );

    let mut shell = assert_cmd::Command::from_std(as_user(&world, "shell"));
    let shell = shell.write_stdin("echo port $PORT; cat /proc/1/comm\n").output().unwrap();
    assert_eq!(text(&shell.stdout), "port 5001\nvr-init\n", "{}", text(&shell.stderr));

    assert!(vrun(&world, "teardown").status.success());
    assert!(!world.proc_folder().exists());
}

#[test]
fn an_image_is_unpacked_without_what_only_root_can_make() {
    let world = World::with_image("id -u; cat /etc/image-mark; echo written > /etc/new; cat /etc/new");
    let world = ready(world.yaml("user: imageuser"));
    assert_eq!(said(&world), "4321\nof the imagewritten\n");
    assert!(world.proc_folder().join("rootfs/etc/new").is_file());
    assert!(vrun(&world, "setup").status.success());
    assert!(vrun(&world, "teardown").status.success());
}

#[test]
fn root_inside_is_the_caller_and_has_no_power_over_others() {
    let world = ready(
        World::new("id -u; echo x > /app/of-root; mount -t tmpfs none /mnt 2>&1 || echo no mount")
            .yaml("user: root"),
    );
    let said = said(&world);
    assert!(said.starts_with("0\n") && said.ends_with("no mount\n"), "{said}");
    assert_eq!(fs::metadata(world.proc_folder().join("rootfs/app/of-root")).unwrap().uid(), USER);
}

#[test]
fn volumes_belong_to_the_caller() {
    let world =
        World::new("echo written > /data/file; cat /only/file; echo x > /only/file || echo protected");
    for name in ["data", "only"] {
        fs::create_dir(world.path().join(name)).unwrap();
    }
    fs::write(world.path().join("only/file"), "to read\n").unwrap();
    let path = world.path().display().to_string();
    let world = ready(world.yaml(&format!("volumes: [[{path}/data, /data], [{path}/only, /only, ro]]")));
    assert_eq!(said(&world), "to read\nprotected\n");
    assert_eq!(fs::metadata(world.path().join("data/file")).unwrap().uid(), USER);
    // What the caller may not read, its container may not either.
    fs::write(world.path().join("only/file"), "secret").unwrap();
    chown(world.path().join("only/file"), Some(0), Some(0)).unwrap();
    fs::set_permissions(world.path().join("only/file"), fs::Permissions::from_mode(0o600)).unwrap();
    let run = vrun(&world, "run");
    assert!(!text(&run.stdout).contains("secret"), "{}", text(&run.stdout));
}

#[test]
fn signals_and_exit_statuses_are_as_for_root() {
    let world =
        ready(World::new("trap 'echo got TERM; exit 7' TERM; echo ready; while :; do sleep 0.05; done"));
    let mut run = world.start_command(as_user(&world, "run"));
    run.until_says("ready");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end(), 7);
    run.until_says("got TERM");
    let mut killed = world.start_command(as_user(&world, "run"));
    killed.until_says("ready");
    // The caller's own vrun: nobody inside may get at the file.
    let program = fs::read_link(format!("/proc/{}/exe", killed.child.id())).unwrap();
    assert!(program.display().to_string().starts_with("/memfd:vrun-copy"), "{}", program.display());
    killed.child.kill().unwrap();
    killed.end();
    // Init is called as vrun was.
    let marker = world.file().display().to_string();
    until("the end of all processes", || support::processes_with(&marker) == 0);
}

#[test]
fn limits_need_control_groups_of_the_users_own() {
    let world = ready(World::new("echo never").yaml("mem_limit: 64M"));
    let run = vrun(&world, "run");
    assert_eq!(run.status.code(), Some(1));
    assert_eq!(text(&run.stdout), "");
    let error = text(&run.stderr);
    assert!(error.contains("cannot set its limits") && error.contains("cgroup"), "{error}");
}
