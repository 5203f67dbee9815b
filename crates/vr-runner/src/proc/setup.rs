//! `setup`: everything that a proc needs to run, brought into place. Each step looks at what is there, so that
//! setup may be killed anywhere and be repeated any number of times.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{getegid, geteuid};
use serde_yaml::Value;
use vr_common::fetch::without_credentials;
use vr_common::log::DOING;
use vr_common::{archive, exit, yaml};

use super::files::{Access, Durable, give_away, make_folder, write_file};
use super::layer::{self, HeldLayer, Owner};
use super::record::{Record, Text};
use super::{Proc, ProcError, lxc, make_and_lock_folder, script};
use crate::container::{Credentials, Upper, can_be_upper, clear_left_groups, read_beneath, why_no_limits};
use crate::image;
use crate::tarballs::{self, Work};

/// Says which tarball `rootfs/app` was unpacked from, and for whom, in procs that have a copy of their own: on file
/// systems where builds cannot be shared, and when they were not shared yet.
const COPY_MARK: &str = "build.mark";
/// A copy in the making.
const UNFINISHED_COPY: &str = "build";
/// Begin the names of what a setup left that was killed while it made one.
const COPY_LEFTOVERS: [&str; 2] = [UNFINISHED_COPY, ".build."];
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
    let folder = proc.folder();
    let upper = can_be_upper(&folder).map_err(|source| ProcError::Io {
        step: "look at",
        path: folder.clone(),
        source,
    })?;
    if let (Upper::Impossible(file_system), true) = (upper, proc.image.is_some()) {
        return Err(ProcError::NoOverlay { folder, file_system });
    }
    let image_work = set_image_up(proc)?;
    let _lock = make_and_lock_folder(&folder)?;
    clear_left_groups();
    if proc.limits()?.is_empty()
        && let Some(reason) = why_no_limits()
    {
        tracing::warn!("procs of this host cannot have limits of memory, processes or processors: {reason}");
    }
    make_folder(&proc.rootfs(), 0o755)?;
    make_folder(&folder.join("work"), 0o700)?;
    let user = proc.credentials()?;
    let layer_before = layer_before(proc)?;
    // Held until the record says that this proc uses it.
    let (layer, build_work) = set_build_up(proc, &user, layer_before.as_deref(), upper)?;
    let record = record(proc, &user, layer.as_ref())?;
    let mut changed = record.put_texts(&proc.rootfs())?;
    if !Record::read(&folder).is_ok_and(|there| there.as_ref() == Some(&record)) {
        record.write(&folder)?;
        changed = true;
    }
    lxc::write(proc, &record)?;
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

/// The build that the proc was set up with. What its app wrote goes with another one, so not knowing it is an error.
fn layer_before(proc: &Proc) -> Result<Option<String>, ProcError> {
    let folder = proc.folder();
    if let Err(error @ ProcError::BadRecord { .. }) = Record::read(&folder) {
        tracing::warn!(error = exit::chain(&error), "the last setup is done again");
    }
    Record::read_layer(&folder).map_err(|error| match error {
        ProcError::BadRecord { path, source } => ProcError::LostRecord { path, source },
        error => error,
    })
}

/// Brings the build into place, and removes what the app wrote over another one. What it wrote over this one stays.
fn set_build_up(
    proc: &Proc,
    user: &Credentials,
    layer_before: Option<&str>,
    upper: Upper,
) -> Result<(Option<HeldLayer>, Work), ProcError> {
    let app = proc.rootfs().join("app");
    let copy_mark = fs::read_to_string(proc.folder().join(COPY_MARK)).ok();
    let is_there = fs::symlink_metadata(&app).is_ok_and(|found| found.is_dir());
    let Some(url) = proc.data.build_url.as_ref().filter(|_| proc.data.app_folder.is_none()) else {
        let had_a_build = layer_before.is_some() || copy_mark.is_some();
        if had_a_build || !is_there {
            forget_build(proc)?;
            make_folder(&app, 0o755)?;
        }
        // Also one that is there: the user may be another one now, or the last setup was killed before this.
        give_away(&app, user.uid, user.gid)?;
        return Ok((None, Work::default()));
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
        && let Some(mark) = copy_mark
        && mark == copy_mark_of(proc, url, md5, user)
    {
        return Ok((None, Work::default()));
    }
    // A container with an image cannot do without, whatever is to be expected.
    if let (Upper::Impossible(file_system) | Upper::Doubtful(file_system), None) = (upper, &proc.image) {
        let folder = proc.folder();
        tracing::info!(
            target: DOING,
            "{} is on {file_system}, where builds cannot be shared: this proc gets a copy",
            folder.display()
        );
        let unfinished = folder.join(UNFINISHED_COPY);
        let io_error = |step, path: &Path| {
            let path = path.to_owned();
            move |source| ProcError::Io { step, path, source }
        };
        archive::remove_tree(&unfinished).map_err(io_error("remove", &unfinished))?;
        let work = layer::copy(&proc.root, url, md5, owner, &unfinished)?;
        let mark = copy_mark_of(proc, url, md5, user);
        remove_build(proc)?;
        fs::rename(&unfinished, &app).map_err(io_error("put into place", &app))?;
        let access = Access { mode: 0o600, group: 0 };
        write_file(&folder, COPY_MARK, mark.as_bytes(), access, Durable::Yes)?;
        return Ok((None, work));
    }
    let layer = layer::bring(&proc.root, url, md5, owner)?;
    // An app that ran as root may have put anything in the folder's place.
    if layer_before != Some(layer.key()) || (!is_there && fs::symlink_metadata(&app).is_ok()) {
        forget_build(proc)?;
    }
    let work = layer.work();
    Ok((Some(layer), work))
}

/// How a tarball was told from others in the mark.
fn copy_mark_of(proc: &Proc, url: &str, md5: Option<&str>, user: &Credentials) -> String {
    let owner = format!("for {}:{}\n", user.uid, user.gid);
    if let Some(md5) = md5 {
        return format!("md5 {md5}\n{owner}");
    }
    let tarball = tarballs::file_name(url).map(|name| proc.root.builds().join(name));
    match tarball.ok().and_then(|tarball| fs::metadata(tarball).ok()) {
        Some(found) => {
            let (inode, seconds, nanoseconds) = (found.ino(), found.ctime(), found.ctime_nsec());
            format!("{} inode {inode} of {seconds}.{nanoseconds:09}\n{owner}", without_credentials(url))
        }
        None => owner,
    }
}

/// Removes what a proc has of its build, or over it.
fn forget_build(proc: &Proc) -> Result<(), ProcError> {
    remove_build(proc)?;
    let folder = proc.folder();
    let left =
        leftovers(&folder).map_err(|source| ProcError::Io { step: "list", path: folder.clone(), source })?;
    left.into_iter().try_for_each(remove)
}

/// The same without what killed setups left of a copy.
fn remove_build(proc: &Proc) -> Result<(), ProcError> {
    // Without these two, a proc does not count as set up: never a new build with an old command.
    remove(proc.rootfs().join(script::FILE_NAME))?;
    Record::remove(&proc.folder())?;
    // Before the app, so that half of one is never taken for a whole copy.
    remove(proc.folder().join(COPY_MARK))?;
    remove(proc.rootfs().join("app"))
}

fn remove(path: PathBuf) -> Result<(), ProcError> {
    archive::remove_tree(&path).map_err(|source| ProcError::Io { step: "remove", path, source })
}

fn leftovers(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if COPY_LEFTOVERS.iter().any(|left| entry.file_name().to_string_lossy().starts_with(left)) {
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
