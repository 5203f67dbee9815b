//! Tests of [`super`].

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, open_tree,
};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;
use crate::fetch::md5_file;
use crate::progress::Progress;

mod formats;

/// One entry of an archive, with the name and target byte for byte as given.
struct Entry<'a> {
    kind: EntryType,
    name: &'a str,
    target: &'a str,
    data: &'a [u8],
    mode: u32,
}

fn file<'a>(name: &'a str, data: &'a [u8]) -> Entry<'a> {
    Entry { kind: EntryType::Regular, name, target: "", data, mode: 0o644 }
}

fn folder(name: &str) -> Entry<'_> {
    Entry { kind: EntryType::Directory, name, target: "", data: b"", mode: 0o755 }
}

fn link<'a>(name: &'a str, target: &'a str) -> Entry<'a> {
    Entry { kind: EntryType::Symlink, name, target, data: b"", mode: 0o777 }
}

fn hard_link<'a>(name: &'a str, target: &'a str) -> Entry<'a> {
    Entry { kind: EntryType::Link, name, target, data: b"", mode: 0o644 }
}

fn tar_bytes(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(entry.data.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        gnu.linkname[..entry.target.len()].copy_from_slice(entry.target.as_bytes());
        header.set_cksum();
        builder.append(&header, entry.data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A folder with a tarball `x.tar`, a folder `into` to unpack it to, and a file `outside` that nothing may touch.
struct Place {
    dir: TempDir,
}

impl Place {
    fn with(entries: &[Entry<'_>]) -> Self {
        Self::with_bytes("x.tar", &tar_bytes(entries))
    }

    fn with_bytes(name: &str, bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), bytes).unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn unpack(&self, options: &UnpackOptions) -> Result<UnpackSummary, ArchiveError> {
        unpack(&self.path("x.tar"), &self.path("into"), options)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path("into").join(name)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        fs::symlink_metadata(self.path("into").join(name)).unwrap().mode() & 0o7777
    }
}

fn mine() -> UnpackOptions {
    UnpackOptions::build(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// What such an archive is refused with; everything outside must be as it was.
fn refusal(entries: &[Entry<'_>]) -> String {
    let place = Place::with(entries);
    let before = fs::metadata(place.path("outside")).unwrap();
    let error = place.unpack(&mine()).unwrap_err();
    assert!(matches!(error, ArchiveError::EntryRefused { .. }), "{error}");
    let after = fs::metadata(place.path("outside")).unwrap();
    assert_eq!(fs::read_to_string(place.path("outside")).unwrap(), "untouched");
    assert_eq!((before.nlink(), before.mode(), before.uid()), (after.nlink(), after.mode(), after.uid()));
    let mut names: Vec<_> = fs::read_dir(place.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["into", "outside", "x.tar"]);
    error.to_string().split_once("is refused: its ").unwrap().1.to_owned()
}

#[test]
fn names_that_lead_out_are_refused() {
    let bad = b"bad";
    assert_eq!(refusal(&[file("../outside", bad)]), "entry \"../outside\" has \"..\" in its path");
    assert_eq!(refusal(&[file("a/../../outside", bad)]), "entry \"a/../../outside\" has \"..\" in its path");
    assert_eq!(refusal(&[folder("..")]), "entry \"..\" has \"..\" in its path");
    assert_eq!(refusal(&[file("/etc/x", bad)]), "entry \"/etc/x\" has an absolute path");
    assert_eq!(refusal(&[link("../outside", "x")]), "entry \"../outside\" has \"..\" in its path");
    assert_eq!(refusal(&[hard_link("../new", "x")]), "entry \"../new\" has \"..\" in its path");
    assert_eq!(refusal(&[file("./", bad)]), "entry \"./\" has no name");
}

#[test]
fn names_are_shown_without_what_would_move_the_cursor() {
    assert_eq!(refusal(&[file("../\u{1b}[2J\n", b"")]), "entry \"../\\u{1b}[2J\\n\" has \"..\" in its path");
}

#[test]
fn ways_through_symbolic_links_are_refused() {
    let refused = |target| refusal(&[link("way", target), file("way/outside", b"bad")]);
    for target in ["..", "/", "/etc", ".", "real", "/proc/self/cwd"] {
        assert_eq!(refused(target), "entry \"way/outside\" goes through a symbolic link", "{target}");
    }
    assert_eq!(
        refusal(&[folder("real"), link("real/up", "../.."), folder("real/up/new/deep")]),
        "entry \"real/up/new/deep\" goes through a symbolic link"
    );
    assert_eq!(
        refusal(&[link("way", ".."), hard_link("mine", "way/outside")]),
        "entry \"mine\" goes through a symbolic link"
    );
    assert_eq!(
        refusal(&[file("plain", b""), file("plain/inside", b"")]),
        "entry \"plain/inside\" goes through something that is not a folder"
    );
}

#[test]
fn a_folder_that_becomes_a_link_after_it_was_used_is_not_followed() {
    // The way into the folder is remembered from the first file; the link must make it forgotten.
    assert_eq!(
        refusal(&[folder("way"), link("way", ".."), file("way/outside", b"bad")]),
        "entry \"way/outside\" goes through a symbolic link"
    );
    assert_eq!(
        refusal(&[file("way/first", b""), link("way", ".."), file("way/outside", b"bad")]),
        "entry \"way\" would replace a folder that is not empty"
    );
}

#[test]
fn files_are_not_written_through_links_but_instead_of_them() {
    let place = Place::with(&[link("to", "../outside"), file("to", b"new")]);
    place.unpack(&mine()).unwrap();
    assert_eq!(place.read("to"), "new");
    assert!(place.path("into/to").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read_to_string(place.path("outside")).unwrap(), "untouched");
}

#[test]
fn the_mode_of_a_folder_is_not_given_to_what_a_link_leads_to() {
    let place = Place::with(&[
        Entry { mode: 0o711, ..folder("way") },
        Entry { kind: EntryType::Symlink, mode: 0o777, ..link("way", "..") },
    ]);
    fs::set_permissions(place.dir.path(), Permissions::from_mode(0o700)).unwrap();
    place.unpack(&mine()).unwrap();
    assert_eq!(fs::metadata(place.dir.path()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn hard_links_stay_inside() {
    let outside = "is a hard link to something outside of the archive";
    assert_eq!(refusal(&[hard_link("mine", "../outside")]), format!("entry \"mine\" {outside}"));
    assert_eq!(refusal(&[hard_link("mine", "/etc/passwd")]), format!("entry \"mine\" {outside}"));
    assert_eq!(
        refusal(&[hard_link("mine", "later"), file("later", b"")]),
        "entry \"mine\" is a hard link to a file that is not in the archive before it"
    );
    assert_eq!(refusal(&[folder("f"), hard_link("g", "f")]), "entry \"g\" is a hard link to a folder");
    assert_eq!(refusal(&[file("f", b""), hard_link("f", "./f")]), "entry \"f\" is a hard link to itself");

    let place = Place::with(&[
        file("one", b"data"),
        hard_link("sub/two", "./one"),
        link("l", "../outside"),
        hard_link("k", "l"),
    ]);
    place.unpack(&mine()).unwrap();
    assert_eq!(place.read("sub/two"), "data");
    let inode = |name: &str| fs::symlink_metadata(place.path("into").join(name)).unwrap().ino();
    assert_eq!(inode("one"), inode("sub/two"));
    // A hard link to a symbolic link is one to the link itself.
    assert_eq!(inode("l"), inode("k"));
    assert_eq!(fs::metadata(place.path("outside")).unwrap().nlink(), 1);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let place = Place::with(&[
        file("a", b"first"),
        file("a", b"second"),
        file("f/inside", b"kept"),
        folder("f"),
        folder("b"),
        file("b", b"was a folder"),
        file("c", b"was a file"),
        folder("c"),
        link("d", "a"),
        link("d", "/absolute/is/data"),
    ]);
    place.unpack(&mine()).unwrap();
    assert_eq!(place.read("a"), "second");
    assert_eq!(place.read("f/inside"), "kept");
    assert_eq!(place.read("b"), "was a folder");
    assert!(place.path("into/c").is_dir());
    assert_eq!(fs::read_link(place.path("into/d")).unwrap(), Path::new("/absolute/is/data"));
}

#[test]
fn builds_get_the_modes_they_need_and_none_that_give_rights() {
    let place = Place::with(&[
        Entry { mode: 0o500, ..folder("closed") },
        Entry { mode: 0o400, ..file("closed/file", b"x") },
        Entry { mode: 0o6755, ..file("program", b"x") },
        Entry { mode: 0o2777, ..folder("shared") },
        file("made/on/the/way", b""),
    ]);
    place.unpack(&mine()).unwrap();
    assert_eq!(place.mode("closed"), 0o750);
    assert_eq!(place.mode("closed/file"), 0o660);
    assert_eq!(place.mode("program"), 0o775);
    assert_eq!(place.mode("shared"), 0o777);
    assert_eq!(place.mode("made/on"), 0o755);
    assert_eq!(place.mode("."), 0o755);
    let metadata = fs::symlink_metadata(place.path("into/closed/file")).unwrap();
    assert_eq!(metadata.mtime(), 1_000_000_000);
    assert_eq!(fs::metadata(place.path("into/closed")).unwrap().mtime(), 1_000_000_000);
}

#[test]
fn images_keep_modes_and_owners() {
    let place = Place::with(&[
        Entry { mode: 0o700, ..folder("./") },
        Entry { mode: 0o4755, ..file("bin/su", b"x") },
        Entry { mode: 0o1777, ..folder("tmp") },
        Entry { mode: 0o500, ..folder("closed") },
    ]);
    place.unpack(&UnpackOptions::image()).unwrap();
    assert_eq!(place.mode("bin/su"), 0o4755);
    assert_eq!(place.mode("tmp"), 0o1777);
    assert_eq!(place.mode("closed"), 0o500);
    // The root of a system that only root may enter would be of no use.
    assert_eq!(place.mode("."), 0o755);
    let options = UnpackOptions { keep_setuid: false, ..UnpackOptions::image() };
    unpack(&place.path("x.tar"), &place.path("other"), &options).unwrap();
    assert_eq!(fs::metadata(place.path("other/bin/su")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_fixed_owner_owns_everything() {
    let place = Place::with(&[file("f/file", b"x"), link("f/link", "file"), folder("g")]);
    place.unpack(&UnpackOptions::build(1234, 2345)).unwrap();
    for name in ["", "f", "f/file", "f/link", "g"] {
        let metadata = fs::symlink_metadata(place.path("into").join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 2345), "{name}");
    }
}

#[test]
fn special_files_are_left_out_and_counted() {
    let pipe = Entry { kind: EntryType::Fifo, mode: 0o666, ..file("pipe", b"") };
    let place = Place::with(&[pipe, file("after", b"x")]);
    let summary = place.unpack(&mine()).unwrap();
    assert_eq!((summary.entries, summary.skipped), (2, 1));
    assert!(!place.path("into/pipe").exists());
    assert_eq!(place.read("after"), "x");
}

#[test]
fn limits_hold() {
    let place = Place::with(&[file("a", &[0; 600]), file("b", &[0; 600])]);
    let error = place.unpack(&UnpackOptions { max_bytes: 1000, ..mine() }).unwrap_err().to_string();
    assert!(error.ends_with("x.tar is refused: it holds more than 1000 bytes"), "{error}");
    let error = place.unpack(&UnpackOptions { max_entries: 1, ..mine() }).unwrap_err().to_string();
    assert!(error.ends_with("x.tar is refused: it holds more than 1 entries"), "{error}");
    let place = Place::with(&[file("long/path", b"")]);
    let error = place.unpack(&UnpackOptions { max_path: 5, ..mine() }).unwrap_err().to_string();
    assert!(error.ends_with("entry \"long/path\" has too long a path"), "{error}");
}

#[test]
fn a_header_that_would_fill_the_memory_is_refused() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    let size = 64 << 20;
    header.set_size(size);
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, io::repeat(b'a').take(size)).unwrap();
    let place = Place::with_bytes("x.tar", &builder.into_inner().unwrap());
    let error = crate::exit::chain(&place.unpack(&mine()).unwrap_err());
    assert!(error.contains("the headers of an entry are too long"), "{error}");
}

#[test]
fn folders_whose_attributes_would_fill_the_memory_are_refused() {
    let mut builder = Builder::new(Vec::new());
    for number in 0..100 {
        let (small, large) = (vec![b'x'; 60_000], vec![b'x'; 1_000_000]);
        // The large one is more than any file system takes, so it counts for nothing.
        let fields = [("SCHILY.xattr.user.small", &small[..]), ("SCHILY.xattr.user.large", &large[..])];
        builder.append_pax_extensions(fields).unwrap();
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        builder.append_data(&mut header, format!("{number}/"), io::empty()).unwrap();
    }
    let place = Place::with_bytes("x.tar", &builder.into_inner().unwrap());
    let limited = |max_folder_memory| UnpackOptions { max_folder_memory, ..mine() };
    let error = place.unpack(&limited(1 << 20)).unwrap_err().to_string();
    assert!(error.contains("holds more than 1048576 bytes of names and attributes of folders"), "{error}");
    place.unpack(&limited(10 << 20)).unwrap();
}

#[test]
fn a_sparse_file_with_an_absurd_size_is_refused() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..4].copy_from_slice(b"hole");
    gnu.set_real_size(1 << 26);
    gnu.sparse[0].set_offset(1 << 26);
    gnu.sparse[0].set_length(0);
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, io::empty()).unwrap();
    let place = Place::with_bytes("x.tar", &builder.into_inner().unwrap());
    let options = UnpackOptions { max_bytes: 1 << 20, ..mine() };
    let refused = place.unpack(&options);
    assert!(matches!(refused, Err(ArchiveError::TooMuch { what: "bytes", .. })), "{refused:?}");
    assert!(!place.path("into/hole").exists());
    let summary = place.unpack(&mine()).unwrap();
    assert_eq!((summary.bytes, fs::metadata(place.path("into/hole")).unwrap().blocks()), (1 << 26, 0));
}

#[test]
fn every_cut_is_noticed() {
    let tar = tar_bytes(&[folder("f"), file("f/a", &[b'a'; 700]), file("b", &[0; 2048])]);
    let whole = gzip(&tar);
    let cuts = (0..whole.len()).map(|cut| ("x.tar.gz", &whole[..cut]));
    // Up to the end of the last entry: the first block of zeros after it is the end of the archive.
    let last_entry_ends = tar.len() - 1024;
    let cuts = cuts.chain((0..=last_entry_ends).step_by(128).map(|cut| ("x.tar", &tar[..cut])));
    for (name, bytes) in cuts {
        let place = Place::with_bytes(name, bytes);
        let error = unpack(&place.path(name), &place.path("into"), &mine()).unwrap_err();
        let kind = if name == "x.tar" { "tar" } else { "gzip-compressed tar" };
        assert_eq!(
            error.to_string(),
            format!("{} is truncated or not a {kind} archive", place.path(name).display()),
            "{name} cut at {} of {}",
            bytes.len(),
            whole.len()
        );
    }
}

#[test]
fn broken_bytes_are_noticed_in_every_compression() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("file"), random_bytes(20_000)).unwrap();
    for (name, kind) in [
        ("x.tar.gz", "gzip-compressed tar"),
        ("x.tgz", "gzip-compressed tar"),
        ("x.tar.bz2", "bzip2-compressed tar"),
        ("x.tar.xz", "xz-compressed tar"),
        ("x.tar.zst", "zstd-compressed tar"),
    ] {
        let out = tempfile::tempdir().unwrap();
        let tarball = out.path().join(name);
        pack(source.path(), &tarball, &PackOptions::build()).unwrap();
        unpack(&tarball, &out.path().join("good"), &mine()).unwrap();
        assert_eq!(
            fs::read(out.path().join("good/file")).unwrap(),
            fs::read(source.path().join("file")).unwrap()
        );
        let mut bytes = fs::read(&tarball).unwrap();
        let expected = format!("{} is truncated or not a {kind} archive", tarball.display());
        fs::write(&tarball, &bytes[..bytes.len() - 3]).unwrap();
        assert_eq!(unpack(&tarball, &out.path().join("cut"), &mine()).unwrap_err().to_string(), expected);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        fs::write(&tarball, &bytes).unwrap();
        assert_eq!(unpack(&tarball, &out.path().join("flipped"), &mine()).unwrap_err().to_string(), expected);
    }
}

#[test]
fn progress_counts_the_tarball_from_its_first_byte_to_its_last() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), random_bytes(500_000)).unwrap();
    for name in ["x.tar", "x.tar.gz", "x.tar.zst"] {
        let tarball = place.path().join(name);
        pack(&source, &tarball, &PackOptions::build()).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let for_callback = Arc::clone(&seen);
        let progress = Progress::Callback(Arc::new(move |bytes, total| {
            for_callback.lock().unwrap().push((bytes, total));
        }));
        unpack(&tarball, &place.path().join("into"), &UnpackOptions { progress, ..mine() }).unwrap();
        let size = fs::metadata(&tarball).unwrap().len();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.first(), Some(&(0, Some(size))), "{name}");
        assert_eq!(seen.last(), Some(&(size, Some(size))), "{name}");
    }
}

