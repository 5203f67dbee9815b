//! Tarballs, as `tar` makes and unpacks them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vr_common::process::command;

use super::programs::{checked, clocked};
use super::world::World;

/// A tarball, and its md5 sum for those who are to check it.
#[derive(Debug, Clone)]
pub struct Tarball {
    /// Where it is.
    pub path: PathBuf,
    /// The sum.
    pub md5: Option<String>,
}

impl Tarball {
    /// Packs the content of folders, one after the other, compressed as the name says. Its sum is not taken.
    pub fn pack(folders: &[&Path], path: PathBuf) -> Result<Self> {
        let mut tar = command("tar");
        tar.arg("-caf").arg(&path);
        for folder in folders {
            tar.arg("-C").arg(folder).arg(".");
        }
        checked(&mut tar)?;
        Ok(Self { path, md5: None })
    }

    /// The same with its sum.
    pub fn summed(self) -> Result<Self> {
        let md5 = checked(command("md5sum").arg(&self.path))?;
        let md5 = md5.split(' ').next().map(str::to_owned);
        Ok(Self { md5, ..self })
    }

    /// The beginning of its name.
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        name.split('.').next().unwrap_or_default().to_owned()
    }

    /// Its size, in bytes.
    pub fn bytes(&self) -> Result<u64> {
        let found =
            fs::metadata(&self.path).with_context(|| format!("cannot find {}", self.path.display()))?;
        Ok(found.len())
    }
}

/// How long `tar xzf` took.
#[derive(Debug, Clone, Copy)]
pub struct Unpacked {
    /// To its end.
    pub ended: Duration,
    /// Until all is on the disk.
    pub on_disk: Duration,
}

/// `tar xzf` into a new folder, which then is set aside.
pub fn unpack(world: &World, tarball: &Path) -> Result<Unpacked> {
    let folder = world.path().join("unpacked");
    fs::create_dir(&folder)?;
    let (ended, _) = clocked(command("tar").arg("-C").arg(&folder).arg("-xzf").arg(tarball))?;
    let begin = Instant::now();
    nix::unistd::syncfs(File::open(&folder)?)?;
    let on_disk = ended + begin.elapsed();
    world.set_aside(&folder)?;
    Ok(Unpacked { ended, on_disk })
}
