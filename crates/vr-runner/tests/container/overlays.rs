//! Overlays in a root, and views of what containers left in theirs.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, openat};
use tempfile::TempDir;
use vr_common::process::command;
use vr_runner::container::{
    BindMount, ContainerSpec, Credentials, Engine, ExitStatus, Hardening, OverlayMount, RootFs, overlay_view,
};

use super::{Test, failure, host, run, shell};

pub const TESTS: [Test; 12] = [
    ("an_overlay_in_the_root_takes_the_changes", an_overlay_in_the_root_takes_the_changes),
    ("overlays_share_folders_with_the_root", overlays_share_folders_with_the_root),
    ("overlays_come_before_mounts", overlays_come_before_mounts),
    (
        "a_folder_without_other_owners_can_be_in_an_overlay",
        a_folder_without_other_owners_can_be_in_an_overlay,
    ),
    ("a_volatile_overlay_keeps_what_was_written", a_volatile_overlay_keeps_what_was_written),
    (
        "a_volatile_overlay_is_tried_again_with_other_users",
        a_volatile_overlay_is_tried_again_with_other_users,
    ),
    ("an_overlay_stays_in_the_root", an_overlay_stays_in_the_root),
    ("an_overlay_that_makes_no_sense_is_refused", an_overlay_that_makes_no_sense_is_refused),
    ("an_ordinary_user_has_overlays_too", an_ordinary_user_has_overlays_too),
    ("a_view_shows_what_a_container_left", a_view_shows_what_a_container_left),
    ("a_view_finds_what_is_not_where_its_name_is", a_view_finds_what_is_not_where_its_name_is),
    ("a_view_of_odd_folders", a_view_of_odd_folders),
];

/// Nobody's number on this machine.
const USER: u32 = 47_111;
/// Names the folder of the test that goes on as an ordinary user.
pub const OF_A_USER: &str = "VR_TEST_OVERLAY_OF_A_USER";

fn folder(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).unwrap();
    path
}

fn write(path: PathBuf, text: &str) -> PathBuf {
    folder(path.parent().unwrap().to_owned());
    fs::write(&path, text).unwrap();
    path
}

/// An overlay on `/cache` of `top` and `base`, with its other folders in `changes`.
fn cache(dir: &Path) -> OverlayMount {
    let changes = dir.join("changes");
    OverlayMount {
        lowers: vec![folder(dir.join("top")), folder(dir.join("base"))],
        upper: folder(changes.join("cache")),
        work: folder(changes.join("cache-work")),
        target: "/cache".into(),
    }
}

fn with(overlay: OverlayMount, root: RootFs, script: &str) -> ContainerSpec {
    ContainerSpec { overlays: vec![overlay], ..shell(root, script) }
}

fn give(path: &Path, owner: u32, group: u32) {
    std::os::unix::fs::lchown(path, Some(owner), Some(group)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), owner, group);
        }
    }
}

fn owner(path: &Path) -> (u32, u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid(), found.mode() & 0o7777)
}

