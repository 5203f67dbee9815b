//! Packing a folder so that the same files give the same bytes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, major, minor, openat, openat2,
    readlinkat, statat,
};
use tar::{Builder, EntryType, Header};

use super::{ArchiveError, Compression, TarballKind, xattrs};
use crate::fetch::aside::{AsideFile, folder_of};

/// 1980-01-01T00:00:00Z: the earliest time that zip files can hold, so that apps can still be zipped.
const FIXED_TIME: u64 = 315_532_800;
/// The longest name and link target that fit into a header, in bytes; longer ones get a header of their own.
const FITS_HEADER: usize = 100;

/// How to pack.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// A build's files belong to nobody in particular (0/0); an image keeps owners, device nodes and capabilities.
    pub kind: TarballKind,
    /// Whether every entry gets the time 1980-01-01, or its own in whole seconds.
    pub fixed_time: bool,
}

impl PackOptions {
    /// An app's build: times are fixed, so that the same revision gives the same bytes.
    pub fn build() -> Self {
        Self { kind: TarballKind::Build, fixed_time: true }
    }

    /// An operating system: times are kept, because programs compare those of their files with what they cached.
    pub fn image() -> Self {
        Self { kind: TarballKind::Image, fixed_time: false }
    }
}

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackSummary {
    /// The md5 sum of the tarball, in lower-case hexadecimal digits.
    pub md5: String,
    /// The size of the tarball in bytes.
    pub bytes: u64,
    /// How many files, folders and links are in it.
    pub entries: u64,
}

/// Packs everything in `dir`, with the contents at the archive's root, compressed as the name of `tarball` says.
///
/// The same files give the same bytes: entries are sorted (a folder's before the next of its siblings), and owners and
/// times are fixed where the options say so. Hard links and symbolic links are kept; sockets are left out, and from
/// builds pipes and device nodes too. The tarball is written aside and renamed, over an older one.
pub fn pack(dir: &Path, tarball: &Path, options: &PackOptions) -> Result<PackSummary, ArchiveError> {
    let write_error = |source| ArchiveError::Place { action: "write", path: tarball.to_owned(), source };
    let compression = Compression::from_name(tarball)
        .ok_or_else(|| ArchiveError::UnknownCompression(tarball.to_owned()))?;
    let root = rustix::fs::open(dir, FOLDER, Mode::empty())
        .map_err(|error| ArchiveError::Open { path: dir.to_owned(), source: error.into() })?;
    let mut aside = AsideFile::create(tarball).map_err(write_error)?;
    if let (Ok(inside), Ok(around)) = (folder_of(tarball).canonicalize(), dir.canonicalize())
        && inside.starts_with(around)
    {
        return Err(write_error(io::Error::other("the tarball would be inside of what is packed")));
    }

    let summary = write_archive(dir, root, tarball, aside.file(), compression, options)?;
    aside.place().map_err(write_error)?;
    Ok(summary)
}

fn write_archive(
    dir: &Path,
    root: OwnedFd,
    tarball: &Path,
    file: &mut File,
    compression: Compression,
    options: &PackOptions,
) -> Result<PackSummary, ArchiveError> {
    let write_error = |source| ArchiveError::Place { action: "write", path: tarball.to_owned(), source };
    let pack_error = |path: &Path, source| ArchiveError::Pack { path: dir.join(path), source };
    let hashed = Hashed { inner: BufWriter::with_capacity(1 << 20, file), hasher: Md5::new(), bytes: 0 };
    let encoder = Encoder::new(compression, hashed).map_err(write_error)?;
    let mut packer =
        Packer { options, root, builder: Builder::new(encoder), hard_links: HashMap::new(), entries: 0 };
    // A stack of names, the next one on top: depth first and in order, with no limit but the longest path.
    let mut waiting = packer.list(Path::new("")).map_err(|source| pack_error(Path::new(""), source))?;
    while let Some(path) = waiting.pop() {
        let inside = packer.entry(&path).map_err(|source| pack_error(&path, source))?;
        waiting.extend(inside);
    }
    let (entries, mut hashed) = packer.finish().map_err(write_error)?;
    hashed.flush().map_err(write_error)?;
    Ok(PackSummary { md5: hex::encode(hashed.hasher.finalize()), bytes: hashed.bytes, entries })
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

struct Packer<'a, W: Write> {
    options: &'a PackOptions,
    root: OwnedFd,
    builder: Builder<Encoder<W>>,
    /// The first path of every file that has several.
    hard_links: HashMap<(u64, u64), PathBuf>,
    entries: u64,
}

