//! Packing a folder so that the same files give the same bytes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;

use md5::{Digest, Md5};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, major, minor, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::encoder::Encoder;
use super::{ArchiveError, Compression, LONGEST_PATH, MOST_BYTES, MOST_ENTRIES, TarballKind, xattrs};
use crate::fetch::aside::{AsideFile, folder_of};

/// 1980-01-01T00:00:00Z: the earliest time that zip files can hold, so that apps can still be zipped.
const FIXED_TIME: i64 = 315_532_800;
/// The longest name and link target that fit into a header, in bytes; longer ones get a header of their own.
const FITS_HEADER: usize = 100;
/// The unit in which archives are written, in bytes; two empty ones end them.
const BLOCK: usize = 512;
/// Bytes that are read from a file at once.
const CHUNK: usize = 128 * 1024;

/// How to pack.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// A build's files belong to nobody in particular (0/0); an image keeps owners, device nodes and capabilities.
    pub kind: TarballKind,
    /// Whether every entry gets the time 1980-01-01, or its own in whole seconds.
    pub fixed_time: bool,
    /// The most bytes that all files together may have (default 20 GiB), holes included.
    pub max_bytes: u64,
    /// The most entries (default 2 million).
    pub max_entries: u64,
}

impl PackOptions {
    /// An app's build: times are fixed, so that the same revision gives the same bytes.
    pub fn build() -> Self {
        Self { kind: TarballKind::Build, fixed_time: true, max_bytes: MOST_BYTES, max_entries: MOST_ENTRIES }
    }

