//! The programs that the agent calls, and those that only some hosts need.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use vr_common::host_api::Finding;
use vr_common::paths::VrRoot;
use vr_common::process;

use super::{missing, ok, warn};
use crate::vrun::{self, CallError};

/// How long a program may take to say its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// How long `vrun check` may take.
const CHECK_DEADLINE: Duration = Duration::from_secs(180);
/// The longest answer, in bytes.
const LIMIT: usize = 1 << 20;

/// The last line of `vrun check --json`.
#[derive(Deserialize)]
struct Report {
    findings: Vec<Finding>,
}

pub async fn look(root: &VrRoot) -> Vec<Finding> {
    let mut findings = vec![of_vrun(root).await];
    match containers(root).await {
        Ok(found) => findings.extend(found),
        Err(reason) => findings.push(missing("containers", reason, "see that `vrun check` works by hand")),
    }
    for (program, argument, package, who) in [
        ("git", "--version", "git", "hosts that make builds from git repositories"),
        ("hg", "--version", "mercurial", "hosts that make builds from Mercurial repositories"),
        ("lxc-start", "--version", "lxc", "hosts with VR_ENGINE=lxc"),
    ] {
        let found = match version(Path::new(program), argument).await {
            Some(version) => version,
            None => format!("not there, which only {who} need (Debian's package {package})"),
        };
        findings.push(ok(program, found));
    }
    findings
}

async fn of_vrun(root: &VrRoot) -> Finding {
    let program = process::sibling("vrun");
    let ours = env!("CARGO_PKG_VERSION");
    match vrun::version(root, VERSION_DEADLINE).await {
        Err(CallError::Failed(reason)) => {
            missing("vrun", reason, "put vrun beside vr-agent, into $PATH, or into the folder $VR_BIN_DIR")
        }
        Err(CallError::Locked) => warn("vrun", "it is locked", "try again"),
        Ok(version) if version != ours => warn(
            "vrun",
            format!("{} is of version {version}, this agent is {ours}", program.display()),
            "install both from one release",
        ),
        Ok(version) => ok("vrun", format!("{version}, {}", program.display())),
    }
}

async fn containers(root: &VrRoot) -> Result<Vec<Finding>, String> {
    let arguments = [OsStr::new("check"), OsStr::new("--json")];
    let output = match vrun::ask(root, &arguments, CHECK_DEADLINE, LIMIT).await {
        Ok(output) => output,
        Err(CallError::Failed(reason)) => return Err(reason),
        Err(CallError::Locked) => return Err("vrun is locked".to_owned()),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let report: Result<Report, _> = serde_json::from_str(last);
    report.map(|report| report.findings).map_err(|_| output.message)
}

/// The first line that a program says of itself; none when it is not there.
async fn version(program: &Path, argument: &str) -> Option<String> {
    let mut command = process::command(program);
    command.arg(argument).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    let output =
        tokio::time::timeout(VERSION_DEADLINE, command.kill_on_drop(true).output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(|line| line.trim().to_owned())
}
