//! All hosts: what is known of each, kept up to date by one task for each.
//!
//! A host that can say what happens is listened to, any other is asked from time to time; both are asked for their list
//! every now and then in case something was lost. Lists and changes overtake each other on their way: a proc that was
//! heard of after a list was asked for is not taken back by that list.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::{Notify, broadcast};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use vr_common::exit::chain;
use vr_common::host_api::{CleanUpReport, HostInfo, ProcChange, ProcDocument};

use super::{DriverKind, HostDriver, HostError, News as HostNews, NewsStream};
use crate::events::{EventLog, News};
use crate::store::{HostRow, Store};
use crate::time::{self, Millis};

/// How long a host may take to say which procs it has.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// How often a host that is listened to is asked whether it is there.
const PING: Duration = Duration::from_secs(5);
/// How often a host that is listened to is asked for its list all the same.
const SAFETY: Duration = Duration::from_secs(30);
/// How often a host that has to be asked is asked what it is.
const FACTS: Duration = Duration::from_secs(300);
/// How often the store is asked which hosts there are, when nobody says that it changed.
const HOSTS: Duration = Duration::from_secs(2);
/// The first and the longest pause before a host that failed is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How long a host must have failed before that is an event: an agent that is replaced is gone for a moment.
const WORTH_TELLING: Duration = Duration::from_secs(2);
/// How long a host whose failure was told must have answered, without a failure, before it is told that it is back: one that
/// comes and goes makes one event and not hundreds.
const CALM: Duration = Duration::from_secs(5);
/// How long after it was found a host is cleaned up for the first time, and how soon again after that failed; or sooner, if it
/// is cleaned up more often.
const FIRST_CLEAN_UP: Duration = Duration::from_secs(600);
/// How many changes a reader may fall behind.
const QUEUE: usize = 4096;
/// For how long it is remembered when something was heard of a proc: longer than any list is under way.
const MEMORY: Duration = Duration::from_secs(60);

/// What is known of a host. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostView {
    /// Its procs when it was last heard of, sorted by name.
    pub procs: Arc<Vec<ProcDocument>>,
    /// When it last answered.
    pub seen: Option<Millis>,
    /// Since when it does not answer, if so.
    pub unreachable_since: Option<Millis>,
    /// Why it cannot be used at the moment.
    pub error: Option<String>,
    /// What it is, as it last said.
    pub facts: Option<Arc<HostInfo>>,
    /// How it is talked to, as far as that is known.
    pub driver: Option<DriverKind>,
}

/// A change of a host's proc, as the stream of changes tells it.
#[derive(Debug, Clone)]
pub struct FleetChange {
    /// What happened.
    pub change: Arc<ProcChange>,
    /// Whether Redis has it already, or gets it from the host itself: it must not be sent again.
    pub on_redis: bool,
}

type MakeDriver = dyn Fn(&HostRow) -> Arc<dyn HostDriver> + Send + Sync;

/// All hosts. Cheap to clone.
#[derive(Clone)]
pub struct Fleet(Arc<Inner>);

struct Inner {
    store: Store,
    events: EventLog,
    make: Box<MakeDriver>,
    hosts: RwLock<HashMap<String, Arc<Entry>>>,
    changes: broadcast::Sender<FleetChange>,
    /// Says that there may be other hosts in the store.
    hosts_changed: Notify,
    /// Whether Supervisors' events come from Redis at the moment.
    pushed: AtomicBool,
}

struct Entry {
    row: HostRow,
    driver: Arc<dyn HostDriver>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    view: HostView,
    /// When something was last heard of a proc by itself, by its [`full_name`].
    heard: HashMap<String, Instant>,
    /// Since when it fails, in whatever way.
    failing_since: Option<Millis>,
    outage: Outage,
    /// Whether it says by itself what happens: nobody else has to find that out then.
    says: bool,
    /// Whether Redis tells what happens there, as far as anybody can know: until a change is found that it did not tell.
    pushed: bool,
    /// Whether the host itself tells Redis, as far as anybody can know: until it is listed anew by its agent, or until a change
    /// is found that it did not tell.
    publishes: bool,
}

