//! `setup`: everything that a proc needs to run, brought into place. Each step looks at what is there, so that
//! setup may be killed anywhere and be repeated any number of times.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{getegid, geteuid};
use serde_yaml::Value;
use vr_common::fetch::without_credentials;
use vr_common::{archive, exit, yaml};

use super::files::{give_away, make_folder};
use super::layer::{self, HeldLayer, Owner};
use super::record::{Record, Text};
use super::{Proc, ProcError, lxc, script};
use crate::container::{Credentials, clear_left_groups, read_beneath, why_no_limits};
use crate::image;
use crate::tarballs;
use crate::tarballs::Work;

/// Says which tarball `rootfs/app` was unpacked from, and for whom, in procs that were set up when builds were not
/// shared yet.
const OLD_BUILD_MARK: &str = "build.mark";
/// Begin the names of what such a setup left when it was killed.
const OLD_LEFTOVERS: [&str; 2] = ["build", ".build."];
const LONGEST_PROCFILE: u64 = 1 << 20;

/// Where everything of a proc is, and what it took to get it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetUp {
    /// The proc's own folder.
    pub folder: PathBuf,
    /// The contents of its image; none when it has the host's system folders.
    pub image: Option<PathBuf>,
    /// The unpacked build that lies under its root; none when it has no build, or a copy of its own.
    pub layer: Option<PathBuf>,
    /// How much was fetched this time, in bytes.
    pub fetched_bytes: u64,
    /// Whether anything had to be done; not so when all was in place already.
    pub changed: bool,
}

/// Sets a proc up, or repairs it. The proc must not be running.
pub fn setup(proc: &Proc) -> Result<SetUp, ProcError> {
    for volume in proc.data.volumes.iter().flatten() {
        if !volume.host_dir.exists() {
            return Err(ProcError::NoVolume { host_dir: volume.host_dir.clone() });
        }
    }
    // Bad ones are refused here and not first when the proc is to run.
    proc.limits()?;
    let image_work = set_image_up(proc)?;
    let folder = proc.folder();
    let io_error = |step| {
        let path = folder.clone();
        move |source| ProcError::Io { step, path, source }
    };
    fs::create_dir_all(proc.root.procs()).map_err(io_error("make the folder for"))?;
    // Only root may enter: inside are settings and files that belong to other users.
    make_folder(&folder, 0o700)?;
    let _lock = proc.lock_folder()?;
    clear_left_groups();
    if proc.limits()?.is_empty()
        && let Some(reason) = why_no_limits()
    {
        tracing::warn!("procs of this host cannot have limits of memory, processes or processors: {reason}");
    }
    make_folder(&proc.rootfs(), 0o755)?;
    make_folder(&folder.join("work"), 0o700)?;
    let user = proc.credentials()?;
    let before = Record::read(&folder).unwrap_or_else(|error| {
        tracing::warn!(error = exit::chain(&error), "the last setup is of no use");
        None
    });
    // Held until the record says that this proc uses it.
    let layer = set_build_up(proc, &user, before.as_ref())?;
    let record = record(proc, &user, layer.as_ref())?;
    let mut changed = record.put_texts(&proc.rootfs())?;
    if !Record::read(&folder).is_ok_and(|there| there.as_ref() == Some(&record)) {
        record.write(&folder)?;
        changed = true;
    }
    lxc::write(proc, &record)?;
    let build_work = layer.as_ref().map(HeldLayer::work).unwrap_or_default();
    Ok(SetUp {
        folder,
        image: proc.image.clone(),
        layer: layer.as_ref().map(HeldLayer::path),
        fetched_bytes: image_work.fetched + build_work.fetched,
        changed: changed || [image_work, build_work].iter().any(|work| work.unpacked || work.fetched > 0),
    })
}

fn set_image_up(proc: &Proc) -> Result<Work, ProcError> {
    if proc.image.is_some()
        && let (Some(url), Some(name)) = (&proc.data.image_url, &proc.data.image_name)
    {
        let (_, work) = image::bring(&proc.root, name, url, proc.data.image_md5.as_deref())?;
        return Ok(work);
    }
    Ok(Work::default())
}

