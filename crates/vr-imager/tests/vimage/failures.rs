//! Images that are not made: the exit code, the one line that says why, and nothing half-made.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::{Started, World, ended, marker, names, sleeps, until};

#[test]
fn a_script_that_fails_leaves_its_log_only() {
    let world = World::new();
    fs::write(world.out("new_1.tar.gz"), "of an earlier run").unwrap();
    let ended =
        world.build(&world.yaml("#!/bin/bash\necho some output\necho x > /changed\nexit 23\n", "")).expect(4);
    assert_eq!(ended.error(), "the script ended with exit code 23");
    let log = world.out("new_1.log").canonicalize().unwrap();
    assert!(ended.stderr.contains(&format!("hint: the whole output is in {}\n", log.display())));
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
    let ended = world.build(&world.yaml(script, "")).expect(1);
    assert!(ended.error().contains("is truncated or not a"), "{}", ended.error());
    world.assert_left(&[]);
    assert!(!world.path("root/images/tiny_base/contents").exists());

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
    let marker = marker();
    let yaml = world
        .yaml(&format!("#!/bin/bash\ntrap '' TERM\necho begun\nsleep {marker} & wait; sleep {marker}\n"), "");
    let mut build = Started::new(&mut world.vimage(&["build"], &yaml));
    build.until_output("begun");
    until("the script sleeps", || sleeps(&marker));
    build.signal(Signal::SIGTERM);
    let ended = build.end().expect(1);
    assert_eq!(ended.error(), "stopped by SIGTERM");
    assert!(!sleeps(&marker));
    world.assert_left(&["new_1.log"]);
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
