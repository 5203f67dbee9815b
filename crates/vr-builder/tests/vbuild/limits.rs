//! Limits that are hit: each has its message, its hint and exit code 5, and leaves nothing.

use std::fs;
use std::io::Write;

use nix::sys::signal::Signal;

use crate::support::{Ended, Meeting, Started, World, ended, marker, sleeps, until};

/// Builds with a limit that is hit.
#[track_caller]
fn hit(world: &World, arguments: &[&str], compile: &str, error: &str, hint: &str) -> Ended {
    let yaml = world.yaml_with(&format!("echo begun; echo x >$2/kept; {compile}"));
    let ended = ended(&mut world.vbuild(&[&["build"], arguments].concat(), &yaml)).expect(5);
    assert_eq!(ended.error(), error);
    assert!(ended.stderr.contains("\n  in the step compile\n  its output is in "), "{}", ended.stderr);
    assert!(ended.stderr.contains("\n  | begun\n"), "{}", ended.stderr);
    assert!(ended.stderr.ends_with(&format!("\nhint: {hint}\n")), "{}", ended.stderr);
    assert!(world.log().starts_with("-----> Toy app detected\nbegun\n"));
    world.assert_no_build();
    assert!(world.caches().is_empty());
    ended
}

#[test]
fn memory() {
    let hint = "--memory allows more, such as --memory 4G";
    // There is no end of a line in it.
    let hog = "head -c 120000000 /dev/zero | tail | wc -c";
    let world = World::new();
    let error = "the build was killed: out of memory (limit 64M)";
    hit(&world, &["--memory", "64M"], &format!("set -eo pipefail; {hog}"), error, hint);
    // A build that does without what was killed has succeeded.
    let world = World::new();
    let yaml = world.yaml_with(&format!("{hog}; true"));
    ended(&mut world.vbuild(&["build", "--memory", "64M"], &yaml)).expect(0);
    world.assert_clean();
}

#[test]
fn processes() {
    let world = World::new();
    // Shells that make others until there are none to be had. (bash would try each again for seconds.)
    let forks = "exec sh -c 'while :; do sleep 4000 & done'";
    let error = "the build ran out of processes (limit 60)";
    hit(&world, &["--processes", "60"], forks, error, "--processes allows more, such as --processes 20000");
}

#[test]
fn disk() {
    let write = |place: &str| format!("head -c 24M /dev/zero >{place}");
    let error = "the build took more than 8.4 MB on disk";
    for place in ["$1/file", "$2/file", "/tmp/file", "~/file", "${0%/compile}/file"] {
        let world = World::new();
        let arguments = ["--disk", "8M"];
        let hint = "--disk allows more, such as --disk 40G";
        hit(&world, &arguments, &write(place), error, hint);
    }
    // One that goes on is stopped.
    let (world, marker) = (World::new(), marker());
    let yaml = world.yaml_with(&format!("{}; sleep {marker}", write("$1/file")));
    assert_eq!(ended(&mut world.vbuild(&["build", "--disk", "8M"], &yaml)).expect(5).error(), error);
    assert!(!sleeps(&marker));
    world.assert_no_build();
    let world = World::new();
    let yaml = world.yaml_with(&write("$1/file"));
    ended(&mut world.vbuild(&["build", "--disk", "100M"], &yaml)).expect(0);
}

#[test]
fn time() {
    let (world, marker) = (World::new(), marker());
    let error = "the build took longer than 5s and was stopped";
    let hint = "--timeout allows more, such as --timeout 4h";
    hit(&world, &["--timeout", "5s"], &format!("sleep {marker}"), error, hint);
    assert!(!sleeps(&marker));
}

#[test]
fn time_of_a_checkout() {
    let world = World::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/app.git", silent.local_addr().unwrap());
    let pack = world.pack("pack", "true");
    let yaml = world.yaml(url.as_ref(), &format!("buildpack_url: {}", pack.display()));
    for command in ["build", "shell"] {
        let ended = ended(&mut world.vbuild(&[command, "--timeout", "1s"], &yaml)).expect(5);
        assert_eq!(ended.error(), format!("git ls-remote for {url} did not end in time and was stopped"));
        assert!(
            ended
                .stderr
                .ends_with("\n  in the step checkout\nhint: --timeout allows more, such as --timeout 1h\n")
        );
        world.assert_no_build();
    }
}

#[test]
fn more_than_any_host_unpacks() {
    let world = World::new();
    // A hole costs nothing on disk, and days to read.
    let yaml = world.yaml_with("truncate -s 1T $1/large");
    let ended = ended(&mut world.vbuild(&["build", "--disk", "8M", "--timeout", "10s"], &yaml)).expect(5);
    let expected = "/large has 1099511627776 bytes, holes included: with it, the tarball would hold more than 21474836480 bytes";
    assert!(ended.error().starts_with("cannot make the tarball: /"), "{}", ended.error());
    assert!(ended.error().ends_with(expected), "{}", ended.error());
    assert!(ended.stderr.contains("\n  in the step pack\n"), "{}", ended.stderr);
    world.assert_no_build();
    assert!(world.caches().is_empty());
}

