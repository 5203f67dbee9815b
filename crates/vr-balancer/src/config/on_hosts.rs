//! Settings of haproxy, caddy and apache, backends whose pools are files on hosts.

use std::sync::Arc;

use serde_yaml::Value;
use vr_common::names::Node;
use vr_common::yaml::kind;

use super::{ConfigError, Settings};
use crate::apache::{self, Apache};
use crate::balancer::Balancer;
use crate::caddy::{self, Caddy};
use crate::haproxy::{self, Haproxy};
use crate::site::Endpoint;

pub(super) const HAPROXY: &[&str] = &["stats_socket", "server_options"];
pub(super) const CADDY: &[&str] = &["caddy_cmd", "config_file", "admin"];
pub(super) const APACHE: &[&str] = &["pid_file", "member_options"];

impl Settings<'_> {
    /// Something that listens on each host.
    fn endpoint(&self, key: &'static str, default: Endpoint) -> Result<Endpoint, ConfigError> {
        let expected = "the path of a socket, beginning with a slash, or HOST:PORT";
        match self.text(key, expected)? {
            None => Ok(default),
            Some(path) if path.starts_with('/') => Ok(Endpoint::Unix(path.into())),
            Some(address) => match address.parse::<Node>() {
                Ok(node) => Ok(Endpoint::Tcp(node.host.to_string(), node.port)),
                Err(_) => Err(self.bad(key, expected, format!("{address:?}"))),
            },
        }
    }

    /// What becomes part of a line of somebody's configuration.
    fn line(&self, key: &'static str) -> Result<String, ConfigError> {
        let expected = "a text in one line";
        match self.value(key) {
            None => Ok(String::new()),
            Some(Value::String(text)) if !text.chars().any(char::is_control) => Ok(text.trim().to_owned()),
            Some(other) => Err(self.bad(key, expected, kind(other))),
        }
    }

    pub(super) fn haproxy(&self) -> Result<Arc<dyn Balancer>, ConfigError> {
        let include_dir = self.folder("include_dir", haproxy::INCLUDE_DIR)?;
        let default = Haproxy::new(include_dir.clone());
        let program = Haproxy {
            reload_cmd: self.command("reload_cmd")?.unwrap_or(default.reload_cmd),
            test_cmd: self.command("test_cmd")?.unwrap_or(default.test_cmd),
            stats_socket: self.endpoint("stats_socket", default.stats_socket)?,
            server_options: self.line("server_options")?,
            include_dir: include_dir.clone(),
        };
        self.pools_in_files(include_dir, Arc::new(program))
    }

    pub(super) fn apache(&self) -> Result<Arc<dyn Balancer>, ConfigError> {
        let default = Apache::default();
        let include_dir = self.folder("include_dir", apache::INCLUDE_DIR)?;
        let program = Apache {
            reload_cmd: self.command("reload_cmd")?.unwrap_or(default.reload_cmd),
            test_cmd: self.command("test_cmd")?.unwrap_or(default.test_cmd),
            pid_file: self.text("pid_file", "a path")?.map(str::to_owned),
            member_options: self.line("member_options")?,
            include_dir: include_dir.clone(),
        };
        self.pools_in_files(include_dir, Arc::new(program))
    }

    pub(super) fn caddy(&self) -> Result<Arc<dyn Balancer>, ConfigError> {
        let default = Caddy::default();
        let include_dir = self.folder("include_dir", caddy::INCLUDE_DIR)?;
        let program = Caddy {
            caddy_cmd: self.command("caddy_cmd")?.unwrap_or(default.caddy_cmd),
            config_file: self.folder("config_file", caddy::CONFIG_FILE)?,
            admin: self.endpoint("admin", default.admin)?,
            reload_cmd: self.command("reload_cmd")?,
            test_cmd: self.command("test_cmd")?,
            include_dir: include_dir.clone(),
        };
        self.pools_in_files(include_dir, Arc::new(program))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{error, load};

    #[test]
    fn haproxys_keys_are_checked() {
        load(
            "a: {BACKEND: haproxy}\nb: {BACKEND: vr.common.balancer.haproxy.HaproxyBalancer, hosts: [h1, h2], user: me, \
             include_dir: /etc/haproxy/pools/, stats_socket: \"127.0.0.1:9999\", server_options: check inter 2s}\n",
        )
        .unwrap();
        let haproxy = |more: &str| error(&format!("a: {{BACKEND: haproxy, {more}}}"));
        assert_eq!(
            haproxy("stats_socket: run/x.sock"),
            "BALANCERS.a.stats_socket: expected the path of a socket, beginning with a slash, or HOST:PORT, \
             found \"run/x.sock\""
        );
        assert!(haproxy("server_options: \"check\\nserver x h:1\"").contains("a text in one line"));
        assert!(haproxy("server_options: [check]").contains("found a list"));
    }

    #[test]
    fn apaches_keys_are_checked() {
        load("a: {BACKEND: apache}\nb: {BACKEND: vr.common.balancer.apache.ApacheBalancer, member_options: retry=5}\n")
            .unwrap();
        assert!(error("a: {BACKEND: apache, member_options: 5}").contains("a text in one line"));
    }

    #[test]
    fn caddys_keys_are_checked() {
        load("a: {BACKEND: caddy}\nb: {BACKEND: vr.common.balancer.caddy.CaddyBalancer, admin: /run/caddy/admin.sock}\n")
            .unwrap();
        let error = error("a: {BACKEND: caddy, config_file: Caddyfile}");
        assert!(error.starts_with("BALANCERS.a.config_file: expected a path"), "{error}");
    }
}
