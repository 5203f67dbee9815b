//! Debian's balancer programs, each started in a temporary folder of its own, on this machine or as hosts that are
//! reached over SSH.
//!
//! A backend joins the common suite with a [`Fixture`]; one whose pools are in files joins `files.rs` as well with a
//! [`Kind`]. Programs listen on unix sockets, so that no two tests want the same port.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use vr_balancer::{Balancer, from_config};
use vr_common::names::Node;
use vr_common::process::command;
use vr_testing::{Sshd, SshdOptions, SudoRule};

use crate::support::{self, DEADLINE, eventually, run, status};

/// A backend that is ready to be used.
pub trait Fixture: Send + Sync {
    /// It, as a process of its own would have it.
    fn balancer(&self) -> Arc<dyn Balancer>;
    /// A settings file with it, if it can be used from other processes.
    fn settings_file(&self) -> Option<&Path>;
    /// How often two writers in one process write at the same time. A few times are enough where two processes do it often.
    fn rounds_in_process(&self) -> u16 {
        if self.settings_file().is_some() { 10 } else { crate::suite::ROUNDS }
    }
    /// How many pools it can have at once.
    fn most_pools(&self) -> usize {
        usize::MAX
    }
    /// What it sees of a pool's name: two with the same cannot be there at once.
    fn short_name(&self, pool: &str) -> String {
        pool.to_owned()
    }
}

/// How a program with pools in files is started and broken.
pub trait Kind: Send + Sync + 'static {
    /// Its `BACKEND`.
    fn name(&self) -> &'static str;
    /// Writes the operator's configuration into a folder in which `pools` is the one for pools, and `config.d` one whose
    /// files the configuration includes.
    fn configure(&self, folder: &Path);
    /// The command that runs it in the foreground, with this folder; it listens at `http.sock`.
    fn command(&self, folder: &Path) -> Command;
    /// The settings that it needs, beside `include_dir`.
    fn settings(&self, folder: &Path) -> Vec<(&'static str, String)>;
    /// The shell script `reload` in the folder, by which it is told to read its files; `first` comes before that.
    fn reload(&self, folder: &Path, first: &str) -> String;
    /// The name of a pool's file.
    fn pool_file(&self, pool: &str) -> String;
    /// What the names of the files in `config.d` have to end with.
    fn extra_suffix(&self) -> &'static str {
        "conf"
    }
    /// See [`Fixture::short_name`].
    fn short_name(&self, pool: &str) -> String {
        pool.to_owned()
    }
    /// Whether a pool that the configuration refers to may be missing.
    fn can_miss_a_pool(&self) -> bool {
        false
    }
    /// The port that it listens at if it cannot listen at a unix socket; for the program in this folder.
    fn port(&self, _folder: &Path) -> Option<u16> {
        None
    }
    /// Whether it can go back to what it had after a reload has failed, without another one.
    fn goes_back_without_reload(&self) -> bool {
        false
    }
    /// What the operator writes into `config.d` so that the pool cannot go away.
    fn reference(&self, folder: &Path, pool: &str) -> String;
    /// What the operator has to write there for requests to reach a pool, if anything.
    fn route(&self, _folder: &Path, _pool: &str) -> Option<String> {
        None
    }
    /// Something that is no configuration at all.
    fn nonsense(&self) -> &'static str;
}

/// nginx; requests choose their pool with the header `X-Pool`.
pub struct NginxKind;

impl Kind for NginxKind {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn configure(&self, folder: &Path) {
        let at = folder.display();
        let text = format!(
            "user root;\ndaemon off;\nworker_processes 2;\npid {at}/nginx.pid;\nerror_log {at}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n  access_log off;\n  include {at}/pools/*;\n  include {at}/config.d/*;\n  \
             client_body_temp_path {at}/body;\n  proxy_temp_path {at}/proxy;\n  fastcgi_temp_path {at}/fastcgi;\n  \
             uwsgi_temp_path {at}/uwsgi;\n  scgi_temp_path {at}/scgi;\n  \
             server {{\n    listen unix:{at}/http.sock;\n    \
             location / {{ proxy_pass http://$http_x_pool; proxy_http_version 1.1; }}\n  }}\n}}\n"
        );
        fs::write(folder.join("nginx.conf"), text).unwrap();
    }

