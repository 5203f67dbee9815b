//! What an agent keeps to, whatever happens to its host.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use vr_tests::{Network, wait_for};

use crate::remote::{Failure, PATIENCE, Remote, is_alive, kill_app, name, pid};

/// How long the callers of these tests wait for an answer that does not come.
const SHORT: Duration = Duration::from_secs(1);

/// A test on the server's side of a network of its own.
fn on_a_network(test: impl FnOnce(&Network) + Send) {
    let network = Network::new();
    network.within(|| test(&network));
}

/// Nobody answers, and the caller knows after the time that it was willing to wait.
#[track_caller]
fn does_not_answer(ask: impl FnOnce() -> Result<Value, Failure>) {
    let asked = Instant::now();
    let answer = ask();
    assert!(matches!(answer, Err(Failure::NoAnswer(_))), "{answer:?}");
    assert!(asked.elapsed() < SHORT * 2, "the caller waited for {:?}", asked.elapsed());
}

#[test]
fn procs_go_on_without_their_agent_and_the_next_one_adopts_them() {
    on_a_network(|network| {
        let mut remote = Remote::started(network, "web1");
        let deploy = |port| pid(&remote.deploy(port, PATIENCE).unwrap());
        let before = [5001, 5002, 5003].map(deploy);
        remote.act(5003, "stop").unwrap();
        remote.kill_agent();
        does_not_answer(|| remote.ask("GET", "procs", None, SHORT));
        // One goes on, one ends while nobody watches, one is down and is to stay so.
        kill_app(before[1]);
        remote.start_agent();
        let adopted = remote.proc(5001);
        assert_eq!((pid(&adopted), &adopted["statename"]), (before[0], &"RUNNING".into()));
        assert!(is_alive(before[0]));
        assert_ne!(remote.until_running(5002), before[1]);
        assert_eq!(remote.proc(5003)["statename"], "STOPPED");
        assert_eq!([5001, 5002, 5003].map(|port| remote.waiting_vruns(port)), [1, 1, 0]);
    });
}

#[test]
fn a_frozen_agent_costs_callers_their_deadline_and_procs_nothing() {
    on_a_network(|network| {
        let [frozen, other] = ["web1", "web2"].map(|name| Remote::started(network, name));
        let before = pid(&frozen.deploy(5001, PATIENCE).unwrap());
        frozen.signal_agent(Signal::SIGSTOP);
        does_not_answer(|| frozen.ask("GET", "procs", None, SHORT));
        does_not_answer(|| frozen.deploy(5002, SHORT));
        does_not_answer(|| frozen.act_within(5001, "stop", SHORT));
        assert!(is_alive(before));
        // The other host has the same port, and does not care.
        other.deploy(5001, PATIENCE).unwrap();
        kill_app(before);
        frozen.signal_agent(Signal::SIGCONT);
        // What was asked while it was frozen is done in its order or not at all, and nothing twice.
        frozen.until(5001, "end of the app", |proc| proc["pid"] != before);
        wait_for("a start that nothing is in the way of", PATIENCE, || frozen.act(5001, "start").ok());
        frozen.deploy(5002, PATIENCE).unwrap();
        assert_eq!([5001, 5002].map(|port| frozen.waiting_vruns(port)), [1, 1]);
    });
}

#[test]
fn a_deploy_goes_on_when_the_network_ends() {
    on_a_network(|network| {
        let [cut_off, other] = ["web1", "web2"].map(|name| Remote::started(network, name));
        std::thread::scope(|scope| {
            let cut_off = &cut_off;
            let deploy = scope.spawn(|| cut_off.deploy(5001, SHORT * 4));
            // It is answered when the proc has been up for a second; the cable goes before that.
            wait_for("the deploy to begin", PATIENCE, || {
                let proc = cut_off.ask("GET", &format!("procs/{}", name(5001)), None, PATIENCE);
                proc.ok().filter(|proc| proc["statename"] == "STARTING")
            });
            network.cut_off(&cut_off.host);
            other.deploy(5001, PATIENCE).unwrap();
            does_not_answer(|| cut_off.ask("GET", "procs", None, SHORT));
            let answer = deploy.join().unwrap();
            assert!(matches!(answer, Err(Failure::NoAnswer(_))), "{answer:?}");
        });
        // On the host itself, all is well.
        let there = cut_off.host.within(|| cut_off.until_running(5001));
        network.heal(&cut_off.host);
        let again = wait_for("the healed network", PATIENCE, || cut_off.deploy(5001, SHORT).ok());
        assert_eq!(pid(&again), there);
        assert_eq!(cut_off.waiting_vruns(5001), 1);
    });
}

