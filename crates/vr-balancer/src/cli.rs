//! The command line of `vr-balancer`.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::{Value, json};
use thiserror::Error;
use vr_common::exit;
use vr_common::names::{Node, PoolName};

use crate::balancer::{Balancer, Edit, GRACE_PERIOD, PoolChange};
use crate::config::{ConfigError, load_config};
use crate::error::BalancerError;
use crate::proxy::ServeError;
use crate::proxy::arguments::{self, ServeArguments};
use crate::proxy::client::ProxyBalancer;

/// Change and show the pools of balancers, or run the built-in proxy.
#[derive(Debug, Parser)]
#[command(name = "vr-balancer", version)]
struct Arguments {
    /// Settings file (YAML) with the BALANCERS mapping; for serve, the proxy's own configuration
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which balancer of the settings file; not needed if it has only one
    #[arg(long, global = true, value_name = "NAME", requires = "config")]
    balancer: Option<String>,
    /// Control socket of a built-in proxy, instead of a settings file
    #[arg(long, global = true, value_name = "PATH")]
    control_socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Change nothing, but show as unified diffs what would change
    #[arg(short = 'n', long, global = true)]
    dry_run: bool,
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
    /// Ask every host whether it can do its work, and whether all have the same pools; fail if something is wrong
    Check,
    /// Make all hosts serve the same, and repair what was left half done
    Sync {
        /// Take the pools of this host, and not what most of the hosts have
        #[arg(long, value_name = "HOST")]
        from: Option<String>,
    },
    /// Run the built-in proxy in the foreground, until SIGTERM or SIGINT
    Serve(Box<ServeArguments>),
}

#[derive(Debug, Args)]
struct DeleteArguments {
    /// The pool
    pool: PoolName,
    /// The nodes, host:port
    #[arg(required = true)]
    nodes: Vec<Node>,
    /// Wait until they have nothing open any more, at most so long (the pool's grace period unless given); fail if they
    /// still do then
    #[arg(long, value_name = "SECONDS")]
    wait: Option<Option<u64>>,
    /// Cut off what is still open after so long
    #[arg(long, value_name = "SECONDS")]
    close_after_grace: Option<u64>,
}

