//! Settings of the backends whose pools are not files on hosts: stingray, chained, exec.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_yaml::{Mapping, Value};
use vr_common::secret::Secret;
use vr_common::yaml::kind;

use super::{ConfigError, Settings, build};
use crate::balancer::Balancer;
use crate::chained::ChainedBalancer;
use crate::exec::{self, ExecBalancer, ExecSettings};
use crate::stingray::{self, StingrayBalancer, StingraySettings};

pub(super) const STINGRAY: &[&str] =
    &["URL", "USER", "PASSWORD", "POOL_PREFIX", "GRACE_PERIOD", "ca_file", "timeout"];
pub(super) const EXEC: &[&str] = &["command", "timeout", "config", "lock_dir", "grace_period"];

impl Settings<'_> {
    fn seconds_or(&self, key: &'static str, default: Duration) -> Result<Duration, ConfigError> {
        self.value(key).map_or(Ok(default), |value| self.seconds(key, value))
    }

    /// How long something may take that has to end at some time: more than no time at all.
    fn timeout(&self, default: Duration) -> Result<Duration, ConfigError> {
        match self.seconds_or("timeout", default)? {
            Duration::ZERO => Err(self.bad("timeout", "more than 0 seconds", "0")),
            timeout => Ok(timeout),
        }
    }

    pub(super) fn stingray(&self) -> Result<Arc<dyn Balancer>, ConfigError> {
        let pool_prefix = match self.value("POOL_PREFIX") {
            None => String::new(),
            Some(Value::String(prefix)) if !prefix.chars().any(char::is_control) => prefix.clone(),
            Some(other) => {
                return Err(self.bad("POOL_PREFIX", "a text without control characters", kind(other)));
            }
        };
        let password = match self.value("PASSWORD") {
            Some(Value::String(password)) => Secret::new(password.as_str()),
            None => return Err(self.bad("PASSWORD", "a text", "nothing")),
            // Not with what is there: that would be in everybody's log.
            Some(_) => {
                let found = "something that is not shown here";
                return Err(self.bad("PASSWORD", "a text; put it in quotes", found));
            }
        };
        let ca_file = match self.value("ca_file") {
            None => None,
            Some(_) => Some(PathBuf::from(self.folder("ca_file", "")?)),
        };
        let settings = StingraySettings {
            url: self.required_text("URL", "the URL of the SOAP interface")?.to_owned(),
            user: self.required_text("USER", "a user's name")?.to_owned(),
            password,
            pool_prefix,
            grace_period: self.seconds_or("GRACE_PERIOD", stingray::GRACE_PERIOD)?,
            ca_file,
            timeout: self.timeout(stingray::TIMEOUT)?,
        };
        match StingrayBalancer::new(self.balancer, settings) {
            Ok(balancer) => Ok(Arc::new(balancer)),
            Err(source) => Err(ConfigError::Stingray { balancer: self.balancer.to_owned(), source }),
        }
    }

    /// Its members are called by their place, counted from 1: `front.1`.
    pub(super) fn chained(&self) -> Result<Arc<dyn Balancer>, ConfigError> {
        let expected = "a list of balancers, each a mapping with BACKEND";
        let members = match self.value("BALANCERS") {
            Some(Value::Sequence(members)) if !members.is_empty() => members,
            Some(Value::Sequence(_)) => return Err(self.bad("BALANCERS", expected, "an empty list")),
            Some(other) => return Err(self.bad("BALANCERS", expected, kind(other))),
            None => return Err(self.bad("BALANCERS", expected, "nothing")),
        };
        let has_members =
            |member: &Value| member.as_mapping().is_some_and(|keys| keys.contains_key("BALANCERS"));
        if members.iter().any(has_members) {
            let found = "one with BALANCERS of its own; put its members into this list";
            return Err(self.bad("BALANCERS", expected, found));
        }
        let members = members.iter().zip(1..);
        let built = members.map(|(member, place)| build(&format!("{}.{place}", self.balancer), member));
        Ok(Arc::new(ChainedBalancer::new(self.balancer, built.collect::<Result<_, _>>()?)))
    }

    pub(super) fn exec(&self) -> Result<Arc<dyn Balancer>, ConfigError> {
        let expected = "a program with its arguments, as a list or as words with spaces between them";
        let command: Vec<String> = match self.value("command") {
            Some(Value::String(line)) => line.split_whitespace().map(str::to_owned).collect(),
            Some(Value::Sequence(words)) => words
                .iter()
                .map(|word| {
                    let word = word.as_str().filter(|word| !word.contains('\0'));
                    word.map(str::to_owned).ok_or_else(|| self.bad("command", expected, "other words"))
                })
                .collect::<Result<_, _>>()?,
            Some(other) => return Err(self.bad("command", expected, kind(other))),
            None => return Err(self.bad("command", expected, "nothing")),
        };
        match command.first().map(String::as_str) {
            None | Some("") => return Err(self.bad("command", expected, "no program")),
            // It would depend on where we happen to be.
            Some(program) if program.contains('/') && !program.starts_with('/') => {
                let expected = "a program by its full path, or by its name alone";
                return Err(self.bad("command", expected, format!("{program:?}")));
            }
            Some(_) => {}
        }
        let nothing = Value::Mapping(Mapping::new());
        let config = serde_json::to_value(self.value("config").unwrap_or(&nothing))
            .map_err(|_| self.bad("config", "what JSON can say", "keys that are no texts"))?;
        let grace_period = match self.value("grace_period") {
            Some(value) => Some(self.seconds("grace_period", value)?),
            None => None,
        };
        let settings = ExecSettings {
            command,
            timeout: self.timeout(exec::TIMEOUT)?,
            config,
            lock_dir: self.lock_dir()?,
            grace_period,
        };
        Ok(Arc::new(ExecBalancer::new(self.balancer, settings)))
    }

    /// A folder that nobody else may write to, so that nobody else can hold our locks.
    fn lock_dir(&self) -> Result<PathBuf, ConfigError> {
        if self.value("lock_dir").is_some() {
            return self.folder("lock_dir", "").map(PathBuf::from);
        }
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/run/velociraptor"));
        }
        let own =
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
        own.map(|own| own.join("velociraptor")).ok_or_else(|| {
            self.bad("lock_dir", "a folder for locks, as there is no XDG_RUNTIME_DIR", "nothing")
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{error, load};

    #[test]
    fn the_manuals_stingray_block_is_taken_as_it_is() {
        let text = "  BACKEND: vr.common.balancer.zxtm.ZXTMBalancer\n  URL: https://traffic.yougov.local:9090/soap\n  \
                    USER: api_user\n  PASSWORD: api_user_password\n  POOL_PREFIX: vr-\n";
        let balancers = load(&format!("my_stingray_balancer:\n{text}")).unwrap();
        let balancer = &balancers["my_stingray_balancer"];
        assert_eq!(balancer.grace_period(&"web".parse().unwrap()), Some(crate::stingray::GRACE_PERIOD));
        for name in ["stingray", "zxtm", "vr.server.balancer.stingray.StingrayBalancer"] {
            let block =
                format!("{{BACKEND: {name}, URL: 'http://h/', USER: u, PASSWORD: p, POOL_PREFIX: ''}}");
            assert_eq!(load(&format!("a: {block}")).unwrap()["a"].name(), "a");
        }
    }

    #[test]
    fn what_is_wrong_with_a_stingray_is_told_without_the_password() {
        let stingray = |more: &str| error(&format!("a: {{BACKEND: stingray, USER: u, {more}}}"));
        assert_eq!(
            stingray("PASSWORD: p"),
            "BALANCERS.a.URL: expected the URL of the SOAP interface, found nothing"
        );
        let url = "URL: 'https://h/'";
        assert_eq!(stingray(url), "BALANCERS.a.PASSWORD: expected a text, found nothing");
        let secret = stingray(&format!("{url}, PASSWORD: 4711"));
        assert!(secret.starts_with("BALANCERS.a.PASSWORD: expected a text; put") && !secret.contains("4711"));
        let secret = stingray("URL: 'https://u:4711@h/', PASSWORD: p");
        assert!(secret.contains("without a user") && !secret.contains("4711"), "{secret}");
        let rest = format!("{url}, PASSWORD: p");
        assert!(stingray(&format!("{rest}, ca_file: /nonexistent/ca.pem")).contains("/nonexistent/ca.pem"));
        assert!(stingray(&format!("{rest}, timeout: 0")).contains("more than 0 seconds"));
        assert!(stingray(&format!("{rest}, GRACE_PERIOD: soon")).contains("a number of seconds"));
        assert!(stingray(&format!("{rest}, pool_prefix: x")).contains("unknown key \"pool_prefix\""));
    }

    #[test]
    fn members_of_a_chain_are_built_and_what_is_wrong_with_one_is_told() {
        let chain = |members: &str| format!("front: {{BACKEND: chained, BALANCERS: {members}}}");
        let good =
            chain("[{BACKEND: dummy}, {BACKEND: vr.common.balancer.nginx.NginxBalancer, hosts: [web1]}]");
        assert_eq!(load(&good).unwrap()["front"].name(), "front");
        assert_eq!(
            error(&chain("[{BACKEND: dummy}, {BACKEND: dummy, user: me}]")),
            "BALANCERS.front.2: unknown key \"user\", the dummy backend knows no other keys than BACKEND"
        );
        assert!(
            error(&chain("[{BACKEND: chained, BALANCERS: []}]")).contains("put its members into this list")
        );
        assert!(error(&chain("[]")).ends_with("found an empty list"));
        assert!(error(&chain("{a: {BACKEND: dummy}}")).contains("expected a list of balancers"));
        assert!(error(&chain("[dummy]")).starts_with("BALANCERS.front.1: expected a mapping"));
        assert!(error("front: {BACKEND: chained}").ends_with("found nothing"));
    }

    #[test]
    fn a_program_is_a_list_or_words() {
        for command in ["/bin/x --a b", "[/bin/x, '--a b']", "x"] {
            load(&format!("a: {{BACKEND: exec, command: {command}, lock_dir: /tmp/x}}")).unwrap();
        }
        let exec = |more: &str| error(&format!("a: {{BACKEND: exec, lock_dir: /tmp/x, {more}}}"));
        assert!(exec("config: {}").contains("BALANCERS.a.command: expected a program"));
        assert!(exec("command: []").ends_with("found no program"));
        assert!(exec("command: [1]").ends_with("found other words"));
        assert!(exec("command: bin/x").contains("by its full path"));
        assert!(exec("command: x, config: {[1]: 2}").contains("keys that are no texts"));
        assert!(exec("command: x, timeout: -1").contains("a number of seconds"));
        assert!(error("a: {BACKEND: exec, command: x, lock_dir: x}").contains("beginning with a slash"));
    }
}
