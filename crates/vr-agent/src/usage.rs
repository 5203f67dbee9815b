//! What procs use of the host: processor time, memory and processes.
//!
//! A container with limits has control groups, which count exactly; of the others, all processes are added up. Everything
//! is read on demand and at most every few seconds, in one go for all procs, so that nobody who asks often costs more than
//! one who asks now and then, and nobody who does not ask costs anything. This module must not know who asks.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::warn;
use vr_common::host_api::Usage;

use crate::document::Snapshot;
use crate::{files, process};

/// How old what is told may be.
const FRESH: Duration = Duration::from_secs(5);
/// How long a look at all procs may take before the last one is told again.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// The folder of our control groups; vrun makes one in it for each container with limits.
const GROUPS: &str = "velociraptor";
/// The longest file of the kernel's that is read, in bytes.
const LIMIT: u64 = 1 << 20;
/// The kernel's `USER_HZ`, the unit of processor times in `/proc`.
const TICKS_PER_SECOND: f64 = 100.0;

/// Measures all procs of a host.
#[derive(Debug, Default)]
pub struct Meter {
    last: Mutex<Option<Look>>,
}

#[derive(Debug, Clone)]
struct Look {
    at: Instant,
    measured: Arc<BTreeMap<String, Measured>>,
}

/// What was found of a proc.
#[derive(Debug, Clone, Default, PartialEq)]
struct Measured {
    /// Which run of it; a proc that was started again begins anew.
    run: Run,
    cpu_seconds: f64,
    cpu_percent: Option<f64>,
    memory_bytes: u64,
    processes: Option<u32>,
    /// Processes of this run that were killed for want of memory.
    oom_kills: u64,
}

impl Meter {
    /// What these procs use; of one that was just added there may be nothing yet.
    pub async fn usage(&self, procs: Vec<(String, Snapshot)>) -> Arc<BTreeMap<String, Usage>> {
        // Whoever asks meanwhile waits for the same answer.
        let mut last = self.last.lock().await;
        if last.as_ref().is_none_or(|look| look.at.elapsed() >= FRESH) {
            let runs: Vec<_> =
                procs.iter().map(|(name, shown)| (name.clone(), Run::of(shown), shown.pid)).collect();
            let before = last.clone();
            let at = Instant::now();
            let look = tokio::task::spawn_blocking(move || {
                let measured = Arc::new(look(&runs, before.as_ref(), at));
                Look { at, measured }
            });
            match timeout(LOOK_LIMIT, look).await {
                Ok(Ok(look)) => *last = Some(look),
                Ok(Err(e)) => warn!("what procs use cannot be found out: {e}"),
                Err(_) => warn!("it takes too long to find out what procs use"),
            }
        }
        let measured = last.as_ref().map(|look| Arc::clone(&look.measured)).unwrap_or_default();
        drop(last);
        let usage = procs.into_iter().filter_map(|(name, shown)| {
            let found = measured.get(&name)?;
            // What is down or runs anew since then uses nothing that we know of.
            let found = if found.run == Run::of(&shown) { found } else { &Measured::default() };
            let usage = Usage {
                cpu_seconds: found.cpu_seconds,
                cpu_percent: found.cpu_percent,
                memory_bytes: found.memory_bytes,
                restarts: shown.restarts,
                ooms: shown.ooms.saturating_add(u32::try_from(found.oom_kills).unwrap_or(u32::MAX)),
                processes: found.processes,
            };
            Some((name, usage))
        });
        Arc::new(usage.collect())
    }
}

/// The vrun of a run; zeros for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Run {
    vrun_pid: u32,
    /// When that was started, in ticks since boot.
    vrun_ticks: u64,
}

impl Run {
    fn of(shown: &Snapshot) -> Self {
        Self { vrun_pid: shown.vrun_pid, vrun_ticks: shown.vrun_ticks }
    }
}

