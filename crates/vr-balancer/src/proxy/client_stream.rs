//! A client's socket as the rest of the proxy sees it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::proxy_protocol::{self, Parsed};
use super::socket::Socket;

/// What HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much is read at once while it is not known what is spoken.
const FIRST_READ: usize = 1024;

/// A client's socket that can be looked at before it is read, and that fails when the client takes nothing for too
/// long; otherwise one that stopped reading would hold its node for ever.
pub(super) struct ClientStream {
    stream: Socket,
    /// Read already, and not yet handed on.
    ahead: Vec<u8>,
    handed_on: usize,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl ClientStream {
    pub(super) fn new(stream: Socket, patience: Duration) -> Self {
        Self { stream, ahead: Vec::new(), handed_on: 0, patience, waiting: None }
    }

    /// Reads more ahead; false at the end.
    async fn read_ahead(&mut self) -> io::Result<bool> {
        self.ahead.reserve_exact(FIRST_READ);
        Ok(self.stream.read_buf(&mut self.ahead).await? > 0)
    }

    /// Reads the header of the PROXY protocol, and says who the client is if the header does.
    pub(super) async fn introduction(&mut self) -> io::Result<Option<SocketAddr>> {
        let malformed = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
        loop {
            match proxy_protocol::parse(&self.ahead) {
                Parsed::Header { client, length } => {
                    self.ahead.drain(..length);
                    return Ok(client);
                }
                Parsed::Malformed(reason) => return Err(malformed(reason)),
                Parsed::Incomplete if self.ahead.len() > proxy_protocol::LONGEST => {
                    return Err(malformed("a header of the PROXY protocol has no end"));
                }
                Parsed::Incomplete => {}
            }
            if !self.read_ahead().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Whether the client speaks HTTP/2 without having been asked. Returns with the first bytes that tell.
    pub(super) async fn is_http2(&mut self) -> io::Result<bool> {
        loop {
            let known = self.ahead.len().min(PREFACE.len());
            if known > 0 && self.ahead[..known] != PREFACE[..known] {
                return Ok(false);
            }
            if known == PREFACE.len() {
                return Ok(true);
            }
            if !self.read_ahead().await? {
                return Ok(false);
            }
        }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let patience = self.patience;
        let sleep = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let rest = &this.ahead[this.handed_on..];
        let taken = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..taken]);
        this.handed_on += taken;
        if this.handed_on == this.ahead.len() {
            this.ahead = Vec::new();
            this.handed_on = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
