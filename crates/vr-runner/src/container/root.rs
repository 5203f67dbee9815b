//! Building a container's `/`, in its own mount namespace, before anything of the app runs.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, openat, readlinkat, statat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::mounts::{Flags, Step, attach, copy_at, copy_of, enter, explain, make_private, new_file_system};
use super::place::{Kind, make_file_place_instead_of_link, make_place, open_directory};
use super::{BindMount, ContainerSpec, RootFs};

/// The host's folders that [`RootFs::HostBinds`] shows; those that a host does not have are left out.
const HOST_FOLDERS: [&str; 9] = ["bin", "etc", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "usr"];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Parts of `/proc` through which root could change the host: read-only.
const READ_ONLY: [&str; 8] = ["asound", "bus", "dynamic_debug", "fs", "irq", "mtrr", "sys", "sysrq-trigger"];
/// Parts of `/proc` through which root could learn about the host: empty.
const HIDDEN: [&str; 13] = [
    "acpi",
    "kcore",
    "keys",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "sched_debug",
    "scsi",
    "slabinfo",
    "timer_list",
    "vmallocinfo",
    "vmcore",
];
/// The same of `/sys`, which is read-only as a whole.
const HIDDEN_IN_SYS: [&str; 1] = ["firmware"];

/// Builds the root and makes it this process's `/`.
pub(super) fn build(spec: &ContainerSpec) -> Step<()> {
    make_private()?;
    let root = base(&spec.root)?;
    // `/var/run` of every distribution is a link to it; without it, nothing could be mounted there.
    place(&root, "run", Kind::Directory)?;
    match &spec.root {
        RootFs::HostBinds { .. } => {
            for name in HOST_FOLDERS {
                show_host_folder(&root, name)?;
            }
            // An image brings it along; here nothing else does.
            place(&root, "root", Kind::Directory)?;
            shared_temporary_folder(&root, "var/tmp")?;
            follow_resolv_conf(&root)?;
        }
        RootFs::Overlay { .. } | RootFs::Directory(_) => network_files(&root)?,
    }
    kernel_file_systems(&root)?;
    devices(&root)?;
    shared_temporary_folder(&root, "tmp")?;
    for mount in &spec.mounts {
        bind(&root, mount)?;
    }
    enter(&root)
}

/// The root itself, mounted over a folder of it in this namespace only.
fn base(root: &RootFs) -> Step<OwnedFd> {
    let open = |path: &Path| {
        open_directory(path).map_err(explain(format_args!("open the folder {}", path.display())))
    };
    match root {
        RootFs::Overlay { lowers, upper, work } => {
            let lowers = lowers.iter().map(|path| open(path)).collect::<Step<Vec<_>>>()?;
            let upper_fd = open(upper)?;
            let work = open(work)?;
            // Names of handles instead of paths: nothing to escape, never too long, and the host's paths do not
            // show in the container's list of mounts.
            let handle = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
            let lowerdir = lowers.iter().map(handle).collect::<Vec<_>>().join(":");
            let options = [
                ("lowerdir", lowerdir.as_str()),
                ("upperdir", &handle(&upper_fd)),
                ("workdir", &handle(&work)),
            ];
            let overlay = new_file_system("overlay", &options, Flags::PLAIN)?;
            attach(&overlay, &upper_fd, "the overlay", upper.display())?;
            Ok(overlay)
        }
        RootFs::HostBinds { rootfs } => over_itself(rootfs, open(rootfs)?, Flags::PLAIN),
        RootFs::Directory(path) => over_itself(path, open(path)?, Flags::SYSTEM),
    }
}

fn over_itself(path: &Path, place: OwnedFd, flags: Flags) -> Step<OwnedFd> {
    let copy = copy_of(path, false, flags)?;
    attach(&copy, &place, path.display(), path.display())?;
    Ok(copy)
}

fn place(root: &OwnedFd, path: impl AsRef<Path>, kind: Kind) -> Step<OwnedFd> {
    let path = path.as_ref();
    let shown = path.strip_prefix("/").unwrap_or(path);
    make_place(root, path, kind).map_err(explain(format_args!("make the mount point /{}", shown.display())))
}

fn show_host_folder(root: &OwnedFd, name: &str) -> Step<()> {
    let host = Path::new("/").join(name);
    let Ok(found) = fs::symlink_metadata(&host) else { return Ok(()) };
    if found.is_symlink() {
        // A merged /usr: `/bin` is a link to `usr/bin`.
        let target = fs::read_link(&host).map_err(explain(format_args!("read {}", host.display())))?;
        return replicate_link(root, name, &target);
    }
    if !found.is_dir() {
        return Ok(());
    }
    let tree = copy_of(&host, true, Flags::PLAIN.read_only())?;
    attach(tree, place(root, name, Kind::Directory)?, host.display(), host.display())
}

