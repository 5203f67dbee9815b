//! A proc on this host: set up from its `proc.yaml`, run, tested, looked into, and taken down.
//!
//! Everything of a proc is in one folder, `/apps/procs/<name>/`, and every command may be repeated: what a killed
//! command left half-done is found and done again by the next one. This module must not know how a container is
//! made (that is [`crate::container`]) or who watches the proc.

mod clean_up;
mod error;
mod files;
mod layer;
mod log;
mod lxc;
mod name;
mod predecessor;
mod record;
mod root;
mod run;
mod scratch;
mod script;
mod setup;
mod shell;
mod status;
mod teardown;
mod uptest;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vr_common::lock::{FileLock, LockError};
use vr_common::paths::VrRoot;
use vr_common::proc_data::{self, ProcData, Scalar};

use crate::container::{
    BindMount, ContainerSpec, Credentials, Engine, Limits, Network, Program, RootFs, Size, System,
};
use crate::users;

pub use clean_up::{CleanUp, CleanedUp, Removed, RemovedKind, clean_up};
pub use error::ProcError;
pub use run::{LogFile, RunEnd, RunOptions, run};
pub use setup::{SetUp, setup};
pub use shell::shell;
pub use teardown::{TornDown, teardown_file};
pub use uptest::uptest;

use record::Record;

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
    /// `app_folder` as an absolute path, but with the links that it may have. `data` has where it led when it was read.
    app_folder: Option<PathBuf>,
    engine: Engine,
}

impl Proc {
    /// Reads a `proc.yaml`; the file may have any name.
    pub fn load(file: &Path, root: VrRoot, variant: Variant) -> Result<Self, ProcError> {
        let mut data = ProcData::load(file)?;
        let app_folder = data.app_folder.as_ref().and_then(|folder| std::path::absolute(folder).ok());
        if let Some(folder) = &mut data.app_folder {
            let real = fs::canonicalize(&*folder).ok().filter(|real| real.is_dir());
            *folder =
                real.ok_or_else(|| ProcError::NoAppFolder { file: file.to_owned(), folder: folder.clone() })?;
        }
        let name = name::of(file, data.container_name())?;
        let image = match (&data.image_url, &data.image_name, variant) {
            (Some(_), Some(image_name), Variant::AsTheFileSays) => {
                Some(root.image(image_name).join("contents"))
            }
            _ => None,
        };
        Ok(Self { data, name, root, image, app_folder, engine: Engine::Own })
    }

