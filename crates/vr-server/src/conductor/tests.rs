//! The conductor against simulated hosts, a simulated builder and the balancer in memory.

use std::sync::Mutex;

use async_trait::async_trait;
use vr_balancer::{DrainReport, DummyBalancer};
use vr_common::host_api::UptestResult;
use vr_common::names::{Node, PoolName};

use super::*;
use crate::hosts::HostDriver;
use crate::hosts::simulated::SimulatedHost;
use crate::store::resources::Resource;
use crate::store::{BuildOutcome, BuildRow, LateDelete, NewDispatch};

/// Gives the outcomes that it was told to.
#[derive(Default)]
struct FakeBuilder {
    fail: Mutex<Option<String>>,
    built: Mutex<Vec<String>>,
}

#[async_trait]
impl BuildRunner for FakeBuilder {
    async fn run(&self, build: &BuildRow, _: Vec<String>) -> BuildOutcome {
        self.built.lock().unwrap().push(build.tag.clone());
        match self.fail.lock().unwrap().clone() {
            Some(error) => BuildOutcome::Failed { error, compile_log: None },
            None => BuildOutcome::Success {
                file: format!("builds/{}-{}.tar.gz", build.app_name, build.tag),
                file_md5: vr_common::hash::md5_hex(build.tag.as_bytes()),
                compile_log: None,
                hash: vr_common::hash::md5_hex(build.tag.as_bytes()),
                env_yaml: "FROM_BUILD: '1'\n".into(),
                buildpack_url: Some("/buildpack#abc".into()),
                buildpack_version: Some("abc".into()),
            },
        }
    }
}

struct World {
    _dir: tempfile::TempDir,
    store: Store,
    events: EventLog,
    fleet: Fleet,
    hosts: BTreeMap<String, SimulatedHost>,
    balancer: Arc<DummyBalancer>,
    builder: Arc<FakeBuilder>,
    stop: CancellationToken,
}

const SWARM: i64 = 1;

impl World {
    async fn new(hosts: &[&str], size: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        store.execute_for_tests("INSERT INTO apps (name, repo_url) VALUES ('app', '/repo')").await;
        store.execute_for_tests("INSERT INTO squads (name) VALUES ('squad')").await;
        let swarm = format!(
            "INSERT INTO swarms (app_id, config_name, proc_name, squad_id, size, pool, balancer, env_yaml)
             VALUES (1, 'prod', 'web', 1, {size}, 'pool', 'default', 'OWN: two')"
        );
        store.execute_for_tests(&swarm).await;
        for host in hosts {
            store.ensure_host(host, "squad", "http://unused").await.unwrap();
        }
        let hosts: BTreeMap<_, _> =
            hosts.iter().map(|name| ((*name).to_owned(), SimulatedHost::new(name))).collect();
        let drivers = hosts.clone();
        let fleet =
            Fleet::new(store.clone(), EventLog::new(store.clone()), move |row| -> Arc<dyn HostDriver> {
                Arc::new(drivers[&row.name].clone())
            });
        let world = Self {
            events: EventLog::new(store.clone()),
            fleet,
            hosts,
            balancer: Arc::new(DummyBalancer::new("default")),
            builder: Arc::default(),
            stop: CancellationToken::new(),
            store,
            _dir: dir,
        };
        for host in world.hosts.values() {
            host.set_uptests(vec![UptestResult { name: "01".into(), output: "fine".into(), passed: true }]);
        }
        world
    }

    fn conductor(&self) -> Conductor {
        self.conductor_with(self.balancer.clone())
    }

    fn conductor_with(&self, balancer: Arc<dyn Balancer>) -> Conductor {
        let settings = Settings {
            poll: Duration::from_millis(10),
            grace: Duration::from_millis(100),
            delete_again: Duration::from_millis(10),
            ..Settings::new("worker", "http://server/")
        };
        Conductor::new(
            self.store.clone(),
            self.events.clone(),
            self.fleet.clone(),
            Arc::new([("default".to_owned(), balancer)].into()),
            self.builder.clone(),
            settings,
            Arc::default(),
        )
    }

    async fn ask(&self, version: &str) -> String {
        self.store.add_dispatch(NewDispatch { swarm_id: SWARM, version, requested_by: "me" }).await.unwrap()
    }

