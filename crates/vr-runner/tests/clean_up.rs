//! The clean-up of a host next to real procs: what is used stays, and what nobody uses goes. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use support::{Background, World, text, until};
use vr_common::paths::VrRoot;
use vr_runner::proc::{CleanUp, CleanedUp, RemovedKind, clean_up};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn clean(world: &World, unused_for: Duration) -> CleanedUp {
    let done = clean_up(&VrRoot::new(world.root()), &CleanUp::builds(unused_for)).unwrap();
    assert!(done.failures.is_empty(), "{done:?}");
    done
}

fn kinds(done: &CleanedUp) -> Vec<RemovedKind> {
    done.removed.iter().map(|removed| removed.kind).collect()
}

fn keys(world: &World) -> Vec<PathBuf> {
    let entries = fs::read_dir(world.root().join("builds/unpacked"));
    entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_host_without_anything_has_nothing_to_clean() {
    let world = World::new("true");
    assert!(clean(&world, Duration::ZERO).removed.is_empty());
    assert!(!world.root().exists());
}

#[test]
fn a_build_stays_for_as_long_as_a_proc_or_a_container_uses_it() {
    for world in [World::new as fn(&str) -> World, World::with_image] {
        let world = world("echo ready; sleep 1000; cat serve").ready();
        assert!(clean(&world, Duration::ZERO).removed.is_empty(), "a proc that is set up uses it");
        let mut run = world.start();
        run.until_says("ready");
        // Without the record, only the container shows that it is used.
        let record = world.proc_folder().join("setup.json");
        let kept = fs::read(&record).unwrap();
        fs::remove_file(&record).unwrap();
        assert!(clean(&world, Duration::ZERO).removed.is_empty(), "the running container uses it");
        fs::write(&record, &kept).unwrap();
        run.signal(Signal::SIGTERM);
        assert_eq!(run.end(), 143);

        let mut shell = world.command("shell");
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let scratch = || {
            let entries = fs::read_dir(world.proc_folder()).unwrap();
            entries
                .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("scratch-"))
                .count()
        };
        until("the shell", || scratch() == 1);
        fs::remove_file(&record).unwrap();
        assert!(clean(&world, Duration::ZERO).removed.is_empty(), "the shell uses it");
        shell.kill().unwrap();
        shell.wait().unwrap();
        until("the end of the shell's container", || {
            let done = clean(&world, Duration::ZERO);
            let removed = kinds(&done);
            assert!(done.bytes() > 0 || removed.is_empty());
            keys(&world).is_empty() && scratch() == 0
        });
        assert!(world.vrun("setup").status.success());
        assert_eq!(keys(&world).len(), 1);
    }
}

#[test]
fn a_build_that_is_not_used_goes_after_its_time() {
    let world = World::new("true").ready();
    let key = keys(&world)[0].clone();
    let long_ago = |days: u32| {
        File::open(&key).unwrap().set_modified(SystemTime::now() - days * DAY).unwrap();
    };
    long_ago(3);
    // Its proc used it until now.
    assert!(world.vrun("teardown").status.success());
    assert!(clean(&world, 2 * DAY).removed.is_empty());
    long_ago(3);
    assert!(clean(&world, 4 * DAY).removed.is_empty());
    let done = clean(&world, 2 * DAY);
    assert_eq!(kinds(&done), [RemovedKind::UnpackedBuild]);
    assert_eq!(done.removed[0].path, key);
    assert!(done.bytes() >= 8192 && keys(&world).is_empty());

    // Teardown does the same for what others have left.
    let world = world.ready();
    let forgotten = world.root().join("builds/unpacked/0-0-0");
    fs::create_dir_all(forgotten.join("layer/app")).unwrap();
    File::open(&forgotten).unwrap().set_modified(SystemTime::now() - 2 * DAY).unwrap();
    assert!(world.vrun("teardown").status.success());
    assert_eq!(keys(&world), [key]);
}

#[test]
fn tarballs_and_images_go_when_no_proc_refers_to_them() {
    let world = World::with_image("echo ready; sleep 1000").ready();
    let image = fs::read_dir(world.root().join("images")).unwrap().next().unwrap().unwrap().path();
    let everything = |dry_run| {
        let what = CleanUp { unused_for: Duration::ZERO, tarballs_unused_for: Some(Duration::ZERO), dry_run };
        let done = clean_up(&VrRoot::new(world.root()), &what).unwrap();
        assert!(done.failures.is_empty(), "{done:?}");
        kinds(&done)
    };
    // Its file is its own folder's, as the agent has it.
    let own = world.proc_folder().join("proc.yaml");
    fs::copy(world.file(), &own).unwrap();
    assert_eq!(everything(false), []);
    // People keep theirs anywhere: then any image may be in use. A tarball that is missed is fetched again.
    fs::remove_file(&own).unwrap();
    assert_eq!(everything(true), [RemovedKind::UnusedTarball]);
    fs::copy(world.file(), &own).unwrap();

    let mut run = world.start();
    run.until_says("ready");
    fs::write(&own, "{}").unwrap();
    assert_eq!(everything(true), [RemovedKind::UnusedTarball], "a container uses the image");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end(), 143);
    fs::write(&own, "a: [").unwrap();
    let what = CleanUp { unused_for: DAY, tarballs_unused_for: Some(Duration::ZERO), dry_run: false };
    let doubtful = clean_up(&VrRoot::new(world.root()), &what).unwrap();
    assert_eq!((doubtful.failures.len(), doubtful.removed.len()), (1, 0), "nobody knows what that proc uses");

    assert!(world.vrun("teardown").status.success());
    let all = [RemovedKind::UnpackedBuild, RemovedKind::UnusedTarball, RemovedKind::UnusedImage];
    assert_eq!(everything(true), all);
    assert!(image.join("contents").is_dir());
    assert_eq!(everything(false), all);
    let left = vr_testing::names(&image);
    assert!(left.iter().all(|name| name.ends_with(".lock")), "{left:?}");
    assert_eq!(everything(false), []);

    // All of it comes back.
    let world = world.ready();
    let mut run = world.start();
    run.until_says("ready");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end(), 143);
}

