//! What a run leaves in its output folder: the tarball, the YAML file and the log, named after the new image.

use std::fs;
use std::path::{Path, PathBuf};

use vr_common::hash::md5_hex;
use vr_common::image_data::ImageData;
use vr_runner::job::{Job, JobError, Locked, Log, is_same_file, move_file, remove_file, write_whole};

use crate::{Format, ImageOptions, ImagerError};

/// Has a file for each output that somebody is about to write. Beside the images; no image's name begins with a dot.
const LOCKS: &str = ".locks";

/// The files of one run, none of which is there at first.
#[derive(Debug)]
pub(crate) struct Output {
    /// The tarball's path.
    pub tarball: PathBuf,
    result: PathBuf,
    /// What the script said.
    pub log: Log,
    // Another run would take these files away.
    _lock: Locked,
}

impl Output {
    /// In the folder of the options, which is made when it is missing. Waits for another run that writes the same files.
    /// Those of an earlier run go: they must not be taken for this one's should it fail.
    pub(crate) fn prepare(data: &ImageData, options: &ImageOptions, job: &Job) -> Result<Self, JobError> {
        let folder = &options.output;
        fs::create_dir_all(folder).map_err(JobError::io("make", folder))?;
        let folder = folder.canonicalize().map_err(JobError::io("find", folder))?;
        let name = &data.new_image_name;
        let file = |extension: &str| folder.join(format!("{name}.{extension}"));
        let lock = md5_hex(folder.join(name).as_os_str().as_encoded_bytes());
        let lock =
            job.lock(&options.root.images().join(LOCKS).join(format!("{name}-{}.lock", &lock[..8])))?;
        let result = file("yaml");
        let is_source = options.source.as_deref().is_some_and(|source| is_same_file(source, &result));
        let old = Format::ALL.map(|format| file(format.extension()));
        for old in old.iter().chain(Some(&result).filter(|_| !is_source)) {
            remove_file(old).map_err(JobError::io("remove", old))?;
        }
        Ok(Self {
            tarball: file(options.format.extension()),
            result,
            log: Log::new(file("log")).map_err(JobError::io("remove", file("log")))?,
            _lock: lock,
        })
    }

    /// Puts the finished tarball in its place.
    pub(crate) fn place_tarball(&self, packed: &Path) -> Result<(), JobError> {
        move_file(packed, &self.tarball).map_err(JobError::io("write", &self.tarball))
    }

    /// Writes the YAML file.
    pub(crate) fn write_result(&self, data: &ImageData) -> Result<(), ImagerError> {
        let text = data.to_yaml()?;
        Ok(write_whole(&self.result, text.as_bytes()).map_err(JobError::io("write", &self.result))?)
    }

    /// Takes the tarball away again, because something failed.
    pub(crate) fn take_back(&self) {
        if let Err(error) = remove_file(&self.tarball) {
            tracing::warn!(%error, "a tarball of an image that failed stays");
        }
    }
}