    /// Runs a conductor until a dispatch is over.
    async fn finish(&self, id: &str) -> DispatchRow {
        let conductor = self.conductor();
        let stop = self.stop.child_token();
        let run = tokio::spawn({
            let stop = stop.clone();
            async move { conductor.run(stop).await }
        });
        let over = async {
            loop {
                let dispatch = self.store.dispatch(id).await.unwrap();
                if dispatch.state.is_over() {
                    return dispatch;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let dispatch = tokio::time::timeout(Duration::from_secs(30), over).await.expect("it never ended");
        stop.cancel();
        run.await.unwrap();
        dispatch
    }

    async fn dispatch(&self, version: &str) -> DispatchRow {
        let id = self.ask(version).await;
        self.finish(&id).await
    }

    async fn nodes(&self) -> Vec<String> {
        let pool: PoolName = "pool".parse().unwrap();
        let mut nodes: Vec<_> =
            self.balancer.get_nodes(&pool).await.unwrap().iter().map(ToString::to_string).collect();
        nodes.sort();
        nodes
    }

    fn names(&self) -> Vec<String> {
        self.hosts.values().flat_map(SimulatedHost::names).collect()
    }

    fn versions(&self) -> Vec<String> {
        let mut versions: Vec<_> =
            self.names().iter().map(|name| name.split('-').nth(1).unwrap().to_owned()).collect();
        versions.sort();
        versions
    }

    async fn told(&self, tag: &str) -> Vec<String> {
        let rows = self.store.events(0, 0, 1000).await.unwrap();
        let events = rows.iter().map(|row| serde_json::from_str(&row.data).unwrap());
        events
            .filter(|event: &vr_common::events::Event| event.tags.iter().any(|t| t == tag))
            .map(|event| event.message)
            .collect()
    }
}

#[tokio::test]
async fn a_dispatch_ends_with_the_new_procs_routed_and_the_old_ones_gone() {
    let world = World::new(&["a", "b"], 3).await;
    let first = world.dispatch("v1").await;
    assert_eq!((first.state, first.error), (State::Done, None));
    assert_eq!(world.versions(), ["v1", "v1", "v1"]);
    assert_eq!(world.nodes().await, ["a:5000", "a:5001", "b:5000"]);
    let name = world.hosts["b"].names().pop().unwrap();
    let yaml = world.hosts["b"].proc_yaml(&name);
    for line in
        ["OWN: two", "FROM_BUILD:", "build_url: http://server/files/builds/app-v1.tar.gz", "port: 5000"]
    {
        assert!(yaml.contains(line), "no {line:?} in\n{yaml}");
    }

    let second = world.dispatch("v2").await;
    assert_eq!(second.state, State::Done);
    assert_eq!(world.versions(), ["v2", "v2", "v2"]);
    assert_eq!(world.nodes().await, ["a:5002", "b:5001", "b:5002"]);
    let path: Vec<_> = world.store.transitions(&second.id).await.unwrap();
    let path: Vec<_> = path.iter().map(|step| step.to_state.as_str()).collect();
    let expected =
        ["queued", "building", "releasing", "deploying", "uptesting", "routing", "cleaning", "done"];
    assert_eq!(path, expected);
}

#[tokio::test]
async fn the_same_version_again_builds_and_deploys_nothing() {
    let world = World::new(&["a"], 2).await;
    world.dispatch("v1").await;
    let names = world.names();
    assert_eq!(world.dispatch("v1").await.state, State::Done);
    assert_eq!(world.names(), names);
    assert_eq!(world.hosts["a"].set_up(), 2);
    assert_eq!(world.builder.built.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_failing_uptest_leaves_everything_as_it_was() {
    let world = World::new(&["a", "b"], 2).await;
    world.dispatch("v1").await;
    let (names, nodes) = (world.names(), world.nodes().await);
    for host in world.hosts.values() {
        let broken = UptestResult { name: "02_login".into(), output: "no such page".into(), passed: false };
        host.set_uptests(vec![broken]);
    }
    let failed = world.dispatch("v2").await;
    assert_eq!(failed.state, State::Failed);
    let error = failed.error.unwrap();
    assert!(error.contains("uptest 02_login of app-v2-") && error.contains("no such page"), "{error}");
    assert_eq!((world.names(), world.nodes().await), (names, nodes));
    assert!(world.told("uptest").await.iter().any(|message| message.contains("no such page")));
}

#[tokio::test]
async fn a_failing_build_or_deploy_leaves_everything_as_it_was() {
    let world = World::new(&["a"], 2).await;
    world.dispatch("v1").await;
    let (names, nodes) = (world.names(), world.nodes().await);

    *world.builder.fail.lock().unwrap() = Some("compile failed".into());
    let failed = world.dispatch("v2").await;
    assert_eq!(failed.error.as_deref(), Some("build of app v2: compile failed"));
    *world.builder.fail.lock().unwrap() = None;

    world.hosts["a"].fail("deploy", Some("no space left"));
    let failed = world.dispatch("v3").await;
    let error = failed.error.unwrap();
    assert!(error.contains("no space left") && error.contains("last words"), "{error}");
    world.hosts["a"].fail("deploy", None);
    assert_eq!((world.names(), world.nodes().await), (names, nodes));

    // A version whose build failed is built again, and its ports are free again.
    assert_eq!(world.dispatch("v2").await.state, State::Done);
    assert_eq!(world.nodes().await, ["a:5002", "a:5003"]);
}

#[tokio::test]
async fn a_squad_without_a_host_that_answers_is_an_error_that_says_so() {
    let world = World::new(&["a"], 1).await;
    world.hosts["a"].cut_off(true);
    let error = world.dispatch("v1").await.error.unwrap();
    assert!(error.contains("no active host") && error.contains("host a does not answer"), "{error}");
}

#[tokio::test]
async fn a_dead_host_is_gone_around() {
    let world = World::new(&["a", "b"], 2).await;
    world.dispatch("v1").await;
    world.hosts["a"].cut_off(true);
    assert_eq!(world.dispatch("v1").await.state, State::Done);
    assert_eq!(world.nodes().await, ["b:5000", "b:5001"]);
}

#[tokio::test]
async fn ports_that_run_out_are_an_error_that_says_so() {
    let world = World::new(&["a"], 3).await;
    let mut conductor = world.conductor();
    let settings = Settings { ports: "5000-5001".parse().unwrap(), ..(*conductor.settings).clone() };
    conductor.settings = Arc::new(settings);
    let id = world.ask("v1").await;
    let (dispatch, lease) =
        conductor.store.lease_dispatch("worker", Duration::from_secs(60)).await.unwrap().unwrap();
    tokio::join!(conductor.take_steps(dispatch, &lease), async {
        let (build, lease) = loop {
            if let Some(leased) = world.store.lease_build("worker", Duration::from_secs(60)).await.unwrap() {
                break leased;
            }
            tokio::task::yield_now().await;
        };
        world.conductor().build(build, lease).await;
    });
    let error = world.store.dispatch(&id).await.unwrap().error.unwrap();
    assert_eq!(error, "all ports of 5000-5001 are in use on host a");
    assert_eq!(world.names(), [""; 0]);
}

#[tokio::test]
async fn a_smaller_size_takes_surplus_procs_away_and_none_empties_the_pool() {
    let world = World::new(&["a", "b"], 4).await;
    world.dispatch("v1").await;
    world.store.execute_for_tests("UPDATE swarms SET size = 1").await;
    world.dispatch("v1").await;
    assert_eq!((world.names().len(), world.nodes().await.len()), (1, 1));
    world.store.execute_for_tests("UPDATE swarms SET size = 0").await;
    world.dispatch("v1").await;
    assert_eq!((world.names().len(), world.nodes().await.len()), (0, 0));
    assert!(world.balancer.list_pools().await.unwrap().is_empty());
}

/// One whose settings have something to say about the pool `slow`, and on whose nodes something is always open.
struct Patient {
    pools: Arc<DummyBalancer>,
    waited: Mutex<Vec<(PoolName, Duration)>>,
}

#[async_trait]
impl Balancer for Patient {
    fn name(&self) -> &str {
        self.pools.name()
    }

    async fn list_pools(&self) -> Result<Vec<PoolName>, BalancerError> {
        self.pools.list_pools().await
    }

    async fn get_nodes(&self, pool: &PoolName) -> Result<Vec<Node>, BalancerError> {
        self.pools.get_nodes(pool).await
    }

    async fn add_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), BalancerError> {
        self.pools.add_nodes(pool, nodes).await
    }

    async fn delete_nodes(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        close_after_grace: Option<Duration>,
    ) -> Result<(), BalancerError> {
        self.pools.delete_nodes(pool, nodes, close_after_grace).await
    }

    async fn delete_pool(&self, pool: &PoolName) -> Result<(), BalancerError> {
        self.pools.delete_pool(pool).await
    }

    async fn delete_pool_if_empty(&self, pool: &PoolName) -> Result<bool, BalancerError> {
        self.pools.delete_pool_if_empty(pool).await
    }

    async fn wait_drained(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        grace: Duration,
    ) -> Result<Vec<DrainReport>, BalancerError> {
        self.waited.lock().unwrap().push((pool.clone(), grace));
        let report = |node: &Node| DrainReport { node: node.clone(), open: 2, in_pool: false };
        Ok(nodes.iter().map(report).collect())
    }

    async fn pool_address(&self, pool: &PoolName) -> Result<Option<String>, BalancerError> {
        self.pools.pool_address(pool).await
    }

    fn grace_period(&self, pool: &PoolName) -> Option<Duration> {
        (pool.as_str() == "slow").then_some(Duration::from_secs(120))
    }
}

#[tokio::test]
async fn procs_are_waited_for_as_long_as_the_settings_of_their_pool_say() {
    let world = World::new(&["a"], 0).await;
    let (quick, slow): (PoolName, PoolName) = ("quick".parse().unwrap(), "slow".parse().unwrap());
    for pool in [&quick, &slow] {
        world.balancer.add_nodes(pool, &["a:5000".parse().unwrap()]).await.unwrap();
    }
    let patient = Arc::new(Patient { pools: world.balancer.clone(), waited: Mutex::default() });
    let proc = ("a".to_owned(), "app-v1-prod-01234567-web-5000".to_owned());
    let failures = world.conductor_with(patient.clone()).leave_pools("dispatch", &[proc]).await;
    assert_eq!(failures, Vec::<String>::new());
    let waited = patient.waited.lock().unwrap().clone();
    assert_eq!(waited, [(quick, Duration::from_millis(100)), (slow, Duration::from_secs(120))]);
    assert!(world.balancer.list_pools().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_proc_that_cannot_be_deleted_is_tried_again_without_holding_the_dispatch_up() {
    let world = World::new(&["a"], 1).await;
    world.dispatch("v1").await;
    world.hosts["a"].fail("delete", Some("device busy"));
    assert_eq!(world.dispatch("v2").await.state, State::Done);
    assert_eq!(world.versions(), ["v1", "v2"]);
    world.hosts["a"].fail("delete", None);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let conductor = world.conductor();
    while world.versions() != ["v2"] {
        assert!(std::time::Instant::now() < deadline, "it was never deleted");
        conductor.delete_late_ones().await;
        tokio::task::yield_now().await;
    }
}

/// Every state in turn: the worker is killed just before the state's end is written, and another takes the step again.
#[tokio::test]
async fn every_step_can_be_repeated() {
    for state in [
        State::Queued,
        State::Building,
        State::Releasing,
        State::Deploying,
        State::Uptesting,
        State::Routing,
        State::Cleaning,
    ] {
        let world = World::new(&["a", "b"], 3).await;
        world.dispatch("v1").await;
        let id = world.ask("v2").await;
        world.builder.built.lock().unwrap().clear();
        let conductor = world.conductor();
        let ttl = Duration::from_secs(60);
        let (mut dispatch, lease) = world.store.lease_dispatch("worker", ttl).await.unwrap().unwrap();
        loop {
            let swarm = world.store.swarm(SWARM).await.unwrap();
            let step = conductor.step(&mut dispatch, &swarm, &lease);
            let build = async {
                loop {
                    if let Some((build, lease)) = world.store.lease_build("worker", ttl).await.unwrap() {
                        conductor.build(build, lease).await;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let (to, why) = tokio::select! {
                step = step => step.unwrap(),
                () = build => unreachable!(),
            };
            if dispatch.state == state {
                break;
            }
            world.store.transition(&dispatch, &lease, to, "worker", &why).await.unwrap();
            dispatch.state = to;
        }
        world.store.end_leases_of("worker").await.unwrap();
        let done = world.finish(&id).await;
        assert_eq!((done.state, done.error), (State::Done, None), "killed in {state}");
        assert_eq!(world.versions(), ["v2", "v2", "v2"], "killed in {state}");
        assert_eq!(world.nodes().await.len(), 3, "killed in {state}");
        assert_eq!(world.builder.built.lock().unwrap().len(), 1, "built twice, killed in {state}");
        let made: usize = world.hosts.values().map(SimulatedHost::set_up).sum();
        assert_eq!(made, 6, "deployed twice, killed in {state}");
        let free = world.store.reserve_port("a", "5000-5000".parse().unwrap(), &[].into(), "x").await;
        assert!(free.is_ok(), "a port stayed reserved, killed in {state}");
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// Takes a queued dispatch's steps by hand until it is in `state`; with `and_take`, that state's step is taken too,
/// but its end is not written. Then the worker "dies".
async fn drive_to(world: &World, conductor: &Conductor, state: State, and_take: bool) -> DispatchRow {
    let (mut dispatch, lease) = world.store.lease_dispatch("worker", MINUTE).await.unwrap().unwrap();
    loop {
        if dispatch.state == state && !and_take {
            break;
        }
        let swarm = world.store.swarm(dispatch.swarm_id).await.unwrap();
        let step = conductor.step(&mut dispatch, &swarm, &lease);
        let build = async {
            loop {
                if let Some((build, lease)) = world.store.lease_build("worker", MINUTE).await.unwrap() {
                    conductor.build(build, lease).await;
                }
                tokio::task::yield_now().await;
            }
        };
        let (to, why) = tokio::select! {
            step = step => step.unwrap(),
            () = build => unreachable!(),
        };
        if dispatch.state == state {
            break;
        }
        world.store.transition(&dispatch, &lease, to, "worker", &why).await.unwrap();
        dispatch.state = to;
    }
    world.store.end_leases_of("worker").await.unwrap();
    dispatch
}

async fn nodes_of(world: &World, pool: &str) -> Vec<String> {
    let nodes = world.balancer.get_nodes(&pool.parse().unwrap()).await.unwrap();
    nodes.iter().map(ToString::to_string).collect()
}

/// Lets the tries that began by themselves (ten milliseconds apart in these tests) come to their end, so that a
/// test can put the next try where it wants it.
async fn let_late_deletes_end(world: &World) {
    let conductor = world.conductor();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !world.told("warning").await.iter().any(|message| message.contains("given up")) {
        assert!(std::time::Instant::now() < deadline);
        conductor.delete_late_ones().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// v2 could not delete v1's proc and means to try again; meanwhile v1 is wanted again and gets that very proc.
#[tokio::test]
async fn a_late_delete_spares_a_proc_that_is_wanted_again() {
    let world = World::new(&["a"], 1).await;
    world.dispatch("v1").await;
    let old = world.names().pop().unwrap();
    world.hosts["a"].fail("delete", Some("device busy"));
    let second = world.dispatch("v2").await;
    let_late_deletes_end(&world).await;
    world.hosts["a"].fail("delete", None);
    let late = LateDelete { host: "a".into(), proc: old, tries: 1, dispatch_id: second.id };
    world.store.delete_later(&late, time::now() + 60_000).await.unwrap();

    assert_eq!(world.dispatch("v1").await.state, State::Done);
    let serving = world.names();
    assert_eq!((serving.len(), world.nodes().await.len()), (1, 1));
    // A minute later:
    world.store.execute_for_tests("UPDATE late_deletes SET next_try = 0").await;
    world.conductor().delete_late_ones().await;
    let deadline = std::time::Instant::now() + Duration::from_secs(2);
    while world.names() == serving && std::time::Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.names(), serving, "the pool has {:?}", world.nodes().await);
}

/// The same after a failed deploy: its undo could not reach the host, and the next try takes the same name.
#[tokio::test]
async fn a_late_undo_spares_the_next_try() {
    let world = World::new(&["a"], 1).await;
    world.hosts["a"].fail("uptest", Some("agent restarted"));
    world.hosts["a"].fail("delete", Some("agent restarted"));
    let first = world.dispatch("v1").await;
    assert_eq!(first.state, State::Failed);
    let_late_deletes_end(&world).await;
    world.hosts["a"].fail("uptest", None);
    world.hosts["a"].fail("delete", None);
    let late =
        LateDelete { host: "a".into(), proc: world.names().pop().unwrap(), tries: 1, dispatch_id: first.id };
    world.store.delete_later(&late, time::now() + 60_000).await.unwrap();
    assert_eq!(world.dispatch("v1").await.state, State::Done);
    let serving = world.names();
    world.store.execute_for_tests("UPDATE late_deletes SET next_try = 0").await;
    world.conductor().delete_late_ones().await;
    let deadline = std::time::Instant::now() + Duration::from_secs(2);
    while world.names() == serving && std::time::Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.names(), serving, "the pool has {:?}", world.nodes().await);
}

/// A worker slept through its lease; another one finished the dispatch. The sleeper's call fails and it cleans up.
#[tokio::test]
async fn undo_by_a_worker_that_lost_its_lease_touches_nothing() {
    let world = World::new(&["a"], 1).await;
    let id = world.ask("v1").await;
    let (_, lost) = world.store.lease_dispatch("sleeper", Duration::ZERO).await.unwrap().unwrap();
    let done = world.finish(&id).await;
    let serving = world.names();
    let stale = DispatchRow { state: State::Deploying, ..done };
    world.conductor().undo(&stale, &lost).await;
    assert_eq!(world.names(), serving, "the pool has {:?}", world.nodes().await);
}

#[tokio::test]
async fn a_dispatch_whose_build_was_deleted_ends() {
    let world = World::new(&["a"], 1).await;
    let id = world.ask("v1").await;
    let conductor = world.conductor();
    let (dispatch, lease) = world.store.lease_dispatch("worker", MINUTE).await.unwrap().unwrap();
    let build = world.store.current_build(1, "v1").await.unwrap();
    world.store.transition(&dispatch, &lease, State::Building, "worker", "").await.unwrap();
    world.store.remember(&id, &lease, &serde_json::json!({"build_id": build})).await.unwrap();
    world.store.delete(Resource::Builds, build, "me").await.unwrap();
    for _ in 0..5 {
        world.store.end_leases_of("worker").await.unwrap();
        if let Some((dispatch, lease)) = world.store.lease_dispatch("worker", MINUTE).await.unwrap() {
            conductor.take_steps(dispatch, &lease).await;
        }
    }
    assert_eq!(world.store.dispatch(&id).await.unwrap().state, State::Failed);
}

#[tokio::test]
async fn a_dispatch_whose_release_was_deleted_ends() {
    let world = World::new(&["a"], 1).await;
    let id = world.ask("v1").await;
    let conductor = world.conductor();
    drive_to(&world, &conductor, State::Deploying, false).await;
    // Somebody puts the swarm at another version, and tidies up the old release.
    let old = world.store.swarm(SWARM).await.unwrap().release_id.unwrap();
    world.store.set_swarm_version(SWARM, "v2").await.unwrap();
    world.store.delete(Resource::Releases, old, "me").await.unwrap();
    for _ in 0..5 {
        world.store.end_leases_of("worker").await.unwrap();
        if let Some((dispatch, lease)) = world.store.lease_dispatch("worker", MINUTE).await.unwrap() {
            conductor.take_steps(dispatch, &lease).await;
        }
    }
    assert_eq!(world.store.dispatch(&id).await.unwrap().state, State::Failed);
}

#[tokio::test]
async fn a_size_that_grows_does_not_break_the_dispatch_under_way() {
    let world = World::new(&["a"], 1).await;
    let id = world.ask("v1").await;
    drive_to(&world, &world.conductor(), State::Uptesting, false).await;
    world.store.execute_for_tests("UPDATE swarms SET size = 2").await;
    let done = world.finish(&id).await;
    assert_eq!((done.state, done.error), (State::Done, None));
}

/// After the last uptest, and before the old procs are deleted: they are never deleted.
#[tokio::test]
async fn a_size_that_grows_late_leaves_no_old_procs() {
    let world = World::new(&["a"], 1).await;
    world.dispatch("v1").await;
    let id = world.ask("v2").await;
    drive_to(&world, &world.conductor(), State::Routing, false).await;
    world.store.execute_for_tests("UPDATE swarms SET size = 2").await;
    assert_eq!(world.finish(&id).await.state, State::Done);
    assert!(!world.versions().contains(&"v1".to_owned()), "{:?}", world.versions());
}

#[tokio::test]
async fn a_pool_that_was_renamed_keeps_no_node_that_is_gone() {
    let world = World::new(&["a"], 1).await;
    world.dispatch("v1").await;
    world.store.execute_for_tests("UPDATE swarms SET pool = 'other'").await;
    assert_eq!(world.dispatch("v2").await.state, State::Done);
    assert_eq!(nodes_of(&world, "other").await, ["a:5001"]);
    assert_eq!(world.versions(), ["v2"]);
    assert_eq!(nodes_of(&world, "pool").await, [""; 0], "its proc was deleted");
}

/// The squads of two swarms of the same app, config and proc; a host goes from one to the other.
#[tokio::test]
async fn a_proc_in_another_swarms_pool_is_not_deleted_from_under_it() {
    let world = World::new(&["a", "b"], 1).await;
    world.dispatch("v1").await;
    assert_eq!(nodes_of(&world, "pool").await, ["a:5000"]);
    world.store.execute_for_tests("INSERT INTO squads (name) VALUES ('second')").await;
    world
        .store
        .execute_for_tests(
            "INSERT INTO swarms (app_id, config_name, proc_name, squad_id, size, pool, balancer)
             SELECT 1, 'prod', 'web', id, 1, 'second', 'default' FROM squads WHERE name = 'second'",
        )
        .await;
    world
        .store
        .execute_for_tests(
            "UPDATE hosts SET squad_id = (SELECT id FROM squads WHERE name = 'second') WHERE name = 'a'",
        )
        .await;
    let new = NewDispatch { swarm_id: 2, version: "v2", requested_by: "me" };
    let id = world.store.add_dispatch(new).await.unwrap();
    assert_eq!(world.finish(&id).await.state, State::Done);
    let dead = !world.versions().contains(&"v1".to_owned());
    let routed = nodes_of(&world, "pool").await.contains(&"a:5000".to_owned());
    assert!(!(dead && routed), "the first swarm's pool sends to a proc that was deleted");
}

#[tokio::test]
async fn a_dispatch_does_not_take_back_a_newer_version() {
    let world = World::new(&["a"], 1).await;
    let id = world.ask("v1").await;
    // While v1 is built, somebody puts the swarm at v2, and has not dispatched yet.
    world.store.set_swarm_version(SWARM, "v2").await.unwrap();
    assert_eq!(world.finish(&id).await.state, State::Done);
    assert_eq!(world.store.swarm(SWARM).await.unwrap().version.as_deref(), Some("v2"));
}

#[tokio::test]
async fn a_proc_runs_as_its_release_says() {
    let world = World::new(&["a"], 1).await;
    let id = world.ask("v1").await;
    drive_to(&world, &world.conductor(), State::Deploying, false).await;
    world.store.execute_for_tests("UPDATE swarms SET run_as = 'somebody'").await;
    world.finish(&id).await;
    let name = world.names().pop().unwrap();
    let yaml = world.hosts["a"].proc_yaml(&name);
    assert!(yaml.contains("user: nobody"), "{yaml}");
}

/// The agent refuses another proc.yaml under the same name, so a step that is taken again has to write the same.
#[tokio::test]
async fn a_repeated_deploy_sends_the_same_proc_yaml() {
    let world = World::new(&["a"], 1).await;
    let id = world.ask("v1").await;
    drive_to(&world, &world.conductor(), State::Deploying, true).await;
    let name = world.names().pop().unwrap();
    let before = world.hosts["a"].proc_yaml(&name);
    // The server was started again with `--listen 127.0.0.1:0`: it has another port now.
    let mut conductor = world.conductor();
    conductor.settings = Arc::new(Settings {
        public_url: "http://server:2".into(),
        poll: Duration::from_millis(10),
        ..(*conductor.settings).clone()
    });
    let (dispatch, lease) = world.store.lease_dispatch("worker", MINUTE).await.unwrap().unwrap();
    conductor.take_steps(dispatch, &lease).await;
    assert_eq!(world.store.dispatch(&id).await.unwrap().state, State::Done);
    assert_eq!(world.hosts["a"].proc_yaml(&name), before);
}

#[tokio::test]
async fn a_build_that_was_built_again_is_deployed() {
    let world = World::new(&["a"], 1).await;
    world.dispatch("v1").await;
    let before = world.names();
    // POST /api/v1/builds/1/build/
    world.store.queue_build(1, true).await.unwrap();
    let (build, lease) = world.store.lease_build("worker", MINUTE).await.unwrap().unwrap();
    let outcome = BuildOutcome::Success {
        file: "builds/again.tar.gz".into(),
        file_md5: vr_common::hash::md5_hex(b"again"),
        compile_log: None,
        hash: vr_common::hash::md5_hex(b"again"),
        env_yaml: "FROM_BUILD: '1'\n".into(),
        buildpack_url: None,
        buildpack_version: None,
    };
    world.store.finish_build(build.id, &lease, &outcome).await.unwrap();
    assert_eq!(world.dispatch("v1").await.state, State::Done);
    assert_ne!(world.names(), before, "another tarball under the old release's hash");
}

/// Panics in its first build.
#[derive(Default)]
struct Panicking(FakeBuilder);

#[async_trait]
impl BuildRunner for Panicking {
    async fn run(&self, build: &BuildRow, buildpacks: Vec<String>) -> BuildOutcome {
        let first = self.0.built.lock().unwrap().is_empty();
        let outcome = self.0.run(build, buildpacks).await;
        assert!(!first, "a bug in the builder");
        outcome
    }
}

/// A panic in one task must not stop the worker (in a release build: stop it from ever taking work again).
#[tokio::test]
async fn a_task_that_panics_does_not_end_the_worker() {
    let world = World::new(&["a"], 1).await;
    let id = world.ask("v1").await;
    let mut conductor = world.conductor();
    conductor.builder = Arc::new(Panicking::default());
    conductor.settings =
        Arc::new(Settings { lease: Duration::from_millis(400), ..(*conductor.settings).clone() });
    let stop = world.stop.child_token();
    let run = tokio::spawn({
        let stop = stop.clone();
        async move { conductor.run(stop).await }
    });
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !world.store.dispatch(&id).await.unwrap().state.is_over() && !run.is_finished() {
        assert!(std::time::Instant::now() < deadline, "the dispatch never ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The worker counts the end of the dispatch.
    let second = world.ask("v1").await;
    while !world.store.dispatch(&second).await.unwrap().state.is_over() && !run.is_finished() {
        assert!(std::time::Instant::now() < deadline, "the worker takes no work any more");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    run.await.expect("the worker died");
}

#[tokio::test]
async fn a_dispatch_that_cannot_be_routed_leaves_nothing_behind() {
    let world = World::new(&["a"], 1).await;
    world.store.execute_for_tests("UPDATE swarms SET balancer = 'gone'").await;
    let failed = world.dispatch("v1").await;
    assert_eq!(failed.state, State::Failed);
    assert_eq!(world.names(), [""; 0], "{:?}", failed.error);
}

#[tokio::test]
async fn a_host_that_is_deactivated_meanwhile_keeps_no_proc_of_a_failed_dispatch() {
    let world = World::new(&["a", "b"], 1).await;
    let id = world.ask("v1").await;
    drive_to(&world, &world.conductor(), State::Deploying, true).await;
    assert_eq!(world.hosts["a"].names().len(), 1);
    world.store.execute_for_tests("UPDATE hosts SET active = 0 WHERE name = 'a'").await;
    for host in world.hosts.values() {
        let broken = UptestResult { name: "1".into(), output: "no".into(), passed: false };
        host.set_uptests(vec![broken]);
    }
    assert_eq!(world.finish(&id).await.state, State::Failed);
    assert_eq!(world.names(), [""; 0]);
}

/// The host is silent only while the worker starts again.
#[tokio::test]
async fn a_host_that_is_silent_for_a_moment_keeps_no_proc_of_a_failed_dispatch() {
    let world = World::new(&["a", "b"], 1).await;
    let id = world.ask("v1").await;
    let conductor = world.conductor();
    drive_to(&world, &conductor, State::Deploying, true).await;
    world.hosts["a"].cut_off(true);
    let (mut dispatch, lease) = world.store.lease_dispatch("worker", MINUTE).await.unwrap().unwrap();
    let swarm = world.store.swarm(SWARM).await.unwrap();
    conductor.step(&mut dispatch, &swarm, &lease).await.unwrap();
    world.hosts["a"].cut_off(false);
    world.store.end_leases_of("worker").await.unwrap();
    for host in world.hosts.values() {
        let broken = UptestResult { name: "1".into(), output: "no".into(), passed: false };
        host.set_uptests(vec![broken]);
    }
    assert_eq!(world.finish(&id).await.state, State::Failed);
    assert_eq!(world.names(), [""; 0]);
}

/// A lease ends by the wall clock; a jump of it (a suspended machine, NTP) makes a worker take its own work twice.
#[tokio::test]
async fn a_worker_does_not_lease_what_it_drives_itself() {
    let world = World::new(&["a"], 1).await;
    world.ask("v1").await;
    let conductor = world.conductor();
    let stop = world.stop.child_token();
    let run = tokio::spawn({
        let stop = stop.clone();
        // The build is held up, so that the dispatch waits.
        let held = Arc::new(HeldUp);
        async move { Conductor { builder: held, ..conductor }.run(stop).await }
    });
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while world.told("build").await.is_empty() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The clock goes forward by a minute: every lease is over.
    world.store.execute_for_tests("UPDATE builds SET lease_until = 1").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.cancel();
    run.await.unwrap();
    assert_eq!(world.told("build").await.len(), 1, "the same build was begun twice at the same time");
}

/// Never ends.
struct HeldUp;

#[async_trait]
impl BuildRunner for HeldUp {
    async fn run(&self, _: &BuildRow, _: Vec<String>) -> BuildOutcome {
        std::future::pending().await
    }
}
