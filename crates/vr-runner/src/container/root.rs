//! Building a container's `/`, in its own mount namespace, before anything of the app runs.

use std::fmt::Display;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, fchmod, fstat, mkdirat, openat, readlinkat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::identities::Identities;
use super::mounts::{
    Flags, Owners, Step, Trouble, attach, copy_at, copy_of, copy_of_handle, copy_with_owners, enter, explain,
    make_private, new_file_system, set_flags,
};
use super::overlay::{Layers, open_folder_of_host};
use super::place::{
    Id, Kind, Links, make_file_place_instead_of_link, make_place, open_directory, open_of_host,
};
use super::{BindMount, ContainerSpec, OverlayMount, RootFs, System};

/// The host's folders that [`System::OfHost`] shows; those that a host does not have are left out.
pub(super) const HOST_FOLDERS: [&str; 9] =
    ["bin", "etc", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "usr"];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Parts of `/proc` through which root could change the host: read-only.
pub(super) const READ_ONLY: [&str; 8] =
    ["asound", "bus", "dynamic_debug", "fs", "irq", "mtrr", "sys", "sysrq-trigger"];
/// Parts of `/proc` through which root could learn about the host: empty.
pub(super) const HIDDEN: [&str; 14] = [
    "acpi",
    "interrupts",
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
pub(super) const HIDDEN_IN_SYS: [&str; 2] = ["devices/virtual/powercap", "firmware"];
/// And where it is the host's own with all that is mounted there.
const HIDDEN_IN_SYS_OF_HOST: [&str; 3] = ["fs/cgroup", "kernel/debug", "kernel/tracing"];

/// A root in the making, with what decides how.
struct Builder<'a> {
    spec: &'a ContainerSpec,
    identities: &'a Identities,
    owners: Owners<'a>,
}

/// Builds the root and makes it this process's `/`. Files of the host are shown with the owners that `owners` has.
pub(super) fn build(
    spec: &ContainerSpec,
    identities: &Identities,
    owners: Owners<'_>,
) -> Result<(), Trouble> {
    make_private()?;
    let builder = Builder { spec, identities, owners };
    // Whatever the container is to see of the host is taken before anything is put anywhere, so that a link in one
    // place cannot change what another one shows.
    let volumes =
        spec.mounts.iter().map(|mount| volume(spec, mount, owners)).collect::<Result<Vec<_>, _>>()?;
    let overlays = spec.overlays.iter().map(|overlay| layers(spec, overlay)).collect::<Step<Vec<_>>>()?;
    let root = builder.base()?;
    // `/var/run` of every distribution is a link to it; without it, nothing could be mounted there.
    builder.place(&root, "run", Kind::Directory)?;
    match spec.system {
        System::OfHost => {
            for name in HOST_FOLDERS {
                builder.show_host_folder(&root, name)?;
            }
            // An image brings it along; here nothing else does.
            builder.place(&root, "root", Kind::Directory)?;
            builder.shared_temporary_folder(&root, "var/tmp")?;
            builder.follow_resolv_conf(&root)?;
        }
        System::Own => builder.network_files(&root)?,
    }
    let kernel = builder.kernel_file_systems(&root)?;
    builder.devices(&root)?;
    builder.shared_temporary_folder(&root, "tmp")?;
    if spec.read_only {
        builder.protect(&root)?;
    }
    for (OverlayMount { target, .. }, layers) in spec.overlays.iter().zip(overlays) {
        let (tree, _) = builder.mount(layers)?;
        builder.put(&root, &kernel, tree, Kind::Directory, "an overlay", target)?;
    }
    for (BindMount { source, target, .. }, (tree, kind)) in spec.mounts.iter().zip(volumes) {
        builder.put(&root, &kernel, tree, kind, source.display(), target)?;
    }
    if spec.read_only {
        // Only now: mount points had to be made.
        set_flags(&root, false, Flags::ANYTHING.read_only(), Path::new("/"))?;
    }
    enter(&root)?;
    Ok(())
}

/// Handles on the file systems that are the kernel's own.
struct Kernel {
    proc: OwnedFd,
    sys: OwnedFd,
}

fn open(path: &Path) -> Step<OwnedFd> {
    open_directory(path).map_err(explain(format_args!("open the folder {}", path.display())))
}

