//! `vr-agent check` on this machine, with what it calls for real.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use harness::{Vrun, agent_program, folder, host};
use serde::Deserialize;
use vr_common::host_api::{Finding, Verdict};

#[derive(Debug, Deserialize)]
struct Report {
    ok: bool,
    findings: Vec<Finding>,
}

impl Report {
    fn of(&self, what: &str) -> &Finding {
        self.findings
            .iter()
            .find(|finding| finding.what == what)
            .unwrap_or_else(|| panic!("{what}: {self:?}"))
    }
}

fn check(arguments: &[&str], root: &Path) -> (Option<i32>, String) {
    let mut check = agent_program();
    check.arg("check").args(arguments).arg("--root").arg(root).env_remove("REDIS_URL");
    let ended = check.stdin(Stdio::null()).output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stdout).unwrap())
}

fn report(arguments: &[&str], root: &Path) -> Report {
    let (code, said) = check(&[&["--json"], arguments].concat(), root);
    let report: Report = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert_eq!(code, Some(i32::from(!report.ok)), "{said}");
    report
}

#[test]
fn a_host_that_runs_these_tests_can_run_procs() {
    let dir = folder();
    let token = dir.path().join("token");
    fs::write(&token, harness::TOKEN).unwrap();
    let fine = ["--listen", "127.0.0.1:0", "--token-file", token.to_str().unwrap()];
    let found = report(&fine, dir.path());
    assert!(found.ok, "{found:?}");
    for what in [
        "user",
        "kernel",
        "control groups",
        "folder of the host",
        "disk",
        "memory",
        "open files",
        "processes",
        "clock",
        "vrun",
        "containers",
        "overlayfs",
        "user namespaces",
        "system call filter",
        "memory limits",
        "process limits",
        "processor limits",
        "swap limits",
        "git",
        "hg",
        "lxc-start",
        "address 127.0.0.1:0",
        "settings",
    ] {
        let finding = found.of(what);
        // Whoever is warned is told what to do.
        assert_eq!(finding.verdict == Verdict::Ok, finding.advice.is_empty(), "{finding:?}");
    }
    for what in ["vrun", "containers", "overlayfs", "system call filter", "folder of the host", "settings"] {
        assert_eq!(found.of(what).verdict, Verdict::Ok, "{found:?}");
    }
    assert_eq!(vr_testing::names(dir.path()), ["token"], "nothing is left");

    // The same for people, one line each.
    let (code, said) = check(&fine, dir.path());
    assert_eq!(code, Some(0));
    assert!(
        said.contains("\nok       overlayfs: works in ") && said.contains("\nprocs can run here"),
        "{said}"
    );
}

#[test]
fn what_is_missing_is_named_with_what_to_do() {
    let dir = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let found = report(&["--listen", &address], dir.path());
    let finding = found.of(&format!("address {address}"));
    assert_eq!(
        (finding.verdict, finding.found.as_str()),
        (Verdict::Missing, "another program listens there")
    );
    assert!(!found.ok && finding.advice.contains("--listen"));
    assert_eq!(found.of("settings").verdict, Verdict::Warn, "no token");

    let found = report(&["--listen", "0.0.0.0:0", "--supervisor-listen", "0.0.0.0:0"], dir.path());
    assert_eq!(found.of("settings").verdict, Verdict::Missing);
    assert!(found.of("settings").found.contains("--token-file"), "{found:?}");

    // A file system that overlays cannot write to, and where nothing can be made.
    let found = report(&["--listen", "127.0.0.1:0"], Path::new("/proc/self"));
    assert_eq!(found.of("folder of the host").verdict, Verdict::Missing);
    assert_eq!(found.of("containers").verdict, Verdict::Missing);

    let (code, said) = check(&["--listen", "9002"], dir.path());
    assert_eq!((code, said.as_str()), (Some(2), ""));
}

#[test]
fn without_vrun_nothing_can_be_run() {
    let dir = folder();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    // A copy elsewhere: beside the original there is a vrun.
    let copy = bin.join("vr-agent");
    fs::copy(env!("CARGO_BIN_EXE_vr-agent"), &copy).unwrap();
    let mut check = vr_common::process::command(&copy);
    check.args(["check", "--json", "--listen", "127.0.0.1:0", "--root"]).arg(dir.path());
    let ended = check.env("PATH", &bin).env_remove("VR_BIN_DIR").output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let found: Report = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(found.of("vrun").verdict, Verdict::Missing);
    assert!(found.of("vrun").advice.contains("VR_BIN_DIR"), "{found:?}");
    assert_eq!(found.of("containers").verdict, Verdict::Missing);
    assert!(found.of("git").found.starts_with("not there, which only"), "{found:?}");
}

#[tokio::test]
async fn an_agent_that_serves_already_is_no_obstacle() {
    let host = host(Vrun::StandIn).await;
    let found = report(&["--listen", &host.address()], &host.path("root"));
    let finding = found.of(&format!("address {}", host.address()));
    assert_eq!((finding.verdict, finding.found.as_str()), (Verdict::Ok, "an agent serves there"));
}
