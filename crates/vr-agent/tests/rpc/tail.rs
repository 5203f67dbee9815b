//! Logs that are followed, with `supervisorctl tail -f`.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use vr_common::host_api::Deleted;
use vr_testing::Started;

use crate::harness::{Vrun, send, until};
use crate::parts::{Lines, RpcHost, supervisorctl, wait};

const NAME: &str = "demo-v1-prod-abcd1234-web-5001";

fn append(log: &Path, text: &str) {
    let mut log = fs::File::options().create(true).append(true).open(log).unwrap();
    log.write_all(text.as_bytes()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_lines_are_seen_across_a_rotation_until_the_proc_is_gone() {
    let host = RpcHost::start(Vrun::StandIn).await;
    host.deploy(NAME, "cmd: sleep 98765").await.unwrap();
    let log = host.proc_dir(NAME).join("log");
    append(&log, &format!("{}before\n", "x".repeat(2000)));
    let mut tail = Started::new(host.ctl().args(["tail", "-f", NAME]));
    tokio::task::block_in_place(|| {
        tail.until_output("==> Press Ctrl-C to exit <==");
        let first = tail.until_output("before");
        assert!((900..=1024).contains(&first.len()), "the last KiB: {first}");
        append(&log, "one\n");
        tail.until_output("one");
        // As vrun does it.
        append(&log, "two\n");
        fs::rename(&log, log.with_file_name("log.1")).unwrap();
        append(&log, "three\n");
        assert_eq!(tail.until_output("t").trim_end(), "two");
        tail.until_output("three");
        append(&log, "last words\n");
    });
    host.host.call::<Deleted>(Method::DELETE, &format!("procs/{NAME}")).await.unwrap();
    let ended = tokio::task::block_in_place(|| tail.end());
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "last words\n", ""));
}

/// With the real vrun, which rotates by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_when_vrun_rotates_the_log() {
    const LINES: usize = 150_000;
    let host = RpcHost::start(Vrun::Real).await;
    let line = "x".repeat(72);
    let go = "/app/go";
    let script = format!(
        "while [ ! -e {go} ]; do sleep 0.05; done; \
         i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo $i {line}; done; exec sleep 98765"
    );
    let command = serde_json::to_string(&format!("sh -c '{script}'")).unwrap();
    host.deploy(NAME, &format!("cmd: {command}")).await.unwrap();
    let log = host.proc_dir(NAME).join("log");
    append(&log, "begin\n");
    let mut tail = Started::new(host.ctl().args(["tail", "-f", NAME]));
    let lines = Lines::of(&mut tail);
    tokio::task::block_in_place(|| {
        lines.until("begin");
        let app = host.proc_dir(NAME).join("rootfs/app");
        fs::create_dir_all(&app).unwrap();
        fs::write(app.join("go"), "").unwrap();
        for number in 1..=LINES {
            assert_eq!(lines.next(), Some(format!("{number} {line}")));
        }
        assert!(log.with_file_name("log.1").exists());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_leave_cost_nothing() {
    let host = RpcHost::start(Vrun::StandIn).await;
    host.deploy(NAME, "cmd: sleep 98765").await.unwrap();
    append(&host.proc_dir(NAME).join("log"), "hello\n");
    // One that stays, so that what the agent keeps open for itself is open.
    let mut first = Started::new(host.ctl().args(["tail", "-f", NAME]));
    tokio::task::block_in_place(|| first.until_output("hello"));
    let before = host.open_files();
    for url in [host.url(), host.socket()] {
        let mut tails: Vec<Started> =
            (0..4).map(|_| Started::new(supervisorctl(&url).args(["tail", "-f", NAME]))).collect();
        tokio::task::block_in_place(|| tails.iter_mut().for_each(|tail| drop(tail.until_output("hello"))));
        assert!(host.open_files() >= before + 4);
        for tail in tails {
            send(tail.0.id(), Signal::KILL);
        }
        // The log says nothing all along: nobody writes to the connections.
        until("the connections' end", || (host.open_files() <= before).then_some(())).await;
    }
    tokio::task::block_in_place(|| {
        append(&host.proc_dir(NAME).join("log"), "still here\n");
        first.until_output("still here");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_sleeps_holds_up_nobody() {
    let host = RpcHost::start(Vrun::StandIn).await;
    host.deploy(NAME, "cmd: sleep 98765").await.unwrap();
    let log = host.proc_dir(NAME).join("log");
    append(&log, "hello\n");
    let mut asleep = Started::new(host.ctl().args(["tail", "-f", NAME]));
    let mut awake = Started::new(host.ctl().args(["tail", "-f", NAME]));
    tokio::task::block_in_place(|| {
        asleep.until_output("hello");
        let lines = Lines::of(&mut awake);
        lines.until("hello");
        send(asleep.0.id(), Signal::STOP);
        let before = host.resident();
        for round in 0..8 {
            append(&log, &format!("{}\n", "x".repeat(999)).repeat(1000));
            append(&log, &format!("round {round} is over\n"));
            lines.until(&format!("round {round} is over"));
        }
        let after = host.resident();
        assert!(after < before + 4096, "{before} KiB grew to {after} KiB for a reader that reads nothing");
        let started = std::time::Instant::now();
        let client = host.client();
        client.stop_process(NAME).unwrap();
        wait("the stop", || (client.process_info(NAME).ok()?.pid == 0).then_some(()));
        assert!(started.elapsed() < Duration::from_secs(5));
        send(asleep.0.id(), Signal::CONT);
    });
}
