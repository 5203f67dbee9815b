//! The files of one run: copies of the app, the buildpacks and the cache, and the container that sees them.

use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use vr_common::build_data::BuildData;
use vr_runner::container::{BindMount, ContainerSpec, Credentials, Program, RootFs, System};
use walkdir::WalkDir;

use crate::BuildError;
use crate::checkout::Buildpack;
use vr_runner::job::Scratch;

/// The script that is the container's program, see its own comments.
const BUILDER_SH: &str = include_str!("builder.sh");
/// Where the container sees the cache.
const CACHE: &str = "/cache/buildpack_cache";
/// The largest file that the script leaves in `/out`, in bytes.
const LARGEST_NOTE: u64 = 1 << 20;

/// One run's folder. Everything in it goes away with it.
#[derive(Debug)]
pub(crate) struct Workspace {
    scratch: Scratch,
    /// The app's copy, which the build changes.
    pub app: PathBuf,
    /// The app's folder name.
    app_folder: String,
    /// The cache's copy.
    pub cache: PathBuf,
    rootfs: PathBuf,
    work: PathBuf,
    home: PathBuf,
    out: PathBuf,
    user: Credentials,
}

impl Workspace {
    /// An empty one in `parent`, for an app whose repository folder is `app_folder`, built by `user`.
    pub(crate) fn create(parent: &Path, app_folder: &str, user: Credentials) -> Result<Self, BuildError> {
        let scratch = Scratch::create(parent).map_err(BuildError::io("make a folder in", parent))?;
        let folder =
            |name: &str| scratch.folder(name).map_err(BuildError::io("make", scratch.path().join(name)));
        Ok(Self {
            app: folder("app")?,
            cache: folder("cache")?,
            rootfs: folder("rootfs")?,
            work: folder("work")?,
            home: folder("home")?,
            out: folder("out")?,
            app_folder: app_folder.to_owned(),
            user,
            scratch,
        })
    }

    /// A path in it, for what is being put aside.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Gives everything that the build may change to the build user, and puts the script in its place.
    pub(crate) fn hand_over(&self, buildpacks: &[Buildpack]) -> Result<(), BuildError> {
        let copies = buildpacks.iter().map(|buildpack| &buildpack.copy);
        for tree in [&self.app, &self.cache, &self.home, &self.out].into_iter().chain(copies) {
            own(tree, &self.user).map_err(BuildError::io("give to the build user", tree))?;
        }
        let environment = self.rootfs.join("env");
        fs::create_dir(&environment).map_err(BuildError::io("make", &environment))?;
        let script = self.rootfs.join("builder.sh");
        fs::write(&script, BUILDER_SH).map_err(BuildError::io("write", &script))?;
        fs::set_permissions(&script, Permissions::from_mode(0o755)).map_err(BuildError::io("write", &script))
    }

    /// The container, with `program` in it. Its environment is added here.
    pub(crate) fn container(
        &self,
        data: &BuildData,
        app_revision: &str,
        buildpacks: &[Buildpack],
        image: Option<&Path>,
        program: Program,
    ) -> ContainerSpec {
        let inside = self.app_inside();
        let mount = |source: &Path, target: &Path| BindMount {
            source: source.to_owned(),
            target: target.to_owned(),
            read_only: false,
        };
        let mut mounts = vec![
            mount(&self.app, &inside),
            mount(&self.cache, Path::new(CACHE)),
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
        let (variable, value) = match data.buildpack_url {
            Some(_) => ("BUILDPACK_DIR", places.concat()),
            None => ("BUILDPACK_DIRS", places.join(":")),
        };
        let mut program = program
            .env("HOME", "/app")
            .env("TMPDIR", "/tmp")
            .env("LANG", "C.UTF-8")
            .env("SOURCE_VERSION", app_revision)
            .env(variable, value);
        if let Some(name) = &data.image_name {
            program = program.env("STACK", name);
        }
        let id = self.scratch.path().file_name().unwrap_or_default().display();
        let name = format!("build-{}-{id}", data.app_name);
        ContainerSpec {
            system: if image.is_some() { System::Own } else { System::OfHost },
            mounts,
            user: self.user.clone(),
            workdir: inside,
            ..ContainerSpec::new(name, root, program)
        }
    }

    /// The program that builds.
    pub(crate) fn builder(&self) -> Program {
        Program::new("/builder.sh", [self.app_inside().into_os_string(), CACHE.into()])
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

/// Gives a tree to a user, links themselves and not what they lead to.
fn own(tree: &Path, user: &Credentials) -> io::Result<()> {
    for entry in WalkDir::new(tree).follow_links(false).follow_root_links(false) {
        let entry = entry?;
        lchown(entry.path(), Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}
