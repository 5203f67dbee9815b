//! The logs of procs that are gone: moved to a folder of their own before a proc is torn down, kept for some days,
//! and bounded in total.
//!
//! They lie in `ROOT/logs/NAME/`, `log` and `log.1` as in the proc's own folder; the folder's time is the deletion's. A
//! name that is deleted again has its last log as `log`, and the one before as `log.1` if there is no newer one.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tracing::{info, warn};
use vr_common::host_api::KeptLog;
use vr_common::names::ContainerName;

/// How long logs are kept unless something else is asked for, in days.
pub const KEEP_DAYS: u32 = 7;
/// The most that all kept logs may take together, in bytes; the oldest go first.
pub const MOST_BYTES: u64 = 1 << 30;

const DAY: Duration = Duration::from_secs(24 * 3600);
const FILES: [&str; 2] = ["log", "log.1"];

/// What [`KeptLogs::keep`] has moved, so that just this can be moved back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// What the files were called in the proc's folder, and are called here.
    files: Vec<(&'static str, &'static str)>,
    /// Whether the log of an earlier proc of that name became `log.1`.
    made_room: bool,
}

/// The kept logs of a host.
#[derive(Debug)]
pub struct KeptLogs {
    folder: PathBuf,
    keep_for: Duration,
    most_bytes: u64,
    /// Held while something is moved or removed, so that no log goes that was moved here just now.
    changing: Mutex<()>,
}

impl KeptLogs {
    /// In a folder, which is made when it is needed, for so many days; 0 keeps none.
    pub fn new(folder: PathBuf, days: u32) -> Self {
        Self {
            folder,
            keep_for: DAY.saturating_mul(days),
            most_bytes: MOST_BYTES,
            changing: Mutex::default(),
        }
    }

    /// Moves a proc's logs here; one that never wrote anything has none. What is too much now goes at once. Without days,
    /// does nothing.
    pub fn keep(&self, name: &str, proc_dir: &Path) -> io::Result<Moved> {
        let has_something = |file: &&str| {
            let found = fs::symlink_metadata(proc_dir.join(file));
            found.is_ok_and(|found| found.is_file() && found.len() > 0)
        };
        let moving: Vec<&str> = FILES.into_iter().filter(has_something).collect();
        if self.keep_for.is_zero() || moving.is_empty() {
            return Ok(Moved::default());
        }
        let mut moved = Moved::default();
        let changing = self.changing();
        let to = self.folder.join(name);
        let private = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(&self.folder)?;
        private(&to)?;
        if moving.len() == 1 {
            moved.made_room = rename_if_there(&to.join("log"), &to.join("log.1"))?;
        }
        // A log that was moved on just before the end is the newest that there is. The newest goes last, so that the order
        // is right also when this is cut short and done again.
        for (file, kept_as) in moving.into_iter().zip(FILES).rev() {
            if let Err(e) = move_file(&proc_dir.join(file), &to.join(kept_as)) {
                drop(changing);
                // As on a full disk. All of it or nothing.
                self.give_back(name, proc_dir, &moved)?;
                return Err(e);
            }
            moved.files.push((file, kept_as));
        }
        // A rename over a file of the same name may leave the folder's time as it was.
        set_time(&to)?;
        drop(changing);
        if let Err(e) = self.sweep() {
            warn!("the logs of procs that are gone cannot be looked through: {e}");
        }
        Ok(moved)
    }

    /// Moves back what was moved here just now, to a proc that could not be removed. The logs of earlier procs of that name
    /// stay.
    pub fn give_back(&self, name: &str, proc_dir: &Path, moved: &Moved) -> io::Result<()> {
        let _changing = self.changing();
        let from = self.folder.join(name);
        for (file, kept_as) in &moved.files {
            // What the proc has there is newer, and what is gone was too much to keep.
            let there = from.join(kept_as);
            if !proc_dir.join(file).exists() && there.exists() {
                move_file(&there, &proc_dir.join(file))?;
            }
        }
        if moved.made_room {
            rename_if_there(&from.join("log.1"), &from.join("log"))?;
        }
        // Not if something is left in it.
        let _ = fs::remove_dir(&from);
        Ok(())
    }

