//! Attempts against what vrun does with an app's files: setting up, and making containers, while links of the app's
//! lie in the way or come and go, and unpacking tarballs that hold more than files; and against its terminal.
//!
//! There is nothing to switch off in `vrun`. Instead, each of these does the same carelessly, to show that the
//! victims would have been met.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Child;

use rustix::fs::{FileType, Mode};
use tempfile::TempDir;
use vr_common::process::command;

use super::attempts::look_at;
use super::defences::Defence;
use super::scene::{Scene, Who};
use super::support::{World, tar, text};

type Test = (&'static str, fn());

pub const TESTS: &[Test] = &[
    ("volumes_do_not_cover_what_protects_the_host", volumes_do_not_cover_what_protects_the_host),
    ("links_that_come_and_go_lead_no_container_out", links_that_come_and_go_lead_no_container_out),
    ("links_of_the_app_lead_no_setup_out", links_of_the_app_lead_no_setup_out),
    ("links_that_come_and_go_lead_no_setup_out", links_that_come_and_go_lead_no_setup_out),
    ("builds_hold_no_devices", builds_hold_no_devices),
    ("builds_hold_no_set_user_id_programs", builds_hold_no_set_user_id_programs),
    ("builds_are_not_unpacked_through_links", builds_are_not_unpacked_through_links),
    ("what_is_typed_stays_with_the_caller", what_is_typed_stays_with_the_caller),
    ("images_hold_no_devices_and_no_rights", images_hold_no_devices_and_no_rights),
];

/// A folder of the host's that is not to change.
struct Victim(TempDir);

impl Victim {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "untouched").unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        fs::write(dir.path().join("folder/file"), "untouched").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn look(&self) -> String {
        look_at(self.path())
    }
}

/// A process that is gone when this is.
struct Helper(Child);

