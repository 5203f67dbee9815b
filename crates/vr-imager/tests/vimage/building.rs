//! Images that are made.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use vr_common::fetch::md5_file;
use vr_common::image_data::ImageData;
use vr_common::process::{command, sibling};

use crate::support::{Started, World, ended, fingerprint};

const SCRIPT: &str = "#!/bin/bash
set -e
id -u
env
echo to stderr >&2
echo changed > /etc/motd
mkdir -p /opt/new/deep /opt/replaced
echo new > /opt/new/deep/file
ln -s ../etc/motd /opt/link
chown 77:78 /opt/new
chmod 2750 /opt/new
rm -r /opt/gone
rm -r /opt/old; mkdir /opt/old; echo other > /opt/old/other
rmdir /opt/replaced
mv /srv/owned /srv/moved
touch /tmp/left
ls /
";

#[test]
fn the_new_image_has_the_changes_and_the_base_has_not() {
    let world = World::new();
    let yaml = world.yaml(SCRIPT, "env:\n  GREETING: hello there\n  NUMBER: 4\n");
    let file = world.path("image.yaml");
    ended(&mut world.vimage(&["build", "-q"], &file)).expect(0);
    let contents = world.path("root/images/tiny_base/contents");
    let before = fingerprint(&contents);

    let ended = world.build(&yaml).expect(0);
    assert_eq!(ended.stdout, world.log());
    assert!(ended.stdout.starts_with("0\n") && ended.stdout.contains("\nto stderr\n"), "{}", ended.stdout);
    for line in ["HOME=/root", "TERM=test-terminal", "GREETING=hello there", "NUMBER=4"] {
        assert!(ended.stdout.lines().any(|found| found == line), "{line}: {}", ended.stdout);
    }
    assert!(ended.stdout.contains("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("SECRET"), "{}", ended.stdout);
    assert!(ended.stderr.contains("vimage: new_1 is made: "), "{}", ended.stderr);
    world.assert_left(&["new_1.log", "new_1.tar.gz", "new_1.yaml"]);
    assert_eq!(fingerprint(&contents), before);

    let new = ImageData::load(&world.out("new_1.yaml")).unwrap();
    assert_eq!(new.new_image_md5, Some(md5_file(&world.out("new_1.tar.gz")).unwrap()));
    let root = world.unpacked("new_1.tar.gz");
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!(read("etc/motd"), "changed\n");
    assert_eq!(read("etc/motd.twin"), "the base's\n");
    assert_eq!(read("opt/new/deep/file"), "new\n");
    assert_eq!(read("opt/old/other"), "other\n");
    assert!(!root.join("opt/old/file").exists() && !root.join("opt/gone").exists());
    assert!(!root.join("opt/replaced").exists() && !root.join("srv/owned").exists());
    assert!(
        fs::read_dir(&root).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().contains("provision"))
    );
    assert_eq!(fs::read_link(root.join("opt/link")).unwrap().to_str(), Some("../etc/motd"));
    assert!(fs::symlink_metadata(root.join("etc/resolv.conf")).unwrap().is_file());
    let metadata = |path: &str| fs::metadata(root.join(path)).unwrap();
    assert_eq!((metadata("srv/moved").uid(), metadata("srv/moved").gid()), (1234, 4321));
    let folder = metadata("opt/new");
    assert_eq!((folder.uid(), folder.gid(), folder.mode() & 0o7777), (77, 78, 0o2750));
    assert_eq!(metadata("bin/id").mode() & 0o7777, 0o4755);
}

#[test]
fn a_script_without_a_first_line_is_one_for_sh() {
    let world = World::new();
    world.build(&world.yaml("echo plain > /plain\n", "")).expect(0);
    assert_eq!(fs::read_to_string(world.unpacked("new_1.tar.gz").join("plain")).unwrap(), "plain\n");
}

#[test]
fn an_image_runs_apps_at_once() {
    let world = World::new();
    let yaml = world.yaml("#!/bin/sh\necho 'made by vimage' > /etc/made\n", "");
    ended(&mut world.vimage(&["build", "--format", "zst"], &yaml)).expect(0);
    world.assert_left(&["new_1.log", "new_1.tar.zst", "new_1.yaml"]);
    let md5 = md5_file(&world.out("new_1.tar.zst")).unwrap();
    let proc_yaml = world.path("proc.yaml");
    let text = format!(
        "proc_name: web\ncmd: cat /etc/made\nport: 5000\nuser: nobody\nimage_url: {}\nimage_name: new_1\nimage_md5: {md5}\n",
        world.out("new_1.tar.zst").display()
    );
    fs::write(&proc_yaml, text).unwrap();
    let vrun = |subcommand: &str| {
        let mut vrun = command(sibling("vrun"));
        ended(vrun.arg(subcommand).arg(&proc_yaml).env("VR_ROOT", world.path("root"))).expect(0)
    };
    vrun("setup");
    assert_eq!(vrun("run").stdout, "made by vimage\n");
    vrun("teardown");
}

#[test]
fn the_shell_has_what_the_script_has_and_keeps_nothing() {
    let world = World::new();
    let yaml = world.yaml("#!/bin/sh\necho provisioned > /made\n", "env: {GREETING: hello}");
    let mut shell = world.vimage(&["shell"], &yaml);
    shell.stdin(Stdio::piped());
    let mut shell = Started::new(&mut shell);
    let mut stdin = shell.0.stdin.take().unwrap();
    stdin.write_all(b"id -u; echo $GREETING; /provision-*; cat /made; exit 5\n").unwrap();
    drop(stdin);
    let ended = shell.end().expect(5);
    assert_eq!(ended.stdout, "0\nhello\nprovisioned\n");
    assert!(ended.stderr.contains(" does what a build does\n"), "{}", ended.stderr);
    world.assert_left(&[]);
}

#[test]
fn the_result_is_data_with_json() {
    let world = World::new();
    let yaml = world.yaml("#!/bin/sh\necho noise\n", "");
    let ended = ended(&mut world.vimage(&["build", "-q", "--json", "--output", "deep/er"], &yaml)).expect(0);
    let value: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(value["ok"], true);
    assert_eq!(value["image"]["image_name"], "new_1");
    assert_eq!(value["image"]["image_md5"], md5_file(&world.out("deep/er/new_1.tar.gz")).unwrap());
}
