//! The container library itself, as builders of apps and images use it. Needs root.
//!
//! One test after the other in a process without threads, which is what making containers needs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vr_runner::container::{
    BindMount, Container, ContainerError, ContainerSpec, ExitStatus, Limits, Network, Program, RootFs,
    Running, Streams, System,
};

#[path = "container/overlays.rs"]
mod overlays;

type Test = (&'static str, fn());

const TESTS: [Test; 14] = [
    ("a_folder_as_root_is_writable_by_root", a_folder_as_root_is_writable_by_root),
    (
        "without_a_network_there_is_a_loopback_and_nothing_else",
        without_a_network_there_is_a_loopback_and_nothing_else,
    ),
    ("overlays_stack_and_write_to_the_top", overlays_stack_and_write_to_the_top),
    (
        "a_program_that_is_missing_or_not_runnable_is_an_error",
        a_program_that_is_missing_or_not_runnable_is_an_error,
    ),
    ("a_step_that_fails_is_named", a_step_that_fails_is_named),
    ("a_terminal_is_handed_over", a_terminal_is_handed_over),
    ("a_limit_ends_everything", a_limit_ends_everything),
    ("a_limit_also_ends_what_never_stops_talking", a_limit_also_ends_what_never_stops_talking),
    (
        "the_end_does_not_wait_for_others_who_hold_the_output",
        the_end_does_not_wait_for_others_who_hold_the_output,
    ),
    ("the_hosts_device_nodes_stay_as_they_are", the_hosts_device_nodes_stay_as_they_are),
    ("a_dropped_container_is_gone", a_dropped_container_is_gone),
    ("who_wants_too_many_processes_is_told_so", who_wants_too_many_processes_is_told_so),
    ("a_container_full_of_processes_ends_at_once", a_container_full_of_processes_ends_at_once),
    ("a_second_thread_is_refused", a_second_thread_is_refused),
];

fn main() {
    if let Some(dir) = std::env::var_os(overlays::OF_A_USER) {
        return overlays::of_a_user(Path::new(&dir));
    }
    let tests = || TESTS.into_iter().chain(overlays::TESTS);
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if std::env::args().any(|argument| argument == "--list") {
        for (name, _) in tests() {
            println!("{name}: test");
        }
        return;
    }
    let chosen = tests().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| name.contains(w)));
    for (name, test) in chosen {
        // A panic ends the process with a failure and says where.
        test();
        println!("test {name} ... ok");
    }
}

fn shell(root: RootFs, script: &str) -> ContainerSpec {
    ContainerSpec {
        hostname: "a-host-name-that-is-much-longer-than-the-sixty-four-bytes-that-the-kernel-takes".into(),
        streams: Streams::Captured,
        system: System::OfHost,
        ..ContainerSpec::new("test", root, Program::new("/bin/sh", ["-c", script]).env("LANG", "C"))
    }
}

fn host() -> (TempDir, RootFs) {
    let dir = tempfile::tempdir().unwrap();
    let root = RootFs::Directory(dir.path().to_owned());
    (dir, root)
}

fn run(spec: ContainerSpec) -> (ExitStatus, String) {
    let mut output = Vec::new();
    let mut running = Container::start(spec).unwrap();
    let (end, timed_out) = running
        .wait_with_output(Some(Duration::from_secs(60)), &mut |bytes| output.extend_from_slice(bytes))
        .unwrap();
    assert!(!timed_out);
    (end, String::from_utf8_lossy(&output).into_owned())
}

/// A root folder whose system is the host's, by mounts.
fn with_host_system(mut spec: ContainerSpec, root: &Path) -> ContainerSpec {
    for name in ["bin", "lib", "lib64"] {
        let _ = symlink(format!("usr/{name}"), root.join(name));
    }
    spec.system = System::Own;
    spec.mounts.push(BindMount { source: "/usr".into(), target: "/usr".into(), read_only: true });
    spec
}

fn a_folder_as_root_is_writable_by_root() {
    let dir = tempfile::tempdir().unwrap();
    let script = "touch /made && chown 7:7 /made; hostname; id -u; echo $HOME.$LANG.$PATH; echo > /etc/hosts || echo ro; \
                  touch /usr/x || echo ro; umask; cat /proc/1/comm";
    let spec = with_host_system(shell(RootFs::Directory(dir.path().to_owned()), script), dir.path());
    let (end, said) = run(spec);
    assert_eq!(end, ExitStatus::Code(0), "{said}");
    assert!(dir.path().join("made").is_file());
    assert!(said.contains("a-host-name-that-is-much-longer-than-the-sixty-four-bytes-that-t\n"), "{said}");
    assert!(said.contains(&format!(".C.{}\n", Program::PATH)), "{said}");
    assert_eq!(said.matches("ro\n").count(), 2, "{said}");
    assert!(said.contains("vr-init"), "{said}");
}

fn without_a_network_there_is_a_loopback_and_nothing_else() {
    let (_dir, root) = host();
    let mut spec = shell(root, "ls /sys/class/net; cat /sys/class/net/lo/flags");
    spec.network = Network::None;
    // 0x9: up and loopback.
    assert_eq!(run(spec), (ExitStatus::Code(0), "lo\n0x9\n".to_owned()));
}

