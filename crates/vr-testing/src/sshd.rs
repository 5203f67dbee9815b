//! A real OpenSSH server with a user of its own, who may have sudo.
//!
//! The server lives in a mount namespace with a copy of `/etc`, so that users, passwords, PAM and sudo rules are the
//! test's own and the machine's are never touched. Everything else, such as `/tmp` and the network, is the machine's.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vr_common::process::command;

use crate::{DEADLINE, until};

const USER: &str = "operator";
/// No user of Debian's has it.
const UID: u32 = 61_234;
/// With all that could go wrong in a shell.
const PASSWORD: &str = "it's \"$HOME\" & 100% \\n";

/// What the server's user may do as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SudoRule {
    /// Nothing.
    Refused,
    /// Everything, with the password.
    WithPassword,
    /// Everything.
    WithoutPassword,
}

/// What kind of server.
#[derive(Debug, Clone)]
pub struct SshdOptions {
    /// What its user may do as root; nothing unless said.
    pub sudo: SudoRule,
    /// Whether the password is asked for in a dialogue (keyboard-interactive, over PAM) instead of taken at once.
    pub dialogue: bool,
    /// Which host keys it has, as `ssh-keygen -t` calls them; ed25519 unless said.
    pub host_keys: Vec<&'static str>,
    /// Where it listens; on the loopback interface unless said.
    pub address: IpAddr,
    /// Its port; a free one unless said.
    pub port: Option<u16>,
    /// More lines of `sshd_config`.
    pub config: String,
    /// More lines of `/etc/sudoers`.
    pub sudoers: String,
    /// A program and its arguments that runs the server, such as `ip netns exec NAME`; none unless said.
    pub within: Vec<OsString>,
}

impl Default for SshdOptions {
    fn default() -> Self {
        Self {
            sudo: SudoRule::Refused,
            dialogue: false,
            host_keys: vec!["ed25519"],
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: None,
            config: String::new(),
            sudoers: String::new(),
            within: Vec::new(),
        }
    }
}

/// The server. It ends with all that it started when this is dropped.
#[derive(Debug)]
pub struct Sshd {
    options: SshdOptions,
    port: u16,
    server: Option<Server>,
    // Goes last: what runs is in it.
    dir: TempDir,
}

#[derive(Debug)]
struct Server {
    child: Child,
    /// The mount namespace, which everybody has who came in over this server.
    namespace: PathBuf,
    /// As long as it is open, no other namespace gets the same number.
    _held: fs::File,
}

impl Sshd {
    /// Starts one, for which the test must be root.
    ///
    /// # Panics
    /// When that is not possible.
    #[track_caller]
    pub fn start(options: SshdOptions) -> Self {
        let dir = tempfile::Builder::new().prefix("vr-sshd-").tempdir().expect("a folder");
        let mut sshd = Self { options, port: 0, server: None, dir };
        sshd.write_files();
        let deadline = Instant::now() + DEADLINE;
        loop {
            sshd.port = sshd.options.port.unwrap_or_else(|| free_port(sshd.options.address));
            match sshd.try_start() {
                Ok(()) => return sshd,
                // Somebody else took the port after it was found free.
                Err(log) if sshd.options.port.is_none() && log.contains("Address already in use") => {
                    assert!(Instant::now() < deadline, "no port stays free");
                }
                Err(log) => panic!("sshd does not start:\n{log}"),
            }
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.options.address
    }

    /// Who may log in, with [`Self::password`] or [`Self::key_file`]. With the key, root may, too.
    pub fn user(&self) -> &'static str {
        USER
    }

    /// The user's password.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// The number of the user and of the user's group.
    pub fn uid(&self) -> u32 {
        UID
    }

    /// The user's home.
    pub fn home(&self) -> PathBuf {
        self.dir().join("home")
    }

    /// A folder for the test's own files, which every user may enter.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A private key (ed25519) that may log in.
    pub fn key_file(&self) -> PathBuf {
        self.dir().join("key")
    }

