//! `vrun uptest` with real containers. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::os::unix::fs::PermissionsExt;

use support::{World, finish, text, until};
use vr_common::host_api::UptestResult;

fn results(output: &std::process::Output) -> Vec<UptestResult> {
    let stdout = text(&output.stdout);
    assert_eq!(stdout.matches('\n').count(), 1, "not one line: {stdout:?}");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_str(&stdout).unwrap()
}

#[test]
fn every_visible_file_is_run_in_name_order_and_only_json_is_printed() {
    for world in [World::new as fn(&str) -> World, World::with_image] {
        let world = world("echo ready; sleep 1000").yaml("host: example.org\nenv: {A: yaml}");
        // Its noise belongs to the test's output, never to vrun's.
        world.app(".profile.d/noise.sh", "echo noise; echo more noise >&2\n");
        world.app_program("uptests/web/20_fails", "#!/bin/sh\necho out; echo err >&2; exit 3\n");
        world.app_program(
            "uptests/web/10_passes",
            "#!/bin/sh\necho $1 $2 $A $PORT $(id -u) $(hostname); pwd\n",
        );
        world.app("uptests/web/30_not_executable", "#!/bin/sh\n");
        world.app_program("uptests/web/40_no_interpreter", "#!/no/such/thing\n");
        world.app_program("uptests/web/.hidden", "#!/bin/sh\n");
        world.app_program("uptests/web/folder/inner", "#!/bin/sh\n");
        world.app_program("uptests/worker/other", "#!/bin/sh\n");
        let world = world.ready();
        // Beside the running proc, which uptests neither lock nor disturb.
        let mut run = world.start();
        run.until_says("ready");
        let found = results(&world.vrun("uptest"));
        let names: Vec<_> = found.iter().map(|r| (r.name.as_str(), r.passed)).collect();
        let expected = [
            ("10_passes", true),
            ("20_fails", false),
            ("30_not_executable", false),
            ("40_no_interpreter", false),
        ];
        assert_eq!(names, expected);
        assert!(
            found[0]
                .output
                .ends_with("example.org 5001 yaml 5001 65534 demo-v1-prod-abcd1234-web-5001-uptest\n/app\n"),
            "{found:?}"
        );
        assert!(found[1].output.ends_with("out\nerr\n"), "{found:?}");
        assert!(found[2].output.contains("not executable"), "{found:?}");
        assert!(found[3].output.contains("40_no_interpreter: cannot execute"), "{found:?}");
        assert!(run.child.try_wait().unwrap().is_none());
    }
}

#[test]
fn without_tests_there_is_an_empty_list() {
    let world = World::new("true").ready();
    assert_eq!(text(&world.vrun("uptest").stdout), "[]\n");
    let world = World::new("true");
    world.app("uptests/web", "a file, not a folder");
    let world = world.ready();
    assert_eq!(text(&world.vrun("uptest").stdout), "[]\n");
}

#[test]
fn a_test_that_hangs_is_stopped() {
    let world = World::new("true");
    world.app_program("uptests/web/hangs", "#!/bin/sh\ntrap '' TERM; echo before; sleep 1000 & sleep 1000\n");
    let world = world.ready();
    let mut uptest = world.command("uptest");
    uptest.args(["--test-timeout", "5"]);
    let found = results(&finish(uptest));
    assert!(!found[0].passed && found[0].output.starts_with("before\n"), "{found:?}");
    assert!(found[0].output.ends_with("[stopped: it took longer than 5 s]"), "{found:?}");
}

#[test]
fn the_output_of_a_test_that_floods_is_cut() {
    let world = World::new("true");
    world.app_program("uptests/web/floods", "#!/bin/sh\nhead -c 3000000 /dev/zero | tr '\\0' x\n");
    let world = world.ready();
    let found = results(&world.vrun("uptest"));
    assert!(found[0].passed && found[0].output.ends_with("[cut: 1951424 more bytes]"));
}

#[test]
fn a_profile_that_ends_the_shell_or_takes_the_test_away_is_not_a_passed_test() {
    for profile in ["exit 0", "set --", "set -- echo hello"] {
        let world = World::new("true");
        world.app(".profile.d/a", profile);
        world.app_program("uptests/web/fails", "#!/bin/sh\nexit 1\n");
        let world = world.ready();
        let found = results(&world.vrun("uptest"));
        assert!(!found[0].passed && found[0].output.contains("/app/.profile.d"), "{profile}: {found:?}");
    }
}

