//! `proc_publisher` where it belongs: in Debian's Supervisor, over both of its servers.

use std::fs;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;
use vr_common::process::command;
use vr_common::secret::Secret;
use vr_common::supervisor::{Login, SupervisorClient, fault};

use crate::parts::{RedisServer, end, free_port, until};

const PROC: &str = "node_example-v2-local-f96054b7-web-5003";

struct Supervisord {
    child: Child,
    dir: tempfile::TempDir,
    client: SupervisorClient,
}

impl Supervisord {
    /// Starts one whose own server is `server`, a section of its configuration, reached at `url`.
    fn start(dir: tempfile::TempDir, server: &str, url: &str, redis: &str, host: &str) -> Self {
        let path = dir.path().display();
        let publisher = env!("CARGO_BIN_EXE_proc_publisher");
        let config = format!(
            "[supervisord]\nlogfile={path}/log\npidfile={path}/pid\nchildlogdir={path}\nnodaemon=true\n\
             {server}\nusername=me\npassword=s3cret\n\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
             [eventlistener:proc_publisher]\ncommand={publisher}\nevents=PROCESS_STATE,PROCESS_GROUP,TICK_60\n\
             stderr_logfile={path}/publisher.log\n\
             environment=REDIS_URL=\"{redis}\",HOSTNAME={host},SUPERVISOR_USERNAME=me,SUPERVISOR_PASSWORD=s3cret\n\
             [program:sleeper]\ncommand=sleep 100000\nautostart=false\nstartsecs=0\n\
             [include]\nfiles={path}/procs/*.conf\n"
        );
        fs::create_dir(dir.path().join("procs")).unwrap();
        fs::write(
            dir.path().join("procs/proc.conf"),
            format!("[program:{PROC}]\ncommand=sleep 100000\nautostart=false\nstartsecs=0\n"),
        )
        .unwrap();
        let file = dir.path().join("supervisord.conf");
        fs::write(&file, config).unwrap();
        let child = command("supervisord")
            .arg("--configuration")
            .arg(file)
            .stdout(Stdio::null())
            .spawn()
            .expect("supervisor is installed");
        let login = Login { username: "me".into(), password: Secret::new("s3cret") };
        let client = SupervisorClient::new(url, Some(&login)).unwrap();
        let mut started = Self { child, dir, client };
        until("supervisord and its listener", || {
            assert!(started.child.try_wait().unwrap().is_none(), "supervisord ended: {}", started.log("log"));
            started.client.process_info("proc_publisher").ok().filter(|info| info.statename == "RUNNING")
        });
        started
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Supervisord {
    fn drop(&mut self) {
        // It ends its children first.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        for _ in 0..500 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        end(&mut self.child);
    }
}

#[test]
fn over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("supervisor.sock").display().to_string();
    let redis = RedisServer::start();
    let section = format!("[unix_http_server]\nfile={socket}");
    let supervisord =
        Supervisord::start(dir, &section, &format!("unix://{socket}"), &redis.url(), "precise64");
    the_life_of_a_proc_is_published(&supervisord, redis);
}

#[test]
fn over_tcp() {
    let redis = RedisServer::start();
    let (supervisord, _) = over_a_port(&redis, "precise64");
    the_life_of_a_proc_is_published(&supervisord, redis);
}

/// One that is reached at a port, which is given too.
fn over_a_port(redis: &RedisServer, host: &str) -> (Supervisord, u16) {
    let port = free_port();
    let section = format!("[inet_http_server]\nport=127.0.0.1:{port}");
    let url = format!("http://127.0.0.1:{port}");
    let dir = tempfile::tempdir().unwrap();
    (Supervisord::start(dir, &section, &url, &redis.url(), host), port)
}

/// Prints the procs of the cache, by a client that could not ask anybody else, and those of Supervisor itself.
const READER: &str = r#"
import json, logging, sys
from vr.common.models import Host
redis, port, proc = sys.argv[1], int(sys.argv[2]), sys.argv[3]
logging.disable()
cached = Host("localhost", rpc_or_port=1, redis_or_url=redis)
live = Host("localhost", rpc_or_port=port, supervisor_username="me", supervisor_password="s3cret")
def listed(procs):
    return {proc.name: proc.as_dict() for proc in procs}
print(json.dumps({
    "cached": listed(cached.get_procs(check_cache=True)),
    "live": listed(live.get_procs()),
    "one cached": cached.get_proc(proc, check_cache=True).as_dict(),
}))
"#;

/// What a client prints that only knows the names of the published one.
fn read(redis: &RedisServer, port: u16) -> Json {
    let reader = command(vr_testing::published_python())
        .args(["-c", READER, &redis.url(), &port.to_string(), PROC])
        .output()
        .unwrap();
    assert!(reader.status.success(), "{}", String::from_utf8_lossy(&reader.stderr));
    let mut read: Json = serde_json::from_slice(&reader.stdout).unwrap();
    // They were not asked at the same time.
    let procs = read.as_object_mut().unwrap();
    let one = procs.get_mut("one cached").unwrap();
    one.as_object_mut().unwrap().retain(|key, _| !["now", "description"].contains(&key.as_str()));
    for list in ["cached", "live"] {
        for proc in procs[list].as_object_mut().unwrap().values_mut() {
            let proc = proc.as_object_mut().unwrap();
            assert!(proc.remove("now").is_some() && proc.remove("description").is_some(), "{proc:?}");
        }
    }
    read
}

#[test]
fn the_published_reader_of_the_cache_finds_the_procs_that_supervisor_has() {
    let redis = RedisServer::start();
    // The published client reaches a host by the name that its cache has.
    let (supervisord, port) = over_a_port(&redis, "localhost");
    let client = &supervisord.client;
    for statename in ["RUNNING", "STOPPED", "RUNNING"] {
        let change = if statename == "RUNNING" { "startProcess" } else { "stopProcess" };
        client.call(&format!("supervisor.{change}"), &[PROC.into()]).unwrap();
        let pid = client.process_info(PROC).unwrap().pid;
        until("the cache", || {
            let cache = redis.cache("localhost");
            (cache.len() == 3 && cache[PROC]["statename"] == statename && cache[PROC]["pid"] == pid)
                .then_some(())
        });
        let read = read(&redis, port);
        assert_eq!(read["cached"], read["live"], "{statename}");
        assert_eq!(read["cached"].as_object().unwrap().len(), 3, "{read:#}");
        let one = &read["one cached"];
        assert_eq!(one, &read["live"][PROC]);
        assert_eq!(one["statename"], statename);
        assert_eq!((&one["app_name"], &one["port"]), (&"node_example".into(), &5003.into()));
        assert_eq!(one["host"], "localhost");
    }
    client.call("supervisor.stopProcess", &[PROC.into()]).unwrap();
    client.call("supervisor.removeProcessGroup", &[PROC.into()]).unwrap();
    until("the cache", || (redis.cache("localhost").len() == 2).then_some(()));
}

fn the_life_of_a_proc_is_published(supervisord: &Supervisord, mut redis: RedisServer) {
    let client = &supervisord.client;
    let messages = redis.subscribe();
    client.start_process(PROC).unwrap();
    client.start_process(PROC).unwrap();
    let started = messages.next_of("PROCESS_STATE_RUNNING", PROC);
    let info = client.process_info(PROC).unwrap();
    assert_eq!(started["pid"], Json::from(info.pid));
    assert_eq!((&started["statename"], &started["state"]), (&"RUNNING".into(), &20.into()));
    assert_eq!((&started["app_name"], &started["port"]), (&"node_example".into(), &5003.into()));
    assert_eq!(
        (&started["host"], &started["id"]),
        (&"precise64".into(), &format!("precise64-{PROC}").into())
    );
    assert_eq!(started["start_time"], Json::from(info.document("precise64").start_time));
    assert_eq!(started["stop_time"], Json::Null);
    let cached = until("the cache", || {
        let cache = redis.cache("precise64");
        (cache.len() == 3 && cache[PROC]["statename"] == "RUNNING").then_some(cache)
    });
    assert_eq!(cached[PROC]["start"], Json::from(info.start));
    assert!(!cached[PROC].as_object().unwrap().contains_key("start_time"));

    // Supervisor goes on while Redis is away.
    redis.kill();
    for _ in 0..3 {
        client.start_process("sleeper").unwrap();
        client.stop_process("sleeper").unwrap();
        until("the stop", || client.process_info("sleeper").ok().filter(|info| info.statename == "STOPPED"));
    }
    redis.start_again();
    let messages = redis.subscribe();
    client.stop_process(PROC).unwrap();
    until("the stop", || client.process_info(PROC).ok().filter(|info| info.statename == "STOPPED"));
    client.stop_process(PROC).unwrap();
    let stopped = messages.next_of("PROCESS_STATE_STOPPED", PROC);
    assert_eq!((&stopped["pid"], &stopped["statename"]), (&0.into(), &"STOPPED".into()));
    assert!(stopped["stop_time"].as_str().unwrap().ends_with("+00:00"));

    client.call("supervisor.removeProcessGroup", &[PROC.into()]).unwrap();
    assert!(client.process_info(PROC).unwrap_err().is_fault(fault::BAD_NAME));
    let removed = messages.next_of("PROCESS_GROUP_REMOVED", PROC);
    assert_eq!((&removed["hash"], &removed["version"]), (&"f96054b7".into(), &"v2".into()));
    until("the cache", || (redis.cache("precise64").len() == 2).then_some(()));

    // One and the same listener all along, and nothing of it but the protocol on its standard output.
    let log = supervisord.log("log");
    assert_eq!(log.matches("spawned: 'proc_publisher'").count(), 1, "{log}");
    assert!(!log.contains("UNKNOWN") && !log.contains("bad result"), "{log}");
    let own = supervisord.log("publisher.log");
    assert!(own.contains("publishing works again"), "{own}");
}
