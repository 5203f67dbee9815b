//! A folder with a base image, scripts and vimage's own files, apart from those of every other test.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use vr_common::archive::{PackOptions, UnpackOptions, pack, unpack};
use vr_common::process::command;
pub use vr_testing::{Answer, Ended, Meeting, Server, Started, ended, marker, names, sleeps, until};

pub struct World {
    dir: tempfile::TempDir,
    /// The base image's tarball.
    pub base: PathBuf,
}

impl World {
    /// With the smallest base that scripts can run in: some of the host's programs with their libraries.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// The same; `change` is done to the base's files before they are packed.
    pub fn with(change: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("base");
        let programs = [
            "bash", "cat", "chmod", "chown", "env", "id", "ln", "ls", "mkdir", "mv", "rm", "rmdir", "sleep",
            "touch", "truncate", "cp",
        ];
        for program in programs {
            let program = Path::new("/bin").join(program);
            copy_in(&root, &program);
            let listed = command("ldd").arg(&program).output().unwrap();
            let listed = String::from_utf8(listed.stdout).unwrap();
            for word in listed.split_whitespace().filter(|word| word.starts_with('/')) {
                copy_in(&root, Path::new(word));
            }
        }
        symlink("bash", root.join("bin/sh")).unwrap();
        for (path, text) in [
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"),
            ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
            ("etc/motd", "the base's\n"),
            ("srv/owned", "by 1234\n"),
            ("opt/old/file", "old\n"),
            ("opt/gone/file", "old\n"),
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::hard_link(root.join("etc/motd"), root.join("etc/motd.twin")).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", root.join("etc/resolv.conf")).unwrap();
        chown(root.join("srv/owned"), Some(1234), Some(4321)).unwrap();
        fs::set_permissions(root.join("bin/id"), Permissions::from_mode(0o4755)).unwrap();
        change(&root);
        let base = dir.path().join("tiny_base.tar.gz");
        pack(&root, &base, &PackOptions::image()).unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        Self { dir, base }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn out(&self, name: &str) -> PathBuf {
        self.path("out").join(name)
    }

    /// Writes a script and an `image.yaml` that uses it.
    pub fn yaml(&self, script: &str, more: &str) -> PathBuf {
        let path = self.path("provision.sh");
        fs::write(&path, script).unwrap();
        self.yaml_of(&path.display().to_string(), more)
    }

    pub fn yaml_of(&self, script: &str, more: &str) -> PathBuf {
        let file = self.path("image.yaml");
        let base = self.base.display();
        fs::write(
            &file,
            format!(
                "base_image_url: {base}\nbase_image_name: tiny_base\nnew_image_name: new_1\nscript_url: {script}\n{more}\n"
            ),
        )
        .unwrap();
        file
    }

    /// vimage, which works in this world only.
    pub fn vimage(&self, arguments: &[&str], file: &Path) -> Command {
        let mut vimage = command(env!("CARGO_BIN_EXE_vimage"));
        vimage
            .args(arguments)
            .arg(file)
            .current_dir(self.path("out"))
            .env("VR_ROOT", self.path("root"))
            .env("TERM", "test-terminal")
            .env("SECRET_OF_THE_HOST", "do not tell");
        vimage
    }

    pub fn build(&self, file: &Path) -> Ended {
        ended(&mut self.vimage(&["build"], file))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.out("new_1.log")).unwrap()
    }

    /// What is in the new image's tarball, as GNU tar sees it: mode, owner, and the name with a link's target.
    pub fn listed(&self, tarball: &str) -> Vec<String> {
        let mut tar = command("tar");
        let output =
            tar.args(["--list", "--verbose", "--numeric-owner", "--file"]).arg(self.out(tarball)).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let short = |line: &str| {
            let mut words = line.split_whitespace();
            // Between them are size, date and time.
            let (mode, owner) = (words.next().unwrap(), words.next().unwrap());
            let name = words.skip(3).collect::<Vec<_>>().join(" ");
            format!("{mode} {owner} {name}")
        };
        String::from_utf8(output.stdout).unwrap().lines().map(short).collect()
    }

    /// Unpacks the new image.
    pub fn unpacked(&self, tarball: &str) -> PathBuf {
        let into = self.path("unpacked");
        unpack(&self.out(tarball), &into, &UnpackOptions::image()).unwrap();
        into
    }

    /// Nothing but what is to stay: the output files named, and the base.
    #[track_caller]
    pub fn assert_left(&self, output: &[&str]) {
        assert_eq!(names(&self.path("out")), output);
        assert_eq!(names(&self.path("root/images/.scratch")), Vec::<String>::new());
    }
}

/// Every path below a folder with what must not change: mode, owner, size and time.
pub fn fingerprint(folder: &Path) -> BTreeMap<PathBuf, (u32, u32, u64, i64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            found.insert(entry.path(), (metadata.mode(), metadata.uid(), metadata.size(), metadata.mtime()));
        }
    }
    found
}

fn copy_in(root: &Path, file: &Path) {
    let to = root.join(file.strip_prefix("/").unwrap());
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(file, &to).unwrap();
    fs::set_permissions(&to, Permissions::from_mode(0o755)).unwrap();
}
