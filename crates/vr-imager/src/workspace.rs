//! The files of one run, and the container that the script runs in.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2, statat, unlinkat};
use vr_common::fetch::without_credentials;
use vr_common::image_data::ImageData;
use vr_common::paths::VrRoot;
use vr_common::proc_data;
use vr_runner::container::{ContainerSpec, Network, Program, RootFs, open_beneath};
use vr_runner::image::HeldImage;
use vr_runner::job::{JobError, Scratch};

use crate::ImagerError;
use crate::script::{Script, has};

/// Beside the images. No image's name begins with a dot.
const SCRATCH: &str = ".scratch";
/// The host's files that a container sees: it needs something to put them over.
const FILES_OF_HOST: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// One run's folder. Everything in it goes away with it.
#[derive(Debug)]
pub(crate) struct Workspace {
    scratch: Scratch,
    base: HeldImage,
    /// What the script changes.
    upper: PathBuf,
    work: PathBuf,
}

impl Workspace {
    /// An empty one over a base.
    pub(crate) fn create(root: &VrRoot, base: HeldImage) -> Result<Self, JobError> {
        let parent = root.images().join(SCRATCH);
        let scratch = Scratch::create(&parent).map_err(JobError::io("make a folder in", &parent))?;
        let folder =
            |name: &str| scratch.folder(name).map_err(JobError::io("make", scratch.path().join(name)));
        Ok(Self { upper: folder("upper")?, work: folder("work")?, base, scratch })
    }

    /// The folder, with all that the run writes.
    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// What the container's root consists of, the topmost folder first.
    pub(crate) fn layers(&self) -> [PathBuf; 2] {
        [self.upper.clone(), self.base.lasting_path()]
    }

    /// The script's path in the container. No image has a file of that name.
    pub(crate) fn script(&self) -> PathBuf {
        Path::new("/").join(format!("provision-{}", self.id()))
    }

    fn id(&self) -> String {
        self.folder().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Puts the fetched script where the container sees it, and gives what it is.
    pub(crate) fn place_script(&self, fetched: &Path, data: &ImageData) -> Result<Script, ImagerError> {
        let place = self.in_upper(&self.script());
        fs::copy(fetched, &place).map_err(JobError::io("write", &place))?;
        fs::set_permissions(&place, Permissions::from_mode(0o755)).map_err(JobError::io("write", &place))?;
        let script = File::open(&place).and_then(Script::look_at).map_err(JobError::io("read", &place))?;
        script.ok_or_else(|| ImagerError::EmptyScript { url: without_credentials(&data.script_url) })
    }

    /// The program that runs the script, should the base have what it takes.
    pub(crate) fn program(&self, script: &Script, data: &ImageData) -> Result<Program, ImagerError> {
        script.check(&self.base.lasting_path(), &data.base_image_name)?;
        Ok(match script {
            Script::For(_) | Script::Program => Program::new(self.script(), [] as [&str; 0]),
            Script::ForShell => Program::new("/bin/sh", [self.script()]),
        })
    }

    /// A shell of the base.
    pub(crate) fn shell(&self, data: &ImageData) -> Result<Program, ImagerError> {
        let mut program = Program::new("/bin/bash", [] as [&str; 0]);
        program.candidates.push("/bin/sh".into());
        if program.candidates.iter().any(|shell| has(&self.base.lasting_path(), shell)) {
            Ok(program)
        } else {
            Err(ImagerError::NoShell { image: data.base_image_name.clone() })
        }
    }

    /// Takes out what neither the base nor the script made: the script itself, whatever it did to its file, and the
    /// files that the host's were mounted over.
    pub(crate) fn tidy(&self) -> Result<(), JobError> {
        let place = self.in_upper(&self.script());
        vr_common::archive::remove_tree(&place).map_err(JobError::io("remove", &place))?;
        remove_places(&self.upper, &self.base.lasting_path()).map_err(JobError::io("tidy", &self.upper))
    }

    fn in_upper(&self, inside: &Path) -> PathBuf {
        self.upper.join(inside.file_name().unwrap_or_default())
    }

    /// The container, with `program` in it. Its environment is added here.
    pub(crate) fn container(
        &self,
        data: &ImageData,
        mut program: Program,
    ) -> Result<ContainerSpec, JobError> {
        program = program.env("HOME", "/root");
        if let Some(terminal) = std::env::var_os("TERM") {
            program = program.env("TERM", terminal);
        }
        for (key, value) in data.env.iter().flatten() {
            program = program.env(key, &value.0);
        }
        let name = format!("image-{}-{}", data.new_image_name, self.id());
        // A container has its own mounts, so it needs a path of the host. It is found at the last moment: another run may
        // bring another base of that name at any time, and this one is then moved.
        let base = self.base.lasting_path();
        let root = RootFs::Overlay {
            lowers: vec![base.canonicalize().map_err(JobError::io("find", self.base.contents()))?],
            upper: self.upper.clone(),
            work: self.work.clone(),
        };
        Ok(ContainerSpec {
            network: match data.network {
                proc_data::Network::Host => Network::Host,
                proc_data::Network::None => Network::None,
            },
            // What is worth keeping is synced when it is put in its place.
            is_volatile: true,
            ..ContainerSpec::new(name, root, program)
        })
    }
}

/// Removes the empty files that the container's making needed and that the base has not: from `etc`, or where that leads
/// in the base. The script could not touch them, but it may have put links in the place of the folders: these are not
/// followed.
fn remove_places(upper: &Path, base: &Path) -> io::Result<()> {
    let of_base = open_beneath(base, Path::new("etc")).ok();
    let etc = match &of_base {
        Some(etc) => fs::read_link(format!("/proc/self/fd/{}", etc.as_raw_fd()))?
            .strip_prefix(base.canonicalize()?)
            .map_or_else(|_| PathBuf::from("etc"), Path::to_owned),
        None => "etc".into(),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = rustix::fs::open(upper, flags, Mode::empty())?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let Ok(etc) = openat2(upper, etc, flags, Mode::empty(), beneath) else { return Ok(()) };
    for name in FILES_OF_HOST {
        let find = |folder: BorrowedFd<'_>| statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let is_place = |found: rustix::fs::Stat| {
            FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_size == 0
        };
        let in_base = of_base.as_ref().and_then(|etc| find(etc.as_fd()));
        if in_base.is_none() && find(etc.as_fd()).is_some_and(is_place) {
            unlinkat(&etc, name, AtFlags::empty())?;
        }
    }
    Ok(())
}
