//! `vrun run` and `vrun shell` with real containers: what an app sees, and what is left when it is gone.
//! Needs root and the programs of a Debian system.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::Signal;
use support::{World, finish, processes_with, text, until};
use vr_common::host_api::RunStatus;
use vr_common::lock::FileLock;

/// Runs the app to its end and returns what it said.
fn said(world: &World) -> String {
    let run = world.vrun("run");
    assert!(run.status.success(), "{}{}", text(&run.stdout), text(&run.stderr));
    text(&run.stdout)
}

/// With a folder that both the test and, as `/gate`, the app see.
fn with_gate(world: World) -> (World, PathBuf) {
    let gate = world.path().join("gate");
    fs::create_dir(&gate).unwrap();
    let volume = format!("volumes: [[{}, /gate, ro]]", gate.display());
    (world.yaml(&volume), gate)
}

#[test]
fn the_environment_goes_from_least_to_most_specific_and_variables_of_the_command_expand() {
    for world in [World::new as fn(&str) -> World, World::with_image] {
        let world = world("echo \"[$1][$2][$3]\"; env; cat $APP_SETTINGS_YAML; pwd")
            .yaml("env: {GREETING: \"it's $HOME\", A: yaml, PORT: '1', HOME: /elsewhere, FROM_HOST: $OF_THE_HOST, EMPTY: $NO_SUCH}")
            .yaml("settings: {quote: \"@How's it going?\", list: [1, 2]}");
        world.app(".profile.d/10-first", "export A=profile B=profile PORT=2 TMPDIR=/var/tmp\n");
        world.app(".profile.d/20-second.sh", "export B=second\n");
        world.pack();
        let mut setup = world.command("setup");
        setup.env("OF_THE_HOST", "host's value");
        assert!(finish(setup).status.success());
        let mut run = world.command("run");
        run.env("LEAKED", "leaked");
        let out = text(&finish(run).stdout);
        for line in [
            "[one][5001][it's $HOME]",
            "A=yaml",
            "B=second",
            "PORT=5001",
            "HOME=/elsewhere",
            "TMPDIR=/var/tmp",
            "FROM_HOST=host's value",
            "EMPTY=",
            "APP_SETTINGS_YAML=/settings.yaml",
            "/app",
            "- 2",
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
        let settings = fs::read_to_string(world.proc_folder().join("rootfs/settings.yaml")).unwrap();
        let settings: serde_yaml::Value = serde_yaml::from_str(&settings).unwrap();
        assert_eq!(settings["quote"].as_str(), Some("@How's it going?"));
        for leak in ["LEAKED", "VR_ROOT", "CARGO"] {
            assert!(!out.contains(leak), "{leak}\n{out}");
        }
    }
}

#[test]
fn an_app_sees_a_small_system_of_its_own() {
    let script = "echo pid $$; hostname; id; grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status
        echo fds: $(ls /proc/self/fd); echo procs: $(ls /proc | grep -c '^[0-9]')
        grep -c . /proc/mounts; grep ' /dev/shm ' /proc/mounts
        for d in null zero full random urandom tty ptmx pts fd shm stdin; do [ -e /dev/$d ] || echo no $d; done
        ls /dev/sda /dev/vda /dev/kmsg /dev/mem 2>&1 | grep -vc 'No such'
        touch /usr/x /etc/x /proc/sys/x /sys/x /x 2>/dev/null && echo wrote to the system
        touch /tmp/x /app/x /dev/shm/x && echo wrote to its own; ls -ld /tmp; umask";
    for world in [World::new as fn(&str) -> World, World::with_image] {
        let out = said(&world(script).ready());
        let has = |line: &str| assert!(out.contains(line), "{line}\n{out}");
        has("pid 2\n");
        has("demo-v1-prod-abcd1234-web-5001\n");
        has("uid=65534");
        has("gid=65534");
        for set in ["Inh", "Prm", "Eff", "Bnd", "Amb"] {
            has(&format!("Cap{set}:\t0000000000000000"));
        }
        has("NoNewPrivs:\t1");
        has("fds: 0 1 2 3\n");
        has("size=65536k");
        has("wrote to its own");
        has("drwxrwxrwt");
        has("0022\n");
        for never in ["wrote to the system", "\nno ", "/dev/vda", "/dev/mem"] {
            assert!(!out.contains(never), "{never}\n{out}");
        }
    }
}

#[test]
fn the_image_is_the_root_and_stays_as_it_was() {
    let script =
        "cat /etc/image-mark; id; [ -s /etc/hosts ] && echo hosts; [ -f /etc/resolv.conf ] && echo resolv
        ls /opt /etc/debian_version 2>&1; rm /etc/image-mark && echo removed; touch /new && echo made";
    let world = World::with_image(script).yaml("user: root").ready();
    let out = said(&world);
    for line in ["of the image", "uid=0(root)", "hosts", "resolv", "removed", "made"] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    let contents = world.root().join("images/tiny/contents");
    assert!(contents.join("etc/image-mark").is_file());
    assert!(!contents.join("new").exists());
    let resolv = fs::symlink_metadata(contents.join("etc/resolv.conf")).unwrap();
    assert!(resolv.is_file() && resolv.len() == 0);
    assert!(world.proc_folder().join("rootfs/new").is_file());

    let world = World::with_image("id; ls -ln serve").yaml("user: imageuser").ready();
    let out = said(&world);
    assert!(
        out.contains("uid=4321(imageuser) gid=4322(imagegroup) groups=4322(imagegroup),4399(further)"),
        "{out}"
    );
    assert!(out.contains("4321 4322"), "{out}");
}

#[test]
fn root_inside_has_few_capabilities_and_cannot_change_the_host() {
    let script = "grep Cap /proc/self/status; touch /usr/x /proc/sys/kernel/x /sys/x /etc/x 2>/dev/null && echo wrote
        cat /proc/kcore | head -c 1 | grep -c . ; mount -t tmpfs t /mnt 2>/dev/null && echo mounted
        hostname changed 2>/dev/null && echo renamed; mknod /tmp/n b 7 0 2>/dev/null && echo mknod
        for f in /proc/sysrq-trigger /proc/sys/kernel/hostname; do { echo x > $f; } 2>/dev/null && echo wrote $f; done
        cat /proc/1/environ 2>/dev/null | grep . > /dev/null && echo looked into init
        { readlink /proc/1/fd/0 || ls /proc/1/root/; } > /dev/null 2>&1 && echo looked into init
        kill -9 1; echo still here";
    let out = said(&World::new(script).yaml("user: root").ready());
    let mask = |set: &str| {
        let line = out.lines().find(|line| line.starts_with(set)).unwrap();
        u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap()
    };
    // The numbers of <linux/capability.h>: all that the format page names, and net_admin, dac_read_search, sys_ptrace.
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        for dropped in [33, 32, 27, 8, 21, 22, 16, 23, 20, 17, 24, 25, 26, 12, 2, 19] {
            assert_eq!(mask(set) & (1 << dropped), 0, "capability {dropped} in {set}\n{out}");
        }
    }
    assert_ne!(mask("CapEff"), 0, "{out}");
    assert_eq!((mask("CapInh"), mask("CapAmb")), (0, 0));
    for never in ["wrote", "mounted", "renamed", "mknod", "looked into init", "\n1\n"] {
        assert!(!out.contains(never), "{never}\n{out}");
    }
    assert!(out.contains("still here"), "{out}");
}

