//! What a balancer program has to provide, beside its files: how it is asked to take them up.

use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;
use vr_common::names::{Node, PoolName};

use crate::site::{Command, DEADLINE, FileOnSite, OpenConnections, Output, Site, SiteError, Status};

/// What is about to be taken up on one site.
#[derive(Debug, Clone)]
pub struct Change {
    /// A word of letters, digits and dashes that no other change has, for names that the program wants.
    pub id: String,
    /// The pools that change, with their nodes before and after; none stands for no pool.
    pub pools: Vec<PoolEdit>,
    /// The program may serve something else than its files say in other pools, too, so that it has to read all of them.
    pub everything: bool,
}

/// One pool of a [`Change`].
#[derive(Debug, Clone)]
pub struct PoolEdit {
    /// The pool.
    pub pool: PoolName,
    /// The nodes that its file had.
    pub before: Option<Vec<Node>>,
    /// The nodes that its file has now.
    pub after: Option<Vec<Node>>,
}

impl PoolEdit {
    /// The edit that takes this one back.
    pub(super) fn reversed(&self) -> Self {
        Self { pool: self.pool.clone(), before: self.after.clone(), after: self.before.clone() }
    }

    /// Whether the names of the hosts of all new nodes mean something to the site, for programs that find out only when
    /// there are requests.
    ///
    /// # Errors
    /// With [`Refusal::NotServed`] if one does not.
    pub async fn check_names(&self, site: &Site) -> Result<(), Refusal> {
        let is_new = |node: &&Node| !self.before.as_ref().is_some_and(|before| before.contains(node));
        let new: Vec<&Node> = self.after.iter().flatten().filter(is_new).collect();
        let unknown = site.unknown_names(&new).await?;
        if unknown.is_empty() {
            return Ok(());
        }
        let names = unknown.join(", ");
        Err(Refusal::NotServed(format!("the host cannot find the address of {names}")))
    }
}

/// Why a program did not take up its files.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The site failed.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// The program says that something is wrong.
    #[error("{command} says: {said}")]
    Says {
        /// What was run.
        command: String,
        /// The program's own words.
        said: String,
    },
    /// The program does not do what its configuration says; one clause.
    #[error("{0}")]
    NotServed(String),
}

impl Refusal {
    /// What a command said that did not succeed.
    pub fn of(command: &str, output: &Output) -> Self {
        let said = match output.last_words() {
            words if words.is_empty() => format!("nothing, and ended with {}", output.status),
            words => words,
        };
        Self::Says { command: command.to_owned(), said }
    }
}

/// For a program that was told to reload to have new processes in place of the old ones.
const NEW_PROCESSES: Duration = Duration::from_secs(20);

/// Makes a program reload and waits for its new processes, in one command, as each costs a host that is far away time.
///
/// The script gets the line that reloads, for how many seconds to wait after it, and the files that may have the program's
/// number. It ends with 0 when the new processes are there, 3 if it says itself what is wrong, 4 if the line fails, and 5
/// if it is too late; then `missing` says what is not there, such as "nginx made no new workers".
pub(crate) async fn reload_and_wait(
    site: &Site,
    script: &str,
    reload_cmd: &str,
    pid_files: &[&str],
    missing: &str,
) -> Result<(), Refusal> {
    let seconds = NEW_PROCESSES.as_secs().to_string();
    let arguments = [reload_cmd, &seconds].into_iter().chain(pid_files.iter().copied());
    let command = Command::script(reload_cmd, script, arguments).deadline(DEADLINE + NEW_PROCESSES);
    let output = site.run(&command).await?;
    match output.status {
        Status::Code(0) => Ok(()),
        Status::Code(3) => Err(Refusal::NotServed(output.last_words())),
        Status::Code(5) => Err(Refusal::NotServed(format!(
            "{missing} within {seconds} s after {reload_cmd:?}; see its error log"
        ))),
        _ => Err(Refusal::of(reload_cmd, &output)),
    }
}

