//! Control groups: where the kernel counts and limits what a container uses. One group for each container, in
//! `velociraptor` below the caller's own group, so that what limits the caller limits its containers too.
//!
//! Which controller is in which hierarchy differs between hosts: each in one of its own (v1), all in one (v2), or
//! some here and some there. It is looked up whenever a container with limits starts. The second version enables no
//! controllers below a group that has processes, so there the next group above that can is taken.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{ContainerError, Limits};

/// The group that holds ours.
const BASE: &str = "velociraptor";
/// How long the last processes of a group may take to be gone for the kernel, too.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for a group whose caller was killed; one that takes longer is left to the next.
const PATIENCE_FOR_THE_DEAD: Duration = Duration::from_millis(200);
/// Processor time is handed out anew this often, in microseconds.
const PERIOD: u64 = 100_000;
const PROCESSES: &str = "cgroup.procs";
const ENABLED: &str = "cgroup.subtree_control";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Memory,
    Processes,
    Cpu,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Processes, Self::Cpu];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Processes => "pids",
            Self::Cpu => "cpu",
        }
    }

    fn limits(self, limits: &Limits) -> bool {
        match self {
            Self::Memory => limits.memory.is_some() || limits.memory_and_swap.is_some(),
            Self::Processes => limits.processes.is_some(),
            Self::Cpu => limits.cpu_thousandths.is_some(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A mounted tree of groups.
#[derive(Debug)]
struct Hierarchy {
    version: Version,
    controllers: Vec<String>,
    /// The highest group to be seen.
    top: PathBuf,
    /// The caller's group; `top` when the caller's is not to be seen.
    own: PathBuf,
}

impl Hierarchy {
    /// The groups that may hold our base, the preferred one first.
    fn parents(&self) -> impl Iterator<Item = &Path> {
        let above = match self.version {
            Version::One => 1,
            Version::Two => usize::MAX,
        };
        self.own.ancestors().take_while(|path| path.starts_with(&self.top)).take(above)
    }
}

/// How a group is made and removed: as folders, but for tests, which have no kernel to fill them.
#[derive(Debug, Clone, Copy)]
struct Folders {
    make: fn(&Path) -> io::Result<()>,
    remove: fn(&Path) -> io::Result<()>,
}

const KERNEL: Folders = Folders { make: |path| fs::create_dir(path), remove: |path| fs::remove_dir(path) };

/// What failed, with which file.
struct Failure {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failure(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure { step, path, source }
}

/// The control groups of a host.
#[derive(Debug)]
struct Host {
    hierarchies: Vec<Hierarchy>,
    folders: Folders,
}

impl Host {
    fn find() -> Result<Self, Failure> {
        let read = |path: &str| fs::read_to_string(path).map_err(failure("read", Path::new(path)));
        Ok(Self::parse(Path::new("/"), &read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?, KERNEL))
    }

    /// Reads the two lists that the kernel has of each process. All mount points are taken to be below `root`.
    fn parse(root: &Path, mounts: &str, memberships: &str, folders: Folders) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mounts.lines() {
            let Some((place, kind)) = line.split_once(" - ") else { continue };
            let place: Vec<&str> = place.split(' ').collect();
            let kind: Vec<&str> = kind.split(' ').collect();
            let ([_, _, _, shown, point, ..], [kind, _, options, ..]) = (&place[..], &kind[..]) else {
                continue;
            };
            let top = root.join(unescape(point).trim_start_matches('/'));
            let options: Vec<&str> = options.split(',').collect();
            let (version, own) = match *kind {
                "cgroup2" => (Version::Two, membership(memberships, |names| names.is_empty())),
                "cgroup" => {
                    let is_this = |names: &str| {
                        !names.is_empty() && names.split(',').all(|name| options.contains(&name))
                    };
                    (Version::One, membership(memberships, is_this))
                }
                _ => continue,
            };
            let controllers = match version {
                Version::One => options.iter().map(|&name| name.to_owned()).collect(),
                Version::Two => words(&top.join("cgroup.controllers")),
            };
            let own = own
                .and_then(|own| Path::new(own).strip_prefix(unescape(shown)).ok().map(|rest| top.join(rest)))
                .filter(|own| !own.components().any(|part| part == Component::ParentDir) && own.is_dir())
                .unwrap_or_else(|| top.clone());
            // The same hierarchy may be mounted more than once.
            let twin = |old: &Hierarchy| old.version == version && old.controllers == controllers;
            if !hierarchies.iter().any(twin) {
                hierarchies.push(Hierarchy { version, controllers, top, own });
            }
        }
        // A controller is in one hierarchy only; the second version lists those that no other has.
        hierarchies.sort_by_key(|hierarchy| hierarchy.version == Version::Two);
        Self { hierarchies, folders }
    }

    fn with(&self, controller: Controller) -> Option<&Hierarchy> {
        let has = |hierarchy: &&Hierarchy| hierarchy.controllers.iter().any(|name| name == controller.name());
        self.hierarchies.iter().find(has)
    }

    fn create(&self, container: &str, limits: &Limits) -> Result<Group, ContainerError> {
        self.clear();
        let failed = |Failure { step, path, source }| ContainerError::Cgroup {
            name: container.to_owned(),
            step,
            path,
            source,
        };
        let mut places: Vec<(&Hierarchy, Vec<Controller>)> = Vec::new();
        for controller in Controller::ALL.into_iter().filter(|controller| controller.limits(limits)) {
            let hierarchy = self.with(controller).ok_or_else(|| ContainerError::NoController {
                name: container.to_owned(),
                controller: controller.name(),
            })?;
            match places.iter_mut().find(|(other, _)| std::ptr::eq(*other, hierarchy)) {
                Some((_, controllers)) => controllers.push(controller),
                None => places.push((hierarchy, vec![controller])),
            }
        }
        let name = group_name(container).map_err(failed)?;
        // Removes what it holds should a later step fail.
        let mut group = Group {
            folders: self.folders,
            paths: Vec::new(),
            entries: Vec::new(),
            homes: Vec::new(),
            memory: None,
            processes: None,
            out_of_memory: limits.out_of_memory(),
            out_of_processes: limits.out_of_processes(),
        };
        for (hierarchy, controllers) in places {
            let path = self.make(hierarchy, &controllers, &name).map_err(failed)?;
            group.paths.push(path.clone());
            group.homes.push(hierarchy.own.join(PROCESSES));
            for controller in controllers {
                set(hierarchy.version, controller, &path, limits).map_err(failed)?;
                match controller {
                    Controller::Memory => group.memory = Some((hierarchy.version, path.clone())),
                    Controller::Processes => group.processes = Some(path.clone()),
                    Controller::Cpu => {}
                }
            }
            let entry = path.join(PROCESSES);
            let opened = OpenOptions::new().write(true).open(&entry);
            group.entries.push((path, opened.map_err(failure("open", &entry)).map_err(failed)?));
        }
        Ok(group)
    }

    /// Makes a group, whatever others do at the same time with the one above it.
    fn make(
        &self,
        hierarchy: &Hierarchy,
        controllers: &[Controller],
        name: &str,
    ) -> Result<PathBuf, Failure> {
        const MOST_TRIES: u32 = 100;
        let names: Vec<&str> = controllers.iter().map(|controller| controller.name()).collect();
        let parent = match hierarchy.version {
            Version::One => hierarchy.own.as_path(),
            Version::Two => parent_that_enables(hierarchy, &names)?,
        };
        let base = parent.join(BASE);
        let path = base.join(name);
        let mut tries = 0;
        loop {
            tries += 1;
            // The last container's end removes the base, also between two steps of ours.
            let again = |error: &io::Error| error.kind() == io::ErrorKind::NotFound && tries < MOST_TRIES;
            match (self.folders.make)(&base) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failure("make the group", &base)(error));
                }
                _ => {}
            }
            if hierarchy.version == Version::Two {
                match enable(&base, &names) {
                    Err(error) if again(&error) => continue,
                    done => done.map_err(failure("enable controllers in", &base))?,
                }
            }
            match (self.folders.make)(&path) {
                Err(error) if again(&error) => {}
                done => return done.map(|()| path.clone()).map_err(failure("make the group", &path)),
            }
        }
    }

    /// Removes the groups of dead callers, as far as they are empty.
    fn clear(&self) {
        let ours = |hierarchy: &&Hierarchy| {
            Controller::ALL.iter().any(|c| hierarchy.controllers.iter().any(|name| name == c.name()))
        };
        for parent in self.hierarchies.iter().filter(ours).flat_map(Hierarchy::parents) {
            let base = parent.join(BASE);
            let Ok(entries) = fs::read_dir(&base) else { continue };
            for entry in entries.flatten() {
                if entry.file_name().to_str().is_some_and(|name| owner_is_dead(name) == Some(true)) {
                    let _ = remove(self.folders, &entry.path(), PATIENCE_FOR_THE_DEAD);
                }
            }
            let _ = (self.folders.remove)(&base);
        }
    }
}