fn links(spec: &ContainerSpec) -> Links {
    if spec.hardening.links_stay_inside { Links::Inside } else { Links::Anywhere }
}

/// Flags of what the root is made of and of the host's files in it.
pub(super) fn plain(spec: &ContainerSpec) -> Flags {
    if spec.hardening.no_devices_or_setuid { Flags::PLAIN } else { Flags::ANYTHING }
}

/// The tree of the host that a mount is to show.
pub(super) fn volume(
    spec: &ContainerSpec,
    mount: &BindMount,
    owners: Owners<'_>,
) -> Result<(OwnedFd, Kind), Trouble> {
    let BindMount { source, target, read_only } = mount;
    let cannot = || format!("mount {} on {}", source.display(), target.display());
    // Also for what is mounted there first when somebody asks for it.
    fs::metadata(source).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("cannot {}: {} does not exist", cannot(), source.display()),
        _ => explain(cannot())(error),
    })?;
    let handle = open_of_host(source, &folders_of_its_own(spec)).map_err(explain(cannot()))?;
    let found = fstat(&handle).map_err(explain(cannot()))?;
    let kind = match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    };
    let flags = if *read_only { plain(spec).read_only() } else { plain(spec) };
    Ok((copy_of_handle(handle, source, true, flags, owners)?, kind))
}

/// The folders of an overlay that is to be mounted in the root.
fn layers<'s>(spec: &ContainerSpec, overlay: &'s OverlayMount) -> Step<Layers<'s>> {
    let OverlayMount { lowers, upper, work, .. } = overlay;
    let theirs = folders_of_its_own(spec);
    Layers::open(lowers, upper, work, |path| open_folder_of_host(path, &theirs))
}

/// The folders of the host that the container may write to, and so could have before it was started again: where links are
/// not followed.
fn folders_of_its_own(spec: &ContainerSpec) -> Vec<Id> {
    if links(spec) == Links::Anywhere {
        return Vec::new();
    }
    let writable = spec.mounts.iter().filter(|mount| !mount.read_only).map(|mount| &mount.source);
    let writable = writable.chain(spec.overlays.iter().map(|overlay| &overlay.upper));
    let found = writable.filter_map(|path| fs::metadata(path).ok());
    found.map(|found| (found.dev(), found.ino())).collect()
}

