//! The ways a tarball can be compressed.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::ArchiveError;
use crate::progress::{Meter, Metered, Progress};

/// How a tarball is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: `.tar`.
    None,
    /// `.gz`, `.tgz`.
    Gzip,
    /// `.bz2`, `.tbz2`, `.tbz`.
    Bzip2,
    /// `.xz`, `.txz`.
    Xz,
    /// `.zst`, `.tzst`.
    Zstd,
}

/// Bytes read from a file at once.
const BUFFER: usize = 128 * 1024;

impl Compression {
    /// What the extension says.
    pub fn from_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "tar" => Some(Self::None),
            "gz" | "tgz" => Some(Self::Gzip),
            "bz2" | "tbz2" | "tbz" => Some(Self::Bzip2),
            "xz" | "txz" => Some(Self::Xz),
            "zst" | "tzst" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// What the first bytes say.
    fn from_magic(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [b'B', b'Z', b'h', ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ if start.get(257..262) == Some(b"ustar") => Some(Self::None),
            _ => None,
        }
    }

    /// What such a tarball is called in messages.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::None => "tar",
            Self::Gzip => "gzip-compressed tar",
            Self::Bzip2 => "bzip2-compressed tar",
            Self::Xz => "xz-compressed tar",
            Self::Zstd => "zstd-compressed tar",
        }
    }

    /// A decoder of everything in `file`, also when several compressed streams follow one another.
    fn decoder(self, file: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
        let file = BufReader::with_capacity(BUFFER, file);
        Ok(match self {
            Self::None => Box::new(file),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
            Self::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(file)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        })
    }
}

/// Opens a tarball for reading; the bytes are those of the tar archive in it.
///
/// How it is compressed is told by its extension, or by its first bytes when the extension says nothing.
pub fn open_tarball(path: &Path) -> Result<Box<dyn Read + Send>, ArchiveError> {
    open_known(path, &Progress::Quiet).map(|(_, reader)| reader)
}

/// The same; who is told how far it is, is told how much of the tarball is read.
pub(super) fn open_known(
    path: &Path,
    progress: &Progress,
) -> Result<(Compression, Box<dyn Read + Send>), ArchiveError> {
    let open_error = |source| ArchiveError::Open { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(open_error)?;
    let metadata = file.metadata().map_err(open_error)?;
    if !metadata.is_file() {
        return Err(open_error(io::Error::other("it is not a file")));
    }
    let compression = match Compression::from_name(path) {
        Some(compression) => compression,
        None => {
            let mut start = Vec::new();
            file.by_ref().take(512).read_to_end(&mut start).map_err(open_error)?;
            file.seek(SeekFrom::Start(0)).map_err(open_error)?;
            Compression::from_magic(&start)
                .ok_or_else(|| ArchiveError::UnknownCompression(path.to_owned()))?
        }
    };
    let meter = Meter::start(progress, &path.to_string_lossy(), Some(metadata.len()));
    let decoder = compression.decoder(Metered::new(file, meter)).map_err(open_error)?;
    Ok((compression, decoder))
}