#[test]
fn packing_has_the_bounds_of_unpacking_and_does_not_read_what_is_beyond_them() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir_all(source.join("a")).unwrap();
    fs::write(source.join("a/file"), [1; 600]).unwrap();
    // Two names of one file have its bytes once.
    fs::hard_link(source.join("a/file"), source.join("b")).unwrap();
    fs::write(source.join("c"), [1; 400]).unwrap();
    let tarball = place.path().join("x.tar.gz");
    let exact = PackOptions { max_bytes: 1000, max_entries: 4, ..PackOptions::build() };
    let summary = pack(&source, &tarball, &exact).unwrap();
    assert_eq!((summary.unpacked_bytes, summary.entries), (1000, 4));
    let as_exact = UnpackOptions { max_bytes: 1000, max_entries: 4, ..mine() };
    unpack(&tarball, &place.path().join("into"), &as_exact).unwrap();

    fs::remove_file(&tarball).unwrap();
    let error = |options| pack(&source, &tarball, &options).unwrap_err().to_string();
    let path = |name: &str| source.join(name).display().to_string();
    assert_eq!(
        error(PackOptions { max_bytes: 999, ..PackOptions::build() }),
        format!(
            "{} has 400 bytes, holes included: with it, the tarball would hold more than 999 bytes",
            path("c")
        )
    );
    assert_eq!(
        error(PackOptions { max_entries: 3, ..PackOptions::image() }),
        format!("with {} the tarball would hold more than 3 files, folders and links", path("c"))
    );
    // Days of reading.
    File::create(source.join("a/hole")).unwrap().set_len(10 << 40).unwrap();
    for options in [PackOptions::build(), PackOptions::image()] {
        let error = error(options);
        let expected = format!("{} has 10995116277760 bytes, ", path("a/hole"));
        assert!(error.starts_with(&expected) && error.ends_with(" more than 21474836480 bytes"), "{error}");
    }
    let left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "source" || name == "into"), "{left:?}");
}

