//! Unpacking tarballs that may have been made to do harm.
//!
//! Every entry is made by its last name inside of an open folder. Folders are opened from the target's own
//! descriptor in a way in which the kernel refuses symbolic links and `..`; so whatever an archive contains,
//! nothing outside of the target is read, written or linked to.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat,
    fchmod, fchown, fstat, futimens, linkat, mkdirat, openat, openat2, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::ahead::ReadAhead;
use super::compression::{Compression, open_known};
use super::reader::{Member, TarReader};
use super::{ArchiveError, LONGEST_PATH, MOST_BYTES, MOST_ENTRIES, TarballKind, xattrs};
use crate::progress::Progress;

/// Bytes that are copied at once.
const CHUNK: usize = 128 * 1024;
/// The longest target of a symbolic link and the longest single name that Linux knows, in bytes.
const LONGEST_LINK: usize = 4095;
const LONGEST_NAME: usize = 255;
/// The largest value of an extended attribute that Linux takes, in bytes.
const LARGEST_XATTR: usize = 64 * 1024;
/// The bits that give a program its owner's or group's rights.
const SET_ID: u32 = 0o6000;

/// Who owns what is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whom the archive names, by number. Only root can do that; for others everything is their own.
    FromArchive,
    /// One user and group, by number.
    Fixed {
        /// The user's number.
        uid: u32,
        /// The group's number.
        gid: u32,
    },
}

/// How to unpack.
#[derive(Debug, Clone)]
pub struct UnpackOptions {
    /// Decides about modes and extended attributes: a build's folders get at least `rwxr-x---` and its files
    /// at least `rw-rw----`, and capabilities are dropped; an image's are what the archive says.
    pub kind: TarballKind,
    /// Who owns the files.
    pub owner: Owner,
    /// Whether set-user-id and set-group-id bits are kept.
    pub keep_setuid: bool,
    /// The most bytes that all files together may have (default 20 GiB), holes included.
    pub max_bytes: u64,
    /// The most entries (default 2 million).
    pub max_entries: u64,
    /// The longest path of an entry, in bytes (default 4096).
    pub max_path: usize,
    /// The most memory for the names and attributes of folders, which are kept until the end, in bytes
    /// (default 512 MiB; real archives need a few).
    pub max_folder_memory: usize,
    /// Who is told how much of the tarball is read.
    pub progress: Progress,
}

impl UnpackOptions {
    /// An app's build, owned by the user it runs as.
    pub fn build(uid: u32, gid: u32) -> Self {
        Self {
            kind: TarballKind::Build,
            owner: Owner::Fixed { uid, gid },
            keep_setuid: false,
            max_bytes: MOST_BYTES,
            max_entries: MOST_ENTRIES,
            max_path: LONGEST_PATH,
            max_folder_memory: 512 << 20,
            progress: Progress::Quiet,
        }
    }

