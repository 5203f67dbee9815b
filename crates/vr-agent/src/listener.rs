//! The listening socket: TCP, or a unix socket that only its owner can reach.
//!
//! Knows nothing of what is served on it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tracing::{debug, warn};

use crate::address::ListenAddress;
use crate::files;

/// After how long without a word from the other machine it is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long the other machine may leave what was sent, or that question, unanswered.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// How much of what was sent the kernel keeps for the other side, in bytes, before we have to wait. It would keep
/// megabytes, and nobody would notice for long that nothing is taken any more.
const SEND_BUFFER: usize = 128 * 1024;

/// A connection, whatever it came over.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Where connections come from. A unix socket's file goes away with it.
#[derive(Debug)]
pub enum Listener {
    /// Reachable over the network.
    Tcp(TcpListener),
    /// Reachable for those who may enter its folder.
    Unix(UnixListener, SocketFile),
}

/// What the folder of a unix socket has to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folder<'a> {
    /// Nobody else can enter it. This one belongs to us alone and becomes so if need be; any other has to be so already,
    /// and is made when it is missing.
    Private(&'a Path),
    /// Nobody else can write to it, as with `/run`.
    Ours,
}

impl Listener {
    /// Listens; a unix socket that nobody listens on any more is replaced.
    pub async fn bind(address: &ListenAddress, folder: Folder<'_>) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            ListenAddress::Unix(path) => {
                match folder {
                    Folder::Private(own) => make_private_parent(path, own)?,
                    Folder::Ours => check_parent(path)?,
                }
                remove_dead_socket(path).await?;
                let listener = bind_private(path)?;
                let made = fs::symlink_metadata(path)?;
                let file = SocketFile { path: path.clone(), identity: (made.dev(), made.ino()) };
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// Where it listens, with the port that was really bound.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Self::Unix(_, file) => Ok(ListenAddress::Unix(file.path.clone())),
        }
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Box<dyn Connection>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _): (_, SocketAddr) = listener.accept().await?;
                if let Err(e) = watch_over(&stream) {
                    // It is gone already.
                    debug!("a connection cannot be set up: {e}");
                }
                Ok(Box::new(stream))
            }
            Self::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

/// Has the kernel end a connection whose other machine is gone, also when nothing is said for hours.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    sockopt::set_socket_keepalive(stream, true)?;
    let limit = u32::try_from(LOST_AFTER.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(stream, limit)?)
}

/// Listens on a socket that nobody else could open at any moment: it gets its mode before it gets its name.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    // `Builder` makes the folder with mode 700.
    let aside = tempfile::Builder::new().prefix(".vr").tempdir_in(path.parent().unwrap_or(Path::new("/")))?;
    let new = aside.path().join("s");
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

/// Sees to it that only we and root could put another socket into the place of ours.
fn check_parent(socket: &Path) -> io::Result<()> {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    let there = fs::metadata(folder)?;
    if there.uid() != rustix::process::geteuid().as_raw() && there.uid() != 0 {
        return Err(io::Error::other(format!("{} belongs to somebody else", folder.display())));
    }
    if there.mode() & 0o022 != 0 {
        return Err(io::Error::other(format!("others may write to {}", folder.display())));
    }
    Ok(())
}

/// A unix socket's file, removed on drop unless another one is there by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if ours && let Err(e) = files::remove_if_there(&self.path) {
            warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// Sees to it that only we and root can enter the socket's folder.
fn make_private_parent(socket: &Path, own_folder: &Path) -> io::Result<()> {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let there = fs::metadata(folder)?;
    if there.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("{} belongs to somebody else", folder.display())));
    }
    if there.mode() & 0o077 == 0 {
        return Ok(());
    }
    if folder.canonicalize()? == own_folder {
        return fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
    }
    Err(io::Error::other(format!(
        "{} is open to others (mode {:o}); expected a folder of mode 700",
        folder.display(),
        there.mode() & 0o7777
    )))
}

/// Removes the socket of an agent that died; never one that is listened on, nor another kind of file.
async fn remove_dead_socket(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::other("there is a file of another kind in its place"));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => files::remove_if_there(path),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody else listens there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[tokio::test]
    async fn a_socket_is_private_replaces_a_dead_one_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent/agent.sock");
        let address = ListenAddress::Unix(path.clone());
        let nowhere = Path::new("/nowhere");
        let first = Listener::bind(&address, Folder::Private(nowhere)).await.unwrap();
        assert_eq!(first.address().unwrap(), address);
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let in_use = Listener::bind(&address, Folder::Private(nowhere)).await.unwrap_err();
        assert_eq!(in_use.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = Listener::bind(&address, Folder::Private(nowhere)).await.unwrap();
        // Somebody else's socket is not ours to remove.
        fs::rename(&path, dir.path().join("moved")).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(second);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn where_others_may_read_a_socket_is_private_and_where_they_may_write_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor.sock");
        let address = ListenAddress::Unix(path.clone());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let listener = Listener::bind(&address, Folder::Ours).await.unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        tokio::try_join!(UnixStream::connect(&path), listener.accept()).unwrap();
        drop(listener);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let refused = Listener::bind(&address, Folder::Ours).await.unwrap_err();
        assert!(refused.to_string().contains("others may write to"), "{refused}");
    }

    #[tokio::test]
    async fn files_and_open_folders_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let address = ListenAddress::Unix(path.clone());
        fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&address, Folder::Private(Path::new("/nowhere"))).await.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();

        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let refused = Listener::bind(&address, Folder::Private(Path::new("/nowhere"))).await.unwrap_err();
        assert!(refused.to_string().contains("is open to others (mode 755)"), "{refused}");
        assert_eq!(mode(dir.path()), 0o755);
        let own = dir.path().canonicalize().unwrap();
        let _listener = Listener::bind(&address, Folder::Private(&own)).await.unwrap();
        assert_eq!(mode(dir.path()), 0o700);
    }
}
