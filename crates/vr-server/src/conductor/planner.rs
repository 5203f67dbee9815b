//! What has to change on which host for a swarm to be as it is wanted. Pure: no I/O, no clock, no chance.

use std::collections::BTreeMap;

use thiserror::Error;
use vr_common::host_api::{ProcDocument, ProcState};

/// What a swarm wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The app.
    pub app_name: String,
    /// The deployment.
    pub config_name: String,
    /// The Procfile's entry.
    pub proc_name: String,
    /// The release.
    pub hash: String,
    /// How many procs of it.
    pub size: usize,
}

/// A proc that a host has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Its host.
    pub host: String,
    /// Its container name.
    pub name: String,
    /// Its port, 0 for none.
    pub port: u16,
    /// Whether it is up.
    pub running: bool,
}

/// A host that answered.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    /// Its name.
    pub name: String,
    /// Whether new procs may be put on it.
    pub active: bool,
    /// All that it runs.
    pub procs: Vec<ProcDocument>,
}

/// What has to change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Procs of the wanted release that stay.
    pub keep: Vec<Seen>,
    /// A host for each proc that is missing.
    pub add: Vec<String>,
    /// Procs of the wanted release that are too many.
    pub surplus: Vec<Seen>,
    /// Procs of the same app, deployment and Procfile entry, but of another release.
    pub stale: Vec<Seen>,
}

/// Why there is no plan.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum PlanError {
    /// Procs are missing and no host may take them.
    #[error("squad {squad} has no active host that answers, for {missing} of {size} procs")]
    NoActiveHost {
        /// The squad.
        squad: String,
        /// How many procs are missing.
        missing: usize,
        /// How many are wanted.
        size: usize,
    },
}

/// Compares what is wanted with what is there.
///
/// Missing procs go, one after the other, to the active host with the fewest procs of this release and entry,
/// then the fewest procs at all, then the first name. Surplus procs come from hosts that are not active,
/// then from the busiest; procs that are not up go first.
pub fn plan(squad: &str, desired: &Desired, hosts: &[HostFacts]) -> Result<Plan, PlanError> {
    let mut plan = Plan::default();
    let mut load: BTreeMap<&str, Load> = BTreeMap::new();
    for host in hosts {
        let load = load.entry(&host.name).or_default();
        load.active = host.active;
        load.all = host.procs.len();
        for proc in &host.procs {
            let seen = Seen {
                host: host.name.clone(),
                name: proc.name.clone(),
                port: proc.parsed.port,
                running: proc.statename == ProcState::Running,
            };
            let parsed = &proc.parsed;
            let ours = parsed.app_name == desired.app_name
                && parsed.config_name == desired.config_name
                && parsed.proc_name == desired.proc_name;
            if ours && parsed.hash == desired.hash {
                load.own += 1;
                plan.keep.push(seen);
            } else if ours {
                plan.stale.push(seen);
            }
        }
    }
    plan.keep.sort();
    plan.stale.sort();

    while plan.keep.len() > desired.size {
        let busiest = plan.keep.iter().enumerate().max_by_key(|(_, seen)| {
            let load = load.get(seen.host.as_str()).copied().unwrap_or_default();
            (!seen.running, !load.active, load.own, load.all)
        });
        let Some(place) = busiest.map(|(place, _)| place) else { break };
        let seen = plan.keep.remove(place);
        if let Some(load) = load.get_mut(seen.host.as_str()) {
            load.own -= 1;
            load.all -= 1;
        }
        plan.surplus.push(seen);
    }

    let missing = desired.size - plan.keep.len();
    for _ in 0..missing {
        let idlest = load
            .iter_mut()
            .filter(|(_, load)| load.active)
            .min_by_key(|(name, load)| (load.own, load.all, **name));
        let Some((name, load)) = idlest else {
            return Err(PlanError::NoActiveHost { squad: squad.to_owned(), missing, size: desired.size });
        };
        load.own += 1;
        load.all += 1;
        plan.add.push((*name).to_owned());
    }
    Ok(plan)
}

#[derive(Debug, Clone, Copy, Default)]
struct Load {
    active: bool,
    /// Procs of the wanted release and entry.
    own: usize,
    /// Procs of any kind.
    all: usize,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hosts::simulated::document;

    fn desired(size: usize) -> Desired {
        Desired {
            app_name: "app".into(),
            config_name: "prod".into(),
            proc_name: "web".into(),
            hash: "aaaaaaaa".into(),
            size,
        }
    }

