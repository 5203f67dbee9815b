//! What every backend whose pools are files must do when things go wrong, with real programs and real traffic.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use vr_balancer::BalancerError;
use vr_balancer::balancer::SiteReport;
use vr_common::names::Node;
use vr_testing::SudoRule;

use crate::fixtures::{
    ApacheKind, CaddyKind, Files, Fixture, HaproxyKind, Kind, NginxKind, VarnishKind, nodes,
};
use crate::support::{
    DEADLINE, DeadAddress, HttpNode, SLOW_BYTES, blocking, header, in_time, node, pool, read_head,
    read_until, status,
};

/// Makes these tests for one kind of program, in a module of this name.
macro_rules! tests_of {
    ($module:ident, $kind:expr; $($test:ident)+) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($kind).await;
            })+
        }
    };
}

/// Makes all of them for each of these kinds.
macro_rules! all_tests_of {
    ($($module:ident: $kind:expr),+ $(,)?) => {
        $(tests_of!($module, $kind;
            traffic_follows_the_pool
            nothing_is_done_when_nothing_changes
            a_bad_configuration_is_refused_and_taken_back
            a_failed_reload_is_taken_back
            a_pool_that_is_referred_to_goes_without_breaking_anything
            what_a_dead_writer_left_is_taken_back
            an_edit_by_hand_after_a_crash_stays
            a_node_is_free_when_its_last_answer_is_over
            no_request_fails_while_all_nodes_are_swapped
            a_host_that_is_down_is_named_and_repaired
            hosts_that_differ_are_told_and_made_the_same
            programs_get_json
            what_is_missing_is_said
            a_users_rights_are_enough_or_the_error_says_what_is_missing
        );)+
    };
}

all_tests_of!(
    nginx: super::NginxKind,
    varnish: super::VarnishKind,
    haproxy_by_reload: super::HaproxyKind { balance: "static-rr" },
    caddy: super::CaddyKind,
    apache: super::ApacheKind { mpm: "mpm_event" },
);

// Nodes come and go without a reload, so those that fail it or stop in it have nothing to see.
tests_of!(haproxy, super::HaproxyKind { balance: "roundrobin" };
    traffic_follows_the_pool
    nothing_is_done_when_nothing_changes
    a_bad_configuration_is_refused_and_taken_back
    a_pool_that_is_referred_to_goes_without_breaking_anything
    a_node_is_free_when_its_last_answer_is_over
    no_request_fails_while_all_nodes_are_swapped
    a_host_that_is_down_is_named_and_repaired
    hosts_that_differ_are_told_and_made_the_same
);

// Old children end in other ways there.
tests_of!(apache_prefork, super::ApacheKind { mpm: "mpm_prefork" };
    a_node_is_free_when_its_last_answer_is_over
    no_request_fails_while_all_nodes_are_swapped
);
tests_of!(apache_worker, super::ApacheKind { mpm: "mpm_worker" };
    a_node_is_free_when_its_last_answer_is_over
    no_request_fails_while_all_nodes_are_swapped
);

fn message(error: &BalancerError) -> String {
    vr_common::exit::chain(error)
}

async fn traffic_follows_the_pool(kind: impl Kind) {
    let fixture = Files::here(kind).await;
    let balancer = fixture.balancer();
    let web = pool("web");
    let (one, two, three) =
        (HttpNode::start("one").await, HttpNode::start("two").await, HttpNode::start("three").await);
    fixture.route("web").await;
    balancer.add_nodes(&web, &[one.node(), two.node()]).await.unwrap();
    blocking_answers(&fixture, "web", &["one", "two"]).await;
    balancer.set_nodes(&web, &[two.node(), three.node()]).await.unwrap();
    blocking_answers(&fixture, "web", &["three", "two"]).await;
    balancer.delete_nodes(&web, &[two.node(), three.node()], None).await.unwrap();
    let answers = answers(&fixture, "web").await;
    assert!(answers.iter().all(|answer| ["502", "503"].contains(&answer.as_str())), "{answers:?}");
    balancer.add_nodes(&web, &[one.node()]).await.unwrap();
    blocking_answers(&fixture, "web", &["one"]).await;
}

async fn answers<K: Kind>(fixture: &Files<K>, name: &str) -> Vec<String> {
    // The nodes answer on threads of their own.
    tokio::task::block_in_place(|| fixture.hosts[0].answers(name))
}

async fn blocking_answers<K: Kind>(fixture: &Files<K>, name: &str, expected: &[&str]) {
    assert_eq!(answers(fixture, name).await, expected);
}

