//! The steps of a dispatch, in order. Each may be interrupted and taken again.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vr_balancer::{Balancer, BalancerError};
use vr_common::events::snip;
use vr_common::exit::chain;
use vr_common::host_api::{ProcDocument, ProcState, UptestResult};
use vr_common::names::{ContainerName, Node, ParsedProcName, PoolName};
use vr_common::proc_data::{ProcData, Scalar};
use vr_common::yaml;

use super::planner::{Desired, HostFacts, Plan, Seen, plan};
use super::{Conductor, StepError};
use crate::events::News;
use crate::hosts::{Action, HostError};
use crate::store::{BuildRow, DispatchRow, HostRow, LateDelete, Lease, ReleaseRow, State, SwarmRow};
use crate::time;

/// How often a balancer that fails is asked again, with pauses that double.
const BALANCER_TRIES: u32 = 5;

/// A proc that a dispatch has decided to make: written down before it is made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Placement {
    /// Where.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Its container name.
    pub proc: String,
    /// The text of its proc.yaml: a host refuses another one for the same proc, so a repeated step has to send the
    /// same, whatever was changed meanwhile.
    #[serde(default)]
    pub proc_yaml: String,
}

impl Placement {
    /// Whether it is that proc; two hosts may each have one of the same name.
    fn is(&self, seen: &Seen) -> bool {
        self.host == seen.host && self.proc == seen.name
    }
}

/// What a dispatch remembers between its steps.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    /// The swarm as it was when somebody began; what is changed later counts for the next dispatch.
    pub swarm: Option<SwarmRow>,
    /// The build it waits for or uses.
    pub build_id: Option<i64>,
    /// The release.
    pub release_id: Option<i64>,
    /// The procs that this dispatch made, or is about to make.
    pub placements: Vec<Placement>,
    /// Procs of an interrupted try whose host fell silent or out of use: not wanted any more.
    pub abandoned: Vec<Placement>,
    /// The procs that were uptested: the ones to route to and to keep.
    pub tested: Vec<Placement>,
}

impl Memory {
    pub(super) fn of(dispatch: &DispatchRow) -> Result<Self, StepError> {
        serde_json::from_value(dispatch.memory.clone())
            .map_err(|e| StepError::Failed(format!("the memory of this dispatch cannot be read: {e}")))
    }
}

type Next = Result<(State, String), StepError>;

fn failed(reason: impl Into<String>) -> StepError {
    StepError::Failed(reason.into())
}

/// A squad as it was seen just now.
#[derive(Default)]
struct Squad {
    rows: BTreeMap<String, HostRow>,
    /// Those that answered.
    facts: Vec<HostFacts>,
    /// Those that did not, and why.
    silent: Vec<String>,
    /// Procs that are still to be deleted: they are in no one's facts, but hold their ports.
    doomed: Vec<(String, ProcDocument)>,
}

impl Squad {
    fn proc(&self, host: &str, name: &str) -> Option<&ProcDocument> {
        self.facts.iter().find(|f| f.name == host)?.procs.iter().find(|p| p.name == name)
    }

    /// The doomed procs of a swarm.
    fn doomed(&self, desired: &Desired) -> Vec<Seen> {
        let ours = self.doomed.iter().filter(|(_, proc)| {
            proc.parsed.app_name == desired.app_name
                && proc.parsed.config_name == desired.config_name
                && proc.parsed.proc_name == desired.proc_name
        });
        ours.map(|(host, proc)| Seen {
            host: host.clone(),
            name: proc.name.clone(),
            port: proc.parsed.port,
            running: false,
        })
        .collect()
    }
}

impl Conductor {
    /// Takes the step that leads out of the dispatch's present state; gives the next state and why.
    pub(super) async fn step(&self, dispatch: &mut DispatchRow, now: &SwarmRow, lease: &Lease) -> Next {
        let mut memory = Memory::of(dispatch)?;
        if dispatch.state == State::Queued {
            memory.swarm = Some(now.clone());
            self.remember(dispatch, lease, &memory).await?;
            return Ok((State::Building, "a worker took it".into()));
        }
        let swarm = memory.swarm.clone().ok_or_else(|| failed("the dispatch forgot its swarm"))?;
        match dispatch.state {
            State::Building => self.wait_for_build(dispatch, &swarm, lease).await,
            State::Releasing => self.make_release(dispatch, &swarm, lease).await,
            State::Deploying => self.deploy(dispatch, &swarm, lease).await,
            State::Uptesting => self.uptest(dispatch, &swarm, lease).await,
            State::Routing => self.route(dispatch, &swarm, lease).await,
            State::Cleaning => self.clean_up(dispatch, &swarm, lease).await,
            State::Queued | State::Done | State::Failed | State::Cancelled => {
                Err(failed(format!("a dispatch that is {} has no next step", dispatch.state)))
            }
        }
    }