    /// An operating system: times are kept, because programs compare those of their files with what they cached.
    pub fn image() -> Self {
        Self { kind: TarballKind::Image, fixed_time: false, ..Self::build() }
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
    /// The size of all files in it together, in bytes, holes included. One with several hard links counts once.
    pub unpacked_bytes: u64,
}

/// Packs everything in `dir`, with the contents at the archive's root, compressed as the name of `tarball` says;
/// gzip and zstd use all cores.
///
/// The same files give the same bytes, on machines with any number of cores: entries are sorted (a folder's
/// before the next of its siblings), and owners and times are fixed where the options say so. Hard links and
/// symbolic links are kept; sockets are left out, and from builds pipes and device nodes too. Holes of sparse
/// files are packed as the zeros they read as. The tarball is written aside and renamed, over an older one.
///
/// Errors: the tarball's name says no compression, it would be inside of `dir`, it cannot be written, something in
/// `dir` cannot be read or changes meanwhile, or exceeds a limit. A file that is too large is not read.
pub fn pack(dir: &Path, tarball: &Path, options: &PackOptions) -> Result<PackSummary, ArchiveError> {
    let root = rustix::fs::open(dir, FOLDER, Mode::empty())
        .map_err(|error| ArchiveError::Open { path: dir.to_owned(), source: error.into() })?;
    if is_inside(tarball, dir) {
        let source = io::Error::other("the tarball would be inside of what is packed");
        return Err(ArchiveError::Place { action: "write", path: tarball.to_owned(), source });
    }
    pack_open(root, dir, tarball, options)
}

/// The same for an open folder, which may have no path at all, such as the root of a mount that is not attached
/// anywhere; one that was opened for its place only (`O_PATH`) will do. Messages call it `shown`. The caller sees
/// to it that the tarball is not inside.
pub fn pack_open(
    root: OwnedFd,
    shown: &Path,
    tarball: &Path,
    options: &PackOptions,
) -> Result<PackSummary, ArchiveError> {
    let write_error = |source| ArchiveError::Place { action: "write", path: tarball.to_owned(), source };
    let compression = Compression::from_name(tarball)
        .ok_or_else(|| ArchiveError::UnknownCompression(tarball.to_owned()))?;
    let root = openat(&root, c".", FOLDER, Mode::empty())
        .map_err(|error| ArchiveError::Open { path: shown.to_owned(), source: error.into() })?;
    let mut aside = AsideFile::create(tarball).map_err(write_error)?;
    let file = aside.file().try_clone().map_err(write_error)?;
    let packed = write_archive(root, file, compression, options);
    let summary = packed.map_err(|(path, failure)| match failure {
        Failure::Pack(source) => ArchiveError::Pack { path: shown.join(path), source },
        Failure::Write(source) => write_error(source),
        Failure::TooLarge(bytes) => {
            ArchiveError::TooLarge { path: shown.join(path), bytes, limit: options.max_bytes }
        }
        Failure::TooMany => ArchiveError::TooMany { path: shown.join(path), limit: options.max_entries },
    })?;
    aside.place().map_err(write_error)?;
    Ok(summary)
}

/// Whether a file that need not be there yet, nor its folder, would be in `dir`.
fn is_inside(file: &Path, dir: &Path) -> bool {
    let folder = std::path::absolute(folder_of(file)).unwrap_or_default();
    let present = folder.ancestors().find_map(|folder| folder.canonicalize().ok());
    matches!((present, dir.canonicalize()), (Some(present), Ok(dir)) if present.starts_with(&dir))
}

/// Why packing ended; becomes an [`ArchiveError`] where the names are known.
enum Failure {
    /// Something about what is packed.
    Pack(io::Error),
    /// Something about the tarball.
    Write(io::Error),
    /// With this file of so many bytes there would be too many of them.
    TooLarge(u64),
    /// There would be too many entries.
    TooMany,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Pack(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Pack(error.into())
    }
}

/// A failure comes with the path of the entry it is about, relative to the root.
fn write_archive(
    root: OwnedFd,
    file: File,
    compression: Compression,
    options: &PackOptions,
) -> Result<PackSummary, (PathBuf, Failure)> {
    let write_failure = |source| (PathBuf::new(), Failure::Write(source));
    let hashed = Hashed { inner: BufWriter::with_capacity(1 << 20, file), hasher: Md5::new(), bytes: 0 };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let encoder = Encoder::new(compression, hashed, threads).map_err(write_failure)?;
    let mut packer = Packer {
        options,
        root: Rc::new(root),
        folder: None,
        encoder,
        hard_links: HashMap::new(),
        chunk: vec![0; CHUNK],
        entries: 0,
        unpacked_bytes: 0,
    };
    // A stack of names, the next one on top: depth first and in order, with no limit but the longest path.
    let mut waiting = list(&packer.root, Path::new("")).map_err(|source| (PathBuf::new(), source.into()))?;
    while let Some((path, kind)) = waiting.pop() {
        match packer.entry(&path, kind) {
            Ok(inside) => waiting.extend(inside),
            Err(failure) => return Err((path, failure)),
        }
    }
    let Packer { mut encoder, entries, unpacked_bytes, .. } = packer;
    encoder.write_all(&[0; 2 * BLOCK]).map_err(write_failure)?;
    let mut hashed = encoder.finish().map_err(write_failure)?;
    hashed.flush().map_err(write_failure)?;
    Ok(PackSummary {
        md5: hex::encode(hashed.hasher.finalize()),
        bytes: hashed.bytes,
        entries,
        unpacked_bytes,
    })
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The entries of an open folder with this path, the last one first.
fn list(folder: &OwnedFd, path: &Path) -> io::Result<Vec<(PathBuf, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not say.
            FileType::Unknown => {
                FileType::from_raw_mode(statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
            }
            kind => kind,
        };
        entries.push((path.join(OsStr::from_bytes(name.to_bytes())), kind));
    }
    entries.sort_unstable_by(|(a, _), (b, _)| b.as_os_str().as_bytes().cmp(a.as_os_str().as_bytes()));
    Ok(entries)
}

struct Packer<'a> {
    options: &'a PackOptions,
    root: Rc<OwnedFd>,
    /// The folder of the last entry: most entries follow others of their folder.
    folder: Option<(PathBuf, Rc<OwnedFd>)>,
    encoder: Encoder<Hashed<BufWriter<File>>>,
    /// The first path of every file that has several.
    hard_links: HashMap<(u64, u64), PathBuf>,
    chunk: Vec<u8>,
    entries: u64,
    unpacked_bytes: u64,
}

