//! A container's description as the text that LXC reads, in the key names of LXC 4 and later. Text only: nothing here
//! touches the system.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::init::short_host_name;
use super::super::place::Kind;
use super::super::{Capabilities, ContainerSpec, Limits, Network, RootFs, Size, Streams};

/// What of the text depends on more than the description: on what the root looks like now, and on who starts LXC.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// `lxc.rootfs.path`.
    pub root: PathBuf,
    /// Files and folders of the host, in the order of mounting.
    pub binds: Vec<Bind>,
    /// The parts of `/proc` that are to be read-only.
    pub read_only: Vec<&'static str>,
    /// The files and folders of `/proc` and `/sys` that are to be empty.
    pub hidden: Vec<(PathBuf, Kind)>,
    /// The path inside of the program to run.
    pub program: PathBuf,
    /// The file of the system call policy.
    pub policy: PathBuf,
    /// Where LXC is to keep the limits; nowhere when they are kept already.
    pub limits: Option<Hierarchy>,
    /// Further keys and values.
    pub further: Vec<(&'static str, PathBuf)>,
}

/// The version of the kernel's control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hierarchy {
    /// Each controller in a hierarchy of its own, or some of them.
    One,
    /// All in one.
    Two,
}

/// A file or folder of the host that the container sees.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bind {
    /// Its path for LXC.
    pub source: PathBuf,
    /// Its path in the root, relative, without a link in it. LXC refuses links there.
    pub target: PathBuf,
    /// Whether LXC has to make the place.
    pub make: Option<Kind>,
    /// Flags for LXC to set, such as `ro`.
    pub flags: &'static str,
}

/// The names of the capabilities that [`Capabilities::Usual`] leaves to root.
pub(super) const USUAL: [&str; 12] = [
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setfcap",
    "net_bind_service",
    "net_raw",
    "sys_chroot",
    "audit_write",
];

/// `lxc.rootfs.path` for a root that LXC has to mount by itself. The error says which path LXC cannot be told.
pub(super) fn root_for_lxc(root: &RootFs) -> Result<PathBuf, String> {
    let (mut path, parts): (_, Vec<&Path>) = match root {
        RootFs::Directory(folder) => (b"dir".to_vec(), vec![folder]),
        RootFs::Overlay { lowers, upper, .. } => {
            (b"overlay".to_vec(), lowers.iter().map(PathBuf::as_path).chain([upper.as_path()]).collect())
        }
    };
    for part in parts {
        let bytes = part.as_os_str().as_bytes();
        if bytes.iter().any(|byte| b":,\\\n".contains(byte)) {
            return Err(format!(
                "LXC takes no root whose path {} holds a colon, comma, backslash or end of line",
                part.display()
            ));
        }
        path.push(b':');
        path.extend_from_slice(bytes);
    }
    Ok(PathBuf::from(OsStr::from_bytes(&path)))
}

/// The text. The error says what LXC cannot be told.
pub(super) fn text(spec: &ContainerSpec, layout: &Layout) -> Result<Vec<u8>, String> {
    let mut text = Text(b"# Written by `vrun setup`, which also writes over any change.\n".to_vec());
    let hardening = &spec.hardening;
    text.add("lxc.uts.name", short_host_name(&spec.hostname))?;
    text.add("lxc.rootfs.path", &layout.root)?;
    let mut options = Vec::new();
    if hardening.no_devices_or_setuid {
        options.extend(["nosuid", "nodev"]);
    }
    if spec.read_only {
        options.push("ro");
    }
    if !options.is_empty() {
        text.add("lxc.rootfs.options", options.join(","))?;
    }
    let auto = if hardening.mask_kernel_files { "proc:rw sys:ro" } else { "proc:rw sys:rw" };
    text.add("lxc.mount.auto", auto)?;
    text.add("lxc.autodev", "1")?;
    text.add("lxc.tty.max", "0")?;
    // A terminal of ours comes with its own devpts.
    text.add("lxc.pty.max", if matches!(spec.streams, Streams::Terminal) { "0" } else { "1024" })?;
    text.add("lxc.console.path", "none")?;
    mounts(&mut text, spec, layout)?;
    text.add("lxc.net.0.type", if spec.network == Network::Host { "none" } else { "empty" })?;
    text.add("lxc.init.uid", spec.user.uid.to_string())?;
    text.add("lxc.init.gid", spec.user.gid.to_string())?;
    if !spec.user.groups.is_empty() {
        let groups: Vec<_> = spec.user.groups.iter().map(u32::to_string).collect();
        text.add("lxc.init.groups", groups.join(","))?;
    }
    text.add("lxc.init.cwd", &spec.workdir)?;
    let mut command = layout.program.clone().into_os_string();
    for argument in &spec.program.arguments {
        command.push(" ");
        command.push(argument);
    }
    // For people who start LXC by hand. Otherwise the program is given to LXC as it is, whatever it holds.
    if !command.as_bytes().iter().any(|byte| b"\"'\\\n".contains(byte)) {
        text.add("lxc.init.cmd", command)?;
    }
    for (key, value) in &spec.program.environment {
        let mut pair = key.clone();
        pair.push("=");
        pair.push(value);
        text.add("lxc.environment", pair)?;
    }
    if hardening.no_new_privileges {
        text.add("lxc.no_new_privs", "1")?;
    }
    if hardening.drop_capabilities {
        let kept = match spec.capabilities {
            Capabilities::Usual if spec.user.uid == 0 => USUAL.join(" "),
            Capabilities::Usual | Capabilities::None => "none".to_owned(),
        };
        text.add("lxc.cap.keep", kept)?;
    }
    if hardening.seccomp {
        text.add("lxc.seccomp.profile", &layout.policy)?;
    }
    text.add("lxc.keyring.session", if hardening.new_keyring { "1" } else { "0" })?;
    if let Some(hierarchy) = layout.limits {
        limits(&mut text, &spec.limits, hierarchy)?;
    }
    for (key, value) in &layout.further {
        text.add(key, value)?;
    }
    Ok(text.0)
}