#[test]
fn a_path_that_nobody_would_unpack_is_not_packed() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir(&source).unwrap();
    let mut here = rustix::fs::open(&source, rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    let name = "d".repeat(240);
    let deeper = |folder: &std::os::fd::OwnedFd| {
        rustix::fs::mkdirat(folder, name.as_str(), Mode::RWXU).unwrap();
        rustix::fs::openat(folder, name.as_str(), rustix::fs::OFlags::PATH, Mode::empty()).unwrap()
    };
    // Each takes 241 bytes of the path, with the slash after it.
    for _ in 0..16 {
        here = deeper(&here);
    }
    let tarball = place.path().join("x.tar.gz");
    pack(&source, &tarball, &PackOptions::build()).unwrap();
    unpack(&tarball, &place.path().join("into"), &mine()).unwrap();
    deeper(&here);
    let error = crate::exit::chain(&pack(&source, &tarball, &PackOptions::build()).unwrap_err());
    assert!(error.ends_with(": its path has 4097 bytes, more than the 4096 that are unpacked"), "{error}");
}

fn random_bytes(length: usize) -> Vec<u8> {
    (0..length).map(|_| rand::random()).collect()
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    let page = b"<html>404 Not Found</html>".repeat(50);
    let place = Place::with_bytes("x.tar.gz", &page);
    let error = unpack(&place.path("x.tar.gz"), &place.path("into"), &mine()).unwrap_err().to_string();
    assert!(error.ends_with("x.tar.gz is truncated or not a gzip-compressed tar archive"), "{error}");
    let place = Place::with_bytes("x.tar", &page);
    let error = place.unpack(&mine()).unwrap_err().to_string();
    assert!(error.ends_with("x.tar is truncated or not a tar archive"), "{error}");
    let place = Place::with_bytes("x.zip", &page);
    let error = unpack(&place.path("x.zip"), &place.path("into"), &mine()).unwrap_err().to_string();
    assert!(error.contains("x.zip is not an archive this program knows: expected .tar, .tar.gz"), "{error}");
    // Without a telling name the first bytes decide.
    let place = Place::with_bytes("download", &gzip(&tar_bytes(&[file("a", b"x")])));
    unpack(&place.path("download"), &place.path("into"), &mine()).unwrap();
    assert_eq!(place.read("a"), "x");
}

