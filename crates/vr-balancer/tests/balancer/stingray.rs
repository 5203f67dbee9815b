//! Stingray, by way of a server that knows its SOAP interface as it was recorded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use vr_balancer::Balancer;
use vr_balancer::balancer::{Edit, PoolChange};

use crate::fixtures::{Simple, balancer_of};
use crate::soap::{Pool, SoapServer, Trouble, recorded};
use crate::suite::run_all;
use crate::support::{blocking, eventually, in_time, node, pool, run};

/// A server and a balancer for it that waits for nothing.
async fn stingray() -> (SoapServer, Arc<dyn Balancer>) {
    with("GRACE_PERIOD: 0, ").await
}

async fn with(more: &str) -> (SoapServer, Arc<dyn Balancer>) {
    let server = SoapServer::start(None).await;
    let balancer = balancer_of(&format!("front: {}", server.block(more)));
    (server, balancer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_what_every_backend_must_do() {
    let (server, balancer) = stingray().await;
    // Not ours: without the prefix, and with a name that none of ours can have.
    server.give("manual", &["h1:1"]);
    server.give("vr-with a space", &["h1:1"]);
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("settings.yaml");
    std::fs::write(&settings, format!("BALANCERS: {{front: {}}}\n", server.block("GRACE_PERIOD: 0, ")))
        .unwrap();
    let settings_file = Some(settings);
    run_all(&Simple { balancer, settings_file, most_pools: usize::MAX, _alive: dir }).await;
    let left: Vec<String> = server.state().pools.keys().cloned().collect();
    assert_eq!(left, ["manual", "vr-with a space"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_what_the_published_client_said() {
    let (server, balancer) = stingray().await;
    server.give("vr-my_app", &["h1:5000", "h2:5001"]);
    let (app, new) = (pool("my_app"), pool("newpool"));
    assert_eq!(balancer.get_nodes(&app).await.unwrap(), [node("h1:5000"), node("h2:5001")]);
    balancer.add_nodes(&app, &[node("h3:5002"), node("h4:5003")]).await.unwrap();
    balancer.add_nodes(&new, &[node("h3:5002")]).await.unwrap();
    balancer.delete_nodes(&app, &[node("h1:5000"), node("h9:1")], None).await.unwrap();
    balancer.delete_pool(&app).await.unwrap();
    // In the recorded order, with others between them: we look more often, and addPool follows an unknown pool.
    let mut said = std::mem::take(&mut server.state().seen).into_iter();
    for wanted in recorded() {
        let found = said.by_ref().find(|seen| seen.message == wanted.message);
        let found = found.unwrap_or_else(|| panic!("{} was not said", wanted.step));
        for (name, value) in &wanted.headers {
            assert_eq!(found.headers[name.as_str()], value.as_str(), "{}", wanted.step);
        }
    }
    let state = server.state();
    assert_eq!(state.pools.keys().collect::<Vec<_>>(), ["vr-newpool"]);
    assert_eq!(state.pools["vr-newpool"].nodes, ["h3:5002"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_disabled_for_the_grace_period_before_it_is_removed() {
    let (server, balancer) = with("GRACE_PERIOD: 0.4, ").await;
    server.give("vr-web", &["h1:1", "h2:2"]);
    assert_eq!(balancer.grace_period(&pool("web")), Some(Duration::from_millis(400)));
    balancer.delete_nodes(&pool("web"), &[node("h1:1")], None).await.unwrap();
    let seen = std::mem::take(&mut server.state().seen);
    let names: Vec<&str> = seen.iter().map(|seen| seen.operation.as_str()).collect();
    assert_eq!(names, ["getNodes", "disableNodes", "removeNodes", "getNodes"]);
    assert!(seen[2].at - seen[1].at >= Duration::from_millis(400));
    assert_eq!((&seen[1].nodes, &seen[2].nodes), (&vec!["h1:1".to_owned()], &vec!["h1:1".to_owned()]));
    // Nothing to do is nothing to wait for.
    balancer.delete_nodes(&pool("web"), &[node("h1:1")], None).await.unwrap();
    balancer.delete_nodes(&pool("other"), &[node("h1:1")], None).await.unwrap();
    assert_eq!(server.operations(), ["getNodes", "getNodes"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_while_it_is_removed_is_there_in_the_end() {
    let (server, balancer) = with("GRACE_PERIOD: 0.3, ").await;
    server.give("vr-web", &["h1:1"]);
    let leaving = Arc::clone(&balancer);
    let leave = tokio::spawn(async move { leaving.delete_nodes(&pool("web"), &[node("h1:1")], None).await });
    eventually("it is disabled", || !server.state().pools["vr-web"].disabled.is_empty()).await;
    balancer.add_nodes(&pool("web"), &[node("h1:1")]).await.unwrap();
    leave.await.unwrap().unwrap();
    let expected = Pool { nodes: vec!["h1:1".to_owned()], ..Pool::default() };
    assert_eq!(server.state().pools["vr-web"], expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_was_cut_short_is_made_good() {
    let (server, balancer) = stingray().await;
    server.give("vr-web", &["h1:1", "h2:2"]);
    server.trouble("removeNodes", Trouble::Cut);
    let error = balancer.delete_nodes(&pool("web"), &[node("h1:1"), node("h2:2")], None).await.unwrap_err();
    assert!(error.to_string().contains("pool web: 127.0.0.1:"), "{error}");
    assert_eq!(server.state().pools["vr-web"].disabled.len(), 2);
    // Added again it gets requests, and removing the other one goes on where it stopped.
    balancer.add_nodes(&pool("web"), &[node("h1:1")]).await.unwrap();
    balancer.delete_nodes(&pool("web"), &[node("h2:2")], None).await.unwrap();
    let expected = Pool { nodes: vec!["h1:1".to_owned()], ..Pool::default() };
    assert_eq!(server.state().pools["vr-web"], expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_make_a_pool_the_slower_one_adds_to_it() {
    let (server, balancer) = stingray().await;
    server.trouble("addPool", Trouble::Faster("h9:9"));
    balancer.add_nodes(&pool("web"), &[node("h1:1")]).await.unwrap();
    assert_eq!(server.state().pools["vr-web"].nodes, ["h9:9", "h1:1"]);
    server.trouble("addPool", Trouble::Faster("h9:9"));
    balancer.add_nodes(&pool("empty"), &[]).await.unwrap();
    assert_eq!(server.state().pools["vr-empty"].nodes, ["h9:9"]);
    // But a pool that cannot be made is an error in its words.
    server.trouble("addPool", Trouble::Fault("A pool&apos;s name is &lt;too long&gt;"));
    let error = balancer.add_nodes(&pool("other"), &[node("h1:1")]).await.unwrap_err();
    assert!(error.to_string().ends_with("addPool was refused: A pool's name is <too long>"), "{error}");
    // A pool that goes away meanwhile has lost its nodes, too.
    server.trouble("disableNodes", Trouble::Fault("Unknown pool: vr-web"));
    balancer.delete_nodes(&pool("web"), &[node("h1:1")], None).await.unwrap();
    server.trouble("deletePool", Trouble::Fault("Unknown pool: vr-web"));
    balancer.delete_pool(&pool("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_tell_who_is_disabled_is_used_as_well() {
    let (server, balancer) = stingray().await;
    server.trouble("getDisabledNodes", Trouble::Fault("Method not implemented"));
    balancer.add_nodes(&pool("web"), &[node("h1:1")]).await.unwrap();
    assert_eq!(server.operations(), ["addNodes", "addPool", "getDisabledNodes", "getNodes"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_done_is_noticed() {
    let (server, balancer) = stingray().await;
    server.give("vr-web", &["h1:1"]);
    server.trouble("addNodes", Trouble::Lie);
    let error = balancer.add_nodes(&pool("web"), &[node("h2:2")]).await.unwrap_err();
    assert!(
        error.to_string().ends_with("addNodes was done, but then the pool does not have h2:2"),
        "{error}"
    );
    server.trouble("removeNodes", Trouble::Lie);
    let error = balancer.delete_nodes(&pool("web"), &[node("h1:1")], None).await.unwrap_err();
    assert!(error.to_string().ends_with("removeNodes was done, but then the pool still has h1:1"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_with_the_server_is_named() {
    let (server, balancer) = with("timeout: 0.5, ").await;
    let odd = |nodes: &str| {
        let list = format!("<nodes><i>{nodes}</i></nodes>");
        let name = "getNodesResponse xmlns='http://soap.zeus.com/zxtm/1.0/Pool/'";
        let body = format!("<e:Body><{name}>{list}</getNodesResponse></e:Body>");
        format!("<e:Envelope xmlns:e='http://schemas.xmlsoap.org/soap/envelope/'>{body}</e:Envelope>")
            .into_bytes()
    };
    for (trouble, words) in [
        (Trouble::Silence, "no answer within 0.5 s"),
        (Trouble::Cut, "the connection failed before there was an answer"),
        (Trouble::Status(404), "it answered with status 404 Not Found, expected 200 or 500"),
        (Trouble::Status(500), "it answered with status 500 Internal Server Error, expected 200 or 500"),
        (Trouble::Body(vec![b' '; 5 << 20]), "the answer is longer than 4194304 bytes"),
        (Trouble::Body(b"<html><br></html>".to_vec()), "getNodes: its answer cannot be read: "),
        (Trouble::Body(odd("<i>not a node</i>")), "\"not a node\" is not a valid node"),
        (Trouble::Body(odd("<i><i>h:1</i></i>")), "expected a node, found a list"),
        (Trouble::Fault("Out of order"), "getNodes was refused: Out of order"),
    ] {
        server.trouble("getNodes", trouble);
        let error = in_time(balancer.get_nodes(&pool("web"))).await.unwrap_err().to_string();
        let begin = format!("balancer front, pool web: {}: ", server.address);
        assert!(error.starts_with(&begin) && error.contains(words), "{error}");
    }
    assert_eq!(balancer.get_nodes(&pool("web")).await.unwrap(), []);

    let wrong = server.block("").replace("pa:ss", "4711");
    let error = balancer_of(&format!("front: {wrong}")).list_pools().await.unwrap_err().to_string();
    assert!(error.ends_with("it does not let api_user in: wrong USER or PASSWORD"), "{error}");
    let address = server.address;
    let settings = server.block("");
    drop(server);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, format!("BALANCERS: {{front: {settings}}}\n")).unwrap();
    let config = file.path().display().to_string();
    eventually("nobody listens any more", || std::net::TcpStream::connect(address).is_err()).await;
    let output = blocking(move || run(&["--config", &config, "check"])).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with(&format!("front\tbalancer front: {address}: cannot connect: ")), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_needs_no_list_of_pools() {
    let (server, balancer) = stingray().await;
    server.give("vr-web", &["h1:1"]);
    let change = PoolChange { pool: pool("web"), edit: Edit::Set(vec![node("h2:2")]) };
    let diffs = balancer.preview(&change).await.unwrap();
    assert!(diffs[0].diff.contains("-h1:1\n+h2:2\n"), "{diffs:?}");
    assert_eq!(server.operations(), ["getNodes"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_server_with_a_trusted_certificate_is_told_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, host: &str| {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([host.to_owned()]).unwrap();
        let file = dir.path().join(format!("{name}.pem"));
        std::fs::write(&file, cert.pem()).unwrap();
        (cert, signing_key, file.display().to_string())
    };
    let (cert, key, trusted) = make("trusted", "127.0.0.1");
    let (_, _, other) = make("other", "127.0.0.1");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let server = SoapServer::start(Some(TlsAcceptor::from(Arc::new(config)))).await;
    server.give("vr-web", &["h1:1"]);
    let nodes = |ca_file: &str, scheme: &str| {
        let block = server.block(&format!("ca_file: {ca_file}, timeout: 20, ")).replace("http:", scheme);
        let balancer = balancer_of(&format!("front: {block}"));
        async move { balancer.get_nodes(&pool("web")).await }
    };
    assert_eq!(nodes(&trusted, "https:").await.unwrap(), [node("h1:1")]);
    for refused in [nodes(&other, "https:").await, nodes("", "https:").await] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("no TLS connection: ") && error.contains("certificate"), "{error}");
    }
    let began = Instant::now();
    nodes(&trusted, "http:").await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(15), "plain HTTP to TLS is an error at once");
    assert_eq!(server.operations(), ["getNodes"]);
}