    fn command(&self, folder: &Path) -> Command {
        let mut nginx = command("nginx");
        nginx.arg("-c").arg(folder.join("nginx.conf"));
        nginx
    }

    fn settings(&self, folder: &Path) -> Vec<(&'static str, String)> {
        let at = folder.display();
        vec![
            ("pid_file", format!("{at}/nginx.pid")),
            ("test_cmd", format!("nginx -c {at}/nginx.conf -T")),
            ("reload_cmd", format!("{at}/reload")),
        ]
    }

    fn reload(&self, folder: &Path, first: &str) -> String {
        format!("{first}exec nginx -c {}/nginx.conf -s reload\n", folder.display())
    }

    fn pool_file(&self, pool: &str) -> String {
        format!("{pool}.conf")
    }

    fn reference(&self, folder: &Path, pool: &str) -> String {
        let at = folder.display();
        format!("server {{ listen unix:{at}/{pool}.sock; location / {{ proxy_pass http://{pool}; }} }}\n")
    }

    fn nonsense(&self) -> &'static str {
        "this is {{ no configuration\n"
    }
}

/// Varnish; requests choose their pool with the header `X-Pool`, if there is a route to it.
pub struct VarnishKind;

impl Kind for VarnishKind {
    fn name(&self) -> &'static str {
        "varnish"
    }

    fn configure(&self, folder: &Path) {
        let at = folder.display();
        let text = format!(
            "vcl 4.1;\nbackend nobody {{ .host = \"127.0.0.1\"; .port = \"1\"; }}\n\
             include \"{at}/pools/pools.vcl\";\ninclude +glob \"{at}/config.d/*.conf\";\n\
             sub vcl_recv {{ return (pass); }}\n"
        );
        fs::write(folder.join("main.vcl"), text).unwrap();
        fs::write(folder.join("pools.vcl"), "# mine\n").unwrap();
        fs::write(folder.join("empty.conf"), "").unwrap();
    }

    fn command(&self, folder: &Path) -> Command {
        let mut varnish = command("varnishd");
        varnish.arg("-F").arg("-n").arg(folder.join("varnish"));
        varnish.arg("-a").arg(format!("{},mode=666", folder.join("http.sock").display()));
        varnish.arg("-f").arg(folder.join("main.vcl")).args(["-s", "malloc,16m", "-p", "thread_pool_min=10"]);
        // It has to be quick here, and not fast.
        varnish.args(["-p", "cc_command=exec cc -fpic -shared -O0 -o %o %s"]);
        varnish
    }

    fn settings(&self, folder: &Path) -> Vec<(&'static str, String)> {
        let at = folder.display();
        vec![
            ("varnishadm_cmd", format!("{at}/reload")),
            ("varnishstat_cmd", format!("varnishstat -n {at}/varnish")),
            ("vcl_file", format!("{at}/main.vcl")),
        ]
    }

    fn reload(&self, folder: &Path, first: &str) -> String {
        format!(
            "if [ \"$1\" = vcl.use ]; then\n{first}fi\nexec varnishadm -n {}/varnish \"$@\"\n",
            folder.display()
        )
    }

    fn pool_file(&self, pool: &str) -> String {
        format!("pool-{pool}.vcl")
    }

    fn reference(&self, _folder: &Path, pool: &str) -> String {
        format!(
            "sub vcl_recv {{ if (req.http.x-pool == \"{pool}\") {{ set req.backend_hint = {pool}.backend(); }} }}\n"
        )
    }

    fn route(&self, folder: &Path, pool: &str) -> Option<String> {
        Some(self.reference(folder, pool))
    }

    fn nonsense(&self) -> &'static str {
        "this is {{ no configuration\n"
    }
}

/// HAProxy; requests choose their pool with the header `X-Pool`.
pub struct HaproxyKind {
    /// How it balances; a static algorithm leaves reloads as the only way to add a node.
    pub balance: &'static str,
}

