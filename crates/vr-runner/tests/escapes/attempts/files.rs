//! Files of the host, and what is read-only.

use crate::scene::random;
use rustix::fs::{FileType, Mode};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

pub const ATTEMPTS: &[Attempt] = &[
    // Files of the host.
    Attempt {
        name: "read_a_file_outside_the_mounts",
        cases: &[root(&[OwnFiles]), user(&[OwnFiles]), rootless(&[OwnFiles])],
        arrange: |_| says_secret(),
        script: r#"
            for my $way ("", "/proc/self/root", "/proc/1/root", "/proc/self/cwd", "/proc/1/cwd", "/dev/fd/../../root", "/..") {
                print file("$way$ENV{FILE}");
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "climb_out_of_the_root",
        cases: &[root(&[OwnRoot]), user(&[])],
        arrange: |_| says_secret(),
        script: r#"
            mkdir "/tmp/below"; mkdir "/below";
            for my $folder ("/tmp/below", "/below") { chroot $folder and last }
            chdir ".." for 1 .. 50;
            chroot ".";
            print file($ENV{FILE});"#,
        ..PLAIN
    },
    Attempt {
        name: "read_through_a_host_process_in_proc",
        cases: &[
            root(&[ProcessNamespace, UserNamespace, DropCapabilities]),
            user(&[ProcessNamespace, UserNamespace]),
            rootless(&[]),
        ],
        arrange: |scene| {
            scene.victim();
            says_secret()
        },
        script: r#"
            for my $process ($ENV{VICTIM}, 1 .. 200) {
                print file("/proc/$process/root$ENV{FILE}"), file("/proc/$process/cwd/secret");
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "use_an_inherited_descriptor",
        cases: &[root(&[CloseDescriptors]), user(&[CloseDescriptors]), rootless(&[CloseDescriptors])],
        arrange: |scene| {
            let numbers =
                [scene.leave_open(&scene.path("victim/secret")), scene.leave_open(&scene.path("victim"))];
            scene.set("FILE_NUMBER", numbers[0]);
            scene.set("FOLDER_NUMBER", numbers[1]);
            says_secret()
        },
        script: r#"
            open(my $file, "<&=", $ENV{FILE_NUMBER});
            print <$file> if $file;
            print file("/proc/self/fd/$ENV{FOLDER_NUMBER}/secret");"#,
        ..PLAIN
    },
    Attempt {
        name: "open_a_file_by_its_handle",
        cases: &[ROOT_OF_HOST, user(&[]), rootless(&[])],
        arrange: |scene| {
            let handle = scene.on_host(
                "my $handle = pack('L i x128', 128, 0); my $mount = pack('i', 0); \
                 call('name_to_handle_at', -100, $ENV{FILE}, \\$handle, \\$mount, 0) == 0 or die $!; print unpack('H*', $handle)",
            );
            scene.set("HANDLE", handle);
            says_secret()
        },
        script: r#"
            for my $folder ("/", "/tmp", "/usr", "/etc/hosts") {
                sysopen(my $mount, $folder, 0) or next;
                my $file = call("open_by_handle_at", fileno $mount, pack("H*", $ENV{HANDLE}), 0);
                next if $file < 0;
                open(my $opened, "<&=", $file);
                print <$opened>;
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "make_the_node_of_a_disk",
        lacks: || missing("/dev/loop-control"),
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[])],
        arrange: disk,
        script: r#"
            for my $node ("/tmp/node", "/dev/node", "/run/node") {
                call("mknodat", -100, $node, 060666, $ENV{MAJOR} << 8 | $ENV{MINOR});
                print file($node);
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "use_a_planted_node_of_a_disk",
        lacks: || missing("/dev/loop-control"),
        cases: &[root(&[NoDevicesOrSetuid]), user(&[NoDevicesOrSetuid])],
        arrange: planted_device,
        script: r#"print file("/disk-node"), file("/data/disk-node");"#,
        ..PLAIN
    },
    Attempt {
        name: "mount_all_devices",
        lacks: || missing("/dev/loop-control"),
        cases: &[ROOT_OF_HOST, user(&[])],
        arrange: disk,
        script: r#"
            mkdir "/tmp/devices";
            call("mount", "none", "/tmp/devices", "devtmpfs", 0, 0);
            print file("/tmp/devices/$ENV{DISK}");"#,
        ..PLAIN
    },
    Attempt {
        name: "read_the_kernels_log",
        lacks: || missing("/dev/kmsg"),
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[]), rootless(&[])],
        script: r#"
            call("mknodat", -100, "/dev/log-node", 020666, 0x10b);
            print "escaped\n" if sysopen(my $node, "/dev/log-node", 0x800);"#,
        ..PLAIN
    },
    Attempt {
        name: "use_a_node_of_a_disk_that_an_image_brings",
        lacks: || missing("/dev/loop-control"),
        cases: &[root(&[NoDevicesOrSetuid]), user(&[NoDevicesOrSetuid])],
        arrange: |scene| {
            let evidence = planted_device(scene);
            root_is_an_image(scene);
            evidence
        },
        script: r#"print file("/disk-node");"#,
        ..PLAIN
    },
    Attempt {
        name: "read_the_hosts_shared_files_in_memory",
        cases: &[root(&[OwnFiles]), user(&[OwnFiles]), rootless(&[OwnFiles])],
        arrange: |scene| {
            let name = random();
            fs::write(Path::new("/dev/shm").join(&name), &scene.secret).unwrap();
            scene.outside = "/dev/shm".into();
            scene.set("NAME", name);
            says_secret()
        },
        script: r#"print file("/dev/shm/$ENV{NAME}");"#,
        ..PLAIN
    },
    Attempt {
        name: "read_what_only_root_may_in_the_hosts_folders",
        cases: &[root(&[UserNamespace]), user(&[])],
        arrange: |scene| {
            fs::create_dir(scene.path("folder")).unwrap();
            let file = scene.path("folder/secret");
            fs::write(&file, &scene.secret).unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
            for place in ["/opt", "/etc/opt"] {
                scene.mount_on_host("folder", Path::new(place));
            }
            says_secret()
        },
        script: r#"print file("/opt/secret"), file("/etc/opt/secret");"#,
        ..PLAIN
    },
    // What is read-only.
    Attempt {
        name: "write_to_a_read_only_root",
        cases: &[root(&[ReadOnly]), rootless(&[ReadOnly])],
        arrange: |scene| {
            scene.spec.read_only = true;
            fs::write(scene.path("root/file"), "untouched").unwrap();
            Box::new(|scene, _| fs::read_to_string(scene.path("root/file")).unwrap() != "untouched")
        },
        script: r#"put("/file", "escaped");"#,
        ..PLAIN
    },
    Attempt {
        name: "remount_a_read_only_root",
        cases: &[ROOT_OF_HOST, user(&[]), rootless(&[])],
        arrange: |scene| {
            scene.spec.read_only = true;
            fs::write(scene.path("root/file"), "untouched").unwrap();
            Box::new(|scene, _| fs::read_to_string(scene.path("root/file")).unwrap() != "untouched")
        },
        script: r#"
            call("mount", 0, "/", 0, 0x1020, 0);
            put("/file", "escaped");"#,
        ..PLAIN
    },
    Attempt {
        name: "write_to_a_read_only_volume",
        cases: &[root(&[ReadOnly]), user(&[ReadOnly]), rootless(&[ReadOnly])],
        arrange: read_only_volume,
        script: r#"
            for my $folder ("/data", "/data/below") {
                put("$folder/file", "escaped");
                truncate "$folder/file", 0;
                chmod 0600, "$folder/file";
                rename "$folder/file", "$folder/other";
                unlink "$folder/file";
                mkdir "$folder/new";
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "remount_a_read_only_volume",
        cases: &[ROOT_OF_HOST, user(&[]), rootless(&[])],
        arrange: read_only_volume,
        script: r#"
            mkdir "/tmp/copy";
            # Bind, and bind and remount.
            call("mount", "/data", "/tmp/copy", 0, 0x1000, 0);
            for my $folder ("/data", "/data/below", "/tmp/copy") {
                call("mount", 0, $folder, 0, 0x1020, 0);
                call("mount_setattr", -100, $folder, 0, pack("Q4", 0, 1, 0, 0), 32);
                put("$folder/file", "escaped");
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "remount_a_read_only_volume_in_a_namespace_of_its_own",
        // The kernel locks the flags of mounts that come along into such a namespace.
        beneath: &[Seccomp],
        cases: &[root(&[ReadOnly]), user(&[ReadOnly]), rootless(&[ReadOnly])],
        arrange: read_only_volume,
        script: r#"
            call("unshare", 0x10020000);
            mkdir "/tmp/copy";
            call("mount", "/data", "/tmp/copy", 0, 0x1000, 0);
            for my $folder ("/data", "/tmp/copy") {
                call("mount", 0, $folder, 0, 0x1020, 0);
                put("$folder/file", "escaped");
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "write_to_the_hosts_system_folders",
        cases: &[ROOT_OF_HOST, user(&[])],
        arrange: host_folders,
        script: r#"
            for my $folder ("/opt", "/usr/local", "/etc/opt") {
                put("$folder/file", "escaped");
                call("mount", 0, $folder, 0, 0x1020, 0);
                put("$folder/file", "escaped");
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "write_to_the_hosts_network_files",
        cases: &[ROOT_OF_HOST, user(&[])],
        arrange: |scene| {
            own_system(scene);
            fs::create_dir(scene.path("network")).unwrap();
            fs::write(scene.path("network/file"), "127.0.0.1 localhost\n").unwrap();
            scene.mount_on_host("network/file", Path::new("/etc/hosts"));
            changes(scene, "network")
        },
        script: r#"
            chmod 0666, "/etc/hosts";
            put("/etc/hosts", "escaped");
            call("mount", 0, "/etc/hosts", 0, 0x1020, 0);
            put("/etc/hosts", "escaped");"#,
        ..PLAIN
    },
];

/// A read-only volume at `/data` with a file system mounted in it.
fn read_only_volume(scene: &mut Scene) -> Evidence {
    for (name, mode) in [("volume", 0o777), ("volume/below", 0o777), ("other", 0o777)] {
        fs::create_dir(scene.path(name)).unwrap();
        fs::set_permissions(scene.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for name in ["volume/file", "other/file"] {
        fs::write(scene.path(name), "untouched").unwrap();
        fs::set_permissions(scene.path(name), fs::Permissions::from_mode(0o666)).unwrap();
    }
    if scene.who != Who::Rootless {
        scene.mount_on_host("other", &scene.path("volume/below"));
    }
    scene.volume("volume", "/data", true);
    changes(scene, "volume")
}

/// The "host's" own `/opt` and the like.
fn host_folders(scene: &mut Scene) -> Evidence {
    fs::create_dir(scene.path("folder")).unwrap();
    fs::write(scene.path("folder/file"), "untouched").unwrap();
    for place in ["/opt", "/usr/local", "/etc/opt"] {
        scene.mount_on_host("folder", Path::new(place));
    }
    changes(scene, "folder")
}

fn planted_device(scene: &mut Scene) -> Evidence {
    let (major, minor) = scene.disk();
    fs::create_dir(scene.path("volume")).unwrap();
    scene.volume("volume", "/data", false);
    for name in ["root/disk-node", "volume/disk-node"] {
        let device = rustix::fs::makedev(major, minor);
        let path = scene.path(name);
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::BlockDevice, Mode::empty(), device).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    }
    says_secret()
}