#[test]
fn links_of_the_app_do_not_lead_to_the_host() {
    let world = World::new("true");
    let outside = world.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("test"), "#!/bin/sh\n").unwrap();
    world.app("uptests/.keep", "");
    std::os::unix::fs::symlink(&outside, world.path().join("app/uptests/web")).unwrap();
    let world = world.ready();
    assert_eq!(text(&world.vrun("uptest").stdout), "[]\n");
}

#[test]
fn what_the_app_writes_neither_breaks_nor_fakes_its_tests() {
    for world in [World::new as fn(&str) -> World, World::with_image] {
        // As root it can write to all of its system.
        let world = world(
            "rm -r /app/uptests/web/2_removed /app/helper; mkdir -p /app/uptests/web /app/.profile.d
             for test in 1_fails 3_added; do echo '#!/bin/sh' > /app/uptests/web/$test; chmod +x /app/uptests/web/$test; done
             echo 'exit 0' > /proc.sh; echo 'exit 0' > /env.sh; echo 'exit 0' > /app/.profile.d/a
             ls /app/uptests/web; echo ready; sleep 1000",
        )
        .yaml("user: root\nenv: {A: yaml}");
        world.app("helper", "");
        world.app_program("uptests/web/1_fails", "#!/bin/sh\nexit 1\n");
        world.app_program(
            "uptests/web/2_removed",
            "#!/bin/sh\n[ -e /app/helper ] && echo $A && touch /app/made && ! ls /app/.profile.d\n",
        );
        let world = world.ready();
        let mut run = world.start();
        run.until_says("1_fails\n3_added\nready");
        for _ in 0..2 {
            let found = results(&world.vrun("uptest"));
            let names: Vec<_> = found.iter().map(|r| (r.name.as_str(), r.passed)).collect();
            assert_eq!(names, [("1_fails", false), ("2_removed", true)], "{found:?}");
            assert!(found[1].output.starts_with("yaml\n"), "{found:?}");
        }
        assert!(!world.proc_folder().join("rootfs/app/made").exists());
        assert!(run.child.try_wait().unwrap().is_none());
        drop(run);
        // The next run starts as setup wanted it, but for what is in `/app`.
        std::fs::remove_file(world.proc_folder().join("rootfs/app/.profile.d/a")).unwrap();
        until("the end of the last run", || world.vrun("setup").status.success());
        let mut again = world.start();
        again.until_says("ready");
        assert_eq!(again.child.try_wait().unwrap(), None);
    }
}

#[test]
fn a_folder_of_the_host_has_uptests_too() {
    let world = World::new("true");
    world.app_program("uptests/web/test", "#!/bin/sh\ncat helper; [ ! -e /tmp/of-the-app ] && echo $2 $A\n");
    world.app("helper", "helps\n");
    std::fs::set_permissions(world.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let app = world.path().join("app");
    let file = format!("proc_name: web\nport: 5001\napp_folder: {}\nenv: {{A: yaml}}\n", app.display());
    std::fs::write(world.file(), format!("{file}cmd: touch /tmp/of-the-app\n")).unwrap();
    for verb in ["setup", "run"] {
        let done = world.vrun(verb);
        assert!(done.status.success(), "{}", text(&done.stderr));
    }
    let found = results(&world.vrun("uptest"));
    assert_eq!((found[0].output.as_str(), found[0].passed), ("helps\n5001 yaml\n", true), "{found:?}");
}

#[test]
fn what_cannot_be_tested_is_an_error_and_not_a_result() {
    let world = World::new("true");
    world.pack();
    let before_setup = world.vrun("uptest");
    assert_eq!((before_setup.status.code(), text(&before_setup.stdout)), (Some(1), String::new()));
    assert!(text(&before_setup.stderr).contains("hint: run `vrun setup FILE` first"));
    // Without its build, it is not known whether there are tests.
    let world = world.ready();
    assert_eq!(text(&world.vrun("uptest").stdout), "[]\n");
    vr_common::archive::remove_tree(&world.root().join("builds/unpacked")).unwrap();
    let without_build = world.vrun("uptest");
    assert_eq!((without_build.status.code(), text(&without_build.stdout)), (Some(1), String::new()));
    assert!(text(&without_build.stderr).contains("is not set up"), "{}", text(&without_build.stderr));
    std::fs::write(world.file(), "cmd: 'true'").unwrap();
    assert!(world.vrun("setup").status.success());
    let nameless = world.vrun("uptest");
    assert_eq!((nameless.status.code(), text(&nameless.stdout)), (Some(2), String::new()));
}