#[test]
fn a_shell_takes_no_limit_that_it_would_not_keep() {
    let world = World::new();
    let refused = ended(&mut world.vbuild(&["shell", "--disk=1G"], "none.yaml".as_ref())).expect(2);
    assert!(refused.stderr.contains("unexpected argument '--disk'"), "{}", refused.stderr);
}

#[test]
fn a_lock_that_somebody_has() {
    let world = World::new();
    let meeting = Meeting::new();
    let yaml = world.yaml_with(&meeting.script());
    let first = Started::new(&mut world.vbuild(&["build"], &yaml));
    let mut met = meeting.wait();
    let arguments = ["build", "--lock-timeout", "500ms", "--output", "../second"];
    let second = ended(&mut world.vbuild(&arguments, &yaml)).expect(5);
    let holder =
        format!("process {}, which has held {}/", first.0.id(), world.path("builder/locks").display());
    let error = second.error();
    assert!(error.starts_with(&format!("gave up after 500ms of waiting for {holder}app-")), "{error}");
    assert!(error.ends_with(" s"), "{error}");
    assert!(second.stderr.contains(&format!("vbuild: waiting for {holder}")), "{}", second.stderr);
    assert!(second.stderr.contains("\nhint: --lock-timeout waits longer; without it there is no end\n"));
    assert_eq!(fs::read_dir(world.path("second")).unwrap().count(), 0);
    met.write_all(b"go\n").unwrap();
    first.end().expect(0);
    world.assert_clean();
}

#[test]
fn a_lock_of_somebody_who_was_killed() {
    let (world, marker) = (World::new(), marker());
    let yaml = world.yaml_with(&format!("echo begun; sleep {marker}"));
    let mut first = Started::new(&mut world.vbuild(&["build"], &yaml));
    first.until_output("begun");
    until("the build sleeps", || sleeps(&marker));
    world.write("pack", &[("bin/compile", "#!/bin/sh\necho done\n")]);
    crate::support::commit(&world.path("pack"), "v2");
    let mut second = Started::new(&mut world.vbuild(&["build", "--lock-timeout", "1m"], &yaml));
    second.until_said("waiting for process ");
    first.signal(Signal::SIGKILL);
    assert_eq!(first.end().code, None);
    second.end().expect(0);
    until("nothing of the first one runs", || !sleeps(&marker));
    world.assert_clean();
}

#[test]
fn a_checkout_of_somebody_who_was_killed() {
    let world = World::new();
    let pack = world.pack("pack", "true");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/app.git", silent.local_addr().unwrap());
    let yaml = world.yaml(url.as_ref(), &format!("buildpack_url: {}", pack.display()));
    let build = Started::new(&mut world.vbuild(&["build"], &yaml));
    let (_connection, _) = silent.accept().unwrap();
    assert!(runs(&url));
    build.signal(Signal::SIGKILL);
    build.end();
    // git would go on writing to what the next build takes for its own. That one ends it, whatever it builds.
    let other = world.yaml(&world.app(), &format!("buildpack_url: {}", pack.display()));
    world.build(&other).expect(0);
    until("git is gone", || !runs(&url));
    world.assert_clean();
}

/// Whether a program with this argument runs.
fn runs(argument: &str) -> bool {
    let lines =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let wanted = argument.as_bytes();
    lines.into_iter().any(|line| line.split(|&byte| byte == 0).any(|word| word == wanted))
}

#[test]
fn limits_that_make_no_sense() {
    let world = World::new();
    for (option, value) in [
        ("--memory", "much"),
        ("--processes", "0"),
        ("--cpus", "none"),
        ("--disk", "12"),
        ("--timeout", "soon"),
        ("--lock-timeout", "-1"),
        ("--network", "bridge"),
    ] {
        let ended = ended(&mut world.vbuild(&["build", &format!("{option}={value}")], "none.yaml".as_ref()))
            .expect(2);
        assert!(ended.stderr.contains(option) && ended.stderr.contains(value), "{}", ended.stderr);
    }
}

#[test]
fn the_network() {
    let world = World::new();
    let network = "readlink /proc/self/ns/net; tail -n +3 /proc/net/dev | cut -d: -f1";
    let (app, pack) = (world.app(), world.pack("pack", network));
    let yaml = |more: &str| world.yaml(&app, &format!("buildpack_url: {}\n{more}", pack.display()));
    let shown = |arguments: &[&str], more: &str| {
        ended(&mut world.vbuild(&[&["build"], arguments].concat(), &yaml(more))).expect(0).stdout
    };
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    let is_host = |shown: &str| shown.starts_with(&format!("{}\n", host.display()));
    let is_none = |shown: &str| {
        let interfaces: Vec<&str> = shown.lines().skip(1).map(str::trim).collect();
        !is_host(shown) && interfaces == ["lo"]
    };
    assert!(is_host(&shown(&[], "")));
    assert!(is_none(&shown(&["--network", "none"], "")));
    assert!(is_none(&shown(&[], "network: none")));
    assert_eq!(world.result()["network"].as_str(), Some("none"));
    assert!(is_host(&shown(&["--network", "host"], "network: none")));
    world.assert_clean();
}
