//! What every backend must do.

use std::sync::Arc;
use std::time::Duration;

use vr_balancer::balancer::{Edit, PoolChange};
use vr_balancer::{Balancer, DummyBalancer};
use vr_common::names::Node;
use vr_testing::SudoRule;

use crate::fixtures::{
    ApacheKind, CaddyKind, Files, Fixture, HaproxyKind, Kind, NginxKind, Simple, VarnishKind, nodes,
};
use crate::support::{blocking, in_time, pool, proxy, run};

async fn pools_come_and_go(balancer: &dyn Balancer) {
    let web = pool("web");
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), []);
    assert!(balancer.delete_pool_if_empty(&web).await.unwrap(), "there was none, so there is none");
    balancer.delete_pool(&web).await.unwrap();
    balancer.delete_nodes(&web, &nodes(&[1]), None).await.unwrap();
    assert_eq!(balancer.list_pools().await.unwrap(), [], "deleting makes no pool");

    balancer.add_nodes(&web, &nodes(&[2, 1])).await.unwrap();
    balancer.add_nodes(&web, &nodes(&[2, 1])).await.unwrap();
    balancer.add_nodes(&web, &nodes(&[3, 3])).await.unwrap();
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), nodes(&[2, 1, 3]));
    assert_eq!(balancer.list_pools().await.unwrap(), std::slice::from_ref(&web));

    balancer.delete_nodes(&web, &nodes(&[9, 1]), None).await.unwrap();
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), nodes(&[2, 3]));
    assert!(!balancer.delete_pool_if_empty(&web).await.unwrap());
    balancer.delete_nodes(&web, &nodes(&[2, 3]), None).await.unwrap();
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), []);
    assert_eq!(
        balancer.list_pools().await.unwrap(),
        std::slice::from_ref(&web),
        "it is empty, and still there"
    );
    assert!(balancer.delete_pool_if_empty(&web).await.unwrap());
    assert_eq!(balancer.list_pools().await.unwrap(), []);

    balancer.add_nodes(&web, &[]).await.unwrap();
    assert_eq!(
        balancer.list_pools().await.unwrap(),
        std::slice::from_ref(&web),
        "adding nothing makes the pool"
    );
    balancer.add_nodes(&web, &nodes(&[1])).await.unwrap();
    balancer.delete_pool(&web).await.unwrap();
    assert_eq!(balancer.list_pools().await.unwrap(), []);
}

async fn set_adds_the_new_and_returns_the_stale(balancer: &dyn Balancer) {
    let web = pool("set");
    assert_eq!(balancer.set_nodes(&web, &nodes(&[1, 2, 3])).await.unwrap(), []);
    assert_eq!(balancer.set_nodes(&web, &nodes(&[4, 2])).await.unwrap(), nodes(&[1, 3]));
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), nodes(&[2, 4]));
    assert_eq!(balancer.set_nodes(&web, &nodes(&[4, 2])).await.unwrap(), []);
    assert_eq!(balancer.set_nodes(&web, &[]).await.unwrap(), nodes(&[2, 4]));
    assert!(balancer.delete_pool_if_empty(&web).await.unwrap());
}

async fn nodes_without_requests_are_drained_at_once(balancer: &dyn Balancer) {
    let web = pool("drain");
    balancer.add_nodes(&web, &nodes(&[1, 2])).await.unwrap();
    balancer.delete_nodes(&web, &nodes(&[1]), None).await.unwrap();
    let reports =
        in_time(balancer.wait_drained(&web, &nodes(&[3, 1, 2]), Duration::from_secs(3600))).await.unwrap();
    assert_eq!(reports.iter().map(|report| report.node.clone()).collect::<Vec<_>>(), nodes(&[3, 1, 2]));
    assert_eq!(reports.iter().map(|report| report.is_drained()).collect::<Vec<_>>(), [true, true, false]);
    assert!(reports[2].in_pool);
    balancer.delete_pool(&web).await.unwrap();
}

