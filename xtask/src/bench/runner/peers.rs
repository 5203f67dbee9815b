//! The other programs that a host could start a container with, each made to do what vrun does as far as it can:
//! the same root, mounts, user and namespaces. What it cannot is said in the table.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vr_common::process::command;

use super::overlay::Overlay;
use crate::bench::world::World;

/// The user `nobody` of the image.
const NOBODY: u32 = 65534;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const NETWORK_FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
/// What vrun protects of `/proc` and `/sys`, too.
const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];
const HIDDEN: [&str; 8] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];

/// Where a peer's root comes from.
#[derive(Debug, Clone)]
pub enum Root {
    /// The program makes it itself, or has none.
    Own,
    /// An overlay that is mounted before and unmounted after each start, as part of it.
    Timed(Overlay),
    /// An overlay that is there before the clock runs.
    Ready(Overlay),
}

/// A program that can be started and measured.
#[derive(Debug)]
pub struct Peer {
    /// Its name in the table.
    pub name: String,
    /// Starts `/bin/true`.
    pub start: Command,
    /// Runs the image's probe; none when it cannot.
    pub probe: Option<Command>,
    /// Where its root comes from.
    pub root: Root,
    /// Whether it works with the second version of control groups only.
    pub unified_cgroups: bool,
    /// What the table has to say besides what the probe finds.
    pub remark: &'static str,
}

/// Bare namespaces without a root, mounts or another user: less than this, no container can cost.
pub fn unshare() -> Peer {
    let mut start = command("unshare");
    start.args(["--mount", "--pid", "--ipc", "--uts", "--fork", "/bin/true"]);
    Peer {
        name: "unshare".into(),
        start,
        probe: None,
        root: Root::Own,
        unified_cgroups: false,
        remark: "mount, pid, ipc and uts namespaces and nothing else: the host's files, root's rights",
    }
}

/// The program alone.
pub fn program_alone() -> Peer {
    Peer {
        name: "no container".into(),
        start: command("/bin/true"),
        probe: None,
        root: Root::Own,
        unified_cgroups: false,
        remark: "what starting `/bin/true` itself costs",
    }
}

/// The shell that vrun starts its program through, alone.
pub fn shell_alone() -> Peer {
    let mut start = command("/bin/sh");
    start.args(["-c", "exec /bin/true"]);
    Peer {
        name: "no container, through `sh`".into(),
        start,
        probe: None,
        root: Root::Own,
        unified_cgroups: false,
        remark: "`sh -c 'exec /bin/true'`; only vrun starts a shell first, for the app's profile scripts",
    }
}

/// `vrun run` of procs that are set up.
pub fn vrun(world: &World) -> Result<Peer> {
    let start = world.small_proc(1, "/bin/true")?;
    let probe = world.small_proc(2, "/bin/sh /probe")?;
    Ok(Peer {
        name: "**vrun run**".into(),
        start: world.vrun("run", &start),
        probe: Some(world.vrun("run", &probe)),
        root: Root::Own,
        unified_cgroups: false,
        remark: "mounts its overlay itself, starts the program through `proc.sh`",
    })
}

/// crun, once with the mounting of its root and once without.
pub fn crun(world: &World) -> Result<Vec<Peer>> {
    let whole = oci(world, "crun", "crun", Root::Timed)?;
    let ready = oci(world, "crun-ready", "crun", Root::Ready)?;
    let own_groups = !super::overlay::cgroups_are_unified();
    let ready = Peer { remark: "no control groups; the overlay is there before the clock runs", ..ready };
    Ok([(whole, "crun run"), (ready, "crun run, root mounted before")]
        .map(|(peer, name)| Peer { name: name.into(), unified_cgroups: own_groups, ..peer })
        .into())
}

/// runc, with the mounting of its root.
pub fn runc(world: &World) -> Result<Vec<Peer>> {
    Ok(vec![Peer { name: "runc run".into(), ..oci(world, "runc", "runc", Root::Timed)? }])
}

/// A runtime of the Open Container Initiative, with bundles for both programs.
fn oci(world: &World, folder: &str, program: &str, root: fn(Overlay) -> Root) -> Result<Peer> {
    let folder = world.path().join(folder);
    let overlay = Overlay::make(&folder, &world.image_folder())?;
    let bundle = |name: &str, arguments: &[&str]| -> Result<Command> {
        let bundle = folder.join(name);
        fs::create_dir_all(&bundle)?;
        let config = oci_config(&overlay.place, arguments);
        fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&config)?)
            .with_context(|| format!("cannot write a config.json in {}", bundle.display()))?;
        let mut run = command(program);
        run.arg("--root").arg(folder.join("state"));
        if program == "crun" {
            run.arg("--cgroup-manager=disabled");
        }
        run.arg("run").arg("--bundle").arg(bundle).arg(format!("bench-{}-{name}", std::process::id()));
        Ok(run)
    };
    Ok(Peer {
        name: program.into(),
        start: bundle("start", &["/bin/true"])?,
        probe: Some(bundle("probe", &["/bin/sh", "/probe"])?),
        root: root(overlay.clone()),
        unified_cgroups: false,
        remark: match program {
            "crun" => "no control groups; the overlay is mounted by the benchmark, without a program for it",
            _ => {
                "control groups as it makes them by default; the overlay is mounted by the benchmark, \
                 without a program for it"
            }
        },
    })
}

