//! The backend that is several others: each change is made on all of them at once, and a pool's nodes are what any of
//! them has.
//!
//! A member that fails is named in the error, and the others are done nevertheless. `sync` brings those in step that
//! disagree.

mod sync;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use vr_common::exit::chain;
use vr_common::names::{Node, PoolName};

use crate::balancer::{
    Balancer, DrainReport, FileDiff, GRACE_PERIOD, PoolChange, SiteReport, SyncReport, unique,
};
use crate::error::{BalancerError, HostFailure, Subject};
use crate::pool_locks::PoolLocks;

/// Several balancers as one.
pub struct ChainedBalancer {
    name: String,
    members: Vec<Arc<dyn Balancer>>,
    /// So that of two who set a pool at once, the same one is last on all members.
    locks: PoolLocks,
}

/// What each member has done or said, in their order, or why it has not.
struct Answers<'a, T>(Vec<(&'a dyn Balancer, Result<T, BalancerError>)>);

impl ChainedBalancer {
    /// The members' names have to differ: they are how messages, and `sync`, tell them apart.
    pub fn new(name: impl Into<String>, members: Vec<Arc<dyn Balancer>>) -> Self {
        Self { name: name.into(), members, locks: PoolLocks::default() }
    }

    fn subject(&self, pool: Option<&PoolName>) -> Subject {
        Subject { balancer: self.name.clone(), pool: pool.cloned() }
    }