    async fn remember(
        &self,
        dispatch: &mut DispatchRow,
        lease: &Lease,
        memory: &Memory,
    ) -> Result<(), StepError> {
        let value = serde_json::to_value(memory).map_err(|e| failed(e.to_string()))?;
        self.store.remember(&dispatch.id, lease, &value).await?;
        dispatch.memory = value;
        Ok(())
    }

    async fn wait_for_build(&self, dispatch: &mut DispatchRow, swarm: &SwarmRow, lease: &Lease) -> Next {
        let mut memory = Memory::of(dispatch)?;
        let id = match memory.build_id {
            Some(id) => id,
            None => {
                let id = self.store.current_build(swarm.app_id, &dispatch.version).await?;
                memory.build_id = Some(id);
                self.remember(dispatch, lease, &memory).await?;
                id
            }
        };
        let mut waited = false;
        loop {
            let build = self.store.build(id).await?;
            match build.status.as_str() {
                "success" => {
                    let how = if waited { "was built" } else { "was built before" };
                    return Ok((State::Releasing, format!("{} {} {how}", build.app_name, build.tag)));
                }
                "failed" | "expired" => {
                    let error = build.error.as_deref().unwrap_or(&build.status);
                    return Err(failed(format!("build of {} {}: {error}", build.app_name, build.tag)));
                }
                _ => {
                    if !waited {
                        waited = true;
                        self.store.queue_build(id, false).await?;
                        self.wake.notify_one();
                        let message = format!("waiting for the build of {} {}", build.app_name, build.tag);
                        self.tell(dispatch, swarm, &message, &["swarm", "wait"]).await;
                    }
                    tokio::time::sleep(self.settings.poll / 4).await;
                }
            }
        }
    }

    async fn make_release(&self, dispatch: &mut DispatchRow, swarm: &SwarmRow, lease: &Lease) -> Next {
        let mut memory = Memory::of(dispatch)?;
        let build_id = memory.build_id.ok_or_else(|| failed("the dispatch forgot its build"))?;
        let release = self.store.release_for(swarm, build_id, Some(&dispatch.version)).await?;
        let hash = release.hash.as_deref().ok_or_else(|| failed("the build has no hash"))?;
        let message = format!("release {hash} of {} {}", swarm.app_name, dispatch.version);
        memory.release_id = Some(release.id);
        self.remember(dispatch, lease, &memory).await?;
        self.tell(dispatch, swarm, &message, &["swarm", "release"]).await;
        Ok((State::Deploying, message))
    }

    /// The release and build of a dispatch, and what its swarm wants of them.
    async fn wanted(
        &self,
        memory: &Memory,
        swarm: &SwarmRow,
    ) -> Result<(ReleaseRow, BuildRow, Desired), StepError> {
        let id = memory.release_id.ok_or_else(|| failed("the dispatch forgot its release"))?;
        let release = self.store.release(id).await?;
        let build = self.store.build(release.build_id).await?;
        let desired = Desired {
            app_name: swarm.app_name.clone(),
            config_name: swarm.config_name.clone(),
            proc_name: swarm.proc_name.clone(),
            hash: release.hash.clone().ok_or_else(|| failed("the release has no hash"))?,
            size: usize::try_from(swarm.size).map_err(|_| failed("the swarm's size is negative"))?,
        };
        Ok((release, build, desired))
    }

