//! Scripts that want too much: exit code 5, one line that says which limit it was, and nothing half-made.

use vr_runner::container::why_no_limits;

use crate::support::{World, ended};

#[track_caller]
fn hits(options: &[&str], script: &str, expected: &str, hint: &str) {
    let world = World::new();
    let yaml = world.yaml(&format!("#!/bin/bash\n{script}\n"), "");
    let ended = ended(&mut world.vimage(&[&["build"], options].concat(), &yaml)).expect(5);
    assert!(ended.error().contains(expected), "{}", ended.error());
    assert!(ended.error().starts_with("the script "), "{}", ended.error());
    assert!(ended.stderr.contains(&format!("hint: {hint} allows more")), "{}", ended.stderr);
    world.assert_left(&["new_1.log"]);
}

#[test]
fn too_much_memory_is_a_limit() {
    assert_eq!(why_no_limits(), None);
    hits(&["--memory", "64M"], "printf -v much '%200000000s' x", "out of memory (limit 64M)", "--memory");
}

#[test]
fn too_many_processes_are_a_limit() {
    assert_eq!(why_no_limits(), None);
    let script = "for ((i = 0; i < 40; i++)); do sleep 60 & done\nexit 1";
    hits(&["--processes", "20"], script, "ran out of processes (limit 20)", "--processes");
}

#[test]
fn too_much_on_disk_is_a_limit() {
    let script = "printf -v much '%1000000s' x\nwhile :; do echo \"$much\" >> /srv/much; sleep 0.01; done";
    hits(&["--disk", "8M"], script, "took more than 8.4 MB on disk", "--disk");
}

#[test]
fn more_than_any_host_unpacks_is_a_limit() {
    let world = World::new();
    // A hole costs nothing on disk, and days to read.
    let yaml = world.yaml("#!/bin/sh\necho noise; truncate -s 1T /srv/large\n", "");
    let ended = ended(&mut world.vimage(&["build", "--disk", "8M"], &yaml)).expect(5);
    assert_eq!(
        ended.error(),
        "cannot make the tarball: /srv/large has 1099511627776 bytes, holes included: with it, the tarball would hold more \
         than 21474836480 bytes"
    );
    assert!(ended.stderr.contains("\n  in the step pack\n"), "{}", ended.stderr);
    world.assert_left(&["new_1.log"]);
}

#[test]
fn a_shell_takes_no_limits_that_it_would_not_keep() {
    let world = World::new();
    let yaml = world.yaml("#!/bin/sh\n", "");
    for option in ["--timeout=1m", "--disk=1G", "--lock-timeout=1m"] {
        let refused = ended(&mut world.vimage(&["shell", option], &yaml)).expect(2);
        let name = option.split('=').next().unwrap();
        assert!(refused.stderr.contains(&format!("unexpected argument '{name}'")), "{}", refused.stderr);
    }
    ended(&mut world.vimage(&["shell", "--processes=100", "--network=none", "-q"], &yaml)).expect(0);
    let options = ["build", "--timeout=1m", "--disk=1G", "--lock-timeout=1m"];
    ended(&mut world.vimage(&options, &yaml)).expect(0);
}
