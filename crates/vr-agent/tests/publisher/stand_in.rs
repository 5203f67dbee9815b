//! `proc_publisher` as a child, between a stand-in for Supervisor and a real Redis.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value as Json;

use crate::parts::{Listener, RedisServer, StandInSupervisor, until, vectors};

const RUNNING: &str = "processname:dummyproc groupname:dummyproc from_state:STARTING pid:42";

#[test]
fn the_events_of_the_vectors_are_published_and_cached() {
    let (redis, supervisor) = (RedisServer::start(), StandInSupervisor::start());
    let messages = redis.subscribe();
    let mut listener = Listener::start_with(&supervisor.url, &redis.url());
    let mut published = 0;
    for case in vectors()["proc_publisher"].as_array().unwrap() {
        // What was cached before must not stay.
        let key = "host_procs:somewhere";
        redis::cmd("HSET").arg(key).arg("gone").arg("{}").exec(&mut redis.connection()).unwrap();
        listener.event(case["eventname"].as_str().unwrap(), case["payload"].as_str().unwrap());
        for expected in case["published"].as_array().unwrap() {
            let (mut got, mut expected) = (messages.next(), expected["message"].clone());
            if let Some(time) = expected.as_object_mut().unwrap().remove("time") {
                let got_time = got.as_object_mut().unwrap().remove("time").unwrap();
                assert_eq!(got_time.as_str().unwrap().len(), time.as_str().unwrap().len(), "{got_time}");
            }
            assert_eq!(got, expected);
            published += 1;
        }
        let expected = vectors()["supervisor_process_info"].as_object().unwrap().clone();
        until("the cache", || (redis.cache("somewhere") == expected).then_some(()));
        let seconds: i64 = redis::cmd("TTL").arg(key).query(&mut redis.connection()).unwrap();
        assert!((590..=600).contains(&seconds), "{seconds}");
    }
    assert_eq!(published, 3);
    let (status, said, log) = listener.finish();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""), "{log}");
}

#[test]
fn without_its_settings_it_says_so_and_ends() {
    let supervisor = ("SUPERVISOR_SERVER_URL", "unix:///nowhere.sock");
    let redis = ("REDIS_URL", "redis://127.0.0.1:1/0");
    for (variables, expected) in [
        (&[redis][..], "ERROR: the environment variable SUPERVISOR_SERVER_URL is not set"),
        (&[supervisor], "ERROR: the environment variable REDIS_URL is not set"),
        (&[supervisor, ("REDIS_URL", "rediss://:s3cret@h")], "ERROR: REDIS_URL is not an address of Redis"),
    ] {
        let (status, said, log) = Listener::start(variables).finish();
        assert_eq!((status.code(), said.as_str()), (Some(2), ""), "{log}");
        assert!(log.contains(expected) && log.contains("hint: ") && !log.contains("s3cret"), "{log}");
    }
}

#[test]
fn the_hosts_own_name_is_used_where_none_is_given() {
    let (redis, supervisor) = (RedisServer::start(), StandInSupervisor::start());
    let messages = redis.subscribe();
    let variables = [("SUPERVISOR_SERVER_URL", supervisor.url.as_str()), ("REDIS_URL", &redis.url())];
    let mut listener = Listener::start(&variables);
    listener.write(&format!("ver:3.0 eventname:PROCESS_STATE_RUNNING len:{}\n{RUNNING}", RUNNING.len()));
    let message = messages.next();
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert!(message["host"].as_str().unwrap().starts_with(&own), "{message}");
}

#[test]
fn what_is_no_event_ends_it() {
    let mut listener = Listener::start_with("unix:///nowhere.sock", "redis://127.0.0.1:1/0");
    listener.write("RESULT 2\n");
    let (status, said, log) = listener.finish();
    assert_eq!((status.code(), said.as_str()), (Some(1), ""));
    assert!(log.contains("not an event of Supervisor: expected a header with ver:"), "{log}");
}

#[test]
fn redis_may_go_and_come_back() {
    let (mut redis, supervisor) = (RedisServer::start(), StandInSupervisor::start());
    let messages = redis.subscribe();
    let mut listener = Listener::start_with(&supervisor.url, &redis.url());
    listener.event("PROCESS_STATE_RUNNING", RUNNING);
    assert_eq!(messages.next()["name"], "dummyproc");

    redis.kill();
    for _ in 0..100 {
        listener.event("PROCESS_STATE_RUNNING", RUNNING);
        listener.event("TICK_60", "when:1");
    }
    redis.start_again();
    let messages = redis.subscribe();
    listener.event("PROCESS_GROUP_REMOVED", "groupname:last");
    assert_eq!(messages.next_of("PROCESS_GROUP_REMOVED", "last")["host"], "somewhere");
    until("the cache", || (redis.cache("somewhere").len() == 2).then_some(()));
    let (status, _, log) = listener.finish();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("cannot tell Redis") && log.contains("publishing works again"), "{log}");
}