/// A setup that has come to a point in the middle and is stopped there. One that was faster than this starts anew, without
/// the folder.
fn setup_stopped_at(world: &World, folder: &str, is_there: impl Fn() -> bool) -> Background {
    for _ in 0..50 {
        let mut setup = world.start_command(world.command("setup"));
        until("the middle of setup", || is_there() || setup.child.try_wait().unwrap().is_some());
        if setup.child.try_wait().unwrap().is_none() {
            setup.signal(Signal::SIGSTOP);
            if is_there() {
                return setup;
            }
        }
        drop(setup);
        vr_common::archive::remove_tree(&world.root().join(folder)).unwrap();
    }
    panic!("setup was always faster");
}

#[test]
fn a_setup_in_the_middle_is_left_alone_and_a_killed_one_is_cleared_away() {
    let world = World::with_image("echo works");
    for number in 0..3000 {
        world.app(&format!("many/{number}"), "some content");
    }
    world.pack();
    let unfinished = || keys(&world).iter().any(|key| key.join("unfinished/app/many").exists());
    let mut setup = setup_stopped_at(&world, "builds/unpacked", unfinished);
    assert!(clean(&world, Duration::ZERO).removed.is_empty());
    setup.child.kill().unwrap();
    setup.child.wait().unwrap();
    // Half a build is of no use to anybody, however new it is.
    assert_eq!(kinds(&clean(&world, DAY)), [RemovedKind::UnpackedBuild]);

    // In the middle of an image, and of a download.
    vr_common::archive::remove_tree(&world.root().join("images")).unwrap();
    let left = || {
        let entries = fs::read_dir(world.root().join("images/tiny")).into_iter().flatten();
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("contents-left-"))
    };
    let mut setup = setup_stopped_at(&world, "images", left);
    assert!(clean(&world, Duration::ZERO).removed.is_empty());
    setup.child.kill().unwrap();
    setup.child.wait().unwrap();
    fs::write(world.root().join("builds/.build.tar.gz.part-0123456789abcdef"), "half").unwrap();
    fs::write(world.root().join("images/tiny/.image.tar.part-0123456789abcdef"), "half").unwrap();
    assert_eq!(
        kinds(&clean(&world, DAY)),
        [RemovedKind::ReplacedImage, RemovedKind::UnfinishedDownload, RemovedKind::UnfinishedDownload]
    );
    let world = world.ready();
    assert_eq!(text(&world.vrun("run").stdout), "works\n");
}

#[test]
fn a_replaced_image_stays_for_as_long_as_a_container_uses_it() {
    let world =
        World::with_image("echo ready; until [ -e /gate/go ]; do sleep 0.01; done; cat /etc/image-mark");
    let gate = world.path().join("gate");
    fs::create_dir(&gate).unwrap();
    let world = world.yaml(&format!("volumes: [[{}, /gate, ro]]", gate.display())).ready();
    let mut run = world.start();
    run.until_says("ready");
    // Another proc comes with a newer image of the same name.
    let other = World::new("true");
    fs::write(world.path().join("image/etc/image-mark"), "of another image").unwrap();
    support::tar(&world.path().join("image"), &world.path().join("image.tar"));
    let sum = vr_common::fetch::md5_file(&world.path().join("image.tar")).unwrap();
    let text_of_file = fs::read_to_string(world.file()).unwrap().replace("version: v1", "version: v2");
    fs::write(other.file(), format!("{text_of_file}image_md5: {sum}\n")).unwrap();
    let mut setup = other.command("setup");
    setup.env("VR_ROOT", world.root()).env("VR_ENGINE", support::engine());
    let setup = support::finish(setup);
    assert!(setup.status.success(), "{}", text(&setup.stderr));
    assert!(clean(&world, Duration::ZERO).removed.is_empty(), "the running container uses it");
    fs::write(gate.join("go"), "").unwrap();
    assert_eq!(run.end(), 0);
    assert_eq!(run.output(), "ready\nof the image");
    let done = clean(&world, DAY);
    assert_eq!(kinds(&done), [RemovedKind::ReplacedImage]);
    assert!(done.bytes() > 1_000_000, "{done:?}");
}

#[test]
fn a_proc_that_cannot_be_read_might_use_any_build() {
    let world = World::new("true").ready();
    let record = world.proc_folder().join("setup.json");
    fs::write(&record, "{\"user\":").unwrap();
    let other = world.root().join("builds/unpacked/0-0-0");
    fs::create_dir_all(other.join("layer/app")).unwrap();
    let done = clean_up(&VrRoot::new(world.root()), &CleanUp::builds(Duration::ZERO)).unwrap();
    // Said once for all builds.
    assert!(done.removed.is_empty() && done.failures.len() == 1, "{done:?}");
    let message = vr_common::exit::chain(&done.failures[0]);
    assert!(message.contains(&*record.to_string_lossy()), "{message}");
    let run = world.vrun("run");
    assert_eq!(run.status.code(), Some(1));
    assert!(text(&run.stderr).contains("hint: run `vrun setup FILE` first"), "{}", text(&run.stderr));
    assert!(world.vrun("teardown").status.success());
    vr_common::archive::remove_tree(&other).unwrap();
    let world = world.ready();
    assert!(world.vrun("run").status.success());
    assert!(clean(&world, Duration::ZERO).removed.is_empty());
}
