//! Limits of real procs: that the kernel keeps them, that people are told, and that no control group is left.
//! Needs root, and the controllers `memory`, `pids` and `cpu` in either version.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use support::{Background, World, finish, processes_with, text, until};
use vr_common::host_api::RunStatus;

/// Takes 200 MB, as there is no end of a line in it.
const HOG: &str = "head -c 200000000 /dev/zero | tail | wc -c";

/// The groups that a vrun made.
fn groups_of(vrun: u32) -> Vec<PathBuf> {
    fn look(folder: &Path, mark: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let ours = folder.file_name().is_some_and(|name| name == "velociraptor");
            if ours && entry.file_name().to_string_lossy().contains(mark) {
                found.push(entry.path());
            }
            look(&entry.path(), mark, found);
        }
    }
    let mut found = Vec::new();
    look(Path::new("/sys/fs/cgroup"), &format!("-{vrun}-"), &mut found);
    found
}

/// The content of the first of the files that one of the groups has.
fn value(groups: &[PathBuf], files: &[&str]) -> String {
    let paths = groups.iter().flat_map(|group| files.iter().map(move |file| group.join(file)));
    let text = paths.into_iter().find_map(|path| fs::read_to_string(path).ok());
    text.unwrap_or_else(|| panic!("{groups:?} have none of {files:?}")).trim().to_owned()
}

fn start(world: &World) -> Background {
    let run = world.start();
    run.until_says("ready");
    run
}

#[test]
fn an_app_that_takes_too_much_memory_is_killed_and_people_are_told() {
    const WORDS: &str = "killed: out of memory (limit 64M)";
    let world = World::new(&format!("{HOG}; exit 3")).ready();
    let run = world.vrun("run");
    assert_eq!((run.status.code(), text(&run.stdout).trim()), (Some(3), "200000000"));

    for limits in ["mem_limit: 64M", "mem_limit: 64M\nmemsw_limit: 65536k"] {
        let world = World::new("head -c 200000000 /dev/zero | tail").yaml(limits).ready();
        let (log, status) = (world.path().join("log"), world.path().join("status"));
        let mut command = world.command("run");
        command.arg("--status-file").arg(&status);
        let mut run = world.start_command(command);
        assert_eq!(run.end(), 137);
        assert!(run.output().contains(WORDS), "{}", run.output());
        let news: RunStatus = serde_json::from_slice(&fs::read(&status).unwrap()).unwrap();
        assert_eq!((news.message.as_deref(), news.oom_kills), (Some(WORDS), Some(1)));
        assert_eq!(groups_of(run.child.id()), Vec::<PathBuf>::new());

        let mut command = world.command("run");
        command.arg("--log").arg(&log);
        assert_eq!(finish(command).status.code(), Some(137));
        let log = fs::read_to_string(log).unwrap();
        assert!(log.contains(&format!("vrun: {WORDS}\n")), "{log}");
    }

    // Another end is not the limit's doing, even with the same status.
    let world = World::new("kill -KILL $$").yaml("mem_limit: 64M").ready();
    let run = world.vrun("run");
    assert_eq!(run.status.code(), Some(137));
    assert!(!text(&run.stderr).contains("memory"), "{}", text(&run.stderr));
}

#[test]
fn the_group_has_the_limits_and_the_app_is_in_it() {
    let world = World::new("cat /proc/self/cgroup; echo ready; exec sleep 1000")
        .yaml("mem_limit: 64M\nmemsw_limit: 96M\ncpu_limit: 0.5\npids_limit: 30")
        .ready();
    let status = world.path().join("status");
    let mut command = world.command("run");
    command.arg("--status-file").arg(&status);
    let run = world.start_command(command);
    run.until_says("ready");
    until("the status file", || status.exists());
    let groups = groups_of(run.child.id());
    assert_eq!(value(&groups, &["memory.limit_in_bytes", "memory.max"]), (64 << 20).to_string());
    let swap = value(&groups, &["memory.memsw.limit_in_bytes", "memory.swap.max"]);
    assert!(swap == (96 << 20).to_string() || swap == (32 << 20).to_string(), "{swap}");
    // Our init comes on top.
    assert_eq!(value(&groups, &["pids.max"]), "31");
    let cpu = value(&groups, &["cpu.cfs_quota_us", "cpu.max"]);
    assert!(cpu == "50000" || cpu == "50000 100000", "{cpu}");
    let news: RunStatus = serde_json::from_slice(&fs::read(&status).unwrap()).unwrap();
    let app = news.app_pid.unwrap().to_string();
    for group in &groups {
        let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert!(processes.lines().any(|line| line == app), "{} of {}: {processes}", app, group.display());
        assert_eq!(processes.lines().count(), 2, "{processes}");
    }
    // The host's groups are not to be seen from inside.
    assert!(!run.output().contains("velociraptor"), "{}", run.output());
}

