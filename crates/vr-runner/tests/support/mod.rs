//! What the tests of the real binaries share: a world of its own for each test, and ways to wait for things.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use vr_common::process::command;
pub use vr_testing::until;

pub const NAME: &str = "demo-v1-prod-abcd1234-web-5001";

/// The engine that the tests at hand use: those of `tests/lxc.rs`, which are the same once more, use LXC.
pub fn engine() -> &'static str {
    if module_path!().starts_with("lxc::") { "lxc" } else { "own" }
}

/// A folder with a `VR_ROOT`, an app's files and a `proc.yaml`.
pub struct World {
    pub dir: TempDir,
    pub extra: String,
    pub image: bool,
}

impl World {
    /// An app in the host's system folders whose `web` runs the given script.
    pub fn new(script: &str) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap(), extra: String::new(), image: false };
        world.app("Procfile", "web: ./serve one $PORT \"$GREETING\"\n");
        world.app_program("serve", &format!("#!/bin/sh\n{script}\n"));
        world
    }

    /// The same in an image of its own.
    pub fn with_image(script: &str) -> Self {
        let mut world = Self::new(script);
        world.image = true;
        make_image(world.path());
        world
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn root(&self) -> PathBuf {
        self.path().join("apps")
    }

    pub fn proc_folder(&self) -> PathBuf {
        self.root().join("procs").join(NAME)
    }

    pub fn file(&self) -> PathBuf {
        self.path().join("proc.yaml")
    }

    /// Adds a file to the app.
    pub fn app(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join("app").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub fn app_program(&self, name: &str, content: &str) {
        let path = self.app(name, content);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// More lines for `proc.yaml`.
    pub fn yaml(mut self, extra: &str) -> Self {
        self.extra.push_str(extra);
        self.extra.push('\n');
        self
    }

    /// Packs the app and writes `proc.yaml`.
    pub fn pack(&self) {
        tar(&self.path().join("app"), &self.path().join("build.tar.gz"));
        self.write_yaml();
    }

    pub fn write_yaml(&self) {
        let path = self.path().display();
        let image = match self.image {
            true => format!("image_url: {path}/image.tar\nimage_name: tiny\n"),
            false => String::new(),
        };
        let text = format!(
            "app_name: demo\nversion: v1\nconfig_name: prod\nrelease_hash: abcd1234\nproc_name: web\nport: 5001\n\
             build_url: {path}/build.tar.gz\n{image}{}",
            self.extra
        );
        fs::write(self.file(), text).unwrap();
    }

    /// Packs and sets up.
    pub fn ready(self) -> Self {
        self.pack();
        let setup = self.vrun("setup");
        assert!(setup.status.success(), "{}", text(&setup.stderr));
        self
    }

    pub fn command(&self, verb: &str) -> Command {
        self.command_for(verb, &self.file())
    }

    pub fn command_for(&self, verb: &str, file: &Path) -> Command {
        let mut vrun = command(env!("CARGO_BIN_EXE_vrun"));
        vrun.env("VR_ROOT", self.root()).env("VR_ENGINE", engine()).arg(verb).arg(file);
        vrun
    }

    /// Runs `vrun <verb> proc.yaml` to its end.
    pub fn vrun(&self, verb: &str) -> Output {
        finish(self.command(verb))
    }

    /// Starts `vrun run proc.yaml` with its output in a file.
    pub fn start(&self) -> Background {
        self.start_command(self.command("run"))
    }

    pub fn start_command(&self, mut command: Command) -> Background {
        let path =
            tempfile::Builder::new().prefix("out-").tempfile_in(self.path()).unwrap().keep().unwrap().1;
        let file = fs::File::create(&path).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Background { child: command.spawn().unwrap(), output: path }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Files of other users and odd modes; the test's own result counts, not this.
        let _ = vr_common::archive::remove_tree(self.dir.path());
    }
}

/// A running vrun, killed at the end of the test.
pub struct Background {
    pub child: Child,
    output: PathBuf,
}

impl Background {
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    /// Waits until the output holds a text.
    pub fn until_says(&self, words: &str) {
        until(&format!("output with {words:?}"), || self.output().contains(words));
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for the end and returns the exit code.
    pub fn end(&mut self) -> i32 {
        let mut code = None;
        until("the end of vrun", || {
            code = self.child.try_wait().unwrap().map(|status| status.code().unwrap_or(-1));
            code.is_some()
        });
        code.unwrap()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end, at most a minute.
pub fn finish(command: Command) -> Output {
    assert_cmd::Command::from_std(command).timeout(Duration::from_secs(60)).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How many processes of this machine have the text among their arguments.
pub fn processes_with(marker: &str) -> usize {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.unwrap().path().join("cmdline")).ok())
        .filter(|line| String::from_utf8_lossy(line).contains(marker))
        .count()
}

pub fn tar(from: &Path, to: &Path) {
    let mut tar = command("tar");
    tar.arg("-C").arg(from).arg("-caf").arg(to).arg(".");
    assert!(tar.status().unwrap().success());
}

/// The programs that the tests' scripts use.
const PROGRAMS: [&str; 12] =
    ["bash", "cat", "env", "grep", "hostname", "id", "ls", "mkdir", "rm", "sh", "sleep", "touch"];

/// `image.tar`: a system of a few programs of this machine and their libraries, with users of its own.
fn make_image(world: &Path) {
    let image = world.join("image");
    for folder in ["usr/bin", "usr/lib", "usr/lib64", "etc", "var"] {
        fs::create_dir_all(image.join(folder)).unwrap();
    }
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), image.join(name)).unwrap();
    }
    for program in PROGRAMS {
        let path = Path::new("/usr/bin").join(program);
        copy(&path, &image);
        let ldd = text(&command("ldd").arg(&path).stdout(Stdio::piped()).output().unwrap().stdout);
        for library in ldd.split_whitespace().filter(|word| word.starts_with('/')) {
            copy(Path::new(library), &image);
        }
    }
    fs::write(image.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nimageuser:x:4321:4322::/:/bin/sh\n").unwrap();
    fs::write(image.join("etc/group"), "root:x:0:\nimagegroup:x:4322:\nfurther:x:4399:imageuser\n").unwrap();
    fs::write(image.join("etc/image-mark"), "of the image").unwrap();
    symlink("../run/systemd/resolve/stub-resolv.conf", image.join("etc/resolv.conf")).unwrap();
    symlink("../run", image.join("var/run")).unwrap();
    tar(&image, &world.join("image.tar"));
}

fn copy(path: &Path, image: &Path) {
    let target = image.join(path.strip_prefix("/").unwrap());
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::copy(path, target).unwrap();
}