async fn nothing_is_done_when_nothing_changes(kind: impl Kind) {
    let fixture = Files::here(kind).await;
    let host = &fixture.hosts[0];
    let balancer = fixture.balancer();
    let web = pool("web");
    balancer.add_nodes(&web, &nodes(&[1, 2])).await.unwrap();
    let (reloads, text) = (host.reloads(), host.file(&fixture.kind.pool_file("web")));
    assert!(reloads > 0);
    balancer.add_nodes(&web, &nodes(&[2, 1])).await.unwrap();
    balancer.set_nodes(&web, &nodes(&[2, 1])).await.unwrap();
    balancer.delete_nodes(&web, &nodes(&[3]), None).await.unwrap();
    balancer.delete_pool(&pool("other")).await.unwrap();
    assert!(!balancer.delete_pool_if_empty(&web).await.unwrap());
    assert_eq!((host.reloads(), host.file(&fixture.kind.pool_file("web"))), (reloads, text));
    let (code, _, stderr) = blocking_cli(&fixture, &["-n", "add", "web", "127.0.0.1:3"]).await;
    assert_eq!((code, stderr.as_str(), host.reloads()), (Some(0), "", reloads));
}

async fn blocking_cli<K: Kind>(fixture: &Files<K>, arguments: &[&str]) -> (Option<i32>, String, String) {
    tokio::task::block_in_place(|| fixture.cli(arguments))
}

async fn a_bad_configuration_is_refused_and_taken_back(kind: impl Kind) {
    let fixture = Files::here(kind).await;
    let host = &fixture.hosts[0];
    let balancer = fixture.balancer();
    let web = pool("web");
    let app = HttpNode::start("app").await;
    fixture.route("web").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    let (reloads, text) = (host.reloads(), host.file(&fixture.kind.pool_file("web")));
    // A name that means nothing to the host.
    let lost: Node = node("no-such-host.invalid:80");
    for change in [
        balancer.add_nodes(&web, std::slice::from_ref(&lost)).await,
        balancer.add_nodes(&pool("new"), std::slice::from_ref(&lost)).await,
    ] {
        let error = message(&change.unwrap_err());
        assert!(error.contains("no-such-host.invalid"), "the program's own words: {error}");
        assert!(error.ends_with("the old configuration is back"), "{error}");
    }
    assert_eq!((host.reloads(), host.file(&fixture.kind.pool_file("web"))), (reloads, text));
    assert_eq!(balancer.list_pools().await.unwrap(), std::slice::from_ref(&web));
    blocking_answers(&fixture, "web", &["app"]).await;

    // What the operator broke is not ours to mend, and is said.
    let broken = fixture.extra_file(host, "broken");
    fs::write(&broken, fixture.kind.nonsense()).unwrap();
    let error = message(&balancer.add_nodes(&web, &nodes(&[1])).await.unwrap_err());
    assert!(error.contains("/broken.") && error.ends_with("the old configuration is back"), "{error}");
    let report = &balancer.check().await.unwrap()[0];
    assert!(report.problems.iter().any(|problem| problem.contains("/broken.")), "{report:?}");
    fs::remove_file(broken).unwrap();
    balancer.add_nodes(&web, &nodes(&[1])).await.unwrap();
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), [&[app.node()], &nodes(&[1])[..]].concat());
}

async fn a_failed_reload_is_taken_back(kind: impl Kind) {
    let fixture = Files::here(kind).await;
    let host = &fixture.hosts[0];
    let balancer = fixture.balancer();
    let web = pool("web");
    let (app, other) = (HttpNode::start("app").await, HttpNode::start("other").await);
    fixture.route("web").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    let text = host.file(&fixture.kind.pool_file("web"));
    host.break_reload(true);
    let error = message(&balancer.set_nodes(&web, &[other.node()]).await.unwrap_err());
    assert!(error.contains("no reload today"), "{error}");
    if fixture.kind.goes_back_without_reload() {
        assert!(error.ends_with("the old configuration is back"), "{error}");
        assert_eq!(host.file(&fixture.kind.pool_file("web")), text);
        blocking_answers(&fixture, "web", &["app"]).await;
        assert_eq!(balancer.check().await.unwrap()[0].problems, Vec::<String>::new());
        return;
    }
    assert!(error.contains("the old files are back but could not be loaded"), "{error}");
    assert_eq!(host.file(&fixture.kind.pool_file("web")), text);
    blocking_answers(&fixture, "web", &["app"]).await;
    let report = &balancer.check().await.unwrap()[0];
    assert!(report.problems.iter().any(|problem| problem.contains("left half done")), "{report:?}");

    host.break_reload(false);
    // Nothing changes for the files, but nobody knows what the program serves.
    let reloads = host.reloads();
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    assert_eq!(host.reloads(), reloads + 1);
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    assert_eq!(host.reloads(), reloads + 1);
    assert_eq!(balancer.check().await.unwrap()[0].problems, Vec::<String>::new());
}