#[test]
fn a_fork_bomb_stops_at_the_limit() {
    // What is refused is refused with EAGAIN, at exactly the limit.
    let count = "exec perl -e '$| = 1; for (1..100) { $p = fork; if (!defined $p) { print \"child $_ failed with \", $!+0, \"\\n\"; exit 5 } \
                 if (!$p) { sleep 1000; exit } }'";
    let world = World::new(count).yaml("pids_limit: 20").ready();
    let run = world.vrun("run");
    assert_eq!((run.status.code(), text(&run.stdout).trim()), (Some(5), "child 20 failed with 11"));

    let mark = format!("bomb{}", std::process::id());
    let bomb = "exec perl -e 'print STDERR \"ready\\n\"; while (1) { fork // select(undef, undef, undef, 0.1) }' $MARK";
    let world =
        World::new(bomb).yaml(&format!("pids_limit: 20\ncpu_limit: 0.5\nenv: {{MARK: {mark}}}")).ready();
    let mut run = start(&world);
    let groups = groups_of(run.child.id());
    until("the limit", || value(&groups, &["pids.current"]) == "21");
    // The host still makes processes, and more than the limit's worth of these never were.
    assert!(vr_common::process::command("true").status().unwrap().success());
    assert!(processes_with(&mark) <= 20);
    run.signal(Signal::SIGTERM);
    run.end();
    assert_eq!(processes_with(&mark), 0);
    assert_eq!(groups_of(run.child.id()), Vec::<PathBuf>::new());
}

#[test]
fn no_group_is_left_however_the_run_ends() {
    let limits = "mem_limit: 64M\npids_limit: 30\ncpu_limit: 2";
    let world = World::new("(setsid sleep 1000 &); echo ready; exec sleep 1000").yaml(limits).ready();
    let mut run = start(&world);
    assert!(!groups_of(run.child.id()).is_empty());
    run.signal(Signal::SIGTERM);
    run.end();
    assert_eq!(groups_of(run.child.id()), Vec::<PathBuf>::new());

    for verb in ["run", "teardown"] {
        let mut killed = start(&world);
        assert!(!groups_of(killed.child.id()).is_empty());
        killed.child.kill().unwrap();
        killed.end();
        if verb == "run" {
            let next = start(&world);
            assert_eq!(groups_of(killed.child.id()), Vec::<PathBuf>::new());
            assert!(!groups_of(next.child.id()).is_empty());
            next.signal(Signal::SIGTERM);
            until("the next run's end", || groups_of(next.child.id()).is_empty());
        } else {
            assert!(world.vrun(verb).status.success());
            assert_eq!(groups_of(killed.child.id()), Vec::<PathBuf>::new());
        }
    }

    // A container that could not be started.
    let world = World::new("").yaml(limits).ready();
    let place = world.proc_folder().join("rootfs/proc");
    let _ = fs::remove_dir(&place);
    fs::write(place, "in the way").unwrap();
    let mut run = world.start();
    assert_eq!(run.end(), 1);
    assert_eq!(groups_of(run.child.id()), Vec::<PathBuf>::new());
}

#[test]
fn uptests_and_shells_have_the_same_limits() {
    let world = World::new("exit 0").yaml("mem_limit: 64M");
    world.app_program("uptests/web/hog", "#!/bin/sh\nhead -c 200000000 /dev/zero | tail\n");
    let world = world.ready();
    let uptest = world.vrun("uptest");
    let out = text(&uptest.stdout);
    assert!(uptest.status.success(), "{}", text(&uptest.stderr));
    assert!(out.contains("[killed: out of memory (limit 64M)]") && out.contains("\"Passed\":false"), "{out}");

    let shell = assert_cmd::Command::from_std(world.command("shell"))
        .write_stdin("head -c 200000000 /dev/zero | tail\n")
        .output()
        .unwrap();
    assert_eq!(shell.status.code(), Some(137));
    let error = text(&shell.stderr);
    assert!(error.contains("killed: out of memory (limit 64M)"), "{error}");
}

#[test]
fn bad_limits_are_refused() {
    for (limits, expected) in [
        ("mem_limit: lots", "mem_limit of demo"),
        ("memsw_limit: 1.5G", "\"1.5G\" is not an amount of memory"),
        ("mem_limit: 64M\nmemsw_limit: 32M", "less than mem_limit, 64M"),
        ("cpu_limit: fast", "cpu_limit: \"fast\" is not a number of processors"),
        ("pids_limit: 0", "pids_limit: \"0\" is not a number of processes"),
    ] {
        let mut world = World::new("exit 0").ready();
        world.extra = format!("{limits}\n");
        world.write_yaml();
        for verb in ["setup", "run"] {
            let refused = world.vrun(verb);
            let error = text(&refused.stderr);
            assert_eq!(refused.status.code(), Some(2), "{verb} with {limits}: {error}");
            assert!(error.contains(expected), "{error}");
        }
    }
}

#[test]
fn a_host_without_control_groups_refuses_limits_and_nothing_else() {
    let without_groups = |world: &World, verb: &str| {
        let mut unshare = vr_common::process::command("unshare");
        let script = "umount -R /sys/fs/cgroup && exec \"$0\" \"$1\" \"$2\"";
        unshare.env("VR_ROOT", world.root()).env("VR_ENGINE", support::engine()).args([
            "--mount",
            "sh",
            "-c",
            script,
            env!("CARGO_BIN_EXE_vrun"),
            verb,
        ]);
        unshare.arg(world.file());
        finish(unshare)
    };
    let world = World::new("exit 7").ready();
    let setup = without_groups(&world, "setup");
    let warning = text(&setup.stderr);
    assert_eq!(setup.status.code(), Some(0), "{warning}");
    assert!(warning.contains("cannot have limits") && warning.contains("controller memory"), "{warning}");
    let run = without_groups(&world, "run");
    assert_eq!(run.status.code(), Some(7), "{}", text(&run.stderr));
    let run = without_groups(&World::new("exit 7").yaml("mem_limit: 64M").ready(), "run");
    let error = text(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{error}");
    assert!(error.contains("this host has no cgroup controller memory"), "{error}");
}
