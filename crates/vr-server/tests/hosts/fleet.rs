//! What the server knows of hosts, and how soon.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vr_common::host_api::ProcState;
use vr_server::events::EventLog;
use vr_server::hosts::{Action, Connector, DriverKind, Fleet, HostView, REMOVED};
use vr_server::store::Store;

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
