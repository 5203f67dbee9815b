//! A network of its own with hosts on it, on one machine: a network namespace for each, joined by a bridge. Cables
//! can be pulled out, and hosts can lose their power.
//!
//! Nothing of the machine itself is changed: the bridge is in a namespace, too, that of the [`Network`]. Namespaces
//! have no names; they are held by file descriptors, and gone with the test's process whatever becomes of it. Needs root,
//! and `ip` of iproute2.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vr_common::process::command;

use crate::wait::wait_for;

/// The interface of a host, as the host sees it.
const INTERFACE: &str = "eth0";
/// Long enough for processes that were killed to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// Namespaces of a network and of mounts, which whoever is in both sees as a machine of its own.
#[derive(Debug)]
struct Place {
    network: File,
    mounts: File,
}

impl Place {
    fn new() -> Self {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces, which need root");
            // What is mounted here is nobody else's; what is unmounted elsewhere is not kept alive here.
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
                .expect("mounts of its own");
            let open = |name: &str| File::open(format!("/proc/thread-self/ns/{name}")).expect("a namespace");
            let place = Self { network: open("net"), mounts: open("mnt") };
            ip(&["link", "set", "lo", "up"]);
            place
        })
    }

    /// Does something in this place. What is started there stays there.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_thread(|| {
            // Without this, the thread's view of files would be that of the whole process, which cannot be in two places.
            unshare(CloneFlags::CLONE_FS).expect("a working directory of its own");
            setns(&self.network, CloneFlags::CLONE_NEWNET).expect("the network");
            setns(&self.mounts, CloneFlags::CLONE_NEWNS).expect("the mounts");
            work()
        })
    }

    /// As `ip` takes it.
    fn shown(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.network.as_raw_fd())
    }

    fn mount_over(&self, source: &Path, target: &Path) {
        self.within(|| {
            mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a mount");
        });
    }
}

/// A thread that enters a namespace never comes back, so it is one for the occasion.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn ip(args: &[&str]) {
    done(command("ip").args(args));
}

fn done(program: &mut Command) {
    let output = program.output().unwrap_or_else(|e| panic!("cannot start {program:?}: {e}"));
    assert!(output.status.success(), "{program:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A network of its own: the server's side of it, and the bridge that all cables end in.
#[derive(Debug)]
pub struct Network {
    place: Place,
    names: PathBuf,
    _folder: tempfile::TempDir,
    hosts: AtomicU8,
}

impl Network {
    /// Where the server is.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 123, 0, 1);

    /// A new one, without any host but the one that the test is on.
    ///
    /// # Panics
    /// When this is not root, or `ip` is missing.
    #[allow(clippy::new_without_default, reason = "making one has an effect")]
    pub fn new() -> Self {
        let place = Place::new();
        let folder = tempfile::Builder::new().prefix("vr-network-").tempdir().expect("a temporary folder");
        let names = folder.path().join("hosts");
        fs::write(&names, "127.0.0.1 localhost\n").expect("the names of hosts");
        place.mount_over(&names, Path::new("/etc/hosts"));
        place.within(|| {
            ip(&["link", "add", "lan", "type", "bridge"]);
            ip(&["addr", "add", &format!("{}/24", Self::ADDRESS), "dev", "lan"]);
            ip(&["link", "set", "lan", "up"]);
        });
        Self { place, names, _folder: folder, hosts: AtomicU8::new(0) }
    }

    /// Does something on the server's side of the network, such as the whole test: what it starts and asks is there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.place.within(work)
    }

    /// Adds a host with an address of its own, which all others find by its name.
    ///
    /// # Panics
    /// When there are too many.
    pub fn host(&self, name: &str) -> NetworkHost {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed);
        assert!(number < 200, "too many hosts");
        let address = Ipv4Addr::new(10, 123, 0, 10 + number);
        let place = Arc::new(Place::new());
        place.mount_over(&self.names, Path::new("/etc/hosts"));
        let cable = format!("to-{number}");
        self.place.within(|| {
            let end = ["peer", "name", INTERFACE, "netns", &place.shown()];
            ip(&[&["link", "add", &cable, "type", "veth"], &end[..]].concat());
            ip(&["link", "set", &cable, "master", "lan", "up"]);
        });
        place.within(|| {
            ip(&["addr", "add", &format!("{address}/24"), "dev", INTERFACE]);
            ip(&["link", "set", INTERFACE, "up"]);
        });
        let known = fs::read_to_string(&self.names).expect("the names of hosts");
        // In place: it is mounted.
        fs::write(&self.names, format!("{known}{address} {name}\n")).expect("the names of hosts");
        let boot_id = self.names.with_file_name(format!("boot-id-{number}"));
        let host =
            NetworkHost { name: name.to_owned(), address, place, cable, boot_id, boots: AtomicU8::new(0) };
        host.boot();
        host.place.mount_over(&host.boot_id, Path::new("/proc/sys/kernel/random/boot_id"));
        host
    }

    /// Pulls a host's cable out. Nothing arrives any more in either direction, and nobody is told.
    pub fn cut_off(&self, host: &NetworkHost) {
        self.place.within(|| ip(&["link", "set", &host.cable, "down"]));
    }

    /// Plugs it in again.
    pub fn heal(&self, host: &NetworkHost) {
        self.place.within(|| ip(&["link", "set", &host.cable, "up"]));
    }
}

