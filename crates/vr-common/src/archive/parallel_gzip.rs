//! Gzip on all cores, with the same bytes on machines with any number of them.
//!
//! The data is cut into blocks of one size. Each is compressed for itself, with the end of the one before it as a
//! dictionary, and ends on a whole byte (a sync flush, RFC 1951 section 3.2.4). One after the other they are one
//! deflate stream, so the file has a single member (RFC 1952), which every gzip reads. Nothing depends on which
//! thread compressed what. Must not know what the data is.
//!
//! Decision: this is written here because `gzp`, the crate for it (2.0.4), gives other bytes with one thread than
//! with several, has dictionaries only with zlib in C, and brings a logger, channels and processor affinity.

use std::io::{self, Write};
use std::mem;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// Bytes that are compressed at once. A change changes the bytes of every tarball.
const BLOCK: usize = 256 * 1024;
/// How far back deflate looks, in bytes.
const WINDOW: usize = 32 * 1024;
/// How many blocks may wait besides two for each thread, so that none stands still when another one is held up.
const WAITING: usize = 16;
/// Deflated, no name, no time, on an unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Data to compress, after the dictionary for it.
#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    dictionary: usize,
    is_last: bool,
}

struct Compressed {
    bytes: Vec<u8>,
    crc: Crc,
}

struct Job {
    block: Block,
    done: SyncSender<io::Result<Compressed>>,
}

struct Queues {
    to_compress: Sender<Job>,
    /// Where the results will come from, in the order of the blocks. Its bound is that of all memory used.
    to_write: SyncSender<Receiver<io::Result<Compressed>>>,
}

/// Compresses what is written to it, and writes it to another writer on a thread of its own. Dropping it ends the
/// threads.
pub(super) struct ParallelGzip<W> {
    block: Block,
    /// Gone once it ended, well or not.
    queues: Option<Queues>,
    compressors: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<io::Result<W>>>,
}

impl<W: Write + Send + 'static> ParallelGzip<W> {
    /// Starts so many threads that compress, at least one, and one that writes.
    pub fn start(writer: W, threads: usize) -> io::Result<Self> {
        Self::start_with(writer, threads, compress)
    }

    fn start_with(
        writer: W,
        threads: usize,
        compress: fn(&Block) -> io::Result<Compressed>,
    ) -> io::Result<Self> {
        let threads = threads.max(1);
        let (to_compress, jobs) = channel::<Job>();
        let (to_write, in_order) = sync_channel(2 * threads + WAITING);
        let mut gzip = Self {
            block: Block::default(),
            queues: Some(Queues { to_compress, to_write }),
            compressors: Vec::new(),
            writer: None,
        };
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..threads {
            let jobs = Arc::clone(&jobs);
            let work = move || {
                while let Some(job) = next_job(&jobs) {
                    // With nobody left to write it, it is not needed.
                    let _ = job.done.send(compress(&job.block));
                }
            };
            gzip.compressors.push(thread::Builder::new().name("compress".to_owned()).spawn(work)?);
        }
        let write = move || write_in_order(writer, &in_order);
        gzip.writer = Some(thread::Builder::new().name("write".to_owned()).spawn(write)?);
        Ok(gzip)
    }

    /// Compresses and writes the rest; gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.hand_over(true)?;
        self.end()
    }

    fn hand_over(&mut self, is_last: bool) -> io::Result<()> {
        let next = self.block.next();
        let block = Block { is_last, ..mem::replace(&mut self.block, next) };
        let Some(queues) = &self.queues else { return Err(ended()) };
        let (done, result) = sync_channel(1);
        if queues.to_write.send(result).is_ok() && queues.to_compress.send(Job { block, done }).is_ok() {
            return Ok(());
        }
        // The thread that writes knows why.
        Err(self.end().err().unwrap_or_else(ended))
    }

    fn end(&mut self) -> io::Result<W> {
        self.queues = None;
        let writer = self.writer.take().ok_or_else(ended)?;
        writer.join().unwrap_or_else(|_| Err(ended()))
    }
}

