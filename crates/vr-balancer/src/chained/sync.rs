//! Where the members of a chain disagree, and making them the same.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use vr_common::names::{Node, PoolName};

use super::{Answers, ChainedBalancer, diff_within, failures, report_within};
use crate::balancer::{Balancer, Edit, FileDiff, PoolChange, SiteReport, SyncReport};
use crate::error::{BalancerError, HostFailure};

/// A pool, and what each member has of it: the member's position, and its nodes.
struct Compared {
    pool: PoolName,
    votes: Vec<(usize, Option<Vec<Node>>)>,
}

impl Compared {
    fn is_in_step(&self) -> bool {
        self.votes.windows(2).all(|pair| set(&pair[0].1) == set(&pair[1].1))
    }

    /// What most members have that know the pool; of equally many, what the first of them has. The order of nodes is no
    /// difference. A member that does not know the pool may be new, and must not take it from all others.
    fn winner(&self) -> Option<&(usize, Option<Vec<Node>>)> {
        let weight = |vote: &Option<Vec<Node>>| match vote {
            None => 0,
            vote => self.votes.iter().filter(|(_, other)| set(other) == set(vote)).count(),
        };
        self.votes.iter().rev().max_by_key(|(_, vote)| weight(vote))
    }
}

/// Adds failures of hosts that have none yet.
fn add_new(failed: &mut Vec<HostFailure>, more: Vec<HostFailure>) {
    for failure in more {
        if !failed.iter().any(|known| known.host == failure.host) {
            failed.push(failure);
        }
    }
}

fn set(nodes: &Option<Vec<Node>>) -> Option<BTreeSet<&Node>> {
    nodes.as_ref().map(|nodes| nodes.iter().collect())
}

fn describe(nodes: Option<&Vec<Node>>) -> String {
    match nodes {
        None => "no such pool".to_owned(),
        Some(nodes) if nodes.is_empty() => "no nodes".to_owned(),
        Some(nodes) => nodes.iter().map(Node::to_string).collect::<Vec<_>>().join(" "),
    }
}

impl ChainedBalancer {
    /// All pools of the members that answer, with what each of them has; none for no such pool.
    async fn compare(&self) -> (Vec<Compared>, Vec<HostFailure>) {
        let Answers(answers) = self.ask(|member| member.pools_with_nodes()).await;
        let (mut known, mut failed) = (Vec::new(), Vec::new());
        for (position, (member, answer)) in answers.into_iter().enumerate() {
            match answer {
                Ok(pools) => known.push((position, pools)),
                Err(error) => failed.extend(failures(member, &error)),
            }
        }
        let names: BTreeSet<&PoolName> = known.iter().flat_map(|(_, pools)| pools.keys()).collect();
        let compared = names.into_iter().map(|pool| Compared {
            pool: pool.clone(),
            votes: known.iter().map(|(position, pools)| (*position, pools.get(pool).cloned())).collect(),
        });
        (compared.collect(), failed)
    }

    /// Whether all members still have of a pool what was read of them.
    async fn is_as_read(&self, Compared { pool, votes }: &Compared) -> bool {
        let looks = votes.iter().map(|(position, vote)| async move {
            let nodes = self.members[*position].get_nodes(pool).await;
            nodes.is_ok_and(|nodes| set(&Some(nodes)) == Some(vote.iter().flatten().collect()))
        });
        join_all(looks).await.into_iter().all(|same| same)
    }

    /// Makes one member's pool what it should be, or says only what that would change.
    async fn bring_in_step(
        &self,
        member: &dyn Balancer,
        pool: &PoolName,
        right: Option<&Vec<Node>>,
        dry_run: bool,
    ) -> Result<Vec<FileDiff>, BalancerError> {
        let edit = right.map_or(Edit::DeletePool, |nodes| Edit::Set(nodes.clone()));
        if dry_run {
            let diffs = member.preview(&PoolChange { pool: pool.clone(), edit }).await?;
            return Ok(diffs.into_iter().map(|diff| diff_within(member, diff)).collect());
        }
        match right {
            Some(nodes) => member.set_nodes(pool, nodes).await.map(drop)?,
            None => member.delete_pool(pool).await?,
        }
        Ok(Vec::new())
    }

    /// See [`Balancer::check`].
    pub(super) async fn check_all(&self) -> Vec<SiteReport> {
        let Answers(answers) = self.ask(|member| member.check()).await;
        let mut reports = Vec::new();
        for (member, answer) in answers {
            match answer {
                Ok(of_member) => {
                    reports.extend(of_member.into_iter().map(|report| report_within(member, report)));
                }
                Err(error) => reports.extend(failures(member, &error).into_iter().map(|failure| {
                    SiteReport { host: failure.host, problems: vec![failure.reason], done: Vec::new() }
                })),
            }
        }
        // Those that cannot be read have said so above.
        let (pools, _) = self.compare().await;
        for compared in &pools {
            let Some((best, right)) = compared.winner() else { continue };
            for (position, vote) in compared.votes.iter().filter(|(_, vote)| set(vote) != set(right)) {
                let (member, other) = (self.members[*position].name(), self.members[*best].name());
                let (here, there) = (describe(vote.as_ref()), describe(right.as_ref()));
                let pool = &compared.pool;
                let problem = format!("pool {pool} is out of step: {here} here, {there} on {other}");
                match reports.iter_mut().find(|report| report.host == member) {
                    Some(report) => report.problems.push(problem),
                    None => reports.push(SiteReport {
                        host: member.to_owned(),
                        problems: vec![problem],
                        done: Vec::new(),
                    }),
                }
            }
        }
        reports
    }