/// The path of the caller's group in the hierarchy whose names fit.
fn membership(memberships: &str, fits: impl Fn(&str) -> bool) -> Option<&str> {
    memberships.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        fits(names).then_some(path)
    })
}

/// Undoes the kernel's `\040` for a space and the like.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) if first == b'\\' => {
                out.push(byte);
                rest = &after[3..];
            }
            _ => {
                out.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn words(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Writes to a file of the kernel's, which has to be there already.
fn write(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

/// The number behind a word in a file of the kernel's with one of each a line; 0 when it is not there.
fn count(file: &Path, word: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn enable(group: &Path, names: &[&str]) -> io::Result<()> {
    let enabled = words(&group.join(ENABLED));
    if names.iter().all(|name| enabled.iter().any(|enabled| enabled == name)) {
        return Ok(());
    }
    let wish: Vec<String> = names.iter().map(|name| format!("+{name}")).collect();
    write(&group.join(ENABLED), &wish.join(" "))
}

/// The nearest group, from the caller's own upwards, whose children can have the controllers.
fn parent_that_enables<'h>(hierarchy: &'h Hierarchy, names: &[&str]) -> Result<&'h Path, Failure> {
    let has_all = |list: &[String]| names.iter().all(|name| list.iter().any(|have| have == name));
    let mut last = io::Error::other(format!("no group there may enable {}", names.join(" and ")));
    for group in hierarchy.parents() {
        if has_all(&words(&group.join(ENABLED))) {
            return Ok(group);
        }
        // The kernel would refuse, unless it is the root of all groups.
        let busy = group != hierarchy.top && !words(&group.join(PROCESSES)).is_empty();
        if busy || !has_all(&words(&group.join("cgroup.controllers"))) {
            continue;
        }
        match enable(group, names) {
            Ok(()) => return Ok(group),
            Err(error) => last = error,
        }
    }
    Err(failure("use the groups of", &hierarchy.top)(last))
}

/// Writes one controller's limits.
fn set(version: Version, controller: Controller, group: &Path, limits: &Limits) -> Result<(), Failure> {
    let put = |file: &str, value: String| {
        let file = group.join(file);
        write(&file, &value).map_err(failure("write the limit to", &file))
    };
    match controller {
        Controller::Memory => {
            let (memory, both) = (&limits.memory, &limits.memory_and_swap);
            let Some(alone) = memory.as_ref().or(both.as_ref()) else { return Ok(()) };
            let (file, swap_file) = match version {
                Version::One => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
                Version::Two => ("memory.max", "memory.swap.max"),
            };
            put(file, alone.bytes().to_string())?;
            if !group.join(swap_file).exists() {
                tracing::warn!("this host does not count swap, so only memory itself is limited");
                return Ok(());
            }
            let Some(both) = both else { return Ok(()) };
            let most = match version {
                Version::One => both.bytes(),
                Version::Two => both.bytes().saturating_sub(alone.bytes()),
            };
            put(swap_file, most.to_string())
        }
        Controller::Processes => {
            let Some(most) = limits.processes else { return Ok(()) };
            // Our init is in the group, too.
            put("pids.max", (u64::from(most) + 1).to_string())
        }
        Controller::Cpu => {
            let Some(share) = limits.cpu_thousandths else { return Ok(()) };
            let quota = u64::from(share) * PERIOD / 1000;
            match version {
                Version::One => {
                    put("cpu.cfs_period_us", PERIOD.to_string())?;
                    put("cpu.cfs_quota_us", quota.to_string())
                }
                Version::Two => put("cpu.max", format!("{quota} {PERIOD}")),
            }
        }
    }
}

/// When a process began, in the kernel's ticks: with its number, that names it for good.
fn start_ticks(process: &str) -> io::Result<String> {
    let path = format!("/proc/{process}/stat");
    let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    // The name in parentheses may hold anything.
    let ticks = text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(22 - 3));
    ticks.map(str::to_owned).ok_or_else(|| io::Error::other(format!("{path} has no field 22")))
}

/// A name that no other group has, and that says whose it is: container, caller, the caller's start, a number.
fn group_name(container: &str) -> Result<String, Failure> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    const LONGEST: usize = 210;
    let harmless = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = container.chars().take(LONGEST).map(harmless).collect();
    let ticks = start_ticks("self").map_err(failure("read", Path::new("/proc/self/stat")))?;
    let (owner, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    Ok(format!("{name}-{owner}-{ticks}-{number}"))
}

/// Whether the caller that a group's name tells of is gone; none when the name is not of our making.
fn owner_is_dead(group: &str) -> Option<bool> {
    let mut parts = group.rsplitn(4, '-');
    let (number, ticks, owner) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next()?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if ![number, ticks, owner].into_iter().all(is_number) {
        return None;
    }
    match start_ticks(owner) {
        Ok(now) => Some(now != ticks),
        // Without being sure, nothing is removed.
        Err(error) => (error.kind() == io::ErrorKind::NotFound).then_some(true),
    }
}

/// Removes a group, which the kernel allows once its last process is gone.
fn remove(folders: Folders, group: &Path, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match (folders.remove)(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(()),
        }
    }
}

