//! What a build leaves in its output folder: `build.tar.gz`, `build_result.yaml` and `compile.log`.

use std::fs;
use std::path::{Path, PathBuf};

use vr_common::build_data::BuildData;

use crate::BuildError;
use vr_runner::job::{Job, Locked, Log, is_same_file, move_file, remove_file, write_whole};

/// The files of one build, none of which is there at first, but for one that the build is made after.
#[derive(Debug)]
pub(crate) struct Output {
    /// The tarball's path.
    pub tarball: PathBuf,
    result: PathBuf,
    /// The log of the compile step.
    pub log: Log,
    /// On the folder: the files of two builds must not be mixed.
    _lock: Locked,
}

impl Output {
    /// In `folder`, which is made when it is missing. The files of an earlier build go: those of a build that fails
    /// must not be taken for its own. `source`, which the build is made after, stays.
    pub(crate) fn prepare(job: &Job, folder: &Path, source: Option<&Path>) -> Result<Self, BuildError> {
        fs::create_dir_all(folder).map_err(BuildError::io("make", folder))?;
        let folder = folder.canonicalize().map_err(BuildError::io("find", folder))?;
        let lock = job.lock(&folder)?;
        let output = Self {
            _lock: lock,
            tarball: folder.join("build.tar.gz"),
            result: folder.join("build_result.yaml"),
            log: Log::new(folder.join("compile.log"))
                .map_err(BuildError::io("remove", folder.join("compile.log")))?,
        };
        let is_source = source.is_some_and(|source| is_same_file(source, &output.result));
        for old in [&output.tarball].into_iter().chain(Some(&output.result).filter(|_| !is_source)) {
            remove_file(old).map_err(BuildError::io("remove", old))?;
        }
        Ok(output)
    }

    /// Puts the finished tarball in its place.
    pub(crate) fn place_tarball(&self, packed: &Path) -> Result<(), BuildError> {
        move_file(packed, &self.tarball).map_err(BuildError::io("write", &self.tarball))
    }

    /// Writes `build_result.yaml`.
    pub(crate) fn write_result(&self, data: &BuildData) -> Result<(), BuildError> {
        let text = data.to_yaml()?;
        write_whole(&self.result, text.as_bytes()).map_err(BuildError::io("write", &self.result))
    }

    /// Takes the tarball away again, because a later step failed.
    pub(crate) fn take_back(&self) {
        if let Err(error) = remove_file(&self.tarball) {
            tracing::warn!(%error, "a tarball of a build that failed stays");
        }
    }
}