fn an_overlay_in_the_root_takes_the_changes() {
    const SCRIPT: &str = "cd /cache && stat -c '%u %g %a' . file && cat file other folder/in && echo new > file && rm other && \
        mv folder renamed && cat renamed/in && mkdir made && grep ' /cache ' /proc/self/mountinfo";
    let of_host = Hardening { user_namespace: false, ..Hardening::default() };
    for hardening in [Hardening::default(), of_host] {
        // A name that would break a list of mount options.
        let dir = tempfile::Builder::new().prefix("odd,name:with\\signs ").tempdir().unwrap();
        let overlay = cache(dir.path());
        let top = write(dir.path().join("top/file"), "top\n");
        let below = write(dir.path().join("base/file"), "below\n");
        write(dir.path().join("base/other"), "other\n");
        write(dir.path().join("base/folder/in"), "in\n");
        give(dir.path(), 7, 8);
        fs::set_permissions(&overlay.upper, fs::Permissions::from_mode(0o750)).unwrap();
        let (_host, root) = host();
        let mut spec = with(overlay.clone(), root, SCRIPT);
        // The root's protection does not concern what is mounted in it.
        spec.read_only = true;
        spec.hardening = hardening;
        spec.user = Credentials { uid: 7, gid: 8, groups: Vec::new() };
        let (end, said) = run(spec);
        assert_eq!(end, ExitStatus::Code(0), "{said}");
        let (said, mount) = said.rsplit_once("in\n").unwrap();
        assert_eq!(said, "7 8 750\n7 8 644\ntop\nother\nin\n");
        assert!(mount.contains(" rw,nosuid,nodev,") && !mount.contains("odd"), "{mount}");
        assert_eq!(fs::read_to_string(overlay.upper.join("file")).unwrap(), "new\n");
        assert_eq!(owner(&overlay.upper.join("file")), (7, 8, 0o644));
        assert_eq!(owner(&overlay.upper.join("made")), (7, 8, 0o755));
        let removed = fs::symlink_metadata(overlay.upper.join("other")).unwrap();
        assert!(removed.file_type().is_char_device() && removed.rdev() == 0);
        assert_eq!(fs::read_to_string(top).unwrap(), "top\n");
        assert_eq!(fs::read_to_string(below).unwrap(), "below\n");
        let left: Vec<_> = fs::read_dir(dir.path().join("base")).unwrap().collect();
        assert_eq!(left.len(), 3);
    }
}

fn overlays_share_folders_with_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let first = cache(dir.path());
    write(dir.path().join("base/file"), "base\n");
    // All changes are in one folder, a lower one of another overlay is in it too, and one is used three times.
    let changes = dir.path().join("changes");
    write(changes.join("old/file"), "old\n");
    let second = OverlayMount {
        lowers: vec![changes.join("old"), dir.path().join("base")],
        upper: folder(changes.join("second")),
        work: folder(changes.join("second-work")),
        target: "/second".into(),
    };
    let root = RootFs::Overlay {
        lowers: vec![dir.path().join("base")],
        upper: folder(changes.join("root")),
        work: folder(changes.join("root-work")),
    };
    let script =
        "cat /file /cache/file /second/file; for i in '' /cache /second; do echo $i > $i/file; done; id -u";
    let mut spec = with(first.clone(), root, script);
    spec.overlays.push(second.clone());
    assert_eq!(run(spec), (ExitStatus::Code(0), "base\nbase\nold\n0\n".to_owned()));
    for (upper, text) in [("root", "\n"), ("cache", "/cache\n"), ("second", "/second\n")] {
        let file = changes.join(upper).join("file");
        assert_eq!(fs::read_to_string(&file).unwrap(), text, "{upper}");
        // Root inside is root on disk.
        assert_eq!(owner(&file), (0, 0, 0o644), "{upper}");
    }
    assert_eq!(fs::read_to_string(changes.join("old/file")).unwrap(), "old\n");
}

fn overlays_come_before_mounts() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = cache(dir.path());
    write(dir.path().join("base/sub/file"), "of the overlay\n");
    write(dir.path().join("volume/file"), "of the volume\n");
    let (_host, root) = host();
    let mut spec = with(overlay.clone(), root, "cat /cache/sub/file; ls /cache");
    // One over a folder that is there, one on a folder that is made; that one is made in the upper folder.
    for target in ["/cache/sub", "/cache/new"] {
        let (source, target) = (dir.path().join("volume"), target.into());
        spec.mounts.push(BindMount { source, target, read_only: true });
    }
    assert_eq!(run(spec), (ExitStatus::Code(0), "of the volume\nnew\nsub\n".to_owned()));
    assert!(overlay.upper.join("new").is_dir() && !dir.path().join("base/new").exists());
}

