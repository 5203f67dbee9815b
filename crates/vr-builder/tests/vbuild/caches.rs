//! What one build leaves for the next, and builds at the same time.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use nix::sys::signal::Signal;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use vr_common::archive::bytes_in;
use vr_common::vcs::RepoUrl;

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
fn what_the_python_suite_kept_is_used() {
    let world = World::new();
    let yaml = world.yaml_with(COUNTING);
    let url = RepoUrl::parse(&world.path("app").display().to_string()).unwrap();
    let saved = world.write(&format!("builder/cache/{}", url.folder()), &[("runs", "xxx")]);
    // Also after others have been built, which look at how large all caches are.
    let other = world.git("other", &[("x", "x")]);
    world
        .build(&world.yaml(&other, &format!("buildpack_urls: [{}]", world.path("pack").display())))
        .expect(0);
    assert!(world.build(&yaml).expect(0).stdout.ends_with("\nruns: xxx\n"));
    assert_eq!(fs::read_to_string(saved.join("buildpack_cache/runs")).unwrap(), "xxxx");
    world.assert_clean();
}

#[test]
fn what_an_overlay_would_misunderstand_is_in_no_cache() {
    let world = World::new();
    let yaml = world.yaml_with("ls $2; mknod $2/gone c 0 0 2>/dev/null || echo refused >$2/said");
    world.build(&yaml).expect(0);
    assert!(world.build(&yaml).expect(0).stdout.ends_with("\nsaid\n"));
    world.assert_clean();
}

