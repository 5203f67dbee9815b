//! The files of one run, and the container that the script runs in.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vr_common::image_data::ImageData;
use vr_common::paths::VrRoot;
use vr_runner::container::{ContainerSpec, Program, RootFs};
use vr_runner::job::Scratch;

use crate::ImagerError;

/// Beside the images, so that what is in them can be linked to. No image's name begins with a dot.
const SCRATCH: &str = ".scratch";

/// One run's folder. Everything in it goes away with it.
#[derive(Debug)]
pub(crate) struct Workspace {
    scratch: Scratch,
    /// What the script changes.
    pub upper: PathBuf,
    work: PathBuf,
}

impl Workspace {
    pub(crate) fn create(root: &VrRoot) -> Result<Self, ImagerError> {
        let parent = root.images().join(SCRATCH);
        let scratch = Scratch::create(&parent).map_err(ImagerError::io("make a folder in", &parent))?;
        let folder =
            |name: &str| scratch.folder(name).map_err(ImagerError::io("make", scratch.path().join(name)));
        Ok(Self { upper: folder("upper")?, work: folder("work")?, scratch })
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The script's path in the container. No image has a file of that name.
    pub(crate) fn script(&self) -> PathBuf {
        Path::new("/").join(format!("provision-{}", self.id()))
    }

    fn id(&self) -> String {
        self.scratch.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Puts the fetched script where the container sees it, and gives the program that runs it.
    pub(crate) fn place_script(&self, fetched: &Path) -> Result<Program, ImagerError> {
        let inside = self.script();
        let place = self.in_upper(&inside);
        fs::copy(fetched, &place).map_err(ImagerError::io("write", &place))?;
        fs::set_permissions(&place, Permissions::from_mode(0o755))
            .map_err(ImagerError::io("write", &place))?;
        let mut beginning = Vec::new();
        File::open(&place)
            .and_then(|file| file.take(4).read_to_end(&mut beginning))
            .map_err(ImagerError::io("read", &place))?;
        if beginning.starts_with(b"#!") || beginning == b"\x7fELF" {
            Ok(Program::new(inside, [] as [&str; 0]))
        } else {
            // As every shell does it with a script that does not say who is to read it.
            Ok(Program::new("/bin/sh", [inside]))
        }
    }

    /// Takes the script out again; whatever the script did to it, nothing of that name is left.
    pub(crate) fn remove_script(&self) -> Result<(), ImagerError> {
        let place = self.in_upper(&self.script());
        vr_common::archive::remove_tree(&place).map_err(ImagerError::io("remove", &place))
    }

    fn in_upper(&self, inside: &Path) -> PathBuf {
        self.upper.join(inside.file_name().unwrap_or_default())
    }

    /// The container, with `program` in it. Its environment is added here.
    pub(crate) fn container(&self, data: &ImageData, base: &Path, mut program: Program) -> ContainerSpec {
        program = program.env("HOME", "/root");
        if let Some(terminal) = std::env::var_os("TERM") {
            program = program.env("TERM", terminal);
        }
        for (key, value) in data.env.iter().flatten() {
            program = program.env(key, &value.0);
        }
        let name = format!("image-{}-{}", data.new_image_name, self.id());
        let root = RootFs::Overlay {
            lowers: vec![base.to_owned()],
            upper: self.upper.clone(),
            work: self.work.clone(),
        };
        ContainerSpec::new(name, root, program)
    }
}