impl Packer<'_> {
    fn open_folder(&mut self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        if path.as_os_str().is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some((open, folder)) = &self.folder
            && open == path
        {
            return Ok(Rc::clone(folder));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let folder = Rc::new(openat2(&self.root, path, FOLDER, Mode::empty(), resolve)?);
        self.folder = Some((path.to_owned(), Rc::clone(&folder)));
        Ok(folder)
    }

    /// Packs one entry, and gives what is inside of it, the last one first.
    fn entry(&mut self, path: &Path, kind: FileType) -> Result<Vec<(PathBuf, FileType)>, Failure> {
        let name = path.file_name().unwrap_or_default();
        let parent = self.open_folder(path.parent().unwrap_or(Path::new("")))?;
        match kind {
            FileType::Directory => {
                let folder = openat(&parent, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
                let attributes = xattrs::read(&folder, self.options.kind)?;
                self.append(EntryType::Directory, path, &fstat(&folder)?, 0, &attributes)?;
                let inside = list(&folder, path)?;
                // Its entries come next.
                self.folder = Some((path.to_owned(), Rc::new(folder)));
                Ok(inside)
            }
            FileType::RegularFile => {
                self.file(path, &parent, name)?;
                Ok(Vec::new())
            }
            FileType::Symlink => {
                let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let target = readlinkat(&parent, name, Vec::new())?;
                self.append_link(EntryType::Symlink, path, &stat, target.as_bytes())?;
                Ok(Vec::new())
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo
                if self.options.kind == TarballKind::Image =>
            {
                let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let entry_type = match FileType::from_raw_mode(stat.st_mode) {
                    FileType::CharacterDevice => EntryType::Char,
                    FileType::BlockDevice => EntryType::Block,
                    FileType::Fifo => EntryType::Fifo,
                    _ => return Err(changed()),
                };
                self.append(entry_type, path, &stat, 0, &[])?;
                Ok(Vec::new())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn file(&mut self, path: &Path, parent: &OwnedFd, name: &OsStr) -> Result<(), Failure> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(parent, name, flags, Mode::empty())?);
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(changed());
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
        // Before any of it is read: a file that is one hole may have more bytes than anybody could wait for.
        if size > self.options.max_bytes - self.unpacked_bytes {
            return Err(Failure::TooLarge(size));
        }
        let attributes = xattrs::read(&file, self.options.kind)?;
        self.append(EntryType::Regular, path, &stat, size, &attributes)?;
        self.data(file, size)
    }

    /// Packs a file's bytes, which must be as many as its header says.
    fn data(&mut self, mut file: File, size: u64) -> Result<(), Failure> {
        let mut left = size;
        loop {
            let read = match file.read(&mut self.chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let grew = || io::Error::other("it grew while it was packed");
            left = left.checked_sub(read as u64).ok_or_else(grew)?;
            self.encoder.write_all(&self.chunk[..read]).map_err(Failure::Write)?;
        }
        if left > 0 {
            return Err(io::Error::other("it shrank while it was packed").into());
        }
        self.unpacked_bytes += size;
        self.fill_block(size)
    }

    /// Writes the zeros after data of this size.
    fn fill_block(&mut self, size: u64) -> Result<(), Failure> {
        let used = usize::try_from(size % BLOCK as u64).unwrap_or_default();
        let zeros = &[0; BLOCK][..used.next_multiple_of(BLOCK) - used];
        self.encoder.write_all(zeros).map_err(Failure::Write)
    }

    fn header(&self, entry_type: EntryType, stat: &Stat, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(entry_type);
        header.set_size(size);
        let (uid, gid, modes) = match self.options.kind {
            // Whoever unpacks it as root must not get root's setuid programs of whoever built it.
            TarballKind::Build => (0, 0, 0o1777),
            TarballKind::Image => (stat.st_uid, stat.st_gid, 0o7777),
        };
        header.set_mode(stat.st_mode & modes);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        let time = if self.options.fixed_time { FIXED_TIME } else { stat.st_mtime };
        match u64::try_from(time) {
            Ok(time) => header.set_mtime(time),
            // As GNU does it: before 1970 the field is one large negative number.
            Err(_) => {
                let (front, back) = header.as_old_mut().mtime.split_at_mut(4);
                front.fill(0xff);
                back.copy_from_slice(&time.to_be_bytes());
            }
        }
        if matches!(entry_type, EntryType::Char | EntryType::Block) {
            // These headers have the fields, so this cannot fail.
            let _ = header.set_device_major(major(stat.st_rdev));
            let _ = header.set_device_minor(minor(stat.st_rdev));
        }
        header
    }

    /// Writes everything about an entry but its data.
    fn append(
        &mut self,
        entry_type: EntryType,
        path: &Path,
        stat: &Stat,
        size: u64,
        attributes: &[(String, Vec<u8>)],
    ) -> Result<(), Failure> {
        if !attributes.is_empty() {
            let fields: Vec<(String, &[u8])> = attributes
                .iter()
                .map(|(name, value)| (format!("{}{name}", xattrs::PAX_PREFIX), value.as_slice()))
                .collect();
            let mut builder = Builder::new(Vec::new());
            builder.append_pax_extensions(fields.iter().map(|(name, value)| (name.as_str(), *value)))?;
            self.encoder.write_all(builder.get_ref()).map_err(Failure::Write)?;
        }
        let header = self.header(entry_type, stat, size);
        let mut name = path.as_os_str().as_bytes().to_vec();
        if entry_type == EntryType::Directory {
            name.push(b'/');
        }
        self.append_raw(header, &name, None)
    }

    fn append_link(
        &mut self,
        entry_type: EntryType,
        path: &Path,
        stat: &Stat,
        target: &[u8],
    ) -> Result<(), Failure> {
        let header = self.header(entry_type, stat, 0);
        self.append_raw(header, path.as_os_str().as_bytes(), Some(target))
    }

    /// Names and targets go in byte for byte: the usual functions tidy them up, and a link's target is not ours to change.
    fn append_raw(&mut self, mut header: Header, name: &[u8], target: Option<&[u8]>) -> Result<(), Failure> {
        if self.entries == self.options.max_entries {
            return Err(Failure::TooMany);
        }
        if name.len() > LONGEST_PATH {
            let reason =
                format!("its path has {} bytes, more than the {LONGEST_PATH} that are unpacked", name.len());
            return Err(io::Error::other(reason).into());
        }
        self.entries += 1;
        if let Some(target) = target {
            let in_header = self.long_or_short(EntryType::GNULongLink, target)?;
            header.as_old_mut().linkname[..in_header.len()].copy_from_slice(in_header);
        }
        let in_header = self.long_or_short(EntryType::GNULongName, name)?;
        header.as_old_mut().name[..in_header.len()].copy_from_slice(in_header);
        self.write_header(header)
    }

    /// Writes a header of its own for a text that is too long; gives the part that the entry's own header holds.
    fn long_or_short<'t>(&mut self, kind: EntryType, text: &'t [u8]) -> Result<&'t [u8], Failure> {
        if text.len() <= FITS_HEADER {
            return Ok(text);
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let size = text.len() as u64 + 1;
        header.set_size(size);
        let name = b"././@LongLink";
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        self.write_header(header)?;
        self.encoder.write_all(text).map_err(Failure::Write)?;
        self.encoder.write_all(&[0]).map_err(Failure::Write)?;
        self.fill_block(size)?;
        Ok(&text[..FITS_HEADER])
    }

    fn write_header(&mut self, mut header: Header) -> Result<(), Failure> {
        header.set_cksum();
        self.encoder.write_all(header.as_bytes()).map_err(Failure::Write)
    }
}

fn changed() -> Failure {
    Failure::Pack(io::Error::other("it changed while it was packed"))
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
