//! What only HAProxy does: changes at run time, without a reload.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vr_common::names::Node;

use crate::fixtures::{Files, Fixture, HaproxyKind, Kind, nodes};
use crate::support::{DEADLINE, HttpNode, blocking, in_time, node, pool, read_head};

type Haproxy = Files<HaproxyKind>;

async fn haproxy() -> Haproxy {
    Files::here(HaproxyKind { balance: "roundrobin" }).await
}

/// What HAProxy answers at its stats socket.
fn ask(fixture: &Haproxy, commands: &str) -> String {
    let mut stream = UnixStream::connect(fixture.hosts[0].folder.join("admin.sock")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(format!("{commands}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Whether health checks of all servers are configured and enabled; beside these two bits there are others, such as one
/// for a check that is being made.
fn are_checked(fixture: &Haproxy) -> bool {
    const CONFIGURED_AND_ENABLED: u32 = 2 | 4;
    let states = servers(fixture, [NAME, CHECK_STATE]);
    states
        .iter()
        .all(|(_, state)| state.parse::<u32>().unwrap() & CONFIGURED_AND_ENABLED == CONFIGURED_AND_ENABLED)
}

/// Waits until a check has found out that nobody is at this node.
async fn until_down(fixture: &Haproxy, name: &str) {
    let is_down = || servers(fixture, [NAME, OPERATIONAL_STATE]).contains(&(name.to_owned(), "0".to_owned()));
    crate::support::eventually("the node without anybody is down", is_down).await;
}

/// The servers of the pool `web` as they run: what `show servers state` has in these columns.
fn servers(fixture: &Haproxy, columns: [usize; 2]) -> Vec<(String, String)> {
    let answer = ask(fixture, "show servers state web");
    let lines = answer.lines().skip(2).filter(|line| !line.is_empty());
    let column = |line: &str, at: usize| line.split(' ').nth(at).unwrap().to_owned();
    let mut found: Vec<_> = lines.map(|line| (column(line, columns[0]), column(line, columns[1]))).collect();
    found.sort();
    found
}

const NAME: usize = 3;
const OPERATIONAL_STATE: usize = 5;
const ADMIN_STATE: usize = 6;
const CHECK_STATE: usize = 13;
const PORT: usize = 18;

/// The number of the process that answers.
fn process(fixture: &Haproxy) -> String {
    let info = ask(fixture, "show info");
    info.lines().find_map(|line| line.strip_prefix("Pid: ")).unwrap().to_owned()
}

fn answers(fixture: &Haproxy) -> Vec<String> {
    tokio::task::block_in_place(|| fixture.hosts[0].answers("web"))
}

/// Makes HAProxy begin to read its files, as its operator would.
fn tell_to_reload(fixture: &Haproxy) {
    let reload = format!("kill -USR2 $(cat {}/haproxy.pid)", fixture.hosts[0].folder.display());
    assert!(vr_common::process::command("sh").args(["-c", &reload]).status().unwrap().success());
}

/// Gives the operator's `defaults` one more line, and makes HAProxy read it.
async fn with_line(fixture: &Haproxy, section: &str, line: &str) {
    let host = &fixture.hosts[0];
    let file = host.folder.join("haproxy.cfg");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(&format!("{section}\n"), &format!("{section}\n  {line}\n"))).unwrap();
    let before = process(fixture);
    tell_to_reload(fixture);
    // Until then, either may answer, or nobody.
    let is_over = || !Path::new("/proc").join(&before).exists();
    crate::support::eventually("the old process has ended", is_over).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_come_and_go_in_the_same_process_and_are_there_after_the_next_start() {
    let fixture = haproxy().await;
    let balancer = fixture.balancer();
    let web = pool("web");
    let (one, two) = (HttpNode::start("one").await, HttpNode::start("two").await);
    balancer.add_nodes(&web, &[one.node()]).await.unwrap();
    let before = process(&fixture);
    balancer.add_nodes(&web, &[two.node()]).await.unwrap();
    assert_eq!(answers(&fixture), ["one", "two"]);
    balancer.delete_nodes(&web, &[one.node()], None).await.unwrap();
    assert_eq!(answers(&fixture), ["two"]);
    let reports =
        in_time(balancer.wait_drained(&web, &[one.node()], Duration::from_secs(3600))).await.unwrap();
    assert!(reports[0].is_drained());
    let only = |node: &Node| vec![(node.to_string(), "0".to_owned())];
    assert_eq!(servers(&fixture, [NAME, ADMIN_STATE]), only(&two.node()), "what is drained is deleted");
    // Nobody waits; the next change tidies up.
    balancer.set_nodes(&web, &[one.node()]).await.unwrap();
    balancer.add_nodes(&web, &nodes(&[9])).await.unwrap();
    balancer.delete_nodes(&web, &nodes(&[9]), None).await.unwrap();
    assert_eq!(servers(&fixture, [NAME, ADMIN_STATE]), only(&one.node()));
    assert_eq!(
        (process(&fixture), fixture.hosts[0].reloads()),
        (before, 1),
        "only the new pool needed a reload"
    );
    with_line(&fixture, "defaults", "retries 2").await;
    assert_eq!(servers(&fixture, [NAME, ADMIN_STATE]), only(&one.node()));
    assert_eq!(answers(&fixture), ["one"]);
    assert_eq!(balancer.check().await.unwrap()[0].problems, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_while_it_is_still_answering_gets_requests_again() {
    let fixture = haproxy().await;
    let balancer = fixture.balancer();
    let web = pool("web");
    let app = HttpNode::start("app").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    app.chunks.add_permits(1);
    let mut stream = UnixStream::connect(fixture.hosts[0].folder.join("http.sock")).unwrap();
    stream.write_all(b"GET /stream HTTP/1.1\r\nHost: a\r\nX-Pool: web\r\nConnection: close\r\n\r\n").unwrap();
    let mut stream = blocking(move || {
        read_head(&mut stream).unwrap();
        stream
    })
    .await;
    balancer.delete_nodes(&web, &[app.node()], None).await.unwrap();
    let reports = balancer.wait_drained(&web, &[app.node()], Duration::ZERO).await.unwrap();
    assert_eq!(reports[0].open, 1);
    assert_eq!(answers(&fixture), ["503"]);
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    assert_eq!(answers(&fixture), ["app"]);
    app.chunks.add_permits(crate::support::STREAM_CHUNKS);
    let body = blocking(move || {
        let mut body = String::new();
        stream.read_to_string(&mut body).unwrap();
        body
    })
    .await;
    assert!(body.contains("chunk 4"), "{body:?}");
    assert_eq!(fixture.hosts[0].reloads(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_servers_have_the_options_of_the_settings_and_of_nobody_else() {
    let fixture = haproxy().await;
    fixture.write_settings(&[("server_options", "check inter 100ms weight 7")]);
    let balancer = fixture.balancer();
    let web = pool("web");
    let (one, two) = (HttpNode::start("one").await, HttpNode::start("two").await);
    let named = node(format!("localhost:{}", two.address.port()));
    balancer.add_nodes(&web, &[one.node()]).await.unwrap();
    balancer.add_nodes(&web, &[named.clone(), node("[::1]:9")]).await.unwrap();
    assert_eq!(fixture.hosts[0].reloads(), 1);
    let text = fixture.hosts[0].file("web.cfg").unwrap();
    assert!(text.contains(&format!("server {named} {named} check inter 100ms weight 7\n")), "{text}");
    assert!(text.contains("server ::1:9 [::1]:9 check"), "{text}");
    assert!(are_checked(&fixture), "{}", ask(&fixture, "show servers state web"));
    let ports: Vec<String> = servers(&fixture, [NAME, PORT]).into_iter().map(|(_, port)| port).collect();
    assert!(ports.contains(&two.address.port().to_string()) && ports.contains(&"9".to_owned()), "{ports:?}");
    // Nobody is there, so the check takes it out by itself.
    until_down(&fixture, "::1:9").await;
    assert_eq!(answers(&fixture), ["one", "two"]);
    assert_eq!(balancer.check().await.unwrap()[0].problems, Vec::<String>::new());

    // An option that only a reload can bring.
    fixture.write_settings(&[("server_options", "cookie x")]);
    fixture.balancer().add_nodes(&web, &nodes(&[8])).await.unwrap();
    assert_eq!(fixture.hosts[0].reloads(), 2);
    assert_eq!(servers(&fixture, [NAME, ADMIN_STATE]).len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_runtime_interface_would_leave_out_is_a_reason_for_a_reload() {
    let fixture = haproxy().await;
    let balancer = fixture.balancer();
    let web = pool("web");
    let app = HttpNode::start("app").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    with_line(&fixture, "defaults", "default-server check inter 100ms").await;
    balancer.add_nodes(&web, &nodes(&[9])).await.unwrap();
    assert_eq!(fixture.hosts[0].reloads(), 2);
    assert!(are_checked(&fixture), "{}", ask(&fixture, "show servers state web"));
    until_down(&fixture, "127.0.0.1:9").await;
    assert_eq!(answers(&fixture), ["app"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_may_only_look_is_told_and_costs_reloads() {
    let fixture = haproxy().await;
    let balancer = fixture.balancer();
    let (one, two) = (HttpNode::start("one").await, HttpNode::start("two").await);
    balancer.add_nodes(&pool("web"), &[one.node()]).await.unwrap();
    let file = fixture.hosts[0].folder.join("haproxy.cfg");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("level admin", "level operator")).unwrap();
    with_line(&fixture, "defaults", "retries 2").await;
    balancer.set_nodes(&pool("web"), &[two.node()]).await.unwrap();
    assert_eq!((answers(&fixture), fixture.hosts[0].reloads()), (vec!["two".to_owned()], 2));
    let problems = balancer.check().await.unwrap().remove(0).problems;
    assert!(problems.len() == 1 && problems[0].contains("is not one of level admin"), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_haproxy_that_does_not_answer_or_reload_is_noticed() {
    let fixture = haproxy().await;
    let web = pool("web");
    let refused = |changed: &[(&'static str, &str)]| {
        fixture.write_settings(changed);
        fixture.balancer()
    };
    let change = |balancer: std::sync::Arc<dyn vr_balancer::Balancer>| {
        let web = web.clone();
        // It waits for its full time twice: for the change, and for what was before.
        let change = async move { balancer.add_nodes(&web, &nodes(&[1])).await.unwrap_err() };
        async move { vr_common::exit::chain(&tokio::time::timeout(DEADLINE * 2, change).await.unwrap()) }
    };
    let error = change(refused(&[("stats_socket", "/nonexistent/admin.sock")])).await;
    assert!(error.contains("cannot connect to /nonexistent/admin.sock"), "{error}");
    let error = change(refused(&[("reload_cmd", "true")])).await;
    assert!(error.contains("started no new process within 20 s after \"true\""), "{error}");
    fixture.write_settings(&[]);
    fixture.balancer().add_nodes(&web, &nodes(&[1])).await.unwrap();
    assert_eq!(fixture.kind.pool_file("web"), "web.cfg");
    assert_eq!(fixture.hosts[0].files(), ["web.cfg"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_by_somebody_else_at_the_same_time_loses_no_change() {
    let fixture = haproxy().await;
    let balancer = fixture.balancer();
    let (one, two) = (HttpNode::start("one").await, HttpNode::start("two").await);
    balancer.add_nodes(&pool("web"), &[one.node()]).await.unwrap();
    for round in 0..6 {
        let (name, node) = if round % 2 == 0 { ("two", two.node()) } else { ("one", one.node()) };
        tell_to_reload(&fixture);
        // The change comes at all moments of the reload.
        tokio::time::sleep(Duration::from_millis(10 * round)).await;
        balancer.set_nodes(&pool("web"), &[node]).await.unwrap();
        assert_eq!(answers(&fixture), [name], "round {round}");
    }
    assert_eq!(balancer.check().await.unwrap()[0].problems, Vec::<String>::new());
}
