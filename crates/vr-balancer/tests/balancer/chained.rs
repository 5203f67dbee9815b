//! Several balancers as one: a program's, and a traffic manager's.

use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;
use vr_balancer::{Balancer, BalancerError};

use crate::exec::Program;
use crate::fixtures::{Simple, balancer_of};
use crate::soap::{SoapServer, Trouble};
use crate::suite::run_all;
use crate::support::{blocking, eventually, in_time, node, pool, run};

struct Chain {
    program: Program,
    server: SoapServer,
    block: String,
}

impl Chain {
    async fn new() -> Self {
        let (program, server) = (Program::documented(), SoapServer::start(None).await);
        let members = format!("[{}, {}]", program.block, server.block("GRACE_PERIOD: 0, timeout: 5, "));
        let block = format!("{{BACKEND: chained, BALANCERS: {members}}}");
        Self { program, server, block }
    }

    fn balancer(&self) -> Arc<dyn Balancer> {
        balancer_of(&format!("all: {}", self.block))
    }

    /// The member that is a program, by itself.
    fn first(&self) -> Arc<dyn Balancer> {
        self.program.balancer()
    }

    fn settings(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("BALANCERS: {{all: {}}}\n", self.block);
        std::fs::write(dir.path().join("settings.yaml"), text).unwrap();
        dir
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_what_every_backend_must_do() {
    let chain = Chain::new().await;
    let (balancer, dir) = (chain.balancer(), chain.settings());
    let settings_file = Some(dir.path().join("settings.yaml"));
    run_all(&Simple { balancer, settings_file, most_pools: usize::MAX, _alive: (dir, chain) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_fails_is_named_and_the_others_are_done() {
    let chain = Chain::new().await;
    let (balancer, web) = (chain.balancer(), pool("web"));
    balancer.add_nodes(&web, &[node("h1:1")]).await.unwrap();
    chain.server.trouble("addNodes", Trouble::Fault("no licence"));
    let error = in_time(balancer.add_nodes(&web, &[node("h2:2")])).await.unwrap_err();
    let BalancerError::OutOfStep { done, failed, .. } = &error else { panic!("{error}") };
    assert_eq!(done, &["all.1"]);
    assert_eq!(failed[0].host, format!("all.2/{}", chain.server.address));
    assert_eq!(failed[0].reason, "addNodes was refused: no licence");
    assert!(
        error
            .to_string()
            .starts_with("balancer all, pool web, is out of step: done on all.1; failed on all.2/")
    );
    // Whoever asks is told all nodes that any of them has.
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), [node("h1:1"), node("h2:2")]);
    assert_eq!(chain.server.state().pools["vr-web"].nodes, ["h1:1"]);

    let reports = balancer.check().await.unwrap();
    let problems: Vec<&String> = reports.iter().flat_map(|report| &report.problems).collect();
    assert_eq!(problems, ["pool web is out of step: h1:1 here, h1:1 h2:2 on all.1"]);
    balancer.sync(None, false).await.unwrap();
    assert_eq!(chain.server.state().pools["vr-web"].nodes, ["h1:1", "h2:2"]);

    // Repeating a change that failed somewhere is enough, too.
    chain.server.trouble("disableNodes", Trouble::Fault("no licence"));
    let error = balancer.set_nodes(&web, &[node("h3:3")]).await.unwrap_err();
    assert!(matches!(error, BalancerError::OutOfStep { .. }), "{error}");
    balancer.set_nodes(&web, &[node("h3:3")]).await.unwrap();
    assert_eq!(chain.server.state().pools["vr-web"].nodes, ["h3:3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_down_keeps_nobody_from_looking_and_is_repaired_from_the_one_that_is_chosen() {
    let mut chain = Chain::new().await;
    let (balancer, web) = (chain.balancer(), pool("web"));
    balancer.set_nodes(&web, &[node("h1:1")]).await.unwrap();
    let down = std::mem::replace(&mut chain.server, SoapServer::start(None).await);
    let address = down.address;
    drop(down);
    eventually("nobody listens any more", || std::net::TcpStream::connect(address).is_err()).await;
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), [node("h1:1")]);
    assert_eq!(balancer.list_pools().await.unwrap(), std::slice::from_ref(&web));
    let error = balancer.set_nodes(&web, &[node("h2:2")]).await.unwrap_err().to_string();
    assert!(error.contains(&format!("failed on all.2/{address}: cannot connect")), "{error}");
    // Whether a node is free cannot be said without it, nor whether a pool is empty.
    let grace = std::time::Duration::ZERO;
    balancer.wait_drained(&web, &[node("h1:1")], grace).await.unwrap_err();
    balancer.delete_pool_if_empty(&web).await.unwrap_err();
    let reports = balancer.check().await.unwrap();
    assert!(reports[1].host.starts_with("all.2") && reports[1].problems[0].contains("cannot connect"));
    let error = balancer.sync(None, false).await.unwrap_err();
    assert!(matches!(error, BalancerError::OutOfStep { .. }), "{error}");
    assert_eq!(error.to_string().matches("cannot connect").count(), 1, "{error}");

    // Another one takes its place, with something of its own.
    chain.server.give("vr-web", &["h9:9"]);
    let members = format!("[{}, {}]", chain.program.block, chain.server.block("GRACE_PERIOD: 0, "));
    let balancer = balancer_of(&format!("all: {{BACKEND: chained, BALANCERS: {members}}}"));
    balancer.sync(Some("all.2"), false).await.unwrap();
    assert_eq!(chain.first().get_nodes(&web).await.unwrap(), [node("h9:9")]);
    balancer.delete_pool(&web).await.unwrap();
    assert_eq!(chain.first().list_pools().await.unwrap(), []);
    assert_eq!(chain.server.state().pools.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_told_who_has_the_change() {
    let chain = Chain::new().await;
    chain.server.trouble("addNodes", Trouble::Fault("no licence"));
    let dir = chain.settings();
    let file = dir.path().join("settings.yaml").display().to_string();
    let output = blocking(move || run(&["--config", &file, "--json", "add", "web", "h1:1"])).await;
    assert_eq!(output.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let host = format!("all.2/{}", chain.server.address);
    let failed = json!([{ "host": host, "reason": "addNodes was refused: no licence" }]);
    assert_eq!(said, json!({ "pool": "web", "done": ["all.1"], "failed": failed }));
}
