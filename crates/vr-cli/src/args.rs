//! The command line.

use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

/// Operates a Velociraptor server: deploys swarms, builds apps, shows and controls procs, follows events.
#[derive(Debug, Parser)]
#[command(name = "vr-cli", version, max_term_width = 110, after_help = EXAMPLES)]
pub struct Arguments {
    /// The server's address [default: the credentials file's, else https://deploy]
    #[arg(long, global = true, env = "VELOCIRAPTOR_URL", value_name = "URL", hide_env_values = true)]
    pub url: Option<String>,
    /// Who to log in as [default: the credentials file's]
    #[arg(long, global = true, env = "VELOCIRAPTOR_USERNAME", value_name = "NAME", hide_env_values = true)]
    pub username: Option<String>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The arguments, for their parser, completions and manual pages.
pub fn command() -> clap::Command {
    Arguments::command()
}

const EXAMPLES: &str = "\
Examples:
  vr-cli list-swarms                     all swarms, as <app>-<config>-<proc>
  vr-cli swarm hello-prod-web v2 --wait  deploy v2, follow it to its end
  vr-cli build hello v2 --wait           only build v2
  vr-cli procs list hello-               procs whose names begin with hello-
  vr-cli procs restart 'hello-.*-web-'   restart some of them
  vr-cli events --follow                 what happens, as it happens

Environment:
  VELOCIRAPTOR_URL          the server's address
  VELOCIRAPTOR_USERNAME     who to log in as
  VELOCIRAPTOR_PASSWORD     the password
  VELOCIRAPTOR_CREDENTIALS  the credentials file
                            [default: ~/.config/velociraptor/credentials.yaml]

Exit codes: 0 all worked, 1 something failed, 2 bad usage or input.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List swarms by name
    ListSwarms(ListSwarms),
    /// Deploy a version to swarms
    Swarm(Swarm),
    /// Build a version of an app
    Build(Build),
    /// Show, start, stop and restart procs
    Procs(Procs),
    /// Show what happened, or follow what happens
    Events(Events),
}

/// `list-swarms`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vr-cli list-swarms
  vr-cli list-swarms 'hello-(prod|test)-'
  vr-cli --json list-swarms hello-prod-web")]
pub struct ListSwarms {
    /// Swarms whose names this matches, from their start on
    #[arg(value_name = "REGEX", default_value = "")]
    pub pattern: String,
}

/// `swarm`.
#[derive(Debug, Args)]
#[command(after_help = "\
Prints each swarm's name and the trace id of its dispatch; with --wait also how it ended and the address of \
its pool. Exits with 1 when a swarm failed or was cancelled, with the reason on standard error.

Examples:
  vr-cli swarm hello-prod-web v2 --wait
  vr-cli swarm 'hello-prod-' v2 -x worker    all procs of hello-prod but the workers
  vr-cli swarm '.*-test-' -                  every test swarm again, each at its own version")]
pub struct Swarm {
    /// Swarms whose names this matches, from their start on; '.*' for all
    #[arg(value_name = "REGEX")]
    pub pattern: String,
    /// The version: a tag, branch or hash of the app's repository; '-' for the one each swarm has
    #[arg(value_name = "TAG")]
    pub tag: String,
    /// Leave out swarms in whose names this is found, upper or lower case; may be repeated
    #[arg(short = 'x', long, value_name = "REGEX")]
    pub exclude: Vec<String>,
    /// Follow the dispatches to their end
    #[arg(long)]
    pub wait: bool,
    /// Wait no longer than this; the dispatches go on
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration, requires = "wait")]
    pub timeout: Duration,
}

/// `build`.
#[derive(Debug, Args)]
#[command(after_help = "\
Prints the build's address; with --wait also how it ended.

Example:
  vr-cli build hello v2 --wait")]
pub struct Build {
    /// The app's name
    pub app: String,
    /// The version: a tag, branch or hash of the app's repository
    pub tag: String,
    /// Wait until it is built
    #[arg(long)]
    pub wait: bool,
    /// Wait no longer than this; the build goes on
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration, requires = "wait")]
    pub timeout: Duration,
}

/// `procs`.
#[derive(Debug, Args)]
pub struct Procs {
    /// What to do with them.
    #[command(subcommand)]
    pub action: ProcsAction,
}

/// What to do with procs.
#[derive(Debug, Subcommand)]
pub enum ProcsAction {
    /// Show procs, their hosts and states
    #[command(after_help = "\
A table on a terminal; in a pipe one line each, with tabs between name, host, state, pid and uptime.

Examples:
  vr-cli procs list
  vr-cli procs list hello- --host web1")]
    List(ProcSelection),
    /// Start procs
    Start(ProcSelection),
    /// Stop procs
    Stop(ProcSelection),
    /// Stop and start procs
    #[command(after_help = "\
Examples:
  vr-cli procs restart 'hello-v2-prod-.*-web-'
  vr-cli procs restart '.*' --host web1      all procs of one host")]
    Restart(ProcSelection),
}

/// Which procs.
#[derive(Debug, Args)]
pub struct ProcSelection {
    /// Procs whose names (<app>-<version>-<config>-<hash>-<proc>-<port>) this matches, from their start on
    #[arg(value_name = "REGEX")]
    pub pattern: Option<String>,
    /// Only on hosts whose names this matches, from their start on
    #[arg(long, value_name = "REGEX")]
    pub host: Option<String>,
}

/// `events`.
#[derive(Debug, Args)]
#[command(after_help = "\
Prints time, title, tags and message of each event, oldest first; with --json one object a line.

Examples:
  vr-cli events --limit 20
  vr-cli events --follow")]
pub struct Events {
    /// Go on with events as they happen, until interrupted
    #[arg(long)]
    pub follow: bool,
    /// How many past events to show
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "follow",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e} (expected a time such as 90s or 10m)"))
}
