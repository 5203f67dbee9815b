//! Builds in an OS image.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use vr_common::archive::{PackOptions, pack};
use vr_common::process::command;

use crate::support::World;

/// The smallest system that can build: some of the host's programs with their libraries, and a user of its own.
fn image(world: &World) -> PathBuf {
    let root = world.write(
        "image",
        &[
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nbuilder:x:1234:1234::/:/bin/sh\n"),
            ("etc/group", "root:x:0:\nbuilder:x:1234:\n"),
            ("etc/of-the-image", "yes\n"),
        ],
    );
    for program in ["/bin/bash", "/bin/cat", "/bin/rm", "/usr/bin/id", "/usr/bin/env"] {
        copy_in(&root, Path::new(program));
        let listed = command("ldd").arg(program).output().unwrap();
        for word in
            String::from_utf8(listed.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/'))
        {
            copy_in(&root, Path::new(word));
        }
    }
    symlink("bash", root.join("bin/sh")).unwrap();
    fs::create_dir_all(root.join("tmp")).unwrap();
    let tarball = world.path("tiny.tar.gz");
    pack(&root, &tarball, &PackOptions::image()).unwrap();
    tarball
}

fn copy_in(root: &Path, file: &Path) {
    let to = root.join(file.strip_prefix("/").unwrap());
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(file, &to).unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_build_sees_its_image_and_leaves_it_as_it_was() {
    let world = World::new();
    let tarball = image(&world);
    let md5 = vr_common::fetch::md5_file(&tarball).unwrap();
    let (app, pack) =
        (world.app(), world.pack("pack", "cat /etc/of-the-image; id -u; env; echo x > /tmp/left"));
    let more = |md5: &str| {
        format!(
            "buildpack_url: {}\nuser: builder\nimage_url: file://{}\nimage_name: tiny_1\nimage_md5: {md5}",
            pack.display(),
            tarball.display()
        )
    };
    let ended = world.build(&world.yaml(&app, &more(&md5))).expect(0);
    assert!(ended.stdout.starts_with("yes\n1234\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("\nSTACK=tiny_1\n"), "{}", ended.stdout);
    assert_eq!(world.result()["image_name"].as_str(), Some("tiny_1"));
    let contents = world.path("root/images/tiny_1/contents");
    assert!(!contents.join("tmp/left").exists() && !contents.join("builder.sh").exists());
    world.assert_clean();

    let other = World::new();
    let ended = other.build(&other.yaml(&app, &more(&"0".repeat(32)))).expect(1);
    assert!(ended.error().starts_with("image tiny_1: ") && ended.error().contains(&md5), "{}", ended.error());
    other.assert_no_build();
}
