//! `cargo xtask test`: all checks, and what they need.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use vr_common::process::command;

use crate::debian;
use crate::steps::{self, cargo, timed};

/// What the tests run, and the Debian package that holds it.
const PROGRAMS: [(&str, &str); 23] = [
    ("git", "git"),
    ("hg", "mercurial"),
    ("make", "make"),
    ("perl", "perl-base"),
    ("bash", "bash"),
    ("python3", "python3"),
    ("redis-server", "redis-server"),
    ("supervisord", "supervisor"),
    ("lxc-start", "lxc"),
    ("debootstrap", "debootstrap"),
    ("sshd", "openssh-server"),
    ("ip", "iproute2"),
    ("sudo", "sudo"),
    ("ps", "procps"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("faketime", "faketime"),
    ("nginx", "nginx"),
    ("varnishd", "varnish"),
    ("haproxy", "haproxy"),
    ("caddy", "caddy"),
    ("apache2", "apache2-bin"),
    ("mkfs.ext4", "e2fsprogs"),
];

/// What the tests read without running it, and the Debian package that holds it.
const FILES: [(&str, &str); 1] = [("/usr/lib/python3/dist-packages/yaml/__init__.py", "python3-yaml")];

/// What Python imports, and the Debian package that holds it.
const MODULES: [(&str, &str); 1] = [("ensurepip", "python3-venv")];

/// What Debian's packages ask before they start a service.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// Formatting, lints, and all tests that the user may run.
fn check(root: bool) -> Result<()> {
    if root {
        // First, because it needs the network: without one, this should be known before the long rest.
        debian::prepare()?;
    }
    steps::run(cargo().args(["fmt", "--all", "--check"]))?;
    steps::run(cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    // The whole-system tests start these; cargo builds only the binaries of the package under test.
    steps::run(cargo().args(["build", "--workspace", "--bins"]))?;
    if root {
        steps::run(cargo().args(["test", "--workspace", "--no-fail-fast"]))
    } else {
        steps::run(cargo().args(["test", "--workspace", "--lib", "--no-fail-fast"]))
    }
}

/// Runs everything and says what was left out.
pub fn run() -> Result<()> {
    let root = nix::unistd::geteuid().is_root();
    let missing = install(root)?;
    let ((), took) = timed(|| check(root))?;
    let mut skipped = Vec::new();
    if !root {
        skipped
            .push("integration and whole-system tests (they make containers, which needs root)".to_owned());
    }
    if !missing.is_empty() {
        skipped.push(format!("the install of {} (no apt-get, or not root)", missing.join(", ")));
    }
    let skipped = if skipped.is_empty() { "nothing".to_owned() } else { skipped.join("; ") };
    println!("All checks passed in {} s; skipped: {skipped}.", took.as_secs());
    Ok(())
}

fn in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn is_imported(module: &str) -> bool {
    let mut python = command("python3");
    python.args(["-c", &format!("import {module}")]).stderr(Stdio::null());
    python.status().is_ok_and(|status| status.success())
}

/// Installs the packages of what is missing; gives those that could not be.
fn install(root: bool) -> Result<Vec<&'static str>> {
    let programs = PROGRAMS.iter().filter(|(program, _)| !in_path(program));
    let files = FILES.iter().filter(|(file, _)| !Path::new(file).exists());
    let modules = MODULES.iter().filter(|(module, _)| !is_imported(module));
    let missing: Vec<_> = programs.chain(files).chain(modules).map(|(_, package)| *package).collect();
    if missing.is_empty() || !root || !Path::new("/usr/bin/apt-get").exists() {
        return Ok(missing);
    }
    let apt = || {
        let mut apt = command("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
        apt
    };
    steps::run(apt().arg("update"))?;
    let _no_services = NoServices::begin()?;
    steps::run(apt().args(["install", "--yes", "--no-install-recommends"]).args(&missing))?;
    Ok(Vec::new())
}

/// While it lives, installed packages start no services: the tests run their own, and this machine keeps its own.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn begin() -> Result<Self> {
        // Somebody's own policy stays in force.
        let ours = !Path::new(SERVICE_POLICY).exists();
        if ours {
            fs::write(SERVICE_POLICY, "#!/bin/sh\nexit 101\n")
                .and_then(|()| fs::set_permissions(SERVICE_POLICY, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("cannot write {SERVICE_POLICY}"))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(SERVICE_POLICY)
        {
            eprintln!("remove {SERVICE_POLICY} by hand, or no package will start its service: {error}");
        }
    }
}