/// Brings the build into place, and removes what the app wrote over another one. What it wrote over this one stays.
fn set_build_up(
    proc: &Proc,
    user: &Credentials,
    before: Option<&Record>,
) -> Result<Option<HeldLayer>, ProcError> {
    let app = proc.rootfs().join("app");
    let old_mark_file = proc.folder().join(OLD_BUILD_MARK);
    let old_mark = fs::read_to_string(&old_mark_file).ok();
    let is_there = fs::symlink_metadata(&app).is_ok_and(|found| found.is_dir());
    let layer_before = before.and_then(|record| record.layer.as_deref());
    let Some(url) = proc.data.build_url.as_ref().filter(|_| proc.data.app_folder.is_none()) else {
        let had_a_build = layer_before.is_some() || old_mark.is_some();
        if had_a_build || !is_there {
            forget_build(proc)?;
            make_folder(&app, 0o755)?;
            give_away(&app, user.uid, user.gid)?;
        }
        return Ok(None);
    };
    let md5 = proc.data.build_md5.as_deref();
    // Without root's rights, everything is and stays the caller's.
    let owner = match geteuid().is_root() {
        true => Owner { uid: user.uid, gid: user.gid },
        false => Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() },
    };
    // The app has its own copy, and may have changed it; then it keeps it until there is another build.
    if layer_before.is_none()
        && is_there
        && let Some(mark) = old_mark
        && mark == format!("{}for {}:{}\n", old_mark_of(proc, url, md5), user.uid, user.gid)
    {
        return Ok(None);
    }
    let layer = layer::bring(&proc.root, url, md5, owner)?;
    // An app that ran as root may have put anything in the folder's place.
    if layer_before != Some(layer.key()) || (!is_there && fs::symlink_metadata(&app).is_ok()) {
        forget_build(proc)?;
    }
    Ok(Some(layer))
}

/// How a tarball was told from others in the mark.
fn old_mark_of(proc: &Proc, url: &str, md5: Option<&str>) -> String {
    if let Some(md5) = md5 {
        return format!("md5 {md5}\n");
    }
    let tarball = tarballs::file_name(url).map(|name| proc.root.builds().join(name));
    match tarball.ok().and_then(|tarball| fs::metadata(tarball).ok()) {
        Some(found) => {
            let (inode, seconds, nanoseconds) = (found.ino(), found.ctime(), found.ctime_nsec());
            format!("{} inode {inode} of {seconds}.{nanoseconds:09}\n", without_credentials(url))
        }
        None => String::new(),
    }
}

/// Removes what a proc has of its build, or over it.
fn forget_build(proc: &Proc) -> Result<(), ProcError> {
    let folder = proc.folder();
    let remove = |path: PathBuf| {
        archive::remove_tree(&path).map_err(|source| ProcError::Io { step: "remove", path, source })
    };
    // Without these two, a proc does not count as set up: never a new build with an old command.
    remove(proc.rootfs().join(script::FILE_NAME))?;
    Record::remove(&folder)?;
    remove(proc.rootfs().join("app"))?;
    for left in
        leftovers(&folder).map_err(|source| ProcError::Io { step: "list", path: folder.clone(), source })?
    {
        remove(left)?;
    }
    Ok(())
}

