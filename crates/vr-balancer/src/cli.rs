//! The command line of `vr-balancer`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use vr_common::exit;
use vr_common::names::{Node, PoolName};

use crate::balancer::Balancer;
use crate::config::{ConfigError, load_config};
use crate::error::BalancerError;
use crate::proxy::client::ProxyBalancer;
use crate::proxy::{ChangeError, Limits, ServeError, ServeOptions, serve};

/// Change and show the pools of balancers, or run the built-in proxy.
#[derive(Debug, Parser)]
#[command(name = "vr-balancer", version)]
struct Arguments {
    /// Settings file (YAML) with the BALANCERS mapping
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which balancer of the settings file; not needed if it has only one
    #[arg(long, global = true, value_name = "NAME", requires = "config")]
    balancer: Option<String>,
    /// Control socket of a built-in proxy, instead of a settings file
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "config")]
    control_socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the pools, one a line: name, address ("-" if the balancer has none), nodes
    List,
    /// Show a pool's nodes, one a line
    Show {
        /// The pool
        pool: PoolName,
    },
    /// Add nodes; makes the pool if there is none
    Add {
        /// The pool
        pool: PoolName,
        /// The nodes, host:port
        nodes: Vec<Node>,
    },
    /// Take nodes out; what they are answering goes on to its end
    Delete(DeleteArguments),
    /// Take out all nodes, and the pool itself
    DeletePool {
        /// The pool
        pool: PoolName,
        /// Fail if the pool has nodes
        #[arg(long)]
        if_empty: bool,
    },
    /// Make these the pool's only nodes: new ones are added before stale ones are taken out
    Set {
        /// The pool
        pool: PoolName,
        /// The nodes, host:port
        nodes: Vec<Node>,
    },
    /// Run the built-in proxy in the foreground, until SIGTERM or SIGINT
    Serve(ServeArguments),
}

#[derive(Debug, Args)]
struct DeleteArguments {
    /// The pool
    pool: PoolName,
    /// The nodes, host:port
    #[arg(required = true)]
    nodes: Vec<Node>,
    /// Wait until they have nothing open any more, at most so long; fail if they still do then
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// Cut off what is still open after so long
    #[arg(long, value_name = "SECONDS")]
    close_after_grace: Option<u64>,
}

#[derive(Debug, Args)]
struct ServeArguments {
    /// Folder for the pools' state and the lock; the control socket is in it unless --control-socket says otherwise
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Address that pools listen on
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    listen_host: IpAddr,
    /// Ports for pools without an address of their own
    #[arg(long, value_name = "FIRST-LAST", default_value = "8100-8199", value_parser = parse_ports)]
    ports: RangeInclusive<u16>,
    /// A pool with an address of its own; may be repeated
    #[arg(long = "pool", value_name = "NAME=IP:PORT", value_parser = parse_pool)]
    pools: Vec<(PoolName, SocketAddr)>,
    /// A proxy in front whose X-Forwarded-For, -Host, -Proto and Forwarded are believed; may be repeated
    #[arg(long = "trusted-proxy", value_name = "IP")]
    trusted_proxies: Vec<IpAddr>,
    /// Seconds for a node to take a connection
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = parse_seconds)]
    connect_timeout: Duration,
    /// Seconds for a node to begin its answer
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = parse_seconds)]
    answer_timeout: Duration,
    /// Seconds without a byte after which a body is given up
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = parse_seconds)]
    idle_timeout: Duration,
    /// Seconds without a byte after which a WebSocket is closed
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = parse_seconds)]
    tunnel_timeout: Duration,
    /// Seconds for a client to send the head of its next request
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds)]
    head_timeout: Duration,
    /// Seconds that open requests have to end after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    stop_timeout: Duration,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| *time > Duration::ZERO && *time <= Duration::from_secs(7 * 24 * 3600))
        .ok_or_else(|| "expected more than 0 seconds and at most a week".to_owned())
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let expected = || "expected FIRST-LAST, such as 8100-8199, with ports from 1 to 65535".to_owned();
    let (first, last) = text.split_once('-').ok_or_else(expected)?;
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(expected);
    let (first, last) = (port(first)?, port(last)?);
    if first > last { Err(expected()) } else { Ok(first..=last) }
}

fn parse_pool(text: &str) -> Result<(PoolName, SocketAddr), String> {
    let (name, address) = text.split_once('=').ok_or("expected NAME=IP:PORT")?;
    let name = name.parse::<PoolName>().map_err(|error| error.to_string())?;
    let address: SocketAddr = address
        .parse()
        .map_err(|_| format!("{address:?} is not an IP address with a port, such as 127.0.0.1:80"))?;
    if address.port() == 0 {
        return Err("port 0 is not an address that anybody could find; choose one from 1 to 65535".to_owned());
    }
    Ok((name, address))
}