#[test]
fn exit_statuses_and_signals_are_passed_on() {
    for (script, expected) in
        [("exit 0", 0), ("exit 7", 7), ("kill -SEGV $$", 139), ("kill -KILL $$", 137), ("kill -34 $$", 162)]
    {
        for world in [World::new(script).ready(), World::new(script).yaml("cmd: ./serve").ready()] {
            assert_eq!(world.vrun("run").status.code(), Some(expected), "{script}");
        }
    }
    let world = World::new("").yaml("cmd: ./no-such-program").ready();
    assert_eq!(world.vrun("run").status.code(), Some(127));
}

#[test]
fn term_and_int_and_others_reach_the_app() {
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGUSR1, "USR1"),
    ] {
        let script =
            format!("trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 1 & wait $!; done");
        let world = World::new(&script).ready();
        let mut run = world.start();
        run.until_says("ready");
        run.signal(signal);
        assert_eq!(run.end(), 9);
        assert!(run.output().contains(&format!("got {name}")), "{}", run.output());
    }
}

#[test]
fn an_app_that_does_not_stop_is_killed_by_the_second_signal_or_after_the_grace_period() {
    let script = "trap 'echo no' TERM; echo ready; while :; do sleep 1 & wait $!; done";
    let world = World::new(script).yaml("grace_period: 3600").ready();
    let mut run = world.start();
    run.until_says("ready");
    run.signal(Signal::SIGTERM);
    run.until_says("no");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end(), 137);

    let world = World::new(script).yaml("grace_period: 1").ready();
    let mut run = world.start();
    run.until_says("ready");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end(), 137);
}