#[test]
fn after_a_reboot_runs_what_should_run_and_nothing_else() {
    on_a_network(|network| {
        let mut remote = Remote::started(network, "web1");
        let ports: Vec<u16> = (5001..=5008).collect();
        for port in &ports {
            remote.deploy(*port, PATIENCE).unwrap();
        }
        remote.act(5002, "stop").unwrap();
        remote.ask("DELETE", &format!("procs/{}", name(5003)), None, PATIENCE).unwrap();
        // The power goes in the middle of a delete and of a deploy as well.
        std::thread::scope(|scope| {
            let delete = format!("procs/{}", name(5004));
            let remote = &remote;
            scope.spawn(move || remote.ask("DELETE", &delete, None, SHORT));
            scope.spawn(move || remote.deploy(5009, SHORT));
            wait_for("the delete and the deploy to begin", PATIENCE, || {
                let begun = remote.path("root/agent/deleting").join(name(5004)).exists();
                let there = remote.path("root/procs").join(name(5009)).join("proc.yaml").exists();
                let deleted = !remote.path("root/procs").join(name(5004)).exists();
                ((begun || deleted) && there).then_some(())
            });
            remote.host.lose_power();
        });
        remote.lose_power();
        remote.power_on();
        for port in [5001, 5005, 5006, 5007, 5008, 5009] {
            let pid = remote.until_running(port);
            assert!(is_alive(pid) && remote.waiting_vruns(port) == 1, "{port}");
        }
        assert_eq!(remote.proc(5002)["statename"], "STOPPED");
        wait_for("the delete to be finished", PATIENCE, || {
            let list = remote.get("procs");
            let names: Vec<&str> =
                list["procs"].as_array()?.iter().filter_map(|proc| proc["name"].as_str()).collect();
            let expected = [5001, 5002, 5005, 5006, 5007, 5008, 5009].map(name);
            (names == expected).then_some(())
        });
        assert!(!remote.path("root/procs").join(name(5004)).exists());
    });
}

#[test]
fn a_full_disk_is_said_and_stops_no_supervision() {
    on_a_network(|network| {
        let mut remote = Remote::new(network, "web1");
        remote.host.small_disk(&remote.path("root"), 24 << 20);
        remote.start_agent();
        let [kept, stopped] = [5001, 5002].map(|port| pid(&remote.deploy(port, PATIENCE).unwrap()));
        let full = remote.host.fill(&remote.path("root"));

        let said = remote.deploy(5003, PATIENCE).unwrap_err().sentence(500);
        assert!(said.contains("No space left on device"), "{said}");
        // What cannot be noted is done all the same, and said. The end of the app may have left room for the note.
        if let Err(refusal) = remote.act(5002, "stop") {
            let said = refusal.sentence(500);
            assert!(said.contains("No space left on device"), "{said}");
        }
        assert_eq!(remote.proc(5002)["statename"], "STOPPED");
        assert!(!is_alive(stopped) && is_alive(kept));
        // All that only reads goes on.
        assert_eq!(remote.get("procs")["procs"].as_array().unwrap().len(), 2);
        assert_eq!(remote.proc(5001)["statename"], "RUNNING");

        drop(full);
        assert_eq!(remote.act(5002, "stop").unwrap()["statename"], "STOPPED");
        remote.deploy(5003, PATIENCE).unwrap();
        assert_eq!(remote.until_running(5001), kept);
        // With room again, all is noted as it is.
        remote.kill_agent();
        remote.start_agent();
        assert_eq!(remote.until_running(5001), kept);
        assert_eq!(remote.proc(5002)["statename"], "STOPPED");
        remote.until_running(5003);
    });
}

#[test]
fn a_crash_on_a_full_disk_is_made_good_when_there_is_room() {
    on_a_network(|network| {
        let mut remote = Remote::new(network, "web1");
        remote.host.small_disk(&remote.path("root"), 24 << 20);
        remote.start_agent();
        let before = pid(&remote.deploy(5001, PATIENCE).unwrap());
        let full = remote.host.fill(&remote.path("root"));
        kill_app(before);
        remote.until(5001, "end of the app", |proc| proc["pid"] != before);
        drop(full);
        // By itself: it is tried again, if it could not be started.
        assert_ne!(remote.until_running(5001), before);
        assert_eq!(remote.waiting_vruns(5001), 1);
    });
}

/// The library that shows a program another time than the kernel's.
fn libfaketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    let libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    libraries.into_iter().find(|library| library.is_file()).expect("Debian's package libfaketime")
}

#[test]
fn a_clock_that_jumps_changes_what_is_shown_and_nothing_else() {
    on_a_network(|network| {
        let mut remote = Remote::new(network, "web1");
        let offset = remote.path("offset");
        let jump = |seconds: i64| fs::write(&offset, format!("{seconds:+}\n")).unwrap();
        jump(0);
        remote.environment = vec![
            ("LD_PRELOAD", libfaketime().display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", offset.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".into()),
            // As when somebody sets the clock: time itself goes on as it did.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ];
        remote.start_agent();
        let mut before = pid(&remote.deploy(5001, PATIENCE).unwrap());
        let now = |proc: &Value| proc["now"].as_str().unwrap().to_owned();
        for seconds in [86_400, -86_400, 0] {
            let earlier = now(&remote.proc(5001));
            jump(seconds);
            let shown = remote.proc(5001);
            assert_ne!(now(&shown)[..10], earlier[..10], "another day: {shown:#}");
            assert_eq!((&shown["statename"], pid(&shown)), (&"RUNNING".into(), before));
            assert!(!shown["description"].as_str().unwrap().contains('-'), "no negative age: {shown:#}");
            // A crash is followed by a start at once, and a second later the proc runs, whatever day it is.
            let killed = Instant::now();
            kill_app(before);
            let back =
                remote.until(5001, "start", |proc| proc["pid"] != before && proc["statename"] == "RUNNING");
            assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
            let asked = Instant::now();
            let restarted = remote.act(5001, "restart").unwrap();
            assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
            before = pid(&restarted);
            assert_ne!(before, pid(&back));
        }
        // The next agent has another idea of the time, and the same one of who runs.
        jump(-7200);
        remote.kill_agent();
        remote.start_agent();
        assert_eq!(remote.until_running(5001), before);
        assert_eq!(remote.waiting_vruns(5001), 1);
    });
}
