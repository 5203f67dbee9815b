//! Git repositories made from folders and texts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vr_common::process::command;
use vr_common::vcs::copy_tree;

/// A git repository with a working tree.
#[derive(Debug, Clone)]
pub struct Repository {
    dir: PathBuf,
}

impl Repository {
    /// An empty repository in a new folder.
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("a folder for a repository");
        let this = Self { dir: dir.to_owned() };
        this.git(&["init", "--quiet", "--initial-branch=main"]);
        this
    }

    /// A repository with a copy of a folder as its first commit.
    pub fn from_folder(dir: &Path, folder: &Path) -> Self {
        copy_tree(folder, dir).expect("a copy of the folder");
        let this = Self::new(dir);
        this.commit("first");
        this
    }

    /// Its path, which is also its URL.
    pub fn url(&self) -> String {
        self.dir.display().to_string()
    }

    /// Writes a file; one below `bin` or `uptests` may be executed.
    pub fn write(&self, path: &str, text: &str) {
        let file = self.dir.join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).expect("a folder in the repository");
        }
        fs::write(&file, text).expect("a file in the repository");
        let executable = path.split('/').any(|part| part == "bin" || part == "uptests");
        let mode = if executable { 0o755 } else { 0o644 };
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("the file's mode");
    }

    /// Commits everything.
    pub fn commit(&self, message: &str) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message]);
    }

    /// Commits everything and tags it.
    pub fn tag(&self, tag: &str) {
        self.commit(tag);
        self.git(&["tag", tag]);
    }

    fn git(&self, args: &[&str]) {
        let output = command("git")
            .arg("-C")
            .arg(&self.dir)
            .args(["-c", "user.name=Test", "-c", "user.email=test@example.com"])
            .args(["-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null"])
            .args(args)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .expect("git");
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