#[test]
fn an_app_is_asked_to_end_with_the_stop_signal_of_its_file() {
    let script = "trap 'echo INT; exit 5' INT; trap 'echo USR1' USR1; trap 'echo TERM' TERM; echo ready
        while :; do sleep 1 & wait $!; done";
    let world = World::new(script).yaml("stopsignal: SIGINT").ready();
    let mut run = world.start();
    run.until_says("ready");
    // Other signals are what they are.
    run.signal(Signal::SIGUSR1);
    run.until_says("USR1");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end(), 5);
    assert!(run.output().contains("INT") && !run.output().contains("TERM"), "{}", run.output());

    let world = World::new(script).yaml("stopsignal: KILL\ngrace_period: 3600").ready();
    let mut run = world.start();
    run.until_says("ready");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end(), 137);
}

#[test]
fn nothing_is_left_however_the_run_ends() {
    // The app leaves daemons behind, some of which lost their parent.
    let script = "(setsid sleep $MARK & ) ; sleep $MARK & echo ready; [ $WAIT = no ] || sleep $MARK";
    for (image, wait) in [(false, "no"), (false, "yes"), (true, "yes")] {
        let mark = format!("77{}{}", std::process::id(), u32::from(image) * 2 + u32::from(wait == "yes"));
        let world = if image { World::with_image(script) } else { World::new(script) };
        // setsid is not in the image; without it the daemon is an orphan all the same.
        let world = world.yaml(&format!("env: {{MARK: '{mark}', WAIT: '{wait}'}}")).ready();
        let mut run = world.start();
        run.until_says("ready");
        if wait == "yes" {
            until("the app's processes", || processes_with(&mark) >= 2);
            run.child.kill().unwrap();
        }
        run.end();
        until("the end of all processes", || processes_with(&mark) == 0);
        // The proc is free again, and its mounts are gone with it.
        let again = world.start();
        again.until_says("ready");
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(&*world.path().to_string_lossy()), "{mounts}");
    }
}

#[test]
fn a_second_run_of_the_same_proc_is_refused() {
    let world = World::new("echo ready; sleep 1000").ready();
    let run = world.start();
    run.until_says("ready");
    for verb in ["run", "setup", "teardown"] {
        let second = world.vrun(verb);
        let expected = format!("ERROR: {} is locked by another process.\n", world.file().display());
        assert_eq!((second.status.code(), text(&second.stderr)), (Some(1), expected));
    }
    // The same proc from another file is the same proc.
    let copy = world.path().join("copy.yaml");
    fs::copy(world.file(), &copy).unwrap();
    for verb in ["run", "setup", "teardown"] {
        let second = finish(world.command_for(verb, &copy));
        assert_eq!(second.status.code(), Some(1));
        assert!(text(&second.stderr).contains("is locked by another process."), "{}", text(&second.stderr));
    }
    assert!(world.proc_folder().is_dir());
    drop(run);
    until("the lock's end", || world.vrun("teardown").status.success());
    assert!(!world.proc_folder().exists());
}

