//! HTTP over a Unix socket: the connector that the HTTP library lacks.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

/// Connects to one socket, whatever host the request names.
#[derive(Debug)]
pub(super) struct UnixSocketConnector {
    path: PathBuf,
}

impl UnixSocketConnector {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Connector for UnixSocketConnector {
    type Out = UnixSocketTransport;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Self::Out>, Error> {
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        let stream = connect(&self.path).map_err(Error::Io)?;
        Ok(Some(UnixSocketTransport { stream, buffers }))
    }
}

/// Connects without waiting: where the server's backlog is full, a plain connect would wait without end.
pub(super) fn connect(path: &std::path::Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[derive(Debug)]
pub(super) struct UnixSocketTransport {
    stream: UnixStream,
    buffers: LazyBuffers,
}

/// Until when one operation may go on, over as many system calls as it needs.
struct Deadline {
    ends: Option<Instant>,
    timeout: NextTimeout,
}

impl Deadline {
    fn new(timeout: NextTimeout) -> Self {
        // "Never" is a time so long that it cannot be added.
        Self { ends: Instant::now().checked_add(*timeout.after), timeout }
    }

    fn expired(&self) -> Error {
        Error::Timeout(self.timeout.reason)
    }

    /// How long the next system call may wait; never zero, which would mean for ever.
    fn left(&self) -> Result<Option<Duration>, Error> {
        let Some(ends) = self.ends else { return Ok(None) };
        match ends.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(self.expired()),
        }
    }

    /// What a failed call means: try again, or an error.
    fn judge(&self, error: io::Error) -> Result<(), Error> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(self.expired()),
            _ => Err(Error::Io(error)),
        }
    }
}

impl Transport for UnixSocketTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let deadline = Deadline::new(timeout);
        let mut rest = &self.buffers.output()[..amount];
        while !rest.is_empty() {
            self.stream.set_write_timeout(deadline.left()?)?;
            match (&self.stream).write(rest) {
                Ok(0) => return Err(Error::Io(io::ErrorKind::WriteZero.into())),
                Ok(written) => rest = &rest[written..],
                Err(e) => deadline.judge(e)?,
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let deadline = Deadline::new(timeout);
        loop {
            self.stream.set_read_timeout(deadline.left()?)?;
            match (&self.stream).read(self.buffers.input_append_buf()) {
                Ok(amount) => {
                    self.buffers.input_appended(amount);
                    return Ok(amount > 0);
                }
                Err(e) => deadline.judge(e)?,
            }
        }
    }

    /// Never asked for: connections are not kept.
    fn is_open(&mut self) -> bool {
        false
    }
}
