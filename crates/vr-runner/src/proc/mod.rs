//! A proc on this host: set up from its `proc.yaml`, run, tested, looked into, and taken down.
//!
//! Everything of a proc is in one folder, `/apps/procs/<name>/`, and every command may be repeated: what a killed
//! command left half-done is found and done again by the next one. This module must not know how a container is
//! made (that is [`crate::container`]) or who watches the proc.

mod error;
mod files;
mod log;
mod predecessor;
mod run;
mod scratch;
mod script;
mod setup;
mod shell;
mod status;
mod teardown;
mod uptest;

use std::fs;
use std::path::{Path, PathBuf};

use vr_common::hash::md5_hex;
use vr_common::lock::FileLock;
use vr_common::paths::VrRoot;
use vr_common::proc_data::{ProcData, Scalar, is_file_name};

use crate::container::{
    BindMount, Capabilities, ContainerSpec, Credentials, Limits, Network, Program, RootFs, Size, Streams,
};
use crate::users;

pub use error::ProcError;
pub use run::{LogFile, RunOptions, run};
pub use setup::setup;
pub use shell::shell;
pub use teardown::teardown;
pub use uptest::uptest;

/// Which root a proc's container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The OS image of `proc.yaml`, or the host's own system folders when it names none.
    AsTheFileSays,
    /// Always the host's own system folders.
    HostFolders,
}

/// A `proc.yaml` and where its proc lives.
#[derive(Debug)]
pub struct Proc {
    data: ProcData,
    name: String,
    root: VrRoot,
    /// The unpacked image, for a proc that has one.
    image: Option<PathBuf>,
}

impl Proc {
    /// Reads a `proc.yaml`; the file may have any name.
    pub fn load(file: &Path, root: VrRoot, variant: Variant) -> Result<Self, ProcError> {
        let mut data = ProcData::load(file)?;
        if let Some(folder) = &mut data.app_folder {
            let real = fs::canonicalize(&*folder).ok().filter(|real| real.is_dir());
            *folder =
                real.ok_or_else(|| ProcError::NoAppFolder { file: file.to_owned(), folder: folder.clone() })?;
        }
        let name = match data.container_name() {
            Some(name) => name.to_string(),
            None => name_of_file(file)?,
        };
        if name.len() > 200 {
            return Err(ProcError::LongName { file: file.to_owned(), name });
        }
        let image = match (&data.image_url, &data.image_name, variant) {
            (Some(_), Some(image_name), Variant::AsTheFileSays) => {
                Some(root.image(image_name).join("contents"))
            }
            _ => None,
        };
        Ok(Self { data, name, root, image })
    }

    /// The name of its container and of its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its file says.
    pub fn data(&self) -> &ProcData {
        &self.data
    }

    /// `/apps/procs/<name>`.
    pub fn folder(&self) -> PathBuf {
        self.root.proc_dir(&self.name)
    }

    fn rootfs(&self) -> PathBuf {
        self.folder().join("rootfs")
    }

    /// Keeps every other setup, run and teardown of this proc out, whatever file they read it from. What a killed run
    /// left is gone then.
    fn lock_folder(&self) -> Result<FileLock, ProcError> {
        let lock = FileLock::existing(&self.folder())?;
        predecessor::wait_until_gone(&self.folder())?;
        Ok(lock)
    }

    /// A path in the app's folder, as a root of the host and the path in it: links of the app are to lead where they
    /// lead in the container, as far as the host can know, and never out of the root.
    fn in_app(&self, path: &str) -> (PathBuf, PathBuf) {
        match &self.data.app_folder {
            Some(folder) => (folder.clone(), PathBuf::from(path)),
            None => (self.rootfs(), Path::new("app").join(path)),
        }
    }

    fn credentials(&self) -> Result<Credentials, ProcError> {
        let user = self.data.user.as_ref().map_or("nobody", |user| &user.0);
        let group = self.data.group.as_ref().map(|group| group.0.as_str());
        let rootfs = self.rootfs();
        // Without an image, the container's `/etc` is the host's, which is looked at anyway.
        let roots: Vec<&Path> = self.image.iter().flat_map(|image| [&*rootfs, image]).collect();
        Ok(users::find(&roots, user, group)?)
    }

