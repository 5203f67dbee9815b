//! The rules of `proc.yaml`, what can be asked of procs, and what is told of them: with the real vrun, in containers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::{NAME, PATIENCE, end_all_naming, is_alive, proc_yaml, send, until};
use rustix::process::Signal;
use tempfile::TempDir;
use vr_agent::changes::{Change, Subscription};
use vr_agent::document::Snapshot;
use vr_agent::error::AgentError;
use vr_agent::host::{Differences, Host, Options};
use vr_agent::supervision::Wait;
use vr_common::host_api::{ProcState, Usage};
use vr_common::paths::VrRoot;

/// The lines of `proc.yaml` that have a shell run a text.
fn script(text: &str) -> String {
    format!("env: {{SCRIPT: {}}}\ncmd: sh -c \"$SCRIPT\"", serde_json::to_string(text).unwrap())
}

/// A host in this process; its procs are real.
struct World {
    dir: TempDir,
    host: Arc<Host>,
}

impl World {
    async fn new() -> Self {
        let dir = harness::folder();
        let host = Self::open(&dir).await;
        Self { dir, host }
    }

    async fn open(dir: &TempDir) -> Arc<Host> {
        let root = dir.path().join("root");
        fs::create_dir_all(&root).unwrap();
        let state = root.join("agent");
        Host::open_with("testhost", VrRoot::new(&root), &state, Options { keep_logs_days: 7 }).await.unwrap()
    }

    /// As it is after an agent that ended.
    async fn no_agent(&mut self) {
        let elsewhere = self.dir.path().join("elsewhere");
        self.host = Host::open("nobody", VrRoot::new(&elsewhere), &elsewhere.join("agent")).await.unwrap();
    }

    /// The same, and another one that comes.
    async fn next_agent(&mut self) {
        self.no_agent().await;
        self.host = Self::open(&self.dir).await;
    }

    fn proc_dir(&self) -> PathBuf {
        self.dir.path().join("root/procs").join(NAME)
    }

    async fn deploy(&self, more: &str) -> Result<Snapshot, AgentError> {
        self.host.deploy(&NAME.parse().unwrap(), &proc_yaml(more)).await?;
        Ok(self.shown())
    }

    fn shown(&self) -> Snapshot {
        self.host.snapshot(NAME).unwrap()
    }

    async fn until(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        until(what, || Some(self.shown()).filter(&wanted)).await
    }

    async fn until_state(&self, state: ProcState) -> Snapshot {
        self.until(state.name(), |shown| shown.state == state).await
    }

    fn log(&self) -> String {
        fs::read_to_string(self.proc_dir().join("log")).unwrap_or_default()
    }

    async fn until_log(&self, text: &str) {
        until(text, || self.log().contains(text).then_some(())).await;
    }

    async fn until_usage(&self, wanted: impl Fn(&Usage) -> bool) -> Usage {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let usage = self.usage().await;
            if wanted(&usage) {
                return usage;
            }
            assert!(Instant::now() < deadline, "{usage:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn usage(&self) -> Usage {
        self.host.document_with_usage(NAME).await.unwrap().usage.unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        end_all_naming(self.dir.path());
    }
}

async fn next(changes: &mut Subscription) -> Arc<Change> {
    tokio::time::timeout(PATIENCE, changes.next()).await.unwrap().unwrap()
}

/// The changes up to one of that name.
async fn changes_until(changes: &mut Subscription, last: &str) -> Vec<Arc<Change>> {
    let mut all = Vec::new();
    while all.last().is_none_or(|change: &Arc<Change>| change.event() != last) {
        all.push(next(changes).await);
    }
    all
}

fn events(changes: &[Arc<Change>]) -> Vec<&'static str> {
    changes.iter().map(|change| change.event().rsplit('_').next().unwrap()).collect()
}

#[tokio::test]
async fn a_proc_that_ends_as_expected_stays_down_also_for_the_next_agent() {
    let mut world = World::new().await;
    let yaml = "cmd: sh -c \"sleep 1.2; exit 2\"\nautorestart: unexpected\nexitcodes: [0, 2]";
    world.deploy(yaml).await.unwrap();
    let ended = world.until_state(ProcState::Exited).await;
    assert_eq!((ended.exit_status, ended.pid, ended.restarts, ended.spawn_error.as_str()), (2, 0, 0, ""));
    world.next_agent().await;
    assert_eq!(world.shown().state, ProcState::Exited);
    // Whoever starts it gets another run.
    world.host.start(NAME).await.unwrap();
    world.until_state(ProcState::Exited).await;

    // Also when it ends while nobody is there.
    world.host.start(NAME).await.unwrap();
    let up = world.shown();
    assert_eq!(up.state, ProcState::Running);
    world.no_agent().await;
    until("the end of the run", || (!is_alive(up.vrun_pid)).then_some(())).await;
    world.next_agent().await;
    let ended = world.shown();
    assert_eq!((ended.state, ended.exit_status, ended.restarts), (ProcState::Exited, 2, 0));
}

