//! Which files of a folder become what, so that pools become what they shall be. Pure.

use thiserror::Error;
use vr_common::names::{Node, PoolName};

use super::journal::FileChange;
use super::program::{PoolEdit, Program};
use crate::site::{FileOnSite, FileText};

/// What stands in a file whose pool was deleted while the operator's configuration still refers to it.
const DELETED_MARK: &str = "velociraptor: deleted, and kept because the configuration refers to it";

/// A file that cannot be changed without breaking what somebody else wrote.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{file}: {reason}")]
pub struct UnreadableFile {
    /// Its name.
    pub file: String,
    /// What is wrong with it, one clause.
    pub reason: String,
}

/// The files that change, in the order in which they are written, and the pools they are about.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub files: Vec<FileChange>,
    pub pools: Vec<PoolEdit>,
}

/// A folder's files, as they are, and as they would be after what is planned.
pub(super) struct Folder<'a> {
    program: &'a dyn Program,
    files: &'a [FileOnSite],
    plan: Plan,
}

impl<'a> Folder<'a> {
    /// The folder; `files` has at least those of the pools that are asked about, and the shared one.
    pub fn new(program: &'a dyn Program, files: &'a [FileOnSite]) -> Self {
        Self { program, files, plan: Plan::default() }
    }

    fn text(&self, name: &str) -> Option<&str> {
        match self.plan.files.iter().find(|change| change.name == name) {
            Some(change) => change.new.as_deref(),
            None => self.files.iter().find(|file| file.name == name).map(|file| file.text.as_str()),
        }
    }

    /// When a file was written that is there.
    fn modified(&self, name: &str) -> Option<f64> {
        self.files.iter().find(|file| file.name == name).map(|file| file.modified)
    }

    fn unreadable(name: &str, reason: impl Into<String>) -> UnreadableFile {
        UnreadableFile { file: name.to_owned(), reason: reason.into() }
    }

    /// The pools that have a file, with their nodes. What is the operator's own, or cannot be read, is left out.
    pub fn pools(&self) -> Vec<(PoolName, Vec<Node>)> {
        let name_of = |file: &FileOnSite| pool_of(self.program, &file.name);
        let names = self.files.iter().filter_map(name_of);
        names.filter_map(|pool| Some((pool.clone(), self.nodes(&pool).ok()??))).collect()
    }

    /// A pool's nodes; none if there is no such pool.
    pub fn nodes(&self, pool: &PoolName) -> Result<Option<Vec<Node>>, UnreadableFile> {
        let name = file_of(self.program, pool);
        let Some(text) = self.text(&name) else { return Ok(None) };
        if is_deleted(text) {
            return Ok(None);
        }
        match self.program.parse(pool, text) {
            Ok(Some(nodes)) => Ok(Some(nodes)),
            Ok(None) => {
                let reason =
                    format!("it does not describe pool {pool}, so it is left alone; rename it, or the pool");
                Err(Self::unreadable(&name, reason))
            }
            Err(reason) => Err(Self::unreadable(&name, reason)),
        }
    }

    /// Whether the pool was deleted, but has a file because the configuration refers to it.
    pub fn is_kept_for_others(&self, pool: &PoolName) -> bool {
        self.text(&file_of(self.program, pool)).is_some_and(is_deleted)
    }

    /// Plans for a pool to have these nodes, or for it not to be there. `text`, if given, becomes the pool's file as it is.
    pub fn set(
        &mut self,
        pool: &PoolName,
        nodes: Option<Vec<Node>>,
        text: Option<&str>,
    ) -> Result<(), UnreadableFile> {
        let before = self.nodes(pool)?;
        let name = file_of(self.program, pool);
        let old = self.text(&name).map(str::to_owned);
        let was_kept = old.as_deref().is_some_and(is_deleted);
        if before == nodes {
            return Ok(());
        }
        let new = match (&nodes, text) {
            (None, _) => None,
            (Some(_), Some(text)) => Some(text.to_owned()),
            (Some(nodes), None) => {
                let kept = old.as_deref().map(|old| without_mark(self.program, old));
                let rendered = self.program.render(pool, nodes, kept.as_deref());
                Some(rendered.map_err(|reason| Self::unreadable(&name, reason))?)
            }
        };
        let is_there = new.is_some();
        let modified = self.modified(&name);
        let file = FileChange { name, old, modified, new };
        let shared = self.shared_with(pool, is_there);
        // At no moment is something referred to that is not there.
        if is_there {
            self.plan.files.push(file);
            self.plan.files.extend(shared);
        } else {
            self.plan.files.extend(shared);
            self.plan.files.push(file);
        }
        let before = if was_kept { None } else { before };
        self.plan.pools.push(PoolEdit { pool: pool.clone(), before, after: nodes });
        Ok(())
    }