    /// The same, with its containers made by another engine.
    pub fn with_engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
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
        lock_folder(&self.folder())
    }

    /// The user that the file names. What the app writes to its own `/etc` has no say in it.
    fn credentials(&self) -> Result<Credentials, ProcError> {
        let user = self.data.user.as_ref().map_or("nobody", |user| &user.0);
        let group = self.data.group.as_ref().map(|group| group.0.as_str());
        // Without an image, the container's `/etc` is the host's, which is looked at anyway.
        let roots: Vec<&Path> = self.image.iter().map(PathBuf::as_path).collect();
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

    /// What setup decided; an error unless it was done.
    fn record(&self) -> Result<Record, ProcError> {
        let not_set_up = || ProcError::NotSetUp { name: self.name.clone() };
        if self.image.as_ref().is_some_and(|image| !image.is_dir()) {
            return Err(not_set_up());
        }
        if let Some(record) = Record::read(&self.folder())? {
            return Ok(record);
        }
        // Set up when there were no records yet: everything is in `rootfs`.
        match self.rootfs().join(script::FILE_NAME).is_file() {
            true => Ok(Record::of_old_setup(&self.credentials()?)),
            false => Err(not_set_up()),
        }
    }

    /// A path in the app's folder, as a root of the host and the path in it: links of the app are to lead where they
    /// lead in the container, as far as the host can know, and never out of the root. Of an app with an unpacked build
    /// this is the build as it was deployed, whatever the app wrote over it.
    fn in_app(&self, layer: Option<&str>, path: &str) -> (PathBuf, PathBuf) {
        let in_root = Path::new("app").join(path);
        match (&self.data.app_folder, layer) {
            (Some(folder), _) => (folder.clone(), PathBuf::from(path)),
            (None, Some(key)) => (layer::path(&self.root, key), in_root),
            (None, None) => (self.rootfs(), in_root),
        }
    }

    /// Whether the app might have a file in `.profile.d`, in any of the folders that its root is made of.
    fn may_have_profiles(&self, record: &Record) -> bool {
        let layer = record.layer.as_ref().map(|key| layer::path(&self.root, key));
        let roots = [Some(self.rootfs()), layer, self.image.clone()];
        let folders = roots.into_iter().flatten().map(|root| root.join("app"));
        let in_folder = |app: PathBuf| match fs::symlink_metadata(&app) {
            Ok(found) if found.is_dir() => fs::symlink_metadata(app.join(".profile.d")).is_ok(),
            // It may lead anywhere.
            Ok(found) => found.is_symlink(),
            Err(_) => false,
        };
        folders.chain(self.data.app_folder.clone()).any(in_folder)
            || self.data.volumes.iter().flatten().any(|volume| volume.mountpoint.starts_with("/app"))
    }

    /// A container that is the same for run, uptest and shell but for its name and root, and runs `proc.sh` with the
    /// given arguments.
    fn container(
        &self,
        suffix: &str,
        root: RootFs,
        record: &Record,
        arguments: &[&str],
    ) -> Result<ContainerSpec, ProcError> {
        let name = format!("{}{suffix}", self.name);
        let mut mounts = Vec::new();
        if let Some(folder) = &self.app_folder {
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
        // Bash takes its time to start. What it can do more than others, only these ask for.
        if !record.needs_bash && !self.may_have_profiles(record) {
            program.candidates.reverse();
        }
        let hostname = self.data.hostname.as_ref().map_or_else(|| name.clone(), ToString::to_string);
        Ok(ContainerSpec {
            hostname,
            read_only: self.data.read_only,
            network: match self.data.network {
                proc_data::Network::Host => Network::Host,
                proc_data::Network::None => Network::None,
            },
            system: if self.image.is_some() { System::Own } else { System::OfHost },
            mounts,
            user: record.credentials(),
            workdir: "/app".into(),
            limits: self.limits()?,
            engine: self.engine,
            ..ContainerSpec::new(name, root, program)
        })
    }
}

/// See [`Proc::lock_folder`].
fn lock_folder(folder: &Path) -> Result<FileLock, ProcError> {
    let lock = loop {
        let lock = FileLock::existing(folder)?;
        // A teardown may have removed the folder after it was opened; then that lock keeps nobody out.
        if lock.is_on(folder) {
            break lock;
        }
    };
    predecessor::wait_until_gone(folder)?;
    Ok(lock)
}

/// The same for a folder that is made when it is missing, again if a teardown has just removed it.
fn make_and_lock_folder(folder: &Path) -> Result<FileLock, ProcError> {
    let all = folder.parent().unwrap_or(folder);
    loop {
        fs::create_dir_all(all).map_err(|source| ProcError::Io {
            step: "make the folder for",
            path: folder.to_owned(),
            source,
        })?;
        // Only root may enter: inside are settings and files that belong to other users.
        match files::make_folder(folder, 0o700).and_then(|()| lock_folder(folder)) {
            Err(ProcError::Io { source, .. } | ProcError::Lock(LockError::Io { source, .. }))
                if source.kind() == io::ErrorKind::NotFound => {}
            taken => return taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_lock_is_on_the_folder_that_is_there_while_others_remove_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("procs/proc");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if let Ok(_alone) = lock_folder(&folder) {
                        fs::remove_dir(&folder).unwrap();
                    }
                }
            });
            let mut taken = 0;
            let mut lost = 0;
            while taken < 3000 {
                if let Ok(lock) = make_and_lock_folder(&folder) {
                    taken += 1;
                    lost += usize::from(!lock.is_on(&folder));
                }
            }
            done.store(true, Ordering::Relaxed);
            assert_eq!(lost, 0);
        });
    }
}