impl<W: Write> Packer<'_, W> {
    /// Ends the archive; gives the number of entries and what it was written to.
    fn finish(self) -> io::Result<(u64, W)> {
        let Self { builder, entries, .. } = self;
        Ok((entries, builder.into_inner()?.finish()?))
    }

    /// The entries of a folder, the last one first.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.open_folder(folder)?)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(folder.join(OsStr::from_bytes(name)));
            }
        }
        names.sort_unstable_by(|a, b| b.as_os_str().as_bytes().cmp(a.as_os_str().as_bytes()));
        Ok(names)
    }

    fn open_folder(&self, folder: &Path) -> io::Result<OwnedFd> {
        let path = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.root, path, FOLDER, Mode::empty(), resolve)?)
    }

    /// Packs one entry, and gives what is inside of it, the last one first.
    fn entry(&mut self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let name = path.file_name().unwrap_or_default();
        let parent = self.open_folder(path.parent().unwrap_or(Path::new("")))?;
        let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inside = self.list(path)?;
                let attributes = xattrs::read(self.open_folder(path)?, self.options.kind)?;
                self.append(EntryType::Directory, path, &stat, 0, &attributes, io::empty())?;
                Ok(inside)
            }
            FileType::RegularFile => {
                self.file(path, &parent, name)?;
                Ok(Vec::new())
            }
            FileType::Symlink => {
                let target = readlinkat(&parent, name, Vec::new())?;
                self.append_link(EntryType::Symlink, path, &stat, target.as_bytes())?;
                Ok(Vec::new())
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo)
                if self.options.kind == TarballKind::Image =>
            {
                let entry_type = match kind {
                    FileType::CharacterDevice => EntryType::Char,
                    FileType::BlockDevice => EntryType::Block,
                    _ => EntryType::Fifo,
                };
                self.append(entry_type, path, &stat, 0, &[], io::empty())?;
                Ok(Vec::new())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn file(&mut self, path: &Path, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(parent, name, flags, Mode::empty())?);
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it changed while it was packed"));
        }
        if stat.st_nlink > 1 {
            let identity = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.hard_links.get(&identity) {
                let target = first.as_os_str().as_bytes().to_vec();
                return self.append_link(EntryType::Link, path, &stat, &target);
            }
            self.hard_links.insert(identity, path.to_owned());
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let attributes = xattrs::read(&file, self.options.kind)?;
        let mut whole = Exactly { file, left: size };
        self.append(EntryType::Regular, path, &stat, size, &attributes, &mut whole)?;
        if whole.file.read(&mut [0])? > 0 {
            return Err(io::Error::other("it grew while it was packed"));
        }
        Ok(())
    }

    fn header(&self, entry_type: EntryType, stat: &Stat, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(entry_type);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_size(size);
        let (uid, gid) = match self.options.kind {
            TarballKind::Build => (0, 0),
            TarballKind::Image => (stat.st_uid, stat.st_gid),
        };
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        let time = if self.options.fixed_time {
            FIXED_TIME
        } else {
            u64::try_from(stat.st_mtime).unwrap_or_default()
        };
        header.set_mtime(time);
        if matches!(entry_type, EntryType::Char | EntryType::Block) {
            // These headers have the fields, so this cannot fail.
            let _ = header.set_device_major(major(stat.st_rdev));
            let _ = header.set_device_minor(minor(stat.st_rdev));
        }
        header
    }

    fn append(
        &mut self,
        entry_type: EntryType,
        path: &Path,
        stat: &Stat,
        size: u64,
        attributes: &[(String, Vec<u8>)],
        data: impl Read,
    ) -> io::Result<()> {
        if !attributes.is_empty() {
            let fields: Vec<(String, &[u8])> = attributes
                .iter()
                .map(|(name, value)| (format!("{}{name}", xattrs::PAX_PREFIX), value.as_slice()))
                .collect();
            self.builder.append_pax_extensions(fields.iter().map(|(name, value)| (name.as_str(), *value)))?;
        }
        let mut header = self.header(entry_type, stat, size);
        self.entries += 1;
        let mut name = path.as_os_str().as_bytes().to_vec();
        if entry_type == EntryType::Directory {
            name.push(b'/');
        }
        self.append_raw(&mut header, &name, None, data)
    }

    fn append_link(
        &mut self,
        entry_type: EntryType,
        path: &Path,
        stat: &Stat,
        target: &[u8],
    ) -> io::Result<()> {
        let mut header = self.header(entry_type, stat, 0);
        self.entries += 1;
        self.append_raw(&mut header, path.as_os_str().as_bytes(), Some(target), io::empty())
    }

    /// Names and targets go in byte for byte: the usual functions tidy them up, and a link's target is not ours to change.
    fn append_raw(
        &mut self,
        header: &mut Header,
        name: &[u8],
        target: Option<&[u8]>,
        data: impl Read,
    ) -> io::Result<()> {
        if let Some(target) = target {
            let in_header = self.long_or_short(EntryType::GNULongLink, target)?;
            if let Some(gnu) = header.as_gnu_mut() {
                gnu.linkname[..in_header.len()].copy_from_slice(in_header);
            }
        }
        let in_header = self.long_or_short(EntryType::GNULongName, name)?;
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.name[..in_header.len()].copy_from_slice(in_header);
        }
        header.set_cksum();
        self.builder.append(header, data)
    }

    /// Writes a header of its own for a text that is too long; gives the part that the entry's own header holds.
    fn long_or_short<'t>(&mut self, kind: EntryType, text: &'t [u8]) -> io::Result<&'t [u8]> {
        if text.len() <= FITS_HEADER {
            return Ok(text);
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(text.len() as u64 + 1);
        if let Some(gnu) = header.as_gnu_mut() {
            let name = b"././@LongLink";
            gnu.name[..name.len()].copy_from_slice(name);
        }
        header.set_cksum();
        self.builder.append(&header, text.chain(&[0_u8][..]))?;
        Ok(&text[..FITS_HEADER])
    }
}