#[test]
fn a_redis_that_hangs_holds_up_nobody_and_loses_nothing() {
    let (redis, supervisor) = (RedisServer::start(), StandInSupervisor::start());
    let messages = redis.subscribe();
    let mut listener = Listener::start_with(&supervisor.url, &redis.url());
    listener.event("PROCESS_STATE_RUNNING", RUNNING);
    messages.next();
    redis.signal(Signal::STOP);
    let mut slowest = Duration::ZERO;
    for i in 0..200 {
        let sent = Instant::now();
        listener.event("PROCESS_GROUP_REMOVED", &format!("groupname:g{i}"));
        slowest = slowest.max(sent.elapsed());
    }
    // Far less than any time that Redis is given, and Supervisor hears `READY` all along.
    assert!(slowest < Duration::from_secs(1), "Supervisor waited for {slowest:?}");
    redis.signal(Signal::CONT);
    let mut next = 0;
    while next < 200 {
        // One may come twice, if its acknowledgement was late.
        let name = messages.next()["name"].clone();
        if name == format!("g{next}") {
            next += 1;
        } else {
            assert_eq!(name, format!("g{}", next - 1));
        }
    }
}

#[test]
fn a_supervisor_that_does_not_answer_is_asked_again() {
    let (redis, supervisor) = (RedisServer::start(), StandInSupervisor::start());
    let messages = redis.subscribe();
    let mut listener = Listener::start_with(&supervisor.url, &redis.url());
    supervisor.set_silent(true);
    listener.event("PROCESS_STATE_RUNNING", RUNNING);
    listener.event("PROCESS_STATE_RUNNING", "processname:gone groupname:gone");
    supervisor.set_silent(false);
    assert_eq!(messages.next()["pid"], 5556);
    // An unknown process has nothing to say, and is in nobody's way.
    listener.event("PROCESS_GROUP_REMOVED", "groupname:gone");
    assert_eq!(messages.next()["event"], "PROCESS_GROUP_REMOVED");
    let (_, _, log) = listener.finish();
    assert!(log.contains("fault 10: BAD_NAME"), "{log}");
}

#[test]
fn an_end_without_redis_does_not_wait_for_it() {
    let supervisor = StandInSupervisor::start();
    let mut listener = Listener::start_with(&supervisor.url, "redis://127.0.0.1:1/0");
    listener.event("PROCESS_STATE_RUNNING", RUNNING);
    let (status, _, log) = listener.finish();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("ended before everything was published"), "{log}");
}

/// Resident memory, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How much more memory a listener may have at the end than when its queue was full for the first time, in KiB.
const GROWTH: u64 = 2048;

/// Sends events of all kinds, about one proc in three.
fn send(listener: &mut Listener, count: usize) {
    for i in 0..count {
        match i % 3 {
            0 => listener.event("PROCESS_STATE_RUNNING", RUNNING),
            1 => listener.event("PROCESS_GROUP_REMOVED", "groupname:node_example-v2-local-f96054b7-web-5003"),
            _ => listener.event("TICK_60", "when:1356028501"),
        }
    }
}

/// The memory after ten thousand events, which fill the queue whatever was published meanwhile, and after a hundred
/// thousand.
fn does_not_grow(listener: &mut Listener) {
    send(listener, 10_000);
    let before = resident(listener.pid());
    send(listener, 90_000);
    let after = resident(listener.pid());
    println!("resident: {before} KiB after 10,000 events, {after} KiB after 100,000");
    assert!(after < before + GROWTH, "{before} KiB grew to {after} KiB");
}

#[test]
fn a_hundred_thousand_events_do_not_make_it_grow() {
    let (mut redis, supervisor) = (RedisServer::start(), StandInSupervisor::start());
    let mut listener = Listener::start_with(&supervisor.url, &redis.url());
    does_not_grow(&mut listener);
    // Nor does a Redis that goes and comes back in the middle.
    let before = resident(listener.pid());
    redis.kill();
    send(&mut listener, 10_000);
    redis.start_again();
    let messages = redis.subscribe();
    listener.event("PROCESS_GROUP_REMOVED", "groupname:last");
    assert_eq!(
        messages.next_of("PROCESS_GROUP_REMOVED", "last")["payload_headers"]["groupname"],
        Json::from("last")
    );
    let after = resident(listener.pid());
    assert!(after < before + GROWTH, "{before} KiB grew to {after} KiB");
    let (_, _, log) = listener.finish();
    assert!(log.contains("too many messages waited, the oldest were dropped"), "{log}");
}

#[test]
fn a_hundred_thousand_events_without_redis_do_not_make_it_grow() {
    let supervisor = StandInSupervisor::start();
    let mut listener = Listener::start_with(&supervisor.url, "redis://127.0.0.1:1/0");
    does_not_grow(&mut listener);
    let (status, _, log) = listener.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("cannot tell Redis"), "{log}");
    // The log of a Redis that stays away is a line a try, and tries become rare.
    assert!(log.lines().count() < 200, "{} lines", log.lines().count());
}
