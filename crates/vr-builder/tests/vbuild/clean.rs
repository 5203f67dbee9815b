//! Caches that are dropped: by people, and because they are too large together.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::support::{Ended, Meeting, Started, World, ended};

/// An app with a cache of about so many bytes.
fn app(world: &World, name: &str, bytes: u64) -> PathBuf {
    let app = world.git(name, &[("Procfile", "web: x\n")]);
    let pack = world.pack(
        &format!("pack-{name}"),
        &format!("[ -f $2/x ] || echo empty; [ -f $2/x ] || head -c {bytes} /dev/zero >$2/x"),
    );
    world.yaml(&app, &format!("buildpack_url: {}", pack.display()))
}

/// The names of the apps that have a cache.
fn cached(world: &World) -> Vec<String> {
    let name =
        |path: PathBuf| path.file_name().unwrap().to_str().unwrap().split('-').next().unwrap().to_owned();
    world.caches().into_iter().map(name).collect()
}

fn clean(world: &World, arguments: &[&str], files: &[&Path]) -> Ended {
    ended(world.command(&["clean"]).args(arguments).args(files))
}

#[test]
fn one_cache_or_all() {
    let world = World::new();
    let (one, two, three) =
        (app(&world, "one", 1 << 20), app(&world, "two", 4096), app(&world, "three", 4096));
    for yaml in [&one, &two, &three] {
        assert_eq!(world.build(yaml).expect(0).stdout, "empty\n");
        assert_eq!(world.build(yaml).expect(0).stdout, "");
    }
    let said = clean(&world, &[], &[&one]).expect(0);
    let folder = world.path("builder/cache");
    assert!(
        said.stderr.starts_with(&format!("vbuild: removed {}/one-", folder.display())),
        "{}",
        said.stderr
    );
    assert!(said.stderr.ends_with(" (1.1 MB)\nvbuild: freed 1.1 MB\n"), "{}", said.stderr);
    assert_eq!(said.stdout, "");
    assert_eq!(cached(&world), ["three", "two"]);
    assert_eq!(world.build(&one).expect(0).stdout, "empty\n");

    let said = clean(&world, &["--json", "--quiet"], &[]).expect(0);
    assert_eq!(said.stderr, "");
    let value: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let removed = value["clean"]["removed"].as_array().unwrap();
    assert_eq!((value["ok"].as_bool(), removed.len()), (Some(true), 3));
    assert!(removed[0]["bytes"].as_u64().unwrap() > 1 << 20, "{value}");
    assert!(
        removed[0]["path"].as_str().unwrap().starts_with(&format!("{}/one-", folder.display())),
        "{value}"
    );
    assert_eq!(value["clean"]["in_use"].as_array().unwrap().len(), 0);
    assert_eq!(crate::support::names(&folder), Vec::<String>::new());
    // Once more, and where there never was anything.
    assert_eq!(clean(&world, &[], &[]).expect(0).stderr, "vbuild: freed 0 bytes\n");
    assert_eq!(clean(&World::new(), &["--repositories"], &[]).expect(0).stderr, "vbuild: freed 0 bytes\n");
    let failed = clean(&world, &[], &[Path::new("/nosuch.yaml")]).expect(2);
    assert!(failed.error().starts_with("cannot read /nosuch.yaml: "), "{}", failed.error());
    world.assert_clean();
}

#[test]
fn repositories_too() {
    let world = World::new();
    let (one, two) = (app(&world, "one", 4096), app(&world, "two", 4096));
    for yaml in [&one, &two] {
        world.build(yaml).expect(0);
    }
    let left = || -> Vec<usize> {
        let folders = ["builder/cache", "builder/repo", "builder/buildpacks"].map(|name| world.path(name));
        let visible = |folder: &PathBuf| {
            crate::support::names(folder).iter().filter(|name| !name.starts_with('.')).count()
        };
        folders.iter().map(visible).collect()
    };
    assert_eq!(left(), [2, 2, 2]);
    clean(&world, &["--repositories"], &[&one]).expect(0);
    assert_eq!(left(), [1, 1, 1]);
    assert_eq!(world.build(&one).expect(0).stdout, "empty\n");
    clean(&world, &["--repositories"], &[]).expect(0);
    assert_eq!(left(), [0, 0, 0]);
    assert_eq!(world.build(&two).expect(0).stdout, "empty\n");
    world.assert_clean();
}

