//! The programs that are measured, and the one behind them.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vr_common::process::command;

use super::{free_addresses, until};
use crate::bench::agent::processes::{Memory, start, used};

/// The size of the large answer, in bytes.
pub const LARGE: usize = 1_000_000;
/// The length of the small one.
const SMALL: usize = 100;
/// The pool's name everywhere.
pub const POOL: &str = "web";

/// A program with all that it starts, in a process namespace of its own: all of it ends when this is dropped, and what a
/// benchmark that was killed has left ends with the next one.
#[derive(Debug)]
pub struct Server {
    /// `unshare`, which takes the program with it.
    child: Child,
    /// Where it answers requests.
    address: SocketAddr,
    /// What its processes have in common.
    namespace: PathBuf,
}

impl Server {
    /// Starts it, and waits until it listens.
    fn start(program: &Command, address: SocketAddr, log: &Path) -> Result<Self> {
        let said = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut unshare = command("unshare");
        unshare.args(["--pid", "--fork", "--kill-child", "--"]).arg(program.get_program());
        unshare.args(program.get_args()).env_remove("RUST_LOG");
        // Ctrl-C is for the benchmark, which ends them in turn.
        unshare.stdout(Stdio::from(said.try_clone()?)).stderr(Stdio::from(said)).process_group(0);
        let child = start(&mut unshare)?;
        let mut server = Self { child, address, namespace: PathBuf::new() };
        until("the program's address", || {
            if let Some(status) = server.child.try_wait()? {
                let said = fs::read_to_string(log).unwrap_or_default();
                bail!("{} ended with {status}: {}", program.get_program().display(), said.trim());
            }
            Ok(TcpStream::connect(address).is_ok())
        })?;
        let link = format!("/proc/{}/ns/pid_for_children", server.child.id());
        server.namespace = fs::read_link(&link).with_context(|| format!("cannot read {link}"))?;
        Ok(server)
    }

    /// Where it answers requests.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The processor time that all its processes have used so far.
    pub fn cpu(&self) -> Result<Duration> {
        self.processes()?.into_iter().map(used).sum()
    }

    /// What all its processes together have in memory.
    pub fn memory(&self) -> Result<Memory> {
        self.processes()?.into_iter().try_fold(Memory::default(), |sum, pid| Ok(sum.plus(Memory::of(pid)?)))
    }

    fn processes(&self) -> Result<Vec<u32>> {
        let entries = fs::read_dir("/proc").context("cannot read /proc")?.flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_inside = |pid: &u32| {
            fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|namespace| namespace == self.namespace)
        };
        let pids: Vec<u32> = pids.filter(is_inside).collect();
        if pids.is_empty() {
            bail!("the program at {} has ended", self.address);
        }
        Ok(pids)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// A folder in that of the benchmark.
fn own_folder(folder: &Path, name: &str) -> Result<PathBuf> {
    let own = folder.join(name);
    fs::create_dir(&own).with_context(|| format!("cannot make {}", own.display()))?;
    Ok(own)
}

/// Writes an `nginx.conf` with two workers that log nothing, and gives the command that runs it.
pub fn nginx(folder: &Path, http: &str) -> Result<Command> {
    let at = folder.display();
    let file = folder.join("nginx.conf");
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {at}/{name};\n"))
        .concat();
    let text = format!(
        "user root;\ndaemon off;\nworker_processes 2;\npid {at}/nginx.pid;\nerror_log {at}/error.log crit;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 60s;\n{temporary}{http}}}\n"
    );
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    let mut nginx = command("nginx");
    nginx.arg("-c").arg(file);
    Ok(nginx)
}

/// Who answers the requests in the end: an nginx with two addresses, which are the pool's nodes.
#[derive(Debug)]
pub struct Upstream {
    server: Server,
    nodes: [SocketAddr; 2],
}

impl Upstream {
    /// Starts it. The small answer begins with the node's number, 0 or 1.
    pub fn start(folder: &Path) -> Result<Self> {
        let own = own_folder(folder, "upstream")?;
        fs::write(own.join("large"), vec![b'x'; LARGE])?;
        let nodes = free_addresses()?;
        let servers: String = nodes
            .iter()
            .enumerate()
            .map(|(number, address)| {
                format!(
                    "  server {{\n    listen {address} backlog=4096;\n    location / {{ return 200 \"{number:.<SMALL$}\"; }}\n    \
                     location = /large {{ root {}; }}\n  }}\n",
                    own.display()
                )
            })
            .collect();
        let program = nginx(&own, &format!("  sendfile on;\n{servers}"))?;
        let server = Server::start(&program, nodes[0], &own.join("said"))?;
        Ok(Self { server, nodes })
    }

