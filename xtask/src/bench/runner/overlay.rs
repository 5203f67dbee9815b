//! Mounts that the peers need, and that do not outlive the benchmark.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const CGROUPS: &str = "/sys/fs/cgroup";

/// An overlay that is mounted while this lives.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is busy goes with the namespace.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The folders of an overlay and the place it is mounted on.
#[derive(Debug, Clone)]
pub struct Overlay {
    lower: PathBuf,
    upper: PathBuf,
    work: PathBuf,
    /// Where it is mounted.
    pub place: PathBuf,
}

impl Overlay {
    /// Folders of its own in `folder`, over `lower`.
    pub fn make(folder: &Path, lower: &Path) -> Result<Self> {
        let made = |name: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
            Ok(path)
        };
        let lower = lower.to_owned();
        Ok(Self { lower, upper: made("upper")?, work: made("work")?, place: made("root")? })
    }

    /// Mounts it.
    pub fn mount(&self) -> Result<Mounted> {
        let (lower, upper, work) = (self.lower.display(), self.upper.display(), self.work.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("overlay"), &self.place, Some("overlay"), flags, Some(options.as_str()))
            .with_context(|| format!("cannot mount an overlay on {}", self.place.display()))?;
        Ok(Mounted(self.place.clone()))
    }
}

/// Whether `/sys/fs/cgroup` is the second version's tree and nothing else.
pub fn cgroups_are_unified() -> bool {
    Path::new(CGROUPS).join("cgroup.controllers").exists()
}

/// Puts the second version's tree on `/sys/fs/cgroup`, for as long as the returned value lives. crun works with
/// nothing else.
pub fn unify_cgroups() -> Result<Mounted> {
    mount(Some("cgroup2"), CGROUPS, Some("cgroup2"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount cgroup2 on {CGROUPS}"))?;
    Ok(Mounted(CGROUPS.into()))
}

/// Refuses a path that the options of an overlay cannot hold.
pub fn check_path(path: &Path) -> Result<()> {
    let text = path.to_string_lossy();
    if text.contains([',', ':', '\\', '"', ' ']) {
        bail!(
            "the benchmark cannot work below {text}: the path holds a comma, colon, quote, space or backslash"
        );
    }
    Ok(())
}
