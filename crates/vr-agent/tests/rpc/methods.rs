//! Calls by themselves: what they give is what the real supervisord gives, and waiting ones hold up nobody.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use vr_common::supervisor::{SupervisorClient, SupervisorError, fault};
use vr_common::xmlrpc::Value;

use crate::harness::Vrun;
use crate::parts::{RpcHost, Supervisord, wait};

const NAME: &str = "demo-v1-prod-abcd1234-web-5001";
const OTHER: &str = "demo-v1-prod-abcd1234-other-5002";

/// The outcome of a call as JSON, a fault as its code and text.
fn call(client: &SupervisorClient, method: &str, params: &Json) -> Json {
    let Json::Array(params) = params else { panic!("{params}") };
    let params: Vec<Value> = params.iter().map(|param| Value::from_json("", param).unwrap()).collect();
    match client.call(method, &params) {
        Ok(value) => value.into_json(),
        Err(SupervisorError::Refused { source, .. }) => json!({"fault": source.code, "text": source.message}),
        Err(e) => panic!("{method} {params:?}: {}", vr_common::exit::chain(&e)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_as_by_supervisord() {
    let host = RpcHost::start(Vrun::StandIn).await;
    host.deploy(NAME, "cmd: sleep 98765").await.unwrap();
    let log = host.proc_dir(NAME).join("log");
    let dir = tempfile::tempdir().unwrap();
    let real_log = dir.path().join("log");
    tokio::task::block_in_place(|| {
        let section = format!(
            "[program:{NAME}]\ncommand=sleep 98765\nredirect_stderr=true\nstdout_logfile={}\n",
            real_log.display()
        );
        let supervisord = Supervisord::start(&[(NAME, section)]);
        let (real, ours) = (supervisord.client(), host.client());
        wait("its start", || (real.process_info(NAME).ok()?.statename == "RUNNING").then_some(()));
        let text = "0123456789".repeat(30) + "<&\n";
        for log in [&log, &real_log] {
            fs::write(log, &text).unwrap();
        }
        let same = |method: &str, params: Json| {
            let [real, ours] = [&real, &ours].map(|client| call(client, method, &params));
            assert_eq!(ours, real, "{method} {params}");
            ours
        };

        // Information: the same keys with the same types.
        let kinds = |info: &Json| -> BTreeSet<(String, String)> {
            let kind = |value: &Json| match value {
                Json::String(_) => "text",
                Json::Number(_) => "number",
                Json::Bool(_) => "boolean",
                Json::Array(_) => "list",
                _ => "other",
            };
            info.as_object().unwrap().iter().map(|(key, value)| (key.clone(), kind(value).into())).collect()
        };
        for method in ["supervisor.getAllProcessInfo", "supervisor.getAllConfigInfo"] {
            let [real, ours] = [&real, &ours].map(|client| call(client, method, &json!([]))[0].clone());
            assert_eq!(kinds(&ours), kinds(&real), "{method}");
            for key in
                ["name", "group", "state", "statename", "exitcodes", "startsecs", "stopsignal", "inuse"]
            {
                assert_eq!(ours[key], real[key], "{key}");
            }
        }
        let now = unix_now();
        let info = call(&ours, "supervisor.getProcessInfo", &json!([NAME]));
        for key in ["start", "now"] {
            assert!((now - 60..=now + 5).contains(&info[key].as_i64().unwrap()), "{info}");
        }
        assert_eq!(
            (&info["stop"], &info["exitstatus"], &info["spawnerr"]),
            (&json!(0), &json!(0), &json!(""))
        );
        assert_eq!(info["logfile"], log.display().to_string());

        same("supervisor.getAPIVersion", json!([]));
        same("supervisor.getVersion", json!([]));
        same("supervisor.getState", json!([]));
        for name in ["nope", "", "nope:*", &format!("{NAME}:nope"), &format!("{NAME}:*"), "a:b:c"] {
            same("supervisor.getProcessInfo", json!([name]));
        }
        // Parts of logs.
        for offset in [-1, 0, 3, -5, -100_000, 100, 290, 300, 303, 304, 100_000] {
            for length in [0, 1, 3, 7, 290, 100_000, -1] {
                same("supervisor.readProcessStdoutLog", json!([NAME, offset, length]));
                same("supervisor.tailProcessStdoutLog", json!([NAME, offset, length]));
            }
        }
        same("supervisor.readProcessLog", json!([NAME, "10", "10"]));
        same("supervisor.tailProcessLog", json!([NAME, 0, 1000]));
        same("supervisor.readProcessStderrLog", json!([NAME, 0, 0]));
        same("supervisor.tailProcessStderrLog", json!([NAME, 0, 10]));
        same("supervisor.readProcessLog", json!(["nope", 0, 0]));
        for log in [&log, &real_log] {
            fs::remove_file(log).unwrap();
        }
        same("supervisor.tailProcessLog", json!([NAME, 5, 10]));
        assert_eq!(
            call(&ours, "supervisor.readProcessLog", &json!([NAME, 0, 0])),
            json!({"fault": fault::NO_FILE, "text": format!("NO_FILE: {}", log.display())})
        );

        // Changes, with and without a wait, and faults.
        for (method, params) in [
            ("startProcess", json!([NAME])),
            ("startProcess", json!([NAME, false])),
            ("startProcess", json!(["nope"])),
            ("startProcess", json!([format!("{NAME}:*")])),
            ("startProcess", json!(["nope:*"])),
            ("startProcessGroup", json!(["nope", true])),
            ("startProcessGroup", json!([NAME])),
            ("startAllProcesses", json!([])),
            ("signalProcess", json!([NAME, "CONT"])),
            ("signalProcess", json!([NAME, 18])),
            ("signalProcess", json!([NAME, "nope"])),
            ("signalProcess", json!([format!("{NAME}:*"), "CONT"])),
            ("signalProcessGroup", json!([NAME, "CONT"])),
            ("signalProcessGroup", json!(["nope", "CONT"])),
            ("signalAllProcesses", json!(["nope"])),
            ("addProcessGroup", json!([NAME])),
            ("addProcessGroup", json!(["nope"])),
            ("removeProcessGroup", json!([NAME])),
            ("removeProcessGroup", json!(["nope"])),
            ("reloadConfig", json!([])),
            ("clearProcessLog", json!([NAME])),
            ("clearProcessLogs", json!(["nope"])),
            ("clearAllProcessLogs", json!([])),
            ("sendProcessStdin", json!(["nope", "x"])),
            ("stopProcessGroup", json!([NAME])),
            ("stopProcess", json!([NAME])),
            ("stopProcess", json!(["nope", false])),
            ("stopAllProcesses", json!([])),
            ("signalProcess", json!([NAME, "CONT"])),
            ("signalAllProcesses", json!(["CONT"])),
            ("sendProcessStdin", json!([NAME, "x"])),
            ("startProcess", json!([NAME, true])),
            ("stopProcess", json!([NAME, true])),
            ("startProcessGroup", json!([NAME])),
            ("stopProcess", json!([])),
            ("stopProcess", json!([NAME, true, true])),
            ("nonsense", json!([])),
            ("_update", json!([])),
        ] {
            same(&format!("supervisor.{method}"), params);
        }
        for method in ["nonsense", "supervisor", "supervisor.x.y", "__class__.x", "system.listmethods"] {
            same(method, json!([]));
        }

        // Several at once.
        same(
            "system.multicall",
            json!([[
                {"methodName": "supervisor.getState", "params": []},
                {"methodName": "supervisor.getState"},
                {"methodName": "supervisor.startProcess", "params": [NAME]},
                {"methodName": "supervisor.stopProcess", "params": [NAME]},
                {"methodName": "supervisor.stopProcess", "params": [NAME]},
                {"methodName": "supervisor.startProcess", "params": ["nope"]},
                {"methodName": "supervisor.nonsense"},
                {"methodName": "supervisor.startProcess", "params": []},
                {"methodName": "system.multicall", "params": [[]]},
                {"params": []},
                {}
            ]]),
        );
        same("system.multicall", json!([[]]));
        same("system.multicall", json!([5]));
        same("system.multicall", json!([]));

        // What there is: all that Supervisor has but events for listeners, which the agent does not run.
        let listed = |client: &SupervisorClient| -> BTreeSet<String> {
            serde_json::from_value(call(client, "system.listMethods", &json!([]))).unwrap()
        };
        let (real_methods, our_methods) = (listed(&real), listed(&ours));
        let missing: Vec<_> = real_methods.difference(&our_methods).collect();
        assert_eq!(missing, ["supervisor.sendRemoteCommEvent"]);
        for method in real_methods.intersection(&our_methods) {
            same("system.methodSignature", json!([method]));
            let help = call(&ours, "system.methodHelp", &json!([method]));
            assert!(help.as_str().unwrap().contains("@return "), "{method}");
        }
        same("system.methodHelp", json!(["nope"]));
        same("system.methodSignature", json!(["nope"]));
    });
    let own: Vec<_> =
        ["get_all_procs_info", "get_proc_info", "get_velociraptor_info"].map(|m| format!("vr.{m}")).into();
    let client = host.client();
    let listed: Vec<String> = tokio::task::block_in_place(|| {
        serde_json::from_value(call(&client, "system.listMethods", &json!([]))).unwrap()
    });
    assert!(own.iter().all(|method| listed.contains(method)));
}

fn unix_now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_hold_up_nobody() {
    let host = RpcHost::start(Vrun::StandIn).await;
    // Takes as long as the test wants.
    let go = host.host.path("go");
    let stubborn = host.host.path("stubborn.sh");
    fs::write(
        &stubborn,
        format!("trap '' TERM\necho up\nwhile [ ! -e {} ]; do sleep 0.05; done\n", go.display()),
    )
    .unwrap();
    host.deploy(NAME, &format!("cmd: sh {}\ngrace_period: 3600", stubborn.display())).await.unwrap();
    host.deploy(OTHER, "cmd: sleep 98765").await.unwrap();
    let (waiting, others) = (host.client(), host.client());
    let calls = json!([[
        {"methodName": "supervisor.stopAllProcesses", "params": [true]},
        {"methodName": "supervisor.getPID"}
    ]]);
    let waits = std::thread::spawn(move || call(&waiting, "system.multicall", &calls));
    tokio::task::block_in_place(|| {
        let state = |name| others.process_info(name).unwrap().statename;
        wait("the other's stop", || (state(OTHER) == "STOPPED" && state(NAME) == "STOPPING").then_some(()));
        let started = Instant::now();
        // Both a change and many looks.
        assert_eq!(call(&others, "supervisor.startProcess", &json!([OTHER])), json!(true));
        for _ in 0..20 {
            assert_eq!(state(NAME), "STOPPING");
        }
        assert_eq!(call(&others, "supervisor.stopProcess", &json!([OTHER, false])), json!(true));
        assert!(started.elapsed() < Duration::from_secs(10));
        assert!(!waits.is_finished());
        fs::write(&go, "").unwrap();
    });
    let results = waits.join().unwrap();
    let ok = |name: &str| json!({"name": name, "group": name, "status": 80, "description": "OK"});
    assert_eq!(results, json!([[ok(OTHER), ok(NAME)], host.host.agent_pid()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_can_be_read_after_a_proc_is_deleted() {
    let host = RpcHost::start(Vrun::StandIn).await;
    host.deploy(NAME, "cmd: sleep 98765").await.unwrap();
    fs::write(host.proc_dir(NAME).join("log"), "last words\n").unwrap();
    host.host
        .call::<vr_common::host_api::Deleted>(reqwest::Method::DELETE, &format!("procs/{NAME}"))
        .await
        .unwrap();
    tokio::task::block_in_place(|| {
        let client = host.client();
        assert!(client.process_info(NAME).unwrap_err().is_fault(fault::BAD_NAME));
        assert_eq!(call(&client, "supervisor.readProcessLog", &json!([NAME, 0, 0])), json!("last words\n"));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_carried_is_told_and_keeps_nothing_back() {
    let host = RpcHost::start(Vrun::StandIn).await;
    host.deploy(NAME, "cmd: sleep 98765\nsettings: {big: 4294967296}").await.unwrap();
    host.deploy(OTHER, "cmd: sleep 98765").await.unwrap();
    tokio::task::block_in_place(|| {
        let client = host.client();
        assert_eq!(
            call(&client, "vr.get_velociraptor_info", &json!([NAME])),
            json!({
                "fault": fault::FAILED,
                "text": "FAILED: proc.yaml.settings.big: 4294967296 cannot be carried by XML-RPC, whose integers go \
                         from -2147483648 to 2147483647"
            })
        );
        let all = call(&client, "vr.get_all_procs_info", &json!([]));
        assert_eq!(
            (&all[0]["velociraptor"]["proc_name"], &all[1]["velociraptor"]),
            (&json!("other"), &json!({}))
        );
        for bad in ["../../../../etc", "/etc", "", "nope"] {
            assert_eq!(call(&client, "vr.get_velociraptor_info", &json!([bad])), json!({}));
        }
    });
}
