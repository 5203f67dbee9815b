//! What a server makes of hosts that fail: it says so once, goes on with the others, and loses nothing.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vr_common::api::Page;
use vr_common::events::Event;
use vr_tests::{Machine, Network, wait_for};

use crate::remote::{PATIENCE, PORT, Remote, is_alive, pid};

/// What the server may need to answer, whatever its hosts do: it knows all that it is asked.
const AT_ONCE: Duration = Duration::from_secs(2);
/// What a question that goes to the host itself may need: the deadline of the server, and some.
const AT_LAST: Duration = Duration::from_secs(10);

/// A server with hosts of these names beside its own machine.
fn machine(network: &Network, hosts: &[Remote]) -> Machine {
    let settings = format!("HOSTS: {{agent: {{token_file: {}}}}}\n", hosts[0].path("token").display());
    let machine = Machine::start_with_hosts(Network::ADDRESS, &settings);
    let _ = network;
    let client = machine.client();
    for remote in hosts {
        let name = remote.host.name();
        let url = format!("http://{name}:{PORT}");
        let body = json!({
            "name": name, "driver": "agent", "agent_url": url, "squad": "/api/v1/squads/default/",
        });
        client.create("/api/v1/hosts/", &body).expect("a host");
    }
    // The procs are to be on the hosts that fail.
    client
        .patch::<Value>("/api/v1/hosts/localhost/", &json!({"active": false}))
        .expect("the server's own machine");
    for remote in hosts {
        wait_for("the server to know its hosts", PATIENCE, || known(&machine, remote).seen.then_some(()));
    }
    machine
}

/// What the server says of a host.
#[derive(Debug)]
struct Known {
    seen: bool,
    unreachable: bool,
    /// The pids of its procs.
    pids: Vec<i64>,
    took: Duration,
}

fn known(machine: &Machine, remote: &Remote) -> Known {
    let asked = Instant::now();
    let list: Value = machine
        .client()
        .get(&format!("/api/v1/hosts/{}/procs/", remote.host.name()))
        .expect("a host's procs");
    let procs = list["objects"].as_array().expect("a list");
    Known {
        took: asked.elapsed(),
        seen: !list["seen"].is_null(),
        unreachable: !list["unreachable_since"].is_null(),
        pids: procs.iter().filter_map(|proc| proc["pid"].as_i64()).collect(),
    }
}

/// All events about a host, the oldest first.
fn events(machine: &Machine, remote: &Remote) -> Vec<Event> {
    let page: Page<Event> = machine.client().get("/api/v1/events/?limit=100").expect("events");
    let ours =
        |event: &Event| event.tags.iter().any(|tag| tag == "host") && event.title == remote.host.name();
    page.objects.into_iter().rev().filter(ours).collect()
}

fn has_tag(event: &Event, tag: &str) -> bool {
    event.tags.iter().any(|found| found == tag)
}

