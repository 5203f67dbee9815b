//! The folder that everything is measured in: an OS image of this machine's own programs, and procs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use vr_common::process::command;

use super::private_mounts::check_path;

/// What the image can run. With bash, as nearly every image has one.
const PROGRAMS: [&str; 4] = ["bash", "sh", "sleep", "true"];
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

/// A `VR_ROOT` with an image and a small build, removed when dropped.
#[derive(Debug)]
pub struct World {
    folder: tempfile::TempDir,
    /// The vrun to measure.
    pub vrun: PathBuf,
}

impl World {
    /// Makes it in a new folder below the given one.
    pub fn make(below: &Path, vrun: PathBuf) -> Result<Self> {
        check_path(below)?;
        let folder = tempfile::Builder::new()
            .prefix("world-")
            .tempdir_in(below)
            .with_context(|| format!("cannot make a folder in {}", below.display()))?;
        // Others than root have to get to what belongs to them.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let world = Self { folder, vrun };
        make_image(&world.image())?;
        tar(&world.image(), &world.path().join("image.tar"))?;
        let app = world.path().join("app");
        fs::create_dir(&app)?;
        fs::write(app.join("readme"), "An app of one file.\n")?;
        tar(&app, &world.path().join("build.tar.gz"))?;
        Ok(world)
    }

    /// The folder that holds everything.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The unpacked image, for those who do not unpack it themselves.
    pub fn image(&self) -> PathBuf {
        self.path().join("image")
    }

    /// The `VR_ROOT`.
    pub fn root(&self) -> PathBuf {
        self.path().join("apps")
    }

    /// Writes the `proc.yaml` of a proc in the image: one of its own for each port.
    pub fn proc_file(&self, port: u16, command: &str, build: &Path, md5: Option<&str>) -> Result<PathBuf> {
        let (file, folder) = (self.path().join(format!("proc-{port}.yaml")), self.path().display());
        let md5 = md5.map(|md5| format!("build_md5: {md5}\n")).unwrap_or_default();
        let text = format!(
            "app_name: bench\nversion: v1\nconfig_name: prod\nrelease_hash: abcd1234\nproc_name: web\nport: {port}\n\
             user: nobody\ncmd: {command}\nbuild_url: {}\n{md5}image_url: {folder}/image.tar\nimage_name: bench\n",
            build.display()
        );
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// A proc of the small build, set up.
    pub fn small_proc(&self, port: u16, command: &str) -> Result<PathBuf> {
        let file = self.proc_file(port, command, &self.path().join("build.tar.gz"), None)?;
        checked(&mut self.vrun("setup", &file))?;
        Ok(file)
    }

    /// `vrun <verb> <file>` in this world.
    pub fn vrun(&self, verb: &str, file: &Path) -> Command {
        let mut vrun = command(&self.vrun);
        vrun.env("VR_ROOT", self.root()).arg(verb).arg(file);
        vrun
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Files of other users and odd modes are among them.
        if let Err(error) = vr_common::archive::remove_tree(self.folder.path()) {
            eprintln!("cannot remove {}: {error}", self.folder.path().display());
        }
    }
}

/// Runs a program to its end and gives its output; what it says is in the error when it fails.
pub fn checked(program: &mut Command) -> Result<String> {
    let name = program.get_program().to_string_lossy().into_owned();
    let output = program.output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} ended with {}: {}", output.status, said.trim().lines().last().unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Packs a folder's content.
pub fn tar(from: &Path, to: &Path) -> Result<()> {
    checked(command("tar").arg("-C").arg(from).arg("-caf").arg(to).arg("."))?;
    Ok(())
}

fn make_image(image: &Path) -> Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(image.join(folder))?;
    }
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), image.join(name))?;
    }
    for program in PROGRAMS {
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
