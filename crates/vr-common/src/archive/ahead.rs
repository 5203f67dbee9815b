//! Decompressing on a thread of its own, while the caller writes files.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

/// Bytes that are handed over at once.
const CHUNK: usize = 256 * 1024;
/// How many chunks may be waiting.
const CHUNKS: usize = 8;

/// Reads what another reader gives, which is asked for it in advance. Dropping it ends the thread.
pub(super) struct ReadAhead {
    chunks: Option<Receiver<io::Result<Vec<u8>>>>,
    /// Read chunks, to be filled again.
    emptied: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    used: usize,
    thread: Option<JoinHandle<()>>,
}

impl ReadAhead {
    pub fn start(mut reader: Box<dyn Read + Send>) -> io::Result<Self> {
        let (filled, chunks) = sync_channel(CHUNKS);
        // Room for all that there ever are: nobody waits here.
        let (emptied, empty) = sync_channel::<Vec<u8>>(CHUNKS + 3);
        let work = move || {
            loop {
                let mut chunk = empty.try_recv().unwrap_or_default();
                chunk.resize(CHUNK, 0);
                let read = fill(&mut *reader, &mut chunk);
                let is_last = !matches!(read, Ok(CHUNK));
                let result = read.map(|length| {
                    chunk.truncate(length);
                    chunk
                });
                // With nobody left to read, there is nothing left to do.
                if filled.send(result).is_err() || is_last {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("decompress".to_owned()).spawn(work)?;
        Ok(Self { chunks: Some(chunks), emptied, chunk: Vec::new(), used: 0, thread: Some(thread) })
    }
}

/// Reads until the chunk is full or there is no more. What came before an error is lost with it: it would be of no
/// use.
fn fill(reader: &mut dyn Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < chunk.len() {
        match reader.read(&mut chunk[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

impl Read for ReadAhead {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.used == self.chunk.len() {
            let Some(chunks) = &self.chunks else { return Ok(0) };
            match chunks.recv() {
                Ok(chunk) => {
                    let read = std::mem::replace(&mut self.chunk, chunk?);
                    let _ = self.emptied.try_send(read);
                    self.used = 0;
                }
                // The thread has given everything.
                Err(_) => return Ok(0),
            }
        }
        let length = into.len().min(self.chunk.len() - self.used);
        into[..length].copy_from_slice(&self.chunk[self.used..self.used + length]);
        self.used += length;
        Ok(length)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.chunks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time, and then an error if there is one.
    struct Slow(Vec<u8>, usize, Option<io::Error>);

    impl Read for Slow {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let length = into.len().min(self.0.len() - self.1).min(1000);
            if length == 0
                && let Some(error) = self.2.take()
            {
                return Err(error);
            }
            into[..length].copy_from_slice(&self.0[self.1..self.1 + length]);
            self.1 += length;
            Ok(length)
        }
    }

    #[test]
    fn everything_comes_in_order_whatever_the_sizes() {
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, (CHUNKS + 4) * CHUNK + 77] {
            let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let mut reader = ReadAhead::start(Box::new(Slow(bytes.clone(), 0, None))).unwrap();
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            assert!(got == bytes, "{size}");
            assert_eq!(reader.read(&mut [0; 10]).unwrap(), 0);
        }
    }

    #[test]
    fn an_error_comes_through_and_a_reader_may_be_left_early() {
        let broken = |size| Slow(vec![7; size], 0, Some(io::ErrorKind::UnexpectedEof.into()));
        let mut reader = ReadAhead::start(Box::new(broken(2 * CHUNK + 1))).unwrap();
        let mut got = Vec::new();
        assert_eq!(reader.read_to_end(&mut got).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(got.len(), 2 * CHUNK);
        let mut reader = ReadAhead::start(Box::new(io::repeat(1))).unwrap();
        reader.read_exact(&mut [0; 10]).unwrap();
        drop(reader);
    }
}
