//! What every backend must do.

use std::sync::Arc;
use std::time::Duration;

use vr_balancer::{Balancer, DummyBalancer};
use vr_common::names::Node;

use crate::support::{in_time, node, pool, proxy};

fn nodes(ports: &[u16]) -> Vec<Node> {
    ports.iter().map(|port| node(format!("127.0.0.1:{port}"))).collect()
}

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

async fn two_writers_lose_nothing(balancer: &Arc<dyn Balancer>) {
    const ROUNDS: u16 = 100;
    let web = pool("busy");
    let doomed = nodes(&(10_000..10_000 + ROUNDS).collect::<Vec<_>>());
    balancer.add_nodes(&web, &doomed).await.unwrap();
    let writer = |first: u16| {
        let (balancer, web) = (Arc::clone(balancer), web.clone());
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                balancer.add_nodes(&web, &nodes(&[first + round])).await.unwrap();
                if round % 2 == u16::from(first == 1_000) {
                    balancer.delete_nodes(&web, &nodes(&[10_000 + round]), None).await.unwrap();
                }
            }
        })
    };
    let (first, second) = (writer(1_000), writer(2_000));
    in_time(async { tokio::try_join!(first, second) }).await.unwrap();
    let mut left = balancer.get_nodes(&web).await.unwrap();
    left.sort();
    let mut wanted = nodes(&(1_000..1_000 + ROUNDS).chain(2_000..2_000 + ROUNDS).collect::<Vec<_>>());
    wanted.sort();
    assert_eq!(left, wanted);
    balancer.delete_pool(&web).await.unwrap();
}

async fn run_all(balancer: Arc<dyn Balancer>) {
    pools_come_and_go(balancer.as_ref()).await;
    set_adds_the_new_and_returns_the_stale(balancer.as_ref()).await;
    nodes_without_requests_are_drained_at_once(balancer.as_ref()).await;
    two_writers_lose_nothing(&balancer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dummy() {
    run_all(Arc::new(DummyBalancer::new("dummy"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn built_in_proxy() {
    let (_place, _process, balancer) = proxy().await;
    run_all(Arc::new(balancer)).await;
}
