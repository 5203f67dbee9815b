//! What a proc's containers have as their root: the proc's own folder over its build and its image, or a throw-away
//! folder for a container beside the proc's own.

use super::layer::HeldLayer;
use super::record::Record;
use super::scratch::Scratch;
use super::{Proc, ProcError};
use crate::container::RootFs;
use crate::image::HeldImage;

/// What a container sees of what the app has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// Everything, and it writes to the same place: the proc's own container. There can only be one.
    Own,
    /// Everything as well, but what it writes itself is thrown away.
    Beside,
    /// What was deployed and nothing else, so that what the app wrote cannot change how a test of it ends. Without a
    /// build, everything: all that is in `/app` is then the app's own.
    Pristine,
}

/// A container's root and what must not change or go while the container runs.
#[derive(Debug)]
pub(super) struct Held {
    layer: Option<HeldLayer>,
    image: Option<HeldImage>,
    scratch: Option<Scratch>,
}

impl Held {
    /// To be called when the container is there. Its image may have been replaced between being held and being mounted.
    pub fn renew(&mut self) -> Result<(), ProcError> {
        if let Some(image) = &mut self.image {
            image.renew()?;
        }
        Ok(())
    }
}

/// The root of a container; the second value is to be kept for as long as that runs.
pub(super) fn root(proc: &Proc, record: &Record, view: View) -> Result<(RootFs, Held), ProcError> {
    let not_set_up = || ProcError::NotSetUp { name: proc.name.clone() };
    let layer = match &record.layer {
        Some(key) => Some(HeldLayer::find(&proc.root, key)?.ok_or_else(not_set_up)?),
        None => None,
    };
    let image = match &proc.image {
        Some(contents) => Some(HeldImage::find(contents)?.ok_or_else(not_set_up)?),
        None => None,
    };
    let mut lowers: Vec<_> = layer.iter().map(HeldLayer::path).chain(proc.image.clone()).collect();
    let mut held = Held { layer, image, scratch: None };
    if view == View::Own {
        record.put_texts(&proc.rootfs())?;
        let root = match lowers.is_empty() {
            true => RootFs::Directory(proc.rootfs()),
            false => RootFs::Overlay { lowers, upper: proc.rootfs(), work: proc.folder().join("work") },
        };
        return Ok((root, held));
    }
    let has_files_of_its_own = held.layer.is_some() || proc.data.app_folder.is_some();
    if view == View::Beside || !has_files_of_its_own {
        if lowers.is_empty() {
            return Ok((RootFs::Directory(proc.rootfs()), held));
        }
        lowers.insert(0, proc.rootfs());
    }
    let scratch = Scratch::create(&proc.folder())?;
    let (upper, work) = (scratch.upper(), scratch.work());
    record.put_texts(&upper)?;
    held.scratch = Some(scratch);
    let root = match lowers.is_empty() {
        true => RootFs::Directory(upper),
        false => RootFs::Overlay { lowers, upper, work },
    };
    Ok((root, held))
}
