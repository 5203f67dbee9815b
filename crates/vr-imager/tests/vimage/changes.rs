//! What a script does to files, and how it is in the new image: by a real container and a real overlay.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use vr_common::fetch::md5_file;

use crate::support::World;

/// More files for the base, and a device and a pipe, which are left out of every image.
fn more(root: &Path) {
    for path in [
        "lib/kept",
        "etc/removed",
        "opt/dir/a/1",
        "opt/dir/b/2",
        "opt/emptied/x",
        "srv/replaced/old",
        "srv/replaced/both",
        "srv/folder/x",
        "srv/file",
        "srv/untouched",
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "of the base\n").unwrap();
    }
    fs::hard_link(root.join("srv/untouched"), root.join("srv/untouched.twin")).unwrap();
    fs::create_dir(root.join("dev")).unwrap();
    mknod(&root.join("dev/null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    mknod(&root.join("srv/pipe"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o622), 0).unwrap();
}

const SCRIPT: &str = "#!/bin/bash
set -e
rm /etc/removed
rm -r /opt/emptied/x
rm -r /srv/replaced; mkdir /srv/replaced; echo new > /srv/replaced/new; echo new > /srv/replaced/both
rm -r /srv/folder; echo 'now a file' > /srv/folder
rm /srv/file; mkdir /srv/file; echo 'now a folder' > /srv/file/x
mv /opt/dir /opt/renamed; echo more > /opt/renamed/a/3; rm /opt/renamed/b/2
echo one > /srv/one; ln /srv/one /srv/two
ln -s /nowhere /srv/link
chmod 711 /lib; chown 5:6 /srv/owned
echo x > /dev/shm/x
echo x > /tmp/x
rm /provision-*
";

#[test]
fn changes_removals_replacements_and_renames_are_in_the_new_image() {
    let world = World::with(more);
    world.build(&world.yaml(SCRIPT, "")).expect(0);
    let listed = world.listed("new_1.tar.gz");
    let below = |folders: &[&str]| -> Vec<&str> {
        let name = |line: &&str| {
            let name = line.splitn(3, ' ').nth(2).unwrap();
            folders.iter().any(|folder| name.starts_with(folder))
        };
        listed.iter().map(String::as_str).filter(name).collect()
    };
    let folder = "drwxr-xr-x 0/0";
    let file = "-rw-r--r-- 0/0";
    assert_eq!(
        below(&["etc/", "opt/", "srv/", "dev/", "proc/", "sys/", "run/", "tmp/"]),
        [
            format!("{folder} dev/"),
            format!("{folder} etc/"),
            format!("{file} etc/group"),
            format!("{file} etc/motd"),
            "hrw-r--r-- 0/0 etc/motd.twin link to etc/motd".to_owned(),
            format!("{file} etc/passwd"),
            format!("{file} etc/resolv.conf"),
            format!("{folder} opt/"),
            format!("{folder} opt/emptied/"),
            format!("{folder} opt/gone/"),
            format!("{file} opt/gone/file"),
            format!("{folder} opt/old/"),
            format!("{file} opt/old/file"),
            format!("{folder} opt/renamed/"),
            format!("{folder} opt/renamed/a/"),
            format!("{file} opt/renamed/a/1"),
            format!("{file} opt/renamed/a/3"),
            format!("{folder} opt/renamed/b/"),
            format!("{folder} proc/"),
            format!("{folder} run/"),
            format!("{folder} srv/"),
            format!("{folder} srv/file/"),
            format!("{file} srv/file/x"),
            format!("{file} srv/folder"),
            "lrwxrwxrwx 0/0 srv/link -> /nowhere".to_owned(),
            format!("{file} srv/one"),
            "-rw-r--r-- 5/6 srv/owned".to_owned(),
            format!("{folder} srv/replaced/"),
            format!("{file} srv/replaced/both"),
            format!("{file} srv/replaced/new"),
            "hrw-r--r-- 0/0 srv/two link to srv/one".to_owned(),
            format!("{file} srv/untouched"),
            "hrw-r--r-- 0/0 srv/untouched.twin link to srv/untouched".to_owned(),
            format!("{folder} sys/"),
            "drwxrwxrwt 0/0 tmp/".to_owned(),
            format!("{file} tmp/x"),
        ]
    );
    let root = world.unpacked("new_1.tar.gz");
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!((read("srv/folder"), read("srv/file/x")), ("now a file\n".into(), "now a folder\n".into()));
    assert_eq!(
        (read("srv/replaced/both"), read("opt/renamed/a/1")),
        ("new\n".into(), "of the base\n".into())
    );
    let (lib, of_base) =
        (fs::metadata(root.join("lib")).unwrap(), world.path("root/images/tiny_base/contents"));
    assert_eq!(lib.permissions().mode() & 0o7777, 0o711);
    // Neither the host's own files nor the base's are any others than before.
    assert_eq!(fs::metadata(of_base.join("lib")).unwrap().mode() & 0o7777, 0o755);
    assert!(of_base.join("opt/dir/b/2").exists() && of_base.join("srv/folder/x").exists());
    assert!(!of_base.join("etc/hosts").exists());
}

#[test]
fn a_link_in_the_place_of_a_folder_leads_nowhere_but_in_the_image() {
    let world = World::new();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    for name in ["hosts", "hostname", "resolv.conf"] {
        fs::write(outside.join(name), "").unwrap();
    }
    let script = format!(
        "mv /etc /moved; ln -s {} /etc; rm /provision-*; ln -s {0} /provision-x\n",
        outside.display()
    );
    world.build(&world.yaml(&script, "")).expect(0);
    assert_eq!(crate::support::names(&outside), ["hostname", "hosts", "resolv.conf"]);
    let listed = world.listed("new_1.tar.gz");
    assert!(listed.contains(&format!("lrwxrwxrwx 0/0 etc -> {}", outside.display())), "{listed:#?}");
    assert!(listed.contains(&"-rw-r--r-- 0/0 moved/motd".to_owned()), "{listed:#?}");
}

#[test]
fn two_runs_of_a_script_differ_in_nothing_but_times() {
    let script = "#!/bin/bash
echo same > /srv/file; mkdir -p /srv/new/deep; chmod 700 /srv/new; rm /etc/motd; ln -s x /srv/link
touch --date=@1000000000 /srv/file /srv/new/deep /srv/new /srv\ntouch --no-dereference --date=@1000000000 /srv/link
";
    // Everything that a container needs is there, so that making it changes nothing.
    let complete = |root: &Path| {
        for folder in ["dev", "proc", "sys", "run"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        fs::create_dir(root.join("tmp")).unwrap();
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        for file in ["etc/hosts", "etc/hostname"] {
            fs::write(root.join(file), "").unwrap();
        }
    };
    let world = World::with(complete);
    let build = |more: &str| {
        world.build(&world.yaml(&format!("{script}{more}"), "")).expect(0);
        (world.listed("new_1.tar.gz"), md5_file(&world.out("new_1.tar.gz")).unwrap())
    };
    let (first, _) = build("");
    let (second, _) = build("");
    assert_eq!(first, second);
    // The folder that a file was removed from is all that has the time of the run.
    let (_, one) = build("touch --date=@1000000000 /etc\n");
    let (_, two) = build("touch --date=@1000000000 /etc\n");
    assert_eq!(one, two);
}

#[test]
fn what_only_the_container_needs_is_found_where_the_bases_links_lead() {
    let world = World::with(|root| {
        fs::create_dir_all(root.join("usr")).unwrap();
        fs::rename(root.join("etc"), root.join("usr/etc")).unwrap();
        symlink("usr/etc", root.join("etc")).unwrap();
    });
    world.build(&world.yaml("echo new > /etc/new; test -e /etc/hosts\n", "")).expect(0);
    let listed = world.listed("new_1.tar.gz");
    let below: Vec<&str> =
        listed.iter().filter_map(|line| line.splitn(3, ' ').nth(2)?.strip_prefix("usr/etc/")).collect();
    assert_eq!(
        below,
        ["", "group", "motd", "motd.twin link to usr/etc/motd", "new", "passwd", "resolv.conf"],
        "{listed:#?}"
    );
    assert!(listed.contains(&"lrwxrwxrwx 0/0 etc -> usr/etc".to_owned()), "{listed:#?}");
}