/// What of a host's failures is an event.
#[derive(Debug, Default)]
struct Outage {
    /// Since when it fails.
    failing_since: Option<Instant>,
    /// Since when it failed when that was told.
    told: Option<Instant>,
    /// Since when it answers again after that.
    calm_since: Option<Instant>,
}

impl Outage {
    /// It answered. Gives for how long it did not, if that is to be told now.
    fn answered(&mut self, now: Instant) -> Option<Duration> {
        self.failing_since = None;
        let failed = self.told?;
        let calm = *self.calm_since.get_or_insert(now);
        if now - calm < CALM {
            return None;
        }
        *self = Self::default();
        Some(calm - failed)
    }

    /// It did not. Whether that is to be told now.
    fn failed(&mut self, now: Instant) -> bool {
        self.calm_since = None;
        let since = *self.failing_since.get_or_insert(now);
        let worth_telling = self.told.is_none() && now - since >= WORTH_TELLING;
        if worth_telling {
            self.told = Some(since);
        }
        worth_telling
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").finish_non_exhaustive()
    }
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the same driver would be made of another row.
    fn is_of(&self, row: &HostRow) -> bool {
        (self.row.id, &self.row.agent_url, &self.row.driver) == (row.id, &row.agent_url, &row.driver)
    }
}

