//! The API's streams, logs and clean-up, and callers who are slow, silent or gone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use harness::{
    NAME, PATIENCE, Refused, TOKEN, TestHost, Vrun, answer, folder, host, host_with, is_alive, proc_yaml,
    send, until,
};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use vr_agent::address::AgentAddress;
use vr_common::host_api::{
    CgroupVersion, CleanUpReport, Deleted, DeployRequest, Hello, HostInfo, KeptLogs, ProcChange,
    ProcDocument, ProcList, ProcState,
};
use vr_common::supervisor::SupervisorClient;

/// One message of a stream of events.
#[derive(Debug, Clone)]
struct Message {
    id: Option<String>,
    event: String,
    data: String,
}

impl Message {
    fn hello(&self) -> Hello {
        assert_eq!(self.event, "hello", "{self:?}");
        serde_json::from_str(&self.data).unwrap()
    }

    fn change(&self) -> ProcChange {
        let change: ProcChange = serde_json::from_str(&self.data).unwrap();
        assert_eq!(change.event, self.event);
        change
    }

    fn number(&self) -> u64 {
        self.id.as_ref().unwrap().rsplit_once('.').unwrap().1.parse().unwrap()
    }
}

/// A reader of `GET changes`.
struct Stream {
    response: reqwest::Response,
    read: Vec<u8>,
}

impl Stream {
    async fn open(host: &TestHost, last: Option<&str>) -> Self {
        let mut request = host.request(Method::GET, "changes").timeout(Duration::from_secs(600));
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, read: Vec::new() }
    }

    /// The next message, comments left out; none at the end.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(end) = self.read.windows(2).position(|pair| pair == b"\n\n") {
                let text: Vec<u8> = self.read.drain(..end + 2).collect();
                let text = String::from_utf8(text).unwrap();
                let field =
                    |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let (id, event, data) = (field("id: "), field("event: "), field("data: "));
                if let (Some(event), Some(data)) = (event, data) {
                    return Some(Message { id, event, data });
                }
                continue;
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("nothing comes");
            // A connection that breaks ends it as well.
            self.read.extend_from_slice(&chunk.ok().flatten()?);
        }
    }

    async fn message(&mut self) -> Message {
        self.next().await.expect("the stream goes on")
    }
}

fn name(port: u16) -> String {
    format!("demo-v1-prod-abcd1234-web-{port}")
}

async fn deploy(host: &TestHost, port: u16, more: &str) -> Result<ProcDocument, Refused> {
    let yaml = proc_yaml(more).replace("port: 5001", &format!("port: {port}"));
    let request = DeployRequest { proc_yaml: yaml };
    answer(host.request(Method::PUT, &format!("procs/{}", name(port))).json(&request)).await
}

/// As an operator does by hand: `supervisorctl add` and `remove`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proc_that_is_added_is_told_as_a_new_one_and_one_that_was_there_is_not() {
    let more = ["--supervisor-listen", "127.0.0.1:0"].map(str::to_owned);
    let mut host = host_with(Vrun::StandIn, &more, folder()).await;
    let call = |host: &TestHost, method: &str| {
        let said = AgentAddress::load(&host.path("address")).unwrap();
        let url = format!("http://{}", said.supervisor[0]);
        tokio::task::block_in_place(|| {
            let client = SupervisorClient::with_timeout(&url, None, PATIENCE).unwrap();
            client.call(&format!("supervisor.{method}"), &[NAME.into()]).unwrap();
        });
    };
    async fn told(stream: &mut Stream, last: &str) -> Vec<String> {
        let mut told = Vec::new();
        while told.last().is_none_or(|event| event != last) {
            told.push(stream.message().await.event);
        }
        told
    }
    let mut stream = Stream::open(&host, None).await;
    assert_eq!(stream.message().await.hello().procs, Some(Vec::new()));
    fs::create_dir_all(host.proc_dir()).unwrap();
    fs::write(host.proc_dir().join("proc.yaml"), proc_yaml("cmd: sleep 98765")).unwrap();
    for _ in 0..2 {
        call(&host, "addProcessGroup");
        let up = ["PROCESS_GROUP_ADDED", "PROCESS_STATE_STARTING", "PROCESS_STATE_RUNNING"];
        assert_eq!(told(&mut stream, "PROCESS_STATE_RUNNING").await, up);
        call(&host, "stopProcess");
        call(&host, "removeProcessGroup");
        let down = ["PROCESS_STATE_STOPPING", "PROCESS_STATE_STOPPED", "PROCESS_GROUP_REMOVED"];
        assert_eq!(told(&mut stream, "PROCESS_GROUP_REMOVED").await, down);
    }
    host.end_agent(Signal::TERM);
    host.start_agent().await;
    let mut stream = Stream::open(&host, None).await;
    assert_eq!(stream.message().await.hello().procs.unwrap().len(), 1);
    call(&host, "startProcess");
    let up = ["PROCESS_STATE_STARTING", "PROCESS_STATE_RUNNING"];
    assert_eq!(told(&mut stream, "PROCESS_STATE_RUNNING").await, up);
}