/// Looks at runs and their apps, which are their vruns as long as nothing else is known.
fn look(runs: &[(String, Run, u32)], before: Option<&Look>, at: Instant) -> BTreeMap<String, Measured> {
    let groups = Groups::parse(&read(Path::new("/proc/self/mountinfo")).unwrap_or_default());
    let processes = OnceCell::new();
    let processes = || processes.get_or_init(Processes::list);
    let mut all = BTreeMap::new();
    for (name, run, app) in runs {
        let mut measured = measure(*run, *app, &groups, &processes);
        let earlier = before.and_then(|look| Some((look.at, look.measured.get(name)?)));
        measured.cpu_percent = earlier
            .filter(|(_, earlier)| earlier.run == *run && run.vrun_pid != 0)
            .map(|(then, earlier)| percent(measured.cpu_seconds - earlier.cpu_seconds, at - then));
        all.insert(name.clone(), measured);
    }
    all
}

fn percent(cpu_seconds: f64, of: Duration) -> f64 {
    let percent = 100.0 * cpu_seconds.max(0.0) / of.as_secs_f64().max(0.001);
    (percent * 10.0).round() / 10.0
}

fn measure<'p>(run: Run, app: u32, groups: &Groups, processes: &impl Fn() -> &'p Processes) -> Measured {
    let mut measured = Measured { run, ..Measured::default() };
    if run.vrun_pid == 0 {
        measured.processes = Some(0);
        return measured;
    }
    if app == run.vrun_pid {
        return measured;
    }
    let memberships = read(Path::new(&format!("/proc/{app}/cgroup"))).unwrap_or_default();
    let memory = groups.find(&memberships, "memory").and_then(|group| {
        measured.oom_kills = group.oom_kills();
        group.memory()
    });
    let cpu = groups.find(&memberships, "cpuacct").and_then(|group| group.cpu_seconds());
    // Without a group that counts it, the processes are looked at, all of them at once.
    let tree = OnceCell::new();
    let tree = || tree.get_or_init(|| processes().of(run.vrun_pid, app));
    measured.memory_bytes = memory.unwrap_or_else(|| tree().memory_bytes);
    measured.cpu_seconds = cpu.unwrap_or_else(|| tree().cpu_seconds);
    let counted = groups.find(&memberships, "pids").and_then(|group| group.processes());
    measured.processes = counted.or_else(|| Some(tree().processes));
    // Looked at last: the numbers may have been other processes' by then.
    match process::start_ticks(run.vrun_pid) == Some(run.vrun_ticks) {
        true => measured,
        false => Measured { run, ..Measured::default() },
    }
}

/// The mounted hierarchies of control groups.
#[derive(Debug)]
struct Groups {
    hierarchies: Vec<Hierarchy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

#[derive(Debug)]
struct Hierarchy {
    version: Version,
    /// Of the first version.
    controllers: Vec<String>,
    /// The group that is mounted.
    shown: PathBuf,
    point: PathBuf,
}

/// A proc's group in one hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    version: Version,
    path: PathBuf,
}

