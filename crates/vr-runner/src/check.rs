//! Whether containers work on this host, found out by making some in a throw-away folder of the root.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vr_common::archive::remove_tree;
use vr_common::exit;
use vr_common::host_api::{Finding, Verdict};
use vr_common::paths::VrRoot;

use crate::container::{
    Container, Credentials, Engine, Limits, Program, RootFs, Streams, System, Upper, can_be_upper,
    counts_swap,
};

/// How long a container may take that only has to look at itself.
const DEADLINE: Duration = Duration::from_secs(20);
/// Nobody, as on every Debian.
const NOBODY: u32 = 65534;
/// The file that the container writes, and where.
const WRITTEN: &str = "app/written";
/// What runs in it: writes where an app would, and says what the kernel made of it.
const SCRIPT: &str = "echo written > /app/written && exec cat /proc/self/status /proc/self/uid_map";

/// Looks at everything that procs need of the kernel. Takes a second or two and leaves nothing.
pub fn check(root: &VrRoot, engine: Engine) -> Vec<Finding> {
    let place = match Place::make(root) {
        Ok(place) => place,
        Err((path, error)) => {
            let found = format!("cannot write to {}: {error}", path.display());
            return vec![finding(
                "containers",
                Verdict::Missing,
                found,
                "run as root, or choose another root",
            )];
        }
    };
    let mut findings = Vec::new();
    let begun = Instant::now();
    match place.try_container(engine, Limits::default(), true) {
        Ok(seen) => {
            let took = begun.elapsed().as_millis();
            let found = format!("one was made, ran as nobody and was removed in {took} ms");
            findings.push(finding("containers", Verdict::Ok, found, ""));
            findings.push(overlays(&place, None));
            findings.push(users(&seen));
            findings.push(filter(&seen));
        }
        Err(reason) => match place.try_container(engine, Limits::default(), false) {
            // Everything but the overlay works.
            Ok(seen) => {
                findings.push(finding(
                    "containers",
                    Verdict::Ok,
                    "they work without builds and images".to_owned(),
                    "",
                ));
                findings.push(overlays(&place, Some(reason)));
                findings.push(users(&seen));
                findings.push(filter(&seen));
            }
            Err(reason) => {
                let advice = "needs root, a kernel with namespaces, and a host that lets its programs use them \
                              (a container of another engine has to be privileged)";
                findings.push(finding("containers", Verdict::Missing, reason, advice));
            }
        },
    }
    for (what, key, limits) in limits() {
        findings.push(match place.try_container(engine, limits, false) {
            Ok(_) => finding(what, Verdict::Ok, "a container was limited".to_owned(), ""),
            Err(reason) => {
                let advice =
                    format!("procs with {key} do not start; give vrun a cgroup that it may divide up");
                finding(what, Verdict::Warn, reason, &advice)
            }
        });
    }
    findings.push(match counts_swap() {
        Some(true) => finding("swap limits", Verdict::Ok, "swap is counted".to_owned(), ""),
        Some(false) => finding(
            "swap limits",
            Verdict::Warn,
            "swap is not counted, so memsw_limit has no effect".to_owned(),
            "boot with swapaccount=1, or have no swap",
        ),
        None => finding(
            "swap limits",
            Verdict::Warn,
            "it cannot be told whether swap is counted".to_owned(),
            "nothing to do unless procs have a memsw_limit",
        ),
    });
    findings
}

fn finding(what: &str, verdict: Verdict, found: String, advice: &str) -> Finding {
    let advice = if verdict == Verdict::Ok { "" } else { advice };
    Finding { what: what.to_owned(), verdict, found, advice: advice.to_owned() }
}

fn limits() -> Vec<(&'static str, &'static str, Limits)> {
    let memory = Limits { memory: "256M".parse().ok(), ..Limits::default() };
    let processes = Limits { processes: Some(50), ..Limits::default() };
    let cpu = Limits { cpu_thousandths: Some(500), ..Limits::default() };
    vec![
        ("memory limits", "mem_limit", memory),
        ("process limits", "pids_limit", processes),
        ("processor limits", "cpu_limit", cpu),
    ]
}

fn overlays(place: &Place, failure: Option<String>) -> Finding {
    let root = place.folder.path();
    let doubt = match can_be_upper(root) {
        Ok(Upper::Impossible(kind) | Upper::Doubtful(kind)) => format!(", which is on {kind},"),
        _ => String::new(),
    };
    match failure {
        None => finding("overlayfs", Verdict::Ok, format!("works in {}", place.root.display()), ""),
        Some(reason) => finding(
            "overlayfs",
            Verdict::Missing,
            reason,
            &format!(
                "needs a kernel with overlayfs, and {}{doubt} on a local file system such as ext4, xfs or btrfs",
                place.root.display()
            ),
        ),
    }
}

/// What the kernel said inside of a container.
#[derive(Debug)]
struct Seen {
    /// The first line of `uid_map`: first number inside, first number outside, count.
    users: Option<[u64; 3]>,
    /// `Seccomp:` of the program's status.
    seccomp: Option<u32>,
}

impl Seen {
    fn parse(output: &str) -> Self {
        let number = |text: &str| text.trim().parse().ok();
        let seccomp =
            output.lines().find_map(|line| number(line.strip_prefix("Seccomp:")?)).map(|n: u64| n as u32);
        // Of all lines, only those of uid_map are three numbers.
        let users = output.lines().find_map(|line| {
            let numbers: Option<Vec<u64>> = line.split_whitespace().map(|word| word.parse().ok()).collect();
            numbers?.try_into().ok()
        });
        Self { users, seccomp }
    }
}

