//! `vrun setup` and `vrun teardown`: good input twice, bad input, and being killed. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

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

/// The folders of the unpacked builds.
fn keys(world: &World) -> Vec<PathBuf> {
    match fs::read_dir(world.root().join("builds/unpacked")) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    }
}

fn the_only_layer(world: &World) -> PathBuf {
    let keys = keys(world);
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys[0].join("layer")
}

#[test]
fn files_have_the_owner_and_the_modes_that_the_format_page_says() {
    let world = World::new("true").yaml("user: daemon\nenv: {SECRET: x}");
    fs::set_permissions(world.app("private", ""), fs::Permissions::from_mode(0o400)).unwrap();
    world.app("folder/file", "");
    fs::set_permissions(world.path().join("app/folder"), fs::Permissions::from_mode(0o500)).unwrap();
    let world = world.ready();
    let rootfs = world.proc_folder().join("rootfs");
    let layer = the_only_layer(&world);
    let in_layer = |name: &str| fs::symlink_metadata(layer.join(name)).unwrap();
    for name in ["app", "app/serve", "app/private", "app/folder"] {
        assert_eq!((in_layer(name).uid(), in_layer(name).gid()), (1, 1), "{name}");
    }
    assert_eq!(in_layer("app/private").mode() & 0o660, 0o660);
    assert_eq!(in_layer("app/folder").mode() & 0o750, 0o750);
    let of = |name: &str| fs::symlink_metadata(rootfs.join(name)).unwrap();
    for name in ["env.sh", "settings.yaml"] {
        assert_eq!((of(name).uid(), of(name).gid(), of(name).mode() & 0o7777), (0, 1, 0o640), "{name}");
    }
    assert_eq!(of("proc.sh").mode() & 0o7777, 0o755);
    // Builds and settings are nobody else's business.
    let unpacked = world.root().join("builds/unpacked");
    for folder in
        [world.proc_folder(), world.root().join("builds"), unpacked.clone(), keys(&world)[0].clone()]
    {
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o7777, 0o700, "{}", folder.display());
    }
    let record = fs::metadata(world.proc_folder().join("setup.json")).unwrap();
    assert_eq!((record.uid(), record.mode() & 0o7777), (0, 0o600));
}