    /// Looks at all hosts of a swarm's squad at once.
    async fn look(&self, swarm: &SwarmRow) -> Result<Squad, StepError> {
        let rows = self.store.hosts_of_squad(swarm.squad_id).await?;
        if rows.is_empty() {
            return Err(failed(format!("squad {} has no hosts", swarm.squad_name)));
        }
        let answers = join_all(rows.iter().map(|row| self.fleet.look(row))).await;
        let doomed = self.store.doomed().await?;
        let mut squad = Squad::default();
        for (row, answer) in rows.into_iter().zip(answers) {
            match answer {
                Ok(mut procs) => {
                    let is_doomed =
                        |proc: &ProcDocument| doomed.contains(&(row.name.clone(), proc.name.clone()));
                    for proc in procs.iter().filter(|proc| is_doomed(proc)) {
                        squad.doomed.push((row.name.clone(), proc.clone()));
                    }
                    procs.retain(|proc| !is_doomed(proc));
                    squad.facts.push(HostFacts { name: row.name.clone(), active: row.active, procs });
                }
                Err(error) => squad.silent.push(chain(&error)),
            }
            squad.rows.insert(row.name.clone(), row);
        }
        Ok(squad)
    }

    async fn deploy(&self, dispatch: &mut DispatchRow, swarm: &SwarmRow, lease: &Lease) -> Next {
        // Better known now than when everything runs.
        self.pool_of(swarm)?;
        let mut memory = Memory::of(dispatch)?;
        let (release, build, desired) = self.wanted(&memory, swarm).await?;
        let squad = self.look(swarm).await?;
        for silent in &squad.silent {
            self.tell(dispatch, swarm, &format!("{silent}; going on without it"), &["swarm", "warning"])
                .await;
        }

        // What an interrupted try has decided counts as if it were there, where its host still answers.
        let (usable, abandoned) = std::mem::take(&mut memory.placements)
            .into_iter()
            .partition(|p: &Placement| squad.facts.iter().any(|f| f.name == p.host && f.active));
        memory.placements = usable;
        memory.abandoned.extend::<Vec<_>>(abandoned);
        let mut facts = squad.facts.clone();
        for placed in &memory.placements {
            if squad.proc(&placed.host, &placed.proc).is_none()
                && let Some(host) = facts.iter_mut().find(|f| f.name == placed.host)
            {
                host.procs.push(expected(placed));
            }
        }
        let plan = plan(&swarm.squad_name, &desired, &facts).map_err(|e| {
            let silent = squad.silent.iter().map(|s| format!("; {s}")).collect::<String>();
            failed(format!("{e}{silent}"))
        })?;
        for host in &plan.add {
            let placed = self.place(dispatch, &build, &desired, host, &squad, &memory).await?;
            let proc_yaml = proc_yaml(&release, &build, &placed, &self.settings.public_url)?;
            memory.placements.push(Placement { proc_yaml, ..placed });
        }
        self.remember(dispatch, lease, &memory).await?;

        let mut work: BTreeMap<&str, Vec<Task>> = BTreeMap::new();
        for placed in &memory.placements {
            work.entry(&placed.host).or_default().push(Task::Deploy(placed.clone()));
        }
        for seen in &plan.keep {
            if !seen.running && !memory.placements.iter().any(|placed| placed.is(seen)) {
                work.entry(&seen.host).or_default().push(Task::Start(seen.clone()));
            }
        }
        // Hosts work side by side, one proc at a time on each.
        let this = self;
        let (dispatch_ref, squad_ref) = (&*dispatch, &squad);
        let hosts = work.into_iter().map(|(host, tasks)| async move {
            for task in tasks {
                this.carry_out(dispatch_ref, swarm, squad_ref, host, &task).await?;
            }
            Ok::<_, StepError>(())
        });
        join_all(hosts).await.into_iter().collect::<Result<Vec<()>, _>>()?;

        let new = memory.placements.len();
        let kept = plan.keep.iter().filter(|seen| !memory.placements.iter().any(|p| p.is(seen))).count();
        Ok((State::Uptesting, format!("{new} procs deployed, {kept} were there already")))
    }