/// A balancer program whose pools are in files of one folder, one file a pool, and that is told to read them again.
///
/// [`super::FileBalancer`] does all the rest: hosts, locks, reading, writing, taking back, draining, repairing. What is
/// here is asked for one site at a time, while the site's lock is held, and may be asked again.
#[async_trait]
pub trait Program: Send + Sync + 'static {
    /// What people call it, such as `nginx`.
    fn title(&self) -> &'static str;

    /// What the name of a pool's file begins with.
    fn prefix(&self) -> &str {
        ""
    }

    /// What the name of a pool's file ends with, such as `.conf`.
    fn suffix(&self) -> &str;

    /// The name of the file beside the pools' that changes with them, if the program needs one.
    fn shared_file(&self) -> Option<&str> {
        None
    }

    /// The shared file with, or without, what it needs to say of a pool.
    fn write_shared(&self, _old: Option<&str>, _pool: &PoolName, _is_there: bool) -> String {
        String::new()
    }

    /// Reads the nodes of a pool from its file, in their order, whoever wrote it. None if the file is not about this
    /// pool, but the operator's own.
    ///
    /// # Errors
    /// What there is that cannot be understood, and so not be changed without breaking it; one clause.
    fn parse(&self, pool: &PoolName, text: &str) -> Result<Option<Vec<Node>>, String>;

    /// Writes a pool's file. What `old` says beside the nodes, and of each node that stays, is kept.
    /// A pool without nodes must be something that the program accepts, and that answers with an error.
    ///
    /// # Errors
    /// As [`Self::parse`].
    fn render(&self, pool: &PoolName, nodes: &[Node], old: Option<&str>) -> Result<String, String>;

    /// A line of the program's language that says this and means nothing.
    fn comment(&self, text: &str) -> String {
        format!("# {text}")
    }

    /// Asks the program whether it would take its files, as they are now, without taking them.
    ///
    /// # Errors
    /// With [`Refusal::Says`] if it would not; then the files go back to what they were.
    async fn test(&self, site: &Site, change: &Change) -> Result<(), Refusal>;

    /// Makes the program take its files, and returns when it really serves what they say. Requests that are being
    /// answered must go on.
    ///
    /// # Errors
    /// If it does not; then the files go back to what they were, and this is called once more.
    async fn load(&self, site: &Site, change: &Change) -> Result<(), Refusal>;

    /// Throws away what [`Self::test`] left behind for a change that is not going to be loaded.
    async fn abandon(&self, _site: &Site, _change: &Change) {}

    /// Whether the program serves what is in these files (all of the pools', and the shared one); none if it cannot tell.
    ///
    /// # Errors
    /// If it cannot be asked.
    async fn is_loaded(&self, _site: &Site, _files: &[FileOnSite]) -> Result<Option<bool>, Refusal> {
        Ok(None)
    }

    /// Whether a part of the program is left that knows a configuration from before and may still choose a node that is
    /// no longer in it.
    ///
    /// # Errors
    /// If it cannot be asked.
    async fn has_old_generation(&self, _site: &Site) -> Result<bool, Refusal> {
        Ok(false)
    }

    /// How much is open on each of these nodes. Unless the program can tell, it is the site's TCP connections to them.
    ///
    /// # Errors
    /// If nobody can tell.
    async fn open(&self, site: &Site, nodes: &[Node]) -> Result<OpenConnections, Refusal> {
        Ok(site.connections(None, nodes).await?)
    }

    /// How long nothing has to be open on a node for it to be free: what a request may need to go from being taken to
    /// being counted.
    fn settling(&self) -> Duration {
        Duration::ZERO
    }

    /// Throws away what is left of nodes that are not waited for any more, as nothing is open on them. Called without the
    /// site's lock: one of them may just be coming back.
    async fn drained(&self, _site: &Site, _pool: &PoolName, _nodes: &[Node]) {}

    /// What keeps the program on this site from doing its work, one clause each; none if all is well.
    ///
    /// # Errors
    /// If it cannot be asked.
    async fn check(&self, site: &Site) -> Result<Vec<String>, Refusal>;
}