/// A tree with one of everything that can be packed.
fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("b/empty")).unwrap();
    fs::create_dir_all(dir.join("a")).unwrap();
    fs::write(dir.join("a/file"), "text").unwrap();
    fs::write(dir.join("a-file"), random_bytes(300_000)).unwrap();
    fs::hard_link(dir.join("a/file"), dir.join("b/same")).unwrap();
    symlink("../a//file/", dir.join("b/link")).unwrap();
    symlink("x".repeat(150), dir.join("b/long-link")).unwrap();
    let long = dir.join("n".repeat(120)).join("m".repeat(120));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("exactly"), "deep").unwrap();
    fs::hard_link(long.join("exactly"), dir.join("z")).unwrap();
    fs::set_permissions(dir.join("a/file"), Permissions::from_mode(0o751)).unwrap();
    let socket = dir.join("socket");
    drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
    let pipe = CString::new(dir.join("pipe").to_str().unwrap()).unwrap();
    mknodat(CWD, pipe.as_c_str(), FileType::Fifo, Mode::RUSR, 0).unwrap();
}

#[test]
fn the_same_files_give_the_same_bytes_and_come_out_again() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir(&source).unwrap();
    sample(&source);
    let first = pack(&source, &place.path().join("1.tar.gz"), &PackOptions::build()).unwrap();
    assert_eq!(first.md5, md5_file(&place.path().join("1.tar.gz")).unwrap());
    assert_eq!(first.bytes, fs::metadata(place.path().join("1.tar.gz")).unwrap().len());

    unpack(&place.path().join("1.tar.gz"), &place.path().join("copy"), &UnpackOptions::build(77, 77))
        .unwrap();
    let copy = place.path().join("copy");
    assert_eq!(fs::read_link(copy.join("b/link")).unwrap().as_os_str(), "../a//file/");
    assert_eq!(fs::read_link(copy.join("b/long-link")).unwrap().as_os_str().len(), 150);
    assert_eq!(
        fs::metadata(copy.join("a/file")).unwrap().ino(),
        fs::metadata(copy.join("b/same")).unwrap().ino()
    );
    assert_eq!(fs::read(copy.join("a-file")).unwrap(), fs::read(source.join("a-file")).unwrap());
    assert_eq!(fs::read_to_string(copy.join("z")).unwrap(), "deep");
    assert!(copy.join("b/empty").is_dir());
    assert!(!copy.join("socket").exists() && !copy.join("pipe").exists());

    // Packed again from elsewhere, with other owners and times, and with the folders' entries in another order on disk.
    fs::set_permissions(copy.join("a/file"), Permissions::from_mode(0o751)).unwrap();
    for (name, mode) in [("a-file", 0o644), ("z", 0o644)] {
        fs::set_permissions(copy.join(name), Permissions::from_mode(mode)).unwrap();
    }
    let second = pack(&copy, &place.path().join("2.tar.gz"), &PackOptions::build()).unwrap();
    assert_eq!(first, second);
}