    /// What the proc may use of the host, the same for run, uptest and shell.
    fn limits(&self) -> Result<Limits, ProcError> {
        let size = |key, value: &Option<Scalar>| {
            // The server's older versions wrote an empty text for no limit.
            let text = value.as_ref().map(|value| value.0.trim()).filter(|text| !text.is_empty());
            let bad = |source| ProcError::BadLimit { name: self.name.clone(), key, source };
            text.map(|text| text.parse::<Size>().map_err(bad)).transpose()
        };
        let memory = size("mem_limit", &self.data.mem_limit)?;
        let memory_and_swap = size("memsw_limit", &self.data.memsw_limit)?;
        if let (Some(memory), Some(both)) = (&memory, &memory_and_swap)
            && both.bytes() < memory.bytes()
        {
            return Err(ProcError::SmallSwapLimit {
                name: self.name.clone(),
                memory: memory.to_string(),
                both: both.to_string(),
            });
        }
        Ok(Limits {
            memory,
            memory_and_swap,
            processes: self.data.pids_limit.map(|limit| limit.0),
            cpu_thousandths: self.data.cpu_limit.map(|limit| limit.thousandths),
        })
    }

    /// An error unless setup was done.
    fn must_be_set_up(&self) -> Result<(), ProcError> {
        let script = self.rootfs().join(script::FILE_NAME);
        let image_is_there = self.image.as_ref().is_none_or(|image| image.is_dir());
        if script.is_file() && image_is_there {
            return Ok(());
        }
        Err(ProcError::NotSetUp { name: self.name.clone() })
    }

    /// A container that is the same for run, uptest and shell but for its name and root, and runs `proc.sh` with the
    /// given arguments.
    fn container(&self, suffix: &str, root: RootFs, arguments: &[&str]) -> Result<ContainerSpec, ProcError> {
        let name = format!("{}{suffix}", self.name);
        let mut mounts = Vec::new();
        if let Some(folder) = &self.data.app_folder {
            mounts.push(BindMount { source: folder.clone(), target: "/app".into(), read_only: false });
        }
        for volume in self.data.volumes.iter().flatten() {
            mounts.push(BindMount {
                source: volume.host_dir.clone(),
                target: volume.mountpoint.clone(),
                read_only: volume.read_only,
            });
        }
        let script = format!("/{}", script::FILE_NAME);
        let arguments = [script.as_str()].into_iter().chain(arguments.iter().copied());
        let mut program = Program::new("/bin/bash", arguments);
        program.candidates.push("/bin/sh".into());
        Ok(ContainerSpec {
            hostname: name.clone(),
            name,
            root,
            mounts,
            user: self.credentials()?,
            workdir: "/app".into(),
            program,
            capabilities: Capabilities::Usual,
            network: Network::Host,
            streams: Streams::InheritOutput,
        })
    }
}

/// A name for a file that does not say all that a container's name is made of. Two files of the same name in two
/// folders are two procs, hence the sum of the path.
fn name_of_file(file: &Path) -> Result<String, ProcError> {
    let whole = fs::canonicalize(file).map_err(|source| ProcError::Io {
        step: "find",
        path: file.to_owned(),
        source,
    })?;
    let stem = whole.file_stem().unwrap_or_default().to_string_lossy();
    let word: String = stem
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
        .take(80)
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .collect();
    let word = if is_file_name(&word) { word } else { "proc".to_owned() };
    let sum = md5_hex(whole.as_os_str().as_encoded_bytes());
    Ok(format!("{word}-{}", &sum[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_a_whole_name_get_a_stable_one_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let load = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            Proc::load(&path, VrRoot::new("/nowhere"), Variant::AsTheFileSays).map(|proc| proc.name)
        };
        let one = load("a/my proc.yaml", "cmd: x").unwrap();
        assert!(one.starts_with("myproc-"), "{one}");
        assert_eq!(one, load("a/my proc.yaml", "cmd: y").unwrap());
        assert_ne!(one, load("b/my proc.yaml", "cmd: x").unwrap());
        assert!(load("a/-..yaml", "cmd: x").unwrap().starts_with("proc-"));
        let whole =
            "app_name: a\nversion: v1\nconfig_name: c\nrelease_hash: abcd1234\nproc_name: web\nport: 80";
        assert_eq!(load("x.yaml", whole).unwrap(), "a-v1-c-abcd1234-web-80");
        assert!(load("x.yaml", "cmd: x\napp_folder: /does/not/exist").is_err());
    }
}