impl Kind for HaproxyKind {
    fn name(&self) -> &'static str {
        "haproxy"
    }

    fn configure(&self, folder: &Path) {
        let (at, balance) = (folder.display(), self.balance);
        let text = format!(
            "global\n  stats socket {at}/admin.sock mode 600 level admin expose-fd listeners\n  log stderr local0 err\n\
             defaults\n  mode http\n  balance {balance}\n  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\n\
             frontend http\n  bind unix@{at}/http.sock mode 666\n  use_backend %[req.hdr(x-pool)]\n"
        );
        fs::write(folder.join("haproxy.cfg"), text).unwrap();
    }

    fn command(&self, folder: &Path) -> Command {
        let mut haproxy = command("haproxy");
        haproxy.arg("-W").arg("-p").arg(folder.join("haproxy.pid"));
        for part in ["haproxy.cfg", "pools", "config.d"] {
            haproxy.arg("-f").arg(folder.join(part));
        }
        haproxy
    }

    fn settings(&self, folder: &Path) -> Vec<(&'static str, String)> {
        let at = folder.display();
        vec![
            ("stats_socket", format!("{at}/admin.sock")),
            ("test_cmd", format!("haproxy -c -f {at}/haproxy.cfg -f {at}/pools -f {at}/config.d")),
            ("reload_cmd", format!("{at}/reload")),
        ]
    }

    fn reload(&self, folder: &Path, first: &str) -> String {
        format!("{first}kill -USR2 $(cat {}/haproxy.pid)\n", folder.display())
    }

    fn pool_file(&self, pool: &str) -> String {
        format!("{pool}.cfg")
    }

    fn extra_suffix(&self) -> &'static str {
        "cfg"
    }

    fn goes_back_without_reload(&self) -> bool {
        true
    }

    fn reference(&self, folder: &Path, pool: &str) -> String {
        let at = folder.display();
        format!("frontend to-{pool}\n  bind unix@{at}/{pool}.sock\n  default_backend {pool}\n")
    }

    fn nonsense(&self) -> &'static str {
        "this is {{ no configuration\n"
    }
}

/// Caddy; requests choose their pool with the header `X-Pool`, if there is a route to it.
pub struct CaddyKind;

impl CaddyKind {
    /// Caddy, with whatever it remembers in the folder.
    fn program(folder: &Path) -> String {
        let at = folder.display();
        format!("env HOME={at} XDG_CONFIG_HOME={at}/caddy XDG_DATA_HOME={at}/caddy caddy")
    }
}

impl Kind for CaddyKind {
    fn name(&self) -> &'static str {
        "caddy"
    }

    fn configure(&self, folder: &Path) {
        let at = folder.display();
        let text = format!(
            "{{\n\tadmin unix/{at}/admin.sock\n\tauto_https off\n}}\nimport {at}/pools/*.caddy\n\
             http:// {{\n\tbind unix/{at}/http.sock\n\timport {at}/config.d/*.conf\n\trespond 404\n}}\n"
        );
        fs::write(folder.join("Caddyfile"), text).unwrap();
    }

    fn command(&self, folder: &Path) -> Command {
        let mut caddy = command("sh");
        caddy.args([
            "-c",
            &format!("exec {} run --config {}/Caddyfile", Self::program(folder), folder.display()),
        ]);
        caddy
    }

    fn settings(&self, folder: &Path) -> Vec<(&'static str, String)> {
        let at = folder.display();
        vec![
            ("caddy_cmd", Self::program(folder)),
            ("config_file", format!("{at}/Caddyfile")),
            ("admin", format!("{at}/admin.sock")),
            ("reload_cmd", format!("{at}/reload")),
        ]
    }

    fn reload(&self, folder: &Path, first: &str) -> String {
        let (caddy, at) = (Self::program(folder), folder.display());
        format!("{first}exec {caddy} reload --config {at}/Caddyfile --address unix/{at}/admin.sock\n")
    }

    fn pool_file(&self, pool: &str) -> String {
        format!("{pool}.caddy")
    }

    fn reference(&self, _folder: &Path, pool: &str) -> String {
        format!(
            "@{pool} header X-Pool {pool}\nhandle @{pool} {{\n\treverse_proxy {{\n\t\timport {pool}\n\t}}\n}}\n"
        )
    }

    fn route(&self, folder: &Path, pool: &str) -> Option<String> {
        Some(self.reference(folder, pool))
    }

    fn nonsense(&self) -> &'static str {
        "this is {{ no configuration\n"
    }
}