/// A command that did not work.
#[derive(Debug, Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("which balancer? Give --config FILE or --control-socket PATH")]
    NoBalancer,
    #[error("give --config or --control-socket, not both: each of them chooses a balancer")]
    TwoBalancers,
    #[error("no balancer {name:?} in the settings, there are: {}", known.join(", "))]
    UnknownBalancer { name: String, known: Vec<String> },
    #[error("the settings have several balancers, choose one with --balancer: {}", .0.join(", "))]
    SeveralBalancers(Vec<String>),
    #[error(transparent)]
    Balancer(#[from] BalancerError),
    #[error("pool {0} has nodes")]
    NotEmpty(PoolName),
    #[error("after {seconds} s there is still something open: {}", open.join(", "))]
    StillOpen { seconds: f64, open: Vec<String> },
    #[error("something is wrong with {}", .0.join(", "))]
    Problems(Vec<String>),
    #[error("-n is for commands that change pools, not for {0}")]
    NothingToTry(&'static str),
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
            | Self::TwoBalancers
            | Self::NothingToTry(_)
            | Self::UnknownBalancer { .. }
            | Self::SeveralBalancers(_) => exit::BAD_INPUT,
            Self::Serve(error) if error.is_bad_input() => exit::BAD_INPUT,
            Self::Balancer(error) if error.is_bad_input() => exit::BAD_INPUT,
            _ => exit::FAILED,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Balancer(BalancerError::Unreachable { .. }) => {
                Some("is the proxy running? It is started with vr-balancer serve")
            }
            Self::Balancer(BalancerError::OutOfStep { .. }) => Some(
                "repeat the command, or let vr-balancer sync repair it, when those hosts can be reached again",
            ),
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
    let read_only = match arguments.command {
        Command::Serve(_) => Some("serve"),
        Command::Check => Some("check"),
        Command::List => Some("list"),
        Command::Show { .. } => Some("show"),
        _ => None,
    };
    if let Some(command) = read_only.filter(|_| arguments.dry_run) {
        return Err(CliError::NothingToTry(command));
    }
    if let Command::Serve(serve) = arguments.command {
        vr_common::log::init_service("info");
        return block_on(
            runtime(tokio::runtime::Builder::new_multi_thread())?,
            arguments::run(*serve, arguments.config, arguments.control_socket),
        )
        .map_err(CliError::from);
    }
    vr_common::log::init_tool("warn");
    let balancer = choose(&arguments)?;
    let Arguments { command, json: as_json, dry_run, .. } = arguments;
    let work = async {
        let result = match command {
            Command::Sync { from } => sync(balancer.as_ref(), from.as_deref(), dry_run, as_json).await,
            command if dry_run => preview(balancer.as_ref(), command, as_json).await,
            command => run_command(balancer.as_ref(), command, as_json).await,
        };
        if let Err(CliError::Balancer(error)) = &result
            && as_json
        {
            hosts_of(error).map_or(Ok(()), print)?;
        }
        result
    };
    block_on(runtime(tokio::runtime::Builder::new_current_thread())?, work)
}

/// Ends without waiting for threads that are stuck in a system call.
fn block_on<T>(runtime: tokio::runtime::Runtime, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

fn choose(arguments: &Arguments) -> Result<Arc<dyn Balancer>, CliError> {
    if let Some(socket) = &arguments.control_socket {
        if arguments.config.is_some() {
            return Err(CliError::TwoBalancers);
        }
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
            for (pool, nodes) in balancer.pools_with_nodes().await? {
                pools.push(Shown::new(balancer, pool, nodes).await?);
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
            if let Some(wait) = wait {
                let own = || balancer.grace_period(&pool).unwrap_or(GRACE_PERIOD);
                let grace = wait.map_or_else(own, Duration::from_secs);
                let reports = balancer.wait_drained(&pool, &nodes, grace).await?;
                let open: Vec<String> = reports
                    .iter()
                    .filter(|report| !report.is_drained())
                    .map(|report| format!("{} ({})", report.node, report.open))
                    .collect();
                if !open.is_empty() {
                    return Err(CliError::StillOpen { seconds: grace.as_secs_f64(), open });
                }
            }
            after_change(balancer, pool, as_json).await
        }
        Command::Check => {
            let reports = balancer.check().await?;
            if as_json {
                print(json!(reports))?;
            } else {
                reports.iter().try_for_each(|report| print_report(&report.host, &report.problems, "ok"))?;
            }
            let wrong = reports.into_iter().filter(|report| !report.problems.is_empty());
            let wrong: Vec<String> = wrong.map(|report| report.host).collect();
            if wrong.is_empty() { Ok(()) } else { Err(CliError::Problems(wrong)) }
        }
        // These have ways of their own.
        Command::Sync { .. } | Command::Serve(_) => Ok(()),
    }
}

/// A host and what there is to say of it, one a line.
fn print_report(host: &str, texts: &[String], otherwise: &str) -> Result<(), CliError> {
    if texts.is_empty() {
        return print(format!("{host}\t{otherwise}"));
    }
    texts.iter().try_for_each(|text| print(format!("{host}\t{text}")))
}

async fn sync(
    balancer: &dyn Balancer,
    from: Option<&str>,
    dry_run: bool,
    as_json: bool,
) -> Result<(), CliError> {
    let report = balancer.sync(from, dry_run).await?;
    if as_json {
        return print(json!(report));
    }
    if dry_run {
        return report.diffs.iter().try_for_each(|diff| print_text(&diff.diff));
    }
    report.hosts.iter().try_for_each(|host| print_report(&host.host, &host.done, "nothing to do"))
}

/// Shows what a command would change.
async fn preview(balancer: &dyn Balancer, command: Command, as_json: bool) -> Result<(), CliError> {
    let (pool, edit) = match command {
        Command::Add { pool, nodes } => (pool, Edit::Add(nodes)),
        Command::Set { pool, nodes } => (pool, Edit::Set(nodes)),
        Command::Delete(DeleteArguments { pool, nodes, .. }) => (pool, Edit::Delete(nodes)),
        Command::DeletePool { pool, if_empty: true } => (pool, Edit::DeletePoolIfEmpty),
        Command::DeletePool { pool, if_empty: false } => (pool, Edit::DeletePool),
        _ => return Ok(()),
    };
    let diffs = balancer.preview(&PoolChange { pool, edit }).await?;
    if as_json {
        return print(json!(diffs));
    }
    diffs.iter().try_for_each(|diff| print_text(&diff.diff))
}

/// Which hosts have a change, and which have not, for programs.
fn hosts_of(error: &BalancerError) -> Option<Value> {
    let pool = &error.subject().pool;
    match error {
        BalancerError::Failed { failed, .. } => Some(json!({ "pool": pool, "done": [], "failed": failed })),
        BalancerError::OutOfStep { done, failed, .. } => {
            Some(json!({ "pool": pool, "done": done, "failed": failed }))
        }
        _ => None,
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
        let nodes = balancer.get_nodes(&pool).await?;
        Self::new(balancer, pool, nodes).await
    }

    async fn new(balancer: &dyn Balancer, pool: PoolName, nodes: Vec<Node>) -> Result<Self, CliError> {
        let address = balancer.pool_address(&pool).await?;
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

fn print_text(text: &str) -> Result<(), CliError> {
    write!(io::stdout(), "{text}").map_err(|error| CliError::System("write to standard output", error))
}

fn print(line: impl fmt::Display) -> Result<(), CliError> {
    writeln!(io::stdout(), "{line}").map_err(|error| CliError::System("write to standard output", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