#[test]
fn what_a_build_uses_stays() {
    let world = World::new();
    let meeting = Meeting::new();
    let busy = world.yaml_with(&format!("[ -f $2/x ] && {}; echo x >$2/x", meeting.script()));
    let idle = app(&world, "idle", 4096);
    world.build(&busy).expect(0);
    world.build(&idle).expect(0);
    let build = Started::new(&mut world.vbuild(&["build"], &busy));
    let mut met = meeting.wait();

    let said = clean(&world, &["--repositories"], &[]).expect(0);
    let in_use = format!("vbuild: a build uses {}/app-", world.path("builder/cache").display());
    assert!(said.stderr.contains(&in_use), "{}", said.stderr);
    assert_eq!(cached(&world), ["app"]);
    // For what somebody names, it is waited.
    let failed = clean(&world, &["--lock-timeout", "300ms"], &[&busy]).expect(5);
    assert!(failed.error().starts_with("gave up after 300ms of waiting for process "), "{}", failed.error());
    let mut cleaning = Started::new(world.command(&["clean"]).arg(&busy));
    cleaning.until_said("waiting for process ");
    met.write_all(b"go\n").unwrap();
    build.end().expect(0);
    assert!(cleaning.end().expect(0).stderr.contains("vbuild: removed "));
    assert_eq!(cached(&world), Vec::<String>::new());
    world.assert_clean();
}

#[test]
fn those_not_used_for_the_longest_time_make_room() {
    let world = World::new();
    let [one, two, three] = ["one", "two", "three"].map(|name| app(&world, name, 1 << 20));
    let build = |yaml: &Path, most: &str| {
        ended(world.vbuild(&["build"], yaml).env("VBUILD_CACHE_MAX", most)).expect(0)
    };
    build(&one, "none");
    build(&two, "3M");
    build(&one, "");
    let said = build(&three, "3M");
    assert_eq!(cached(&world), ["one", "three"]);
    let dropped = "vbuild: dropped the cache of two-";
    assert!(said.stderr.contains(dropped), "{}", said.stderr);
    assert!(said.stderr.contains(" (1.1 MB): all caches together may have 3.1 MB\n"), "{}", said.stderr);
    // The one that a build uses is not dropped, though it is the older one; in the end the build's own is.
    let meeting = Meeting::new();
    let waiting = world.pack("waiting", &meeting.script());
    let waiting = world.yaml(&world.path("one"), &format!("buildpack_url: {}", waiting.display()));
    let first = Started::new(&mut world.vbuild(&["build", "--output", "../second"], &waiting));
    let mut met = meeting.wait();
    let said = build(&two, "2200K");
    assert!(said.stderr.contains("vbuild: dropped the cache of three-"), "{}", said.stderr);
    assert_eq!(cached(&world), ["one", "two"]);
    let said = build(&two, "1500K");
    assert!(
        said.stderr.contains(dropped) && said.stderr.ends_with("; its cache has 0 bytes\n"),
        "{}",
        said.stderr
    );
    assert_eq!(cached(&world), ["one"]);
    met.write_all(b"go\n").unwrap();
    first.end().expect(0);
    world.assert_clean();
}

#[test]
fn a_most_that_is_no_size() {
    let world = World::new();
    let yaml = world.yaml_with("echo never");
    let failed = ended(world.vbuild(&["build"], &yaml).env("VBUILD_CACHE_MAX", "much")).expect(2);
    assert_eq!(
        failed.error(),
        "VBUILD_CACHE_MAX: \"much\" is not an amount: expected bytes, or a number with K, M, G or T such as 10G, \
         no less than 4K, or none"
    );
    assert_eq!(failed.stdout, "");
    world.assert_no_build();
}