impl Builder<'_> {
    fn links(&self) -> Links {
        links(self.spec)
    }

    fn plain(&self) -> Flags {
        plain(self.spec)
    }

    /// The root itself, mounted over a folder of it in this namespace only.
    fn base(&self) -> Result<OwnedFd, Trouble> {
        match &self.spec.root {
            RootFs::Overlay { lowers, upper, work } => {
                let layers = Layers::open(lowers, upper, work, open_directory)?;
                let (overlay, place) = self.mount(layers)?;
                attach(&overlay, &place, "the overlay", upper.display())?;
                Ok(overlay)
            }
            RootFs::Directory(path) => {
                let place = open(path)?;
                let copy = copy_with_owners(path, false, self.plain(), self.owners)?;
                attach(&copy, &place, path.display(), path.display())?;
                Ok(copy)
            }
        }
    }

    /// An overlay, mounted nowhere yet, and its upper folder.
    fn mount(&self, layers: Layers<'_>) -> Result<(OwnedFd, OwnedFd), Trouble> {
        layers.mount(self.owners, self.identities.is_one_user(), self.spec.is_volatile, self.plain())
    }

    fn place(&self, root: &OwnedFd, path: impl AsRef<Path>, kind: Kind) -> Step<OwnedFd> {
        let path = path.as_ref();
        let shown = path.strip_prefix("/").unwrap_or(path);
        make_place(root, path, kind, self.links())
            .map_err(explain(format_args!("make the mount point /{}", shown.display())))
    }

    fn show_host_folder(&self, root: &OwnedFd, name: &str) -> Result<(), Trouble> {
        let host = Path::new("/").join(name);
        let Ok(found) = fs::symlink_metadata(&host) else { return Ok(()) };
        if found.is_symlink() {
            // A merged /usr: `/bin` is a link to `usr/bin`.
            let target = fs::read_link(&host).map_err(explain(format_args!("read {}", host.display())))?;
            return Ok(replicate_link(root, name, &target)?);
        }
        if !found.is_dir() {
            return Ok(());
        }
        // To root inside, files that only the host's root may read are a stranger's; another user has what is his.
        let owners = self.owners.filter(|_| self.spec.user.uid != 0);
        let tree = copy_with_owners(&host, true, Flags::PLAIN.read_only(), owners)?;
        let place = self.place(root, name, Kind::Directory)?;
        Ok(attach(tree, place, host.display(), host.display())?)
    }

    /// The host's own network files, over whatever the image has there.
    fn network_files(&self, root: &OwnedFd) -> Step<()> {
        for name in ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"] {
            let Ok(source) = fs::canonicalize(name) else { continue };
            let place = make_file_place_instead_of_link(root, Path::new(name), self.links())
                .map_err(explain(format_args!("make the mount point {name}")))?;
            attach(copy_of(&source, false, Flags::DATA.read_only())?, place, name, name)?;
        }
        Ok(())
    }

    /// Where the host's `/etc/resolv.conf` is a link that leads out of the folders shown, its end has to be there too.
    fn follow_resolv_conf(&self, root: &OwnedFd) -> Step<()> {
        let Ok(real) = fs::canonicalize("/etc/resolv.conf") else { return Ok(()) };
        if HOST_FOLDERS.iter().any(|name| real.starts_with(Path::new("/").join(name))) {
            return Ok(());
        }
        let tree = copy_of(&real, false, Flags::DATA.read_only())?;
        attach(tree, self.place(root, &real, Kind::File)?, real.display(), real.display())
    }

    fn kernel_file_systems(&self, root: &OwnedFd) -> Step<Kernel> {
        let masked = self.spec.hardening.mask_kernel_files;
        let proc = new_file_system("proc", &[], Flags::DATA)?;
        attach(&proc, self.place(root, "proc", Kind::Directory)?, "a new proc", "/proc")?;
        let flags = if masked { Flags::DATA.read_only() } else { Flags::DATA };
        let (sys, of_host) = match new_file_system("sysfs", &[], flags) {
            // It shows devices of the network that the process is in, so only root of whoever made that may have one.
            Err(words) => match copy_of(Path::new("/sys"), true, flags) {
                Ok(copy) => (copy, true),
                Err(_) => return Err(words),
            },
            Ok(made) => (made, false),
        };
        attach(&sys, self.place(root, "sys", Kind::Directory)?, "a new sysfs", "/sys")?;
        let kernel = Kernel { proc, sys };
        if !masked {
            return Ok(kernel);
        }
        // From here on by the handles of the two: in the root, their names might be links of the image's.
        for name in READ_ONLY {
            if let Some(place) = existing(&kernel.proc, name)? {
                let same = copy_at(&kernel.proc, Path::new(name), Flags::DATA.read_only())?;
                attach(same, place, name, format_args!("/proc/{name}"))?;
            }
        }
        let mut nothing = None;
        let hidden = HIDDEN.iter().map(|name| (&kernel.proc, name));
        let of_host: &[&str] = if of_host { &HIDDEN_IN_SYS_OF_HOST } else { &[] };
        let hidden_in_sys = HIDDEN_IN_SYS.iter().chain(of_host).map(|name| (&kernel.sys, name));
        for (file_system, name) in hidden.chain(hidden_in_sys) {
            hide(file_system, name, &mut nothing)?;
        }
        Ok(kernel)
    }

    /// A new file system in memory that belongs to root inside.
    fn memory(&self, mode: &str, size: &str, flags: Flags) -> Step<OwnedFd> {
        let (uid, gid) = self.identities.root_outside();
        let (uid, gid) = (uid.to_string(), gid.to_string());
        new_file_system("tmpfs", &[("mode", mode), ("size", size), ("uid", &uid), ("gid", &gid)], flags)
    }

    fn devices(&self, root: &OwnedFd) -> Step<()> {
        let dev = self.memory("755", "1m", Flags::DEVICE)?;
        attach(&dev, self.place(root, "dev", Kind::Directory)?, "a new tmpfs", "/dev")?;
        // Nobody but us has seen this folder yet, so there are no links to beware of.
        let in_dev = |name: &str, flags: OFlags| {
            openat(&dev, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
                .map_err(explain(format_args!("make /dev/{name}")))
        };
        for name in DEVICES {
            let host = PathBuf::from("/dev").join(name);
            let place = in_dev(name, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY)?;
            // They are the host's own nodes: written to as devices, but neither their mode nor their owner is to
            // change.
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
        // Each instance of devpts is a new one.
        let mut options = vec![("ptmxmode", "0666"), ("mode", "0620")];
        let group = self.identities.terminal_group_outside().map(|group| group.to_string());
        if let Some(group) = &group {
            options.push(("gid", group));
        }
        let pts = new_file_system("devpts", &options, Flags::DEVICE)?;
        let shm = self.memory("1777", "64m", Flags::DATA)?;
        for (mount, name) in [(pts, "pts"), (shm, "shm")] {
            mkdirat(&dev, name, Mode::from_raw_mode(0o755))
                .map_err(explain(format_args!("make /dev/{name}")))?;
            let place = in_dev(name, OFlags::PATH | OFlags::DIRECTORY)?;
            attach(mount, place, "a new file system", format_args!("/dev/{name}"))?;
        }
        Ok(())
    }

    /// A folder that everybody may write to. On disk, as large temporary files should not use up memory.
    fn shared_temporary_folder(&self, root: &OwnedFd, name: &str) -> Step<()> {
        const MODE: u32 = 0o1777;
        let folder = self.place(root, name, Kind::Directory)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // Setting what is set already would be a write to the disk for each start, and a copy of an image's folder.
        let set = || match fstat(&folder)?.st_mode & 0o7777 {
            MODE => Ok(()),
            _ => fchmod(openat(&folder, ".", flags, Mode::empty())?, Mode::from_raw_mode(MODE)),
        };
        set().map_err(explain(format_args!("set the mode of /{name}")))
    }

    /// What has to be writable even where nothing else is.
    fn protect(&self, root: &OwnedFd) -> Step<()> {
        for (name, mode) in [("run", "755"), ("tmp", "1777"), ("var/tmp", "1777")] {
            let memory = self.memory(mode, "256m", self.plain())?;
            let place = self.place(root, name, Kind::Directory)?;
            attach(memory, place, "a new tmpfs", format_args!("/{name}"))?;
        }
        Ok(())
    }

    /// Mounts something that the container's description names.
    fn put(
        &self,
        root: &OwnedFd,
        kernel: &Kernel,
        tree: OwnedFd,
        kind: Kind,
        source: impl Display,
        target: &Path,
    ) -> Step<()> {
        let place = self.place(root, target, kind)?;
        // A link that the app made in another volume may lead here, and would cover what protects the host.
        let id = |fd: &OwnedFd| fstat(fd).map(|found| (found.st_dev, found.st_ino));
        let look = || -> rustix::io::Result<bool> {
            let there = id(&place)?;
            Ok(there == id(root)? || there.0 == id(&kernel.proc)?.0 || there.0 == id(&kernel.sys)?.0)
        };
        if look().map_err(explain(format_args!("look at {}", target.display())))? {
            return Err(format!(
                "cannot mount {source} on {}: it is, or leads to, the root, /proc or /sys",
                target.display()
            ));
        }
        attach(tree, place, source, target.display())
    }
}

pub(super) fn replicate_link(root: &OwnedFd, name: &str, target: &Path) -> Step<()> {
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

/// Covers a file or folder with nothing. `empty` is the one empty folder that covers all folders, once there is one.
fn hide(file_system: &OwnedFd, name: &str, empty: &mut Option<OwnedFd>) -> Step<()> {
    let Some(place) = existing(file_system, name)? else { return Ok(()) };
    let stat = fstat(&place).map_err(explain(format_args!("look at {name}")))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        let null = copy_of(Path::new("/dev/null"), false, Flags::DEVICE.read_only())?;
        return attach(null, place, "nothing", name);
    }
    if let Some(empty) = empty {
        return attach(copy_at(empty, Path::new("."), Flags::DATA.read_only())?, place, "nothing", name);
    }
    let options = [("size", "4k"), ("mode", "555")];
    let made = empty.insert(new_file_system("tmpfs", &options, Flags::DATA.read_only())?);
    attach(made, place, "nothing", name)
}

fn existing(file_system: &OwnedFd, name: &str) -> Step<Option<OwnedFd>> {
    match openat(file_system, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(explain(format_args!("open {name}"))(error)),
    }
}
