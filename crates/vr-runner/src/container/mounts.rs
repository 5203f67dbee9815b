//! The few mount operations that a root is built from, on handles only: a new file system, a copy of a part of the
//! host's tree, and putting either in its place. A mount gets all its flags before anybody can see it.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, open_tree, unmount,
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

/// Why a root cannot be built.
#[derive(Debug)]
pub(super) enum Trouble {
    /// A step failed.
    Failed(String),
    /// The owners of files cannot be shown as the container's user namespace wants them. Without that it may work.
    NoIdentities(String),
}

impl From<String> for Trouble {
    fn from(words: String) -> Self {
        Self::Failed(words)
    }
}

impl From<Trouble> for String {
    fn from(trouble: Trouble) -> Self {
        let (Trouble::Failed(words) | Trouble::NoIdentities(words)) = trouble;
        words
    }
}

/// The user namespace whose numbers the owners of files are shown with; none to leave them as they are.
pub(super) type Owners<'a> = Option<BorrowedFd<'a>>;

/// Flags of a mount.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flags(MountAttrFlags);

impl Flags {
    /// All that files can be.
    pub const ANYTHING: Self = Self(MountAttrFlags::empty());
    /// Set-user-id bits and device nodes mean nothing.
    pub const PLAIN: Self = Self(MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV));
    /// As [`Flags::PLAIN`], and nothing can be run from it.
    pub const DATA: Self = Self(Self::PLAIN.0.union(MountAttrFlags::MOUNT_ATTR_NOEXEC));
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

/// A new file system that is mounted nowhere yet. `options` are `(key, value)`; an empty value is none.
pub(super) fn new_file_system(kind: &str, options: &[(&str, &str)], flags: Flags) -> Step<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(explain(format_args!("use {kind}")))?;
    let made = || -> rustix::io::Result<OwnedFd> {
        for (key, value) in options {
            match *value {
                "" => fsconfig_set_flag(&context, *key)?,
                value => fsconfig_set_string(&context, *key, value)?,
            }
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
    let tree = open_copy(path, recursive)?;
    set_flags(&tree, recursive, flags, path)?;
    Ok(tree)
}

/// As [`copy_of`], with the owners of its files as `owners` has them.
pub(super) fn copy_with_owners(
    path: &Path,
    recursive: bool,
    flags: Flags,
    owners: Owners<'_>,
) -> Result<OwnedFd, Trouble> {
    set_owners(open_copy(path, recursive)?, path, recursive, flags, owners)
}

/// As [`copy_with_owners`] of what a handle is on. `path` is for messages.
pub(super) fn copy_of_handle(
    handle: impl AsFd,
    path: &Path,
    recursive: bool,
    flags: Flags,
    owners: Owners<'_>,
) -> Result<OwnedFd, Trouble> {
    let mut how =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    how.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = open_tree(handle, c"", how).map_err(explain(format_args!("mount {}", path.display())))?;
    set_owners(tree, path, recursive, flags, owners)
}

fn set_owners(
    tree: OwnedFd,
    path: &Path,
    recursive: bool,
    flags: Flags,
    owners: Owners<'_>,
) -> Result<OwnedFd, Trouble> {
    match sys::set_mount_attributes(&tree, u64::from(flags.0.bits()), recursive, owners) {
        Ok(()) => Ok(tree),
        Err(error) if owners.is_some() && cannot_be_mapped(&error) => Err(Trouble::NoIdentities(explain(
            format_args!("map the owners of the files in {}", path.display()),
        )(
            error
        ))),
        Err(error) => Err(explain(format_args!("set the mount flags of {}", path.display()))(error).into()),
    }
}

/// Whether that is what the kernel says of a file system, or of a caller, that cannot have other owners.
fn cannot_be_mapped(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| [Errno::INVAL, Errno::PERM, Errno::NOSYS, Errno::OPNOTSUPP].contains(&errno))
}

fn open_copy(path: &Path, recursive: bool) -> Step<OwnedFd> {
    let mut how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    how.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, how).map_err(explain(format_args!("mount {}", path.display())))
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

/// Adds flags to a mount alone.
pub(super) fn set_flags(tree: &OwnedFd, recursive: bool, flags: Flags, path: &Path) -> Step<()> {
    sys::set_mount_attributes(tree, u64::from(flags.0.bits()), recursive, None)
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
