//! The files of one run: the app's, the buildpacks' and the settings, and the container that sees them.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use vr_common::build_data::BuildData;
use vr_common::proc_data::Network;
use vr_runner::container::{BindMount, ContainerSpec, Credentials, Program, RootFs, System};
use walkdir::WalkDir;

use vr_runner::job::Scratch;

use crate::BuildError;
use crate::cache::{self, Cache};
use crate::choice::Choice;
use crate::repositories::Buildpack;

/// The script that is the container's program, see its own comments.
const BUILDER_SH: &str = include_str!("builder.sh");
/// The largest file that the script leaves in `/out`, in bytes.
const LARGEST_NOTE: u64 = 1 << 20;

/// What a build's container is to show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inside<'a> {
    pub data: &'a BuildData,
    /// The full hash of the app's revision.
    pub app_revision: &'a str,
    pub choice: Choice,
    pub buildpacks: &'a [Buildpack],
    pub cache: &'a Cache,
    /// The contents of the OS image, should there be one.
    pub image: Option<&'a Path>,
    /// A name that no other build has.
    pub request_id: &'a str,
}

/// One run's folder. Everything in it goes away with it.
#[derive(Debug)]
pub(crate) struct Workspace {
    scratch: Scratch,
    /// The app's copy, which the build changes, in a folder that belongs to the build: a buildpack can remove it and make
    /// it anew.
    pub app: PathBuf,
    /// The app's folder name.
    app_folder: String,
    rootfs: PathBuf,
    work: PathBuf,
    home: PathBuf,
    out: PathBuf,
    /// The build user.
    pub user: Credentials,
}

impl Workspace {
    /// An empty one in `parent`, for an app whose repository folder is `app_folder`, built by `user`.
    pub(crate) fn create(parent: &Path, app_folder: &str, user: Credentials) -> Result<Self, BuildError> {
        let scratch = Scratch::create(parent).map_err(BuildError::io("make a folder in", parent))?;
        let folder =
            |name: &str| scratch.folder(name).map_err(BuildError::io("make", scratch.path().join(name)));
        Ok(Self {
            app: folder("build")?.join(app_folder),
            rootfs: folder("rootfs")?,
            work: folder("work")?,
            home: folder("home")?,
            out: folder("out")?,
            app_folder: app_folder.to_owned(),
            user,
            scratch,
        })
    }