/// A host on a [`Network`]. All that runs on it ends with it.
#[derive(Debug)]
pub struct NetworkHost {
    name: String,
    address: Ipv4Addr,
    place: Arc<Place>,
    cable: String,
    boot_id: PathBuf,
    boots: AtomicU8,
}

impl NetworkHost {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the network.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Does something on the host.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.place.within(work)
    }

    /// Starts a program on the host.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&self, program: &mut Command) -> Child {
        self.within(|| program.spawn().unwrap_or_else(|e| panic!("cannot start {program:?}: {e}")))
    }

    /// Has a file system of its own of so many bytes mounted on a folder, for what runs on the host: ext4 in a file.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn small_disk(&self, folder: &Path, bytes: u64) {
        let image = tempfile::NamedTempFile::new().expect("a file for the disk");
        image.as_file().set_len(bytes).expect("a file for the disk");
        done(command("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image.path()));
        // The loop device holds the file, and goes with the last mount.
        self.within(|| done(command("mount").args(["-o", "loop"]).arg(image.path()).arg(folder)));
    }

    /// Fills the file system that a folder is on to the last byte, and keeps it full.
    ///
    /// # Panics
    /// When something else than the lack of space is in the way.
    pub fn fill(&self, folder: &Path) -> FullDisk {
        let (place, path) = (Arc::clone(&self.place), folder.join("filler"));
        let stop = Arc::new(AtomicBool::new(false));
        let (is_stopped, (full, is_full)) = (Arc::clone(&stop), channel());
        let filler = std::thread::spawn(move || {
            place.within(|| {
                let mut file = File::create(&path).expect("a file");
                while !is_stopped.load(Ordering::Relaxed) {
                    // What others give back is taken, too.
                    fill(&mut file);
                    let _nobody_waits = full.send(());
                    std::thread::sleep(Duration::from_millis(1));
                }
                drop(file);
                fs::remove_file(&path).expect("the filler");
            });
        });
        is_full.recv_timeout(PATIENCE).expect("a full disk");
        FullDisk { stop, filler: Some(filler) }
    }

    /// The processes on the host, without those that were put into yet another network.
    pub fn processes(&self) -> Vec<i32> {
        let ours = self.place.network.metadata().expect("a namespace").ino();
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        // A zombie has no namespaces any more.
        pids.filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|there| there.ino() == ours))
            .collect()
    }

    /// Kills everything that runs on the host, without a word before.
    ///
    /// # Panics
    /// When something does not go.
    pub fn lose_power(&self) {
        wait_for("the end of all that ran on the host", PATIENCE, || self.kill_all().then_some(()));
    }

    /// Whether nothing was there to kill.
    fn kill_all(&self) -> bool {
        let processes = self.processes();
        for pid in &processes {
            let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        processes.is_empty()
    }

    /// The kernel of a host that lost its power starts again; what runs on it, somebody has to start.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn boot(&self) {
        let boot = self.boots.fetch_add(1, Ordering::Relaxed);
        let text =
            format!("00000000-0000-4000-8000-0000{:04}{boot:04}\n", u16::from(self.address.octets()[3]));
        fs::write(&self.boot_id, text).expect("a boot id");
    }
}

