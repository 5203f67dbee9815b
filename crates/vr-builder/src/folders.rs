//! vbuild's own folders on a host.

use std::path::{Path, PathBuf};

use vr_common::paths::VrRoot;

/// The folder of checkouts, caches, locks and scratch folders, by default `/apps/builder`.
#[derive(Debug, Clone)]
pub struct Folders(PathBuf);

impl Folders {
    /// Those of a host, see [`VrRoot::builder`].
    pub fn of(root: &VrRoot) -> Self {
        Self(root.builder())
    }

    /// The folder that holds all others.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The checkout of an app's repository.
    pub fn app(&self, folder: &str) -> PathBuf {
        self.0.join("repo").join(folder)
    }

    /// The checkout of a buildpack's repository.
    pub fn buildpack(&self, folder: &str) -> PathBuf {
        self.0.join("buildpacks").join(folder)
    }

    /// What buildpacks keep from one build of an app to the next.
    pub fn cache(&self, folder: &str) -> PathBuf {
        self.0.join("cache").join(folder)
    }

    /// The lock that a build of an app holds from its checkout to its end.
    pub fn app_lock(&self, folder: &str) -> PathBuf {
        self.0.join("locks").join(format!("{folder}.lock"))
    }

    /// The lock on a buildpack's checkout. It has another name than an app's, for a repository may be both at once.
    pub fn buildpack_lock(&self, folder: &str) -> PathBuf {
        self.0.join("locks").join(format!("buildpack-{folder}.lock"))
    }

    /// Where each run has a folder of its own.
    pub fn scratch(&self) -> PathBuf {
        self.0.join("scratch")
    }
}