fn a_folder_without_other_owners_can_be_in_an_overlay() {
    let dir = tempfile::tempdir().unwrap();
    let mut overlay = cache(dir.path());
    // The kernel maps no owners there, so the whole container gets the next best user namespace.
    overlay.lowers = vec!["/sys/kernel".into()];
    let (_host, root) = host();
    let script = "test -e /cache/mm && cat /proc/self/uid_map && touch /cache/made";
    let (end, said) = run(with(overlay.clone(), root, script));
    assert_eq!(end, ExitStatus::Code(0), "{said}");
    let map: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(map[..2], ["0", "0"], "{said}");
    assert!(overlay.upper.join("made").is_file());
}

fn a_volatile_overlay_keeps_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = cache(dir.path());
    write(dir.path().join("base/file"), "base\n");
    let changes = dir.path().join("changes");
    let of_root = RootFs::Overlay {
        lowers: vec!["/".into()],
        upper: folder(changes.join("root")),
        work: folder(changes.join("root-work")),
    };
    let options = "grep -E ' (/|/cache) .* overlay ' /proc/self/mountinfo | grep -c volatile";
    let mut spec =
        with(overlay.clone(), of_root, &format!("{options}; echo new > /cache/file; echo root > /made"));
    spec.is_volatile = true;
    assert_eq!(run(spec), (ExitStatus::Code(0), "2\n".to_owned()));
    assert_eq!(fs::read_to_string(overlay.upper.join("file")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(changes.join("root/made")).unwrap(), "root\n");
}

fn a_volatile_overlay_is_tried_again_with_other_users() {
    let dir = tempfile::tempdir().unwrap();
    let mut overlay = cache(dir.path());
    // The root's overlay is mounted and has left its note when this one cannot have other owners.
    overlay.lowers = vec!["/sys/kernel".into()];
    let changes = dir.path().join("changes");
    let of_root = RootFs::Overlay {
        lowers: vec!["/".into()],
        upper: folder(changes.join("root")),
        work: folder(changes.join("root-work")),
    };
    let mut spec = with(overlay, of_root, "cat /proc/self/uid_map; echo root > /made");
    spec.is_volatile = true;
    let (end, said) = run(spec);
    assert_eq!(end, ExitStatus::Code(0), "{said}");
    assert_eq!(said.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"], "{said}");
    assert_eq!(fs::read_to_string(changes.join("root/made")).unwrap(), "root\n");
}

fn an_overlay_stays_in_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = cache(dir.path());
    write(dir.path().join("base/file"), "base\n");
    let outside = folder(dir.path().join("outside"));
    let (root_folder, root) = host();
    // Followed as the container would.
    symlink(format!("../../../../../..{}", outside.display()), root_folder.path().join("link")).unwrap();
    let inside = root_folder.path().join(outside.strip_prefix("/").unwrap());
    folder(inside.clone());
    let to_link = OverlayMount { target: "/link/cache".into(), ..overlay.clone() };
    let script = format!("cat {}/cache/file", outside.display());
    assert_eq!(run(with(to_link, root.clone(), &script)), (ExitStatus::Code(0), "base\n".to_owned()));
    assert!(inside.join("cache").is_dir());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);

    // Nothing that protects the host is covered.
    symlink("/proc", root_folder.path().join("to-proc")).unwrap();
    for target in ["/proc", "/sys", "/proc/sys", "/to-proc", "/to-proc/sys"] {
        let covers = OverlayMount { target: target.into(), ..overlay.clone() };
        let error = failure(with(covers, root.clone(), ""));
        let expected =
            format!("cannot mount an overlay on {target}: it is, or leads to, the root, /proc or /sys");
        assert!(error.contains(&expected), "{error}");
    }

    // Links that the container could have made lead nowhere.
    let theirs = folder(dir.path().join("theirs"));
    symlink(dir.path().join("base"), theirs.join("link")).unwrap();
    let by_link = OverlayMount { lowers: vec![theirs.join("link")], ..overlay.clone() };
    assert_eq!(run(with(by_link.clone(), root.clone(), "cat /cache/file")).1, "base\n");
    let mut spec = with(by_link, root.clone(), "");
    spec.mounts.push(BindMount { source: theirs.clone(), target: "/theirs".into(), read_only: false });
    let error = failure(spec);
    assert!(error.contains("link is a link in a folder that the container itself may write to"), "{error}");
    // What it wrote to an overlay is its own, too.
    symlink(&outside, overlay.upper.join("link")).unwrap();
    let source = overlay.upper.join("link");
    let mut spec = with(overlay, root, "");
    spec.mounts.push(BindMount { source, target: "/x".into(), read_only: true });
    let error = failure(spec);
    assert!(error.contains("link is a link in a folder that the container itself may write to"), "{error}");
}