/// Removes the groups of containers whose caller was killed. Those that still have processes stay.
pub fn clear_left_groups() {
    // A host without control groups has none that are left.
    if let Ok(host) = Host::find() {
        host.clear();
    }
}

/// Why containers of this host could have no limits; `None` when they could.
pub fn why_no_limits() -> Option<String> {
    let host = match Host::find() {
        Ok(host) => host,
        Err(Failure { step, path, source }) => {
            return Some(format!("cannot {step} {}: {source}", path.display()));
        }
    };
    let reason = |controller: Controller| match host.with(controller) {
        None => Some(format!("there is no cgroup controller {}", controller.name())),
        Some(hierarchy) => {
            let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
            let is_closed = !hierarchy.parents().any(writable);
            is_closed.then(|| format!("the control group {} cannot be changed", hierarchy.own.display()))
        }
    };
    Controller::ALL.into_iter().find_map(reason)
}

/// Whether the kernel counts swap for groups; `None` when it cannot be told.
pub fn counts_swap() -> Option<bool> {
    let host = Host::find().ok()?;
    let hierarchy = host.with(Controller::Memory)?;
    let file = match hierarchy.version {
        Version::One => "memory.memsw.limit_in_bytes",
        Version::Two => "memory.swap.max",
    };
    // The topmost group of the second version has no limits, and only those have the file whose memory is counted.
    let below = fs::read_dir(&hierarchy.top).into_iter().flatten().flatten().map(|entry| entry.path());
    let counted = |group: &PathBuf| group.join("memory.stat").exists() && *group != hierarchy.top;
    let mut groups = below.filter(counted).peekable();
    match hierarchy.version {
        Version::One => Some(hierarchy.top.join(file).exists()),
        Version::Two => groups.peek().is_some().then(|| groups.any(|group| group.join(file).exists())),
    }
}