#[test]
fn images_are_packed_with_owners_pipes_and_times() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir(&source).unwrap();
    sample(&source);
    std::os::unix::fs::lchown(source.join("a/file"), Some(12), Some(34)).unwrap();
    let tarball = place.path().join("image.tar.zst");
    let first = pack(&source, &tarball, &PackOptions::image()).unwrap();
    let copy = place.path().join("copy");
    unpack(&tarball, &copy, &UnpackOptions::image()).unwrap();
    let metadata = fs::metadata(copy.join("a/file")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12, 34, 0o751));
    assert_eq!(metadata.mtime(), fs::metadata(source.join("a/file")).unwrap().mtime());
    // It is packed and not unpacked.
    fs::rename(source.join("pipe"), copy.join("pipe")).unwrap();
    let second = pack(&copy, &place.path().join("again.tar.zst"), &PackOptions::image()).unwrap();
    assert_eq!(first.md5, second.md5);
}

#[test]
fn file_capabilities_travel_with_images_only() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("ping"), "x").unwrap();
    // cap_dac_override, cap_fowner and cap_net_raw, permitted and effective, version 2; one byte is a newline.
    let capability = [1_u8, 0, 0, 2, 0x0a, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let opened = File::open(source.join("ping")).unwrap();
    assert!(
        xattrs::set(&opened, "security.capability", &capability),
        "the file system keeps no capabilities"
    );
    let tarball = place.path().join("x.tar.gz");
    let of_copy = |name: &str, options: &UnpackOptions| {
        unpack(&tarball, &place.path().join(name), options).unwrap();
        let file = File::open(place.path().join(name).join("ping")).unwrap();
        xattrs::read(file, TarballKind::Image).unwrap()
    };
    pack(&source, &tarball, &PackOptions::image()).unwrap();
    assert_eq!(
        of_copy("image", &UnpackOptions::image()),
        [("security.capability".to_owned(), capability.to_vec())]
    );
    assert!(of_copy("build", &mine()).is_empty());
    pack(&source, &tarball, &PackOptions::build()).unwrap();
    assert!(of_copy("packed-as-build", &UnpackOptions::image()).is_empty());
}