#[test]
fn setup_may_be_repeated_and_takes_a_new_build() {
    for world in [World::new as fn(&str) -> World, World::with_image] {
        let world = world("echo first; touch made-by-the-app; rm Procfile; ls").ready();
        assert_eq!(text(&world.vrun("run").stdout), "first\nmade-by-the-app\nserve\n");
        let own = world.proc_folder().join("rootfs/app/made-by-the-app");
        assert!(own.exists());
        // The command comes from the build, whatever the app does to its copy.
        assert!(world.vrun("setup").status.success());
        assert!(own.exists(), "what the app wrote is gone");
        assert!(text(&world.vrun("run").stdout).starts_with("first\n"));

        world.app_program("serve", "#!/bin/sh\necho second; ls\n");
        fs::remove_file(world.root().join("builds/build.tar.gz")).unwrap();
        world.pack();
        assert!(world.vrun("setup").status.success());
        assert!(!own.exists());
        assert_eq!(text(&world.vrun("run").stdout), "second\nProcfile\nserve\n");
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
    let layers = || keys(&world).into_iter().map(|key| key.join("layer"));
    let places: [&dyn Fn() -> bool; 8] = [
        &|| world.root().join("images/tiny/image.tar").exists(),
        &|| {
            let found = fs::read_dir(world.root().join("images/tiny")).into_iter().flatten();
            found.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("contents-left-"))
        },
        &|| world.root().join("images/tiny/contents").exists(),
        &|| world.proc_folder().join("rootfs").exists(),
        &|| world.root().join("builds/build.tar.gz").exists(),
        &|| keys(&world).iter().any(|key| key.join("unfinished/app/many").exists()),
        &|| layers().any(|layer| layer.exists()),
        &|| world.proc_folder().join("rootfs/env.sh").exists(),
    ];
    for place in places {
        let mut setup = world.start_command(world.command("setup"));
        // Killed when it has come this far, or as soon after it as may be; finished is also far enough.
        until("a step of setup", || place() || setup.child.try_wait().unwrap().is_some());
        let _ = setup.child.kill();
        setup.child.wait().unwrap();
        for layer in layers().filter(|layer| layer.exists()) {
            let count = fs::read_dir(layer.join("app/many")).unwrap().count();
            assert_eq!(count, 2000, "a half-unpacked build under its final name");
        }
    }
    let setup = world.vrun("setup");
    assert!(setup.status.success(), "{}", text(&setup.stderr));
    assert_eq!(text(&world.vrun("run").stdout), "works\n");
    assert_eq!(fs::read_dir(the_only_layer(&world).join("app/many")).unwrap().count(), 2000);
    assert!(!keys(&world)[0].join("unfinished").exists());
    for folder in [world.proc_folder(), world.root().join("images/tiny"), world.proc_folder().join("rootfs")]
    {
        for entry in fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(
                !name.contains("part-")
                    && !name.contains("-old-")
                    && !name.contains("-left-")
                    && !name.ends_with(".new"),
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

/// Another world's proc in the same `VR_ROOT`, as a proc of its own.
fn beside(world: &World, other: &World, version: &str) -> impl Fn(&str) -> std::process::Command + use<> {
    let text =
        fs::read_to_string(other.file()).unwrap().replace("version: v1", &format!("version: {version}"));
    fs::write(other.file(), text).unwrap();
    let (root, file) = (world.root(), other.file());
    move |verb| {
        let mut command = vr_common::process::command(env!("CARGO_BIN_EXE_vrun"));
        command.env("VR_ROOT", &root).env("VR_ENGINE", support::engine()).arg("-v").arg(verb).arg(&file);
        command
    }
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
    let other_command = beside(&one, &other, "v2");
    // The first setup has fetched its tarball and is kept from unpacking it.
    let md5 = one.extra.trim_start_matches("build_md5: ").trim();
    let key = one.root().join(format!("builds/unpacked/{md5}-65534-65534"));
    fs::create_dir_all(&key).unwrap();
    let lock = FileLock::existing(&key).unwrap();
    let mut setup_one = one.command("setup");
    setup_one.arg("-v");
    let mut setup_one = one.start_command(setup_one);
    setup_one.until_says("waiting for another command that unpacks or removes the same build");
    let mut setup_other = other.start_command(other_command("setup"));
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
    assert_eq!(text(&one.vrun("run").stdout), "one\n");
    assert_eq!(text(&finish(other_command("run")).stdout), "other\n");
}

#[test]
fn a_build_of_the_same_name_from_elsewhere_is_another_build_also_without_sums() {
    let (one, other) = (World::new("echo one"), World::new("echo other"));
    other.pack();
    let one = one.ready();
    let other_command = beside(&one, &other, "v2");
    assert!(finish(other_command("setup")).status.success());
    for _ in 0..2 {
        assert_eq!(text(&one.vrun("run").stdout), "one\n");
        assert_eq!(text(&finish(other_command("run")).stdout), "other\n");
        assert!(one.vrun("setup").status.success());
        assert!(finish(other_command("setup")).status.success());
    }
    assert_eq!(keys(&one).len(), 2);
}

#[test]
fn procs_of_the_same_build_share_it_and_write_to_their_own_folders() {
    for world in [World::new as fn(&str) -> World, World::with_image] {
        let world =
            world("cat note 2>/dev/null; echo $PORT > note; rm file; ls; [ -w /app ] && echo writable");
        world.app("file", "of the build");
        let world = world.yaml("user: daemon").ready();
        let layer = the_only_layer(&world);
        let inode = fs::metadata(layer.join("app/file")).unwrap().ino();
        let (second, other_user) = (World::new(""), World::new(""));
        for (other, more) in [(&second, ""), (&other_user, "user: nobody\n")] {
            let text = fs::read_to_string(world.file()).unwrap().replace("user: daemon\n", more);
            let port = if more.is_empty() { "5002" } else { "5003" };
            let text = text.replace("5001", port).replace(&*other.root().to_string_lossy(), "");
            fs::write(other.file(), format!("{text}{}", if more.is_empty() { "user: daemon\n" } else { "" }))
                .unwrap();
        }
        let (second, other_user) = (beside(&world, &second, "v2"), beside(&world, &other_user, "v3"));
        // Without the tarball it is still there.
        fs::remove_file(world.path().join("build.tar.gz")).unwrap();
        assert!(finish(second("setup")).status.success());
        assert_eq!(the_only_layer(&world), layer);
        assert_eq!(fs::metadata(layer.join("app/file")).unwrap().ino(), inode, "unpacked again");
        // Files of another owner are other files.
        assert!(finish(other_user("setup")).status.success());
        assert_eq!(keys(&world).len(), 2);
        for (mut run, port) in
            [(world.command("run"), "5001"), (second("run"), "5002"), (other_user("run"), "5003")]
        {
            run.env("VR_ROOT", world.root()).env("VR_ENGINE", support::engine());
            let run = finish(run);
            assert_eq!(text(&run.stdout), "Procfile\nnote\nserve\nwritable\n", "{}", text(&run.stderr));
            let folder = world.root().join("procs");
            let notes = fs::read_dir(folder).unwrap().filter(|entry| {
                let note = entry.as_ref().unwrap().path().join("rootfs/app/note");
                fs::read_to_string(note).is_ok_and(|text| text == format!("{port}\n"))
            });
            assert_eq!(notes.count(), 1);
        }
        assert_eq!(fs::read_to_string(layer.join("app/file")).unwrap(), "of the build");
        assert!(!layer.join("app/note").exists());
    }
}

#[test]
fn two_setups_of_the_same_build_at_once_unpack_it_once() {
    let world = World::new("echo works");
    for number in 0..2000 {
        world.app(&format!("many/{number}"), "some content");
    }
    world.pack();
    let others: Vec<_> = (0..3).map(|_| World::new("")).collect();
    let commands: Vec<_> = others
        .iter()
        .enumerate()
        .map(|(number, other)| {
            fs::copy(world.file(), other.file()).unwrap();
            beside(&world, other, &format!("other{number}"))
        })
        .collect();
    let mut setups: Vec<_> = commands.iter().map(|command| world.start_command(command("setup"))).collect();
    for setup in &mut setups {
        assert_eq!(setup.end(), 0, "{}", setup.output());
    }
    let said: String = setups.iter().map(|setup| setup.output()).collect();
    assert_eq!(said.matches("unpacking").count(), 1, "{said}");
    the_only_layer(&world);
    for command in &commands {
        assert_eq!(text(&finish(command("run")).stdout), "works\n");
    }
}

#[test]
fn a_proc_of_an_older_setup_keeps_its_copy_until_there_is_another_build() {
    for (world, with_sum) in [(World::new as fn(&str) -> World, false), (World::with_image, true)] {
        let mut world = world("echo first; ls");
        world.pack();
        let sum = |world: &World| vr_common::fetch::md5_file(&world.path().join("build.tar.gz")).unwrap();
        if with_sum {
            world.extra = format!("build_md5: {}\n", sum(&world));
        }
        let world = world.ready();
        // As it was when every proc had a copy of its build.
        let folder = world.proc_folder();
        let app = folder.join("rootfs/app");
        fs::rename(the_only_layer(&world).join("app"), &app).unwrap();
        vr_common::archive::remove_tree(&world.root().join("builds/unpacked")).unwrap();
        fs::remove_file(folder.join("setup.json")).unwrap();
        let tarball = fs::metadata(world.root().join("builds/build.tar.gz")).unwrap();
        let of_tarball = match with_sum {
            true => format!("md5 {}", sum(&world)),
            false => {
                let url = world.path().join("build.tar.gz");
                let (inode, seconds, rest) = (tarball.ino(), tarball.ctime(), tarball.ctime_nsec());
                format!("{} inode {inode} of {seconds}.{rest:09}", url.display())
            }
        };
        fs::write(folder.join("build.mark"), format!("{of_tarball}\nfor 65534:65534\n")).unwrap();
        fs::remove_file(app.join("Procfile")).unwrap();
        fs::write(app.join("own"), "").unwrap();
        assert_eq!(text(&world.vrun("run").stdout), "first\nown\nserve\n");
        fs::write(app.join("Procfile"), "web: ./serve\n").unwrap();
        for _ in 0..2 {
            assert!(world.vrun("setup").status.success());
            assert_eq!(text(&world.vrun("run").stdout), "first\nProcfile\nown\nserve\n");
        }
        assert!(keys(&world).is_empty());

        let mut world = world;
        world.app_program("serve", "#!/bin/sh\necho second; ls\n");
        world.pack();
        world.extra = format!("build_md5: {}\n", sum(&world));
        fs::create_dir(folder.join("build")).unwrap();
        let world = world.ready();
        assert_eq!(text(&world.vrun("run").stdout), "second\nProcfile\nserve\n");
        assert!(!folder.join("build.mark").exists() && !folder.join("build").exists());
        assert!(!app.join("own").exists());
    }
}

#[test]
fn files_of_a_build_do_not_stay_when_there_is_none_any_more() {
    let world = World::new("touch /app/own").ready();
    assert!(world.vrun("run").status.success());
    let app = world.proc_folder().join("rootfs/app");
    assert!(app.join("own").exists());
    let text_of_file = fs::read_to_string(world.file()).unwrap();
    let without = text_of_file.lines().filter(|line| !line.starts_with("build_url"));
    let without = without.collect::<Vec<_>>().join("\n") + "\ncmd: ls -A /app\n";
    fs::write(world.file(), without).unwrap();
    for _ in 0..2 {
        assert!(world.vrun("setup").status.success());
        let run = world.vrun("run");
        assert_eq!((text(&run.stdout).as_str(), run.status.code()), ("", Some(0)), "{}", text(&run.stderr));
    }
    let made = fs::metadata(&app).unwrap();
    assert_eq!((made.uid(), made.mode() & 0o7777), (65534, 0o755));
    // As after a setup that was killed in between, and for another user.
    std::os::unix::fs::chown(&app, Some(0), Some(0)).unwrap();
    for (more, owner) in [("", 65534), ("user: daemon\n", 1)] {
        let text_of_file = fs::read_to_string(world.file()).unwrap();
        fs::write(world.file(), text_of_file + more).unwrap();
        assert!(world.vrun("setup").status.success());
        let made = fs::metadata(&app).unwrap();
        assert_eq!((made.uid(), made.gid()), (owner, owner));
    }
}

#[test]
fn a_record_that_cannot_be_read_costs_nothing_of_what_the_app_wrote() {
    let world = World::new("touch /app/own; ls").ready();
    assert!(world.vrun("run").status.success());
    let (record, own) = (world.proc_folder().join("setup.json"), world.proc_folder().join("rootfs/app/own"));
    // Of another version, to which a user is something else.
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    json["user"] = "daemon".into();
    fs::write(&record, json.to_string()).unwrap();
    let run = world.vrun("run");
    assert!(text(&run.stderr).contains("hint: run `vrun setup FILE` first"), "{}", text(&run.stderr));
    let world = world.ready();
    assert!(own.exists());
    assert_eq!(text(&world.vrun("run").stdout), "Procfile\nown\nserve\n");
    for nonsense in ["", "{\"layer\":"] {
        fs::write(&record, nonsense).unwrap();
        let message = refused(&world, 1);
        assert!(
            message.contains(&*record.to_string_lossy()) && message.contains("hint: `vrun teardown"),
            "{message}"
        );
        assert!(own.exists() && record.exists());
    }
    assert!(world.vrun("teardown").status.success());
    let world = world.ready();
    assert!(!own.exists());
    assert!(world.vrun("run").status.success());
}

#[test]
fn half_an_app_of_an_older_setup_is_not_taken_for_a_whole_one() {
    use std::os::unix::process::CommandExt;
    let mut world = World::new("echo first");
    world.pack();
    let tarball = world.path().join("build.tar.gz");
    let first = fs::read(&tarball).unwrap();
    let sum = vr_common::fetch::md5_file(&tarball).unwrap();
    let with_sum = |sum: &str| format!("build_md5: {sum}\n");
    world.extra = with_sum(&sum);
    world.write_yaml();
    let home = world.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(world.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = home.join("apps");
    let setup = |world: &World| {
        let mut command = world.command("setup");
        command.env("VR_ROOT", &root).uid(65534).gid(65534);
        finish(command)
    };
    assert!(setup(&world).status.success());
    let folder = root.join("procs").join(support::NAME);
    let app = folder.join("rootfs/app");
    let unpacked = root.join("builds/unpacked");
    fs::rename(unpacked.join(format!("{sum}-65534-65534/layer/app")), &app).unwrap();
    vr_common::archive::remove_tree(&unpacked).unwrap();
    fs::remove_file(folder.join("setup.json")).unwrap();
    fs::write(folder.join("build.mark"), format!("md5 {sum}\nfor 65534:65534\n")).unwrap();
    std::os::unix::fs::chown(folder.join("build.mark"), Some(65534), Some(65534)).unwrap();
    assert!(setup(&world).status.success());
    assert!(!unpacked.exists(), "the app did not keep its copy");
    // Another build comes, and the old one can only be removed in part: in the folder is something of root's.
    fs::create_dir(app.join("of-root")).unwrap();
    fs::write(app.join("of-root/file"), "").unwrap();
    world.app_program("serve", "#!/bin/sh\necho second\n");
    world.pack();
    world.extra = with_sum(&vr_common::fetch::md5_file(&tarball).unwrap());
    world.write_yaml();
    assert_eq!(setup(&world).status.code(), Some(1));
    assert!(app.join("of-root").exists() && !app.join("serve").exists());
    vr_common::archive::remove_tree(&app.join("of-root")).unwrap();
    // And then the old one again.
    fs::write(&tarball, first).unwrap();
    world.extra = with_sum(&sum);
    world.write_yaml();
    assert!(setup(&world).status.success());
    let layer = unpacked.join(format!("{sum}-65534-65534/layer/app/serve"));
    assert!(layer.is_file() && !folder.join("build.mark").exists());
}

#[test]
fn where_there_can_be_no_overlay_a_proc_has_a_copy_of_its_build() {
    let in_overlay = |world: &World, script: &str| {
        for name in ["lower", "upper", "work", "apps"] {
            fs::create_dir_all(world.path().join(name)).unwrap();
        }
        let path = world.path().display();
        let mount = format!(
            "mount -t overlay none -o lowerdir={path}/lower,upperdir={path}/upper,workdir={path}/work {path}/apps"
        );
        let mut command = vr_common::process::command("unshare");
        command.env("VR_ROOT", world.root()).env("VR_ENGINE", support::engine());
        command.env("VRUN", env!("CARGO_BIN_EXE_vrun")).env("FILE", world.file());
        finish({
            command.args([
                "--mount",
                "sh",
                "-ec",
                &format!("{mount}; vrun() {{ \"$VRUN\" -v \"$@\"; }}; {script}"),
            ]);
            command
        })
    };
    let world = World::new("echo first; ls; touch own");
    world.app_program("uptests/web/test", "#!/bin/sh\nexit 0\n");
    world.pack();
    let twice = "vrun setup $FILE; vrun run $FILE; vrun setup $FILE; vrun run $FILE; vrun uptest $FILE";
    let done = in_overlay(&world, twice);
    let message = text(&done.stderr);
    assert!(done.status.success(), "{message}");
    let stdout = text(&done.stdout);
    assert!(stdout.contains("first\nProcfile\nserve\nuptests\n"), "{stdout}");
    assert!(stdout.contains("first\nProcfile\nown\nserve\nuptests\n"), "{stdout}");
    assert!(stdout.contains("\"Passed\":true"), "{stdout}");
    assert_eq!(
        message.matches("is on an overlay file system, where builds cannot be shared").count(),
        1,
        "{message}"
    );
    let upper = world.path().join("upper");
    let folder = upper.join("procs").join(support::NAME);
    assert!(!upper.join("builds/unpacked").exists() && !folder.join("build").exists());
    assert!(folder.join("rootfs/app/own").exists());
    // Another build takes its place.
    world.app_program("serve", "#!/bin/sh\necho second; ls\n");
    fs::remove_file(upper.join("builds/build.tar.gz")).unwrap();
    world.pack();
    let done = in_overlay(&world, "vrun setup $FILE; vrun run $FILE");
    assert!(text(&done.stdout).contains("second\nProcfile\nserve\nuptests\n"), "{}", text(&done.stderr));

    let world = World::with_image("true");
    world.pack();
    let done = in_overlay(&world, "vrun setup $FILE");
    let message = text(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{message}");
    let expected =
        format!("{} is on an overlay file system, over which no image", world.proc_folder().display());
    assert!(message.contains(&expected), "{message}");
    assert!(message.contains("hint: set VR_ROOT"), "{message}");
    assert!(!world.path().join("upper/images").exists());
}

#[test]
fn the_user_stays_who_it_was_at_setup_whatever_the_app_writes() {
    let script =
        "id -u; id -g; echo 'imageuser:x:0:0::/:/bin/sh' > /etc/passwd; echo 'imagegroup:x:0:' > /etc/group";
    let world = World::with_image(script).yaml("user: root").ready();
    assert_eq!(text(&world.vrun("run").stdout), "0\n0\n");
    let written = fs::read_to_string(world.proc_folder().join("rootfs/etc/passwd")).unwrap();
    assert!(written.starts_with("imageuser:x:0"));
    let world = world.yaml("");
    let text_of_file = fs::read_to_string(world.file()).unwrap().replace("user: root", "user: imageuser");
    fs::write(world.file(), text_of_file).unwrap();
    assert!(world.vrun("setup").status.success());
    assert_eq!(text(&world.vrun("run").stdout), "4321\n4322\n");
}

#[test]
fn teardown_needs_nothing_of_the_file_but_the_name() {
    let world = World::new("true").ready();
    let whole = fs::read_to_string(world.file()).unwrap();
    for more in ["mem_limit: lots", "cpu_limit: lots", "app_folder: /does/not/exist", "env: {A-B: x}"] {
        fs::write(world.file(), &whole).unwrap();
        assert!(world.vrun("setup").status.success());
        fs::write(world.file(), format!("{whole}{more}\n")).unwrap();
        let teardown = world.vrun("teardown");
        assert!(teardown.status.success(), "{more}: {}", text(&teardown.stderr));
        assert!(!world.proc_folder().exists(), "{more}");
    }
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
    let nothing_is_unpacked = || !app.exists() && keys(&world).is_empty();

    fs::write(&tarball, &whole[..whole.len() / 2]).unwrap();
    let message = refused(&world, 1);
    assert!(message.contains("build.tar.gz"), "{message}");
    assert!(nothing_is_unpacked() && !cached.exists());

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
        assert!(nothing_is_unpacked());
        for folder in [world.proc_folder(), world.root().join("builds"), world.root().join("builds/unpacked")]
        {
            assert!(!folder.join("escaped").exists(), "{}", folder.display());
        }
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
    assert!(!cached.exists() && nothing_is_unpacked());

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
    for name in ["app", "tmp"] {
        vr_common::archive::remove_tree(&rootfs.join(name)).unwrap();
        symlink(&victim, rootfs.join(name)).unwrap();
    }
    for name in ["env.sh", "settings.yaml", "proc.sh"] {
        fs::remove_file(rootfs.join(name)).unwrap();
        symlink(victim.join(name), rootfs.join(name)).unwrap();
    }
    assert!(world.vrun("setup").status.success());
    assert!(rootfs.join("app").symlink_metadata().is_err(), "a link hides the build");
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
fn an_ordinary_user_sets_up_and_tears_down_in_a_folder_of_its_own() {
    use std::os::unix::process::CommandExt;
    let world = World::with_image("true").yaml("user: daemon\ngroup: imagegroup\nenv: {SECRET: x}");
    world.app("folder/file", "");
    world.pack();
    let home = world.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(world.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = home.join("apps");
    let vrun = |verb: &str| {
        let mut command = world.command(verb);
        command.env("VR_ROOT", &root).uid(65534).gid(65534);
        finish(command)
    };
    for _ in 0..2 {
        let setup = vrun("setup");
        assert!(setup.status.success(), "{}", text(&setup.stderr));
    }
    let folder = root.join("procs").join(support::NAME);
    let keys: Vec<_> =
        fs::read_dir(root.join("builds/unpacked")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(keys.len(), 1);
    for path in [
        keys[0].join("layer/app/folder/file"),
        root.join("images/tiny/contents/usr/bin/id"),
        folder.join("setup.json"),
        folder.join("rootfs/env.sh"),
        folder.join("rootfs/proc.sh"),
    ] {
        let found = fs::symlink_metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid()), (65534, 65534), "{}", path.display());
    }
    let teardown = vrun("teardown");
    assert!(teardown.status.success(), "{}", text(&teardown.stderr));
    assert!(!folder.exists());
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
    assert!(help.status.success() && text(&help.stdout).contains("vrun_precise setup proc.yaml"));
}
