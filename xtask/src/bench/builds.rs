//! How long it takes to set up procs of a large build, against unpacking it with `tar`.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vr_common::process::command;

use super::stats::Samples;
use super::world::{World, checked, tar};

/// The ports of the procs of one build.
const PORTS: std::ops::RangeInclusive<u16> = 101..=110;
/// As in a folder of JavaScript packages: very many small files …
const SMALL_FILES: usize = 12_000;
const SMALL_FILE: usize = 8 * 1024;
const FILES_IN_A_FOLDER: usize = 12;
/// … and a few large ones.
const LARGE_FILES: usize = 13;
const LARGE_FILE: usize = 8 * 1024 * 1024;

/// What was measured.
#[derive(Debug, Default)]
pub struct Builds {
    /// Size of the files, in bytes.
    pub size: u64,
    /// Size of the tarball, in bytes.
    pub packed: u64,
    /// `tar xzf`.
    pub tar: Samples,
    /// The same until all of it is on the disk.
    pub tar_on_disk: Samples,
    /// Setup with nothing there: the tarball is copied from where the URL says, checked and unpacked.
    pub first_with_copy: Samples,
    /// Setup with the tarball there.
    pub first: Samples,
    /// Setup of the second proc of the same build.
    pub second: Samples,
    /// Setup of the tenth proc of the same build.
    pub tenth: Samples,
}

/// Sets up and unpacks in turn.
pub fn measure(world: &World, rounds: u32) -> Result<Builds> {
    eprintln!("making a build of {} MB", (SMALL_FILES * SMALL_FILE + LARGE_FILES * LARGE_FILE) / 1_000_000);
    let files = world.path().join("large");
    let mut builds = Builds { size: make_files(&files)?, ..Builds::default() };
    let tarball = world.path().join("large.tar.gz");
    tar(&files, &tarball)?;
    set_aside(world, &files)?;
    builds.packed = fs::metadata(&tarball)?.len();
    let md5 = checked(command("md5sum").arg(&tarball))?;
    let md5 = md5.split(' ').next().unwrap_or_default();
    let procs = PORTS
        .map(|port| world.proc_file(port, "/bin/true", &tarball, Some(md5)))
        .collect::<Result<Vec<PathBuf>>>()?;

    for round in 0..rounds {
        eprintln!("unpacking, round {} of {rounds}", round + 1);
        forget_procs(world)?;
        set_aside(world, &world.root().join("builds"))?;
        builds.first_with_copy.push(set_up(world, &procs[0])?);
        forget_procs(world)?;
        // Each comes after the other as often as before it.
        if round % 2 == 0 {
            unpack(world, &tarball, &mut builds)?;
        }
        builds.first.push(set_up(world, &procs[0])?);
        for (index, file) in procs.iter().enumerate().skip(1) {
            let took = set_up(world, file)?;
            match index {
                1 => builds.second.push(took),
                9 => builds.tenth.push(took),
                _ => {}
            }
        }
        if round % 2 == 1 {
            forget_procs(world)?;
            unpack(world, &tarball, &mut builds)?;
        }
    }
    forget_procs(world)?;
    Ok(builds)
}

/// Every proc, and what was unpacked for them; tarballs and the image stay.
fn forget_procs(world: &World) -> Result<()> {
    set_aside(world, &world.root().join("procs"))?;
    set_aside(world, &world.root().join("builds/unpacked"))
}

/// Takes a folder out of the way, if it is there. Removed right away, it would slow down whatever is measured next: ext4
/// looks at every place of a file that was removed in the last minutes before it makes a new file.
fn set_aside(world: &World, path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let aside = tempfile::Builder::new().prefix("aside-").tempdir_in(world.path())?.keep();
    fs::rename(path, aside.join("folder")).with_context(|| format!("cannot move {}", path.display()))
}

fn set_up(world: &World, file: &Path) -> Result<Duration> {
    let mut setup = world.vrun("setup", file);
    // A setup of another proc must not pay for what this machine has still to write.
    nix::unistd::sync();
    let begin = Instant::now();
    checked(&mut setup)?;
    Ok(begin.elapsed())
}

fn unpack(world: &World, tarball: &Path, builds: &mut Builds) -> Result<()> {
    let folder = world.path().join("unpacked");
    fs::create_dir(&folder)?;
    let mut unpack = command("tar");
    unpack.arg("-C").arg(&folder).arg("-xzf").arg(tarball).stdout(Stdio::null());
    nix::unistd::sync();
    let begin = Instant::now();
    checked(&mut unpack)?;
    builds.tar.push(begin.elapsed());
    nix::unistd::syncfs(File::open(&folder)?)?;
    builds.tar_on_disk.push(begin.elapsed());
    set_aside(world, &folder)
}

/// Files that are always the same and that halve when they are compressed; gives their size.
fn make_files(folder: &Path) -> Result<u64> {
    let mut content = Content { state: 0x2545_f491_4f6c_dd1d };
    let mut size = 0;
    for number in 0..SMALL_FILES {
        let package = number / FILES_IN_A_FOLDER;
        let path = folder.join(format!("node_modules/package-{package}/lib/module-{number}.js"));
        // From nearly nothing to twice the usual, as real ones differ in size.
        size += content.write(&path, SMALL_FILE * (1 + number % 31) / 16)?;
    }
    for number in 0..LARGE_FILES {
        size += content.write(&folder.join(format!("assets/bundle-{number}.bin")), LARGE_FILE)?;
    }
    Ok(size)
}

/// Half noise, half text.
struct Content {
    state: u64,
}

impl Content {
    fn write(&mut self, path: &Path, size: usize) -> Result<u64> {
        const TEXT: &[u8; 32] = b"module.exports = require('./x');";
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut file = BufWriter::new(file);
        let mut written = 0;
        while written < size {
            for _ in 0..4 {
                file.write_all(&self.next().to_ne_bytes())?;
            }
            file.write_all(TEXT)?;
            written += 64;
        }
        file.flush()?;
        Ok(written as u64)
    }

    /// Marsaglia's xorshift: the same numbers each time.
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}