#[tokio::test]
async fn a_proc_that_ends_unexpectedly_is_started_again_and_counted() {
    let mut world = World::new().await;
    let first = world.deploy("cmd: sleep 98765\nautorestart: unexpected").await.unwrap();
    send(first.pid, Signal::KILL);
    let second = world.until("a second run", |shown| shown.restarts == 1 && shown.pid != 0).await;
    assert_ne!(second.vrun_pid, first.vrun_pid);
    let second = world.until_state(ProcState::Running).await;
    until("the count on disk", || {
        fs::read_to_string(world.proc_dir().join("agent.json"))
            .unwrap()
            .contains(r#""restarts":1"#)
            .then_some(())
    })
    .await;
    world.next_agent().await;
    let found = world.shown();
    assert_eq!((found.state, found.pid, found.restarts), (ProcState::Running, second.pid, 1));
    // A restart that somebody asks for is none.
    world.host.restart(NAME).await.unwrap();
    assert_eq!(world.shown().restarts, 1);
}

#[tokio::test]
async fn without_autorestart_every_end_is_the_last() {
    let world = World::new().await;
    let up = world.deploy("cmd: sleep 98765\nautorestart: false").await.unwrap();
    send(up.pid, Signal::KILL);
    let ended = world.until_state(ProcState::Exited).await;
    assert_eq!((ended.exit_status, ended.restarts), (137, 0));
    assert!(ended.spawn_error.contains("exit status 137"), "{ended:?}");
}

#[tokio::test]
async fn startsecs_and_startretries_are_heeded() {
    let world = World::new().await;
    // With 0, it has started as soon as it runs.
    let up = world.deploy("cmd: sleep 98765\nstartsecs: 0").await.unwrap();
    assert_eq!(up.state, ProcState::Running);
    world.host.delete(NAME).await.unwrap();
    let failed = world.deploy("cmd: sh -c \"sleep 1.3; exit 1\"\nstartsecs: 3\nstartretries: 0").await;
    assert!(matches!(failed, Err(AgentError::Start { .. })), "{failed:?}");
    let refused = world.host.start(NAME).await.unwrap_err();
    assert!(refused.to_string().contains("exited too quickly (exit status 1)"), "{refused}");
    assert_eq!(world.shown().state, ProcState::Fatal);
}

#[tokio::test]
async fn an_app_is_asked_to_end_with_its_own_signal() {
    let world = World::new().await;
    let text = "trap 'echo INT; exit 0' INT; trap 'echo TERM' TERM; echo ready; while :; do sleep 0.1; done";
    world.deploy(&format!("{}\nstopsignal: INT", script(text))).await.unwrap();
    world.until_log("ready").await;
    world.host.stop(NAME).await.unwrap();
    assert_eq!(world.log(), "ready\nINT\n");
    assert_eq!(world.shown().exit_status, 0);
}

#[tokio::test]
async fn signals_reach_the_app_and_are_no_stop() {
    let world = World::new().await;
    let text =
        "trap 'echo got USR1' USR1; trap 'echo got TERM' TERM; echo ready; while :; do sleep 0.1; done";
    let up = world.deploy(&format!("{}\ngrace_period: 0", script(text))).await.unwrap();
    world.until_log("ready").await;
    world.host.signal(NAME, Signal::USR1).await.unwrap();
    world.until_log("got USR1").await;
    // Neither is TERM, which a vrun would take for a wish that the app ends.
    world.host.signal(NAME, Signal::TERM).await.unwrap();
    world.until_log("got TERM").await;
    assert_eq!((world.shown().state, world.shown().pid), (ProcState::Running, up.pid));
    world.host.signal(NAME, Signal::KILL).await.unwrap();
    world.until("another run", |shown| shown.restarts == 1).await;
    world.host.stop(NAME).await.unwrap();
    let refused = world.host.signal(NAME, Signal::USR1).await.unwrap_err();
    assert!(matches!(refused, AgentError::NotRunning(_)), "{refused}");
}

#[tokio::test]
async fn whoever_does_not_wait_is_answered_at_once() {
    let world = World::new().await;
    let text = "trap '' TERM; while :; do sleep 0.1; done";
    world.deploy(&format!("{}\ngrace_period: 2\nstartsecs: 2", script(text))).await.unwrap();
    let asked = world.host.stop_with(NAME, Wait::Asked).await.unwrap();
    assert!(matches!(asked.statename, ProcState::Running | ProcState::Stopping), "{asked:?}");
    world.until_state(ProcState::Stopped).await;
    let asked = world.host.start_with(NAME, Wait::Asked).await.unwrap();
    assert!(matches!(asked.statename, ProcState::Stopped | ProcState::Starting), "{asked:?}");
    world.until_state(ProcState::Running).await;
}

#[tokio::test]
async fn changes_are_told_as_supervisor_tells_them() {
    let world = World::new().await;
    let mut changes = world.host.changes().subscribe(None);
    let up = world.deploy("cmd: sleep 98765").await.unwrap();
    let told = changes_until(&mut changes, "PROCESS_STATE_RUNNING").await;
    assert_eq!(events(&told), ["ADDED", "STARTING", "RUNNING"]);
    assert_eq!(told.last().unwrap().proc.pid, up.pid);
    assert!(told.iter().zip(1..).all(|(change, id)| change.id == id));

    send(up.pid, Signal::KILL);
    let told = changes_until(&mut changes, "PROCESS_STATE_RUNNING").await;
    assert_eq!(events(&told), ["EXITED", "STARTING", "RUNNING"]);
    assert_eq!((told[0].proc.exitstatus, told[0].proc.pid), (137, 0));
    world.host.restart(NAME).await.unwrap();
    let told = changes_until(&mut changes, "PROCESS_STATE_RUNNING").await;
    assert_eq!(events(&told), ["STOPPING", "STOPPED", "STARTING", "RUNNING"]);
    world.host.delete(NAME).await.unwrap();
    // Whoever got the answer to the delete finds it told, and gone from the list.
    assert_eq!(world.host.changes().newest(), told.last().unwrap().id + 3);
    assert!(world.host.names().is_empty());
    let told = changes_until(&mut changes, "PROCESS_GROUP_REMOVED").await;
    assert_eq!(events(&told), ["STOPPING", "STOPPED", "REMOVED"]);

    world.deploy("cmd: \"false\"").await.unwrap_err();
    let told = changes_until(&mut changes, "PROCESS_STATE_STOPPED").await;
    assert_eq!(events(&told), ["ADDED", "STARTING", "BACKOFF", "STOPPED"]);
    assert!(told[2].proc.spawnerr.contains("exit status 1"), "{:?}", told[2].proc);
}

#[tokio::test]
async fn what_is_on_disk_is_compared_added_and_let_go() {
    let mut world = World::new().await;
    let nothing = Differences::default();
    world.deploy("cmd: sleep 98765").await.unwrap();
    assert_eq!(world.host.compare().unwrap(), nothing);
    let refused = world.host.let_go(NAME).await.unwrap_err();
    assert!(matches!(refused, AgentError::StillRunning(_)), "{refused}");
    let refused = world.host.add(NAME).await.unwrap_err();
    assert!(matches!(refused, AgentError::AlreadyAdded(_)), "{refused}");

    world.host.stop(NAME).await.unwrap();
    world.host.let_go(NAME).await.unwrap();
    assert!(world.host.names().is_empty() && world.proc_dir().join("proc.yaml").exists());
    let names = vec![NAME.to_owned()];
    assert_eq!(world.host.compare().unwrap(), Differences { added: names.clone(), ..nothing.clone() });
    // Nobody brings it back by accident.
    for refused in [world.host.start(NAME).await.err(), world.host.let_go(NAME).await.err()] {
        assert!(matches!(refused, Some(AgentError::NoSuchProc(_))), "{refused:?}");
    }
    world.host.add(NAME).await.unwrap();
    world.until_state(ProcState::Running).await;

    let file = world.proc_dir().join("proc.yaml");
    fs::write(&file, proc_yaml("cmd: sleep 98764\nstartsecs: 0")).unwrap();
    assert_eq!(world.host.compare().unwrap(), Differences { changed: names.clone(), ..nothing.clone() });
    world.host.stop(NAME).await.unwrap();
    world.host.let_go(NAME).await.unwrap();
    world.host.add(NAME).await.unwrap();
    let up = world.until_state(ProcState::Running).await;
    let line = fs::read_to_string(format!("/proc/{}/cmdline", up.pid)).unwrap();
    assert!(line.contains("98764"), "the new file counts: {line:?}");
    assert_eq!(world.host.compare().unwrap(), nothing);

    fs::rename(&file, world.dir.path().join("aside")).unwrap();
    assert_eq!(world.host.compare().unwrap(), Differences { removed: names, ..nothing });
    fs::rename(world.dir.path().join("aside"), &file).unwrap();
    for name in ["nobody-v1-prod-abcd1234-web-1", "../../etc", ""] {
        let refused = world.host.add(name).await.unwrap_err();
        assert!(matches!(refused, AgentError::NoSuchProc(_)), "{refused}");
    }
    // An agent that is started takes up all that is on disk.
    world.host.stop(NAME).await.unwrap();
    world.host.let_go(NAME).await.unwrap();
    world.next_agent().await;
    assert_eq!(world.host.names(), [NAME]);
}

#[tokio::test]
async fn a_deleted_procs_log_is_kept() {
    let world = World::new().await;
    world.deploy("cmd: sh -c \"echo first life; exec sleep 98765\"").await.unwrap();
    world.until_log("first life").await;
    assert_eq!(world.host.log_file(NAME).unwrap(), world.proc_dir().join("log"));
    world.host.delete(NAME).await.unwrap();
    assert!(!world.proc_dir().exists());
    let kept = world.host.kept_logs().unwrap();
    assert_eq!((kept.len(), kept[0].name.as_str(), kept[0].bytes), (1, NAME, 11));
    let log = world.host.log_file(NAME).unwrap();
    assert!(log.starts_with(world.dir.path().join("root/logs")), "{}", log.display());
    assert_eq!(world.host.log(NAME, 100).unwrap(), b"first life\n");

    // The next life has its own log; the last two are kept.
    world.deploy("cmd: sh -c \"echo second life; exec sleep 98765\"").await.unwrap();
    world.until_log("second life").await;
    assert_eq!(world.host.log(NAME, 100).unwrap(), b"second life\n");
    world.host.delete(NAME).await.unwrap();
    assert_eq!(world.host.log(NAME, 100).unwrap(), b"first life\nsecond life\n");
    let none = world.host.log_file("nobody-v1-prod-abcd1234-web-1").unwrap_err();
    assert!(matches!(none, AgentError::NoSuchProc(_)), "{none}");
}

#[tokio::test]
async fn a_log_can_be_emptied_while_it_is_written() {
    let world = World::new().await;
    let text = "trap 'echo again' USR1; echo one; while :; do sleep 0.1; done";
    world.deploy(&script(text)).await.unwrap();
    world.until_log("one").await;
    fs::write(world.proc_dir().join("log.1"), "old").unwrap();
    world.host.clear_log(NAME).await.unwrap();
    assert_eq!((world.log(), world.proc_dir().join("log.1").exists()), (String::new(), false));
    world.host.signal(NAME, Signal::USR1).await.unwrap();
    world.until_log("again").await;
    assert_eq!(world.log(), "again\n");
}

#[tokio::test]
async fn what_a_proc_uses_is_told_with_and_without_limits() {
    for limits in ["", "mem_limit: 256M\npids_limit: 50\ncpu_limit: 1"] {
        let world = World::new().await;
        // Keeps 40 MB, and one processor busy in a child.
        let text = "x=$(head -c 40000000 /dev/zero | tr '\\0' x); (while :; do :; done) & echo ready; wait";
        world.deploy(&format!("{}\n{limits}", script(text))).await.unwrap();
        world.until_log("ready").await;
        let first =
            world.until_usage(|usage| usage.memory_bytes > 40_000_000 && usage.cpu_seconds > 0.0).await;
        assert!(first.memory_bytes < 200_000_000, "{first:?}");
        assert_eq!((first.processes, first.restarts, first.ooms), (Some(2), 0, 0), "{limits}");
        let second = world.until_usage(|usage| usage.cpu_percent.is_some() && *usage != first).await;
        assert!(second.cpu_seconds > first.cpu_seconds && second.cpu_percent > Some(1.0), "{second:?}");
        world.host.stop(NAME).await.unwrap();
        let down = world.usage().await;
        assert_eq!((down.memory_bytes, down.cpu_seconds), (0, 0.0));
    }
}

#[tokio::test]
async fn a_proc_that_is_killed_for_want_of_memory_says_so_once() {
    let mut world = World::new().await;
    let mut changes = world.host.changes().subscribe(None);
    let text = "trap 'exec tail /dev/zero' USR1; echo ready; while :; do sleep 0.1; done";
    world.deploy(&format!("{}\nmem_limit: 32M", script(text))).await.unwrap();
    world.until_log("ready").await;
    world.host.signal(NAME, Signal::USR1).await.unwrap();
    let told = changes_until(&mut changes, "PROCESS_STATE_EXITED").await;
    let exited = &told.last().unwrap().proc;
    assert!(exited.spawnerr.contains("killed: out of memory (limit 32M)"), "{exited:?}");
    let again = world.until_state(ProcState::Running).await;
    assert_eq!((again.ooms, again.restarts), (1, 1));
    assert_eq!(world.log().matches("out of memory").count(), 1, "{}", world.log());
    until("the count on disk", || {
        fs::read_to_string(world.proc_dir().join("agent.json")).unwrap().contains(r#""ooms":1"#).then_some(())
    })
    .await;
    world.next_agent().await;
    assert_eq!((world.shown().ooms, world.usage().await.ooms), (1, 1));
}
