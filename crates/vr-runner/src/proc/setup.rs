//! `setup`: everything that a proc needs to run, brought into place. Each step looks at what is there, so that
//! setup may be killed anywhere and be repeated any number of times.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::Path;

use serde_yaml::Value;
use vr_common::archive::{self, UnpackOptions};
use vr_common::lock::FileLock;
use vr_common::yaml;

use super::files::{Access, make_folder, write_file};
use super::{Proc, ProcError, script};
use crate::container::{Credentials, clear_left_groups, read_beneath};
use crate::image::image_contents;
use crate::tarballs;

/// Says which tarball `rootfs/app` was unpacked from, and for whom.
const BUILD_MARK: &str = "build.mark";
const LONGEST_PROCFILE: u64 = 1 << 20;

/// Sets a proc up, or repairs it. The proc must not be running.
pub fn setup(proc: &Proc) -> Result<(), ProcError> {
    for volume in proc.data.volumes.iter().flatten() {
        if !volume.host_dir.exists() {
            return Err(ProcError::NoVolume { host_dir: volume.host_dir.clone() });
        }
    }
    // Bad ones are refused here and not first when the proc is to run.
    proc.limits()?;
    set_image_up(proc)?;
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
    make_folder(&proc.rootfs(), 0o755)?;
    make_folder(&folder.join("work"), 0o700)?;
    let user = proc.credentials()?;
    set_build_up(proc, &user)?;
    write_texts(proc, &user)
}

fn set_image_up(proc: &Proc) -> Result<(), ProcError> {
    if proc.image.is_some()
        && let (Some(url), Some(name)) = (&proc.data.image_url, &proc.data.image_name)
    {
        image_contents(&proc.root, name, url, proc.data.image_md5.as_deref())?;
    }
    Ok(())
}

fn set_build_up(proc: &Proc, user: &Credentials) -> Result<(), ProcError> {
    let app = proc.rootfs().join("app");
    let mark_file = proc.folder().join(BUILD_MARK);
    let io_error = |step, path: &Path| {
        let path = path.to_owned();
        move |source| ProcError::Io { step, path, source }
    };
    let there = match fs::symlink_metadata(&app) {
        Ok(found) if found.is_dir() => true,
        Ok(_) => {
            // An app that ran as root may have put anything there; only a real folder is unpacked into.
            fs::remove_file(&app).map_err(io_error("remove", &app))?;
            false
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(io_error("look at", &app)(error)),
    };
    let Some(url) = proc.data.build_url.as_ref().filter(|_| proc.data.app_folder.is_none()) else {
        if !there {
            fs::create_dir(&app).map_err(io_error("make the folder", &app))?;
            chown(&app, Some(user.uid), Some(user.gid)).map_err(io_error("give away", &app))?;
        }
        return Ok(());
    };
    let name = tarballs::file_name(url)?;
    let tarball = proc.root.builds().join(name);
    fs::create_dir_all(proc.root.builds()).map_err(io_error("make the folder", &proc.root.builds()))?;
    // Another proc's build may have the same file name and another sum. Until this one is unpacked, it must not take
    // the tarball's place.
    let _only_one = FileLock::wait(&proc.root.builds().join(format!(".{name}.setup.lock")), || {
        tracing::info!(tarball = name, "waiting for another setup with a tarball of the same name");
    })?;
    let source = tarballs::fetch_marked(url, &tarball, proc.data.build_md5.as_deref())?;
    let mark = format!("{source}for {}:{}\n", user.uid, user.gid);
    if there && fs::read_to_string(&mark_file).is_ok_and(|old| old == mark) {
        return Ok(());
    }
    // Without its script, a proc does not count as set up: never a new build with an old command.
    for old in [&proc.rootfs().join(script::FILE_NAME), &mark_file] {
        match fs::remove_file(old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", old)(error));
            }
            _ => {}
        }
    }
    // Beside the root and not in it, so that neither unfinished files nor locks are seen by the app.
    let unpacked = proc.folder().join("build");
    archive::remove_tree(&unpacked).map_err(io_error("remove", &unpacked))?;
    tarballs::unpack_or_discard(&tarball, &unpacked, &UnpackOptions::build(user.uid, user.gid))?;
    chown(&unpacked, Some(user.uid), Some(user.gid)).map_err(io_error("give away", &unpacked))?;
    archive::remove_tree(&app).map_err(io_error("remove", &app))?;
    fs::rename(&unpacked, &app).map_err(io_error("put into place", &app))?;
    fs::write(&mark_file, mark).map_err(io_error("write", &mark_file))
}

fn write_texts(proc: &Proc, user: &Credentials) -> Result<(), ProcError> {
    let name = &proc.name;
    let zero_byte = |what: &str| ProcError::ZeroByte { name: name.clone(), what: what.to_owned() };
    let command = command(proc)?;
    if command.contains('\0') {
        return Err(zero_byte("the command"));
    }
    let host = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let environment = script::env_sh(&proc.data.env.clone().unwrap_or_default(), host);
    if environment.contains('\0') {
        return Err(zero_byte("env"));
    }
    let settings = match &proc.data.settings {
        Some(settings @ Value::Mapping(_)) => settings.clone(),
        _ => Value::Mapping(serde_yaml::Mapping::new()),
    };
    let settings = yaml::to_string(&settings)?;
    let rootfs = proc.rootfs();
    // Both hold secrets.
    let private = Access { mode: 0o640, group: user.gid };
    write_file(&rootfs, script::SETTINGS, settings.as_bytes(), private)?;
    write_file(&rootfs, script::ENVIRONMENT, environment.as_bytes(), private)?;
    // The last one: with it, the proc counts as set up.
    let text = script::proc_sh(&command, proc.data.port);
    write_file(&rootfs, script::FILE_NAME, text.as_bytes(), Access { mode: 0o755, group: 0 })
}

/// `cmd`, else the Procfile's entry.
fn command(proc: &Proc) -> Result<String, ProcError> {
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
    let (root, path) = proc.in_app("Procfile");
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
