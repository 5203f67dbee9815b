//! A balancer program on one site, and its changes there, one at a time.
//!
//! A change: take the lock, take back what somebody left half done, read, plan, write a journal and the files, let the
//! program test them, let it load them, remove the journal. Whatever fails, the old files go back, and the program with
//! them if it had been asked to load.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::time::{Instant, timeout};
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};

use super::journal::{DELETED, Deleted, FileChange, JOURNAL, Journal, LOCK};
use super::plan::{Folder, Plan, UnreadableFile, file_of};
use super::program::{Change, PoolEdit, Program, Refusal};
use crate::balancer::{FileDiff, PoolChange};
use crate::site::{FileOnSite, FileText, Lock, Site, SiteError};

/// How long others may hold the lock.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(120);

/// Why a site is not as it was asked to be.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The site failed before anything was changed, or nobody knows how far it got.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// A file that cannot be changed.
    #[error("{folder}/{file}")]
    Unreadable {
        /// Its folder.
        folder: String,
        /// The file, and what is wrong with it.
        file: UnreadableFile,
    },
    /// The program does not answer a question as it should.
    #[error(transparent)]
    Asked(Refusal),
    /// What was tried is still there.
    #[error("{0}")]
    NotRestored(Restored),
    /// The program did not take the files.
    #[error("{}; {restored}", chain(refusal.as_ref()))]
    Refused {
        /// What it said.
        refusal: Box<Refusal>,
        /// What became of the old files.
        restored: Restored,
    },
}

/// What became of the old files after a failure.
#[derive(Debug)]
pub enum Restored {
    /// They are in place, and the program serves them.
    Yes,
    /// They are in place, but the program would not load them, which the next change or `sync` tries again.
    NotLoaded(String),
    /// They are not in place, which the next change or `sync` sees to.
    No(String),
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("the old configuration is back"),
            Self::NotLoaded(reason) => write!(f, "the old files are back but could not be loaded: {reason}"),
            Self::No(reason) => write!(f, "the old files could not be put back: {reason}"),
        }
    }
}

/// A program on a site.
pub(super) struct Place {
    pub site: Site,
    /// Where the pools' files are, without a slash at its end.
    pub folder: String,
    pub program: Arc<dyn Program>,
    /// Those of this process wait here, in their order, and only the first of them asks for the site's lock.
    queue: tokio::sync::Mutex<()>,
}

impl Place {
    pub fn new(site: Site, folder: &str, program: Arc<dyn Program>) -> Self {
        let folder = folder.trim_end_matches('/').to_owned();
        Self { site, folder, program, queue: tokio::sync::Mutex::default() }
    }

    /// Reads what there is to know about one pool.
    pub async fn read(&self, pool: &PoolName) -> Result<Vec<FileOnSite>, SiteError> {
        let file = file_of(self.program.as_ref(), pool);
        let mut names = vec![JOURNAL, DELETED, &file];
        names.extend(self.program.shared_file());
        self.site.read(&self.folder, &names).await
    }

    /// Reads what there is to know about all pools.
    pub async fn read_all(&self) -> Result<Vec<FileOnSite>, SiteError> {
        let mut others = vec![JOURNAL, DELETED];
        others.extend(self.program.shared_file());
        self.site.read_all(&self.folder, self.program.prefix(), self.program.suffix(), &others).await
    }

    /// A pool's nodes as its file says; none if there is no such pool.
    pub async fn nodes(&self, pool: &PoolName) -> Result<Option<Vec<Node>>, PlaceError> {
        let files = self.read(pool).await?;
        self.folder(&files).nodes(pool).map_err(|file| self.unreadable(file))
    }

    /// All pools as their files say.
    pub async fn pools(&self) -> Result<BTreeMap<PoolName, Vec<Node>>, PlaceError> {
        let files = self.read_all().await?;
        Ok(self.folder(&files).pools().into_iter().collect())
    }

    pub fn folder<'a>(&'a self, files: &'a [FileOnSite]) -> Folder<'a> {
        Folder::new(self.program.as_ref(), files)
    }

    pub fn unreadable(&self, file: UnreadableFile) -> PlaceError {
        PlaceError::Unreadable { folder: self.folder.clone(), file }
    }

    /// What a change would do to the files.
    pub async fn preview(&self, change: &PoolChange) -> Result<Vec<FileDiff>, PlaceError> {
        let files = self.read(&change.pool).await?;
        let (_, plan) = self.plan(change, &files)?;
        Ok(self.diffs(&plan))
    }