    /// An operating system, with the owners and set-user-id programs it has in the archive, without device nodes.
    pub fn image() -> Self {
        Self { kind: TarballKind::Image, owner: Owner::FromArchive, keep_setuid: true, ..Self::build(0, 0) }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnpackSummary {
    /// Entries of the archive, the skipped ones included.
    pub entries: u64,
    /// The size of all files together, in bytes.
    pub bytes: u64,
    /// Device nodes and pipes that were left out.
    pub skipped: u64,
}

/// Unpacks a tarball into a folder, which is made when it is missing.
///
/// An entry replaces what has its name already, except that a folder keeps an existing folder's files. After an error
/// the folder is in any state, so callers unpack beside the final place and rename. Device nodes and pipes are left
/// out: whatever runs on the files gets a `/dev` of its own. Holes of sparse files stay holes.
///
/// Errors: the archive cannot be read, is truncated, has an entry that would end up outside of the folder or that goes
/// through a symbolic link, or exceeds a limit.
pub fn unpack(tarball: &Path, into: &Path, options: &UnpackOptions) -> Result<UnpackSummary, ArchiveError> {
    let (compression, reader) = open_known(tarball, &options.progress)?;
    let reader =
        ReadAhead::start(reader).map_err(|source| ArchiveError::Open { path: tarball.to_owned(), source })?;
    let make_error = |source| ArchiveError::Place { action: "make", path: into.to_owned(), source };
    fs::create_dir_all(into).map_err(make_error)?;
    let root = rustix::fs::open(into, FOLDER, Mode::empty()).map_err(|error| make_error(error.into()))?;
    let unpacker = Unpacker {
        tarball,
        into,
        options,
        compression,
        root,
        parent: None,
        folders: BTreeMap::new(),
        remembered: 0,
        may_chown: rustix::process::geteuid().is_root(),
        chunk: vec![0; CHUNK],
        summary: UnpackSummary::default(),
    };
    unpacker.run(reader)
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const NEW_FILE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An entry's name as the names of folders from the target downwards and a last one; empty for the target itself.
type Components = Vec<Vec<u8>>;

/// What a folder gets at the very end, when nothing is written to it any more.
struct FolderMetadata {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Option<Timespec>,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// The parts of an entry's header that are used.
struct Metadata {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// Why an entry was not made; becomes an [`ArchiveError`] where its name is known.
enum EntryFailure {
    Refused(&'static str),
    TooManyBytes,
    TooMuchAboutFolders,
    Corrupt(io::Error),
    Write(io::Error),
}

impl From<Errno> for EntryFailure {
    fn from(error: Errno) -> Self {
        Self::Write(error.into())
    }
}

struct Unpacker<'a> {
    tarball: &'a Path,
    into: &'a Path,
    options: &'a UnpackOptions,
    compression: Compression,
    root: OwnedFd,
    /// The folder of the last entry: most entries follow others of their folder.
    parent: Option<(Components, Rc<OwnedFd>)>,
    folders: BTreeMap<Components, FolderMetadata>,
    /// How much memory `folders` takes, about.
    remembered: usize,
    may_chown: bool,
    chunk: Vec<u8>,
    summary: UnpackSummary,
}

impl Unpacker<'_> {
    fn run(mut self, reader: impl Read) -> Result<UnpackSummary, ArchiveError> {
        let tarball = self.tarball;
        let expected = self.compression.describe();
        let corrupt = |source| ArchiveError::Corrupt { path: tarball.to_owned(), expected, source };
        let mut archive = TarReader::new(reader);
        while let Some(member) = archive.next().map_err(corrupt)? {
            self.summary.entries += 1;
            if self.summary.entries > self.options.max_entries {
                return Err(self.too_much(self.options.max_entries, "entries"));
            }
            self.member(&member, &mut archive).map_err(|failure| self.explain(&member, failure))?;
        }
        let rest = archive.read_rest(self.options.max_bytes).map_err(corrupt)?;
        if rest >= self.options.max_bytes {
            return Err(self.too_much(self.options.max_bytes, "bytes"));
        }
        self.finish_folders()?;
        Ok(self.summary)
    }

    fn too_much(&self, limit: u64, what: &'static str) -> ArchiveError {
        ArchiveError::TooMuch { path: self.tarball.to_owned(), limit, what }
    }

    fn explain(&self, member: &Member, failure: EntryFailure) -> ArchiveError {
        let path = self.tarball.to_owned();
        match failure {
            EntryFailure::Refused(reason) => {
                ArchiveError::EntryRefused { path, entry: printable(&member.name), reason }
            }
            EntryFailure::TooManyBytes => self.too_much(self.options.max_bytes, "bytes"),
            EntryFailure::TooMuchAboutFolders => self
                .too_much(self.options.max_folder_memory as u64, "bytes of names and attributes of folders"),
            EntryFailure::Corrupt(source) => {
                ArchiveError::Corrupt { path, expected: self.compression.describe(), source }
            }
            EntryFailure::Write(source) => {
                ArchiveError::Write { into: self.into.to_owned(), entry: printable(&member.name), source }
            }
        }
    }

    fn member(&mut self, member: &Member, archive: &mut TarReader<impl Read>) -> Result<(), EntryFailure> {
        let kind = member.header.entry_type();
        // The label of a tape.
        if kind.as_byte() == b'V' {
            return Ok(());
        }
        let components = self.components(&member.name)?;
        let metadata = metadata(member, self.options.kind)?;
        let Some((last, parents)) = components.split_last() else {
            if kind.is_dir() {
                return self.remember_folder(Vec::new(), metadata);
            }
            return Err(EntryFailure::Refused("has no name"));
        };
        let old_style_folder = member.name.ends_with(b"/") && kind.is_file();
        let parent = self.open_parent(parents)?;
        match kind {
            _ if kind.is_dir() || old_style_folder => {
                match mkdirat(&*parent, last.as_slice(), Mode::RWXU) {
                    Ok(()) => {}
                    Err(Errno::EXIST) => {
                        let present = statat(&*parent, last.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
                        if FileType::from_raw_mode(present.st_mode) != FileType::Directory {
                            unlinkat(&*parent, last.as_slice(), AtFlags::empty())?;
                            mkdirat(&*parent, last.as_slice(), Mode::RWXU)?;
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
                self.remember_folder(components, metadata)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(member, archive, &components, &parent, last, &metadata)
            }
            EntryType::Symlink => {
                let target = &member.link;
                if target.is_empty() || target.len() > LONGEST_LINK || target.contains(&0) {
                    return Err(EntryFailure::Refused("is a symbolic link without a usable target"));
                }
                self.replace(&components, &parent, last, || {
                    symlinkat(target.as_slice(), &*parent, last.as_slice())
                })?;
                self.finish_link(&parent, last, &metadata)
            }
            EntryType::Link => self.hard_link(member, &components, &parent, last),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                self.summary.skipped += 1;
                Ok(())
            }
            _ => Err(EntryFailure::Refused("is of a kind that this program does not know")),
        }
    }

    /// Takes a name apart and refuses it when it could lead out of the target.
    fn components(&self, name: &[u8]) -> Result<Components, EntryFailure> {
        if name.len() > self.options.max_path {
            return Err(EntryFailure::Refused("has too long a path"));
        }
        if name.starts_with(b"/") {
            return Err(EntryFailure::Refused("has an absolute path"));
        }
        if name.contains(&0) {
            return Err(EntryFailure::Refused("has a zero byte in its name"));
        }
        let mut components = Vec::new();
        for component in name.split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(EntryFailure::Refused("has \"..\" in its path")),
                long if long.len() > LONGEST_NAME => {
                    return Err(EntryFailure::Refused("has too long a name"));
                }
                component => components.push(component.to_vec()),
            }
        }
        Ok(components)
    }

    /// Opens the folder an entry is in; folders that the archive does not mention are made.
    fn open_parent(&mut self, parents: &[Vec<u8>]) -> Result<Rc<OwnedFd>, EntryFailure> {
        if let Some((path, folder)) = &self.parent
            && path == parents
        {
            return Ok(Rc::clone(folder));
        }
        let folder = match self.open_folder(parents) {
            Err(Errno::NOENT) => {
                self.make_folders(parents)?;
                self.open_folder(parents)
            }
            done => done,
        };
        let folder = Rc::new(folder.map_err(not_a_folder)?);
        self.parent = Some((parents.to_vec(), Rc::clone(&folder)));
        Ok(folder)
    }

    /// The one way to a folder below the target: the kernel itself refuses links and ways out.
    fn open_folder(&self, components: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        if components.is_empty() {
            return openat(&self.root, c".", FOLDER, Mode::empty());
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, components.join(&b'/').as_slice(), FOLDER, Mode::empty(), resolve)
    }

    fn make_folders(&mut self, parents: &[Vec<u8>]) -> Result<(), EntryFailure> {
        for depth in 1..=parents.len() {
            let (Some(name), above) = (parents.get(depth - 1), &parents[..depth - 1]) else { break };
            let above = self.open_folder(above).map_err(not_a_folder)?;
            match mkdirat(&above, name.as_slice(), Mode::RWXU) {
                Ok(()) => {
                    let (uid, gid) = match self.options.owner {
                        Owner::Fixed { uid, gid } => (uid, gid),
                        Owner::FromArchive => (0, 0),
                    };
                    let metadata = FolderMetadata { mode: 0o755, uid, gid, mtime: None, xattrs: Vec::new() };
                    self.remember(parents[..depth].to_vec(), metadata)?;
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes something that must not be there yet; what has its name is removed first.
    fn replace<T>(
        &mut self,
        components: &Components,
        parent: &OwnedFd,
        name: &[u8],
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, EntryFailure> {
        match make() {
            Err(Errno::EXIST) => {}
            done => return Ok(done?),
        }
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                match unlinkat(parent, name, AtFlags::REMOVEDIR) {
                    Ok(()) => {}
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {
                        return Err(EntryFailure::Refused("would replace a folder that is not empty"));
                    }
                    Err(error) => return Err(error.into()),
                }
                self.folders.remove(components);
                self.parent = None;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(make()?)
    }

    fn file(
        &mut self,
        member: &Member,
        archive: &mut TarReader<impl Read>,
        components: &Components,
        parent: &OwnedFd,
        name: &[u8],
        metadata: &Metadata,
    ) -> Result<(), EntryFailure> {
        self.summary.bytes = self.summary.bytes.saturating_add(member.size);
        if self.summary.bytes > self.options.max_bytes {
            return Err(EntryFailure::TooManyBytes);
        }
        let fd = self
            .replace(components, parent, name, || openat(parent, name, NEW_FILE, Mode::RUSR | Mode::WUSR))?;
        let mut file = File::from(fd);
        let mut end = 0;
        // An empty piece marks the end of a file that ends with a hole.
        for (offset, length) in member.pieces.iter().filter(|(_, length)| *length > 0) {
            if *offset != end {
                file.seek(SeekFrom::Start(*offset)).map_err(EntryFailure::Write)?;
            }
            end = offset + length;
            let mut left = *length;
            while left > 0 {
                let most = self.chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let n = archive.read_data(&mut self.chunk[..most]).map_err(EntryFailure::Corrupt)?;
                if n == 0 {
                    return Err(EntryFailure::Corrupt(io::ErrorKind::UnexpectedEof.into()));
                }
                file.write_all(&self.chunk[..n]).map_err(EntryFailure::Write)?;
                left -= n as u64;
            }
        }
        if end != member.size {
            file.set_len(member.size).map_err(EntryFailure::Write)?;
        }
        let (uid, gid) = self.owner(metadata);
        // In this order: a new owner takes away set-user-id bits and capabilities.
        if self.chowns() {
            fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        fchmod(&file, Mode::from_raw_mode(self.file_mode(metadata.mode)))?;
        for (name, value) in &metadata.xattrs {
            xattrs::set(&file, name, value);
        }
        futimens(&file, &at(Some(metadata.mtime)))?;
        Ok(())
    }

    fn hard_link(
        &mut self,
        member: &Member,
        components: &Components,
        parent: &OwnedFd,
        name: &[u8],
    ) -> Result<(), EntryFailure> {
        let target = self.components(&member.link).map_err(|failure| match failure {
            EntryFailure::Refused(_) => {
                EntryFailure::Refused("is a hard link to something outside of the archive")
            }
            other => other,
        })?;
        if target == *components {
            return Err(EntryFailure::Refused("is a hard link to itself"));
        }
        let missing = EntryFailure::Refused("is a hard link to a file that is not in the archive before it");
        let Some((target_name, target_parents)) = target.split_last() else { return Err(missing) };
        let target_parent = match self.open_folder(target_parents) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing),
            done => done.map_err(not_a_folder)?,
        };
        match statat(&target_parent, target_name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(EntryFailure::Refused("is a hard link to a folder"));
            }
            Ok(_) => {}
            Err(Errno::NOENT) => return Err(missing),
            Err(error) => return Err(error.into()),
        }
        // Without AT_SYMLINK_FOLLOW, so a link to a symbolic link is one to the link itself.
        self.replace(components, parent, name, || {
            linkat(&target_parent, target_name.as_slice(), parent, name, AtFlags::empty())
        })
    }

    /// Owner and time of something that cannot be opened.
    fn finish_link(&self, parent: &OwnedFd, name: &[u8], metadata: &Metadata) -> Result<(), EntryFailure> {
        if self.chowns() {
            let (uid, gid) = self.owner(metadata);
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        utimensat(parent, name, &at(Some(metadata.mtime)), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn remember_folder(&mut self, components: Components, metadata: Metadata) -> Result<(), EntryFailure> {
        let (uid, gid) = self.owner(&metadata);
        let Metadata { mode, mtime, xattrs, .. } = metadata;
        self.remember(components, FolderMetadata { mode, uid, gid, mtime: Some(mtime), xattrs })
    }

    fn remember(&mut self, components: Components, metadata: FolderMetadata) -> Result<(), EntryFailure> {
        /// What a text takes besides its bytes.
        const TEXT: usize = size_of::<Vec<u8>>() + 16;
        let names: usize = components.iter().map(|name| name.len() + TEXT).sum();
        let attributes: usize =
            metadata.xattrs.iter().map(|(name, value)| name.len() + value.len() + 2 * TEXT).sum();
        self.remembered += names + attributes + size_of::<FolderMetadata>() + TEXT;
        if self.remembered > self.options.max_folder_memory {
            return Err(EntryFailure::TooMuchAboutFolders);
        }
        self.folders.insert(components, metadata);
        Ok(())
    }

    /// Gives folders their modes, owners and times, the inner ones first: an outer one may then be closed to us.
    fn finish_folders(&mut self) -> Result<(), ArchiveError> {
        self.parent = None;
        let mut folders = std::mem::take(&mut self.folders);
        let root = folders.remove(&Vec::new());
        for (components, metadata) in folders.iter().rev() {
            let finished = self
                .open_folder(components)
                .and_then(|folder| self.finish_folder(&folder, metadata, self.folder_mode(metadata.mode)));
            finished.map_err(|source| ArchiveError::Write {
                into: self.into.to_owned(),
                entry: printable(&components.join(&b'/')),
                source: source.into(),
            })?;
        }
        self.finish_root(root).map_err(|source| ArchiveError::Place {
            action: "set the mode of",
            path: self.into.to_owned(),
            source: source.into(),
        })
    }

    /// The target itself can always be entered by everybody: archives of temporary folders say otherwise.
    fn finish_root(&self, metadata: Option<FolderMetadata>) -> Result<(), Errno> {
        let metadata = match (metadata, self.options.owner) {
            (Some(metadata), _) => metadata,
            (None, Owner::Fixed { uid, gid }) => {
                let mode = fstat(&self.root)?.st_mode;
                FolderMetadata { mode, uid, gid, mtime: None, xattrs: Vec::new() }
            }
            (None, Owner::FromArchive) => {
                let stat = fstat(&self.root)?;
                let (mode, uid, gid) = (stat.st_mode, stat.st_uid, stat.st_gid);
                FolderMetadata { mode, uid, gid, mtime: None, xattrs: Vec::new() }
            }
        };
        self.finish_folder(&self.root, &metadata, self.folder_mode(metadata.mode) | 0o755)
    }

    fn finish_folder(&self, folder: &OwnedFd, metadata: &FolderMetadata, mode: u32) -> Result<(), Errno> {
        if self.chowns() {
            fchown(folder, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))?;
        }
        fchmod(folder, Mode::from_raw_mode(mode))?;
        for (name, value) in &metadata.xattrs {
            xattrs::set(folder, name, value);
        }
        futimens(folder, &at(metadata.mtime))
    }

    fn owner(&self, metadata: &Metadata) -> (u32, u32) {
        match self.options.owner {
            Owner::FromArchive => (metadata.uid, metadata.gid),
            Owner::Fixed { uid, gid } => (uid, gid),
        }
    }

    /// Others than root can only "give" files to themselves, which then either works or is an error worth showing.
    fn chowns(&self) -> bool {
        self.may_chown || matches!(self.options.owner, Owner::Fixed { .. })
    }

    fn file_mode(&self, mode: u32) -> u32 {
        let allowed = if self.options.keep_setuid { mode & 0o7777 } else { mode & 0o7777 & !SET_ID };
        match self.options.kind {
            TarballKind::Build => allowed | 0o660,
            TarballKind::Image => allowed,
        }
    }

    fn folder_mode(&self, mode: u32) -> u32 {
        let allowed = if self.options.keep_setuid { mode & 0o7777 } else { mode & 0o7777 & !SET_ID };
        match self.options.kind {
            TarballKind::Build => allowed | 0o750,
            TarballKind::Image => allowed,
        }
    }
}

/// What an open of a parent folder failed with, in the archive's terms.
fn not_a_folder(error: Errno) -> EntryFailure {
    match error {
        Errno::LOOP => EntryFailure::Refused("goes through a symbolic link"),
        Errno::NOTDIR => EntryFailure::Refused("goes through something that is not a folder"),
        Errno::XDEV => EntryFailure::Refused("leads out of the folder"),
        error => error.into(),
    }
}

fn metadata(member: &Member, kind: TarballKind) -> Result<Metadata, EntryFailure> {
    let header = &member.header;
    let number = |key: &str, in_header: &[u8], value: io::Result<u64>| {
        let value = match member.number(key).map_err(EntryFailure::Corrupt)? {
            Some(number) => number,
            // Some programs leave a field empty for which they have no number.
            None if in_header.iter().all(|b| matches!(b, 0 | b' ')) => 0,
            None => value.map_err(EntryFailure::Corrupt)?,
        };
        // The largest number means "nobody in particular" to the kernel.
        u32::try_from(value)
            .ok()
            .filter(|number| *number != u32::MAX)
            .ok_or(EntryFailure::Refused("has an owner or a mode whose number is too large"))
    };
    let mtime = member.field("mtime").and_then(|time| parse_pax_time(std::str::from_utf8(time).ok()?));
    let mut xattrs = Vec::new();
    for (key, value) in &member.fields {
        if let Some(name) = key.strip_prefix(xattrs::PAX_PREFIX.as_bytes())
            && xattrs::travels(name, kind)
            && value.len() <= LARGEST_XATTR
            && let Ok(name) = std::str::from_utf8(name)
        {
            xattrs.push((name.to_owned(), value.clone()));
        }
    }
    let fields = header.as_old();
    Ok(Metadata {
        mode: number("", &fields.mode, header.mode().map(u64::from))?,
        uid: number("uid", &fields.uid, header.uid())?,
        gid: number("gid", &fields.gid, header.gid())?,
        mtime: mtime.unwrap_or_else(|| Timespec { tv_sec: header_time(header), tv_nsec: 0 }),
        xattrs,
    })
}

/// Seconds since 1970; a time that makes no sense is as good as any, so it is 0.
fn header_time(header: &Header) -> i64 {
    match header.mtime() {
        // GNU's form for times before 1970: one large negative number.
        Ok(time) if header.as_old().mtime[0] == 0xff => time.cast_signed(),
        Ok(time) => i64::try_from(time).unwrap_or_default(),
        Err(_) => 0,
    }
}

/// Seconds since 1970 with an optional fraction: `1700000000.25`, `-0.5`.
fn parse_pax_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let tv_nsec = i64::from(digits.parse::<u32>().ok()?);
    if text.starts_with('-') && tv_nsec > 0 {
        // The kernel counts the fraction forward from the second before.
        return Some(Timespec { tv_sec: tv_sec.checked_sub(1)?, tv_nsec: 1_000_000_000 - tv_nsec });
    }
    Some(Timespec { tv_sec, tv_nsec })
}

/// A modification time; the access time is now, or both stay when there is none.
fn at(mtime: Option<Timespec>) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    match mtime {
        Some(time) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now = Timespec {
                tv_sec: i64::try_from(now.as_secs()).unwrap_or_default(),
                tv_nsec: i64::from(now.subsec_nanos()),
            };
            Timestamps { last_access: now, last_modification: time }
        }
        None => Timestamps { last_access: omit, last_modification: omit },
    }
}

/// A name for people: unprintable characters escaped, and not endless.
fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut shown: String = text.chars().take(200).flat_map(char::escape_debug).collect();
    if text.chars().nth(200).is_some() {
        shown.push('…');
    }
    shown
}
