//! The attempts that are made from inside a container: what each tries, what stops it, and how the "host" can tell.

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use rustix::fs::{FileType, Mode};
use vr_runner::container::{BindMount, Capabilities, Credentials, Network, Program, System};

use super::defences::Defence::{self, *};
use super::scene::{HOST_KEY, HOST_VARIABLE, Outcome, Scene, USER, Who, random};

/// Tells from what the "host" has, or from a secret in what the attack said, whether it succeeded.
pub type Evidence = Box<dyn Fn(&Scene, &Outcome) -> bool>;

/// An attempt by one kind of attacker.
pub struct Case {
    pub who: Who,
    /// Without these, it succeeds. When there are none, the kernel itself stops it whatever we do.
    pub stopped_by: &'static [Defence],
    /// Each of these stops it without the others of `stopped_by`.
    pub alone: &'static [Defence],
}

/// Something that no container may do.
pub struct Attempt {
    pub name: &'static str,
    pub cases: &'static [Case],
    /// Switched off in every try, as they would stop it before it meets what it is about.
    pub beneath: &'static [Defence],
    /// What this machine lacks, if without it the attempt cannot succeed.
    pub lacks: fn() -> Option<&'static str>,
    /// It attacks while the container is made, which therefore need not start.
    pub at_start: bool,
    /// It attacks the program that makes containers, which has to be a copy of this one.
    pub in_copy: bool,
    /// Makes the victims and completes the container.
    pub arrange: fn(&mut Scene) -> Evidence,
    /// What runs inside; see [`super::scene`].
    pub script: &'static str,
}

const PLAIN: Attempt = Attempt {
    name: "",
    cases: &[],
    beneath: &[],
    lacks: || None,
    at_start: false,
    in_copy: false,
    arrange: |_| says_escaped(),
    script: "",
};

const fn case(who: Who, stopped_by: &'static [Defence]) -> Case {
    Case { who, stopped_by, alone: stopped_by }
}

const fn root(stopped_by: &'static [Defence]) -> Case {
    case(Who::Root, stopped_by)
}

const fn user(stopped_by: &'static [Defence]) -> Case {
    case(Who::User, stopped_by)
}

const fn rootless(stopped_by: &'static [Defence]) -> Case {
    case(Who::Rootless, stopped_by)
}

const fn together(who: Who, stopped_by: &'static [Defence], alone: &'static [Defence]) -> Case {
    Case { who, stopped_by, alone }
}

/// Root's attempt at what only root of the host may do.
const ROOT_OF_HOST: Case = root(&[UserNamespace, DropCapabilities, Seccomp]);
/// For calls that anybody may make.
const ANYBODYS_CALL: [Case; 3] = [root(&[Seccomp]), user(&[Seccomp]), rootless(&[Seccomp])];
/// Only root of the host may call it, and whoever is refused cannot tell by whom.
const ROOTS_CALL: [Case; 3] = [ROOT_OF_HOST, user(&[]), rootless(&[])];
/// As before, but the kernel looks at the caller only after it found that it cannot do what is asked for.
const LATE_CALL: [Case; 3] =
    [together(Who::Root, &[UserNamespace, DropCapabilities, Seccomp], &[Seccomp]), user(&[]), rootless(&[])];

fn missing(file: &'static str) -> Option<&'static str> {
    (!Path::new(file).exists()).then_some(file)
}

/// Root itself may lack it, where the machine is a container.
fn missing_sys_resource() -> Option<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let has_it = u64::from_str_radix(line, 16).unwrap() & 1 << 24 != 0;
    (!has_it).then_some("capability sys_resource")
}

/// Newer kernels let nobody but root type into terminals unless this is 1.
fn missing_typing() -> Option<&'static str> {
    let setting = fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti");
    setting.is_ok_and(|value| value.trim() == "0").then_some("dev.tty.legacy_tiocsti")
}

fn says_secret() -> Evidence {
    Box::new(|scene, outcome| outcome.output.contains(&scene.secret))
}

fn says_escaped() -> Evidence {
    Box::new(|_, outcome| outcome.output.contains("escaped"))
}

/// Everything about a folder and what is in it that an attacker might change.
pub fn look_at(path: &Path) -> String {
    let found = fs::symlink_metadata(path).unwrap();
    let content = if found.is_file() { fs::read(path).unwrap() } else { Vec::new() };
    let owner = (found.uid(), found.gid());
    let mut all =
        format!("{} {:o} {owner:?} {}\n", path.display(), found.mode(), String::from_utf8_lossy(&content));
    if found.is_dir() {
        let mut below: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        below.sort();
        all.extend(below.iter().map(|path| look_at(path)));
    }
    all
}

