//! What is Apache's own.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::fixtures::{ApacheKind, Files, Fixture, Kind, nodes};
use crate::support::{DEADLINE, HttpNode, blocking, header, in_time, pool, read_head};

async fn apache() -> Files<ApacheKind> {
    Files::here(ApacheKind { mpm: "mpm_event" }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balancers_that_apache_would_confuse_are_refused_before_it_ends() {
    let fixture = apache().await;
    let host = &fixture.hosts[0];
    let app = HttpNode::start("app").await;
    let balancer = fixture.balancer();
    fixture.route("web").await;
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let own = fixture.extra_file(host, "own");
    fs::write(&own, "<Proxy balancer://a.b>\n</Proxy>\n# ProxyPass /c balancer://c.d\n").unwrap();
    for (name, other, file) in
        [("a-b", "a.b", own.display().to_string()), ("Web", "web", fixture.path("web"))]
    {
        let error = balancer.add_nodes(&pool(name), &nodes(&[1])).await.unwrap_err().to_string();
        let expected = format!("apache cannot tell pool {name} from balancer {other} of {file}");
        assert!(error.contains(&expected) && error.ends_with("the old configuration is back"), "{error}");
        assert_eq!(host.file(&fixture.kind.pool_file(name)), None);
    }
    balancer.add_nodes(&pool("c-d"), &nodes(&[1])).await.unwrap();
    assert_eq!(tokio::task::block_in_place(|| host.answers("web")), ["app"]);
    assert_eq!(balancer.check().await.unwrap()[0].problems, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_by_hand_is_noticed_and_loaded_and_strangers_are_not_taken_for_apache() {
    let fixture = apache().await;
    let host = &fixture.hosts[0];
    let (app, other) = (HttpNode::start("app").await, HttpNode::start("other").await);
    let balancer = fixture.balancer();
    let web = pool("web");
    fixture.route("web").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    let text = host.file("web.conf").unwrap().replace(&app.node().to_string(), &other.node().to_string());
    fs::write(host.folder.join("pools/web.conf"), text).unwrap();
    let problems = balancer.check().await.unwrap()[0].problems.concat();
    assert!(problems.contains("apache does not serve what its files say"), "{problems}");
    balancer.sync(None, false).await.unwrap();
    assert_eq!(tokio::task::block_in_place(|| host.answers("web")), ["other"]);
    assert_eq!(balancer.check().await.unwrap()[0].problems, Vec::<String>::new());

    // The number has come to somebody else since Apache left it there.
    let file = host.folder.join("other.pid");
    fs::write(&file, std::process::id().to_string()).unwrap();
    fixture.write_settings(&[("pid_file", file.to_str().unwrap())]);
    let (text, reloads) = (host.file("web.conf"), host.reloads());
    let error = fixture.balancer().set_nodes(&web, &[app.node()]).await.unwrap_err().to_string();
    assert!(error.contains("apache does not run: no process of it has its number in"), "{error}");
    assert_eq!((host.file("web.conf"), host.reloads()), (text, reloads));
}

/// A request over a connection that stays open, if Apache wants it, too; gives the answer's body.
async fn ask(mut stream: UnixStream) -> (UnixStream, String) {
    blocking(move || {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: app\r\nX-Pool: web\r\n\r\n").unwrap();
        let head = read_head(&mut stream).expect("an answer");
        let length = header(&head, "content-length").unwrap().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        (stream, String::from_utf8(body).unwrap())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_free_while_an_old_child_has_a_client_that_it_may_send_there() {
    // Children of this kind keep clients without a request, which those of `event` do not.
    let fixture = Files::here(ApacheKind { mpm: "mpm_worker" }).await;
    // So that no connection to the node tells of it.
    fixture.write_settings(&[("member_options", "disablereuse=on")]);
    let (app, other) = (HttpNode::start("app").await, HttpNode::start("other").await);
    let balancer = fixture.balancer();
    let web = pool("web");
    fixture.route("web").await;
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    let stream = UnixStream::connect(fixture.hosts[0].folder.join("http.sock")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (stream, body) = ask(stream).await;
    assert_eq!(body, "app");

    balancer.set_nodes(&web, &[other.node()]).await.unwrap();
    let (grace, began) = (Duration::from_secs(1), Instant::now());
    balancer.wait_drained(&web, &[app.node()], grace).await.unwrap();
    assert!(began.elapsed() >= grace, "nobody may stop the node before that");
    let (stream, body) = ask(stream).await;
    assert_eq!(body, "app", "the old child knows no other");
    drop(stream);
    let reports =
        in_time(balancer.wait_drained(&web, &[app.node()], Duration::from_secs(3600))).await.unwrap();
    assert!(reports[0].is_drained(), "{reports:?}");
}
