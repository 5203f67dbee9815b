//! A file system of its own to measure on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::umount;
use vr_common::process::command;

use super::programs::checked;

/// Its size, in bytes. The file it is in has holes, and so takes what was written to it at some time.
const SIZE: u64 = 4 << 30;

/// An ext4 as `mkfs.ext4` makes it, in a file; unmounted when dropped. An ext4 without a journal, which some virtual
/// machines have, spends most of a build on looking for inodes that nobody removed in the last minutes.
///
/// It is to be made after [`super::enter_private_mounts`]: of a benchmark that was killed, the kernel unmounts it.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Makes it in a folder and mounts it there.
    pub fn make(below: &Path) -> Result<Self> {
        let file = tempfile::NamedTempFile::new_in(below)
            .with_context(|| format!("cannot make a file in {}", below.display()))?;
        file.as_file().set_len(SIZE)?;
        // All is written at once, and nothing by the kernel while something is measured.
        let at_once = "lazy_itable_init=0,lazy_journal_init=0";
        checked(command("mkfs.ext4").args(["-q", "-F", "-E", at_once]).arg(file.path()))?;
        let path = below.join("disk");
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        checked(command("mount").args(["-o", "loop"]).arg(file.path()).arg(&path))?;
        Ok(Self { path })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount(&self.path) {
            eprintln!("cannot unmount {}: {error}", self.path.display());
        }
    }
}
