//! The layouts of other machines, in folders that look like theirs.

use super::*;
use tempfile::TempDir;

/// The kernel's part: a new group has its files, those of a controller only where the group above enables it.
fn make(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    let Some(parent) = path.parent() else { return Ok(()) };
    let mut files = vec![PROCESSES];
    if parent.join(ENABLED).exists() {
        let enabled = fs::read_to_string(parent.join(ENABLED))?.replace('+', "");
        fs::write(path.join("cgroup.controllers"), &enabled)?;
        files.push(ENABLED);
        for name in enabled.split_whitespace() {
            files.extend(match name {
                "memory" => &["memory.max", "memory.swap.max", "memory.events"][..],
                "pids" => &["pids.max", "pids.events"],
                "cpu" => &["cpu.max"],
                _ => &[],
            });
        }
    } else {
        files.extend([
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.oom_control",
            "pids.max",
            "pids.events",
        ]);
        files.extend(["cpu.cfs_period_us", "cpu.cfs_quota_us"]);
    }
    files.into_iter().try_for_each(|file| fs::write(path.join(file), ""))
}

/// As the kernel does: only a group without groups in it.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        if entry?.file_type()?.is_dir() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
    }
    fs::remove_dir_all(path)
}

const FOLDERS: Folders = Folders { make, remove };

/// A second version's group with processes or without, and what it has and enables.
fn second(path: &Path, processes: &str, controllers: &str, enabled: &str) {
    fs::create_dir_all(path).unwrap();
    for (file, text) in [(PROCESSES, processes), ("cgroup.controllers", controllers), (ENABLED, enabled)] {
        fs::write(path.join(file), text).unwrap();
    }
}

fn all() -> Limits {
    Limits {
        memory: Some("64M".parse().unwrap()),
        memory_and_swap: Some("96M".parse().unwrap()),
        processes: Some(50),
        cpu_thousandths: Some(1500),
    }
}

fn read(path: &Path, file: &str) -> String {
    fs::read_to_string(path.join(file)).unwrap()
}

const PURE: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

fn pure(dir: &TempDir) -> PathBuf {
    let top = dir.path().join("sys/fs/cgroup");
    second(&top, "1\n2\n", "cpuset cpu io memory pids\n", "memory pids\n");
    second(&top.join("system.slice"), "", "memory pids\n", "memory pids\n");
    second(&top.join("system.slice/agent.service"), "77\n", "memory pids\n", "");
    top
}

#[test]
fn on_the_second_version_the_limits_are_in_a_group_beside_the_callers() {
    let dir = tempfile::tempdir().unwrap();
    let top = pure(&dir);
    let host = Host::parse(dir.path(), PURE, "0::/system.slice/agent.service\n", FOLDERS);
    let limits = Limits { cpu_thousandths: None, ..all() };
    let mut group = host.create("demo web/1", &limits).unwrap();
    let base = top.join("system.slice/velociraptor");
    assert_eq!(read(&base, ENABLED), "+memory +pids");
    let path = group.paths[0].clone();
    assert_eq!((group.paths.len(), path.parent()), (1, Some(&*base)));
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.starts_with(&format!("demo_web_1-{}-", std::process::id())), "{name}");
    assert_eq!(read(&path, "memory.max"), (64 << 20).to_string());
    assert_eq!(read(&path, "memory.swap.max"), (32 << 20).to_string());
    assert_eq!(read(&path, "pids.max"), "51");

    let entries = group.take_entries();
    assert_eq!(entries.len(), 1);
    (&entries[0].1).write_all(b"0").unwrap();
    assert_eq!(read(&path, PROCESSES), "0");

    assert_eq!(group.out_of_memory(), None);
    fs::write(path.join("memory.events"), "low 0\noom 1\noom_kill 0\noom_group_kill 0\n").unwrap();
    assert_eq!(group.out_of_memory(), None);
    fs::write(path.join("memory.events"), "low 0\noom 1\noom_kill 1\noom_group_kill 0\n").unwrap();
    assert_eq!(group.out_of_memory(), Some("killed: out of memory (limit 64M, 96M with swap)"));

    assert_eq!(group.out_of_processes(), None);
    fs::write(path.join("pids.events"), "max 0\n").unwrap();
    assert_eq!(group.out_of_processes(), None);
    fs::write(path.join("pids.events"), "max 3\n").unwrap();
    assert_eq!(group.out_of_processes(), Some("out of processes (limit 50)"));

    // Two at once share what is above them, and the last one takes it away.
    let other = host.create("demo web/1", &limits).unwrap();
    drop(group);
    assert!(!path.exists() && base.is_dir());
    drop(other);
    assert!(!base.exists());
}

#[test]
fn on_the_second_version_controllers_are_enabled_where_no_process_is_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let top = pure(&dir);
    let host = Host::parse(dir.path(), PURE, "0::/system.slice/agent.service\n", FOLDERS);
    // Only the root has `cpu`, and the root may have processes.
    let group = host.create("demo", &all()).unwrap();
    assert!(group.paths[0].starts_with(top.join("velociraptor")));
    assert_eq!(read(&top, ENABLED), "+memory +pids +cpu");
    assert_eq!(read(&group.paths[0], "cpu.max"), "150000 100000");
    drop(group);

    // Its own group, when that is made for it.
    second(&top.join("system.slice/agent.service"), "", "memory pids\n", "");
    let limits = Limits { processes: Some(1), ..Limits::default() };
    let group = host.create("demo", &limits).unwrap();
    assert!(group.paths[0].starts_with(top.join("system.slice/agent.service/velociraptor")));
    assert_eq!(read(&group.paths[0], "pids.max"), "2");
    assert!(!group.paths[0].join("memory.max").exists());
}