    /// The folder itself.
    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// A path in it, for what is being put aside.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Gives everything that the build may change to the build user, and puts the script and the app's settings in
    /// their places.
    pub(crate) fn hand_over(&self, data: &BuildData, buildpacks: &[Buildpack]) -> Result<(), BuildError> {
        let environment = self.rootfs.join("env");
        fs::create_dir(&environment).map_err(BuildError::io("make", &environment))?;
        for (name, value) in data.env.iter().flatten() {
            let file = environment.join(name);
            // They may be secrets.
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o400);
            options
                .open(&file)
                .and_then(|mut file| file.write_all(value.0.as_bytes()))
                .map_err(BuildError::io("write", &file))?;
        }
        let script = self.rootfs.join("builder.sh");
        fs::write(&script, BUILDER_SH).map_err(BuildError::io("write", &script))?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))
            .map_err(BuildError::io("write", &script))?;
        let copies = buildpacks.iter().map(|buildpack| &buildpack.copy);
        for copy in copies.clone() {
            make_executable(copy)?;
        }
        for tree in [&self.builds(), &self.home, &self.out, &environment].into_iter().chain(copies) {
            own(tree, &self.user).map_err(BuildError::io("give to the build user", tree))?;
        }
        Ok(())
    }

    /// The container, with `program` in it. Its environment is added here.
    pub(crate) fn container(&self, inside: &Inside<'_>, program: Program) -> ContainerSpec {
        let Inside { data, app_revision, choice, buildpacks, cache, image, .. } = *inside;
        let app_inside = self.app_inside();
        let mount = |source: &Path, target: &Path| BindMount {
            source: source.to_owned(),
            target: target.to_owned(),
            read_only: false,
        };
        let mut mounts = vec![
            mount(&self.builds(), Path::new("/build")),
            mount(&self.home, Path::new("/app")),
            mount(&self.out, Path::new("/out")),
        ];
        mounts.extend(buildpacks.iter().map(|buildpack| mount(&buildpack.copy, &buildpack.mounted_at)));
        let root = match image {
            Some(contents) => RootFs::Overlay {
                lowers: vec![contents.to_owned()],
                upper: self.rootfs.clone(),
                work: self.work.clone(),
            },
            None => RootFs::Directory(self.rootfs.clone()),
        };
        let places: Vec<_> =
            buildpacks.iter().map(|buildpack| buildpack.mounted_at.display().to_string()).collect();
        let id = self.scratch.path().file_name().unwrap_or_default().display();
        let mut program = program
            .env("HOME", "/app")
            .env("TMPDIR", "/tmp")
            .env("LANG", "C.UTF-8")
            .env("SOURCE_VERSION", app_revision)
            .env("REQUEST_ID", inside.request_id)
            .env(choice.variable(), places.join(":"));
        if let Some(stack) = data.stack.as_ref().or(data.image_name.as_ref()) {
            program = program.env("STACK", stack);
        }
        let mut spec = ContainerSpec {
            system: if image.is_some() { System::Own } else { System::OfHost },
            mounts,
            user: self.user.clone(),
            workdir: app_inside,
            network: match data.network {
                Network::Host => vr_runner::container::Network::Host,
                Network::None => vr_runner::container::Network::None,
            },
            // What is worth keeping is synced when it is put in its place.
            is_volatile: true,
            ..ContainerSpec::new(format!("build-{}-{id}", data.app_name), root, program)
        };
        cache.mount(&mut spec);
        spec
    }

    /// The program that builds.
    pub(crate) fn builder(&self) -> Program {
        Program::new("/builder.sh", [self.app_inside().into_os_string(), cache::INSIDE.into()])
    }

    /// The folder that the app's is in.
    fn builds(&self) -> PathBuf {
        self.path("build")
    }

    /// Whether the app's folder is still one, now that the build has ended.
    pub(crate) fn has_app(&self) -> bool {
        fs::symlink_metadata(&self.app).is_ok_and(|found| found.is_dir())
    }

    fn app_inside(&self) -> PathBuf {
        Path::new("/build").join(&self.app_folder)
    }

    /// What the script left in `/out` under a name. The build user could put anything there, so links are not
    /// followed and little is read.
    pub(crate) fn note(&self, name: &str) -> Result<Option<String>, BuildError> {
        let path = self.out.join(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => fs::File::from(fd),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(BuildError::io("read", path)(error.into())),
        };
        let read = || {
            let mut bytes = Vec::new();
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("it is not a file"));
            }
            (&file).take(LARGEST_NOTE + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > LARGEST_NOTE {
                return Err(io::Error::other(format!("it is larger than {LARGEST_NOTE} bytes")));
            }
            String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))
        };
        read().map(Some).map_err(BuildError::io("read", path))
    }
}

/// Buildpacks are used whose scripts were never made executable; heroku-buildpack-multi makes them so.
fn make_executable(buildpack: &Path) -> Result<(), BuildError> {
    let programs = buildpack.join("bin");
    // A link could lead to folders of the host.
    if !fs::symlink_metadata(&programs).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    for name in ["detect", "compile", "release"] {
        let script = programs.join(name);
        let Ok(found) = fs::symlink_metadata(&script) else { continue };
        if found.is_file() {
            fs::set_permissions(&script, Permissions::from_mode(found.permissions().mode() | 0o111))
                .map_err(BuildError::io("make executable", &script))?;
        }
    }
    Ok(())
}

/// Gives a tree to a user, links themselves and not what they lead to.
fn own(tree: &Path, user: &Credentials) -> io::Result<()> {
    for entry in WalkDir::new(tree).follow_links(false).follow_root_links(false) {
        let entry = entry?;
        lchown(entry.path(), Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}