impl Helper {
    /// Swaps two names all the time.
    fn swap(one: &Path, other: &Path) -> Self {
        const SCRIPT: &str = "my ($number, $one, $other) = @ARGV; $number += 0; \
            while (1) { syscall($number, -100, $one, -100, $other, 2) == 0 or select(undef, undef, undef, 0.0005) }";
        let mut perl = command("/usr/bin/perl");
        perl.args(["-e", SCRIPT, &nix::libc::SYS_renameat2.to_string()]).arg(one).arg(other);
        Self(perl.spawn().unwrap())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn volumes_do_not_cover_what_protects_the_host() {
    let start = |link: Option<&str>| {
        let mut scene = Scene::new(Who::Root, "");
        for name in ["volume", "inner"] {
            fs::create_dir(scene.path(name)).unwrap();
        }
        match link {
            Some(target) => symlink(target, scene.path("volume/place")).unwrap(),
            None => fs::create_dir(scene.path("volume/place")).unwrap(),
        }
        scene.volume("volume", "/data", false);
        scene.volume("inner", "/data/place", false);
        scene.run(&[]).not_started
    };
    assert_eq!(start(None), None);
    for target in [
        "/",
        "/proc",
        "/proc/sys",
        "/proc/sys/kernel",
        "/proc/1",
        "/sys",
        "/sys/kernel",
        "../proc",
        "../../..",
    ] {
        let refused = start(Some(target)).unwrap_or_else(|| panic!("ESCAPED: a volume is on {target}"));
        assert!(refused.contains("leads to"), "{target}: {refused}");
    }
}

fn links_that_come_and_go_lead_no_container_out() {
    let race = |off: &[Defence], most_rounds: usize| {
        let victim = Victim::new();
        let before = victim.look();
        let dir = tempfile::tempdir().unwrap();
        for name in ["tmp", "var"] {
            symlink(victim.path(), dir.path().join(name)).unwrap();
        }
        for round in 0..most_rounds {
            let mut scene = Scene::new(Who::Root, "");
            fs::create_dir(scene.path("volume")).unwrap();
            scene.volume("volume", "/data/place", false);
            let mut swappers = Vec::new();
            for name in ["tmp", "var", "data"] {
                let (real, link) =
                    (scene.path("root").join(name), scene.path("root").join(format!("{name}-link")));
                fs::create_dir(&real).unwrap();
                symlink(victim.path(), &link).unwrap();
                swappers.push(Helper::swap(&real, &link));
            }
            let _ = scene.run(off);
            drop(swappers);
            if victim.look() != before {
                return Some(round);
            }
        }
        None
    };
    assert_eq!(race(&[], 100), None, "ESCAPED");
    assert!(race(&[Defence::LinksStayInside], 1000).is_some(), "the race was never won");
}

/// Names in a root and whether they are files.
const PLACES: [(&str, bool); 14] = [
    ("proc.sh", true),
    ("env.sh", true),
    ("settings.yaml", true),
    (".proc.sh.new", true),
    (".env.sh.new", true),
    ("etc/hosts", true),
    ("etc/resolv.conf", true),
    ("etc/hostname", true),
    ("app", false),
    ("tmp", false),
    ("var", false),
    ("run", false),
    ("dev", false),
    ("data", false),
];

fn plant(rootfs: &Path, name: &str, target: &Path) {
    let link = rootfs.join(name);
    let _ = vr_common::archive::remove_tree(&link);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(target, link).unwrap();
}

fn with_volume(world: World) -> World {
    fs::create_dir(world.path().join("volume")).unwrap();
    let volume = world.path().join("volume").display().to_string();
    world.yaml(&format!("user: root\nvolumes: [['{volume}', /data/deep]]"))
}

fn links_of_the_app_lead_no_setup_out() {
    for (name, is_file) in PLACES {
        for world in [World::new as fn(&str) -> World, World::with_image] {
            let world = with_volume(world("true")).ready();
            let rootfs = world.proc_folder().join("rootfs");
            if fs::symlink_metadata(rootfs.join("etc")).is_ok_and(|found| found.is_symlink()) {
                continue;
            }
            let victim = Victim::new();
            let before = victim.look();
            let target = if is_file { victim.path().join("file") } else { victim.path().to_owned() };
            plant(&rootfs, name, &target);
            for verb in ["setup", "run", "uptest", "setup"] {
                world.vrun(verb);
                assert_eq!(victim.look(), before, "ESCAPED: {verb} through {name}");
            }
            plant(&rootfs, name, &target);
            world.vrun("teardown");
            assert_eq!(victim.look(), before, "ESCAPED: teardown through {name}");
            // The same without care.
            plant(&rootfs, name, &target);
            if is_file {
                fs::write(rootfs.join(name), "").unwrap();
            } else {
                fs::set_permissions(rootfs.join(name), fs::Permissions::from_mode(0o1777)).unwrap();
            }
            assert_ne!(victim.look(), before);
        }
    }
}

fn links_that_come_and_go_lead_no_setup_out() {
    const ROUNDS: usize = 40;
    let mut world = with_volume(World::new("true"));
    world.pack();
    let common = world.extra.clone();
    // Two builds in turn, so that what the app wrote over the one before is removed each time.
    let builds: Vec<_> = ["one", "two"]
        .iter()
        .map(|name| {
            world.app("which", name);
            let build = world.path().join(format!("{name}.tar.gz"));
            tar(&world.path().join("app"), &build);
            build
        })
        .collect();
    let victim = Victim::new();
    let before = victim.look();
    let rootfs = world.proc_folder().join("rootfs");
    let mut done = 0;
    for round in 0..ROUNDS {
        fs::copy(&builds[round % 2], world.path().join("build.tar.gz")).unwrap();
        let sum = vr_common::fetch::md5_file(&world.path().join("build.tar.gz")).unwrap();
        world.extra = format!("{common}build_md5: {sum}\n");
        world.write_yaml();
        // As the app left it.
        for name in ["app/folder", "app/second"] {
            // A link may have stayed there.
            vr_common::archive::remove_tree(&rootfs.join(name)).unwrap();
            fs::create_dir_all(rootfs.join(name)).unwrap();
            for number in 0..50 {
                fs::write(rootfs.join(format!("{name}/{number}")), "").unwrap();
            }
        }
        let mut swappers = Vec::new();
        for name in ["proc.sh", "env.sh", "settings.yaml", "app/folder", "app/second", "tmp", "data"] {
            let is_file = name.contains('.');
            let (real, link) = (rootfs.join(name), world.path().join("swapped").join(name));
            if !is_file {
                let _ = fs::create_dir_all(&real);
            }
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            let _ = vr_common::archive::remove_tree(&link);
            let target = if is_file { victim.path().join("file") } else { victim.path().to_owned() };
            symlink(target, &link).unwrap();
            swappers.push(Helper::swap(&real, &link));
        }
        for verb in ["setup", "run"] {
            done += usize::from(world.vrun(verb).status.success());
            assert_eq!(victim.look(), before, "ESCAPED: {verb}, round {round}");
        }
    }
    assert!(done > 0, "setup never came to its end");
    // The same without care: look, then write.
    let file = rootfs.join("careless");
    let link = world.path().join("careless");
    fs::write(&file, "").unwrap();
    symlink(victim.path().join("file"), &link).unwrap();
    let _swapper = Helper::swap(&file, &link);
    super::until("the race to be won", || {
        if fs::symlink_metadata(&file).is_ok_and(|found| !found.is_symlink()) {
            let _ = fs::write(&file, "careless");
        }
        victim.look() != before
    });
}

/// Device nodes, and files with set-user-id bits, in a folder.
fn special_files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let about = entry.metadata().unwrap();
            let kind = about.file_type();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_char_device() || kind.is_block_device() || about.mode() & 0o6000 != 0 {
                found.push(entry.file_name().into_string().unwrap());
            }
        }
    }
    found.sort();
    found
}

fn node(path: &Path) {
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)
        .unwrap();
}

fn give_rights(path: &Path) {
    chown(path, Some(0), Some(0)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o6755)).unwrap();
}

/// What tar makes of a tarball.
fn careless(tarball: &Path) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = command("tar");
    tar.arg("-C").arg(dir.path()).arg("-xpf").arg(tarball);
    assert!(tar.status().unwrap().success());
    special_files(dir.path())
}