    /// Asks all members at once.
    async fn ask<'a, T, F>(&'a self, ask: impl Fn(&'a dyn Balancer) -> F) -> Answers<'a, T>
    where
        F: Future<Output = Result<T, BalancerError>>,
    {
        let asked = self.members.iter().map(|member| {
            let answer = ask(member.as_ref());
            async move { (member.as_ref(), answer.await) }
        });
        Answers(join_all(asked).await)
    }

    /// What all members have done; an error that names those that have not.
    fn complete<T>(&self, pool: Option<&PoolName>, answers: Answers<'_, T>) -> Result<Vec<T>, BalancerError> {
        let (mut results, mut done, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_bad_input = true;
        for (member, answer) in answers.0 {
            match answer {
                Ok(result) => {
                    results.push(result);
                    done.push(member.name().to_owned());
                }
                Err(error) => {
                    is_bad_input &= error.is_bad_input();
                    if let BalancerError::OutOfStep { done: hosts, .. } = &error {
                        done.extend(hosts.iter().map(|host| within(member, host)));
                    }
                    failed.extend(failures(member, &error));
                }
            }
        }
        let subject = self.subject(pool);
        match (done.is_empty(), failed.is_empty()) {
            (_, true) => Ok(results),
            (true, false) if is_bad_input => {
                let reasons = failed.iter().map(|HostFailure { host, reason }| format!("{host}: {reason}"));
                let reason = reasons.collect::<Vec<_>>().join("; ");
                Err(BalancerError::Refused { subject, bad_input: true, reason })
            }
            (true, false) => Err(BalancerError::Failed { subject, failed }),
            (false, false) => Err(BalancerError::OutOfStep { subject, done, failed }),
        }
    }

    /// What could be read from the members that answer: one that is down does not keep people from looking.
    fn readable<T>(&self, pool: Option<&PoolName>, answers: Answers<'_, T>) -> Result<Vec<T>, BalancerError> {
        let (mut results, mut failed) = (Vec::new(), Vec::new());
        for (member, answer) in answers.0 {
            match answer {
                Ok(result) => results.push(result),
                Err(error) => failed.extend(failures(member, &error)),
            }
        }
        if results.is_empty() {
            return Err(BalancerError::Failed { subject: self.subject(pool), failed });
        }
        for HostFailure { host, reason } in failed {
            tracing::warn!(
                balancer = self.name,
                host,
                reason,
                "a member of a chained balancer cannot be read"
            );
        }
        Ok(results)
    }
}

/// What a host of a member is called; a member without hosts calls itself its host.
fn within(member: &dyn Balancer, host: &str) -> String {
    if host == member.name() { host.to_owned() } else { format!("{}/{host}", member.name()) }
}

fn diff_within(member: &dyn Balancer, diff: FileDiff) -> FileDiff {
    FileDiff { host: within(member, &diff.host), ..diff }
}

fn report_within(member: &dyn Balancer, report: SiteReport) -> SiteReport {
    SiteReport { host: within(member, &report.host), ..report }
}

/// A member's error as failures of its hosts.
fn failures(member: &dyn Balancer, error: &BalancerError) -> Vec<HostFailure> {
    match error {
        BalancerError::Failed { failed, .. } | BalancerError::OutOfStep { failed, .. } => failed
            .iter()
            .map(|failure| HostFailure {
                host: within(member, &failure.host),
                reason: failure.reason.clone(),
            })
            .collect(),
        other => {
            // The member is named already.
            let subject = format!("{}: ", other.subject());
            let reason = chain(other);
            let reason = reason.strip_prefix(&subject).map(str::to_owned).unwrap_or(reason);
            vec![HostFailure { host: member.name().to_owned(), reason }]
        }
    }
}

#[async_trait]
impl Balancer for ChainedBalancer {
    fn name(&self) -> &str {
        &self.name
    }

    async fn list_pools(&self) -> Result<Vec<PoolName>, BalancerError> {
        let answers = self.ask(|member| member.list_pools()).await;
        let names: BTreeSet<PoolName> = self.readable(None, answers)?.into_iter().flatten().collect();
        Ok(names.into_iter().collect())
    }

    /// What any of the members has, so that nobody stops a node that one of them still uses.
    async fn get_nodes(&self, pool: &PoolName) -> Result<Vec<Node>, BalancerError> {
        let answers = self.ask(|member| member.get_nodes(pool)).await;
        Ok(unique(self.readable(Some(pool), answers)?.iter().flatten()))
    }

    async fn add_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<(), BalancerError> {
        let _alone = self.locks.lock(pool).await;
        let answers = self.ask(|member| member.add_nodes(pool, nodes)).await;
        self.complete(Some(pool), answers).map(drop)
    }

    async fn delete_nodes(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        close_after_grace: Option<Duration>,
    ) -> Result<(), BalancerError> {
        let _alone = self.locks.lock(pool).await;
        let answers = self.ask(|member| member.delete_nodes(pool, nodes, close_after_grace)).await;
        self.complete(Some(pool), answers).map(drop)
    }

    async fn delete_pool(&self, pool: &PoolName) -> Result<(), BalancerError> {
        let _alone = self.locks.lock(pool).await;
        let answers = self.ask(|member| member.delete_pool(pool)).await;
        self.complete(Some(pool), answers).map(drop)
    }

    /// A pool that is empty on all members goes away on all of them; one that has nodes on any stays on all.
    async fn delete_pool_if_empty(&self, pool: &PoolName) -> Result<bool, BalancerError> {
        let _alone = self.locks.lock(pool).await;
        let answers = self.ask(|member| member.get_nodes(pool)).await;
        if self.complete(Some(pool), answers)?.iter().any(|nodes| !nodes.is_empty()) {
            return Ok(false);
        }
        let answers = self.ask(|member| member.delete_pool_if_empty(pool)).await;
        Ok(self.complete(Some(pool), answers)?.into_iter().all(|is_gone| is_gone))
    }

    async fn set_nodes(&self, pool: &PoolName, nodes: &[Node]) -> Result<Vec<Node>, BalancerError> {
        let _alone = self.locks.lock(pool).await;
        let answers = self.ask(|member| member.set_nodes(pool, nodes)).await;
        Ok(unique(self.complete(Some(pool), answers)?.iter().flatten()))
    }

    /// A node is free when it is free for all members. One that is in the pool of any of them is not waited for.
    async fn wait_drained(
        &self,
        pool: &PoolName,
        nodes: &[Node],
        grace: Duration,
    ) -> Result<Vec<DrainReport>, BalancerError> {
        let answers = self.ask(|member| member.wait_drained(pool, nodes, grace)).await;
        let mut reports: Vec<DrainReport> =
            nodes.iter().map(|node| DrainReport { node: node.clone(), open: 0, in_pool: false }).collect();
        for of_member in self.complete(Some(pool), answers)? {
            for (all, one) in reports.iter_mut().zip(of_member) {
                all.open = all.open.saturating_add(one.open);
                all.in_pool |= one.in_pool;
            }
        }
        Ok(reports)
    }

    /// The addresses of all members that decide about one, with commas if there are several.
    async fn pool_address(&self, pool: &PoolName) -> Result<Option<String>, BalancerError> {
        let answers = self.ask(|member| member.pool_address(pool)).await;
        let addresses: Vec<String> = self.readable(Some(pool), answers)?.into_iter().flatten().collect();
        Ok(if addresses.is_empty() { None } else { Some(addresses.join(",")) })
    }

    async fn pool_problem(&self, pool: &PoolName) -> Result<Option<String>, BalancerError> {
        let answers = self
            .ask(|member| async move {
                let problem = member.pool_problem(pool).await?;
                Ok(problem.map(|problem| format!("{}: {problem}", member.name())))
            })
            .await;
        let problems: Vec<String> = self.readable(Some(pool), answers)?.into_iter().flatten().collect();
        Ok(if problems.is_empty() { None } else { Some(problems.join("; ")) })
    }

    /// The longest of the members'.
    fn grace_period(&self, pool: &PoolName) -> Option<Duration> {
        let said: Vec<_> = self.members.iter().map(|member| member.grace_period(pool)).collect();
        let longest = said.iter().map(|grace| grace.unwrap_or(GRACE_PERIOD)).max();
        longest.filter(|_| said.iter().any(Option::is_some))
    }

    async fn preview(&self, change: &PoolChange) -> Result<Vec<FileDiff>, BalancerError> {
        let answers = self
            .ask(|member| async move {
                let diffs = member.preview(change).await?.into_iter();
                Ok(diffs.map(|diff| diff_within(member, diff)).collect::<Vec<_>>())
            })
            .await;
        Ok(self.complete(Some(&change.pool), answers)?.into_iter().flatten().collect())
    }

    /// What each member says of itself, and where they disagree.
    async fn check(&self) -> Result<Vec<SiteReport>, BalancerError> {
        Ok(self.check_all().await)
    }

    /// First each member for itself, then all of them: of each pool what `from`, a member, has, or else what most of
    /// them have, and of equally many what the first of them has. `MEMBER/HOST` is for the member alone.
    async fn sync(&self, from: Option<&str>, dry_run: bool) -> Result<SyncReport, BalancerError> {
        self.sync_all(from, dry_run).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dummy::DummyBalancer;

    fn nodes(ports: &[u16]) -> Vec<Node> {
        ports.iter().map(|port| format!("h:{port}").parse().unwrap()).collect()
    }

    fn chain_of(names: &[&str]) -> (Vec<Arc<DummyBalancer>>, ChainedBalancer) {
        let members: Vec<_> = names.iter().map(|name| Arc::new(DummyBalancer::new(*name))).collect();
        let each = members.iter().map(|member| Arc::clone(member) as Arc<dyn Balancer>).collect();
        (members, ChainedBalancer::new("all", each))
    }

    #[tokio::test]
    async fn members_that_disagree_are_named_and_brought_in_step() {
        let (members, chain) = chain_of(&["a", "b", "c"]);
        let web: PoolName = "web".parse().unwrap();
        chain.set_nodes(&web, &nodes(&[1, 2])).await.unwrap();
        members[1].set_nodes(&web, &nodes(&[2, 3])).await.unwrap();
        members[2].set_nodes(&web, &nodes(&[2, 1])).await.unwrap();
        assert_eq!(chain.get_nodes(&web).await.unwrap(), nodes(&[1, 2, 3]));
        let reports = chain.check().await.unwrap();
        assert_eq!(reports.len(), 3);
        assert_eq!(reports[1].problems, ["pool web is out of step: h:2 h:3 here, h:1 h:2 on a"]);
        assert!(reports[0].problems.is_empty() && reports[2].problems.is_empty());

        let dry = chain.sync(None, true).await.unwrap();
        assert_eq!(dry.diffs.iter().map(|diff| diff.host.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(members[1].get_nodes(&web).await.unwrap(), nodes(&[2, 3]), "nothing was done");
        let done = chain.sync(None, false).await.unwrap();
        assert_eq!(done.hosts[1].done, ["gave pool web h:1 h:2"]);
        assert_eq!(members[1].get_nodes(&web).await.unwrap(), nodes(&[2, 1]));
        assert_eq!(chain.sync(None, true).await.unwrap().diffs, []);
    }

    #[tokio::test]
    async fn of_equally_many_the_first_is_right_unless_another_is_chosen() {
        let (members, chain) = chain_of(&["a", "b"]);
        let web: PoolName = "web".parse().unwrap();
        members[1].add_nodes(&web, &nodes(&[1])).await.unwrap();
        let error = chain.sync(Some("c"), false).await.unwrap_err();
        assert_eq!(error.to_string(), "balancer all: it has no member \"c\", but a, b");
        assert!(error.is_bad_input());
        chain.sync(Some("b"), false).await.unwrap();
        assert_eq!(members[0].get_nodes(&web).await.unwrap(), nodes(&[1]));
        members[0].set_nodes(&web, &nodes(&[2])).await.unwrap();
        chain.sync(None, false).await.unwrap();
        assert_eq!(members[1].get_nodes(&web).await.unwrap(), nodes(&[2]));
        // It may be a new one, so it does not take the pool from the other, unless somebody says so.
        members[0].delete_pool(&web).await.unwrap();
        chain.sync(None, false).await.unwrap();
        assert_eq!(members[0].get_nodes(&web).await.unwrap(), nodes(&[2]));
        members[0].delete_pool(&web).await.unwrap();
        chain.sync(Some("a"), false).await.unwrap();
        assert_eq!(members[1].list_pools().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_pool_with_nodes_on_any_member_stays_on_all() {
        let (members, chain) = chain_of(&["a", "b"]);
        let web: PoolName = "web".parse().unwrap();
        chain.add_nodes(&web, &[]).await.unwrap();
        members[1].add_nodes(&web, &nodes(&[1])).await.unwrap();
        assert!(!chain.delete_pool_if_empty(&web).await.unwrap());
        assert_eq!(members[0].list_pools().await.unwrap(), std::slice::from_ref(&web));
        let reports = chain.wait_drained(&web, &nodes(&[1, 2]), Duration::ZERO).await.unwrap();
        assert_eq!(reports.iter().map(DrainReport::is_drained).collect::<Vec<_>>(), [false, true]);
    }
}