/// A container's group, in one hierarchy or several. Removed when dropped.
#[derive(Debug)]
pub(super) struct Group {
    folders: Folders,
    paths: Vec<PathBuf>,
    entries: Vec<(PathBuf, File)>,
    homes: Vec<PathBuf>,
    memory: Option<(Version, PathBuf)>,
    processes: Option<PathBuf>,
    out_of_memory: Option<String>,
    out_of_processes: Option<String>,
}

impl Group {
    /// Makes the group with its limits, nobody in it yet.
    pub fn create(container: &str, limits: &Limits) -> Result<Self, ContainerError> {
        let host = Host::find().map_err(|Failure { step, path, source }| ContainerError::Cgroup {
            name: container.to_owned(),
            step,
            path,
            source,
        })?;
        host.create(container, limits)
    }

    /// The files through which a process enters by writing `0`, with the groups' names.
    pub fn take_entries(&mut self) -> Vec<(PathBuf, File)> {
        std::mem::take(&mut self.entries)
    }

    /// The files through which a process gets into the caller's own groups again, by its number.
    pub fn homes(&self) -> &[PathBuf] {
        &self.homes
    }

    /// How many processes the kernel killed because of the group's memory limit.
    pub fn oom_kills(&self) -> u64 {
        let Some((version, group)) = &self.memory else { return 0 };
        let file = match version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        count(&group.join(file), "oom_kill")
    }

    /// What to say when the kernel killed a process because of that limit.
    pub fn out_of_memory(&self) -> Option<&str> {
        self.out_of_memory.as_deref().filter(|_| self.oom_kills() > 0)
    }

    /// What to say when the kernel refused a process because of the group's limit. Older kernels and the first version count
    /// those here that a limit of the caller's own refused, too.
    pub fn out_of_processes(&self) -> Option<&str> {
        let refused = count(&self.processes.as_ref()?.join("pids.events"), "max");
        self.out_of_processes.as_deref().filter(|_| refused > 0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.entries.clear();
        for path in &self.paths {
            if let Err(error) = remove(self.folders, path, PATIENCE) {
                tracing::warn!(group = %path.display(), %error, "cannot remove a control group");
            }
            if let Some(base) = path.parent() {
                // Fails while other containers are there.
                let _ = (self.folders.remove)(base);
            }
        }
    }
}

#[cfg(test)]
mod tests;