impl Groups {
    /// Reads `/proc/self/mountinfo`; see `proc(5)`.
    fn parse(mountinfo: &str) -> Self {
        let hierarchies = mountinfo.lines().filter_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let place: Vec<&str> = place.split(' ').collect();
            let mut kind = kind.split(' ');
            let version = match kind.next()? {
                "cgroup" => Version::One,
                "cgroup2" => Version::Two,
                _ => return None,
            };
            let controllers = kind.nth(1)?.split(',').map(str::to_owned).collect();
            Some(Hierarchy {
                version,
                controllers,
                shown: PathBuf::from(place.get(3)?),
                point: PathBuf::from(place.get(4)?),
            })
        });
        Self { hierarchies: hierarchies.collect() }
    }

    /// The group that counts what belongs to a controller of the first version, if a proc has one of its own there.
    /// `memberships` is `/proc/<pid>/cgroup`.
    fn find(&self, memberships: &str, controller: &str) -> Option<Group> {
        let mut found: Vec<Group> =
            memberships.lines().filter_map(|line| self.group(line, controller)).collect();
        // A controller is in one hierarchy only; where the first version has it, the second has not.
        found.sort_by_key(|group| group.version == Version::Two);
        found.into_iter().next()
    }

    fn group(&self, membership: &str, controller: &str) -> Option<Group> {
        let mut parts = membership.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, Path::new(parts.next()?));
        let ours = path.parent()?.file_name()? == GROUPS;
        let wanted = names.is_empty() || names.split(',').any(|name| name == controller);
        if !ours || !wanted {
            return None;
        }
        let hierarchy = self.hierarchies.iter().find(|hierarchy| match hierarchy.version {
            Version::Two => names.is_empty(),
            Version::One => {
                names.split(',').all(|name| hierarchy.controllers.iter().any(|have| have == name))
            }
        })?;
        let below = path.strip_prefix(&hierarchy.shown).ok()?;
        Some(Group { version: hierarchy.version, path: hierarchy.point.join(below) })
    }
}

impl Group {
    fn number(&self, file: &str) -> Option<u64> {
        read(&self.path.join(file))?.trim().parse().ok()
    }

    /// The number behind a word in a file with one of each a line.
    fn entry(&self, file: &str, word: &str) -> Option<u64> {
        let text = read(&self.path.join(file))?;
        let value = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))?;
        value.trim().parse().ok()
    }

    /// In bytes, without the files in memory that nobody used for a while.
    fn memory(&self) -> Option<u64> {
        let (all, stat) = match self.version {
            Version::One => ("memory.usage_in_bytes", "total_inactive_file"),
            Version::Two => ("memory.current", "inactive_file"),
        };
        Some(self.number(all)?.saturating_sub(self.entry("memory.stat", stat).unwrap_or(0)))
    }

    fn cpu_seconds(&self) -> Option<f64> {
        Some(match self.version {
            Version::One => self.number("cpuacct.usage")? as f64 / 1e9,
            Version::Two => self.entry("cpu.stat", "usage_usec")? as f64 / 1e6,
        })
    }

    fn oom_kills(&self) -> u64 {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        self.entry(file, "oom_kill").unwrap_or(0)
    }

    /// How many processes are in it, without the container's init.
    fn processes(&self) -> Option<u32> {
        let listed = read(&self.path.join("cgroup.procs"))?;
        u32::try_from(listed.lines().count().saturating_sub(1)).ok()
    }
}

/// A process, as `/proc/<pid>/stat` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    /// Its own time, in ticks.
    own_ticks: u64,
    /// That of its children that have ended and were waited for.
    children_ticks: u64,
    memory_bytes: u64,
}

impl Process {
    fn parse(stat: &str, page_size: u64) -> Option<Self> {
        let pid = stat.split(' ').next()?.parse().ok()?;
        // The second field is the program's name, which may hold anything, also spaces and brackets.
        let rest: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // Numbered as in proc_pid_stat(5); the first here is field 3.
        let field = |number: usize| rest.get(number - 3);
        let ticks = |number| field(number)?.parse::<u64>().ok();
        Some(Self {
            pid,
            parent: field(4)?.parse().ok()?,
            own_ticks: ticks(14)? + ticks(15)?,
            children_ticks: ticks(16)? + ticks(17)?,
            memory_bytes: ticks(24)?.saturating_mul(page_size),
        })
    }
}

/// All processes of the host at one moment.
#[derive(Debug)]
struct Processes {
    /// Sorted by parent.
    all: Vec<Process>,
}

/// What the processes of a proc use together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Tree {
    cpu_seconds: f64,
    memory_bytes: u64,
    processes: u32,
}