#[test]
fn descriptors_and_ignored_signals_of_the_caller_do_not_reach_the_app() {
    let world = World::new("ls -l /proc/self/fd; grep -E 'SigIgn|SigBlk' /proc/self/status").ready();
    let mut shell = vr_common::process::command("/bin/bash");
    shell.env("VR_ROOT", world.root()).env("VR_ENGINE", support::engine()).arg("-c").arg(format!(
        "exec 7</etc/passwd 9>/dev/null; trap '' HUP PIPE USR1; exec {} run {}",
        env!("CARGO_BIN_EXE_vrun"),
        world.file().display()
    ));
    let out = text(&finish(shell).stdout);
    assert!(out.contains("SigIgn:\t0000000000000000"), "{out}");
    assert!(out.contains("SigBlk:\t0000000000000000"), "{out}");
    for number in 4..10 {
        assert!(!out.contains(&format!(" {number} -> ")), "{out}");
    }
}

#[test]
fn volumes_are_writable_unless_they_say_otherwise() {
    for world in [World::new as fn(&str) -> World, World::with_image] {
        let world = world(
            "cat /data/file /var/run/deep/er/file; touch /data/made && echo made
             touch /var/run/deep/er/x 2>/dev/null || echo read-only",
        );
        let (data, fixed) = (world.path().join("data"), world.path().join("fixed"));
        for folder in [&data, &fixed] {
            fs::create_dir(folder).unwrap();
            fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
            fs::write(folder.join("file"), folder.file_name().unwrap().as_encoded_bytes()).unwrap();
        }
        fs::set_permissions(world.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let volumes =
            format!("volumes: [[{}, /data], [{}, /var/run/deep/er, ro]]", data.display(), fixed.display());
        let world = world.yaml(&volumes).ready();
        let out = said(&world);
        assert!(out.contains("datafixed") && out.contains("made\n") && out.contains("read-only"), "{out}");
        assert_eq!(fs::metadata(data.join("made")).unwrap().uid(), 65534);
        fs::remove_dir_all(&fixed).unwrap();
        let run = world.vrun("run");
        assert_eq!(run.status.code(), Some(1));
        let error = text(&run.stderr);
        assert!(error.contains(&format!("{} does not exist", fixed.display())), "{error}");
        let setup = world.vrun("setup");
        assert_eq!(setup.status.code(), Some(2));
        assert!(text(&setup.stderr).contains("there is no such folder"), "{}", text(&setup.stderr));
        // Teardown takes the proc away and not what was mounted in it.
        assert!(world.vrun("teardown").status.success());
        assert!(data.join("made").is_file());
    }
}

#[test]
fn an_app_may_rename_a_folder_of_its_build() {
    let world = World::new("mv /app/data /app/other && cat /app/other/file && ls /app/data || echo gone");
    world.app("data/file", "still here\n");
    let world = world.ready();
    assert_eq!(said(&world), "still here\ngone\n");
}

#[test]
fn a_link_in_one_volume_does_not_lead_another_one_elsewhere() {
    let world = World::new("mv /data/inner /data/was && ln -s /etc /data/inner && echo done; ls /inner");
    let inner = world.path().join("data/inner");
    fs::create_dir_all(&inner).unwrap();
    for folder in [inner.as_path(), inner.parent().unwrap()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let path = world.path().display().to_string();
    let volumes = format!("volumes: [[{path}/data, /data], [{path}/data/inner, /inner]]");
    let world = world.yaml(&volumes).ready();
    assert_eq!(said(&world), "done\n");
    let again = world.vrun("run");
    assert_eq!((again.status.code(), text(&again.stdout).as_str()), (Some(1), ""));
    let error = text(&again.stderr);
    assert!(error.contains("inner is a link in a folder that the container itself may write to"), "{error}");
}

#[test]
fn the_log_moves_on_and_the_status_file_tells_of_begin_and_end() {
    let world = World::new("echo out; echo err >&2; echo ready; sleep $SECS; exit 4")
        .yaml("env: {SECS: '1000'}")
        .ready();
    let (log, status) = (world.path().join("log"), world.path().join("status"));
    let command = || {
        let mut run = world.command("run");
        run.arg("--log").arg(&log).arg("--status-file").arg(&status);
        run
    };
    let read = || serde_json::from_slice::<RunStatus>(&fs::read(&status).unwrap()).unwrap();
    let mut run = world.start_command(command());
    until("the log", || fs::read_to_string(&log).is_ok_and(|text| text.contains("ready")));
    assert_eq!(fs::read_to_string(&log).unwrap(), "out\nerr\nready\n");
    assert_eq!(run.output(), "");
    let news = read();
    assert_eq!(news.pid, run.child.id());
    assert_eq!((news.ended_at, news.exit_code, news.signal), (None, None, None));
    let stat = fs::read_to_string(format!("/proc/{}/stat", news.pid)).unwrap();
    assert_eq!(stat.split(' ').nth(21).unwrap().parse::<u64>().unwrap(), news.start_ticks);
    let app = news.app_pid.unwrap();
    let line = fs::read_to_string(format!("/proc/{app}/cmdline")).unwrap();
    assert!(line.contains("serve\0one"), "{line}");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end(), 143);
    let news = read();
    assert!(news.ended_at.unwrap() >= news.started_at);
    assert_eq!((news.exit_code, news.signal), (None, Some(15)));

    // It goes on with the old log, and when it cannot start, the log says why.
    fs::remove_dir(world.proc_folder().join("rootfs/dev")).unwrap();
    fs::write(world.proc_folder().join("rootfs/dev"), "in the way").unwrap();
    assert_eq!(finish(command()).status.code(), Some(1));
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.starts_with("out\n") && text.contains("vrun: ERROR: ") && text.contains("/dev"), "{text}");
    assert!(read().message.unwrap().contains("/dev"));
}

