//! `cargo xtask demo`: a deploy and an upgrade under load, on this machine, before your eyes.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use vr_common::process::{command, sibling};
use vr_tests::load::ask_once;
use vr_tests::{Load, LoadReport, Machine};

use crate::steps::{cargo, run as run_program, timed, workspace};

/// Clients that send requests without a pause.
const CLIENTS: usize = 8;
/// How long the new version must serve alone before the load ends.
const AFTER: Duration = Duration::from_secs(1);

/// Runs the demo; an error unless all of it held.
pub fn run(keep: bool) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo makes containers and must be run as root");
    }
    let mut steps: Vec<(String, Duration)> = Vec::new();
    let ((), took) = timed(|| run_program(cargo().args(["build", "--workspace", "--bins"])))?;
    steps.push(("build Velociraptor".into(), took));
    let begin = Instant::now();

    let root = workspace().join("target/demo");
    remove_old(&root)?;
    let (machine, took) = timed(|| Ok(Machine::start_in(&root)))?;
    steps.push(("start server, agent and proxy".into(), took));
    println!("\n{}", machine.greeting().trim());

    let (_, took) = timed(|| Ok(machine.add_hello(2)))?;
    steps.push(("register app, buildpack and swarm".into(), took));

    let ((), took) = timed(|| swarm(&machine, "v1"))?;
    steps.push(("deploy v1, two procs".into(), took));
    let address = machine.pool_address();
    let first = ask_once(&address).map_err(|e| anyhow::anyhow!("http://{address}/: {e}"))?;
    println!("http://{address}/ answers with version {first}");
    if first != "v1" {
        bail!("expected version v1 at http://{address}/");
    }

    println!("\n{CLIENTS} clients now send requests without a pause; upgrading to v2 …");
    let load = Load::start(&address, CLIENTS);
    let upgraded = timed(|| swarm(&machine, "v2"));
    std::thread::sleep(AFTER);
    let report = load.stop();
    let ((), took) = upgraded?;
    steps.push(("upgrade to v2 under load".into(), took));
    let last = ask_once(&address).map_err(|e| anyhow::anyhow!("http://{address}/: {e}"))?;
    let whole = begin.elapsed();

    show(&steps, whole, &report);
    let (url, data_dir) = (machine.url().to_owned(), machine.data_dir());
    let password = fs::read_to_string(data_dir.join("admin-password")).unwrap_or_default();
    if keep {
        machine.keep();
        println!(
            "Left running: {url}/ (user admin, password {}), the app at http://{address}/",
            password.trim()
        );
        println!(
            "vr-cli: VELOCIRAPTOR_CREDENTIALS={} {}",
            root.join("credentials.yaml").display(),
            sibling("vr-cli").display()
        );
        println!("End it: {} down --data-dir {}", sibling("vr-server").display(), data_dir.display());
    }
    if report.failed > 0 {
        bail!("{} of {} requests failed: {}", report.failed, report.sent, report.reasons.join("; "));
    }
    for version in ["v1", "v2"] {
        if !report.versions.contains_key(version) {
            bail!("no request was answered by {version}");
        }
    }
    if last != "v2" || report.versions.len() != 2 {
        bail!("expected versions v1 and v2 and v2 at the end, saw {:?} and {last}", report.versions);
    }
    println!("All of it held.");
    Ok(())
}

/// Ends and removes what an earlier demo has left.
fn remove_old(root: &std::path::Path) -> Result<()> {
    let data_dir = root.join("data");
    if data_dir.join("lock").exists() {
        run_program(command(sibling("vr-server")).arg("down").arg("--data-dir").arg(&data_dir))?;
    }
    vr_common::archive::remove_tree(root).with_context(|| format!("cannot remove {}", root.display()))
}

fn swarm(machine: &Machine, version: &str) -> Result<()> {
    println!();
    let args = ["swarm", "hello-demo-web", version, "--wait"];
    run_program(machine.program("vr-cli").args(["--url", machine.url()]).args(args))
}

fn show(steps: &[(String, Duration)], whole: Duration, report: &LoadReport) {
    let mut table = Table::new();
    table.set_header(["step", "result"]);
    for (step, took) in steps {
        table.add_row([step.clone(), format!("{:.1} s", took.as_secs_f64())]);
    }
    table.add_row(["all but the build".to_owned(), format!("{:.1} s", whole.as_secs_f64())]);
    table.add_row(["requests sent".to_owned(), report.sent.to_string()]);
    table.add_row(["requests failed".to_owned(), report.failed.to_string()]);
    let versions = report.versions.iter().map(|(version, count)| format!("{version}: {count}"));
    table.add_row(["versions seen".to_owned(), versions.collect::<Vec<_>>().join(", ")]);
    println!("\n{table}");
}