    pub fn diffs(&self, plan: &Plan) -> Vec<FileDiff> {
        let diff = |change: &FileChange| {
            let path = format!("{}/{}", self.folder, change.name);
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            FileDiff::new(self.site.name(), &path, &text(&change.old), &text(&change.new))
        };
        plan.files.iter().filter_map(diff).collect()
    }

    /// The nodes that the pool had, and what has to be written.
    fn plan(
        &self,
        change: &PoolChange,
        files: &[FileOnSite],
    ) -> Result<(Option<Vec<Node>>, Plan), PlaceError> {
        let mut folder = self.folder(files);
        let before = folder.nodes(&change.pool).map_err(|file| self.unreadable(file))?;
        let after = change.edit.apply(before.as_deref());
        folder.set(&change.pool, after, None).map_err(|file| self.unreadable(file))?;
        Ok((before, folder.into_plan()))
    }

    /// Makes a change, and gives the nodes that the pool had.
    pub async fn change(&self, change: &PoolChange) -> Result<Option<Vec<Node>>, PlaceError> {
        let late = || SiteError::Locked { path: format!("{}/{LOCK}", self.folder), after: LOCK_WAIT };
        let _turn = timeout(LOCK_WAIT, self.queue.lock()).await.map_err(|_| late())?;
        let mut session = self.begin().await?;
        let result = async {
            let files = session.settle(self.read(&change.pool).await?, || self.read(&change.pool)).await?;
            let (before, plan) = self.plan(change, &files)?;
            session.take_up(plan, false).await?;
            Ok(before)
        }
        .await;
        session.end().await;
        result
    }

    /// Takes the lock.
    pub async fn begin(&self) -> Result<Session<'_>, SiteError> {
        let lock = self.site.lock(&format!("{}/{LOCK}", self.folder), LOCK_WAIT).await?;
        Ok(Session { place: self, lock, must_load: false, deleted: Deleted::default(), done: Vec::new() })
    }
}

/// The time in which this process may change a site.
pub(super) struct Session<'a> {
    place: &'a Place,
    lock: Lock,
    /// The program may serve something else than its files say.
    must_load: bool,
    deleted: Deleted,
    /// What was done, for people.
    pub done: Vec<String>,
}