fn oci_config(root: &Path, arguments: &[&str]) -> Value {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "mode=755", "size=1m"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
               "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=64m"]}),
    ];
    for file in NETWORK_FILES {
        mounts.push(json!({"destination": file, "type": "bind", "source": file,
                           "options": ["bind", "ro", "nosuid", "nodev", "noexec"]}));
    }
    let nothing: [&str; 0] = [];
    let namespaces = ["pid", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": NOBODY, "gid": NOBODY},
            "args": arguments,
            "env": [format!("PATH={PATH}")],
            "cwd": "/app",
            "capabilities": {"bounding": nothing, "effective": nothing, "inheritable": nothing,
                             "permitted": nothing, "ambient": nothing},
            "noNewPrivileges": true,
        },
        "root": {"path": root, "readonly": false},
        "hostname": "bench",
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": HIDDEN,
            "readonlyPaths": READ_ONLY.map(|name| format!("/proc/{name}")),
        },
    })
}

/// `lxc-start` in the foreground; it mounts its overlay itself.
pub fn lxc(world: &World) -> Result<Vec<Peer>> {
    let folder = world.path().join("lxc");
    let upper = folder.join("upper");
    fs::create_dir_all(&upper)?;
    let mut config = format!(
        "lxc.rootfs.path = overlay:{}:{}\nlxc.uts.name = bench\nlxc.net.0.type = none\n\
         lxc.mount.auto = proc:mixed sys:ro\nlxc.autodev = 1\nlxc.pty.max = 1024\nlxc.tty.max = 0\n\
         lxc.console.path = none\nlxc.init.uid = {NOBODY}\nlxc.init.gid = {NOBODY}\nlxc.init.cwd = /app\n\
         lxc.no_new_privs = 1\nlxc.cap.keep = none\nlxc.environment = PATH={PATH}\n\
         lxc.mount.entry = tmpfs dev/shm tmpfs nosuid,nodev,noexec,size=64m,mode=1777,create=dir 0 0\n",
        world.image_folder().display(),
        upper.display()
    );
    for file in NETWORK_FILES {
        config.push_str(&format!(
            "lxc.mount.entry = {file} {} none bind,ro,nosuid,nodev,noexec 0 0\n",
            file.trim_start_matches('/')
        ));
    }
    let file = folder.join("config");
    fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
    let run = |arguments: &[&str]| {
        let mut run = command("lxc-start");
        run.arg("--foreground").arg("--name").arg(format!("bench-{}", std::process::id()));
        run.arg("--lxcpath")
            .arg(folder.join("containers"))
            .arg("--rcfile")
            .arg(&file)
            .arg("--")
            .args(arguments);
        run
    };
    fs::create_dir_all(folder.join("containers"))?;
    Ok(vec![Peer {
        name: "lxc-start".into(),
        start: run(&["/bin/true"]),
        probe: Some(run(&["/bin/sh", "/probe"])),
        root: Root::Own,
        unified_cgroups: false,
        remark: "mounts its overlay itself; control groups as it makes them by default",
    }])
}

/// bubblewrap.
pub fn bwrap(world: &World) -> Result<Vec<Peer>> {
    let overlay = Overlay::make(&world.path().join("bwrap"), &world.image_folder())?;
    let run = |arguments: &[&str]| {
        let mut run = command("bwrap");
        run.arg("--bind").arg(&overlay.place).arg("/");
        run.args(["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", "67108864"]);
        run.args(["--tmpfs", "/dev/shm", "--ro-bind", "/sys", "/sys"]);
        for file in NETWORK_FILES {
            run.args(["--ro-bind", file, file]);
        }
        run.args(["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]);
        run.args(["--hostname", "bench", "--cap-drop", "ALL", "--new-session", "--die-with-parent"]);
        run.args(["--clearenv", "--setenv", "PATH", PATH, "--chdir", "/app", "--"]).args(arguments);
        run
    };
    Ok(vec![Peer {
        name: "bwrap".into(),
        start: run(&["/bin/true"]),
        probe: Some(run(&["/bin/sh", "/probe"])),
        root: Root::Timed(overlay.clone()),
        unified_cgroups: false,
        remark: "cannot become another user without a user namespace; the overlay is mounted by the benchmark",
    }])
}