#[test]
fn gnu_tar_reads_what_is_packed_and_the_other_way_round() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir(&source).unwrap();
    sample(&source);
    let holes = File::create(source.join("holes")).unwrap();
    holes.set_len(10 << 20).unwrap();
    // More pieces than fit into one header.
    for piece in 0..30 {
        holes.write_all_at(b"data", piece * (300 << 10)).unwrap();
    }
    drop(holes);
    let tarball = place.path().join("ours.tar.gz");
    pack(&source, &tarball, &PackOptions::image()).unwrap();
    let tar = |args: &[&str]| {
        let output = crate::process::command("tar").current_dir(place.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    fs::create_dir(place.path().join("theirs")).unwrap();
    tar(&["-xpzf", "ours.tar.gz", "-C", "theirs"]);
    let again = pack(&place.path().join("theirs"), &place.path().join("again.tar.gz"), &PackOptions::image());
    assert_eq!(again.unwrap().md5, md5_file(&tarball).unwrap());

    let forms: [(&str, &[&str]); 5] = [
        ("gnu", &["--format=gnu", "--sparse"]),
        ("posix-0.1", &["--format=posix", "--sparse", "--sparse-version=0.1"]),
        ("posix-1.0", &["--format=posix", "--sparse", "--sparse-version=1.0"]),
        ("posix", &["--format=posix"]),
        ("old", &["--format=gnu"]),
    ];
    for (format, options) in forms {
        tar(&[&["-czf", "theirs.tar.gz"], options, &["-C", "source", "."]].concat());
        let copy = place.path().join(format);
        unpack(&place.path().join("theirs.tar.gz"), &copy, &UnpackOptions::image()).unwrap();
        tar(&["-xpzf", "ours.tar.gz", "-C", format, "pipe"]);
        let again = pack(&copy, &place.path().join("again.tar.gz"), &PackOptions::image());
        assert_eq!(again.unwrap().md5, md5_file(&tarball).unwrap(), "{format}");
        let stored = fs::metadata(copy.join("holes")).unwrap().blocks() * 512;
        assert!(!options.contains(&"--sparse") || stored < 1 << 20, "the holes were filled: {stored} bytes");
    }
}

#[test]
fn names_with_newlines_and_strange_bytes_come_through() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("source")).unwrap();
    let long = format!("two\nlines {}", "ü".repeat(60));
    for name in ["a\nb", "ends with space ", "-rf", "%41", "back\\slash", &long] {
        fs::write(place.path().join("source").join(name), name).unwrap();
    }
    let tarball = place.path().join("x.tar");
    pack(&place.path().join("source"), &tarball, &PackOptions::build()).unwrap();
    let status = crate::process::command("tar")
        .current_dir(place.path())
        .args(["-cf", "theirs.tar", "--format=posix", "-C", "source", "."])
        .status();
    assert!(status.unwrap().success());
    for name in ["x.tar", "theirs.tar"] {
        let copy = place.path().join(format!("copy of {name}"));
        unpack(&place.path().join(name), &copy, &mine()).unwrap();
        assert_eq!(fs::read_to_string(copy.join(&long)).unwrap(), long);
        assert_eq!(fs::read_dir(&copy).unwrap().count(), 6);
    }
}

