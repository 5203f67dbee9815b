//! The files of a host's procs, and vrun, over SSH.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use vr_common::host_api::{CgroupVersion, CleanUpReport, HostInfo, RemovedPath, UptestResult};
use vr_common::names::ContainerName;
use vr_ssh::{As, Command, Lock, Output, SshError, SshHost};

use super::super::HostError;
use super::super::settings::HostSettings;

/// How long a setup may take.
const SETUP: Duration = Duration::from_secs(10 * 60);
/// How long all uptests of a proc may take.
const UPTEST: Duration = Duration::from_secs(6 * 60);
/// How long a teardown may take.
const TEARDOWN: Duration = Duration::from_secs(5 * 60);
/// How long a clean-up may take.
const CLEAN_UP: Duration = Duration::from_secs(10 * 60);
/// For how long nobody must have used what a clean-up removes.
const UNUSED_DAYS: u32 = 7;
/// How long everything else may take.
const ASK: Duration = Duration::from_secs(20);
/// How long another change of the same proc is waited for.
const LOCK: Duration = Duration::from_secs(60);
/// The longest proc.yaml that is read, in bytes.
const MAX_YAML: usize = 4 << 20;
/// The longest output of vrun that is read, in bytes.
const MAX_OUTPUT: usize = 16 << 20;
/// Locks are in so many files, and no more: two procs that share one wait for each other, and that is all.
const LOCKS: u8 = 64;

/// The files of one host.
#[derive(Debug)]
pub(super) struct Files {
    host: String,
    root: PathBuf,
    vrun: String,
    ssh: SshHost,
}

