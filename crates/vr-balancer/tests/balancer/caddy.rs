//! What only Caddy does: its admin API at a port, as it is unless somebody says otherwise.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::fixtures::{CaddyKind, Files, Fixture, nodes};
use crate::support::{DEADLINE, DeadAddress, HttpNode, blocking, in_time, pool, read_head, status};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_api_may_be_at_a_port_and_needs_no_other_command() {
    let fixture = Files::here(CaddyKind).await;
    fixture.route("web").await;
    let folder = &fixture.hosts[0].folder;
    let port = crate::support::ports().0;
    let text = fs::read_to_string(folder.join("Caddyfile")).unwrap();
    let socket = format!("unix/{}/admin.sock", folder.display());
    fs::write(folder.join("Caddyfile"), text.replace(&socket, &format!("localhost:{port}"))).unwrap();
    let reload = vr_common::process::command("sh").arg(folder.join("reload")).status();
    assert!(reload.unwrap().success());

    let settings = fs::read_to_string(&fixture.settings_file).unwrap();
    let mut settings: serde_json::Value = serde_json::from_str(&settings).unwrap();
    let mut set_admin = |address: String| {
        let front = settings["BALANCERS"]["front"].as_object_mut().unwrap();
        front.remove("reload_cmd");
        front.insert("admin".to_owned(), address.into());
        fs::write(&fixture.settings_file, settings.to_string()).unwrap();
    };
    set_admin(format!("localhost:{port}"));
    let balancer = fixture.balancer();
    let (one, two) = (HttpNode::start("one").await, HttpNode::start("two").await);
    balancer.add_nodes(&pool("web"), &[one.node()]).await.unwrap();
    balancer.set_nodes(&pool("web"), &[two.node()]).await.unwrap();
    let answers = tokio::task::block_in_place(|| fixture.hosts[0].answers("web"));
    assert_eq!(answers, ["two"]);
    let reports =
        in_time(balancer.wait_drained(&pool("web"), &[one.node()], Duration::from_secs(3600))).await;
    assert!(reports.unwrap()[0].is_drained());
    assert_eq!(balancer.check().await.unwrap()[0].problems, Vec::<String>::new());

    // Somebody else's port.
    let nobody = DeadAddress::new();
    set_admin(nobody.address.to_string());
    let error = fixture.balancer().add_nodes(&pool("web"), &nodes(&[1])).await.unwrap_err();
    let error = vr_common::exit::chain(&error);
    assert!(error.contains(&nobody.address.to_string()) && error.contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_not_asked_yet_is_waited_for() {
    let fixture = Files::here(CaddyKind).await;
    let balancer = fixture.balancer();
    let web = pool("web");
    let (one, two) = (HttpNode::start("one").await, HttpNode::start("two").await);
    fixture.route("web").await;
    balancer.add_nodes(&web, &[one.node()]).await.unwrap();
    // Caddy has begun to read the request, which can only go by what was loaded then.
    let mut client = UnixStream::connect(fixture.hosts[0].folder.join("http.sock")).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").unwrap();
    tokio::task::block_in_place(|| assert_eq!(fixture.hosts[0].answers("web"), ["one"]));
    balancer.set_nodes(&web, &[two.node()]).await.unwrap();
    let mut waiting = tokio::spawn({
        let (balancer, web) = (fixture.balancer(), web.clone());
        async move {
            let reports =
                balancer.wait_drained(&web, &[one.node()], Duration::from_secs(3600)).await.unwrap();
            // As its owner does.
            one.stop().await;
            reports
        }
    });
    let early = tokio::time::timeout(Duration::from_millis(700), &mut waiting).await;
    assert!(early.is_err(), "it was reported free: {early:?}");
    let body = blocking(move || {
        client.write_all(b"X-Pool: web\r\nConnection: close\r\n\r\n").unwrap();
        let head = read_head(&mut client).unwrap();
        let mut body = String::new();
        client.read_to_string(&mut body).unwrap();
        (status(&head), body)
    });
    assert_eq!(body.await, (200, "one".to_owned()));
    let reports = in_time(waiting).await.unwrap();
    assert!(reports[0].is_drained(), "{reports:?}");
}
