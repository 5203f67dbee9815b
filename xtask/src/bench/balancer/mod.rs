//! `cargo xtask bench balancer`: the built-in proxy against nginx and haproxy, and how soon a change of a pool is in effect.

mod changes;
mod hosts;
mod load;
mod report;
mod server;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::agent::processes::{end_all, end_on_signal};
use super::machine::Machine;
use super::programs::is_installed;
use super::world::Folder;
use load::{Load, Runs};
use report::{Report, Row};
use server::{Haproxy, Nginx, Proxy, Server, Upstream};

/// What the numbers depend on besides our own program.
const PROGRAMS: [&str; 3] = ["nginx", "haproxy", "wrk"];
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Before the first round, each gets the load for so many seconds, so that its connections and memory are there.
const WARM_UP: u32 = 1;

/// How it is measured.
#[derive(Debug, Args)]
pub struct Options {
    /// How often each gets the load; all of them in turn.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// For how long, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How often the built-in proxy's pool is changed, in each of three ways.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// How often a pool of nginx on three hosts is changed.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    host_changes: u32,
    /// Put the tables into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// Measure this vr-balancer instead of building the release.
    #[arg(long, value_name = "FILE")]
    balancer: Option<PathBuf>,
}

/// Measures.
pub fn run(options: &Options) -> Result<()> {
    let missing: Vec<_> = ["wrk", "nginx"].into_iter().filter(|name| !is_installed(name)).collect();
    if !missing.is_empty() {
        bail!("nothing can be measured without {} (Debian's packages of these names)", missing.join(" and "));
    }
    let balancer = super::program(options.balancer.as_deref(), "vr-balancer", "vr-balancer")?;
    let below = super::folder()?;
    let folder = Folder::make(&below)?;
    // What the SSH servers need is in the folder as well, so that it goes with it.
    if tempfile::env::override_temp_dir(folder.path()).is_err() {
        bail!("another folder for temporary files is in use already");
    }
    // Nobody else measures now, as the folder says: what runs in any of them was left by somebody who was killed.
    end_all(&below)?;
    end_on_signal(below, folder.path().to_owned())?;
    let mut machine = Machine::look(folder.path(), &[&balancer], &PROGRAMS)?;
    let mut left_out = Vec::new();

    let upstream = Upstream::start(folder.path())?;
    let proxy = Proxy::start(folder.path(), &balancer, &upstream)?;
    let nginx = Nginx::start(folder.path(), &upstream)?;
    let haproxy = if is_installed("haproxy") {
        Some(Haproxy::start(folder.path(), &upstream)?)
    } else {
        left_out.push("haproxy");
        None
    };
    let mut measured: Vec<(&str, &Server)> = vec![("**vr-balancer**", proxy.server())];
    measured.extend(haproxy.as_ref().map(|haproxy| ("haproxy", haproxy.server())));
    measured.push(("nginx", nginx.server()));
    measured.push(("no proxy", upstream.server()));

    let load = Load::prepare(folder.path())?;
    let mut rows = Vec::new();
    for (name, server) in &measured {
        load.run(server, "/", WARM_UP)?;
        rows.push(Row { name, small: Runs::default(), large: Runs::default() });
    }
    for (large, path, seconds) in
        [(false, "/", options.seconds), (true, "/large", options.seconds.div_ceil(2))]
    {
        for round in 0..options.rounds {
            let mut order: Vec<usize> = (0..measured.len()).collect();
            if round % 2 == 1 {
                // There and back, so that whoever comes first is not always the same.
                order.reverse();
            }
            for index in order {
                let (name, server) = measured[index];
                let ran = load.run(server, path, seconds)?;
                eprintln!("{name}: {:.0} requests a second, p99 {:?}", ran.rate(), ran.p99);
                let row = &mut rows[index];
                if large { row.large.push(ran) } else { row.small.push(ran) }
            }
        }
    }
    drop((nginx, haproxy));
    let changes = changes::measure(&proxy, &balancer, &upstream, &load, options.changes)?;
    drop(proxy);
    let hosts = if is_installed("sshd") {
        Some(hosts::measure(folder.path(), &balancer, &upstream, options.host_changes)?)
    } else {
        left_out.push("nginx on hosts over SSH (Debian's package openssh-server)");
        None
    };
    drop(upstream);
    machine.look_again()?;

    let Options { rounds, seconds, .. } = *options;
    let report = Report { machine, rounds, seconds, rows, changes, hosts, left_out }.markdown();
    super::publish("balancer", &report, options.write)
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > deadline {
            bail!("{what} was not to be seen within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Addresses of this machine at which nobody listens, no two of them the same.
fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let mut held = Vec::new();
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    for address in &mut addresses {
        let listener = TcpListener::bind(*address).context("no port is free")?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(addresses)
}
