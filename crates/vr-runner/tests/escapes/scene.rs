//! One try of an attempt: victims on the "host", a container with the attack in it, and what the host sees afterwards.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;
use vr_common::process::command;
use vr_runner::container::{
    BindMount, Container, ContainerSpec, Credentials, Program, RootFs, Streams, System,
};

use super::defences::Defence;

/// Whose attack it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Root in a container of root's.
    Root,
    /// An ordinary user in a container of root's.
    User,
    /// Root in a container that an ordinary user of the host made.
    Rootless,
}

impl Who {
    pub const ALL: [Self; 3] = [Self::Root, Self::User, Self::Rootless];

    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::User => "user",
            Self::Rootless => "rootless",
        }
    }
}

/// Waits for a victim's next word; false when it ends instead.
fn answers(victim: &Child) -> bool {
    let stdout = victim.stdout.as_ref().unwrap();
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    poll(&mut [PollFd::new(stdout, PollFlags::IN)], Some(&patience)).unwrap();
    let mut word = [0];
    let flags = rustix::fs::fcntl_getfl(stdout).unwrap();
    rustix::fs::fcntl_setfl(stdout, flags | OFlags::NONBLOCK).unwrap();
    rustix::io::read(stdout, &mut word) == Ok(1)
}

/// An ordinary user that no machine has. On the "host", victims of a user's attack belong to the same number.
pub const USER: (u32, u32) = (12345, 12346);

/// The variable of the "host" that no container may know of, and what is in it.
pub const HOST_VARIABLE: &str = "VR_ESCAPES_HOST_VARIABLE";
/// The name of a key in the session keyring of the "host", which holds the value of [`HOST_VARIABLE`].
pub const HOST_KEY: &str = "vr-escapes-key";

/// Everything around one container.
pub struct Scene {
    pub dir: TempDir,
    pub who: Who,
    /// Only in places that the attack has to break into.
    pub secret: String,
    /// For the attack.
    pub variables: BTreeMap<String, String>,
    pub spec: ContainerSpec,
    /// What is seen when not only what is mounted is there.
    pub outside: PathBuf,
    /// The attack runs in a folder that it was only put into with `chroot`, and in no container.
    pub plain_chroot: bool,
    pub stdin: Option<OwnedFd>,
    /// What has to live as long as the container.
    pub kept: Vec<OwnedFd>,
    victims: Vec<Child>,
    mounted: Vec<PathBuf>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        for victim in &mut self.victims {
            let _ = victim.kill();
            let _ = victim.wait();
        }
        for place in self.mounted.iter().rev() {
            // Before the temporary folder is emptied.
            nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    }
}

/// What an attack did.
pub struct Outcome {
    pub output: String,
    /// Why the container did not start.
    pub not_started: Option<String>,
}