/// The folder of the victims is another one afterwards.
fn changes(scene: &Scene, folder: &str) -> Evidence {
    let folder = scene.path(folder);
    let before = look_at(&folder);
    Box::new(move |_, _| look_at(&folder) != before)
}

/// A file of the kernel's says something else afterwards; then it gets back what it said.
fn changes_kernel_file(path: String) -> Evidence {
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let before = read(&path);
    Box::new(move |_, _| {
        let changed = read(&path) != before;
        if changed {
            fs::write(&path, &before).unwrap();
        }
        changed
    })
}

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

/// A container that has its own system, as if it were of an image, made of the host's.
fn own_system(scene: &mut Scene) {
    let usr = BindMount { source: "/usr".into(), target: "/usr".into(), read_only: true };
    scene.spec.mounts.push(usr);
    scene.spec.system = System::Own;
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), scene.path("root").join(name)).unwrap();
    }
}

/// A link of the app's that leads to the victims.
fn hostile_link(scene: &mut Scene, name: &str, below: &str) -> Evidence {
    let link = scene.path("root").join(name);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(scene.path("victim").join(below), link).unwrap();
    changes(scene, "victim")
}

/// Copies of a program that give root's rights to whoever runs them, in the root and in a volume.
fn setuid_programs(scene: &mut Scene) -> Evidence {
    fs::create_dir(scene.path("volume")).unwrap();
    for name in ["root/perl", "volume/perl"] {
        fs::copy("/usr/bin/perl", scene.path(name)).unwrap();
        chown(scene.path(name), Some(0), Some(0)).unwrap();
        fs::set_permissions(scene.path(name), fs::Permissions::from_mode(0o6755)).unwrap();
    }
    scene.volume("volume", "/data", false);
    scene.volume("out", "/out", false);
    Box::new(|scene, outcome| {
        let made: Vec<_> = fs::read_dir(scene.path("out")).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(made.len(), 2, "the programs did not run: {}", outcome.output);
        made.iter().any(|entry| entry.metadata().unwrap().uid() != USER.0 || entry.metadata().unwrap().gid() != USER.1)
    })
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

fn disk(scene: &mut Scene) -> Evidence {
    scene.disk();
    says_secret()
}

fn victim_dies(scene: &mut Scene) -> Evidence {
    let pid = scene.victim();
    Box::new(move |scene, _| !scene.is_alive(pid))
}

/// A file of the victim's in `/proc` says something else afterwards.
fn victim_changes(scene: &mut Scene, file: &str) -> Evidence {
    let path = format!("/proc/{}/{file}", scene.victim());
    let before = fs::read(&path).unwrap();
    Box::new(move |_, _| fs::read(&path).unwrap() != before)
}

/// The victim's environment, whose place in memory is in ADDRESS.
fn victims_memory(scene: &mut Scene) -> Evidence {
    let evidence = victim_changes(scene, "environ");
    let stat = fs::read_to_string(format!("/proc/{}/stat", scene.variables["VICTIM"])).unwrap();
    // The 50th field; the second one is the only one that could hold spaces.
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    scene.set("ADDRESS", rest.split(' ').nth(47).unwrap());
    evidence
}

fn victims_priority(scene: &mut Scene) -> Evidence {
    let pid = scene.victim();
    let nice = move || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().to_owned()
    };
    let before = nice();
    Box::new(move |_, _| nice() != before)
}

fn host_terminal(scene: &mut Scene) -> Evidence {
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut mode = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    nix::sys::termios::cfmakeraw(&mut mode);
    nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &mode).unwrap();
    scene.stdin = Some(pty.slave.try_clone().unwrap());
    scene.kept.push(pty.master);
    Box::new(move |_, _| {
        rustix::io::ioctl_fionread(&pty.slave).unwrap() > 0
    })
}

fn shared_memory(scene: &mut Scene) -> Evidence {
    scene.set("KEY", 0x5652_0000_u32 + std::process::id());
    scene.on_host("defined shmget($ENV{KEY} + 0, 64, 03666) or die; \
        shmwrite(shmget($ENV{KEY} + 0, 64, 0), $ENV{SECRET}, 0, 64) or die $!");
    Box::new(|scene, outcome| {
        let now = scene.on_host("my $id = shmget($ENV{KEY} + 0, 64, 0); shmread($id, my $text, 0, 64) or die $!; \
            print $text; shmctl($id, 0, 0)");
        outcome.output.contains(&scene.secret) || now.starts_with("escaped")
    })
}

fn message_queue(scene: &mut Scene) -> Evidence {
    scene.set("QUEUE", random());
    scene.on_host("my $queue = call('mq_open', $ENV{QUEUE}, 04102, 0666, 0); die $! if $queue < 0; \
        call('mq_timedsend', $queue, \"in $ENV{SECRET}\", 3 + length $ENV{SECRET}, 0, 0) == 0 or die $!");
    says_secret()
}