    /// A `known_hosts` with all its keys.
    pub fn known_hosts(&self) -> PathBuf {
        self.dir().join("known_hosts")
    }

    /// One of its public host keys: the type, the key in base64 and a comment.
    ///
    /// # Panics
    /// When it has none of this kind.
    pub fn host_key(&self, kind: &str) -> String {
        let file = self.dir().join(format!("host_{kind}.pub"));
        fs::read_to_string(&file).unwrap_or_else(|_| panic!("no host key {kind}")).trim().to_owned()
    }

    /// Lets one more public key log in.
    ///
    /// # Panics
    /// When the file cannot be read.
    pub fn authorize(&self, public: &Path) {
        let all = self.dir().join("authorized_keys");
        let keys = fs::read_to_string(&all).unwrap_or_default();
        let key = fs::read_to_string(public).expect("a public key");
        fs::write(&all, format!("{keys}{key}")).expect("a file");
    }

    /// Gives it new host keys of the same kinds; [`Self::known_hosts`] still has the old ones.
    ///
    /// # Panics
    /// When they cannot be made.
    pub fn change_host_keys(&mut self) {
        self.kill();
        self.make_host_keys();
        self.start_again();
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// How many logins it accepted so far.
    pub fn logins(&self) -> usize {
        self.log().lines().filter(|line| line.starts_with("Accepted ") && line.contains(" for ")).count()
    }

    /// The server and everything that was started over it, but for what has a mount namespace of its own.
    ///
    /// # Panics
    /// When `/proc` cannot be read.
    pub fn processes(&self) -> Vec<Pid> {
        let Some(server) = &self.server else { return Vec::new() };
        let inside = |pid: &i32| {
            fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|link| link == server.namespace)
        };
        let names = fs::read_dir("/proc")
            .expect("/proc")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.parse().ok()).filter(inside).map(Pid::from_raw).collect()
    }

    /// Stops the server and everything that was started over it: connections stay, nothing answers any more.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Stops all connections with everything that was started over them, but not the server: it takes new ones.
    pub fn freeze_sessions(&self) {
        let server = self.server.as_ref().map(|server| server.child.id().cast_signed());
        for pid in self.processes().into_iter().filter(|pid| Some(pid.as_raw()) != server) {
            let _gone = kill(pid, Signal::SIGSTOP);
        }
    }

    /// Lets everything go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills the server and everything that was started over it.
    ///
    /// # Panics
    /// When something does not go.
    pub fn kill(&mut self) {
        if self.server.is_none() {
            return;
        }
        until("everything that was started over SSH is gone", || {
            self.signal(Signal::SIGKILL);
            let server = self.server.as_mut();
            let _ended = server.map(|server| server.child.try_wait());
            self.processes().is_empty()
        });
        if let Some(mut server) = self.server.take() {
            let _ended = server.child.wait();
        }
    }

    /// Starts it again on the same port, after [`Self::kill`].
    ///
    /// # Panics
    /// When that is not possible.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.server.is_none(), "it still runs");
        // Another test may have the port for a moment, to connect from.
        let deadline = Instant::now() + DEADLINE;
        while let Err(log) = self.try_start() {
            let taken = log.contains("Address already in use") && Instant::now() < deadline;
            assert!(taken, "sshd does not start:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            let _gone = kill(pid, signal);
        }
    }

    fn write_files(&self) {
        let dir = self.dir();
        // Its user has to get to the home in it.
        fs::set_permissions(dir, Permissions::from_mode(0o711)).expect("a folder of ours");
        fs::create_dir(self.home()).expect("a new folder");
        chown(self.home(), Some(UID), Some(UID)).expect("the tests of SSH need root");
        self.make_host_keys();
        let lines = self.options.host_keys.iter().map(|kind| format!("* {}\n", self.host_key(kind)));
        fs::write(self.known_hosts(), lines.collect::<String>()).expect("a file");
        keygen("ed25519", &self.key_file());
        self.authorize(&self.key_file().with_extension("pub"));

        // Copied into the private /etc.
        let etc = dir.join("etc");
        fs::create_dir_all(etc.join("pam.d")).expect("a new folder");
        let write = |name: &str, text: &str| fs::write(etc.join(name), text).expect("a file");
        let home = self.home();
        write("passwd.more", &format!("{USER}:x:{UID}:{UID}::{}:/bin/bash\n", home.display()));
        write("group.more", &format!("{USER}:x:{UID}:\n"));
        write("shadow.more", &format!("{USER}:{}:19000:0:99999:7:::\n", hashed(PASSWORD)));
        let rule = match self.options.sudo {
            SudoRule::Refused => String::new(),
            SudoRule::WithPassword => format!("{USER} ALL=(ALL:ALL) ALL\n"),
            SudoRule::WithoutPassword => format!("{USER} ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        };
        // As Debian's, but nothing is remembered in the machine's /var and /run.
        let defaults = "Defaults env_reset,use_pty,!lecture,timestamp_timeout=0\n\
            Defaults secure_path=\"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"\n\
            root ALL=(ALL:ALL) ALL\n";
        write("sudoers", &format!("{defaults}{}{rule}", self.options.sudoers));
        fs::set_permissions(etc.join("sudoers"), Permissions::from_mode(0o440)).expect("a file of ours");
        let pam = "auth required pam_unix.so\naccount required pam_unix.so\nsession required pam_permit.so\n";
        for name in ["pam.d/sshd", "pam.d/sudo", "pam.d/other"] {
            write(name, pam);
        }
    }

    fn make_host_keys(&self) {
        for kind in &self.options.host_keys {
            let file = self.dir().join(format!("host_{kind}"));
            let _absent = fs::remove_file(&file);
            keygen(kind, &file);
        }
    }

    fn config(&self) -> String {
        let dir = self.dir().display();
        let dialogue = |yes: bool| if yes == self.options.dialogue { "yes" } else { "no" };
        let keys = self.options.host_keys.iter().map(|kind| format!("HostKey {dir}/host_{kind}\n"));
        format!(
            "{more}\nListenAddress {address}\nPort {port}\nPidFile none\n{keys}AuthorizedKeysFile {dir}/authorized_keys\n\
             StrictModes no\nPermitRootLogin prohibit-password\nUseDNS no\nPrintMotd no\nLogLevel VERBOSE\n\
             UsePAM {with}\nKbdInteractiveAuthentication {with}\nPasswordAuthentication {without}\n",
            more = self.options.config,
            address = self.options.address,
            port = self.port,
            keys = keys.collect::<String>(),
            with = dialogue(true),
            without = dialogue(false),
        )
    }

    /// Starts the server, or says what it said.
    fn try_start(&mut self) -> Result<(), String> {
        let (config, log) = (self.dir().join("config"), self.dir().join("log"));
        fs::write(&config, self.config()).expect("a file");
        let listens = format!("Server listening on {} port {}.", self.options.address, self.port);
        let before = self.log().matches(&listens).count();
        let said = fs::File::create(self.dir().join("said")).expect("a file");
        let mut start = if let [program, arguments @ ..] = self.options.within.as_slice() {
            let mut within = command(program);
            within.args(arguments).arg("unshare");
            within
        } else {
            command("unshare")
        };
        start.args(["--mount", "--propagation", "private", "sh", "-c", START, "sh"]);
        start.arg(self.dir()).stdout(said.try_clone().expect("a file")).stderr(said);
        let mut child = start.spawn().expect("unshare, of util-linux");
        let mut ended = false;
        until("sshd listens or ends", || {
            ended = child.try_wait().expect("a child").is_some();
            ended || fs::read_to_string(&log).is_ok_and(|log| log.matches(&listens).count() > before)
        });
        if ended {
            let said = fs::read_to_string(self.dir().join("said")).unwrap_or_default();
            return Err(said + &self.log());
        }
        let link = format!("/proc/{}/ns/mnt", child.id());
        let (held, namespace) =
            (fs::File::open(&link).expect("it runs"), fs::read_link(&link).expect("it runs"));
        self.server = Some(Server { child, namespace, _held: held });
        Ok(())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What makes the private `/etc` and becomes the server. Debian's service makes `/run/sshd` as well.
const START: &str = r#"
set -e
mkdir -p -m 755 /run/sshd "$1/private"
mount -t tmpfs -o mode=755 tmpfs "$1/private"
cp -a /etc "$1/private/etc"
cd "$1/private/etc"
for file in passwd group shadow; do cat "$1/etc/$file.more" >>"$file"; done
rm -rf pam.d sudoers sudoers.d
cp -a "$1/etc/pam.d" "$1/etc/sudoers" .
rm -f ssh/sshrc environment
mount --bind . /etc
cd /
exec /usr/sbin/sshd -D -f "$1/config" -E "$1/log"
"#;

fn free_port(address: IpAddr) -> u16 {
    // An address of another network namespace cannot be asked here.
    let listener = TcpListener::bind((address, 0)).or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    listener.and_then(|listener| listener.local_addr()).expect("a free port").port()
}

#[track_caller]
fn keygen(kind: &str, file: &Path) {
    run(command("ssh-keygen").args(["-q", "-N", "", "-C", "test", "-t", kind, "-f"]).arg(file));
}

fn hashed(password: &str) -> String {
    run(command("perl").args(["-e", r#"print crypt($ARGV[0], q($6$velociraptor$))"#, password]))
}

/// Runs a program and gives what it said.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().expect("a program of Debian's");
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Debian's client, which asks nobody.
    fn ssh(sshd: &Sshd, user: &str, script: &str) -> crate::Ended {
        let known = format!("UserKnownHostsFile={}", sshd.known_hosts().display());
        let mut ssh = command("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            &known,
            "-o",
            "StrictHostKeyChecking=yes",
            "-i",
        ]);
        ssh.arg(sshd.key_file()).args(["-p", &sshd.port().to_string()]);
        crate::ended(ssh.arg(format!("{user}@{}", sshd.address())).arg(script))
    }

    #[test]
    fn the_ssh_program_gets_in_and_the_machine_stays_as_it_is() {
        let before = fs::read("/etc/passwd").unwrap();
        let mut sshd = Sshd::start(SshdOptions { sudo: SudoRule::WithoutPassword, ..SshdOptions::default() });
        let ended = ssh(&sshd, sshd.user(), "id -un; pwd; sudo -n id -u").expect(0);
        assert_eq!(ended.stdout, format!("operator\n{}\n0\n", sshd.home().display()));
        assert_eq!(ssh(&sshd, "root", "id -u").expect(0).stdout, "0\n");
        assert_eq!(fs::read("/etc/passwd").unwrap(), before);

        sshd.kill();
        ssh(&sshd, sshd.user(), "true").expect(255);
        sshd.start_again();
        ssh(&sshd, sshd.user(), "true").expect(0);
        sshd.change_host_keys();
        assert!(ssh(&sshd, sshd.user(), "true").expect(255).stderr.contains("IDENTIFICATION HAS CHANGED"));
    }

    #[test]
    fn sudo_asks_for_the_password() {
        let sshd = Sshd::start(SshdOptions { sudo: SudoRule::WithPassword, ..SshdOptions::default() });
        ssh(&sshd, sshd.user(), "sudo -n true").expect(1);
        fs::write(sshd.dir().join("password"), format!("{PASSWORD}\n")).unwrap();
        fs::set_permissions(sshd.dir().join("password"), Permissions::from_mode(0o644)).unwrap();
        let script = format!("sudo -S -p '' id -u <{}/password", sshd.dir().display());
        assert_eq!(ssh(&sshd, sshd.user(), &script).expect(0).stdout, "0\n");
    }
}