fn overlays_stack_and_write_to_the_top() {
    // A name that would break a list of mount options.
    let dir = tempfile::Builder::new().prefix("odd,name:with\\signs ").tempdir().unwrap();
    let folder = |name: &str| -> PathBuf {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (top, bottom, upper, work) = (folder("top"), folder("bottom"), folder("upper"), folder("work"));
    fs::write(top.join("file"), "top").unwrap();
    fs::write(bottom.join("file"), "bottom").unwrap();
    fs::write(bottom.join("other"), "other").unwrap();
    let root = RootFs::Overlay { lowers: vec![top.clone(), bottom.clone()], upper: upper.clone(), work };
    let spec = with_host_system(shell(root, "cat /file /other; echo new > /file"), &bottom);
    assert_eq!(run(spec), (ExitStatus::Code(0), "topother".to_owned()));
    assert_eq!(fs::read_to_string(upper.join("file")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(top.join("file")).unwrap(), "top");
}

fn failure(spec: ContainerSpec) -> String {
    Container::start(spec).map(|_| ()).unwrap_err().to_string()
}

fn a_program_that_is_missing_or_not_runnable_is_an_error() {
    let (dir, root) = host();
    let mut spec = shell(root.clone(), "");
    spec.program = Program::new("/no/such/program", [""; 0]);
    assert!(failure(spec).contains("cannot run /no/such/program: No such file"));
    fs::write(dir.path().join("text"), "text").unwrap();
    let mut spec = shell(root.clone(), "");
    spec.program = Program::new("/text", [""; 0]);
    assert!(failure(spec).contains("cannot run /text: Permission denied"));
    let mut spec = shell(root.clone(), "exit 3");
    spec.program.candidates.insert(0, "/no/such/program".into());
    assert_eq!(run(spec).0, ExitStatus::Code(3));
    let mut spec = shell(root.clone(), "");
    spec.program.candidates = vec!["relative".into()];
    assert!(failure(spec).contains("not an absolute path"));
    let mut spec = shell(root, "");
    spec.workdir = "/no/such/folder".into();
    assert!(failure(spec).contains("cannot enter /no/such/folder"));
}

fn a_step_that_fails_is_named() {
    let (dir, root) = host();
    let mut spec = shell(root.clone(), "");
    spec.mounts.push(BindMount { source: "/no/such/source".into(), target: "/x".into(), read_only: false });
    assert!(failure(spec).contains("cannot mount /no/such/source on /x: /no/such/source does not exist"));
    let mut spec = shell(root.clone(), "");
    spec.mounts.push(BindMount { source: "/etc".into(), target: "/proc/x".into(), read_only: false });
    assert!(failure(spec).contains("cannot make the mount point /proc/x"));
    let mut spec = shell(root.clone(), "");
    spec.mounts.push(BindMount { source: "/etc".into(), target: "/.//.".into(), read_only: false });
    assert!(failure(spec).contains("cannot mount /etc on the root itself"));
    let missing = RootFs::Directory(dir.path().join("missing"));
    assert!(failure(shell(missing, "")).contains("missing: No such file"));
    symlink("/", dir.path().join("link")).unwrap();
    let link = RootFs::Directory(dir.path().join("link"));
    assert!(failure(shell(link, "")).contains("cannot open the folder"));
    let empty = RootFs::Overlay { lowers: Vec::new(), upper: "/a".into(), work: "/b".into() };
    assert!(failure(shell(empty, "")).contains("no lower folder"));
    // After all these failures nothing of them is left: neither children nor mounts.
    assert_eq!(nix::sys::wait::waitpid(None, None), Err(nix::errno::Errno::ECHILD));
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(&*dir.path().to_string_lossy()));
}

fn a_terminal_is_handed_over() {
    let (_dir, root) = host();
    let mut spec = shell(root, "tty; stty size; read line; echo got $line; exit 4");
    spec.streams = Streams::Terminal;
    let mut running = Container::start(spec).unwrap();
    let master = running.take_terminal().unwrap();
    assert!(running.take_terminal().is_none());
    rustix::io::write(&master, b"words\n").unwrap();
    assert_eq!(running.wait().unwrap(), ExitStatus::Code(4));
    let mut said = String::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = rustix::io::read(&master, &mut buffer) {
        said.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    assert!(said.contains("/dev/pts/0") && said.contains("got words"), "{said}");
}

fn a_limit_ends_everything() {
    let (_dir, root) = host();
    let spec = shell(root, "trap '' TERM; echo before; sleep 1000 & sleep 1000");
    let mut running = Container::start(spec).unwrap();
    let mut said = Vec::new();
    let (end, timed_out) = running
        .wait_with_output(Some(Duration::from_secs(3)), &mut |bytes| said.extend_from_slice(bytes))
        .unwrap();
    assert_eq!((end, timed_out), (ExitStatus::Signal(9), true));
    assert_eq!(said, b"before\n");
    // Once it ended, the answer stays the same, and signals go nowhere.
    assert_eq!(running.wait().unwrap(), ExitStatus::Signal(9));
    running.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
}

fn a_limit_also_ends_what_never_stops_talking() {
    let (_dir, root) = host();
    let mut running = Container::start(shell(root, "yes & yes & yes & yes & yes")).unwrap();
    let limit = Some(Duration::from_millis(300));
    let (end, timed_out) = running.wait_with_output(limit, &mut |_| {}).unwrap();
    assert_eq!((end, timed_out), (ExitStatus::Signal(9), true));
}

fn the_end_does_not_wait_for_others_who_hold_the_output() {
    let (dir, root) = host();
    let script = "echo before; until [ -e /go ]; do sleep 0.01; done; echo last";
    let mut running = Container::start(shell(root, script)).unwrap();
    // As if the program had handed it to somebody outside.
    let held = fs::File::options().write(true).open(format!("/proc/{}/fd/1", running.program_pid())).unwrap();
    fs::write(dir.path().join("go"), "").unwrap();
    let mut said = Vec::new();
    let limit = Some(Duration::from_secs(20));
    let end = running.wait_with_output(limit, &mut |bytes| said.extend_from_slice(bytes)).unwrap();
    assert_eq!(end, (ExitStatus::Code(0), false));
    assert!(said.starts_with(b"before\n") && said.ends_with(b"last\n"), "{}", String::from_utf8_lossy(&said));
    drop(held);
}

fn the_hosts_device_nodes_stay_as_they_are() {
    let (_dir, root) = host();
    let before = fs::metadata("/dev/full").unwrap();
    // To what they are already, lest a failure of this test break the machine.
    let script = "chmod 666 /dev/full; chown 0:0 /dev/full; echo x > /dev/null && head -c 1 /dev/zero > /dev/null && echo usable";
    let (end, said) = run(shell(root, script));
    assert!(end.success() && said.ends_with("usable\n"), "{said}");
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    let after = fs::metadata("/dev/full").unwrap();
    assert_eq!((before.mode(), before.ctime_nsec()), (after.mode(), after.ctime_nsec()));
}

fn a_dropped_container_is_gone() {
    let (_dir, root) = host();
    let running = Container::start(shell(root, "sleep 1000")).unwrap();
    let (init, program) = (running.pid(), running.program_pid());
    assert_ne!(init, program);
    let exists = |pid: i32| Path::new(&format!("/proc/{pid}")).exists();
    assert!(exists(init) && exists(program));
    let inside = fs::read_to_string(format!("/proc/{program}/status")).unwrap();
    assert!(inside.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t2")), "{inside}");
    drop(running);
    assert!(!exists(init) && !exists(program));
}

fn with_processes(root: RootFs, most: u32, script: &str) -> ContainerSpec {
    let limits = Limits { processes: Some(most), ..Limits::default() };
    ContainerSpec { limits, ..shell(root, script) }
}

fn who_wants_too_many_processes_is_told_so() {
    let (_dir, root) = host();
    let count = "for i in $(seq $MOST); do sleep 1000 & done 2>/dev/null";
    for (most, status, words) in [(9, 0, None), (10, 2, Some("out of processes (limit 10)"))] {
        // The shell is one of them.
        let mut spec = with_processes(root.clone(), 10, count);
        spec.program = spec.program.env("MOST", most.to_string());
        let mut running = Container::start(spec).unwrap();
        assert_eq!(running.out_of_processes(), None);
        assert_eq!(running.wait().unwrap(), ExitStatus::Code(status));
        assert_eq!((running.out_of_processes(), running.out_of_memory()), (words, None), "{most}");
    }
    // Somebody who goes on without is told of, too.
    let mut running = Container::start(with_processes(root, 1, "(true); exit 0")).unwrap();
    running.wait().unwrap();
    assert_eq!(running.out_of_processes(), Some("out of processes (limit 1)"));
}

fn a_container_full_of_processes_ends_at_once() {
    const MOST: u32 = 1000;
    // All of them go on trying.
    let bomb = "exec perl -e '$| = 1; while (1) { defined fork or $said++ or print \"full\\n\" }'";
    let kill: fn(Running) = |mut running| {
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(running.out_of_processes(), Some("out of processes (limit 1000)"));
    };
    for end in [kill, drop] {
        let (_dir, root) = host();
        let mut running = Container::start(with_processes(root, MOST, bomb)).unwrap();
        let output = running.take_output().unwrap();
        let mut said = [0; 4];
        rustix::io::read(&output, &mut said).unwrap();
        assert_eq!(&said, b"full");
        let begun = Instant::now();
        end(running);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        let groups = vr_common::process::command("find")
            .args(["/sys/fs/cgroup", "-name", &format!("test-{}-*", std::process::id())])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&groups.stdout), "");
    }
}

fn a_second_thread_is_refused() {
    let (_dir, root) = host();
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    let error = Container::start(shell(root, "true")).unwrap_err();
    assert!(matches!(error, ContainerError::Threads { threads: 2, .. }), "{error}");
    drop(release);
    let _ = thread.join().unwrap();
}