#[test]
fn a_path_in_a_pax_header_is_checked_like_any_other() {
    for (key, name, reason) in [
        ("path", "../outside", "has \"..\" in its path"),
        ("path", "/outside", "has an absolute path"),
        ("GNU.sparse.name", "../outside", "has \"..\" in its path"),
    ] {
        let mut builder = Builder::new(Vec::new());
        let mut fields = vec![(key, name.as_bytes())];
        if key != "path" {
            fields.extend([("GNU.sparse.map", &b"0,0"[..]), ("GNU.sparse.size", b"0")]);
        }
        builder.append_pax_extensions(fields).unwrap();
        let plain = tar_bytes(&[file("innocent", b"")]);
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        bytes.extend(plain);
        let place = Place::with_bytes("x.tar", &bytes);
        let error = place.unpack(&mine()).unwrap_err().to_string();
        assert!(error.ends_with(&format!("its entry \"{name}\" {reason}")), "{error}");
        assert_eq!(fs::read_to_string(place.path("outside")).unwrap(), "untouched");
    }
}

#[test]
fn a_tarball_inside_of_what_is_packed_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let error = pack(place.path(), &place.path().join("x.tar.gz"), &PackOptions::build()).unwrap_err();
    assert!(crate::exit::chain(&error).ends_with("the tarball would be inside of what is packed"));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_without_a_path_is_packed() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir(&source).unwrap();
    sample(&source);
    let expected = pack(&source, &place.path().join("1.tar.gz"), &PackOptions::build()).unwrap();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let detached = open_tree(CWD, &source, flags).unwrap();
    // What has the path now is something else.
    fs::rename(&source, place.path().join("elsewhere")).unwrap();
    fs::create_dir(&source).unwrap();
    let packed = pack_open(detached, &source, &place.path().join("2.tar.gz"), &PackOptions::build()).unwrap();
    assert_eq!(packed, expected);
}

