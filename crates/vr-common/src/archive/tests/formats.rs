//! Archives as other programs make them: every format, with everything that each can hold.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{SeekFrom as Seek, Timespec, Timestamps, makedev, seek, utimensat};

use super::*;
use crate::process::command;

/// What a format cannot hold, or a program does not put into it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lacks {
    /// Nothing that any format holds.
    Nothing,
    /// Extended attributes and parts of seconds.
    Attributes,
    /// And long names, times before 1970, large numbers, strange bytes.
    MostThings,
}

/// A tree with what is hard to archive. `huge` is a file of 9 GiB that is one hole but for its ends.
fn hard_tree(dir: &Path, lacks: Lacks, huge: bool) {
    fs::create_dir_all(dir.join("empty folder")).unwrap();
    fs::write(dir.join("plain"), "text").unwrap();
    fs::write(dir.join("nothing"), "").unwrap();
    fs::write(dir.join("larger"), random_bytes(300_000)).unwrap();
    fs::hard_link(dir.join("plain"), dir.join("same as plain")).unwrap();
    symlink("../not/there", dir.join("link")).unwrap();
    let near = dir.join("n".repeat(90));
    fs::create_dir(&near).unwrap();
    // Fits into the two fields that ustar has for a name.
    fs::write(near.join("m".repeat(60)), "long").unwrap();
    fs::set_permissions(dir.join("larger"), Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::lchown(dir.join("nothing"), Some(2_097_151), Some(1234)).unwrap();
    mknodat(CWD, dir.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    mknodat(CWD, dir.join("character"), FileType::CharacterDevice, Mode::RUSR, makedev(5, 261)).unwrap();
    mknodat(CWD, dir.join("block"), FileType::BlockDevice, Mode::WUSR, makedev(259, 7)).unwrap();
    let holes = File::create(dir.join("holes")).unwrap();
    holes.set_len(8 << 20).unwrap();
    for piece in 1..30 {
        holes.write_all_at(b"data", piece * (256 << 10)).unwrap();
    }
    File::create(dir.join("only a hole")).unwrap().set_len(1 << 20).unwrap();
    let mut seconds = 1_600_000_000;

    if lacks != Lacks::MostThings {
        let long = dir.join("d".repeat(200));
        fs::create_dir(&long).unwrap();
        let longer = long.join("e".repeat(250));
        fs::write(&longer, "longest").unwrap();
        fs::hard_link(&longer, dir.join("z hard link to a long name")).unwrap();
        symlink("t".repeat(300), dir.join("link to a long name")).unwrap();
        fs::write(dir.join(OsStr::from_bytes(b"latin-\xe9 \xff")), "bytes").unwrap();
        fs::write(dir.join("two\nlines"), "newline").unwrap();
        symlink(OsStr::from_bytes(b"\xfe\n"), dir.join("link to strange bytes")).unwrap();
        let large = (Some(3_000_000_000), Some(2_097_152));
        std::os::unix::fs::lchown(dir.join("same as plain"), large.0, large.1).unwrap();
        seconds = -1_600_000_000;
    }
    if lacks == Lacks::Nothing {
        let file = File::open(dir.join("nothing")).unwrap();
        assert!(xattrs::set(&file, "user.text", b"a = b\nc\0"), "the file system keeps no attributes");
        assert!(xattrs::set(File::open(dir.join("empty folder")).unwrap(), "user.on.folder", b""));
        // cap_net_bind_service and cap_net_raw, permitted and effective, as setcap writes them.
        let capability = [1_u8, 0, 0, 2, 0, 0x24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let file = File::open(dir.join("larger")).unwrap();
        assert!(xattrs::set(&file, "security.capability", &capability));
    }
    if huge {
        let file = File::create(dir.join("huge")).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"end", (9 << 30) - 3).unwrap();
    }
    for (number, name) in ["plain", "link", "pipe", "nothing", "empty folder"].into_iter().enumerate() {
        let nanoseconds = if lacks == Lacks::Nothing { 200_000_000 * number as i64 } else { 0 };
        let time = Timespec { tv_sec: seconds - number as i64, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, dir.join(name), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Everything about every file in a folder, by its path. Of large files only the pieces that are not holes are read.
fn describe(dir: &Path, nanoseconds: bool) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    let mut first_names = BTreeMap::new();
    while let Some(path) = left.pop() {
        let mut inside: Vec<_> =
            fs::read_dir(&path).into_iter().flatten().map(|e| e.unwrap().path()).collect();
        inside.sort();
        for path in inside {
            let metadata = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(dir).unwrap().as_os_str().as_bytes().to_vec();
            let kind = metadata.file_type();
            let mut about = format!("{:o} {}:{}", metadata.mode(), metadata.uid(), metadata.gid());
            about += &format!(" at {}", metadata.mtime());
            if nanoseconds {
                about += &format!(".{:09}", metadata.mtime_nsec());
            }
            if kind.is_symlink() {
                about += &format!(" to {:?}", fs::read_link(&path).unwrap());
            } else if kind.is_char_device() || kind.is_block_device() {
                about += &format!(" device {}", metadata.rdev());
            } else if kind.is_file() {
                let file = File::open(&path).unwrap();
                let sum = checksum(&file, metadata.len());
                let attributes = xattrs::read(&file, TarballKind::Image).unwrap();
                about += &format!(" {} bytes {sum:x} {attributes:?}", metadata.len());
                let first = first_names.entry(metadata.ino()).or_insert_with(|| name.clone());
                about += &format!(" same as {}", String::from_utf8_lossy(first));
            } else if kind.is_dir() {
                let attributes = xattrs::read(File::open(&path).unwrap(), TarballKind::Image).unwrap();
                about += &format!(" {attributes:?}");
                left.push(path);
            }
            found.insert(name, about);
        }
    }
    found
}

/// Of the bytes that are not 0, and where they are.
fn checksum(file: &File, size: u64) -> u64 {
    let mut sum = 0_u64;
    let mut at = 0;
    while let Ok(begin) = seek(file, Seek::Data(at)) {
        let end = seek(file, Seek::Hole(begin)).unwrap().min(size);
        let mut data = vec![0; usize::try_from(end - begin).unwrap()];
        file.read_exact_at(&mut data, begin).unwrap();
        for (offset, byte) in (begin..).zip(data).filter(|(_, byte)| *byte != 0) {
            sum = sum.wrapping_mul(31).wrapping_add(offset ^ (u64::from(byte) << 56));
        }
        at = end;
    }
    sum
}

fn run(dir: &Path, program: &str, arguments: &[&str]) {
    let output = command(program).current_dir(dir).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Unpacks `theirs.tar.gz` and compares all of it with the folder `source` beside it, but for what is never unpacked.
fn compare(place: &Path, form: &str, nanoseconds: bool) {
    let copy = place.join("copy");
    let unpacked = unpack(&place.join("theirs.tar.gz"), &copy, &UnpackOptions::image());
    let skipped = unpacked.unwrap_or_else(|error| panic!("{form}: {error}")).skipped;
    let mut expected = describe(&place.join("source"), nanoseconds);
    let special = ["pipe", "character", "block"].map(|name| expected.remove(name.as_bytes()));
    assert_eq!(skipped, special.iter().flatten().count() as u64, "{form}");
    assert_same(form, &describe(&copy, nanoseconds), &expected);
    remove_tree(&copy).unwrap();
}

/// Shows those files only that differ.
fn assert_same(form: &str, found: &BTreeMap<Vec<u8>, String>, expected: &BTreeMap<Vec<u8>, String>) {
    let names: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let shown: Vec<String> = names
        .into_iter()
        .filter(|name| found.get(*name) != expected.get(*name))
        .map(|name| {
            let shown = String::from_utf8_lossy(name);
            format!("{shown}:\n  found    {:?}\n  expected {:?}", found.get(name), expected.get(name))
        })
        .collect();
    assert!(shown.is_empty(), "{form}:\n{}", shown.join("\n"));
}

#[test]
fn archives_of_gnu_tar_in_every_format() {
    let attributes: &[&str] = &["--xattrs", "--xattrs-include=*"];
    let forms: [(&str, Lacks, bool, &[&str]); 9] = [
        ("--format=v7", Lacks::MostThings, false, &[]),
        ("--format=ustar", Lacks::MostThings, false, &[]),
        ("--format=oldgnu", Lacks::Attributes, true, &["--sparse"]),
        ("--format=gnu", Lacks::Attributes, true, &["--sparse"]),
        ("--format=gnu", Lacks::Attributes, false, &[]),
        ("--format=pax", Lacks::Nothing, true, &["--sparse", "--sparse-version=0.0"]),
        ("--format=pax", Lacks::Nothing, true, &["--sparse", "--sparse-version=0.1"]),
        ("--format=pax", Lacks::Nothing, true, &["--sparse", "--sparse-version=1.0"]),
        ("--format=pax", Lacks::Nothing, false, &[]),
    ];
    for (format, lacks, sparse, options) in forms {
        let place = tempfile::tempdir().unwrap();
        let source = place.path().join("source");
        hard_tree(&source, lacks, sparse);
        if format == "--format=v7" {
            for name in [&*"n".repeat(90), "nothing", "block", "character", "pipe"] {
                remove_tree(&source.join(name)).unwrap();
            }
        }
        let pax = lacks == Lacks::Nothing;
        let more = if pax { attributes } else { &[] };
        let packing = ["-czf", "theirs.tar.gz", "--numeric-owner", format, "-C", "source", "."];
        run(place.path(), "tar", &[more, options, &packing].concat());
        let form = format!("{format} {options:?}");
        compare(place.path(), &form, pax);
    }
}

#[test]
fn holes_stay_holes() {
    let forms: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ];
    let place = tempfile::tempdir().unwrap();
    hard_tree(&place.path().join("source"), Lacks::Attributes, true);
    for (number, form) in forms.into_iter().enumerate() {
        let packing = ["-czSf", "theirs.tar.gz", "-C", "source", "holes", "huge", "only a hole"];
        run(place.path(), "tar", &[form, &packing].concat());
        let copy = place.path().join(number.to_string());
        let summary = unpack(&place.path().join("theirs.tar.gz"), &copy, &mine()).unwrap();
        assert_eq!(summary.bytes, (8 << 20) + (9 << 30) + (1 << 20), "{form:?}");
        for (name, most) in [("holes", 1 << 20), ("huge", 64 << 10), ("only a hole", 0)] {
            let stored = fs::metadata(copy.join(name)).unwrap().blocks() * 512;
            assert!(stored <= most, "{form:?}: {name} takes {stored} bytes");
        }
    }
}

#[test]
fn archives_of_pythons_tarfile_in_every_format() {
    let program = "import sys, tarfile
with tarfile.open('theirs.tar.gz', 'w:gz', format=getattr(tarfile, sys.argv[1])) as archive:
    archive.add('source', '.')";
    for (format, lacks) in [
        ("USTAR_FORMAT", Lacks::MostThings),
        ("GNU_FORMAT", Lacks::Attributes),
        ("PAX_FORMAT", Lacks::Attributes),
    ] {
        let place = tempfile::tempdir().unwrap();
        let source = place.path().join("source");
        hard_tree(&source, lacks, false);
        run(place.path(), "python3", &["-c", program, format]);
        compare(place.path(), format, false);
    }
}

#[test]
fn python_and_gnu_tar_read_everything_that_is_packed() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    hard_tree(&source, Lacks::Nothing, false);
    let summary = pack(&source, &place.path().join("ours.tar.gz"), &PackOptions::image()).unwrap();
    let mut expected = describe(&source, false);
    let files = ["plain", "larger", "holes", "only a hole"];
    let size = |name: &&str| fs::metadata(source.join(name)).unwrap().len();
    let others = ["long", "longest", "bytes", "newline"].concat().len() as u64;
    assert_eq!(summary.unpacked_bytes, files.iter().map(size).sum::<u64>() + others);
    assert_eq!(summary.entries, expected.len() as u64);

    fs::create_dir(place.path().join("copy")).unwrap();
    run(
        place.path(),
        "tar",
        &["-xpf", "ours.tar.gz", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", "copy"],
    );
    let copy = place.path().join("copy");
    assert_same("tar", &describe(&copy, false), &expected);

    let program = "import tarfile
tarfile.open('ours.tar.gz').extractall('by python', numeric_owner=True, filter='fully_trusted')";
    run(place.path(), "python3", &["-c", program]);
    let mut by_python = describe(&place.path().join("by python"), false);
    // Python leaves out attributes and the times of symbolic links.
    for about in expected.values_mut().chain(by_python.values_mut()) {
        for (begin, end) in [("[", "]"), (" at ", " to ")] {
            if let (Some(begin), Some(end)) = (about.find(begin), about.rfind(end)) {
                about.replace_range(begin..end, "");
            }
        }
    }
    assert_same("python", &by_python, &expected);
}

#[test]
fn several_streams_are_one_archive_in_every_compression() {
    let place = tempfile::tempdir().unwrap();
    let tar = tar_bytes(&[file("a", &random_bytes(300_000)), file("b", b"second")]);
    let (front, back) = tar.split_at(100_000);
    for extension in ["gz", "bz2", "xz", "zst"] {
        let tarball = place.path().join(format!("x.tar.{extension}"));
        let compression = Compression::from_name(&tarball).unwrap();
        let mut bytes = Vec::new();
        for part in [front, back] {
            let mut encoder = encoder::Encoder::new(compression, bytes, 1).unwrap();
            encoder.write_all(part).unwrap();
            bytes = encoder.finish().unwrap();
        }
        fs::write(&tarball, bytes).unwrap();
        let copy = place.path().join(extension);
        assert_eq!(unpack(&tarball, &copy, &mine()).unwrap().bytes, 300_006, "{extension}");
        assert_eq!(fs::read_to_string(copy.join("b")).unwrap(), "second");
    }
}

#[test]
fn broken_maps_of_sparse_files_are_refused() {
    for (reason, fields) in [
        ("out of order", &[("offset", "0"), ("offset", "0")][..]),
        ("out of order", &[("numbytes", "0")]),
        ("is cut off", &[("offset", "0")]),
        ("do not fit its size", &[("offset", "0"), ("numbytes", "11")]),
        ("overlap", &[("offset", "5"), ("numbytes", "5"), ("offset", "9"), ("numbytes", "1")]),
        ("a number in a header is none", &[("offset", "-1"), ("numbytes", "0")]),
    ] {
        let mut builder = Builder::new(Vec::new());
        let size = [("GNU.sparse.size".to_owned(), "10")];
        let fields = fields.iter().map(|(key, value)| (format!("GNU.sparse.{key}"), *value));
        let fields: Vec<_> = size.into_iter().chain(fields).collect();
        builder.append_pax_extensions(fields.iter().map(|(k, v)| (k.as_str(), v.as_bytes()))).unwrap();
        let mut bytes = builder.get_ref().clone();
        bytes.extend(tar_bytes(&[file("holes", b"")]));
        let place = Place::with_bytes("x.tar", &bytes);
        let error = crate::exit::chain(&place.unpack(&mine()).unwrap_err());
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn an_owner_who_is_nobody_to_the_kernel_is_refused() {
    let mut bytes = tar_bytes(&[file("a", b"")]);
    let mut header = Header::from_byte_slice(&bytes[..512]).clone();
    header.set_uid(u32::MAX.into());
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
    let place = Place::with_bytes("x.tar", &bytes);
    let error = place.unpack(&UnpackOptions::image()).unwrap_err().to_string();
    assert!(error.ends_with("entry \"a\" has an owner or a mode whose number is too large"), "{error}");
}