/// Names that are a language's own words, or have what it does not allow, are pools like others, side by side.
async fn names_of_all_shapes_are_told_apart(fixture: &dyn Fixture) {
    let balancer = fixture.balancer();
    let names = ["a-b", "a.b", "a_b", "9", "_", "backend", "default", "server", "a_x2db", "std"];
    let names = &names[..names.len().min(fixture.most_pools())];
    let mut taken: Vec<String> = Vec::new();
    let names: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| {
            let short = fixture.short_name(name);
            let is_new = !taken.contains(&short);
            taken.push(short);
            is_new
        })
        .collect();
    for (at, name) in names.iter().enumerate() {
        balancer.add_nodes(&pool(name), &nodes(&[100 + at as u16])).await.unwrap();
    }
    if fixture.short_name("a.b") == fixture.short_name("a-b") {
        let error = balancer.add_nodes(&pool("a.b"), &nodes(&[1])).await.unwrap_err().to_string();
        assert!(error.contains("cannot tell pool a.b from"), "{error}");
    }
    for (at, name) in names.iter().enumerate() {
        assert_eq!(balancer.get_nodes(&pool(name)).await.unwrap(), nodes(&[100 + at as u16]), "{name}");
    }
    assert_eq!(balancer.list_pools().await.unwrap().len(), names.len());
    for name in &names {
        balancer.delete_pool(&pool(name)).await.unwrap();
    }
    assert_eq!(balancer.list_pools().await.unwrap(), []);
}

async fn a_preview_shows_a_change_and_makes_none(balancer: &dyn Balancer) {
    let web = pool("preview");
    balancer.add_nodes(&web, &nodes(&[1])).await.unwrap();
    let change = |edit| PoolChange { pool: web.clone(), edit };
    let diffs = balancer.preview(&change(Edit::Set(nodes(&[2])))).await.unwrap();
    assert!(!diffs.is_empty());
    for diff in &diffs {
        let has = |sign: char| {
            diff.diff
                .lines()
                .any(|line| line.starts_with(sign) && !line.starts_with(&format!("{sign}{sign}")))
        };
        assert!(has('-') && has('+'), "{diff:?}");
    }
    assert_eq!(balancer.get_nodes(&web).await.unwrap(), nodes(&[1]));
    assert_eq!(balancer.preview(&change(Edit::Add(nodes(&[1])))).await.unwrap(), []);
    balancer.delete_pool(&web).await.unwrap();
    assert_eq!(balancer.preview(&change(Edit::DeletePool)).await.unwrap(), []);
}

async fn all_is_well(balancer: &dyn Balancer) {
    for report in balancer.check().await.unwrap() {
        assert_eq!(report.problems, Vec::<String>::new(), "{}", report.host);
    }
    balancer.sync(None, false).await.unwrap();
}

/// How often two who write at the same time do so.
pub const ROUNDS: u16 = 100;

/// What one of two writers does in a round: adds a node, or takes out the one that it added in the round before. Gives
/// what the pool shall have of this writer's afterwards.
fn in_turn(first: u16, round: u16) -> (bool, u16, Vec<Node>) {
    let is_add = round.is_multiple_of(2);
    let port = first + round - u16::from(!is_add);
    (is_add, port, if is_add { nodes(&[port]) } else { Vec::new() })
}

/// Those of a writer's nodes that are there.
fn own(all: &[Node], first: u16) -> Vec<Node> {
    all.iter().filter(|node| (first..first + ROUNDS).contains(&node.port)).cloned().collect()
}

/// Each finds in every round what it left, whatever the other did meanwhile.
async fn two_writers_lose_nothing(fixture: &dyn Fixture, rounds: u16) {
    let web = pool("busy");
    let writer = |first: u16| {
        let (balancer, web) = (fixture.balancer(), web.clone());
        tokio::spawn(async move {
            let mut left = Vec::new();
            for round in 0..rounds {
                assert_eq!(own(&balancer.get_nodes(&web).await.unwrap(), first), left, "round {round}");
                let (is_add, port, wanted) = in_turn(first, round);
                if is_add {
                    balancer.add_nodes(&web, &nodes(&[port])).await.unwrap();
                } else {
                    balancer.delete_nodes(&web, &nodes(&[port]), None).await.unwrap();
                }
                left = wanted;
            }
        })
    };
    let (first, second) = (writer(1_000), writer(2_000));
    let (first, second) = tokio::join!(first, second);
    first.unwrap();
    second.unwrap();
    assert_eq!(fixture.balancer().get_nodes(&web).await.unwrap(), []);
    fixture.balancer().delete_pool(&web).await.unwrap();
}