impl Fleet {
    /// The hosts of the store; `make` gives the driver of one.
    pub fn new(
        store: Store,
        events: EventLog,
        make: impl Fn(&HostRow) -> Arc<dyn HostDriver> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            events,
            make: Box::new(make),
            hosts: RwLock::default(),
            changes: broadcast::Sender::new(QUEUE),
            hosts_changed: Notify::new(),
            pushed: false.into(),
        }))
    }

    /// The driver of a host.
    pub fn driver(&self, host: &HostRow) -> Arc<dyn HostDriver> {
        Arc::clone(&self.entry(host).driver)
    }

    /// The host of a row, which may have been read some time ago: how a host is talked to is changed by [`Self::hosts`]
    /// alone.
    fn entry(&self, row: &HostRow) -> Arc<Entry> {
        if let Some(entry) = self.entry_named(&row.name) {
            return entry;
        }
        let mut hosts = self.0.hosts.write().unwrap_or_else(PoisonError::into_inner);
        match hosts.get(&row.name) {
            Some(entry) => Arc::clone(entry),
            None => self.make_entry(row, &mut hosts),
        }
    }

    fn make_entry(&self, row: &HostRow, hosts: &mut HashMap<String, Arc<Entry>>) -> Arc<Entry> {
        let driver = (self.0.make)(row);
        // A host that is talked to in another way is the same host, but nobody listens to it yet in that way.
        let known = hosts.get(&row.name).map(|before| {
            // Its watcher is the wrong one now.
            self.hosts_changed();
            let before = std::mem::take(&mut *before.lock());
            Known { says: false, pushed: false, publishes: false, ..before }
        });
        let known = Mutex::new(known.unwrap_or_default());
        let entry = Arc::new(Entry { row: row.clone(), driver, known });
        hosts.insert(row.name.clone(), Arc::clone(&entry));
        entry
    }

    fn entry_named(&self, host: &str) -> Option<Arc<Entry>> {
        self.0.hosts.read().unwrap_or_else(PoisonError::into_inner).get(host).map(Arc::clone)
    }

    /// What was last known of a host; empty for one that was never looked at.
    pub fn view(&self, host: &str) -> HostView {
        self.entry_named(host).map(|entry| entry.lock().view.clone()).unwrap_or_default()
    }

    /// What happens to procs from now on.
    pub fn listen(&self) -> broadcast::Receiver<FleetChange> {
        self.0.changes.subscribe()
    }

    /// Says that hosts were added, changed or removed.
    pub fn hosts_changed(&self) {
        self.0.hosts_changed.notify_one();
    }

    /// Asks a host for its procs now, and keeps the answer.
    ///
    /// # Errors
    /// What the driver says, and [`HostError::Unreachable`] at the deadline.
    pub async fn look(&self, host: &HostRow) -> Result<Vec<ProcDocument>, HostError> {
        let entry = self.entry(host);
        self.look_at(&entry).await
    }

    async fn look_at(&self, entry: &Entry) -> Result<Vec<ProcDocument>, HostError> {
        let asked = Instant::now();
        let answer = in_time(&entry.row.name, entry.driver.procs()).await;
        match &answer {
            Ok(procs) => {
                self.take_list(entry, asked, procs.clone());
                self.answered(entry).await;
            }
            Err(error) => self.failed(entry, error).await,
        }
        answer
    }

    /// Adds a proc that was deployed or told to do something just now to what is known of its host.
    pub fn note(&self, proc: ProcDocument) {
        if let Some(entry) = self.entry_named(&proc.host) {
            self.put(&entry, proc, false);
        }
    }

    /// Takes a proc from what is known of its host, as it was deleted just now.
    pub fn note_gone(&self, host: &str, proc: &str) {
        if let Some(entry) = self.entry_named(host) {
            self.take_out(&entry, proc, false);
        }
    }

    /// Takes a change that came from Redis; only of hosts that have to be asked otherwise.
    ///
    /// The document is newer than the event that it came with, so the event's name is not looked at. One that waited
    /// somewhere, as while Redis was away, may be older than what is known.
    pub(super) fn take_pushed(&self, host: &str, name: &str, proc: Option<ProcDocument>) {
        let Some(entry) = self.entry_named(host) else { return };
        if entry.driver.kind() != Some(DriverKind::Supervisor) {
            return;
        }
        entry.lock().pushed = true;
        match proc {
            Some(proc) => {
                let known = Arc::clone(&entry.lock().view.procs);
                let before = find(&known, &proc).ok().and_then(|at| known.get(at));
                if before.is_none_or(|before| !is_older(&proc, before)) {
                    self.put(&entry, proc, true);
                }
            }
            None => self.take_out(&entry, name, true),
        }
    }

    /// Notes that a host tells Redis itself what happens to its procs.
    pub(super) fn note_publisher(&self, host: &str) {
        if let Some(entry) = self.entry_named(host) {
            entry.lock().publishes = true;
        }
    }

    /// Says whether changes come from Redis.
    pub(super) fn set_pushed(&self, pushed: bool) {
        self.0.pushed.store(pushed, Ordering::Relaxed);
    }

    fn tell(&self, event: String, at: Millis, proc: ProcDocument, on_redis: bool) {
        let change = Arc::new(ProcChange { event, at, proc });
        // An error only says that nobody listens.
        drop(self.0.changes.send(FleetChange { change, on_redis }));
    }

    fn put(&self, entry: &Entry, proc: ProcDocument, from_redis: bool) {
        let mut known = entry.lock();
        let on_redis = from_redis || known.publishes;
        known.heard.insert(full_name(&proc), Instant::now());
        let procs = Arc::make_mut(&mut known.view.procs);
        let before = match find(procs, &proc) {
            Ok(at) => Some(std::mem::replace(&mut procs[at], proc.clone())),
            Err(at) => {
                procs.insert(at, proc.clone());
                None
            }
        };
        let news = !known.says && before.is_none_or(|before| differs(&before, &proc));
        drop(known);
        // What was told already, by whichever way, is not told again.
        if news {
            self.tell(state_event(&proc), time::now(), proc, on_redis);
        }
    }

    /// A group is gone with all its processes; each proc of ours is a group of its own.
    fn take_out(&self, entry: &Entry, group: &str, from_redis: bool) {
        let mut known = entry.lock();
        let procs = Arc::make_mut(&mut known.view.procs);
        let gone: Vec<_> = procs.extract_if(.., |proc| proc.group == group).collect();
        // Also one that a list brings that is under way.
        let names = gone.iter().map(full_name).chain([format!("{group}:{group}")]);
        known.heard.extend(names.map(|name| (name, Instant::now())));
        let (says, on_redis) = (known.says, from_redis || known.publishes);
        drop(known);
        for proc in gone.into_iter().filter(|_| !says) {
            self.tell(REMOVED.to_owned(), time::now(), proc, on_redis);
        }
    }

    /// Takes a list that was asked for at some time.
    fn take_list(&self, entry: &Entry, asked: Instant, mut list: Vec<ProcDocument>) {
        let mut known = entry.lock();
        let Known { view, heard, says, pushed, publishes, .. } = &mut *known;
        heard.retain(|_, when| when.elapsed() < MEMORY);
        let since = |proc: &ProcDocument| heard.get(&full_name(proc)).is_some_and(|when| *when >= asked);
        // What was heard since then is newer, also that something is gone.
        list.retain(|proc| !since(proc));
        list.extend(view.procs.iter().filter(|proc| since(proc)).cloned());
        list.sort_by(|a, b| key(a).cmp(&key(b)));
        // The first list of all is no news.
        let mut news = Vec::new();
        if view.seen.is_some() && !*says {
            for proc in &list {
                let before = find(&view.procs, proc).ok().and_then(|at| view.procs.get(at));
                if before.is_none_or(|before| differs(before, proc)) {
                    news.push((state_event(proc), proc.clone()));
                }
            }
            for proc in view.procs.iter().filter(|proc| find(&list, proc).is_err()) {
                news.push((REMOVED.to_owned(), proc.clone()));
            }
        }
        *pushed &= news.is_empty();
        *publishes &= news.is_empty();
        if *view.procs != list {
            view.procs = Arc::new(list);
        }
        view.seen = Some(time::now());
        drop(known);
        let now = time::now();
        for (event, proc) in news {
            self.tell(event, now, proc, false);
        }
    }

    /// Notes that a host answered.
    async fn answered(&self, entry: &Entry) {
        let now = time::now();
        let back_after = {
            let mut known = entry.lock();
            known.view.seen = Some(now);
            known.view.unreachable_since = None;
            known.view.error = None;
            known.view.driver = entry.driver.kind();
            known.failing_since = None;
            known.outage.answered(Instant::now())
        };
        if let Some(after) = back_after {
            let host = &entry.row.name;
            let message = format!("host {host} is back after {}", span(after));
            self.0.events.tell(self.host_news(host, message, &["host", "success"])).await;
        }
    }

    /// Notes that a host did not.
    async fn failed(&self, entry: &Entry, error: &HostError) {
        let now = time::now();
        let text = chain(error);
        let worth_telling = {
            let mut known = entry.lock();
            let since = *known.failing_since.get_or_insert(now);
            known.view.unreachable_since = error.is_unreachable().then_some(since);
            known.view.error = Some(text.clone());
            known.view.driver = entry.driver.kind().or(known.view.driver);
            known.outage.failed(Instant::now())
        };
        if worth_telling {
            self.0.events.tell(self.host_news(&entry.row.name, text, &["host", "failed"])).await;
        }
    }

    fn host_news(&self, host: &str, message: String, tags: &[&'static str]) -> News {
        let uri = crate::store::resources::Resource::Hosts.uri(host);
        News::new(host, message, tags).with("resource_uri", uri)
    }

    /// Looks at all hosts at once, and forgets those that the store no longer has.
    pub async fn look_at_all(&self) {
        if let Some(hosts) = self.hosts().await {
            join_all(hosts.iter().map(|host| self.look(host))).await;
        }
    }

    /// The hosts of the store, as they are to be talked to now; all others are forgotten.
    async fn hosts(&self) -> Option<Vec<HostRow>> {
        match self.0.store.hosts().await {
            Ok(rows) => {
                let mut hosts = self.0.hosts.write().unwrap_or_else(PoisonError::into_inner);
                let is_there = |entry: &Entry| {
                    rows.iter().any(|row| (row.id, &row.name) == (entry.row.id, &entry.row.name))
                };
                let gone: Vec<_> = hosts.extract_if(|_, entry| !is_there(entry)).collect();
                for row in &rows {
                    if hosts.get(&row.name).is_none_or(|entry| !entry.is_of(row)) {
                        self.make_entry(row, &mut hosts);
                    }
                }
                drop(hosts);
                for (_, entry) in gone {
                    self.forget(&entry);
                }
                Some(rows)
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "hosts were not looked at");
                None
            }
        }
    }

    /// Tells that a host that is not looked after any more has no procs, for all that anybody here knows.
    fn forget(&self, entry: &Entry) {
        let known = std::mem::take(&mut *entry.lock());
        // They run on, and whoever else tells Redis of them goes on as well.
        let on_redis = known.publishes || known.pushed;
        for proc in known.view.procs.iter() {
            self.tell(REMOVED.to_owned(), time::now(), proc.clone(), on_redis);
        }
    }

    /// Keeps what is known of all hosts up to date until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut watchers: HashMap<String, (Arc<Entry>, AbortOnDropHandle<()>)> = HashMap::new();
        loop {
            if let Some(rows) = self.hosts().await {
                watchers.retain(|name, (entry, _)| {
                    rows.iter().any(|row| &row.name == name && Arc::ptr_eq(entry, &self.entry(row)))
                });
                let many = u32::try_from(rows.len()).unwrap_or(u32::MAX);
                for row in &rows {
                    if watchers.contains_key(&row.name) {
                        continue;
                    }
                    let entry = self.entry(row);
                    let (this, watched) = (self.clone(), Arc::clone(&entry));
                    // Hundreds of hosts are not all asked in the same moment.
                    let pause = Duration::from_millis(5).saturating_mul(many).min(Duration::from_secs(1));
                    let pause = pause.mul_f64(if many > 1 { rand::random::<f64>() } else { 0.0 });
                    let watcher = tokio::spawn(async move {
                        sleep(pause).await;
                        tokio::join!(this.watch(&watched), this.clean_up_now_and_then(&watched));
                    });
                    watchers.insert(row.name.clone(), (entry, AbortOnDropHandle::new(watcher)));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.hosts_changed.notified() => {}
                () = sleep(HOSTS) => {}
            }
        }
    }

    /// Looks after what is known of one host, without end.
    async fn watch(&self, entry: &Entry) {
        let mut pause = PAUSES.0;
        let mut after = None;
        loop {
            let begun = Instant::now();
            let error = match in_time(&entry.row.name, entry.driver.changes(after.as_deref())).await {
                Ok(Some(stream)) => self.follow(entry, stream, &mut after).await,
                Ok(None) => match self.poll(entry).await {
                    Some(error) => error,
                    None => continue,
                },
                Err(error) => error,
            };
            self.failed(entry, &error).await;
            // One that was there for a while is likely to be there again at once.
            if begun.elapsed() > PAUSES.1 {
                pause = PAUSES.0;
            }
            sleep(pause.mul_f64(0.75 + 0.5 * rand::random::<f64>())).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Takes a host's news until they end, and asks now and then whether it is there.
    async fn follow(&self, entry: &Entry, mut stream: NewsStream, after: &mut Option<String>) -> HostError {
        let listening = async {
            loop {
                let received = Instant::now();
                match stream.next().await {
                    Some(Ok((id, news))) => {
                        match news {
                            // It was made after we began to wait for it, and nothing has been heard since.
                            HostNews::List(procs) => {
                                entry.lock().says = false;
                                self.take_list(entry, received, procs);
                                // It may be another agent, which does not.
                                entry.lock().publishes = false;
                            }
                            HostNews::Change(change) => self.take_change(entry, *change),
                            HostNews::Alive => {}
                        }
                        if id.is_some() {
                            *after = id;
                        }
                        entry.lock().says = true;
                        self.answered(entry).await;
                    }
                    Some(Err(error)) => return error,
                    None => {
                        return HostError::unreachable(
                            &entry.row.name,
                            "its stream of changes ended".to_owned(),
                        );
                    }
                }
            }
        };
        let asking = async {
            let mut listed = Instant::now();
            loop {
                match in_time(&entry.row.name, entry.driver.facts()).await {
                    Ok(facts) => {
                        entry.lock().view.facts = Some(Arc::new(facts));
                        self.answered(entry).await;
                    }
                    Err(error) => return error,
                }
                sleep(PING).await;
                if listed.elapsed() > SAFETY {
                    listed = Instant::now();
                    if let Err(error) = self.look_at(entry).await {
                        return error;
                    }
                }
            }
        };
        let error = tokio::select! {
            error = listening => error,
            error = asking => error,
        };
        entry.lock().says = false;
        error
    }

    fn take_change(&self, entry: &Entry, change: ProcChange) {
        let mut known = entry.lock();
        known.heard.insert(full_name(&change.proc), Instant::now());
        let procs = Arc::make_mut(&mut known.view.procs);
        let place = find(procs, &change.proc);
        match (place, change.event == REMOVED) {
            (Ok(at), true) => drop(procs.remove(at)),
            (Ok(at), false) => procs[at] = change.proc.clone(),
            (Err(at), false) => procs.insert(at, change.proc.clone()),
            (Err(_), true) => {}
        }
        let on_redis = known.publishes;
        drop(known);
        // Each is told, also when a list was faster: who follows a proc's states wants all of them.
        drop(self.0.changes.send(FleetChange { change: Arc::new(change), on_redis }));
    }

    /// Asks a host again and again until it does not answer; none when it is talked to in another way by now.
    async fn poll(&self, entry: &Entry) -> Option<HostError> {
        let kind = entry.driver.kind();
        let asking = async {
            loop {
                if let Err(error) = self.look_at(entry).await {
                    return Some(error);
                }
                if entry.driver.kind() != kind {
                    return None;
                }
                // Not every host has something that tells Redis.
                let is_pushed = |known: &Known| known.pushed && known.outage.told.is_none();
                let pushed = self.0.pushed.load(Ordering::Relaxed) && is_pushed(&entry.lock());
                let often = entry.driver.poll_every();
                sleep(if pushed { SAFETY.max(often) } else { often }).await;
            }
        };
        // What it is has another way, and other reasons to fail.
        let facts = async {
            let mut said = None;
            loop {
                match entry.driver.facts().await {
                    Ok(facts) => entry.lock().view.facts = Some(Arc::new(facts)),
                    Err(error) => {
                        let text = chain(&error);
                        if said.as_ref() != Some(&text) {
                            tracing::warn!("it is not known what host {} is: {text}", entry.row.name);
                            said = Some(text);
                        }
                    }
                }
                sleep(FACTS).await;
            }
        };
        tokio::select! {
            ended = asking => ended,
            () = facts => None,
        }
    }

    /// Has a host cleaned up for as long as it is there, if that is the server's business.
    async fn clean_up_now_and_then(&self, entry: &Entry) {
        let Some(every) = entry.driver.clean_up_every() else { return };
        let (host, soon) = (&entry.row.name, every.min(FIRST_CLEAN_UP));
        let (mut pause, mut said) = (soon, None);
        loop {
            // Not all hosts at once.
            sleep(pause.mul_f64(0.75 + 0.5 * rand::random::<f64>())).await;
            pause = soon;
            if entry.lock().view.error.is_some() {
                continue;
            }
            let errors = match entry.driver.clean_up().await {
                Ok(CleanUpReport { removed, removed_bytes, procs, errors, .. }) => {
                    pause = every;
                    if !removed.is_empty() || !procs.is_empty() {
                        let mut message =
                            format!("host {host} was cleaned up: {removed_bytes} bytes are free again");
                        if !procs.is_empty() {
                            message += &format!("; gone is what was left of {}", procs.join(", "));
                        }
                        self.0.events.tell(self.host_news(host, message, &["host"])).await;
                    }
                    errors.join("; ")
                }
                Err(error) => chain(&error),
            };
            if !errors.is_empty() && said.as_ref() != Some(&errors) {
                tracing::warn!("host {host} was not cleaned up: {errors}");
            }
            said = Some(errors);
        }
    }
}

/// Supervisor's event for a proc that is no more.
pub const REMOVED: &str = "PROCESS_GROUP_REMOVED";

/// Supervisor's event for the state that a proc is in.
fn state_event(proc: &ProcDocument) -> String {
    format!("PROCESS_STATE_{}", proc.statename.name())
}

/// What tells a host's processes apart, in the order of lists: two of Supervisor's groups may each have one of the
/// same name.
fn key(proc: &ProcDocument) -> (&str, &str) {
    (&proc.name, &proc.group)
}

/// The same as one text.
fn full_name(proc: &ProcDocument) -> String {
    format!("{}:{}", proc.group, proc.name)
}

/// Where a proc is in a sorted list, or would be.
fn find(procs: &[ProcDocument], proc: &ProcDocument) -> Result<usize, usize> {
    procs.binary_search_by(|known| key(known).cmp(&key(proc)))
}

/// Whether the host looked at a proc before it looked at the other. Both times are written alike, in whole seconds.
fn is_older(proc: &ProcDocument, other: &ProcDocument) -> bool {
    match (&proc.now, &other.now) {
        (Some(one), Some(two)) => one.len() == two.len() && one < two,
        _ => false,
    }
}

/// Whether something happened to a proc, beyond the passing of time.
fn differs(before: &ProcDocument, after: &ProcDocument) -> bool {
    (before.statename, before.pid, &before.spawnerr) != (after.statename, after.pid, &after.spawnerr)
        || (before.exitstatus, &before.start_time) != (after.exitstatus, &after.start_time)
}

async fn in_time<T>(host: &str, work: impl Future<Output = Result<T, HostError>>) -> Result<T, HostError> {
    match tokio::time::timeout(LOOK_DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => {
            Err(HostError::unreachable(host, format!("no answer within {} s", LOOK_DEADLINE.as_secs())))
        }
    }
}

/// A time for people, such as `4 min 10 s`.
fn span(time: Duration) -> String {
    let seconds = (time.as_millis() + 500) / 1000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_comes_and_goes_is_told_once() {
        let begun = Instant::now();
        let at = |seconds: f64| begun + Duration::from_secs_f64(seconds);
        let mut outage = Outage::default();
        // Gone for a moment.
        assert!(!outage.failed(at(0.0)) && !outage.failed(at(1.5)));
        assert_eq!(outage.answered(at(1.8)), None);
        // Gone for longer, and then up and down every second.
        assert!(!outage.failed(at(10.0)) && outage.failed(at(12.0)) && !outage.failed(at(15.0)));
        for second in 0..60 {
            let begun = 20.0 + f64::from(second) * 8.0;
            assert_eq!(outage.answered(at(begun)), None, "{second}");
            assert_eq!(outage.answered(at(begun + 4.0)), None, "{second}");
            assert!(!outage.failed(at(begun + 4.5)) && !outage.failed(at(begun + 7.5)), "{second}");
        }
        // It is back, since the first answer that no failure followed.
        assert_eq!(outage.answered(at(610.0)), None);
        assert_eq!(outage.answered(at(615.0)), Some(Duration::from_secs(600)));
        assert_eq!(outage.answered(at(620.0)), None);
        assert!(!outage.failed(at(630.0)) && outage.failed(at(633.0)), "that is another one");
    }
}
