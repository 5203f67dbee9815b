//! The command line of `vr-balancer serve`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use vr_common::names::PoolName;

use super::options::{AccessLogOptions, HostPattern, ListenerOptions, LogFormat, network, seconds};
use super::{Configuration, Limits, ServeError, ServeOptions, Signal, serve};

/// What `vr-balancer serve` takes.
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// Folder for the pools' state and the lock; the control socket is in it unless --control-socket says otherwise
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Address that pools listen on
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    listen_host: IpAddr,
    /// Ports for pools without an address of their own; "none" if they shall have none and be reached by routes only
    #[arg(long, value_name = "FIRST-LAST", default_value = "8100-8199", value_parser = parse_ports)]
    ports: Ports,
    /// A pool with an address of its own; may be repeated
    #[arg(long = "pool", value_name = "NAME=IP:PORT", value_parser = parse_pool)]
    pools: Vec<(PoolName, SocketAddr)>,
    /// An address for all pools with a route; may be repeated
    #[arg(long = "listen", value_name = "IP:PORT", value_parser = parse_address)]
    listen: Vec<SocketAddr>,
    /// Send a host's requests to a pool: shop.example.org, *.example.org, or * for all others; may be repeated
    #[arg(long = "route", value_name = "HOST=POOL", value_parser = parse_route)]
    routes: Vec<(HostPattern, PoolName)>,
    /// A proxy or network in front whose X-Forwarded-For, -Host, -Proto and Forwarded are believed; may be repeated
    #[arg(long = "trusted-proxy", value_name = "IP", value_parser = network)]
    trusted_proxies: Vec<IpNet>,
    /// Log requests to this file, or to standard output if it is "-"
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// The lines of the access log
    #[arg(long, value_name = "FORMAT", default_value = "combined", requires = "access_log")]
    access_log_format: LogFormat,
    /// Address for Prometheus: GET /metrics
    #[arg(long, value_name = "IP:PORT", value_parser = parse_address)]
    metrics: Option<SocketAddr>,
    /// The most connections of clients [default: half of the files that may be open]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: Option<u32>,
    /// The most connections from one address that is not a trusted proxy [default: no limit]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections_per_client: Option<u32>,
    /// Bytes a second that a client has to send of a body once its pauses are as long as --idle-timeout [default: none]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    min_body_rate: Option<u64>,
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

/// The ports of pools without an address of their own; none for no addresses.
type Ports = Option<RangeInclusive<u16>>;

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    seconds(number)
}

// The parser of an argument says what its type is, which is why this cannot be the alias.
fn parse_ports(text: &str) -> Result<Ports, String> {
    if text == "none" {
        return Ok(None);
    }
    let expected =
        || "expected FIRST-LAST, such as 8100-8199, with ports from 1 to 65535, or none".to_owned();
    let (first, last) = text.split_once('-').ok_or_else(expected)?;
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(expected);
    let (first, last) = (port(first)?, port(last)?);
    if first > last { Err(expected()) } else { Ok(Some(first..=last)) }
}

fn parse_address(address: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = address
        .parse()
        .map_err(|_| format!("{address:?} is not an IP address with a port, such as 127.0.0.1:80"))?;
    if address.port() == 0 {
        return Err("port 0 is not an address that anybody could find; choose one from 1 to 65535".to_owned());
    }
    Ok(address)
}

fn parse_pool(text: &str) -> Result<(PoolName, SocketAddr), String> {
    let (name, address) = text.split_once('=').ok_or("expected NAME=IP:PORT")?;
    let name = name.parse::<PoolName>().map_err(|error| error.to_string())?;
    Ok((name, parse_address(address)?))
}

fn parse_route(text: &str) -> Result<(HostPattern, PoolName), String> {
    let (host, pool) = text.split_once('=').ok_or("expected HOST=POOL")?;
    Ok((host.parse()?, pool.parse::<PoolName>().map_err(|error| error.to_string())?))
}

impl ServeArguments {
    fn into_options(
        self,
        configuration_file: Option<PathBuf>,
        control_socket: Option<PathBuf>,
    ) -> Result<ServeOptions, ServeError> {
        let mut pools = BTreeMap::new();
        for (name, address) in self.pools {
            if pools.insert(name.clone(), address).is_some() {
                return Err(ServeError::RepeatedPool(name));
            }
        }
        let limits = Limits {
            connect: self.connect_timeout,
            answer: self.answer_timeout,
            body_idle: self.idle_timeout,
            tunnel_idle: self.tunnel_timeout,
            head: self.head_timeout,
            stop: self.stop_timeout,
            max_connections: self.max_connections.map(|number| number as usize),
            max_connections_per_client: self.max_connections_per_client,
            min_body_rate: self.min_body_rate,
            ..Limits::default()
        };
        let format = self.access_log_format;
        Ok(ServeOptions {
            control_socket: control_socket.unwrap_or_else(|| self.state_dir.join("control.sock")),
            state_dir: self.state_dir,
            listen_host: self.listen_host,
            ports: self.ports,
            pools,
            limits,
            configuration_file,
            configuration: Configuration {
                listeners: self.listen.into_iter().map(ListenerOptions::plain).collect(),
                routes: self.routes.into_iter().collect(),
                access_log: self.access_log.map(|file| AccessLogOptions { file, format }),
                metrics: self.metrics,
                trusted_proxies: self.trusted_proxies,
                ..Configuration::default()
            },
        })
    }
}

/// Runs the proxy until SIGTERM or SIGINT.
pub(crate) async fn run(
    arguments: ServeArguments,
    configuration_file: Option<PathBuf>,
    control_socket: Option<PathBuf>,
) -> Result<(), ServeError> {
    let options = arguments.into_options(configuration_file, control_socket)?;
    let watch = |kind| signal(kind).map_err(ServeError::Signals);
    let (mut terminate, mut interrupt) = (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
    let (mut hang_up, mut user) = (watch(SignalKind::hangup())?, watch(SignalKind::user_defined1())?);
    let next = async || {
        tokio::select! {
            _ = terminate.recv() => Signal::Stop,
            _ = interrupt.recv() => Signal::Stop,
            _ = hang_up.recv() => Signal::Reload,
            _ = user.recv() => Signal::ReopenLog,
        }
    };
    serve(options, next).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_addresses_are_checked() {
        assert_eq!(parse_ports("8100-8199"), Ok(Some(8100..=8199)));
        assert_eq!(parse_ports("none"), Ok(None));
        for bad in ["8100", "9-8", "0-5", "1-65536", "a-b", ""] {
            assert!(parse_ports(bad).is_err(), "{bad:?}");
        }
        assert!(parse_pool("web=127.0.0.1:80").is_ok());
        for bad in ["web", "web=80", "web=localhost:80", "../x=127.0.0.1:80", "web=127.0.0.1:0"] {
            assert!(parse_pool(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_route("*.Example.org=web").unwrap().0.as_str(), "*.example.org");
        for bad in ["web", "a b=web", "*=a/b", "="] {
            assert!(parse_route(bad).is_err(), "{bad:?}");
        }
        for bad in ["0", "-1", "x", "inf", "NaN", "1e9"] {
            assert!(parse_seconds(bad).is_err(), "{bad:?}");
        }
    }
}