async fn a_pool_that_is_referred_to_goes_without_breaking_anything(kind: impl Kind) {
    let fixture = Files::here(kind).await;
    let host = &fixture.hosts[0];
    let balancer = fixture.balancer();
    let web = pool("web");
    let app = HttpNode::start("app").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    let reference = fixture.refer("web");
    balancer.delete_nodes(&web, &[app.node()], None).await.unwrap();
    assert_eq!(balancer.list_pools().await.unwrap(), std::slice::from_ref(&web));

    assert!(balancer.delete_pool_if_empty(&web).await.unwrap());
    assert_eq!(balancer.list_pools().await.unwrap(), []);
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), []);
    if fixture.kind.can_miss_a_pool() {
        assert_eq!(host.file(&fixture.kind.pool_file("web")), None);
        balancer.add_nodes(&web, &[app.node()]).await.unwrap();
        blocking_answers(&fixture, "web", &["app"]).await;
        return;
    }
    let kept = host.file(&fixture.kind.pool_file("web")).unwrap();
    assert!(kept.contains("deleted, and kept because the configuration refers to it"), "{kept}");
    balancer.delete_pool(&web).await.unwrap();

    // It comes back as if nothing had been, and goes for good when nothing refers to it any more.
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    blocking_answers(&fixture, "web", &["app"]).await;
    assert!(!host.file(&fixture.kind.pool_file("web")).unwrap().contains("deleted, and kept"));
    balancer.delete_pool(&web).await.unwrap();
    assert!(host.file(&fixture.kind.pool_file("web")).is_some());
    balancer.sync(None, false).await.unwrap();
    assert!(host.file(&fixture.kind.pool_file("web")).is_some(), "it is still referred to");
    fs::remove_file(reference).unwrap();
    balancer.sync(None, false).await.unwrap();
    assert_eq!(host.file(&fixture.kind.pool_file("web")), None);
}

/// Starts a change that stops at its reload, and kills its maker there.
fn kill_in_the_middle<K: Kind>(fixture: &Files<K>, arguments: &[&str]) {
    use std::os::unix::process::CommandExt;
    let host = &fixture.hosts[0];
    let (order, mark) = (host.folder.join("reload-waits"), host.folder.join("waits"));
    fs::write(&order, "").unwrap();
    let mut command = crate::support::program();
    command.arg("--config").arg(&fixture.settings_file).args(arguments).process_group(0);
    let mut child = command.spawn().unwrap();
    let mut pid = None;
    vr_testing::until("the change reloads", || {
        pid = fs::read_to_string(&mark).ok().and_then(|pid| pid.trim().parse().ok());
        pid.is_some()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    // What it started goes on.
    let reload = pid.and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(reload, rustix::process::Signal::KILL).unwrap();
    fs::remove_file(mark).unwrap();
    fs::remove_file(order).unwrap();
}

async fn what_a_dead_writer_left_is_taken_back(kind: impl Kind) {
    let fixture = Files::here(kind).await;
    let host = &fixture.hosts[0];
    let balancer = fixture.balancer();
    let web = pool("web");
    let app = HttpNode::start("app").await;
    fixture.route("web").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    for repair in ["change", "sync"] {
        let (text, files) = (host.file(&fixture.kind.pool_file("web")), host.files());
        tokio::task::block_in_place(|| kill_in_the_middle(&fixture, &["set", "web", "127.0.0.1:9"]));
        assert_ne!(host.file(&fixture.kind.pool_file("web")), text, "it had been written");
        if repair == "change" {
            balancer.add_nodes(&web, &[app.node()]).await.unwrap();
        } else {
            let report = balancer.sync(None, false).await.unwrap();
            assert!(report.hosts[0].done.iter().any(|done| done.contains("left half done")), "{report:?}");
        }
        assert_eq!((host.file(&fixture.kind.pool_file("web")), host.files()), (text, files));
        blocking_answers(&fixture, "web", &["app"]).await;
        assert_eq!(balancer.check().await.unwrap()[0].problems, Vec::<String>::new());
    }
    // The same with a pool that was being made.
    tokio::task::block_in_place(|| kill_in_the_middle(&fixture, &["add", "new", "127.0.0.1:9"]));
    balancer.add_nodes(&web, &nodes(&[1])).await.unwrap();
    assert_eq!(balancer.list_pools().await.unwrap(), [web]);
}

async fn an_edit_by_hand_after_a_crash_stays(kind: impl Kind) {
    let fixture = Files::here(kind).await;
    let host = &fixture.hosts[0];
    let balancer = fixture.balancer();
    let web = pool("web");
    let (app, other) = (HttpNode::start("app").await, HttpNode::start("other").await);
    fixture.route("web").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    let file = host.folder.join("pools").join(fixture.kind.pool_file("web"));
    let text = fs::read_to_string(&file).unwrap();
    let port = |node: &Node| node.port.to_string();
    tokio::task::block_in_place(|| kill_in_the_middle(&fixture, &["set", "web", "127.0.0.1:9"]));
    fs::write(&file, text.replace(&port(&app.node()), &port(&other.node()))).unwrap();
    balancer.sync(None, false).await.unwrap();
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), [other.node()]);
    blocking_answers(&fixture, "web", &["other"]).await;
}

