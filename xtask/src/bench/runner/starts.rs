//! How long it takes from the start of a program to the end of the container that it made.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::overlay::unify_cgroups;
use super::peers::{self, Peer, Root};
use crate::bench::programs::{checked, is_installed};
use crate::bench::stats::Samples;
use crate::bench::world::World;

/// Starts of each before the clock counts.
const WARM_UPS: usize = 3;
/// The program, how to make it, and what it is of.
type Other = (&'static str, fn(&World) -> Result<Vec<Peer>>);
const OTHERS: [Other; 4] =
    [("crun", peers::crun), ("runc", peers::runc), ("lxc-start", peers::lxc), ("bwrap", peers::bwrap)];

/// What one of the programs needed.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// How long.
    pub samples: Samples,
    /// What it did for that.
    pub had: String,
}

/// What all of them needed.
#[derive(Debug)]
pub struct Starts {
    /// How often each was started.
    pub rounds: u32,
    /// vrun first, unshare second.
    pub rows: Vec<Row>,
    /// Programs that are not in the table, and why.
    pub left_out: Vec<String>,
}

impl Starts {
    /// The row of a program.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }
}

/// Starts each program in turn, again and again.
pub fn measure(world: &World, rounds: u32) -> Result<Starts> {
    let _groups = GroupsOfLxc::remember();
    let mut left_out = Vec::new();
    let mut peers = vec![peers::vrun(world)?, peers::unshare()];
    for (program, make) in OTHERS {
        if is_installed(program) {
            peers.extend(make(world)?);
        } else {
            left_out.push(format!("{program} (not installed)"));
        }
    }
    peers.extend([peers::shell_alone(), peers::program_alone()]);

    let mut rows = Vec::new();
    let mut kept = Vec::new();
    for mut peer in peers {
        eprintln!("warming up: {}", peer.name.replace(['*', '`'], ""));
        match warm_up(&mut peer) {
            Ok(had) => {
                rows.push(Row { name: peer.name.clone(), samples: Samples::default(), had });
                peer.start.stdout(Stdio::null()).stderr(Stdio::null());
                kept.push(peer);
            }
            // Without vrun itself and the floor, there is nothing to say.
            Err(error) if rows.len() < 2 => return Err(error.context(peer.name)),
            Err(error) => left_out.push(format!("{} ({error:#})", peer.name)),
        }
    }
    eprintln!("starting each of them {rounds} times, in turn");
    for round in 0..rounds {
        // There and back, so that none always comes after the same other one.
        let order: Vec<usize> = match round % 2 {
            0 => (0..kept.len()).collect(),
            _ => (0..kept.len()).rev().collect(),
        };
        for index in order {
            let took = around(&mut kept[index], |peer| start(&mut peer.start, &peer.root))
                .with_context(|| format!("{} failed in round {round}", rows[index].name))?;
            rows[index].samples.push(took);
        }
    }
    Ok(Starts { rounds, rows, left_out })
}

/// LXC leaves a control group in each hierarchy. What was not there before goes when this is dropped.
struct GroupsOfLxc(BTreeSet<PathBuf>);

impl GroupsOfLxc {
    fn remember() -> Self {
        Self(Self::now())
    }

    fn now() -> BTreeSet<PathBuf> {
        let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return BTreeSet::new() };
        let pivots = hierarchies.flatten().map(|entry| entry.path().join("lxc.pivot"));
        pivots.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for GroupsOfLxc {
    fn drop(&mut self) {
        for group in Self::now().difference(&self.0) {
            // One that is in use now is somebody else's.
            let _ = fs::remove_dir(group);
        }
    }
}

/// Brings about what a program takes for granted.
fn around<T>(peer: &mut Peer, doing: impl FnOnce(&mut Peer) -> Result<T>) -> Result<T> {
    let _groups = peer.unified_cgroups.then(unify_cgroups).transpose()?;
    let _root = match &peer.root {
        Root::Ready(overlay) => Some(overlay.mount()?),
        Root::Own | Root::Timed(_) => None,
    };
    doing(peer)
}

/// From the start to the end, with the root if that is not there yet.
fn start(program: &mut Command, root: &Root) -> Result<Duration> {
    let begin = Instant::now();
    let mounted = match root {
        Root::Timed(overlay) => Some(overlay.mount()?),
        Root::Own | Root::Ready(_) => None,
    };
    let status = program.status().context("cannot be started")?;
    drop(mounted);
    let took = begin.elapsed();
    if !status.success() {
        bail!("it ended with {status}");
    }
    Ok(took)
}

/// The first starts, with everything that the program says; gives what it did, in words.
fn warm_up(peer: &mut Peer) -> Result<String> {
    for _ in 0..WARM_UPS {
        around(peer, |peer| {
            let _root = match &peer.root {
                Root::Timed(overlay) => Some(overlay.mount()?),
                Root::Own | Root::Ready(_) => None,
            };
            checked(&mut peer.start)
        })?;
    }
    let facts = around(peer, |peer| {
        let _root = match &peer.root {
            Root::Timed(overlay) => Some(overlay.mount()?),
            Root::Own | Root::Ready(_) => None,
        };
        peer.probe.as_mut().map(checked).transpose()
    })?;
    let facts = facts.map(|facts| in_words(&facts)).transpose()?;
    Ok([facts.as_deref(), Some(peer.remark)].into_iter().flatten().collect::<Vec<_>>().join("; "))
}

/// What the image's probe found.
fn in_words(facts: &str) -> Result<String> {
    let parts: Vec<&str> = facts.split_whitespace().collect();
    let [user, capabilities, privileges, filter, users, mounts] = parts[..] else {
        bail!("the probe answered {facts:?}");
    };
    let capabilities = match capabilities.trim_start_matches('0') {
        "" => "no capabilities".to_owned(),
        some => format!("capabilities {some}"),
    };
    let choose = |holds: bool, yes: &'static str, no: &'static str| if holds { yes } else { no };
    Ok([
        format!("user {user}"),
        capabilities,
        choose(privileges == "1", "no_new_privs", "no no_new_privs").to_owned(),
        choose(filter == "2", "seccomp filter", "no seccomp filter").to_owned(),
        choose(users == "4294967295", "no user namespace", "user namespace").to_owned(),
        format!("{mounts} mounts"),
    ]
    .join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_numbers_are_put_into_words() {
        assert_eq!(
            in_words("65534 0000000000000000 1 2 65536 28\n").unwrap(),
            "user 65534, no capabilities, no_new_privs, seccomp filter, user namespace, 28 mounts"
        );
        assert_eq!(
            in_words("0 00000000a80425fb 0 0 4294967295 9").unwrap(),
            "user 0, capabilities a80425fb, no no_new_privs, no seccomp filter, no user namespace, 9 mounts"
        );
        assert!(in_words("").is_err());
    }
}