fn builds_hold_no_devices() {
    let world = World::new("[ -e node ] && echo there || echo none");
    node(&world.path().join("app/node"));
    let world = world.ready();
    assert_eq!(text(&world.vrun("run").stdout), "none\n");
    assert_eq!(special_files(&world.root()), [""; 0], "ESCAPED");
    assert_eq!(careless(&world.path().join("build.tar.gz")), ["node"]);
}

fn builds_hold_no_set_user_id_programs() {
    let world = World::new("./perl -e 'open(my $file, \">\", \"made\")'; echo made").yaml("user: daemon");
    fs::copy("/usr/bin/perl", world.path().join("app/perl")).unwrap();
    give_rights(&world.path().join("app/perl"));
    let world = world.ready();
    let run = world.vrun("run");
    assert_eq!(text(&run.stdout), "made\n", "{}", text(&run.stderr));
    let made = fs::metadata(world.proc_folder().join("rootfs/app/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1, 1), "ESCAPED");
    assert_eq!(special_files(&world.root()), [""; 0]);
    assert_eq!(careless(&world.path().join("build.tar.gz")), ["perl"]);
}

fn images_hold_no_devices_and_no_rights() {
    let world = World::with_image("/usr/bin/touch /app/made; [ -e /node ] || echo made").yaml("user: '1'");
    let image = world.path().join("image");
    node(&image.join("node"));
    give_rights(&image.join("usr/bin/touch"));
    tar(&image, &world.path().join("image.tar"));
    let world = world.ready();
    let run = world.vrun("run");
    assert_eq!(text(&run.stdout), "made\n", "{}", text(&run.stderr));
    assert_eq!(fs::metadata(world.proc_folder().join("rootfs/app/made")).unwrap().uid(), 1, "ESCAPED");
    // An image keeps the bits, which its folder keeps from the host's users, and its mount from the container.
    assert_eq!(special_files(&world.root()), ["touch"]);
    assert_eq!(careless(&world.path().join("image.tar")), ["node", "touch"]);
}

fn builds_are_not_unpacked_through_links() {
    let world = World::new("true");
    world.pack();
    let victim = Victim::new();
    let before = victim.look();
    // A link, and then files in the folder that it leads to.
    let (link, folder) = (world.path().join("link"), world.path().join("folder"));
    for path in [&link, &folder, &folder.join("way")] {
        fs::create_dir(path).unwrap();
    }
    symlink(victim.path(), link.join("way")).unwrap();
    fs::write(folder.join("way/file"), "escaped").unwrap();
    let tarball = world.path().join("build.tar");
    let mut pack = command("tar");
    pack.arg("-cf").arg(&tarball).arg("-C").arg(world.path().join("app")).arg(".");
    pack.arg("-C").arg(&link).arg("way").arg("-C").arg(&folder).arg("way/file");
    assert!(pack.status().unwrap().success());
    let text = fs::read_to_string(world.file()).unwrap().replace("build.tar.gz", "build.tar");
    fs::write(world.file(), text).unwrap();
    for verb in ["setup", "run", "teardown"] {
        world.vrun(verb);
        assert_eq!(victim.look(), before, "ESCAPED: {verb}");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut careless = command("tar");
    careless.arg("-C").arg(dir.path()).arg("-xPf").arg(&tarball);
    careless.arg("--keep-directory-symlink");
    assert!(careless.status().unwrap().success());
    assert_ne!(victim.look(), before);
}

fn what_is_typed_stays_with_the_caller() {
    const SCRIPT: &str = "for my $opened (1, 2, '/proc/self/fd/1', '/dev/stdout', '/dev/tty') { \
        my ($file, $text); $opened =~ /^\\d$/ ? open($file, '<&=', $opened) : sysopen($file, $opened, 2) or next; \
        my $ready = ''; vec($ready, fileno $file, 1) = 1; \
        select($ready, undef, undef, 0.5) and sysread($file, $text, 100) and print {$out} $text; }";
    let world = World::new("perl -e 'open(my $out, \">\", \"heard\"); eval $ENV{SCRIPT}'")
        .yaml(&format!("user: root\nenv: {{SCRIPT: {SCRIPT:?}}}"))
        .ready();
    let with_terminal = |mut command: std::process::Command| {
        let pty = nix::pty::openpty(None, None).unwrap();
        // Typed ahead.
        nix::unistd::write(&pty.master, b"secret\n").unwrap();
        command.stdout(pty.slave.try_clone().unwrap()).stderr(pty.slave);
        let mut child = Helper(command.spawn().unwrap());
        let mut end = None;
        super::until("the end of what runs on the terminal", || {
            end = child.0.try_wait().unwrap();
            end.is_some()
        });
        assert!(end.unwrap().success());
        drop(pty.master);
    };
    with_terminal(world.command("run"));
    let heard = world.proc_folder().join("rootfs/app/heard");
    assert_eq!(fs::read_to_string(heard).unwrap(), "", "ESCAPED");
    let mut careless = command(world.path().join("app/serve"));
    careless.current_dir(world.path()).env("SCRIPT", SCRIPT);
    with_terminal(careless);
    assert_eq!(fs::read_to_string(world.path().join("heard")).unwrap(), "secret\n");
}
