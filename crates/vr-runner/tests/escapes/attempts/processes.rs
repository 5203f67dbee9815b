//! Processes of the host, among them those that make the container.

use crate::scene::HOST_VARIABLE;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use vr_runner::container::{Capabilities, Credentials, Program};

use super::*;

pub const ATTEMPTS: &[Attempt] = &[
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
        name: "limit_init",
        // In an ordinary user's container, init is that user, as everything else is.
        cases: &[root(&[UserNamespace]), user(&[])],
        script: r#"print "escaped\n" if call("prlimit64", 1, 7, pack("Q2", 64, 64), 0) == 0;"#,
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
];

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
