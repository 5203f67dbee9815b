//! A TCP connection as HTTP gets it: what is little goes out in one piece.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Pieces that together have at most so many bytes are copied and sent as one: that costs less than the list of them
/// costs the kernel. Nearly every head is so short, and many answers with their head are.
const GATHERED: usize = 2 << 10;

/// A TCP connection.
pub(super) struct Socket(TcpStream);

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut TcpStream> {
        Pin::new(&mut self.get_mut().0)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathered = [0; GATHERED];
        let mut length = 0;
        for slice in slices {
            let Some(room) = gathered.get_mut(length..length + slice.len()) else {
                return self.stream().poll_write_vectored(cx, slices);
            };
            room.copy_from_slice(slice);
            length += slice.len();
        }
        self.stream().poll_write(cx, &gathered[..length])
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn pieces_arrive_whole_and_in_order_however_many_there_are() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (other, _) = listener.accept().await.unwrap();
        let (mut one, mut other) = (Socket::new(stream), Socket::new(other));
        let large = vec![b'x'; GATHERED];
        let writing = async move {
            for pieces in
                [&[b"a".as_slice(), b"", b"b"][..], &[b"c", &large, b"d"], &[&large], &[&large, b"e"]]
            {
                let mut slices: Vec<_> = pieces.iter().map(|piece| io::IoSlice::new(piece)).collect();
                let mut slices = slices.as_mut_slice();
                while !slices.is_empty() {
                    let sent = one.write_vectored(slices).await.unwrap();
                    io::IoSlice::advance_slices(&mut slices, sent);
                }
            }
            one.shutdown().await.unwrap();
        };
        let reading = async move {
            let mut all = Vec::new();
            other.read_to_end(&mut all).await.unwrap();
            all
        };
        let ((), all) = tokio::join!(writing, reading);
        let all = String::from_utf8(all).unwrap();
        let x = "x".repeat(GATHERED);
        assert_eq!(all, format!("abc{x}d{x}{x}e"));
    }
}