    fn host(name: &str, active: bool, procs: &[&str]) -> HostFacts {
        let procs = procs.iter().map(|proc| document(name, proc, ProcState::Running)).collect();
        HostFacts { name: name.into(), active, procs }
    }

    #[test]
    fn missing_procs_go_to_the_idlest_hosts() {
        let hosts = [
            host("a", true, &["app-v1-prod-aaaaaaaa-web-5000", "app-v1-prod-aaaaaaaa-web-5001"]),
            host("b", true, &["other", "another"]),
            host("c", true, &[]),
            host("d", false, &[]),
        ];
        let plan = plan("s", &desired(6), &hosts).unwrap();
        assert_eq!(plan.add, ["c", "b", "c", "b"]);
        assert_eq!(plan.keep.len(), 2);
    }

    #[test]
    fn other_releases_are_stale_and_other_swarms_are_left_alone() {
        let hosts = [host(
            "a",
            true,
            &[
                "app-v1-prod-aaaaaaaa-web-5000",
                "app-v0-prod-bbbbbbbb-web-5001",
                "app-v0-prod-bbbbbbbb-worker-5002",
                "app-v0-test-bbbbbbbb-web-5003",
                "app2-v0-prod-bbbbbbbb-web-5004",
                "redis",
            ],
        )];
        let plan = plan("s", &desired(1), &hosts).unwrap();
        let stale: Vec<_> = plan.stale.iter().map(|seen| seen.port).collect();
        assert_eq!((plan.add.len(), stale), (0, vec![5001]));
    }

    #[test]
    fn surplus_comes_from_sleeping_then_inactive_then_busy_hosts() {
        let mut hosts = [
            host("a", true, &["app-v1-prod-aaaaaaaa-web-5000", "app-v1-prod-aaaaaaaa-web-5001"]),
            host("b", false, &["app-v1-prod-aaaaaaaa-web-5002"]),
            host("c", true, &["app-v1-prod-aaaaaaaa-web-5003"]),
        ];
        hosts[2].procs[0].statename = ProcState::Fatal;
        let plan = plan("s", &desired(1), &hosts).unwrap();
        let order: Vec<_> = plan.surplus.iter().map(|seen| seen.host.as_str()).collect();
        assert_eq!(order, ["c", "b", "a"]);
    }

    #[test]
    fn no_active_host_is_an_error_only_when_one_is_needed() {
        let hosts = [host("a", false, &["app-v1-prod-aaaaaaaa-web-5000"])];
        assert!(plan("s", &desired(1), &hosts).is_ok());
        assert_eq!(
            plan("s", &desired(2), &hosts).unwrap_err().to_string(),
            "squad s has no active host that answers, for 1 of 2 procs"
        );
    }

    proptest! {
        #[test]
        fn a_plan_that_was_carried_out_leaves_nothing_to_do(
            size in 0usize..12,
            squad in proptest::collection::vec((any::<bool>(), 0usize..5, 0usize..3), 1..5),
        ) {
            let mut hosts: Vec<_> = squad.iter().enumerate().map(|(i, (active, own, other))| {
                let own = (0..*own).map(|p| format!("app-v1-prod-aaaaaaaa-web-{}", 5000 + p));
                let other = (0..*other).map(|p| format!("app-v0-prod-bbbbbbbb-web-{}", 6000 + p));
                let names: Vec<_> = own.chain(other).collect();
                host(&format!("h{i}"), *active, &names.iter().map(String::as_str).collect::<Vec<_>>())
            }).collect();
            let Ok(first) = plan("s", &desired(size), &hosts) else {
                prop_assert!(hosts.iter().all(|host| !host.active));
                return Ok(());
            };
            prop_assert_eq!(first.keep.len() + first.add.len(), size);
            prop_assert!(first.surplus.is_empty() || first.add.is_empty());
            for (i, name) in first.add.iter().enumerate() {
                let host = hosts.iter_mut().find(|host| &host.name == name).unwrap();
                prop_assert!(host.active);
                let proc = format!("app-v1-prod-aaaaaaaa-web-{}", 7000 + i);
                host.procs.push(document(name, &proc, ProcState::Running));
            }
            for gone in first.surplus.iter().chain(&first.stale) {
                let host = hosts.iter_mut().find(|host| host.name == gone.host).unwrap();
                host.procs.retain(|proc| proc.name != gone.name);
            }
            let second = plan("s", &desired(size), &hosts).unwrap();
            prop_assert!(second.add.is_empty() && second.surplus.is_empty() && second.stale.is_empty());
        }
    }
}
