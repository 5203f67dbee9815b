//! What systemd is told of the agent's life; see sd_notify(3). Without systemd nobody is told anything.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::warn;

/// Requests are taken.
pub const READY: &str = "READY=1";
/// The agent ends.
pub const STOPPING: &str = "STOPPING=1";

/// Tells whoever started the agent, if it asked to be told.
pub fn tell(what: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    let tell = || -> io::Result<()> {
        let address = match socket.as_bytes().split_first() {
            // A name that is no file.
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&socket)?,
        };
        let ours = UnixDatagram::unbound()?;
        ours.set_nonblocking(true)?;
        ours.send_to_addr(what.as_bytes(), &address).map(drop)
    };
    if let Err(e) = tell() {
        warn!("cannot tell the service manager {what}: {e}");
    }
}
