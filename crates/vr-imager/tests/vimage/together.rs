//! Runs at the same time: of the same image, over the same base, and over one that is replaced meanwhile.

use std::fs;
use std::io::Write;

use vr_common::archive::{PackOptions, pack};

use crate::support::{Meeting, Started, World, ended, names};

#[test]
fn two_runs_of_one_image_wait_for_each_other() {
    let world = World::new();
    let meeting = Meeting::new();
    let script = format!("#!/bin/bash\necho first\n{}\necho \"first: $word\"\n", meeting.script());
    let mut first = Started::new(&mut world.vimage(&["build"], &world.yaml(&script, "")));
    let mut at = meeting.wait();

    let other = "#!/bin/sh\necho second\n";
    let impatient =
        ended(&mut world.vimage(&["build", "--lock-timeout", "200ms"], &world.yaml(other, ""))).expect(5);
    let holder = format!("gave up after 200ms of waiting for process {}, which has held ", first.0.id());
    assert!(impatient.error().starts_with(&holder), "{}", impatient.error());
    assert!(impatient.stderr.contains("hint: --lock-timeout waits longer"), "{}", impatient.stderr);
    // It has taken nothing away.
    assert_eq!(world.log(), "first\n");
    // Another folder is another image.
    ended(&mut world.vimage(&["build", "--output", "elsewhere"], &world.yaml(other, ""))).expect(0);

    let mut second = Started::new(&mut world.vimage(&["build"], &world.yaml(other, "")));
    second.until_said(&format!("waiting for process {}", first.0.id()));
    at.write_all(b"go\n").unwrap();
    first.until_output("first: go");
    first.end().expect(0);
    assert_eq!(second.end().expect(0).stdout, "second\n");
    assert_eq!(world.log(), "second\n");
    world.assert_left(&["elsewhere", "new_1.log", "new_1.tar.gz", "new_1.yaml"]);
}

#[test]
fn a_base_that_is_replaced_meanwhile_stays_as_it_is_for_the_script() {
    let world = World::new();
    let meeting = Meeting::new();
    let script = format!("#!/bin/bash\n{}\ncat /etc/motd; echo changed >> /etc/group\n", meeting.script());
    let first = Started::new(&mut world.vimage(&["build"], &world.yaml(&script, "")));
    let mut at = meeting.wait();

    // Another base of that name.
    let contents = world.path("root/images/tiny_base/contents");
    fs::remove_file(&world.base).unwrap();
    let other = world.path("base");
    fs::write(other.join("etc/motd"), "another base's\n").unwrap();
    let packed = pack(&other, &world.base, &PackOptions::image()).unwrap();
    let yaml = world.path("other.yaml");
    let text = fs::read_to_string(world.path("image.yaml")).unwrap().replace("new_1", "new_2");
    let text = format!("{text}base_image_md5: {}\n", packed.md5);
    let script = world.path("other.sh");
    fs::write(&script, "cat /etc/motd\n").unwrap();
    let old = world.path("provision.sh").display().to_string();
    fs::write(&yaml, text.replace(&old, &script.display().to_string())).unwrap();
    assert_eq!(world.build(&yaml).expect(0).stdout, "another base's\n");
    assert_eq!(fs::read_to_string(contents.join("etc/motd")).unwrap(), "another base's\n");

    at.write_all(b"go\n").unwrap();
    assert_eq!(first.end().expect(0).stdout, "the base's\n");
    let root = world.unpacked("new_1.tar.gz");
    assert_eq!(fs::read_to_string(root.join("etc/motd")).unwrap(), "the base's\n");
    // The next run removes what was kept for the first.
    world.build(&yaml).expect(0);
    let left: Vec<String> = names(&world.path("root/images/tiny_base"));
    assert!(left.iter().all(|name| !name.starts_with("contents-")), "{left:?}");
}
