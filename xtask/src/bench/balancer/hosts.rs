//! How long a change of a pool takes on nginx on three hosts, over SSH.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use vr_common::process::command;
use vr_testing::{Sshd, SshdOptions, SudoRule};

use super::changes::ask;
use super::server::{POOL, Upstream, nginx};
use super::{PATIENCE, free_addresses, until};
use crate::bench::programs::checked;
use crate::bench::stats::Samples;

/// How many hosts there are.
pub const HOSTS: usize = 3;
/// Changes that do not count: the first makes the pool.
const WARM_UP: usize = 2;
/// A change of the pool and, at once, the next one would find old workers that are still going.
const PAUSE: Duration = Duration::from_millis(200);
/// What makes a host of a program and its arguments: a folder of its own under the name that all hosts have for theirs, and
/// nginx. The arguments before the program are the two folders.
const HOST: &str = r#"
mount --bind "$1" "$2"
nginx -c "$2/nginx.conf" >"$2/said" 2>&1 &
shift 2
exec "$@"
"#;

/// Makes the hosts and swaps the pool's only node so often: from the start of `vr-balancer set` to its end.
pub fn measure(folder: &Path, program: &Path, upstream: &Upstream, changes: u32) -> Result<Samples> {
    eprintln!("changing a pool on {HOSTS} hosts {changes} times");
    let own = folder.join("hosts");
    let common = own.join("host");
    fs::create_dir_all(&common).with_context(|| format!("cannot make {}", common.display()))?;
    let nodes = upstream.nodes();
    let addresses = free_addresses::<HOSTS>()?;
    let hosts = addresses
        .iter()
        .enumerate()
        .map(|(number, address)| host(&own.join(format!("host{number}")), &common, *address, &nodes[0]))
        .collect::<Result<Vec<Sshd>>>()?;
    let settings = settings(&own, &common, &hosts)?;

    let mut took = Samples::default();
    for number in 0..WARM_UP + changes as usize {
        let new = (number + 1) % nodes.len();
        let mut set = command(program);
        set.arg("--config").arg(&settings).args(["set", POOL, &nodes[new].to_string()]);
        let begin = Instant::now();
        checked(&mut set)?;
        if number >= WARM_UP {
            took.push(begin.elapsed());
        }
        for address in &addresses {
            let mut stream = TcpStream::connect(address).context("an nginx is gone")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            if ask(&mut stream)? != new {
                bail!("nginx at {address} asked a node after it was taken out of the pool");
            }
        }
        std::thread::sleep(PAUSE);
    }
    Ok(took)
}

/// One host: an SSH server and an nginx with the pool, both in a process namespace that ends with it.
fn host(own: &Path, common: &Path, address: SocketAddr, node: &SocketAddr) -> Result<Sshd> {
    fs::create_dir(own)?;
    fs::create_dir(own.join("pools"))?;
    fs::write(own.join(format!("pools/{POOL}.conf")), format!("upstream {POOL} {{\n  server {node};\n}}\n"))?;
    let at = common.display();
    // In the one place where all hosts have theirs.
    let _command = nginx(
        common,
        &format!(
            "  include {at}/pools/*;\n  server {{\n    listen {address};\n    \
             location / {{ proxy_pass http://{POOL}; proxy_http_version 1.1; }}\n  }}\n"
        ),
    )?;
    fs::rename(common.join("nginx.conf"), own.join("nginx.conf"))?;
    let words = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation",
        "private",
        "sh",
        "-ec",
        HOST,
        "sh",
    ];
    let mut within: Vec<_> = words.iter().map(Into::into).collect();
    within.extend([own.into(), common.into()]);
    let sshd = Sshd::start(SshdOptions { sudo: SudoRule::WithPassword, within, ..SshdOptions::default() });
    until("nginx of a host", || Ok(TcpStream::connect(address).is_ok()))?;
    Ok(sshd)
}

/// Writes the settings of the balancer, as the manual has them.
fn settings(own: &Path, common: &Path, hosts: &[Sshd]) -> Result<PathBuf> {
    let known_hosts = own.join("known_hosts");
    let known: std::io::Result<String> =
        hosts.iter().map(|host| fs::read_to_string(host.known_hosts())).collect();
    fs::write(&known_hosts, known?)?;
    let at = common.display();
    let first = hosts.first().context("no host")?;
    let names: Vec<_> = hosts.iter().map(|host| format!("{}:{}", host.address(), host.port())).collect();
    let block = json!({
        "BACKEND": "nginx",
        "hosts": names,
        "user": first.user(),
        "password": first.password(),
        "known_hosts": known_hosts,
        "include_dir": format!("{at}/pools/"),
        "pid_file": format!("{at}/nginx.pid"),
        "test_cmd": format!("nginx -c {at}/nginx.conf -T"),
        "reload_cmd": format!("nginx -c {at}/nginx.conf -s reload"),
    });
    let file = own.join("settings.yaml");
    // YAML can be written as JSON.
    fs::write(&file, json!({ "BALANCERS": { "front": block } }).to_string())?;
    Ok(file)
}