/// A file that has as many bytes as its header says; fewer are an error.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for &mut Exactly {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.file.read(&mut into[..most])?;
        if n == 0 {
            return Err(io::Error::other("it shrank while it was packed"));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// Counts and hashes what is written.
struct Hashed<W> {
    inner: W,
    hasher: Md5,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(data)?;
        self.hasher.update(&data[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A compressor, of any kind.
enum Encoder<W: Write> {
    None(W),
    Gzip(flate2::write::GzEncoder<W>),
    Bzip2(bzip2::write::BzEncoder<W>),
    Xz(liblzma::write::XzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    fn new(compression: Compression, writer: W) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(writer),
            // Neither the file's name nor the time get into the stream.
            Compression::Gzip => {
                Self::Gzip(flate2::GzBuilder::new().mtime(0).write(writer, flate2::Compression::default()))
            }
            Compression::Bzip2 => {
                Self::Bzip2(bzip2::write::BzEncoder::new(writer, bzip2::Compression::default()))
            }
            Compression::Xz => Self::Xz(liblzma::write::XzEncoder::new(writer, 6)),
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(writer, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
        })
    }

    fn finish(self) -> io::Result<W> {
        match self {
            Self::None(writer) => Ok(writer),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Bzip2(encoder) => encoder.finish(),
            Self::Xz(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
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
