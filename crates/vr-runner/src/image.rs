//! An OS image on a host: fetched, checked and unpacked once, and shared by procs, builds and further images.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vr_common::archive::UnpackOptions;
use vr_common::lock::{FileLock, LockError};
use vr_common::paths::VrRoot;

use crate::container::{ContainerError, empty_file_instead_of_link};
use crate::tarballs::{self, TarballError};

/// Says which tarball an image's `contents` were unpacked from.
const MARK: &str = "contents.mark";

/// Why there is no image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Its tarball cannot be fetched or unpacked.
    #[error("image {name}")]
    Tarball {
        /// The image.
        name: String,
        /// Why.
        source: TarballError,
    },
    /// A file of it cannot be changed.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The lock on it cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file or folder cannot be made or read.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ImageError {
    /// Whether what was asked for cannot be, rather than not now.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Tarball { source: TarballError::NoFileName { .. }, .. })
    }
}

/// Brings an image into place and gives the folder of its contents, which nobody may change.
///
/// It may be killed anywhere and be repeated any number of times; several callers wait for each other.
pub fn image_contents(
    root: &VrRoot,
    name: &str,
    url: &str,
    md5: Option<&str>,
) -> Result<PathBuf, ImageError> {
    let folder = root.image(name);
    let contents = folder.join("contents");
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ImageError::Io { action, path, source }
    };
    let tarball_error = |source| ImageError::Tarball { name: name.to_owned(), source };
    fs::create_dir_all(&folder).map_err(io_error("make the folder", &folder))?;
    // Only root may enter: an image's set-user-id programs are not for the host's users.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
        .map_err(io_error("close to others", &folder))?;
    let _lock = FileLock::wait(&folder.join(".setup.lock"), || {
        tracing::info!(image = name, "waiting for another setup of the same image");
    })?;
    let tarball = folder.join(tarballs::file_name(url).map_err(tarball_error)?);
    let mark = tarballs::fetch_marked(url, &tarball, md5).map_err(tarball_error)?;
    let mark_file = folder.join(MARK);
    // Without a mark, whoever unpacked it was killed before saying from what.
    if !fs::read_to_string(&mark_file).is_ok_and(|old| old == mark) && contents.exists() {
        // Running containers still use the old one. Moved away it keeps serving them.
        let aside = tempfile::Builder::new()
            .prefix("contents-old-")
            .tempdir_in(&folder)
            .map_err(io_error("make a folder in", &folder))?
            .keep();
        fs::rename(&contents, aside.join("contents")).map_err(io_error("move away", &contents))?;
    }
    tarballs::unpack_or_discard(&tarball, &contents, &UnpackOptions::image()).map_err(tarball_error)?;
    // A link there would lead to a file of a running system, such as systemd's, that no container has.
    empty_file_instead_of_link(&contents, Path::new("etc/resolv.conf"))?;
    fs::write(&mark_file, mark).map_err(io_error("write", &mark_file))?;
    Ok(contents)
}