fn an_overlay_that_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_host, root) = host();
    let fine = cache(dir.path());
    let elsewhere = folder(dir.path().join("elsewhere"));
    write(dir.path().join("a-file"), "");
    let cases: [(OverlayMount, &str); 10] = [
        (OverlayMount { target: "/".into(), ..fine.clone() }, "cannot mount an overlay on the root itself"),
        (OverlayMount { target: "cache".into(), ..fine.clone() }, "expected absolute paths"),
        (OverlayMount { lowers: vec!["base".into()], ..fine.clone() }, "expected absolute paths"),
        (OverlayMount { lowers: Vec::new(), ..fine.clone() }, "its overlay on /cache has no lower folder"),
        (OverlayMount { lowers: vec!["/usr".into(); 13], ..fine.clone() }, "more than 12 lower folders"),
        (OverlayMount { work: elsewhere, ..fine.clone() }, "that are not in one folder"),
        (OverlayMount { work: fine.upper.clone(), ..fine.clone() }, "for two things"),
        (OverlayMount { lowers: vec!["/no/such".into()], ..fine.clone() }, "cannot open the folder /no/such"),
        (OverlayMount { lowers: vec![dir.path().join("a-file")], ..fine.clone() }, "a-file: Not a directory"),
        (
            OverlayMount { upper: dir.path().join("changes/missing"), ..fine.clone() },
            "changes/missing: No such",
        ),
    ];
    for (overlay, expected) in cases {
        let error = failure(with(overlay, root.clone(), ""));
        assert!(error.contains(expected), "{error}");
    }
    let mut twice = with(fine.clone(), root.clone(), "");
    twice.overlays.push(OverlayMount { target: "/other".into(), ..fine.clone() });
    assert!(failure(twice).contains("its overlay on /other has"), "the same upper folder twice");
    let of_root = RootFs::Overlay {
        lowers: fine.lowers.clone(),
        upper: fine.upper.clone(),
        work: folder(dir.path().join("changes/w")),
    };
    assert!(failure(with(fine.clone(), of_root, "")).contains("for two things"));
    let spec = ContainerSpec { engine: Engine::Lxc, ..with(fine.clone(), root.clone(), "") };
    assert!(failure(spec).contains("the engine lxc mounts no overlays"));
    // As many as there may be.
    let many = (0..12).map(|number| folder(dir.path().join(format!("lower-{number}"))));
    let many = OverlayMount { lowers: many.collect(), ..fine };
    write(dir.path().join("lower-11/file"), "lowest\n");
    assert_eq!(run(with(many, root, "cat /cache/file")), (ExitStatus::Code(0), "lowest\n".to_owned()));
}

fn an_ordinary_user_has_overlays_too() {
    let dir = tempfile::tempdir().unwrap();
    cache(dir.path());
    write(dir.path().join("top/removed/file"), "");
    write(dir.path().join("base/file"), "base\n");
    folder(dir.path().join("root"));
    // In a place that the user can run it from.
    let program = dir.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    give(dir.path(), USER, USER);
    let out = command(&program)
        .env(OF_A_USER, dir.path())
        .uid(USER)
        .gid(USER)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let upper = dir.path().join("changes/cache");
    assert_eq!(owner(&upper.join("made")), (USER, USER, 0o644));
    assert_eq!(fs::read_to_string(upper.join("file")).unwrap(), "base\nmore\n");
    assert!(dir.path().join("top/removed/file").exists());
}