    /// Picks a port for a new proc on a host.
    async fn place(
        &self,
        dispatch: &DispatchRow,
        build: &BuildRow,
        desired: &Desired,
        host: &str,
        squad: &Squad,
        memory: &Memory,
    ) -> Result<Placement, StepError> {
        let procs = squad.facts.iter().filter(|f| f.name == host).flat_map(|f| &f.procs);
        let mut used: BTreeSet<u16> = procs.map(|p| p.parsed.port).collect();
        // Also where the host has none of that name: a proc that gets it would be deleted as soon as the other one is due.
        let doomed = self.store.doomed().await?;
        let doomed = doomed.iter().filter(|(on, _)| on == host);
        used.extend(doomed.map(|(_, proc)| ParsedProcName::parse(proc).port));
        // Another dispatch may have put procs there since the host was asked.
        used.extend(self.fleet.view(host).procs.iter().map(|proc| proc.parsed.port));
        used.extend(memory.placements.iter().filter(|p| p.host == host).map(|p| p.port));
        let port = self.store.reserve_port(host, self.settings.ports, &used, &dispatch.id).await?;
        let text = format!(
            "{}-{}-{}-{}-{}-{port}",
            desired.app_name, build.tag, desired.config_name, desired.hash, desired.proc_name
        );
        let name: ContainerName = text.parse().map_err(|e| failed(format!("{e}")))?;
        Ok(Placement { host: host.to_owned(), port, proc: name.to_string(), proc_yaml: String::new() })
    }

    async fn carry_out(
        &self,
        dispatch: &DispatchRow,
        swarm: &SwarmRow,
        squad: &Squad,
        host: &str,
        task: &Task,
    ) -> Result<(), StepError> {
        let row = squad.rows.get(host).ok_or_else(|| failed(format!("host {host} left the squad")))?;
        let driver = self.fleet.driver(row);
        let (proc, done) = match task {
            Task::Deploy(placed) => (&placed.proc, driver.deploy(&placed.proc, &placed.proc_yaml).await),
            Task::Start(seen) => (&seen.name, driver.act(&seen.name, Action::Start).await),
        };
        match done {
            Ok(document) => {
                self.fleet.note(document);
                let message = format!("{proc} runs on {host}");
                self.tell(dispatch, swarm, &message, &["swarm", "deploy", "proc"]).await;
                Ok(())
            }
            Err(error) => {
                let mut reason = format!("deploy of {proc}: {}", chain(&error));
                if let HostError::Refused { log_tail: Some(tail), .. } = &error
                    && !tail.trim().is_empty()
                {
                    reason += &format!("\n{}", tail.trim_end());
                }
                self.tell(dispatch, swarm, &reason, &["deploy", "failed"]).await;
                Err(failed(reason))
            }
        }
    }

    async fn uptest(&self, dispatch: &mut DispatchRow, swarm: &SwarmRow, lease: &Lease) -> Next {
        let mut memory = Memory::of(dispatch)?;
        let (_, _, desired) = self.wanted(&memory, swarm).await?;
        let squad = self.look(swarm).await?;
        let current = plan(&swarm.squad_name, &desired, &squad.facts)
            .ok()
            .filter(|plan| plan.add.is_empty())
            .ok_or_else(|| {
                failed("a proc went away, or its host does not answer, before it could be tested")
            })?
            .keep;
        let reports = join_all(by_host(&current).into_iter().map(|(host, procs)| {
            let driver = squad.rows.get(host).map(|row| self.fleet.driver(row));
            async move {
                let mut reports = Vec::new();
                for seen in procs {
                    let report = match &driver {
                        Some(driver) => driver.uptest(&seen.name).await,
                        None => Ok(Vec::new()),
                    };
                    reports.push((seen, report));
                }
                reports
            }
        }))
        .await;

        let mut failures = Vec::new();
        let (mut tests, mut untested) = (0, 0);
        for (seen, report) in reports.into_iter().flatten() {
            match report {
                Ok(results) if results.is_empty() => untested += 1,
                Ok(results) => {
                    tests += results.len();
                    let broken = results.iter().filter(|result| !result.passed);
                    failures.extend(broken.map(|result| failure(seen, result)));
                }
                Err(error) => failures.push(format!("uptests of {}: {}", seen.name, chain(&error))),
            }
        }
        if !failures.is_empty() {
            let reason = snip(&failures.join("\n"));
            self.tell(dispatch, swarm, &reason, &["swarm", "uptest", "failed"]).await;
            return Err(failed(reason));
        }
        let why = match (current.len(), untested) {
            (0, _) => "no procs are wanted".to_owned(),
            (_, 0) => format!("{tests} uptests passed on {} procs", current.len()),
            _ => {
                let message = format!("{untested} procs of {} have no uptests", swarm.cli_name());
                self.tell(dispatch, swarm, &message, &["swarm", "uptest", "warning"]).await;
                message
            }
        };
        if tests > 0 {
            self.tell(dispatch, swarm, &why, &["swarm", "uptest", "success"]).await;
        }
        memory.tested = current
            .into_iter()
            .map(|seen| Placement {
                host: seen.host,
                port: seen.port,
                proc: seen.name,
                proc_yaml: String::new(),
            })
            .collect();
        self.remember(dispatch, lease, &memory).await?;
        Ok((State::Routing, why))
    }