fn users(seen: &Seen) -> Finding {
    const WHAT: &str = "user namespaces";
    let newer =
        "needs Linux 5.19 and a file system that can be mounted with other owners (ext4, xfs, btrfs, tmpfs)";
    match seen.users {
        Some([0, 0, count]) if count >= u64::from(u32::MAX) => finding(
            WHAT,
            Verdict::Warn,
            "none: root in a container is root of the host".to_owned(),
            "needs a kernel with user namespaces (user.max_user_namespaces above 0)",
        ),
        Some([0, 0, _]) => finding(
            WHAT,
            Verdict::Warn,
            "with the host's numbers: root in a container owns root's files".to_owned(),
            newer,
        ),
        Some([0, outside, _]) => {
            finding(WHAT, Verdict::Ok, format!("with idmapped mounts: root in a container is {outside}"), "")
        }
        Some([_, outside, _]) => finding(
            WHAT,
            Verdict::Warn,
            format!("of one user: everybody in a container is {outside}"),
            "run as root, so that procs can have users of their own",
        ),
        None => finding(WHAT, Verdict::Warn, "the kernel says nothing of them".to_owned(), newer),
    }
}

fn filter(seen: &Seen) -> Finding {
    match seen.seccomp {
        Some(2) => finding("system call filter", Verdict::Ok, "is on".to_owned(), ""),
        _ => finding(
            "system call filter",
            Verdict::Missing,
            "the kernel does not filter".to_owned(),
            "needs a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

/// A throw-away folder on the root's file system.
struct Place {
    root: PathBuf,
    folder: TempDir,
}

impl Place {
    /// In the root, or, while that is not there, in the folder in which it will be.
    fn make(root: &VrRoot) -> Result<Self, (PathBuf, io::Error)> {
        let there = root.path().ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."));
        let failed = |error| (there.to_owned(), error);
        let there = there.canonicalize().map_err(failed)?;
        let failed = |error| (there.clone(), error);
        let folder = tempfile::Builder::new().prefix(".vrun-check-").tempdir_in(&there).map_err(failed)?;
        Ok(Self { root: root.path().to_owned(), folder })
    }

    /// Has a container write to a folder of its app and look at itself.
    fn try_container(&self, engine: Engine, limits: Limits, overlay: bool) -> Result<Seen, String> {
        let here = tempfile::Builder::new().tempdir_in(self.folder.path()).map_err(|e| e.to_string())?;
        let tried = try_in(here.path(), engine, limits, overlay);
        // What the kernel left in it has no permissions; who is not root needs more than the library does.
        let _ = remove_tree(here.path());
        tried
    }
}

fn try_in(folder: &Path, engine: Engine, limits: Limits, overlay: bool) -> Result<Seen, String> {
    let is_root = rustix::process::geteuid().is_root();
    let make = |name: &str| -> io::Result<PathBuf> {
        let made = folder.join(name);
        fs::create_dir_all(&made)?;
        Ok(made)
    };
    let folders = || -> io::Result<_> {
        let (lower, upper, work) = (make("lower")?, make("upper")?, make("work")?);
        let app = if overlay { make("lower/app")? } else { make("upper/app")? };
        if is_root {
            chown(&app, Some(NOBODY), Some(NOBODY))?;
        }
        Ok((lower, upper, work))
    };
    let (lower, upper, work) = folders().map_err(|e| format!("cannot make folders: {e}"))?;
    let written = upper.join(WRITTEN);
    let root = match overlay {
        true => RootFs::Overlay { lowers: vec![lower], upper, work },
        false => RootFs::Directory(upper),
    };
    let program = Program::new("/bin/sh", ["-c", SCRIPT]);
    let spec = crate::container::ContainerSpec {
        system: System::OfHost,
        user: Credentials { uid: NOBODY, gid: NOBODY, groups: Vec::new() },
        streams: Streams::Captured,
        limits,
        engine,
        ..crate::container::ContainerSpec::new("check", root, program)
    };
    let mut running = Container::start(spec).map_err(|e| exit::chain(&e))?;
    let mut output = Vec::new();
    let ended = running.wait_with_output(Some(DEADLINE), &mut |bytes| output.extend_from_slice(bytes));
    let (end, timed_out) = ended.map_err(|e| exit::chain(&e))?;
    drop(running);
    let output = String::from_utf8_lossy(&output).into_owned();
    if timed_out {
        return Err(format!("a container was not done after {} s", DEADLINE.as_secs()));
    }
    if !end.success() {
        let said = output.trim().lines().last().unwrap_or_default().to_owned();
        return Err(format!("a container's program ended with {end}: {said}"));
    }
    match fs::read(&written) {
        Ok(text) if text == b"written\n" => Ok(Seen::parse(&output)),
        _ => Err("what a container wrote did not get to the disk".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        let output = "Name:\tcat\nUid:\t65534\t65534\t65534\t65534\nSeccomp:\t2\nSeccomp_filters:\t1\n         0     524288      65536\n 2147483647 7 1\n";
        let seen = Seen::parse(output);
        assert_eq!((seen.users, seen.seccomp), (Some([0, 524_288, 65536]), Some(2)));
        assert_eq!((users(&seen).verdict, filter(&seen).verdict), (Verdict::Ok, Verdict::Ok));
        let none = Seen::parse("Seccomp:\t0\n0 0 4294967295\n");
        assert_eq!((users(&none).verdict, filter(&none).verdict), (Verdict::Warn, Verdict::Missing));
        assert!(users(&Seen::parse("0 0 65536")).found.contains("owns root's files"));
        assert!(users(&Seen::parse("65534 1000 1")).found.contains("of one user"));
    }
}