/// Apache; requests choose their pool with the header `X-Pool`, if there is a route to it.
pub struct ApacheKind {
    /// Its way to spread work over children and threads.
    pub mpm: &'static str,
}

impl Kind for ApacheKind {
    fn name(&self) -> &'static str {
        "apache"
    }

    fn configure(&self, folder: &Path) {
        let at = folder.display();
        let (port, _) = support::ports();
        let modules = [
            self.mpm,
            "authz_core",
            "rewrite",
            "proxy",
            "proxy_http",
            "proxy_balancer",
            "slotmem_shm",
            "lbmethod_byrequests",
        ];
        let modules: String = modules
            .iter()
            .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
            .collect();
        let text = format!(
            "{modules}ServerRoot {at}\nServerName localhost\nPidFile {at}/apache.pid\nDefaultRuntimeDir {at}\n\
             ErrorLog {at}/error.log\nListen 127.0.0.1:{port}\nUser www-data\nGroup www-data\nStartServers 2\n\
             KeepAliveTimeout 60\nProxyTimeout 60\nRewriteEngine on\n\
             IncludeOptional {at}/pools/*.conf\nIncludeOptional {at}/config.d/*.conf\n"
        );
        fs::write(folder.join("apache.conf"), text).unwrap();
    }

    fn command(&self, folder: &Path) -> Command {
        let mut apache = command("apache2");
        apache.args(["-D", "FOREGROUND", "-f"]).arg(folder.join("apache.conf"));
        apache
    }

    fn settings(&self, folder: &Path) -> Vec<(&'static str, String)> {
        let at = folder.display();
        vec![
            ("pid_file", format!("{at}/apache.pid")),
            ("test_cmd", format!("apache2 -f {at}/apache.conf -t -D DUMP_INCLUDES")),
            ("reload_cmd", format!("{at}/reload")),
        ]
    }

    fn reload(&self, folder: &Path, first: &str) -> String {
        format!("{first}exec apache2 -f {}/apache.conf -k graceful\n", folder.display())
    }

    fn pool_file(&self, pool: &str) -> String {
        format!("{pool}.conf")
    }

    fn port(&self, folder: &Path) -> Option<u16> {
        let text = fs::read_to_string(folder.join("apache.conf")).unwrap();
        let port = text.lines().find_map(|line| line.strip_prefix("Listen 127.0.0.1:")).unwrap();
        Some(port.parse().unwrap())
    }

    fn can_miss_a_pool(&self) -> bool {
        true
    }

    fn short_name(&self, pool: &str) -> String {
        let letter =
            |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' };
        pool.chars().map(letter).collect()
    }

    fn reference(&self, _folder: &Path, pool: &str) -> String {
        format!(
            "RewriteCond %{{HTTP:X-Pool}} ={pool}\nRewriteRule ^/(.*)$ /pool-{pool}/$1 [PT]\n\
             ProxyPass \"/pool-{pool}/\" \"balancer://{pool}/\"\n"
        )
    }

    fn route(&self, folder: &Path, pool: &str) -> Option<String> {
        Some(self.reference(folder, pool))
    }

    fn nonsense(&self) -> &'static str {
        "this is {{ no configuration\n"
    }
}

/// Brings what comes in at a unix socket to a port, as long as it lives.
struct Relay {
    socket: PathBuf,
    is_over: Arc<AtomicBool>,
}

impl Relay {
    fn start(socket: PathBuf, port: u16) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let relay = Self { socket, is_over: Arc::clone(&is_over) };
        std::thread::spawn(move || {
            while let (Ok((client, _)), false) = (listener.accept(), is_over.load(Ordering::Relaxed)) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _broken = std::io::copy(&mut &from_client, &mut &to_server);
                    let _gone = to_server.shutdown(Shutdown::Write);
                });
                std::thread::spawn(move || {
                    let _broken = std::io::copy(&mut &server, &mut &client);
                    let _gone = client.shutdown(Shutdown::Both);
                });
            }
        });
        relay
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _woken = UnixStream::connect(&self.socket);
    }
}

