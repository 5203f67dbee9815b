//! `vrun setup` and `vrun teardown`: good input twice, bad input, and being killed. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use support::{World, finish, text, until};
use vr_common::lock::FileLock;

/// Sets up in vain; returns the whole message.
fn refused(world: &World, code: i32) -> String {
    let setup = world.vrun("setup");
    let message = text(&setup.stderr);
    assert_eq!(setup.status.code(), Some(code), "{message}");
    assert_eq!(message.lines().filter(|line| line.starts_with("ERROR: ")).count(), 1, "{message}");
    assert!(text(&setup.stdout).is_empty());
    message
}

#[test]
fn files_have_the_owner_and_the_modes_that_the_format_page_says() {
    let world = World::new("true").yaml("user: daemon\nenv: {SECRET: x}");
    fs::set_permissions(world.app("private", ""), fs::Permissions::from_mode(0o400)).unwrap();
    world.app("folder/file", "");
    fs::set_permissions(world.path().join("app/folder"), fs::Permissions::from_mode(0o500)).unwrap();
    let world = world.ready();
    let rootfs = world.proc_folder().join("rootfs");
    let of = |name: &str| fs::symlink_metadata(rootfs.join(name)).unwrap();
    for name in ["app", "app/serve", "app/private", "app/folder"] {
        assert_eq!((of(name).uid(), of(name).gid()), (1, 1), "{name}");
    }
    assert_eq!(of("app/private").mode() & 0o660, 0o660);
    assert_eq!(of("app/folder").mode() & 0o750, 0o750);
    for name in ["env.sh", "settings.yaml"] {
        assert_eq!((of(name).uid(), of(name).gid(), of(name).mode() & 0o7777), (0, 1, 0o640), "{name}");
    }
    assert_eq!(of("proc.sh").mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(world.proc_folder()).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn setup_may_be_repeated_and_takes_a_new_build() {
    for world in [World::new as fn(&str) -> World, World::with_image] {
        let world = world("echo first").ready();
        let own = world.proc_folder().join("rootfs/app/made-by-the-app");
        fs::write(&own, "").unwrap();
        assert!(world.vrun("setup").status.success());
        assert!(own.exists(), "the same build was unpacked again");
        assert_eq!(text(&world.vrun("run").stdout), "first\n");

        world.app_program("serve", "#!/bin/sh\necho second\n");
        fs::remove_file(world.root().join("builds/build.tar.gz")).unwrap();
        world.pack();
        assert!(world.vrun("setup").status.success());
        assert!(!own.exists());
        assert_eq!(text(&world.vrun("run").stdout), "second\n");
        assert!(world.vrun("teardown").status.success());
        assert!(!world.proc_folder().exists());
        assert!(world.vrun("teardown").status.success());
        assert!(world.root().join("builds/build.tar.gz").is_file());
        let run = world.vrun("run");
        assert_eq!(run.status.code(), Some(1));
        assert!(text(&run.stderr).contains("is not set up"), "{}", text(&run.stderr));
    }
}

#[test]
fn a_changed_image_replaces_the_old_one() {
    let mut world = World::with_image("cat /etc/image-mark");
    let sum = |world: &World| vr_common::fetch::md5_file(&world.path().join("image.tar")).unwrap();
    let first = sum(&world);
    world.extra = format!("image_md5: {first}\n");
    let mut world = world.ready();
    assert_eq!(text(&world.vrun("run").stdout), "of the image");
    fs::write(world.path().join("image/etc/image-mark"), "of another image").unwrap();
    support::tar(&world.path().join("image"), &world.path().join("image.tar"));
    world.extra = format!("image_md5: {}\n", sum(&world));
    let world = world.ready();
    assert_eq!(text(&world.vrun("run").stdout), "of another image");
    let world = world.ready();
    assert_eq!(text(&world.vrun("run").stdout), "of another image");
}

#[test]
fn a_setup_that_was_killed_anywhere_is_repaired_by_the_next() {
    let world = World::with_image("echo works");
    // Enough files that unpacking takes a while.
    for number in 0..2000 {
        world.app(&format!("many/{number}"), "some content");
    }
    world.pack();
    let places = [
        world.root().join("images/tiny/image.tar"),
        world.root().join("images/tiny/contents"),
        world.proc_folder().join("rootfs"),
        world.root().join("builds/build.tar.gz"),
        world.proc_folder().join("rootfs/app/many"),
        world.proc_folder().join("rootfs/env.sh"),
    ];
    for place in places {
        let mut setup = world.start_command(world.command("setup"));
        // Killed when it has come this far, or as soon after it as may be; finished is also far enough.
        until("a step of setup", || place.exists() || setup.child.try_wait().unwrap().is_some());
        let _ = setup.child.kill();
        setup.child.wait().unwrap();
        if place.ends_with("many") {
            assert_eq!(
                fs::read_dir(&place).unwrap().count(),
                2000,
                "a half-unpacked build under its final name"
            );
        }
    }
    let setup = world.vrun("setup");
    assert!(setup.status.success(), "{}", text(&setup.stderr));
    assert_eq!(text(&world.vrun("run").stdout), "works\n");
    assert_eq!(fs::read_dir(world.proc_folder().join("rootfs/app/many")).unwrap().count(), 2000);
    for folder in [world.proc_folder(), world.root().join("images/tiny"), world.proc_folder().join("rootfs")]
    {
        for entry in fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(
                !name.contains("part-") && !name.ends_with(".new"),
                "left in {}: {name}",
                folder.display()
            );
        }
    }
}

#[test]
fn the_set_user_id_programs_of_an_image_are_out_of_reach_for_the_hosts_users() {
    let world = World::with_image("true").ready();
    let image = world.root().join("images/tiny");
    assert!(image.join("contents/usr/bin/id").is_file());
    assert_eq!(fs::metadata(&image).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn an_image_that_nobody_marked_as_whole_is_unpacked_again() {
    let world = World::with_image("cat /etc/image-mark").ready();
    let image = world.root().join("images/tiny");
    fs::write(image.join("contents/etc/image-mark"), "of an image before").unwrap();
    fs::remove_file(image.join("contents.mark")).unwrap();
    let world = world.ready();
    assert_eq!(text(&world.vrun("run").stdout), "of the image");
}

#[test]
fn a_broken_tarball_is_fetched_again_by_the_next_setup() {
    let world = World::new("echo works");
    world.write_yaml();
    fs::write(world.path().join("build.tar.gz"), "").unwrap();
    assert!(refused(&world, 1).contains("is truncated or not a gzip-compressed tar archive"));
    let world = world.ready();
    assert_eq!(text(&world.vrun("run").stdout), "works\n");
}

#[test]
fn a_build_without_its_command_does_not_run_with_the_last_ones() {
    let world = World::new("echo first").ready();
    fs::remove_file(world.path().join("app/Procfile")).unwrap();
    fs::remove_file(world.root().join("builds/build.tar.gz")).unwrap();
    world.pack();
    assert!(refused(&world, 2).contains("has no Procfile"));
    let run = world.vrun("run");
    assert_eq!(run.status.code(), Some(1));
    assert!(text(&run.stderr).contains("is not set up"), "{}", text(&run.stderr));
}

#[test]
fn two_builds_with_the_same_file_name_do_not_get_mixed_up() {
    let sum = |world: &World| {
        let md5 = vr_common::fetch::md5_file(&world.path().join("build.tar.gz")).unwrap();
        format!("build_md5: {md5}\n")
    };
    let (mut one, mut other) = (World::new("echo one"), World::new("echo other"));
    for world in [&mut one, &mut other] {
        world.pack();
        world.extra = sum(world);
        world.write_yaml();
    }
    // The same name of the proc, too, would be the same proc.
    let text_of_other = fs::read_to_string(other.file()).unwrap().replace("version: v1", "version: v2");
    fs::write(other.file(), text_of_other).unwrap();
    let root = one.root();
    // The first setup has fetched its tarball and is kept from unpacking it.
    fs::create_dir_all(one.proc_folder()).unwrap();
    let lock = FileLock::create(&one.proc_folder().join(".build.lock")).unwrap();
    let mut setup_one = one.command("setup");
    setup_one.arg("-v");
    let mut setup_one = one.start_command(setup_one);
    setup_one.until_says("waiting for another process that unpacks to the same place");
    let mut setup_other = other.command("setup");
    setup_other.arg("-v").env("VR_ROOT", &root);
    let mut setup_other = other.start_command(setup_other);
    until("the second setup", || {
        setup_other.output().contains("waiting for another setup")
            || setup_other.child.try_wait().unwrap().is_some()
    });
    drop(lock);
    assert_eq!(
        (setup_one.end(), setup_other.end()),
        (0, 0),
        "{}{}",
        setup_one.output(),
        setup_other.output()
    );
    let mut run_other = other.command("run");
    run_other.env("VR_ROOT", &root);
    assert_eq!(text(&one.vrun("run").stdout), "one\n");
    assert_eq!(text(&finish(run_other).stdout), "other\n");
}

#[test]
fn a_command_of_nothing_is_refused() {
    let world = World::new("true").yaml("cmd: ' '");
    world.pack();
    assert!(refused(&world, 2).contains("the cmd of demo-v1-prod-abcd1234-web-5001 is empty"));
}

#[test]
fn bad_procfiles_are_named() {
    let world = World::new("true");
    world.app("Procfile", "worker: ./work\nclock: ./tick\n");
    world.pack();
    let message = refused(&world, 2);
    assert!(message.contains("has no entry \"web\"; it has clock, worker"), "{message}");
    let rootfs = world.proc_folder().join("rootfs");
    assert!(!rootfs.join("proc.sh").exists());

    for (content, expected) in [
        ("web: [a, b]", "web: expected a command, found a list"),
        ("just words", "expected a mapping"),
        ("web: 'x", "Procfile"),
    ] {
        world.app("Procfile", content);
        let _ = fs::remove_file(world.root().join("builds/build.tar.gz"));
        world.pack();
        let message = refused(&world, 2);
        assert!(message.contains(expected), "{message}");
    }
    fs::remove_file(world.path().join("app/Procfile")).unwrap();
    fs::remove_file(world.root().join("builds/build.tar.gz")).unwrap();
    world.pack();
    assert!(refused(&world, 2).contains("has no Procfile"));

    symlink("/etc/passwd", world.path().join("app/Procfile")).unwrap();
    fs::remove_file(world.root().join("builds/build.tar.gz")).unwrap();
    world.pack();
    assert!(refused(&world, 2).contains("has no Procfile"), "the host's file was read");
}

#[test]
fn bad_tarballs_are_refused_and_leave_no_app() {
    let world = World::new("true");
    world.app("large", &(0..200_000).map(|n| n.to_string()).collect::<String>());
    world.pack();
    let tarball = world.path().join("build.tar.gz");
    let whole = fs::read(&tarball).unwrap();
    let app = world.proc_folder().join("rootfs/app");
    let cached = world.root().join("builds/build.tar.gz");

    fs::write(&tarball, &whole[..whole.len() / 2]).unwrap();
    let message = refused(&world, 1);
    assert!(message.contains("build.tar.gz"), "{message}");
    assert!(!app.exists() && !cached.exists());

    let evil = world.path().join("evil");
    fs::create_dir_all(evil.join("x")).unwrap();
    fs::write(evil.join("escaped"), "").unwrap();
    for name in ["../escaped", "/escaped"] {
        let mut tar = vr_common::process::command("tar");
        tar.arg("-C").arg(evil.join("x")).arg("-czf").arg(&tarball).arg("-P");
        tar.arg(format!("--transform=s,.*,{name},")).arg("../escaped");
        assert!(tar.status().unwrap().success());
        let message = refused(&world, 1);
        assert!(message.contains("escaped"), "{message}");
        assert!(!app.exists() && !world.proc_folder().join("escaped").exists());
        fs::remove_file(&cached).unwrap();
    }

    fs::write(&tarball, &whole).unwrap();
    fs::write(
        world.file(),
        fs::read_to_string(world.file()).unwrap() + &format!("build_md5: {}\n", "0".repeat(32)),
    )
    .unwrap();
    let message = refused(&world, 1);
    assert!(message.contains("00000000000000000000000000000000"), "{message}");
    assert!(!cached.exists() && !app.exists());

    world.write_yaml();
    fs::remove_file(&tarball).unwrap();
    assert!(refused(&world, 1).contains("build.tar.gz"));
}

#[test]
fn links_in_the_root_never_lead_setup_or_teardown_to_the_host() {
    let world = World::new("echo fine").ready();
    let victim = world.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("env.sh"), "untouched").unwrap();
    let rootfs = world.proc_folder().join("rootfs");
    vr_common::archive::remove_tree(&rootfs.join("app")).unwrap();
    symlink(&victim, rootfs.join("app")).unwrap();
    for name in ["env.sh", "settings.yaml", "proc.sh"] {
        fs::remove_file(rootfs.join(name)).unwrap();
        symlink(victim.join(name), rootfs.join(name)).unwrap();
    }
    for name in ["tmp", "run", "var", "dev"] {
        vr_common::archive::remove_tree(&rootfs.join(name)).unwrap();
    }
    symlink(&victim, rootfs.join("tmp")).unwrap();
    assert!(world.vrun("setup").status.success());
    assert!(rootfs.join("app").symlink_metadata().unwrap().is_dir());
    // In the container that link leads to nothing, which stops the app and harms nobody.
    let run = world.vrun("run");
    assert_eq!(run.status.code(), Some(1));
    assert!(text(&run.stderr).contains("/tmp"), "{}", text(&run.stderr));
    fs::remove_file(rootfs.join("tmp")).unwrap();
    assert_eq!(text(&world.vrun("run").stdout), "fine\n");
    symlink(&victim, rootfs.join("more")).unwrap();
    assert!(world.vrun("teardown").status.success());
    assert_eq!(fs::read_to_string(victim.join("env.sh")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
}

#[test]
fn bad_files_and_usage_end_with_2_and_one_sentence() {
    let world = World::new("true");
    world.pack();
    for (content, expected) in [
        ("port: 5000", "needs one of the keys proc_name and cmd"),
        ("cmd: [x", "proc.yaml"),
        ("cmd: x\nport: eighty", "port"),
        ("cmd: x\nuser: nosuchuser", "there is no user \"nosuchuser\""),
        ("cmd: x\ngroup: nosuchgroup", "there is no group \"nosuchgroup\""),
        ("cmd: x\nbuild_url: https://example.org/", "does not end in a file name"),
        ("cmd: x\nenv: {A-B: 1}", "is not a variable name"),
        ("cmd: \"x\\0y\"", "zero byte"),
        ("proc_name: web", "has neither build_url nor app_folder"),
        ("cmd: x\nvolumes: [[relative, /x]]", "is not a volume"),
        ("a: &a [1,1]\nb: &b [*a,*a]\ncmd: x\nx: {y: [*b, *c]}", "proc.yaml"),
    ] {
        fs::write(world.file(), content).unwrap();
        let message = refused(&world, 2);
        assert!(message.contains(expected), "{content}\n{message}");
    }
    fs::remove_file(world.file()).unwrap();
    assert!(refused(&world, 2).contains("proc.yaml"));
    let mut usage = vr_common::process::command(env!("CARGO_BIN_EXE_vrun"));
    usage.arg("fly").arg(world.file());
    assert_eq!(finish(usage).status.code(), Some(2));
    let mut help = vr_common::process::command(env!("CARGO_BIN_EXE_vrun_precise"));
    help.arg("--help");
    let help = finish(help);
    assert!(help.status.success() && text(&help.stdout).contains("vrun setup proc.yaml"));
}