impl<W: Write + Send + 'static> Write for ParallelGzip<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // Only now is it known that it is not the last one.
        if self.block.room() == 0 {
            self.hand_over(false)?;
        }
        let length = data.len().min(self.block.room());
        self.block.bytes.extend_from_slice(&data[..length]);
        Ok(length)
    }

    /// Does nothing: where blocks end depends on the data alone.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W> Drop for ParallelGzip<W> {
    fn drop(&mut self) {
        self.queues = None;
        for thread in mem::take(&mut self.compressors) {
            let _ = thread.join();
        }
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Block {
    fn room(&self) -> usize {
        self.dictionary + BLOCK - self.bytes.len()
    }

    /// The empty block after this one.
    fn next(&self) -> Self {
        let dictionary = self.bytes.len().min(WINDOW);
        let mut bytes = Vec::with_capacity(dictionary + BLOCK);
        bytes.extend_from_slice(&self.bytes[self.bytes.len() - dictionary..]);
        Self { bytes, dictionary, is_last: false }
    }
}

fn ended() -> io::Error {
    io::Error::other("a thread that compresses or writes ended early")
}

fn next_job(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn compress(block: &Block) -> io::Result<Compressed> {
    // A new one each time, which knows nothing of the blocks that this thread had before.
    let mut stream = Compress::new(Compression::default(), false);
    let (dictionary, data) = block.bytes.split_at(block.dictionary);
    if !dictionary.is_empty() {
        stream.set_dictionary(dictionary)?;
    }
    let flush = if block.is_last { FlushCompress::Finish } else { FlushCompress::Sync };
    // More than what cannot be compressed takes.
    let mut bytes = Vec::with_capacity(data.len() + data.len() / 8 + 128);
    let status = stream.compress_vec(data, &mut bytes, flush)?;
    let is_whole = stream.total_in() == data.len() as u64 && bytes.len() < bytes.capacity();
    if !is_whole || (block.is_last && status != Status::StreamEnd) {
        return Err(io::Error::other("compressed data is larger than it can be"));
    }
    let mut crc = Crc::new();
    crc.update(data);
    Ok(Compressed { bytes, crc })
}

fn write_in_order<W: Write>(
    mut writer: W,
    in_order: &Receiver<Receiver<io::Result<Compressed>>>,
) -> io::Result<W> {
    let mut crc = Crc::new();
    writer.write_all(&HEADER)?;
    for result in in_order {
        let compressed = result.recv().map_err(|_| ended())??;
        writer.write_all(&compressed.bytes)?;
        crc.combine(&compressed.crc);
    }
    writer.write_all(&crc.sum().to_le_bytes())?;
    // The size modulo 2³².
    writer.write_all(&crc.amount().to_le_bytes())?;
    Ok(writer)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Text with repetitions near and far, always the same.
    fn text(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut text = Vec::with_capacity(length + 40);
        while text.len() < length {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text.extend_from_slice(format!("line {} of {}\n", state >> 20, state >> 28).as_bytes());
        }
        text.truncate(length);
        text
    }

    fn packed(data: &[u8], threads: usize, at_once: usize) -> Vec<u8> {
        let mut gzip = ParallelGzip::start(Vec::new(), threads).unwrap();
        for piece in data.chunks(at_once) {
            gzip.write_all(piece).unwrap();
            gzip.flush().unwrap();
        }
        gzip.finish().unwrap()
    }

    #[test]
    fn the_bytes_depend_on_the_data_only_and_are_one_member() {
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 7 * BLOCK + 12_345] {
            let data = text(size);
            let one = packed(&data, 1, 10_000);
            for (threads, at_once) in [(2, 7 * BLOCK), (5, 333), (16, BLOCK)] {
                assert!(packed(&data, threads, at_once) == one, "{size} bytes, {threads} threads");
            }
            // This decoder stops after the first member.
            let mut decoder = flate2::bufread::GzDecoder::new(&one[..]);
            let mut unpacked = Vec::new();
            decoder.read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == data, "{size}");
            assert!(decoder.into_inner().is_empty(), "{size}");
        }
    }

    #[test]
    fn blocks_cost_next_to_nothing() {
        let data = text(8 * BLOCK);
        let mut whole = flate2::write::GzEncoder::new(Vec::new(), Compression::default());
        whole.write_all(&data).unwrap();
        let whole = whole.finish().unwrap();
        let ours = packed(&data, 2, BLOCK);
        assert!(ours.len() < whole.len() * 1005 / 1000, "{} bytes instead of {}", ours.len(), whole.len());
    }

    #[test]
    fn noise_that_cannot_be_compressed_comes_through() {
        let noise: Vec<u8> = (0..2 * BLOCK + 99).map(|_| rand::random()).collect();
        let mut unpacked = Vec::new();
        flate2::bufread::GzDecoder::new(&packed(&noise, 3, BLOCK)[..]).read_to_end(&mut unpacked).unwrap();
        assert!(unpacked == noise);
    }

    /// Takes some writes and then no more.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_error_of_the_writer_comes_back_wherever_it_happens() {
        let data = vec![7; 40 * BLOCK];
        for writes in [0, 1, 2, 20, 41, 42] {
            let mut gzip = ParallelGzip::start(Full(writes), 2).unwrap();
            let result = gzip.write_all(&data).and_then(|()| gzip.finish());
            assert_eq!(result.err().unwrap().kind(), io::ErrorKind::StorageFull, "after {writes} writes");
        }
        let mut gzip = ParallelGzip::start(Full(0), 1).unwrap();
        assert!(gzip.write_all(&data).is_err());
        // Nor does it go on afterwards.
        assert!(gzip.write_all(&data).is_err());
        assert!(gzip.finish().is_err());
    }

    #[test]
    fn a_panic_of_a_thread_is_an_error() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        for (threads, compress) in
            [
                (1, (|_| panic!("the only thread")) as fn(&Block) -> io::Result<Compressed>),
                (3, |_| panic!("every thread")),
                (3, |block| {
                    if CALLS.fetch_add(1, Ordering::Relaxed) == 5 { panic!("once") } else { compress(block) }
                }),
            ]
        {
            let mut gzip = ParallelGzip::start_with(io::sink(), threads, compress).unwrap();
            let result = gzip.write_all(&vec![7; 40 * BLOCK]).and_then(|()| gzip.finish().map(drop));
            assert_eq!(result.unwrap_err().to_string(), "a thread that compresses or writes ended early");
        }
    }

    #[test]
    fn one_that_is_dropped_leaves_no_thread_behind() {
        struct Alive {
            _held: Arc<()>,
        }

        impl Write for Alive {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                Ok(data.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let alive = Arc::new(());
        let mut gzip = ParallelGzip::start(Alive { _held: Arc::clone(&alive) }, 2).unwrap();
        gzip.write_all(&vec![7; 10 * BLOCK]).unwrap();
        drop(gzip);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
