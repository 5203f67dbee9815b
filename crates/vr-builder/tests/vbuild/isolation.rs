//! What a build can see and touch.

use std::fs;

use crate::support::World;

#[test]
fn a_build_runs_as_nobody_with_an_environment_of_its_own() {
    let world = World::new();
    let yaml = world.yaml_with("id -un; id -u; pwd; env | sort; ls -A /root /env; echo \"$@\"");
    world.build(&yaml).expect(0);
    let log = world.log();
    assert!(log.contains("\nnobody\n65534\n/build/app-"), "{log}");
    let variables: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .filter(|name| !["PWD", "SHLVL", "_", "OLDPWD"].contains(name))
        .collect();
    assert_eq!(variables, ["BUILDPACK_DIRS", "HOME", "LANG", "PATH", "SOURCE_VERSION", "TMPDIR"]);
    assert!(!log.contains("SECRET"), "{log}");
    assert!(log.contains("HOME=/app\n") && log.contains("TMPDIR=/tmp\n"), "{log}");
    assert!(log.contains("/root:\n\n/env:\n") || log.contains("/env:\n\n/root:\n"), "{log}");
    let arguments = log.lines().last().unwrap();
    assert!(
        arguments.starts_with("/build/app-") && arguments.ends_with(" /cache/buildpack_cache /env"),
        "{log}"
    );
}

#[test]
fn a_build_cannot_reach_the_host() {
    let world = World::new();
    let secret = world.path("secret");
    fs::write(&secret, "of the host").unwrap();
    let folder = world.path("builder");
    let script = format!(
        "try() {{ if \"$@\" 2>/dev/null; then echo \"FAIL $*\"; fi; }}
         try cat {secret}; try ls {builder}; try ls /home/; try touch /usr/x; try touch /etc/x; try touch /x
         try sh -c 'echo x >> /builder.sh'; try mount -t tmpfs none /tmp; try chroot / true
         try cat /etc/shadow; try kill -0 {pid}; try mknod /tmp/null c 1 3
         touch /tmp/t /app/h \"$1/a\" \"$2/c\" \"${{0%/bin/compile}}/b\" && echo written",
        secret = secret.display(),
        builder = folder.display(),
        pid = std::process::id(),
    );
    world.build(&world.yaml_with(&script)).expect(0);
    let log = world.log();
    assert!(!log.contains("FAIL"), "{log}");
    assert!(log.contains("\nwritten\n"), "{log}");
    // The buildpack's own checkout is what it was.
    let checkout = fs::read_dir(folder.join("buildpacks")).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        path.is_dir().then_some(path)
    });
    assert!(!checkout.unwrap().join("b").exists());
    assert_eq!(world.packed(), ["Procfile", "a", "src", "src/main.py"]);
    world.assert_clean();
}

#[test]
fn another_user_may_be_asked_for() {
    let world = World::new();
    let (app, pack) = (world.app(), world.pack("pack", "id -u"));
    let yaml = world.yaml(&app, &format!("buildpack_url: {}\nuser: daemon", pack.display()));
    assert_eq!(world.build(&yaml).expect(0).stdout, "1\n");
}

#[test]
fn the_repositorys_history_is_not_shown() {
    let world = World::new();
    let ended = world.build(&world.yaml_with("ls -A \"$1\"; ls -A \"${0%/bin/compile}\"")).expect(0);
    assert_eq!(ended.stdout, "-----> Toy app detected\nProcfile\nsrc\nbin\n");
}
