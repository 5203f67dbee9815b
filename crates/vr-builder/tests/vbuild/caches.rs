//! What one build leaves for the next, and builds at the same time.

use std::io::Write;

use crate::support::{Meeting, Started, World, ended};

const COUNTING: &str = "echo runs: $(cat $2/runs 2>/dev/null); echo -n x >> $2/runs";

#[test]
fn the_cache_comes_back_unless_the_build_failed_or_nobody_wants_it() {
    let world = World::new();
    let yaml = world.yaml_with(COUNTING);
    let failing = world.pack("failing", &format!("{COUNTING}; exit 1"));
    let failing = world.yaml(&world.path("app"), &format!("buildpack_url: {}", failing.display()));
    assert!(world.build(&yaml).expect(0).stdout.ends_with("\nruns:\n"));
    assert!(world.build(&yaml).expect(0).stdout.ends_with("\nruns: x\n"));
    assert!(world.build(&failing).expect(4).stdout.ends_with("runs: xx\n"));
    assert!(world.build(&yaml).expect(0).stdout.ends_with("\nruns: xx\n"));
    let without = ended(&mut world.vbuild(&["build", "--no-cache"], &yaml)).expect(0);
    assert!(without.stdout.ends_with("\nruns:\n"));
    assert!(world.build(&yaml).expect(0).stdout.ends_with("\nruns: x\n"));
    world.assert_clean();
}

#[test]
fn a_buildpack_may_empty_its_cache() {
    let world = World::new();
    let yaml =
        world.yaml_with("ls -A $2; rm -rf $2; mkdir -p $2/sub; chmod 0 $2/sub; ln -s /etc/passwd $2/link");
    world.build(&yaml).expect(0);
    assert_eq!(world.build(&yaml).expect(0).stdout.lines().nth(1), Some("link"));
    world.assert_clean();
}

#[test]
fn builds_of_one_app_come_one_after_the_other() {
    let world = World::new();
    let meeting = Meeting::new();
    let yaml = world.yaml_with(&format!("{COUNTING}; {}", meeting.script()));
    let first = Started::new(&mut world.vbuild(&["build"], &yaml));
    let mut met = meeting.wait();
    let mut second = Started::new(&mut world.vbuild(&["build", "--output", "../second"], &yaml));
    let said = second.until_said("waiting for");
    assert!(
        said.starts_with(&format!("vbuild: waiting for process {}, which has held ", first.0.id())),
        "{said}"
    );
    met.write_all(b"go\n").unwrap();
    assert!(first.end().expect(0).stdout.ends_with("\nruns:\n"));
    meeting.wait().write_all(b"go\n").unwrap();
    assert!(second.end().expect(0).stdout.ends_with("\nruns: x\n"));
    assert!(world.path("second/build.tar.gz").exists());
    world.assert_clean();
}

#[test]
fn builds_of_different_apps_with_one_buildpack_run_at_once() {
    let world = World::new();
    let meeting = Meeting::new();
    let one = world.yaml_with(&format!("{COUNTING}; {}", meeting.script()));
    let other = world.git("other", &[("Procfile", "web: y\n")]);
    let other = world.yaml(&other, &format!("buildpack_urls: [{}]", world.path("pack").display()));
    let one = Started::new(&mut world.vbuild(&["build"], &one));
    let mut first = meeting.wait();
    let other = Started::new(&mut world.vbuild(&["build", "--output", "../second"], &other));
    let mut second = meeting.wait();
    for met in [&mut first, &mut second] {
        met.write_all(b"go\n").unwrap();
    }
    for build in [one, other] {
        assert!(build.end().expect(0).stdout.ends_with("\nruns:\n"));
    }
    world.assert_clean();
}
