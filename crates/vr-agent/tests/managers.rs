//! The agent under a service manager, with the very files that `docs/examples` gives people.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use harness::{
    NAME, TOKEN, Vrun, agent_program, folder, host_with, is_alive, proc_yaml, send, until, write_secret,
};
use reqwest::StatusCode;
use rustix::process::Signal;
use vr_agent::address::{AgentAddress, ListenAddress};
use vr_common::host_api::{DeployRequest, ProcDocument};
use vr_common::process::command;

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The example of settings, for a folder of the test's.
fn settings(folder: &Path) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    write_secret(&folder.join("agent.token"), TOKEN);
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(at("agent.pem"), made.cert.pem()).unwrap();
    fs::write(at("agent.key"), made.signing_key.serialize_pem()).unwrap();
    example("agent.yaml")
        .replace("/etc/velociraptor", &folder.display().to_string())
        .replace("/run/velociraptor", &at("run"))
        .replace("/run/vr-supervisor.sock", &at("supervisor.sock"))
        .replace("/apps", &at("root"))
        .replace("0.0.0.0:9002", "127.0.0.1:0")
}

#[test]
fn the_examples_settings_can_be_used() {
    let dir = folder();
    let file = dir.path().join("agent.yaml");
    fs::write(&file, settings(dir.path())).unwrap();
    let mut check = agent_program();
    check.args(["check", "--config"]).arg(&file).env_remove("REDIS_URL").env_remove("VR_ROOT");
    let said = String::from_utf8(check.output().unwrap().stdout).unwrap();
    assert!(said.contains("ok       settings: they can be used\n"), "{said}");
    assert!(
        said.contains(&format!("address unix:{}", dir.path().join("run/agent.sock").display())),
        "{said}"
    );
}

#[test]
fn systemd_understands_the_unit() {
    let dir = folder();
    let unit = dir.path().join("vr-agent.service");
    let program = env!("CARGO_BIN_EXE_vr-agent");
    fs::write(&unit, example("vr-agent.service").replace("/usr/local/bin/vr-agent", program)).unwrap();
    let mut verify = command("systemd-analyze");
    let verified = match verify.args(["verify", "--man=no"]).arg(&unit).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no systemd-analyze on this machine");
            return;
        }
        verified => verified.unwrap(),
    };
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && !said.contains("vr-agent.service:"), "{said}");
}

struct Supervisord(Child);

impl Drop for Supervisord {
    fn drop(&mut self) {
        send(self.0.id(), Signal::TERM);
        // It ends its children first.
        let deadline = std::time::Instant::now() + harness::PATIENCE;
        while matches!(self.0.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn under_supervisor_procs_outlive_the_agent_and_supervisor_itself() {
    // The harness' own agent only prepares the folder, and ends what is left in it.
    let mut prepared = host_with(Vrun::Real, &[], folder()).await;
    prepared.end_agent(Signal::TERM);
    let dir: PathBuf = prepared.path("");
    let at = |name: &str| dir.join(name).display().to_string();
    fs::write(at("agent.yaml"), settings(&dir) + &format!("\naddress-file: {}\n", at("address"))).unwrap();
    let program = example("vr-agent.supervisor.conf")
        .replace("/usr/local/bin/vr-agent", env!("CARGO_BIN_EXE_vr-agent"))
        .replace("/etc/velociraptor", dir.to_str().unwrap().trim_end_matches('/'))
        .replace("/var/log/supervisor", dir.to_str().unwrap().trim_end_matches('/'));
    let config = format!(
        "[supervisord]\nlogfile={}\npidfile={}\nchildlogdir={}\nnodaemon=true\n{program}",
        at("supervisord.log"),
        at("supervisord.pid"),
        dir.display()
    );
    fs::write(at("supervisord.conf"), config).unwrap();
    let start = || {
        let mut supervisord = command("supervisord");
        supervisord.args(["--configuration", &at("supervisord.conf")]).stdout(Stdio::null());
        supervisord.env_remove("VR_ROOT").env_remove("REDIS_URL");
        Supervisord(supervisord.spawn().expect("supervisor is installed"))
    };
    let address = dir.join("address");
    let serves = async |not: u32| {
        until("the agent", || AgentAddress::load(&address).ok().filter(|said| said.pid != not)).await
    };
    let supervisord = start();
    let said = serves(0).await;
    let Some(ListenAddress::Unix(socket)) = said.more.first() else { panic!("{said:?}") };
    let client = reqwest::Client::builder().unix_socket(socket.as_path()).build().unwrap();
    let url = format!("http://agent/v1/procs/{NAME}");
    let request = DeployRequest { proc_yaml: proc_yaml("cmd: sleep 98765") };
    let deployed = client.put(&url).bearer_auth(TOKEN).json(&request).send().await.unwrap();
    let status = deployed.status();
    let text = deployed.text().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{text}");
    let proc: ProcDocument = serde_json::from_str(&text).unwrap();

    // An agent that is killed is started again by Supervisor, and finds the proc.
    send(said.pid, Signal::KILL);
    let next = serves(said.pid).await;
    assert!(is_alive(proc.pid));
    // Supervisor ends the agent when it ends itself, and nothing else.
    drop(supervisord);
    assert!(!is_alive(next.pid) && is_alive(proc.pid) && !address.exists());
    let _supervisord = start();
    serves(next.pid).await;
    let look = client.get(&url).bearer_auth(TOKEN).send().await.unwrap();
    let found: ProcDocument = serde_json::from_str(&look.text().await.unwrap()).unwrap();
    assert_eq!(found.pid, proc.pid);
}

#[tokio::test]
async fn what_spares_the_agent_when_memory_runs_out_does_not_spare_apps() {
    let host = host_with(Vrun::Real, &[], folder()).await;
    let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    if let Err(e) = fs::write(format!("/proc/{}/oom_score_adj", host.agent_pid()), "-500") {
        eprintln!("skipped: this machine does not let the tests spare a process: {e}");
        return;
    }
    let proc = host.deploy(&proc_yaml("cmd: sleep 98765")).await.unwrap();
    assert_eq!(score(host.waiting_vruns()[0]), "-500\n", "whose end would be the app's");
    assert_eq!(score(proc.pid), "0\n");
}