/// The rest of it, as the user.
pub fn of_a_user(dir: &Path) {
    let root = RootFs::Directory(dir.join("root"));
    let script = "cd /cache && rm -r removed && echo more >> file && touch made && ls && stat -c %u . made";
    let mut spec = with(cache(dir), root, script);
    spec.user = Credentials { uid: 5, gid: 6, groups: Vec::new() };
    assert_eq!(run(spec), (ExitStatus::Code(0), "file\nmade\n5\n5\n".to_owned()));
}

/// What is in a folder and the folders in it: text, link or kind, by path.
fn tree(handle: &OwnedFd, path: &str, found: &mut BTreeMap<String, String>) {
    let open = |name: &str, flags: OFlags| {
        openat(handle, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).unwrap()
    };
    for entry in Dir::new(open(".", OFlags::RDONLY | OFlags::DIRECTORY)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap();
        if name == "." || name == ".." {
            continue;
        }
        let inside = format!("{path}{name}");
        let handle = open(name, OFlags::PATH);
        let metadata = fs::metadata(format!("/proc/self/fd/{}", handle.as_raw_fd())).unwrap();
        if metadata.is_dir() {
            tree(&handle, &format!("{inside}/"), found);
            found.insert(inside, "folder".into());
        } else if metadata.is_file() {
            let text = fs::read_to_string(format!("/proc/self/fd/{}", handle.as_raw_fd())).unwrap();
            found.insert(inside, text);
        } else {
            found.insert(inside, format!("{:?}", metadata.file_type()));
        }
    }
}

