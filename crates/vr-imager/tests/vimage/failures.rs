//! Images that are not made: the exit code, the one line that says why, and nothing half-made.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::{Meeting, Started, World, ended, marker, names, sleeps, until};

#[test]
fn a_script_that_fails_leaves_its_log_only() {
    let world = World::new();
    fs::write(world.out("new_1.tar.gz"), "of an earlier run").unwrap();
    let ended =
        world.build(&world.yaml("#!/bin/bash\necho some output\necho x > /changed\nexit 23\n", "")).expect(4);
    assert_eq!(ended.error(), "the script ended with exit code 23");
    let log = world.out("new_1.log").canonicalize().unwrap();
    let shown = format!(
        "  in the step script\n  its output is in {}, which ends with:\n  | some output\nhint: vimage shell ",
        log.display()
    );
    assert!(ended.stderr.contains(&shown), "{}", ended.stderr);
    assert_eq!(world.log(), "some output\n");
    world.assert_left(&["new_1.log"]);
    assert!(!world.path("root/images/tiny_base/contents/changed").exists());
}

#[test]
fn bad_input_is_refused_in_one_sentence() {
    let world = World::new();
    let file = world.path("bad.yaml");
    let good = "base_image_url: /b.tar.gz\nbase_image_name: b\nnew_image_name: n\nscript_url: /s\n";
    for (text, expected) in [
        (good.replace("script_url", "script"), "missing field `script_url`"),
        (good.replace(": n\n", ": ../n\n"), "new_image_name: \"../n\" is not a plain file name"),
        (format!("{good}base_image_md5: short\n"), "base_image_md5: expected 32 hexadecimal digits"),
        (format!("{good}env: {{a-b: c}}\n"), "env: \"a-b\" is not a variable name"),
        (
            good.replace("/b.tar.gz", "http://example.invalid/"),
            "\"http://example.invalid/\" does not end in a file name",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let ended = world.build(&file).expect(2);
        assert!(ended.error().contains(expected), "{expected}: {}", ended.error());
        assert!(!world.out("n.tar.gz").exists());
    }
    let missing = world.build(Path::new("/nosuch/image.yaml")).expect(2);
    assert!(missing.error().starts_with("cannot read /nosuch/image.yaml: "), "{}", missing.error());
}

#[test]
fn a_base_that_is_wrong_or_broken_is_named() {
    let world = World::new();
    let script = "#!/bin/sh\n";
    let md5 = "0".repeat(32);
    let ended = world.build(&world.yaml(script, &format!("base_image_md5: {md5}"))).expect(1);
    assert!(
        ended.error().starts_with("image tiny_base: ") && ended.error().contains(&md5),
        "{}",
        ended.error()
    );
    world.assert_left(&[]);

    let whole = fs::read(&world.base).unwrap();
    fs::write(&world.base, &whole[..whole.len() / 2]).unwrap();
    let ended = world.build(&world.yaml(script, "")).expect(2);
    assert!(ended.error().contains("is truncated or not a"), "{}", ended.error());
    world.assert_left(&[]);
    assert!(!world.path("root/images/tiny_base/contents").exists());

    // Nothing at all of a tarball, under a name that does not say what it is.
    let text = world.path("tiny_base");
    fs::write(&text, "not a tarball\n").unwrap();
    let yaml = fs::read_to_string(world.path("image.yaml")).unwrap().replace("tiny_base.tar.gz", "tiny_base");
    fs::write(world.path("image.yaml"), yaml).unwrap();
    let ended = world.build(&world.path("image.yaml")).expect(2);
    let expected = "tiny_base is not an archive this program knows: expected .tar, .tar.gz, ";
    assert!(ended.error().starts_with("image tiny_base: "), "{}", ended.error());
    assert!(ended.error().contains(expected), "{}", ended.error());
    world.assert_left(&[]);

    fs::remove_file(&world.base).unwrap();
    let fresh = world.path("root2");
    let mut vimage = world.vimage(&["build"], &world.yaml(script, ""));
    let ended = crate::support::ended(vimage.env("VR_ROOT", fresh)).expect(1);
    assert!(ended.error().contains("tiny_base.tar.gz"), "{}", ended.error());
}

#[test]
fn a_script_that_is_not_there_is_named() {
    let world = World::new();
    let ended = world.build(&world.yaml_of("/nosuch/script.sh", "")).expect(1);
    assert!(ended.error().starts_with("script_url: cannot read /nosuch/script.sh"), "{}", ended.error());
    world.assert_left(&[]);
}

#[test]
fn a_script_that_takes_too_long_is_stopped() {
    let world = World::new();
    let marker = marker();
    let yaml = world.yaml(&format!("#!/bin/bash\necho begun\nsleep {marker}\n"), "");
    let ended = ended(&mut world.vimage(&["build", "--timeout", "1s"], &yaml)).expect(5);
    assert_eq!(ended.error(), "the script took longer than 1s and was stopped");
    assert!(!sleeps(&marker));
    world.assert_left(&["new_1.log"]);
}

#[test]
fn a_signal_ends_the_work_in_order() {
    let world = World::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let marker = marker();
        let sleep = format!("trap '' TERM INT HUP\necho begun\nsleep {marker} & wait; sleep {marker}\n");
        let yaml = world.yaml(&format!("#!/bin/bash\n{sleep}"), "");
        let mut build = Started::new(&mut world.vimage(&["build"], &yaml));
        build.until_output("begun");
        until("the script sleeps", || sleeps(&marker));
        build.signal(signal);
        let ended = build.end().expect(1);
        assert_eq!(ended.error(), format!("stopped by {signal}"));
        assert!(!sleeps(&marker));
        world.assert_left(&["new_1.log"]);
    }
}

#[test]
fn a_signal_ends_a_fetch_and_a_wait() {
    let world = World::new();
    let meeting = Meeting::new();
    let build = Started::new(&mut world.vimage(&["build"], &world.yaml_of(&meeting.url("/never.sh"), "")));
    let server = meeting.wait();
    let mut waiting = Started::new(&mut world.vimage(&["build"], &world.path("image.yaml")));
    waiting.until_said("waiting for process ");
    for started in [waiting, build] {
        started.signal(Signal::SIGINT);
        assert_eq!(started.end().expect(1).error(), "stopped by SIGINT");
    }
    drop(server);
    world.assert_left(&[]);
}

#[test]
fn what_a_killed_run_leaves_is_removed_by_the_next() {
    let world = World::new();
    let marker = marker();
    let yaml = world.yaml(&format!("#!/bin/bash\necho begun\nsleep {marker}\n"), "");
    let mut build = Started::new(&mut world.vimage(&["build"], &yaml));
    build.until_output("begun");
    until("the script sleeps", || sleeps(&marker));
    build.signal(Signal::SIGKILL);
    assert_eq!(build.end().code, None);
    until("the container is gone", || !sleeps(&marker));
    assert_eq!(names(&world.path("root/images/.scratch")).len(), 1);
    world.build(&world.yaml("#!/bin/sh\n", "")).expect(0);
    world.assert_left(&["new_1.log", "new_1.tar.gz", "new_1.yaml"]);
}
