//! A real Debian for tests on OS images: what `cargo xtask test` prepared once, and a server of its packages.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The tarball of the base system, in [`Debian::folder`].
pub const BASE: &str = "base.tar.gz";
/// The folder of the packages that are not in the base, with their index, in [`Debian::folder`].
pub const PACKAGES: &str = "packages";

/// How long a client of the server may take for its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// A Debian that was prepared.
#[derive(Debug)]
pub struct Debian {
    folder: PathBuf,
}

impl Debian {
    /// Where it is kept, prepared or not.
    pub fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("test-image")
    }

    /// The Debian of this workspace.
    ///
    /// # Panics
    /// When there is none.
    pub fn prepared() -> Self {
        let folder = Self::folder();
        assert!(
            folder.join(BASE).is_file(),
            "{} is not there: run `cargo xtask test` once, as root and with a network, to prepare it",
            folder.display()
        );
        Self { folder }
    }

    /// The tarball of the base system.
    pub fn base(&self) -> PathBuf {
        self.folder.join(BASE)
    }

    /// Serves the packages as a flat repository.
    pub fn serve(&self) -> PackageServer {
        PackageServer::start(self.folder.join(PACKAGES)).expect("a server of packages")
    }
}

/// Answers apt's requests on a free port of the loopback interface until it is dropped.
#[derive(Debug)]
pub struct PackageServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PackageServer {
    fn start(folder: PathBuf) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                // A client that went away is its own concern; apt says what it did not get.
                let _gone = client.and_then(|client| answer(client, &folder));
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Its URL, as `sources.list` has it before the `./` of a flat repository.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for PackageServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread looks at the flag when somebody comes.
        if TcpStream::connect(self.address).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _panicked = thread.join();
        }
    }
}

/// Answers one request with a file of the folder, and closes the connection.
fn answer(mut client: TcpStream, folder: &Path) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(&client).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let (status, body) = match fs::read(folder.join(name)) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    client.write_all(head.as_bytes())?;
    client.write_all(&body)
}
