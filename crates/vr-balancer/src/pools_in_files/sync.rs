//! Comparing the hosts of a balancer, and making them the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::join_all;
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};

use super::journal::{Deleted, Journal};
use super::place::{Place, PlaceError, Session};
use super::plan::file_of;
use super::{Answers, FileBalancer};
use crate::balancer::{SiteReport, SyncReport};
use crate::error::{BalancerError, HostFailure};
use crate::site::FileOnSite;

/// What one host has to say about one pool.
#[derive(Debug, Clone)]
struct Vote {
    host: String,
    /// Its nodes; none for no pool.
    nodes: Option<Vec<Node>>,
    /// When that came about, in seconds since 1970; 0 if nobody knows.
    since: f64,
    /// The pool's file.
    text: Option<String>,
}

impl Vote {
    /// The order of nodes is no reason to disagree.
    fn set(&self) -> Option<BTreeSet<&Node>> {
        self.nodes.as_ref().map(|nodes| nodes.iter().collect())
    }
}

/// What most hosts have; of equally many, what is newest; then what the first host has. Hosts that know nothing of the
/// pool, such as new ones, have no say: otherwise two of them beside an old one would delete all that it has.
fn winner(votes: &[Vote]) -> Option<&Vote> {
    let knows = |vote: &&Vote| vote.nodes.is_some() || vote.since > 0.0;
    let weight = |vote: &Vote| {
        let alike = votes.iter().filter(knows).filter(|other| other.set() == vote.set());
        let newest = alike.clone().map(|other| other.since).fold(0.0, f64::max);
        (alike.count(), newest)
    };
    votes.iter().filter(knows).rev().max_by(|a, b| {
        let ((count_a, since_a), (count_b, since_b)) = (weight(a), weight(b));
        count_a.cmp(&count_b).then(since_a.total_cmp(&since_b))
    })
}

fn describe(nodes: Option<&Vec<Node>>) -> String {
    match nodes {
        None => "no such pool".to_owned(),
        Some(nodes) if nodes.is_empty() => "no nodes".to_owned(),
        Some(nodes) => nodes.iter().map(Node::to_string).collect::<Vec<_>>().join(" "),
    }
}

impl Place {
    /// What this host says about each of its pools, and about those it deleted.
    fn votes(&self, files: &[FileOnSite]) -> BTreeMap<PoolName, Vote> {
        let host = || self.site.name().to_owned();
        let gone = Deleted::find(files).0.into_iter();
        let gone = gone.map(|(pool, since)| (pool, Vote { host: host(), nodes: None, since, text: None }));
        let there = self.folder(files).pools().into_iter().map(|(pool, nodes)| {
            let name = file_of(self.program.as_ref(), &pool);
            let file = files.iter().find(|file| file.name == name);
            let since = file.map_or(0.0, |file| file.modified);
            let text = file.map(|file| file.text.clone());
            (pool, Vote { host: host(), nodes: Some(nodes), since, text })
        });
        gone.chain(there).collect()
    }

    /// What is wrong here, beside what other hosts have.
    async fn problems(&self, files: &[FileOnSite]) -> Vec<String> {
        let mut problems = Vec::new();
        if Journal::find(files).is_some() {
            problems.push("a change was left half done; sync repairs it".to_owned());
        }
        match self.program.check(&self.site).await {
            Ok(more) => problems.extend(more),
            Err(refusal) => problems.push(chain(&refusal)),
        }
        match self.program.is_loaded(&self.site, files).await {
            Ok(Some(false)) => problems
                .push(format!("{} does not serve what its files say; sync loads them", self.program.title())),
            Ok(_) => {}
            Err(refusal) => problems.push(chain(&refusal)),
        }
        problems.dedup();
        problems
    }
}

/// Every pool with what each of the hosts says about it, in the order of the hosts.
fn by_pool(votes: &[(String, BTreeMap<PoolName, Vote>)]) -> BTreeMap<PoolName, Vec<Vote>> {
    let pools: BTreeSet<&PoolName> = votes.iter().flat_map(|(_, votes)| votes.keys()).collect();
    let of_host = |host: &String, votes: &BTreeMap<PoolName, Vote>, pool: &PoolName| {
        let unknown = || Vote { host: host.clone(), nodes: None, since: 0.0, text: None };
        votes.get(pool).cloned().unwrap_or_else(unknown)
    };
    let all = |pool: &PoolName| votes.iter().map(|(host, votes)| of_host(host, votes, pool)).collect();
    pools.into_iter().map(|pool| (pool.clone(), all(pool))).collect()
}

