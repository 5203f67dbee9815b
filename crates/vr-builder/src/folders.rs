//! vbuild's own folders on a host.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use vr_common::paths::VrRoot;

use crate::BuildError;

/// The folder of repositories, caches, locks and scratch folders, by default `/apps/builder`.
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

    /// The data of all apps' repositories.
    pub fn apps(&self) -> PathBuf {
        self.0.join("repo")
    }

    /// The data of an app's repository.
    pub fn app(&self, folder: &str) -> PathBuf {
        self.apps().join(folder)
    }

    /// The data of all buildpacks' repositories.
    pub fn buildpacks(&self) -> PathBuf {
        self.0.join("buildpacks")
    }

    /// The data of a buildpack's repository.
    pub fn buildpack(&self, folder: &str) -> PathBuf {
        self.buildpacks().join(folder)
    }

    /// What buildpacks keep for all apps.
    pub fn caches(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// What buildpacks keep from one build of an app to the next.
    pub fn cache(&self, folder: &str) -> PathBuf {
        self.caches().join(folder)
    }

    /// A note of how large a cache is.
    pub fn cache_size(&self, folder: &str) -> PathBuf {
        self.caches().join(format!(".{folder}.size"))
    }

    /// Changes of a cache that are not in it yet.
    pub fn cache_changes(&self, folder: &str) -> PathBuf {
        self.caches().join(format!(".{folder}.changes"))
    }

    /// The lock that a build of an app holds from its checkout to its end. When it was taken last is the time of its
    /// last change.
    pub fn app_lock(&self, folder: &str) -> PathBuf {
        self.0.join("locks").join(format!("{folder}.lock"))
    }

    /// The lock on a buildpack's repository. It has another name than an app's, for a repository may be both at once.
    pub fn buildpack_lock(&self, folder: &str) -> PathBuf {
        self.0.join("locks").join(format!("buildpack-{folder}.lock"))
    }

    /// Where each run has a folder of its own.
    pub fn scratch(&self) -> PathBuf {
        self.0.join("scratch")
    }

    /// Makes a folder that root alone may enter. What is in it belongs to the build user, who may be somebody else on the
    /// host as well.
    pub(crate) fn make_private(&self, folder: &Path) -> Result<(), BuildError> {
        fs::create_dir_all(folder).map_err(BuildError::io("make", folder))?;
        let mode = fs::metadata(folder).map_err(BuildError::io("look at", folder))?.mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(folder, Permissions::from_mode(0o700))
                .map_err(BuildError::io("close to others", folder))?;
        }
        Ok(())
    }
}