impl Session<'_> {
    pub async fn end(self) {
        self.lock.release().await;
    }

    /// Takes back what somebody left half done; gives the files as they are then.
    pub async fn settle<F>(
        &mut self,
        files: Vec<FileOnSite>,
        read_again: impl FnOnce() -> F,
    ) -> Result<Vec<FileOnSite>, PlaceError>
    where
        F: Future<Output = Result<Vec<FileOnSite>, SiteError>>,
    {
        self.deleted = Deleted::find(&files);
        let Some(journal) = Journal::find(&files) else { return Ok(files) };
        let Place { site, folder, .. } = self.place;
        tracing::warn!(host = site.name(), folder, "a change was left half done; it is taken back");
        self.must_load = true;
        let names: Vec<&str> = journal.files.iter().map(|change| change.name.as_str()).collect();
        let undo = journal.undo(&site.read(folder, &names).await?);
        if undo.is_empty() {
            return Ok(files);
        }
        self.lock.check()?;
        site.write(folder, &undo).await?;
        self.done.push("took back a change that was left half done".to_owned());
        Ok(read_again().await?)
    }

    /// Makes the files, and the program, what was planned. With `load_anyway` the program reads its files even when
    /// nothing changes.
    pub async fn take_up(&mut self, plan: Plan, load_anyway: bool) -> Result<(), PlaceError> {
        self.must_load |= load_anyway;
        if plan.files.is_empty() && !self.must_load {
            return Ok(());
        }
        let began = Instant::now();
        let program = Arc::clone(&self.place.program);
        let site = &self.place.site;
        let mut change = Change { id: change_id(), pools: plan.pools.clone(), everything: self.must_load };
        self.write(&plan).await?;
        let mut plan = plan;
        let mut tested = program.test(site, &change).await;
        // Perhaps just because something refers to a pool that is gone.
        if let (Err(Refusal::Says { .. }), Some(kept)) = (&tested, plan.keeping_deleted(program.as_ref())) {
            program.abandon(site, &change).await;
            if kept.files.is_empty() && !self.must_load {
                // It is kept already.
                return match self.take_back(&plan, false).await {
                    Restored::Yes => Ok(()),
                    restored => Err(PlaceError::NotRestored(restored)),
                };
            }
            change.id = change_id();
            // Between the two, the old files are there: whichever journal somebody finds, it fits what they see.
            self.write_after(plan.old_files(), &kept).await?;
            plan = kept;
            tested = program.test(site, &change).await;
        }
        if let Err(refusal) = tested {
            program.abandon(site, &change).await;
            let restored = self.take_back(&plan, self.must_load).await;
            return Err(PlaceError::Refused { refusal: Box::new(refusal), restored });
        }
        // A test may take minutes. Whoever took the lock from us meanwhile has taken the change back as well.
        if let Err(lost) = self.lock.check() {
            program.abandon(site, &change).await;
            return Err(lost.into());
        }
        if let Err(refusal) = program.load(site, &change).await {
            program.abandon(site, &change).await;
            let restored = self.take_back(&plan, true).await;
            return Err(PlaceError::Refused { refusal: Box::new(refusal), restored });
        }
        self.lock.check()?;
        self.must_load = false;
        let mut last = vec![Journal::over()];
        // By the clock that the files' times are of: `sync` compares them.
        let deletes = change.pools.iter().any(|edit| edit.after.is_none());
        let now = if deletes { site.now().await? } else { 0.0 };
        let note =
            |deleted: &mut Deleted, edit: &PoolEdit| deleted.note(&edit.pool, edit.after.is_some(), now);
        let is_news = change.pools.iter().fold(false, |news, edit| note(&mut self.deleted, edit) | news);
        if is_news {
            last.insert(0, self.deleted.to_file());
        }
        site.write(&self.place.folder, &last).await?;
        for file in &plan.files {
            self.done.push(format!("{} {}", if file.new.is_some() { "wrote" } else { "removed" }, file.name));
        }
        self.done.push("loaded the configuration".to_owned());
        let took = began.elapsed().as_millis();
        tracing::debug!(host = site.name(), folder = self.place.folder, took_ms = took, "a change is served");
        Ok(())
    }

    /// Writes the journal, and then the files.
    async fn write(&mut self, plan: &Plan) -> Result<(), PlaceError> {
        self.write_after(Vec::new(), plan).await
    }

    /// The same, but writes these files before the journal.
    async fn write_after(&mut self, first: Vec<FileText>, plan: &Plan) -> Result<(), PlaceError> {
        self.lock.check()?;
        Ok(self.place.site.write(&self.place.folder, &in_order(first, plan)).await?)
    }

    /// Puts the old files back, and lets the program load them if it may have loaded others.
    async fn take_back(&mut self, plan: &Plan, load: bool) -> Restored {
        let Place { site, folder, program, .. } = self.place;
        let mut files = plan.old_files();
        files.push(if load { Journal::default().to_file() } else { Journal::over() });
        let written = match self.lock.check() {
            Ok(()) => site.write(folder, &files).await,
            Err(lost) => Err(lost),
        };
        if let Err(error) = written {
            return Restored::No(chain(&error));
        }
        if !load {
            // As if nothing had been: some programs show by their age whether they have read a file.
            let times = plan.files.iter().filter(|change| change.old.is_some());
            let times: Vec<(&str, f64)> =
                times.filter_map(|change| Some((change.name.as_str(), change.modified?))).collect();
            if let Err(error) = site.set_modified(folder, &times).await {
                let error = chain(&error);
                tracing::debug!(host = site.name(), folder, error, "old files have new times");
            }
            return Restored::Yes;
        }
        let change = Change {
            id: change_id(),
            pools: plan.pools.iter().map(PoolEdit::reversed).collect(),
            everything: self.must_load,
        };
        let loaded = match program.test(site, &change).await {
            Ok(()) => program.load(site, &change).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = loaded {
            program.abandon(site, &change).await;
            return Restored::NotLoaded(chain(&refusal));
        }
        self.must_load = false;
        match site.write(folder, &[Journal::over()]).await {
            Ok(()) => Restored::Yes,
            Err(error) => Restored::No(chain(&error)),
        }
    }
}

/// What a change writes, in an order in which its maker may die anywhere: the journal fits what is there.
fn in_order(first: Vec<FileText>, plan: &Plan) -> Vec<FileText> {
    let new = |change: &FileChange| FileText { name: change.name.clone(), text: change.new.clone() };
    let mut files = first;
    files.push(Journal { files: plan.files.clone() }.to_file());
    files.extend(plan.files.iter().map(new));
    files
}