impl FileBalancer {
    /// See [`crate::Balancer::check`].
    pub(super) async fn check_all(&self) -> Vec<SiteReport> {
        let Answers { done, failed } = self
            .ask(|place| async move {
                let mut files = place.read_all().await?;
                if Journal::find(&files).is_some() {
                    // Whoever is just making it has the lock.
                    let session = place.begin().await?;
                    let read = place.read_all().await;
                    session.end().await;
                    files = read?;
                }
                Ok((place.problems(&files).await, place.votes(&files)))
            })
            .await;
        let mut reports: BTreeMap<String, SiteReport> = BTreeMap::new();
        let mut report = |host: &str, problem: String| {
            let entry = reports.entry(host.to_owned()).or_insert_with(|| named(host));
            entry.problems.push(problem);
        };
        let mut votes = Vec::new();
        for (host, (problems, of_host)) in done {
            problems.into_iter().for_each(|problem| report(&host, problem));
            votes.push((host, of_host));
        }
        for HostFailure { host, reason } in failed {
            report(&host, reason);
        }
        for (pool, votes) in by_pool(&votes) {
            let Some(right) = winner(&votes) else { continue };
            for vote in votes.iter().filter(|vote| vote.set() != right.set()) {
                let (here, there) = (describe(vote.nodes.as_ref()), describe(right.nodes.as_ref()));
                report(
                    &vote.host,
                    format!("pool {pool} is out of step: {here} here, {there} on {}", right.host),
                );
            }
        }
        let in_order = self.places.iter().map(|place| place.site.name());
        in_order.map(|host| reports.remove(host).unwrap_or_else(|| named(host))).collect()
    }

    /// See [`crate::Balancer::sync`].
    pub(super) async fn sync_all(
        &self,
        from: Option<&str>,
        dry_run: bool,
    ) -> Result<SyncReport, BalancerError> {
        if let Some(from) = from
            && !self.places.iter().any(|place| place.site.name() == from)
        {
            let hosts: Vec<&str> = self.places.iter().map(|place| place.site.name()).collect();
            let reason = format!("it has no host {from:?}, but {}", hosts.join(", "));
            return Err(BalancerError::Refused { subject: self.subject(None), bad_input: true, reason });
        }
        let mut failed = Vec::new();
        // All locks at once, so that nothing moves; in the order of their names, so that two that do this cannot wait for
        // each other. Whoever makes a change holds one lock only.
        let mut places: Vec<&Arc<Place>> = self.places.iter().collect();
        places.sort_by_key(|place| place.site.name().to_owned());
        let mut open = Vec::new();
        for place in places {
            if dry_run {
                match place.read_all().await {
                    Ok(files) => open.push((place, None, files)),
                    Err(error) => failed.push(place.failure(chain(&error))),
                }
                continue;
            }
            match begin(place).await {
                Ok((session, files)) => open.push((place, Some(session), files)),
                Err(error) => failed.push(place.failure(chain(&error))),
            }
        }
        // The operator's order decides between equals.
        let position = |host: &str| self.places.iter().position(|place| place.site.name() == host);
        open.sort_by_key(|(place, ..)| position(place.site.name()));
        let is_there = |host: &str| open.iter().any(|(place, ..)| place.site.name() == host);
        if let Some(missing) = from.filter(|from| !is_there(from)) {
            for (_, session, _) in open {
                if let Some(session) = session {
                    session.end().await;
                }
            }
            failed.retain(|failure| failure.host == missing);
            return Err(BalancerError::Failed { subject: self.subject(None), failed });
        }
        let votes: Vec<_> =
            open.iter().map(|(place, _, files)| (place.site.name().to_owned(), place.votes(files))).collect();
        let pools = by_pool(&votes);
        let right: BTreeMap<&PoolName, &Vote> = pools
            .iter()
            .filter_map(|(pool, votes)| {
                let chosen = match from {
                    Some(from) => votes.iter().find(|vote| vote.host == from),
                    None => winner(votes),
                };
                Some((pool, chosen?))
            })
            .collect();
        let work = open.into_iter().map(|(place, session, files)| {
            let right = &right;
            async move {
                let result = bring_in_step(place, session, &files, right).await;
                (place, result)
            }
        });
        let mut report = SyncReport::default();
        for (place, result) in join_all(work).await {
            match result {
                Ok((host, diffs)) => {
                    report.hosts.push(host);
                    report.diffs.extend(diffs);
                }
                Err(error) => failed.push(place.failure(chain(&error))),
            }
        }
        if failed.is_empty() {
            return Ok(report);
        }
        let subject = self.subject(None);
        let done: Vec<String> = report.hosts.into_iter().map(|host| host.host).collect();
        Err(if done.is_empty() {
            BalancerError::Failed { subject, failed }
        } else {
            BalancerError::OutOfStep { subject, done, failed }
        })
    }
}

