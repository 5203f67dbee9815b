//! The server killed with SIGKILL in the middle of a dispatch, in every state in turn.

use std::time::Duration;

use vr_common::api::Dispatch;
use vr_tests::load::ask_once;
use vr_tests::{Load, Machine, wait_for};

/// Kills the server as soon as a dispatch of a new version is in `state` (or past it, as some states are short),
/// starts it again, and checks that all ends as if nothing had happened.
fn kill_in(state: &str) {
    let mut machine = Machine::start();
    let code = machine.add_hello(2);
    assert_eq!(machine.swarm_to("v1").error, None);
    let address = machine.pool_address();
    // Each step takes long enough to be hit.
    code.write("uptests/web/00_slow", "#!/bin/sh\nsleep 0.3\n");
    code.write("VERSION", "v3\n");
    code.tag("v3");

    let load = Load::start(&address, 2);
    let path = machine.dispatch("v3");
    let order = ["queued", "building", "releasing", "deploying", "uptesting", "routing", "cleaning", "done"];
    let place = |state: &str| order.iter().position(|s| *s == state).expect("a known state");
    let client = machine.client();
    let hit = wait_for("the state to kill in", Duration::from_secs(60), || {
        let now = client.get::<Dispatch>(&path).ok()?.state;
        (place(&now) >= place(state)).then_some(now)
    });
    machine.kill_server();
    eprintln!("killed in {hit}, was to be {state}");
    machine.start_server();
    let dispatch = machine.wait_dispatch(&path);
    assert_eq!((dispatch.state.as_str(), dispatch.error), ("done", None), "killed in {hit}");
    let report = load.stop();
    assert_eq!(report.failed, 0, "killed in {hit}: {report:?}");
    assert_eq!(ask_once(&address).as_deref(), Ok("v3"), "killed in {hit}");

    let procs = machine.wait_procs(2);
    assert!(procs.iter().all(|proc| proc.parsed.version == "v3"), "killed in {hit}: {procs:?}");
    let mut names: Vec<_> = procs.iter().map(|proc| proc.name.clone()).collect();
    names.sort();
    assert_eq!(machine.proc_dirs(), names, "killed in {hit}: a proc was left over");
    // Each proc has a waiting vrun and, as its child, the container's init.
    let mut running: Vec<_> = machine.processes().into_iter().map(|(_, line)| line).collect();
    running.retain(|line| line.contains("vrun ") || line.contains("vbuild "));
    running.sort();
    let inits = running.len();
    running.dedup();
    assert_eq!((running.len(), inits), (2, 4), "killed in {hit}: {running:#?}");
    let deployed = dispatch.transitions.iter().filter(|step| step.to == "uptesting").count();
    assert_eq!(deployed, 1, "killed in {hit}: {:?}", dispatch.transitions);
}

#[test]
fn killed_while_building() {
    kill_in("building");
}

#[test]
fn killed_while_releasing() {
    kill_in("releasing");
}

#[test]
fn killed_while_deploying() {
    kill_in("deploying");
}

#[test]
fn killed_while_uptesting() {
    kill_in("uptesting");
}

#[test]
fn killed_while_routing() {
    kill_in("routing");
}

#[test]
fn killed_while_cleaning() {
    kill_in("cleaning");
}
