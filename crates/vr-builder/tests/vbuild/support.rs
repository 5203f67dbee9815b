//! A folder with repositories, buildpacks and vbuild's own files, apart from those of every other test.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use vr_common::process::command;
pub use vr_testing::{Answer, Ended, Meeting, Server, Started, ended, marker, names, sleeps, until};

pub struct World {
    dir: tempfile::TempDir,
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
            hg(&path, arguments);
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
    pub fn command(&self, arguments: &[&str]) -> Command {
        fs::create_dir_all(self.path("out")).unwrap();
        let mut vbuild = command(env!("CARGO_BIN_EXE_vbuild"));
        vbuild
            .args(arguments)
            .current_dir(self.path("out"))
            .env("VR_ROOT", self.path("root"))
            .env("RAPTOR_HOME", self.path("builder"))
            .env("SECRET_OF_THE_HOST", "do not tell")
            .env_remove("VBUILD_CACHE_MAX");
        vbuild
    }

    /// The same with a file.
    pub fn vbuild(&self, arguments: &[&str], file: &Path) -> Command {
        let mut vbuild = self.command(arguments);
        vbuild.arg(file);
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

    /// The md5 sum of the tarball, which the result names too.
    pub fn md5(&self) -> String {
        let md5 = vr_common::fetch::md5_file(&self.out("build.tar.gz")).unwrap();
        assert_eq!(self.result()["build_md5"].as_str(), Some(md5.as_str()));
        md5
    }

    /// The saved caches, sorted by name.
    pub fn caches(&self) -> Vec<PathBuf> {
        let folder = self.path("builder/cache");
        names(&folder).iter().filter(|name| !name.starts_with('.')).map(|name| folder.join(name)).collect()
    }

    /// What buildpacks kept for the only app that has a cache.
    #[track_caller]
    pub fn cache(&self) -> PathBuf {
        let [cache] = &self.caches()[..] else { panic!("expected one cache, found {:?}", self.caches()) };
        cache.join("buildpack_cache")
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

/// Runs git in a repository, and gives what it prints.
pub fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut git = command("git");
    git.current_dir(folder).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").args([
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.com",
    ]);
    printed(git.args(arguments))
}

/// Commits everything in a repository and tags it.
pub fn commit(folder: &Path, tag: &str) {
    git(folder, &["add", "--all", "--force"]);
    git(folder, &["commit", "--quiet", "--allow-empty", "-m", tag]);
    git(folder, &["tag", tag]);
}

/// Runs hg in a repository, and gives what it prints.
pub fn hg(folder: &Path, arguments: &[&str]) -> String {
    let mut hg = command("hg");
    hg.current_dir(folder).env("HGPLAIN", "1").env("HGRCPATH", "/dev/null").env("HGUSER", "test");
    printed(hg.args(arguments))
}

/// The same command, started by another program.
pub fn through(starter: &[&str], wanted: &Command) -> Command {
    let mut through = command(starter[0]);
    through.args(&starter[1..]).arg(wanted.get_program()).args(wanted.get_args());
    if let Some(folder) = wanted.get_current_dir() {
        through.current_dir(folder);
    }
    for (key, value) in wanted.get_envs() {
        match value {
            Some(value) => through.env(key, value),
            None => through.env_remove(key),
        };
    }
    through
}

/// Runs a program that has to succeed, and gives what it prints.
pub fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