#[test]
fn an_app_of_another_user_may_open_its_streams_anew() {
    let world = World::new("echo out > /dev/stdout; echo err > /dev/stderr").ready();
    let log = world.path().join("log");
    let mut run = world.command("run");
    run.arg("--log").arg(&log);
    assert!(finish(run).status.success());
    assert_eq!(fs::read_to_string(&log).unwrap(), "out\nerr\n");
}

#[test]
fn the_end_is_noticed_although_somebody_else_holds_the_output() {
    let world = World::new("echo ready; until [ -e /gate/go ]; do sleep 0.01; done; echo last; exit 3");
    let (world, gate) = with_gate(world);
    let world = world.ready();
    let (log, status) = (world.path().join("log"), world.path().join("status"));
    let mut command = world.command("run");
    command.arg("--log").arg(&log).arg("--status-file").arg(&status);
    let mut run = world.start_command(command);
    until("the log", || fs::read_to_string(&log).is_ok_and(|text| text == "ready\n"));
    let read = || serde_json::from_slice::<RunStatus>(&fs::read(&status).unwrap()).unwrap();
    until("the status", || status.exists());
    // As if the app had handed it to a process outside, which is possible over any socket.
    let output = format!("/proc/{}/fd/1", read().app_pid.unwrap());
    let _held = fs::File::options().write(true).open(output).unwrap();
    fs::write(gate.join("go"), "").unwrap();
    assert_eq!(run.end(), 3);
    assert_eq!(fs::read_to_string(&log).unwrap(), "ready\nlast\n");
    assert_eq!(read().exit_code, Some(3));
}

#[test]
fn a_status_that_cannot_be_written_does_not_change_how_the_app_ended() {
    let (world, gate) = with_gate(World::new("until [ -e /gate/go ]; do sleep 0.01; done; exit 3"));
    let world = world.ready();
    let folder = world.path().join("status");
    fs::create_dir(&folder).unwrap();
    let mut command = world.command("run");
    command.arg("--status-file").arg(folder.join("status"));
    let mut run = world.start_command(command);
    until("the status", || folder.join("status").exists());
    fs::remove_dir_all(&folder).unwrap();
    fs::write(gate.join("go"), "").unwrap();
    assert_eq!(run.end(), 3);
    assert!(run.output().contains("the end of the run is not in the status file"), "{}", run.output());
}