    /// The kept log of a proc, if there is one.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let log = self.folder.join(name).join("log");
        log.is_file().then_some(log)
    }

    /// All of them, sorted by name.
    pub fn list(&self) -> io::Result<Vec<KeptLog>> {
        let mut logs: Vec<KeptLog> = self
            .entries()?
            .into_iter()
            .map(|entry| KeptLog {
                name: entry.name,
                deleted_at: entry
                    .deleted
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .map_or(0, |at| i64::try_from(at.as_millis()).unwrap_or(i64::MAX)),
                bytes: entry.bytes,
            })
            .collect();
        logs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(logs)
    }

    /// Removes what was kept long enough, and the oldest of what is too much.
    pub fn sweep(&self) -> io::Result<()> {
        let _changing = self.changing();
        let mut entries = self.entries()?;
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.deleted));
        let now = SystemTime::now();
        let mut total = 0_u64;
        for entry in entries {
            let age = now.duration_since(entry.deleted).unwrap_or_else(|_| {
                // The clock was set back. From now on its time counts, or it would outlive all others.
                if let Err(e) = set_time(&self.folder.join(&entry.name)) {
                    warn!(proc = entry.name, "the time of its kept log cannot be set: {e}");
                }
                Duration::ZERO
            });
            total = total.saturating_add(entry.bytes);
            if age < self.keep_for && total <= self.most_bytes {
                continue;
            }
            total = total.saturating_sub(entry.bytes);
            match vr_common::archive::remove_tree(&self.folder.join(&entry.name)) {
                Ok(()) => info!(
                    proc = entry.name,
                    bytes = entry.bytes,
                    "its log was kept long enough and is removed"
                ),
                Err(e) => warn!(proc = entry.name, "its kept log cannot be removed: {e}"),
            }
        }
        Ok(())
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        // It guards files, which are as they are.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        let folder = match fs::read_dir(&self.folder) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut entries = Vec::new();
        for found in folder.flatten() {
            // What is not of our making is left alone; what goes away meanwhile is gone.
            let Ok(name) = found.file_name().into_string() else { continue };
            let Ok(metadata) = found.metadata() else { continue };
            if name.parse::<ContainerName>().is_err() || !metadata.is_dir() {
                continue;
            }
            let size = |file: &str| found.path().join(file).metadata().map_or(0, |found| found.len());
            let bytes = FILES.into_iter().map(size).sum();
            let deleted = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            entries.push(Entry { name, deleted, bytes });
        }
        Ok(entries)
    }
}

struct Entry {
    name: String,
    deleted: SystemTime,
    bytes: u64,
}

/// Whether there was something to rename.
fn rename_if_there(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        done => done.map(|()| true),
    }
}

/// Moves a file, also to another file system, such as one that an operator has mounted for logs.
fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {}
        done => return done,
    }
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let mut source = fs::OpenOptions::new().read(true).custom_flags(no_follow).open(from)?;
    let folder = to.parent().unwrap_or(Path::new("."));
    // One that is not whole, as on a full disk, goes away again.
    let mut aside = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(source.metadata()?.permissions())
        .tempfile_in(folder)?;
    io::copy(&mut source, &mut aside)?;
    aside.as_file().sync_all()?;
    aside.persist(to).map_err(|e| e.error)?;
    fs::remove_file(from)
}