    /// The pool of a swarm, if it has one, and its balancer.
    fn pool_of(&self, swarm: &SwarmRow) -> Result<Option<(PoolName, &dyn Balancer)>, StepError> {
        let Some(pool) = swarm.pool.as_deref().filter(|pool| !pool.is_empty()) else { return Ok(None) };
        let pool: PoolName = pool.parse().map_err(|e| failed(format!("{e}")))?;
        let name = swarm.balancer.as_deref().unwrap_or_default();
        match self.balancers.get(name) {
            Some(balancer) => Ok(Some((pool, balancer.as_ref()))),
            None => Err(failed(format!("pool {pool} is of balancer {name:?}, which is not in the settings"))),
        }
    }

    async fn route(&self, dispatch: &DispatchRow, swarm: &SwarmRow, lease: &Lease) -> Next {
        let memory = Memory::of(dispatch)?;
        let Some((pool, balancer)) = self.pool_of(swarm)? else {
            return Ok((State::Cleaning, "it has no pool".into()));
        };
        let nodes = memory
            .tested
            .iter()
            .filter(|placed| placed.port > 0)
            .map(|placed| node(&placed.host, placed.port))
            .collect::<Result<Vec<Node>, _>>()?;
        // Nothing of another worker's may be undone: this is still ours.
        self.store.renew_dispatch(&dispatch.id, lease, self.settings.lease).await?;
        self.patiently(|| async {
            if nodes.is_empty() {
                let old = balancer.get_nodes(&pool).await?;
                balancer.delete_nodes(&pool, &old, None).await?;
                balancer.delete_pool_if_empty(&pool).await.map(drop)
            } else {
                balancer.set_nodes(&pool, &nodes).await.map(drop)
            }
        })
        .await?;
        // Where it is, is only news.
        let at = match balancer.pool_address(&pool).await {
            Ok(Some(address)) if !nodes.is_empty() => format!(" at {address}"),
            _ => String::new(),
        };
        let message = format!("pool {pool}{at} has {} nodes", nodes.len());
        self.tell(dispatch, swarm, &message, &["swarm", "route"]).await;
        Ok((State::Cleaning, message))
    }