fn change_id() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    format!("{}-{:08x}", now.map_or(0, |now| now.as_millis()), rand::random::<u32>())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::balancer::Edit;
    use crate::nginx::Nginx;
    use crate::varnish::Varnish;

    fn pool(name: &str) -> PoolName {
        name.parse().unwrap()
    }

    fn nodes(ports: &[u16]) -> Vec<Node> {
        ports.iter().map(|port| format!("h:{port}").parse().unwrap()).collect()
    }

    /// Writes one file more, as a folder would have it.
    fn apply(folder: &mut BTreeMap<String, String>, file: &FileText) {
        match &file.text {
            Some(text) => folder.insert(file.name.clone(), text.clone()),
            None => folder.remove(&file.name),
        };
    }

    fn seen(folder: &BTreeMap<String, String>) -> Vec<FileOnSite> {
        let file = |(name, text): (&String, &String)| FileOnSite {
            name: name.clone(),
            modified: 1.0,
            text: text.clone(),
        };
        folder.iter().map(file).collect()
    }

    /// Pools are deleted, the program wants them to be kept, and the maker dies after each of the files in turn.
    #[test]
    fn whoever_dies_in_the_middle_of_a_change_can_be_taken_back() {
        let programs: [&dyn Program; 2] = [&Nginx::default(), &Varnish::default()];
        for program in programs {
            let mut folder = BTreeMap::new();
            for name in ["a", "b", "c"] {
                let files = seen(&folder);
                let mut planned = Folder::new(program, &files);
                planned.set(&pool(name), Some(nodes(&[1, 2])), None).unwrap();
                for change in planned.into_plan().files {
                    apply(&mut folder, &FileText { name: change.name, text: change.new });
                }
            }
            let files = seen(&folder);
            let mut planned = Folder::new(program, &files);
            planned.set(&pool("a"), None, None).unwrap();
            planned.set(&pool("b"), Some(nodes(&[2, 3])), None).unwrap();
            planned.set(&pool("d"), Some(nodes(&[4])), None).unwrap();
            let plan = planned.into_plan();
            let kept = plan.keeping_deleted(program).unwrap();
            let steps = [in_order(Vec::new(), &plan), in_order(plan.old_files(), &kept)].concat();
            let mut now = folder.clone();
            for step in &steps {
                apply(&mut now, step);
                let mut mended = now.clone();
                let journal = Journal::find(&seen(&now)).unwrap();
                for file in journal.undo(&seen(&now)) {
                    apply(&mut mended, &file);
                }
                mended.remove(JOURNAL);
                assert_eq!(mended, folder, "{} after {}", program.title(), step.name);
            }
        }
    }

    /// Nodes, one a line. Its test takes the lock away from whoever asks for it.
    #[derive(Default)]
    struct Thief {
        lock: String,
        loads: AtomicU32,
    }

    #[async_trait]
    impl Program for Thief {
        fn title(&self) -> &'static str {
            "thief"
        }

        fn suffix(&self) -> &str {
            ".txt"
        }

        fn parse(&self, _pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String> {
            text.lines()
                .map(|line| line.parse().map_err(|_| line.to_owned()))
                .collect::<Result<_, _>>()
                .map(Some)
        }

        fn render(&self, _pool: &PoolName, nodes: &[Node], _old: Option<&str>) -> Result<String, String> {
            Ok(nodes.iter().map(|node| format!("{node}\n")).collect())
        }

        async fn test(&self, _site: &Site, _change: &Change) -> Result<(), Refusal> {
            for process in fs::read_dir("/proc").unwrap() {
                let process = process.unwrap().path();
                let pid = process.file_name().and_then(|name| name.to_str()?.parse().ok());
                let has_lock = fs::read_link(process.join("fd/9")).is_ok_and(|file| file == *self.lock);
                if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw).filter(|_| has_lock) {
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                    // Its parent, which is this process, can see it from then on.
                    let status = || fs::read_to_string(process.join("status")).unwrap_or_default();
                    let has_ended = || status().is_empty() || status().contains("State:\tZ");
                    vr_testing::until("the lock's holder has ended", has_ended);
                }
            }
            Ok(())
        }

        async fn load(&self, _site: &Site, _change: &Change) -> Result<(), Refusal> {
            self.loads.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        async fn check(&self, _site: &Site) -> Result<Vec<String>, Refusal> {
            Ok(Vec::new())
        }
    }

    #[tokio::test]
    async fn a_change_whose_lock_was_lost_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().canonicalize().unwrap();
        let thief = Arc::new(Thief { lock: folder.join(LOCK).display().to_string(), ..Thief::default() });
        let program = Arc::clone(&thief) as Arc<dyn Program>;
        let place = Place::new(Site::local("localhost", false), folder.to_str().unwrap(), program);
        let change = PoolChange { pool: pool("web"), edit: Edit::Add(nodes(&[1])) };
        let error = place.change(&change).await.unwrap_err().to_string();
        assert!(error.ends_with("was lost: its process ended"), "{error}");
        assert_eq!(thief.loads.load(Ordering::Relaxed), 0);
        assert!(folder.join(JOURNAL).exists(), "whoever comes next takes it back");
    }
}