/// A command that did not work.
#[derive(Debug, Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("which balancer? Give --config FILE or --control-socket PATH")]
    NoBalancer,
    #[error("no balancer {name:?} in the settings, there are: {}", known.join(", "))]
    UnknownBalancer { name: String, known: Vec<String> },
    #[error("the settings have several balancers, choose one with --balancer: {}", .0.join(", "))]
    SeveralBalancers(Vec<String>),
    #[error("pool {0} is given an address twice")]
    RepeatedPool(PoolName),
    #[error("{0} does not take --config")]
    NoConfigHere(&'static str),
    #[error(transparent)]
    Balancer(#[from] BalancerError),
    #[error("pool {0} has nodes")]
    NotEmpty(PoolName),
    #[error("after {seconds} s there is still something open: {}", open.join(", "))]
    StillOpen { seconds: u64, open: Vec<String> },
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
}

impl CliError {
    fn code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::NoBalancer
            | Self::UnknownBalancer { .. }
            | Self::SeveralBalancers(_)
            | Self::RepeatedPool(_)
            | Self::NoConfigHere(_)
            | Self::Serve(ServeError::Pool(ChangeError::SharedAddress { .. })) => exit::BAD_INPUT,
            Self::Balancer(error) if error.is_bad_input() => exit::BAD_INPUT,
            _ => exit::FAILED,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Balancer(BalancerError::Unreachable { .. }) => {
                Some("is the proxy running? It is started with vr-balancer serve")
            }
            _ => None,
        }
    }
}

/// The arguments, for their parser, completions and manual pages.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error as &dyn Error, error.hint(), error.code()),
    }
}

fn run(arguments: Arguments) -> Result<(), CliError> {
    let runtime = |mut builder: tokio::runtime::Builder| {
        builder.enable_all().build().map_err(|error| CliError::System("start", error))
    };
    if let Command::Serve(serve) = arguments.command {
        if arguments.config.is_some() {
            return Err(CliError::NoConfigHere("serve"));
        }
        vr_common::log::init_service("info");
        return block_on(
            runtime(tokio::runtime::Builder::new_multi_thread())?,
            run_proxy(serve, arguments.control_socket),
        );
    }
    let balancer = choose(&arguments)?;
    let command = run_command(balancer.as_ref(), arguments.command, arguments.json);
    block_on(runtime(tokio::runtime::Builder::new_current_thread())?, command)
}

