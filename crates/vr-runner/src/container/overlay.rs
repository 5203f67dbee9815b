//! Overlays: several folders as one, in which what is written goes to the upper one alone. A container's root can be
//! one, folders in it can, and what a container left of one can be looked at.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};

use super::ContainerError;
use super::mounts::{Flags, Owners, Step, Trouble, attach, copy_of_handle, explain, new_file_system};
use super::place::{Id, open_directory, open_of_host};

/// How many folders can be below the upper one: the kernel takes their names, which are those of handles, in a text of at most
/// 255 bytes.
pub(super) const MOST_LOWERS: usize = 12;

/// The folders of an overlay, opened before anything is mounted: a mount might change where their paths lead.
pub(super) struct Layers<'a> {
    lowers: Vec<Layer<'a>>,
    /// Holds the upper and the work folder, as those two have to be in one and the same mount.
    parent: Layer<'a>,
    upper: &'a Path,
    work: &'a Path,
}

struct Layer<'a> {
    path: &'a Path,
    folder: OwnedFd,
}

impl<'a> Layers<'a> {
    /// Opens the folders with `open`.
    pub fn open(
        lowers: &'a [PathBuf],
        upper: &'a Path,
        work: &'a Path,
        open: impl Fn(&Path) -> io::Result<OwnedFd>,
    ) -> Step<Self> {
        let layer = |path: &'a Path| {
            let folder = open(path).map_err(explain(format_args!("open the folder {}", path.display())))?;
            Ok(Layer { path, folder })
        };
        let lowers = lowers.iter().map(|path| layer(path)).collect::<Step<Vec<_>>>()?;
        Ok(Self { lowers, parent: layer(upper.parent().unwrap_or(Path::new("/")))?, upper, work })
    }

    /// The overlay, mounted nowhere yet, and its upper folder. Files have the owners that `owners` has. The disk is not
    /// waited for at the unmount of one that `is_volatile`.
    pub fn mount(
        self,
        owners: Owners<'_>,
        one_user: bool,
        is_volatile: bool,
        flags: Flags,
    ) -> Result<(OwnedFd, OwnedFd), Trouble> {
        let lowers = self.lowers.into_iter().map(|layer| layer.with_owners(owners));
        let lowers = lowers.collect::<Result<Vec<_>, Trouble>>()?;
        let parent = self.parent.with_owners(owners)?;
        let within = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&parent, path.file_name().unwrap_or_default(), flags, Mode::empty())
                .map_err(explain(format_args!("open the folder {}", path.display())))
        };
        let (upper, work) = (within(self.upper)?, within(self.work)?);
        let (lowerdir, upperdir, workdir) = (names(&lowers), name(&upper), name(&work));
        let mut options = vec![
            ("lowerdir", lowerdir.as_str()),
            ("upperdir", &upperdir),
            ("workdir", &workdir),
            // With it, the kernel would refuse a folder that another overlay still has for a moment.
            ("index", "off"),
        ];
        if one_user {
            // Only root may write the attributes that overlays keep their notes in otherwise.
            options.push(("userxattr", ""));
        } else {
            // Without it, a folder of a layer could not be renamed.
            options.push(("redirect_dir", "on"));
            // With it, which is a few kernels' default, a file whose mode changed would be in the upper folder without
            // its content.
            options.push(("metacopy", "off"));
        }
        let durable = || new_file_system("overlay", &options, flags);
        let made = match is_volatile {
            // Kernels before 5.10 do not know it. The words are those of the first try, as it may have left a note in the
            // work folder that the second one stumbles over.
            true => new_file_system("overlay", &[&options[..], &[("volatile", "")]].concat(), flags)
                .or_else(|words| durable().map_err(|_| words)),
            false => durable(),
        };
        let overlay = made.map_err(|words| match owners {
            // Kernels before 5.19 know idmapped mounts, but not below an overlay.
            Some(_) => Trouble::NoIdentities(words),
            None => Trouble::Failed(words),
        })?;
        Ok((overlay, upper))
    }
}

impl Layer<'_> {
    /// The folder in a copy of its mount, as only that can have other owners. The copy has to be mounted somewhere for
    /// an overlay to take it: over the original, in this namespace only.
    fn with_owners(self, owners: Owners<'_>) -> Result<OwnedFd, Trouble> {
        if owners.is_none() {
            return Ok(self.folder);
        }
        let copy = copy_of_handle(&self.folder, self.path, false, Flags::PLAIN, owners)?;
        attach(&copy, &self.folder, self.path.display(), self.path.display())?;
        Ok(copy)
    }
}

/// A handle's name instead of a path: nothing to escape, never too long, and the host's paths do not show in the
/// container's list of mounts.
fn name(folder: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", folder.as_raw_fd())
}

fn names(folders: &[OwnedFd]) -> String {
    folders.iter().map(name).collect::<Vec<_>>().join(":")
}

/// A handle on a folder of the host, with links as [`open_of_host`] follows them.
pub(super) fn open_folder_of_host(path: &Path, theirs: &[Id]) -> io::Result<OwnedFd> {
    let found = open_of_host(path, theirs)?;
    Ok(openat(found, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Folders as an overlay shows them, the topmost first: such as what a container left in its `upper`, and below it the
/// `lowers` that it had. What was removed, replaced or renamed in `upper` is so here, too, whatever file systems the folders
/// are on, and every file has the owner that it has on disk. A single folder is shown as it is.
///
/// The result is a handle on the whole, to be opened with `openat(handle, ".", …)`. It can only be read, and is mounted
/// nowhere: it has no path, and is gone once the last handle on it or on anything in it is closed.
///
/// For root, and for what root's containers left: those of other users make their notes elsewhere. Nobody may write to
/// the folders meanwhile. There can be 12 of them at most.
pub fn overlay_view(layers: &[PathBuf]) -> Result<OwnedFd, ContainerError> {
    let open = |path: &PathBuf| {
        open_directory(path).map_err(explain(format_args!("open the folder {}", path.display())))
    };
    let flags = Flags::DATA.read_only();
    let view = || -> Step<OwnedFd> {
        match layers {
            [] => Err("there is no folder".to_owned()),
            // An overlay that nobody writes to takes no fewer than two.
            [only] => Ok(copy_of_handle(open(only)?, only, false, flags, None)?),
            _ if layers.len() > MOST_LOWERS => Err(format!("more than {MOST_LOWERS} folders")),
            _ => {
                let lowers = layers.iter().map(open).collect::<Step<Vec<_>>>()?;
                let lowerdir = names(&lowers);
                let options = [
                    ("lowerdir", lowerdir.as_str()),
                    ("index", "off"),
                    // Follows what is noted in the folders, whoever wrote it and with whatever default.
                    ("redirect_dir", "follow"),
                    ("metacopy", "on"),
                ];
                new_file_system("overlay", &options, flags)
            }
        }
    };
    view().map_err(|reason| ContainerError::View {
        folder: layers.first().cloned().unwrap_or_default(),
        reason,
    })
}