#[test]
fn hosts_that_fail_are_said_once_hold_up_nobody_and_come_back_with_all_they_had() {
    let network = Network::new();
    network.within(|| {
        let mut hosts = ["cut-off", "frozen", "agentless", "powerless", "fine"]
            .map(|name| Remote::started(&network, name));
        let machine = machine(&network, &hosts);
        machine.add_hello(5);
        assert_eq!(machine.swarm_to("v1").error, None);
        let before: Vec<Vec<i64>> = hosts.iter().map(|remote| known(&machine, remote).pids).collect();
        assert!(before.iter().all(|pids| pids.len() == 1), "one proc on each: {before:?}");

        network.cut_off(&hosts[0].host);
        hosts[1].signal_agent(Signal::SIGSTOP);
        hosts[2].kill_agent();
        hosts[3].lose_power();
        let (failing, fine) = hosts.split_at(4);
        for remote in failing {
            wait_for("the server to see that a host is gone", PATIENCE, || {
                known(&machine, remote).unreachable.then_some(())
            });
        }
        // What is asked of the server is answered at once; what needs the host, at its deadline, and the others as ever.
        for (remote, pids) in failing.iter().zip(&before) {
            let known = known(&machine, remote);
            assert!(known.took < AT_ONCE && known.pids == *pids, "{known:?}");
        }
        let page = Instant::now();
        machine.client().get::<Value>("/api/v1/swarms/").expect("the swarms");
        assert!(page.elapsed() < AT_ONCE, "{:?}", page.elapsed());
        for remote in failing {
            let asked = Instant::now();
            let uri = format!("/api/v1/hosts/{0}/procs/{1}/", remote.host.name(), proc_of(&machine, remote));
            let error = machine
                .client()
                .post::<Value>(&uri, &json!({"action": "start"}))
                .expect_err("nobody is there");
            assert!(asked.elapsed() < AT_LAST, "{:?}: {error}", asked.elapsed());
        }
        let uri = format!("/api/v1/hosts/fine/procs/{}/", proc_of(&machine, &fine[0]));
        let proc: Value =
            machine.client().post(&uri, &json!({"action": "restart"})).expect("the one that is fine");
        let restarted = proc["pid"].as_i64().expect("a pid");
        assert_ne!(vec![restarted], before[4]);
        // Only the power took procs along.
        for (remote, pids) in failing.iter().take(3).zip(&before) {
            assert!(
                pids.iter().all(|pid| is_alive(i32::try_from(*pid).expect("a pid"))),
                "{}",
                remote.host.name()
            );
        }

        network.heal(&hosts[0].host);
        hosts[1].signal_agent(Signal::SIGCONT);
        hosts[2].start_agent();
        hosts[3].power_on();
        for (number, remote) in hosts.iter().enumerate() {
            let back = wait_for("the host to be back with its proc", PATIENCE, || {
                let known = known(&machine, remote);
                (!known.unreachable && known.pids.len() == 1 && known.pids[0] > 0).then_some(known)
            });
            match number {
                0..=2 => assert_eq!(back.pids, before[number], "{}: the same process", remote.host.name()),
                3 => assert_ne!(back.pids, before[number]),
                _ => assert_eq!(back.pids, [restarted]),
            }
        }
        for (number, remote) in hosts.iter().enumerate() {
            let expected = if number < 4 { [1, 1] } else { [0, 0] };
            let counts = || {
                let events = events(&machine, remote);
                ["failed", "success"].map(|tag| events.iter().filter(|event| has_tag(event, tag)).count())
            };
            wait_for("one event of its going, and one of its coming", PATIENCE, || {
                (counts() == expected).then_some(())
            });
            let told = events(&machine, remote);
            assert!(told.iter().all(|event| event.message.contains(remote.host.name())), "{told:?}");
        }
        // All of them take part in what comes next.
        assert_eq!(machine.swarm_to("v2").error, None);
        let procs = machine.wait_procs(5);
        assert!(procs.iter().all(|proc| proc.parsed.version == "v2"), "{procs:?}");
        for remote in &hosts {
            assert_eq!(
                remote.get("procs")["procs"].as_array().map(Vec::len),
                Some(1),
                "{}",
                remote.host.name()
            );
        }
    });
}

/// The only proc that the server knows of a host.
fn proc_of(machine: &Machine, remote: &Remote) -> String {
    let list: Value = machine
        .client()
        .get(&format!("/api/v1/hosts/{}/procs/", remote.host.name()))
        .expect("a host's procs");
    list["objects"][0]["name"].as_str().expect("a proc").to_owned()
}

#[test]
fn a_deploy_on_a_host_that_is_cut_off_fails_in_time_and_can_be_repeated() {
    let network = Network::new();
    network.within(|| {
        let hosts = ["web1", "web2"].map(|name| Remote::started(&network, name));
        let machine = machine(&network, &hosts);
        let code = machine.add_hello(2);
        assert_eq!(machine.swarm_to("v1").error, None);
        let before: Vec<i32> = hosts.iter().map(|remote| pid(&remote.get("procs")["procs"][0])).collect();
        code.write("VERSION", "v3\n");
        code.tag("v3");

        let path = machine.dispatch("v3");
        // Its new proc is there, and nobody has said yet that it runs.
        wait_for("the deploy on the host to begin", PATIENCE, || {
            let list = hosts[0].get("procs");
            list["procs"].as_array()?.iter().any(|proc| proc["version"] == "v3").then_some(())
        });
        network.cut_off(&hosts[0].host);
        let cut = Instant::now();
        let dispatch = machine.wait_dispatch(&path);
        let error = dispatch.error.expect("it cannot be done");
        assert!(error.contains("web1"), "{error}");
        assert!(cut.elapsed() < Duration::from_secs(60), "{:?}", cut.elapsed());
        // What was there is there.
        for (remote, pid) in hosts.iter().zip(&before) {
            assert!(is_alive(*pid), "{}", remote.host.name());
        }

        network.heal(&hosts[0].host);
        wait_for("the host to be back", PATIENCE, || (!known(&machine, &hosts[0]).unreachable).then_some(()));
        assert_eq!(machine.swarm_to("v3").error, None);
        let procs = machine.wait_procs(2);
        assert!(procs.iter().all(|proc| proc.parsed.version == "v3"), "{procs:?}");
        for remote in &hosts {
            wait_for("nothing but the new proc", PATIENCE, || {
                let list = remote.get("procs");
                (list["procs"].as_array()?.len() == 1).then_some(())
            });
        }
    });
}