#[test]
fn one_core_gives_the_same_bytes() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir(&source).unwrap();
    sample(&source);
    fs::write(source.join("large"), random_bytes(2_000_000)).unwrap();
    let md5 = |name: &str| pack(&source, &place.path().join(name), &PackOptions::build()).unwrap().md5;
    for name in ["x.tar.gz", "x.tar.zst"] {
        let on_all = md5(name);
        let on_one = std::thread::scope(|scope| {
            let limited = scope.spawn(|| {
                let mut one = rustix::thread::CpuSet::new();
                one.set(rustix::thread::sched_getcpu());
                rustix::thread::sched_setaffinity(None, &one).unwrap();
                assert_eq!(std::thread::available_parallelism().unwrap().get(), 1);
                md5(name)
            });
            limited.join().unwrap()
        });
        assert_eq!(on_one, on_all, "{name}");
    }
}

#[test]
fn a_full_disk_is_an_error_of_the_tarball_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), random_bytes(3_000_000)).unwrap();
    // A file system of 64 KiB that is mounted nowhere.
    let small = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(&small, "size", "64k").unwrap();
    fsconfig_create(&small).unwrap();
    let small = fsmount(&small, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let folder = PathBuf::from(format!("/proc/self/fd/{}", small.as_raw_fd()));
    for name in ["x.tar", "x.tar.gz", "x.tar.zst"] {
        let error = pack(&source, &folder.join(name), &PackOptions::build()).unwrap_err();
        assert!(matches!(error, ArchiveError::Place { action: "write", .. }), "{name}: {error}");
        assert!(crate::exit::chain(&error).contains("No space left on device"), "{name}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn removing_does_not_follow_links_and_does_not_mind_what_is_missing() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("outside")).unwrap();
    fs::write(place.path().join("outside/file"), "x").unwrap();
    let tree = place.path().join("tree");
    fs::create_dir_all(tree.join("closed/inner")).unwrap();
    symlink("../outside", tree.join("link")).unwrap();
    fs::write(tree.join("closed/inner/file"), "x").unwrap();
    fs::set_permissions(tree.join("closed/inner"), Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(tree.join("closed"), Permissions::from_mode(0o0)).unwrap();
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    remove_tree(&tree).unwrap();
    remove_tree(&place.path().join("no/such/folder")).unwrap();
    symlink("outside", place.path().join("link")).unwrap();
    remove_tree(&place.path().join("link")).unwrap();
    assert!(place.path().join("outside/file").exists());
    remove_tree(&place.path().join("outside/file")).unwrap();
    assert!(place.path().join("outside").exists());
}

#[test]
fn very_deep_folders_are_removed_with_few_open_files() {
    let place = tempfile::tempdir().unwrap();
    // Deeper than a path can be long, so made one inside the other.
    let mut folder = File::open(place.path()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&folder, "dd", Mode::RWXU).unwrap();
        let inner = rustix::fs::openat(
            &folder,
            "dd",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY,
            Mode::empty(),
        );
        folder = File::from(inner.unwrap());
    }
    remove_tree(&place.path().join("dd")).unwrap();
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn mounts_inside_are_not_emptied() {
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("tree");
    let data = place.path().join("data");
    fs::create_dir_all(tree.join("sub/volume")).unwrap();
    fs::write(tree.join("sub/other"), "x").unwrap();
    fs::create_dir(&data).unwrap();
    fs::write(data.join("precious"), "x").unwrap();
    // A bind mount has the same device number as what it covers.
    let script =
        "mount --bind data tree/sub/volume && echo mounted && { read -r _; umount tree/sub/volume; }";
    let mut shell = crate::process::command("sh")
        .current_dir(place.path())
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    io::BufRead::read_line(&mut io::BufReader::new(shell.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line, "mounted\n");
    let refused = remove_tree(&tree);
    let precious = data.join("precious").exists();
    shell.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    assert!(shell.wait().unwrap().success());
    let error = refused.unwrap_err();
    assert_eq!(error.to_string(), "volume: something is mounted there");
    assert!(precious);
    assert!(!tree.join("sub/other").exists());
    remove_tree(&tree).unwrap();
}