/// The same from two processes at a time, which know nothing of each other.
async fn two_processes_lose_nothing(fixture: &dyn Fixture) {
    let Some(file) = fixture.settings_file() else { return };
    let file = file.to_str().unwrap().to_owned();
    let call = |arguments: &[&str]| {
        let output = run(&[&["--config", &file, "--json"], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        serde_json::from_value::<Vec<Node>>(shown["nodes"].clone()).unwrap()
    };
    let writer = |first: u16| {
        for round in 0..ROUNDS {
            let (is_add, port, wanted) = in_turn(first, round);
            let node = format!("127.0.0.1:{port}");
            let seen = call(&[if is_add { "add" } else { "delete" }, "busy", &node]);
            assert_eq!(own(&seen, first), wanted, "round {round}");
        }
    };
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let writers = [scope.spawn(|| writer(1_000)), scope.spawn(|| writer(2_000))];
            for writer in writers {
                writer.join().unwrap();
            }
        });
    });
    assert_eq!(fixture.balancer().get_nodes(&pool("busy")).await.unwrap(), []);
    fixture.balancer().delete_pool(&pool("busy")).await.unwrap();
}

/// What is not a name never gets as far as a file or a command.
async fn odd_names_are_refused(fixture: &dyn Fixture) {
    let Some(file) = fixture.settings_file() else { return };
    let file = file.to_str().unwrap().to_owned();
    blocking(move || {
        for (pool, node) in [
            ("../x", "h:1"),
            ("a b", "h:1"),
            ("a;b", "h:1"),
            ("", "h:1"),
            (".a", "h:1"),
            ("a\nb", "h:1"),
            ("web", "h:1;"),
            ("web", "h 1:1"),
            ("web", "h\"}:1"),
            ("web", "h:0"),
            ("web", "$(id):1"),
        ] {
            let output = run(&["--config", &file, "add", "--", pool, node]);
            assert_eq!(output.status.code(), Some(2), "{pool:?} {node:?}");
        }
    })
    .await;
    assert_eq!(fixture.balancer().list_pools().await.unwrap(), []);
}

pub async fn run_all(fixture: &dyn Fixture) {
    let balancer = fixture.balancer();
    pools_come_and_go(balancer.as_ref()).await;
    set_adds_the_new_and_returns_the_stale(balancer.as_ref()).await;
    nodes_without_requests_are_drained_at_once(balancer.as_ref()).await;
    names_of_all_shapes_are_told_apart(fixture).await;
    a_preview_shows_a_change_and_makes_none(balancer.as_ref()).await;
    odd_names_are_refused(fixture).await;
    // Those in one process stand in one queue; what matters more with files is the next.
    two_writers_lose_nothing(fixture, fixture.rounds_in_process()).await;
    two_processes_lose_nothing(fixture).await;
    all_is_well(balancer.as_ref()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dummy() {
    let balancer: Arc<dyn Balancer> = Arc::new(DummyBalancer::new("dummy"));
    run_all(&Simple { balancer, settings_file: None, most_pools: usize::MAX, _alive: () }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn built_in_proxy() {
    let (place, process, balancer) = proxy().await;
    let settings = place.dir.path().join("settings.yaml");
    let text =
        format!("BALANCERS: {{front: {{BACKEND: proxy, control_socket: {}}}}}\n", place.socket().display());
    std::fs::write(&settings, text).unwrap();
    let (balancer, settings_file) = (Arc::new(balancer), Some(settings));
    run_all(&Simple { balancer, settings_file, most_pools: 4, _alive: (place, process) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx() {
    run_all(&Files::here(NginxKind).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_over_ssh() {
    over_ssh(NginxKind).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn varnish() {
    run_all(&Files::here(VarnishKind).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn varnish_over_ssh() {
    over_ssh(VarnishKind).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy() {
    run_all(&Files::here(HaproxyKind { balance: "leastconn" }).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_over_ssh() {
    over_ssh(HaproxyKind { balance: "roundrobin" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caddy() {
    run_all(&Files::here(CaddyKind).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caddy_over_ssh() {
    over_ssh(CaddyKind).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apache() {
    run_all(&Files::here(ApacheKind { mpm: "mpm_event" }).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apache_over_ssh() {
    over_ssh(ApacheKind { mpm: "mpm_event" }).await;
}

/// Two hosts, and all that needs no hundred rounds.
async fn over_ssh(kind: impl Kind) {
    let fixture = Files::over_ssh(kind, 2, SudoRule::WithPassword).await;
    let balancer = fixture.balancer();
    pools_come_and_go(balancer.as_ref()).await;
    set_adds_the_new_and_returns_the_stale(balancer.as_ref()).await;
    nodes_without_requests_are_drained_at_once(balancer.as_ref()).await;
    a_preview_shows_a_change_and_makes_none(balancer.as_ref()).await;
    all_is_well(balancer.as_ref()).await;
}
