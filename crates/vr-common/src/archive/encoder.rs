//! The compressors, as one.

use std::io::{self, Write};

use super::Compression;
use super::parallel_gzip::ParallelGzip;

/// The most threads for zstd: each of them needs some 20 MiB.
const MOST_ZSTD_THREADS: usize = 16;

/// A compressor, of any kind. The same data gives the same bytes, with any number of threads.
pub(super) enum Encoder<W: Write + Send + 'static> {
    None(W),
    Gzip(ParallelGzip<W>),
    Bzip2(bzip2::write::BzEncoder<W>),
    Xz(liblzma::write::XzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write + Send + 'static> Encoder<W> {
    /// Uses so many threads, at least one, where the kind can use any.
    pub fn new(compression: Compression, writer: W, threads: usize) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(writer),
            Compression::Gzip => Self::Gzip(ParallelGzip::start(writer, threads)?),
            Compression::Bzip2 => {
                Self::Bzip2(bzip2::write::BzEncoder::new(writer, bzip2::Compression::default()))
            }
            Compression::Xz => Self::Xz(liblzma::write::XzEncoder::new(writer, 6)),
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(writer, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                encoder.include_checksum(true)?;
                // One worker gives the same bytes as many, but none gives others.
                let workers = threads.clamp(1, MOST_ZSTD_THREADS);
                encoder.multithread(u32::try_from(workers).unwrap_or(1))?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Writes what is left and gives the writer back.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::None(writer) => Ok(writer),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Bzip2(encoder) => encoder.finish(),
            Self::Xz(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write + Send + 'static> Write for Encoder<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(writer) => writer.write(data),
            Self::Gzip(encoder) => encoder.write(data),
            Self::Bzip2(encoder) => encoder.write(data),
            Self::Xz(encoder) => encoder.write(data),
            Self::Zstd(encoder) => encoder.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(writer) => writer.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Bzip2(encoder) => encoder.flush(),
            Self::Xz(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_threads_of_zstd_gives_the_same_bytes() {
        // Several times what one thread takes at once, in parts that repeat far apart.
        let mut state = 1_u64;
        let data: Vec<u8> = (0..20_000_000_u32)
            .map(|n| {
                let next = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state = if n % 3_000_000 == 0 { 1 } else { next };
                (state >> 60) as u8
            })
            .collect();
        let packed = |threads, at_once| {
            let mut encoder = Encoder::new(Compression::Zstd, Vec::new(), threads).unwrap();
            for piece in data.chunks(at_once) {
                encoder.write_all(piece).unwrap();
            }
            encoder.finish().unwrap()
        };
        let one = packed(1, data.len());
        for (threads, at_once) in [(0, 10_000), (2, 777_777), (5, 4096)] {
            assert!(packed(threads, at_once) == one, "{threads} threads");
        }
    }
}
