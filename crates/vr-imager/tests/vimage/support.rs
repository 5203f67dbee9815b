//! A folder with a base image, scripts and vimage's own files, apart from those of every other test.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vr_common::archive::{PackOptions, UnpackOptions, pack, unpack};
use vr_common::process::command;

/// Long enough for anything that will happen at all.
const DEADLINE: Duration = Duration::from_secs(60);

pub struct World {
    dir: tempfile::TempDir,
    /// The base image's tarball.
    pub base: PathBuf,
}

/// How a vimage ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Fails the test with everything that was said, unless the exit code is the expected one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// The line that begins with `ERROR: `, without that.
    #[track_caller]
    pub fn error(&self) -> &str {
        let lines: Vec<&str> = self.stderr.lines().filter_map(|line| line.strip_prefix("ERROR: ")).collect();
        assert_eq!(lines.len(), 1, "{}", self.stderr);
        lines[0]
    }
}

impl World {
    /// With the smallest base that scripts can run in: some of the host's programs with their libraries.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("base");
        let programs = [
            "bash", "cat", "chmod", "chown", "env", "id", "ln", "ls", "mkdir", "mv", "rm", "rmdir", "sleep",
            "touch",
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

/// The names in a folder, sorted; none when it is not there.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
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

pub fn ended(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A vimage that runs at the moment. It is killed when the test is over.
pub struct Started(pub Child);

impl Started {
    pub fn new(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Reads standard output until a line is the text.
    #[track_caller]
    pub fn until_output(&mut self, text: &str) {
        // Byte by byte: what comes after the line is still wanted.
        let reader = BufReader::with_capacity(1, self.0.stdout.as_mut().unwrap());
        assert!(reader.lines().any(|line| line.unwrap() == text), "no line {text:?}");
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        let read = |stream: Option<&mut dyn std::io::Read>| {
            let mut text = String::new();
            if let Some(stream) = stream {
                stream.read_to_string(&mut text).unwrap();
            }
            text
        };
        let stdout = read(self.0.stdout.as_mut().map(|s| s as _));
        let stderr = read(self.0.stderr.as_mut().map(|s| s as _));
        Ended { code: self.0.wait().unwrap().code(), stdout, stderr }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a condition.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An argument for `sleep` that no other process of this machine has.
pub fn marker() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("5000.{}{:04}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Whether a `sleep` with this argument runs anywhere.
pub fn sleeps(marker: &str) -> bool {
    let wanted = format!("sleep\0{marker}\0");
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .any(|line| line == wanted.as_bytes())
}