fn a_view_shows_what_a_container_left() {
    const SCRIPT: &str = "set -e; cd /data
        echo changed > changed; rm removed; rm -r removed-folder
        rm becomes-folder; mkdir becomes-folder; echo in > becomes-folder/in
        rm -r becomes-file; echo file > becomes-file
        mv moved moved-to; echo more > moved-to/more; mv moved-to/deep moved-to/deeper
        rm -r emptied; mkdir emptied; echo new > emptied/new
        ln single linked; chown 7:8 owned; chmod 600 owned; mv file-moved file-moved-to";
    let memory: &[fn() -> TempDir] =
        &[|| tempfile::tempdir().unwrap(), || tempfile::tempdir_in("/dev/shm").unwrap()];
    for changes in memory {
        let (dir, changes) = (tempfile::tempdir().unwrap(), changes());
        let base = folder(dir.path().join("base"));
        for name in [
            "changed",
            "removed",
            "removed-folder/in",
            "becomes-folder",
            "becomes-file/in",
            "moved/kept",
            "moved/deep/in",
            "emptied/old",
            "single",
            "owned",
            "file-moved",
            "twin",
            "untouched/in",
        ] {
            write(base.join("data").join(name), name);
        }
        fs::hard_link(base.join("data/twin"), base.join("data/untouched/twin")).unwrap();
        chown(base.join("data/untouched"), Some(70), Some(80)).unwrap();
        let upper = folder(changes.path().join("upper"));
        let root = RootFs::Overlay {
            lowers: vec![base.clone()],
            upper: upper.clone(),
            work: folder(changes.path().join("work")),
        };
        let (end, said) = run(shell(root, SCRIPT));
        assert_eq!(end, ExitStatus::Code(0), "{said}");

        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let view = overlay_view(&[upper, base.clone()]).unwrap();
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
        let data = openat(&view, "data", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let mut found = BTreeMap::new();
        tree(&data, "", &mut found);
        let expected = [
            ("becomes-file", "file\n"),
            ("becomes-folder", "folder"),
            ("becomes-folder/in", "in\n"),
            ("changed", "changed\n"),
            ("emptied", "folder"),
            ("emptied/new", "new\n"),
            ("file-moved-to", "file-moved"),
            ("linked", "single"),
            ("moved-to", "folder"),
            ("moved-to/deeper", "folder"),
            ("moved-to/deeper/in", "moved/deep/in"),
            ("moved-to/kept", "moved/kept"),
            ("moved-to/more", "more\n"),
            ("owned", "owned"),
            ("single", "single"),
            ("twin", "twin"),
            ("untouched", "folder"),
            ("untouched/in", "untouched/in"),
            ("untouched/twin", "twin"),
        ];
        let expected: BTreeMap<String, String> =
            expected.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
        assert_eq!(found, expected);

        let by_name = |name: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}", data.as_raw_fd()));
        assert_eq!(owner(&by_name("owned")), (7, 8, 0o600));
        assert_eq!(owner(&by_name("becomes-file")), (0, 0, 0o644));
        assert_eq!(owner(&by_name("untouched")), (70, 80, 0o755));
        for (one, other) in [("single", "linked"), ("twin", "untouched/twin")] {
            let same = |name: &str| {
                let found = fs::symlink_metadata(by_name(name)).unwrap();
                (found.dev(), found.ino(), found.nlink())
            };
            assert_eq!(same(one), same(other));
            assert_eq!(same(one).2, 2, "{one}");
        }
        // Nobody can change what is being looked at through it.
        let refused = fs::write(by_name("new"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        // It does not keep what it shows from going away.
        drop((view, data));
        vr_common::archive::remove_tree(&base).unwrap();
    }
}

/// On some machines, overlays leave content where it was when only the mode of a file changes.
fn a_view_finds_what_is_not_where_its_name_is() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["upper", "work", "at"] {
        folder(dir.path().join(name));
    }
    write(dir.path().join("base/file"), "content");
    let script = "mount -t overlay -o lowerdir=base,upperdir=upper,workdir=work,metacopy=on,redirect_dir=on none at && \
        chmod 600 at/file && mv at/file at/moved";
    let mut unshare = command("unshare");
    unshare.args(["--mount", "--propagation", "private", "sh", "-c", script]).current_dir(dir.path());
    assert!(unshare.status().unwrap().success());
    let view = overlay_view(&[dir.path().join("upper"), dir.path().join("base")]).unwrap();
    let moved = PathBuf::from(format!("/proc/self/fd/{}/moved", view.as_raw_fd()));
    assert_eq!(fs::read_to_string(&moved).unwrap(), "content");
    assert_eq!(owner(&moved), (0, 0, 0o600));
    // The kernel's notes are not among what is shown.
    let attributes = |path: &Path| rustix::fs::llistxattr(path, &mut [0_u8; 1024][..]).unwrap();
    assert_ne!(attributes(&dir.path().join("upper/moved")), 0);
    assert_eq!(attributes(&moved), 0);
}

fn a_view_of_odd_folders() {
    let dir = tempfile::tempdir().unwrap();
    let one = folder(dir.path().join("one"));
    write(one.join("file"), "one");
    let view = overlay_view(std::slice::from_ref(&one)).unwrap();
    let mut found = BTreeMap::new();
    tree(&view, "", &mut found);
    assert_eq!(found, BTreeMap::from([("file".to_owned(), "one".to_owned())]));
    let refused = fs::write(format!("/proc/self/fd/{}/file", view.as_raw_fd()), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read_to_string(one.join("file")).unwrap(), "one");

    let error = |layers: &[PathBuf]| overlay_view(layers).map(drop).unwrap_err().to_string();
    assert!(error(&[]).contains("there is no folder"));
    let missing = dir.path().join("missing");
    assert!(error(&[one.clone(), missing]).contains("missing: No such file"));
    assert!(error(&[one.join("file")]).contains("file: Not a directory"));
    assert!(error(&vec![one; 13]).contains("more than 12 folders"));
}