fn replicate_link(root: &OwnedFd, name: &str, target: &Path) -> Step<()> {
    let target = target.as_os_str().as_encoded_bytes();
    let is_there = || readlinkat(root, name, Vec::new()).is_ok_and(|old| old.as_bytes() == target);
    let make = || match symlinkat(target, root, name) {
        // Two containers of one proc may start at once: whoever comes second finds the same link.
        Err(Errno::EXIST) if is_there() => Ok(()),
        made => made,
    };
    let replace = || {
        let stat = statat(root, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let how = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        unlinkat(root, name, how)?;
        make()
    };
    let made = match make() {
        Err(Errno::EXIST) => replace(),
        made => made,
    };
    made.map_err(explain(format_args!("make the link /{name}")))
}

/// The host's own network files, over whatever the image has there.
fn network_files(root: &OwnedFd) -> Step<()> {
    for name in ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"] {
        let Ok(source) = fs::canonicalize(name) else { continue };
        let place = make_file_place_instead_of_link(root, Path::new(name))
            .map_err(explain(format_args!("make the mount point {name}")))?;
        attach(copy_of(&source, false, Flags::DATA.read_only())?, place, name, name)?;
    }
    Ok(())
}

/// Where the host's `/etc/resolv.conf` is a link that leads out of the folders shown, its end has to be there too.
fn follow_resolv_conf(root: &OwnedFd) -> Step<()> {
    let Ok(real) = fs::canonicalize("/etc/resolv.conf") else { return Ok(()) };
    if HOST_FOLDERS.iter().any(|name| real.starts_with(Path::new("/").join(name))) {
        return Ok(());
    }
    let tree = copy_of(&real, false, Flags::DATA.read_only())?;
    attach(tree, place(root, &real, Kind::File)?, real.display(), real.display())
}

fn kernel_file_systems(root: &OwnedFd) -> Step<()> {
    let proc = new_file_system("proc", &[], Flags::DATA)?;
    attach(&proc, place(root, "proc", Kind::Directory)?, "a new proc", "/proc")?;
    let sys = new_file_system("sysfs", &[], Flags::DATA.read_only())?;
    attach(&sys, place(root, "sys", Kind::Directory)?, "a new sysfs", "/sys")?;
    // From here on by the handles of the two: in the root, their names might be links of the image's.
    for name in READ_ONLY {
        if let Some(place) = existing(&proc, name)? {
            let same = copy_at(&proc, Path::new(name), Flags::DATA.read_only())?;
            attach(same, place, name, format_args!("/proc/{name}"))?;
        }
    }
    for name in HIDDEN {
        hide(&proc, name)?;
    }
    for name in HIDDEN_IN_SYS {
        hide(&sys, name)?;
    }
    Ok(())
}

fn hide(file_system: &OwnedFd, name: &str) -> Step<()> {
    let Some(place) = existing(file_system, name)? else { return Ok(()) };
    let stat = rustix::fs::fstat(&place).map_err(explain(format_args!("look at {name}")))?;
    let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        new_file_system("tmpfs", &[("size", "4k"), ("mode", "555")], Flags::DATA.read_only())?
    } else {
        copy_of(Path::new("/dev/null"), false, Flags::DEVICE.read_only())?
    };
    attach(cover, place, "nothing", name)
}

fn existing(file_system: &OwnedFd, name: &str) -> Step<Option<OwnedFd>> {
    match openat(file_system, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(explain(format_args!("open {name}"))(error)),
    }
}

fn devices(root: &OwnedFd) -> Step<()> {
    let dev = new_file_system("tmpfs", &[("mode", "755"), ("size", "1m")], Flags::DEVICE)?;
    attach(&dev, place(root, "dev", Kind::Directory)?, "a new tmpfs", "/dev")?;
    for name in DEVICES {
        let host = PathBuf::from("/dev").join(name);
        let place = make_place(&dev, Path::new(name), Kind::File)
            .map_err(explain(format_args!("make /dev/{name}")))?;
        // They are the host's own nodes: written to as devices, but neither their mode nor their owner is to change.
        attach(copy_of(&host, false, Flags::DEVICE.read_only())?, place, host.display(), host.display())?;
    }
    let links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ];
    for (target, name) in links {
        symlinkat(target, &dev, name).map_err(explain(format_args!("make the link /dev/{name}")))?;
    }
    // 5 is the group `tty` of every distribution; each instance of devpts is a new one.
    let pts =
        new_file_system("devpts", &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")], Flags::DEVICE)?;
    let shm = new_file_system("tmpfs", &[("mode", "1777"), ("size", "64m")], Flags::DATA)?;
    for (mount, name) in [(pts, "pts"), (shm, "shm")] {
        let place = make_place(&dev, Path::new(name), Kind::Directory)
            .map_err(explain(format_args!("make /dev/{name}")))?;
        attach(mount, place, "a new file system", format_args!("/dev/{name}"))?;
    }
    Ok(())
}

/// A folder that everybody may write to. On disk, as large temporary files should not use up memory.
fn shared_temporary_folder(root: &OwnedFd, name: &str) -> Step<()> {
    let folder = place(root, name, Kind::Directory)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(&folder, ".", flags, Mode::empty())
        .and_then(|opened| fchmod(opened, Mode::from_raw_mode(0o1777)))
        .map_err(explain(format_args!("set the mode of /{name}")))
}

fn bind(root: &OwnedFd, mount: &BindMount) -> Step<()> {
    let BindMount { source, target, read_only } = mount;
    let cannot = || format!("mount {} on {}", source.display(), target.display());
    let found = fs::metadata(source).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("cannot {}: {} does not exist", cannot(), source.display()),
        _ => explain(cannot())(error),
    })?;
    let kind = if found.is_dir() { Kind::Directory } else { Kind::File };
    let flags = if *read_only { Flags::PLAIN.read_only() } else { Flags::PLAIN };
    attach(copy_of(source, true, flags)?, place(root, target, kind)?, source.display(), target.display())
}