#[test]
fn the_keys_of_the_callers_session_stay_outside() {
    let number = nix::libc::SYS_keyctl;
    // KEYCTL_GET_KEYRING_ID of KEY_SPEC_SESSION_KEYRING.
    let show = format!("$| = 1; print 'keyring ', syscall({number}, 0, -3, 0), \"\\n\"");
    let world = World::new("true")
        .yaml(&format!("cmd: perl -e '{}'", show.replace('\'', r"'\''").replace(": ", " ")))
        .ready();
    // KEYCTL_JOIN_SESSION_KEYRING: as after a login.
    let mut run = vr_common::process::command("perl");
    run.arg("-e").arg(format!("syscall({number}, 1, 0); {show}; exec @ARGV"));
    run.arg(env!("CARGO_BIN_EXE_vrun"))
        .arg("run")
        .arg(world.file())
        .env("VR_ROOT", world.root())
        .env("VR_ENGINE", support::engine());
    let out = text(&finish(run).stdout);
    let keyrings: Vec<_> = out.lines().filter(|line| line.starts_with("keyring ")).collect();
    assert_eq!(keyrings.len(), 2, "{out}");
    assert_ne!(keyrings[0], keyrings[1]);
}

#[test]
fn a_run_waits_until_the_container_of_a_killed_run_is_gone() {
    let world = World::new("echo started").ready();
    // A process that looks like a container's first one and takes its time to end.
    let init = world.path().join("vr-init");
    std::os::unix::fs::symlink("/bin/sleep", &init).unwrap();
    let mut sleep = vr_common::process::command(&init);
    sleep.arg("1000");
    let mut left = world.start_command(sleep);
    let stat = || fs::read_to_string(format!("/proc/{}/stat", left.child.id())).unwrap();
    until("the process", || stat().contains("(vr-init)"));
    let ticks = stat().split(' ').nth(21).unwrap().to_owned();
    fs::write(world.proc_folder().join("container.init"), format!("{} {ticks}\n", left.child.id())).unwrap();
    let mut command = world.command("run");
    command.arg("-v");
    let mut run = world.start_command(command);
    run.until_says("waiting for the end of the last container");
    assert!(!run.output().contains("started"), "{}", run.output());
    left.child.kill().unwrap();
    left.child.wait().unwrap();
    assert_eq!(run.end(), 0);
    assert!(run.output().contains("started"), "{}", run.output());
    // What a run leaves in that file names a process that is gone, or another one by now.
    assert!(world.vrun("run").status.success());
    fs::write(world.proc_folder().join("container.init"), format!("{} 1\n", std::process::id())).unwrap();
    assert!(world.vrun("run").status.success());
}

#[test]
fn a_profile_may_take_arguments_away_but_not_end_the_shell_in_silence() {
    let world = World::new("echo works");
    world.app(".profile.d/a", "set -- $PATH\n");
    let world = world.ready();
    assert_eq!(text(&world.vrun("run").stdout), "works\n");
    world.app(".profile.d/a", "exit 0\n");
    fs::remove_file(world.root().join("builds/build.tar.gz")).unwrap();
    let world = world.ready();
    let run = world.vrun("run");
    assert_eq!(run.status.code(), Some(126));
    assert!(text(&run.stderr).contains("a file of /app/.profile.d ended the shell"), "{}", text(&run.stderr));
}

