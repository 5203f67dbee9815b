//! A folder with repositories, buildpacks and vbuild's own files, apart from those of every other test.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vr_common::process::command;

/// Long enough for anything that will happen at all.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub struct World {
    dir: tempfile::TempDir,
}

/// How a vbuild ended.
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
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The output folder.
    pub fn out(&self, name: &str) -> PathBuf {
        self.path("out").join(name)
    }

    /// Writes files; those that begin with `#!` can be executed.
    pub fn write(&self, folder: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.path(folder);
        for (name, text) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            if text.starts_with("#!") {
                fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            }
        }
        folder
    }

    /// A git repository with the files in one commit, tagged `v1`.
    pub fn git(&self, folder: &str, files: &[(&str, &str)]) -> PathBuf {
        let path = self.write(folder, files);
        git(&path, &["init", "--quiet"]);
        commit(&path, "v1");
        path
    }

    /// A Mercurial repository with the files in one changeset, tagged `v1`.
    pub fn hg(&self, folder: &str, files: &[(&str, &str)]) -> PathBuf {
        let path = self.write(folder, files);
        for arguments in [&["init"][..], &["commit", "--addremove", "-m", "x"], &["tag", "v1"]] {
            let mut hg = command("hg");
            hg.current_dir(&path).env("HGPLAIN", "1").env("HGRCPATH", "/dev/null").env("HGUSER", "test");
            run_quietly(hg.args(arguments));
        }
        path
    }

    /// The usual app.
    pub fn app(&self) -> PathBuf {
        self.git("app", &[("Procfile", "web: ./run\n"), ("src/main.py", "print()\n")])
    }

    /// A buildpack that says yes, with the given `bin/compile` (of bash).
    pub fn pack(&self, name: &str, compile: &str) -> PathBuf {
        let compile = format!("#!/bin/bash\n{compile}\n");
        self.git(name, &[("bin/detect", "#!/bin/sh\necho Toy\n"), ("bin/compile", &compile)])
    }

    /// Writes a `build.yaml` for an app in git.
    pub fn yaml(&self, app: &Path, more: &str) -> PathBuf {
        self.yaml_of("git", app, more)
    }

    pub fn yaml_of(&self, kind: &str, app: &Path, more: &str) -> PathBuf {
        let mut text =
            format!("app_name: toy\napp_repo_type: {kind}\napp_repo_url: {}\n{more}\n", app.display());
        if !more.contains("version:") {
            text += "version: v1\n";
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let path = self.path(&format!("build-{}.yaml", NUMBER.fetch_add(1, Ordering::Relaxed)));
        fs::write(&path, text).unwrap();
        path
    }

    /// The usual app with one buildpack.
    pub fn yaml_with(&self, compile: &str) -> PathBuf {
        let (app, pack) = (self.app(), self.pack("pack", compile));
        self.yaml(&app, &format!("buildpack_urls: [{}]", pack.display()))
    }

    /// vbuild, which works in this world only.
    pub fn vbuild(&self, arguments: &[&str], file: &Path) -> Command {
        fs::create_dir_all(self.path("out")).unwrap();
        let mut vbuild = command(env!("CARGO_BIN_EXE_vbuild"));
        vbuild
            .args(arguments)
            .arg(file)
            .current_dir(self.path("out"))
            .env("VR_ROOT", self.path("root"))
            .env("RAPTOR_HOME", self.path("builder"))
            .env("SECRET_OF_THE_HOST", "do not tell");
        vbuild
    }

    pub fn build(&self, file: &Path) -> Ended {
        ended(&mut self.vbuild(&["build"], file))
    }

    pub fn result(&self) -> serde_yaml::Value {
        serde_yaml::from_str(&fs::read_to_string(self.out("build_result.yaml")).unwrap()).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.out("compile.log")).unwrap()
    }

    /// The names in the tarball, sorted.
    pub fn packed(&self) -> Vec<String> {
        let reader = vr_common::archive::open_tarball(&self.out("build.tar.gz")).unwrap();
        let mut archive = tar::Archive::new(reader);
        let mut names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                entry.unwrap().path().unwrap().display().to_string().trim_end_matches('/').to_owned()
            })
            .collect();
        names.sort();
        names
    }

    /// The folders of runs that are there.
    pub fn scratch(&self) -> Vec<PathBuf> {
        let folder = self.path("builder/scratch");
        fs::read_dir(folder)
            .map_or(Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
    }

    /// What every failed build has in common.
    #[track_caller]
    pub fn assert_no_build(&self) {
        assert!(!self.out("build.tar.gz").exists());
        assert!(!self.out("build_result.yaml").exists());
        self.assert_clean();
    }

    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.scratch(), Vec::<PathBuf>::new());
        let expected = ["build.tar.gz", "build_result.yaml", "compile.log"];
        for entry in fs::read_dir(self.path("out")).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(expected.contains(&name.to_str().unwrap()), "{name:?} was left over");
        }
    }
}

pub fn git(folder: &Path, arguments: &[&str]) {
    let mut git = command("git");
    git.current_dir(folder).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").args([
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.com",
    ]);
    run_quietly(git.args(arguments));
}

/// Commits everything in a repository and tags it.
pub fn commit(folder: &Path, tag: &str) {
    git(folder, &["add", "--all", "--force"]);
    git(folder, &["commit", "--quiet", "--allow-empty", "-m", tag]);
    git(folder, &["tag", tag]);
}

fn run_quietly(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn ended(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A vbuild that runs at the moment. It is killed when the test is over.
pub struct Started(pub Child);

impl Started {
    pub fn new(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Reads standard output until a line has the text in it.
    #[track_caller]
    pub fn until_output(&mut self, text: &str) {
        until_line(self.0.stdout.as_mut().unwrap(), text);
    }

    /// Reads standard error until a line has the text in it, and gives the line.
    #[track_caller]
    pub fn until_said(&mut self, text: &str) -> String {
        until_line(self.0.stderr.as_mut().unwrap(), text)
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

#[track_caller]
fn until_line(stream: &mut impl std::io::Read, text: &str) -> String {
    // Byte by byte: what comes after the line is still wanted.
    let mut reader = BufReader::with_capacity(1, stream);
    let mut all = String::new();
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "no line with {text:?} in:\n{all}");
        if line.contains(text) {
            return line;
        }
        all += &line;
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
    format!("4000.{}{:04}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Whether a `sleep` with this argument runs anywhere.
pub fn sleeps(marker: &str) -> bool {
    let wanted = format!("sleep\0{marker}\0");
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .any(|line| line == wanted.as_bytes())
}

/// A place where a build can say that it has come to a point, and wait to be let on: `meet PORT` in bash.
pub struct Meeting(TcpListener);

impl Meeting {
    pub fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// What to write into a script.
    pub fn script(&self) -> String {
        let port = self.0.local_addr().unwrap().port();
        format!("exec 9<>/dev/tcp/127.0.0.1/{port} && read -r word <&9")
    }

    /// Waits for somebody to come; dropping the result does not let them on as if nothing were wrong, writing a
    /// line does.
    #[track_caller]
    pub fn wait(&self) -> std::net::TcpStream {
        self.0.set_nonblocking(true).unwrap();
        let mut found = None;
        until("somebody comes to the meeting", || {
            found = self.0.accept().ok();
            found.is_some()
        });
        let stream = found.unwrap().0;
        stream.set_nonblocking(false).unwrap();
        stream
    }
}