fn limits(text: &mut Text, limits: &Limits, hierarchy: Hierarchy) -> Result<(), String> {
    /// How often processor time is handed out anew, in microseconds.
    const PERIOD: u64 = 100_000;
    let (memory, both) =
        (limits.memory.as_ref().map(Size::bytes), limits.memory_and_swap.as_ref().map(Size::bytes));
    let alone = memory.or(both);
    let quota = limits.cpu_thousandths.map(|share| u64::from(share) * PERIOD / 1000);
    let values = match hierarchy {
        Hierarchy::One => [
            ("memory.limit_in_bytes", alone.map(|bytes| bytes.to_string())),
            ("memory.memsw.limit_in_bytes", both.map(|bytes| bytes.to_string())),
            ("cpu.cfs_period_us", quota.map(|_| PERIOD.to_string())),
            ("cpu.cfs_quota_us", quota.map(|quota| quota.to_string())),
            ("pids.max", limits.processes.map(|most| most.to_string())),
        ],
        Hierarchy::Two => [
            ("memory.max", alone.map(|bytes| bytes.to_string())),
            ("memory.swap.max", both.map(|both| both.saturating_sub(alone.unwrap_or(both)).to_string())),
            ("cpu.max", quota.map(|quota| format!("{quota} {PERIOD}"))),
            ("pids.max", limits.processes.map(|most| most.to_string())),
            ("", None),
        ],
    };
    let prefix = match hierarchy {
        Hierarchy::One => "lxc.cgroup",
        Hierarchy::Two => "lxc.cgroup2",
    };
    for (key, value) in values {
        if let Some(value) = value {
            text.add(&format!("{prefix}.{key}"), value)?;
        }
    }
    Ok(())
}

fn mounts(text: &mut Text, spec: &ContainerSpec, layout: &Layout) -> Result<(), String> {
    if spec.hardening.mask_kernel_files {
        for name in &layout.read_only {
            let path = Path::new("proc").join(name);
            text.mount(&path, &path, "none", "bind,ro,nosuid,nodev,noexec,relative,optional")?;
        }
        for (path, kind) in &layout.hidden {
            match kind {
                Kind::File => {
                    text.mount(Path::new("/dev/null"), path, "none", "bind,ro,nosuid,noexec,optional")?;
                }
                Kind::Directory => {
                    let options = "ro,nosuid,nodev,noexec,size=4k,mode=555,optional";
                    text.mount(Path::new("tmpfs"), path, "tmpfs", options)?;
                }
            }
        }
    }
    if spec.read_only {
        for (path, mode) in [("run", "755"), ("tmp", "1777"), ("var/tmp", "1777")] {
            let options = format!("nosuid,nodev,size=256m,mode={mode}");
            text.mount(Path::new("tmpfs"), Path::new(path), "tmpfs", &options)?;
        }
    }
    let shm = "nosuid,nodev,noexec,size=64m,mode=1777,create=dir";
    text.mount(Path::new("tmpfs"), Path::new("dev/shm"), "tmpfs", shm)?;
    for bind in &layout.binds {
        let mut options = "rbind".to_owned();
        if !bind.flags.is_empty() {
            options.push(',');
            options.push_str(bind.flags);
        }
        match bind.make {
            Some(Kind::Directory) => options.push_str(",create=dir"),
            Some(Kind::File) => options.push_str(",create=file"),
            None => {}
        }
        text.mount(&bind.source, &bind.target, "none", &options)?;
    }
    Ok(())
}

