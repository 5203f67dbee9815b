//! Changes that come and go over a real Redis.

use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use vr_common::host_api::ProcState;
use vr_common::process::command;
use vr_server::hosts::{Action, DriverKind, PubSub};
use vr_testing::until;

use crate::fleet::{Watched, watched_with};
use crate::rig::{HOST, More, PASSWORD, proc, programs};

struct Redis {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Redis {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        loop {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            drop(listener);
            let mut redis = command("redis-server");
            redis.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()]);
            let mut child = redis.arg("--dir").arg(dir.path()).stdout(Stdio::null()).spawn().unwrap();
            let mut ended = false;
            until("Redis answers", || {
                ended = child.try_wait().unwrap().is_some();
                ended || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !ended {
                return Self { child, port, _dir: dir };
            }
        }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// All messages from now on.
    fn messages(&self) -> mpsc::Receiver<Value> {
        let (sender, messages) = mpsc::channel();
        let (ready, subscribed) = mpsc::channel();
        let client = redis::Client::open(self.url()).unwrap();
        std::thread::spawn(move || {
            let mut connection = client.get_connection().unwrap();
            let mut pubsub = connection.as_pubsub();
            pubsub.subscribe("proc_events").unwrap();
            ready.send(()).unwrap();
            while let Ok(message) = pubsub.get_message() {
                let value = serde_json::from_slice(message.get_payload_bytes()).unwrap();
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        subscribed.recv().unwrap();
        messages
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn listening(redis: &Redis, watched: &Watched) {
    PubSub::new(&redis.url()).unwrap().start(&watched.fleet).unwrap();
    until("the server listens to Redis", || {
        let client = redis::Client::open(redis.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        let count: (String, i64) =
            redis::cmd("PUBSUB").arg("NUMSUB").arg("proc_events").query(&mut connection).unwrap();
        count.1 >= 1
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_proc_publisher_tells_is_known_without_asking() {
    let redis = Redis::start();
    let publisher = format!(
        "[eventlistener:proc_publisher]\ncommand={}\nevents=PROCESS_STATE,PROCESS_GROUP,TICK_60\n\
         environment=REDIS_URL=\"{}\",HOSTNAME={HOST},SUPERVISOR_USERNAME=velo,SUPERVISOR_PASSWORD=\"{PASSWORD}\"\n",
        programs().join("proc_publisher").display(),
        redis.url(),
    );
    let more = More { supervisord: publisher, ..More::default() };
    // Asked so rarely that this test would not live to see it.
    let watched = watched_with(DriverKind::Supervisor, more, "supervisor: {poll_seconds: 3600}").await;
    listening(&redis, &watched);
    let mut changes = watched.fleet.listen();
    // Somebody else than this server does it.
    let control = |word: &str| {
        let mut client = command("supervisorctl");
        client.args(["-s", &format!("http://127.0.0.1:{}", watched.rig.port), "-u", "velo", "-p", PASSWORD]);
        assert!(client.args([word, "foreign"]).output().unwrap().status.success());
    };
    for (word, state) in [("stop", ProcState::Stopped), ("start", ProcState::Running)] {
        control(word);
        let is = |proc: &vr_common::host_api::ProcDocument| proc.name == "foreign" && proc.statename == state;
        watched.until(state.name(), |view| view.procs.iter().any(is)).await;
    }
    control("stop");
    control("remove");
    watched.until("it is gone", |view| view.procs.iter().all(|proc| proc.name != "foreign")).await;
    let mut told = Vec::new();
    while told.last().is_none_or(|event| event != "PROCESS_GROUP_REMOVED") {
        let next = tokio::time::timeout(Duration::from_secs(10), changes.recv()).await;
        let change = next.unwrap_or_else(|_| panic!("only {told:?}")).unwrap();
        assert!(change.on_redis, "{change:?}");
        let state = change.change.proc.statename.name();
        assert!(
            change.change.event.ends_with("REMOVED") || change.change.event.ends_with(state),
            "{change:?}"
        );
        // Its first start may be among the news.
        if change.change.proc.name == "foreign" && (!told.is_empty() || change.change.event.contains("STOP"))
        {
            told.push(change.change.event.clone());
        }
    }
    assert_eq!(told.iter().filter(|event| *event == "PROCESS_STATE_RUNNING").count(), 1, "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_says_is_told_to_redis() {
    let redis = Redis::start();
    let watched = watched_with(DriverKind::Agent, More::default(), "").await;
    listening(&redis, &watched);
    let messages = redis.messages();
    let (name, yaml) = proc(5001, "cmd: sleep 4000");
    let driver = watched.rig.driver.clone();
    driver.deploy(&name, &yaml).await.unwrap();
    driver.act(&name, Action::Stop).await.unwrap();
    driver.delete(&name).await.unwrap();
    let mut told = Vec::new();
    while told.last().is_none_or(|event| event != "PROCESS_GROUP_REMOVED") {
        let message =
            messages.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|_| panic!("only {told:?}"));
        assert_eq!((&message["name"], &message["host"]), (&name.clone().into(), &HOST.into()));
        assert_eq!(message["id"], format!("{HOST}-{name}"));
        told.push(message["event"].as_str().unwrap().to_owned());
    }
    let states = [
        "PROCESS_STATE_STARTING",
        "PROCESS_STATE_RUNNING",
        "PROCESS_STATE_STOPPING",
        "PROCESS_STATE_STOPPED",
    ];
    let seen: Vec<_> = told.iter().filter(|event| states.contains(&event.as_str())).collect();
    assert_eq!(seen, states, "{told:?}");
}

/// An agent that tells Redis itself is not told a second time by the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_tells_itself_is_told_once() {
    let redis = Redis::start();
    let agent = vec!["--redis-url".to_owned(), redis.url()];
    let more = More { agent, name: Some(HOST), ..More::default() };
    let watched = watched_with(DriverKind::Agent, more, "").await;
    listening(&redis, &watched);
    let driver = watched.rig.driver.clone();
    let messages = redis.messages();
    let mut told: Vec<(String, String, bool)> = Vec::new();
    for port in [5001, 5002, 5003] {
        let (name, yaml) = proc(port, "cmd: sleep 4000");
        driver.deploy(&name, &yaml).await.unwrap();
        driver.delete(&name).await.unwrap();
        let is_over = |told: &[(String, String, bool)]| {
            told.iter().any(|(proc, event, _)| *proc == name && event == "PROCESS_GROUP_REMOVED")
        };
        while !is_over(&told) {
            let message = messages.recv_timeout(Duration::from_secs(20));
            let message = message.unwrap_or_else(|_| panic!("only {told:?}"));
            let text = |key: &str| message[key].as_str().unwrap().to_owned();
            told.push((text("name"), text("event"), message.get("told_by").is_some()));
        }
    }
    // From the first one on, the server knows.
    told.retain(|(name, ..)| *name != proc(5001, "").0);
    assert_eq!(told.len(), 10, "{told:?}");
    assert!(told.iter().all(|(.., by_server)| !by_server), "{told:?}");
}

/// Redis says nothing of a host without `proc_publisher`: that one is asked as often as ever, and what is found out is
/// told once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_redis_does_not_speak_of_is_asked_as_before() {
    let redis = Redis::start();
    let watched = watched_with(DriverKind::Supervisor, More::default(), "").await;
    listening(&redis, &watched);
    let up = |view: &vr_server::hosts::HostView| {
        view.procs.iter().all(|proc| proc.statename == ProcState::Running)
    };
    watched.until("all run", up).await;
    // Longer than it takes to be asked for the last time before Redis was listened to.
    let mut seen = watched.fleet.view(HOST).seen;
    let begun = std::time::Instant::now();
    for _ in 0..3 {
        seen = watched.until("it was asked again", |view| view.seen > seen).await.seen;
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "it is asked every 30 s: {:?}", begun.elapsed());

    let messages = redis.messages();
    let mut changes = watched.fleet.listen();
    let mut client = command("supervisorctl");
    client.args(["-s", &format!("http://127.0.0.1:{}", watched.rig.port), "-u", "velo", "-p", PASSWORD]);
    assert!(client.args(["stop", "foreign"]).output().unwrap().status.success());
    assert_eq!(messages.recv_timeout(Duration::from_secs(20)).unwrap()["event"], "PROCESS_STATE_STOPPED");
    for _ in 0..2 {
        seen = watched.until("it was asked again", |view| view.seen > seen).await.seen;
    }
    let change = changes.recv().await.unwrap();
    assert!(!change.on_redis && change.change.proc.name == "foreign", "{change:?}");
    assert!(changes.is_empty(), "told twice: {:?}", changes.recv().await);
}

/// A message that waited while Redis was away is of the past.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_older_than_what_is_known_is_not_believed() {
    let redis = Redis::start();
    let watched =
        watched_with(DriverKind::Supervisor, More::default(), "supervisor: {poll_seconds: 3600}").await;
    listening(&redis, &watched);
    let mut changes = watched.fleet.listen();
    let known = watched.fleet.view(HOST).procs.iter().find(|proc| proc.name == "foreign").cloned().unwrap();
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    for (now, why) in [("2001-02-03T04:05:06+00:00", "past"), ("2101-02-03T04:05:06+00:00", "present")] {
        let mut message = serde_json::to_value(&known).unwrap();
        assert_eq!(known.now.as_deref().map(str::len), Some(now.len()));
        message["now"] = now.into();
        message["event"] = "PROCESS_STATE_BACKOFF".into();
        message["spawnerr"] = why.into();
        redis::cmd("PUBLISH").arg("proc_events").arg(message.to_string()).exec(&mut connection).unwrap();
    }
    let change = tokio::time::timeout(Duration::from_secs(20), changes.recv()).await.unwrap().unwrap();
    assert_eq!(change.change.proc.spawnerr, "present");
}