#[tokio::test]
async fn a_crowd_without_a_token_keeps_nobody_out() {
    let host = host(Vrun::StandIn).await;
    let mut stream = Stream::open(&host, None).await;
    stream.message().await.hello();
    // More than there are places, and none of them says a word.
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(host.address()).await.unwrap());
    }
    let begun = Instant::now();
    deploy(&host, 5001, "cmd: sleep 98765").await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(stream.message().await.event, "PROCESS_GROUP_ADDED", "who may call is not cut off");
    // The first ones had to go, the last ones may still want to say something.
    let mut byte = [0];
    assert_eq!(crowd[0].read(&mut byte).await.unwrap_or(0), 0);
    let mut last = crowd.pop().unwrap();
    let request = format!("GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    last.write_all(request.as_bytes()).await.unwrap();
    last.read_exact(&mut byte).await.unwrap();
}

#[tokio::test]
async fn a_reader_of_changes_misses_nothing_also_when_it_was_away() {
    let mut host = host(Vrun::StandIn).await;
    let mut stream = Stream::open(&host, None).await;
    let first = stream.message().await;
    let hello = first.hello();
    assert_eq!((hello.host.as_str(), hello.procs), ("testhost", Some(Vec::new())));
    let info: HostInfo = host.call(Method::GET, "info").await.unwrap();
    assert_eq!(hello.epoch, info.epoch);
    assert_eq!(first.id.as_deref(), Some(format!("{}.0", info.epoch).as_str()));

    let before = host.deploy(&proc_yaml("cmd: sleep 98765")).await.unwrap();
    let mut messages: Vec<Message> = Vec::new();
    while messages.last().is_none_or(|last| last.event != "PROCESS_STATE_RUNNING") {
        messages.push(stream.message().await);
    }
    let events: Vec<&str> = messages.iter().map(|message| message.event.as_str()).collect();
    assert_eq!(events.last(), Some(&"PROCESS_STATE_RUNNING"), "{events:?}");
    assert!(
        events.contains(&"PROCESS_GROUP_ADDED") && events.contains(&"PROCESS_STATE_STARTING"),
        "{events:?}"
    );
    let numbers: Vec<u64> = messages.iter().map(Message::number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let change = messages.last().unwrap().change();
    assert_eq!((change.proc.name.as_str(), change.proc.state, change.proc.pid), (NAME, 20, before.pid));
    assert_eq!(change.proc.id, format!("testhost-{NAME}"));
    let now = jiff::Timestamp::now().as_millisecond();
    assert!((now - 60_000..=now).contains(&change.at), "{} {now}", change.at);

    // Away, with something happening meanwhile; back by either way of saying where it was.
    let last = messages.last().unwrap().id.clone().unwrap();
    drop(stream);
    host.post("stop").await.unwrap();
    let mut stream = Stream::open(&host, Some(&last)).await;
    let hello = stream.message().await;
    assert_eq!((hello.hello().procs, hello.id.as_deref()), (None, Some(last.as_str())));
    let (stopping, stopped) = (stream.message().await, stream.message().await);
    assert_eq!(stopping.event, "PROCESS_STATE_STOPPING");
    assert_eq!(stopped.event, "PROCESS_STATE_STOPPED");
    assert_eq!(stopped.number(), numbers.len() as u64 + 2);
    let again = host.request(Method::GET, &format!("changes?after={last}"));
    let mut again = Stream { response: again.send().await.unwrap(), read: Vec::new() };
    assert_eq!(again.message().await.hello().procs, None);
    assert_eq!(again.message().await.number(), stopping.number());

    // An id that means nothing here is that of somebody who has to be told everything.
    for other in ["nonsense", "0.1", &format!("{}.x", info.epoch)] {
        let procs = Stream::open(&host, Some(other)).await.message().await.hello().procs.unwrap();
        assert_eq!((procs.len(), procs[0].statename), (1, ProcState::Stopped), "{other}");
    }
    let ahead = format!("{}.99999", info.epoch);
    let mut ahead = Stream::open(&host, Some(&ahead)).await;
    assert_eq!(ahead.message().await.hello().procs, None);
    assert_eq!(ahead.message().await.event, "lagged");
    assert_eq!(ahead.message().await.hello().procs.unwrap().len(), 1);
    let refused = host.call::<Value>(Method::GET, "changes?since=1").await.unwrap_err();
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);

    // Another agent, another epoch.
    let last = stopped.id.unwrap();
    host.end_agent(Signal::KILL);
    assert!(stream.next().await.is_none());
    host.start_agent().await;
    let hello = Stream::open(&host, Some(&last)).await.message().await.hello();
    assert_ne!(hello.epoch, info.epoch);
    assert_eq!(hello.procs.unwrap()[0].name, NAME);

    let mut stream = Stream::open(&host, None).await;
    stream.message().await;
    let _: Deleted = host.call(Method::DELETE, &format!("procs/{NAME}")).await.unwrap();
    let mut message = stream.message().await;
    while message.event != "PROCESS_GROUP_REMOVED" {
        message = stream.message().await;
    }
    assert_eq!(message.change().proc.name, NAME);
}