/// Writes until nothing fits any more, byte by byte at the end: half a block is enough for a small file.
fn fill(file: &mut File) {
    for size in [1 << 20, 1 << 12, 1] {
        let bytes = vec![b'x'; size];
        let error = loop {
            if let Err(error) = file.write_all(&bytes) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }
    // What is only in memory yet has no place on the disk.
    file.sync_all().expect("a full disk");
}

/// A disk that is full until this is dropped.
#[derive(Debug)]
pub struct FullDisk {
    stop: Arc<AtomicBool>,
    filler: Option<JoinHandle<()>>,
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.filler.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || !matches!(ended, Some(Err(_))), "the filler failed");
    }
}

impl Drop for NetworkHost {
    fn drop(&mut self) {
        // Whatever the test did wrong, nothing of it stays.
        let deadline = std::time::Instant::now() + PATIENCE;
        while !self.kill_all() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};

    use super::*;

    /// Whether the host can be reached, by its name.
    fn reaches(network: &Network, host: &NetworkHost, port: u16) -> bool {
        let patience = Duration::from_millis(300);
        network.within(|| {
            let address: SocketAddr = (host.name(), port).to_socket_addrs().unwrap().next().unwrap();
            let Ok(mut stream) = TcpStream::connect_timeout(&address, patience) else { return false };
            stream.set_read_timeout(Some(patience)).unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).is_ok() && said == host.name()
        })
    }

    #[test]
    fn hosts_are_found_by_name_cut_off_and_healed_and_lose_their_power() {
        let network = Network::new();
        let hosts = ["web1", "web2"].map(|name| network.host(name));
        // Two hosts have the same port without being in each other's way.
        for host in &hosts {
            let listener = host.within(|| TcpListener::bind((host.address(), 9002)).unwrap());
            let name = host.name().to_owned();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _gone = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
                }
            });
        }
        let [web1, web2] = &hosts;
        assert!(reaches(&network, web1, 9002) && reaches(&network, web2, 9002));
        network.cut_off(web1);
        assert!(!reaches(&network, web1, 9002) && reaches(&network, web2, 9002));
        network.heal(web1);
        wait_for("the healed host", PATIENCE, || reaches(&network, web1, 9002).then_some(()));

        let id = || web1.within(|| fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap());
        let before = id();
        let mut sleeps = [web1.spawn(command("sleep").arg("4000")), web2.spawn(command("sleep").arg("4000"))];
        assert_eq!(web1.processes(), [i32::try_from(sleeps[0].id()).unwrap()]);
        web1.lose_power();
        web1.boot();
        assert!(!sleeps[0].wait().unwrap().success() && sleeps[1].try_wait().unwrap().is_none());
        assert_ne!(id(), before);
        drop(hosts);
        assert!(!sleeps[1].wait().unwrap().success());
    }

    #[test]
    fn a_disk_of_a_host_fills_up_without_the_machines() {
        let network = Network::new();
        let host = network.host("web1");
        let folder = tempfile::tempdir().unwrap();
        host.small_disk(folder.path(), 8 << 20);
        let full = host.fill(folder.path());
        let write = || fs::write(folder.path().join("other"), "text");
        assert_eq!(host.within(write).unwrap_err().kind(), ErrorKind::StorageFull);
        write().expect("the machine's own disk");
        drop(full);
        host.within(write).unwrap();
    }
}
