//! A real Debian for tests on OS images: what `cargo xtask test` prepared once, and a server of its packages.

use std::fs;
use std::path::{Path, PathBuf};

use vr_testing::{Answer, Server};

/// The tarball of the base system, in [`Debian::folder`].
pub const BASE: &str = "base.tar.gz";
/// The folder of the packages that are not in the base, with their index, in [`Debian::folder`].
pub const PACKAGES: &str = "packages";

/// A Debian that was prepared.
#[derive(Debug)]
pub struct Debian {
    folder: PathBuf,
}

impl Debian {
    /// Where it is kept, prepared or not.
    pub fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("test-image")
    }

    /// The Debian of this workspace.
    ///
    /// # Panics
    /// When there is none.
    pub fn prepared() -> Self {
        let folder = Self::folder();
        assert!(
            folder.join(BASE).is_file(),
            "{} is not there: run `cargo xtask test` once, as root and with a network, to prepare it",
            folder.display()
        );
        Self { folder }
    }

    /// The tarball of the base system.
    pub fn base(&self) -> PathBuf {
        self.folder.join(BASE)
    }

    /// Serves the packages as a flat repository, which is at the path `/`.
    pub fn serve(&self) -> Server {
        let folder = self.folder.join(PACKAGES);
        Server::start(move |path| {
            let name = path.rsplit('/').next().unwrap_or_default();
            fs::read(folder.join(name)).map_or(Answer::Status("404 Not Found"), Answer::Body)
        })
    }
}
