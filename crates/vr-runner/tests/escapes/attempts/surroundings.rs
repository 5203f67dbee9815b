//! Terminals, the network, and other things that programs share.

use crate::scene::random;
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use vr_runner::container::Network;

use super::*;

pub const ATTEMPTS: &[Attempt] = &[
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
        cases: &[
            root(&[UserNamespace, DropCapabilities, Seccomp, HostNameNamespace]),
            user(&[]),
            rootless(&[]),
        ],
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
            if (defined $id) { my $text; shmread($id, $text, 0, 64) and print $text; shmwrite($id, "escaped", 0, 7); }"#,
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
];

/// Newer kernels let nobody but root type into terminals unless this is 1.
fn missing_typing() -> Option<&'static str> {
    let setting = fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti");
    setting.is_ok_and(|value| value.trim() == "0").then_some("dev.tty.legacy_tiocsti")
}

fn host_terminal(scene: &mut Scene) -> Evidence {
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut mode = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    nix::sys::termios::cfmakeraw(&mut mode);
    nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &mode).unwrap();
    scene.stdin = Some(pty.slave.try_clone().unwrap());
    scene.kept.push(pty.master);
    Box::new(move |_, _| rustix::io::ioctl_fionread(&pty.slave).unwrap() > 0)
}

fn shared_memory(scene: &mut Scene) -> Evidence {
    scene.set("KEY", 0x5652_0000_u32 + std::process::id());
    scene.on_host(
        "defined shmget($ENV{KEY} + 0, 64, 03666) or die; \
        shmwrite(shmget($ENV{KEY} + 0, 64, 0), $ENV{SECRET}, 0, 64) or die $!",
    );
    Box::new(|scene, outcome| {
        let now = scene.on_host(
            "my $id = shmget($ENV{KEY} + 0, 64, 0); shmread($id, my $text, 0, 64) or die $!; \
            print $text; shmctl($id, 0, 0)",
        );
        outcome.output.contains(&scene.secret) || now.starts_with("escaped")
    })
}

fn message_queue(scene: &mut Scene) -> Evidence {
    scene.set("QUEUE", random());
    // A small one, as there is little room for those of one user.
    scene.on_host(
        "my $queue = call('mq_open', $ENV{QUEUE}, 04102, 0666, pack('q8', 0, 1, 64)); die $! if $queue < 0; \
        call('mq_timedsend', $queue, $ENV{SECRET}, length $ENV{SECRET}, 0, 0) == 0 or die $!",
    );
    Box::new(|scene, outcome| {
        scene.on_host("call('mq_unlink', $ENV{QUEUE}) == 0 or die $!");
        outcome.output.contains(&scene.secret)
    })
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
