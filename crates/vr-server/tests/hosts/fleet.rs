//! What the server knows of hosts, and how soon.

use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio_util::sync::CancellationToken;
use vr_common::host_api::ProcState;
use vr_server::events::EventLog;
use vr_server::hosts::{Action, Connector, DriverKind, Fleet, FleetChange, HostView, REMOVED};
use vr_server::store::Store;
use vr_server::store::resources::{Datum, Resource, Values};

use crate::rig::{HOST, More, Rig, proc};

const SLEEP: &str = "cmd: sleep 4000";

pub struct Watched {
    pub rig: Rig,
    pub fleet: Fleet,
    store: Store,
    stop: CancellationToken,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn watched(kind: DriverKind) -> Watched {
    watched_with(kind, More::default(), "").await
}

/// A host with a server that looks after it, with more settings for both.
pub async fn watched_with(kind: DriverKind, more: More, settings: &str) -> Watched {
    let rig = Rig::start_with(kind, more).await;
    let store = rig.store.clone();
    let row = rig.row();
    let connector = std::sync::Arc::new(Connector::new(rig.settings(settings), store.clone(), None));
    // The store's row has an address that is of no use.
    let fleet = Fleet::new(store.clone(), EventLog::new(store.clone()), move |_| connector.driver(&row));
    let stop = CancellationToken::new();
    tokio::spawn({
        let (fleet, stop) = (fleet.clone(), stop.clone());
        async move { fleet.run(stop).await }
    });
    let watched = Watched { rig, fleet, store, stop };
    watched.until("the host was seen", |view| view.seen.is_some()).await;
    watched
}

impl Watched {
    /// Waits until what is known of the host is so.
    pub async fn until(&self, what: &str, condition: impl Fn(&HostView) -> bool) -> HostView {
        let deadline = tokio::time::Instant::now() + vr_testing::DEADLINE;
        loop {
            let view = self.fleet.view(HOST);
            if condition(&view) {
                return view;
            }
            assert!(tokio::time::Instant::now() < deadline, "not in time: {what}: {view:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn told(&self) -> Vec<String> {
        let rows = self.store.events(0, 0, 1000).await.unwrap();
        rows.iter().rev().map(|row| row.data.clone()).collect()
    }
}

/// Every change is told once, with states in their order, whichever way it comes.
async fn changes_are_told(kind: DriverKind) {
    let watched = watched(kind).await;
    let mut changes = watched.fleet.listen();
    let (name, yaml) = proc(5001, SLEEP);
    let driver = watched.rig.driver.clone();
    driver.deploy(&name, &yaml).await.unwrap();
    let state =
        |view: &HostView, state| view.procs.iter().any(|proc| proc.name == name && proc.statename == state);
    watched.until("it runs", |view| state(view, ProcState::Running)).await;
    driver.act(&name, Action::Stop).await.unwrap();
    watched.until("it is stopped", |view| state(view, ProcState::Stopped)).await;
    driver.delete(&name).await.unwrap();
    watched.until("it is gone", |view| view.procs.iter().all(|proc| proc.name != name)).await;
    let mut told = Vec::new();
    while told.last().is_none_or(|event| event != REMOVED) {
        let next = tokio::time::timeout(Duration::from_secs(10), changes.recv()).await;
        let change = next.unwrap_or_else(|_| panic!("only {told:?}")).unwrap().change;
        if change.proc.name == name {
            assert_eq!((change.proc.host.as_str(), change.proc.parsed.port), (HOST, 5001));
            told.push(change.event.clone());
        }
    }
    let place = |event: &str| {
        let places: Vec<_> =
            told.iter().enumerate().filter(|(_, told)| *told == event).map(|(n, _)| n).collect();
        assert_eq!(places.len(), 1, "{event} in {told:?}");
        places[0]
    };
    assert!(place("PROCESS_STATE_RUNNING") < place("PROCESS_STATE_STOPPED"), "{told:?}");
    assert!(place("PROCESS_STATE_STOPPED") < place(REMOVED), "{told:?}");
}

/// By far most changes are known at once: they are pushed. (How soon exactly: `cargo xtask bench agent`.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_an_agent_are_told_at_once() {
    let watched = watched(DriverKind::Agent).await;
    let mut changes = watched.fleet.listen();
    let (name, yaml) = proc(5001, SLEEP);
    let driver = watched.rig.driver.clone();
    let acting = tokio::spawn(async move {
        driver.deploy(&name, &yaml).await.unwrap();
        for _ in 0..8 {
            driver.act(&name, Action::Stop).await.unwrap();
            driver.act(&name, Action::Start).await.unwrap();
        }
    });
    let mut delays = Vec::new();
    while delays.len() < 32 {
        let next = tokio::time::timeout(Duration::from_secs(30), changes.recv()).await;
        let change = next.unwrap_or_else(|_| panic!("only {delays:?}")).unwrap().change;
        delays.push(vr_server::time::now() - change.at);
    }
    acting.await.unwrap();
    delays.sort_unstable();
    println!("delays in ms: {delays:?}");
    assert!(delays[delays.len() / 2] < 250, "{delays:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_an_agent_are_told() {
    changes_are_told(DriverKind::Agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_supervisor_are_told() {
    changes_are_told(DriverKind::Supervisor).await;
}

/// One event when it goes, one when it comes back, and what is known of it stays, with its age.
async fn silence_is_told_once(kind: DriverKind) {
    let mut watched = watched(kind).await;
    let (name, yaml) = proc(5001, SLEEP);
    watched.rig.driver.deploy(&name, &yaml).await.unwrap();
    let has = |view: &HostView| view.procs.iter().any(|proc| proc.name == name);
    watched.until("the proc is seen", has).await;

    watched.rig.kill_daemon();
    let view = watched.until("it is missed", |view| view.unreachable_since.is_some()).await;
    assert!(has(&view), "what it had is still shown");
    assert!(view.error.as_deref().unwrap_or_default().contains("does not answer"), "{view:?}");
    let deadline = tokio::time::Instant::now() + vr_testing::DEADLINE;
    while watched.told().await.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "nobody was told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It is asked several times more, and nobody is told again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = watched.told().await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("host localhost does not answer") && told[0].contains("/api/v1/hosts/localhost/"),
        "{told:?}"
    );

    watched.rig.start_daemon();
    let view = watched.until("it is back", |view| view.unreachable_since.is_none()).await;
    assert_eq!(view.error, None);
    let deadline = tokio::time::Instant::now() + vr_testing::DEADLINE;
    while watched.told().await.len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "nobody was told that it is back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = watched.told().await;
    assert!(told.len() == 2 && told[1].contains("is back after"), "{told:?}");
    watched.until("the proc is seen again", has).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_silence_of_an_agent_is_told_once() {
    silence_is_told_once(DriverKind::Agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_silence_of_supervisor_is_told_once() {
    silence_is_told_once(DriverKind::Supervisor).await;
}

/// A host that stands still takes connections and never answers: it is missed within its deadlines.
async fn a_frozen_host_is_told_once(kind: DriverKind) {
    let watched = watched(kind).await;
    let (name, yaml) = proc(5001, SLEEP);
    let pid = watched.rig.driver.deploy(&name, &yaml).await.unwrap().pid;
    let has = |view: &HostView| view.procs.iter().any(|proc| proc.name == name && proc.pid == pid);
    watched.until("the proc is seen", has).await;

    let frozen = tokio::time::Instant::now();
    watched.rig.freeze();
    while watched.told().await.is_empty() {
        assert!(frozen.elapsed() < Duration::from_secs(30), "nobody was told");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("told after {:?}", frozen.elapsed());
    let view = watched.fleet.view(HOST);
    assert!(view.unreachable_since.is_some() && has(&view), "{view:?}");

    watched.rig.thaw();
    watched.until("it is back, with its proc", |view| view.unreachable_since.is_none() && has(view)).await;
    let deadline = tokio::time::Instant::now() + vr_testing::DEADLINE;
    while watched.told().await.len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "nobody was told that it is back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = watched.told().await;
    assert!(told.len() == 2, "{told:?}");
    assert!(told[0].contains("does not answer") && told[1].contains("is back after"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_agent_is_told_once() {
    a_frozen_host_is_told_once(DriverKind::Agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_supervisor_is_told_once() {
    a_frozen_host_is_told_once(DriverKind::Supervisor).await;
}

fn supervisorctl(rig: &Rig, words: &[&str]) {
    let mut client = vr_common::process::command("supervisorctl");
    client.args(["-s", &format!("http://127.0.0.1:{}", rig.port), "-u", "velo", "-p", crate::rig::PASSWORD]);
    assert!(client.args(words).output().unwrap().status.success(), "{words:?}");
}

/// The event, group and name of the next change.
async fn next(changes: &mut Receiver<FleetChange>) -> (String, String, String) {
    let next = tokio::time::timeout(Duration::from_secs(20), changes.recv()).await;
    let change = next.expect("a change").unwrap().change;
    (change.event.clone(), change.proc.group.clone(), change.proc.name.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_the_same_name_are_told_apart_by_their_groups() {
    let watched = watched(DriverKind::Supervisor).await;
    let up = |view: &HostView| view.procs.iter().all(|proc| proc.statename == ProcState::Running);
    let mut seen = watched.until("all run", up).await.seen;
    let mut changes = watched.fleet.listen();
    for _ in 0..3 {
        seen = watched.until("it was asked again", |view| view.seen > seen).await.seen;
    }
    assert!(changes.is_empty(), "nothing happened, but {:?}", next(&mut changes).await);

    supervisorctl(&watched.rig, &["stop", "other:w0"]);
    let stopped = ("PROCESS_STATE_STOPPED".to_owned(), "other".to_owned(), "w0".to_owned());
    assert_eq!(next(&mut changes).await, stopped);
    watched.fleet.note_gone(HOST, "worker");
    let removed = |name: &str| (REMOVED.to_owned(), "worker".to_owned(), name.to_owned());
    assert_eq!([next(&mut changes).await, next(&mut changes).await], [removed("w0"), removed("w1")]);
}

/// A host that said what happens to it has to be asked when it is talked to in another way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_told_after_a_host_was_given_another_driver() {
    let (rig, other) = (Rig::start(DriverKind::Agent).await, Rig::start(DriverKind::Supervisor).await);
    let (driver, other_driver) = (rig.driver.clone(), other.driver.clone());
    let fleet =
        Fleet::new(rig.store.clone(), EventLog::new(rig.store.clone()), move |row| match &row.driver {
            Some(_) => other_driver.clone(),
            None => driver.clone(),
        });
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    let (running, store) = (fleet.clone(), rig.store.clone());
    tokio::spawn(async move { running.run(stop).await });
    let watched = Watched { rig, fleet, store, stop: CancellationToken::new() };
    watched.until("its agent is listened to", |view| view.facts.is_some()).await;
    let before = watched.store.hosts().await.unwrap().remove(0);

    let values = Values {
        columns: vec![("driver", Datum::Text("supervisor".into())), ("agent_url", Datum::Null)],
        ..Values::default()
    };
    watched.store.change(Resource::Hosts, 1, values, "somebody").await.unwrap();
    watched.fleet.hosts_changed();
    let up = |view: &HostView| {
        view.procs.len() == 4 && view.procs.iter().all(|proc| proc.statename == ProcState::Running)
    };
    watched.until("its Supervisor is asked", up).await;
    // A dispatch still has the host as it was, and must not have it talked to in the old way.
    assert_eq!(watched.fleet.driver(&before).kind(), Some(DriverKind::Supervisor));
    watched.fleet.look(&before).await.unwrap();
    assert_eq!(watched.fleet.view(HOST).driver, Some(DriverKind::Supervisor));
    let mut changes = watched.fleet.listen();
    supervisorctl(&other, &["stop", "foreign"]);
    let (event, _, name) = next(&mut changes).await;
    assert_eq!((event.as_str(), name.as_str()), ("PROCESS_STATE_STOPPED", "foreign"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_procs_of_a_host_that_was_removed_are_told_as_removed() {
    let watched = watched(DriverKind::Agent).await;
    let (name, yaml) = proc(5001, SLEEP);
    watched.rig.driver.deploy(&name, &yaml).await.unwrap();
    let up = |view: &HostView| view.procs.iter().any(|proc| proc.statename == ProcState::Running);
    watched.until("the proc is seen", up).await;
    let mut changes = watched.fleet.listen();
    watched.store.delete(Resource::Hosts, 1, "somebody").await.unwrap();
    watched.fleet.hosts_changed();
    assert_eq!(next(&mut changes).await, (REMOVED.to_owned(), name.clone(), name.clone()));
    assert_eq!(watched.fleet.view(HOST), HostView::default());
    assert!(watched.rig.proc_dir(&name).join("proc.yaml").exists(), "it goes on");
}

/// What nobody uses goes by itself, as often as the settings say, and that is told.
async fn hosts_are_cleaned_up_now_and_then(kind: DriverKind) {
    let watched = watched_with(kind, More::default(), "clean_up_seconds: 1").await;
    let (name, _) = proc(5001, SLEEP);
    let left = watched.rig.proc_dir(&name);
    for _ in 0..2 {
        std::fs::create_dir_all(&left).unwrap();
        let aged = vr_common::process::command("touch").args(["-d", "8 days ago"]).arg(&left).status();
        assert!(aged.unwrap().success());
        let deadline = tokio::time::Instant::now() + vr_testing::DEADLINE;
        while left.exists() {
            assert!(tokio::time::Instant::now() < deadline, "it is still there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let deadline = tokio::time::Instant::now() + vr_testing::DEADLINE;
    while watched.told().await.len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "it was not told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = watched.told().await;
    assert!(told.iter().all(|event| event.contains("host localhost was cleaned up")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_with_an_agent_are_cleaned_up_now_and_then() {
    hosts_are_cleaned_up_now_and_then(DriverKind::Agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_with_supervisor_are_cleaned_up_now_and_then() {
    hosts_are_cleaned_up_now_and_then(DriverKind::Supervisor).await;
}
