//! The folder that everything is measured in: an OS image of this machine's own programs, and procs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use vr_common::lock::FileLock;
use vr_common::process::command;

use super::programs::{checked, clocked};
use super::tar::Tarball;

/// How the names of worlds begin.
const PREFIX: &str = "world-";
/// The folders of every distribution.
const FOLDERS: [&str; 12] = [
    "app",
    "dev/pts",
    "dev/shm",
    "etc",
    "proc",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "var",
];
/// Says in numbers what a process may do: user, capabilities, no_new_privs, seccomp mode, users of its namespace,
/// mounts. Shell words only, as the image has no other programs.
const PROBE: &str = r#"while read -r key value rest; do
    case $key in
        Uid:) user=$value ;;
        CapEff:) capabilities=$value ;;
        NoNewPrivs:) privileges=$value ;;
        Seccomp:) filter=$value ;;
    esac
done < /proc/self/status
read -r inside outside users < /proc/self/uid_map
mounts=0
while read -r line; do mounts=$((mounts + 1)); done < /proc/self/mountinfo
echo "$user $capabilities $privileges $filter $users $mounts"
"#;

/// A new folder that is removed when dropped, with its lock: only one benchmark has one.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Of the folder that all of them are in: two benchmarks at a time would measure each other.
    _lock: FileLock,
}

/// A `VR_ROOT` with an image and a small build, removed when dropped.
#[derive(Debug)]
pub struct World {
    folder: Folder,
    /// The vrun to measure.
    vrun: PathBuf,
    image: Tarball,
    build: Tarball,
}

impl Folder {
    /// Makes it below the given one.
    pub fn make(below: &Path) -> Result<Self> {
        let lock = FileLock::existing(below)?;
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(below)
            .with_context(|| format!("cannot make a folder in {}", below.display()))?
            .keep();
        let folder = Self { path, _lock: lock };
        // Others than root have to get to what belongs to them.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl World {
    /// Makes it in a new folder below the given one. Its image has these programs of this machine.
    pub fn make(below: &Path, programs: &[&str], vrun: PathBuf) -> Result<Self> {
        let folder = Folder::make(below)?;
        let tarball = |name: &str| Tarball { path: folder.path().join(name), md5: None };
        let (image, build) = (tarball("image.tar"), tarball("build.tar.gz"));
        let world = Self { folder, vrun, image, build };
        make_image(&world.image_folder(), programs)?;
        Tarball::pack(&[&world.image_folder()], world.image.path.clone())?;
        let app = world.path().join("app");
        fs::create_dir(&app)?;
        fs::write(app.join("readme"), "An app of one file.\n")?;
        Tarball::pack(&[&app], world.build.path.clone())?;
        Ok(world)
    }

    /// The folder that holds everything.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The unpacked image, for those who do not unpack it themselves.
    pub fn image_folder(&self) -> PathBuf {
        self.path().join("image")
    }

    /// The image.
    pub fn image(&self) -> &Tarball {
        &self.image
    }

    /// A build of one file.
    pub fn build(&self) -> &Tarball {
        &self.build
    }

    /// The `VR_ROOT`.
    pub fn root(&self) -> PathBuf {
        self.path().join("apps")
    }

    /// Writes the `proc.yaml` of a proc: one of its own for each port. The image is called as its tarball is.
    pub fn proc_file(&self, port: u16, command: &str, build: &Tarball, image: &Tarball) -> Result<PathBuf> {
        let file = self.path().join(format!("proc-{port}.yaml"));
        let mut text = format!(
            "app_name: bench\nversion: v1\nconfig_name: prod\nrelease_hash: abcd1234\nproc_name: web\nport: {port}\n\
             user: nobody\ncmd: {command}\nimage_name: {}\n",
            image.name()
        );
        for (key, Tarball { path, md5 }) in [("build", build), ("image", image)] {
            text.push_str(&format!("{key}_url: {}\n", path.display()));
            if let Some(md5) = md5 {
                text.push_str(&format!("{key}_md5: {md5}\n"));
            }
        }
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// A proc of the small build, set up.
    pub fn small_proc(&self, port: u16, command: &str) -> Result<PathBuf> {
        let file = self.proc_file(port, command, &self.build, &self.image)?;
        checked(&mut self.vrun("setup", &file))?;
        Ok(file)
    }

    /// `vrun <verb> <file>` in this world.
    pub fn vrun(&self, verb: &str, file: &Path) -> Command {
        let mut vrun = command(&self.vrun);
        vrun.env("VR_ROOT", self.root()).arg(verb).arg(file);
        vrun
    }

    /// How long `vrun setup` takes.
    pub fn set_up(&self, file: &Path) -> Result<Duration> {
        Ok(clocked(&mut self.vrun("setup", file))?.0)
    }

    /// Takes a folder out of the way, if it is there. Removed right away, it would slow down whatever is measured next: ext4
    /// looks at every place of a file that was removed in the last minutes before it makes a new file.
    pub fn set_aside(&self, path: &Path) -> Result<()> {
        if !path.exists() {
            return Ok(());
        }
        let aside = tempfile::Builder::new().prefix("aside-").tempdir_in(self.path())?.keep();
        fs::rename(path, aside.join("folder")).with_context(|| format!("cannot move {}", path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Some(below) = self.path.parent() else { return };
        // Also what a run that was killed has left: nobody else is using this folder. Not before it was measured, see
        // `set_aside`.
        for entry in fs::read_dir(below).into_iter().flatten().flatten() {
            if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
                continue;
            }
            // Files of other users and odd modes are among them.
            if let Err(error) = vr_common::archive::remove_tree(&entry.path()) {
                eprintln!("cannot remove {}: {error}", entry.path().display());
            }
        }
    }
}

fn make_image(image: &Path, programs: &[&str]) -> Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(image.join(folder))?;
    }
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), image.join(name))?;
    }
    for program in programs {
        let path = Path::new("/usr/bin").join(program);
        copy(&path, image)?;
        let listing = command("ldd").arg(&path).stdout(Stdio::piped()).output().context("cannot run ldd")?;
        let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
        for library in listing.split_whitespace().filter(|word| word.starts_with('/')) {
            copy(Path::new(library), image)?;
        }
    }
    let files = [
        ("passwd", "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"),
        ("group", "root:x:0:\nnogroup:x:65534:\n"),
        ("hostname", ""),
        ("hosts", ""),
        ("resolv.conf", ""),
    ];
    for (name, content) in files {
        fs::write(image.join("etc").join(name), content)?;
    }
    fs::write(image.join("probe"), PROBE)?;
    Ok(())
}

fn copy(path: &Path, image: &Path) -> Result<()> {
    let target = image.join(path.strip_prefix("/").unwrap_or(path));
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(path, target).with_context(|| format!("cannot copy {}", path.display()))?;
    Ok(())
}
