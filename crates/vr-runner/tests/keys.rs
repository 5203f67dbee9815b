//! The keys of `proc.yaml` beyond the manual's, as an app sees what they do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;

use support::{World, text};

fn said(world: &World) -> String {
    let run = world.vrun("run");
    assert!(run.status.success(), "{} {}", text(&run.stdout), text(&run.stderr));
    text(&run.stdout)
}

const WRITES: &str = "for place in /new /app/new /run/new /etc/new /dev/new /tmp/new /var/tmp/new /data/new /only/new; do \
     if (echo x > $place) 2>/dev/null; then echo $place; fi; done; cat /app/Procfile";

fn with_volumes(world: World) -> World {
    let path = world.path().display().to_string();
    for name in ["data", "only"] {
        fs::create_dir(world.path().join(name)).unwrap();
    }
    fs::set_permissions(world.path().join("data"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    world.yaml(&format!("volumes: [[{path}/data, /data], [{path}/only, /only, ro]]"))
}

#[test]
fn a_read_only_root_takes_only_temporary_files_and_volumes() {
    for world in [World::new(WRITES), World::with_image(WRITES)] {
        let world = with_volumes(world).yaml("read_only: true").ready();
        let said_first = said(&world);
        assert!(said_first.starts_with("/tmp/new\n/var/tmp/new\n/data/new\nweb: "), "{said_first}");
        assert!(!world.proc_folder().join("rootfs/tmp/new").exists());
        assert!(world.path().join("data/new").is_file());
        // Nothing of the last run is left in the way of the next.
        assert_eq!(said(&world), said_first);
    }
}

#[test]
fn root_may_not_write_to_a_read_only_root_either() {
    let world = with_volumes(World::with_image(WRITES)).yaml("read_only: true\nuser: root").ready();
    let said = said(&world);
    assert!(said.starts_with("/run/new\n/dev/new\n/tmp/new\n/var/tmp/new\n/data/new\nweb: "), "{said}");
}

#[test]
fn without_the_key_an_app_may_write_to_what_is_its_own() {
    let world = with_volumes(World::with_image(WRITES)).ready();
    let said = said(&world);
    assert!(said.starts_with("/app/new\n/tmp/new\n/data/new\nweb: "), "{said}");
    assert!(world.proc_folder().join("rootfs/app/new").is_file());
}

#[test]
fn a_proc_may_have_no_network_but_its_own_loopback() {
    let world = World::new("ls /sys/class/net; echo there").yaml("network: none").ready();
    assert_eq!(said(&world), "lo\nthere\n");
    let world = World::new("ls /sys/class/net | wc -l").yaml("network: host").ready();
    let of_host = fs::read_dir("/sys/class/net").unwrap().count();
    assert_eq!(said(&world).trim(), of_host.to_string());
}

#[test]
fn root_listens_on_any_port_of_a_network_of_its_own() {
    let listen = "use Socket; socket(S, PF_INET, SOCK_STREAM, 0) && bind(S, sockaddr_in(80, INADDR_LOOPBACK)) or die $!; \
         listen(S, 1) && print qq(listens\\n);";
    let world =
        World::new(&format!("exec /usr/bin/perl -e '{listen}'")).yaml("network: none\nuser: root").ready();
    assert_eq!(said(&world), "listens\n");
}

#[test]
fn a_proc_may_have_a_host_name_of_its_own() {
    let world = World::new("hostname; cat /proc/sys/kernel/hostname").yaml("hostname: web-1.example").ready();
    assert_eq!(said(&world), "web-1.example\nweb-1.example\n");
    let world = World::new("").yaml("hostname: 'no name'");
    world.pack();
    let setup = world.vrun("setup");
    assert_eq!(setup.status.code(), Some(2));
    assert!(text(&setup.stderr).contains("hostname: "), "{}", text(&setup.stderr));
}