impl Files {
    pub fn new(host: &str, settings: &HostSettings) -> Self {
        let name = host.trim_matches(['[', ']']);
        Self {
            host: host.to_owned(),
            root: settings.root.clone(),
            vrun: settings.vrun.clone(),
            ssh: SshHost::new(name, settings.ssh.clone()),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What supervisord.conf has to include.
    pub fn include(&self) -> String {
        self.root.join("procs/*/proc.conf").display().to_string()
    }

    /// A proc's file, for people.
    pub fn path(&self, proc: &str, file: &str) -> String {
        self.at(proc, file).display().to_string()
    }

    fn dir(&self, proc: &str) -> PathBuf {
        self.root.join("procs").join(proc)
    }

    fn at(&self, proc: &str, file: &str) -> PathBuf {
        self.dir(proc).join(file)
    }

    fn error(&self, error: SshError) -> HostError {
        match &error {
            SshError::Unreachable { .. } | SshError::Lost { .. } => HostError::unreachable(&self.host, error),
            SshError::UnknownHostKey { .. }
            | SshError::ChangedHostKey { .. }
            | SshError::RevokedHostKey { .. }
            | SshError::HostCertificate { .. }
            | SshError::File { .. }
            | SshError::Authentication { .. }
            | SshError::Sudo { .. } => HostError::denied(&self.host, format!("SSH: {error}")),
            _ => HostError::refused(&self.host, error.to_string()),
        }
    }

    /// Nobody else, whichever server it is, changes the proc while this is held.
    pub async fn lock(&self, proc: &str) -> Result<Lock, HostError> {
        let locks = self.root.join("locks");
        self.make_dir(&locks).await?;
        let path = locks.join(format!("procs-{:02}", Sha256::digest(proc)[0] % LOCKS));
        self.ssh.lock(&path, proc, LOCK, As::Root).await.map_err(|e| self.error(e))
    }

    async fn make_dir(&self, dir: &Path) -> Result<(), HostError> {
        let command = Command::new("mkdir").arg("-p").arg("--").arg(dir).named("mkdir").as_root();
        self.run(command.timeout(ASK)).await.map(drop)
    }

    async fn run(&self, command: Command) -> Result<Output, HostError> {
        let output = self.ssh.run(command).await.map_err(|e| self.error(e))?;
        output.expect_success().map_err(|e| self.error(e))
    }

    /// `vrun`, as root, on the host's files.
    fn vrun(&self, subcommand: &str) -> Command {
        Command::new(&self.vrun)
            .arg(subcommand)
            .named(format!("vrun {subcommand}"))
            .env("VR_ROOT", &self.root)
            .as_root()
            .output_limit(MAX_OUTPUT)
    }

    /// Whether there is anything of a proc.
    pub async fn exists(&self, proc: &str) -> Result<bool, HostError> {
        self.ssh.exists(&self.dir(proc), As::Root).await.map_err(|e| self.error(e))
    }

    pub async fn proc_yaml(&self, proc: &str) -> Result<Option<String>, HostError> {
        let path = self.at(proc, "proc.yaml");
        let found = self.ssh.read_file(&path, MAX_YAML, As::Root).await.map_err(|e| self.error(e))?;
        Ok(found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    pub async fn write_proc_yaml(&self, proc: &str, text: &str) -> Result<(), HostError> {
        self.make_dir(&self.dir(proc)).await?;
        // Its env may hold passwords.
        self.write(&self.at(proc, "proc.yaml"), text, 0o600).await
    }

    pub async fn write_conf(&self, proc: &str, text: &str) -> Result<(), HostError> {
        self.write(&self.at(proc, "proc.conf"), text, 0o644).await
    }

    async fn write(&self, path: &Path, text: &str, mode: u32) -> Result<(), HostError> {
        self.ssh.write_file(path, text.as_bytes().to_vec(), mode, As::Root).await.map_err(|e| self.error(e))
    }

    pub async fn set_up(&self, proc: &str) -> Result<(), HostError> {
        let command = self.vrun("setup").arg(self.at(proc, "proc.yaml")).timeout(SETUP);
        self.run(command).await.map(drop)
    }

    pub async fn uptest(&self, proc: &str) -> Result<Vec<UptestResult>, HostError> {
        let file = self.at(proc, "proc.yaml");
        if !self.ssh.exists(&file, As::Root).await.map_err(|e| self.error(e))? {
            return Err(HostError::no_such_proc(&self.host, proc));
        }
        let output = self.run(self.vrun("uptest").arg(file).timeout(UPTEST)).await?;
        self.read("vrun uptest", &output)
    }

    fn read<T: DeserializeOwned>(&self, what: &str, output: &Output) -> Result<T, HostError> {
        let text = output.text();
        let line = text.trim_end().lines().next_back().unwrap_or_default();
        serde_json::from_str(line)
            .map_err(|e| HostError::refused(&self.host, format!("the output of {what} cannot be read: {e}")))
    }

    /// Removes all of a proc that Supervisor no longer knows.
    pub async fn remove(&self, proc: &str) -> Result<(), HostError> {
        // First what a Supervisor that is restarted just now would take up again.
        self.delete(&self.at(proc, "proc.conf")).await?;
        let file = self.at(proc, "proc.yaml");
        if self.ssh.exists(&file, As::Root).await.map_err(|e| self.error(e))? {
            self.run(self.vrun("teardown").arg(file).timeout(TEARDOWN)).await?;
        }
        self.delete(&self.dir(proc)).await
    }

    async fn delete(&self, path: &Path) -> Result<(), HostError> {
        let command = Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(path).as_root();
        self.run(command.timeout(TEARDOWN)).await.map(drop)
    }

    /// The end of a log, as text whatever it is.
    pub async fn log_tail(&self, proc: &str, bytes: u64) -> Result<String, HostError> {
        let command =
            Command::new("tail").arg("-c").arg(bytes.to_string()).arg("--").arg(self.at(proc, "log"));
        let limit = usize::try_from(bytes).unwrap_or(usize::MAX);
        let output = self.run(command.as_root().timeout(ASK).output_limit(limit)).await?;
        Ok(output.text())
    }

    pub async fn clean_up(&self) -> Result<CleanUpReport, HostError> {
        #[derive(Deserialize)]
        struct Line {
            #[serde(default)]
            removed: Vec<RemovedPath>,
            #[serde(default)]
            removed_bytes: u64,
            #[serde(default)]
            errors: Vec<String>,
            error: Option<String>,
        }
        let command = self
            .vrun("cleanup")
            .args(["--json", "--unused-for"])
            .arg(format!("{UNUSED_DAYS}d"))
            .timeout(CLEAN_UP);
        // It fails, too, when there is something that it could not remove, and says what.
        let output = self.ssh.run(command).await.map_err(|e| self.error(e))?;
        if output.stdout.is_empty() {
            return Err(self.error(output.into_failure()));
        }
        let Line { removed, removed_bytes, mut errors, error } = self.read("vrun cleanup", &output)?;
        errors.extend(error);
        Ok(CleanUpReport { dry_run: false, removed, removed_bytes, procs: Vec::new(), errors })
    }

    /// Procs whose folders nobody has touched for [`UNUSED_DAYS`], but for those that an agent looks after, and those that
    /// Supervisor would find in its configuration: that it does not know them may be for want of an `[include]`.
    pub async fn old_procs(&self) -> Result<Vec<String>, HostError> {
        let command = Command::new("find")
            .arg(self.root.join("procs"))
            .args(["-mindepth", "1", "-maxdepth", "1", "-type", "d", "-mmin"])
            .arg(format!("+{}", UNUSED_DAYS * 24 * 60))
            // Those of an agent on the same host are none of Supervisor's business.
            .args(["!", "-execdir", "test", "-e", "{}/agent.json", ";"])
            .args(["!", "-execdir", "test", "-e", "{}/proc.conf", ";", "-printf", "%f\\n"])
            .as_root()
            .timeout(ASK)
            .output_limit(MAX_OUTPUT);
        let names = self.run(command).await?.text();
        Ok(names.lines().filter(|name| name.parse::<ContainerName>().is_ok()).map(str::to_owned).collect())
    }

    pub async fn facts(&self, supervisor: &str) -> Result<HostInfo, HostError> {
        let command = Command::new("sh")
            .args(["-c", FACTS, "facts"])
            .arg(&self.root)
            .arg(&self.vrun)
            .named("a look at the host")
            .timeout(ASK);
        let text = self.run(command).await?.text();
        Ok(read_facts(&self.host, supervisor, &text))
    }
}

/// Prints `key value` lines. Nothing of it needs root.
const FACTS: &str = r#"
echo cpus $(nproc)
sed -n 's/^\(MemTotal\|MemAvailable\): *\([0-9]*\) kB$/\1 \2/p' /proc/meminfo
d=$1; [ -d "$d" ] || d=/
df -PB1 -- "$d" | awk 'NR == 2 { print "disk", $2, $4 }'
echo load $(cut -d' ' -f1-3 /proc/loadavg)
echo kernel $(uname -r)
echo boot $(cat /proc/sys/kernel/random/boot_id)
echo uptime $(cut -d. -f1 /proc/uptime)
[ -e /sys/fs/cgroup/cgroup.controllers ] && echo cgroups v2
[ -d /sys/fs/cgroup/memory ] && echo cgroups v1
[ -e /sys/fs/cgroup/unified/cgroup.controllers ] && echo cgroups hybrid
v=$("$2" --version 2>/dev/null) && echo vrun $v
true
"#;

fn read_facts(host: &str, supervisor: &str, text: &str) -> HostInfo {
    let all = |key: &str| {
        let mut found = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        found.next_back().unwrap_or_default().trim().to_owned()
    };
    let number = |key: &str| all(key).parse::<u64>().unwrap_or_default();
    let (disk, load) = (all("disk"), all("load"));
    let mut disk = disk.split(' ').map(|number| number.parse().unwrap_or_default());
    let (disk_total_bytes, disk_free_bytes) =
        (disk.next().unwrap_or_default(), disk.next().unwrap_or_default());
    let mut load = load.split(' ').map(|number| number.parse().unwrap_or_default());
    let mut next = || load.next().unwrap_or_default();
    let cgroups = match all("cgroups").as_str() {
        "v1" => CgroupVersion::V1,
        "v2" => CgroupVersion::V2,
        "hybrid" => CgroupVersion::Hybrid,
        _ => CgroupVersion::None,
    };
    HostInfo {
        host: host.to_owned(),
        version: format!("supervisor {supervisor}"),
        pid: 0,
        cpus: u32::try_from(number("cpus")).unwrap_or_default(),
        memory_bytes: number("MemTotal") * 1024,
        disk_free_bytes,
        memory_available_bytes: number("MemAvailable") * 1024,
        disk_total_bytes,
        load: [next(), next(), next()],
        kernel: all("kernel"),
        cgroups,
        boot_id: all("boot"),
        uptime: number("uptime"),
        vrun_version: Some(all("vrun")).filter(|version| !version.is_empty()),
        epoch: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_as_they_are_printed() {
        let command =
            vr_common::process::command("sh").args(["-c", FACTS, "facts", "/nowhere", "true"]).output();
        let text = String::from_utf8(command.unwrap().stdout).unwrap();
        let facts = read_facts("web1", "4.2.5", &text);
        assert_eq!((facts.host.as_str(), facts.version.as_str()), ("web1", "supervisor 4.2.5"));
        assert!(facts.cpus > 0 && facts.memory_bytes > facts.memory_available_bytes, "{text}");
        assert!(facts.memory_available_bytes > 0 && facts.disk_total_bytes > 0 && facts.uptime > 0, "{text}");
        assert!(!facts.kernel.is_empty() && facts.boot_id.len() == 36, "{text}");
        assert_eq!(read_facts("web1", "", "").vrun_version, None);
    }
}