fn leftovers(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if OLD_LEFTOVERS.iter().any(|left| entry.file_name().to_string_lossy().starts_with(left)) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// What is written down for all other commands.
fn record(proc: &Proc, user: &Credentials, layer: Option<&HeldLayer>) -> Result<Record, ProcError> {
    let name = &proc.name;
    let zero_byte = |what: &str| ProcError::ZeroByte { name: name.clone(), what: what.to_owned() };
    let command = command(proc, layer)?;
    if command.contains('\0') {
        return Err(zero_byte("the command"));
    }
    let host = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let env = proc.data.env.clone().unwrap_or_default();
    let environment = script::env_sh(&env, host);
    if environment.contains('\0') {
        return Err(zero_byte("env"));
    }
    let settings = match &proc.data.settings {
        Some(settings @ Value::Mapping(_)) => settings.clone(),
        _ => Value::Mapping(serde_yaml::Mapping::new()),
    };
    // Both hold secrets.
    let private = |name: &str, content| Text { name: name.to_owned(), mode: 0o640, group: user.gid, content };
    let texts = vec![
        private(script::SETTINGS, yaml::to_string(&settings)?),
        private(script::ENVIRONMENT, environment),
        Text {
            name: script::FILE_NAME.to_owned(),
            mode: 0o755,
            group: 0,
            content: script::proc_sh(&command, proc.data.port),
        },
    ];
    let needs_bash = script::needs_bash(&command, |name| env.contains_key(name));
    Ok(Record::new(user, layer.map(|layer| layer.key().to_owned()), needs_bash, texts))
}

/// `cmd`, else the Procfile's entry.
fn command(proc: &Proc, layer: Option<&HeldLayer>) -> Result<String, ProcError> {
    let name = proc.name.clone();
    if let Some(command) = &proc.data.cmd {
        return match command.trim() {
            "" => Err(ProcError::EmptyCommand { name }),
            command => Ok(command.to_owned()),
        };
    }
    let Some(proc_name) = &proc.data.proc_name else { return Err(ProcError::NoCommand { name }) };
    if proc.data.app_folder.is_none() && proc.data.build_url.is_none() {
        return Err(ProcError::NoCommand { name });
    }
    let (root, path) = proc.in_app(layer.map(HeldLayer::key), "Procfile");
    let Some(text) = read_beneath(&root, &path, LONGEST_PROCFILE)? else {
        return Err(ProcError::NoProcfile { name });
    };
    let bad = |reason: String| ProcError::BadProcfile { name: name.clone(), reason };
    let text = String::from_utf8(text).map_err(|_| bad("it is not UTF-8 text".to_owned()))?;
    let entries = yaml::parse_mapping("Procfile", &text)
        .map_err(|error| bad(format!("{error}; expected lines such as web: ./serve --port $PORT")))?;
    match entries.get(proc_name.as_str()) {
        Some(Value::String(command)) if !command.trim().is_empty() => Ok(command.trim().to_owned()),
        Some(Value::String(_)) => Err(bad(format!("{proc_name}: expected a command, found an empty text"))),
        Some(other) => Err(bad(format!("{proc_name}: expected a command, found {}", yaml::kind(other)))),
        None => {
            let mut names: Vec<_> = entries.keys().filter_map(Value::as_str).map(str::to_owned).collect();
            names.sort_unstable();
            let entries = listed(&names);
            Err(ProcError::NoProcfileEntry { name, proc_name: proc_name.to_string(), entries })
        }
    }
}

/// A few names in one line, without what would steer a terminal.
fn listed(names: &[String]) -> String {
    const MOST: usize = 20;
    const LONGEST: usize = 60;
    if names.is_empty() {
        return "none".to_owned();
    }
    let name = |name: &String| name.chars().take(LONGEST).flat_map(char::escape_debug).collect::<String>();
    let mut shown = names.iter().take(MOST).map(name).collect::<Vec<_>>().join(", ");
    if names.len() > MOST {
        shown.push_str(&format!(" and {} more", names.len() - MOST));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_of_a_procfile_are_listed_harmlessly() {
        let name = |name: &str| name.to_owned();
        assert_eq!(listed(&[]), "none");
        assert_eq!(listed(&[name("web"), name("a\u{1b}[31m\nb")]), "web, a\\u{1b}[31m\\nb");
        let many: Vec<_> = (0..3000).map(|number| "x".repeat(1000) + &number.to_string()).collect();
        let shown = listed(&many);
        assert!(shown.len() < 2000 && shown.ends_with("x and 2980 more"), "{shown}");
    }
}