struct Text(Vec<u8>);

impl Text {
    /// One line. In quotes, as LXC takes one pair of them away and, without them, blanks at both ends.
    fn add(&mut self, key: &str, value: impl AsRef<OsStr>) -> Result<(), String> {
        let value = value.as_ref();
        let bytes = value.as_bytes();
        if bytes.iter().any(|byte| b"\n\0".contains(byte)) {
            return Err(format!("LXC takes no end of line in {key}: {}", value.display()));
        }
        let quoted = |byte: &u8| byte.is_ascii_whitespace() || b"\"'".contains(byte);
        let quote: &[u8] =
            if bytes.first().is_some_and(quoted) || bytes.last().is_some_and(quoted) { b"\"" } else { b"" };
        for part in [key.as_bytes(), b" = ", quote, bytes, quote, b"\n"] {
            self.0.extend_from_slice(part);
        }
        Ok(())
    }

    fn mount(&mut self, source: &Path, target: &Path, kind: &str, options: &str) -> Result<(), String> {
        let mut line = escaped(source);
        line.push(b' ');
        line.extend(escaped(target));
        line.extend(format!(" {kind} {options} 0 0").bytes());
        self.add("lxc.mount.entry", OsStr::from_bytes(&line))
    }
}

/// As in the file fstab: what would end a field is written as its number.
fn escaped(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend(format!("\\{byte:03o}").bytes()),
            _ => out.push(*byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::super::{Credentials, Program};
    use super::*;

    fn spec() -> ContainerSpec {
        let program = Program::new("/bin/sh", ["/proc.sh", "run"]);
        let mut spec = ContainerSpec::new("demo", RootFs::Directory("/rootfs".into()), program);
        spec.user = Credentials { uid: 7, gid: 8, groups: vec![9, 10] };
        spec
    }

    fn layout() -> Layout {
        Layout {
            root: "dir:/rootfs".into(),
            program: "/bin/sh".into(),
            policy: "/policy".into(),
            ..Layout::default()
        }
    }

    fn lines(spec: &ContainerSpec, layout: &Layout) -> Vec<String> {
        let text = String::from_utf8(text(spec, layout).unwrap()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn must_have(lines: &[String], wanted: &[&str]) {
        for line in wanted {
            assert!(lines.iter().any(|l| l == line), "{line} is not in\n{}", lines.join("\n"));
        }
    }

    #[test]
    fn every_part_of_a_description_has_its_key() {
        let mut spec = spec();
        spec.workdir = "/app".into();
        let lines = lines(&spec, &layout());
        must_have(
            &lines,
            &[
                "lxc.uts.name = demo",
                "lxc.rootfs.path = dir:/rootfs",
                "lxc.rootfs.options = nosuid,nodev",
                "lxc.mount.auto = proc:rw sys:ro",
                "lxc.mount.entry = tmpfs dev/shm tmpfs nosuid,nodev,noexec,size=64m,mode=1777,create=dir 0 0",
                "lxc.net.0.type = none",
                "lxc.init.uid = 7",
                "lxc.init.gid = 8",
                "lxc.init.groups = 9,10",
                "lxc.init.cwd = /app",
                "lxc.init.cmd = /bin/sh /proc.sh run",
                "lxc.no_new_privs = 1",
                "lxc.cap.keep = none",
                "lxc.seccomp.profile = /policy",
                "lxc.keyring.session = 1",
                "lxc.environment = PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ],
        );
        for line in &lines {
            assert!(line.starts_with('#') || line.starts_with("lxc."), "{line}");
        }
    }

    #[test]
    fn both_engines_leave_root_the_same() {
        use rustix::thread::CapabilitySet;
        let set: CapabilitySet =
            USUAL.iter().map(|name| CapabilitySet::from_name(&name.to_uppercase()).unwrap()).collect();
        assert_eq!(set, super::super::super::capabilities::USUAL);
    }

    #[test]
    fn root_keeps_the_usual_capabilities_and_nothing_else() {
        let mut spec = spec();
        spec.user = Credentials::ROOT;
        let kept = format!("lxc.cap.keep = {}", USUAL.join(" "));
        must_have(&lines(&spec, &layout()), &[&kept]);
        spec.capabilities = Capabilities::None;
        must_have(&lines(&spec, &layout()), &["lxc.cap.keep = none"]);
    }

    #[test]
    fn odd_characters_cannot_end_a_field_or_a_line() {
        let bind = |source: &str, target: &str, make, flags| Bind {
            source: source.into(),
            target: target.into(),
            make,
            flags,
        };
        let layout = Layout {
            binds: vec![bind("/a b\t\\c\nd", "x y", None, "ro"), bind("/f", "dev/f", Some(Kind::File), "")],
            ..layout()
        };
        let mut spec = spec();
        spec.program.environment.insert("QUOTED".into(), "\"x\" ".into());
        must_have(
            &lines(&spec, &layout),
            &[
                r"lxc.mount.entry = /a\040b\011\134c\012d x\040y none rbind,ro 0 0",
                "lxc.mount.entry = /f dev/f none rbind,create=file 0 0",
                "lxc.environment = \"QUOTED=\"x\" \"",
            ],
        );
        spec.program.environment.insert("LINES".into(), "a\nlxc.cap.drop = ".into());
        assert!(text(&spec, &layout).unwrap_err().contains("no end of line in lxc.environment"));
    }

    #[test]
    fn a_read_only_root_has_memory_to_write_to() {
        let mut spec = spec();
        spec.read_only = true;
        must_have(
            &lines(&spec, &layout()),
            &[
                "lxc.rootfs.options = nosuid,nodev,ro",
                "lxc.mount.entry = tmpfs run tmpfs nosuid,nodev,size=256m,mode=755 0 0",
                "lxc.mount.entry = tmpfs var/tmp tmpfs nosuid,nodev,size=256m,mode=1777 0 0",
            ],
        );
    }

    #[test]
    fn masks_come_before_what_could_cover_them() {
        let layout = Layout {
            read_only: vec!["sys"],
            hidden: vec![("proc/kcore".into(), Kind::File), ("sys/firmware".into(), Kind::Directory)],
            binds: vec![Bind { source: "/v".into(), target: "v".into(), make: None, flags: "" }],
            ..layout()
        };
        let lines = lines(&spec(), &layout);
        let wanted = [
            "lxc.mount.entry = proc/sys proc/sys none bind,ro,nosuid,nodev,noexec,relative,optional 0 0",
            "lxc.mount.entry = /dev/null proc/kcore none bind,ro,nosuid,noexec,optional 0 0",
            "lxc.mount.entry = tmpfs sys/firmware tmpfs ro,nosuid,nodev,noexec,size=4k,mode=555,optional 0 0",
            "lxc.mount.entry = /v v none rbind 0 0",
        ];
        must_have(&lines, &wanted);
        let place = |wanted: &str| lines.iter().position(|line| line == wanted).unwrap();
        assert!(wanted.map(place).is_sorted());
    }

    #[test]
    fn limits_are_lxcs_only_when_nobody_else_keeps_them() {
        let mut spec = spec();
        spec.limits = Limits {
            memory: Some("1M".parse().unwrap()),
            memory_and_swap: Some("3M".parse().unwrap()),
            processes: Some(7),
            cpu_thousandths: Some(500),
        };
        assert!(!lines(&spec, &layout()).iter().any(|line| line.contains("cgroup")));
        let of = |hierarchy| lines(&spec, &Layout { limits: Some(hierarchy), ..layout() });
        must_have(
            &of(Hierarchy::One),
            &[
                "lxc.cgroup.memory.limit_in_bytes = 1048576",
                "lxc.cgroup.memory.memsw.limit_in_bytes = 3145728",
                "lxc.cgroup.cpu.cfs_quota_us = 50000",
                "lxc.cgroup.pids.max = 7",
            ],
        );
        must_have(
            &of(Hierarchy::Two),
            &[
                "lxc.cgroup2.memory.max = 1048576",
                "lxc.cgroup2.memory.swap.max = 2097152",
                "lxc.cgroup2.cpu.max = 50000 100000",
                "lxc.cgroup2.pids.max = 7",
            ],
        );
    }

    #[test]
    fn roots_are_named_as_lxc_wants_them() {
        let overlay = |upper: &str| RootFs::Overlay {
            lowers: vec!["/layer".into(), "/image".into()],
            upper: upper.into(),
            work: "/work".into(),
        };
        assert_eq!(root_for_lxc(&overlay("/up")).unwrap(), Path::new("overlay:/layer:/image:/up"));
        assert!(root_for_lxc(&overlay("/a:b")).unwrap_err().contains("/a:b"));
        assert_eq!(root_for_lxc(&RootFs::Directory("/r".into())).unwrap(), Path::new("dir:/r"));
    }
}