impl Processes {
    fn list() -> Self {
        let page_size = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
        let all = numbers.filter_map(|entry| {
            let name = entry.file_name();
            let pid = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))?;
            Process::parse(&read(Path::new(&format!("/proc/{pid}/stat")))?, page_size)
        });
        Self::new(all.collect())
    }

    fn new(mut all: Vec<Process>) -> Self {
        all.sort_by_key(|process| process.parent);
        Self { all }
    }

    fn children(&self, parent: u32) -> &[Process] {
        let from = self.all.partition_point(|process| process.parent < parent);
        let to = self.all.partition_point(|process| process.parent <= parent);
        &self.all[from..to]
    }

    fn get(&self, pid: u32) -> Option<&Process> {
        self.all.iter().find(|process| process.pid == pid)
    }

    /// All processes of a proc's container but its init, which is ours. The init is the app's parent, and takes in all whose
    /// own parents are gone.
    fn of(&self, vrun: u32, app: u32) -> Tree {
        let Some(app) = self.get(app) else { return Tree::default() };
        let init = self.get(app.parent).filter(|init| init.pid == vrun || init.parent == vrun);
        let (first, mut ticks) = match init {
            Some(init) => (self.children(init.pid).to_vec(), init.children_ticks),
            // Made by another program, which may have other children.
            None => (vec![*app], 0),
        };
        let mut tree = Tree::default();
        let mut left = first;
        while let Some(process) = left.pop() {
            // What is read while it changes could have cycles.
            if tree.processes as usize >= self.all.len() {
                break;
            }
            tree.processes += 1;
            tree.memory_bytes = tree.memory_bytes.saturating_add(process.memory_bytes);
            ticks = ticks.saturating_add(process.own_ticks).saturating_add(process.children_ticks);
            left.extend_from_slice(self.children(process.pid));
        }
        tree.cpu_seconds = ticks as f64 / TICKS_PER_SECOND;
        tree
    }
}

fn read(path: &Path) -> Option<String> {
    files::read_text(path, LIMIT).ok()
}

#[cfg(test)]
mod tests {
    use vr_common::host_api::ProcState;
    use vr_common::process::command;

    use super::*;

    const MOUNTS: &str = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 30 0:30 /outer /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
";

    #[test]
    fn groups_are_found_in_both_versions() {
        let groups = Groups::parse(MOUNTS);
        let memberships = "9:memory:/a/velociraptor/x-1-2-0\n4:cpu,cpuacct:/outer/velociraptor/x-1-2-0\n\
                           3:pids:/velociraptor/x-1-2-0\n0::/a\n";
        let group = |controller| groups.find(memberships, controller).map(|group| group.path);
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!(group("memory"), path("/sys/fs/cgroup/memory/a/velociraptor/x-1-2-0"));
        assert_eq!(group("cpuacct"), path("/sys/fs/cgroup/cpu,cpuacct/velociraptor/x-1-2-0"));
        assert_eq!(group("pids"), None, "not mounted");
        assert_eq!(groups.find("9:memory:/a\n", "memory"), None, "not its own");
        let two = groups.find("0::/velociraptor/x-1-2-0\n", "memory").unwrap();
        assert_eq!(two.path, PathBuf::from("/sys/fs/cgroup/unified/velociraptor/x-1-2-0"));
        assert_eq!(two.version, Version::Two);
    }

    #[test]
    fn a_group_says_what_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("memory.current", "5000\n"),
            ("memory.stat", "anon 1\ninactive_file 2000\n"),
            ("memory.events", "low 0\noom 3\noom_kill 2\n"),
            ("cpu.stat", "usage_usec 2500000\nuser_usec 1\n"),
            ("cgroup.procs", "10\n11\n12\n"),
            ("memory.usage_in_bytes", "7000\n"),
            ("cpuacct.usage", "1500000000\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let two = Group { version: Version::Two, path: dir.path().into() };
        assert_eq!((two.memory(), two.cpu_seconds()), (Some(3000), Some(2.5)));
        assert_eq!((two.oom_kills(), two.processes()), (2, Some(2)));
        let one = Group { version: Version::One, path: dir.path().into() };
        assert_eq!((one.memory(), one.cpu_seconds(), one.oom_kills()), (Some(7000), Some(1.5), 1));
        let none = Group { version: Version::Two, path: dir.path().join("gone") };
        assert_eq!((none.memory(), none.cpu_seconds(), none.processes()), (None, None, None));
    }