#[test]
fn without_swap_accounting_memory_itself_is_limited() {
    let dir = tempfile::tempdir().unwrap();
    pure(&dir);
    let no_swap = |path: &Path| {
        make(path)?;
        let file = path.join("memory.swap.max");
        if file.exists() { fs::remove_file(file) } else { Ok(()) }
    };
    let host = Host::parse(dir.path(), PURE, "0::/\n", Folders { make: no_swap, remove });
    let limits = Limits { memory: None, ..all() };
    let group = host.create("demo", &limits).unwrap();
    assert_eq!(read(&group.paths[0], "memory.max"), (96 << 20).to_string());
    assert!(!group.paths[0].join("memory.swap.max").exists());
}

#[test]
fn hybrid_hosts_have_each_controller_somewhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("sys/fs/cgroup");
    let mounts = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 /docker/1 /sys/fs/cgroup/with\\040space rw - cgroup cgroup rw,memory
34 31 0:40 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
35 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";
    let memberships = "4:cpu,cpuacct:/a/b\n3:memory:/docker/1/sub\n1:name=systemd:/x\n0::/\n";
    fs::create_dir_all(top.join("cpu,cpuacct/a/b")).unwrap();
    fs::create_dir_all(top.join("with space/sub")).unwrap();
    second(&top.join("unified"), "1\n", "pids hugetlb\n", "");
    let host = Host::parse(dir.path(), mounts, memberships, FOLDERS);
    let group = host.create("demo", &all()).unwrap();
    let in_folder = |folder: &str| {
        let base = top.join(folder).join(BASE);
        group.paths.iter().find(|path| path.parent() == Some(&base)).unwrap().clone()
    };
    assert_eq!(group.paths.len(), 3);
    let memory = in_folder("with space/sub");
    assert_eq!(read(&memory, "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(read(&memory, "memory.memsw.limit_in_bytes"), (96 << 20).to_string());
    let cpu = in_folder("cpu,cpuacct/a/b");
    assert_eq!(read(&cpu, "cpu.cfs_quota_us"), "150000");
    assert_eq!(read(&in_folder("unified"), "pids.max"), "51");
    fs::write(memory.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n").unwrap();
    assert!(group.out_of_memory().is_some());
    fs::write(in_folder("unified").join("pids.events"), "max 1\n").unwrap();
    assert!(group.out_of_processes().is_some());
    drop(group);
    for folder in ["with space/sub", "cpu,cpuacct/a/b", "unified"] {
        assert!(!top.join(folder).join(BASE).exists(), "{folder}");
    }
}

#[test]
fn a_group_that_is_not_to_be_seen_is_replaced_by_the_highest_one() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("memory");
    fs::create_dir_all(dir.path().join("outside")).unwrap();
    fs::create_dir(&top).unwrap();
    let mounts = "33 31 0:30 /docker/1 /memory rw - cgroup cgroup rw,memory\n";
    for path in ["/user.slice", "/docker/1/../../outside", "/docker/1/gone"] {
        let host = Host::parse(dir.path(), mounts, &format!("3:memory:{path}\n"), FOLDERS);
        assert_eq!(host.hierarchies[0].own, top, "{path}");
    }
}

#[test]
fn a_missing_controller_is_named_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let memory = dir.path().join("memory");
    fs::create_dir(&memory).unwrap();
    let mounts = "33 31 0:30 / /memory rw - cgroup cgroup rw,memory\n";
    let host = Host::parse(dir.path(), mounts, "3:memory:/\n", FOLDERS);
    let error = host.create("demo", &all()).unwrap_err().to_string();
    assert_eq!(error, "container demo: cannot set its limits: this host has no cgroup controller pids");
    assert_eq!(fs::read_dir(&memory).unwrap().count(), 0);

    // A step that fails half-way takes back what was done.
    let no_files = Folders { make: |path| fs::create_dir(path), remove };
    let host = Host::parse(dir.path(), mounts, "3:memory:/\n", no_files);
    let limits = Limits { processes: None, cpu_thousandths: None, ..all() };
    let error = host.create("demo", &limits).unwrap_err().to_string();
    assert!(
        error.contains("cannot write the limit to") && error.contains("memory.limit_in_bytes"),
        "{error}"
    );
    assert_eq!(fs::read_dir(&memory).unwrap().count(), 0);
}

#[test]
fn only_groups_of_the_dead_are_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("memory/velociraptor");
    let own = group_name("demo").map_err(|failure| failure.source).unwrap();
    let (id, ticks) = (std::process::id(), start_ticks("self").unwrap());
    // The same number, but another process's.
    let reused = format!("demo-{id}-{}-0", ticks.parse::<u64>().unwrap() + 1);
    let none = format!("demo-{}-1-0", u32::MAX);
    let foreign = ["demo", "demo-1-x-0", "demo--1-2"];
    for name in [&*own, &*reused, &*none].into_iter().chain(foreign) {
        fs::create_dir_all(base.join(name)).unwrap();
    }
    let mounts = "33 31 0:30 / /memory rw - cgroup cgroup rw,memory\n";
    Host::parse(dir.path(), mounts, "3:memory:/\n", FOLDERS).clear();
    for (name, stays) in [(&*own, true), (&*reused, false), (&*none, false)] {
        assert_eq!(base.join(name).exists(), stays, "{name}");
    }
    assert!(foreign.iter().all(|name| base.join(name).exists()));
}