async fn a_node_is_free_when_its_last_answer_is_over(kind: impl Kind) {
    let fixture = Files::here(kind).await;
    let balancer = fixture.balancer();
    let web = pool("web");
    let (app, other) = (HttpNode::start("app").await, HttpNode::start("other").await);
    fixture.route("web").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    app.chunks.add_permits(1);
    let mut stream = UnixStream::connect(fixture.hosts[0].folder.join("http.sock")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /stream HTTP/1.1\r\nHost: a\r\nX-Pool: web\r\nConnection: close\r\n\r\n").unwrap();
    let (mut stream, _head) = blocking(move || {
        let head = read_head(&mut stream).unwrap();
        (stream, head)
    })
    .await;
    balancer.set_nodes(&web, &[other.node()]).await.unwrap();
    blocking_answers(&fixture, "web", &["other"]).await;
    let leaving = [app.node(), other.node()];
    let reports = balancer.wait_drained(&web, &leaving, Duration::ZERO).await.unwrap();
    assert_eq!((reports[0].open, reports[0].in_pool, reports[1].in_pool), (1, false, true), "{reports:?}");

    let waiting = tokio::spawn({
        let (balancer, web, leaving) = (fixture.balancer(), web.clone(), leaving.clone());
        async move { balancer.wait_drained(&web, &leaving, Duration::from_secs(3600)).await }
    });
    app.chunks.add_permits(crate::support::STREAM_CHUNKS);
    let body = blocking(move || {
        let mut body = String::new();
        stream.read_to_string(&mut body).unwrap();
        body
    })
    .await;
    assert!(body.contains("chunk 4"), "it went on to its end: {body:?}");
    let reports = in_time(waiting).await.unwrap().unwrap();
    assert!(reports[0].is_drained(), "{reports:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn varnish_may_be_reloaded_in_another_way() {
    let fixture = Files::here(VarnishKind).await;
    let folder = fixture.hosts[0].folder.display().to_string();
    let script = format!(
        "#!/bin/sh\nset -e\nname=other$(date +%s%N)\nvarnishadm -n {folder}/varnish vcl.load $name {folder}/main.vcl\n\
         varnishadm -n {folder}/varnish vcl.use $name\n"
    );
    fs::write(format!("{folder}/other"), script).unwrap();
    fixture.write_settings(&[("reload_cmd", &format!("sh {folder}/other"))]);
    fixture.route("web").await;
    let app = HttpNode::start("app").await;
    let balancer = fixture.balancer();
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    blocking_answers(&fixture, "web", &["app"]).await;
    assert_eq!(fixture.hosts[0].reloads(), 0, "vcl.use is the other way's business");
    assert_eq!(balancer.check().await.unwrap()[0].problems, Vec::<String>::new());
    // One that says that all went well, and did nothing.
    fixture.write_settings(&[("reload_cmd", "true")]);
    let balancer = fixture.balancer();
    let error = in_time(balancer.delete_nodes(&pool("web"), &[app.node()], None)).await.unwrap_err();
    let error = message(&error);
    assert!(error.contains("varnish still uses the VCL other"), "{error}");
    blocking_answers(&fixture, "web", &["app"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nginx_that_refuses_in_silence_is_noticed() {
    let fixture = Files::here(NginxKind).await;
    let app = HttpNode::start("app").await;
    let balancer = fixture.balancer();
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    // As Debian's init script does, whatever nginx thinks of it.
    fixture.write_settings(&[("reload_cmd", "true")]);
    let balancer = fixture.balancer();
    let error = message(&in_time(balancer.set_nodes(&pool("web"), &nodes(&[1]))).await.unwrap_err());
    assert!(error.contains("made no new workers within 20 s"), "{error}");
    blocking_answers(&fixture, "web", &["app"]).await;
    assert!(fixture.hosts[0].file("web.conf").unwrap().contains(&app.node().to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_pools_that_are_kept_go_one_by_one_and_cost_no_reload() {
    let fixture = Files::here(NginxKind).await;
    let host = &fixture.hosts[0];
    let balancer = fixture.balancer();
    let references = ["one", "two"].map(|name| {
        let file = fixture.extra_file(host, name);
        (name, file, fixture.kind.reference(&host.folder, name))
    });
    for (name, file, text) in &references {
        balancer.add_nodes(&pool(name), &nodes(&[1])).await.unwrap();
        fs::write(file, text).unwrap();
    }
    for (name, ..) in &references {
        balancer.delete_pool(&pool(name)).await.unwrap();
    }
    assert_eq!(host.files(), ["one.conf", "two.conf"], "both are referred to");
    fs::remove_file(&references[0].1).unwrap();
    balancer.sync(None, false).await.unwrap();
    assert_eq!(host.files(), ["two.conf"]);
    let (reloads, text) = (host.reloads(), host.file("two.conf"));
    let report = balancer.sync(None, false).await.unwrap();
    assert_eq!((host.reloads(), host.file("two.conf")), (reloads, text));
    assert_eq!(report.hosts[0].done, Vec::<String>::new());
    assert_eq!(balancer.check().await.unwrap()[0].problems, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_with_nodes_on_any_host_is_not_empty_and_new_hosts_have_no_say() {
    let fixture = Files::over_ssh(NginxKind, 3, SudoRule::Refused).await;
    let balancer = fixture.balancer();
    let web = pool("web");
    balancer.add_nodes(&web, &nodes(&[1])).await.unwrap();
    let file = |at: usize| fixture.hosts[at].folder.join("pools/web.conf");
    // This one missed the node.
    fs::write(file(0), "upstream web { server 127.0.0.1:1 down; }\n").unwrap();
    assert!(!balancer.delete_pool_if_empty(&web).await.unwrap());
    assert!(file(0).exists() && file(1).exists());
    // And these two never heard of the pool.
    for at in [0, 2] {
        fs::remove_dir_all(fixture.hosts[at].folder.join("pools")).unwrap();
        fs::create_dir(fixture.hosts[at].folder.join("pools")).unwrap();
    }
    balancer.sync(None, false).await.unwrap();
    for at in 0..3 {
        assert!(fs::read_to_string(file(at)).unwrap().contains("server 127.0.0.1:1;"), "host {at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_operators_hide_no_pools_and_links_stay() {
    let fixture = Files::here(NginxKind).await;
    let host = &fixture.hosts[0];
    let balancer = fixture.balancer();
    let available = host.folder.join("available.conf");
    fs::write(&available, "upstream web { server 127.0.0.1:1; }\n").unwrap();
    let link = host.folder.join("pools/web.conf");
    std::os::unix::fs::symlink(&available, &link).unwrap();
    fs::write(host.folder.join("pools/latin.conf"), b"# K\xf6ln\n").unwrap();
    balancer.add_nodes(&pool("web"), &nodes(&[2])).await.unwrap();
    assert_eq!(fs::read_link(link).unwrap(), available);
    assert!(fs::read_to_string(available).unwrap().contains("127.0.0.1:2"));
    let (_, list, _) = blocking_cli(&fixture, &["list"]).await;
    assert_eq!(list, "web\t-\t127.0.0.1:1 127.0.0.1:2\n");
    balancer.sync(None, false).await.unwrap();
}

/// One kind of traffic, again and again until it is told to stop; gives how much of it there was.
fn keep_busy(socket: &std::path::Path, stop: &AtomicBool, exchange: impl Fn(&mut Visitor)) -> usize {
    let mut visitor = Visitor { socket: socket.to_owned(), stream: None };
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        exchange(&mut visitor);
        count += 1;
        // Others want the processor as well.
        std::thread::sleep(Duration::from_millis(2));
    }
    count
}

/// A client as programs are: it keeps its connection, and asks again over a new one when the old one was closed before it
/// was answered.
struct Visitor {
    socket: std::path::PathBuf,
    stream: Option<UnixStream>,
}

impl Visitor {
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// A request without a body; the length of the answer.
    fn get(&mut self, path: &str) -> usize {
        let request = format!("GET {path} HTTP/1.1\r\nHost: app\r\nX-Pool: web\r\n\r\n");
        if let Some(mut stream) = self.stream.take()
            && stream.write_all(request.as_bytes()).is_ok()
            && let Some(head) = read_head(&mut stream)
        {
            return self.finish(stream, &head);
        }
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut stream).expect("an answer");
        self.finish(stream, &head)
    }

    /// A slow upload on a connection of its own, which nobody may repeat.
    fn post(&mut self, pieces: usize) -> usize {
        let mut stream = self.connect();
        let head = format!(
            "POST /echo HTTP/1.1\r\nHost: app\r\nX-Pool: web\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            pieces * 1024
        );
        stream.write_all(head.as_bytes()).unwrap();
        for _ in 0..pieces {
            std::thread::sleep(Duration::from_millis(5));
            stream.write_all(&[b'u'; 1024]).unwrap();
        }
        let head = read_head(&mut stream).expect("an answer");
        self.finish(stream, &head)
    }

    fn finish(&mut self, mut stream: UnixStream, head: &str) -> usize {
        assert_eq!(status(head), 200, "{head}");
        let exactly = |stream: &mut UnixStream, length: usize| {
            let mut bytes = vec![0; length];
            stream.read_exact(&mut bytes).expect("the whole answer");
        };
        let length = if let Some(length) = header(head, "content-length") {
            let length = length.parse().unwrap();
            exactly(&mut stream, length);
            length
        } else {
            let mut all = 0;
            loop {
                let line = read_until(&mut stream, "\r\n").expect("the size of a piece");
                let length = usize::from_str_radix(line.trim(), 16).unwrap();
                exactly(&mut stream, length + 2);
                all += length;
                if length == 0 {
                    break all;
                }
            }
        };
        let is_over = header(head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        self.stream = Some(stream).filter(|_| !is_over);
        length
    }
}

/// Two nodes at a time, all swapped fifty times, and stopped without mercy as soon as they are reported free.
async fn no_request_fails_while_all_nodes_are_swapped(kind: impl Kind) {
    const CHANGES: usize = 50;
    let fixture = Files::here(kind).await;
    let balancer = fixture.balancer();
    let web = pool("web");
    fixture.route("web").await;
    let mut nodes = vec![HttpNode::start("a").await, HttpNode::start("b").await];
    let addresses = |nodes: &[HttpNode]| nodes.iter().map(HttpNode::node).collect::<Vec<_>>();
    balancer.set_nodes(&web, &addresses(&nodes)).await.unwrap();
    let socket = fixture.hosts[0].folder.join("http.sock");
    let stop = Arc::new(AtomicBool::new(false));
    let traffic: [fn(&mut Visitor); 5] = [
        |visitor| assert_eq!(visitor.get("/"), 1),
        |visitor| assert_eq!(visitor.get("/"), 1),
        |visitor| assert_eq!(visitor.get("/slow"), SLOW_BYTES),
        |visitor| assert_eq!(visitor.post(40), 40 * 1024),
        |visitor| assert_eq!(visitor.post(10), 10 * 1024),
    ];
    let clients = traffic.map(|exchange| {
        let (socket, stop) = (socket.clone(), Arc::clone(&stop));
        std::thread::spawn(move || keep_busy(&socket, &stop, exchange))
    });
    for change in 0..CHANGES {
        let old = std::mem::replace(&mut nodes, vec![HttpNode::start("c").await, HttpNode::start("d").await]);
        balancer.set_nodes(&web, &addresses(&nodes)).await.unwrap();
        let reports = balancer.wait_drained(&web, &addresses(&old), DEADLINE).await.unwrap();
        assert!(reports.iter().all(|report| report.is_drained()), "change {change}: {reports:?}");
        for node in old {
            node.stop().await;
        }
        assert!(!clients.iter().any(|client| client.is_finished()), "a request failed by change {change}");
    }
    stop.store(true, Ordering::Relaxed);
    let counts = blocking(move || clients.map(|client| client.join().unwrap())).await;
    assert!(counts.iter().all(|count| *count > 5), "there was traffic of every kind: {counts:?}");
}

async fn a_host_that_is_down_is_named_and_repaired(kind: impl Kind) {
    let mut fixture = Files::over_ssh(kind, 3, SudoRule::WithoutPassword).await;
    let balancer = fixture.balancer();
    let (web, gone) = (pool("web"), pool("gone"));
    let (app, other) = (HttpNode::start("app").await, HttpNode::start("other").await);
    fixture.route("web").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    balancer.add_nodes(&gone, &[app.node()]).await.unwrap();
    tokio::task::block_in_place(|| fixture.hosts[1].cut_off());
    let error = balancer.set_nodes(&web, &[other.node()]).await.unwrap_err();
    let BalancerError::OutOfStep { done, failed, .. } = &error else { panic!("{error}") };
    let name = |at: usize| {
        let sshd = fixture.hosts[at].sshd.as_ref().unwrap();
        format!("{}:{}", sshd.address(), sshd.port())
    };
    assert_eq!((done.clone(), failed.len()), (vec![name(0), name(2)], 1));
    assert_eq!(failed[0].host, name(1));
    assert!(message(&error).contains(&format!(
        "is out of step: done on {}, {}; failed on",
        name(0),
        name(2)
    )));
    balancer.delete_pool(&gone).await.unwrap_err();
    // Looking works with those that are there.
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), [other.node()]);
    let file = |at: usize, name: &str| fixture.hosts[at].file(&fixture.kind.pool_file(name)).is_some();
    let answers = |at: usize| tokio::task::block_in_place(|| fixture.hosts[at].answers("web"));
    assert_eq!([answers(0), answers(1), answers(2)], [["other"], ["app"], ["other"]]);
    assert_eq!([file(0, "gone"), file(1, "gone"), file(2, "gone")], [false, true, false]);
    let problems =
        |reports: &[SiteReport]| reports.iter().map(|report| report.problems.len()).collect::<Vec<_>>();
    assert_eq!(problems(&balancer.check().await.unwrap()), [0, 1, 0]);
    assert!(matches!(balancer.sync(None, false).await, Err(BalancerError::OutOfStep { .. })));

    tokio::task::block_in_place(|| fixture.hosts[1].back_again());
    let reports = balancer.check().await.unwrap();
    assert_eq!(problems(&reports), [0, 2, 0], "{reports:?}");
    balancer.sync(None, false).await.unwrap();
    assert_eq!(problems(&balancer.check().await.unwrap()), [0, 0, 0]);
    for host in &fixture.hosts {
        assert_eq!(tokio::task::block_in_place(|| host.answers("web")), ["other"]);
        assert_eq!(host.file(&fixture.kind.pool_file("gone")), None);
    }
}

async fn hosts_that_differ_are_told_and_made_the_same(kind: impl Kind) {
    let fixture = Files::over_ssh(kind, 2, SudoRule::Refused).await;
    let balancer = fixture.balancer();
    let web = pool("web");
    let (app, other) = (HttpNode::start("app").await, HttpNode::start("other").await);
    fixture.route("web").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    let swap = |at: usize, from: &HttpNode, to: &HttpNode| {
        let file = fixture.hosts[at].folder.join("pools").join(fixture.kind.pool_file("web"));
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, text.replace(&from.address.port().to_string(), &to.address.port().to_string()))
            .unwrap();
    };
    swap(1, &app, &other);
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), [app.node(), other.node()], "either may be in use");
    let first = fixture.hosts[0].sshd.as_ref().unwrap();
    let first = format!("{}:{}", first.address(), first.port());
    let (code, stdout, stderr) = blocking_cli(&fixture, &["check"]).await;
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("pool web is out of step"), "{stdout}");
    let (code, stdout, _) = blocking_cli(&fixture, &["sync", "-n"]).await;
    assert_eq!(code, Some(0));
    assert!(stdout.contains(&format!("--- {first}:{}", fixture.path("web"))), "the newer one wins: {stdout}");

    let (code, _, stderr) = blocking_cli(&fixture, &["sync", "--from", "elsewhere"]).await;
    assert_eq!(code, Some(2), "{stderr}");
    let (code, stdout, stderr) = blocking_cli(&fixture, &["sync", "--from", &first]).await;
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), [app.node()]);
    for host in &fixture.hosts {
        assert_eq!(tokio::task::block_in_place(|| host.answers("web")), ["app"]);
    }
    let (code, stdout, _) = blocking_cli(&fixture, &["check"]).await;
    assert_eq!((code, stdout.matches("\tok\n").count()), (Some(0), 2), "{stdout}");
}

async fn programs_get_json(kind: impl Kind) {
    let fixture = Files::here(kind).await;
    let json = |arguments: &[&str]| {
        let (code, stdout, stderr) = fixture.cli(&[&["--json"], arguments].concat());
        (code, serde_json::from_str::<Value>(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}")))
    };
    tokio::task::block_in_place(|| {
        let (code, diff) = json(&["-n", "add", "web", "127.0.0.1:1"]);
        assert_eq!(
            (code, &diff[0]["host"], &diff[0]["file"]),
            (Some(0), &"localhost".into(), &fixture.path("web").into())
        );
        assert!(diff[0]["diff"].as_str().unwrap().starts_with("--- localhost:"));
        let (_, shown) = json(&["add", "web", "127.0.0.1:1"]);
        assert_eq!(shown["nodes"], serde_json::json!(["127.0.0.1:1"]));
        let (code, failed) = json(&["add", "web", "no-such-host.invalid:1"]);
        assert_eq!(
            (code, &failed["done"], &failed["failed"][0]["host"]),
            (Some(1), &serde_json::json!([]), &"localhost".into())
        );
        let (code, checked) = json(&["check"]);
        assert_eq!((code, &checked[0]["problems"]), (Some(0), &serde_json::json!([])));
        let (code, synced) = json(&["sync"]);
        assert_eq!((code, &synced["hosts"][0]["host"]), (Some(0), &"localhost".into()));
        let (code, _, stderr) = fixture.cli(&["-n", "list"]);
        assert_eq!(
            (code, stderr.as_str()),
            (Some(2), "ERROR: -n is for commands that change pools, not for list\n")
        );
        let (code, _, stderr) = fixture.cli(&["delete", "web", "127.0.0.1:1", "--wait"]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
    });
}

async fn what_is_missing_is_said(kind: impl Kind) {
    let fixture = Files::here(kind).await;
    let refused = |changed: &[(&'static str, &str)]| {
        fixture.write_settings(changed);
        fixture.cli(&["add", "web", "127.0.0.1:1"]).2
    };
    tokio::task::block_in_place(|| {
        let error = refused(&[("include_dir", "/nonexistent/pools")]);
        assert!(error.contains("localhost: there is no folder /nonexistent/pools"), "{error}");
        let error = refused(&[("tmpdir", "/nonexistent")]);
        assert!(error.contains("there is no folder /nonexistent for temporary files"), "{error}");
        let error = refused(&[("reload_cmd", "/nonexistent/reload")]);
        assert!(error.contains("/nonexistent/reload says: ") && error.contains("not found"), "{error}");
        // A folder that nobody includes would never be served.
        let elsewhere = fixture.hosts[0].folder.join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let error = refused(&[("include_dir", elsewhere.to_str().unwrap())]);
        assert!(
            error.contains("does not load") && error.contains("the old configuration is back"),
            "{error}"
        );
        fixture.write_settings(&[]);
        assert_eq!(fixture.cli(&["list"]), (Some(0), String::new(), String::new()));
        // A file of that name that is the operator's own.
        let own = fixture.hosts[0].folder.join("pools").join(fixture.kind.pool_file("own"));
        fs::write(&own, "# nothing but a remark\n").unwrap();
        let (code, _, error) = fixture.cli(&["add", "own", "127.0.0.1:1"]);
        assert_eq!(code, Some(1));
        assert!(
            error.contains(&fixture.path("own")) && error.contains("does not describe pool own"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(own).unwrap(), "# nothing but a remark\n");
        assert_eq!(fixture.cli(&["list"]).1, "");
    });
}

async fn a_users_rights_are_enough_or_the_error_says_what_is_missing(kind: impl Kind) {
    let fixture = Files::over_ssh(kind, 1, SudoRule::WithPassword).await;
    let user = fixture.hosts[0].sshd.as_ref().unwrap().user();
    tokio::task::block_in_place(|| {
        assert_eq!(fixture.cli(&["add", "web", "127.0.0.1:1"]).0, Some(0));
        let file = fixture.hosts[0].folder.join("pools").join(fixture.kind.pool_file("web"));
        let meta = fs::metadata(file).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (0, 0, 0o644));

        fixture.write_settings(&[("sudo_password", "wrong")]);
        let (code, _, error) = fixture.cli(&["add", "web", "127.0.0.1:2"]);
        assert_eq!(code, Some(1));
        assert!(error.contains("sudo on 127.0.0.1 does not let operator become root"), "{error}");
        fixture.write_settings(&[("password", "wrong")]);
        let (_, _, error) = fixture.cli(&["add", "web", "127.0.0.1:2"]);
        assert!(error.contains(&format!("does not let {user} in")) && !error.contains("wrong,"), "{error}");
        fixture.write_settings(&[("known_hosts", "/dev/null")]);
        let (_, _, error) = fixture.cli(&["list"]);
        assert!(error.contains("SHA256:"), "{error}");
        // A port at which nobody is.
        let nobody = DeadAddress::new();
        let text = fs::read_to_string(&fixture.settings_file).unwrap();
        let port = fixture.hosts[0].sshd.as_ref().unwrap().port();
        let text = text.replace(&format!("127.0.0.1:{port}"), &nobody.address.to_string());
        fs::write(&fixture.settings_file, text).unwrap();
        let (_, _, error) = fixture.cli(&["list"]);
        assert!(
            error.contains(&nobody.address.to_string()) && error.contains("cannot be reached"),
            "{error}"
        );
    });
}