fn abstract_socket(scene: &mut Scene) -> Evidence {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&scene.secret).unwrap()).unwrap();
    listener.set_nonblocking(true).unwrap();
    scene.set("SOCKET", scene.secret.clone());
    scene.spec.network = Network::None;
    Box::new(move |_, _| listener.accept().is_ok())
}

fn loopback(scene: &mut Scene) -> Evidence {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    scene.set("PORT", listener.local_addr().unwrap().port());
    scene.spec.network = Network::None;
    Box::new(move |_, _| listener.accept().is_ok())
}

fn host_name(scene: &mut Scene) -> Evidence {
    let name = || nix::unistd::gethostname().unwrap();
    let before = name();
    scene.set("NAME", "escaped");
    Box::new(move |_, _| {
        let changed = name() != before;
        if changed {
            nix::unistd::sethostname(&before).unwrap();
        }
        changed
    })
}

fn network_device(scene: &mut Scene) -> Evidence {
    let look = |scene: &Scene| {
        scene.on_host("socket(my $s, 2, 2, 0) or die $!; my $r = pack('a16 x24', 'lo'); ioctl($s, 0x8921, $r) or die $!; \
            print unpack('x16 i', $r)")
    };
    let before = look(scene);
    Box::new(move |scene, _| {
        let changed = look(scene) != before;
        if changed {
            scene.on_host(&format!(
                "socket(my $s, 2, 2, 0); my $r = pack('a16 i x20', 'lo', {before}); ioctl($s, 0x8922, $r) or die $!"
            ));
        }
        changed
    })
}

fn release_agent(scene: &mut Scene) -> Evidence {
    let agent = scene.path("victim/agent");
    fs::write(&agent, format!("#!/bin/sh\necho done > {}\n", scene.path("out/done").display())).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    scene.set("AGENT", agent.display());
    scene.set("NAME", format!("vr-escapes-{}", scene.secret));
    scene.volume("out", "/out", false);
    Box::new(|scene, _| scene.path("out/done").exists())
}

