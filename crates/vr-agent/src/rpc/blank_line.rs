//! Takes out the empty line that supervisorctl's `tail -f` sends after its request.
//!
//! The HTTP library would keep it for a next request, and as long as it has something to read it does not look whether
//! the caller is still there: a follower of a log that says nothing would stay for ever after its reader is gone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that leaves out the empty line after the head of its first request, if that is a `GET` without a body. HTTP
/// has servers ignore such a line (RFC 9112, section 2.2).
#[derive(Debug)]
pub struct WithoutBlankLine<S> {
    stream: S,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes of `GET ` have been read.
    Method(usize),
    /// In the head, in a line of which that much is known.
    Head(Line),
    /// So many bytes of the empty line have been taken out.
    Blank(usize),
    /// Whatever comes is passed on.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    /// Bytes, without the line's end.
    length: usize,
    /// Whether the line so far is the beginning of `content-length:`, or of `transfer-encoding:`.
    length_header: bool,
    encoding_header: bool,
}

const METHOD: &[u8] = b"GET ";
const BLANK: &[u8] = b"\r\n";
const LENGTH: &[u8] = b"content-length:";
const ENCODING: &[u8] = b"transfer-encoding:";

impl Line {
    const NEW: Self = Self { length: 0, length_header: true, encoding_header: true };

    /// With one more byte; nothing when it is now known that the request has a body.
    fn with(self, byte: u8) -> Option<Self> {
        let lower = byte.to_ascii_lowercase();
        let still = |so_far: bool, header: &[u8]| so_far && header.get(self.length) == Some(&lower);
        let next = Self {
            length: self.length + 1,
            length_header: still(self.length_header, LENGTH),
            encoding_header: still(self.encoding_header, ENCODING),
        };
        let whole = (next.length_header && next.length == LENGTH.len())
            || (next.encoding_header && next.length == ENCODING.len());
        (!whole).then_some(next)
    }
}

impl State {
    /// The state after a byte, and whether the byte is passed on.
    fn step(self, byte: u8) -> (Self, bool) {
        match self {
            Self::Method(read) if byte == METHOD[read] => match read + 1 {
                all if all == METHOD.len() => (Self::Head(Line { length: all, ..Line::NEW }), true),
                some => (Self::Method(some), true),
            },
            Self::Method(_) => (Self::Done, true),
            Self::Head(line) => match byte {
                b'\n' if line.length == 0 => (Self::Blank(0), true),
                b'\n' => (Self::Head(Line::NEW), true),
                b'\r' => (Self::Head(line), true),
                byte => (line.with(byte).map_or(Self::Done, Self::Head), true),
            },
            Self::Blank(read) if byte == BLANK[read] => {
                (if read + 1 == BLANK.len() { Self::Done } else { Self::Blank(read + 1) }, false)
            }
            // Not even the first half of an empty line means something.
            Self::Blank(_) | Self::Done => (Self::Done, true),
        }
    }
}

impl<S> WithoutBlankLine<S> {
    /// Of a connection on which nothing was read yet.
    pub fn new(stream: S) -> Self {
        Self { stream, state: State::Method(0) }
    }

    /// Takes out of `bytes` what is not passed on; gives how many are left at the front.
    fn filter(&mut self, bytes: &mut [u8]) -> usize {
        let mut kept = 0;
        for at in 0..bytes.len() {
            let (next, passed) = self.state.step(bytes[at]);
            self.state = next;
            if passed {
                bytes[kept] = bytes[at];
                kept += 1;
            }
        }
        kept
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WithoutBlankLine<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
            let read = buffer.filled().len() - before;
            if read == 0 || self.state == State::Done {
                return Poll::Ready(Ok(()));
            }
            let kept = self.filter(&mut buffer.filled_mut()[before..]);
            buffer.set_filled(before + kept);
            // Nothing at all would mean that the caller is gone.
            if kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WithoutBlankLine<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// What comes through, written in pieces of one size.
    async fn through(sent: &str, piece: usize) -> String {
        let (mut theirs, ours) = duplex(4096);
        for part in sent.as_bytes().chunks(piece) {
            theirs.write_all(part).await.unwrap();
        }
        drop(theirs);
        let mut read = String::new();
        WithoutBlankLine::new(ours).read_to_string(&mut read).await.unwrap();
        read
    }

    #[tokio::test]
    async fn one_empty_line_after_a_get_is_taken_out_and_nothing_else() {
        let get = "GET /logtail/x/stdout HTTP/1.1\r\nHost: x\r\nContent-Lengths: no\r\n\r\n";
        let post = "POST /RPC2 HTTP/1.1\r\nContent-Length: 4\r\n\r\n\r\n\r\n";
        let with_body = "GET / HTTP/1.1\r\nCONTENT-length: 2\r\n\r\n\r\n";
        let chunked = "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\r\n";
        for piece in [1, 3, 4096] {
            assert_eq!(through(&format!("{get}\r\n"), piece).await, get);
            assert_eq!(through(&format!("{get}\r\n\r\n"), piece).await, format!("{get}\r\n"));
            assert_eq!(through(&format!("{get}\r\n{get}\r\n"), piece).await, format!("{get}{get}\r\n"));
            for same in [get, post, with_body, chunked, "GE", "GET", "\r\n\r\n"] {
                assert_eq!(through(same, piece).await, same);
            }
        }
    }

    #[tokio::test]
    async fn the_end_is_seen_after_the_empty_line() {
        let (mut theirs, ours) = duplex(4096);
        let mut ours = WithoutBlankLine::new(ours);
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut head = [0; 18];
        ours.read_exact(&mut head).await.unwrap();
        theirs.write_all(b"\r\n").await.unwrap();
        drop(theirs);
        assert_eq!(ours.read(&mut head).await.unwrap(), 0);
    }
}
