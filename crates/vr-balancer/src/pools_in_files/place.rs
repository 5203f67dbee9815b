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

use super::journal::{DELETED, Deleted, JOURNAL, Journal, LOCK};
use super::plan::{Folder, Plan, UnreadableFile, file_of};
use super::program::{Change, Program, Refusal};
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
        let diff = |change: &super::journal::FileChange| {
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
            change.id = change_id();
            // The first attempt counts as somebody else's from here on: `old` is still what was there before both.
            self.write(&kept).await?;
            plan = kept;
            tested = program.test(site, &change).await;
        }
        if let Err(refusal) = tested {
            program.abandon(site, &change).await;
            let restored = self.take_back(&plan, self.must_load).await;
            return Err(PlaceError::Refused { refusal: Box::new(refusal), restored });
        }
        if let Err(refusal) = program.load(site, &change).await {
            program.abandon(site, &change).await;
            let restored = self.take_back(&plan, true).await;
            return Err(PlaceError::Refused { refusal: Box::new(refusal), restored });
        }
        self.must_load = false;
        let mut last = vec![Journal::over()];
        let is_news = change
            .pools
            .iter()
            .fold(false, |news, edit| self.deleted.note(&edit.pool, edit.after.is_some(), now()) | news);
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
        self.lock.check()?;
        let mut files = vec![Journal { files: plan.files.clone() }.to_file()];
        let text = |change: &super::journal::FileChange| FileText {
            name: change.name.clone(),
            text: change.new.clone(),
        };
        files.extend(plan.files.iter().map(text));
        Ok(self.place.site.write(&self.place.folder, &files).await?)
    }

    /// Puts the old files back, and lets the program load them if it may have loaded others.
    async fn take_back(&mut self, plan: &Plan, load: bool) -> Restored {
        let Place { site, folder, program, .. } = self.place;
        let mut files: Vec<FileText> = plan
            .files
            .iter()
            .rev()
            .map(|change| FileText { name: change.name.clone(), text: change.old.clone() })
            .collect();
        files.push(if load { Journal::default().to_file() } else { Journal::over() });
        let written = match self.lock.check() {
            Ok(()) => site.write(folder, &files).await,
            Err(lost) => Err(lost),
        };
        if let Err(error) = written {
            return Restored::No(chain(&error));
        }
        if !load {
            return Restored::Yes;
        }
        let change = Change {
            id: change_id(),
            pools: plan.pools.iter().map(super::program::PoolEdit::reversed).collect(),
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

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn change_id() -> String {
    format!("{:.0}-{:08x}", now() * 1000.0, rand::random::<u32>())
}
