//! Builds that are stopped half-way: nothing of them runs on, and nothing of them stays.

use std::net::TcpListener;

use nix::sys::signal::Signal;

use crate::support::{Started, World, marker, sleeps, through, until};

#[test]
fn a_signal_ends_a_build_in_order() {
    for (signal, name) in [(Signal::SIGTERM, "SIGTERM"), (Signal::SIGINT, "SIGINT")] {
        let world = World::new();
        let marker = marker();
        // One that does not care about signals, with a child.
        let yaml =
            world.yaml_with(&format!("trap '' TERM INT; sleep {marker} & echo begun; wait; sleep {marker}"));
        let mut build = Started::new(&mut world.vbuild(&["build"], &yaml));
        build.until_output("begun");
        until("the build sleeps", || sleeps(&marker));
        build.signal(signal);
        let ended = build.end().expect(1);
        assert_eq!(ended.error(), format!("stopped by {name}"));
        assert!(!sleeps(&marker));
        assert_eq!(world.log(), "-----> Toy app detected\nbegun\n");
        world.assert_no_build();
    }
}

#[test]
fn a_signal_ends_a_checkout_too() {
    let world = World::new();
    let pack = world.pack("pack", "true");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/app.git", silent.local_addr().unwrap());
    let yaml = world.yaml(url.as_ref(), &format!("buildpack_url: {}", pack.display()));
    let build = Started::new(&mut world.vbuild(&["build"], &yaml));
    let (_connection, _) = silent.accept().unwrap();
    build.signal(Signal::SIGTERM);
    let ended = build.end().expect(1);
    assert_eq!(ended.error(), "stopped by SIGTERM");
    world.assert_no_build();
}

#[test]
fn a_signal_at_the_very_end_is_obeyed_or_comes_too_late_but_never_ends_it_without_a_word() {
    for _ in 0..3 {
        let world = World::new();
        let yaml =
            world.yaml_with("mkdir -p $2/d; for n in {1..300}; do echo $n >$2/d/$n; done; mv $2/d $2/e");
        world.build(&yaml).expect(0);
        let mut build = Started::new(&mut world.vbuild(&["build", "--json"], &yaml));
        build.until_said("saving the cache");
        build.signal(Signal::SIGTERM);
        let ended = build.end();
        let line = ended.stdout.lines().last().unwrap();
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        match ended.code {
            Some(0) => {
                assert_eq!(value["ok"], true);
                assert!(world.out("build.tar.gz").exists() && world.out("build_result.yaml").exists());
                world.assert_clean();
            }
            code => {
                assert_eq!((code, &value["error"]), (Some(1), &"stopped by SIGTERM".into()));
                world.assert_no_build();
            }
        }
        // The second build's files are in the first one's folder, all or none of them.
        let kept = world.cache().join("e");
        assert_eq!((1..=300).filter(|n| kept.join(n.to_string()).exists()).count(), 300);
        let more = (1..=300).filter(|n| kept.join(format!("d/{n}")).exists()).count();
        assert!(more == 0 || more == 300, "{more}");
    }
}

#[test]
fn what_a_killed_build_leaves_is_removed_by_the_next() {
    let world = World::new();
    let marker = marker();
    let yaml = world.yaml_with(&format!("echo begun; sleep {marker}"));
    let mut build = Started::new(&mut world.vbuild(&["build"], &yaml));
    build.until_output("begun");
    until("the build sleeps", || sleeps(&marker));
    build.signal(Signal::SIGKILL);
    assert_eq!(build.end().code, None);
    until("the container is gone", || !sleeps(&marker));
    assert_eq!(world.scratch().len(), 1);
    assert!(!world.out("build.tar.gz").exists());
    world.write("pack", &[("bin/compile", "#!/bin/sh\ntrue\n")]);
    crate::support::commit(&world.path("pack"), "v2");
    world.build(&yaml).expect(0);
    world.assert_clean();
}

#[test]
fn a_build_can_be_told_not_to_outlive_its_starter() {
    let world = World::new();
    let marker = marker();
    let yaml = world.yaml_with(&format!("echo begun; sleep {marker}"));
    let vbuild = world.vbuild(&["build", "--die-with-parent"], &yaml);
    // With something after it, so that the shell stays.
    let mut starter = through(&["sh", "-c", "\"$@\"; true", "sh"], &vbuild);
    let mut starter = Started::new(&mut starter);
    starter.until_output("begun");
    until("the build sleeps", || sleeps(&marker));
    starter.signal(Signal::SIGKILL);
    until("the build is gone", || !sleeps(&marker) && world.scratch().is_empty());
    world.assert_no_build();
}