fn named(host: &str) -> SiteReport {
    SiteReport { host: host.to_owned(), ..SiteReport::default() }
}

async fn begin(place: &Place) -> Result<(Session<'_>, Vec<FileOnSite>), PlaceError> {
    let mut session = place.begin().await?;
    let files = async {
        let files = place.read_all().await?;
        session.settle(files, || place.read_all()).await
    }
    .await;
    match files {
        Ok(files) => Ok((session, files)),
        Err(error) => {
            session.end().await;
            Err(error)
        }
    }
}

/// Makes one host what it should be.
async fn bring_in_step(
    place: &Place,
    session: Option<Session<'_>>,
    files: &[FileOnSite],
    right: &BTreeMap<&PoolName, &Vote>,
) -> Result<(SiteReport, Vec<crate::balancer::FileDiff>), PlaceError> {
    let mut folder = place.folder(files);
    let mut kept = Vec::new();
    let planned: Result<(), _> = right.iter().try_for_each(|(pool, vote)| {
        let now = folder.nodes(pool)?;
        let set = |nodes: &Option<Vec<Node>>| {
            nodes.as_ref().map(|nodes| nodes.iter().cloned().collect::<BTreeSet<_>>())
        };
        if set(&now) != set(&vote.nodes) {
            // A host that has the pool already keeps what its operator wrote there.
            let text = vote.text.as_deref().filter(|_| now.is_none());
            folder.set(pool, vote.nodes.clone(), text)?;
        }
        if vote.nodes.is_none() && folder.is_kept_for_others(pool) {
            match &session {
                Some(_) => kept.push(*pool),
                None => folder.forget(pool),
            }
        }
        Ok(())
    });
    let plan = planned.map(|()| folder.into_plan()).map_err(|file| place.unreadable(file));
    let Some(mut session) = session else {
        let plan = plan?;
        return Ok((named(place.site.name()), place.diffs(&plan)));
    };
    let result = async {
        let plan = plan?;
        let is_loaded = place.program.is_loaded(&place.site, files).await?;
        session.take_up(plan, is_loaded == Some(false)).await?;
        // Each for itself: one that is still referred to shall not keep the others.
        for pool in kept {
            let files = place.read(pool).await?;
            let mut folder = place.folder(&files);
            folder.forget(pool);
            session.take_up(folder.into_plan(), false).await?;
        }
        Ok(())
    }
    .await;
    let done = std::mem::take(&mut session.done);
    session.end().await;
    result.map(|()| (SiteReport { done, ..named(place.site.name()) }, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(host: &str, ports: Option<&[u16]>, since: f64) -> Vote {
        let node = |port: &u16| format!("h:{port}").parse().unwrap();
        let nodes = ports.map(|ports| ports.iter().map(node).collect());
        Vote { host: host.to_owned(), nodes, since, text: None }
    }

    fn chosen(votes: &[Vote]) -> &str {
        &winner(votes).unwrap().host
    }

    #[test]
    fn the_most_win_then_the_newest_then_the_first() {
        let one = Some(&[1][..]);
        let two = Some(&[2][..]);
        assert_eq!(chosen(&[vote("a", two, 9.0), vote("b", one, 1.0), vote("c", one, 2.0)]), "b");
        assert_eq!(chosen(&[vote("a", one, 1.0), vote("b", two, 2.0)]), "b");
        assert_eq!(chosen(&[vote("a", one, 1.0), vote("b", two, 1.0)]), "a");
        // A deletion that the other host missed is not undone, and one that nobody knows of does not win.
        assert_eq!(chosen(&[vote("a", None, 5.0), vote("b", one, 1.0)]), "a");
        assert_eq!(chosen(&[vote("a", None, 0.0), vote("b", one, 1.0)]), "b");
        assert_eq!(chosen(&[vote("a", None, 0.0), vote("b", one, 1.0), vote("c", None, 0.0)]), "b");
        assert_eq!(chosen(&[vote("a", None, 5.0), vote("b", one, 1.0), vote("c", None, 4.0)]), "a");
        let both = vote("a", Some(&[1, 2]), 1.0);
        assert_eq!(both.set(), vote("b", Some(&[2, 1]), 1.0).set(), "the order is no difference");
        assert!(winner(&[]).is_none());
    }
}