/// A running program, and the folder it lives in.
pub struct Host {
    /// Its folder, as this test sees it.
    pub folder: PathBuf,
    name: String,
    program: Option<Child>,
    _relay: Option<Relay>,
    /// The way in, if it is not this machine itself.
    pub sshd: Option<Sshd>,
}

impl Host {
    /// What the pool's file says there.
    pub fn file(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.join("pools").join(name)).ok()
    }

    /// How often it was told to reload.
    pub fn reloads(&self) -> usize {
        fs::read_to_string(self.folder.join("reloads")).unwrap_or_default().lines().count()
    }

    /// Makes reloads fail, or not any more.
    pub fn break_reload(&self, is_broken: bool) {
        let mark = self.folder.join("reload-fails");
        if is_broken { fs::write(mark, "").unwrap() } else { fs::remove_file(mark).unwrap() }
    }

    /// The files in the folder of the pools, without ours.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join("pools")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    }

    /// What a request to the pool is answered: status and body.
    pub fn ask(&self, pool: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.folder.join("http.sock")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: app\r\nX-Pool: {pool}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let head = support::read_head(&mut stream).expect("an answer");
        let mut body = String::new();
        // Whatever form the body has, the nodes' names are short and in one piece.
        stream.read_to_string(&mut body).unwrap();
        let body = if support::header(&head, "transfer-encoding").is_some() {
            body.split("\r\n").nth(1).unwrap_or_default().to_owned()
        } else {
            body
        };
        (status(&head), body)
    }

    /// Who answers requests to the pool: names of nodes, or statuses.
    pub fn answers(&self, pool: &str) -> Vec<String> {
        let mut names: Vec<String> = (0..8)
            .map(|_| match self.ask(pool) {
                (200, body) => body,
                (other, _) => other.to_string(),
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Its way in is shut, but the program goes on.
    pub fn cut_off(&mut self) {
        self.sshd.as_mut().unwrap().kill();
    }

    /// Its way in is open again.
    pub fn back_again(&mut self) {
        self.sshd.as_mut().unwrap().start_again();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("said")).unwrap_or_default()
            + &fs::read_to_string(self.folder.join("error.log")).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(child) = &mut self.program {
            let group = rustix::process::Pid::from_child(child);
            // The program first, so that it can end its workers.
            let _ended = rustix::process::kill_process(group, rustix::process::Signal::TERM);
            let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
            while matches!(child.try_wait(), Ok(None)) && std::time::Instant::now() < end {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let _ended = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ended = child.wait();
        }
    }
}

/// A balancer program on one or several hosts.
pub struct Files<K: Kind> {
    pub kind: K,
    pub hosts: Vec<Host>,
    pub settings_file: PathBuf,
    /// The folder of each host as it is called there.
    folder: PathBuf,
    settings: Vec<(&'static str, String)>,
    // Goes last.
    _dir: TempDir,
}

impl<K: Kind> Files<K> {
    /// One host: this machine.
    pub async fn here(kind: K) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("host");
        fs::create_dir(&folder).unwrap();
        let host = start(&kind, "localhost".to_owned(), &folder, &folder, None).await;
        Self::finish(kind, vec![host], folder, Vec::new(), dir)
    }

    /// So many hosts, reached over SSH by a user who may use sudo. Each has its own folder, under the same name.
    pub async fn over_ssh(kind: K, count: usize, sudo: SudoRule) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let common = dir.path().join("host");
        fs::create_dir(&common).unwrap();
        let mut hosts = Vec::new();
        let mut known = String::new();
        let mut key: Option<PathBuf> = None;
        for number in 0..count {
            let own = dir.path().join(format!("host{number}"));
            fs::create_dir(&own).unwrap();
            let within = bound(&own, &common);
            let sshd = tokio::task::spawn_blocking(move || {
                Sshd::start(SshdOptions { sudo, within, ..SshdOptions::default() })
            });
            let sshd = sshd.await.unwrap();
            // One key opens all of them.
            match &key {
                Some(key) => sshd.authorize(&key.with_extension("pub")),
                None => key = Some(sshd.key_file()),
            }
            known += &fs::read_to_string(sshd.known_hosts()).unwrap();
            let name = format!("{}:{}", sshd.address(), sshd.port());
            hosts.push(start(&kind, name, &own, &common, Some(sshd)).await);
        }
        let known_hosts = dir.path().join("known_hosts");
        fs::write(&known_hosts, known).unwrap();
        let sshd = hosts[0].sshd.as_ref().unwrap();
        let mut login = vec![
            ("user", sshd.user().to_owned()),
            ("known_hosts", known_hosts.display().to_string()),
            ("connect_timeout", "5".to_owned()),
            ("password", sshd.password().to_owned()),
        ];
        if sudo == SudoRule::Refused {
            // Root, by key.
            login = vec![
                ("user", "root".to_owned()),
                ("known_hosts", known_hosts.display().to_string()),
                ("key_file", sshd.key_file().display().to_string()),
            ];
        }
        Self::finish(kind, hosts, common, login, dir)
    }

    fn finish(
        kind: K,
        hosts: Vec<Host>,
        folder: PathBuf,
        login: Vec<(&'static str, String)>,
        dir: TempDir,
    ) -> Self {
        let mut settings = vec![("include_dir", format!("{}/pools/", folder.display()))];
        settings.extend(kind.settings(&folder));
        settings.extend(login);
        let settings_file = dir.path().join("settings.yaml");
        let files = Self { kind, hosts, settings_file, folder, settings, _dir: dir };
        files.write_settings(&[]);
        files
    }

    /// Writes the settings file, with these settings changed.
    pub fn write_settings(&self, changed: &[(&'static str, &str)]) {
        let hosts: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
        let mut block = serde_json::json!({ "BACKEND": self.kind.name(), "hosts": hosts });
        let changed = changed.iter().map(|(key, value)| (*key, (*value).to_owned()));
        for (key, value) in self.settings.clone().into_iter().chain(changed) {
            block[key] = match value.parse::<u64>() {
                Ok(number) => number.into(),
                Err(_) => value.into(),
            };
        }
        // YAML can be written as JSON.
        let text = serde_json::json!({ "BALANCERS": { "front": block } }).to_string();
        fs::write(&self.settings_file, text).unwrap();
    }

    /// Makes the pool, and the operator's way to it, which the next change makes the program see.
    pub async fn route(&self, name: &str) {
        if self.kind.route(&self.folder, name).is_some() {
            self.balancer().add_nodes(&support::pool(name), &[]).await.unwrap();
            for host in &self.hosts {
                let text = self.kind.route(&self.folder, name).unwrap();
                fs::write(self.extra_file(host, "route"), text).unwrap();
            }
        }
    }

    /// A file of the operator's that the configuration of a host includes.
    pub fn extra_file(&self, host: &Host, name: &str) -> PathBuf {
        host.folder.join(format!("config.d/{name}.{}", self.kind.extra_suffix()))
    }

    /// Makes the configuration of the only host refer to the pool, and says in which file.
    pub fn refer(&self, name: &str) -> PathBuf {
        let file = self.extra_file(&self.hosts[0], "reference");
        fs::write(&file, self.kind.reference(&self.folder, name)).unwrap();
        file
    }

    /// The path of a pool's file, as messages have it.
    pub fn path(&self, pool: &str) -> String {
        format!("{}/pools/{}", self.folder.display(), self.kind.pool_file(pool))
    }

    /// Runs the command line with these settings.
    pub fn cli(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut all = vec!["--config", self.settings_file.to_str().unwrap()];
        all.extend(arguments);
        let output = run(&all);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

impl<K: Kind> Fixture for Files<K> {
    fn balancer(&self) -> Arc<dyn Balancer> {
        let mut balancers = vr_balancer::load_config(&self.settings_file).unwrap();
        balancers.remove("front").unwrap()
    }

    fn settings_file(&self) -> Option<&Path> {
        Some(&self.settings_file)
    }

    fn short_name(&self, pool: &str) -> String {
        self.kind.short_name(pool)
    }
}

/// A program and its arguments that run what follows with one folder under the name of another.
fn bound(own: &Path, common: &Path) -> Vec<std::ffi::OsString> {
    let script = "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
    let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"];
    let mut all: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
    all.extend([own.into(), common.into()]);
    all
}

/// Starts a program in its folder, which it knows under another name.
async fn start(kind: &impl Kind, name: String, own: &Path, common: &Path, sshd: Option<Sshd>) -> Host {
    use std::os::unix::process::CommandExt;
    for folder in ["pools", "config.d"] {
        fs::create_dir(own.join(folder)).unwrap();
    }
    // The configuration has the names that the program knows.
    let written = common == own;
    kind.configure(common);
    for (file, folder) in [("pools.vcl", "pools"), ("empty.conf", "config.d")] {
        if common.join(file).exists() {
            fs::rename(common.join(file), own.join(folder).join(file)).unwrap();
        }
    }
    if !written {
        for entry in fs::read_dir(common).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), own.join(entry.file_name())).unwrap();
            fs::remove_file(entry.path()).unwrap();
        }
    }
    let at = common.display();
    let first = format!(
        "echo reload >>{at}/reloads\n[ ! -e {at}/reload-fails ] || {{ echo \"no reload today\" >&2; exit 1; }}\n\
         [ ! -e {at}/reload-waits ] || {{ echo $$ >{at}/waits; exec sleep 4000; }}\n"
    );
    fs::write(own.join("reload"), format!("#!/bin/sh\n{}", kind.reload(common, &first))).unwrap();
    fs::set_permissions(own.join("reload"), fs::Permissions::from_mode(0o755)).unwrap();
    let program = kind.command(common);
    let mut start = if own == common {
        program
    } else {
        let words = bound(own, common);
        let mut within = command(&words[0]);
        within.args(&words[1..]).arg(program.get_program()).args(program.get_args());
        within
    };
    let said = fs::File::create(own.join("said")).unwrap();
    start.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said).process_group(0);
    let mut host = Host { folder: own.to_owned(), name, program: None, _relay: None, sshd };
    host.program = Some(start.spawn().unwrap());
    let (socket, port) = (own.join("http.sock"), kind.port(own));
    eventually("the program listens", || {
        let ended = host.program.as_mut().unwrap().try_wait().unwrap();
        assert_eq!(ended, None, "it ended at once: {}", host.log());
        port.map_or_else(
            || UnixStream::connect(&socket).is_ok(),
            |port| TcpStream::connect(("127.0.0.1", port)).is_ok(),
        )
    })
    .await;
    // What listens may still be about to write its number.
    for (_, file) in kind.settings(own).iter().filter(|(key, _)| *key == "pid_file") {
        eventually("there is the program's number", || fs::metadata(file).is_ok_and(|file| file.len() > 0))
            .await;
    }
    host._relay = port.map(|port| Relay::start(socket, port));
    host
}

/// A backend without files, and whatever keeps it alive.
pub struct Simple<T> {
    pub balancer: Arc<dyn Balancer>,
    pub settings_file: Option<PathBuf>,
    pub most_pools: usize,
    pub _alive: T,
}

impl<T: Send + Sync> Fixture for Simple<T> {
    fn balancer(&self) -> Arc<dyn Balancer> {
        Arc::clone(&self.balancer)
    }

    fn settings_file(&self) -> Option<&Path> {
        self.settings_file.as_deref()
    }

    fn most_pools(&self) -> usize {
        self.most_pools
    }
}

/// Nodes that nobody listens at; only their names matter.
pub fn nodes(ports: &[u16]) -> Vec<Node> {
    ports.iter().map(|port| support::node(format!("127.0.0.1:{port}"))).collect()
}

/// Settings of any kind, as a balancer.
pub fn balancer_of(yaml: &str) -> Arc<dyn Balancer> {
    let mapping = vr_common::yaml::parse_mapping("settings", yaml).unwrap();
    from_config(&mapping).unwrap().into_values().next().unwrap()
}
