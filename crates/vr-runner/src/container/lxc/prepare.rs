//! What LXC mounts, taken and made by us first: the root, with all the places in it that something is mounted on, and
//! copies of the host's mounts. LXC makes missing places by their names, as root of the host, whatever links an app left
//! there; so none may be missing. And it cannot give flags to a mount that is not read-only; so the copies have them.
//!
//! Nothing here is visible to anybody: all mounts are handles.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, fchmod, openat, openat2};

use super::super::mounts::{Flags, Step, copy_of, explain, set_flags};
use super::super::overlay::Layers;
use super::super::place::{Kind, Links, make_file_place_instead_of_link, make_place, open_directory};
use super::super::root::{HIDDEN, HIDDEN_IN_SYS, HOST_FOLDERS, READ_ONLY, plain, replicate_link, volume};
use super::super::{ContainerSpec, RootFs, System};
use super::config::{Bind, Layout};

/// A root that is ready for LXC.
pub(super) struct Prepared {
    /// Its mount, nowhere yet.
    pub root: OwnedFd,
    /// What is mounted in it, the first one first.
    pub binds: Vec<Tree>,
    /// Which of the candidates to run.
    pub program: PathBuf,
}

/// A mount of the host's, copied.
pub(super) struct Tree {
    /// The copy, nowhere yet.
    pub mount: OwnedFd,
    /// What it is of.
    pub kind: Kind,
    /// What LXC is to be told of it; the source is the host's path.
    pub bind: Bind,
}

impl Prepared {
    /// What LXC is told. `source` gives the path of the root, or of one of the mounts.
    pub fn layout(self, root: PathBuf, policy: PathBuf, source: impl Fn(usize, &Bind) -> PathBuf) -> Layout {
        let there = |folder: &str, name: &&str| {
            let metadata = fs::symlink_metadata(Path::new("/").join(folder).join(name)).ok()?;
            let kind = if metadata.is_dir() { Kind::Directory } else { Kind::File };
            Some((Path::new(folder).join(name), kind))
        };
        let hidden = HIDDEN.iter().filter_map(|name| there("proc", name));
        let hidden_in_sys = HIDDEN_IN_SYS.iter().filter_map(|name| there("sys", name));
        let binds = self
            .binds
            .into_iter()
            .enumerate()
            .map(|(number, tree)| Bind { source: source(number, &tree.bind), ..tree.bind });
        Layout {
            root,
            binds: binds.collect(),
            read_only: READ_ONLY.into_iter().filter(|name| there("proc", name).is_some()).collect(),
            hidden: hidden.chain(hidden_in_sys).collect(),
            program: self.program,
            policy,
            limits: None,
            further: Vec::new(),
        }
    }
}

/// Makes the root ready.
pub(super) fn prepare(spec: &ContainerSpec) -> Step<Prepared> {
    // Before anything is put anywhere; see the own engine's.
    let volumes = spec.mounts.iter().map(|mount| volume(spec, mount, None)).collect::<Result<Vec<_>, _>>()?;
    let root = base(spec)?;
    let mut builder = Builder { spec, root, binds: Vec::new() };
    for name in ["proc", "sys", "dev"] {
        builder.real_folder(name)?;
    }
    builder.place(Path::new("run"), Kind::Directory)?;
    match spec.system {
        System::OfHost => {
            for name in HOST_FOLDERS {
                builder.show_host_folder(name)?;
            }
            builder.place(Path::new("root"), Kind::Directory)?;
            builder.shared_temporary_folder("var/tmp")?;
            builder.follow_resolv_conf()?;
        }
        System::Own => builder.network_files()?,
    }
    builder.shared_temporary_folder("tmp")?;
    if spec.read_only {
        for name in ["run", "tmp", "var/tmp"] {
            builder.real_folder(name)?;
        }
    }
    for (mount, (tree, kind)) in spec.mounts.iter().zip(volumes) {
        let flags = if mount.read_only { "ro,nosuid,nodev" } else { "" };
        let cannot =
            |words| format!("cannot mount {} on {}: {words}", mount.source.display(), mount.target.display());
        let (target, make) = builder.mount_point(&mount.target, kind).map_err(cannot)?;
        let bind = Bind { source: mount.source.clone(), target, make, flags };
        builder.binds.push(Tree { mount: tree, kind, bind });
    }
    let program = builder.program()?;
    if spec.read_only {
        set_flags(&builder.root, false, Flags::ANYTHING.read_only(), Path::new("/"))?;
    }
    Ok(Prepared { root: builder.root, binds: builder.binds, program })
}