/// What a reader believes, from lists and changes alone.
#[derive(Default)]
struct Model {
    procs: BTreeMap<String, ProcState>,
    last: Option<String>,
}

impl Model {
    fn take(&mut self, message: &Message) {
        match message.event.as_str() {
            "hello" => {
                if let Some(procs) = message.hello().procs {
                    self.procs = procs.into_iter().map(|proc| (proc.name, proc.statename)).collect();
                }
            }
            "lagged" => return,
            "PROCESS_GROUP_REMOVED" => {
                self.procs.remove(&message.change().proc.name);
            }
            _ => {
                let proc = message.change().proc;
                self.procs.insert(proc.name, proc.statename);
            }
        }
        self.last.clone_from(&message.id);
    }
}

#[tokio::test]
async fn a_reader_that_is_cut_off_again_and_again_ends_up_with_the_truth() {
    let host = host(Vrun::StandIn).await;
    const PROCS: u16 = 6;
    for port in 5000..5000 + PROCS {
        deploy(&host, port, "cmd: sleep 98765\nstartsecs: 0").await.unwrap();
    }
    let changing = async {
        for round in 0..8_u16 {
            let port = 5000 + round % PROCS;
            for what in ["stop", "start", "restart"] {
                let path = format!("procs/{}/{what}", name(port));
                host.call::<ProcDocument>(Method::POST, &path).await.unwrap();
            }
        }
        let path = format!("procs/{}", name(5000));
        host.call::<Deleted>(Method::DELETE, &path).await.unwrap();
        host.call::<ProcDocument>(Method::POST, &format!("procs/{}/stop", name(5001))).await.unwrap();
    };
    let reading = async {
        let mut model = Model::default();
        let (mut lives, mut numbers) = (0, Vec::new());
        let is_last = |model: &Model| {
            model.procs.len() == usize::from(PROCS) - 1
                && model.procs.get(&name(5001)) == Some(&ProcState::Stopped)
        };
        while !is_last(&model) {
            let mut stream = Stream::open(&host, model.last.as_deref()).await;
            lives += 1;
            // Cut off in the middle of everything, a little later each time.
            for _ in 0..1 + lives % 7 {
                let message = stream.message().await;
                if message.event != "hello" {
                    numbers.push(message.number());
                }
                model.take(&message);
                if is_last(&model) {
                    // Nothing comes after it.
                    break;
                }
            }
        }
        (model, numbers)
    };
    let ((), (model, numbers)) = tokio::join!(changing, reading);
    let gaps: Vec<_> = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(gaps.is_empty(), "{gaps:?}");
    let list: ProcList = host.call(Method::GET, "procs").await.unwrap();
    let truth: BTreeMap<_, _> = list.procs.into_iter().map(|proc| (proc.name, proc.statename)).collect();
    assert_eq!(model.procs, truth);
}