#[test]
fn a_talkative_app_fills_its_log_and_its_backups_and_no_more() {
    let world =
        World::new("i=0; while [ $i -lt 5000 ]; do echo \"line $i of many\"; i=$((i+1)); done").ready();
    let log = world.path().join("log");
    let mut run = world.command("run");
    run.arg("--log").arg(&log).args(["--log-max-bytes", "20000", "--log-backups", "2"]);
    assert!(finish(run).status.success());
    let read = |name: &str| fs::read_to_string(world.path().join(name)).unwrap();
    let whole = [read("log.2"), read("log.1"), read("log")].concat();
    assert!(whole.ends_with("line 4999 of many\n"));
    assert!(whole.len() <= 60_000 && read("log.1").len() <= 20_000);
    assert!(!world.path().join("log.3").exists());
    let lines: Vec<_> = whole.lines().skip(1).collect();
    let first: usize = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
    assert_eq!(first + lines.len(), 5000, "a line is missing in between");
}

#[test]
fn a_shell_has_the_apps_environment_next_to_the_running_app() {
    for world in [World::new as fn(&str) -> World, World::with_image] {
        let world = world("touch /app/of-the-app; echo ready; sleep 1000").yaml("env: {A: yaml}").ready();
        let run = world.start();
        run.until_says("ready");
        let mut shell = world.command("shell");
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let typed =
            b"id -u; echo $A $PORT $HOME; ls /app; hostname; echo $BASH; touch /app/of-the-shell; exit 5\n";
        shell.stdin.take().unwrap().write_all(typed).unwrap();
        let out = shell.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(5));
        let out = text(&out.stdout);
        for line in
            ["65534", "yaml 5001 /app", "of-the-app", "demo-v1-prod-abcd1234-web-5001-shell", "/bin/bash"]
        {
            assert!(out.contains(line), "{line}\n{out}");
        }
        // What the shell writes is gone with it.
        assert!(world.proc_folder().join("rootfs/app/of-the-app").exists());
        assert!(!world.proc_folder().join("rootfs/app/of-the-shell").exists());
        let left = fs::read_dir(world.proc_folder()).unwrap();
        let left = left.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("scratch-"));
        assert_eq!(left.count(), 0);
    }
}

#[test]
fn a_killed_shell_leaves_a_scratch_folder_only_until_the_next_command() {
    let world = World::with_image("true").ready();
    let mut shell = world.command("shell");
    shell.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    let folders = || -> Vec<PathBuf> {
        let entries = fs::read_dir(world.proc_folder()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("scratch-")).collect()
    };
    until("the shell's scratch folder", || folders().len() == 1);
    shell.kill().unwrap();
    shell.wait().unwrap();
    let left = folders();
    assert_eq!(left.len(), 1);
    // The kernel ends the container of a dead vrun a moment later; until then its first process holds the folder's lock.
    until("nobody uses the folder", || FileLock::existing(&left[0]).is_ok());
    said(&world);
    assert_eq!(folders(), [] as [PathBuf; 0]);
}

#[test]
fn a_shell_on_a_terminal_has_a_terminal_of_its_own() {
    for world in [World::new("").ready(), World::with_image("").ready()] {
        // util-linux's `script` gives vrun a terminal.
        let mut script = vr_common::process::command("script");
        script
            .env("VR_ROOT", world.root())
            .env("VR_ENGINE", support::engine())
            .env("TERM", "dumb")
            .arg("-qec");
        script.arg(format!("{} shell {}", env!("CARGO_BIN_EXE_vrun"), world.file().display()));
        script.arg("/dev/null").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        let typed =
            b"ls -l /proc/self/fd/0; echo job $(echo control) in $-; echo x > /dev/tty && echo tty; exit 6\n";
        script.stdin.take().unwrap().write_all(typed).unwrap();
        let out = script.wait_with_output().unwrap();
        let said = text(&out.stdout);
        assert_eq!(out.status.code(), Some(6), "{said}");
        assert!(said.contains("/dev/pts/0"), "{said}");
        assert!(said.contains("job control in h") && !said.contains("no job control"), "{said}");
        assert!(said.contains("\ntty"), "{said}");
    }
}