fn base(spec: &ContainerSpec) -> Step<OwnedFd> {
    match &spec.root {
        RootFs::Directory(path) => {
            open_directory(path).map_err(explain(format_args!("open the folder {}", path.display())))?;
            copy_of(path, false, plain(spec))
        }
        RootFs::Overlay { lowers, upper, work } => {
            let layers = Layers::open(lowers, upper, work, open_directory)?;
            Ok(layers.mount(None, false, false, plain(spec))?.0)
        }
    }
}

struct Builder<'a> {
    spec: &'a ContainerSpec,
    root: OwnedFd,
    binds: Vec<Tree>,
}

impl Builder<'_> {
    /// The place at a path, which is made when missing, as the path that leads there without a link.
    fn place(&self, path: &Path, kind: Kind) -> Step<PathBuf> {
        place_in(&self.root, path, kind)
    }

    /// A folder that LXC mounts on by its name.
    fn real_folder(&self, name: &str) -> Step<()> {
        let real = self.place(Path::new(name), Kind::Directory)?;
        if real != Path::new(name) {
            return Err(format!("cannot mount on /{name}: it is a link to /{}", real.display()));
        }
        Ok(())
    }

    /// Folders that are empty and new in every container.
    fn fresh_folders(&self) -> &'static [&'static str] {
        if self.spec.read_only { &["dev", "run", "tmp", "var/tmp"] } else { &["dev"] }
    }

    /// The path of a volume's place, and what LXC has to make there because it is not in the root.
    fn mount_point(&self, target: &Path, kind: Kind) -> Step<(PathBuf, Option<Kind>)> {
        let path = target.strip_prefix("/").unwrap_or(target);
        let fresh = |path: &Path| {
            self.fresh_folders().iter().any(|folder| path.starts_with(folder) && path != Path::new(folder))
        };
        if path.components().any(|part| part.as_os_str() == "..") {
            return Err("its path holds '..'".to_owned());
        }
        let inside_another =
            |path: &Path| self.binds.iter().rev().find(|tree| path.starts_with(&tree.bind.target));
        let mut real = path.components().collect::<PathBuf>();
        if !fresh(&real) && inside_another(&real).is_none() {
            // Also to learn that a link leads into one of those.
            real = self.place(&real, kind)?;
        }
        if real.as_os_str().is_empty() || real.starts_with("proc") || real.starts_with("sys") {
            return Err("it is, or leads to, the root, /proc or /sys".to_owned());
        }
        if let Some(outer) = inside_another(&real) {
            let rest = real.strip_prefix(&outer.bind.target).unwrap_or(&real).to_owned();
            if !rest.as_os_str().is_empty() {
                real = outer.bind.target.join(place_in(&outer.mount, &rest, kind)?);
            }
            return Ok((real, None));
        }
        let make = fresh(&real).then_some(kind);
        Ok((real, make))
    }

    fn show_host_folder(&mut self, name: &str) -> Step<()> {
        let host = Path::new("/").join(name);
        let Ok(found) = fs::symlink_metadata(&host) else { return Ok(()) };
        if found.is_symlink() {
            let target = fs::read_link(&host).map_err(explain(format_args!("read {}", host.display())))?;
            return replicate_link(&self.root, name, &target);
        }
        if !found.is_dir() {
            return Ok(());
        }
        let mount = copy_of(&host, true, Flags::PLAIN.read_only())?;
        let target = self.place(Path::new(name), Kind::Directory)?;
        let bind = Bind { source: host, target, make: None, flags: "ro,nosuid,nodev" };
        self.binds.push(Tree { mount, kind: Kind::Directory, bind });
        Ok(())
    }

    fn network_files(&mut self) -> Step<()> {
        for name in ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"] {
            let Ok(source) = fs::canonicalize(name) else { continue };
            let mount = copy_of(&source, false, Flags::DATA.read_only())?;
            let place = make_file_place_instead_of_link(&self.root, Path::new(name), Links::Inside)
                .map_err(explain(format_args!("make the mount point {name}")))?;
            self.push_file(mount, source, path_of(&place)?);
        }
        Ok(())
    }

    fn follow_resolv_conf(&mut self) -> Step<()> {
        let Ok(real) = fs::canonicalize("/etc/resolv.conf") else { return Ok(()) };
        if HOST_FOLDERS.iter().any(|name| real.starts_with(Path::new("/").join(name))) {
            return Ok(());
        }
        let mount = copy_of(&real, false, Flags::DATA.read_only())?;
        let target = self.place(&real, Kind::File)?;
        self.push_file(mount, real, target);
        Ok(())
    }

    fn push_file(&mut self, mount: OwnedFd, source: PathBuf, target: PathBuf) {
        let bind = Bind { source, target, make: None, flags: "ro,nosuid,nodev,noexec" };
        self.binds.push(Tree { mount, kind: Kind::File, bind });
    }

    /// On disk, and writable for everybody.
    fn shared_temporary_folder(&self, name: &str) -> Step<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = make_place(&self.root, Path::new(name), Kind::Directory, Links::Inside)
            .map_err(explain(format_args!("make the folder /{name}")))?;
        openat(&folder, ".", flags, Mode::empty())
            .and_then(|opened| fchmod(opened, Mode::from_raw_mode(0o1777)))
            .map_err(explain(format_args!("set the mode of /{name}")))
    }

    /// The first candidate that exists. LXC takes one program only.
    fn program(&self) -> Step<PathBuf> {
        let candidates = &self.spec.program.candidates;
        let of_host = |path: &Path| {
            self.spec.system == System::OfHost
                && HOST_FOLDERS.iter().any(|name| path.starts_with(Path::new("/").join(name)))
        };
        let exists = |path: &&PathBuf| match of_host(path) {
            true => path.exists(),
            false => openat2(
                &self.root,
                path.as_path(),
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            )
            .is_ok(),
        };
        match (candidates.iter().find(exists), candidates.last()) {
            (Some(found), _) => Ok(found.clone()),
            (None, Some(last)) if self.spec.mounts.is_empty() => {
                Err(format!("cannot run {}: No such file or directory", last.display()))
            }
            // It may be in a volume; LXC will see.
            (None, Some(last)) => Ok(last.clone()),
            (None, None) => Err("there is no program to run".to_owned()),
        }
    }
}

fn place_in(root: &OwnedFd, path: &Path, kind: Kind) -> Step<PathBuf> {
    let shown = path.strip_prefix("/").unwrap_or(path).display();
    let place = make_place(root, path, kind, Links::Inside)
        .map_err(explain(format_args!("make the mount point /{shown}")))?;
    path_of(&place)
}

/// The path of an opened file in its mount, which is mounted nowhere; relative.
fn path_of(place: &OwnedFd) -> Step<PathBuf> {
    let path = fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()))
        .map_err(explain("find a mount point's path"))?;
    let bytes = path.as_os_str().as_bytes();
    Ok(PathBuf::from(OsStr::from_bytes(bytes.strip_prefix(b"/").unwrap_or(bytes))))
}