    /// Does something with a balancer, again and again while it fails: it may be starting up.
    async fn patiently<T, F>(&self, doing: impl Fn() -> F) -> Result<T, BalancerError>
    where
        F: Future<Output = Result<T, BalancerError>>,
    {
        let mut pause = self.settings.poll;
        for _ in 0..BALANCER_TRIES {
            match doing().await {
                Ok(done) => return Ok(done),
                Err(error) if error.is_bad_input() => return Err(error),
                Err(error) => tracing::warn!(error = %chain(&error), "a balancer failed; trying again"),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        doing().await
    }

    /// Takes procs that are to be deleted out of every pool that still has them, whoever put them there, and waits
    /// until they have answered what they were asked, or the grace period is over. Gives the balancers' failures.
    pub(super) async fn leave_pools(&self, dispatch_id: &str, procs: &[(String, String)]) -> Vec<String> {
        let nodes: Vec<Node> = procs
            .iter()
            .filter_map(|(host, name)| {
                let port = ParsedProcName::parse(name).port;
                (port > 0).then(|| node(host, port).ok())?
            })
            .collect();
        let mut failures = Vec::new();
        if nodes.is_empty() {
            return failures;
        }
        for balancer in self.balancers.values() {
            let (balancer, nodes) = (balancer.as_ref(), &nodes);
            let left = self.patiently(|| self.leave_pools_of(dispatch_id, balancer, nodes)).await;
            failures.extend(left.err().map(|error| chain(&error)));
        }
        failures
    }

    async fn leave_pools_of(
        &self,
        dispatch_id: &str,
        balancer: &dyn Balancer,
        nodes: &[Node],
    ) -> Result<(), BalancerError> {
        let mut waits = Vec::new();
        for (pool, there) in balancer.pools_with_nodes().await? {
            let leaving: Vec<Node> = nodes.iter().filter(|node| there.contains(node)).cloned().collect();
            if !leaving.is_empty() {
                balancer.delete_nodes(&pool, &leaving, None).await?;
            }
            let grace = balancer.grace_period(&pool).unwrap_or(self.settings.grace);
            waits.push(async move {
                let reports = balancer.wait_drained(&pool, nodes, grace).await?;
                if !leaving.is_empty() {
                    balancer.delete_pool_if_empty(&pool).await?;
                }
                Ok::<_, BalancerError>((grace, reports))
            });
        }
        for waited in join_all(waits).await {
            let (grace, reports) = waited?;
            for report in reports.iter().filter(|report| report.open > 0) {
                let message = format!(
                    "{} still answers {} requests after {} s and is stopped now",
                    report.node,
                    report.open,
                    grace.as_secs()
                );
                let news = News::new(report.node.to_string(), message, &["swarm", "warning"]);
                self.events.tell(news.with("swarm_id", dispatch_id)).await;
            }
        }
        Ok(())
    }

    async fn clean_up(&self, dispatch: &DispatchRow, swarm: &SwarmRow, lease: &Lease) -> Next {
        let memory = Memory::of(dispatch)?;
        let (_, _, desired) = self.wanted(&memory, swarm).await?;
        let deadline = tokio::time::Instant::now() + self.settings.grace;
        let (squad, Plan { surplus, stale, .. }, running) = loop {
            let squad = self.look(swarm).await?;
            // A plan that does not come about (a host fell silent meanwhile) means that too few are there.
            let plan = plan(&swarm.squad_name, &desired, &squad.facts).ok();
            let running = plan.as_ref().map_or(0, |p| p.keep.iter().filter(|seen| seen.running).count());
            if let Some(plan) = plan.filter(|plan| plan.add.is_empty() && running >= desired.size) {
                break (squad, plan, running);
            }
            if tokio::time::Instant::now() > deadline {
                let message = format!(
                    "only {running} of {} procs run, so the old ones are left as they are",
                    desired.size
                );
                self.tell(dispatch, swarm, &message, &["swarm", "warning"]).await;
                return Ok((State::Done, message));
            }
            // A proc may be restarting just now.
            tokio::time::sleep(self.settings.poll).await;
        };
        let untested = surplus.into_iter().filter(|seen| !memory.tested.iter().any(|t| t.is(seen)));
        let gone: Vec<Seen> = stale.into_iter().chain(untested).chain(squad.doomed(&desired)).collect();
        self.store.renew_dispatch(&dispatch.id, lease, self.settings.lease).await?;
        let names: Vec<_> = gone.iter().map(|seen| (seen.host.clone(), seen.name.clone())).collect();
        let failures = self.leave_pools(&dispatch.id, &names).await;
        let late = |host: &str, proc: &str| LateDelete {
            host: host.to_owned(),
            proc: proc.to_owned(),
            tries: 0,
            dispatch_id: dispatch.id.clone(),
        };
        if !failures.is_empty() {
            let message = format!("old procs are left, as a pool may send to them: {}", failures.join("; "));
            self.tell(dispatch, swarm, &message, &["swarm", "warning"]).await;
            return Ok((State::Done, message));
        }
        let late = &late;
        let deletes = by_host(&gone).into_values().map(|procs| async move {
            let mut deleted = 0;
            for seen in procs {
                deleted += usize::from(self.delete(late(&seen.host, &seen.name)).await);
            }
            deleted
        });
        let deleted: usize = join_all(deletes).await.into_iter().sum();
        for placed in &memory.abandoned {
            self.store.delete_later(&late(&placed.host, &placed.proc), time::now()).await?;
        }
        Ok((State::Done, format!("{running} procs run, {deleted} old ones were deleted")))
    }

    /// Removes what a failed dispatch has made and nobody serves from, so that a bad version leaves no proc behind.
    /// A worker that lost its lease removes nothing: another one may have brought the dispatch to a good end.
    pub(super) async fn undo(&self, dispatch: &DispatchRow, lease: &Lease) {
        let fresh = async {
            self.store.renew_dispatch(&dispatch.id, lease, self.settings.lease).await?;
            self.store.dispatch(&dispatch.id).await
        };
        let fresh = match fresh.await {
            Ok(fresh) => fresh,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "procs of a failed dispatch were left");
                return;
            }
        };
        if !matches!(fresh.state, State::Deploying | State::Uptesting) {
            return;
        }
        let memory = Memory::of(&fresh).unwrap_or_default();
        join_all(memory.placements.into_iter().chain(memory.abandoned).map(|placed| {
            let dispatch_id = dispatch.id.clone();
            self.delete(LateDelete { host: placed.host, proc: placed.proc, tries: 0, dispatch_id })
        }))
        .await;
    }
}

