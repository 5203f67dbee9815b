//! Where things are on a host: everything is under one root, `/apps` unless `VR_ROOT` says otherwise.

use std::path::{Path, PathBuf};

/// The root of a host's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VrRoot(PathBuf);

impl VrRoot {
    /// A root at the given folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// `$VR_ROOT`, or `/apps`.
    pub fn from_env() -> Self {
        match std::env::var_os("VR_ROOT") {
            Some(path) if !path.is_empty() => Self(PathBuf::from(path)),
            _ => Self(PathBuf::from("/apps")),
        }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Downloaded build tarballs.
    pub fn builds(&self) -> PathBuf {
        self.0.join("builds")
    }

    /// OS images, a folder each.
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// One OS image: its tarball and its unpacked `contents`.
    pub fn image(&self, image_name: &str) -> PathBuf {
        self.images().join(image_name)
    }

    /// Procs, a folder each.
    pub fn procs(&self) -> PathBuf {
        self.0.join("procs")
    }

    /// One proc: `proc.yaml`, `rootfs/`, `work/`, `log`.
    pub fn proc_dir(&self, container_name: &str) -> PathBuf {
        self.procs().join(container_name)
    }

    /// vbuild's checkouts and caches: `RAPTOR_HOME` if set, else `builder` below the root,
    /// else (not root and no `VR_ROOT`) `~/.raptor`.
    pub fn builder(&self) -> PathBuf {
        if let Some(home) = std::env::var_os("RAPTOR_HOME").filter(|h| !h.is_empty()) {
            return PathBuf::from(home);
        }
        let own_root = std::env::var_os("VR_ROOT").is_some_and(|r| !r.is_empty());
        if !own_root
            && !rustix::process::geteuid().is_root()
            && let Some(home) = std::env::var_os("HOME")
        {
            return PathBuf::from(home).join(".raptor");
        }
        self.0.join("builder")
    }
}