    /// Plans for the file of a deleted pool to go, too.
    pub fn forget(&mut self, pool: &PoolName) {
        let name = file_of(self.program, pool);
        if let Some(old) = self.text(&name).filter(|text| is_deleted(text)).map(str::to_owned) {
            let shared = self.shared_with(pool, false);
            self.plan.files.extend(shared);
            let modified = self.modified(&name);
            self.plan.files.push(FileChange { name, old: Some(old), modified, new: None });
            self.plan.pools.push(PoolEdit { pool: pool.clone(), before: None, after: None });
        }
    }

    /// The change that the shared file needs, merged with what is planned for it already.
    fn shared_with(&mut self, pool: &PoolName, is_there: bool) -> Option<FileChange> {
        let name = self.program.shared_file()?.to_owned();
        let now = self.text(&name).map(str::to_owned);
        let new = self.program.write_shared(now.as_deref(), pool, is_there);
        if now.as_deref() == Some(new.as_str()) {
            return None;
        }
        let earlier = self.plan.files.iter().position(|change| change.name == name);
        let old = match earlier {
            Some(at) => self.plan.files.remove(at).old,
            None => now,
        };
        let modified = self.modified(&name);
        Some(FileChange { name, old, modified, new: Some(new) })
    }

    /// What was planned.
    pub fn into_plan(self) -> Plan {
        self.plan
    }
}

impl Plan {
    /// What takes it back, in the order in which it is written.
    pub fn old_files(&self) -> Vec<FileText> {
        let old = |change: &FileChange| FileText { name: change.name.clone(), text: change.old.clone() };
        self.files.iter().rev().map(old).collect()
    }

    /// The same, but the files of deleted pools stay, without nodes and marked; none if there are no such files. Files that
    /// would be as they were are left out.
    pub fn keeping_deleted(&self, program: &dyn Program) -> Option<Self> {
        let gone: Vec<&PoolEdit> = self.pools.iter().filter(|edit| edit.after.is_none()).collect();
        if gone.is_empty() {
            return None;
        }
        let mut files: Vec<FileChange> = self.files.clone();
        for PoolEdit { pool, .. } in gone {
            let name = file_of(program, pool);
            let file = files.iter_mut().find(|change| change.name == name)?;
            let text = program.render(pool, &[], file.old.as_deref()).ok()?;
            file.new = Some(with_mark(program, &text));
            if let Some(shared) =
                files.iter_mut().find(|change| Some(change.name.as_str()) == program.shared_file())
            {
                shared.new = Some(program.write_shared(shared.new.as_deref(), pool, true));
            }
        }
        files.retain(|change| change.old != change.new);
        Some(Self { files, pools: self.pools.clone() })
    }
}

/// The name of a pool's file.
pub(super) fn file_of(program: &dyn Program, pool: &PoolName) -> String {
    format!("{}{pool}{}", program.prefix(), program.suffix())
}

/// The pool of a file, if it has a pool's name.
pub(super) fn pool_of(program: &dyn Program, file: &str) -> Option<PoolName> {
    if Some(file) == program.shared_file() {
        return None;
    }
    file.strip_prefix(program.prefix())?.strip_suffix(program.suffix())?.parse().ok()
}

fn is_deleted(text: &str) -> bool {
    text.contains(DELETED_MARK)
}

fn with_mark(program: &dyn Program, text: &str) -> String {
    format!("{}\n{}", program.comment(DELETED_MARK), without_mark(program, text))
}

fn without_mark(program: &dyn Program, text: &str) -> String {
    text.replace(&format!("{}\n", program.comment(DELETED_MARK)), "")
}
