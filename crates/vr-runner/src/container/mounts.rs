//! The few mount operations that a root is built from, on handles only: a new file system, a copy of a part of the
//! host's tree, and putting either in its place. A mount gets all its flags before anybody can see it.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use super::sys;

/// The result of a step inside the new container; the error is the whole story as text, as it has to travel
/// to the parent.
pub(super) type Step<T> = Result<T, String>;

/// Adds to a system error what was being done.
pub(super) fn explain<E: Into<io::Error>>(what: impl Display) -> impl FnOnce(E) -> String {
    move |error| format!("cannot {what}: {}", error.into())
}

/// Flags of a mount.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flags(MountAttrFlags);

impl Flags {
    /// Set-user-id bits and device nodes mean nothing.
    pub const PLAIN: Self = Self(MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV));
    /// As [`Flags::PLAIN`], and nothing can be run from it.
    pub const DATA: Self = Self(Self::PLAIN.0.union(MountAttrFlags::MOUNT_ATTR_NOEXEC));
    /// Device nodes mean nothing.
    pub const SYSTEM: Self = Self(MountAttrFlags::MOUNT_ATTR_NODEV);
    /// Device nodes work.
    pub const DEVICE: Self = Self(MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NOEXEC));

    /// The same, and nothing can be written.
    pub const fn read_only(self) -> Self {
        Self(self.0.union(MountAttrFlags::MOUNT_ATTR_RDONLY))
    }
}

/// Cuts this mount namespace off from the host's: no mount travels either way.
pub(super) fn make_private() -> Step<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(explain("make the mounts private"))
}

/// A new file system that is mounted nowhere yet. `options` are `(key, value)`.
pub(super) fn new_file_system(kind: &str, options: &[(&str, &str)], flags: Flags) -> Step<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(explain(format_args!("use {kind}")))?;
    let made = || -> rustix::io::Result<OwnedFd> {
        for (key, value) in options {
            fsconfig_set_string(&context, *key, *value)?;
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags.0)
    };
    made().map_err(|error| {
        // The kernel often says more in words than in its error number.
        let mut said = [0; 512];
        let length = rustix::io::read(&context, &mut said).unwrap_or(0);
        let said = String::from_utf8_lossy(&said[..length]);
        let detail = said.trim().trim_start_matches("e ");
        let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        format!("cannot make a file system of type {kind}: {}{detail}", io::Error::from(error))
    })
}

/// A copy of the mount at `path` on the host, with all that is mounted below it if `recursive`, mounted nowhere yet.
pub(super) fn copy_of(path: &Path, recursive: bool, flags: Flags) -> Step<OwnedFd> {
    let mut how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    how.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = open_tree(CWD, path, how).map_err(explain(format_args!("mount {}", path.display())))?;
    set_flags(&tree, recursive, flags, path)?;
    Ok(tree)
}

/// As [`copy_of`] for a place inside a mount, without what is mounted below it.
pub(super) fn copy_at(mount: impl AsFd, path: &Path, flags: Flags) -> Step<OwnedFd> {
    let how = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = open_tree(mount, path, how).map_err(explain(format_args!("protect {}", path.display())))?;
    set_flags(&tree, false, flags, path)?;
    Ok(tree)
}

fn set_flags(tree: &OwnedFd, recursive: bool, flags: Flags, path: &Path) -> Step<()> {
    sys::set_mount_attributes(tree, u64::from(flags.0.bits()), recursive)
        .map_err(explain(format_args!("set the mount flags of {}", path.display())))
}

/// Puts a mount on a place. `source` and `target` are for the message.
pub(super) fn attach(
    mount: impl AsFd,
    place: impl AsFd,
    source: impl Display,
    target: impl Display,
) -> Step<()> {
    let both_are_handles = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", place, c"", both_are_handles)
        .map_err(explain(format_args!("mount {source} on {target}")))
}

/// Makes `root` the `/` of this process and takes the host's tree away.
pub(super) fn enter(root: impl AsFd) -> Step<()> {
    fchdir(root).map_err(explain("enter the new root"))?;
    // With both on ".", the old root ends up on top of the new one and needs no folder of its own.
    pivot_root(".", ".").map_err(explain("change to the new root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(explain("take the host's files away"))?;
    chdir("/").map_err(explain("enter the new root"))
}