impl Scene {
    pub fn new(who: Who, script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, mode| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        make("root", 0o755);
        make("victim", 0o755);
        make("out", 0o777);
        let secret = random();
        fs::write(dir.path().join("victim/secret"), &secret).unwrap();
        let root = RootFs::Directory(dir.path().join("root"));
        let program = Program::new("/usr/bin/perl", ["-e", &whole(script)]);
        let mut spec =
            ContainerSpec { system: System::OfHost, ..ContainerSpec::new("escape", root, program) };
        if who == Who::User {
            spec.user = Credentials { uid: USER.0, gid: USER.1, groups: Vec::new() };
        }
        let mut scene = Self {
            outside: dir.path().join("victim"),
            dir,
            who,
            secret,
            variables: BTreeMap::new(),
            spec,
            plain_chroot: false,
            stdin: None,
            kept: Vec::new(),
            victims: Vec::new(),
            mounted: Vec::new(),
        };
        scene.set("FILE", scene.path("victim/secret").display());
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn set(&mut self, name: &str, value: impl std::fmt::Display) {
        self.variables.insert(name.to_owned(), value.to_string());
    }

    pub fn volume(&mut self, name: &str, target: &str, read_only: bool) {
        self.spec.mounts.push(BindMount { source: self.path(name), target: target.into(), read_only });
    }

    /// Shows a folder of the scene at another place, to the "host" and all it starts.
    pub fn mount_on_host(&mut self, name: &str, place: &Path) {
        if !place.exists() {
            return;
        }
        let source = self.path(name);
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&source), place, None::<&str>, flags, None::<&str>).unwrap();
        self.mounted.push(place.to_owned());
    }

    /// A process of the "host" that waits in the folder of the victims, as the user that the attack seems to be, and
    /// answers each USR1. Its number is in the variable VICTIM.
    pub fn victim(&mut self) -> u32 {
        let answering =
            "$SIG{USR1} = sub { syswrite(STDOUT, 'x') }; syswrite(STDOUT, 'x'); sleep 1000 while 1";
        let mut victim = command("/usr/bin/perl");
        victim.args(["-e", answering, &self.secret]).current_dir(self.path("victim"));
        victim.env_clear().env("CANARY", "untouched").stdout(Stdio::piped());
        if self.who == Who::User {
            victim.uid(USER.0).gid(USER.1);
        }
        let child = victim.spawn().unwrap();
        let pid = child.id();
        assert!(answers(&child), "a victim that does not begin");
        self.victims.push(child);
        self.set("VICTIM", pid);
        pid
    }

    /// Whether a victim still answers. One that was killed may take a moment to be gone, but does not answer any more.
    pub fn is_alive(&self, pid: u32) -> bool {
        let victim = self.victims.iter().find(|victim| victim.id() == pid).unwrap();
        let signal = nix::sys::signal::Signal::SIGUSR1;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).unwrap();
        answers(victim)
    }

    /// Runs a script as the attacks are written in, but on the "host"; gives what it prints.
    pub fn on_host(&self, script: &str) -> String {
        let mut perl = command("/usr/bin/perl");
        perl.arg("-e").arg(whole(script)).envs(&self.variables).envs(numbers());
        perl.env("SECRET", &self.secret);
        let output = perl.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (said, tried) = said.rsplit_once("\ntried\n").unwrap_or((&said, "no"));
        assert!(tried.is_empty(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said.to_owned()
    }

    /// A block device that holds the secret and nothing else; its numbers are in MAJOR and MINOR, its name in DISK.
    /// It is gone when the scene is.
    pub fn disk(&mut self) -> (u32, u32) {
        let file = self.path("disk");
        let mut content = self.secret.clone().into_bytes();
        content.resize(1 << 20, b' ');
        fs::write(&file, content).unwrap();
        let found = command("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
        let name = String::from_utf8(found.stdout).unwrap().trim().to_owned();
        assert!(!name.is_empty(), "{}", String::from_utf8_lossy(&found.stderr));
        let opened = File::open(&name).unwrap();
        // As it is open, this takes effect once it is closed, however this process ends.
        assert!(command("losetup").arg("-d").arg(&name).status().unwrap().success());
        let number = opened.metadata().unwrap().rdev();
        self.kept.push(opened.into());
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        self.set("MAJOR", major);
        self.set("MINOR", minor);
        self.set("DISK", name.trim_start_matches("/dev/"));
        (major, minor)
    }

    /// A handle that is not closed when a program is run.
    pub fn leave_open(&mut self, path: &Path) -> i32 {
        let fd = rustix::fs::open(path, OFlags::RDONLY, Mode::empty()).unwrap();
        let number = fd.as_raw_fd();
        self.kept.push(fd);
        number
    }

    /// Lets the attack loose, without the given defences.
    pub fn run(&mut self, off: &[Defence]) -> Outcome {
        for defence in off {
            defence.switch_off(self);
        }
        let path = self.path("output");
        let output = File::create(&path).unwrap();
        if self.plain_chroot {
            return self.run_in_chroot();
        }
        let environment = self.variables.iter().map(|(key, value)| (key.clone(), value.clone()));
        for (key, value) in environment.chain(numbers()) {
            self.spec.program.environment.insert(key.into(), value.into());
        }
        let nothing = || File::open("/dev/null").unwrap().into();
        self.spec.streams = Streams::Given {
            stdin: self.stdin.take().unwrap_or_else(nothing),
            stdout: output.try_clone().unwrap().into(),
            stderr: output.into(),
        };
        let empty = || ContainerSpec::new("", RootFs::Directory(PathBuf::new()), Program::default());
        let spec = std::mem::replace(&mut self.spec, empty());
        let not_started = match Container::start(spec) {
            Ok(mut running) => {
                let (_, timed_out) =
                    running.wait_with_output(Some(Duration::from_secs(60)), &mut |_| {}).unwrap();
                assert!(!timed_out, "the attack did not end");
                None
            }
            Err(error) => Some(vr_common::exit::chain(&error)),
        };
        let mut said = Vec::new();
        File::open(&path).unwrap().take(1 << 20).read_to_end(&mut said).unwrap();
        Outcome { output: String::from_utf8_lossy(&said).into_owned(), not_started }
    }

    /// The host's system in the folder, by mounts that nobody else sees.
    fn run_in_chroot(&self) -> Outcome {
        const SCRIPT: &str = "set -e; root=$1; shift; \
            for name in usr bin lib lib64; do \
                if [ -L /$name ]; then ln -s usr/$name $root/$name; \
                elif [ -d /$name ]; then mkdir $root/$name; mount --bind -o ro /$name $root/$name; fi; \
            done; \
            mkdir $root/dev; : > $root/dev/null; exec chroot $root \"$@\"";
        let mut unshare: Command = command("unshare");
        unshare.args(["--mount", "--", "sh", "-c", SCRIPT, "sh"]).arg(self.path("root"));
        unshare.arg("/usr/bin/perl").args(&self.spec.program.arguments);
        unshare.env_clear().env("PATH", Program::PATH).envs(&self.variables).envs(numbers());
        let output = unshare.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        Outcome { output: String::from_utf8_lossy(&said).into_owned(), not_started: None }
    }
}

/// What no attack can guess.
pub fn random() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned()
}

/// A script with what all of them use. It says `tried` at its end, whatever became of what it tried.
fn whole(script: &str) -> String {
    format!(
        r#"
$| = 1;
umask 0;
# Numbers go to the kernel as they are, texts as a copy of them, references to texts as what is to be written to.
sub call {{
    my $name = shift;
    die "no number of $name" unless $ENV{{"SYS_$name"}};
    my @given = map {{ ref $_ ? ${{$_}} . "" : $_ }} @_;
    my $result = syscall($ENV{{"SYS_$name"}} + 0, @given);
    for my $index (0 .. $#_) {{ ${{$_[$index]}} = $given[$index] if ref $_[$index]; }}
    return $result;
}}
# The beginning of a file; nothing when it cannot be read.
sub file {{
    sysopen(my $file, $_[0], 0x800) or return "";
    sysread($file, my $text, 65536);
    return $text;
}}
# Writes to a file that is there.
sub put {{
    sysopen(my $file, $_[0], 1) or return 0;
    return defined syswrite($file, $_[1]);
}}
# Whether a call came as far as the kernel's own code for it: neither refused nor as if there were no such call.
sub reached {{
    my $result = call(@_);
    print "escaped\n" if $result >= 0 || ($! != 1 && $! != 38);
}}
eval {{
{script}
}};
print $@ ? "FAILED: $@" : "\ntried\n";
"#
    )
}

/// The numbers of system calls, as variables for scripts.
fn numbers() -> impl Iterator<Item = (String, String)> {
    macro_rules! numbers {
        ($($name:ident)*) => { [$((stringify!($name).to_owned(), libc::$name.to_string())),*] };
    }
    numbers![
        SYS_acct SYS_add_key SYS_bpf SYS_finit_module SYS_io_uring_setup SYS_kcmp SYS_kexec_load SYS_keyctl
        SYS_mknodat SYS_mount SYS_mount_setattr SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink
        SYS_name_to_handle_at SYS_open_by_handle_at SYS_perf_event_open SYS_personality SYS_pidfd_getfd
        SYS_pidfd_open SYS_pidfd_send_signal SYS_prlimit64 SYS_process_vm_writev SYS_ptrace SYS_reboot
        SYS_request_key SYS_sethostname SYS_setns SYS_settimeofday SYS_socket SYS_swapoff SYS_syslog
        SYS_umount2 SYS_unshare SYS_userfaultfd SYS_ioprio_set SYS_fchmod
    ]
    .into_iter()
}