/// Ends without waiting for threads that are stuck in a system call.
fn block_on<T>(runtime: tokio::runtime::Runtime, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

fn choose(arguments: &Arguments) -> Result<Arc<dyn Balancer>, CliError> {
    if let Some(socket) = &arguments.control_socket {
        return Ok(Arc::new(ProxyBalancer::new("proxy", socket)));
    }
    let Some(config) = &arguments.config else {
        return Err(CliError::NoBalancer);
    };
    let mut balancers = load_config(config)?;
    let known: Vec<String> = balancers.keys().cloned().collect();
    let chosen = match (&arguments.balancer, known.as_slice()) {
        (Some(name), _) => balancers.remove(name),
        (None, [only]) => balancers.remove(only),
        (None, _) => return Err(CliError::SeveralBalancers(known)),
    };
    let name = arguments.balancer.clone().unwrap_or_default();
    chosen.ok_or(CliError::UnknownBalancer { name, known })
}

async fn run_command(balancer: &dyn Balancer, command: Command, as_json: bool) -> Result<(), CliError> {
    match command {
        Command::List => {
            let mut pools = Vec::new();
            for pool in balancer.list_pools().await? {
                pools.push(Shown::load(balancer, pool).await?);
            }
            if as_json {
                return print(json!(pools.iter().map(Shown::to_json).collect::<Vec<_>>()));
            }
            pools.iter().try_for_each(print)
        }
        Command::Show { pool } => {
            let shown = Shown::load(balancer, pool).await?;
            if as_json { print(shown.to_json()) } else { shown.nodes.iter().try_for_each(print) }
        }
        Command::Add { pool, nodes } => {
            balancer.add_nodes(&pool, &nodes).await?;
            after_change(balancer, pool, as_json).await
        }
        Command::Set { pool, nodes } => {
            balancer.set_nodes(&pool, &nodes).await?;
            after_change(balancer, pool, as_json).await
        }
        Command::DeletePool { pool, if_empty } => {
            if if_empty {
                if !balancer.delete_pool_if_empty(&pool).await? {
                    return Err(CliError::NotEmpty(pool));
                }
            } else {
                balancer.delete_pool(&pool).await?;
            }
            after_change(balancer, pool, as_json).await
        }
        Command::Delete(DeleteArguments { pool, nodes, wait, close_after_grace }) => {
            let close_after_grace = close_after_grace.map(Duration::from_secs);
            balancer.delete_nodes(&pool, &nodes, close_after_grace).await?;
            if let Some(seconds) = wait {
                let reports = balancer.wait_drained(&pool, &nodes, Duration::from_secs(seconds)).await?;
                let open: Vec<String> = reports
                    .iter()
                    .filter(|report| !report.is_drained())
                    .map(|report| format!("{} ({})", report.node, report.open))
                    .collect();
                if !open.is_empty() {
                    return Err(CliError::StillOpen { seconds, open });
                }
            }
            after_change(balancer, pool, as_json).await
        }
        Command::Serve(_) => Err(CliError::NoConfigHere("serve")),
    }
}

/// A pool as it is printed.
struct Shown {
    pool: PoolName,
    address: Option<String>,
    nodes: Vec<Node>,
}

impl Shown {
    async fn load(balancer: &dyn Balancer, pool: PoolName) -> Result<Self, CliError> {
        let address = balancer.pool_address(&pool).await?;
        let nodes = balancer.get_nodes(&pool).await?;
        if let Some(problem) = balancer.pool_problem(&pool).await? {
            // Nobody to tell is no reason to fail.
            let _ = writeln!(io::stderr(), "WARNING: pool {pool} is not served: {problem}");
        }
        Ok(Self { pool, address, nodes })
    }

    fn to_json(&self) -> Value {
        json!({ "pool": self.pool, "address": self.address, "nodes": self.nodes })
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<String> = self.nodes.iter().map(Node::to_string).collect();
        write!(f, "{}\t{}\t{}", self.pool, self.address.as_deref().unwrap_or("-"), nodes.join(" "))
    }
}

async fn after_change(balancer: &dyn Balancer, pool: PoolName, as_json: bool) -> Result<(), CliError> {
    if as_json { print(Shown::load(balancer, pool).await?.to_json()) } else { Ok(()) }
}

fn print(line: impl fmt::Display) -> Result<(), CliError> {
    writeln!(io::stdout(), "{line}").map_err(|error| CliError::System("write to standard output", error))
}

async fn run_proxy(arguments: ServeArguments, control_socket: Option<PathBuf>) -> Result<(), CliError> {
    let mut pools = BTreeMap::new();
    for (name, address) in arguments.pools {
        if pools.insert(name.clone(), address).is_some() {
            return Err(CliError::RepeatedPool(name));
        }
    }
    let control_socket = control_socket.unwrap_or_else(|| arguments.state_dir.join("control.sock"));
    let limits = Limits {
        connect: arguments.connect_timeout,
        answer: arguments.answer_timeout,
        body_idle: arguments.idle_timeout,
        tunnel_idle: arguments.tunnel_timeout,
        head: arguments.head_timeout,
        stop: arguments.stop_timeout,
        ..Limits::default()
    };
    let watch = |kind| signal(kind).map_err(|error| CliError::System("watch for signals", error));
    let (mut terminate, mut interrupt) = (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
    // Whoever started this may end its terminal; pools are changed through the control socket only.
    let _hang_up = watch(SignalKind::hangup())?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let options = ServeOptions {
        state_dir: arguments.state_dir,
        control_socket,
        listen_host: arguments.listen_host,
        ports: arguments.ports,
        pools,
        trusted_proxies: arguments.trusted_proxies,
        limits,
    };
    Ok(serve(options, stop).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn ports_and_addresses_are_checked() {
        assert_eq!(parse_ports("8100-8199"), Ok(8100..=8199));
        for bad in ["8100", "9-8", "0-5", "1-65536", "a-b", ""] {
            assert!(parse_ports(bad).is_err(), "{bad:?}");
        }
        assert!(parse_pool("web=127.0.0.1:80").is_ok());
        for bad in ["web", "web=80", "web=localhost:80", "../x=127.0.0.1:80", "web=127.0.0.1:0"] {
            assert!(parse_pool(bad).is_err(), "{bad:?}");
        }
        for bad in ["0", "-1", "x", "inf", "NaN", "1e9"] {
            assert!(parse_seconds(bad).is_err(), "{bad:?}");
        }
    }
}