enum Task {
    Deploy(Placement),
    Start(Seen),
}

fn node(host: &str, port: u16) -> Result<Node, StepError> {
    // An address of version 6 needs its brackets.
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("{host}:{port}").parse().map_err(|e| failed(format!("{e}")))
}

fn by_host(procs: &[Seen]) -> BTreeMap<&str, Vec<&Seen>> {
    let mut hosts: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    for seen in procs {
        hosts.entry(&seen.host).or_default().push(seen);
    }
    hosts
}

fn failure(seen: &Seen, result: &UptestResult) -> String {
    format!("uptest {} of {} on {} failed:\n{}", result.name, seen.name, seen.host, result.output.trim_end())
}

/// A proc that a dispatch has decided on, as its host would list it.
fn expected(placed: &Placement) -> ProcDocument {
    ProcDocument {
        description: String::new(),
        exitstatus: 0,
        group: placed.proc.clone(),
        logfile: String::new(),
        name: placed.proc.clone(),
        now: None,
        pid: 0,
        spawnerr: String::new(),
        start_time: None,
        state: ProcState::Stopped.code(),
        statename: ProcState::Stopped,
        stderr_logfile: String::new(),
        stdout_logfile: String::new(),
        stop_time: None,
        parsed: ParsedProcName::parse(&placed.proc),
        host: placed.host.clone(),
        jsname: placed.proc.replace('.', "dot"),
        id: format!("{}-{}", placed.host, placed.proc),
        usage: None,
    }
}

/// The text of a proc's `proc.yaml`; the same for the same release and place.
fn proc_yaml(
    release: &ReleaseRow,
    build: &BuildRow,
    placed: &Placement,
    public_url: &str,
) -> Result<String, StepError> {
    let bad = |what: &str, e: &dyn std::error::Error| failed(format!("{what}: {}", chain(e)));
    let name: ContainerName = placed.proc.parse().map_err(|e| bad("proc name", &e))?;
    let file = build.file.as_deref().ok_or_else(|| failed("the build has no file"))?;
    let env: BTreeMap<String, Scalar> = yaml::parse_mapping("env of the release", &release.env_yaml)
        .and_then(|map| {
            let text = yaml::to_string(&map)?;
            yaml::parse("env of the release", &text)
        })
        .map_err(|e| bad("env", &e))?;
    let settings =
        yaml::parse_mapping("config of the release", &release.config_yaml).map_err(|e| bad("config", &e))?;
    let volumes = match serde_json::from_str::<Value>(&release.volumes) {
        Ok(Value::Null) => None,
        Ok(value) => Some(serde_json::from_value(value).map_err(|e| bad("volumes", &e))?),
        Err(e) => return Err(bad("volumes", &e)),
    };
    let data = ProcData {
        app_name: Some(name.app),
        app_repo_url: Some(build.repo_url.clone()),
        app_repo_type: Some(build.repo_type.clone()),
        buildpack_url: build.buildpack_url.clone(),
        buildpack_version: build.buildpack_version.clone(),
        config_name: Some(name.config),
        env: Some(env),
        host: Some(placed.host.clone()),
        port: Some(placed.port),
        version: Some(name.version),
        release_hash: Some(name.hash),
        settings: Some(serde_yaml::Value::Mapping(settings)),
        user: Some(Scalar(release.run_as.clone())),
        group: Some(Scalar("nogroup".into())),
        proc_name: Some(name.proc_name),
        build_url: Some(format!("{public_url}/files/{file}")),
        build_md5: build.file_md5.clone(),
        volumes,
        mem_limit: release.mem_limit.clone().map(Scalar),
        memsw_limit: release.memsw_limit.clone().map(Scalar),
        ..ProcData::default()
    };
    data.to_yaml().map_err(|e| bad("proc.yaml", &e))
}
