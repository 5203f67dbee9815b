//! What people get wrong, and the one sentence that they get for it.

use serde_json::{Value, json};
use vr_common::api::Squad;
use vr_tests::Machine;
use vr_tests::load::ask_once;
use vr_tests::machine::NewSwarm;

/// Dispatches a version that must fail, and checks vr-cli's exit code and what it says.
fn fails(machine: &Machine, version: &str, expected: &[&str]) {
    let output = machine.cli(&["swarm", ".*", version, "--wait"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{version}: {said}");
    for part in expected {
        assert!(said.contains(part), "{version}: expected {part:?} in:\n{said}");
    }
}

#[test]
fn a_revision_an_app_or_a_proc_that_is_not_right_is_refused_in_one_sentence() {
    let machine = Machine::start();
    let code = machine.add_hello(1);
    assert_eq!(machine.swarm_to("v1").error, None);

    fails(&machine, "v99", &["v99", "no revision"]);

    code.write("server.pl", "this is not perl (\n");
    code.tag("broken");
    fails(&machine, "broken", &["compile", "hello broken"]);

    code.write("server.pl", "print 1;\n");
    code.write("Procfile", "worker: perl server.pl\n");
    code.tag("noweb");
    fails(&machine, "noweb", &["web", "worker", "Procfile"]);

    code.write("Procfile", "web: perl -e 'die qq(no database\\n)'\n");
    code.tag("crashes");
    fails(&machine, "crashes", &["hello-crashes-demo-", "no database"]);

    assert_eq!(ask_once(&machine.pool_address()).as_deref(), Ok("v1"));
    assert_eq!(machine.wait_procs(1)[0].parsed.version, "v1");
    assert_eq!(machine.proc_dirs().len(), 1);
}

#[test]
fn an_app_that_no_buildpack_knows_is_refused() {
    let machine = Machine::start();
    machine.add_buildpack(&machine.example("buildpacks/perl"), 0);
    let code = machine.repository("cobol");
    code.write("main.cob", "IDENTIFICATION DIVISION.\n");
    code.tag("v1");
    machine.add_app("cobol", &code);
    machine.add_swarm(NewSwarm { app: "cobol", size: 1, more: Value::Null });
    fails(&machine, "v1", &["no buildpack"]);
    assert!(machine.proc_dirs().is_empty());
}

#[test]
fn ports_that_are_used_up_are_said_so() {
    let machine = Machine::start();
    let (first, last) = machine.proc_ports();
    machine.add_hello(u32::from(last - first) + 2);
    // The planner asks for all ports before anything is started, so this is quick.
    fails(&machine, "v1", &[&format!("all ports of {first}-{last} are in use on host localhost")]);
    assert!(machine.proc_dirs().is_empty());
}

#[test]
fn a_squad_without_an_active_host_is_said_so() {
    let machine = Machine::start();
    machine.add_hello(1);
    let squad: Squad = machine.client().get("/api/v1/squads/default/").expect("the squad");
    let host = &squad.hosts[0].resource_uri;
    machine.client().patch::<Value>(host, &json!({"active": false})).expect("the host");
    fails(&machine, "v1", &["squad default has no active host"]);
}

#[test]
fn a_second_server_on_the_same_folder_is_refused() {
    let machine = Machine::start();
    let output = machine
        .program("vr-server")
        .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(machine.data_dir())
        .output()
        .expect("vr-server");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ERROR: a server already runs on "), "{said}");
}