    /// See [`Balancer::sync`].
    pub(super) async fn sync_all(
        &self,
        from: Option<&str>,
        dry_run: bool,
    ) -> Result<SyncReport, BalancerError> {
        let owner = |from: &str| {
            let is_meant = |name: &str| {
                from.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            self.members.iter().position(|member| is_meant(member.name()))
        };
        let chosen = match from.map(|from| (from, owner(from))) {
            Some((from, None)) => {
                let members: Vec<&str> = self.members.iter().map(|member| member.name()).collect();
                let reason = format!("it has no member {from:?}, but {}", members.join(", "));
                return Err(BalancerError::Refused { subject: self.subject(None), bad_input: true, reason });
            }
            Some((_, Some(position))) => Some(position),
            None => None,
        };
        let answers = self
            .ask(|member| {
                let host = from.and_then(|from| from.strip_prefix(member.name())?.strip_prefix('/'));
                async move {
                    let report = member.sync(host, dry_run).await?;
                    let hosts = report.hosts.into_iter().map(|host| report_within(member, host));
                    let diffs = report.diffs.into_iter().map(|diff| diff_within(member, diff));
                    Ok(SyncReport { hosts: hosts.collect(), diffs: diffs.collect() })
                }
            })
            .await;
        let mut failed: Vec<HostFailure> = Vec::new();
        let mut report = SyncReport::default();
        for (member, answer) in answers.0 {
            match answer {
                Ok(of_member) => {
                    report.hosts.extend(of_member.hosts);
                    report.diffs.extend(of_member.diffs);
                }
                Err(error) => failed.extend(failures(member, &error)),
            }
        }
        let (pools, unreadable) = self.compare().await;
        add_new(&mut failed, unreadable);
        let chosen_of = |compared: &Compared| match chosen {
            Some(chosen) => compared.votes.iter().find(|(position, _)| *position == chosen).cloned(),
            None => compared.winner().cloned(),
        };
        for compared in pools.iter().filter(|compared| !compared.is_in_step()) {
            let pool = &compared.pool;
            let _alone = self.locks.lock(pool).await;
            // Once more, as it may have been changed while others were read.
            let again;
            let compared = if self.is_as_read(compared).await {
                compared
            } else {
                let (pools, unreadable) = self.compare().await;
                add_new(&mut failed, unreadable);
                again = pools.into_iter().find(|compared| compared.pool == *pool);
                let Some(again) = &again else { continue };
                again
            };
            // What cannot be read is nothing that others could take over.
            let Some((_, right)) = chosen_of(compared) else { continue };
            for (position, _) in compared.votes.iter().filter(|(_, vote)| set(vote) != set(&right)) {
                let member = self.members[*position].as_ref();
                match self.bring_in_step(member, pool, right.as_ref(), dry_run).await {
                    Ok(diffs) => {
                        report.diffs.extend(diffs);
                        let done = match &right {
                            None => format!("deleted pool {pool}"),
                            Some(_) => format!("gave pool {pool} {}", describe(right.as_ref())),
                        };
                        match report.hosts.iter_mut().find(|host| host.host == member.name()) {
                            _ if dry_run => {}
                            Some(host) => host.done.push(done),
                            None => {
                                let host = member.name().to_owned();
                                report.hosts.push(SiteReport {
                                    host,
                                    problems: Vec::new(),
                                    done: vec![done],
                                });
                            }
                        }
                    }
                    Err(error) => add_new(&mut failed, failures(member, &error)),
                }
            }
        }
        if failed.is_empty() {
            return Ok(report);
        }
        let subject = self.subject(None);
        let done: Vec<String> = report.hosts.into_iter().map(|host| host.host).collect();
        Err(match done.is_empty() {
            true => BalancerError::Failed { subject, failed },
            false => BalancerError::OutOfStep { subject, done, failed },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_know_a_pool_does_not_decide_about_it() {
        let nodes =
            |names: &[&str]| Some(names.iter().map(|name| name.parse().unwrap()).collect::<Vec<Node>>());
        let winner = |votes: &[Option<Vec<Node>>]| {
            let votes = votes.iter().cloned().enumerate().collect();
            Compared { pool: "web".parse().unwrap(), votes }.winner().map(|(position, _)| *position)
        };
        assert_eq!(winner(&[None, None, nodes(&["h1:1"])]), Some(2));
        assert_eq!(winner(&[None, nodes(&["h1:1"]), nodes(&["h2:2"])]), Some(1));
        assert_eq!(winner(&[nodes(&["h1:1"]), nodes(&["h2:2", "h3:3"]), nodes(&["h3:3", "h2:2"])]), Some(1));
        assert_eq!(winner(&[None, nodes(&[])]), Some(1));
    }
}