#[test]
fn a_cache_that_cannot_be_saved_is_no_reason_to_fail() {
    let world = World::new();
    // Deeper than any path can say.
    let deep = "cd $2; n=$(printf %0100d 1); for _ in {1..60}; do mkdir $n && cd -P $n; done 2>/dev/null";
    let yaml = world.yaml_with(&format!("ls $2; {deep}; true"));
    world.build(&yaml).expect(0);
    // The first is moved into its place as a whole; the second has changes.
    world.write(
        "pack",
        &[("bin/compile", &format!("#!/bin/bash\nls $2; mkdir $2/more; cd $2/more; {}\n", &deep[7..]))],
    );
    crate::support::commit(&world.path("pack"), "v2");
    world.build(&yaml).expect(0);
    world.build(&yaml).expect(0);
    assert!(world.out("build.tar.gz").exists());
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

#[test]
fn a_large_cache_is_not_copied() {
    const LARGE: u64 = 32 << 20;
    let world = World::new();
    let meeting = Meeting::new();
    let script = format!(
        "[ -f $2/large ] || head -c {LARGE} /dev/zero >$2/large; {}; echo x >>$2/small",
        meeting.script()
    );
    let yaml = world.yaml_with(&script);
    let number = || fs::metadata(world.cache().join("large")).unwrap().ino();
    let first = Started::new(&mut world.vbuild(&["build"], &yaml));
    meeting.wait().write_all(b"go\n").unwrap();
    first.end().expect(0);
    let before = number();
    let second = Started::new(&mut world.vbuild(&["build"], &yaml));
    let mut met = meeting.wait();
    let [scratch] = &world.scratch()[..] else { panic!("one build has one scratch folder") };
    assert!(bytes_in(scratch) < LARGE / 8, "{} bytes", bytes_in(scratch));
    met.write_all(b"go\n").unwrap();
    let ended = second.end().expect(0);
    assert!(ended.stderr.contains("; its cache has 33.6 MB\n"), "{}", ended.stderr);
    assert_eq!(number(), before);
    assert_eq!(fs::read_to_string(world.cache().join("small")).unwrap(), "x\nx\n");
    world.assert_clean();
}

/// What is in `$2`, with owners and modes.
const LIST: &str = "list() { (cd $1; find . -mindepth 1 -printf '%P %y %u %m %l\\n' | sort; \
                    find . -type f | sort | xargs cat; ls -l | grep -c '^total') }";

#[test]
fn all_changes_of_a_cache_are_saved() {
    let world = World::new();
    let make = "cd $2; mkdir -p kept gone/deep replaced folder moved/deep; echo a >kept/a; echo old >kept/changed
        echo r >removed; echo x >gone/deep/x; echo o >replaced/old; echo x >folder/x; echo f >file; ln -s kept link
        echo m >moved/deep/m; chmod 750 kept";
    let change = "cd $2; echo new >kept/changed; rm -r removed gone replaced folder file; mkdir replaced file
        echo n >replaced/new; echo 'now a file' >folder; echo 'now in a folder' >file/x; rm link; ln -s new link
        mkdir new; echo n >new/n; chmod 700 kept/a; ln kept/a kept/twin; mkfifo pipe";
    // Not in the way of an overlay that notes where a folder was moved from, and together with it.
    for (round, moves) in
        ["", "; mv moved renamed; mv renamed/deep/m renamed/n; mv kept stored"].iter().enumerate()
    {
        let world = if round == 0 { &world } else { &World::new() };
        let script =
            format!("{LIST}; case $(ls $2) in '') {make};; *removed*) {change}{moves};; esac; list $2");
        let yaml = world.yaml_with(&script);
        let made = world.build(&yaml).expect(0).stdout;
        let changed = world.build(&yaml).expect(0).stdout;
        let saved = world.build(&yaml).expect(0).stdout;
        assert_ne!(made, changed);
        // Pipes are nothing to keep, but do no harm.
        let without_pipe = |text: &str| text.replace("pipe p nobody 644 \n", "");
        assert_eq!(without_pipe(&saved), without_pipe(&changed), "{moves}");
        assert!(
            saved.contains("\nkept/a f nobody 700 \n") != saved.contains("\nstored/a f nobody 700 \n"),
            "{saved}"
        );
        assert!(saved.contains("now a file\n") && !saved.contains("\nremoved "), "{saved}");
        assert_eq!(saved.contains("\nrenamed/n f "), !moves.is_empty(), "{saved}");
        world.assert_clean();
    }
}

#[test]
fn a_build_that_fails_or_is_killed_changes_nothing_of_the_cache() {
    let world = World::new();
    let meeting = Meeting::new();
    let (app, good) = (
        world.app(),
        world.pack("good", "mkdir -p $2/a; [ -f $2/a/b ] || echo b >$2/a/b; cat $2/a/b; ls $2"),
    );
    let wreck = "rm -rf $2/a; echo x >$2/new";
    let yaml = |pack: &Path| world.yaml(&app, &format!("buildpack_url: {}", pack.display()));
    let good = yaml(&good);
    assert_eq!(world.build(&good).expect(0).stdout, "b\na\n");
    let failing = yaml(&world.pack("failing", &format!("{wreck}; exit 1")));
    world.build(&failing).expect(4);
    assert_eq!(world.build(&good).expect(0).stdout, "b\na\n");
    let waiting = yaml(&world.pack("waiting", &format!("{wreck}; {}", meeting.script())));
    let build = Started::new(&mut world.vbuild(&["build"], &waiting));
    let _met = meeting.wait();
    build.signal(Signal::SIGKILL);
    assert_eq!(build.end().code, None);
    assert_eq!(world.build(&good).expect(0).stdout, "b\na\n");
    world.assert_clean();
}

#[test]
fn changes_of_a_build_that_was_killed_while_it_saved_them_are_carried_out() {
    let world = World::new();
    let yaml =
        world.yaml_with("[ -f $2/old ] || [ -f $2/new ] || echo old | tee $2/old >$2/gone; head -v $2/*");
    world.build(&yaml).expect(0);
    let [cache] = &world.caches()[..] else { panic!("one app has one cache") };
    let beside =
        |what: &str| cache.with_file_name(format!(".{}.{what}", cache.file_name().unwrap().display()));
    let changes = beside("changes");
    let changed = changes.join("buildpack_cache");
    fs::create_dir_all(&changed).unwrap();
    fs::write(changed.join("new"), "new\n".repeat(5000)).unwrap();
    chown(&changed, Some(65534), Some(65534)).unwrap();
    mknodat(CWD, changed.join("gone"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), 0).unwrap();
    fs::write(beside("size"), "1\n").unwrap();
    let shown = world.build(&yaml).expect(0);
    assert!(
        shown.stdout.contains("/new <==\nnew\n") && shown.stdout.contains("/old <==\nold\n"),
        "{}",
        shown.stdout
    );
    assert!(!shown.stdout.contains("/gone <=="), "{}", shown.stdout);
    assert!(!changes.exists());
    let size: u64 = fs::read_to_string(beside("size")).unwrap().trim().parse().unwrap();
    assert_eq!(size, bytes_in(cache));

    // What cannot be carried out costs the cache, and not the build.
    fs::write(&changes, "not a folder").unwrap();
    let shown = world.build(&yaml).expect(0);
    assert!(shown.stderr.contains("the cache is broken, beginning with an empty one"), "{}", shown.stderr);
    assert!(!shown.stdout.contains("/new <=="), "{}", shown.stdout);
    assert!(!changes.exists());
    assert!(world.build(&yaml).expect(0).stdout.contains("/gone <==\nold\n"));
    world.assert_clean();
}

#[test]
fn another_build_user_gets_what_the_last_one_kept() {
    let world = World::new();
    let script =
        "id -un; cat $2/a/b 2>/dev/null; mkdir -p $2/a; echo x >>$2/a/b; chmod 700 $2/a; ln -sf b $2/a/c";
    let (app, pack) = (world.app(), world.pack("pack", script));
    let yaml = |more: &str| world.yaml(&app, &format!("buildpack_url: {}\n{more}", pack.display()));
    assert_eq!(world.build(&yaml("")).expect(0).stdout, "nobody\n");
    assert_eq!(world.build(&yaml("user: daemon")).expect(0).stdout, "daemon\nx\n");
    for entry in walkdir::WalkDir::new(world.cache()) {
        assert_eq!(entry.unwrap().metadata().unwrap().uid(), 1);
    }
    assert_eq!(world.build(&yaml("user: '65534'")).expect(0).stdout, "nobody\nx\nx\n");
    world.assert_clean();
}
