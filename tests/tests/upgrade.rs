//! From a git repository to a routed swarm, and on to the next version under load.

use std::process::Output;
use std::time::{Duration, Instant};

use vr_tests::load::ask_once;
use vr_tests::{Load, Machine, wait_for};

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

#[test]
fn an_upgrade_under_load_fails_no_request() {
    let machine = Machine::start();
    machine.add_hello(2);
    let first = machine.cli(&["swarm", "hello-demo-web", "v1", "--wait"]);
    assert!(first.status.success(), "{}", text(&first));
    let address = machine.pool_address();
    assert_eq!(ask_once(&address).as_deref(), Ok("v1"));

    let load = Load::start(&address, 6);
    for version in ["v2", "v1", "v2"] {
        let next = machine.cli(&["swarm", "hello-demo-web", version, "--wait"]);
        assert!(next.status.success(), "{}", text(&next));
        assert_eq!(ask_once(&address).as_deref(), Ok(version));
    }
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(
        report.versions["v1"] > 0 && report.versions["v2"] > 0 && report.versions.len() == 2,
        "{report:?}"
    );

    let procs = machine.wait_procs(2);
    assert!(procs.iter().all(|proc| proc.parsed.version == "v2"), "{procs:?}");
    assert_eq!(machine.proc_dirs().len(), 2);
    let listed = text(&machine.cli(&["list-swarms"]));
    assert_eq!(listed.trim(), "hello-demo-web");
}

#[test]
fn a_killed_app_is_back_within_three_seconds_and_nobody_notices() {
    let machine = Machine::start();
    machine.add_hello(2);
    assert_eq!(machine.swarm_to("v1").error, None);
    let address = machine.pool_address();
    let victim = machine.wait_procs(2)[0].name.clone();
    let before = machine.run_status(&victim);
    let pid = i32::try_from(before.app_pid.expect("the app's pid")).expect("a pid");
    let killed = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .expect("a kill");
    wait_for("the app to run again", Duration::from_secs(3), || {
        let now = machine.run_status(&victim);
        (now.pid != before.pid && now.ended_at.is_none()).then_some(())
    });
    assert!(killed.elapsed() < Duration::from_secs(3));
    machine.wait_procs(2);
    for _ in 0..20 {
        assert_eq!(ask_once(&address).as_deref(), Ok("v1"));
    }
}

#[test]
fn a_version_whose_uptest_fails_never_gets_a_request() {
    let machine = Machine::start();
    let code = machine.add_hello(2);
    assert_eq!(machine.swarm_to("v1").error, None);
    let address = machine.pool_address();
    let before = machine.proc_dirs();

    code.write("uptests/web/03_never", "#!/bin/sh\necho the login page is missing\nexit 1\n");
    code.write("VERSION", "v3\n");
    code.tag("v3");
    let load = Load::start(&address, 4);
    let failed = machine.cli(&["swarm", "hello-demo-web", "v3", "--wait"]);
    let report = load.stop();
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    let said = text(&failed);
    assert!(said.contains("03_never") && said.contains("the login page is missing"), "{said}");
    assert_eq!((report.failed, report.versions.len()), (0, 1), "{report:?}");
    assert!(report.versions.contains_key("v1"), "{report:?}");
    assert_eq!(machine.proc_dirs(), before, "the failed version's procs were left");
    let events = text(&machine.cli(&["events"]));
    assert!(events.contains("the login page is missing"), "{events}");
}

#[test]
fn apps_serve_on_while_server_and_agent_are_dead() {
    let mut machine = Machine::start();
    machine.add_hello(2);
    assert_eq!(machine.swarm_to("v1").error, None);
    let address = machine.pool_address();
    let before: Vec<_> = machine.proc_dirs().iter().map(|proc| machine.run_status(proc).pid).collect();

    let load = Load::start(&address, 4);
    let agent = machine.agent_pid();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), nix::sys::signal::Signal::SIGKILL)
        .expect("a kill");
    wait_for("the server to start another agent", Duration::from_secs(20), || {
        (machine.agent_pid() != agent).then_some(())
    });
    machine.wait_procs(2);
    machine.kill_server();
    assert_eq!(ask_once(&address).as_deref(), Ok("v1"));
    machine.start_server();
    machine.wait_procs(2);
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    let after: Vec<_> = machine.proc_dirs().iter().map(|proc| machine.run_status(proc).pid).collect();
    assert_eq!(before, after, "a proc was restarted");
    assert_eq!(machine.swarm_to("v2").error, None);
    assert_eq!(ask_once(&address).as_deref(), Ok("v2"));
}