/// A connection whose other side will take next to nothing.
async fn small(host: &TestHost) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1024).unwrap();
    socket.connect(host.address().parse::<SocketAddr>().unwrap()).await.unwrap()
}

async fn ask_by_hand(stream: &mut TcpStream, path: &str) {
    let request = format!("GET /v1/{path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
}

fn resident_kilobytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_never_read_are_cut_off_and_hold_nobody_up() {
    let host = host(Vrun::StandIn).await;
    // Ends as soon as it is up, is up at once, and so on.
    const FLAPPING: u16 = 12;
    for port in 5100..5100 + FLAPPING {
        let _ = deploy(&host, port, "cmd: sh -c \"head -c 3000 /dev/zero; exit 1\"\nstartsecs: 0").await;
    }
    host.deploy(&proc_yaml("cmd: sleep 98765")).await.unwrap();
    let mut stuck = Vec::new();
    for number in 0..60 {
        let mut stream = small(&host).await;
        let path = if number % 2 == 0 {
            "changes".to_owned()
        } else {
            format!("procs/{}/log/follow?bytes=1000000", name(5100))
        };
        ask_by_hand(&mut stream, &path).await;
        stuck.push(stream);
    }
    let mut silent = Vec::new();
    for beginning in ["", "GET /v1/in", "PUT /v1/procs/x HTTP/1.1\r\nHost: h\r\n", "\u{16}\u{3}\u{1}"] {
        let mut stream = small(&host).await;
        stream.write_all(beginning.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    let mut half = small(&host).await;
    let head = format!(
        "PUT /v1/procs/{NAME} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n{{\"proc"
    );
    half.write_all(head.as_bytes()).await.unwrap();

    // A reader that reads sees everything; others are answered; supervision goes on.
    let mut reader = Stream::open(&host, None).await;
    let mut last = reader.message().await.number();
    let begun = Instant::now();
    let mut before = host.look().await;
    let mut rss = (resident_kilobytes(host.agent_pid()), 0);
    while begun.elapsed() < Duration::from_secs(32) {
        for _ in 0..50 {
            let message = reader.message().await;
            assert_eq!((message.event != "lagged").then(|| message.number()), Some(last + 1));
            last += 1;
        }
        let asked = Instant::now();
        host.look().await;
        assert!(asked.elapsed() < Duration::from_secs(3), "an answer took {:?}", asked.elapsed());
        rss.1 = rss.1.max(resident_kilobytes(host.agent_pid()));
    }
    send(before.pid, Signal::KILL);
    before = host.until("the next life", |now| now.pid != 0 && now.pid != before.pid).await;
    assert!(is_alive(before.pid) && last > 1500, "{last} changes");
    assert!(rss.1 < rss.0 + 40_000, "the agent grew from {} to {} kB", rss.0, rss.1);

    // By now nobody waits for those who do not go on.
    let ends =
        stuck.into_iter().chain(silent).chain([half]).enumerate().map(|(number, mut stream)| async move {
            let mut rest = Vec::new();
            let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
            // A reset is an end, too.
            let _end: Result<usize, std::io::Error> = end
                .unwrap_or_else(|_| panic!("connection {number} is open still; it got {} bytes", rest.len()));
        });
    futures_util::future::join_all(ends).await;
}

#[tokio::test]
async fn there_are_only_so_many_streams() {
    let host = host(Vrun::StandIn).await;
    let mut open = Vec::new();
    let refused = loop {
        let request = host.request(Method::GET, "changes").timeout(Duration::from_secs(600));
        let response = request.send().await.unwrap();
        if response.status() != StatusCode::OK {
            break response;
        }
        open.push(response);
        assert!(open.len() <= 200);
    };
    assert_eq!((refused.status(), open.len()), (StatusCode::SERVICE_UNAVAILABLE, 128));
    assert!(refused.text().await.unwrap().contains("128 streams are open"));
    // Everything else goes on, and a place that is given up is one for somebody else.
    host.call::<ProcList>(Method::GET, "procs").await.unwrap();
    drop(open);
    let deadline = Instant::now() + PATIENCE;
    while host.request(Method::GET, "changes").send().await.unwrap().status() != StatusCode::OK {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn log(host: &TestHost, query: &str) -> (Option<u64>, String) {
    let response = host.request(Method::GET, &format!("procs/{NAME}/log{query}")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let size = response.headers().get("x-log-size").map(|size| size.to_str().unwrap().parse().unwrap());
    (size, response.text().await.unwrap())
}

#[tokio::test]
async fn a_log_is_read_in_parts_and_outlives_its_proc() {
    let host = host(Vrun::StandIn).await;
    host.deploy(&proc_yaml(r#"cmd: sh -c "echo 0123456789; exec sleep 98765""#)).await.unwrap();
    until("the output", || fs::read(host.proc_dir().join("log")).ok().filter(|log| log.len() == 11)).await;
    assert_eq!(log(&host, "?offset=3&length=4").await, (Some(11), "3456".to_owned()));
    assert_eq!(log(&host, "?offset=8").await, (Some(11), "89\n".to_owned()));
    assert_eq!(log(&host, "?length=2").await, (Some(11), "01".to_owned()));
    assert_eq!(log(&host, "?offset=11&length=1").await, (Some(11), String::new()));
    assert_eq!(log(&host, "?bytes=3").await, (None, "89\n".to_owned()));
    for bad in ["?bytes=1&offset=2", "?offset=-1", "?lines=1", "?offset=x"] {
        let refused = host.call::<Value>(Method::GET, &format!("procs/{NAME}/log{bad}")).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    let kept: KeptLogs = host.call(Method::GET, "logs").await.unwrap();
    assert_eq!(kept.logs, []);

    let follow = host.request(Method::GET, &format!("procs/{NAME}/log/follow?bytes=6"));
    let mut follow = follow.timeout(Duration::from_secs(600)).send().await.unwrap();
    assert_eq!(follow.chunk().await.unwrap().unwrap(), "56789\n");
    fs::OpenOptions::new()
        .append(true)
        .open(host.proc_dir().join("log"))
        .and_then(|mut log| std::io::Write::write_all(&mut log, b"last words\n"))
        .unwrap();
    let _: Deleted = host.call(Method::DELETE, &format!("procs/{NAME}")).await.unwrap();
    let rest = tokio::time::timeout(PATIENCE, follow.text()).await.expect("it ends with the proc").unwrap();
    assert_eq!(rest, "last words\n");

    let kept: KeptLogs = host.call(Method::GET, "logs").await.unwrap();
    assert_eq!((kept.logs.len(), kept.logs[0].name.as_str(), kept.logs[0].bytes), (1, NAME, 22));
    assert_eq!(log(&host, "?bytes=11").await.1, "last words\n");
    assert_eq!(log(&host, "/follow").await.1, "0123456789\nlast words\n", "what there is, and the end");
    let refused =
        host.call::<Value>(Method::GET, &format!("procs/{}/log/follow", name(1))).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_log_is_followed_through_vruns_own_rotation() {
    let host = host(Vrun::Real).await;
    // More than the 10 MB at which vrun moves a log on.
    let lines = 1_600_000;
    let cmd = format!(r#"cmd: sh -c "seq 1 {lines}; echo the end; exec sleep 98765""#);
    let deploy = async { host.deploy(&proc_yaml(&cmd)).await.unwrap() };
    let follow = async {
        let response = loop {
            let request = host.request(Method::GET, &format!("procs/{NAME}/log/follow?bytes=1000000"));
            let response = request.timeout(Duration::from_secs(600)).send().await.unwrap();
            if response.status() == StatusCode::OK {
                break response;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let (mut response, mut text) = (response, Vec::new());
        while !text.ends_with(b"the end\n") {
            text.extend(tokio::time::timeout(PATIENCE, response.chunk()).await.unwrap().unwrap().unwrap());
        }
        String::from_utf8(text).unwrap()
    };
    let (_, text) = tokio::join!(deploy, follow);
    assert!(host.proc_dir().join("log.1").exists());
    // The first line may be the end of one.
    let lines_of_it = text.lines().skip(1).take_while(|line| *line != "the end");
    let mut numbers = lines_of_it.map(|line| line.parse::<u32>().unwrap());
    let first = numbers.next().unwrap();
    let last = numbers.try_fold(first, |last, next| (next == last + 1).then_some(next));
    assert_eq!(last, Some(lines), "every line from {first} on, in order");
}

#[tokio::test]
async fn facts_and_clean_up_with_the_real_vrun() {
    let host = host(Vrun::Real).await;
    let info: HostInfo = host.call(Method::GET, "info").await.unwrap();
    assert_eq!(info.vrun_version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert!(info.cpus > 0 && info.memory_available_bytes > 0 && info.disk_total_bytes > info.disk_free_bytes);
    assert!(info.cgroups != CgroupVersion::None && info.uptime > 0 && !info.boot_id.is_empty());

    host.deploy(&proc_yaml("cmd: sleep 98765")).await.unwrap();
    let list: ProcList = host.call(Method::GET, "procs").await.unwrap();
    let usage = list.procs[0].usage.as_ref().expect("what it uses");
    assert!(usage.memory_bytes > 0, "{usage:?}");

    // What a deploy left that was cut off, an hour ago and just now; a download that was cut off; a tarball.
    let (old, new) = (host.path("root/procs").join(name(1)), host.path("root/procs").join(name(2)));
    for folder in [&old, &new] {
        fs::create_dir_all(folder.join("rootfs/app")).unwrap();
    }
    let builds = host.path("root/builds");
    fs::create_dir_all(&builds).unwrap();
    let unfinished = builds.join(".x.tar.part-0123456789abcdef");
    fs::write(&unfinished, "half").unwrap();
    let tarball = builds.join("old.tar.gz");
    fs::write(&tarball, "whole").unwrap();
    fs::write(builds.join(".old.tar.gz.sum"), "that it was fetched").unwrap();
    let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    for path in [&old, &old.join("rootfs"), &tarball] {
        let times = fs::FileTimes::new().set_accessed(hour_ago).set_modified(hour_ago);
        fs::File::open(path).unwrap().set_times(times).unwrap();
    }
    let clean = async |request: Value| -> CleanUpReport {
        answer(host.request(Method::POST, "clean-up").json(&request)).await.unwrap()
    };
    let planned = clean(json!({"dry_run": true, "unused_for": 1800})).await;
    assert!(planned.dry_run && old.exists() && unfinished.exists() && tarball.exists());
    assert_eq!((planned.procs.as_slice(), planned.errors.as_slice()), (&[name(1)][..], &[][..]));
    let kinds: Vec<&str> = planned.removed.iter().map(|removed| removed.kind.as_str()).collect();
    assert_eq!(kinds, ["left_proc", "unfinished_download", "unused_tarball"], "{planned:?}");
    let done = clean(json!({"unused_for": 1800})).await;
    assert_eq!(done, CleanUpReport { dry_run: false, ..planned });
    assert!(!old.exists() && !unfinished.exists() && !tarball.exists() && new.exists());
    // Nothing is left to do, and everything has a default.
    let again: CleanUpReport = answer(host.request(Method::POST, "clean-up")).await.unwrap();
    assert_eq!(again, CleanUpReport::default());
    let refused: Refused =
        answer::<Value>(host.request(Method::POST, "clean-up").json(&json!({"unused": 1})))
            .await
            .unwrap_err();
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(host.look().await.statename, ProcState::Running);
}

#[tokio::test]
async fn a_clean_up_that_fails_says_why() {
    let dir = folder();
    let host = host_with(Vrun::StandIn, &[], dir).await;
    let vrun = host.path("bin/vrun");
    fs::write(&vrun, "#!/bin/sh\necho 'ERROR: the disk is on fire' >&2\nexit 1\n").unwrap();
    fs::set_permissions(&vrun, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = answer::<Value>(host.request(Method::POST, "clean-up")).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(refused.body.error.contains("the disk is on fire"), "{refused:?}");
}