#[test]
fn network_host_name_and_a_read_only_root_are_as_the_file_says() {
    let script =
        "hostname; grep -c : /proc/net/dev; touch /app/x 2>/dev/null && echo wrote; touch /tmp/x && echo tmp";
    for world in [World::new as fn(&str) -> World, World::with_image] {
        let world = world(script).yaml("hostname: other.example\nnetwork: none\nread_only: true").ready();
        assert_eq!(said(&world), "other.example\n1\ntmp\n");
        let world = World::new(script).ready();
        let out = said(&world);
        assert!(
            out.starts_with("demo-v1-prod-abcd1234-web-5001\n") && out.ends_with("wrote\ntmp\n"),
            "{out}"
        );
    }
}

#[test]
fn bash_is_started_only_when_it_is_needed() {
    let shell = "case $BASH_VERSION in '') echo other;; *) echo bash;; esac";
    let world = World::new("").yaml("cmd: ./serve").yaml("env: {WORD: word}");
    world.app_program("serve", "#!/bin/sh\n:\n");
    let world = world.ready();
    let record = || fs::read_to_string(world.proc_folder().join("setup.json")).unwrap();
    assert!(record().contains("\"needs_bash\":false"), "{}", record());
    // What a profile says goes through the shell that reads it.
    let profile = world.proc_folder().join("rootfs/app/.profile.d");
    let set = |text: &str| {
        fs::create_dir_all(&profile).unwrap();
        fs::write(profile.join("a"), text).unwrap();
    };
    set(shell);
    assert!(said(&world).starts_with("bash\n"));
    fs::remove_dir_all(&profile).unwrap();

    for (command, expected) in [
        ("/bin/echo ${BASH_VERSION:+bash}".to_owned(), "bash\n"),
        ("/bin/echo \"$WORD\" ${WORD}".to_owned(), "word word\n"),
        ("/bin/echo {a,b}".to_owned(), "a b\n"),
    ] {
        let text = fs::read_to_string(world.file()).unwrap();
        let text: String =
            text.lines().filter(|line| !line.starts_with("cmd")).map(|line| format!("{line}\n")).collect();
        fs::write(world.file(), format!("{text}cmd: {}\n", serde_json::to_string(&command).unwrap()))
            .unwrap();
        assert!(world.vrun("setup").status.success());
        assert_eq!(said(&world), expected, "{command}");
    }
}

#[test]
fn vrun_precise_always_uses_the_host_and_app_folder_needs_no_build() {
    let world = World::with_image("ls /etc/debian_version /etc/image-mark 2>&1");
    world.pack();
    let precise = |verb: &str| {
        let mut vrun = vr_common::process::command(env!("CARGO_BIN_EXE_vrun_precise"));
        vrun.env("VR_ROOT", world.root()).env("VR_ENGINE", support::engine()).arg(verb).arg(world.file());
        finish(vrun)
    };
    assert!(precise("setup").status.success());
    let out = text(&precise("run").stdout);
    assert!(out.contains("/etc/debian_version\n") && !out.contains("/etc/image-mark\n"), "{out}");
    assert!(!world.root().join("images").exists());

    let world = World::new("echo from the folder; id -u");
    fs::set_permissions(world.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let text_of_file = format!("proc_name: web\napp_folder: {}\n", world.path().join("app").display());
    fs::write(world.file(), text_of_file).unwrap();
    assert!(world.vrun("setup").status.success());
    assert_eq!(said(&world), "from the folder\n65534\n");
    fs::write(world.file(), "cmd: echo no build at all\n").unwrap();
    assert!(world.vrun("setup").status.success());
    assert_eq!(said(&world), "no build at all\n");
}

#[test]
fn a_run_that_waits_for_others_ends_when_it_is_told_to() {
    let world = World::new("true").ready();
    let unpacked = world.root().join("builds/unpacked");
    let key = fs::read_dir(unpacked).unwrap().next().unwrap().unwrap().path();
    let _alone = FileLock::existing(&key).unwrap();
    let mut run = world.command("run");
    run.arg("-v");
    let mut run = world.start_command(run);
    run.until_says("waiting for another command that unpacks or removes the same build");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end(), -1, "{}", run.output());
}
