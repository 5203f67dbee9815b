//! The agent publishes its own procs to a real Redis, as `proc_publisher` does those of a Supervisor.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;
#[allow(dead_code, reason = "not every test binary uses everything")]
#[path = "publisher/parts.rs"]
mod parts;

use harness::{NAME, TestHost, Vrun, folder, host_with, proc_yaml, send};
use parts::{RedisServer, until};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value as Json;
use vr_common::host_api::{Deleted, ProcState};

/// What the host's cache has of the proc.
fn cached(redis: &RedisServer) -> Option<Json> {
    redis.cache("testhost").remove(NAME)
}

fn until_cached(redis: &RedisServer, statename: &str) -> Json {
    until(statename, || cached(redis).filter(|info| info["statename"] == statename))
}

async fn publishing_to(redis: &RedisServer) -> TestHost {
    host_with(Vrun::StandIn, &["--redis-url".to_owned(), redis.url()], folder()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_proc_is_published() {
    let redis = RedisServer::start();
    let messages = redis.subscribe();
    let host = publishing_to(&redis).await;
    let up = host.deploy(&proc_yaml("cmd: sleep 98765")).await.unwrap();
    let started = messages.next();
    assert_eq!((&started["event"], &started["name"]), (&"PROCESS_STATE_STARTING".into(), &NAME.into()));
    let mut running = messages.next();
    let mut shown = serde_json::to_value(&up).unwrap();
    let mut info = until_cached(&redis, "RUNNING");
    // They were made at different moments.
    for document in [&mut running, &mut shown, &mut info] {
        let document = document.as_object_mut().unwrap();
        assert!(document.remove("now").is_some() && document.remove("description").is_some());
        document.remove("usage");
    }
    assert_eq!(running.as_object_mut().unwrap().remove("event"), Some("PROCESS_STATE_RUNNING".into()));
    assert_eq!(running, shown);
    for key in ["name", "group", "pid", "state", "logfile", "stdout_logfile", "exitstatus", "spawnerr"] {
        assert_eq!(info[key], shown[key], "{key}");
    }
    assert!(info["start"].as_i64() > Some(1_700_000_000) && info["stop"] == 0, "{info}");
    let seconds: i64 = redis::cmd("TTL").arg("host_procs:testhost").query(&mut redis.connection()).unwrap();
    assert!((590..=600).contains(&seconds), "{seconds}");

    send(up.pid, Signal::KILL);
    for event in ["PROCESS_STATE_EXITED", "PROCESS_STATE_STARTING", "PROCESS_STATE_RUNNING"] {
        assert_eq!(messages.next()["event"], event);
    }
    let _: Deleted = host.call(Method::DELETE, &format!("procs/{NAME}")).await.unwrap();
    for event in ["PROCESS_STATE_STOPPING", "PROCESS_STATE_STOPPED"] {
        assert_eq!(messages.next()["event"], event);
    }
    let removed = messages.next();
    assert_eq!((&removed["event"], &removed["name"]), (&"PROCESS_GROUP_REMOVED".into(), &NAME.into()));
    assert_eq!(removed["payload_headers"], serde_json::json!({ "groupname": NAME }));
    assert_eq!((&removed["app_name"], &removed["port"]), (&"demo".into(), &5001.into()));
    until("an empty cache", || redis.cache("testhost").is_empty().then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_away_holds_up_nothing_and_is_told_later() {
    let mut redis = RedisServer::start();
    let messages = redis.subscribe();
    let mut host = publishing_to(&redis).await;
    until("the connection", || host.agent_log().contains("serving").then_some(()));
    redis.signal(Signal::STOP);
    let up = host.deploy(&proc_yaml("cmd: sleep 98765")).await.unwrap();
    assert_eq!(up.statename, ProcState::Running);
    host.post("stop").await.unwrap();
    redis.signal(Signal::CONT);
    // A message may come twice: its answer may have been lost. None is missing.
    for event in ["STARTING", "RUNNING", "STOPPING", "STOPPED"] {
        messages.next_of(&format!("PROCESS_STATE_{event}"), NAME);
    }
    until_cached(&redis, "STOPPED");

    redis.kill();
    host.post("start").await.unwrap();
    redis.start_again();
    until_cached(&redis, "RUNNING");
    // An agent that ends while Redis does not answer ends all the same.
    redis.signal(Signal::STOP);
    host.post("stop").await.unwrap();
    assert_eq!(host.end_agent(Signal::TERM), Some(0));
    assert!(host.agent_log().contains("ended before everything was published"));
    redis.signal(Signal::CONT);
}