    fn process(pid: u32, parent: u32, own_ticks: u64, children_ticks: u64) -> Process {
        Process { pid, parent, own_ticks, children_ticks, memory_bytes: 10 }
    }

    #[test]
    fn the_processes_of_a_container_are_added_up_without_ours() {
        let processes = Processes::new(vec![
            process(1, 0, 1000, 1000),
            // vrun, its init, the app with a child, and one whose parent is gone.
            process(50, 1, 100, 0),
            process(51, 50, 7, 20),
            process(52, 51, 30, 5),
            process(53, 52, 40, 0),
            process(54, 51, 50, 0),
            // Somebody else's.
            process(60, 1, 100, 0),
        ]);
        let tree = processes.of(50, 52);
        assert_eq!(tree, Tree { cpu_seconds: 1.45, memory_bytes: 30, processes: 3 });
        assert_eq!(processes.of(50, 99), Tree::default());
        // Not a child of ours: only what is below the app.
        assert_eq!(processes.of(40, 52).processes, 2);
    }

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4 5 6 7 8 9 10 11 12 13 14 15 16 4242 100 3 18446744073709551615";
        let expected =
            Process { pid: 7, parent: 1, own_ticks: 19, children_ticks: 23, memory_bytes: 3 * 4096 };
        assert_eq!(Process::parse(stat, 4096), Some(expected));
        assert_eq!(Process::parse("7 (x", 4096), None);
    }

    #[test]
    fn percentages_are_of_one_processor() {
        assert_eq!(percent(0.5, Duration::from_secs(10)), 5.0);
        assert_eq!(percent(20.0, Duration::from_secs(10)), 200.0);
        assert_eq!(percent(-1.0, Duration::from_secs(10)), 0.0);
    }

    #[tokio::test]
    async fn a_real_process_is_measured_and_what_is_down_uses_nothing() {
        let mut child = command("sleep").arg("60").spawn().unwrap();
        let shown = Snapshot {
            state: ProcState::Running,
            pid: child.id(),
            vrun_pid: std::process::id(),
            vrun_ticks: process::start_ticks(std::process::id()).unwrap(),
            restarts: 3,
            ooms: 1,
            ..Snapshot::unknown()
        };
        let meter = Meter::default();
        // Somebody else's by now; and, a moment later, the same number for another run.
        let other = Snapshot { vrun_ticks: 7, ..shown.clone() };
        let procs = [("up", &shown), ("gone", &other), ("down", &Snapshot::unknown())];
        let procs = procs.map(|(name, shown)| (name.to_owned(), shown.clone())).to_vec();
        let usage = meter.usage(procs.clone()).await;
        let anew = meter.usage(vec![("up".to_owned(), other)]).await;
        child.kill().unwrap();
        child.wait().unwrap();
        for (which, found) in [("gone", &usage["gone"]), ("started anew", &anew["up"])] {
            assert_eq!((found.memory_bytes, found.cpu_percent, found.restarts), (0, None, 3), "{which}");
        }
        let up = &usage["up"];
        assert!(up.memory_bytes > 0 && up.processes > Some(0), "{up:?}");
        assert_eq!((up.restarts, up.ooms, up.cpu_percent), (3, 1, None));
        assert_eq!((usage["down"].processes, usage["down"].memory_bytes), (Some(0), 0));
        // So soon, it is not looked again.
        assert_eq!(meter.usage(procs).await["up"], *up);
    }
}