/// An image whose shell is the very program that makes the container.
fn shell_is_the_caller(scene: &mut Scene) -> Evidence {
    own_system(scene);
    let shell = scene.path("root/shell");
    fs::write(&shell, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
    scene.spec.program = Program::new("/shell", [""; 0]);
    let this = std::env::current_exe().unwrap();
    let mode = move || fs::metadata(&this).unwrap().mode();
    let before = mode();
    Box::new(move |_, _| mode() != before)
}

/// The same with a shell that can be run but not read, so that nobody but the kernel sees what it is. Its user needs to
/// be one who cannot read everything.
fn unreadable_shell_is_the_caller(scene: &mut Scene) -> Evidence {
    let evidence = shell_is_the_caller(scene);
    fs::set_permissions(scene.path("root/shell"), fs::Permissions::from_mode(0o111)).unwrap();
    scene.spec.capabilities = Capabilities::None;
    if scene.who == Who::Rootless {
        scene.spec.user = Credentials { uid: 65534, gid: 65534, groups: Vec::new() };
    }
    evidence
}

/// All attempts.
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
            let numbers = [scene.leave_open(&scene.path("victim/secret")), scene.leave_open(&scene.path("victim"))];
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
    // What is read-only.
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
    // Processes of the host.
    Attempt {
        name: "see_a_host_process",
        cases: &[root(&[ProcessNamespace]), user(&[ProcessNamespace]), rootless(&[])],
        arrange: |scene| {
            scene.victim();
            says_secret()
        },
        script: r#"print file("$_/cmdline") for glob "/proc/[0-9]*";"#,
        ..PLAIN
    },
    Attempt {
        name: "kill_a_host_process_by_number",
        cases: &[
            root(&[ProcessNamespace, UserNamespace]),
            user(&[ProcessNamespace, UserNamespace]),
            rootless(&[]),
        ],
        arrange: victim_dies,
        script: "kill 'KILL', $ENV{VICTIM};",
        ..PLAIN
    },
    Attempt {
        name: "kill_a_host_process_by_handle",
        cases: &[
            root(&[ProcessNamespace, UserNamespace]),
            user(&[ProcessNamespace, UserNamespace]),
            rootless(&[]),
        ],
        arrange: victim_dies,
        script: r#"
            my $handle = call("pidfd_open", $ENV{VICTIM} + 0, 0);
            call("pidfd_send_signal", $handle, 9, 0, 0) if $handle >= 0;"#,
        ..PLAIN
    },
    Attempt {
        name: "write_to_a_host_process",
        cases: &[
            root(&[ProcessNamespace, UserNamespace, DropCapabilities]),
            user(&[ProcessNamespace, UserNamespace]),
            rootless(&[]),
        ],
        arrange: victims_memory,
        script: r#"
            my $text = "ESCAPED";
            call("process_vm_writev", $ENV{VICTIM} + 0, pack("P Q", $text, 7), 1, pack("Q2", $ENV{ADDRESS}, 7), 1, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "write_to_the_memory_file_of_a_host_process",
        cases: &[
            root(&[ProcessNamespace, UserNamespace, DropCapabilities]),
            user(&[ProcessNamespace, UserNamespace]),
            rootless(&[]),
        ],
        arrange: victims_memory,
        script: r#"
            if (sysopen(my $memory, "/proc/$ENV{VICTIM}/mem", 2)) {
                sysseek($memory, $ENV{ADDRESS}, 0);
                syswrite($memory, "ESCAPED");
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "trace_a_host_process",
        cases: &[
            root(&[ProcessNamespace, UserNamespace, DropCapabilities]),
            user(&[ProcessNamespace, UserNamespace]),
            rootless(&[]),
        ],
        arrange: victims_memory,
        script: r#"
            # Attach, wait until it stops, write a word, let it go.
            if (call("ptrace", 16, $ENV{VICTIM} + 0, 0, 0) == 0) {
                waitpid($ENV{VICTIM}, 0x40000000);
                call("ptrace", 4, $ENV{VICTIM} + 0, $ENV{ADDRESS} + 0, unpack("Q", "ESCAPED!"));
                call("ptrace", 17, $ENV{VICTIM} + 0, 0, 0);
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "slow_a_host_process_down",
        cases: &[
            root(&[ProcessNamespace, UserNamespace, DropCapabilities]),
            user(&[ProcessNamespace, UserNamespace]),
            rootless(&[]),
        ],
        arrange: victims_priority,
        script: "eval { setpriority(0, $ENV{VICTIM}, 7) };",
        ..PLAIN
    },
    Attempt {
        name: "offer_a_host_process_to_the_oom_killer",
        cases: &[
            root(&[ProcessNamespace, UserNamespace]),
            user(&[ProcessNamespace, UserNamespace]),
            rootless(&[]),
        ],
        arrange: |scene| victim_changes(scene, "oom_score_adj"),
        script: r#"put("/proc/$ENV{VICTIM}/oom_score_adj", "500");"#,
        ..PLAIN
    },
    Attempt {
        name: "limit_a_host_process",
        cases: &[
            root(&[ProcessNamespace, UserNamespace]),
            user(&[ProcessNamespace, UserNamespace]),
            rootless(&[]),
        ],
        arrange: |scene| victim_changes(scene, "limits"),
        script: r#"call("prlimit64", $ENV{VICTIM} + 0, 7, pack("Q2", 5, 5), 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "enter_the_namespace_of_a_host_process",
        cases: &[
            root(&[ProcessNamespace, UserNamespace, DropCapabilities, Seccomp]),
            user(&[]),
            rootless(&[]),
        ],
        arrange: |scene| {
            scene.victim();
            says_secret()
        },
        script: r#"
            for my $process ($ENV{VICTIM}, 1) {
                sysopen(my $namespace, "/proc/$process/ns/mnt", 0) or next;
                call("setns", fileno $namespace, 0x20000);
                print file($ENV{FILE});
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "read_the_environment_of_init",
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[]), rootless(&[])],
        arrange: |_| {
            let secret = std::env::var(HOST_VARIABLE).unwrap();
            Box::new(move |_, outcome| outcome.output.contains(&secret))
        },
        script: r#"print file("/proc/1/environ");"#,
        ..PLAIN
    },
    Attempt {
        name: "open_the_memory_of_init",
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[]), rootless(&[])],
        script: r#"print "escaped\n" if sysopen(my $memory, "/proc/1/mem", 2);"#,
        ..PLAIN
    },
    Attempt {
        name: "open_the_program_of_init",
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[]), rootless(&[])],
        script: r#"print "escaped\n" if sysopen(my $program, "/proc/1/exe", 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "read_the_hosts_environment",
        cases: &[root(&[OwnEnvironment]), user(&[OwnEnvironment]), rootless(&[OwnEnvironment])],
        arrange: |_| {
            let secret = std::env::var(HOST_VARIABLE).unwrap();
            Box::new(move |_, outcome| outcome.output.contains(&secret))
        },
        script: r#"print "$_=$ENV{$_}\n" for keys %ENV;"#,
        ..PLAIN
    },
    Attempt {
        name: "change_the_program_that_makes_the_container",
        in_copy: true,
        at_start: true,
        cases: &[root(&[UserNamespace, OwnProgramStaysOutside]), rootless(&[OwnProgramStaysOutside])],
        arrange: shell_is_the_caller,
        ..PLAIN
    },
    Attempt {
        name: "change_the_program_that_makes_the_container_by_an_unreadable_shell",
        in_copy: true,
        at_start: true,
        cases: &[root(&[UserNamespace, OwnProgramStaysOutside]), rootless(&[OwnProgramStaysOutside])],
        arrange: unreadable_shell_is_the_caller,
        ..PLAIN
    },
    // The kernel's files.
    Attempt {
        name: "change_a_setting_of_the_kernel",
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        arrange: |scene| {
            let path = "/proc/sys/kernel/printk_ratelimit_burst";
            let now: u32 = fs::read_to_string(path).unwrap().trim().parse().unwrap();
            scene.set("VALUE", now + 1);
            changes_kernel_file(path.to_owned())
        },
        script: r#"put("/proc/sys/kernel/printk_ratelimit_burst", $ENV{VALUE});"#,
        ..PLAIN
    },
    Attempt {
        name: "set_the_program_for_core_dumps",
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        // What it is already, as it counts for the whole machine.
        script: r#"
            my $pattern = file("/proc/sys/kernel/core_pattern");
            print "escaped\n" if put("/proc/sys/kernel/core_pattern", $pattern);"#,
        ..PLAIN
    },
    Attempt {
        name: "change_a_setting_of_the_hosts_network",
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        arrange: |_| changes_kernel_file("/proc/sys/net/ipv4/ip_default_ttl".to_owned()),
        script: r#"put("/proc/sys/net/ipv4/ip_default_ttl", "77");"#,
        ..PLAIN
    },
    Attempt {
        name: "press_a_magic_key",
        lacks: || missing("/proc/sysrq-trigger"),
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        script: r#"print "escaped\n" if sysopen(my $keys, "/proc/sysrq-trigger", 1);"#,
        ..PLAIN
    },
    Attempt {
        name: "move_interrupts",
        lacks: || missing("/proc/irq/default_smp_affinity"),
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        script: r#"print "escaped\n" if sysopen(my $mask, "/proc/irq/default_smp_affinity", 1);"#,
        ..PLAIN
    },
    Attempt {
        name: "change_a_device_in_sys",
        lacks: || missing("/dev/loop-control"),
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[])],
        arrange: |scene| {
            scene.disk();
            changes_kernel_file(format!("/sys/block/{}/queue/read_ahead_kb", scene.variables["DISK"]))
        },
        script: r#"put("/sys/block/$ENV{DISK}/queue/read_ahead_kb", "16");"#,
        ..PLAIN
    },
    Attempt {
        name: "read_the_memory_of_the_kernel",
        lacks: || missing("/proc/kcore"),
        cases: &[
            together(Who::Root, &[MaskKernelFiles, UserNamespace, DropCapabilities], &[MaskKernelFiles, UserNamespace]),
            user(&[]),
            rootless(&[]),
        ],
        script: r#"print "escaped\n" if file("/proc/kcore") =~ /^.ELF/;"#,
        ..PLAIN
    },
    Attempt {
        name: "list_the_hosts_timers",
        lacks: || missing("/proc/timer_list"),
        cases: &[root(&[MaskKernelFiles, UserNamespace]), user(&[]), rootless(&[])],
        script: r#"print "escaped\n" if file("/proc/timer_list") ne "";"#,
        ..PLAIN
    },
    Attempt {
        name: "list_the_hosts_keys",
        lacks: || missing("/proc/keys"),
        cases: &[
            together(Who::Root, &[MaskKernelFiles, UserNamespace, NewKeyring], &[MaskKernelFiles]),
            together(Who::User, &[MaskKernelFiles, UserNamespace, NewKeyring], &[MaskKernelFiles]),
        ],
        arrange: |_| Box::new(|_, outcome| outcome.output.contains(HOST_KEY)),
        script: r#"print file("/proc/keys");"#,
        ..PLAIN
    },
    Attempt {
        name: "list_the_hosts_firmware",
        lacks: || missing("/sys/firmware"),
        cases: &[root(&[MaskKernelFiles]), user(&[MaskKernelFiles])],
        script: r#"print "escaped\n" if () = glob "/sys/firmware/*";"#,
        ..PLAIN
    },
    // Calls.
    Attempt {
        name: "mount_in_a_user_namespace_of_its_own",
        cases: &ANYBODYS_CALL,
        script: r#"
            mkdir "/tmp/place";
            call("unshare", 0x10020000);
            call("mount", "none", "/tmp/place", "tmpfs", 0, 0);
            print "escaped\n" if file("/proc/self/mounts") =~ m{ /tmp/place tmpfs };"#,
        ..PLAIN
    },
    Attempt {
        name: "mount_a_proc_without_masks_in_namespaces_of_its_own",
        // Where it is masked, the kernel gives nobody a proc that is not.
        cases: &[root(&[Seccomp, MaskKernelFiles]), user(&[Seccomp, MaskKernelFiles]), rootless(&[Seccomp, MaskKernelFiles])],
        script: r#"
            mkdir "/tmp/place";
            if (call("unshare", 0x30020000) == 0) {
                my $child = fork;
                if ($child == 0) {
                    print "escaped\n" if call("mount", "proc", "/tmp/place", "proc", 0, 0) == 0;
                    exec "/bin/true";
                }
                waitpid $child, 0;
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "load_a_module",
        cases: &LATE_CALL,
        script: r#"reached("finit_module", -1, "", 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "load_another_kernel",
        cases: &LATE_CALL,
        // More segments than there may be.
        script: r#"reached("kexec_load", 0, 1000, 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "restart_the_machine",
        cases: &ROOTS_CALL,
        // Without the numbers that are to be given for that.
        script: r#"reached("reboot", 0, 0, 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "take_swap_away",
        cases: &ROOTS_CALL,
        script: r#"reached("swapoff", "/nothing");"#,
        ..PLAIN
    },
    Attempt {
        name: "switch_accounting_on",
        cases: &ROOTS_CALL,
        script: r#"reached("acct", "/nothing");"#,
        ..PLAIN
    },
    Attempt {
        name: "set_the_clock",
        cases: &ROOTS_CALL,
        // To nothing.
        script: r#"reached("settimeofday", 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "load_a_bpf_program",
        cases: &ROOTS_CALL,
        // Only a map, for one number.
        script: r#"print "escaped\n" if call("bpf", 0, pack("L4 x56", 2, 4, 4, 1), 72) >= 0;"#,
        ..PLAIN
    },
    Attempt {
        name: "control_the_kernels_log",
        cases: &[ROOT_OF_HOST, user(&[]), rootless(&[])],
        // To "switch the console on" is as privileged.
        script: r#"print "escaped\n" if call("syslog", 7, 0, 0) >= 0;"#,
        ..PLAIN
    },
    Attempt {
        name: "watch_performance_events",
        cases: &ANYBODYS_CALL,
        script: r#"reached("perf_event_open", pack("L2 x112", 1, 112), 0, -1, -1, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "use_io_uring",
        cases: &ANYBODYS_CALL,
        script: r#"reached("io_uring_setup", 1, pack("x120"));"#,
        ..PLAIN
    },
    Attempt {
        name: "use_userfaultfd",
        cases: &ANYBODYS_CALL,
        script: r#"reached("userfaultfd", 1);"#,
        ..PLAIN
    },
    Attempt {
        name: "switch_address_randomisation_off",
        cases: &ANYBODYS_CALL,
        script: r#"reached("personality", 0x40000);"#,
        ..PLAIN
    },
    Attempt {
        name: "use_a_socket_to_the_hypervisor",
        cases: &ANYBODYS_CALL,
        script: r#"reached("socket", 40, 1, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "compare_kernel_addresses",
        cases: &ANYBODYS_CALL,
        script: r#"reached("kcmp", $$, $$, 0, 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "take_descriptors_of_another_process",
        cases: &ANYBODYS_CALL,
        script: r#"reached("pidfd_getfd", call("pidfd_open", $$, 0), 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "read_a_key_of_the_callers_session",
        cases: &[root(&[Seccomp, NewKeyring]), user(&[Seccomp, NewKeyring]), rootless(&[Seccomp, NewKeyring])],
        arrange: |scene| {
            scene.set("HOST_KEY", HOST_KEY);
            let secret = std::env::var(HOST_VARIABLE).unwrap();
            Box::new(move |_, outcome| outcome.output.contains(&secret))
        },
        script: r#"
            # Search the session's keyring, and read.
            my $key = call("keyctl", 10, -3, "user", $ENV{HOST_KEY}, 0);
            my $text = " " x 100;
            call("keyctl", 11, $key, \$text, 100) if $key > 0;
            print $text;"#,
        ..PLAIN
    },
    Attempt {
        name: "keep_a_key_in_the_kernel",
        cases: &ANYBODYS_CALL,
        // Into the keyring of the process, which ends with it.
        script: r#"reached("add_key", "user", "escape", "x", 1, -2);"#,
        ..PLAIN
    },
    Attempt {
        name: "have_the_host_find_a_key",
        cases: &ANYBODYS_CALL,
        script: r#"reached("request_key", "user", "nothing", 0, 0);"#,
        ..PLAIN
    },
    Attempt {
        name: "run_a_program_on_the_host_by_release_agent",
        cases: &[
            root(&[UserNamespace, DropCapabilities, Seccomp, CgroupNamespace]),
            user(&[]),
            rootless(&[]),
        ],
        arrange: release_agent,
        // In a hierarchy of its own, which goes when nothing is left in it.
        script: r#"
            mkdir "/tmp/groups";
            if (call("mount", "none", "/tmp/groups", "cgroup", 0, "none,name=$ENV{NAME}") == 0) {
                mkdir "/tmp/groups/group";
                if (put("/tmp/groups/release_agent", $ENV{AGENT}) && put("/tmp/groups/group/notify_on_release", "1")) {
                    my $child = fork;
                    if ($child == 0) {
                        put("/tmp/groups/group/cgroup.procs", "0");
                        exec "/bin/true";
                    }
                    waitpid $child, 0;
                    for (1 .. 1000) { last if -e "/out/done"; select(undef, undef, undef, 0.01); }
                }
                rmdir "/tmp/groups/group";
            }"#,
        ..PLAIN
    },
    // Terminals.
    Attempt {
        name: "type_into_the_callers_terminal",
        cases: &[ROOT_OF_HOST, user(&[]), rootless(&[])],
        arrange: host_terminal,
        script: r#"
            my $letter = "x";
            ioctl(STDIN, 0x5412, $letter);"#,
        ..PLAIN
    },
    Attempt {
        name: "type_into_a_terminal_of_the_caller_that_controls_it",
        lacks: missing_typing,
        cases: &ANYBODYS_CALL,
        arrange: host_terminal,
        script: r#"
            my $letter = "x";
            ioctl(STDIN, 0x540e, 0);
            ioctl(STDIN, 0x5412, $letter);"#,
        ..PLAIN
    },
    Attempt {
        name: "paste_into_the_callers_terminal",
        cases: &ANYBODYS_CALL,
        arrange: |scene| {
            let _ = host_terminal(scene);
            says_escaped()
        },
        // It is no virtual console, so the kernel would only say that it does not know of such a thing.
        script: r#"my $what = "\2" . "\0" x 20; print "escaped\n" if defined ioctl(STDIN, 0x541c, $what) || $! != 1;"#,
        ..PLAIN
    },
    // Other things of the host.
    Attempt {
        name: "rename_the_host",
        cases: &[root(&[UserNamespace, DropCapabilities, Seccomp, HostNameNamespace]), user(&[]), rootless(&[])],
        arrange: host_name,
        script: r#"call("sethostname", "escaped", 7);"#,
        ..PLAIN
    },
    Attempt {
        name: "rename_the_host_through_proc",
        cases: &[root(&[UserNamespace, MaskKernelFiles, HostNameNamespace]), user(&[]), rootless(&[])],
        arrange: host_name,
        script: r#"put("/proc/sys/kernel/hostname", "escaped");"#,
        ..PLAIN
    },
    Attempt {
        name: "use_the_hosts_shared_memory",
        cases: &[root(&[IpcNamespace]), user(&[IpcNamespace]), rootless(&[IpcNamespace])],
        arrange: shared_memory,
        script: r#"
            my $id = shmget($ENV{KEY} + 0, 64, 0);
            if (defined $id) { shmread($id, my $text, 0, 64) and print $text; shmwrite($id, "escaped", 0, 7); }"#,
        ..PLAIN
    },
    Attempt {
        name: "read_the_hosts_message_queue",
        cases: &[root(&[IpcNamespace]), user(&[IpcNamespace]), rootless(&[IpcNamespace])],
        arrange: message_queue,
        script: r#"
            my $queue = call("mq_open", $ENV{QUEUE}, 04002, 0, 0);
            my $text = " " x 8192;
            call("mq_timedreceive", $queue, \$text, 8192, 0, 0) if $queue >= 0;
            print $text;"#,
        ..PLAIN
    },
    Attempt {
        name: "talk_to_a_socket_of_the_host_without_a_network",
        cases: &[root(&[OwnNetwork]), user(&[OwnNetwork]), rootless(&[OwnNetwork])],
        arrange: abstract_socket,
        script: r#"socket(my $socket, 1, 1, 0); connect($socket, pack("S a*", 1, "\0$ENV{SOCKET}"));"#,
        ..PLAIN
    },
    Attempt {
        name: "talk_to_the_host_itself_without_a_network",
        cases: &[root(&[OwnNetwork]), user(&[OwnNetwork]), rootless(&[OwnNetwork])],
        arrange: loopback,
        script: r#"socket(my $socket, 2, 1, 0); connect($socket, pack("S n a4 x8", 2, $ENV{PORT}, "\x7f\0\0\1"));"#,
        ..PLAIN
    },
    Attempt {
        name: "change_a_network_device_of_the_host",
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[]), rootless(&[])],
        arrange: network_device,
        script: r#"my $size = pack("a16 i x20", "lo", 5000); socket(my $socket, 2, 2, 0); ioctl($socket, 0x8922, $size);"#,
        ..PLAIN
    },
    // More rights.
    Attempt {
        name: "become_root_by_a_program_with_the_set_user_id_bit",
        cases: &[user(&[NoNewPrivileges, Seccomp, NoDevicesOrSetuid])],
        arrange: setuid_programs,
        script: r#"
            for my $program ("/perl", "/data/perl") {
                my $name = "/out/made-by" . ($program =~ tr{/}{-}r);
                system $program, "-e", "sysopen(my \$file, '$name', 0x41, 0666)";
            }"#,
        ..PLAIN
    },
    Attempt {
        name: "have_capabilities_within_reach",
        cases: &[root(&[DropCapabilities]), user(&[DropCapabilities]), rootless(&[DropCapabilities])],
        arrange: |scene| {
            // chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service, net_raw, sys_chroot,
            // audit_write, setfcap: by their numbers.
            let usual = [0, 1, 3, 4, 5, 6, 7, 10, 13, 18, 29, 31].iter().fold(0_u64, |all, bit| all | 1 << bit);
            let most = if scene.who == Who::User { 0 } else { usual };
            Box::new(move |_, outcome| {
                let sets: Vec<_> = outcome.output.lines().filter(|line| line.starts_with("Cap")).collect();
                assert_eq!(sets.len(), 5, "{}", outcome.output);
                sets.iter().any(|line| {
                    let set = u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap();
                    let most = if line.starts_with("CapInh") || line.starts_with("CapAmb") { 0 } else { most };
                    set & !most != 0
                })
            })
        },
        script: r#"print file("/proc/self/status");"#,
        ..PLAIN
    },
    Attempt {
        name: "get_new_privileges_at_all",
        cases: &ANYBODY_NEW_PRIVILEGES,
        script: r#"print "escaped\n" if file("/proc/self/status") =~ /NoNewPrivs:\t0/;"#,
        ..PLAIN
    },
    Attempt {
        name: "raise_its_own_limits",
        lacks: missing_sys_resource,
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[]), rootless(&[])],
        script: r#"
            call("prlimit64", 0, 4, pack("Q2", 0, 0), 0) == 0 or die $!;
            print "escaped\n" if call("prlimit64", 0, 4, pack("Q2", 1, 1), 0) == 0;"#,
        ..PLAIN
    },
    Attempt {
        name: "hide_from_the_oom_killer",
        lacks: missing_sys_resource,
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[]), rootless(&[])],
        script: r#"
            put("/proc/self/oom_score_adj", "-1000");
            print "escaped\n" if file("/proc/self/oom_score_adj") == -1000;"#,
        ..PLAIN
    },
    Attempt {
        name: "run_before_all_others",
        cases: &[root(&[UserNamespace, DropCapabilities]), user(&[]), rootless(&[])],
        script: r#"
            eval { setpriority(0, 0, -5) };
            print "escaped\n" if getpriority(0, 0) < 0 || call("ioprio_set", 1, 0, 1 << 13) == 0;"#,
        ..PLAIN
    },
    // Links of the app's in its root, while the container is made.
    Attempt {
        name: "lead_tmp_out_of_the_root",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| hostile_link(scene, "tmp", ""),
        ..PLAIN
    },
    Attempt {
        name: "lead_var_out_of_the_root",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| hostile_link(scene, "var", ""),
        ..PLAIN
    },
    Attempt {
        name: "lead_etc_out_of_the_root",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| {
            own_system(scene);
            hostile_link(scene, "etc", "")
        },
        ..PLAIN
    },
    Attempt {
        name: "lead_the_place_of_a_volume_out_of_the_root",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| {
            fs::create_dir(scene.path("volume")).unwrap();
            scene.volume("volume", "/data/deep/place", false);
            hostile_link(scene, "data", "")
        },
        ..PLAIN
    },
    Attempt {
        name: "lead_the_place_of_a_volume_out_by_dots",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| {
            fs::create_dir(scene.path("volume")).unwrap();
            scene.volume("volume", "/data/place", false);
            symlink("../victim", scene.path("root/data")).unwrap();
            changes(scene, "victim")
        },
        ..PLAIN
    },
    Attempt {
        name: "lead_the_place_of_a_volume_out_of_another_volume",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| {
            fs::create_dir(scene.path("volume")).unwrap();
            fs::create_dir(scene.path("inner")).unwrap();
            symlink(scene.path("victim"), scene.path("volume/link")).unwrap();
            scene.volume("volume", "/data", false);
            scene.volume("inner", "/data/link/place", false);
            changes(scene, "victim")
        },
        ..PLAIN
    },
];

const ANYBODY_NEW_PRIVILEGES: [Case; 3] = [
    root(&[NoNewPrivileges, Seccomp]),
    user(&[NoNewPrivileges, Seccomp]),
    rootless(&[NoNewPrivileges, Seccomp]),
];