    /// It, as its first node is reached without a proxy.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The nodes of the pool.
    pub fn nodes(&self) -> &[SocketAddr; 2] {
        &self.nodes
    }
}

/// The built-in proxy.
#[derive(Debug)]
pub struct Proxy {
    server: Server,
    control_socket: PathBuf,
}

impl Proxy {
    /// Starts it with the pool.
    pub fn start(folder: &Path, program: &Path, upstream: &Upstream) -> Result<Self> {
        let own = own_folder(folder, "proxy")?;
        let [address] = free_addresses()?;
        let mut serve = command(program);
        serve.arg("serve").arg("--state-dir").arg(&own).arg("--pool").arg(format!("{POOL}={address}"));
        let server = Server::start(&serve, address, &own.join("said"))?;
        let proxy = Self { server, control_socket: own.join("control.sock") };
        until("the control socket", || Ok(proxy.control_socket.exists()))?;
        super::changes::set(&proxy, upstream.nodes())?;
        Ok(proxy)
    }

    /// The proxy as all others.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Where its pools are changed.
    pub fn control_socket(&self) -> &Path {
        &self.control_socket
    }
}

/// nginx as a reverse proxy.
#[derive(Debug)]
pub struct Nginx(Server);

impl Nginx {
    /// Starts it with the pool.
    pub fn start(folder: &Path, upstream: &Upstream) -> Result<Self> {
        let own = own_folder(folder, "nginx")?;
        let [address] = free_addresses()?;
        let servers: String = upstream.nodes().iter().map(|node| format!("    server {node};\n")).collect();
        let program = nginx(
            &own,
            &format!(
                "  upstream {POOL} {{\n    least_conn;\n{servers}    keepalive 64;\n    \
                 keepalive_requests 1000000000;\n  }}\n  \
                 server {{\n    listen {address} backlog=4096;\n    location / {{\n      \
                 proxy_pass http://{POOL};\n      proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      \
                 proxy_set_header Host $http_host;\n      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n      \
                 proxy_set_header X-Forwarded-Host $http_host;\n      proxy_set_header X-Forwarded-Proto $scheme;\n    \
                 }}\n  }}\n"
            ),
        )?;
        Ok(Self(Server::start(&program, address, &own.join("said"))?))
    }

    /// It as all others.
    pub fn server(&self) -> &Server {
        &self.0
    }
}

/// HAProxy.
#[derive(Debug)]
pub struct Haproxy(Server);

impl Haproxy {
    /// Starts it with the pool.
    pub fn start(folder: &Path, upstream: &Upstream) -> Result<Self> {
        let own = own_folder(folder, "haproxy")?;
        let [address] = free_addresses()?;
        let servers: String = upstream
            .nodes()
            .iter()
            .enumerate()
            .map(|(number, node)| format!("  server node{number} {node}\n"))
            .collect();
        let text = format!(
            "global\n  nbthread 2\n  maxconn 4096\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
             option forwardfor\n  http-reuse always\n\
             frontend in\n  bind {address}\n  http-request set-header X-Forwarded-Proto http\n  \
             http-request set-header X-Forwarded-Host %[req.hdr(host)]\n  default_backend {POOL}\n\
             backend {POOL}\n  balance leastconn\n{servers}"
        );
        let file = own.join("haproxy.cfg");
        fs::write(&file, text)?;
        let mut program = command("haproxy");
        program.arg("-db").arg("-f").arg(&file);
        Ok(Self(Server::start(&program, address, &own.join("said"))?))
    }

    /// It as all others.
    pub fn server(&self) -> &Server {
        &self.0
    }
}