fn set_time(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.set_modified(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NAME: &str = "demo-v1-prod-abcd1234-web-5001";

    struct Host {
        dir: tempfile::TempDir,
        kept: KeptLogs,
    }

    impl Host {
        fn new(days: u32) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let kept = KeptLogs::new(dir.path().join("logs"), days);
            Self { dir, kept }
        }

        /// A proc's folder with these files.
        fn proc(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
            let dir = self.dir.path().join("procs").join(name);
            fs::create_dir_all(&dir).unwrap();
            for (file, text) in files {
                fs::write(dir.join(file), text).unwrap();
            }
            dir
        }

        fn delete(&self, name: &str, files: &[(&str, &str)]) {
            let dir = self.proc(name, files);
            self.kept.keep(name, &dir).unwrap();
            fs::remove_dir_all(dir).unwrap();
        }

        fn text(&self, file: &str) -> String {
            fs::read_to_string(self.dir.path().join("logs").join(NAME).join(file)).unwrap_or_default()
        }

        fn age(&self, name: &str, days: u32) {
            let folder = fs::File::open(self.dir.path().join("logs").join(name)).unwrap();
            folder.set_modified(SystemTime::now() - DAY * days).unwrap();
        }

        fn names(&self) -> Vec<String> {
            self.kept.list().unwrap().into_iter().map(|log| log.name).collect()
        }
    }

    #[test]
    fn the_logs_of_the_last_two_lives_are_kept() {
        let host = Host::new(7);
        assert_eq!((host.kept.find(NAME), host.kept.list().unwrap()), (None, vec![]));
        host.delete(NAME, &[("log", "one"), ("proc.yaml", "x")]);
        assert_eq!(fs::read_to_string(host.kept.find(NAME).unwrap()).unwrap(), "one");
        let folder = host.dir.path().join("logs").join(NAME);
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        host.delete(NAME, &[("log", "two")]);
        assert_eq!((host.text("log"), host.text("log.1")), ("two".into(), "one".into()));
        host.delete(NAME, &[("log", "three"), ("log.1", "earlier in three")]);
        assert_eq!((host.text("log"), host.text("log.1")), ("three".into(), "earlier in three".into()));
        // One that said nothing hides nothing.
        host.delete(NAME, &[("log", "")]);
        assert_eq!(host.text("log"), "three");
        let kept = host.kept.list().unwrap();
        assert_eq!((kept.len(), kept[0].name.as_str(), kept[0].bytes), (1, NAME, 21));
        assert!(kept[0].deleted_at > 1_700_000_000_000);
    }

    #[test]
    fn a_log_that_was_moved_on_just_before_the_end_is_found() {
        let host = Host::new(7);
        host.delete(NAME, &[("log", "one")]);
        host.delete(NAME, &[("log", ""), ("log.1", "two")]);
        assert_eq!(fs::read_to_string(host.kept.find(NAME).unwrap()).unwrap(), "two");
        assert_eq!(host.text("log.1"), "one");
        let other = "demo-v1-prod-abcd1234-web-5002";
        host.delete(other, &[("log.1", "all of it")]);
        assert_eq!(fs::read_to_string(host.kept.find(other).unwrap()).unwrap(), "all of it");
    }

    #[test]
    fn a_proc_that_stays_gets_its_log_back() {
        let host = Host::new(7);
        let dir = host.proc(NAME, &[("log", "one"), ("log.1", "zero")]);
        let moved = host.kept.keep(NAME, &dir).unwrap();
        assert!(!dir.join("log").exists());
        host.kept.give_back(NAME, &dir, &moved).unwrap();
        let text = |file: &str| fs::read_to_string(dir.join(file)).unwrap();
        assert_eq!((text("log"), text("log.1")), ("one".into(), "zero".into()));
        assert!(host.names().is_empty());
        host.kept.give_back(NAME, &dir, &moved).unwrap();
    }

    #[test]
    fn the_log_of_an_earlier_proc_of_that_name_is_not_given_back() {
        let host = Host::new(7);
        host.delete(NAME, &[("log", "of the one before")]);
        // It said nothing, or something, or that was just moved on.
        for own in [&[][..], &[("log", "own")], &[("log", ""), ("log.1", "own")]] {
            let dir = host.proc(NAME, own);
            let moved = host.kept.keep(NAME, &dir).unwrap();
            host.kept.give_back(NAME, &dir, &moved).unwrap();
            for file in FILES {
                let before = own.iter().find(|(name, _)| *name == file).map(|(_, text)| (*text).to_owned());
                assert_eq!(fs::read_to_string(dir.join(file)).ok(), before, "{file} of {own:?}");
            }
            assert_eq!((host.text("log"), host.text("log.1")), ("of the one before".into(), String::new()));
            fs::remove_dir_all(dir).unwrap();
        }
    }

    #[test]
    fn logs_are_kept_on_another_file_system_too() {
        use std::os::unix::fs::MetadataExt;

        let mut host = Host::new(7);
        let device = |path: &Path| fs::metadata(path).map_or(0, |found| found.dev());
        let Some(other) = tempfile::tempdir_in("/dev/shm")
            .ok()
            .filter(|other| device(other.path()) != device(host.dir.path()))
        else {
            eprintln!("skipped: there is no second file system at /dev/shm");
            return;
        };
        host.kept = KeptLogs::new(other.path().join("logs"), 7);
        let dir = host.proc(NAME, &[("log", "one"), ("log.1", "zero")]);
        fs::set_permissions(dir.join("log"), fs::Permissions::from_mode(0o640)).unwrap();
        let moved = host.kept.keep(NAME, &dir).unwrap();
        assert!(!dir.join("log").exists() && !dir.join("log.1").exists());
        let log = host.kept.find(NAME).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "one");
        assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(host.kept.list().unwrap()[0].bytes, 7);
        host.kept.give_back(NAME, &dir, &moved).unwrap();
        assert_eq!(fs::read_to_string(dir.join("log")).unwrap(), "one");
        assert_eq!(fs::read_dir(other.path().join("logs")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_old_or_too_much_goes() {
        let mut host = Host::new(7);
        let names = [NAME, "demo-v1-prod-abcd1234-web-5002", "demo-v1-prod-abcd1234-web-5003"];
        for name in names {
            host.delete(name, &[("log", "0123456789")]);
        }
        fs::create_dir(host.dir.path().join("logs/not ours")).unwrap();
        host.age(names[0], 8);
        host.age(names[1], 6);
        host.kept.sweep().unwrap();
        assert_eq!(host.names(), names[1..]);
        host.kept.most_bytes = 15;
        host.kept.sweep().unwrap();
        assert_eq!(host.names(), names[2..], "the newest stays");
        assert!(host.dir.path().join("logs/not ours").exists());
        // Also without a sweep of its own, what comes later takes the place of what is too much.
        host.delete(names[0], &[("log", "0123456789")]);
        assert_eq!(host.names(), names[..1]);
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_log_last_for_ever() {
        let host = Host::new(7);
        host.delete(NAME, &[("log", "one")]);
        let folder = fs::File::open(host.dir.path().join("logs").join(NAME)).unwrap();
        folder.set_modified(SystemTime::now() + 1000 * DAY).unwrap();
        host.kept.sweep().unwrap();
        assert_eq!(host.names(), [NAME]);
        assert!(folder.metadata().unwrap().modified().unwrap() <= SystemTime::now());
    }

    #[test]
    fn without_days_nothing_is_kept() {
        let host = Host::new(0);
        host.delete(NAME, &[("log", "one")]);
        assert!(!host.dir.path().join("logs").exists());
        host.kept.sweep().unwrap();
    }
}
